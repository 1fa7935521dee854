"""The admin listener: builds the aiohttp application, binds it, and closes it again.

It stands beside the public listener and is reached by operators only, so it may be slow and must be
right: every answer that is not a success is ``application/problem+json`` (RFC 9457).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import orjson
from aiohttp import web

__all__ = ["AdminServer", "start_admin"]

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT: Final = 5.0
"""Seconds that requests in progress are given when the listener closes."""

MAX_BODY_BYTES: Final = 1024 * 1024
"""Bytes of a request's body, above which the answer is 413."""

INDEX: Final = (
    "falcon_fast: admin listener\n"
    "\n"
    "GET /                  this text\n"
    "GET /websocket/status  the state of this node, as JSON\n"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """A bound and serving admin listener.

    Attributes:
        host: the address that was asked for.
        port: the port in use; never 0, also when any free port was asked for.
    """

    __slots__ = ("_runner", "host", "port")

    def __init__(self, runner: web.AppRunner, *, host: str, port: int) -> None:
        self._runner = runner
        self.host = host
        self.port = port

    @property
    def url(self) -> str:
        """The address of the index, with a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    async def close(self) -> None:
        """Stop listening and end the requests in progress; a second call does nothing."""
        await self._runner.cleanup()


def problem(
    status: int, *, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Build an error answer in the one form that this listener knows.

    Args:
        status: the HTTP status, 400 or above.
        detail: a sentence for a person; the status' own phrase if there is nothing to add.
        headers: headers that the status demands, such as ``Allow``.

    Returns:
        The answer, with ``title``, ``status`` and ``detail`` in its body.
    """
    title = HTTPStatus(status).phrase
    body = {"title": title, "status": status, "detail": detail or title}
    return web.Response(
        status=status,
        body=orjson.dumps(body),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a problem answer that tells nothing of the inside."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        allow = error.headers.get("Allow")
        return problem(error.status, headers={"Allow": allow} if allow else None)
    except Exception:
        logger.exception("admin request failed")
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR)


async def harden(request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers that every answer carries."""
    response.headers["Server"] = "falcon_fast"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"


def build(status: Callable[[], Mapping[str, object]]) -> web.Application:
    """Build the application without binding it.

    Args:
        status: returns what ``/websocket/status`` answers; called once for each request.

    Returns:
        The application, ready for a runner.
    """

    async def index(request: web.Request) -> web.Response:
        return web.Response(text=INDEX)

    async def report(request: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(status()), content_type="application/json")

    app = web.Application(middlewares=[problems], client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(harden)
    app.router.add_get("/", index)
    app.router.add_get("/websocket/status", report)
    return app


async def start_admin(
    *, host: str, port: int, status: Callable[[], Mapping[str, object]]
) -> AdminServer:
    """Bind the admin listener and serve it on the running loop.

    Args:
        host: the address to listen on.
        port: the port, 0 for any free one.
        status: returns what ``/websocket/status`` answers; must not block.

    Returns:
        The serving listener; the caller closes it.

    Raises:
        OSError: the address is in use or not of this machine.
    """
    runner = web.AppRunner(build(status), access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except BaseException:
        await runner.cleanup()
        raise
    return AdminServer(runner, host=host, port=runner.addresses[0][1])
