"""Storm: everybody comes back at the same moment, as after a restart or a failed switch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from benchmarks.macro.contenders import SUBJECT, Contender, Layout, starts
from benchmarks.macro.errors import ChildFailed, PeerMissing
from benchmarks.macro.figures import Json, Spread
from benchmarks.macro.load import Latencies
from benchmarks.macro.report import Comparison, Outcome, Table, Target
from benchmarks.macro.run import Run, turns

QUESTION = "15 000 clients reconnect at once: is everybody served, after what time, at what CPU"

#: Members of a room.
MEMBERS = 50
#: Seconds after which a client counts as not served.
PATIENCE = 60.0


@dataclass(slots=True)
class Samples:
    """What the storms of one contender showed."""

    cpu: list[float] = field(default_factory=list)  # µs of the server's CPU for an upgrade
    seconds: list[float] = field(default_factory=list)  # until the last one had its 101
    waits: Latencies = field(default_factory=lambda: Latencies({}))
    failed: int = 0


def storm(who: Contender, into: Samples, settle: float) -> None:
    """Connect everybody at leisure, cut all off, and let all come back at once."""
    count = who.layout.connections
    with who.turn():
        who.load.connect(count, timeout=300)
        who.load.wait_quiet(seconds=settle)
        who.load.disconnect(hard=True)
        before = who.server.cpu_seconds()
        # What the server still does about those that went is part of such a storm.
        done = who.load.try_to_connect(count, inflight=count, timeout=PATIENCE)
        who.load.wait_quiet(seconds=settle)
        into.cpu.append((who.server.cpu_seconds() - before) * 1e6 / count)
    into.seconds.append(done.seconds)
    into.waits += done.upgrades
    into.failed += done.failed


def run(run: Run) -> Outcome:
    """Start one contender after the other: a storm needs the machine for itself."""
    count = run.pick(run.connections, 15_000, 100)
    repeats = run.pick(run.repeats, 2, 1)
    layout = Layout(max(1, count // MEMBERS), min(MEMBERS, count))
    outcome = Outcome(
        {
            "connections": layout.connections,
            "members": layout.members,
            "repeats": repeats,
            "patience_seconds": PATIENCE,
            "loop": run.loop,
        }
    )
    contenders = dict(starts(run, layout, run.peers))
    samples: defaultdict[str, Samples] = defaultdict(Samples)
    missing: set[str] = set()
    for repetition, name in turns(list(contenders), repeats):
        if name in missing:
            continue
        run.say(f"storm: {name}, {repetition + 1} of {repeats}")
        try:
            with contenders[name]() as who:
                outcome.versions |= who.server.versions
                storm(who, samples[name], run.pick(None, 1.0, 0.2))
        except (PeerMissing, ChildFailed) as error:
            if name == SUBJECT:
                raise
            missing.add(name)
            outcome.skipped.append(f"{name}: {error}")
    summarise(outcome, {name: samples[name] for name in contenders if name not in missing})
    return outcome


def summarise(outcome: Outcome, samples: dict[str, Samples]) -> None:
    """Turn the samples into figures, a table and targets."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    values: dict[str, dict[str, float]] = {}
    for name, got in samples.items():
        cpu, seconds = Spread.of(got.cpu), Spread.of(got.seconds)
        p50, p99 = got.waits.quantile(0.5), got.waits.quantile(0.99)
        figures[name] = {
            "cpu_us_per_upgrade": cpu.json(),
            "seconds_to_the_last": seconds.json(),
            "upgrade_ms": {"p50": p50, "p99": p99, "max": got.waits.slowest * 1e-6},
            "failed": got.failed,
        }
        rows.append(
            [name, cpu.text(), seconds.text(), f"{p50:,.0f}", f"{p99:,.0f}", f"{got.failed:,}"]
        )
        values[name] = {
            "cpu": cpu.median,
            "seconds": seconds.median,
            "p99": p99,
            "failed": float(got.failed),
        }
    outcome.figures["contenders"] = figures
    outcome.tables.append(
        Table(
            "Reconnect storm: median (quartiles)",
            ["", "µs CPU/upgrade", "s to the last", "p50 ms", "p99 ms", "not served"],
            rows,
        )
    )
    outcome.comparison = Comparison(
        f"{outcome.parameters['connections']:,} reconnect at once",
        {"cpu": "µs CPU/upgrade", "seconds": "s to the last", "p99": "p99 ms", "failed": "failed"},
        values,
    )
    failed = float(samples[SUBJECT].failed)
    outcome.targets.append(Target("clients that were not served", failed, 0.0))
