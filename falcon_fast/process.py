"""One process of a server: users and groups, keys, and a gateway on a bus.

What `app` builds once for a node of one process, and in a node of several for the node process and,
in `worker`, for each worker. Apart from `app` only this module chooses among the adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
import sys
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from falcon_fast.auth import TokenVerifier
from falcon_fast.bus import Bus
from falcon_fast.clock import Clock
from falcon_fast.directory import Directory
from falcon_fast.directory.sqlite import SqliteDirectory
from falcon_fast.directory.sqlite_store import MEMORY
from falcon_fast.errors import SettingsError
from falcon_fast.gateway import Crew, Gateway, Listens
from falcon_fast.keys import KeySet, keys_of
from falcon_fast.redis_url import Topology, parse_redis_url
from falcon_fast.registry import Registry
from falcon_fast.revocation import Revocations
from falcon_fast.revocations import RevocationStore
from falcon_fast.revocations.memory import MemoryRevocations
from falcon_fast.revocations.sqlite import SqliteRevocations
from falcon_fast.revoker import Revoker
from falcon_fast.settings import Settings

__all__ = [
    "Place",
    "Process",
    "build",
    "loop_factory",
    "loop_name",
    "redis_registry",
    "revocation_store",
    "secrets_of",
    "tls_context",
    "workers_problem",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process stands: in its node, and among the other nodes.

    Attributes:
        bus: how messages travel.
        alone: whether the bus reaches this process only.
        node_id: of its node.
        process_id: its own, if its node has several.
        registry: where it is written down who is connected where.
        listens: how clients reach it.
        crew: the other processes of its node, if it has several.
    """

    bus: Bus
    alone: bool
    node_id: str
    process_id: str | None = None
    registry: Registry | None = None
    listens: Listens = "alone"
    crew: Crew | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """What every process of a server has.

    Attributes:
        embedded: the directory, where it is the embedded one: the only one that may be written.
    """

    directory: Directory
    embedded: SqliteDirectory | None
    gateway: Gateway
    revoker: Revoker


async def build(
    stack: contextlib.AsyncExitStack,
    settings: Settings,
    place: Place,
    *,
    clock: Clock,
    epoll: bool = True,
) -> Process:
    """Build a process; its gateway is not started yet.

    Args:
        stack: closes everything in the end.
        settings: checked settings.
        place: where it stands.
        clock: where the time comes from.
        epoll: False to leave all connections on their asyncio transports.

    Raises:
        SettingsError: a certificate or a key cannot be used.
        FalconError: a backend cannot be used.
    """
    keys = keys_of(settings)
    embedded: SqliteDirectory | None = None
    directory: Directory
    if settings.mongodb_uri is None:
        directory = embedded = SqliteDirectory(settings.sqlite_path)
    else:
        directory = _mongodb(settings, settings.mongodb_uri, clock)
    await directory.start()
    stack.push_async_callback(directory.close)
    if isinstance(keys, KeySet) and settings.jwt_jwks_url is not None:
        # Imported only where it is used: a worker has to be there again soon after a death.
        from falcon_fast.jwks import KeySetFetcher

        fetcher = KeySetFetcher(settings.jwt_jwks_url, keys)
        await fetcher.start()
        stack.push_async_callback(fetcher.close)
    revocations = Revocations()
    gateway = Gateway(
        settings,
        clock=clock,
        bus=place.bus,
        directory=directory,
        verifier=TokenVerifier(
            keys,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            max_lifetime=settings.jwt_max_lifetime,
            clock=clock,
            revocations=revocations,
        ),
        tls=tls_context(settings),
        epoll=epoll,
        alone=place.alone,
        registry=place.registry,
        node_id=place.node_id,
        process_id=place.process_id,
        listens=place.listens,
        crew=place.crew,
    )
    stack.push_async_callback(gateway.close)
    revoker = Revoker(
        revocations,
        revocation_store(settings, stack),
        clock=clock,
        max_lifetime=settings.jwt_max_lifetime,
        on_revoked=gateway.close_revoked,
    )
    stack.push_async_callback(revoker.close)
    await revoker.start()
    return Process(directory, embedded, gateway, revoker)


def _mongodb(settings: Settings, uri: str, clock: Clock) -> Directory:
    # Imported only where it is used: the drivers take longer to import than everything else.
    from falcon_fast.directory.mongo import MongoDirectory
    from falcon_fast.directory.mongo_driver import MongoStore

    store = MongoStore(uri, settings.mongo_db, driver=settings.mongo_driver)
    return MongoDirectory(store, clock=clock)


def revocation_store(settings: Settings, stack: contextlib.AsyncExitStack) -> RevocationStore:
    """Choose where revocations are kept: where all processes of the server find them."""
    if settings.redis_url is not None:
        from falcon_fast.bus.redis_address import RedisAddress, close_client
        from falcon_fast.revocations.redis import Connection, RedisRevocations

        address = RedisAddress(settings.redis_url)
        client = address.client(max_connections=4)
        stack.push_async_callback(close_client, client)

        async def connect() -> Connection:
            # In a cluster every server passes on what is published at any of them.
            is_cluster = address.url.topology is Topology.CLUSTER
            return await address.connect(random.choice(address.url.nodes) if is_cluster else None)

        return RedisRevocations(client, connect)
    if settings.sqlite_path != MEMORY:
        return SqliteRevocations(settings.sqlite_path)
    return MemoryRevocations()


def redis_registry(settings: Settings) -> Registry | None:
    """Build the registry of a cluster; None without Redis."""
    if settings.redis_url is None:
        return None
    from falcon_fast.bus.redis_address import RedisAddress
    from falcon_fast.bus.redis_registry import RedisRegistry

    return RedisRegistry(RedisAddress(settings.redis_url))


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Load the certificate of the public listener; None without one.

    Raises:
        SettingsError: the files cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # With a password given, OpenSSL does not stop to ask for one on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            [
                f"FALCON_TLS_CERT and FALCON_TLS_KEY: expected a certificate chain and its key in "
                f"PEM, got {settings.tls_cert!r} and {settings.tls_key!r}: {error}"
            ]
        ) from error
    return context


def secrets_of(settings: Settings) -> set[str]:
    """List the texts of the settings that no log line may contain, in each way they are written."""
    secrets = {settings.jwt_secret}
    if settings.jwt_secret_previous is not None:
        secrets.add(settings.jwt_secret_previous)
    for uri in (settings.mongodb_uri, settings.redis_url):
        if uri is not None:
            # A URI may be too broken to be taken apart; it is a secret as a whole then.
            secrets.add(uri)
            with contextlib.suppress(ValueError):
                password = urlsplit(uri).password or ""
                secrets |= {password, unquote(password)}
    if settings.redis_url is not None:
        with contextlib.suppress(ValueError):
            secrets |= parse_redis_url(settings.redis_url).secrets
    return secrets


def workers_problem(settings: Settings) -> str | None:
    """Say why there cannot be as many workers as are wanted; None if there can.

    Elsewhere than on Linux `SO_REUSEPORT` lets several processes have one port, but gives all
    connections to one of them.
    """
    system: str = sys.platform
    if settings.workers == 1 or system == "linux":
        return None
    return (
        f"FALCON_WORKERS: {settings.workers}, but only Linux spreads connections over the "
        f"processes of a port, and this is {system}; allowed here: 1"
    )


def loop_name() -> str:
    """Return the package that the running event loop is from: `asyncio` or `uvloop`."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop of a server; None for Python's own."""
    if os.name != "posix":
        return None
    import uvloop

    return uvloop.Loop
