"""Fixed pieces of the core's work, each the same in every run; started under callgrind by count.py.

Usage: python -m benchmarks.instructions.workloads COUNTER_LIBRARY

What is prepared is not counted, only what the returned function does. Nothing here depends on time,
chance or the hash of a string.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
from collections.abc import Callable

from benchmarks.micro.support import client_frame, connect, make_core
from falcon_fast._core import scan_json

Work = Callable[[], None]

#: Bytes of one read, as in the core.
READ = 65_536
PAYLOAD = b"x" * 100


def parse(data: bytes, *, piece: int = READ) -> Work:
    """Let a connection read this, in pieces."""
    core = make_core()
    link = connect(core)
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]

    def work() -> None:
        for part in pieces:
            link.get_buffer(-1)[: len(part)] = part
            link.buffer_updated(len(part))

    return work


def parse_small() -> Work:
    """Read 500 messages of 64 bytes."""
    return parse(client_frame(b"x" * 64) * 500)


def parse_large() -> Work:
    """Read four messages of 16 KiB."""
    return parse(client_frame(b"x" * 16_000) * 4)


def parse_text() -> Work:
    """Read text that is not ASCII."""
    return parse(client_frame("žluťoučký kůň ".encode() * 50) * 60)


def parse_fragments() -> Work:
    """Read 100 messages in four fragments each."""
    return parse(
        b"".join(
            client_frame(b"x" * 64, opcode=1 if part == 0 else 0, final=part == 3)
            for part in range(4)
        )
        * 100
    )


def parse_cut() -> Work:
    """Read 500 messages, cut at every place."""
    return parse(client_frame(b"x" * 64) * 500, piece=1009)


def fan_out(members: int, messages: int) -> Work:
    """Send messages to one room in one tick."""
    core = make_core()
    room = core.open_room()
    for _ in range(members):
        core.join(connect(core).handle, room)

    def work() -> None:
        for _ in range(messages):
            core.fan_out(room, PAYLOAD)
        core.flush()

    return work


def fan_out_mixed() -> Work:
    """Send one message to each of 100 rooms and to a common one, in one tick."""
    core = make_core()
    rooms = [core.open_room() for _ in range(100)]
    common = core.open_room()
    for number in range(1_000):
        handle = connect(core).handle
        core.join(handle, rooms[number % 100])
        core.join(handle, common)

    def work() -> None:
        core.fan_out(common, PAYLOAD)
        for room in rooms:
            core.fan_out(room, PAYLOAD)
        core.flush()

    return work


def send_each() -> Work:
    """Send one message to each of 500 connections by itself."""
    core = make_core()
    handles = [connect(core).handle for _ in range(500)]

    def work() -> None:
        for handle in handles:
            core.send(handle, PAYLOAD)
        core.flush()

    return work


def join_and_leave(members: int) -> Work:
    """Let 200 connections enter a room and leave it again."""
    core = make_core()
    room = core.open_room()
    handles = [connect(core).handle for _ in range(members + 200)]
    random.Random(1).shuffle(handles)
    moving, staying = handles[:200], handles[200:]
    for handle in staying:
        core.join(handle, room)

    def work() -> None:
        for handle in moving:
            core.join(handle, room)
        for handle in moving:
            core.leave(handle, room)

    return work


def births() -> Work:
    """Adopt 300 connections and end them."""
    core = make_core()

    def work() -> None:
        for handle in [connect(core).handle for _ in range(300)]:
            core.abort(handle, 0)

    return work


def scan() -> Work:
    """Look through 100 JSON messages of half a kilobyte."""
    text = (
        b'{"type":"message","room":"group:1","data":{' + b'"k":"value \\u00e9",' * 24 + b'"z":1}}'
    )

    def work() -> None:
        for _ in range(100):
            scan_json(text, 32)

    return work


WORKLOADS: dict[str, Callable[[], Work]] = {
    "parse small messages": parse_small,
    "parse large messages": parse_large,
    "parse text": parse_text,
    "parse fragments": parse_fragments,
    "parse frames cut by reads": parse_cut,
    "fan out, 1 to 1000": lambda: fan_out(1_000, 1),
    "fan out, 16 to 1000": lambda: fan_out(1_000, 16),
    "fan out, 100 rooms": fan_out_mixed,
    "send to each": send_each,
    "join and leave, 1000": lambda: join_and_leave(1_000),
    "join and leave, 6000": lambda: join_and_leave(6_000),
    "births and deaths": births,
    "scan JSON": scan,
}


def main() -> None:
    """Do each piece once to warm up, and once counted."""
    counter = ctypes.CDLL(sys.argv[1])
    gc.disable()  # when a collection comes is not the core's affair
    for name, prepare in WORKLOADS.items():
        work = prepare()
        work()
        counter.begin()
        work()
        counter.end(name.encode())


if __name__ == "__main__":
    main()
