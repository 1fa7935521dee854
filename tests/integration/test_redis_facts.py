"""What ``falcon-fast check`` finds out about a real Redis."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from falcon_fast.bus.redis_facts import facts
from falcon_fast.checks import results
from falcon_fast.errors import BusUnavailable
from falcon_fast.settings import Settings

from ..support.redis_server import RedisServer

pytestmark = pytest.mark.integration

LOCAL = Settings(
    jwt_secret="x" * 32,
    host="127.0.0.1",
    port=0,
    admin_host="127.0.0.1",
    admin_port=0,
    sqlite_path=":memory:",
)


def test_a_redis_that_can_be_used(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        settings = dataclasses.replace(LOCAL, redis_url=server.url, bus_routing="sharded")
        found = {result.what: result for result in results(settings)}["other nodes"]
    assert found.ok
    assert found.explanation.startswith("Redis ")
    assert found.explanation.endswith(" answers; messages are sharded")


async def test_x16_one_that_does_not_let_us_in(tmp_path: Path) -> None:
    with RedisServer(tmp_path, user="falcon", password="right-and-secret") as server:
        assert (await facts(server.url)).has_shards
        for url in (
            server.url.replace("right-and-secret", "wrong-but-secret"),
            server.url.replace("falcon:right-and-secret@", ""),
        ):
            with pytest.raises(BusUnavailable, match="does not let us in") as caught:
                await facts(url)
            assert "secret" not in str(caught.value)


async def test_one_whose_user_may_not_publish(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        server.command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "resetchannels")
        url = server.url.replace("redis://", "redis://weak:pw@")
        with pytest.raises(BusUnavailable, match="NoPermissionError"):
            await facts(url)
