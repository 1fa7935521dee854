"""The admin listener as an operator's client sees it: real sockets, any free port."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from falcon_fast.admin.app import MAX_BODY_BYTES, AdminServer, problems, start_admin

pytestmark = pytest.mark.integration

STATUS: Mapping[str, object] = {
    "module": "websocket",
    "status": "healthy",
    "stats": {"total_connections": 2**63},
}


@pytest.fixture
async def server() -> AsyncIterator[AdminServer]:
    server = await start_admin(host="127.0.0.1", port=0, status=lambda: STATUS)
    yield server
    await server.close()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_status_is_what_the_callable_returns(
    server: AdminServer, client: aiohttp.ClientSession
) -> None:
    async with client.get(server.url + "websocket/status") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        assert json.loads(await response.read()) == STATUS


async def test_index_names_what_is_served(
    server: AdminServer, client: aiohttp.ClientSession
) -> None:
    async with client.get(server.url) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert "GET /websocket/status" in await response.text()


async def test_answers_carry_the_hardening_headers(
    server: AdminServer, client: aiohttp.ClientSession
) -> None:
    for path in ("", "websocket/status", "nothing"):
        async with client.get(server.url + path) as response:
            assert response.headers["Server"] == "falcon_fast"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_unknown_path_is_a_problem_404(
    server: AdminServer, client: aiohttp.ClientSession
) -> None:
    async with client.get(server.url + "nothing/here") as response:
        assert response.status == 404
        assert response.headers["Content-Type"] == "application/problem+json"
        assert json.loads(await response.read()) == {
            "title": "Not Found",
            "status": 404,
            "detail": "Not Found",
        }


async def test_wrong_method_is_a_problem_405_with_allow(
    server: AdminServer, client: aiohttp.ClientSession
) -> None:
    async with client.post(server.url + "websocket/status", data=b"x") as response:
        assert response.status == 405
        assert response.headers["Content-Type"] == "application/problem+json"
        assert set(response.headers["Allow"].split(",")) == {"GET", "HEAD"}
        assert json.loads(await response.read())["status"] == 405


async def test_failing_status_is_a_problem_500_without_the_reason(
    client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Mapping[str, object]:
        raise RuntimeError("the secret of the house")

    server = await start_admin(host="127.0.0.1", port=0, status=fail)
    try:
        with caplog.at_level(logging.ERROR, logger="falcon_fast.admin.app"):
            async with client.get(server.url + "websocket/status") as response:
                body = await response.text()
                assert response.status == 500
                assert response.headers["Content-Type"] == "application/problem+json"
    finally:
        await server.close()
    assert "secret" not in body
    assert [record.message for record in caplog.records] == ["admin request failed"]


async def test_close_frees_the_port_and_may_be_called_twice(server: AdminServer) -> None:
    await server.close()
    await server.close()
    again = await start_admin(host="127.0.0.1", port=server.port, status=lambda: STATUS)
    assert again.port == server.port
    await again.close()


async def test_port_in_use_raises_oserror() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="address already in use"):
            await start_admin(host="127.0.0.1", port=taken.getsockname()[1], status=lambda: STATUS)


async def test_redirects_are_no_problems() -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/elsewhere")

    with pytest.raises(web.HTTPFound):
        await problems(make_mocked_request("GET", "/"), redirect)


def test_url_of_an_ipv6_address_has_brackets() -> None:
    runner = web.AppRunner(web.Application())
    assert AdminServer(runner, host="::1", port=3001).url == "http://[::1]:3001/"


def test_body_limit_is_one_mebibyte() -> None:
    assert MAX_BODY_BYTES == 1_048_576
