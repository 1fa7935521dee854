"""Rooms: sustained traffic, upwards until it is too much; what a delivery costs up there.

With one message at a time a delivery is a send, and what a send costs is the kernel's affair. With
bursts (a batch from another node, a client that says several things at once) it shows who puts
together what goes to the same member: whoever sends each message by itself may need longer for one
burst than the limit on p99, and then has no knee.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.macro.contenders import NAMES, ROOFLINE, SUBJECT, Contender, Layout, starts
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json, rounded
from benchmarks.macro.open_loop import GENERATOR_BUSY, PATIENCE, Series, Window, connect, measure
from benchmarks.macro.report import Comparison, Outcome, Table, Target
from benchmarks.macro.run import Run, enter_present, turns

QUESTION = "sustained room traffic, swept upwards to the knee; 10 rooms of 1 000, or --layout"

#: The knee is the highest rate at which 99 % of the deliveries take less, and none is lost.
LIMIT_MS = 100.0
#: Deliveries a second of the first step.
FIRST = 40_000.0
#: Steps go by this factor until one fails; then half-way (of the exponents) between good and bad,
#: until those are this close to each other.
FACTOR = 2.0
CLOSE = 1.2
#: Bursts a second below which the rate is not what is too much: one burst alone takes too long.
LEAST = 4.0
#: A step whose p99 is above the limit, but not this many times, may have been disturbed.
NEARLY = 3.0
#: Seconds for the deliveries of those that carry not even the least: what they cost is of interest.
LONG_PATIENCE = 20.0
#: Most steps.
STEPS = 14
#: Seconds for the search, a contender: on a machine that others disturb a knee stays where it is.
SEARCH_SECONDS = 14.0
#: Where latency is compared: at this share of everybody's own knee.
SHARE = 0.7
#: What was promised for 10 rooms of 1 000: deliveries a CPU second, to those of the peer.
AHEAD = {"websockets": 10.0, "ws": 3.0}
AT_SHARE, AT_KNEE = "at 70 % of the knee", "at the knee"


@dataclass(slots=True)
class Search:
    """Where one contender's knee is, as far as is known.

    Attributes:
        first: the rate of the first step.
        least: the lowest rate that makes sense; whoever does not carry that has no knee.
        good: the highest rate that was carried, in messages a second; 0 for none yet.
        bad: the lowest rate that was not; 0 for none yet.
        best: the window at the highest good rate.
        steps: all windows, in the order they were taken.
        doubt: a rate that was nearly carried, and is tried once more; 0 for none.
    """

    first: float
    least: float
    good: float = 0.0
    bad: float = 0.0
    best: Window | None = None
    steps: list[Window] = field(default_factory=list)
    doubt: float = 0.0

    @property
    def done(self) -> bool:
        """Whether the knee is known well enough, or there is none to be found."""
        if len(self.steps) >= STEPS or 0 < self.bad <= self.least:
            return True
        return self.good > 0 and 0 < self.bad <= self.good * CLOSE

    @property
    def top(self) -> float:
        """The rate to compare at: the knee, or the least there is."""
        return self.good or self.least

    def next(self) -> float:
        """Return the rate of the next step."""
        if self.doubt:
            return self.doubt
        if self.bad == 0:
            return self.good * FACTOR or self.first
        if self.good == 0:
            return max(self.bad / FACTOR, self.least)
        return float((self.good * self.bad) ** 0.5)

    def note(self, window: Window, carried: bool) -> None:
        """Take in a step."""
        self.steps.append(window)
        nearly = window.lost == 0 and window.p99 <= LIMIT_MS * NEARLY
        if carried:
            self.good, self.best = window.rate, window
        elif nearly and window.rate != self.doubt:
            self.doubt = window.rate
            return
        else:
            self.bad = window.rate
        self.doubt = 0.0


def carried(window: Window) -> bool:
    """Tell whether the contender kept up."""
    return window.lost == 0 and window.p99 <= LIMIT_MS


def restore(who: Contender) -> None:
    """Let what is late arrive, and connect those again that the server has given up on."""
    with who.turn():
        who.load.wait_quiet(seconds=0.3, timeout=60)
        if who.load.stats().open < who.layout.connections:
            who.load.disconnect(hard=True)
            who.load.connect(who.layout.connections)
            who.load.wait_quiet(seconds=0.5)


def step(
    who: Contender,
    gave_up: Counter[str],
    rate: float,
    seconds: float,
    burst: int,
    enough: Callable[[Window], bool] | None = None,
    patience: float = PATIENCE,
) -> tuple[Window, bool]:
    """Take one window and clean up after one that was too much; counts who was lost before it."""
    if (left := who.load.stats().open) < who.layout.connections:
        # It gave up on some of them while others had their turn.
        gave_up[who.name] += who.layout.connections - left
        restore(who)
    window = measure(who, rate=rate, seconds=seconds, burst=burst, enough=enough, patience=patience)
    good = carried(window) and who.load.stats().open == who.layout.connections
    if not good:
        restore(who)
    return window, good


def run(run: Run) -> Outcome:
    """Search everybody's knee in turns, then compare at the knees and below them."""
    layout = Layout(*(run.layout or ((2, 10) if run.quick else (10, 1000))))
    repeats = run.pick(run.repeats, 3, 1)
    short, long = run.pick(None, 1.0, 0.2), run.pick(None, 2.0, 0.3)
    outcome = Outcome(
        {
            "rooms": layout.rooms,
            "members": layout.members,
            "burst": run.burst,
            "knee": f"p99 at most {LIMIT_MS:g} ms, nothing lost",
            "seconds_of_a_step": short,
            "seconds_of_a_window": long,
            "repeats": repeats,
            "loop": run.loop,
        }
    )
    searches: dict[str, Search] = {}
    finals: defaultdict[tuple[str, str], Series] = defaultdict(Series)
    gave_up: Counter[str] = Counter()

    def leave_out(name: str, error: BenchmarkError) -> None:
        """Go on without a peer; without the server or the C loop there is nothing to compare."""
        if name not in NAMES:
            raise error
        outcome.skipped.append(f"{name}: {error}")
        del present[name]

    with ExitStack() as stack:
        present = enter_present(stack, outcome, starts(run, layout, run.peers), optional=NAMES)
        for name, who in list(present.items()):
            outcome.versions |= who.server.versions
            run.say(f"rooms {layout.text()}: {name} connects")
            try:
                present[name] = connect(who, seconds=run.pick(None, 0.5, 0.1))
            except BenchmarkError as error:
                # One that cannot even hold the connections is a result, not an end of the run.
                outcome.skipped.append(f"{name}: {error}")
                del present[name]
                continue
            first = (400 if run.quick else FIRST) / layout.members
            least = LEAST * run.burst
            searches[name] = Search(max(least, first), least)
        deadline = time.monotonic() + SEARCH_SECONDS * len(present)
        while active := [name for name in present if not searches[name].done]:
            if time.monotonic() > deadline or (run.quick and len(searches[active[0]].steps) >= 3):
                break
            for name in active:
                rate = searches[name].next()
                try:
                    window, good = step(present[name], gave_up, rate, short, run.burst, carried)
                except BenchmarkError as error:
                    leave_out(name, error)
                    continue
                searches[name].note(window, good)
        run.say(f"rooms {layout.text()}: {repeats} repetitions at and below the knees")
        for _, name in turns(list(present), repeats):
            for where, share in ((AT_SHARE, SHARE), (AT_KNEE, 1.0)):
                if name not in present:
                    continue
                rate = max(searches[name].top * share, searches[name].least)
                try:
                    patience = PATIENCE if searches[name].good else LONG_PATIENCE
                    window, _ = step(
                        present[name], gave_up, rate, long, run.burst, patience=patience
                    )
                except BenchmarkError as error:
                    leave_out(name, error)
                    continue
                finals[name, where].windows.append(window)
    summarise(outcome, layout, list(present), searches, finals)
    outcome.figures["clients_lost_between_turns"] = dict(gave_up)
    return outcome


