"""From an address to clients of redis-py: the right kind, our deadlines, no retries, no secrets."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection
from redis.exceptions import AuthenticationError, ConnectionError, ResponseError

from falcon_fast.bus.redis_address import RedisAddress, close_client, describe_error


@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:pw@r:1/2",
        "rediss://ann:pw@r:1/2?ssl_check_hostname=no",
        "unix://ann:pw@/run/r?db=2",
        "redis+sentinel://ann:pw@a,b/main/2",
        "rediss+sentinel://ann:pw@a,b/main/2",
    ],
)
async def test_a_client_has_short_deadlines_and_no_retries(url: str) -> None:
    client = RedisAddress(url).client(max_connections=3)
    assert isinstance(client, Redis)
    pool = client.connection_pool
    kwargs = pool.connection_kwargs
    assert (kwargs["socket_connect_timeout"], kwargs["socket_timeout"]) == (1.0, 2.0)
    assert kwargs["retry"].get_retries() == 0
    assert (kwargs["db"], kwargs["username"], kwargs["password"]) == (2, "ann", "pw")
    assert pool.max_connections == 3
    assert isinstance(pool, SentinelConnectionPool) == ("sentinel" in url)
    if url.startswith("rediss+"):
        assert pool.connection_class is SentinelManagedSSLConnection
    elif url.startswith("rediss"):
        assert pool.connection_class is SSLConnection
        assert kwargs["ssl_check_hostname"] is False
    elif url.startswith("unix"):
        assert pool.connection_class is UnixDomainSocketConnection
    await close_client(client)


async def test_a_cluster_has_a_client_of_its_own() -> None:
    client = RedisAddress("rediss+cluster://:pw@a:1,b:2?ssl_cert_reqs=none").client()
    assert isinstance(client, RedisCluster)
    assert sorted(node.port for node in client.nodes_manager.startup_nodes.values()) == [1, 2]
    kwargs = client.connection_kwargs
    assert (kwargs["socket_connect_timeout"], kwargs["socket_timeout"]) == (1.0, 2.0)
    assert client.retry.get_retries() == 0
    assert kwargs["connection_class"] is SSLConnection
    await close_client(client)


async def test_nobody_listens(unused_tcp_port: int) -> None:
    where = f"127.0.0.1:{unused_tcp_port}"
    for url in (
        f"redis://:hunter2@{where}",
        f"redis+sentinel://:hunter2@{where}/main",
        "unix:///no",
    ):
        address = RedisAddress(url)
        with pytest.raises(ConnectionError) as caught:
            await address.connect()
        assert "hunter2" not in describe_error(caught.value)
        assert "hunter2" not in str(address)
    cluster = RedisAddress(f"redis+cluster://:hunter2@{where}")
    with pytest.raises(Exception, match="cannot be connected"):
        await cluster.owners()
    await cluster.close()
    await cluster.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ResponseError("NOPERM user ann may not"), "ResponseError NOPERM"),
        (AuthenticationError("hunter2 is wrong"), "AuthenticationError"),
        (ConnectionError("Error 111 connecting to r:1."), "ConnectionError"),
        (TimeoutError("x"), "TimeoutError"),
    ],
)
def test_errors_are_told_in_few_words(error: BaseException, text: str) -> None:
    assert describe_error(error) == text
