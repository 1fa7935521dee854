"""The native core with sockets of its own: reading, partial writes, resets, fairness.

No test sleeps: it waits for the core's epoll set to become readable, as the loop does.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast._core import Verdict, accept
from falcon_fast.codes import CloseReason

from ..support import ROOT, missing
from ..support.core import Closed, Event, Message, Rig, by_owner, closed, said
from ..support.frames import BINARY, PONG, ServerFrame, close, cut, ping, says, server_frames, text
from .conftest import NATIVE

SOON: Final = 5.0
"""Seconds after which a test gives up waiting for the kernel."""


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a TCP connection over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server, client


class Wire:
    """A connection of the core on a real socket, and its other end, closed when the test ends."""

    clients: ClassVar[list[socket.socket]] = []

    def __init__(
        self,
        rig: Rig,
        owner: str = "a",
        *,
        tcp: bool = False,
        send_buffer: int | None = None,
        early: bytes = b"",
        paused: bool = False,
    ) -> None:
        server, self.client = tcp_pair() if tcp else socket.socketpair()
        if send_buffer is not None:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, send_buffer)
        self.clients.append(self.client)
        self.rig = rig
        self.owner = owner
        self.client.setblocking(False)
        self.handle = rig.core.adopt_socket(server.detach(), owner, early=early, paused=paused)
        self.received = bytearray()
        self.ended = False

    def read(self, limit: int = 1 << 20) -> int:
        """Read what has arrived and return how much it was."""
        before = len(self.received)
        while not self.ended and len(self.received) - before < limit:
            try:
                data = self.client.recv(min(limit, 65536))
            except BlockingIOError:
                break
            self.ended = not data
            self.received += data
        return len(self.received) - before

    def reset(self) -> None:
        """End the connection with a RST."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()

    def frames(self) -> list[ServerFrame]:
        """Return all frames that have arrived; there must be no half one."""
        self.read()
        return server_frames(bytes(self.received))

    def alive(self) -> bool:
        return self.rig.core.owner(self.handle) is not None


def serve(rig: Rig) -> None:
    """Wait until the epoll set is readable, and serve it once."""
    assert select.select([rig.core.epoll_fd], [], [], SOON)[0], "nothing happens"
    rig.core.ready()
    rig.turn()


def idle(rig: Rig) -> bool:
    """Tell whether the epoll set has nothing to say."""
    return not select.select([rig.core.epoll_fd], [], [], 0)[0]


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    if not hasattr(select, "epoll"):
        missing("epoll", hint="other systems than Linux keep the event loop's transports")
    yield
    while Wire.clients:
        Wire.clients.pop().close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    """Return a rig with an epoll set."""
    rig = Rig(NATIVE, {"epoll": True})
    yield rig
    rig.core.shutdown()


def echo(rig: Rig, wires: list[Wire]) -> None:
    """Have every message sent back."""
    handles = {wire.owner: wire.handle for wire in wires}

    def answer(event: Event) -> None:
        if isinstance(event, Message):
            rig.core.send(handles[event.owner], event.payload, binary=not event.is_text)

    rig.hook = answer


@pytest.mark.parametrize("tcp", [False, True])
def test_echo(rig: Rig, tcp: bool) -> None:
    wire = Wire(rig, tcp=tcp)
    echo(rig, [wire])
    wire.client.sendall(text("hello") + ping(b"p") + text("")[:3])
    serve(rig)
    wire.client.sendall(text("")[3:] + text("x" * 60_000))
    while len(rig.events) < 3:
        serve(rig)
    while len(wire.received) < 60_000:
        wire.read()
    assert wire.frames() == [
        says("hello"),
        ServerFrame(PONG, b"p"),
        says(""),
        says("x" * 60_000),
    ]
    assert rig.take() == [Message("a", p, True) for p in (b"hello", b"", b"x" * 60_000)]
    assert idle(rig)


