"""What the processes of a cluster tell and ask each other about connections, rooms and users.

The gateway says here what has happened in this process; what happened in others comes in here and
goes to rooms, presence and sessions. How it travels is `cluster`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Final, NamedTuple, Protocol, TypeVar

from falcon_fast.bus import Loss
from falcon_fast.cluster import Cluster, Json, integer, text, texts
from falcon_fast.codes import CloseReason
from falcon_fast.presence import Presence
from falcon_fast.rooms import Rooms
from falcon_fast.session import Session

__all__ = ["Found", "Neighbours"]

BATCH: Final = 2000
"""Names asked for in one question, so that no answer is large."""

RESYNC_DELAY: Final = 0.25
"""Seconds in which losses are gathered, so that clients hear of an outage once."""

MAX_WHEREABOUTS: Final = 4096
"""Connections of others whose process is remembered."""

_FOR_OTHERS: Final = frozenset({CloseReason.KICKED, CloseReason.REPLACED})
"""Why a process may have another one's connection closed."""

ItemT = TypeVar("ItemT")


class Found(NamedTuple):
    """What became of a message to a connection or user that may be elsewhere.

    Attributes:
        found: whether the receiver is there.
        shared: whether it shares a room with the sender, and so got the message.
        missing: ids of nodes that did not say.
    """

    found: bool
    shared: bool
    missing: tuple[str, ...] = ()


