"""Rooms follow memberships: what becomes of a change in the directory, or of an event about one.

The directory says which groups a user is in, and has the last word. An event, from a program that
manages groups, says it sooner: who was removed is out of the room at once, who was added is in as
soon as the directory confirms it. Clients are told of what took effect, once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Coroutine
from typing import Protocol

from falcon_fast import envelope
from falcon_fast._core import Core
from falcon_fast.bus import Target
from falcon_fast.clock import Clock
from falcon_fast.cluster import Cluster, Json, integer, text
from falcon_fast.codes import CloseReason
from falcon_fast.directory import Directory, Group
from falcon_fast.envelope import MembershipEvent
from falcon_fast.errors import DirectoryUnavailable
from falcon_fast.rooms import Joined, Rooms, group_room, user_room
from falcon_fast.session import Session

__all__ = ["Memberships"]

log = logging.getLogger(__name__)


class Host(Protocol):
    """What memberships need of the gateway."""

    core: Core[Session]
    rooms: Rooms[Session]
    clock: Clock
    cluster: Cluster

    def publish(self, target: Target, ident: str, frame: bytes) -> int:
        """Send a frame through the bus; raises BusUnavailable when other nodes were not told."""

    def is_settled(self, session: Session) -> bool:
        """Tell whether a connection has been put into its rooms: a change is for it too."""

    def renamed(self, session: Session) -> None:
        """A connection's character has another name."""

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run something beside what else happens, until the gateway closes."""


class Memberships:
    """Keeps the connections of this process in the rooms of their users' groups.

    Args:
        host: the gateway.
        directory: who belongs where.
    """

    def __init__(self, host: Host, directory: Directory) -> None:
        self._host = host
        self._rooms = host.rooms
        self._directory = directory
        self._is_announcing = False
        host.cluster.listens_to("membership", self._told)

    def watch(self) -> None:
        """Have the directory tell what changes."""
        self._directory.watch(
            on_change=self.on_change, on_ban=self.on_ban, on_profile=self.on_profile
        )

    def on_change(self, user_id: str, groups: frozenset[Group]) -> None:
        """The directory says which groups a user is in from now on."""
        wanted = {group_room(group.id): group for group in groups}
        joined: dict[str, str] = {}
        left: dict[str, str] = {}
        for session in self._rooms.members(user_room(user_id)):
            if not self._host.is_settled(session):
                continue  # its own lookup comes, or is repeated, after this
            mine = set(self._rooms.names_of(session)) - {user_room(user_id)}
            for room in sorted(mine - wanted.keys()):
                left[room] = self._rooms.group_name(room)
                self._rooms.leave(session, room)
            for room in mine & wanted.keys():
                self._rooms.retitle(room, wanted[room].name)
            for room in session.rooms_left() - wanted.keys():
                session.forget_left(room)
            refused = 0
            for room in sorted(wanted.keys() - mine):
                if session.has_left(room):
                    continue
                if self._rooms.join(session, room, wanted[room].name) is Joined.LIMIT:
                    refused += 1
                else:
                    joined[room] = wanted[room].name
            if refused:
                session.tell_limit(refused)
        self._tell(user_id, left, joined=False)
        self._tell(user_id, joined, joined=True)

    def _tell(self, user_id: str, changes: dict[str, str], *, joined: bool) -> None:
        for room, name in changes.items():
            frame = envelope.membership_change(
                user_id,
                room.removeprefix("group:"),
                name,
                joined=joined,
                now=self._host.clock.time(),
            )
            self._rooms.fan_out(user_room(user_id), frame)

    async def changed(
        self,
        user_id: str | None,
        character_id: int | None,
        group_id: str,
        name: str,
        *,
        joined: bool,
    ) -> None:
        """Act on an event: somebody says that a character joined or left a group.

        A removal is believed at once; then the directory is asked, whose answer is final.

        Args:
            user_id: whose membership changed; None when only the character is known.
            character_id: the user's character, whose connections are looked for; None if the user
                is all that is known.
            group_id: 24 hexadecimal digits.
            name: of the group, for the clients.
            joined: added, or removed.

        Raises:
            DirectoryUnavailable: the directory does not answer.
        """
        users = {user_id} if user_id is not None else set()
        if character_id is not None:
            users.update(
                session.identity.user_id
                for session in self._host.core.owners()
                if session.character_id == character_id
            )
        users = {user for user in users if user_room(user) in self._rooms}
        if not joined:
            # All of them, before anything that can fail; nor may who left by itself come back.
            room = group_room(group_id)
            for user in users:
                mine = self._rooms.members(user_room(user))
                for session in mine:
                    session.forget_left(room)
                if [session for session in mine if self._rooms.leave(session, room)]:
                    self._tell(user, {room: name}, joined=False)
        await self._directory.refresh(sorted(users))

    async def announce(
        self, user_id: str | None, character_id: int, group_id: str, name: str, *, joined: bool
    ) -> None:
        """Act on an event on all nodes; see `changed`.

        Args:
            user_id: whose membership changed; None when only the character is known.
            character_id: the user's character.
            group_id: 24 hexadecimal digits.
            name: of the group, for the clients.
            joined: added, or removed.

        Raises:
            BusUnavailable: other nodes were not told; they find out from the directory.
            DirectoryUnavailable: the directory does not answer.
        """
        self._is_announcing = True  # what comes back at once is our own
        try:
            if user_id is not None:
                frame = envelope.membership_change(
                    user_id, group_id, name, joined=joined, now=self._host.clock.time()
                )
                self._host.publish(Target.USER, user_id, frame)
            else:
                self._host.cluster.tell(
                    "membership",
                    {
                        "character_id": character_id,
                        "group_id": group_id,
                        "name": name,
                        "joined": joined,
                    },
                )
        finally:
            self._is_announcing = False
            await self.changed(user_id, character_id, group_id, name, joined=joined)

    def heard(self, user_id: str, event: MembershipEvent) -> int:
        """Act on an event from another node; who is concerned is told when it has taken effect."""
        connections = self._rooms.member_count(user_room(user_id))
        if connections and not self._is_announcing:
            self._host.spawn(
                self._act(user_id, None, event.group_id, event.group_name, joined=event.joined)
            )
        return connections

    def _told(self, process_id: str, args: Json) -> None:
        """See `announce`; another node knows the character only."""
        joined = args.get("joined")
        if not isinstance(joined, bool):
            raise ValueError("joined is not a truth value")  # noqa: TRY004
        self._host.spawn(
            self._act(
                None,
                integer(args, "character_id"),
                text(args, "group_id"),
                text(args, "name"),
                joined=joined,
            )
        )

    async def _act(
        self,
        user_id: str | None,
        character_id: int | None,
        group_id: str,
        name: str,
        *,
        joined: bool,
    ) -> None:
        try:
            await self.changed(user_id, character_id, group_id, name, joined=joined)
        except DirectoryUnavailable:
            # Who was removed is out of the room; the rest is found out when it answers again.
            log.warning("an event about a group could not be looked up", extra={"kind": "event"})

    def on_ban(self, user_id: str) -> None:
        """The directory says that a user is banned."""
        for session in self._rooms.members(user_room(user_id)):
            session.close(CloseReason.REVOKED)

    def on_profile(self, user_id: str, character_id: int, name: str) -> None:
        """The directory, or an event, says what a character is called; a token cannot know."""
        for session in self._rooms.members(user_room(user_id)):
            identity = session.identity
            if identity.character_id == character_id and identity.character_name != name:
                session.identity = dataclasses.replace(identity, character_name=name)
                self._host.renamed(session)
