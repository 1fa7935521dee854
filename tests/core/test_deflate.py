"""Compressed messages, in and out: permessage-deflate without context takeover (RFC 7692)."""

from __future__ import annotations

import gc
import os
import random
import socket
import string
import zlib
from collections.abc import Iterator

import pytest

from falcon_fast._core import ZLIB_VERSION
from falcon_fast.codes import CloseReason

from ..model.core import MEMORY_LEVEL
from ..support.core import CoreFactory, Message, Peer, Rig, closed, said
from ..support.deflate import (
    deflated,
    deflated_final,
    inflated,
    packed_binary,
    packed_text,
    plain,
)
from ..support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    ServerFrame,
    client_frame,
    more,
    ping,
    says,
    server_frames,
    text,
)
from ..support.growth import LINEAR, growth
from ..support.transport import FakeTransport
from .conftest import NATIVE

WINDOWS = range(9, 16)

NEWS = b'{"type":"message","data":{"text":"' + b"all is well " * 60 + b'"}}'
"""Something that is worth compressing."""

NOISE = bytes(random.Random(7).choices(string.printable.encode(), k=600))
"""Something that compresses a little."""

LIMIT = 65_536


def hears(content: str | bytes, *, is_text: bool = True) -> Message:
    return Message("a", content.encode() if isinstance(content, str) else content, is_text)


# What goes out.


@pytest.mark.parametrize("window", WINDOWS)
def test_a_message_is_compressed_for_who_agreed_to_it(rig: Rig, window: int) -> None:
    peer, other = rig.connect(deflate=window), rig.connect("b")
    for receiver in (peer, other):
        rig.core.send(receiver.handle, NEWS)
    rig.turn()
    (frame,) = peer.frames()
    assert frame.compressed
    assert len(frame.payload) < len(NEWS) / 4
    # It can be inflated with the window that was agreed on.
    assert plain(frame, window=window) == says(NEWS)
    assert other.frames() == [says(NEWS)]


@pytest.mark.parametrize("window", WINDOWS)
def test_the_window_is_kept_where_a_larger_one_would_help(rig: Rig, window: int) -> None:
    distant = os.urandom(1 << window)
    peer = rig.connect(deflate=window)
    rig.core.send(peer.handle, distant * 3 + bytes(20_000), binary=True)
    rig.turn()
    (frame,) = peer.frames()
    assert frame.compressed
    assert plain(frame, window=window) == ServerFrame(BINARY, distant * 3 + bytes(20_000))


@pytest.mark.parametrize("window", [-15, 1, 8, 16, 255, 1 << 20])
def test_other_windows_are_refused(make: CoreFactory, window: int) -> None:
    rig = Rig(make)
    with pytest.raises(ValueError):
        rig.connect(deflate=window)
    assert rig.core.count == 0


@pytest.mark.parametrize("window", [-15, 8, 16])
def test_a_socket_with_another_window_is_refused_and_closed(window: int) -> None:
    rig = Rig(NATIVE, {"epoll": True})
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(ValueError):
            rig.core.adopt_socket(ours.detach(), "a", deflate=window)
        assert theirs.recv(1) == b""
    assert rig.core.count == 0
    rig.core.shutdown()


@pytest.mark.parametrize("level", [0, 10, -1])
def test_levels_that_zlib_does_not_know(level: int) -> None:
    with pytest.raises(ValueError):
        Rig(NATIVE, {"deflate_level": level})


def test_a_higher_level_makes_it_smaller() -> None:
    # Text with repetitions near and far, so that looking longer finds more.
    words = [bytes([97 + a, 97 + b, 97 + a]) for a in range(20) for b in range(20)]
    message = b" ".join(random.Random(3).choices(words, k=8_000))
    sizes = []
    for level in (1, 9):
        rig = Rig(NATIVE, {"deflate_level": level})
        peer = rig.connect(deflate=15)
        rig.core.send(peer.handle, message)
        rig.turn()
        (frame,) = peer.frames()
        assert plain(frame) == says(message)
        sizes.append(len(frame.payload))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_short_messages_go_out_as_they_are(rig: Rig, size: int) -> None:
    peer = rig.connect(deflate=15)
    rig.core.send(peer.handle, b"s" * size)
    rig.turn()
    (frame,) = peer.frames()
    assert frame.compressed == (size >= 512)
    assert plain(frame) == says(b"s" * size)
    assert rig.core.compressions == (size >= 512)


