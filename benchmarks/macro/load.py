"""The harness's end of the load generator (load.c): typed commands, checked answers."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.macro.build import program
from benchmarks.macro.child import Child
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json

#: Most connections of one generator process: the usual hard limit of open files is 20 000.
MAX_CONNECTIONS = 15_500
#: The key is that of RFC 6455 section 1.3, whose answer the generator knows.
HEAD = (
    "GET {path} HTTP/1.1",
    "Host: 127.0.0.1:{port}",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
    "User-Agent: falcon-bench",
)
#: The generator puts the connection's token in the place of the braces.
AUTHORIZATION = "Authorization: Bearer {token}"


def request_head(port: int, *, path: str = "/", authorized: bool = False) -> str:
    """Return the head every client sends, with a place for the token when authorized."""
    lines = [line.format(path=path, port=port) for line in HEAD]
    if authorized:
        lines.append(AUTHORIZATION)
    return "".join(f"{line}\r\n" for line in lines) + "\r\n"


@dataclass(frozen=True, slots=True)
class Counters:
    """What the generator has received since the last reset, and what it has lost in all."""

    open: int
    frames: int
    bytes: int
    pings: int
    reads: int
    first_ns: int
    last_ns: int
    lost: int
    broken: int


@dataclass(frozen=True, slots=True)
class Echoed:
    """The outcome of a closed loop."""

    messages: int
    missing: int
    wrong: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Latencies:
    """How long deliveries took, counted in buckets, each 1.6 % wide.

    Attributes:
        counts: deliveries by the upper edge of their bucket, in nanoseconds.
        slowest: the longest one, in nanoseconds.
        wanted: deliveries that should have come.
    """

    counts: Mapping[int, int]
    slowest: int
    wanted: int

    @property
    def total(self) -> int:
        """Deliveries that came."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> float:
        """Return the time within which this share of the deliveries came, in milliseconds."""
        left = share * self.total
        for edge, count in sorted(self.counts.items()):
            left -= count
            if left <= 0:
                return edge * 1e-6
        return self.slowest * 1e-6

    def __add__(self, other: Latencies) -> Latencies:
        """Put two windows together: percentiles must not be averaged."""
        counts = Counter(self.counts)
        counts.update(other.counts)
        return Latencies(counts, max(self.slowest, other.slowest), self.wanted + other.wanted)


def upper_edge(bucket: int, bits: int) -> int:
    """Return where a bucket of the generator ends, in nanoseconds (see count_latency in load.c)."""
    power, step = divmod(bucket, 1 << bits)
    if power == 0:
        return step + 1
    # A power's buckets begin with its own step of 2**bits; the first two powers share a width.
    return ((1 << bits) + step + 1) << (power - 1)


def _int(answer: dict[str, Json], key: str) -> int:
    value = answer.get(key)
    if not isinstance(value, int):
        raise BenchmarkError(f"the generator's answer has no number {key!r}")
    return value


def _counters(answer: dict[str, Json]) -> Counters:
    return Counters(**{field: _int(answer, field) for field in Counters.__slots__})


