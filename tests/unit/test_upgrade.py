"""From an accepted socket to the 101: the head reader, what it answers, and the hand-over."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest

from falcon_fast import upgrade as module
from falcon_fast._core import Core
from falcon_fast.codes import close_table
from falcon_fast.doorstep import Doorstep, Visitor
from falcon_fast.handshake import (
    NOT_FOUND,
    Accept,
    Endpoint,
    Policy,
    Refuse,
    Request,
    draining,
    extension,
)
from falcon_fast.handshake import upgrade as agree
from falcon_fast.identity import Identity
from falcon_fast.upgrade import (
    LINGER,
    HeadReader,
    adopt,
    listen,
    plain_answer,
    receive,
    server_port,
)

from ..support.heads import BROWSERS, CHROMIUM_SUBPROTOCOL, MINIMAL, add, swap
from ..support.loop import FakeTimeLoop, turns
from ..support.transport import FakeTransport

loop_factory = FakeTimeLoop

ANN = Identity("ann", 7, "Ann", "", 2_000_000_000)
ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\n"
ANSWER_TO_THE_SAMPLE_KEY = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""RFC 6455 section 1.3."""


class Transport(FakeTransport):
    """With an address and, maybe, TLS."""

    def __init__(
        self, *, eof: bool = True, peer: tuple[str, int] | None = ("192.0.2.7", 5)
    ) -> None:
        super().__init__(eof=eof)
        self.peer = peer
        self.socket: socket.socket | None = None

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": self.peer, "socket": self.socket}.get(name) or default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        # picows writes its 101 from a buffer of its own.
        super().write(bytes(data))


class Door:
    """Accepts everything, or does what it is told, and notes it."""

    def __init__(self) -> None:
        self.policy = Policy()
        self.handshake_timeout = 5.0
        self.waiting = 0
        self.max_waiting = 100
        self.verdict: Refuse | Exception | None = None
        self.broken: Exception | None = None
        self.asked: list[tuple[Request, str]] = []
        self.refusals: list[str] = []
        self.births: list[tuple[Accept, asyncio.Transport, bytes]] = []

    def decide(self, request: Request, peer_ip: str) -> Accept | Refuse:
        self.asked.append((request, peer_ip))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        if self.verdict is not None:
            return self.verdict
        agreed = agree(request)
        if isinstance(agreed, Refuse):
            return agreed
        return Accept(ANN, *agreed, peer_ip, extension(request, self.policy))

    def answer(self, endpoint: Endpoint) -> bytes:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return plain_answer("200 OK", endpoint.name.encode())

    def born(self, accept: Accept, transport: asyncio.Transport, early: bytes) -> None:
        self.births.append((accept, transport, early))
        if self.broken is not None:
            raise self.broken

    def refused(self, refuse: Refuse) -> None:
        self.refusals.append(refuse.label)


class Visit:
    """One connection and its reader."""

    def __init__(self, door: Door, transport: Transport | None = None) -> None:
        self.door = door
        self.transport = transport or Transport()
        self.reader = HeadReader(door, asyncio.get_running_loop())
        self.transport.set_protocol(self.reader)
        self.reader.connection_made(self.transport)

    def feed(self, *reads: bytes) -> Visit:
        for read in reads:
            buffer = self.reader.get_buffer(-1)
            buffer[: len(read)] = read
            self.reader.buffer_updated(len(read))
        return self

    @property
    def is_there(self) -> bool:
        return not self.transport.aborted

    @property
    def answer(self) -> bytes:
        return bytes(self.transport.written)

    @property
    def status(self) -> int:
        return int(self.answer.split(b" ", 2)[1])


# --- who comes with a head ------------------------------------------------------------------------


class Guest(Visitor):
    """A visitor whose other end is in our hands."""

    __slots__ = ("client",)

    def __init__(self) -> None:
        server, self.client = socket.socketpair()
        self.client.setblocking(False)
        porch = SimpleNamespace(
            greets=True,
            loop=asyncio.get_running_loop(),
            watch=lambda fd, visitor: True,
            unwatch=lambda fd: None,
        )
        super().__init__(cast("Doorstep", porch), server.detach(), "192.0.2.7")

    def close(self) -> None:
        super().close()
        self.client.close()


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    guest = Guest()
    yield guest
    guest.close()


async def test_who_has_said_all_is_born_at_once(guest: Guest) -> None:
    door = Door()
    receive(door, asyncio.get_running_loop(), guest, MINIMAL + b"early")
    ((accept, transport, early),) = door.births
    assert (accept.remote_address, transport, early) == ("192.0.2.7", guest, b"early")
    assert guest.answer.startswith(ACCEPTED)
    assert door.waiting == 0
    assert not guest.is_closing()


