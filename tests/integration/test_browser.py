"""A real browser and the real server: the cookie of an allowed page, the token as a subprotocol.

Pages are served on loopback by this test: one of the origin that is allowed, one of a foreign
origin on another port. To the browser both are `localhost`, so both send the cookie.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import BrowserContext, Page, async_playwright

from ..support import ROOT, require
from .peers import (
    FLEET,
    FLEET_ROOM,
    PATIENCE,
    Ear,
    Frame,
    PythonClient,
    Served,
    all_leaving,
    messages,
    said,
    serve,
    without_time,
)

pytestmark = [pytest.mark.integration, pytest.mark.browser]

BOB: Final = "90000002"

FLAGS: Final = (
    "--no-sandbox",  # it may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Nothing but the pages of this test is to be loaded.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

PAGE: Final = b"""<!doctype html><title>chat</title><script>
let frames = [], waiting = [], socket, ended, opened;
function open_socket(url, ...protocols) {
  socket = new WebSocket(url, ...protocols);
  opened = new Promise((resolve) => { socket.onopen = () => resolve(true); });
  ended = new Promise((resolve) => {
    socket.onclose = (event) => resolve([event.code, event.reason, event.wasClean]);
  });
  socket.onmessage = (event) => {
    const wanted = waiting.shift();
    if (wanted) wanted(event.data); else frames.push(event.data);
  };
  return Promise.race([opened, ended]);
}
function next_frame() {
  if (frames.length) return frames.shift();
  return new Promise((resolve) => waiting.push(resolve));
}
</script>"""


class Pages(BaseHTTPRequestHandler):
    """`/login?token=` sets the cookie as a login service would; every other path is the page."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(PAGE)))
        if parts.path == "/login":
            (token,) = parse_qs(parts.query)["token"]
            self.send_header(
                "Set-Cookie", f"falcon_auth_token={token}; HttpOnly; Path=/; SameSite=Strict"
            )
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def pages() -> Iterator[str]:
    """Serve the pages on any free port; gives their origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True, slots=True)
class Stage:
    """What a test plays on: a server, the page it allows, a page it does not, and a browser."""

    served: Served
    url: str
    allowed: str
    foreign: str
    browser: BrowserContext

    async def log_in(self, token: str) -> Page:
        """Open the allowed page with the cookie set."""
        page = await self.browser.new_page()
        await page.goto(f"{self.allowed}/login?token={token}")
        return page


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    program = require("chromium", "chromium-browser", "google-chrome", hint="apt install chromium")
    with contextlib.ExitStack() as stack:
        allowed, foreign = stack.enter_context(pages()), stack.enter_context(pages())
        served = stack.enter_context(serve(tmp_path, WEBSOCKET_ALLOWED_ORIGINS=allowed))
        # The browser has to take the server for a neighbour of the pages.
        url = served.url.replace("127.0.0.1", "localhost")
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=program, args=FLAGS)
            context = await browser.new_context()
            context.set_default_timeout(PATIENCE * 1000)
            yield Stage(served, url, allowed, foreign, context)
            await browser.close()


class BrowserClient:
    """A page with a WebSocket."""

    def __init__(self, name: str, page: Page) -> None:
        self.name = name
        self._page = page

    async def open(self, url: str, *protocols: str) -> object:
        """Connect; returns True, or how it ended."""
        return await self._page.evaluate(
            "([url, protocols]) => open_socket(url, ...(protocols.length ? [protocols] : []))",
            [url, list(protocols)],
        )

    async def subprotocol(self) -> object:
        """Return what the server chose."""
        return await self._page.evaluate("() => socket.protocol")

    async def say(self, frame: Frame) -> None:
        await self._page.evaluate("(frame) => socket.send(JSON.stringify(frame))", frame)

    async def hear(self) -> Frame:
        frame: Frame = await self._page.evaluate("async () => JSON.parse(await next_frame())")
        return frame

    async def leave(self) -> None:
        await self._page.evaluate("() => socket.close(1000)")

    async def end(self) -> object:
        """Wait for the end; returns code, reason and whether it was clean."""
        return await self._page.evaluate("() => ended")


class Tap:
    """A relay between browser and server that keeps both heads of each handshake.

    No script of a page sees the status of a refusal, and the browser's tools hide the cookie.
    """

    def __init__(self, port: int) -> None:
        self.requests: list[str] = []
        self.answers: list[int] = []
        self.port = port

    async def pass_on(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        far, forth = await asyncio.open_connection("127.0.0.1", self.port)
        request = await near.readuntil(b"\r\n\r\n")
        self.requests.append(request.decode())
        forth.write(request)
        answer = await far.readuntil(b"\r\n\r\n")
        self.answers.append(int(answer.split()[1]))
        back.write(answer)
        await asyncio.gather(pump(near, forth), pump(far, back))

    @property
    def has_cookie(self) -> list[bool]:
        """Whether each request came with the token in its cookie."""
        return ["\r\nCookie: falcon_auth_token=ey" in request for request in self.requests]


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until the end, and end."""
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.close()
    with contextlib.suppress(ConnectionError):
        await sink.wait_closed()


@contextlib.asynccontextmanager
async def tapped(url: str) -> AsyncIterator[tuple[Tap, str]]:
    """Put a tap before a server; gives it and the URL to use instead."""
    port = urlsplit(url).port
    assert port is not None
    tap = Tap(port)
    async with await asyncio.start_server(tap.pass_on, "127.0.0.1", 0) as server:
        own_port = server.sockets[0].getsockname()[1]
        yield tap, url.replace(f":{port}/", f":{own_port}/")


