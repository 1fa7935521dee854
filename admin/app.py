"""The admin listener: builds the aiohttp application, binds it, and closes it again.

It stands beside the public listener and is reached by operators only, so it may be slow and must be
right: every answer that is not a success is ``application/problem+json`` (RFC 9457). A request goes
through `security`, then the models of `schemas`, then one handler of `routes`; whatever refuses it
on the way raises `problems.Problem`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from falcon_fast.admin import openapi, pages, problems
from falcon_fast.admin.cursors import Cursors
from falcon_fast.admin.listener import Site, harden
from falcon_fast.admin.problems import Problem
from falcon_fast.admin.routes import ROUTES, Call, Desk, Route
from falcon_fast.admin.security import Caller, Gatekeeper
from falcon_fast.codes import ReplyCode
from falcon_fast.envelope import parse
from falcon_fast.errors import (
    BusUnavailable,
    DirectoryUnavailable,
    EnvelopeError,
    NodesUnavailable,
    NotFoundError,
)
from falcon_fast.service import Service

__all__ = ["AdminServer", "RenderMetrics", "build", "start_admin"]

logger = logging.getLogger(__name__)
audit = logging.getLogger("falcon_fast.admin.audit")

SHUTDOWN_TIMEOUT: Final = 5.0
"""Seconds that requests in progress are given when the listener closes."""

MAX_BODY_BYTES: Final = 1024 * 1024
"""Bytes of a request's body, above which the answer is 413."""

BODY_TIMEOUT: Final = 10.0
"""Seconds in which a body must have come, however many octets of it come in between."""

NO_BUS: Final = (
    "Not sent to other nodes: the bus does not answer. Connections of this node got the message"
)
NO_DIRECTORY: Final = "The directory of users and groups does not answer"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ID_KEY: Final = web.RequestKey("request_id", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

RenderMetrics = Callable[[], Awaitable[tuple[bytes, str]]]
"""Returns the metrics in Prometheus' text format, and their content type."""


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


# -------------------------------------------------------------------------- around every request


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id, and turn every failure into a problem that tells nothing inside."""
    given = request.headers.getall("X-Request-ID", [])
    taken = len(given) == 1 and _REQUEST_ID.fullmatch(given[0]) is not None
    request[_ID_KEY] = given[0] if taken else str(uuid.uuid4())
    try:
        return await handler(request)
    except Problem as problem:
        return problems.response(problem)
    except web.HTTPException as error:
        # The router's own; it raises nothing but errors.
        if error.status not in problems.TITLES:
            raise
        allow = error.headers.get("Allow")
        return problems.response(Problem(error.status, headers={"Allow": allow} if allow else None))
    except Exception:
        logger.exception("admin request failed", extra={"request_id": request[_ID_KEY]})
        return problems.response(Problem(500))


async def finish(request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers that every answer carries."""
    # A request that expects what we do not do is answered before `refuse` sees it.
    harden(response.headers, request.get(_ID_KEY) or str(uuid.uuid4()))


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Answer the Expect header before the request is handled."""
    if request.headers["Expect"].lower() != "100-continue":
        return problems.response(Problem(417, close=True))
    # RFC 9110 section 10.1.1: a server may leave out the 100 "if it has already received some or
    # all of the content".
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # What was written is no part of the answer.
    request.writer.output_size = 0
    return None


# ------------------------------------------------------------------------------------ one request


def endpoint(route: Route, desk: Desk, gatekeeper: Gatekeeper, *, max_json_depth: int) -> Handler:
    """Make the handler of a row of the table.

    Args:
        route: the row.
        desk: what it works with.
        gatekeeper: who may call it.
        max_json_depth: how deep a body may be nested.
    """

    async def answer(request: web.Request, caller: Caller | None) -> web.Response:
        if caller is not None:
            await asyncio.sleep(0)
            await gatekeeper.authorise(request, caller, writes=route.writes)
        parts = await _parts(route, request, max_json_depth=max_json_depth)
        try:
            call = route.bind(parts)
        except ValidationError as error:
            raise problems.of_validation(error) from None
        body = await _carry_out(call, desk)
        return web.Response(body=body, content_type="application/json")

    async def handle(request: web.Request) -> web.StreamResponse:
        caller = None if route.role == "public" else gatekeeper.authenticate(request)
        if caller is None or not route.writes:
            return await answer(request, caller)
        status = 500
        try:
            response = await answer(request, caller)
            status = response.status
        except Problem as problem:
            status = problem.status
            raise
        finally:
            _record(route, request, caller, status)
        return response

    return handle


def _record(route: Route, request: web.Request, caller: Caller, status: int) -> None:
    """Write down who did what to whom, and what became of it; never what was said."""
    audit.info(
        "admin write",
        extra={
            "request_id": request[_ID_KEY],
            "user_id": caller.identity.user_id,
            "character_id": caller.identity.character_id,
            "action": route.name,
            "target": next(iter(request.match_info.values()), "all"),
            "status": status,
            "remote_address": request.remote,
        },
    )


async def _carry_out(call: Call, desk: Desk) -> bytes:
    try:
        answer = await call(desk)
    except NotFoundError as error:
        raise Problem(404, str(error)) from None
    except BusUnavailable:
        raise Problem(503, NO_BUS) from None
    except NodesUnavailable as error:
        raise Problem(503, str(error)) from None
    except DirectoryUnavailable:
        raise Problem(503, NO_DIRECTORY) from None
    # Clients' messages go first: each step of a page is a turn of the loop of its own.
    await asyncio.sleep(0)
    pieces = []
    for piece in answer.pieces():
        pieces.append(piece)
        await asyncio.sleep(0)
    return b"".join(pieces)


async def _parts(
    route: Route, request: web.Request, *, max_json_depth: int
) -> Mapping[str, object]:
    """Read the parts of a request that a route has, unchecked but for the body's outside."""
    wanted = route.request.model_fields.keys()
    parts: dict[str, object] = {}
    if "path" in wanted:
        parts["path"] = dict(request.match_info)
    if "query" in wanted:
        parts["query"] = _query(request)
    if "body" in wanted:
        parts["body"] = await _body(request, max_json_depth=max_json_depth)
    return parts


def _query(request: web.Request) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name in query:
            raise problems.invalid(f"query.{name}", "given more than once", value)
        query[name] = value
    return query


async def _body(request: web.Request, *, max_json_depth: int) -> object:
    kinds = request.headers.getall("Content-Type", [])
    is_json = len(kinds) == 1 and request.content_type == "application/json"
    # RFC 8259 section 8.1: JSON between systems is UTF-8; a charset has no meaning, but a claim.
    if not is_json or (request.charset or "utf-8").lower() != "utf-8":
        raise Problem(415, "the body must be application/json", close=True)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "the body must not be compressed", close=True)
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            payload = await request.read()
    except TimeoutError:
        raise Problem(408, "the body took too long to come", close=True) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None
    except (ConnectionError, web.RequestPayloadError):
        raise Problem(400, "the body is not framed as HTTP wants it", close=True) from None
    if not payload:
        raise Problem(400, "the body is empty")
    try:
        return parse(payload, max_depth=max_json_depth)
    except EnvelopeError as error:
        if error.code is ReplyCode.BAD_JSON:
            raise Problem(400, error.message) from None
        raise problems.invalid("body", error.message) from None