async def test_who_is_refused_at_once_is_told_so_and_asked_about_once(guest: Guest) -> None:
    door = Door()
    door.verdict = draining(1.0)
    receive(door, asyncio.get_running_loop(), guest, MINIMAL)
    assert guest.client.recv(1000).startswith(b"HTTP/1.1 503 ")
    assert guest.client.recv(1000) == b""
    assert len(door.asked) == 1
    assert door.refusals == ["draining"]


@pytest.mark.parametrize("said", [None, MINIMAL[:-1]])
async def test_who_is_slower_is_waited_for(guest: Guest, said: bytes | None) -> None:
    door = Door()
    receive(door, asyncio.get_running_loop(), guest, said)
    assert door.births == []
    assert door.waiting == 1
    assert not guest.is_closing()
    guest.client.send(MINIMAL[-1:] if said else MINIMAL)
    guest.read()
    assert len(door.births) == 1
    assert door.waiting == 0


async def test_who_comes_when_too_many_wait_is_let_go(guest: Guest) -> None:
    door = Door()
    door.max_waiting = 0
    receive(door, asyncio.get_running_loop(), guest, MINIMAL)
    assert guest.is_closing()
    assert door.asked == []


async def test_a_head_above_the_limit_that_came_at_once(guest: Guest) -> None:
    door = Door()
    door.policy = Policy(max_head_bytes=len(MINIMAL) - 1)
    receive(door, asyncio.get_running_loop(), guest, MINIMAL)
    assert guest.client.recv(1000).startswith(b"HTTP/1.1 431 ")


async def test_who_cannot_be_born_is_let_go(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    door = Door()
    door.broken = ValueError("a bug")
    receive(door, asyncio.get_running_loop(), guest, MINIMAL)
    assert guest.is_closing()
    assert "could not be taken over" in caplog.text


# --- heads ----------------------------------------------------------------------------------------


async def test_the_101_byte_for_byte() -> None:
    visit = Visit(Door()).feed(MINIMAL)
    head, _, rest = visit.answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] + b"\r\n" == ACCEPTED
    assert b"Sec-WebSocket-Accept: " + ANSWER_TO_THE_SAMPLE_KEY in lines
    names = {line.partition(b":")[0].lower() for line in lines[1:]}
    assert names >= {b"upgrade", b"connection", b"sec-websocket-accept"}
    assert not names & {b"sec-websocket-protocol", b"sec-websocket-extensions"}
    assert rest == b""
    (accept, transport, early) = visit.door.births[0]
    assert (accept.identity, accept.remote_address, early) == (ANN, "192.0.2.7", b"")
    assert transport is visit.transport
    assert visit.door.waiting == 0


@pytest.mark.parametrize("name", sorted(BROWSERS))
async def test_browsers_are_let_in(name: str) -> None:
    visit = Visit(Door()).feed(BROWSERS[name])
    assert visit.answer.startswith(ACCEPTED)
    assert len(visit.door.births) == 1


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        (b"permessage-deflate", b""),
        (b"permessage-deflate; server_max_window_bits=10", b"; server_max_window_bits=10"),
        (b"permessage-deflate; server_max_window_bits=8", None),
        (b"x-other", None),
        (b'"', None),
    ],
)
async def test_d01_the_extension_that_was_agreed_on_is_answered(
    offer: bytes, answer: bytes | None
) -> None:
    visit = Visit(Door()).feed(add(MINIMAL, b"Sec-WebSocket-Extensions: " + offer))
    assert visit.answer.startswith(ACCEPTED)
    (accept, _transport, _early) = visit.door.births[0]
    assert (accept.deflate is None) == (answer is None)
    if answer is None:
        assert b"Sec-WebSocket-Extensions" not in visit.answer
    else:
        whole = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        assert visit.answer.count(b"Sec-WebSocket-Extensions: " + whole + answer + b"\r\n") == 1


async def test_only_our_subprotocol_is_answered() -> None:
    visit = Visit(Door()).feed(CHROMIUM_SUBPROTOCOL)
    assert visit.answer.count(b"Sec-WebSocket-Protocol: falcon.v1\r\n") == 1
    assert b"bearer" not in visit.answer


async def test_a_head_may_be_split_at_every_octet() -> None:
    early = b"\x81\x80abcd"
    stream = MINIMAL + early
    for place in range(1, len(stream)):
        visit = Visit(Door()).feed(stream[:place], stream[place:])
        assert visit.answer.startswith(ACCEPTED), place
        assert len(visit.door.births) == 1
        # What comes after the 101 goes to the next protocol.
        held = early if place < len(MINIMAL) else stream[len(MINIMAL) : place]
        assert visit.door.births[0][2] == held