@pytest.mark.parametrize("least", [0, 1, 20])
def test_the_threshold_is_the_one_that_was_given(make: CoreFactory, least: int) -> None:
    rig = Rig(make, {"deflate_min_bytes": least})
    peer = rig.connect(deflate=15)
    for size in range(0, 200, 10):
        rig.core.send(peer.handle, b"s" * size)
    rig.turn()
    frames = peer.frames()
    assert [plain(frame) for frame in frames] == [says(b"s" * size) for size in range(0, 200, 10)]
    assert [frame.compressed for frame in frames] == [
        size >= max(least, 10) for size in range(0, 200, 10)
    ]


def test_what_does_not_get_smaller_goes_out_as_it_is(rig: Rig) -> None:
    noise = os.urandom(600)
    peer = rig.connect(deflate=15)
    rig.core.send(peer.handle, noise, binary=True)
    rig.turn()
    assert peer.frames() == [ServerFrame(BINARY, noise)]
    assert (rig.core.compressions, rig.core.compressed_deliveries) == (1, 0)
    assert rig.core.compression_in == rig.core.compression_out == 600


def test_one_octet_less_is_smaller(make: CoreFactory) -> None:
    """Random messages around the point where compression begins to pay: never a longer one."""
    rig = Rig(make, {"deflate_min_bytes": 1})
    peer, window = rig.connect(deflate=15), 0
    draw = random.Random(11)
    kinds = set()
    for _ in range(400):
        message = bytes(draw.choices(b"abcdefgh", k=draw.randrange(40)))
        best = deflated(message, level=6, memory=MEMORY_LEVEL)
        rig.core.send(peer.handle, message)
        rig.turn()
        (frame,) = peer.frames()
        assert plain(frame) == says(message)
        if ZLIB_VERSION == zlib.ZLIB_RUNTIME_VERSION:
            assert frame.compressed == (len(best) < len(message))
        kinds.add(len(best) - len(message))
        window += 1
    assert {-1, 0, 1} <= kinds


def test_control_frames_are_never_compressed(make: CoreFactory) -> None:
    rig = Rig(make, {"deflate_min_bytes": 1, "ping_interval": 1.0, "ping_timeout": 9.0})
    peer = rig.connect(deflate=15)
    rig.wait(1.25)
    peer.feed(ping(b"p" * 125))
    rig.core.close(peer.handle, CloseReason.KICKED)
    frames = peer.frames()
    assert {frame.opcode for frame in frames} == {PING, PONG, CLOSE}
    assert not any(frame.compressed for frame in frames)
    assert frames[-1] == said(CloseReason.KICKED)
    assert rig.core.compressions == 0


@pytest.mark.parametrize("members", [1, 2, 500])
def test_d09_one_compression_a_message_whatever_the_number_of_members(
    make: CoreFactory, members: int
) -> None:
    rig = Rig(make)
    room = rig.core.open_room()
    peers = [rig.connect(str(number), deflate=15) for number in range(members)]
    bystander = rig.connect("plain")
    for peer in [*peers, bystander]:
        rig.core.join(peer.handle, room)
    rig.core.fan_out(room, NEWS)
    rig.core.fan_out(room, b"short")
    rig.core.broadcast(NEWS)
    rig.turn()
    assert rig.core.compressions == 2
    assert rig.core.compressed_deliveries == 2 * members
    heard = [peer.frames() for peer in peers]
    assert heard == [heard[0]] * members
    assert [plain(frame) for frame in heard[0]] == [says(NEWS), says("short"), says(NEWS)]
    assert [frame.compressed for frame in heard[0]] == [True, False, True]
    assert bystander.frames() == [says(NEWS), says("short"), says(NEWS)]
    assert [peer.transport.writes for peer in peers] == [1] * members


