"""From REDIS_URL to redis-py: clients for commands, and connections for the links of the bus.

Whoever speaks to Redis gets it from here, so that deadlines, login and TLS are the same everywhere:
an attempt to connect has 1 s, an answer 2 s, and nothing is tried again by the library. redis-py's
own defaults wait for 5 s ten times, and a PUBLISH that is repeated may arrive twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from falcon_fast.redis_url import RedisUrl, Topology, parse_redis_url

__all__ = ["RedisAddress", "RedisClient", "ShardOwners", "close_client", "describe_error"]

CONNECT_TIMEOUT: Final = 1.0
"""Seconds until a socket to Redis stands."""

REPLY_TIMEOUT: Final = 2.0
"""Seconds until Redis has answered."""

OWNERS_FRESH: Final = 0.2
"""Seconds for which an answer about the servers of a cluster is used again."""

HOME: Final = "websocket:nodes"
"""The channel whose server in a cluster carries everything that is not in shards: with all nodes on
one server, nothing depends on what the servers pass on among themselves."""

RedisClient = Redis | RedisCluster


@dataclass(frozen=True, slots=True)
class ShardOwners:
    """Which server of a cluster holds which channel.

    Attributes:
        owner: From a channel's name to host and port.
        masters: All servers that hold channels.
    """

    owner: Callable[[str], tuple[str, int]]
    masters: frozenset[tuple[str, int]]


class RedisAddress:
    """One REDIS_URL, ready to be connected to.

    Args:
        url: text or what `parse_redis_url` made of it.

    Raises:
        ValueError: the text is no such URL; what it says holds no secret.
    """

    def __init__(self, url: str | RedisUrl) -> None:
        self.url: Final = parse_redis_url(url) if isinstance(url, str) else url
        self._cluster: RedisCluster | None = None
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")

    def __str__(self) -> str:
        """Say where it is, without anything that is secret."""
        return str(self.url)

    def client(self, *, max_connections: int = 16) -> RedisClient:
        """Build a client for commands; nothing is connected yet.

        Args:
            max_connections: in its pool, to each server; with all of them busy a command fails.

        Returns:
            A client that answers with bytes; give it to `close_client` in the end. An error of a
            command is a `redis.exceptions.RedisError`.
        """
        url = self.url
        if url.topology is Topology.CLUSTER:
            return self._cluster_client(max_connections)
        if url.topology is Topology.SENTINEL:
            # Without `ssl` the pool chooses connections that do not ask the sentinels.
            client: Redis = self._sentinel().master_for(
                url.master,
                max_connections=max_connections,
                **self._kwargs(),
                **({"ssl": True, **self._tls()} if url.tls else {}),
            )
            return client
        kind, where = self._place(url.nodes[0] if url.nodes else None)
        pool = ConnectionPool(connection_class=kind, max_connections=max_connections, **where)
        return Redis.from_pool(pool)

    async def connect(self, node: tuple[str, int] | None = None) -> AbstractConnection:
        """Open one connection, log in and choose the database.

        Args:
            node: which server of a cluster; for the others the address itself says which.

        Raises:
            RedisError: it did not work; see `describe_error`.
        """
        kind, where = self._place(node or await self._where())
        connection = kind(**where)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            # A cancelled handshake leaves a socket behind otherwise.
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
            raise
        return connection

    async def owners(self) -> ShardOwners:
        """Ask a cluster anew which server holds what.

        Raises:
            RedisError: no server of the cluster answers.
        """
        async with self._asking:
            loop = asyncio.get_running_loop()
            if self._cluster is None:
                self._cluster = self._cluster_client(2)
            cluster = self._cluster
            # Several links that are made at the same time ask once.
            if loop.time() - self._asked_at > OWNERS_FRESH:
                await cluster.aclose()
                await cluster.initialize()
                self._asked_at = loop.time()

        def owner(channel: str) -> tuple[str, int]:
            node = cluster.get_node_from_key(channel)
            if node is None:
                raise RedisClusterException("nobody holds this channel")
            return (node.host, int(node.port))

        masters = frozenset((node.host, int(node.port)) for node in cluster.get_primaries())
        return ShardOwners(owner, masters)

    async def close(self) -> None:
        """Let go of what `owners` keeps; clients and connections belong to their callers."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            with contextlib.suppress(RedisError, OSError):
                await cluster.aclose()

    async def _where(self) -> tuple[str, int] | None:
        url = self.url
        if url.path is not None:
            return None
        if url.topology is Topology.SINGLE:
            return url.nodes[0]
        if url.topology is Topology.CLUSTER:
            return (await self.owners()).owner(HOME)
        sentinel = self._sentinel()
        try:
            found: tuple[str, int] = await sentinel.discover_master(url.master)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await sentinel.aclose()
        return found

    def _place(
        self, node: tuple[str, int] | None
    ) -> tuple[type[AbstractConnection], dict[str, Any]]:
        """Return the kind of connection and what it is made with."""
        if node is None:
            return UnixDomainSocketConnection, {"path": self.url.path or "", **self._kwargs()}
        where: dict[str, Any] = {"host": node[0], "port": node[1], **self._kwargs()}
        if self.url.tls:
            return SSLConnection, {**where, **self._tls()}
        return Connection, where

    def _cluster_client(self, max_connections: int) -> RedisCluster:
        kwargs = self._kwargs()
        del kwargs["db"]
        tls = {"ssl": True, **self._tls()} if self.url.tls else {}
        nodes = [ClusterNode(host, port) for host, port in self.url.nodes]
        return RedisCluster(startup_nodes=nodes, max_connections=max_connections, **kwargs, **tls)

    def _sentinel(self) -> Sentinel:
        url = self.url
        login = {"username": url.sentinel_username, "password": url.sentinel_password}
        tls = {"ssl": True, **self._tls()} if url.tls else {}
        options = {**_deadlines(), **login, **tls}
        return Sentinel(url.nodes, sentinel_kwargs=options)  # type: ignore[no-untyped-call]

    def _kwargs(self) -> dict[str, Any]:
        url = self.url
        return {
            **_deadlines(),
            "db": url.database,
            "username": url.username,
            "password": url.password,
            "client_name": url.client_name,
        }

    def _tls(self) -> Mapping[str, Any]:
        return dict(self.url.tls_options)


def _deadlines() -> dict[str, Any]:
    return {
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": REPLY_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        # Protocol 2 needs no HELLO, which servers before Redis 6 do not know, and its messages are
        # plain lists. Without driver information a connection costs no round trip more than needed.
        "protocol": 2,
        "driver_info": None,
    }


async def close_client(client: RedisClient) -> None:
    """Close a client and all its connections; an error while closing is of no interest."""
    with contextlib.suppress(RedisError, OSError):
        await client.aclose()
    sentinel = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    if sentinel is not None:
        with contextlib.suppress(RedisError, OSError):
            await sentinel.aclose()


def describe_error(error: BaseException) -> str:
    """Say what went wrong in a few words that hold no address and no secret.

    redis-py's own texts are not shown: some repeat what they were given.
    """
    name = type(error).__name__
    if isinstance(error, RedisError):
        # Redis begins its errors with one word in capitals, such as NOAUTH.
        word = str(error).partition(" ")[0]
        if word.isascii() and word.isupper() and word.isalpha() and len(word) <= 16:
            return f"{name} {word}"
    return name
