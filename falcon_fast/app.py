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
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

from falcon_fast import demo
from falcon_fast.admin.app import AdminServer, start_admin
from falcon_fast.admin.security import Gatekeeper
from falcon_fast.bus.hub import Hub
from falcon_fast.bus.memory import MemoryBus
from falcon_fast.bus.node_registry import NodeCounts
from falcon_fast.bus.redis import RedisBus
from falcon_fast.bus.redis_address import RedisAddress
from falcon_fast.bus.redis_registry import RedisRegistry
from falcon_fast.clock import Clock, SystemClock
from falcon_fast.directory import Directory
from falcon_fast.directory.sqlite import SqliteDirectory
from falcon_fast.errors import FalconError, SettingsError
from falcon_fast.gateway import Gateway
from falcon_fast.identity import new_id
from falcon_fast.logs import set_up_logging
from falcon_fast.metrics import Metrics
from falcon_fast.process import Place, build, loop_factory, loop_name, secrets_of, workers_problem
from falcon_fast.service import Service
from falcon_fast.settings import Settings
from falcon_fast.workers import Reservation, Workers

__all__ = ["Falcon", "Server", "run", "running"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: what stands behind the two listeners.

    Attributes:
        workers: the other processes of the node, if it has several.
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
    workers: Workers | None


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
            SettingsError: a backend cannot do what the settings ask for.
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
        SettingsError: a backend cannot do what the settings ask for.
        FalconError: a backend cannot be used, or an address cannot be bound.
    """
    refuse_unsupported(settings)
    clock = clock or SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        node_id = new_id()
        bus, registry = bus_of(settings, node_id=node_id, clock=clock)
        place = Place(bus=bus, alone=registry is None, node_id=node_id, registry=registry)
        workers: Workers | None = None
        counts: NodeCounts | None = None
        if settings.workers > 1:
            with _binding(settings.host, settings.port):
                reservation = Reservation(settings.host, settings.port)
            stack.callback(reservation.close)
            settings = replace(settings, port=reservation.port)
            hub = Hub(bus, node_id=node_id)
            counts = NodeCounts(hub) if registry is None else None
            workers = Workers(settings, hub, node_id=node_id, epoll=epoll)
            place = replace(place, bus=hub, alone=False, listens="nowhere", crew=workers)
        process = await build(stack, settings, place, clock=clock, epoll=epoll)
        directory, gateway = process.directory, process.gateway
        with _binding(settings.host, settings.port):
            await gateway.start()
        if workers is not None:

            async def bury(process_id: str) -> None:
                if counts is not None:
                    counts.forget(process_id)
                await gateway.bury(process_id)

            stack.push_async_callback(workers.close)
            await workers.start(gateway, bury)
        service = Service(gateway, directory, process.revoker)
        metrics = Metrics(gateway, loop=loop_name(), crew=workers)
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
                metrics=metrics.scrape,
                cursor_key=_derived(settings, b"falcon_fast cursors"),
            )
        stack.push_async_callback(admin.close)
        yield Server(
            settings, clock, directory, process.embedded, gateway, service, metrics, admin, workers
        )


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
        secrets=[secret.encode("utf-8", "surrogateescape") for secret in secrets if secret],
        routing=settings.bus_routing,
        max_message_bytes=settings.max_message_bytes,
    )
    return bus, RedisRegistry(RedisAddress(settings.redis_url))


def _derived(settings: Settings, purpose: bytes) -> bytes | None:
    """Derive a key that all nodes have in common; None where they share no secret."""
    if not settings.jwt_secret:
        return None
    return hmac.digest(settings.jwt_secret.encode("utf-8", "surrogateescape"), purpose, "sha256")


@contextlib.contextmanager
def _binding(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise FalconError(f"cannot listen on {host}:{port}: {reason}") from error


def refuse_unsupported(settings: Settings) -> None:
    """Stop at a setting that asks for what this system cannot do."""
    problem = workers_problem(settings)
    if problem is not None:
        raise SettingsError([problem])


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
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
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
        code = 0
        end = asyncio.ensure_future(signals.get())
        gave_up = asyncio.ensure_future(_gave_up(server.workers))
        await asyncio.wait({end, gave_up}, return_when=asyncio.FIRST_COMPLETED)
        fields: dict[str, object] = {"connections": server.gateway.statistics().active_connections}
        if end.done():
            fields["signal"] = signal.Signals(end.result()).name
        else:
            fields["reason"], code = "workers die again and again", 1
        for task in (end, gave_up):
            task.cancel()
        log.info("draining", extra=fields)
        drain = asyncio.ensure_future(server.gateway.drain())
        again = asyncio.ensure_future(signals.get())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, again):
            task.cancel()
        ended, _ = await asyncio.gather(drain, again, return_exceptions=True)
        if isinstance(ended, Exception):
            log.error("the drain failed", exc_info=ended)
    return code


async def _gave_up(workers: Workers | None) -> None:
    """Wait until the workers of the node have been given up, if it has some."""
    await (asyncio.Event() if workers is None else workers.gave_up).wait()