def test_d09_nothing_is_compressed_for_nobody(rig: Rig) -> None:
    room = rig.core.open_room()
    peer, other = rig.connect(deflate=15), rig.connect("b")
    rig.core.join(other.handle, room)
    rig.core.fan_out(room, NEWS)
    rig.turn()
    assert rig.core.compressions == 0
    assert (peer.frames(), other.frames()) == ([], [says(NEWS)])


def test_d09_each_window_in_use_has_one_of_its_own(rig: Rig) -> None:
    room = rig.core.open_room()
    peers = {
        window: [rig.connect(f"{window} {n}", deflate=window) for n in range(3)]
        for window in [0, *WINDOWS]
    }
    for some in peers.values():
        for peer in some:
            rig.core.join(peer.handle, room)
    for number in range(1, 4):
        rig.core.fan_out(room, NEWS)
        rig.turn()
        assert rig.core.compressions == number * len(WINDOWS)
    for window in WINDOWS:
        for peer in peers[window]:
            assert [plain(f, window=window) for f in peer.frames()] == [says(NEWS)] * 3
    assert [peer.frames() for peer in peers[0]] == [[says(NEWS)] * 3] * 3


def test_d09_rooms_private_words_and_variants_keep_their_order(rig: Rig) -> None:
    rooms = [rig.core.open_room() for _ in range(3)]
    peers = [rig.connect(str(n), deflate=(0, 15, 10)[n % 3]) for n in range(12)]
    due: list[list[bytes]] = [[] for _ in peers]
    for n, peer in enumerate(peers):
        for room in range(3):
            if n >> room & 1:
                rig.core.join(peer.handle, rooms[room])
    for step in range(24):
        message = f"{step} ".encode() + NEWS * (step % 4 > 0)
        room = step % 3
        rig.core.fan_out(rooms[room], message)
        for n in range(12):
            if n >> room & 1:
                due[n].append(message)
        if step % 5 == 0:
            rig.core.send(peers[step % 12].handle, message)
            due[step % 12].append(message)
        if step % 7 == 0:
            # Who leaves hears what was said before, who joins does not.
            rig.core.leave(peers[7].handle, rooms[0])
            rig.core.join(peers[7].handle, rooms[0])
    rig.turn()
    for n, peer in enumerate(peers):
        window = (15, 15, 10)[n % 3]
        assert [plain(f, window=window) for f in peer.frames()] == [says(m) for m in due[n]]
    # 18 long ones for two windows, early or not, and two long ones of those for a single peer.
    assert rig.core.compressions == 2 * 18 + 2


def test_a_slow_peer_s_queue_holds_what_was_compressed(make: CoreFactory) -> None:
    rig = Rig(make, {"max_queue_bytes": 2 * len(NEWS)})
    peer = rig.connect(deflate=15, transport=FakeTransport(high=0))
    peer.transport.stall()
    for _ in range(8):  # as it is, the third in the queue would be too much
        rig.core.send(peer.handle, NEWS)
        rig.turn()
    assert peer.alive()
    assert 0 < rig.core.queued_bytes(peer.handle) < len(NEWS)
    peer.transport.drain()
    assert [plain(frame) for frame in peer.frames()] == [says(NEWS)] * 8


def test_more_than_a_mebibyte_in_one_tick(rig: Rig) -> None:
    peer, other = rig.connect(deflate=15), rig.connect("b")
    large = NOISE * 1_000
    for receiver in (peer, other):
        for _ in range(4):
            rig.core.send(receiver.handle, large)
    rig.turn()
    assert [plain(frame) for frame in peer.frames()] == [says(large)] * 4
    assert other.frames() == [says(large)] * 4


