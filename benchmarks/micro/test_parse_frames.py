"""What does a frame of a client cost, from the bytes of a read to the callback?"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.micro.support import client_frame, connect, make_core

#: Bytes of one read, as in the core.
READ = 65_536

pytestmark = pytest.mark.benchmark(group="parse frames, one read of 64 KiB")


def read_of(frame: bytes) -> tuple[bytes, int]:
    """Fill a read with whole frames; return it and their number."""
    number = max(1, READ // len(frame))
    return frame * number, number


@pytest.mark.parametrize("size", [16, 64, 1024, 16_384])
def test_whole_messages(benchmark: BenchmarkFixture, size: int) -> None:
    core = make_core()
    link = connect(core)
    data, number = read_of(client_frame(b"x" * size))

    def arrive() -> None:
        link.get_buffer(-1)[: len(data)] = data
        link.buffer_updated(len(data))

    benchmark.extra_info["frames"] = number
    benchmark(arrive)
    assert core.messages_in > 0
    assert core.messages_in % number == 0


def test_text_that_is_not_ascii(benchmark: BenchmarkFixture) -> None:
    core = make_core()
    link = connect(core)
    data, number = read_of(client_frame("žluťoučký kůň ".encode() * 50))

    def arrive() -> None:
        link.get_buffer(-1)[: len(data)] = data
        link.buffer_updated(len(data))

    benchmark.extra_info["frames"] = number
    benchmark(arrive)
    assert core.messages_in % number == 0


def test_messages_in_four_fragments(benchmark: BenchmarkFixture) -> None:
    core = make_core()
    link = connect(core)
    message = b"".join(
        client_frame(b"x" * 64, opcode=1 if part == 0 else 0, final=part == 3) for part in range(4)
    )
    data, number = read_of(message)

    def arrive() -> None:
        link.get_buffer(-1)[: len(data)] = data
        link.buffer_updated(len(data))

    benchmark.extra_info["frames"] = 4 * number
    benchmark(arrive)
    assert core.messages_in % number == 0
    assert core.frames_in == 4 * core.messages_in


def test_frames_cut_by_reads(benchmark: BenchmarkFixture) -> None:
    core = make_core()
    link = connect(core)
    data, number = read_of(client_frame(b"x" * 64))
    # A prime, so that every place in a frame is cut at some time.
    pieces = [data[at : at + 1009] for at in range(0, len(data), 1009)]

    def arrive() -> None:
        for piece in pieces:
            link.get_buffer(-1)[: len(piece)] = piece
            link.buffer_updated(len(piece))

    benchmark.extra_info["frames"] = number
    benchmark(arrive)
    assert core.messages_in % number == 0