async def test_a_head_may_come_octet_by_octet() -> None:
    visit = Visit(Door()).feed(*[MINIMAL[i : i + 1] for i in range(len(MINIMAL))])
    assert visit.answer.startswith(ACCEPTED)


async def test_early_octets_are_handed_over() -> None:
    visit = Visit(Door()).feed(MINIMAL + b"early\r\n\r\nbird")
    assert visit.door.births[0][2] == b"early\r\n\r\nbird"


async def test_octets_that_come_while_the_101_is_on_its_way_are_kept() -> None:
    visit = Visit(Door())
    visit.transport.stall()
    visit.feed(MINIMAL + b"1", b"2", b"3")
    assert visit.door.births == []
    assert visit.door.waiting == 1
    visit.transport.drain()
    await turns()
    assert visit.door.births[0][2] == b"123"
    assert visit.door.waiting == 0


@pytest.mark.parametrize("how", ["closing", "lost"])
async def test_a_client_that_goes_while_the_101_is_on_its_way(how: str) -> None:
    visit = Visit(Door())
    visit.transport.stall()
    visit.feed(MINIMAL)
    visit.transport.close()
    if how == "lost":
        visit.reader.connection_lost(None)
    await turns()
    assert visit.door.births == []


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 5])
async def test_the_limit_of_a_head(pieces: int) -> None:
    door = Door()
    limit = door.policy.max_head_bytes
    lines = [b"X-A: " + b"a" * 8_000, b"X-B: " + b"b" * 8_000]
    room = limit - len(add(MINIMAL, *lines)) - len(b"X-C: \r\n")
    largest = add(MINIMAL, *lines, b"X-C: " + b"c" * room)
    assert len(largest) == limit

    def cut(head: bytes) -> list[bytes]:
        step = -(-len(head) // pieces)
        return [head[i : i + step] for i in range(0, len(head), step)]

    # What comes behind the head does not count.
    assert Visit(door).feed(*cut(largest)).answer.startswith(ACCEPTED)
    assert Visit(door).feed(largest + b"x" * 20_000).answer.startswith(ACCEPTED)
    larger = Visit(door).feed(*cut(largest.replace(b"X-C: ", b"X-C: c")))
    assert larger.status == 431
    assert door.refusals == ["head_too_large"]


async def test_a_head_without_an_end_is_refused_at_the_limit() -> None:
    visit = Visit(Door()).feed(b"GET / HTTP/1.1\r\nX: " + b"x" * 16_000)
    assert visit.answer == b""
    visit.feed(b"x" * 500)
    assert visit.status == 431
    assert visit.answer.endswith(b"\r\n\r\nRequest Header Fields Too Large")
    # Whatever still comes is neither kept nor answered.
    size = len(visit.answer)
    visit.feed(b"x" * 60_000, MINIMAL)
    assert len(visit.answer) == size
    assert len(visit.reader._received) < 17_000


async def test_bare_line_feeds_are_refused_at_once() -> None:
    for place in (1, 20, len(MINIMAL) // 2):
        head = MINIMAL.replace(b"\r\n", b"\n")
        visit = Visit(Door()).feed(head[:place], head[place:])
        assert visit.status == 400
        assert visit.door.refusals == ["bad_head"]
    head = MINIMAL.replace(b"\r\n", b"\n")
    assert Visit(Door()).feed(head[:-1], head[-1:]).status == 400


async def test_the_deadline_is_one_for_the_whole_head() -> None:
    door = Door()
    silent, slow, done = Visit(door), Visit(door), Visit(door).feed(MINIMAL)
    for octet in MINIMAL[:9]:
        slow.feed(bytes([octet]))
        await asyncio.sleep(0.5)
    assert slow.is_there
    await asyncio.sleep(0.6)
    assert silent.transport.aborted
    assert slow.transport.aborted
    assert not done.transport.aborted
    assert silent.answer == slow.answer == b""


async def test_too_many_that_wait_are_let_go_at_once() -> None:
    door = Door()
    door.max_waiting = 2
    visits = [Visit(door) for _ in range(3)]
    assert [visit.transport.aborted for visit in visits] == [False, False, True]
    for visit in visits:
        visit.reader.connection_lost(None)
        visit.reader.connection_lost(None)
    assert door.waiting == 0


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head, status, label",
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "bad_head"),
        (MINIMAL.replace(b"GET", b"POST", 1), 405, "method_not_allowed"),
        (MINIMAL.replace(b"/websocket/connect", b"/"), 404, "not_found"),
        (MINIMAL.replace(b"Host: localhost:3000\r\n", b""), 400, "bad_host"),
        (swap(MINIMAL, b"Sec-WebSocket-Key", b"x"), 400, "bad_key"),
        (swap(MINIMAL, b"Sec-WebSocket-Version", b"8"), 426, "bad_version"),
    ],
)
async def test_refusals_are_answered_in_full_and_noted(
    head: bytes, status: int, label: str
) -> None:
    visit = Visit(Door()).feed(head)
    assert visit.status == status
    assert b"\r\nConnection: close\r\n" in visit.answer
    body = visit.answer.partition(b"\r\n\r\n")[2]
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in visit.answer
    if label == "bad_head":
        assert visit.door.refusals[0].startswith("bad_")
    else:
        assert visit.door.refusals == [label]
    assert visit.door.births == []


