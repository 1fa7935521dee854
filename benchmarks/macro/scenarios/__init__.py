"""The scenarios, one question each; `ALL` is the table the command line reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.macro.report import Outcome
from benchmarks.macro.run import Run
from benchmarks.macro.scenarios import (
    admin,
    broadcast,
    bus,
    deflate,
    density,
    echo,
    fanout,
    groups,
    idle,
    large,
    presence,
    rooms,
    stalled,
    storm,
    upgrades,
    workers,
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A name, the question it answers, and how to ask it."""

    name: str
    question: str
    run: Callable[[Run], Outcome]


ALL = {
    scenario.name: scenario
    for scenario in (
        Scenario("density", density.QUESTION, density.run),
        Scenario("fanout", fanout.QUESTION, fanout.run),
        Scenario("echo", echo.QUESTION, echo.run),
        Scenario("upgrades", upgrades.QUESTION, upgrades.run),
        Scenario("admin", admin.QUESTION, admin.run),
        Scenario("deflate", deflate.QUESTION, deflate.run),
        Scenario("broadcast", broadcast.QUESTION, broadcast.run),
        Scenario("rooms", rooms.QUESTION, rooms.run),
        Scenario("idle", idle.QUESTION, idle.run),
        Scenario("storm", storm.QUESTION, storm.run),
        Scenario("large", large.QUESTION, large.run),
        Scenario("stalled", stalled.QUESTION, stalled.run),
        Scenario("presence", presence.QUESTION, presence.run),
        Scenario("bus", bus.QUESTION, bus.run),
        Scenario("groups", groups.QUESTION, groups.run),
        Scenario("workers", workers.QUESTION, workers.run),
    )
}
