"""The accountant finds what is wrong in a bad ledger, and nothing in a good one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..support.ledger import Ledger, audit

ROOM = "group:a"


def spoken(numbers: int = 5) -> Ledger:
    """Return a ledger in which ann says something at 10, 11, …, and bob and she hear it all."""
    ledger = Ledger()
    for name in ("ann", "bob"):
        ledger.join(name, ROOM, 0.0)
    for number in range(numbers):
        ledger.say("ann", ROOM, number, 10.0 + number)
        ledger.hear("ann", "ann", ROOM, number, 10.1 + number)
        ledger.hear("bob", "ann", ROOM, number, 10.2 + number)
    return ledger


def without(ledger: Ledger, *numbers: int, receiver: str = "bob") -> Ledger:
    ledger.heard = [
        one for one in ledger.heard if one.receiver != receiver or one.number not in numbers
    ]
    return ledger


def kinds(ledger: Ledger, *, unfinished_within: float | None = None) -> list[str]:
    found = audit(ledger, unfinished_within=unfinished_within)
    return [fault.partition(":")[0] for fault in found.faults]


def test_a_good_ledger() -> None:
    found = audit(spoken())
    found.require(said=5, wanted=10, heard=10)
    assert found.counts["announced"] == 0
    assert str(found).startswith("said 5, untaken 0, refused 0, wanted 10, heard 10, announced 0")


def test_an_empty_ledger_does_not_satisfy_a_requirement() -> None:
    audit(Ledger()).require()
    with pytest.raises(AssertionError, match="heard only 0"):
        audit(Ledger()).require(heard=1)
    with pytest.raises(AssertionError, match="heart"):
        audit(Ledger()).require(heart=0)


def test_faults_fail_the_test() -> None:
    with pytest.raises(AssertionError, match="bob missed ann #2"):
        audit(without(spoken(), 2)).require()


def test_a_silent_loss() -> None:
    assert kinds(without(spoken(), 2, 3)) == ["silent", "silent"]


@pytest.mark.parametrize(
    "room, at, faults",
    [
        (None, 12.0, []),
        (ROOM, 16.9, []),
        ("group:b", 13.0, ["silent"]),
        (None, 11.9, ["silent"]),
        (None, 17.1, ["silent"]),
    ],
    ids=["all rooms", "this room", "another room", "before the loss", "too late"],
)
def test_an_announced_loss(room: str | None, at: float, faults: list[str]) -> None:
    ledger = without(spoken(), 2)
    ledger.tell("bob", room, at)
    assert kinds(ledger) == faults
    assert audit(ledger).counts["announced"] == (not faults)


def test_somebody_else_was_told() -> None:
    ledger = without(spoken(), 2)
    ledger.tell("ann", None, 13.0)
    assert kinds(ledger) == ["silent"]


@pytest.mark.parametrize("at, faults", [(44.9, []), (45.1, ["silent"])])
def test_the_announcement_has_time_until_after_the_repair(at: float, faults: list[str]) -> None:
    ledger = without(spoken(), 2)
    for repair in (60.0, 5.0, 40.0):
        ledger.repair(repair)
    ledger.tell("bob", None, at)
    assert kinds(ledger) == faults


@pytest.mark.parametrize("end, faults", [(16.9, []), (17.1, ["silent"])])
def test_the_end_of_the_receivers_connection_is_an_announcement(
    end: float, faults: list[str]
) -> None:
    ledger = without(spoken(), 2)
    ledger.end("bob", end)
    assert kinds(ledger) == faults
    assert audit(ledger).counts["ended"] == (not faults)


def test_what_was_said_just_before_somebody_left_need_not_reach_him() -> None:
    ledger = without(spoken(), 3, 4)
    ledger.leave("bob", ROOM, 13.9)
    found = audit(ledger)
    found.require(wanted=8)
    assert found.counts["wanted"] == 8


@pytest.mark.parametrize("at, faults", [(16.9, []), (17.1, ["silent"])])
def test_who_is_no_member_any_more_need_not_be_told(at: float, faults: list[str]) -> None:
    ledger = without(spoken(), 2)
    ledger.leave("bob", ROOM, at)
    assert kinds(ledger) == faults


def test_what_was_said_before_somebody_came_is_not_wanted() -> None:
    ledger = without(spoken(), 0, 1)
    ledger.stays["bob", ROOM][0].begin = 11.5
    assert kinds(ledger) == []


@pytest.mark.parametrize(
    "at, faults", [(-1.0, ["outside"]), (20.9, []), (21.1, ["outside"]), (29.9, ["outside"])]
)
def test_a_message_outside_of_the_membership(at: float, faults: list[str]) -> None:
    ledger = spoken()
    ledger.leave("bob", ROOM, 20.0)
    ledger.join("bob", ROOM, 30.0)
    ledger.say("ann", ROOM, 7, at)
    ledger.hear("ann", "ann", ROOM, 7, max(at, 0.0))
    ledger.hear("bob", "ann", ROOM, 7, at)
    assert kinds(ledger) == faults
    assert audit(ledger).counts["late"] == (not faults)


def test_a_message_of_a_room_in_which_somebody_never_was() -> None:
    ledger = spoken()
    ledger.hear("eve", "ann", ROOM, 1, 11.3)
    assert kinds(ledger) == ["outside"]


def test_a_second_stay_is_as_good_as_the_first() -> None:
    ledger = spoken()
    ledger.leave("bob", ROOM, 20.0)
    ledger.join("bob", ROOM, 30.0)
    ledger.say("ann", ROOM, 7, 31.0)
    ledger.hear("ann", "ann", ROOM, 7, 31.1)
    assert kinds(ledger) == ["silent"]
    ledger.hear("bob", "ann", ROOM, 7, 31.1)
    assert kinds(ledger) == []


def test_duplicates_and_disorder() -> None:
    ledger = spoken()
    ledger.hear("bob", "ann", ROOM, 4, 15.0)
    assert kinds(ledger) == ["duplicate"]
    ledger.hear("bob", "ann", ROOM, 2, 15.1)
    assert kinds(ledger) == ["duplicate", "duplicate"]
    ledger = without(spoken(), 2)
    ledger.hear("bob", "ann", ROOM, 2, 15.0)
    assert kinds(ledger) == ["disorder"]


def test_the_same_number_in_another_room_or_of_another_sender_is_no_duplicate() -> None:
    ledger = spoken()
    for name in ("ann", "bob"):
        ledger.join(name, "group:b", 0.0)
    for sender, room in (("ann", "group:b"), ("bob", ROOM)):
        ledger.say(sender, room, 2, 12.0)
        for receiver in ("ann", "bob"):
            ledger.hear(receiver, sender, room, 2, 12.1)
    assert kinds(ledger) == []


def test_something_nobody_said() -> None:
    ledger = spoken()
    ledger.hear("bob", "ann", ROOM, 99, 16.0)
    assert kinds(ledger) == ["unsaid"]


def test_a_message_that_nobody_heard() -> None:
    ledger = spoken()
    ledger.say("ann", ROOM, 5, 15.0)
    assert kinds(ledger) == ["silent"]
    ledger.refuse("ann", ROOM, 5)
    assert kinds(ledger) == []
    assert audit(ledger).counts["refused"] == 1


@pytest.mark.parametrize("end, faults", [(15.9, []), (16.1, ["silent"])])
def test_a_message_whose_senders_connection_ended_before_it_was_taken(
    end: float, faults: list[str]
) -> None:
    ledger = spoken()
    ledger.say("ann", ROOM, 5, 15.0)
    ledger.end("ann", end)
    assert kinds(ledger) == faults
    assert audit(ledger).counts["untaken"] == 1


def unfinished() -> Ledger:
    ledger = without(spoken(), 3, 4)
    ledger.end("ann", 14.5)
    ledger.said = [one._replace(at=14.0) if one.number >= 3 else one for one in ledger.said]
    return ledger


def early(ledger: Ledger) -> Ledger:
    ledger.said = [one._replace(at=13.0) if one.number == 3 else one for one in ledger.said]
    return ledger


def known(ledger: Ledger) -> Ledger:
    for number in (3, 4):
        ledger.refuse("ann", ROOM, number)
    return early(ledger)


def gap(ledger: Ledger) -> Ledger:
    ledger.hear("bob", "ann", ROOM, 4, 14.6)
    return ledger


def alive(ledger: Ledger) -> Ledger:
    ledger.ends.clear()
    return ledger


@pytest.mark.parametrize(
    "spoil, faults",
    [(early, ["silent"]), (known, []), (gap, ["silent"]), (alive, ["silent", "silent"])],
)
def test_the_last_messages_of_a_sender_that_ended(
    spoil: Callable[[Ledger], Ledger], faults: list[str]
) -> None:
    assert kinds(unfinished()) == []
    assert audit(unfinished()).counts["unfinished"] == 2
    assert kinds(spoil(unfinished())) == faults


@pytest.mark.parametrize("at, faults", [(104.4, []), (104.6, ["silent", "silent"])])
def test_the_last_messages_of_a_sender_may_have_to_be_announced(
    at: float, faults: list[str]
) -> None:
    ledger = unfinished()
    ledger.tell("bob", None, at)
    assert kinds(ledger, unfinished_within=90.0) == faults
    found = audit(ledger, unfinished_within=90.0)
    assert found.counts["unfinished_announced"] == (0 if faults else 2)


def test_an_end_ends_all_memberships() -> None:
    ledger = Ledger()
    ledger.join("bob", ROOM, 1.0)
    ledger.join("bob", "group:b", 1.0)
    ledger.leave("bob", "group:b", 2.0)
    ledger.end("bob", 3.0)
    assert [stays[0].end for stays in ledger.stays.values()] == [3.0, 2.0]


@pytest.mark.parametrize("at, faults", [(16.9, []), (17.1, ["silent"])])
def test_who_leaves_by_himself_can_be_told_until_then(at: float, faults: list[str]) -> None:
    ledger = without(spoken(), 2)
    ledger.quit("bob", at)
    assert kinds(ledger) == faults
    ledger.tell("bob", None, 15.4)
    assert kinds(ledger) == []


def test_the_clock_is_the_default() -> None:
    ledger = Ledger()
    ledger.join("bob", ROOM)
    ledger.say("bob", ROOM, 1)
    ledger.hear("bob", "bob", ROOM, 1)
    ledger.tell("bob")
    ledger.repair()
    ledger.leave("bob", ROOM)
    ledger.end("bob")
    audit(ledger).require(said=1, heard=1)
