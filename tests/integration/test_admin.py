"""The admin listener in this process, with a service that does what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
import pytest
from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.test_utils import make_mocked_request

from falcon_fast.admin import app, listener
from falcon_fast.admin.app import MAX_BODY_BYTES, AdminServer, RenderMetrics, refuse, start_admin
from falcon_fast.admin.examples import ANSWERS
from falcon_fast.admin.security import Gatekeeper
from falcon_fast.errors import BusUnavailable, DirectoryUnavailable
from falcon_fast.identity import Identity
from falcon_fast.service import ConnectionInfo, Page, SendResult, Service

pytestmark = pytest.mark.integration

TOKEN: Final = "the-token-of-the-house"
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
MESSAGE: Final[Mapping[str, object]] = {"type": "message", "data": {}}


class Fake(Service):
    """A service that raises or returns what it is told to."""

    def __init__(self, outcome: Exception | SendResult | None = None) -> None:
        self.outcome = outcome
        self.calls = 0

    async def status(self) -> dict[str, object]:
        self.calls += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return ANSWERS["Status"]

    async def broadcast(self, kind: str, data: Mapping[str, object]) -> SendResult:
        self.calls += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome

    async def list_connections(
        self,
        *,
        user_id: str | None = None,
        character_id: int | None = None,
        room_id: str | None = None,
        limit: int = 100,
        start: str = "",
    ) -> Page[ConnectionInfo]:
        return Page((), 5, None, ("node-2",))


async def is_super_admin(user_id: str, character_id: int) -> bool:
    return True


def verify(token: str) -> Identity:
    return Identity("boss", 1, "Boss", "", 2_000_000_000, None)


@contextlib.asynccontextmanager
async def serving(
    service: Service | None = None, *, metrics: RenderMetrics | None = None
) -> AsyncIterator[AdminServer]:
    server = await start_admin(
        service or Fake(),
        Gatekeeper(
            verify=verify,
            is_banned=lambda user_id: False,
            is_super_admin=is_super_admin,
            cookie_name="cookie",
        ),
        host="127.0.0.1",
        port=0,
        max_json_depth=32,
        metrics=metrics,
    )
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_unknown_path_is_a_problem_404(client: aiohttp.ClientSession) -> None:
    async with serving() as server, client.get(server.url + "nothing/here") as response:
        assert response.status == 404
        assert response.headers["Content-Type"] == "application/problem+json"
        assert await response.read() == b'{"title":"Not Found","status":404,"detail":"Not Found"}'


async def test_metrics_are_what_the_callable_returns(client: aiohttp.ClientSession) -> None:
    async def render() -> tuple[bytes, str]:
        return b"falcon_up 1\n", "text/plain; version=0.0.4"

    async with serving(metrics=render) as server, client.get(server.url + "metrics") as response:
        assert (response.status, await response.read()) == (200, b"falcon_up 1\n")
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4"


async def test_without_metrics_there_is_no_such_route(client: aiohttp.ClientSession) -> None:
    async with serving() as server:
        async with client.get(server.url + "metrics") as response:
            assert response.status == 404
        async with client.get(server.url + "openapi.json") as response:
            assert "/metrics" not in json.loads(await response.read())["paths"]


async def test_a_request_id_is_given_back_and_in_the_log(
    client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    service = Fake(RuntimeError("the secret of the house"))
    with caplog.at_level(logging.ERROR, logger="falcon_fast.admin"):
        async with (
            serving(service) as server,
            client.get(
                server.url + "websocket/status", headers={"X-Request-ID": "mine-1"}
            ) as response,
        ):
            assert response.status == 500
            assert response.headers["X-Request-ID"] == "mine-1"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            body = await response.read()
    assert json.loads(body) == {
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Internal Server Error",
    }
    (record,) = caplog.records
    assert record.getMessage() == "admin request failed"
    assert vars(record)["request_id"] == "mine-1"


async def test_l02_a_defect_while_a_token_is_handled_tells_nothing_of_it(
    client: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    service = Fake(RuntimeError("boom"))
    with caplog.at_level(logging.DEBUG):
        async with (
            serving(service) as server,
            client.post(
                server.url + "websocket/broadcast", json=MESSAGE, headers=BEARER
            ) as response,
        ):
            assert (response.status, TOKEN.encode() in await response.read()) == (500, False)
    assert TOKEN not in caplog.text
    (written,) = (record for record in caplog.records if record.getMessage() == "admin write")
    assert (vars(written)["status"], vars(written)["user_id"]) == (500, "boss")


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (
            BusUnavailable("redis://:secret@host is down"),
            "Not sent to other nodes: the bus does not answer. "
            "Connections of this node got the message",
        ),
        (DirectoryUnavailable("secret"), "The directory of users and groups does not answer"),
    ],
)
async def test_what_was_not_done_is_never_called_a_success(
    client: aiohttp.ClientSession, error: Exception, detail: str
) -> None:
    async with (
        serving(Fake(error)) as server,
        client.post(server.url + "websocket/broadcast", json=MESSAGE, headers=BEARER) as response,
    ):
        assert response.status == 503
        assert json.loads(await response.read()) == {
            "title": "Service Unavailable",
            "status": 503,
            "detail": detail,
        }


async def test_nodes_that_do_not_answer_are_named(client: aiohttp.ClientSession) -> None:
    sent = SendResult("11111111-1111-4111-8111-111111111111", 3, 1.0, ("node-2",))
    async with serving(Fake(sent)) as server:
        async with client.post(
            server.url + "websocket/broadcast", json=MESSAGE, headers=BEARER
        ) as response:
            assert json.loads(await response.read())["partial"] == ["node-2"]
        async with client.get(server.url + "websocket/connections", headers=BEARER) as response:
            document = json.loads(await response.read())
            assert document == {"connections": [], "total": 5, "partial": ["node-2"]}


@pytest.mark.parametrize("pieces", [[], [b"{"], [b"{", b" "]], ids=["none", "one", "dribble"])
async def test_w05_a_slow_body_ends_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    monkeypatch.setattr(app, "BODY_TIMEOUT", 0.05)
    monkeypatch.setattr(listener, "LINGERING_TIME", 0.05)
    service = Fake()
    async with serving(service) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(
            b"POST /websocket/broadcast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer x\r\nContent-Length: 100\r\n\r\n"
        )
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"the body took too long to come" in answer
    assert service.calls == 0


async def test_what_fails_outside_the_application_is_told_to_the_log_only(
    client: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "_REQUEST_ID", None)
    with caplog.at_level(logging.ERROR, logger="falcon_fast.admin"):
        async with (
            serving() as server,
            client.get(server.url, headers={"X-Request-ID": "secret"}) as response,
        ):
            assert response.status == 500
            assert json.loads(await response.read())["detail"] == "Internal Server Error"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert [record.getMessage() for record in caplog.records] == ["an admin connection failed"]


async def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    async def never(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    connection = listener.Connection(web.Server(never), loop=asyncio.get_running_loop())
    request = make_mocked_request("GET", "/")
    request.writer.output_size = 1
    with pytest.raises(ConnectionError):
        connection.handle_error(request, 400, HttpProcessingError(message="secret"))


async def test_a_site_needs_a_runner_that_was_set_up() -> None:
    runner = web.AppRunner(web.Application())
    with pytest.raises(RuntimeError):
        listener.Site(runner, "127.0.0.1", 3001)
    await runner.setup()
    assert listener.Site(runner, "127.0.0.1", 3001).name == "http://127.0.0.1:3001"
    await runner.cleanup()


@pytest.mark.parametrize("path", ["", "websocket/status"])
async def test_other_expectations_are_not_met(client: aiohttp.ClientSession, path: str) -> None:
    async with (
        serving() as server,
        client.get(server.url + path, headers={"Expect": "the-unexpected"}) as response,
    ):
        assert response.status == 417
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_who_asks_whether_to_go_on_is_told_so(client: aiohttp.ClientSession) -> None:
    sent = SendResult("11111111-1111-4111-8111-111111111111", 3, 1.0)
    async with (
        serving(Fake(sent)) as server,
        client.post(
            server.url + "websocket/broadcast", json=MESSAGE, headers=BEARER, expect100=True
        ) as response,
    ):
        assert response.status == 200


async def test_close_frees_the_port_and_may_be_called_twice() -> None:
    async with serving() as server:
        port = server.port
        await server.close()
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_port_in_use_raises_oserror() -> None:
    gatekeeper = Gatekeeper(
        verify=verify,
        is_banned=lambda user_id: False,
        is_super_admin=is_super_admin,
        cookie_name=None,
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="address already in use"):
            await start_admin(
                Fake(),
                gatekeeper,
                host="127.0.0.1",
                port=taken.getsockname()[1],
                max_json_depth=32,
            )


async def test_redirects_are_not_expected() -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/elsewhere")

    with pytest.raises(web.HTTPFound):
        await refuse(make_mocked_request("GET", "/"), redirect)


def test_url_of_an_ipv6_address_has_brackets() -> None:
    runner = web.AppRunner(web.Application())
    assert AdminServer(runner, host="::1", port=3001).url == "http://[::1]:3001/"


def test_body_limit_is_one_mebibyte() -> None:
    assert MAX_BODY_BYTES == 1_048_576