def _too_large() -> Problem:
    return Problem(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", close=True)


# --------------------------------------------------------------------------------------- assembly


def _constant(body: bytes, content_type: str) -> Handler:
    async def handle(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={"Content-Type": content_type})

    return handle


def _file(name: str) -> Handler:
    path, media_type = pages.ASSETS[name]

    async def handle(_request: web.Request) -> web.StreamResponse:
        # Asked for again each time, and not sent again while it is the same.
        headers = {"Content-Type": f"{media_type}; charset=utf-8", "Cache-Control": "no-cache"}
        return web.FileResponse(path, headers=headers)

    return handle


def _metrics(render: RenderMetrics) -> Handler:
    async def handle(_request: web.Request) -> web.StreamResponse:
        body, content_type = await render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    return handle


def _add_page(app: web.Application, path: str, handler: Handler) -> None:
    app.router.add_route("GET", path, handler, expect_handler=expect)


def build(
    service: Service,
    gatekeeper: Gatekeeper,
    *,
    max_json_depth: int,
    metrics: RenderMetrics | None = None,
    cursor_key: bytes | None = None,
) -> web.Application:
    """Build the application without binding it.

    Args:
        service: what operators may do.
        gatekeeper: which of them.
        max_json_depth: how deep a body may be nested.
        metrics: what ``/metrics`` answers; without it there is no such route.
        cursor_key: what cursors are marked with; random by default.

    Returns:
        The application, ready for a runner.
    """
    app = web.Application(middlewares=[refuse], client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(finish)
    desk = Desk(service, Cursors(cursor_key))
    for route in ROUTES:
        # Not add_get: that one would answer HEAD too.
        app.router.add_route(
            route.method,
            route.path,
            endpoint(route, desk, gatekeeper, max_json_depth=max_json_depth),
            expect_handler=expect,
        )
    served = [pages.DOCS, pages.OPENAPI_JSON, pages.OPENAPI_YAML]
    if metrics is not None:
        served.append(pages.METRICS)
        _add_page(app, pages.METRICS.path, _metrics(metrics))
    document = openapi.build(ROUTES, served, cookie_name=gatekeeper.cookie_name)
    for page, content in (
        (pages.INDEX, pages.index(ROUTES, served).encode()),
        (pages.DOCS, pages.DOCS_HTML.encode()),
        (pages.OPENAPI_JSON, openapi.to_json(document)),
        (pages.OPENAPI_YAML, openapi.to_yaml(document)),
    ):
        kind = page.media_type
        charset = "" if kind == "application/json" else "; charset=utf-8"
        _add_page(app, page.path, _constant(content, kind + charset))
    for name in pages.ASSETS:
        _add_page(app, name, _file(name))
    return app


async def start_admin(
    service: Service,
    gatekeeper: Gatekeeper,
    *,
    host: str,
    port: int,
    max_json_depth: int,
    metrics: RenderMetrics | None = None,
    cursor_key: bytes | None = None,
) -> AdminServer:
    """Bind the admin listener and serve it on the running loop.

    Args:
        service: what operators may do.
        gatekeeper: which of them.
        host: the address to listen on.
        port: the port, 0 for any free one.
        max_json_depth: how deep a body may be nested.
        metrics: what ``/metrics`` answers; must not block.
        cursor_key: so that all nodes of a cluster read each other's cursors; random by default.

    Returns:
        The serving listener; the caller closes it.

    Raises:
        OSError: the address is in use or not of this machine.
    """
    runner = web.AppRunner(
        build(
            service,
            gatekeeper,
            max_json_depth=max_json_depth,
            metrics=metrics,
            cursor_key=cursor_key,
        ),
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    try:
        await Site(runner, host, port).start()
    except BaseException:
        await runner.cleanup()
        raise
    return AdminServer(runner, host=host, port=runner.addresses[0][1])
