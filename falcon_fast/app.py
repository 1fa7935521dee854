"""The assembly: builds every object, in the order in which they start and stop.

The way through the house begins here: settings -> directory, bus -> gateway -> admin. Only this
module knows which adapter stands behind a port.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import logging
import os
import random
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from falcon_fast import demo
from falcon_fast.admin.app import AdminServer, start_admin
from falcon_fast.admin.security import Gatekeeper
from falcon_fast.auth import TokenVerifier
from falcon_fast.bus.memory import MemoryBus
from falcon_fast.bus.redis import RedisBus
from falcon_fast.bus.redis_address import RedisAddress, close_client
from falcon_fast.bus.redis_registry import RedisRegistry
from falcon_fast.clock import Clock, SystemClock
from falcon_fast.directory import Directory
from falcon_fast.directory.sqlite import SqliteDirectory
from falcon_fast.directory.sqlite_store import MEMORY
from falcon_fast.errors import FalconError, SettingsError
from falcon_fast.gateway import Gateway
from falcon_fast.identity import new_id
from falcon_fast.jwks import KeySetFetcher
from falcon_fast.keys import KeySet, keys_of
from falcon_fast.logs import set_up_logging
from falcon_fast.metrics import Metrics
from falcon_fast.redis_url import Topology, parse_redis_url
from falcon_fast.revocation import Revocations
from falcon_fast.revocations import RevocationStore
from falcon_fast.revocations.memory import MemoryRevocations
from falcon_fast.revocations.redis import Connection, RedisRevocations
from falcon_fast.revocations.sqlite import SqliteRevocations
from falcon_fast.revoker import Revoker
from falcon_fast.service import Service
from falcon_fast.settings import Settings

__all__ = ["Falcon", "Server", "run", "running"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: what stands behind the two listeners.

    Attributes:
        embedded: the directory, where it is the embedded one: the only one that may be written.
    """

    settings: Settings
    clock: Clock
    directory: Directory
    embedded: SqliteDirectory | None
    gateway: Gateway
    service: Service
    metrics: Metrics
    admin: AdminServer


class Falcon:
    """A server inside somebody's asyncio program.

    ::

        async with falcon_fast.Falcon() as falcon:
            await falcon.service.send_to_room("group:…", "notification", {"title": "Hello"})

    Entering the context binds both listeners and returns when clients can connect; leaving it says
    goodbye to the clients (see `Gateway.drain`), then ends everything. One object is entered once.

    Args:
        settings: what to run; None for what the environment says.

    Attributes:
        settings: as given, or as read from the environment.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = Settings.from_environ(os.environ) if settings is None else settings
        self._stack = contextlib.AsyncExitStack()
        self._server: Server | None = None

    async def __aenter__(self) -> Falcon:
        """Start.

        Raises:
            SettingsError: the settings ask for what this version does not have.
            FalconError: a backend cannot be used, or an address cannot be bound.
        """
        if self._server is not None:
            raise RuntimeError("a Falcon is entered once; make another one")
        self._server = await self._stack.enter_async_context(running(self.settings))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Drain and stop."""
        try:
            await self._running.gateway.drain()
        finally:
            await self._stack.aclose()

    @property
    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError("use it inside `async with`")
        return self._server

    @property
    def service(self) -> Service:
        """What a host program may do."""
        return self._running.service

    @property
    def url(self) -> str:
        """The address clients on this machine connect to, with the port in use."""
        return self._running.gateway.url

    @property
    def admin_url(self) -> str:
        """The address of the admin listener, with the port in use."""
        return self._running.admin.url


