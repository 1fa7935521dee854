"""Frames between the processes of a node: the native reader and writer against plain Python."""

from __future__ import annotations

from typing import Final, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_fast import _core

from ..model import pipe as model

ROOM: Final = 33
MAX_BODY: Final = 300
Event: TypeAlias = tuple[str, bytes, bytes | None] | tuple[int, bytes]


def cut(
    make: type[_core.Cutter | model.Cutter],
    octets: bytes,
    *,
    stop_after: int | None = None,
    keeps_frames: bool = True,
) -> tuple[list[Event], tuple[int, int] | type[Exception]]:
    """Return what was handed over, and what was returned, or the error's type."""
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if len(events) == stop_after:
            cutter.is_over = True

    cutter = make(
        room_kind=ROOM,
        max_body=MAX_BODY,
        on_room=lambda *message: note(message),
        on_frame=lambda *frame: note(frame),
        keeps_frames=keeps_frames,
    )
    buffer = bytearray(octets) + b"what came earlier"
    try:
        return events, cutter.feed(buffer, len(octets))
    except ValueError as error:
        return events, type(error)


room_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
frames = st.one_of(
    st.builds(
        lambda room, text: _core.room_frame(ROOM, room, text, MAX_BODY),
        room_names,
        st.binary(max_size=100),
    ),
    st.builds(
        lambda kind, body: model.HEAD.pack(len(body), kind) + body,
        st.integers(0, 255),
        st.binary(max_size=40),
    ),
    # Lengths that are wrong, and names that are none.
    st.builds(
        lambda length, body: model.HEAD.pack(length, ROOM) + body,
        st.integers(0, MAX_BODY + 2),
        st.binary(max_size=40),
    ),
    st.builds(
        lambda length, body: (
            model.HEAD.pack(4 + len(body), ROOM) + model.LENGTH.pack(length) + body
        ),
        st.integers(0, 60) | st.integers(0xFFFFFFF0, 0xFFFFFFFF),
        st.binary(max_size=40),
    ),
)


@given(
    st.lists(frames, max_size=8), st.integers(0, 30), st.none() | st.integers(1, 4), st.booleans()
)
def test_both_hand_over_the_same(
    pieces: list[bytes], cut_off: int, stop: int | None, keeps: bool
) -> None:
    octets = b"".join(pieces)
    octets = octets[: max(0, len(octets) - cut_off)]
    native = cut(_core.Cutter, octets, stop_after=stop, keeps_frames=keeps)
    assert native == cut(model.Cutter, octets, stop_after=stop, keeps_frames=keeps)


@given(room_names, st.binary(max_size=400))
def test_both_write_the_same(room: str, message: bytes) -> None:
    if len(room.encode()) + len(message) + 4 > MAX_BODY:
        for write in (_core.room_frame, model.room_frame):
            with pytest.raises(ValueError, match=r"octets|large"):
                write(ROOM, room, message, MAX_BODY)
        return
    frame = _core.room_frame(ROOM, room, message, MAX_BODY)
    assert frame == model.room_frame(ROOM, room, message, MAX_BODY)
    assert cut(_core.Cutter, frame) == ([(room, message, frame)], (len(frame), model.HEAD.size))


def test_more_than_there_is_cannot_be_read() -> None:
    cutter = _core.Cutter(
        room_kind=ROOM, max_body=MAX_BODY, on_room=lambda *_: None, on_frame=lambda *_: None
    )
    with pytest.raises(ValueError, match="a buffer of 3 octets has no 4"):
        cutter.feed(bytearray(3), 4)


def test_the_buffer_keeps_its_size_while_it_is_read() -> None:
    buffer = bytearray(model.HEAD.pack(0, 1))

    def grow(kind: int, body: bytes) -> None:
        buffer.extend(bytes(100))

    cutter = _core.Cutter(room_kind=ROOM, max_body=MAX_BODY, on_room=lambda *_: None, on_frame=grow)
    with pytest.raises(BufferError):
        cutter.feed(buffer, len(buffer))
    buffer.extend(b"and then it may change")
