"""A server inside somebody's asyncio program: `falcon_fast.Falcon`."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Final

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

import falcon_fast
from falcon_fast.auth import issue_token
from falcon_fast.errors import FalconError

pytestmark = pytest.mark.integration

SECRET: Final = "a secret of tests that is long enough"


def settings(**changes: object) -> falcon_fast.Settings:
    return falcon_fast.Settings(
        **{  # type: ignore[arg-type]
            "jwt_secret": SECRET,
            "sqlite_path": ":memory:",
            "host": "127.0.0.1",
            "port": 0,
            "admin_port": 0,
            "drain_timeout": 5.0,
            **changes,
        }
    )


def bearer(user_id: str) -> dict[str, str]:
    token = issue_token(
        SECRET,
        user_id=user_id,
        character_id=7,
        character_name="Seven",
        ttl=600,
        now=int(time.time()),
    )
    return {"Authorization": f"Bearer {token}"}


async def test_a_host_program_serves_and_sends() -> None:
    async with asyncio.timeout(20):
        async with falcon_fast.Falcon(settings()) as falcon:
            assert falcon.url.startswith("ws://127.0.0.1:")
            assert falcon.admin_url.startswith("http://127.0.0.1:")
            client = await connect(falcon.url, additional_headers=bearer("alice"))
            welcome, joined = [json.loads(await client.recv()) for _ in range(2)]
            assert welcome["data"]["user_id"] == "alice"
            assert joined["data"] == {"action": "joined", "rooms": ["user:alice"]}
            sent = await falcon.service.send_to_room("user:alice", "notification", {"title": "Hi"})
            assert sent.recipients_count == 1
            frame = json.loads(await client.recv())
            assert (frame["id"], frame["data"]) == (sent.message_id, {"title": "Hi"})
            [info] = (await falcon.service.list_connections()).items
            assert info.id == welcome["data"]["connection_id"]
        # Leaving the context says goodbye first.
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "service restart")


async def test_two_servers_in_one_program_keep_apart() -> None:
    async with (
        asyncio.timeout(20),
        falcon_fast.Falcon(settings()) as one,
        falcon_fast.Falcon(settings()) as other,
    ):
        async with connect(one.url, additional_headers=bearer("alice")) as client:
            await client.recv()
            assert (await one.service.statistics()).active_connections == 1
            assert (await other.service.statistics()).active_connections == 0


async def test_it_is_entered_once_and_used_inside() -> None:
    falcon = falcon_fast.Falcon(settings())
    with pytest.raises(RuntimeError, match="inside `async with`"):
        _ = falcon.service
    async with falcon:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        await falcon.__aenter__()


async def test_a_taken_port_is_named() -> None:
    async with falcon_fast.Falcon(settings()) as falcon:
        port = int(falcon.url.split(":")[2].split("/")[0])
        with pytest.raises(FalconError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: "):
            await falcon_fast.Falcon(settings(port=port)).__aenter__()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("FALCON_PORT", "0")
    assert falcon_fast.Falcon().settings.port == 0
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = falcon_fast.Nothing
    assert falcon_fast.Service.__name__ == "Service"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over processes")
async def test_a_host_program_may_have_workers(tmp_path: Path) -> None:
    chosen = settings(workers=2, sqlite_path=str(tmp_path / "falcon.db"))
    async with asyncio.timeout(60):
        async with falcon_fast.Falcon(chosen) as falcon:
            clients = [
                await connect(falcon.url, additional_headers=bearer(f"user-{number}"))
                for number in range(8)
            ]
            for client in clients:
                for _ in range(2):
                    await client.recv()
            sent = await falcon.service.broadcast("notification", {"title": "Hi"})
            assert (sent.recipients_count, sent.partial) == (8, ())
            for client in clients:
                assert json.loads(await client.recv())["data"] == {"title": "Hi"}
            listed = await falcon.service.list_connections()
            assert listed.total == 8
        for client in clients:
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012


async def test_a_worker_that_cannot_start_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the interpreter were gone: what is started ends at once.
    monkeypatch.setattr("falcon_fast.workers.sys.executable", shutil.which("false"))
    chosen = settings(workers=2, sqlite_path=str(tmp_path / "falcon.db"))
    async with asyncio.timeout(60):
        with pytest.raises(FalconError, match="a worker cannot start: exit code 1"):
            async with falcon_fast.Falcon(chosen):
                raise AssertionError("it runs")
