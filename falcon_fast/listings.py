"""Listings of connections and rooms on all processes: the pages that operators read.

Each process lists what it holds; the one that is asked puts the parts together. Connections are
listed process by process, rooms by name, since a room may have members on several processes.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from falcon_fast.cluster import ASK_TIMEOUT, Answers, Cluster, Json, integer, text, texts
from falcon_fast.gateway import Gateway
from falcon_fast.rooms import RoomInfo, RoomType, user_room
from falcon_fast.session import Session, State

__all__ = ["ConnectionInfo", "Listings", "Page", "RoomDetails"]

AT_A_TIME: Final = 8
"""Entries made before the loop gets its turn."""

NAMES_AT_A_TIME: Final = 4096
"""Names of rooms looked through before the loop gets its turn."""

MAX_ROOMS_ON_PAGE: Final = 8192
"""Names of rooms in a page of connections for another process, which must fit into one message."""

MEMBERS_AT_A_TIME: Final = 8192
"""Members of a room in one answer to another process."""

_SLOTS: Final = 0xFFFF

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """A connection as an operator sees it; times are seconds since 1970.

    Attributes:
        last_ping: when the client was last heard of.
    """

    id: str
    user_id: str
    character_id: int
    character_name: str
    rooms: tuple[str, ...]
    created_at: float
    last_ping: float
    node_id: str
    remote_address: str


@dataclass(frozen=True, slots=True)
class RoomDetails:
    """A room with its members' connection ids.

    Attributes:
        partial: ids of nodes that did not answer.
    """

    info: RoomInfo
    members: tuple[str, ...]
    partial: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """A part of a listing.

    Attributes:
        items: what was asked for.
        total: how many there are on all pages, now.
        next: where the next page begins, or None when this is the last one.
        partial: ids of nodes that did not answer.
    """

    items: tuple[ItemT, ...]
    total: int
    next: str | None
    partial: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Filter:
    """Which connections are meant."""

    user_id: str | None
    character_id: int | None
    room_id: str | None

    def to_json(self) -> Json:
        return {
            "user_id": self.user_id,
            "character_id": self.character_id,
            "room_id": self.room_id,
        }

    @classmethod
    def from_json(cls, args: Json) -> _Filter:
        character_id = args.get("character_id")
        return cls(
            None if args.get("user_id") is None else text(args, "user_id"),
            None if character_id is None else integer(args, "character_id"),
            None if args.get("room_id") is None else text(args, "room_id"),
        )


class Listings:
    """What is asked of all processes for operators.

    Args:
        gateway: holds the connections of this process.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._cluster: Cluster = gateway.cluster
        cluster = gateway.cluster
        cluster.answers_to("connections", self._answer_connections)
        cluster.answers_to("connection", self._answer_connection)
        cluster.answers_to("rooms", self._answer_rooms)
        cluster.answers_to("room", self._answer_room)

    # ------------------------------------------------------------------------------- connections

    async def connections(
        self,
        *,
        user_id: str | None,
        character_id: int | None,
        room_id: str | None,
        limit: int,
        start: str,
    ) -> Page[ConnectionInfo]:
        """List connections, process after process; see `Service.list_connections`."""
        wanted = _Filter(user_id, character_id, room_id)
        first, _, slot = start.rpartition(":")
        deadline = asyncio.get_running_loop().time() + ASK_TIMEOUT
        # How many there are elsewhere is asked for first: who says "none" is not asked again.
        others = await self._cluster.ask("connections", {**wanted.to_json(), "limit": 0})
        totals = {
            process_id: integer(answer, "total") for process_id, answer in others.by_process.items()
        }
        here = self._cluster.process_id
        totals[here] = self._count(wanted)
        missing = set(others.missing)
        items: list[ConnectionInfo] = []
        position = int(slot) if slot else 0
        asked = 0
        for process_id in sorted(totals):
            if process_id < first or not totals[process_id]:
                continue
            begin = position if process_id == first else 0
            while begin >= 0:
                is_late = asked and asyncio.get_running_loop().time() > deadline
                if len(items) == limit or is_late:
                    # Time is up only when others are slow; the next page goes on from here.
                    found = tuple(items)
                    return Page(
                        found, sum(totals.values()), f"{process_id}:{begin}", _sorted(missing)
                    )
                room = limit - len(items)
                if process_id == here:
                    more, begin = await self._page(wanted, room, begin, None)
                    items += more
                else:
                    args = {**wanted.to_json(), "limit": room, "start": begin}
                    asked += 1
                    answers = await self._cluster.ask("connections", args, process_ids=[process_id])
                    missing.update(answers.missing)
                    begin = -1
                    for answer in answers.by_process.values():
                        items += _connections_of(answer)
                        begin = _next_of(answer)
        return Page(tuple(items), sum(totals.values()), None, _sorted(missing))

    def _count(self, wanted: _Filter) -> int:
        if wanted == _Filter(None, None, None):
            return self._gateway.core.count
        return len(self._matching(wanted))

    async def _page(
        self, wanted: _Filter, limit: int, start: int, max_rooms: int | None
    ) -> tuple[list[ConnectionInfo], int]:
        """List connections of this process.

        Returns:
            The connections, and where to go on, or -1 when there are no more.
        """
        if wanted == _Filter(None, None, None):
            sessions, following = self._gateway.core.owners_from(start, limit)
        else:
            rest = [one for one in self._matching(wanted) if one.conn & _SLOTS >= start]
            sessions = rest[:limit]
            following = rest[limit].conn & _SLOTS if len(rest) > limit else -1
        items: list[ConnectionInfo] = []
        rooms = 0
        for number, session in enumerate(sessions, 1):
            if session.state is not State.CLOSED:
                info = self.describe(session)
                rooms += len(info.rooms)
                if max_rooms is not None and rooms > max_rooms and items:
                    return items, session.conn & _SLOTS
                items.append(info)
            if number % AT_A_TIME == 0:
                # Clients' messages go first; who is closed meanwhile is left out.
                await asyncio.sleep(0)
        return items, following

    def _matching(self, wanted: _Filter) -> list[Session]:
        rooms = self._gateway.rooms
        if wanted.user_id is not None:
            found = rooms.members(user_room(wanted.user_id))
            if wanted.room_id is not None:
                found = [session for session in found if rooms.is_member(session, wanted.room_id)]
        elif wanted.room_id is not None:
            found = rooms.members(wanted.room_id)
        else:
            found = self._gateway.core.owners()
        if wanted.character_id is not None:
            found = [one for one in found if one.character_id == wanted.character_id]
        return found

    def describe(self, session: Session) -> ConnectionInfo:
        """Describe a connection of this process."""
        gateway, identity = self._gateway, session.identity
        ago = gateway.clock.monotonic() - gateway.core.last_seen(session.conn)
        return ConnectionInfo(
            id=session.id,
            user_id=identity.user_id,
            character_id=identity.character_id,
            character_name=identity.character_name,
            rooms=tuple(gateway.rooms.names_of(session)),
            created_at=session.created_at,
            # Not before it was there: the core rounds to milliseconds.
            last_ping=max(session.created_at, gateway.clock.time() - max(0.0, ago)),
            node_id=gateway.node_id,
            remote_address=session.remote_address,
        )

    async def connection(self, connection_id: str) -> tuple[ConnectionInfo | None, Answers]:
        """Describe a connection, wherever it is; None when nobody who answered has it."""
        session = self._gateway.find(connection_id)
        if session is not None:
            return self.describe(session), Answers({})
        answers = await self._cluster.ask("connection", {"connection_id": connection_id})
        for answer in answers.by_process.values():
            found = answer.get("connection")
            if isinstance(found, dict):
                return _connection_of(found), answers
        return None, answers

    async def _answer_connections(self, process_id: str, args: Json) -> Json:
        wanted, limit = _Filter.from_json(args), integer(args, "limit")
        answer: Json = {"total": self._count(wanted)}
        if limit:
            items, following = await self._page(
                wanted, limit, integer(args, "start"), MAX_ROOMS_ON_PAGE
            )
            answer["connections"] = [_to_json(item) for item in items]
            if following >= 0:
                answer["next"] = following
        return answer

    def _answer_connection(self, process_id: str, args: Json) -> Json:
        session = self._gateway.find(text(args, "connection_id"))
        return {"connection": None if session is None else _to_json(self.describe(session))}

    # ------------------------------------------------------------------------------------- rooms

    async def rooms(
        self, *, kind: RoomType | None, member_id: str | None, limit: int, start: str
    ) -> Page[RoomInfo]:
        """List rooms by name; see `Service.list_rooms`."""
        args: Json = {"kind": kind, "member_id": member_id, "limit": limit, "start": start}
        answers = await self._cluster.ask("rooms", args)
        found, total = await self._rooms_here(kind, member_id, limit, start)
        rooms = {room.id: room for room in found}
        for answer in answers.by_process.values():
            total += integer(answer, "total")
            for room in _rooms_of(answer):
                rooms[room.id] = _merged(rooms.get(room.id), room)
        names = heapq.nsmallest(limit + 1, rooms)
        missing = answers.missing
        if member_id is not None and names:
            # Only the member's process has answered; the rooms may have members elsewhere too.
            others = await self._cluster.ask(
                "rooms", {"names": names[:limit]}, process_ids=answers.by_process
            )
            missing = _sorted({*missing, *others.missing})
            parts = {process_id: _rooms_of(a) for process_id, a in others.by_process.items()}
            rooms = {one.id: one for name in names if (one := self._room_here(name)) is not None}
            for room in (room for part in parts.values() for room in part):
                rooms[room.id] = _merged(rooms.get(room.id), room)
        items = tuple(rooms[name] for name in names[:limit] if name in rooms)
        return Page(items, total, names[limit - 1] if len(names) > limit else None, missing)

    async def _rooms_here(
        self, kind: RoomType | None, member_id: str | None, limit: int, start: str
    ) -> tuple[list[RoomInfo], int]:
        """List rooms of this process whose names come after another.

        Returns:
            One more than asked for, so that it shows whether there are more; and how many there
            are in all, each of the cluster's rooms counted on one process only.
        """
        rooms = self._gateway.rooms
        if member_id is not None:
            session = self._gateway.find(member_id)
            if session is None:
                return [], 0
            mine = [name for name in rooms.names_of(session) if _is_kind(name, kind)]
            names = sorted(name for name in mine if name > start)[: limit + 1]
            total = len(mine)
        else:
            everything = list(rooms.names())
            names = []
            for begin in range(0, len(everything), NAMES_AT_A_TIME):
                part = everything[begin : begin + NAMES_AT_A_TIME]
                names = heapq.nsmallest(
                    limit + 1,
                    [*names, *(name for name in part if name > start and _is_kind(name, kind))],
                )
                if begin:
                    await asyncio.sleep(0)
            total = rooms.count_first(self._cluster.process_id, kind)
        return [room for name in names if (room := self._room_here(name)) is not None], total

    def _room_here(self, name: str) -> RoomInfo | None:
        return self._gateway.rooms.info(name)

    async def room(self, room_id: str) -> tuple[RoomDetails | None, tuple[str, ...]]:
        """Describe a room and its members, wherever they are.

        Returns:
            The room, None when nobody who answered has it; and nodes that did not answer.
        """
        info = self._room_here(room_id)
        members = [session.id for session in self._gateway.rooms.members(room_id)]
        missing: set[str] = set()
        asked: list[str] | None = None
        start = 0
        while asked is None or asked:
            args: Json = {"room_id": room_id, "start": start}
            answers = await self._cluster.ask("room", args, process_ids=asked)
            missing.update(answers.missing)
            asked = []
            for process_id, answer in answers.by_process.items():
                for room in _rooms_of(answer):
                    # Counted once, however many answers its members need.
                    info = _merged(info, room) if start == 0 else info
                more = texts(answer.get("members"))
                members += more
                if len(more) == MEMBERS_AT_A_TIME:
                    asked.append(process_id)
            start += MEMBERS_AT_A_TIME
        partial = _sorted(missing)
        return (None if info is None else RoomDetails(info, tuple(members), partial)), partial

    async def _answer_rooms(self, process_id: str, args: Json) -> Json:
        if "names" in args:
            named = [self._room_here(name) for name in texts(args["names"])]
            return {"rooms": [_room_to_json(room) for room in named if room is not None]}
        member_id = None if args.get("member_id") is None else text(args, "member_id")
        found, total = await self._rooms_here(
            _kind_of(args.get("kind")), member_id, integer(args, "limit"), text(args, "start")
        )
        return {"rooms": [_room_to_json(room) for room in found], "total": total}

    def _answer_room(self, process_id: str, args: Json) -> Json:
        room_id, start = text(args, "room_id"), integer(args, "start")
        info = self._room_here(room_id)
        members = self._gateway.rooms.members(room_id)[start : start + MEMBERS_AT_A_TIME]
        return {
            "rooms": [] if info is None else [_room_to_json(info)],
            "members": [session.id for session in members],
        }


