"""Idle: what a connection costs that says nothing, in memory and in CPU for pings.

The C relay sends the same pings, from the same number of sockets in as many turns, and nothing else
wakes it: what it takes is the kernel's price. On a machine with other tenants that price is high
and moves by the minute, for what wakes rarely finds nothing of its own in the caches.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.macro.contenders import NAMES, ROOFLINE, SUBJECT, Contender, Layout, starts
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, rounded
from benchmarks.macro.load import MAX_CONNECTIONS
from benchmarks.macro.machine import slab_bytes
from benchmarks.macro.report import Comparison, Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present

QUESTION = "idle connections next to peers: resident bytes (slope) and CPU for 30 s of pings"

#: Members of a room; a connection of the real server is in three.
MEMBERS = 50
#: Seconds between two pings to a connection, of the server by default.
PING = 30.0
#: Largest CPU of the server, in microseconds for a connection and second.
LIMIT_US = 1.0
#: Largest resident size, in bytes a connection.
LIMIT_BYTES = 768.0
#: Who is to be larger.
RIVAL = "uWebSockets.js"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one contender's idle connections cost.

    Attributes:
        resident: bytes a connection, between half of them and all.
        slab: bytes of the kernel's slab a connection, for both ends.
        cpu: microseconds for a connection and second.
        pings: answered by a connection in a minute.
    """

    resident: float
    slab: float
    cpu: float
    pings: float


def grow(who: Contender, settle: float, level: int) -> tuple[int, int]:
    """Connect up to a level; returns the server's resident bytes and the kernel's slab there."""
    who.load.connect(level - who.load.stats().open, timeout=300)
    who.load.wait_quiet(seconds=settle)
    who.server.ask("settle", timeout=120)
    return who.server.resident_bytes(), slab_bytes()


def run(run: Run) -> Outcome:
    """Connect everybody's clients, then watch all at the same time."""
    most = run.pick(run.connections, 10_000, 200)
    if most > MAX_CONNECTIONS or most % (2 * MEMBERS):
        raise BenchmarkError(f"at most {MAX_CONNECTIONS} connections, in hundreds")
    seconds, settle = run.pick(None, PING, 0.5), run.pick(None, 1.0, 0.2)
    outcome = Outcome(
        {
            "connections": most,
            "members": MEMBERS,
            "seconds": seconds,
            "ping": PING,
            "loop": run.loop,
        }
    )
    layout = Layout(most // MEMBERS, MEMBERS)
    costs: dict[str, Cost] = {}
    with ExitStack() as stack:
        # One after the other: a connection that comes for one would be memory of another's slab.
        present: dict[str, Contender] = {}
        memory: dict[str, tuple[float, float]] = {}
        for name, start in starts(run, layout, run.peers, ping=PING):
            run.say(f"idle: {name} connects")
            present |= enter_present(stack, outcome, [(name, start)], optional=NAMES)
            if name not in present:
                continue
            who = present[name]
            outcome.versions |= who.server.versions
            (half, slab_half), (full, slab_full) = map(
                partial(grow, who, settle), (most // 2, most)
            )
            step = most - most // 2
            memory[name] = (full - half) / step, (slab_full - slab_half) / step
        run.say(f"idle: {seconds:g} s of silence")
        before = {
            name: (who.server.cpu_seconds(), who.load.stats().pings, time.monotonic())
            for name, who in present.items()
        }
        time.sleep(seconds)
        for name, who in present.items():
            cpu, pings, began = before[name]
            passed = time.monotonic() - began
            used, stats = who.server.cpu_seconds() - cpu, who.load.stats()
            if stats.open != most:
                outcome.skipped.append(f"{name}: {most - stats.open} connections ended")
            costs[name] = Cost(
                *memory[name],
                cpu=used * 1e6 / passed / most,
                pings=(stats.pings - pings) * 60 / passed / most,
            )
    summarise(outcome, costs)
    return outcome


def summarise(outcome: Outcome, costs: dict[str, Cost]) -> None:
    """Turn the costs into figures, tables and targets."""
    contenders: dict[str, Json] = {
        name: {
            "resident_bytes_per_connection": rounded(cost.resident),
            "slab_both_ends": rounded(cost.slab),
            "cpu_us_per_connection_and_second": rounded(cost.cpu),
            "pings_per_minute": rounded(cost.pings),
        }
        for name, cost in costs.items()
    }
    outcome.tables.append(
        Table(
            "Idle connections",
            ["", "resident bytes", "slab, both ends", "µs CPU a second", "pings a minute"],
            [
                [
                    name,
                    f"{cost.resident:,.0f}",
                    f"{cost.slab:,.0f}",
                    f"{cost.cpu:.2f}",
                    f"{cost.pings:.1f}",
                ]
                for name, cost in costs.items()
            ],
        )
    )
    own, floor = costs[SUBJECT], costs[ROOFLINE]
    outcome.figures["contenders"] = contenders
    if floor.cpu:
        outcome.figures["cpu_to_c_relay"] = rounded(own.cpu / floor.cpu)
    shown = {name: replace(cost) for name, cost in costs.items() if name != ROOFLINE}
    outcome.comparison = Comparison(
        "Idle connections",
        {"resident": "resident bytes each", "cpu": "µs CPU each and second", "pings": "pings/min"},
        {
            name: {"resident": cost.resident, "cpu": cost.cpu, "pings": cost.pings}
            for name, cost in shown.items()
        },
    )
    outcome.targets += [
        Target("resident bytes of an idle connection in 3 rooms", own.resident, LIMIT_BYTES),
        Target("µs of CPU for an idle connection and second", own.cpu, LIMIT_US),
    ]
    if RIVAL in costs:
        ratio = own.resident / max(1.0, costs[RIVAL].resident)
        outcome.targets.append(Target(f"resident bytes to those of {RIVAL}", ratio, 1.0))
