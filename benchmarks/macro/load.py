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


def request_head(port: int, *, path: str = "/", authorized: bool = False, offer: str = "") -> str:
    """Return the head every client sends, with a place for the token when authorized."""
    lines = [line.replace("{path}", path).replace("{port}", str(port)) for line in HEAD]
    if authorized:
        lines.append(AUTHORIZATION)
    if offer:
        lines.append(f"Sec-WebSocket-Extensions: {offer}")
    return "".join(f"{line}\r\n" for line in lines) + "\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """What the generator's connections are and say; all alike but for the holes in the texts.

    "{token}" stands for the connection's token and "{room}" for its room: connection i is one of
    the `members` of room ``i // members``.

    Attributes:
        path: path of the request.
        tokens: bearer tokens, one a connection, taken in turn; none for no authorization.
        rooms: names of the rooms, taken in turn.
        members: connections in each room.
        setup: texts that each connection sends once it is open.
        pong: a message that is a ping of the protocol's own, and the answer to it.
        offer: extensions that are offered; what is compressed then is counted as it comes.
    """

    path: str = "/"
    tokens: Sequence[str] = ()
    rooms: Sequence[str] = ()
    members: int = 1
    setup: Sequence[str] = ()
    pong: tuple[str, str] | None = None
    offer: str = ""


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
    slowest: int = 0
    wanted: int = 0

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


@dataclass(frozen=True, slots=True)
class Published:
    """What came of messages that were sent on a schedule.

    Attributes:
        deliveries: from the moment a message was due to each member.
        last: from the moment a message was due to its last member, by message (or burst).
        skew: from a message's first member to its last, by message (or burst).
        messages: how many were due.
        reads: reads in which the deliveries came.
        bytes: payload of everything that came meanwhile.
        seconds: from the first message to the last delivery.
    """

    deliveries: Latencies
    last: Latencies
    skew: Latencies
    messages: int
    reads: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Connected:
    """How a number of clients came to be connected.

    Attributes:
        seconds: for all of them.
        upgrades: from the start of each to its 101.
        failed: refused, or not answered in time; the rest is connected.
        reason: why the first of those was not.
    """

    seconds: float
    upgrades: Latencies
    failed: int
    reason: str


def _latencies(answer: dict[str, Json], name: str, wanted: int, slowest: int = 0) -> Latencies:
    buckets, bits = answer.get(name), _int(answer, "bits")
    if not isinstance(buckets, list):
        raise BenchmarkError(f"the generator's answer has no {name!r}")
    counts = {upper_edge(bucket, bits): count for bucket, count in buckets}
    return Latencies(counts, slowest or max(counts, default=0), wanted)


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
        clients: Clients | None = None,
    ) -> None:
        """Start a generator for the server on this loopback port.

        Args:
            port: Port of the server.
            cores: CPUs for the generator.
            path: Path of the request.
            tokens: Bearer tokens, one a connection, taken in turn; none for no authorization.
            clients: All about the connections, in place of path and tokens.
        """
        self._port = port
        who = clients or Clients(path=path, tokens=tokens)
        with tempfile.TemporaryDirectory(prefix="falcon-bench-") as directory:
            head = Path(directory, "head")
            text = request_head(port, path=who.path, authorized=bool(who.tokens), offer=who.offer)
            head.write_text(text, newline="")
            command = [str(program("load")), str(head), f"members={who.members}"]
            lists = {
                "tokens": who.tokens,
                "rooms": who.rooms,
                "setup": who.setup,
                "pong": who.pong or (),
            }
            for name, lines in lists.items():
                if lines:
                    file = Path(directory, name)
                    file.touch(mode=0o600)
                    file.write_text("".join(f"{line}\n" for line in lines))
                    command.append(f"{name}={file}")
            # All files are read before the generator says it is ready.
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
        done = self.try_to_connect(
            count, rate=rate, inflight=inflight, sources=sources, timeout=timeout
        )
        if done.failed:
            raise BenchmarkError(f"{done.failed} of {count} upgrades failed: {done.reason}")
        return done.seconds

    def try_to_connect(
        self,
        count: int,
        *,
        rate: float = 0.0,
        inflight: int = 64,
        sources: int = 100,
        timeout: float = 120.0,
        narrow: int = 0,
    ) -> Connected:
        """Open more connections and tell how it went; see `connect`.

        Args:
            count: How many.
            rate: Most connections started a second; 0 for no bound.
            inflight: Most upgrades on the way at a time.
            sources: Loopback addresses they come from.
            timeout: Seconds for all of them.
            narrow: Each so manieth connection has the smallest receive buffer; 0 for none.
        """
        answer = self.ask(
            f"connect port={self._port} count={count} rate={rate} inflight={inflight}"
            f" sources={sources} timeout={timeout} narrow={narrow}",
            timeout=timeout + 10,
        )
        return Connected(
            seconds=_int(answer, "wall_ns") * 1e-9,
            upgrades=_latencies(answer, "buckets", count),
            failed=_int(answer, "failed"),
            reason=str(answer.get("reason")),
        )

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
        self,
        text: str,
        *,
        rate: float,
        seconds: float,
        receivers: int,
        rooms: int = 1,
        burst: int = 1,
        pad: int = 0,
        patience: float = 10.0,
    ) -> Callable[[], Published]:
        """Have the first member of each room send messages on a fixed schedule.

        Args:
            text: the message; "{stamp}" in it becomes the moment it was due, "{pad}" the padding.
            rate: messages a second in all, sent when they are due, not when others have come.
            seconds: how long.
            receivers: connections that get each of them.
            rooms: rooms that take turns.
            burst: messages that are due at the same moment, in the same room.
            pad: letters of padding.
            patience: seconds after the last message was due in which deliveries still count.

        Returns:
            What waits for the outcome.
        """
        self.tell(
            f"publish rate={rate} seconds={seconds} receivers={receivers} rooms={rooms}"
            f" burst={burst} pad={pad} patience={patience} text={text}"
        )
        return lambda: self._published(round(rate * seconds), receivers, seconds + patience)

    def _published(self, messages: int, receivers: int, seconds: float) -> Published:
        answer = self.answer(timeout=seconds + 30)
        slowest = _int(answer, "slowest_ns")
        return Published(
            deliveries=_latencies(answer, "buckets", messages * receivers, slowest),
            last=_latencies(answer, "last", messages),
            skew=_latencies(answer, "skew", messages),
            messages=messages,
            reads=_int(answer, "reads"),
            bytes=_int(answer, "bytes"),
            seconds=_int(answer, "wall_ns") * 1e-9,
        )

    def stall(self, every: int) -> int:
        """Have each so manieth connection read no more; returns how many those are."""
        return _int(self.ask(f"stall every={every}"), "count")

    def release(self) -> int:
        """End the stalled connections; returns how many those were."""
        return _int(self.ask("release"), "count")

    def disconnect(self, *, hard: bool = False) -> None:
        """End all connections, with the Close handshake unless `hard`."""
        self.ask(f"close hard={int(hard)}", timeout=40)
