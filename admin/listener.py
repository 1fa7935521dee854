"""Connections of the admin listener: aiohttp's, but for how they answer what is not HTTP.

aiohttp refuses a broken head before the application sees it, in words that quote the head, token
and all, to the client and to the log. Here it is refused like everything else.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import MutableMapping
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from falcon_fast.admin import problems
from falcon_fast.admin.problems import Problem

__all__ = ["CONTENT_SECURITY_POLICY", "Connection", "Site", "harden"]

logger = logging.getLogger(__name__)

KEEPALIVE_TIMEOUT: Final = 75.0
"""Seconds a connection may wait for its next request."""

LINGERING_TIME: Final = 2.0
"""Seconds for which what a refused client goes on to send is thrown away, so that it can read."""

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        # The reader of the document carries its icons in its style sheet.
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
    )
)


def harden(headers: MutableMapping[str, str], request_id: str) -> None:
    """Set the headers that every answer carries."""
    headers["Server"] = "falcon_fast"
    headers.setdefault("Cache-Control", "no-store")
    headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Referrer-Policy"] = "no-referrer"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["X-Request-ID"] = request_id


class Connection(web.RequestHandler):
    """A connection to the admin listener."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what did not reach the application, without a word of what was sent."""
        if not isinstance(exc, HttpProcessingError):
            logger.error("an admin connection failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        answer = problems.response(Problem(400 if status < 500 else 500, close=True))
        harden(answer.headers, str(uuid.uuid4()))
        return answer


class Site(web.BaseSite):
    """The address of the admin listener.

    Args:
        runner: a runner that has been set up.
        host: the address to listen on.
        port: the port, 0 for any free one.
    """

    __slots__ = ("_host", "_port")

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        super().__init__(runner)
        self._host = host
        self._port = port

    @property
    def name(self) -> str:
        """The address as a URL, for lines of aiohttp."""
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            OSError: the address is in use or not of this machine.
        """
        await super().start()
        loop = asyncio.get_running_loop()
        server = self._runner.server
        assert server is not None, "BaseSite checks it"  # noqa: S101
        self._server = await loop.create_server(
            lambda: Connection(
                server,
                loop=loop,
                logger=logger,
                access_log=None,  # type: ignore[arg-type]  # none is what runners are told, too
                auto_decompress=False,
                keepalive_timeout=KEEPALIVE_TIMEOUT,
                lingering_time=LINGERING_TIME,
            ),
            self._host,
            self._port,
        )