def test_counters_of_what_goes_out(rig: Rig) -> None:
    peer = rig.connect(deflate=15)
    rig.connect("b", deflate=9)
    rig.connect("c")
    assert rig.core.deflating == 2
    rig.core.broadcast(NEWS)
    rig.turn()
    (frame,) = peer.frames()
    assert rig.core.compressions == 2
    assert rig.core.compression_in == 2 * len(NEWS)
    assert 2 * len(frame.payload) <= rig.core.compression_out < len(NEWS)
    assert rig.core.compressed_deliveries == 2
    assert rig.core.deliveries == 3
    rig.core.close(peer.handle, CloseReason.KICKED)
    assert rig.core.deflating == 1


def test_a_slot_s_next_connection_has_its_own_variant(make: CoreFactory) -> None:
    rig = Rig(make, {"max_connections": 1})
    for window in (15, 0, 9, 0):
        peer = rig.connect(deflate=window)
        rig.core.send(peer.handle, NEWS)
        rig.turn()
        (frame,) = peer.frames()
        assert frame.compressed == (window > 0)
        rig.core.abort(peer.handle, CloseReason.KICKED)
        rig.turn()


# What comes in.


def messages() -> Iterator[bytes]:
    yield from (b"", b"a", "grüße €".encode(), NEWS, b"x" * LIMIT)


@pytest.mark.parametrize("message", list(messages()), ids=len)
@pytest.mark.parametrize("size", [None, 1, 2, 1000])
def test_a_compressed_message_is_inflated(rig: Rig, message: bytes, size: int | None) -> None:
    peer = rig.connect(deflate=9)  # a client may use the largest window, whatever ours is
    data = deflated(message)
    if size is None:
        peer.feed(packed_text(message))
    else:
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        if len(pieces) > 120:
            pytest.skip("more fragments than are allowed")
        peer.feed(client_frame(TEXT, pieces[0], fin=len(pieces) == 1, rsv=4))
        for at, piece in enumerate(pieces[1:], 2):
            peer.feed(ping(b"between"), more(piece, fin=at == len(pieces)))
    assert rig.take() == [hears(message)]
    assert peer.alive()
    assert rig.core.inflations == 1
    assert (rig.core.inflation_in, rig.core.inflation_out) == (len(data), len(message))


@pytest.mark.parametrize("level", [0, 1, 9])
def test_random_messages_are_inflated(rig: Rig, level: int) -> None:
    peer = rig.connect(deflate=15)
    draw = random.Random(5)
    for size in (1, 125, 126, 5_000, LIMIT - 1, LIMIT):
        message = draw.randbytes(size)
        # What does not compress is longer than the limit on the wire, and allowed all the same.
        peer.feed(client_frame(BINARY, deflated(message, level=level), rsv=4))
        assert rig.take() == [hears(message, is_text=False)]


def test_compressed_and_other_messages_may_alternate(rig: Rig) -> None:
    peer = rig.connect(deflate=15)
    peer.feed(packed_text("1") + text("2") + packed_binary(b"3") + text("4"))
    assert rig.take() == [hears("1"), hears("2"), hears(b"3", is_text=False), hears("4")]


def test_early_input_may_be_compressed(rig: Rig) -> None:
    peer = rig.connect(early=packed_text("early"), paused=True, deflate=15)
    rig.core.resume(peer.handle)
    assert rig.take() == [hears("early")]


def test_an_empty_message_may_be_empty_on_the_wire(rig: Rig) -> None:
    """Section 7.2.3.6 wants one octet, which some senders leave out."""
    peer = rig.connect(deflate=15)
    peer.feed(client_frame(TEXT, b"\x00", rsv=4) + client_frame(TEXT, b"", rsv=4))
    assert rig.take() == [hears(""), hears("")]