def test_nothing_is_read_before_resume(rig: Rig) -> None:
    wire = Wire(rig, early=text("early") + text("cut")[:5], paused=True)
    wire.client.sendall(text("cut")[5:] + text("later"))
    assert idle(rig)
    rig.core.send(wire.handle, b"welcome")
    rig.turn()
    assert wire.frames() == [says("welcome")]
    rig.core.resume(wire.handle)
    assert rig.take() == [Message("a", b"early", True)]
    serve(rig)
    assert rig.take() == [Message("a", b"cut", True), Message("a", b"later", True)]


def test_nothing_is_read_before_resume_even_when_something_is_queued(rig: Rig) -> None:
    wire = Wire(rig, paused=True, send_buffer=4096)
    wire.client.sendall(text("later"))
    rig.core.send(wire.handle, b"x" * 200_000)
    rig.turn()
    while len(wire.received) < 200_000:
        wire.read()
        if not idle(rig):
            rig.core.ready()
    assert rig.take() == []
    rig.core.resume(wire.handle)
    serve(rig)
    assert rig.take() == [Message("a", b"later", True)]


def test_a_peer_that_vanishes_before_resume(rig: Rig) -> None:
    wire = Wire(rig, tcp=True, paused=True)
    wire.reset()
    serve(rig)
    assert rig.take() == [closed("a", CloseReason.CONNECTION_LOST, 1006)]
    assert idle(rig)


def test_p10_a_tiny_send_buffer_delivers_everything(rig: Rig) -> None:
    wire = Wire(rig, send_buffer=4096)
    expected = []
    for number in range(40):
        rig.core.send(wire.handle, b"%02d" % number * 5000)
        expected.append(says(b"%02d" % number * 5000))
        if number % 3 == 0:
            rig.turn()
    rig.turn()
    assert rig.core.queued_bytes(wire.handle) > 300_000
    assert rig.core.send(wire.handle, b"last") == Verdict.QUEUED
    rig.turn()
    while rig.core.queued_bytes(wire.handle):
        assert wire.read(1000)
        if not idle(rig):
            rig.core.ready()
    assert wire.frames() == [*expected, says("last")]
    # Nothing is left to wait for: a set that stays readable would spin.
    assert idle(rig)
    assert rig.core.send(wire.handle, b"at once") == Verdict.SENT


class FlakyReader:
    """A client that reads a little now and then."""

    def __init__(self, appetite: list[int]) -> None:
        self.appetite = appetite
        self.at = 0

    def next(self) -> int:
        self.at += 1
        return self.appetite[self.at % len(self.appetite)]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 125, 126, 900, 5000, 70_000]), min_size=1, max_size=25),
    appetite=st.lists(st.sampled_from([0, 0, 1, 700, 5000, 100_000]), min_size=1, max_size=6),
    turns=st.integers(1, 4),
)
def test_p10_partial_writes_are_exact(sizes: list[int], appetite: list[int], turns: int) -> None:
    rig = Rig(NATIVE, {"epoll": True, "max_queue_bytes": 1 << 24})
    room = rig.core.open_room()
    wires = [Wire(rig, str(number), send_buffer=2304) for number in range(3)]
    for wire in wires:
        rig.core.join(wire.handle, room)
    readers = [FlakyReader(appetite[number % len(appetite) :] + appetite) for number in range(3)]
    expected: list[list[ServerFrame]] = [[] for _ in wires]
    for number, size in enumerate(sizes):
        payload = bytes([97 + number % 26]) * size
        if number % 4 == 3:
            rig.core.send(wires[number % 3].handle, payload)
            expected[number % 3].append(says(payload))
        else:
            rig.core.fan_out(room, payload)
            for frames in expected:
                frames.append(says(payload))
        if number % turns == 0:
            rig.turn()
        for wire, reader in zip(wires, readers, strict=True):
            appetite_now = reader.next()
            if appetite_now:
                wire.read(appetite_now)
        rig.core.ready()
    rig.turn()
    for _ in range(2000):
        for wire in wires:
            wire.read()
        if not any(rig.core.queued_bytes(wire.handle) for wire in wires):
            break
        rig.core.ready()
    assert [wire.frames() for wire in wires] == expected
    assert rig.core.bytes_out == sum(len(wire.received) for wire in wires)
    assert rig.events == []
    rig.core.shutdown()


