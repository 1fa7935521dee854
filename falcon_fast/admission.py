"""Admission: from a welcomed connection to one that is in its rooms and may speak.

A connection is welcomed at once, and its groups are asked for. With the answer it enters the rooms
of its groups, is told of them, and its messages are read. Where there are other nodes, it also
waits until its rooms' messages come in from there, and is counted in the registry. A directory that
does not answer in time delays nobody: the client is told that its rooms are pending.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections import deque
from collections.abc import Awaitable, Coroutine
from typing import Final, Protocol

from falcon_fast.bus import Bus
from falcon_fast.codes import CloseReason
from falcon_fast.directory import Directory, Group
from falcon_fast.errors import DirectoryUnavailable
from falcon_fast.memberships import Memberships
from falcon_fast.neighbours import Neighbours
from falcon_fast.presence import Presence
from falcon_fast.registrar import Registrar
from falcon_fast.rooms import Joined, Rooms, group_room, user_room
from falcon_fast.session import Session, State

__all__ = ["Admissions", "Host"]

ADMISSION_TIMEOUT: Final = 5.0
"""Seconds the directory has before a client is told that its rooms are pending."""

RETRY_FIRST: Final = 0.5
RETRY_LAST: Final = 15.0
"""Seconds between attempts to read the groups of a connection whose rooms are pending."""

FOLLOW_TIMEOUT: Final = 2.0
"""Seconds a connection's admission waits for its rooms' messages to come in from other nodes."""

log = logging.getLogger(__name__)


class Host(Protocol):
    """What admissions need of the gateway."""

    rooms: Rooms[Session]
    presence: Presence[Session]
    neighbours: Neighbours
    memberships: Memberships

    def find(self, connection_id: str) -> Session | None:
        """Return a live connection by its id."""

    def run(self, session: Session, work: Coroutine[object, object, None]) -> None:
        """Run something for a connection, which is closed if that fails."""

    def failed(self, session: Session, error: BaseException) -> None:
        """Something failed that was done for a connection: close it."""


class Admissions:
    """Admits the connections of this process.

    Args:
        host: the gateway.
        directory: who belongs where.
        bus: brings what is said on other nodes.
        registrar: counts connections across nodes, if there are others.
        alone: whether there are no others.
    """

    def __init__(
        self,
        host: Host,
        *,
        directory: Directory,
        bus: Bus,
        registrar: Registrar | None,
        alone: bool,
    ) -> None:
        self._host = host
        self._directory = directory
        self._bus = bus
        self._registrar = registrar
        self._alone = alone
        self._loop = asyncio.get_running_loop()
        # What was asked of the directory, oldest first, and until when it may take.
        self._asked: deque[tuple[float, asyncio.Future[frozenset[Group]]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._pending: set[Session] = set()
        self._entered: set[Session] = set()
        self._follows: dict[str, asyncio.Future[None]] = {}
        self._closed = False

    @property
    def are_pending(self) -> bool:
        """Whether there are connections whose groups could not be read yet."""
        return bool(self._pending)

    def begin(self, session: Session) -> None:
        """Admit a connection that was welcomed."""
        if self._registrar is not None or not self._alone:
            self._host.run(session, self._admit(session))
            return
        # Nobody else has to be waited for: a task for each of a storm's clients would be most of
        # what its admission costs.
        try:
            answer = self._ask(session)
        except Exception as error:  # of a directory that is not ours
            self._host.failed(session, error)
            return
        answer.add_done_callback(functools.partial(self._answered, session))
        asked = self._asked
        while asked and asked[0][1].done():
            asked.popleft()
        asked.append((self._loop.time() + ADMISSION_TIMEOUT, answer))
        if self._timer is None:
            self._timer = self._loop.call_later(ADMISSION_TIMEOUT, self._give_up)

    def forget(self, session: Session) -> None:
        """A connection is gone."""
        self._pending.discard(session)

    def close(self) -> None:
        """Admit nobody any more; tasks are the gateway's to end."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._asked:
            self._asked.popleft()[1].cancel()

    # ------------------------------------------------------------------------------ how far it is

    def is_admitted(self, session: Session) -> bool:
        """Tell whether a connection is in its rooms and has been told so."""
        return session.state is State.OPEN and session not in self._pending

    def is_settled(self, session: Session) -> bool:
        """Tell whether a connection has been put into its rooms: a change is for it too."""
        return self.is_admitted(session) or session in self._entered

    def is_only_one(self, session: Session) -> bool:
        """Tell whether no other connection of its user is admitted."""
        others = self._host.rooms.members(user_room(session.identity.user_id))
        return not any(self.is_admitted(other) for other in others if other is not session)

    # ----------------------------------------------------------------------------- on a lone node

    def _ask(self, session: Session) -> asyncio.Future[frozenset[Group]]:
        identity = session.identity
        answer = self._directory.groups_of(identity.user_id, identity.character_id)
        return asyncio.ensure_future(answer, loop=self._loop)

    def _answered(self, session: Session, answer: asyncio.Future[frozenset[Group]]) -> None:
        if self._closed:
            if not answer.cancelled():
                answer.exception()  # looked at, or asyncio would complain
            return
        error = TimeoutError() if answer.cancelled() else answer.exception()
        if error is None:
            try:
                if session.state is not State.CLOSED:
                    self._enter(session, answer.result())
                    self._arrive(session)
            except Exception as failure:
                self._host.failed(session, failure)
        elif isinstance(error, DirectoryUnavailable | TimeoutError):
            _log_unknown(session, error)
            if session.state is not State.CLOSED:
                self._open_pending(session)
                self._host.run(session, self._admit_in_the_end(session))
        else:
            self._host.failed(session, error)

    def _give_up(self) -> None:
        """End the questions that have been waited for too long."""
        self._timer = None
        now = self._loop.time()
        asked = self._asked
        while asked and (asked[0][1].done() or asked[0][0] <= now):
            asked.popleft()[1].cancel()
        if asked:
            self._timer = self._loop.call_at(asked[0][0], self._give_up)

    async def _admit_in_the_end(self, session: Session) -> None:
        groups = await self._groups_in_the_end(session)
        if groups is not None and session.state is not State.CLOSED:
            self._enter(session, groups)
            self._arrive(session)

    # ------------------------------------------------------------------------ on one node of many

    async def _admit(self, session: Session) -> None:
        """Find the groups of a new connection, and let it speak when they are known."""
        if self._follows:
            await self._heard_of(session)  # its personal room
        if self._registrar is None:
            groups = await self._groups_of(session)
        else:
            groups, is_admitted = await asyncio.gather(
                self._groups_of(session), self._registrar.admit(session)
            )
            if not is_admitted:
                session.close(CloseReason.CONNECTION_LIMIT)
                return
            if self._host.find(session.id) is None:
                self._registrar.gone(session)  # once more: it was gone before it was counted
        if self._host.find(session.id) is None:
            return
        if groups is None:
            self._open_pending(session)
            groups = await self._groups_in_the_end(session)
        if session.state is State.CLOSED or groups is None:
            return
        if not await self._enter_heard(session, groups):
            return
        if self._follows:
            # What changes meanwhile is for this one too: it was asked about before.
            self._entered.add(session)
            try:
                await self._heard_of(session)
            finally:
                self._entered.discard(session)
            if self._host.find(session.id) is None:
                return
        self._arrive(session)

    async def _heard_of(self, session: Session) -> None:
        """Wait until the messages of a connection's rooms come in from other nodes."""
        names = self._host.rooms.names_of(session)
        waits = [self._follows[name] for name in names if name in self._follows]
        if waits:
            await asyncio.wait(waits, timeout=FOLLOW_TIMEOUT)

    async def _enter_heard(self, session: Session, groups: frozenset[Group]) -> bool:
        """Put a connection into its rooms as soon as their messages come in from other nodes.

        In them earlier it would hear messages of rooms that it has not been told of. Where that
        takes time the groups are read again, since they may have changed.

        Returns:
            Whether the connection is still there.
        """
        rooms = self._host.rooms
        names = [group_room(group.id) for group in groups]
        new = [name for name in names if name not in rooms]
        waits = [self._follows[name] for name in names if name in self._follows]
        for name in new:
            follow = self._bus.follow(name)
            if follow is not None:
                waits.append(asyncio.ensure_future(follow))
        if waits:
            await asyncio.wait(waits, timeout=FOLLOW_TIMEOUT)
            if self._host.find(session.id) is not None:
                now = await self._groups_of(session)
                groups = groups if now is None else now
        is_there = self._host.find(session.id) is not None
        if is_there:
            self._enter(session, groups)
        for name in new:
            if name not in rooms:
                self._bus.unfollow(name)
        return is_there

    def follow(self, room: str) -> None:
        """Have the messages of a room come in from other nodes: it has got its first member."""
        follow = self._bus.follow(room)
        if follow is None:
            return

        async def wait(follow: Awaitable[None]) -> None:
            await follow

        future = self._loop.create_task(wait(follow))
        self._follows[room] = future
        future.add_done_callback(lambda _: self._follows.pop(room, None))

    # ------------------------------------------------------------------------------------- on both

    def _enter(self, session: Session, groups: frozenset[Group]) -> None:
        refused = 0
        rooms = self._host.rooms
        for group in sorted(groups, key=_by_id):
            room = group_room(group.id)
            if not session.has_left(room):
                refused += rooms.join(session, room, group.name) is Joined.LIMIT
        if refused:
            session.tell_limit(refused)

    def _arrive(self, session: Session) -> None:
        """Tell everybody concerned that a connection is in its rooms."""
        self._pending.discard(session)
        host = self._host
        user_id = session.identity.user_id
        if (not self._alone or host.presence.matters(user_id)) and self.is_only_one(session):
            host.neighbours.user_came(user_id, frozenset(host.rooms.names_of(session)))
        if self._registrar is not None:
            self._registrar.changed(session)
        # Last, since its messages are handled here and now, and may be the end of it.
        if session.state is State.ADMITTING:
            session.open(pending=False)
        else:
            session.tell_rooms()

    async def _groups_of(self, session: Session) -> frozenset[Group] | None:
        try:
            async with asyncio.timeout(ADMISSION_TIMEOUT):
                return await self._ask(session)
        except (DirectoryUnavailable, TimeoutError) as error:
            _log_unknown(session, error)
            return None

    def _open_pending(self, session: Session) -> None:
        """Let a connection speak whose groups are not known yet."""
        self._pending.add(session)
        session.open(pending=True)

    async def _groups_in_the_end(self, session: Session) -> frozenset[Group] | None:
        """Go on asking for the groups of a connection; None if it has gone meanwhile."""
        delay = RETRY_FIRST
        while session.state is not State.CLOSED:
            await asyncio.sleep(delay * random.uniform(0.5, 1.5))
            delay = min(RETRY_LAST, delay * 2)
            groups = await self._groups_of(session)
            if groups is not None:
                return groups
        return None

    def refresh(self, session: Session) -> None:
        """Read the groups of a connection's user again, soon."""

        async def read() -> None:
            groups = await self._groups_of(session)
            if groups is not None and session.state is State.OPEN:
                self._host.memberships.on_change(session.identity.user_id, groups)

        self._directory.track(session.identity.user_id, session.identity.character_id)
        self._host.run(session, read())


def _by_id(group: Group) -> str:
    return group.id


def _log_unknown(session: Session, error: BaseException) -> None:
    log.warning(
        "groups are not known yet",
        extra={"connection_id": session.id, "error": str(error) or type(error).__name__},
    )