@pytest.mark.parametrize(
    ("deflate", "frames", "delivered"),
    [
        (0, [packed_text("x")], 0),
        (0, [client_frame(TEXT, b"x", rsv=4)], 0),
        (15, [packed_text("x", fin=False), client_frame(CONTINUATION, b"", rsv=4)], 0),
        (15, [text("x", fin=False), client_frame(CONTINUATION, b"x", rsv=4)], 0),
        (15, [client_frame(PING, b"x", rsv=4)], 0),
        (15, [client_frame(PONG, b"x", rsv=4)], 0),
        (15, [client_frame(CLOSE, b"\x03\xe8", rsv=4)], 0),
        (15, [packed_text("x"), client_frame(TEXT, deflated(b"x"), rsv=6)], 1),
        (15, [client_frame(TEXT, deflated(b"x"), rsv=5)], 0),
        (15, [client_frame(TEXT, deflated(b"x"), rsv=2)], 0),
        (15, [client_frame(TEXT, deflated(b"x"), rsv=1)], 0),
        (15, [client_frame(3, deflated(b"x"), rsv=4)], 0),
        (15, [client_frame(TEXT, deflated(b"x"), rsv=4, mask=None)], 0),
    ],
)
@pytest.mark.parametrize("dribbled", [False, True])
def test_d02_f01_reserved_bits(
    rig: Rig, deflate: int, frames: list[bytes], delivered: int, dribbled: bool
) -> None:
    peer = rig.connect(deflate=deflate)
    stream = b"".join(frames)
    peer.feed(*([stream[at : at + 1] for at in range(len(stream))] if dribbled else [stream]))
    assert rig.take() == [*[hears("x")] * delivered, closed("a", CloseReason.PROTOCOL_ERROR)]
    assert peer.frames() == [said(CloseReason.PROTOCOL_ERROR)]


BOMB = deflated(bytes(64 << 20))
"""64 KiB that become 64 MiB."""


def test_d03_a_bomb_stops_at_the_limit(rig: Rig) -> None:
    assert len(BOMB) < LIMIT
    for number in range(20):
        peer = rig.connect(deflate=15)
        peer.feed(client_frame(BINARY, BOMB, rsv=4))
        assert rig.take() == [closed("a", CloseReason.MESSAGE_TOO_BIG)]
        assert peer.frames() == [said(CloseReason.MESSAGE_TOO_BIG)]
        assert rig.core.inflations == number + 1
    assert rig.core.inflation_out == 0


@pytest.mark.parametrize("limit", [128, 1_000, 4_096, 5_000, LIMIT, 300_000])
def test_d03_the_limit_is_met_to_the_octet(make: CoreFactory, limit: int) -> None:
    rig = Rig(make, {"max_message_bytes": limit})
    for character in (b"z", None):
        peer = rig.connect(deflate=15)
        for size in (limit - 1, limit, limit + 1):
            message = os.urandom(size) if character is None else character * size
            peer.feed(packed_binary(message))
            if size <= limit:
                assert rig.take() == [hears(message, is_text=False)]
        assert rig.take() == [closed("a", CloseReason.MESSAGE_TOO_BIG)]


def test_d04_a_bomb_in_fragments(rig: Rig) -> None:
    peer = rig.connect(deflate=15)
    pieces = [BOMB[at : at + 1_000] for at in range(0, len(BOMB), 1_000)]
    peer.feed(client_frame(BINARY, pieces[0], fin=False, rsv=4))
    for piece in pieces[1:-1]:
        peer.feed(more(piece))
    assert rig.take() == []
    peer.feed(more(pieces[-1], fin=True))
    assert rig.take() == [closed("a", CloseReason.MESSAGE_TOO_BIG)]


