"""Stalled: one reader in a hundred reads nothing any more; do the others notice?"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack

from benchmarks.macro.contenders import NAMES, SUBJECT, Contender, Layout, starts
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, Spread, rounded
from benchmarks.macro.open_loop import Series, Window, connect, measure
from benchmarks.macro.report import Comparison, Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns

QUESTION = "p99 of the others when 1 % of the readers stall, in a room of 100 at 1 MB/s each"

#: One in so many stalls; the rest of the room is timed.
EVERY = 100
#: Payload of a delivery, in bytes, and messages a second: a megabyte a second for each member, so
#: that the socket of a stalled one is full after about two seconds and a queue soon after.
SIZE = 4_000
RATE = 250.0
#: Seconds of a window: long enough for whatever a server does about a full queue.
WINDOW = 4.0
ALONE, STALLED = "all read", "1 % stall"
#: Largest ratio of the p99 with stalled readers to that without.
LIMIT = 1.1


def window_of(who: Contender, kind: str, seconds: float, every: int) -> Window:
    """Take a window of a kind; afterwards all members are there again.

    Raises:
        BenchmarkError: Nobody could be stalled, or they did not come back.
    """
    members = who.layout.members
    stalled = who.load.stall(every) if kind == STALLED else 0
    if kind == STALLED and stalled != members // every:
        raise BenchmarkError(f"{who.name}: {stalled} connections stalled")
    window = measure(who, rate=RATE, seconds=seconds, receivers=members - stalled)
    with who.turn():
        who.load.release()
        if gone := members - who.load.stats().open:
            back = who.load.try_to_connect(gone, narrow=every, timeout=30)
            if back.failed:
                raise BenchmarkError(f"{who.name}: {back.reason}")
        who.load.wait_quiet(seconds=0.2)
    return window


def run(run: Run) -> Outcome:
    """Measure windows of both kinds in turn, for every contender that is present."""
    every = 5 if run.quick else EVERY
    layout = Layout(1, run.pick(run.connections, 100, 10))
    repeats = run.pick(run.repeats, 7, 1)
    seconds, settle = run.pick(None, WINDOW, 0.3), run.pick(None, 0.5, 0.1)
    outcome = Outcome(
        {
            "members": layout.members,
            "stalled": layout.members // every,
            "bytes": SIZE,
            "messages_per_second": RATE,
            "seconds_of_a_window": seconds,
            "repeats": repeats,
            "loop": run.loop,
        }
    )
    samples: defaultdict[tuple[str, str], Series] = defaultdict(Series)
    with ExitStack() as stack:
        present = enter_present(stack, outcome, starts(run, layout, run.peers), optional=NAMES)
        for name, who in list(present.items()):
            outcome.versions |= who.server.versions
            try:
                present[name] = connect(who, size=SIZE, seconds=settle, narrow=every)
                for kind in (ALONE, STALLED):  # warm-up
                    window_of(present[name], kind, seconds / 4, every)
            except BenchmarkError as error:
                outcome.skipped.append(f"{name}: {error}")
                del present[name]
        run.say(f"stalled: {repeats} repetitions of {seconds:g} s each way")
        for repetition, name in turns(list(present), repeats):
            kinds = (ALONE, STALLED) if repetition % 2 else (STALLED, ALONE)
            for kind in kinds:
                window = window_of(present[name], kind, seconds, every)
                samples[name, kind].windows.append(window)
    summarise(outcome, list(present), samples)
    return outcome


def summarise(outcome: Outcome, names: list[str], samples: dict[tuple[str, str], Series]) -> None:
    """Turn the windows into figures, a table and the target."""
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    values: dict[str, dict[str, float]] = {}
    for name in names:
        alone, stalled = samples[name, ALONE], samples[name, STALLED]
        ratio = Spread.of_ratios(
            [window.p99 for window in stalled.windows], [window.p99 for window in alone.windows]
        )
        pooled = {ALONE: alone.pooled(), STALLED: stalled.pooled()}
        p99 = {kind: times.quantile(0.99) for kind, times in pooled.items()}
        lost = sum(window.lost for window in (*alone.windows, *stalled.windows))
        figures[name] = {
            "p99_ratio": ratio.json(),
            "p99_ms": {kind: rounded(value) for kind, value in p99.items()},
            "max_ms": {kind: rounded(times.slowest * 1e-6) for kind, times in pooled.items()},
            "pooled_p99_ratio": rounded(p99[STALLED] / p99[ALONE]),
            "lost_by_the_others": lost,
        }
        rows.append(
            [name, f"{p99[ALONE]:.2f}", f"{p99[STALLED]:.2f}", ratio.text(".3f"), f"{lost:,}"]
        )
        values[name] = {"p99": p99[STALLED], "ratio": ratio.median, "lost": float(lost)}
        if name == SUBJECT:
            outcome.targets.append(Target("p99 with 1 % stalled to without", ratio.median, LIMIT))
            outcome.targets.append(Target("deliveries that the others lost", float(lost), 0.0))
    outcome.figures["contenders"] = figures
    outcome.tables.append(
        Table(
            "Stalled readers: what the others see",
            ["", f"p99 ms, {ALONE}", f"p99 ms, {STALLED}", "ratio of windows", "lost"],
            rows,
        )
    )
    outcome.comparison = Comparison(
        "1 % of the readers stall",
        {"p99": "p99 ms of the others", "ratio": "to that without", "lost": "lost by the others"},
        values,
    )
