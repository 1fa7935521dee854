"""Rooms by name: who joins and leaves, what the others are told, and which rooms exist.

A room exists from its first member to its last. The native core knows rooms as numbers and sets of
slots; names, titles and times are kept here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

from falcon_fast import envelope
from falcon_fast._core import Core
from falcon_fast.clock import Clock

__all__ = [
    "Joined",
    "Member",
    "RoomInfo",
    "Rooms",
    "group_room",
    "user_room",
]

RoomType = Literal["personal", "group"]

PERSONAL_TITLE: Final = "Personal Room"


def user_room(user_id: str) -> str:
    """Return the name of a user's personal room."""
    return f"user:{user_id}"


def group_room(group_id: str) -> str:
    """Return the name of a group's room."""
    return f"group:{group_id}"


class Member(Protocol):
    """What rooms need to know of a connection."""

    id: str
    conn: int


MemberT = TypeVar("MemberT", bound=Member)


class Joined(enum.IntEnum):
    """What became of a join."""

    LIMIT = -1  # the connection is in as many rooms as it may be
    ALREADY = 0
    NOW = 1


@dataclass(frozen=True, slots=True)
class RoomInfo:
    """A room as an operator sees it; times are seconds since 1970."""

    id: str
    type: RoomType
    name: str
    member_count: int
    created_at: float
    updated_at: float


@dataclass(slots=True)
class _Room:
    name: str
    title: str | None  # None for personal rooms, which are many and all called the same
    created_at: float
    updated_at: float