async def test_browsers_chat_with_cookie_and_subprotocol_token(stage: Stage) -> None:
    served = stage.served
    carol_token = await asyncio.to_thread(served.newcomer, "carol", 90000011, "Carol", member=True)
    async with all_leaving() as clients:
        by_cookie = BrowserClient("bob", await stage.log_in(served.token_of("Bob")))
        assert await by_cookie.open(stage.url) is True
        assert await by_cookie.subprotocol() == ""
        clients.append(by_cookie)

        # A page of its own context has no cookie: the token alone has to do.
        assert stage.browser.browser is not None
        other = await stage.browser.browser.new_context()
        page = await other.new_page()
        await page.goto(stage.allowed)
        by_token = BrowserClient("carol", page)
        protocols = ("falcon.v1", f"falcon.bearer.{carol_token}")
        assert await by_token.open(stage.url, *protocols) is True
        assert await by_token.subprotocol() == "falcon.v1"
        clients.append(by_token)

        clients.append(await PythonClient.join("alice", served.url, served.token_of("Alice")))
        clients.append(await PythonClient.join("admin", served.url, served.token_of("Admin")))
        ears = bob, carol, alice, outsider = [Ear(client) for client in clients]
        members = (bob, carol, alice)
        for ear, name in zip(members, ("demo-bob", "carol", "demo-alice"), strict=True):
            assert await ear.joined() == [f"user:{name}", FLEET_ROOM]
        await outsider.joined()

        for sender in members:
            message = said(f"hello from {sender.client.name}")
            await sender.client.say(message)
            for ear in members:
                assert without_time(await ear.until("message")) == message
        for ear in ears:
            assert messages(await ear.so_far()) == []

        await asyncio.to_thread(served.command, "member", "remove", FLEET, BOB)
        await bob.until("group_membership_change", group_id=FLEET, joined=False)
        await alice.client.say(said("without bob"))
        for ear in (carol, alice):
            assert without_time(await ear.until("message")) == said("without bob")
        assert messages(await bob.so_far()) == []
        assert messages(await outsider.so_far()) == []
        await other.close()
        clients.remove(by_token)


async def test_a_foreign_page_with_the_cookie_is_refused(stage: Stage) -> None:
    page = await stage.log_in(stage.served.token_of("Bob"))
    elsewhere = await stage.browser.new_page()
    await elsewhere.goto(stage.foreign)
    async with tapped(stage.url) as (tap, url):
        client = BrowserClient("bob", page)
        assert await client.open(url) is True
        await client.leave()
        assert await client.end() == [1000, "", True]
        assert (tap.answers, tap.has_cookie) == ([101], [True])

        intruder = BrowserClient("intruder", elsewhere)
        assert await intruder.open(url) == [1006, "", False]
        assert (tap.answers, tap.has_cookie) == ([101, 403], [True, True])

        # Not even with a token of its own: the origin is not one of ours.
        token = stage.served.token_of("Alice")
        protocols = ("falcon.v1", f"falcon.bearer.{token}")
        assert await intruder.open(url, *protocols) == [1006, "", False]
        assert tap.answers == [101, 403, 403]


async def test_a_browser_is_told_why_it_ends(stage: Stage) -> None:
    client = BrowserClient("bob", await stage.log_in(stage.served.token_of("Bob")))
    assert await client.open(stage.url) is True
    await Ear(client).joined()
    assert await asyncio.to_thread(stage.served.program.stop) == 0
    assert await client.end() == [1012, "service restart", True]


def client_of_the_howto() -> str:
    """Return the code that docs/howto/embed-in-a-page.md gives to pages."""
    text = (ROOT / "docs" / "howto" / "embed-in-a-page.md").read_text(encoding="utf-8")
    found = re.search(r"```javascript\n(// connect\(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1].replace("export function", "function")


START: Final = """
([url, token]) => {
  Math.random = () => 0.05;  // the shortest pauses
  window.told = [];
  window.over = new Promise((resolve) => {
    window.chat = connect({
      url,
      token: async () => token,
      onFrame: (frame) => told.push(frame.type + (frame.data?.action ?? "")),
      onEnd: (code, reason) => resolve([code, reason]),
    });
  });
}
"""


async def test_the_client_of_the_howto_comes_back_when_it_should(stage: Stage) -> None:
    secret = stage.served.settings["JWT_SECRET"]
    welcome = ["system_notification", "room_updatejoined"]
    page = await stage.log_in(stage.served.token_of("Bob"))
    await page.add_script_tag(content=client_of_the_howto())
    # No cookie: the token that it fetches has to do, at each attempt.
    await stage.browser.clear_cookies()
    token = stage.served.token_of("Bob")
    async with tapped(stage.url) as (tap, url):
        await page.evaluate(START, [url, token])
        await page.wait_for_function("() => told.length === 2")

        with serve(
            stage.served.folder, JWT_SECRET=secret, WEBSOCKET_ALLOWED_ORIGINS=stage.allowed
        ) as heir:
            tap.port = urlsplit(heir.url).port or 0
            assert await asyncio.to_thread(stage.served.program.stop) == 0
            await page.wait_for_function("() => told.length === 4")
            assert await page.evaluate("() => told") == welcome * 2

            # 4403: a token of somebody else. Coming back would end the same way.
            data = {"token": heir.token_of("Alice")}
            await page.evaluate("(frame) => chat.send(frame)", {"type": "auth", "data": data})
            assert await page.evaluate("() => over") == [4403, "forbidden"]
            await asyncio.sleep(0.3)
            assert tap.answers == [101, 101]