class Host(Protocol):
    """What neighbours need of the gateway."""

    rooms: Rooms[Session]
    presence: Presence[Session]

    def find(self, connection_id: str) -> Session | None:
        """Return a live connection of this process by its id."""

    def rooms_of_user(self, user_id: str) -> frozenset[str] | None:
        """Return the rooms of a user's admitted connections here; None without any."""

    def resync(self, losses: list[Loss], rooms: Iterable[str]) -> None:
        """Tell clients that messages may have been lost, of whatever kind or in some rooms."""

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run something beside what else happens, until the gateway closes."""


class Neighbours:
    """This process's part in what the processes of a cluster know of each other.

    Args:
        host: the gateway.
        cluster: the other processes.
    """

    def __init__(self, host: Host, cluster: Cluster) -> None:
        self._host = host
        self._cluster = cluster
        self._opened: list[str] = []
        self._watched: list[str] = []
        # What is told at the end of the turn: True came, False went.
        self._news: list[tuple[bool, str, frozenset[str]]] = []
        self._losses: list[Loss] = []
        self._bereaved: set[str] = set()  # rooms that had members on a process that has died
        self._settling = False
        self._flushing = False
        self._whereabouts: dict[str, str] = {}
        cluster.on_peer(came=self._came, went=self._went)
        cluster.answers_to("counts", self._counts)
        cluster.answers_to("present", self._present)
        cluster.answers_to("close", self._close)
        cluster.answers_to("direct", self._direct)
        cluster.listens_to("presence", self._heard_presence)

    # --------------------------------------------------------------- what happens in this process

    def room_opened(self, name: str) -> None:
        """A room has its first member here: how many does it have elsewhere?"""
        if self._cluster.peers:
            self._opened.append(name)
            self._flush_soon()

    def user_came(self, user_id: str, rooms: frozenset[str]) -> None:
        """A user's first connection here is admitted."""
        self._host.presence.came(user_id, self._cluster.process_id, rooms)
        self._note(True, user_id, rooms)

    def user_went(self, user_id: str, rooms: frozenset[str]) -> None:
        """A user's last admitted connection here is gone."""
        self._host.presence.went(user_id, self._cluster.process_id, rooms)
        self._note(False, user_id, rooms)

    def watched(self, users: list[str]) -> None:
        """Somebody here watches users whom nobody here has watched before: where are they?"""
        for user in users:
            here = self._host.rooms_of_user(user)
            if here is not None:
                self._host.presence.found(user, self._cluster.process_id, here)
        if self._cluster.peers:
            self._watched += users
            self._flush_soon()

    def _note(self, came: bool, user_id: str, rooms: frozenset[str]) -> None:
        if self._cluster.peers:
            self._news.append((came, user_id, rooms))
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._news:
            for news in _batches(self._news):
                self._cluster.tell_if_possible(
                    "presence",
                    {"news": [[came, user, sorted(rooms)] for came, user, rooms in news]},
                )
            self._news = []
        opened, self._opened = self._opened, []
        watched, self._watched = self._watched, []
        if opened:
            self._host.spawn(self._ask_counts(opened))
        if watched:
            self._host.spawn(self._ask_present(watched))

    # ------------------------------------------------------------------------ asking the others

    async def _ask_counts(
        self, names: list[str], whom: list[str] | None = None, *, tell: bool = False
    ) -> None:
        for batch in _batches(names):

            def take(process: str, answer: Json, batch: list[str] = batch) -> None:
                counts = answer.get("rooms")
                if isinstance(counts, dict):
                    known = {name: integer(counts, name) for name in batch if name in counts}
                    self._host.rooms.set_elsewhere(process, batch, known, tell=tell)

            await self._cluster.ask("counts", {"rooms": batch}, process_ids=whom, on_answer=take)

    async def _ask_present(
        self, users: list[str], whom: list[str] | None = None, *, is_news: bool = False
    ) -> None:
        """Ask where users are; it is news unless somebody begins to watch them just now."""
        presence = self._host.presence
        for batch in _batches(users):

            def take(process: str, answer: Json, batch: list[str] = batch) -> None:
                found = answer.get("users")
                if not isinstance(found, dict):
                    return
                for user in batch:
                    rooms = frozenset(texts(found[user])) if user in found else None
                    if rooms is not None and is_news:
                        presence.came(user, process, rooms)
                    else:
                        presence.found(user, process, rooms)

            await self._cluster.ask("present", {"users": batch}, process_ids=whom, on_answer=take)

    def _came(self, process_id: str) -> None:
        """Another process is there: it may have been before, with members and users."""
        self._host.spawn(self._look_at([process_id]))

    async def _look_at(self, whom: list[str] | None) -> None:
        await self._ask_counts(list(self._host.rooms.names()), whom, tell=True)
        await self._ask_present(self._host.presence.watched, whom, is_news=True)

    def _went(self, process_id: str, has_died: bool) -> None:
        rooms = self._host.rooms.forget_process(process_id)
        self._host.presence.forget_process(process_id)
        if has_died and rooms:
            # Its own clients may have heard something just before that never left it.
            self._bereaved.update(rooms)
            self._settle_soon()

    # ---------------------------------------------------------------------------------- losses

    def lost(self, loss: Loss) -> None:
        """Messages of others did not arrive: clients are told, and counts are looked at again."""
        self._losses.append(loss)
        self._settle_soon()

    def _settle_soon(self) -> None:
        if not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_later(RESYNC_DELAY, self._settle)

    def _settle(self) -> None:
        self._settling = False
        losses, self._losses = self._losses, []
        bereaved, self._bereaved = self._bereaved, set()
        self._host.resync(losses, bereaved)
        senders = {loss.node_id for loss in losses}
        if None in senders:
            self._host.spawn(self._look_at(None))
            return
        peers = self._cluster.peers
        whom = [peer.process_id for peer in peers if peer.node_id in senders]
        if whom:
            self._host.spawn(self._look_at(whom))

    # -------------------------------------------------------------- messages to one who is away

    async def direct(self, to: str, rooms: Iterable[str], frame: bytes) -> Found:
        """Deliver a client's message to a connection or user on other processes.

        It is delivered where the receiver shares a room with the sender, and only there.

        Args:
            to: a connection id, or `user:` and a user id.
            rooms: of the sender.
            frame: the message.
        """
        args: Json = {"to": to, "rooms": list(rooms), "frame": frame.decode()}
        known = self._whereabouts.get(to)
        if known is not None:
            result = await self._ask_direct(to, args, [known])
            if result.found:
                return result
            self._whereabouts.pop(to, None)
        return await self._ask_direct(to, args, None)

    async def _ask_direct(self, to: str, args: Json, process_ids: list[str] | None) -> Found:
        answers = await self._cluster.ask("direct", args, process_ids=process_ids)
        found = shared = False
        for process_id, answer in answers.by_process.items():
            if answer.get("found") is True:
                found = True
                if not to.startswith("user:"):
                    if len(self._whereabouts) >= MAX_WHEREABOUTS:
                        self._whereabouts.pop(next(iter(self._whereabouts)))
                    self._whereabouts[to] = process_id
            shared = shared or answer.get("shared") is True
        return Found(found, shared, answers.missing)

    async def close(self, connection_id: str, reason: CloseReason) -> tuple[bool, tuple[str, ...]]:
        """Close a connection on another process.

        Returns:
            Whether it was there, and the nodes that did not say.
        """
        args: Json = {"connection_id": connection_id, "reason": int(reason)}
        answers = await self._cluster.ask("close", args)
        closed = any(answer.get("closed") is True for answer in answers.by_process.values())
        return closed, answers.missing

    # ------------------------------------------------------------------------ answering the others

    def _counts(self, process_id: str, args: Json) -> Json:
        rooms = self._host.rooms
        counts = {name: rooms.member_count(name) for name in texts(args.get("rooms"))}
        return {"rooms": {name: count for name, count in counts.items() if count}}

    def _present(self, process_id: str, args: Json) -> Json:
        found: Json = {}
        for user in texts(args.get("users")):
            rooms = self._host.rooms_of_user(user)
            if rooms is not None:
                found[user] = sorted(rooms)
        return {"users": found}

    def _close(self, process_id: str, args: Json) -> Json:
        session = self._host.find(text(args, "connection_id"))
        reason = CloseReason(integer(args, "reason"))
        if reason not in _FOR_OTHERS:
            raise ValueError(f"{reason.label} is no reason to close another node's connection")
        if session is not None:
            session.close(reason)
        return {"closed": session is not None}

    def _direct(self, process_id: str, args: Json) -> Json:
        to, frame = text(args, "to"), text(args, "frame").encode()
        rooms = frozenset(texts(args.get("rooms")))
        if to.startswith("user:"):
            found = self._host.rooms.members(to)
        else:
            session = self._host.find(to)
            found = [] if session is None else [session]
        shared = any(session.is_in_any(rooms) for session in found)
        if shared:
            for session in found:
                session.send(frame)
        return {"found": bool(found), "shared": shared}

    def _heard_presence(self, process_id: str, args: Json) -> None:
        news = args.get("news")
        if not isinstance(news, list):
            raise ValueError("news is not a list")  # noqa: TRY004
        for entry in news:
            came, user, rooms = entry
            if not self._host.presence.matters(user):
                continue
            heard = self._host.presence.came if came is True else self._host.presence.went
            heard(user, process_id, frozenset(texts(rooms)))


def _batches(items: list[ItemT]) -> Iterable[list[ItemT]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