class Rooms(Generic[MemberT]):
    """The rooms of one node.

    Args:
        core: knows the members.
        clock: for the times of rooms and frames.
        max_rooms: of one connection.
        events_max: members above which joins and leaves are summed up once a second, since N
            joins told to N members are N squared frames.
        publish: sends a frame to a room, wherever its members are.
    """

    def __init__(
        self,
        core: Core[MemberT],
        *,
        clock: Clock,
        max_rooms: int,
        events_max: int,
        publish: Callable[[str, bytes], object],
    ) -> None:
        self._core = core
        self._clock = clock
        self._max_rooms = max_rooms
        self._events_max = events_max
        self._publish = publish
        self._numbers: dict[str, int] = {}
        self._rooms: list[_Room | None] = []  # by the core's number
        self._crowded: set[str] = set()

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def join(self, member: MemberT, name: str, title: str | None = None) -> Joined:
        """Put a connection into a room, which is made if need be, and tell the others.

        Args:
            member: the connection.
            name: the room's name.
            title: the room's human-readable name, for group rooms.
        """
        core = self._core
        number = self._numbers.get(name)
        if number is not None and core.is_member(member.conn, number):
            self._retitle(number, title)
            return Joined.ALREADY
        if core.room_count(member.conn) >= self._max_rooms:
            return Joined.LIMIT
        now = self._clock.time()
        if number is None:
            number = core.open_room()
            self._numbers[name] = number
            self._rooms.extend([None] * (number + 1 - len(self._rooms)))
            self._rooms[number] = _Room(name, title, now, now)
        else:
            self._retitle(number, title)
            # Before the join, so that the newcomer does not hear of itself.
            self._tell(name, "member_joined", member, core.member_count(number) + 1, now)
        core.join(member.conn, number)
        self._room(number).updated_at = now
        return Joined.NOW

    def leave(self, member: MemberT, name: str) -> bool:
        """Take a connection out of a room and tell the others; False when it was no member."""
        number = self._numbers.get(name)
        if number is None or not self._core.leave(member.conn, number):
            return False
        self._left(member, number)
        return True

    def leave_all(self, member: MemberT) -> None:
        """Tell the rooms of a connection that has just been closed that it is gone.

        To be called within the core's `on_close`.
        """
        for number in self._core.rooms_of(member.conn):
            self._left(member, number)

    def _room(self, number: int) -> _Room:
        room = self._rooms[number]
        if room is None:
            raise LookupError(f"room number {number} is not in use")
        return room

    def _left(self, member: MemberT, number: int) -> None:
        room = self._room(number)
        remaining = self._core.member_count(number)
        now = self._clock.time()
        if remaining:
            room.updated_at = now
            self._tell(room.name, "member_left", member, remaining, now)
        else:
            del self._numbers[room.name]
            self._rooms[number] = None
            self._crowded.discard(room.name)
            self._core.close_room(number)

    def _tell(self, name: str, action: str, member: MemberT, count: int, now: float) -> None:
        if count > self._events_max:
            self._crowded.add(name)
            return
        self._publish(
            name,
            envelope.room_change(
                action, name, connection_id=member.id, member_count=count, now=now
            ),
        )

    def tell_counts(self) -> None:
        """Tell large rooms how many they have become; to be called once a second."""
        crowded, self._crowded = self._crowded, set()
        for name in crowded:
            self._publish(
                name,
                envelope.room_count(
                    name, member_count=self.member_count(name), now=self._clock.time()
                ),
            )

    def _retitle(self, number: int, title: str | None) -> None:
        if title is not None:
            self._room(number).title = title

    def fan_out(self, name: str, frame: bytes) -> int:
        """Note a frame for this node's members of a room; returns how many they are."""
        number = self._numbers.get(name)
        return 0 if number is None else self._core.fan_out(number, frame)

    def is_member(self, member: MemberT, name: str) -> bool:
        """Tell whether a connection is in a room."""
        number = self._numbers.get(name)
        return number is not None and self._core.is_member(member.conn, number)

    def members(self, name: str) -> list[MemberT]:
        """Return this node's members of a room; empty when there is no such room."""
        number = self._numbers.get(name)
        return [] if number is None else self._core.members(number)

    def member_count(self, name: str) -> int:
        """Return how many of this node's connections are in a room."""
        number = self._numbers.get(name)
        return 0 if number is None else self._core.member_count(number)

    def page(
        self,
        start: int,
        limit: int,
        *,
        kind: RoomType | None = None,
        member: MemberT | None = None,
    ) -> tuple[list[RoomInfo], int]:
        """Describe some rooms, and say where to go on: for paging.

        A room keeps its number as long as it exists, so what exists from the first page to the
        last is seen once.

        Args:
            start: 0 for the first page, else what the page before returned.
            limit: how many at most.
            kind: only rooms of this type.
            member: only rooms that this connection is in.

        Returns:
            The rooms, and where to go on, or -1 when there are no more.
        """
        found: list[RoomInfo] = []
        numbers: Iterable[int] = range(max(start, 0), len(self._rooms))
        if member is not None:
            mine = self._core.rooms_of(member.conn)
            numbers = sorted(number for number in mine if number >= start)
        for number in numbers:
            room = self._rooms[number]
            if room is None or (kind is not None and kind != _type_of(room.name)):
                continue
            if len(found) == limit:
                return found, number
            found.append(self._describe(number, room))
        return found, -1

    def count(self, kind: RoomType | None = None, *, member: MemberT | None = None) -> int:
        """Return how many rooms there are, of one type and of one connection or in all."""
        names = self._numbers if member is None else self.names_of(member)
        if kind is None:
            return len(names)
        return sum(_type_of(name) == kind for name in names)

    def names(self) -> Iterable[str]:
        """Return the names of all rooms, oldest first."""
        return self._numbers.keys()

    def names_of(self, member: MemberT) -> list[str]:
        """Return the names of a connection's rooms, in the order it joined them."""
        return [self._room(number).name for number in self._core.rooms_of(member.conn)]

    def share(self, one: MemberT, other: MemberT) -> bool:
        """Tell whether two connections have a room in common."""
        core = self._core
        mine, theirs = core.rooms_of(one.conn), core.rooms_of(other.conn)
        return not set(mine).isdisjoint(theirs)

    def group_name(self, name: str) -> str:
        """Return the name of a room's group; empty when there is no such room."""
        number = self._numbers.get(name)
        return (self._room(number).title or "") if number is not None else ""

    def info(self, name: str) -> RoomInfo | None:
        """Describe a room; None when there is none of that name."""
        number = self._numbers.get(name)
        if number is None:
            return None
        return self._describe(number, self._room(number))

    def _describe(self, number: int, room: _Room) -> RoomInfo:
        kind = _type_of(room.name)
        return RoomInfo(
            id=room.name,
            type=kind,
            name=PERSONAL_TITLE if kind == "personal" else f"Group: {room.title or ''}",
            member_count=self._core.member_count(number),
            created_at=room.created_at,
            updated_at=room.updated_at,
        )


def _type_of(name: str) -> RoomType:
    return "personal" if name.startswith("user:") else "group"
