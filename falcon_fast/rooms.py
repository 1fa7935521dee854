"""Rooms by name: who joins and leaves, what the others are told, and which rooms exist.

A room exists here from this process's first member to its last. The native core knows rooms as
numbers and sets of slots; names, titles and times are kept here, and how many members each room has
on other nodes: what a client is told of a room's members counts them all.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Iterable, Mapping
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


_PERSONAL: Final = "user:"


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


class Rooms(Generic[MemberT]):
    """The rooms of one process.

    Args:
        core: knows the members.
        clock: for the times of rooms and frames.
        max_rooms: of one connection.
        events_max: members above which joins and leaves are summed up once a second, since N
            joins told to N members are N squared frames.
        publish: sends (room, frame, members here) to a room, wherever its members are.
        alone: whether there can be no members elsewhere, so that a room without members here need
            not be told of anything.
        opened: called with the name of a room that has got its first member here.
        closed: called with the name of a room that has lost its last one.
        touched: called with (connection, room) when one has joined or left.
    """

    def __init__(
        self,
        core: Core[MemberT],
        *,
        clock: Clock,
        max_rooms: int,
        events_max: int,
        publish: Callable[[str, bytes, int], object],
        alone: bool = True,
        opened: Callable[[str], None] | None = None,
        closed: Callable[[str], None] | None = None,
        touched: Callable[[MemberT, str], None] | None = None,
    ) -> None:
        self._core = core
        self._clock = clock
        self._max_rooms = max_rooms
        self._events_max = events_max
        self._publish = publish
        self._alone = alone
        self._opened = opened
        self._closed = closed
        self._touched = touched
        # By the name; a personal room by its user's id alone, which is in memory anyway.
        self._numbers: dict[str, int] = {}
        # By the core's number. Most rooms are personal: they have a key and two times, no more.
        self._keys: list[str | None] = []
        self._times = array("d")  # when each was made, and when its members last changed
        self._titles: dict[int, str] = {}  # of group rooms; personal ones are all called the same
        self._elsewhere: dict[int, dict[str, int]] = {}  # members on other nodes, by process
        self._crowded: set[str] = set()
        self._crowded_elsewhere: set[str] = set()
        self._shared: set[str] = set()  # rooms with members elsewhere

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._numbers

    def join(
        self, member: MemberT, name: str, title: str | None = None, *, user_id: str | None = None
    ) -> Joined:
        """Put a connection into a room, which is made if need be, and tell the others.

        Args:
            member: the connection.
            name: the room's name.
            title: the room's human-readable name, for group rooms.
            user_id: for a personal room, whose it is: kept instead of the name.
        """
        core = self._core
        key = _key(name) if user_id is None else user_id
        number = self._numbers.get(key)
        if number is not None and core.is_member(member.conn, number):
            self._retitle(number, title)
            return Joined.ALREADY
        if core.room_count(member.conn) >= self._max_rooms:
            return Joined.LIMIT
        now = self._clock.time()
        if number is None:
            number = core.open_room()
            self._numbers[key] = number
            self._keys.extend([None] * (number + 1 - len(self._keys)))
            self._times.extend([0.0] * (2 * len(self._keys) - len(self._times)))
            self._keys[number] = key
            self._times[2 * number] = now
            self._retitle(number, title)
            if self._opened is not None:
                self._opened(name)
            if not self._alone:
                self._tell(name, "member_joined", member, 1, self._count_elsewhere(number), now)
        else:
            self._retitle(number, title)
            # Before the join, so that the newcomer does not hear of itself.
            here, elsewhere = core.member_count(number) + 1, self._count_elsewhere(number)
            self._tell(name, "member_joined", member, here, elsewhere, now)
        core.join(member.conn, number)
        self._times[2 * number + 1] = now
        if self._touched is not None:
            self._touched(member, name)
        return Joined.NOW

    def leave(self, member: MemberT, name: str) -> bool:
        """Take a connection out of a room and tell the others; False when it was no member."""
        number = self._numbers.get(_key(name))
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

    def _name(self, number: int) -> str:
        key = self._keys[number]
        if key is None:
            raise LookupError(f"room number {number} is not in use")
        return _named(key)

    def _left(self, member: MemberT, number: int) -> None:
        name = self._name(number)
        remaining, elsewhere = self._core.member_count(number), self._count_elsewhere(number)
        now = self._clock.time()
        self._times[2 * number + 1] = now
        if not remaining:
            del self._numbers[_key(name)]
            self._keys[number] = None
            self._titles.pop(number, None)
            self._elsewhere.pop(number, None)
            self._crowded.discard(name)
            self._crowded_elsewhere.discard(name)
            self._shared.discard(name)
            self._core.close_room(number)
            if self._closed is not None:
                self._closed(name)
        if self._touched is not None:
            self._touched(member, name)
        self._tell(name, "member_left", member, remaining, elsewhere, now)

    def _tell(
        self, name: str, action: str, member: MemberT, here: int, elsewhere: int, now: float
    ) -> None:
        """Tell the members of a room, here and elsewhere, that one came or went."""
        if self._alone and here + (action == "member_left") <= 1:
            return  # nobody is left, or nobody was there before
        total = here + elsewhere
        if total <= self._events_max:
            frame = envelope.room_change(
                action, name, connection_id=member.id, member_count=total, now=now
            )
        elif here:
            self._crowded.add(name)
            return
        else:
            frame = envelope.room_count(name, member_count=total, now=now)
        self._publish(name, frame, here)

    def tell_counts(self) -> None:
        """Tell large rooms how many they have become; to be called once a second."""
        crowded, self._crowded = self._crowded, set()
        elsewhere, self._crowded_elsewhere = self._crowded_elsewhere, set()
        now = self._clock.time()
        for name in crowded | elsewhere:
            number = self._numbers[_key(name)]
            here = self._core.member_count(number)
            total = here + self._count_elsewhere(number)
            frame = envelope.room_count(name, member_count=total, now=now)
            if name in crowded:
                self._publish(name, frame, here)
            else:
                # Who is elsewhere is told there.
                self._core.fan_out(number, frame)

    # ------------------------------------------------------------------------- members elsewhere

    def heard_change(self, process_id: str, name: str, members: int, frame: bytes) -> None:
        """Take a change of a room on another node, and tell the members here.

        Args:
            process_id: where somebody joined or left.
            name: the room.
            members: how many are in it there now.
            frame: what that process tells, with its own view of how many there are in all.
        """
        number = self._numbers.get(_key(name))
        if number is None:
            return
        self._set_elsewhere(name, process_id, members)
        total = self._core.member_count(number) + self._count_elsewhere(number)
        told = None
        if total <= self._events_max:
            told = envelope.with_member_count(frame, total)
        if told is None:
            self._crowded_elsewhere.add(name)
        else:
            self._core.fan_out(number, told)

    def set_elsewhere(
        self, process_id: str, names: Iterable[str], counts: Mapping[str, int], *, tell: bool
    ) -> None:
        """Take a process's answer to how many members it has in some rooms.

        Args:
            process_id: who answered.
            names: the rooms it was asked for.
            counts: its members; a room that is not named has none there.
            tell: whether the members here hear of another number, having heard a wrong one.
        """
        for name in names:
            if name not in self:
                continue
            if self._set_elsewhere(name, process_id, counts.get(name, 0)) and tell:
                self._crowded_elsewhere.add(name)

    def forget_process(self, process_id: str) -> list[str]:
        """A process is gone with all its members: those who are left hear how many there are.

        Returns:
            The rooms in which it had members.
        """
        names = [name for name in self._shared if self._is_on(name, process_id)]
        for name in names:
            self._set_elsewhere(name, process_id, 0)
        self._crowded_elsewhere.update(names)
        return names

    def _is_on(self, name: str, process_id: str) -> bool:
        return process_id in self._elsewhere.get(self._numbers[_key(name)], ())

    def _count_elsewhere(self, number: int) -> int:
        elsewhere = self._elsewhere.get(number)
        return sum(elsewhere.values()) if elsewhere else 0

    def _set_elsewhere(self, name: str, process_id: str, members: int) -> bool:
        """Note how many members a room has on a process; True when it was another number."""
        number = self._numbers[_key(name)]
        elsewhere = self._elsewhere.get(number, {})
        if members == elsewhere.get(process_id, 0):
            return False
        if members:
            elsewhere[process_id] = members
        else:
            del elsewhere[process_id]
        if elsewhere:
            self._elsewhere[number] = elsewhere
            self._shared.add(name)
        else:
            del self._elsewhere[number]
            self._shared.discard(name)
        return True

    def retitle(self, name: str, title: str) -> None:
        """Change the human-readable name of a room, if there is such a room."""
        number = self._numbers.get(_key(name))
        if number is not None:
            self._retitle(number, title)

    def _retitle(self, number: int, title: str | None) -> None:
        if title is not None:
            self._titles[number] = title

    def fan_out(self, name: str, frame: bytes) -> int:
        """Note a frame for this node's members of a room; returns how many they are."""
        number = self._numbers.get(_key(name))
        return 0 if number is None else self._core.fan_out(number, frame)

    def is_member(self, member: MemberT, name: str) -> bool:
        """Tell whether a connection is in a room."""
        number = self._numbers.get(_key(name))
        return number is not None and self._core.is_member(member.conn, number)

    def members(self, name: str) -> list[MemberT]:
        """Return this node's members of a room; empty when there is no such room."""
        number = self._numbers.get(_key(name))
        return [] if number is None else self._core.members(number)

    def member_count(self, name: str) -> int:
        """Return how many of this node's connections are in a room."""
        number = self._numbers.get(_key(name))
        return 0 if number is None else self._core.member_count(number)

    def count(self, kind: RoomType | None = None) -> int:
        """Return how many rooms have members here, of one type or in all."""
        if kind is None:
            return len(self._numbers)
        return sum(_type_of(_named(key)) == kind for key in self._numbers)

    def count_first(self, process_id: str, kind: RoomType | None = None) -> int:
        """Return how many rooms have no members on processes that come before this one.

        Summed up over all processes, that counts each room once.

        Args:
            process_id: of this process; they are ordered by their ids.
            kind: only rooms of this type.
        """
        elsewhere = sum(
            (kind is None or _type_of(name) == kind)
            and min(self._elsewhere[self._numbers[_key(name)]]) < process_id
            for name in self._shared
        )
        return self.count(kind) - elsewhere

    def names(self) -> Iterable[str]:
        """Return the names of all rooms, oldest first."""
        return map(_named, self._numbers)

    def names_of(self, member: MemberT) -> list[str]:
        """Return the names of a connection's rooms, in the order it joined them."""
        return [self._name(number) for number in self._core.rooms_of(member.conn)]

    def share(self, one: MemberT, other: MemberT) -> bool:
        """Tell whether two connections have a room in common."""
        core = self._core
        mine, theirs = core.rooms_of(one.conn), core.rooms_of(other.conn)
        return not set(mine).isdisjoint(theirs)

    def group_name(self, name: str) -> str:
        """Return the name of a room's group; empty when there is no such room."""
        number = self._numbers.get(_key(name))
        return "" if number is None else self._titles.get(number, "")

    def info(self, name: str) -> RoomInfo | None:
        """Describe a room; None when there is none of that name."""
        number = self._numbers.get(_key(name))
        if number is None:
            return None
        kind = _type_of(name)
        return RoomInfo(
            id=name,
            type=kind,
            name=PERSONAL_TITLE if kind == "personal" else f"Group: {self.group_name(name)}",
            member_count=self._core.member_count(number),
            created_at=self._times[2 * number],
            updated_at=self._times[2 * number + 1],
        )


def _key(name: str) -> str:
    return name[len(_PERSONAL) :] if name.startswith(_PERSONAL) else name


def _named(key: str) -> str:
    # An id has no colon, and every other name has one.
    return key if ":" in key else user_room(key)


def _type_of(name: str) -> RoomType:
    return "personal" if name.startswith(_PERSONAL) else "group"
