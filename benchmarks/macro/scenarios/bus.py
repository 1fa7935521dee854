"""Bus: what a message from another node costs up to the fan-out, and how late it is."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.macro.child import Child
from benchmarks.macro.errors import BenchmarkError, PeerMissing
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.report import Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns
from benchmarks.macro.servers.bus import CHANNEL, ELSEWHERE, HERE
from benchmarks.macro.servers.real import PATH, Population, prepared, real_server
from benchmarks.macro.servers.redis import redis_server

QUESTION = "CPU per message from Redis up to the fan-out; latency between nodes"

#: Octets of a message between nodes, without its envelope.
SIZE = 200
FALCON, REDIS_PY, HIREDIS = "falcon_fast", "redis-py listen()", "hiredis alone"
WAYS = {FALCON: "falcon", REDIS_PY: "redis-py", HIREDIS: "hiredis"}
KINDS = {"members here": HERE, "no members here": ELSEWHERE}
#: Most microseconds of CPU for one message of each kind.
LIMITS = {"members here": 4.0, "no members here": 1.5}
#: Least ratio of redis-py's cost to ours.
LEAST_RATIO = 4.0
#: Messages published in one turn of the loop.
TURN = 1000
#: Seconds between two messages whose latency is measured.
PACE = 0.004


def envelopes(room: str, first: int, number: int) -> bytes:
    """Write commands that publish messages as another node would."""
    head = {"type": "message", "room": room, "from": "c-1", "data": {"x": ""}}
    stamp = "2026-01-02T03:04:05.123456Z"
    bare = len(json.dumps({**head, "timestamp": stamp}, separators=(",", ":")))
    head["data"] = {"x": "x" * (SIZE - bare)}
    message = json.dumps({**head, "timestamp": stamp}, separators=(",", ":"))
    commands = []
    for seq in range(first, first + number):
        payload = (
            f'{{"server_id":"5a4e0000-0000-4000-8000-000000000000","seq":{seq},'
            f'"epoch":1764000000000,"v":1,"room":"{room}","message":{message},'
            f'"timestamp":"{stamp}"}}'
        )
        commands.append(
            f"*3\r\n$7\r\nPUBLISH\r\n${len(CHANNEL)}\r\n{CHANNEL.decode()}\r\n"
            f"${len(payload)}\r\n{payload}\r\n"
        )
    return "".join(commands).encode()


class Feed:
    """A connection that publishes, numbers what it publishes, and ignores the answers."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._next = 1
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while self._socket.recv(1 << 20):
                pass
        except OSError:
            return

    def publish(self, room: str, number: int) -> None:
        """Publish so many messages."""
        commands = envelopes(room, self._next, number)
        self._next += number
        self._socket.sendall(commands)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def wait(child: Child, taken: int, *, timeout: float = 60.0) -> None:
    """Wait until a contender has taken so many messages in all.

    Raises:
        BenchmarkError: It has not.
    """
    until = time.monotonic() + timeout
    while (got := number(child.ask("count")["taken"])) < taken:
        if time.monotonic() > until:
            raise BenchmarkError(f"{child.name} took {got:.0f} of {taken} messages")
        time.sleep(0.02)


def number(value: Json) -> float:
    """Return a number of an answer."""
    assert isinstance(value, int | float)
    return float(value)


def sample(child: Child, feed: Feed, others: Sequence[Child], room: str, messages: int) -> float:
    """Return the microseconds of CPU that a contender spends on one message.

    All contenders get all messages; the others stand still meanwhile, and catch up afterwards.
    """
    for other in others:
        other.pause()
    start = number(child.ask("count")["taken"])
    before = child.cpu_seconds()
    feed.publish(room, messages)
    wait(child, int(start) + messages)
    spent = child.cpu_seconds() - before
    for other in others:
        goal = int(start) + messages
        other.resume()
        wait(other, goal)
    return spent / messages * 1e6


