"""The assembly: builds every object, in the order in which they start and stop.

The way through the house begins here: settings -> directory, bus -> gateway -> admin. Only this
module knows which adapter stands behind a port.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from falcon_fast import demo
from falcon_fast.admin.app import AdminServer, start_admin
from falcon_fast.auth import TokenVerifier
from falcon_fast.bus.memory import MemoryBus
from falcon_fast.clock import Clock, SystemClock
from falcon_fast.directory.sqlite import SqliteDirectory
from falcon_fast.errors import FalconError, SettingsError
from falcon_fast.gateway import Gateway
from falcon_fast.settings import Settings

__all__ = ["Server", "run", "running"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: what stands behind the two listeners."""

    settings: Settings
    clock: Clock
    directory: SqliteDirectory
    gateway: Gateway
    admin: AdminServer


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
        FalconError: a backend cannot be used.
        OSError: an address cannot be bound.
    """
    refuse_unsupported(settings)
    clock = clock or SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        directory = SqliteDirectory(settings.sqlite_path)
        await directory.start()
        stack.push_async_callback(directory.close)
        gateway = Gateway(
            settings,
            clock=clock,
            bus=MemoryBus(),
            directory=directory,
            verifier=TokenVerifier(settings.jwt_secret, clock=clock),
            tls=tls_context(settings),
            epoll=epoll,
        )
        stack.push_async_callback(gateway.close)
        await gateway.start()
        admin = await start_admin(
            host=settings.admin_host, port=settings.admin_port, status=gateway.status
        )
        stack.push_async_callback(admin.close)
        yield Server(settings, clock, directory, gateway, admin)


def refuse_unsupported(settings: Settings) -> None:
    """Stop at a setting that would be ignored: nobody shall believe in a cluster that is none."""
    problems = []
    if settings.redis_url is not None:
        problems.append("REDIS_URL is set, but this version has no Redis bus yet; unset it")
    if settings.mongodb_uri is not None:
        problems.append(
            "MONGODB_URI is set, but this version has no MongoDB directory yet; unset it"
        )
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
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
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
    set_up_logging(settings)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(settings, dev=dev))
    except OSError as error:
        raise FalconError(
            f"cannot listen on {settings.host}:{settings.port} or "
            f"{settings.admin_host}:{settings.admin_port}: {error.strerror or error}"
        ) from error


async def _serve(settings: Settings, *, dev: bool) -> int:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with running(settings) as server:
        if dev:
            found = await server.directory.run(demo.seed)
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
        number = await signals.get()
        log.info(
            "%s: draining %d connections", signal.Signals(number).name, server.gateway.core.count
        )
        drain = asyncio.ensure_future(server.gateway.drain())
        again = asyncio.ensure_future(signals.get())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, again):
            task.cancel()
        await asyncio.gather(drain, again, return_exceptions=True)
    return 0


def set_up_logging(settings: Settings) -> None:
    """Send log lines to stderr; DEBUG and above with WEBSOCKET_DEBUG, else INFO and above."""
    logging.basicConfig(
        level=logging.DEBUG if settings.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # Its debug lines would tell of every selector's wake-up.
    logging.getLogger("asyncio").setLevel(logging.INFO)
    # One line a request tells an operator nothing that the proxy in front does not.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    if os.name != "posix":
        return None
    import uvloop

    return uvloop.Loop