class Load(Child):
    """One generator process: up to `MAX_CONNECTIONS` clients of one server."""

    def __init__(
        self,
        port: int,
        *,
        cores: frozenset[int],
        path: str = "/",
        tokens: Sequence[str] = (),
    ) -> None:
        """Start a generator for the server on this loopback port.

        Args:
            port: Port of the server.
            cores: CPUs for the generator.
            path: Path of the request.
            tokens: Bearer tokens, one a connection, taken in turn; none for no authorization.
        """
        self._port = port
        with tempfile.TemporaryDirectory(prefix="falcon-bench-") as directory:
            head = Path(directory, "head")
            head.write_text(request_head(port, path=path, authorized=bool(tokens)), newline="")
            command = [str(program("load")), str(head)]
            if tokens:
                file = Path(directory, "tokens")
                file.touch(mode=0o600)
                file.write_text("".join(f"{token}\n" for token in tokens))
                command.append(str(file))
            # Both files are read before the generator says it is ready.
            super().__init__("the load generator", command, cores=cores)

    def connect(
        self,
        count: int,
        *,
        rate: float = 0.0,
        inflight: int = 64,
        sources: int = 100,
        timeout: float = 120.0,
    ) -> float:
        """Open more connections and wait until every upgrade is through.

        Args:
            count: How many.
            rate: Most connections started a second; 0 for no bound.
            inflight: Most upgrades on the way at a time.
            sources: Loopback addresses they come from.
            timeout: Seconds for all of them.

        Returns:
            The seconds it took.

        Raises:
            BenchmarkError: Some were refused; the text has the first reason.
        """
        answer = self.ask(
            f"connect port={self._port} count={count} rate={rate} inflight={inflight}"
            f" sources={sources} timeout={timeout}",
            timeout=timeout + 10,
        )
        failed = _int(answer, "failed")
        if failed:
            raise BenchmarkError(f"{failed} of {count} upgrades failed: {answer.get('reason')}")
        return _int(answer, "wall_ns") * 1e-9

    def reset(self) -> None:
        """Set the counters of received frames to zero."""
        self.ask("reset")

    def expect(self, frames: int, *, timeout: float = 60.0) -> Callable[[], Counters]:
        """Start to wait for so many messages since the last reset.

        The generator is told before the server is, so that it is in the same state for every
        server, whether that answers before it sends or after.

        Returns:
            What waits for the outcome; it raises BenchmarkError when they do not come in time.
        """
        self.tell(f"expect frames={frames} timeout={timeout}")
        return lambda: self._expected(frames, timeout)

    def _expected(self, frames: int, timeout: float) -> Counters:
        answer = self.answer(timeout=timeout + 10)
        counters = _counters(answer)
        if answer["event"] != "received":
            raise BenchmarkError(f"{counters.frames} of {frames} messages came in {timeout:g} s")
        return counters

    def stats(self) -> Counters:
        """Return the counters now."""
        return _counters(self.ask("stats"))

    def wait_quiet(self, *, seconds: float = 0.3, timeout: float = 120.0) -> Counters:
        """Wait until no message has come for so long; pings do not count."""
        deadline = time.monotonic() + timeout
        counters = self.stats()
        since = time.monotonic()
        while time.monotonic() - since < seconds:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"messages still come after {timeout:g} s")
            time.sleep(min(0.05, seconds / 4))
            fresh = self.stats()
            if fresh.frames != counters.frames:
                counters, since = fresh, time.monotonic()
        return counters

    def echo(self, *, size: int, window: int, seconds: float, text: bool = False) -> Echoed:
        """Keep `window` messages of `size` bytes on the way on every connection for so long."""
        answer = self.ask(
            f"echo size={size} window={window} seconds={seconds} text={int(text)}",
            timeout=seconds + 20,
        )
        return Echoed(
            messages=_int(answer, "messages"),
            missing=_int(answer, "missing"),
            wrong=_int(answer, "wrong"),
            seconds=_int(answer, "wall_ns") * 1e-9,
        )

    def publish(
        self, text: str, *, rate: float, seconds: float, receivers: int
    ) -> Callable[[], Latencies]:
        """Have the first connection send messages on a fixed schedule.

        Args:
            text: the message; "{stamp}" in it becomes the moment it was due.
            rate: messages a second, sent when they are due, not when others have come.
            seconds: how long.
            receivers: connections that get each of them.

        Returns:
            What waits for the outcome.
        """
        self.tell(f"publish rate={rate} seconds={seconds} receivers={receivers} text={text}")
        return lambda: self._published(round(rate * seconds) * receivers, seconds)

    def _published(self, wanted: int, seconds: float) -> Latencies:
        answer = self.answer(timeout=seconds + 30)
        buckets, bits = answer.get("buckets"), _int(answer, "bits")
        if not isinstance(buckets, list):
            raise BenchmarkError("the generator's answer has no buckets")
        counts = {upper_edge(bucket, bits): count for bucket, count in buckets}
        return Latencies(counts, _int(answer, "slowest_ns"), wanted)

    def disconnect(self, *, hard: bool = False) -> None:
        """End all connections, with the Close handshake unless `hard`."""
        self.ask(f"close hard={int(hard)}", timeout=40)