def summarise(
    outcome: Outcome,
    layout: Layout,
    names: list[str],
    searches: dict[str, Search],
    finals: dict[tuple[str, str], Series],
) -> None:
    """Turn the windows into figures, a table and targets."""
    burst = outcome.parameters["burst"]
    figures: dict[str, Json] = {}
    rows: list[list[str]] = []
    per_cpu: dict[str, float] = {}
    p99: dict[str, float] = {}
    batch: dict[str, float] = {}
    for name in names:
        knee = searches[name].good * layout.members
        below, at = finals[name, AT_SHARE], finals[name, AT_KNEE]
        cost = at.spread("cpu_us")
        per_cpu[name] = 1e6 / cost.median
        # Whoever else uses the machine only adds: the best window is the least disturbed one.
        p99[name] = min(window.p99 for window in below.windows)
        busy = max(window.load_busy for window in at.windows)
        limited = busy >= GENERATOR_BUSY or searches[name].bad == 0
        last = at.windows[-1]
        batch[name] = last.deliveries.total / max(1, last.published.reads)
        figures[name] = {
            "knee_deliveries_per_second": rounded(knee),
            "or_more": limited,
            "deliveries_per_cpu_second": rounded(per_cpu[name]),
            "cpu_us_per_delivery": cost.json(),
            "p99_ms_at_70_percent": rounded(p99[name]),
            AT_SHARE: [window.json() for window in below.windows],
            AT_KNEE: [window.json() for window in at.windows],
            "steps": [window.json() for window in searches[name].steps],
        }
        rows.append(
            [
                name,
                f"{'≥ ' if limited else ''}{knee:,.0f}" if knee else "none",
                cost.text(),
                f"{per_cpu[name]:,.0f}",
                f"{per_cpu[name] / per_cpu[SUBJECT]:.3f}" if SUBJECT in per_cpu else "-",
                f"{p99[name]:.1f}" if knee else "-",
                f"{batch[name]:.1f}",
                f"{last.server_busy:.0%} / {busy:.0%}",
            ]
        )
    outcome.figures["contenders"] = figures
    outcome.tables.append(
        Table(
            f"Rooms {layout.text()}, {burst} at a time: sustained traffic, at everybody's own knee",
            [
                "",
                "knee, deliveries/s",
                "µs CPU/delivery",
                "deliveries/CPU s",
                "to falcon_fast",
                "p99 ms at 70 %",
                "msgs/read",
                "busy: server / load",
            ],
            rows,
        )
    )
    outcome.comparison = Comparison(
        f"{layout.text()} members, {burst} at a time",
        {
            "cpu": "µs CPU/delivery at the knee",
            "knee": "knee, deliveries/s",
            "p99": "p99 ms at 70 % of it, best window",
            "batch": "messages/read",
        },
        {
            name: {
                "cpu": 1e6 / per_cpu[name],
                "knee": searches[name].good * layout.members,
                "batch": batch[name],
                # Who has no knee has no share of it either.
                **({"p99": p99[name]} if searches[name].good else {}),
            }
            for name in names
        },
    )
    if SUBJECT not in per_cpu:
        return
    for peer in names:
        if peer in (SUBJECT, ROOFLINE):
            continue
        title = f"deliveries per CPU second, {layout.text()}, to those of {peer}"
        ratio = per_cpu[SUBJECT] / per_cpu[peer]
        outcome.targets.append(Target(title, ratio, AHEAD.get(peer, 1.0), at_most=False))
        if not searches[peer].good:
            continue
        title = f"p99 at 70 % of the knee, {layout.text()}, to that of {peer}"
        outcome.targets.append(Target(title, p99[SUBJECT] / p99[peer], 1.0))