async def test_the_doors_own_refusal() -> None:
    door = Door()
    door.verdict = draining(2.0)
    visit = Visit(door).feed(MINIMAL)
    assert visit.answer == door.verdict.to_bytes()
    assert door.refusals == ["draining"]


async def test_a_refused_client_may_read_its_answer_in_peace() -> None:
    visit = Visit(Door()).feed(b"GET / HTTP/1.1\r\n\r\n")
    assert visit.transport.eof_written
    assert not visit.transport.is_closing()
    await asyncio.sleep(LINGER - 0.1)
    assert visit.is_there
    await asyncio.sleep(0.2)
    assert visit.transport.aborted
    # The deadline of the head is over with it.
    await asyncio.sleep(10)
    assert visit.reader._deadline is None


async def test_a_transport_that_cannot_end_its_writing_alone_is_closed() -> None:
    visit = Visit(Door(), Transport(eof=False)).feed(b"GET / HTTP/1.1\r\n\r\n")
    assert visit.status == 404
    assert visit.transport.is_closing()
    assert not visit.transport.aborted


async def test_the_end_of_the_input_closes() -> None:
    assert Visit(Door()).reader.eof_received() is False


@pytest.mark.parametrize("path", [b"/websocket/connect", b"/websocket/status"])
async def test_a_broken_door_tells_the_client_nothing(
    path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door()
    door.verdict = ValueError("the secret reason")
    visit = Visit(door).feed(MINIMAL.replace(b"/websocket/connect", path))
    assert visit.status == 500
    assert visit.answer.endswith(b"\r\n\r\nInternal Server Error")
    assert b"secret" not in visit.answer
    assert "the secret reason" in caplog.text
    assert door.refusals == ["internal_error"]


async def test_a_hand_over_that_fails_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = Door()
    door.broken = ValueError("the reason")
    visit = Visit(door).feed(MINIMAL)
    assert visit.answer.startswith(ACCEPTED)
    assert b"500" not in visit.answer
    assert visit.transport.aborted
    assert "the reason" in caplog.text
    assert door.waiting == 0


async def test_an_answerer_that_does_not_answer_is_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute:
        def __init__(self, *_: object) -> None:
            self.buffer = bytearray(2_048)

        def connection_made(self, transport: object) -> None:
            pass

        def get_buffer(self, size: int) -> memoryview:
            return memoryview(self.buffer)

        def buffer_updated(self, size: int) -> None:
            pass

    module._pattern.cache_clear()
    monkeypatch.setattr(module, "WSProtocol", Mute)
    visit = Visit(Door()).feed(MINIMAL)
    assert visit.status == 500
    assert visit.door.births == []


async def test_a_client_without_an_address_is_decided_about_all_the_same() -> None:
    visit = Visit(Door(), Transport(peer=None)).feed(MINIMAL)
    assert visit.door.asked[0][1] == ""
    assert visit.answer.startswith(ACCEPTED)


async def test_a_reader_that_has_let_go_decides_nothing() -> None:
    visit = Visit(Door())
    visit.reader.connection_lost(None)
    visit.reader.conclude(NOT_FOUND)
    visit.reader.take(MINIMAL)
    visit.reader._answer(b"late")
    assert visit.door.asked == []
    assert visit.answer == b""


async def test_picows_is_told_to_be_quiet_and_sees_no_socket(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module._pattern.cache_clear()
    with caplog.at_level(logging.DEBUG):
        Visit(Door()).feed(MINIMAL)
    assert caplog.records == []
    quiet = module._Quiet()
    assert not quiet.isEnabledFor(logging.CRITICAL)
    quiet.log(logging.CRITICAL, "nothing")
    quiet.warning("nothing")
    pen = module._Pen()
    assert pen.get_extra_info("peername") is None
    assert pen.get_write_buffer_size() == 0


# --- plain endpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, name",
    [("/websocket/status", b"status"), ("/healthz", b"healthz"), ("/readyz", b"readyz")],
)
async def test_plain_endpoints(path: str, name: bytes) -> None:
    visit = Visit(Door()).feed(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert visit.answer == plain_answer("200 OK", name)
    assert visit.transport.eof_written
    assert visit.door.refusals == []


def test_a_plain_answer_byte_for_byte() -> None:
    assert plain_answer("200 OK", b"{}", content_type="application/json") == (
        b"HTTP/1.1 200 OK\r\n"
        b"Content-Type: application/json; charset=utf-8\r\n"
        b"Content-Length: 2\r\n"
        b"Cache-Control: no-store\r\n"
        b"X-Content-Type-Options: nosniff\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b"{}"
    )


# --- adoption -------------------------------------------------------------------------------------


def core(*, epoll: bool, max_connections: int = 4) -> Core[str]:
    return Core(
        on_message=lambda owner, payload, is_text: None,
        on_close=lambda owner, reason, code: None,
        on_refused=lambda owner, payload, number: None,
        on_expire=lambda owner: None,
        on_error=lambda error: None,
        schedule=lambda flush: None,
        close_table=close_table(),
        max_connections=max_connections,
        epoll=epoll,
    )


class TlsTransport(Transport):
    def get_extra_info(self, name: str, default: object = None) -> object:
        return object() if name == "ssl_object" else super().get_extra_info(name, default)


def test_a_plain_socket_is_taken_from_its_transport() -> None:
    native = core(epoll=True)
    near, far = socket.socketpair()
    with near, far:
        transport = Transport()
        transport.socket = near
        handle = adopt(native, transport, "ann", early=b"")
        assert transport.aborted
        near.close()
        native.send(handle, b"hi")
        native.flush()
        assert far.recv(100) == b"\x81\x02hi"
    native.shutdown()


@pytest.mark.parametrize("why", ["tls", "no epoll", "not written yet"])
def test_other_connections_keep_their_transport(why: str) -> None:
    native = core(epoll=why != "no epoll")
    transport = TlsTransport() if why == "tls" else Transport()
    if why == "not written yet":
        transport.stall()
        transport.write(b"the 101")
    handle = adopt(native, transport, "ann", early=b"", paused=True)
    assert native.owner(handle) == "ann"
    assert not transport.reading
    assert not transport.aborted
    assert getattr(transport.get_protocol(), "handle", None) == handle
    native.shutdown()


@pytest.mark.parametrize("epoll", [True, False])
def test_no_slot_left_leaks_no_descriptor(epoll: bool) -> None:
    native = core(epoll=epoll, max_connections=1)
    adopt(native, TlsTransport(), "ann", early=b"")
    near, far = socket.socketpair()
    with near, far:
        transport = Transport()
        transport.socket = near
        before = len(os.listdir("/dev/fd"))
        with pytest.raises(ConnectionError):
            adopt(native, transport, "bob", early=b"")
        assert len(os.listdir("/dev/fd")) == before
        assert not transport.aborted
    native.shutdown()


# --- the listener ---------------------------------------------------------------------------------


async def test_what_the_loop_is_asked_to_listen_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    made: list[object] = []

    async def create_server(factory: object, *where: object, **options: object) -> str:
        assert callable(factory)
        made.append(factory())
        asked.append((*where, options["ssl"], options["ssl_handshake_timeout"]))
        asked.append((options["backlog"], options["reuse_port"]))
        return "server"

    monkeypatch.setattr(asyncio.get_running_loop(), "create_server", create_server)
    door, tls = Door(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert await listen(door, host="", port=5) == "server"  # type: ignore[comparison-overlap]
    await listen(door, host="::1", port=0, tls=tls, reuse_port=True)
    assert asked == [(None, 5, None, None), (4096, None), ("::1", 0, tls, 2.5), (4096, True)]
    assert all(isinstance(one, HeadReader) for one in made)


@pytest.mark.parametrize("family, port", [(socket.AF_INET, 4711), (socket.AF_UNIX, 0)])
def test_the_port_of_a_server(family: int, port: int) -> None:
    class Socket:
        def __init__(self) -> None:
            self.family = family

        def getsockname(self) -> object:
            return ("127.0.0.1", 4711) if family == socket.AF_INET else "/run/falcon"

    class Server:
        sockets = (Socket(),)

    assert server_port(Server()) == port  # type: ignore[arg-type]
