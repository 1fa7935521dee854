"""Octets of a stranger, cut at any place, into the reader at the door: one answer, or a birth.

The first octet says how the rest is cut; the rest is what the stranger sends.
"""

from __future__ import annotations

import asyncio
from typing import Final

from falcon_fast.handshake import INTERNAL_ERROR, Accept, Endpoint, Refuse, Request, decide
from falcon_fast.upgrade import HeadReader, plain_answer

from ...support.transport import FakeTransport
from . import heads
from .frames import cut

MAX_INPUT: Final = 40_000
"""Octets; more than the largest head."""

SWITCHING: Final = b"HTTP/1.1 101 Switching Protocols\r\n"


class Plug(FakeTransport):
    """A transport whose peer is known; picows asks for the socket as well, and gets none."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(bytes(data))  # picows writes what it never changes again

    def get_extra_info(self, name: str, default: object = None) -> object:
        return (heads.PEER, 50_000) if name == "peername" else default


class FuzzDoor:
    """Decides as the gateway does, with one token and no limits, and keeps what it is told."""

    def __init__(self) -> None:
        self.policy = heads.POLICY
        self.handshake_timeout = 60.0
        self.waiting = 0
        self.max_waiting = 1
        self.births: list[tuple[Accept, bytes]] = []
        self.refusals: list[Refuse] = []

    def decide(self, request: Request, peer_ip: str) -> Accept | Refuse:
        return decide(
            request,
            self.policy,
            verify=heads.verify,
            is_banned=heads.is_banned,
            peer_ip=peer_ip,
        )

    def answer(self, endpoint: Endpoint) -> bytes:
        return plain_answer("200 OK", endpoint.name.encode())

    def born(self, accept: Accept, transport: asyncio.Transport, early: bytes) -> None:
        self.births.append((accept, early))

    def refused(self, refuse: Refuse) -> None:
        self.refusals.append(refuse)


def one_input(data: bytes) -> None:
    """Feed one stream in the pieces it asks for, then in one piece: the answer is the same."""
    stream = data[1 : 1 + MAX_INPUT]
    whole = asyncio.run(feed([stream] if stream else []))
    assert asyncio.run(feed(cut(stream, data[0] if data else 0))) == whole, "cuts matter"


async def feed(pieces: list[bytes]) -> tuple[bytes, list[Accept], bytes]:
    """Feed the pieces to a reader of its own.

    Returns:
        What it said, whom it let in, and what came behind the head.
    """
    door = FuzzDoor()
    transport = Plug()
    reader = HeadReader(door, asyncio.get_running_loop())
    transport.set_protocol(reader)
    reader.connection_made(transport)
    early = b""
    for piece in pieces:
        at = 0
        while at < len(piece) and not door.births:
            buffer = reader.get_buffer(-1)
            size = min(len(buffer), len(piece) - at)
            buffer[:size] = piece[at : at + size]
            reader.buffer_updated(size)
            at += size
        # Behind the birth the octets are the core's.
        early += piece[at:]
    said = bytes(transport.written)
    if door.births:
        ((_, first),) = door.births
        assert said.startswith(SWITCHING)
        assert said.endswith(b"\r\n\r\n")
        assert said.count(b"\r\n\r\n") == 1
        assert not door.refusals
        early = first + early
    elif said:
        assert transport.eof_written
        assert said.startswith(b"HTTP/1.1 ")
        assert [refuse.to_bytes() for refuse in door.refusals] in ([], [said])
    else:
        assert not door.refusals
        assert door.waiting == 1, "neither answered nor waiting"
        early = b""
    assert INTERNAL_ERROR not in door.refusals
    reader.connection_lost(None)
    assert door.waiting == 0
    return said, [accept for accept, _ in door.births], early