def test_d04_fragments_that_are_more_than_any_message_can_need(rig: Rig) -> None:
    """What arrives is bounded, too: to what a message of full size has at the most."""
    peer = rig.connect(deflate=15)
    peer.feed(client_frame(BINARY, bytes(LIMIT), fin=False, rsv=4))
    peer.feed(more(bytes(LIMIT // 8 + 64)))
    assert rig.take() == []
    peer.feed(client_frame(CONTINUATION, declared=1))
    assert rig.take() == [closed("a", CloseReason.MESSAGE_TOO_BIG)]
    peer = rig.connect(deflate=15)
    peer.feed(client_frame(BINARY, declared=LIMIT + LIMIT // 8 + 65, rsv=4))
    assert rig.take() == [closed("a", CloseReason.MESSAGE_TOO_BIG)]
    peer = rig.connect(deflate=15)
    peer.feed(client_frame(BINARY, declared=LIMIT + 1))
    assert rig.take() == [closed("a", CloseReason.MESSAGE_TOO_BIG)]


STORED = b"\x00\x05\x00\xfa\xffhello"
FIXED = deflated(b"hello")
DYNAMIC = deflated(NEWS * 3 + NOISE)


def reaching() -> bytes:
    """Compress a message that refers to the one before it, which was agreed not to happen."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = compressor.compress(NEWS) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert first
    return (compressor.compress(NEWS) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


REACHING = reaching()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"\x07",  # a kind of block that there is not
        b"\x00\x05\x00\xfa\xfehello\x00",  # lengths that do not match
        STORED,  # without the first octet of the empty block at its end
        STORED[:-1],
        b"\x02",  # a block without its end
        FIXED[:-3],
        DYNAMIC[:10],
        DYNAMIC[: len(DYNAMIC) // 2],
        DYNAMIC[:-2],
        FIXED + b"\x00\x00\xff\xff",  # with the end that is not sent
        FIXED + b"\x00",
        FIXED + b"\xff",
        REACHING,
        deflated_final(b"hello") + b"\xff",
        zlib.compress(b"hello"),  # zlib's own format
    ],
    ids=lambda data: data.hex()[:20],
)
def test_d05_what_is_corrupt_closes(rig: Rig, data: bytes) -> None:
    peer = rig.connect(deflate=15)
    peer.feed(packed_text("before") + client_frame(TEXT, data, rsv=4) + text("after"))
    assert rig.take() == [hears("before"), closed("a", CloseReason.INVALID_PAYLOAD)]
    assert peer.frames() == [said(CloseReason.INVALID_PAYLOAD)]
    # What inflated it is shared, and right again for the next.
    other = rig.connect(deflate=15)
    other.feed(packed_text(NEWS))
    assert rig.take() == [hears(NEWS)]


@pytest.mark.parametrize("content", [b"\xff", b"a\xe2\x82", b"\xed\xa0\x80", NEWS + b"\xc0\x80"])
def test_d05_f12_text_is_checked_when_it_is_inflated(rig: Rig, content: bytes) -> None:
    peer = rig.connect(deflate=15)
    peer.feed(packed_binary(content))
    assert rig.take() == [hears(content, is_text=False)]
    peer.feed(packed_text(content))
    assert rig.take() == [closed("a", CloseReason.INVALID_PAYLOAD)]


def test_a_character_may_be_cut_anywhere(rig: Rig) -> None:
    data = deflated("€uro €".encode() * 5)
    peer = rig.connect(deflate=15)
    for place in range(1, len(data)):
        peer.feed(client_frame(TEXT, data[:place], fin=False, rsv=4), more(data[place:], fin=True))
        assert rig.take() == [hears("€uro €" * 5)]


@pytest.mark.parametrize(
    "data",
    [
        deflated_final(b"hello"),
        deflated_final(b"hello") + b"\x00",  # as in section 7.2.3.4
        bytes.fromhex("f348cdc9c9070000"),
        deflated_final(b"hel") + deflated(b"lo"),  # 7.2.1: others may follow it
        deflated_final(b"hel") + deflated_final(b"lo"),
        b"\x03\x00" * 50 + deflated(b"hello"),
        b"\x01\x05\x00\xfa\xffhello",
        b"\x00\x02\x00\xfd\xffhe" + b"\x01\x03\x00\xfc\xffllo" + b"\x00",
    ],
    ids=lambda data: data.hex()[:30],
)
def test_d06_a_last_block_and_then_another_message(rig: Rig, data: bytes) -> None:
    peer = rig.connect(deflate=15)
    for _ in range(3):
        peer.feed(client_frame(TEXT, data, rsv=4))
        (event,) = rig.take()
        assert isinstance(event, Message)
        assert event.payload.lower() == b"hello"
    peer.feed(packed_text(NEWS))
    assert rig.take() == [hears(NEWS)]


@pytest.mark.parametrize(
    "block",
    [
        b"\x00\x00\x00\xff\xff",
        b"\x03\x00",
        b"\x01\x00\x00\xff\xff",
        deflated_final(b"x"),
        deflated(b"x") + b"\x00\x00\xff\xff",
        b"\x00\x01\x00\xfe\xffx",
    ],
    ids=bytes.hex,
)
def test_d07_many_small_blocks_take_time_in_proportion(block: bytes) -> None:
    rig = Rig(NATIVE, {"max_message_bytes": 1 << 20})
    peer = rig.connect(deflate=15)

    def inflate(number: int) -> None:
        peer.feed(client_frame(BINARY, block * number + b"\x00", rsv=4, mask=bytes(4)))
        (event,) = rig.take()
        assert isinstance(event, Message)

    assert growth(inflate, 2_000) < LINEAR


def test_refused_messages_are_inflated_once_a_read(make: CoreFactory) -> None:
    """Who is over the rate gets no work done for it, which could be a thousand times its octets."""
    rig = Rig(make, {"message_rate": 1.0, "message_burst": 2})
    peer = rig.connect(deflate=15)
    peer.feed(packed_text(NEWS) * 50)
    refusals = rig.take()
    assert refusals[:2] == [hears(NEWS)] * 2
    (refused,) = refusals[2:]
    assert getattr(refused, "first", None) == NEWS
    assert getattr(refused, "number", None) == 48
    assert rig.core.refused == 48
    assert rig.core.inflations == 3


def test_d08_a_connection_that_is_idle_keeps_nothing_of_zlib() -> None:
    """Measured where it can be: what the C library has handed out."""
    mallinfo = pytest.importorskip("ctypes").CDLL(None)
    if not hasattr(mallinfo, "mallinfo2"):
        pytest.skip("the C library does not tell what it has handed out (glibc 2.33)")
    used: dict[int, float] = {}
    rigs = []  # none is taken apart while another one is looked at
    for window in (0, 15):
        rig = Rig(NATIVE, {"max_connections": 2_048})
        first = rig.connect("first", deflate=15)
        rig.core.send(first.handle, NEWS)
        first.feed(packed_text(NEWS))  # zlib's own state, once for all
        transports = [FakeTransport() for _ in range(1_000)]
        rigs.append(rig)
        gc.collect()
        before = handed_out()
        peers: list[Peer] = []
        for number, transport in enumerate(transports):
            peers.append(rig.connect(str(number), deflate=window, transport=transport))
            peers[-1].put(packed_text("hello") if window else text("hello"))
        rig.events.clear()
        rig.turn()
        used[window] = (handed_out() - before) / len(peers)
    for rig in rigs:
        rig.core.shutdown()
    assert abs(used[15] - used[0]) < 64


def handed_out() -> int:
    import ctypes

    class Information(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks".split()
        ] + [(name, ctypes.c_size_t) for name in ("fordblks", "keepcost")]

    function = ctypes.CDLL(None).mallinfo2
    function.restype = Information
    information = function()
    return int(information.uordblks + information.hblkhd)


# Over a socket, where the tick's messages are sent by the core itself.


def test_the_same_over_sockets() -> None:
    rig = Rig(NATIVE, {"epoll": True})
    room = rig.core.open_room()
    ends: list[socket.socket] = []
    for number in range(6):
        ours, theirs = socket.socketpair()
        theirs.settimeout(5)
        handle = rig.core.adopt_socket(ours.detach(), str(number), deflate=15 * (number % 2))
        rig.core.join(handle, room)
        ends.append(theirs)
    rig.core.fan_out(room, NEWS)
    rig.turn()
    for number, end in enumerate(ends):
        (frame,) = server_frames(end.recv(65_536))
        assert frame.compressed == (number % 2 == 1)
        assert plain(frame) == says(NEWS)
    assert rig.core.compressions == 1
    ends[1].sendall(packed_text(NEWS))
    rig.core.ready()
    assert rig.take() == [Message("1", NEWS, True)]
    rig.core.shutdown()
    for end in ends:
        end.close()


def test_inflated_helper_refuses_what_is_cut() -> None:
    with pytest.raises((AssertionError, zlib.error)):
        inflated(DYNAMIC[:-2])
