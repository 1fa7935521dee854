"""One run of a scenario: its options, its CPUs, and the order in which contenders take turns."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.macro.child import Child
from benchmarks.macro.control import LoopName
from benchmarks.macro.errors import ChildFailed, PeerMissing
from benchmarks.macro.machine import Cores
from benchmarks.macro.report import Outcome

T = TypeVar("T")


def say(line: str) -> None:
    """Print a line about the progress, with the time it came to that."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the command line asked for; None leaves the choice to the scenario.

    Attributes:
        cores: CPUs of the server and of the generator.
        quick: Tiny numbers: proves that the harness works, says nothing about speed.
        repeats: Repetitions of the whole round of contenders.
        loop: Event loop of the Python servers.
        connections: Connections, or members of the room.
        soak: Seconds of the density scenario's soak; 0 for none.
        layout: Rooms and members of each, where a scenario knows rooms.
        burst: Messages that are due at the same moment, in the same room.
        peers: Who takes part in the open-loop scenarios, beside the server and the C loop; None
            for everybody.
        against: Another copy of this repository, whose server takes part too; None for none.
        say: Takes lines about the progress.
    """

    cores: Cores
    quick: bool = False
    repeats: int | None = None
    loop: LoopName = "uvloop"
    connections: int | None = None
    soak: float = 0.0
    layout: tuple[int, int] | None = None
    burst: int = 1
    against: Path | None = None
    peers: Sequence[str] | None = ("websockets",)
    say: Callable[[str], None] = say

    def pick(self, asked: T | None, usual: T, quick: T) -> T:
        """Return what was asked for, or the usual number, or the one for a quick run."""
        if asked is not None:
            return asked
        return quick if self.quick else usual

    def module(self, name: str, *arguments: str) -> list[str]:
        """Return the command of a Python server of this package, on the run's loop."""
        return [
            sys.executable,
            "-m",
            f"benchmarks.macro.{name}",
            "--loop",
            self.loop,
            *arguments,
        ]

    def server(self, name: str, command: Sequence[str]) -> Child:
        """Start a server that speaks the protocol of child.py, on the server's CPU."""
        return Child(name, command, cores=self.cores.server)


def enter_present(
    stack: ExitStack,
    outcome: Outcome,
    contenders: Sequence[tuple[str, Callable[[], AbstractContextManager[T]]]],
    *,
    optional: Container[str] = (),
) -> dict[str, T]:
    """Start every contender that can run here; note why the others cannot.

    Raises:
        ChildFailed: One that is needed did not start.
    """
    present: dict[str, T] = {}
    for name, start in contenders:
        try:
            present[name] = stack.enter_context(start())
        except PeerMissing as missing:
            outcome.skipped.append(str(missing))
        except ChildFailed as failed:
            if name not in optional:
                raise
            outcome.skipped.append(f"{name}: {failed}")
    return present


def turns(names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Yield (repetition, name): each contender once a repetition, each time in another order.

    Who runs after whom matters by several percent (caches, the kernel's free lists), so nobody
    keeps a place; the orders are the same in every run.
    """
    for repetition in range(repeats):
        order = list(names)
        random.Random(repetition).shuffle(order)
        for name in order:
            yield repetition, name
