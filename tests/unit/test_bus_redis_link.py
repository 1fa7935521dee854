"""What comes over a link: taken natively or by hiredis, whole or in slices, it is the same."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast._core import Sifter
from falcon_fast.bus import Target
from falcon_fast.bus import redis_link as link_module
from falcon_fast.bus.redis_link import Link
from falcon_fast.bus.redis_wire import CHANNELS, NODES, ROOMS, Writer
from falcon_fast.envelope import BROADCAST_TYPES

from ..support.fake_redis import encode

ROOM, OTHER = "group:" + "0" * 24, "group:" + "1" * 24
CHANNEL = CHANNELS[ROOMS]


class Socket:
    """A connection that has only just been made."""

    def __init__(self) -> None:
        self.transport = cast("asyncio.Transport", self)
        self.is_aborted = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Whoever calls feeds it by hand."""

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.is_aborted = True

    def release(self) -> None:
        """Nothing is held."""


class Record:
    """Of a node that was heard up to message 6."""

    def __init__(self) -> None:
        self.epoch = 1
        self.last = [6] * 4


class Ear:
    """A link, and what comes out of it: messages as (channel, payload), replies without numbers."""

    def __init__(self, *, split: bool) -> None:
        self.found: list[object] = []
        self.ends: list[str] = []
        self.sifter = Sifter(
            own=b"me",
            streams={channel: stream for stream, channel in enumerate(CHANNELS)},
            records={"ann": Record()},
            types=BROADCAST_TYPES,
            passed=lambda *found: self.found.append(found),
            left=lambda *found: self.found.append(found),
        )
        self.sifter.rooms = {ROOM}
        self.link = Link(
            Socket(),
            on_reply=self.take,
            on_end=self.ends.append,
            split=self.sifter.feed if split else None,
        )

    def take(self, reply: object) -> None:
        match reply:
            case [b"message" | b"smessage", bytes(channel), bytes(payload)] if channel in CHANNELS:
                self.sifter.take(channel, payload)
            case [kind, channel, bytes(payload)]:
                self.found.append((kind, channel, payload))
            case [kind, channel, _number]:
                self.found.append((kind, channel))
            case _:
                self.found.append(str(reply))

    def state(self) -> object:
        return self.found, self.ends, self.sifter.taken, self.sifter.unwanted


def message(seq: int, room: str = ROOM, rest: str = "") -> bytes:
    content = f'{{"type":"message","room":"{room}"{rest}}}'.encode()
    return Writer("ann", 1).message(
        seq, Target.ROOM, room, content, timestamp=b"2026-01-02T03:04:05.123456Z"
    )


payloads = (
    st.builds(message, st.integers(6, 9), st.sampled_from([ROOM, OTHER]))
    | st.just(message(7, rest=',"data": {}'))
    | st.binary(max_size=40)
)
replies: st.SearchStrategy[object] = st.one_of(
    st.tuples(
        st.sampled_from([b"message", b"smessage", b"message", b"pmessage"]),
        st.sampled_from([CHANNEL, CHANNEL, CHANNELS[2], NODES, b"", b"x" * 600]),
        payloads,
    ).map(list),
    st.tuples(
        st.sampled_from([b"subscribe", b"sunsubscribe"]), st.just(NODES), st.integers(0, 1000)
    ).map(list),
)
others: st.SearchStrategy[bytes] = st.one_of(
    st.sampled_from(
        [
            b"-MOVED 1 127.0.0.1:7000\r\n",
            b"+OK\r\n",
            b":7\r\n",
            b"$3\r\nabc\r\n",
            b"*3\r\n$12\r\nsunsubscribe\r\n$-1\r\n:0\r\n",
            b"*3\r\n$7\r\nmessage\r\n$15\r\nwebsocket:rooms\r\n$-1\r\n",
            b"*2\r\n$4\r\npong\r\n$0\r\n\r\n",
            b"*0\r\n",
            b"*3\r\n$7\r\nmessage\r\n$15\r\nwebsocket:rooms\r\n$1000000000\r\n",
            b"*3\r\n$3x\r\n",
            b"*3\r\n$\r\n",
            b"*3\r\n$2\r\nabc\r\n",
            b"*3\r\n$1\r\na\r\n$1\r\nb\r\n:\r\n",
            b"*3\r\n$1\r\na\r\n$1\r\nb\r\n:1x\r\n",
            b"*3\r\n$1\r\na\r\n$1\r\nb\r\n:1\rx",
            b"*4\r\n",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
        ]
    ),
    st.binary(max_size=12),
)


@settings(max_examples=300)
@given(
    st.lists(replies.map(encode) | replies.map(encode) | others, max_size=12).map(b"".join),
    st.lists(st.integers(1, 80), min_size=1),
)
def test_it_makes_no_difference_who_takes_replies_apart(stream: bytes, slices: list[int]) -> None:
    apart, whole = Ear(split=True), Ear(split=False)
    at = turn = 0
    while at < len(stream):
        size = slices[turn % len(slices)]
        turn += 1
        for ear in (apart, whole):
            if not ear.ends:
                ear.link.data_received(stream[at : at + size])
        at += size
    assert apart.found == whole.found
    assert apart.state() == whole.state()
    assert apart.link.octets_in == whole.link.octets_in


def test_messages_in_one_piece_and_octet_by_octet() -> None:
    stream = b"".join(
        encode([b"message", CHANNEL, payload])
        for payload in (message(7), message(8, OTHER), message(10), b"{}")
    )
    for size in (len(stream), 1):
        ear = Ear(split=True)
        for at in range(0, len(stream), size):
            ear.link.data_received(stream[at : at + size])
        first, third, last = ear.found
        assert isinstance(first, tuple)
        assert first[:2] == (CHANNEL, ROOM)
        assert isinstance(third, tuple)
        assert third[:2] == (CHANNEL, message(10))
        assert last == (CHANNEL, b"{}", None)
        assert (ear.sifter.taken, ear.sifter.unwanted) == (2, 1)


def test_a_long_message_is_looked_at_when_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = Ear(split=True)
    looked: list[int] = []
    feed = ear.link._split
    assert feed is not None

    def split(data: bytes, on_reply: link_module.Replies) -> tuple[int, int]:
        looked.append(len(data))
        return feed(data, on_reply)

    ear.link._split = split
    stream = encode([b"message", CHANNEL, b"x" * 1_000_000])
    for at in range(0, len(stream), 1_000):
        ear.link.data_received(stream[at : at + 1_000])
    assert len(ear.found) == 1
    assert len(looked) == 2


def test_a_message_beyond_the_limit_ends_the_link_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_UNREAD", 10_000)
    ear = Ear(split=True)
    ear.link.data_received(encode([b"message", CHANNEL, b"x" * 10_001])[:100])
    assert ear.ends == ["a reply is too large"]


@pytest.mark.parametrize("which", [0, 1])
def test_an_endless_name_of_a_channel_ends_the_link(
    monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    monkeypatch.setattr(link_module, "MAX_UNREAD", 50_000)
    parts = [b"message", CHANNEL, b"x"]
    parts[which] = b"x" * 1_000_000
    stream = encode([*parts])
    ear = Ear(split=True)
    for at in range(0, 200_000, 10_000):
        if not ear.ends:
            ear.link.data_received(stream[at : at + 10_000])
    assert ear.ends == ["a reply is too large"]