@contextlib.asynccontextmanager
async def running(
    settings: Settings, *, clock: Clock | None = None, epoll: bool = True
) -> AsyncIterator[Server]:
    """Run a server on the current loop for as long as the context lasts.

    Leaving the context ends everything at once; `Gateway.drain` before it says goodbye first.

    Args:
        settings: checked settings.
        clock: where the time comes from.
        epoll: False to leave all connections on their asyncio transports.

    Raises:
        SettingsError: the settings ask for what this version does not have.
        FalconError: a backend cannot be used, or an address cannot be bound.
    """
    refuse_unsupported(settings)
    clock = clock or SystemClock()
    keys = keys_of(settings)
    async with contextlib.AsyncExitStack() as stack:
        embedded: SqliteDirectory | None = None
        directory: Directory
        if settings.mongodb_uri is None:
            directory = embedded = SqliteDirectory(settings.sqlite_path)
        else:
            directory = _mongodb(settings, settings.mongodb_uri, clock)
        await directory.start()
        stack.push_async_callback(directory.close)
        if isinstance(keys, KeySet) and settings.jwt_jwks_url is not None:
            fetcher = KeySetFetcher(settings.jwt_jwks_url, keys)
            await fetcher.start()
            stack.push_async_callback(fetcher.close)
        node_id = new_id()
        bus, registry = bus_of(settings, node_id=node_id, clock=clock)
        revocations = Revocations()
        gateway = Gateway(
            settings,
            clock=clock,
            bus=bus,
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
            alone=registry is None,
            registry=registry,
            node_id=node_id,
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
        with _binding(settings.host, settings.port):
            await gateway.start()
        service = Service(gateway, directory, revoker)
        metrics = Metrics(gateway, loop=loop_name())
        with _binding(settings.admin_host, settings.admin_port):
            admin = await start_admin(
                service,
                Gatekeeper(
                    verify=gateway.verify,
                    is_banned=directory.is_banned,
                    is_super_admin=directory.is_super_admin,
                    cookie_name=settings.cookie_name if settings.cookie_auth else None,
                ),
                host=settings.admin_host,
                port=settings.admin_port,
                max_json_depth=settings.max_json_depth,
                metrics=metrics.render,
                cursor_key=_derived(settings, b"falcon_fast cursors"),
            )
        stack.push_async_callback(admin.close)
        yield Server(settings, clock, directory, embedded, gateway, service, metrics, admin)


def _mongodb(settings: Settings, uri: str, clock: Clock) -> Directory:
    # Imported only where it is used: the drivers take longer to import than everything else.
    from falcon_fast.directory.mongo import MongoDirectory
    from falcon_fast.directory.mongo_driver import MongoStore

    store = MongoStore(uri, settings.mongo_db, driver=settings.mongo_driver)
    return MongoDirectory(store, clock=clock)


def bus_of(
    settings: Settings, *, node_id: str, clock: Clock
) -> tuple[MemoryBus | RedisBus, RedisRegistry | None]:
    """Build the bus, and the registry of a cluster.

    Args:
        settings: checked settings.
        node_id: of this node.
        clock: where the time comes from.

    Returns:
        Without Redis a bus that reaches this process only, and no registry.
    """
    if settings.redis_url is None:
        return MemoryBus(), None
    secrets = (settings.jwt_secret, settings.jwt_secret_previous)
    bus = RedisBus(
        RedisAddress(settings.redis_url),
        node_id=node_id,
        clock=clock,
        secrets=[secret.encode() for secret in secrets if secret],
        routing=settings.bus_routing,
        max_message_bytes=settings.max_message_bytes,
    )
    return bus, RedisRegistry(RedisAddress(settings.redis_url))


def _derived(settings: Settings, purpose: bytes) -> bytes | None:
    """Derive a key that all nodes have in common; None where they share no secret."""
    if not settings.jwt_secret:
        return None
    return hmac.digest(settings.jwt_secret.encode(), purpose, "sha256")


def revocation_store(settings: Settings, stack: contextlib.AsyncExitStack) -> RevocationStore:
    """Choose where revocations are kept: where all processes of the server find them.

    Args:
        settings: what to run.
        stack: closes what is opened for it.
    """
    if settings.redis_url is not None:
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


@contextlib.contextmanager
def _binding(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FalconError(f"cannot listen on {host}:{port}: {reason}") from error


def refuse_unsupported(settings: Settings) -> None:
    """Stop at a setting that would be ignored: nobody shall believe in a cluster that is none."""
    problems = []
    if settings.workers != 1:
        problems.append(f"FALCON_WORKERS is {settings.workers}, but this version has one worker")
    if problems:
        raise SettingsError(problems)


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


def run(settings: Settings, *, dev: bool) -> int:
    """Serve until SIGTERM or SIGINT; a second signal ends it at once.

    Args:
        settings: checked settings.
        dev: seed the demo directory and print what to paste into clients.

    Returns:
        The exit code.

    Raises:
        FalconError: the server cannot start; the text says why.
    """
    set_up_logging(
        log_format=settings.log_format, debug=settings.debug, secrets=secrets_of(settings)
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings, dev=dev))


async def _serve(settings: Settings, *, dev: bool) -> int:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with running(settings) as server:
        if dev and server.embedded is not None:
            found = await server.embedded.run(demo.seed)
            print(
                demo.banner(
                    found,
                    public_url=server.gateway.url,
                    admin_url=server.admin.url,
                    secret=settings.jwt_secret,
                    now=int(server.clock.time()),
                    sqlite_path=settings.sqlite_path,
                ),
                flush=True,
            )
        log.info("listening on %s, admin on %s", server.gateway.url, server.admin.url)
        # What exists now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        received = await signals.get()
        log.info(
            "draining",
            extra={
                "signal": signal.Signals(received).name,
                "connections": server.gateway.core.count,
            },
        )
        drain = asyncio.ensure_future(server.gateway.drain())
        again = asyncio.ensure_future(signals.get())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, again):
            task.cancel()
        ended, _ = await asyncio.gather(drain, again, return_exceptions=True)
        if isinstance(ended, Exception):
            log.error("the drain failed", exc_info=ended)
    return 0


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


def loop_name() -> str:
    """Return the package that the running event loop is from: `asyncio` or `uvloop`."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    if os.name != "posix":
        return None
    import uvloop

    return uvloop.Loop
