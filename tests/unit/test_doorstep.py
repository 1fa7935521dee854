"""Plain connections before their 101: accepted, read, answered, given away, and let go."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from falcon_fast import doorstep as module
from falcon_fast.doorstep import Doorstep, Guest, Visitor

from ..support.loop import FakeTimeLoop, turns

loop_factory = FakeTimeLoop


class Protocol(Guest):
    """Notes what it hears; does what it is told when it hears it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.lost = 0
        self.waits = 0
        self.stays = False
        self.refuses = False
        self.visitor: Visitor | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Visitor)
        self.visitor = transport
        if self.refuses:
            transport.abort()

    def wait(self) -> None:
        self.waits += 1

    def take(self, octets: bytes) -> None:
        self.heard.append(octets)

    def eof_received(self) -> bool:
        self.heard.append(b"")
        return self.stays

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost += 1


class Porch:
    """A doorstep on a Unix socket, and the protocols it made."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.made: list[Protocol] = []
        self.next = Protocol()
        self.clients: list[socket.socket] = []
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(self.path)
            self.doorstep = Doorstep([bound], self.receive, asyncio.get_running_loop(), backlog=10)

    def receive(self, visitor: Visitor, octets: bytes | None) -> None:
        made, self.next = self.next, Protocol()
        self.made.append(made)
        visitor.stay(made, octets)

    def knock(self, said: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self.clients.append(client)
        client.connect(self.path)
        client.setblocking(False)
        if said:
            client.send(said)
        return client

    async def visit(self, said: bytes = b"") -> tuple[socket.socket, Protocol, Visitor]:
        client = self.knock(said)
        await turns()
        protocol = self.made[-1]
        assert protocol.visitor is not None
        return client, protocol, protocol.visitor

    def close(self) -> None:
        self.doorstep.close()
        for client in self.clients:
            client.close()


@pytest.fixture
async def porch(tmp_path: Path) -> AsyncIterator[Porch]:
    before = len(os.listdir("/dev/fd"))
    porch = Porch(tmp_path / "door")
    yield porch
    porch.close()
    await turns()
    for protocol in porch.made:
        if protocol.visitor is not None:
            with contextlib.suppress(ConnectionError):
                os.close(protocol.visitor.detach())
    assert len(os.listdir("/dev/fd")) == before


async def test_what_has_come_already_is_read_at_once(porch: Porch) -> None:
    client, protocol, visitor = await porch.visit(b"head")
    assert protocol.heard == [b"head"]
    assert protocol.waits == 1
    assert not visitor.is_closing()
    assert visitor.get_extra_info("peername") == ("",)
    assert visitor.peer == ""
    assert not visitor.greets
    assert visitor.get_extra_info("ssl_object", 7) == 7
    client.send(b"more")
    await turns()
    assert protocol.heard == [b"head", b"more"]
    assert protocol.lost == 0


async def test_an_answer_and_the_end(porch: Porch) -> None:
    client, protocol, visitor = await porch.visit()
    assert protocol.heard == []
    assert visitor.can_write_eof()
    visitor.write(b"no")
    assert visitor.get_write_buffer_size() == 0
    visitor.write_eof()
    assert client.recv(10) == b"no"
    assert client.recv(10) == b""
    client.send(b"but")
    client.close()
    await turns()
    assert protocol.heard == [b"but", b""]
    assert protocol.lost == 1
    assert visitor.is_closing()
    # Nothing of this finds a socket any more.
    visitor.write(b"late")
    visitor.write_eof()
    visitor.read()
    visitor.close()
    await turns()
    assert protocol.lost == 1


async def test_a_protocol_may_stay_after_the_end_of_its_input(porch: Porch) -> None:
    porch.next.stays = True
    client, protocol, visitor = await porch.visit()
    client.shutdown(socket.SHUT_WR)
    # Level triggered, so it is told again and again; ours never stays.
    await turns(3)
    assert set(protocol.heard) == {b""}
    assert not visitor.is_closing()


@pytest.mark.parametrize("said", [b"", b"head"])
async def test_a_descriptor_is_given_away(porch: Porch, said: bytes) -> None:
    client, protocol, visitor = await porch.visit(said)
    fd = visitor.detach()
    try:
        assert visitor.is_closing()
        client.send(b"frame")
        await turns()
        assert os.read(fd, 10) == b"frame"
        assert protocol.heard == ([said] if said else [])
        assert protocol.lost == 0
        with pytest.raises(ConnectionError):
            visitor.detach()
    finally:
        os.close(fd)


async def test_who_is_refused_at_once_is_never_read(porch: Porch) -> None:
    porch.next.refuses = True
    client, protocol, _ = await porch.visit(b"head")
    assert protocol.heard == []
    assert protocol.waits == 0
    assert protocol.lost == 1
    with pytest.raises(ConnectionError):
        client.send(b"x")


async def test_an_answer_that_is_not_taken_ends_the_connection(porch: Porch) -> None:
    _, protocol, visitor = await porch.visit()
    visitor.write(bytes(10_000_000))
    await turns()
    assert protocol.lost == 1
    client, protocol, visitor = await porch.visit()
    client.close()
    visitor.write(b"x")
    await turns()
    assert protocol.lost == 1


async def test_a_connection_that_fails_is_over(
    porch: Porch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise ConnectionResetError

    _, protocol, visitor = await porch.visit()
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", broken)
        visitor.read()
    await turns()
    assert protocol.lost == 1


async def test_nothing_has_come_after_all(porch: Porch) -> None:
    _, protocol, visitor = await porch.visit()
    visitor.read()
    assert protocol.heard == []
    assert not visitor.is_closing()


async def test_who_ends_its_input_before_it_is_accepted(porch: Porch) -> None:
    client = porch.knock()
    client.shutdown(socket.SHUT_WR)
    await turns()
    assert porch.made[-1].heard == [b""]
    assert porch.made[-1].lost == 1
    assert client.recv(10) == b""


async def test_who_nobody_stays_for_is_let_go(porch: Porch) -> None:
    def receive(visitor: Visitor, octets: bytes | None) -> None:
        visitor.abort()
        visitor.stay(porch.next, octets)

    porch.doorstep._receive = receive
    client = porch.knock(b"head")
    await turns()
    assert client.recv(10) == b""
    assert porch.next.heard == []
    assert porch.next.waits == porch.next.lost == 0


async def test_closing_ends_everybody_and_listens_no_more(porch: Porch) -> None:
    client, protocol, _ = await porch.visit()
    listening = [len(porch.doorstep.sockets)]
    porch.doorstep.close()
    porch.doorstep.close()
    await turns()
    assert protocol.lost == 1
    listening.append(len(porch.doorstep.sockets))
    assert listening == [1, 0]
    assert client.recv(10) == b""
    with pytest.raises(ConnectionError):
        porch.knock()


class Listener:
    """Raises and returns what it is told, then has nobody waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *results: OSError | socket.socket) -> None:
        self.results = list(results)
        monkeypatch.setattr(module, "accept", self._accept)

    def fileno(self) -> int:
        return -1

    def _accept(self, _fd: int) -> tuple[int, str, None] | None:
        if not self.results:
            return None
        result = self.results.pop(0)
        if isinstance(result, OSError):
            raise result
        return result.detach(), "peer", None

    def accept(self) -> tuple[socket.socket, str]:
        accepted = self._accept(-1)
        if accepted is None:
            raise BlockingIOError
        return socket.socket(fileno=accepted[0]), "peer"


