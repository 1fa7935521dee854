"""Rooms by name: joining, leaving, what the others are told, and which rooms there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from falcon_fast._core import Core
from falcon_fast.codes import CloseReason, close_table
from falcon_fast.rooms import Joined, RoomInfo, Rooms, group_room, user_room

from ..support.clock import FakeClock
from ..support.gateway import Json, strict
from ..support.transport import FakeTransport

HALL = group_room("0" * 24)
CELLAR = group_room("1" * 24)


class Member:
    def __init__(self, ident: str) -> None:
        self.id = ident
        self.conn = 0


class House:
    """A core, its rooms, and all that was published."""

    def __init__(self, *, max_rooms: int = 512, events_max: int = 1_000) -> None:
        self.clock = FakeClock()
        self.published: list[tuple[str, Json]] = []
        self.scheduled: list[Callable[[], None]] = []
        self.closed: list[str] = []
        self.core: Core[Member] = Core(
            on_message=lambda member, payload, is_text: None,
            on_close=self._on_close,
            on_refused=lambda member, payload, number: None,
            on_expire=lambda member: None,
            on_error=self._on_error,
            schedule=self.scheduled.append,
            close_table=close_table(),
            clock=self.clock.monotonic,
            max_connections=64,
            max_rooms=max_rooms,
            epoll=False,
        )
        self.rooms: Rooms[Member] = Rooms(
            self.core,
            clock=self.clock,
            max_rooms=max_rooms,
            events_max=events_max,
            publish=self._publish,
        )

    def _on_close(self, member: Member, reason: int, code: int) -> None:
        self.rooms.leave_all(member)
        self.closed.append(member.id)

    def _on_error(self, error: BaseException) -> None:
        raise AssertionError from error

    def _publish(self, name: str, frame: bytes, members: int) -> None:
        assert members == self.rooms.member_count(name) + ("member_joined" in frame.decode())
        self.published.append((name, strict(frame)))
        self.rooms.fan_out(name, frame)

    def member(self, ident: str, *names: str) -> Member:
        member = Member(ident)
        link = self.core.adopt_transport(FakeTransport(), member)
        member.conn = link.handle
        for name in names:
            assert self.rooms.join(member, name) is Joined.NOW
        return member

    def take(self) -> list[tuple[str, Any]]:
        """Return (room, data) of what was published since the last call."""
        published, self.published = self.published, []
        for room, frame in published:
            assert (frame["type"], frame["room"]) == ("room_update", room)
        return [(room, frame["data"]) for room, frame in published]


def change(action: str, who: str, count: int, room: str = HALL) -> tuple[str, Json]:
    return room, {
        "action": action,
        "connection_id": who,
        "member_count": count,
        "room_id": room,
    }


def test_names() -> None:
    assert user_room("ann") == "user:ann"
    assert HALL == "group:000000000000000000000000"


def test_the_others_are_told_of_joins_and_leaves_and_the_newcomer_is_not() -> None:
    house = House()
    ann = house.member("ann", HALL)
    assert house.take() == []
    bob = house.member("bob", HALL)
    assert house.take() == [change("member_joined", "bob", 2)]
    assert house.rooms.members(HALL) == [ann, bob]
    assert house.rooms.leave(ann, HALL)
    assert house.take() == [change("member_left", "ann", 1)]
    assert house.rooms.leave(bob, HALL)
    assert house.take() == []
    assert len(house.rooms) == 0


def test_joining_twice_and_leaving_twice() -> None:
    house = House()
    ann = house.member("ann", HALL)
    assert house.rooms.join(ann, HALL) is Joined.ALREADY
    assert house.rooms.leave(ann, HALL)
    assert not house.rooms.leave(ann, HALL)
    assert not house.rooms.leave(ann, CELLAR)
    assert house.take() == []


def test_the_limit_of_a_connection_makes_no_room() -> None:
    house = House(max_rooms=2)
    ann = house.member("ann", "user:ann", HALL)
    house.member("bob", CELLAR)
    assert house.rooms.join(ann, CELLAR) is Joined.LIMIT
    assert house.rooms.join(ann, group_room("2" * 24)) is Joined.LIMIT
    assert house.rooms.join(ann, HALL) is Joined.ALREADY
    assert house.rooms.names_of(ann) == ["user:ann", HALL]
    assert list(house.rooms.names()) == ["user:ann", HALL, CELLAR]
    assert house.take() == []


def test_a_room_lives_from_its_first_member_to_its_last() -> None:
    house = House()
    ann = house.member("ann", HALL)
    assert HALL in house.rooms
    house.rooms.leave(ann, HALL)
    assert HALL not in house.rooms
    assert house.rooms.info(HALL) is None
    assert house.rooms.members(HALL) == []
    assert house.rooms.member_count(HALL) == 0
    assert house.rooms.fan_out(HALL, b"{}") == 0
    assert house.rooms.group_name(HALL) == ""
    # The number is used again, for another room.
    house.rooms.join(ann, CELLAR)
    assert house.rooms.names_of(ann) == [CELLAR]
    assert not house.rooms.is_member(ann, HALL)
    assert house.rooms.is_member(ann, CELLAR)


def test_a_closed_connection_leaves_all_its_rooms() -> None:
    house = House()
    ann = house.member("ann", "user:ann", HALL, CELLAR)
    house.member("bob", HALL)
    house.take()
    house.core.close(ann.conn, CloseReason.NORMAL)
    assert house.closed == ["ann"]
    assert house.take() == [change("member_left", "ann", 1)]
    assert list(house.rooms.names()) == [HALL]
    assert house.rooms.names_of(ann) == []
    assert not house.rooms.leave(ann, HALL)


def test_large_rooms_are_told_a_count_once_a_second() -> None:
    house = House(events_max=2)
    members = [house.member(str(i), HALL) for i in range(4)]
    assert house.take() == [change("member_joined", "1", 2)]
    count = {"action": "member_count", "member_count": 4, "room_id": HALL}
    house.rooms.tell_counts()
    assert house.take() == [(HALL, count)]
    house.rooms.tell_counts()
    assert house.take() == []
    house.rooms.leave(members[0], HALL)
    house.rooms.leave(members[1], HALL)
    assert house.take() == [change("member_left", "1", 2)]
    house.rooms.tell_counts()
    assert house.take() == [(HALL, {**count, "member_count": 2})]


def test_a_large_room_that_is_gone_is_told_nothing() -> None:
    house = House(events_max=0)
    ann = house.member("ann", HALL)
    bob = house.member("bob", HALL)
    house.rooms.leave(ann, HALL)
    house.rooms.leave(bob, HALL)
    house.rooms.tell_counts()
    assert house.take() == []


@pytest.mark.parametrize("title, name", [("Fleet", "Group: Fleet"), (None, "Group: ")])
def test_a_group_room_as_an_operator_sees_it(title: str | None, name: str) -> None:
    house = House()
    ann, bob = house.member("ann"), house.member("bob")
    start = house.clock.time()
    house.rooms.join(ann, HALL, title)
    house.clock.advance(5)
    house.rooms.join(bob, HALL, title)
    assert house.rooms.info(HALL) == RoomInfo(HALL, "group", name, 2, start, start + 5)
    house.clock.advance(5)
    house.rooms.leave(ann, HALL)
    assert house.rooms.info(HALL) == RoomInfo(HALL, "group", name, 1, start, start + 10)
    assert house.rooms.group_name(HALL) == (title or "")


def test_a_personal_room_as_an_operator_sees_it() -> None:
    house = House()
    house.member("ann", "user:ann")
    now = house.clock.time()
    assert house.rooms.info("user:ann") == RoomInfo(
        "user:ann", "personal", "Personal Room", 1, now, now
    )


def test_a_group_may_be_renamed() -> None:
    house = House()
    ann, bob = house.member("ann"), house.member("bob")
    house.rooms.join(ann, HALL, "Old")
    house.rooms.join(bob, HALL, "New")
    assert house.rooms.group_name(HALL) == "New"
    house.rooms.join(bob, HALL, "Newest")
    assert house.rooms.group_name(HALL) == "Newest"
    house.rooms.join(bob, HALL)
    assert house.rooms.group_name(HALL) == "Newest"


def test_sharing_a_room() -> None:
    house = House()
    ann = house.member("ann", "user:ann", HALL)
    bob = house.member("bob", "user:bob", HALL)
    eve = house.member("eve", "user:eve", CELLAR)
    alone = house.member("alone")
    assert house.rooms.share(ann, bob)
    assert not house.rooms.share(ann, eve)
    assert not house.rooms.share(ann, alone)
    assert house.rooms.share(ann, ann)


def test_a_number_that_is_not_in_use_is_a_mistake() -> None:
    house = House()
    ann = house.member("ann", HALL)
    house.rooms.leave(ann, HALL)
    with pytest.raises(LookupError, match="not in use"):
        house.rooms._name(1)


def test_rooms_are_counted_by_type() -> None:
    house = House()
    house.member("ann", "user:ann", HALL)
    house.member("bob", "user:bob")
    assert (house.rooms.count(), house.rooms.count("group")) == (3, 1)
