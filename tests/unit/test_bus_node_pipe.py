"""The pipe between node process and worker: frames in, frames out, and ends that do not read."""

from __future__ import annotations

import asyncio
import logging

import pytest

from falcon_fast.bus import node_pipe
from falcon_fast.bus.node_pipe import GATHER, LOOK, STALL, Pipe
from falcon_fast.bus.node_wire import HEAD, MAX_BODY, Kind, frame, write_room

from ..support.loop import FakeTimeLoop, turns
from ..support.pipe import End, join

loop_factory = FakeTimeLoop


class Far:
    """A pipe with what it has heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, bytes]] = []
        self.rooms: list[tuple[str, bytes, bytes | None]] = []
        self.ends: list[str] = []
        self.pipe = Pipe(
            on_room=lambda *message: self.rooms.append(message),
            on_frame=lambda kind, body: self.heard.append((kind, body)),
            on_end=self.ends.append,
            keeps_frames=True,
        )


def pair() -> tuple[Far, Far, End, End]:
    one, other = Far(), Far()
    return one, other, *join(one.pipe, other.pipe)


async def test_frames_of_one_turn_leave_in_one_write_and_arrive_in_order() -> None:
    one, other, near, _ = pair()
    for number in range(100):
        one.pipe.send(frame(Kind.NOTE, b"%d" % number))
    await turns()
    assert other.heard == [(Kind.NOTE, b"%d" % number) for number in range(100)]
    assert len(near.writes) == 1


async def test_what_is_said_again_and_again_leaves_together_and_soon() -> None:
    one, other, near, _ = pair()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(5):
        one.pipe.send(frame(Kind.NOTE, b"%d" % number))
        await turns()
    assert [body for _, body in other.heard] == [b"0"]  # at once, after a silence
    await asyncio.sleep(GATHER)
    await turns()
    assert [body for _, body in other.heard] == [b"%d" % number for number in range(5)]
    assert len(near.writes) == 2
    assert loop.time() <= began + 2 * GATHER
    await asyncio.sleep(2 * GATHER)
    one.pipe.send(frame(Kind.NOTE, b"5"))
    await turns()
    assert [body for _, body in other.heard][5:] == [b"5"]


async def test_what_is_gathered_when_it_is_closed_is_sent() -> None:
    one, other, _, _ = pair()
    for body in (b"at once", b"gathered"):
        one.pipe.send(frame(Kind.NOTE, body))
        await turns()
    one.pipe.close()
    await asyncio.sleep(2 * GATHER)  # the timer of the gathering finds nothing to do
    assert [body for _, body in other.heard] == [b"at once", b"gathered"]
    assert one.ends == ["this end has closed it"]


async def test_messages_to_rooms_arrive_between_all_else_in_order() -> None:
    one, other, near, _ = pair()
    message = write_room("group:a", b"{}")
    one.pipe.send(message)
    one.pipe.send(frame(Kind.NOTE, b"between"))
    one.pipe.send(write_room("group:b", b""))
    await turns()
    assert len(near.writes) == 1
    assert other.rooms == [
        ("group:a", b"{}", message),
        ("group:b", b"", write_room("group:b", b"")),
    ]
    assert other.heard == [(Kind.NOTE, b"between")]
    with pytest.raises(ValueError, match="octets"):
        write_room("group:a", b"x" * MAX_BODY)


async def test_nothing_more_is_handed_over_once_it_was_ended() -> None:
    one, far = Far(), Far()
    heard: list[bytes] = []

    def hear(kind: int, body: bytes) -> None:
        heard.append(body)
        ended.end("enough")

    ended = Pipe(on_room=lambda *_: None, on_frame=hear, on_end=far.ends.append)
    join(one.pipe, ended)
    one.pipe.send(frame(Kind.NOTE, b"first") + frame(Kind.NOTE, b"second"))
    await turns()
    assert (heard, far.ends) == ([b"first"], ["enough"])


async def test_what_is_sent_before_there_is_a_transport_is_sent_then() -> None:
    one, other = Far(), Far()
    one.pipe.send(frame(Kind.NOTE, b"early"))
    await turns()
    join(one.pipe, other.pipe)
    await turns()
    assert other.heard == [(Kind.NOTE, b"early")]


async def test_frames_arrive_whatever_the_size_of_the_reads() -> None:
    one, other, near, _ = pair()
    near.stalled = True
    bodies = [b"", b"x" * 10, b"y" * 700_000, b"z", b"w" * 300_000]
    for body in bodies:
        one.pipe.send(frame(Kind.NOTE, body))
    await turns()
    for size in (1, 3, 1, 7, 2, 65_536, 100):
        near.move(size)
    near.stalled = False
    near.move()
    assert [body for _, body in other.heard] == bodies


async def test_a_frame_that_cannot_be_handled_ends_the_pipe(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, far = Far(), Far()

    def fail(kind: int, body: bytes) -> None:
        raise ValueError("no such kind")

    broken = Pipe(on_room=lambda *_: None, on_frame=fail, on_end=far.ends.append)
    join(one.pipe, broken)
    one.pipe.send(frame(Kind.NOTE, b"") * 3)
    await turns()
    assert far.ends == ["it sent what cannot be handled"]
    assert one.ends == ["the other end has closed it"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    one.pipe.send(frame(Kind.NOTE, b""))  # nobody is there, and it is no error
    await turns()


async def test_a_frame_above_the_limit_ends_the_pipe() -> None:
    one, other, near, _ = pair()
    near.write(HEAD.pack(MAX_BODY + 1, Kind.NOTE))
    await turns()
    assert other.ends == ["it sent what cannot be handled"]
    with pytest.raises(ValueError, match="octets"):
        frame(Kind.NOTE, b"x" * (MAX_BODY + 1))
    assert one.ends


async def test_an_end_that_takes_nothing_is_given_up() -> None:
    one, _, near, _ = pair()
    near.stalled = True
    one.pipe.send(frame(Kind.NOTE, b"x" * 100))
    await asyncio.sleep(STALL - 2 * LOOK)
    near.move(1)  # slow, but alive
    await asyncio.sleep(STALL - 2 * LOOK)
    assert one.ends == []
    await asyncio.sleep(4 * LOOK)
    assert one.ends == ["it takes nothing of what is sent to it"]


async def test_an_idle_end_is_not_given_up() -> None:
    one, other, near, _ = pair()
    await asyncio.sleep(3 * STALL)
    near.stalled = True
    one.pipe.send(frame(Kind.NOTE, b"x"))
    await asyncio.sleep(STALL / 2)
    near.stalled = False
    near.move()
    await asyncio.sleep(3 * STALL)
    assert (one.ends, other.ends) == ([], [])
    assert other.heard == [(Kind.NOTE, b"x")]


async def test_too_much_that_waits_ends_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_pipe, "MAX_WAITING", 1000)
    one, _, near, _ = pair()
    near.stalled = True
    one.pipe.send(frame(Kind.NOTE, b"x" * 900))
    await turns()
    assert one.ends == []
    one.pipe.send(frame(Kind.NOTE, b"x" * 200))
    await asyncio.sleep(GATHER)
    await turns()
    assert one.ends == ["it takes too little of what is sent to it"]


async def test_close_sends_what_waits_first() -> None:
    one, other, near, _ = pair()
    near.stalled = True
    one.pipe.send(frame(Kind.NOTE, b"last words"))
    one.pipe.close()
    await turns()
    assert one.ends == []
    near.stalled = False
    near.move()
    await turns()
    assert other.heard == [(Kind.NOTE, b"last words")]
    assert one.ends == ["this end has closed it"]
    one.pipe.close()
    one.pipe.end("nothing is left to end")


async def test_drained_waits_for_the_other_end_but_not_for_ever() -> None:
    one, other, near, _ = pair()
    loop = asyncio.get_running_loop()
    one.pipe.send(frame(Kind.NOTE, b"1"))
    near.stalled = True
    began = loop.time()
    await one.pipe.drained(2.0)
    assert loop.time() == pytest.approx(began + 2.0)
    waiting = asyncio.ensure_future(one.pipe.drained(2.0))
    await turns()
    assert not waiting.done()
    near.stalled = False
    near.move()
    await waiting
    assert loop.time() < began + 2.1
    assert other.heard == [(Kind.NOTE, b"1")]
    await one.pipe.drained(2.0)  # nothing waits
    near.stalled = True
    one.pipe.send(frame(Kind.NOTE, b"2"))
    waiting = asyncio.ensure_future(one.pipe.drained(2.0))
    await turns()
    one.pipe.end("over")
    await waiting
    assert one.ends == ["over"]


async def test_whoever_stood_still_itself_gives_up_nobody() -> None:
    one, _, near, _ = pair()
    near.stalled = True
    one.pipe.send(frame(Kind.NOTE, b"x" * 100))
    await asyncio.sleep(2 * LOOK)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    loop.clock.advance(2 * STALL)
    await asyncio.sleep(STALL / 2)
    assert one.ends == []
    await asyncio.sleep(STALL)
    assert one.ends == ["it takes nothing of what is sent to it"]