async def test_who_has_gone_before_it_was_accepted_is_passed_over(
    porch: Porch, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket.socketpair()
    porch.clients.append(far)
    porch.doorstep._accept(Listener(monkeypatch, ConnectionAbortedError(), near))  # type: ignore[arg-type]
    assert len(porch.made) == 1


async def test_an_error_of_the_listener_is_not_hidden(
    porch: Porch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="broken"):
        porch.doorstep._accept(Listener(monkeypatch, OSError(errno.EINVAL, "broken")))  # type: ignore[arg-type]


async def test_r05_without_descriptors_who_waits_is_turned_away(
    porch: Porch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)

    def run_out() -> None:
        near, far = socket.socketpair()
        porch.clients.append(far)
        none_left = OSError(errno.EMFILE, "too many")
        porch.doorstep._accept(Listener(monkeypatch, none_left, near))  # type: ignore[arg-type]
        assert far.recv(10) == b""

    run_out()
    run_out()
    assert porch.made == []
    assert caplog.text.count("no descriptors are left") == 1
    loop.clock.advance(module.LOG_EVERY)
    run_out()
    assert caplog.text.count("no descriptors are left") == 2


async def test_r05_a_spare_that_did_not_come_back(
    porch: Porch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        porch.doorstep._accept(Listener(monkeypatch, OSError(errno.EMFILE, "x")))  # type: ignore[arg-type]
    waiting = Listener(monkeypatch, OSError(errno.EMFILE, "x"), OSError(errno.EMFILE, "x"))
    porch.doorstep._accept(waiting)  # type: ignore[arg-type]
    assert porch.doorstep._spare is not None


async def test_the_doorstep_may_be_closed_while_somebody_enters(
    porch: Porch, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = socket.socketpair()
    porch.clients.append(far)
    other, further = socket.socketpair()
    porch.clients += [other, further]
    listener = Listener(monkeypatch, near, other)

    def closing(visitor: Visitor, octets: bytes | None) -> None:
        porch.doorstep.close()
        porch.receive(visitor, octets)

    porch.doorstep._receive = closing
    porch.doorstep._accept(listener)  # type: ignore[arg-type]
    assert len(porch.made) == 1
    assert listener.results == [other]
