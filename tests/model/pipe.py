"""What `_core.room_frame` and `_core.Cutter` do, in plain Python: their specification."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

__all__ = ["Cutter", "room_frame"]

HEAD: Final = Struct(">IB")
LENGTH: Final = Struct(">I")


def room_frame(kind: int, room: str, message: bytes, max_body: int) -> bytes:
    """Return the frame of a message to a room."""
    name = room.encode()
    body = LENGTH.pack(len(name)) + name + message
    if len(body) > max_body:
        raise ValueError("too large")
    return HEAD.pack(len(body), kind) + body


class Cutter:
    """Takes frames off the front of what came."""

    def __init__(
        self,
        *,
        room_kind: int,
        max_body: int,
        on_room: Callable[[str, bytes, bytes | None], None],
        on_frame: Callable[[int, bytes], None],
        keeps_frames: bool = True,
    ) -> None:
        self.is_over = False
        self._room_kind = room_kind
        self._max_body = max_body
        self._on_room = on_room
        self._on_frame = on_frame
        self._keeps_frames = keeps_frames

    def feed(self, buffer: bytearray, filled: int) -> tuple[int, int]:
        """Hand over every frame that is whole; returns where the next one begins, and its size."""
        if filled > len(buffer):
            raise ValueError("not so much")
        came = bytes(buffer[:filled])
        begin = 0
        while not self.is_over and filled - begin >= HEAD.size:
            length, kind = HEAD.unpack_from(came, begin)
            if length > self._max_body:
                raise ValueError("too large")
            end = begin + HEAD.size + length
            if end > filled:
                return begin, HEAD.size + length
            body = came[begin + HEAD.size : end]
            if kind == self._room_kind:
                if length < LENGTH.size or LENGTH.unpack_from(body)[0] > length - LENGTH.size:
                    raise ValueError("no name")
                name = LENGTH.size + LENGTH.unpack_from(body)[0]
                frame = came[begin:end] if self._keeps_frames else None
                self._on_room(body[LENGTH.size : name].decode(), body[name:], frame)
            else:
                self._on_frame(kind, body)
            begin = end
        return begin, HEAD.size
