"""One window of an open loop: messages on a schedule, what came of them, and what it cost.

A message is sent when it is due, whatever became of those before it, and carries that moment; every
delivery to every member is timed from it. So a server that falls behind is seen to, and so is a
generator that does: its own share of the CPU is in the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.macro.contenders import STAMP_BYTES, Contender
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread, rounded
from benchmarks.macro.load import Latencies, Published
from benchmarks.macro.machine import busy_seconds

#: Payload of a delivery as the client reads it, protocol included, in bytes.
DELIVERY_BYTES = 320
#: Share of its CPU from which the generator, not the server, may be what is too slow.
GENERATOR_BUSY = 0.97
#: Share of a CPU that others may use in a window; one with more is taken again, after a rest of so
#: many seconds, so many times at most.
FOREIGN = 0.1
REST = 0.5
ATTEMPTS = 2
#: Longest window, in seconds, that is too short for the kernel's ticks to tell.
UNJUDGED = 0.5
#: Most windows for finding the padding.
CALIBRATIONS = 5
#: Seconds after a window in which late deliveries still count as deliveries.
PATIENCE = 3.0


@dataclass(frozen=True, slots=True)
class Window:
    """What one window showed.

    Attributes:
        rate: messages a second that were due.
        published: times of the deliveries.
        cpu: seconds of the server's CPU.
        load_cpu: seconds of the generator's CPU.
        foreign: share of the time in which neither of the two, but somebody else was on the CPU of
            one of them.
        seconds: wall clock.
        cpu_each: seconds of each of the server's processes, the one that was started first.
    """

    rate: float
    published: Published
    cpu: float
    load_cpu: float
    foreign: float
    seconds: float
    cpu_each: tuple[float, ...] = ()

    @property
    def deliveries(self) -> Latencies:
        """Times of the deliveries."""
        return self.published.deliveries

    @property
    def lost(self) -> int:
        """Deliveries that should have come and did not."""
        return self.deliveries.wanted - self.deliveries.total

    @property
    def delivered_rate(self) -> float:
        """Deliveries a second that were asked for."""
        return self.rate * self.deliveries.wanted / max(1, self.published.messages)

    @property
    def cpu_us(self) -> float:
        """Microseconds of server CPU for a delivery."""
        return self.cpu * 1e6 / max(1, self.deliveries.total)

    @property
    def p99(self) -> float:
        """Milliseconds within which 99 of 100 deliveries came."""
        return self.deliveries.quantile(0.99) if self.deliveries.total else float("inf")

    @property
    def server_busy(self) -> float:
        """Share of the time in which the server was on its CPU."""
        return self.cpu / self.seconds

    @property
    def load_busy(self) -> float:
        """Share of the time in which the generator was on its CPU."""
        return self.load_cpu / self.seconds

    def json(self) -> dict[str, Json]:
        """Return the form kept in a result file."""
        times = self.deliveries
        return {
            "messages_per_second": rounded(self.rate),
            "deliveries_per_second": rounded(self.delivered_rate),
            "deliveries": times.total,
            "lost": self.lost,
            "ms": {
                name: rounded(times.quantile(share))
                for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999))
            },
            "max_ms": rounded(times.slowest * 1e-6),
            "last_client_ms": {
                "p50": rounded(self.published.last.quantile(0.5)),
                "p99": rounded(self.published.last.quantile(0.99)),
            },
            "skew_ms": rounded(self.published.skew.quantile(0.5)),
            "cpu_us_per_delivery": rounded(self.cpu_us),
            "messages_per_read": rounded(times.total / max(1, self.published.reads)),
            "server_busy": rounded(self.server_busy),
            "generator_busy": rounded(self.load_busy),
            "others_busy": rounded(self.foreign),
        }


@dataclass(slots=True)
class Series:
    """Windows of one contender under the same conditions."""

    windows: list[Window] = field(default_factory=list)

    def spread(self, name: str) -> Spread:
        """Return the spread of a property of `Window`."""
        return Spread.of([getattr(window, name) for window in self.windows])

    def pooled(self) -> Latencies:
        """Return the times of all windows."""
        total = Latencies({})
        for window in self.windows:
            total += window.deliveries
        return total


def measure(
    who: Contender,
    *,
    rate: float,
    seconds: float,
    receivers: int | None = None,
    burst: int = 1,
    patience: float = PATIENCE,
    enough: Callable[[Window], bool] | None = None,
) -> Window:
    """Run one window.

    Args:
        who: a contender whose clients are connected.
        rate: messages a second, over all rooms.
        seconds: how long.
        receivers: connections that get each message; None for all members of the room.
        burst: messages that are due at the same moment, in the same room.
        patience: seconds after the last message in which deliveries still count.
        enough: tells that a window shows what was asked, whoever else used the machine; one that
            was disturbed and does not is repeated.
    """
    best: Window | None = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(REST)
        with who.turn():
            window = _window(who, rate, seconds, receivers, burst, patience)
        if best is None or window.foreign < best.foreign:
            best = window
        calm = window.foreign <= FOREIGN or seconds <= UNJUDGED
        if calm or (enough is not None and enough(window)):
            return window
    assert best is not None
    return best


def _window(
    who: Contender, rate: float, seconds: float, receivers: int | None, burst: int, patience: float
) -> Window:
    began, each, load = time.monotonic(), who.server.cpu_by_process(), who.load.cpu_seconds()
    sides = [who.server.cores, who.load.cores]
    busy = [busy_seconds(cores) for cores in sides]
    published = who.load.publish(
        who.text(),
        rate=rate,
        seconds=seconds,
        receivers=who.layout.members if receivers is None else receivers,
        rooms=who.layout.rooms,
        burst=burst,
        pad=who.pad,
        patience=patience,
    )()
    passed = time.monotonic() - began
    now = who.server.cpu_by_process()
    spent = tuple(seconds - each.get(pid, 0.0) for pid, seconds in now.items())
    cpu, load = sum(spent), who.load.cpu_seconds() - load
    own = [cpu, load] if sides[0] != sides[1] else [cpu + load] * 2
    foreign = max(
        busy_seconds(cores) - before - used
        for cores, before, used in zip(sides, busy, own, strict=True)
    )
    return Window(
        rate=rate,
        published=published,
        cpu=cpu,
        load_cpu=load,
        foreign=max(0.0, foreign / passed),
        seconds=passed,
        cpu_each=spent,
    )


def calibrate(who: Contender, size: int = DELIVERY_BYTES, *, seconds: float = 0.5) -> Contender:
    """Find the padding that makes a delivery `size` bytes, and see that every member gets it.

    Protocols wrap a message differently; with one size for all that arrives, nobody is better off
    for saying less. (Who says more than that is left as it is.)

    Raises:
        BenchmarkError: Not every member got every message, or the padding had no effect.
    """
    found = 0
    for _ in range(CALIBRATIONS):
        rate = max(20.0, who.layout.rooms / seconds)
        window = measure(who, rate=rate, seconds=seconds, patience=10.0)
        if window.lost:
            raise BenchmarkError(
                f"{who.name}: {window.lost} of {window.deliveries.wanted} deliveries did not come"
            )
        found = round(window.published.bytes / window.deliveries.total)
        if abs(size - found) <= STAMP_BYTES or (who.pad == 0 and found > size):
            return who
        # News of the rooms may have come meanwhile and have been counted: then once more.
        who = who.padded(max(0, who.pad + size - found))
    raise BenchmarkError(f"{who.name}: deliveries of {found} bytes instead of {size}")


def connect(
    who: Contender, *, size: int = DELIVERY_BYTES, seconds: float = 0.5, narrow: int = 0
) -> Contender:
    """Connect everybody, wait until they are in their rooms, and calibrate.

    Args:
        who: a contender without connections.
        size: payload of a delivery, in bytes.
        seconds: for each part of it.
        narrow: each so manieth connection has the smallest receive buffer; 0 for none.

    Raises:
        BenchmarkError: Not everybody was let in, or not every delivery came.
    """
    with who.turn():
        done = who.load.try_to_connect(who.layout.connections, narrow=narrow)
        if done.failed:
            raise BenchmarkError(f"{who.name}: {done.failed} upgrades failed: {done.reason}")
        who.load.wait_quiet(seconds=seconds)
    return calibrate(who, size, seconds=seconds)