def read_to_the_end(wire: Wire, appetite: int = 1 << 20) -> None:
    """Have the peer read until the core has ended its writing half."""
    while not wire.ended:
        wire.read(appetite)
        if not idle(wire.rig):
            wire.rig.core.ready()


@pytest.mark.parametrize("size", [996, 19_920, 300_000])
def test_r02_a_slow_reader_gets_whole_frames_and_then_the_close(rig: Rig, size: int) -> None:
    slow, good = Wire(rig, "slow", send_buffer=2304), Wire(rig, "good")
    room = rig.core.open_room()
    for wire in (slow, good):
        rig.core.join(wire.handle, room)
    said_so_far = 0
    while slow.alive():
        rig.core.fan_out(room, b"%04d" % said_so_far * (size // 4))
        said_so_far += 1
        rig.turn()
        while good.read() or rig.core.queued_bytes(good.handle):
            rig.core.ready()
    assert rig.take() == [closed("slow", CloseReason.SLOW_CONSUMER, 4000)]
    # The larger ones were cut by the kernel: the rest of the one that was begun comes first.
    read_to_the_end(slow, 1000)
    frames = slow.frames()
    assert frames[-1] == said(CloseReason.SLOW_CONSUMER)
    assert frames[:-1] == [says(b"%04d" % n * (size // 4)) for n in range(len(frames) - 1)]
    assert 1 < len(frames) < said_so_far
    assert good.frames() == [says(b"%04d" % n * (size // 4)) for n in range(said_so_far)]


def test_r02_a_doomed_slow_reader_that_is_closed_gets_whole_frames() -> None:
    rig = Rig(NATIVE, {"epoll": True, "max_queue_bytes": 20_000})
    wire, room = Wire(rig, send_buffer=2304), rig.core.open_room()
    rig.core.join(wire.handle, room)
    rig.core.send(wire.handle, b"x" * 15_000)
    rig.turn()
    assert 0 < rig.core.queued_bytes(wire.handle) < 15_000
    rig.core.fan_out(room, b"y" * 15_000)
    rig.core.leave(wire.handle, room)  # sends it ahead of the tick's end, and crosses the cap
    rig.core.close(wire.handle, CloseReason.KICKED)
    assert rig.take() == [closed("a", CloseReason.KICKED)]
    read_to_the_end(wire, 1000)
    assert wire.frames() == [says(b"x" * 15_000), said(CloseReason.KICKED)]
    rig.core.shutdown()


LOOKS_LIKE_FRAMES: Final = [
    # In the middle of a payload, like the header of a frame of length 2**64 - 10, of 0 or 5
    # octets, or of one that reaches beyond its end.
    *[b"\x00\x7f" + b"\xff" * 7 + b"\xf6", b"\x00\x00", b"\x05\x05", b"\x00\x7e\xff\xff"]
]


def cut_frames_that_look_like_more() -> None:
    """Have the kernel cut such frames at every place of the pattern, and take the rest slowly."""
    for pattern in LOOKS_LIKE_FRAMES:
        for shift in range(len(pattern)):
            rig = Rig(NATIVE, {"epoll": True, "max_queue_bytes": 20_000})
            wire = Wire(rig, send_buffer=2304)
            payload = b"-" * shift + pattern * (15_000 // len(pattern)) + b"\x7f"
            for _ in range(3):
                rig.core.send(wire.handle, payload, binary=True)
                rig.turn()
            assert rig.take() == [closed("a", CloseReason.SLOW_CONSUMER)]
            read_to_the_end(wire, 1000)
            frames = wire.frames()
            assert frames[-1] == said(CloseReason.SLOW_CONSUMER)
            assert frames[:-1] == [ServerFrame(BINARY, payload)] * (len(frames) - 1)
            wire.client.close()
            rig.core.shutdown()


def test_r02_the_rest_of_a_frame_is_not_taken_for_frames() -> None:
    # In a process of its own: what can go wrong here is a loop without an end.
    code = f"from {__name__} import cut_frames_that_look_like_more as run; run()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=15, check=False)
    assert done.returncode == 0


def test_r02_messages_that_the_kernel_has_taken_are_not_in_the_queue() -> None:
    rig = Rig(NATIVE, {"epoll": True, "max_queue_messages": 100})
    message = says(b"x" * 18)
    # A tick of many small messages, of which the kernel takes all but the last few.
    for number in range(200, 10_000, 40):
        wire = Wire(rig, send_buffer=4096)
        for _ in range(number):
            rig.core.send(wire.handle, message.payload)
        rig.core.flush()
        if rig.core.queued_bytes(wire.handle) or rig.events:
            break
    assert rig.take() == []
    assert 0 < rig.core.queued_bytes(wire.handle) <= 40 * 20
    while rig.core.queued_bytes(wire.handle):
        wire.read()
        rig.core.ready()
    assert wire.frames() == [message] * number
    rig.core.shutdown()


def test_r02_no_progress_for_ten_seconds() -> None:
    rig = Rig(NATIVE, {"epoll": True, "write_timeout": 10.0})
    stuck, reading = (Wire(rig, name, send_buffer=2304) for name in ("stuck", "reading"))
    for wire in (stuck, reading):
        rig.core.send(wire.handle, b"x" * 500_000)
    rig.turn()
    for _ in range(39):
        rig.wait(0.25)
        reading.read(3000)
        rig.core.ready()
    assert rig.take() == []
    rig.wait(0.25)
    assert rig.take() == [closed("stuck", CloseReason.SLOW_CONSUMER)]
    # The kernel says that there is room when there is much of it, so progress comes in steps.
    rig.wait(7.0)
    assert rig.take() == []
    rig.wait(3.0)
    assert rig.take() == [closed("reading", CloseReason.SLOW_CONSUMER)]
    rig.core.shutdown()


def test_f16_end_of_file(rig: Rig) -> None:
    wire = Wire(rig)
    wire.client.sendall(text("begun", fin=False))
    wire.client.shutdown(socket.SHUT_WR)
    serve(rig)
    while rig.core.count:
        serve(rig)
    assert rig.take() == [closed("a", CloseReason.CONNECTION_LOST, 1006)]
    assert wire.frames() == []
    assert wire.ended
    assert idle(rig)


def test_f16_messages_before_the_end_of_file_are_delivered(rig: Rig) -> None:
    wire = Wire(rig)
    wire.client.sendall(text("last words"))
    wire.client.close()
    while rig.core.count:
        serve(rig)
    assert rig.take() == [
        Message("a", b"last words", True),
        closed("a", CloseReason.CONNECTION_LOST, 1006),
    ]


@pytest.mark.parametrize("queued", [0, 500_000])
def test_f16_reset(rig: Rig, queued: int) -> None:
    wire = Wire(rig, tcp=True, send_buffer=4096)
    room = rig.core.open_room()
    rig.core.join(wire.handle, room)
    rig.core.send(wire.handle, b"x" * queued)
    rig.turn()
    assert bool(rig.core.queued_bytes(wire.handle)) == bool(queued)
    wire.reset()
    while rig.core.count:
        serve(rig)
    assert rig.take() == [closed("a", CloseReason.CONNECTION_LOST, 1006)]
    assert rig.core.member_count(room) == 0
    assert idle(rig)


def test_f16_a_peer_that_is_gone_while_we_send(rig: Rig) -> None:
    room = rig.core.open_room()
    wires = [Wire(rig, str(number)) for number in range(5)]
    for wire in wires:
        rig.core.join(wire.handle, room)
    wires[2].client.close()
    seen: list[int] = []

    def told(event: Event) -> None:
        assert isinstance(event, Closed)
        seen.append(sum(wire.read() > 0 for wire in wires if wire is not wires[2]))

    rig.hook = told
    rig.core.fan_out(room, b"news")
    rig.turn()
    assert rig.take() == [closed("2", CloseReason.CONNECTION_LOST, 1006)]
    assert seen == [4]
    assert rig.core.members(room) == ["0", "1", "3", "4"]


def test_close_handshake_begun_by_the_peer(rig: Rig) -> None:
    wire = Wire(rig, tcp=True)
    wire.client.sendall(close(1001, b"bye"))
    serve(rig)
    assert rig.take() == [closed("a", CloseReason.PEER_CLOSED, 1001)]
    assert wire.frames() == [ServerFrame(8, b"\x03\xe9")]
    assert wire.ended
    wire.client.close()
    serve(rig)
    assert idle(rig)
    assert rig.take() == []


def test_close_handshake_begun_by_us(rig: Rig) -> None:
    wire = Wire(rig, tcp=True)
    rig.core.close(wire.handle, CloseReason.GOING_AWAY)
    assert wire.frames() == [said(CloseReason.GOING_AWAY)]
    assert wire.ended
    # Our end of the socket is still there to take the answer, and goes when the peer is done.
    wire.client.sendall(text("late") + close(1001))
    serve(rig)
    wire.client.shutdown(socket.SHUT_WR)
    serve(rig)
    assert idle(rig)
    assert rig.take() == [closed("a", CloseReason.GOING_AWAY)]


def test_a_close_reaches_a_peer_that_was_still_sending(rig: Rig) -> None:
    # With input left unread the kernel would answer with a RST, which may destroy our Close.
    wire = Wire(rig, tcp=True)
    wire.client.sendall(b"\xff\xff" + bytes(300_000))
    while not rig.take():
        serve(rig)
    while not idle(rig):
        rig.core.ready()
    rig.wait(0.25)
    assert wire.frames() == [said(CloseReason.PROTOCOL_ERROR)]
    assert wire.ended
    wire.client.sendall(b"and more")
    wire.client.close()
    serve(rig)
    while not idle(rig):
        rig.core.ready()
    assert rig.take() == []


def test_a_closed_peer_that_never_ends_its_side_is_dropped_within_a_second(rig: Rig) -> None:
    wire = Wire(rig, tcp=True)
    rig.core.close(wire.handle, CloseReason.KICKED)
    rig.wait(1.0)
    assert wire.frames() == [said(CloseReason.KICKED)]
    # The socket is closed: what the peer still sends is answered with a reset.
    with suppress(ConnectionError):
        for _ in range(3):
            wire.client.send(b"x")
        pytest.fail("the socket is still there")


def test_a_close_frame_waits_behind_what_is_queued(rig: Rig) -> None:
    wire = Wire(rig, send_buffer=2304)
    rig.core.send(wire.handle, b"x" * 100_000)
    rig.core.close(wire.handle, CloseReason.SERVICE_RESTART)
    assert rig.take() == [closed("a", CloseReason.SERVICE_RESTART)]
    while not wire.ended:
        wire.read()
        if not idle(rig):
            rig.core.ready()
    assert wire.frames() == [says(b"x" * 100_000), said(CloseReason.SERVICE_RESTART)]


def test_300_sockets_readable_at_once(rig: Rig) -> None:
    wires = [Wire(rig, str(number)) for number in range(300)]
    echo(rig, wires)
    for wire in wires:
        wire.client.sendall(text(wire.owner) + ping(b"p"))
    calls = 0
    while not idle(rig):
        rig.core.ready()
        calls += 1
        assert calls < 100
    assert sorted(rig.take(), key=str) == sorted(
        [Message(wire.owner, wire.owner.encode(), True) for wire in wires], key=str
    )
    for wire in wires:
        assert wire.frames() == [says(wire.owner), ServerFrame(PONG, b"p")]
        wire.client.close()
    while rig.core.count:
        serve(rig)
    assert len(rig.take()) == 300


def test_more_sockets_than_one_wake_up_takes(rig: Rig) -> None:
    wires = [Wire(rig, str(number)) for number in range(700)]
    echo(rig, wires)
    for wire in wires:
        wire.client.sendall(text("x"))
    while not idle(rig):
        rig.core.ready()
    assert all(wire.frames() == [says("x")] for wire in wires)
    for wire in wires:
        wire.client.close()


def test_a_flood_does_not_starve_the_others(rig: Rig) -> None:
    flood = Wire(rig, "flood")
    others = [Wire(rig, str(number)) for number in range(40)]
    message, waiting = text("x" * 1000), {wire.owner for wire in others}

    def work(event: Event) -> None:
        assert isinstance(event, Message)
        waiting.discard(event.owner)
        # A handler that takes its time, so that one wake-up cannot serve everybody.
        until = time.perf_counter_ns() + 300_000
        while time.perf_counter_ns() < until:
            pass

    rig.hook = work
    calls = 0
    with suppress(BlockingIOError):
        flood.client.sendall(message * 300)
    for wire in others:
        wire.client.sendall(text("me too"))
    while waiting:
        with suppress(BlockingIOError):
            flood.client.send(message)
        rig.core.ready()
        calls += 1
        # Eight sockets at least are served in each call, and nobody twice before all had a turn.
        assert calls <= 6
    assert flood.alive()


def test_one_read_of_a_flood_is_bounded(rig: Rig) -> None:
    wire = Wire(rig, tcp=True)
    frame = text("x" * 100)
    with suppress(BlockingIOError):
        while True:
            wire.client.send(frame * 100)
    rig.core.ready()
    assert 0 < len(rig.take()) <= 65536 // len(frame) + 1


def test_a_wake_up_does_not_hold_the_loop_for_long(rig: Rig) -> None:
    wires = [Wire(rig, str(number)) for number in range(80)]

    def work(event: Event) -> None:
        until = time.perf_counter_ns() + 1_000_000
        while time.perf_counter_ns() < until:
            pass

    rig.hook = work
    for wire in wires:
        wire.client.sendall(text("x"))
    served = []
    while not idle(rig):
        rig.core.ready()
        served.append(len(rig.take()))
    # A few milliseconds in each call: some sockets, which are counted in eights.
    assert sum(served) == 80
    assert max(served) <= 16


@pytest.mark.parametrize("paused", [False, True])
def test_one_event_of_a_batch_ends_another(rig: Rig, paused: bool) -> None:
    wires = {str(number): Wire(rig, str(number)) for number in range(4)}
    newcomers: list[Wire] = []

    def end_the_others(event: Event) -> None:
        if isinstance(event, Message):
            for wire in wires.values():
                if wire.owner != event.owner:
                    rig.core.abort(wire.handle, CloseReason.KICKED)
                    # May get the descriptor and the place of the one that is gone.
                    newcomers.append(Wire(rig, f"new {wire.owner}", paused=paused))

    rig.hook = end_the_others
    for wire in wires.values():
        wire.client.sendall(text("me"))
        wire.client.close()
    rig.core.ready()
    events = rig.take()
    assert sum(isinstance(event, Message) for event in events) == 1
    assert set(by_owner(events)) == set(wires)
    rig.hook = None
    while not idle(rig):
        rig.core.ready()
    rig.take()
    assert sorted(rig.core.owners()) == sorted(wire.owner for wire in newcomers)
    for wire in newcomers:
        rig.core.resume(wire.handle)
        wire.client.sendall(text(wire.owner))
    while not idle(rig):
        rig.core.ready()
    assert set(by_owner(rig.take())) == {wire.owner for wire in newcomers}


def test_the_handle_of_a_connection_that_ended_while_it_was_adopted(rig: Rig) -> None:
    rig.hook = lambda event: (
        rig.core.abort(0, CloseReason.KICKED) if isinstance(event, Message) else None
    )
    gone = Wire(rig, "gone", early=text("x"))  # the first connection has the handle 0
    assert rig.take() == [Message("gone", b"x", True), closed("gone", CloseReason.KICKED)]
    rig.hook = None
    newcomer = Wire(rig, "newcomer")
    assert gone.handle != newcomer.handle
    assert rig.core.owner(gone.handle) is None


def test_shutdown_closes_sockets_and_the_set(rig: Rig) -> None:
    wires = [Wire(rig, "a"), Wire(rig, "b", paused=True), Wire(rig, "c")]
    rig.core.close(wires[2].handle, CloseReason.NORMAL)
    epoll_fd = rig.core.epoll_fd
    rig.core.shutdown()
    assert rig.core.epoll_fd == -1
    for wire in wires:
        wire.read()
        assert wire.ended
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(epoll_fd)
    rig.core.ready()
    rig.tick()
    left, right = socket.socketpair()
    with right, pytest.raises(ConnectionError):
        rig.core.adopt_socket(left.detach(), "late")


def test_a_core_that_is_dropped_closes_its_sockets() -> None:
    rig = Rig(NATIVE, {"epoll": True})
    wire = Wire(rig)
    client = wire.client
    epoll_fd = rig.core.epoll_fd
    del rig, wire
    gc.collect()
    assert client.recv(10) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(epoll_fd)


@pytest.mark.parametrize("why", ["full", "no epoll", "regular file", "bad"])
def test_a_descriptor_that_cannot_be_adopted_is_closed(why: str) -> None:
    rig = Rig(NATIVE, {"epoll": why != "no epoll", "max_connections": 1})
    room = rig.core.open_room()
    if why == "full":
        Wire(rig, "first")
    left, right = socket.socketpair()
    fd = left.detach()
    if why == "regular file":
        os.close(fd)
        fd = os.open(__file__, os.O_RDONLY)
    elif why == "bad":
        os.close(fd)
    events = len(rig.take())
    with right, pytest.raises(OSError):
        rig.core.adopt_socket(fd, "second")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert events == 0
    assert rig.take() == []
    assert rig.core.count == (why == "full")
    assert rig.core.broadcast(b"x") == (why == "full")
    assert rig.core.member_count(room) == 0
    rig.core.shutdown()


@pytest.mark.parametrize("more", [False, True])
def test_an_answer_leaves_before_anything_else(rig: Rig, more: bool) -> None:
    server, client = tcp_pair()
    Wire.clients.append(client)
    handle = rig.core.adopt_socket(server.detach(), "a", answer=b"HTTP/1.1 101\r\n\r\n", more=more)
    rig.core.send(handle, b"hello")
    rig.core.flush()
    client.settimeout(SOON)
    received = b""
    while len(received) < 16 + 7:
        received += client.recv(100)
    assert received == b"HTTP/1.1 101\r\n\r\n" + b"\x81\x05hello"


def test_an_answer_that_is_not_taken_is_the_end(rig: Rig) -> None:
    server, client = socket.socketpair()
    Wire.clients.append(client)
    fd = server.detach()
    with pytest.raises(ConnectionError, match="answer"):
        rig.core.adopt_socket(fd, "a", answer=bytes(50_000_000))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert rig.core.count == 0
    assert rig.take() == []


@pytest.mark.parametrize(
    ("family", "host", "peer"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_UNIX, None, ""),
    ],
)
def test_a_connection_is_accepted_with_what_it_said(
    tmp_path: Path, family: int, host: str | None, peer: str
) -> None:
    with socket.socket(family) as listener:
        listener.bind(str(tmp_path / "door") if host is None else (host, 0))
        listener.listen()
        listener.setblocking(False)
        assert accept(listener.fileno()) is None
        for said in (None, b"head", b""):
            with socket.socket(family) as client:
                client.connect(listener.getsockname())
                if said:
                    client.send(said)
                elif said is not None:
                    client.shutdown(socket.SHUT_WR)
                accepted = accept(listener.fileno())
                assert accepted is not None
                fd, address, octets = accepted
                assert (address, octets) == (peer, said)
                assert not os.get_blocking(fd)
                assert not os.get_inheritable(fd)
                os.close(fd)


def test_a_connection_that_was_reset_before_it_was_accepted() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        client = socket.create_connection(listener.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        before = len(os.listdir("/dev/fd"))
        with pytest.raises(ConnectionResetError):
            accept(listener.fileno())
        assert len(os.listdir("/dev/fd")) == before


def test_who_does_not_listen_accepts_nobody() -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(OSError, match="Invalid argument"):
        accept(left.fileno())


def test_h12_every_cut_between_what_came_early_and_what_came_later(rig: Rig) -> None:
    stream = text("first") + ping(b"p") + text("€uro", fin=False) + text("")[:0] + close(1000)
    for place in range(len(stream) + 1):
        wire = Wire(rig, early=stream[:place])
        for read in cut(stream[place:], [5]):
            wire.client.sendall(read)
        while wire.alive():
            serve(rig)
        assert rig.take() == [
            Message("a", b"first", True),
            closed("a", CloseReason.PEER_CLOSED, 1000),
        ]
        assert wire.frames() == [ServerFrame(PONG, b"p"), ServerFrame(8, b"\x03\xe8")]
        wire.client.close()