def receiving(run: Run, port: int, outcome: Outcome) -> None:
    """Measure what taking a message costs."""
    messages, repeats = run.pick(None, 30_000, 200), run.pick(run.repeats, 9, 2)
    samples: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        starts = [
            (
                name,
                partial(
                    run.server,
                    name,
                    run.module("servers.bus", "--redis", str(port), "--way", way),
                ),
            )
            for name, way in WAYS.items()
        ]
        present = enter_present(stack, outcome, starts)
        feed = Feed(port)
        stack.callback(feed.close)
        children = list(present.values())
        for child in children:
            outcome.versions |= child.versions
            sample(child, feed, [o for o in children if o is not child], HERE, messages // 10)
        for kind, room in KINDS.items():
            run.say(f"bus: {kind}, {repeats} repetitions")
            for _, name in turns(list(present), repeats):
                child = present[name]
                others = [other for other in children if other is not child]
                samples[name, kind].append(sample(child, feed, others, room, messages))
        rows: list[list[str]] = []
        figures: dict[str, Json] = {}
        for name in present:
            for kind, limit in LIMITS.items():
                cost = Spread.of(samples[name, kind])
                ratio = Spread.of_ratios(samples[name, kind], samples[FALCON, kind])
                figures[f"{name}, {kind}"] = {
                    "microseconds_of_cpu": cost.json(),
                    "ratio_to_ours": ratio.json(),
                }
                rows.append([name, kind, cost.text(".2f"), ratio.text(".2f")])
                if name == FALCON:
                    outcome.targets.append(Target(f"µs of CPU, {kind}", cost.median, limit))
                elif name == REDIS_PY:
                    outcome.targets.append(
                        Target(
                            f"{name} / {FALCON}, {kind}", ratio.median, LEAST_RATIO, at_most=False
                        )
                    )
        outcome.figures["receiving"] = figures
        outcome.tables.append(
            Table(
                "From Redis up to the fan-out: median (quartiles)",
                ["", "kind", "µs CPU/message", "of ours"],
                rows,
            )
        )
        publishing(run, present[FALCON], port, outcome)


def publishing(run: Run, child: Child, port: int, outcome: Outcome) -> None:
    """Measure what publishing many messages in one turn of the loop costs."""
    messages, repeats = run.pick(None, TURN, 50), run.pick(run.repeats, 15, 2)
    seconds: list[float] = []
    cpu: list[float] = []
    writes: list[float] = []
    pings = [ping(port) for _ in range(repeats)]
    for _ in range(repeats):
        before = child.cpu_seconds()
        writes.append(number(child.ask(f"publish messages={messages} bytes={SIZE // 2}")["writes"]))
        while (took := child.ask("answers")["seconds"]) is None:
            time.sleep(0.002)
        cpu.append((child.cpu_seconds() - before) / messages * 1e6)
        seconds.append(number(took))
    outcome.figures["publishing"] = {
        "messages_in_one_turn": messages,
        "writes": max(writes),
        "milliseconds_until_all_are_answered": Spread.of([s * 1e3 for s in seconds]).json(),
        "microseconds_of_cpu_a_message": Spread.of(cpu).json(),
        "milliseconds_of_a_ping": Spread.of([p * 1e3 for p in pings]).json(),
    }
    outcome.tables.append(
        Table(
            f"Publishing {messages} messages in one turn of the loop",
            ["", "writes", "ms until answered", "µs CPU/message", "ms of one PING"],
            [
                [
                    FALCON,
                    f"{max(writes):.0f}",
                    Spread.of([s * 1e3 for s in seconds]).text(".2f"),
                    Spread.of(cpu).text(".2f"),
                    Spread.of([p * 1e3 for p in pings]).text(".3f"),
                ]
            ],
        )
    )
    outcome.targets.append(Target(f"writes for {messages} messages of one turn", max(writes), 1))


def ping(port: int) -> float:
    """Return the seconds of one round trip to Redis."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PING\r\n")
        connection.recv(64)
        began = time.perf_counter()
        connection.sendall(b"PING\r\n")
        connection.recv(64)
        return time.perf_counter() - began


@contextmanager
def listening(port: int, token: str) -> Iterator[tuple[object, dict[int, float]]]:
    """Connect a client that notes when the numbered messages come in."""
    try:
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect
    except ImportError as error:
        raise PeerMissing("Python package 'websockets'") from error
    arrived: dict[int, float] = {}
    headers = {"Authorization": f"Bearer {token}"}
    with connect(
        f"ws://127.0.0.1:{port}{PATH}", additional_headers=headers, compression=None
    ) as client:
        ready = threading.Event()

        def read() -> None:
            try:
                for text in client:
                    now = time.perf_counter()
                    message = json.loads(text)
                    if message.get("data", {}).get("action") == "joined":
                        ready.set()
                    elif "n" in message.get("data", {}):
                        arrived[message["data"]["n"]] = now
            except ConnectionClosed:
                return

        thread = threading.Thread(target=read)
        thread.start()
        if not ready.wait(10):
            raise BenchmarkError("a client was not told its rooms")
        yield client, arrived
    thread.join()


def latency(run: Run, port: int, outcome: Outcome) -> None:
    """Measure how late a message is on its own node and on another one."""
    messages = run.pick(None, 2_000, 30)
    late: dict[str, list[float]] = {}
    with ExitStack() as stack:
        ready = stack.enter_context(prepared(Population(users=10, group_size=10)))
        settings = {
            "REDIS_URL": f"redis://127.0.0.1:{port}",
            "FALCON_MESSAGE_RATE": "1000000",
            "FALCON_MESSAGE_BURST": "1000000",
        }
        try:
            nodes = [
                stack.enter_context(real_server(ready, cores=run.cores.server, settings=settings))
                for _ in range(2)
            ]
        except PeerMissing as missing:
            outcome.skipped.append(str(missing))
            return
        sender, _ = stack.enter_context(listening(nodes[0].port, ready.tokens[0]))
        _, same = stack.enter_context(listening(nodes[0].port, ready.tokens[1]))
        _, other = stack.enter_context(listening(nodes[1].port, ready.tokens[2]))
        run.say(f"bus: latency of {messages} messages")
        sent: dict[int, float] = {}
        for item in range(messages):
            frame = {"type": "message", "room": ready.rooms[0], "data": {"n": item}}
            text = json.dumps(frame)
            sent[item] = time.perf_counter()
            sender.send(text)  # type: ignore[attr-defined]
            time.sleep(PACE)
        until = time.monotonic() + 5
        while (len(same) < messages or len(other) < messages) and time.monotonic() < until:
            time.sleep(0.05)
        for name, arrived in (("same node", same), ("other node", other)):
            if len(arrived) < messages:
                raise BenchmarkError(f"{name}: {len(arrived)} of {messages} messages came")
            late[name] = sorted((arrived[item] - sent[item]) * 1e3 for item in sent)
    figures: dict[str, Json] = {}
    rows = []
    for name, values in late.items():
        quantiles = statistics.quantiles(values, n=100)
        figures[name] = {"p50_ms": round(quantiles[49], 3), "p99_ms": round(quantiles[98], 3)}
        rows.append([name, f"{quantiles[49]:.2f}", f"{quantiles[98]:.2f}"])
    outcome.figures["latency"] = figures
    outcome.tables.append(
        Table("From one client to another, both on this machine", ["", "p50 ms", "p99 ms"], rows)
    )


def run(run: Run) -> Outcome:
    """Measure receiving, publishing and latency."""
    outcome = Outcome({"bytes": SIZE, "messages_in_one_turn": TURN, "loop": run.loop})
    with redis_server(cores=run.cores.client) as port:
        receiving(run, port, outcome)
        latency(run, port, outcome)
    return outcome