def _sorted(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(ids))


def _is_kind(name: str, kind: RoomType | None) -> bool:
    return kind is None or name.startswith("user:") is (kind == "personal")


def _kind_of(value: object) -> RoomType | None:
    if value == "personal":
        return "personal"
    return "group" if value == "group" else None


def _merged(one: RoomInfo | None, other: RoomInfo) -> RoomInfo:
    """Describe a room of which two processes have members each."""
    if one is None:
        return other
    return RoomInfo(
        id=one.id,
        type=one.type,
        name=one.name,
        member_count=one.member_count + other.member_count,
        created_at=min(one.created_at, other.created_at),
        updated_at=max(one.updated_at, other.updated_at),
    )


# ---------------------------------------------------------------------------- between processes


def _to_json(info: ConnectionInfo) -> Json:
    return {
        "id": info.id,
        "user_id": info.user_id,
        "character_id": info.character_id,
        "character_name": info.character_name,
        "rooms": list(info.rooms),
        "created_at": info.created_at,
        "last_ping": info.last_ping,
        "node_id": info.node_id,
        "remote_address": info.remote_address,
    }


def _connection_of(value: Mapping[str, object]) -> ConnectionInfo:
    return ConnectionInfo(
        id=text(value, "id"),
        user_id=text(value, "user_id"),
        character_id=integer(value, "character_id"),
        character_name=text(value, "character_name"),
        rooms=tuple(texts(value.get("rooms"))),
        created_at=_time(value, "created_at"),
        last_ping=_time(value, "last_ping"),
        node_id=text(value, "node_id"),
        remote_address=text(value, "remote_address"),
    )


def _connections_of(answer: Json) -> list[ConnectionInfo]:
    return [_connection_of(value) for value in _objects(answer, "connections")]


def _next_of(answer: Json) -> int:
    return integer(answer, "next") if "next" in answer else -1


def _room_to_json(info: RoomInfo) -> Json:
    return {
        "id": info.id,
        "type": info.type,
        "name": info.name,
        "member_count": info.member_count,
        "created_at": info.created_at,
        "updated_at": info.updated_at,
    }


def _rooms_of(answer: Json) -> list[RoomInfo]:
    return [
        RoomInfo(
            id=text(value, "id"),
            type="personal" if value.get("type") == "personal" else "group",
            name=text(value, "name"),
            member_count=integer(value, "member_count"),
            created_at=_time(value, "created_at"),
            updated_at=_time(value, "updated_at"),
        )
        for value in _objects(answer, "rooms")
    ]


def _objects(answer: Json, key: str) -> list[Json]:
    values = answer.get(key)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"{key} is not a list of objects")
    return values


def _time(value: Mapping[str, object], key: str) -> float:
    number = value.get(key)
    if type(number) is not float and type(number) is not int:
        raise ValueError(f"{key} is not a time")
    return float(number)
