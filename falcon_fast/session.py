"""One connection's life, from the 101 to the end, and what each of its messages does.

States, and who moves them (only `Session` writes `state`)::

    CONNECTING  the core has the socket, nobody was told          -> ADMITTING | CLOSED
    ADMITTING   welcomed; its groups are being looked up          -> OPEN | CLOSED
    OPEN        in its rooms (or told that they are pending)      -> CLOSED
    CLOSED      out of everything; the core has called back once

Messages reach `handle` only from OPEN on: until then the core does not read them.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from falcon_fast import envelope
from falcon_fast._core import Core, Seat
from falcon_fast.bus import Target
from falcon_fast.clock import Clock
from falcon_fast.codes import CloseReason, ReplyCode
from falcon_fast.envelope import ClientFrame
from falcon_fast.errors import AuthError, BusUnavailable, EnvelopeError
from falcon_fast.identity import Identity, packed_character, unpack
from falcon_fast.presence import MAX_WATCHED, Presence
from falcon_fast.rooms import Joined, Rooms, user_room

__all__ = ["Host", "Session", "State"]

MAX_STRIKES: Final = 10
"""Malformed messages within `STRIKE_WINDOW` that end a connection."""

STRIKE_WINDOW: Final = 60.0
"""Seconds."""

MAX_USERS_PER_REQUEST: Final = 100
"""Users named in one presence subscription."""


_HEAD: Final = struct.Struct("<dH")
"""A record begins with when the connection was made, and how long the address behind this is."""


class State(enum.IntEnum):
    """See the module's docstring."""

    CONNECTING = 0
    ADMITTING = 1
    OPEN = 2
    CLOSED = 3


_STATES: Final = tuple(State)


class Host(Protocol):
    """What a session needs of the server it lives in."""

    core: Core[Session]
    rooms: Rooms[Session]
    presence: Presence[Session]
    clock: Clock
    node_id: str
    max_json_depth: int
    heartbeat_interval: float

    def publish(self, target: Target, ident: str, frame: bytes) -> int:
        """Send a frame through the bus; raises BusUnavailable when other nodes were not told."""

    def find(self, connection_id: str) -> Session | None:
        """Return a live connection by its id."""

    def verify(self, token: str) -> Identity:
        """Check a token; raises AuthError."""

    def refresh(self, session: Session) -> None:
        """Read the groups of a session's user again, soon."""

    @property
    def has_others(self) -> bool:
        """Whether there are other processes with connections."""

    def direct_elsewhere(
        self,
        session: Session,
        ident: str | None,
        to: str,
        message: bytes,
        *,
        found: bool,
        shared: bool,
    ) -> None:
        """Pass a direct message on to other processes, then call `Session.directed`.

        Args:
            session: the sender.
            ident: the message's id.
            to: the receiver.
            message: the frame.
            found: whether the receiver is here too.
            shared: whether it was delivered here.
        """


@dataclass(slots=True)
class _Fresh:
    """What will be in the record: it is asked for again and again until a connection is OPEN."""

    identity: Identity
    created_at: float
    remote_address: str


@dataclass(slots=True)
class _Rare:
    """What only few connections have.

    Attributes:
        left: rooms left on request, which may be joined again, with their groups' names.
        strikes: when the latest malformed messages came.
    """

    left: dict[str, str] = field(default_factory=dict)
    strikes: tuple[float, ...] = ()


class Session(Seat):
    """A connection and its user.

    All it remembers is in the `Seat`: thousands of sessions are idle and most of what each would
    take is Python's price for an object.

    Attributes:
        id: uuid4, what clients and operators call the connection.
        conn: the core's handle.
        identity: whom the token names; replaced when the token is refreshed.
        remote_address: the client's address.
        created_at: seconds since 1970.
        state: see the module's docstring.
    """

    __slots__ = ()

    _host: Host
    _fresh: _Fresh | None
    _rare: _Rare | None

    def __init__(
        self, host: Host, ident: str, identity: Identity, *, remote_address: str, created_at: float
    ) -> None:
        self._host = host
        self._fresh = _Fresh(identity, created_at, remote_address)
        self.id = ident

    @property
    def state(self) -> State:
        """See the module's docstring."""
        return _STATES[self.phase]

    @state.setter
    def state(self, state: State) -> None:
        self.phase = state

    @property
    def identity(self) -> Identity:
        """Whom the token names."""
        if self._fresh is not None:
            return self._fresh.identity
        record, at = self._read()
        return unpack(record, at)

    @identity.setter
    def identity(self, identity: Identity) -> None:
        address = self.remote_address.encode()
        self.record = _HEAD.pack(self.created_at, len(address)) + address + identity.pack()
        self._fresh = None

    @property
    def created_at(self) -> float:
        """When it was made, in seconds since 1970."""
        if self._fresh is not None:
            return self._fresh.created_at
        since: float = _HEAD.unpack_from(self._read()[0])[0]
        return since

    @property
    def remote_address(self) -> str:
        """The client's address."""
        if self._fresh is not None:
            return self._fresh.remote_address
        record, at = self._read()
        return record[_HEAD.size : at].decode()

    @property
    def character_id(self) -> int:
        """The character of its identity, for searches through all connections."""
        if self._fresh is not None:
            return self._fresh.identity.character_id
        record, at = self._read()
        return packed_character(record, at)

    def _read(self) -> tuple[bytes, int]:
        """Return the record, and where the identity begins in it."""
        record = self.record
        if record is None:
            raise RuntimeError("a session that is not fresh has a record")
        return record, _HEAD.size + _HEAD.unpack_from(record)[1]

    # ------------------------------------------------------------------------------ its life

    def welcome(self) -> None:
        """CONNECTING -> ADMITTING: the first frame, the personal room, the end of the token."""
        host, identity = self._host, self.identity
        self.state = State.ADMITTING
        now = host.clock.time()
        self.send(
            envelope.welcome(
                self.id,
                identity.user_id,
                character_id=identity.character_id,
                character_name=identity.character_name,
                node_id=host.node_id,
                heartbeat_interval=host.heartbeat_interval,
                expires_at=identity.expires_at,
                now=now,
            )
        )
        self._set_expiry(now)
        host.rooms.join(self, user_room(identity.user_id), user_id=identity.user_id)

    def open(self, *, pending: bool) -> None:
        """ADMITTING -> OPEN: say which rooms it is in, and let its messages come.

        Args:
            pending: its groups could not be read yet.
        """
        if self.state is not State.ADMITTING:
            return
        self.state = State.OPEN
        self.identity = self.identity  # packs what it remembers: from now on it is seldom asked
        if pending:
            self.send(envelope.rooms_pending(now=self._host.clock.time()))
        else:
            self.tell_rooms()
        self._host.core.resume(self.conn)

    def tell_rooms(self) -> None:
        """Tell the client which rooms it is in."""
        rooms = self._host.rooms.names_of(self)
        self.send(envelope.rooms_joined(rooms, now=self._host.clock.time()))

    def tell_limit(self, refused: int) -> None:
        """Tell the client that it could not be put into all its rooms."""
        self._reply_error(
            None,
            ReplyCode.LIMIT,
            f"{refused} rooms were not joined: a connection may be in so many rooms at most",
        )

    def close(self, reason: CloseReason) -> None:
        """End the connection; a closed one stays closed for its first reason."""
        self._host.core.close(self.conn, reason)

    def closed(self) -> None:
        """Any state -> CLOSED; called by the gateway when the core is done with it."""
        self.state = State.CLOSED

    def expired(self) -> None:
        """The token's time is over and no new one came."""
        self.close(CloseReason.TOKEN_EXPIRED)

    def _set_expiry(self, now: float) -> None:
        host = self._host
        host.core.set_expiry(
            self.conn, host.clock.monotonic() + max(0.0, self.identity.expires_at - now)
        )

    # ------------------------------------------------------------------------- what it is told

    def send(self, frame: bytes) -> None:
        """Queue a frame to this connection; a slow or closed one is the core's to deal with."""
        self._host.core.send(self.conn, frame)

    def is_in_any(self, rooms: frozenset[str]) -> bool:
        """Tell whether it is in one of the rooms."""
        return not rooms.isdisjoint(self._host.rooms.names_of(self))

    def tell_presence(self, user_id: str, status: str) -> None:
        """Tell the client of another user's coming or going."""
        self.send(envelope.presence_of(user_id, status, now=self._host.clock.time()))

    def refused(self, payload: bytes, number: int) -> None:
        """Answer messages above the rate: one reply for all that came together."""
        self._reply_error(
            envelope.frame_id(payload),
            ReplyCode.RATE_LIMITED,
            f"{number} messages were not handled: slow down",
            refused=number,
        )

    def _reply_error(
        self, ident: str | None, code: ReplyCode, message: str, **extra: object
    ) -> None:
        self.send(
            envelope.error_frame(code, message, now=self._host.clock.time(), id=ident, extra=extra)
        )

    def _ack(self, frame: ClientFrame, **data: object) -> None:
        if frame.id is not None:
            self.send(
                envelope.encode(envelope.ACK, now=self._host.clock.time(), id=frame.id, data=data)
            )

    # -------------------------------------------------------------------- what its messages do

    def handle(self, payload: bytes, *, is_text: bool) -> None:
        """Act on one complete message."""
        if not is_text:
            self.close(CloseReason.UNSUPPORTED_DATA)
            return
        frame = None
        try:
            frame = envelope.decode(payload, max_depth=self._host.max_json_depth)
            action = _ACTIONS.get(frame.type)
            if action is None:
                raise _wrong_type(frame.type)
            action(self, frame)
        except EnvelopeError as error:
            ident = frame.id if frame is not None else envelope.frame_id(payload)
            self._reply_error(ident, error.code, error.message)
            if error.code in _STRIKES:
                self._strike()
        except BusUnavailable:
            self._reply_error(
                frame.id if frame is not None else None,
                ReplyCode.UNAVAILABLE,
                "this node's members got the message, other nodes could not be told",
            )

    def _rarely(self) -> _Rare:
        if self._rare is None:
            self._rare = _Rare()
        return self._rare

    def _strike(self) -> None:
        now = self._host.clock.monotonic()
        rare = self._rarely()
        rare.strikes = (*rare.strikes, now)[-MAX_STRIKES:]
        if len(rare.strikes) == MAX_STRIKES and now - rare.strikes[0] < STRIKE_WINDOW:
            self.close(CloseReason.TOO_MANY_ERRORS)

    def _presence(self, frame: ClientFrame) -> None:
        self.send(envelope.presence_reply(frame.id, now=self._host.clock.time()))

    def _message(self, frame: ClientFrame) -> None:
        if (frame.room is None) == (frame.to is None):
            raise EnvelopeError(
                ReplyCode.BAD_REQUEST, "a message needs either room or to, and not both"
            )
        host = self._host
        if frame.room is not None:
            if not host.rooms.is_member(self, frame.room):
                raise _not_allowed("you are not a member of this room")
            host.publish(Target.ROOM, frame.room, self._passed_on(frame))
        elif frame.to is not None:
            self._direct(frame, frame.to)

    def _direct(self, frame: ClientFrame, to: str) -> None:
        """Pass a message on to a connection or a user, here or on other nodes."""
        host = self._host
        if to.startswith("user:"):
            here = host.rooms.members(to)
        else:
            other = host.find(to)
            here = [other] if other else []
        shared = any(host.rooms.share(self, other) for other in here)
        message = self._passed_on(frame)
        if shared:
            for other in here:
                other.send(message)
        if host.has_others and not (here and not to.startswith("user:")):
            # A user may be elsewhere too; who gets it is looked at there in the same way.
            host.direct_elsewhere(self, frame.id, to, message, found=bool(here), shared=shared)
        else:
            self.directed(frame.id, found=bool(here), shared=shared, missing=())

    def directed(
        self, ident: str | None, *, found: bool, shared: bool, missing: tuple[str, ...]
    ) -> None:
        """Answer a direct message when it is known what became of it.

        Args:
            ident: the message's id.
            found: whether the receiver is there.
            shared: whether it was delivered, the receiver being in a room of ours.
            missing: nodes that did not say.
        """
        if shared:
            if ident is not None:
                self.send(envelope.encode(envelope.ACK, now=self._host.clock.time(), id=ident))
        elif missing:
            self._reply_error(
                ident, ReplyCode.UNAVAILABLE, "other nodes could not be asked for the receiver"
            )
        elif found:
            self._reply_error(ident, ReplyCode.FORBIDDEN, "you share no room with the receiver")
        else:
            self._reply_error(ident, ReplyCode.NOT_FOUND, "no such connection or user is there")

    def _passed_on(self, frame: ClientFrame) -> bytes:
        return envelope.encode(
            "message",
            now=self._host.clock.time(),
            id=frame.id,
            room=frame.room,
            sender=self.id,
            to=frame.to,
            data=frame.data,
        )

    def _system(self, frame: ClientFrame) -> None:
        name = frame.data.get("action")
        action = _SYSTEM_ACTIONS.get(name) if isinstance(name, str) else None
        if action is None:
            raise EnvelopeError(
                ReplyCode.BAD_REQUEST, f"data.action must be one of {', '.join(_SYSTEM_ACTIONS)}"
            )
        action(self, frame)

    def _ping(self, frame: ClientFrame) -> None:
        self.send(envelope.pong(frame.id, now=self._host.clock.time()))

    def _join(self, frame: ClientFrame) -> None:
        room = self._room_of(frame)
        rooms = self._host.rooms
        if not rooms.is_member(self, room):
            if self._rare is None or room not in self._rare.left:
                raise _not_allowed("you do not belong to this room")
            if rooms.join(self, room, self._rare.left[room]) is Joined.LIMIT:
                raise EnvelopeError(ReplyCode.LIMIT, "the connection is in too many rooms")
            del self._rare.left[room]
        self._ack(frame, action="join", room=room)

    def _leave(self, frame: ClientFrame) -> None:
        room = self._room_of(frame)
        name = self._host.rooms.group_name(room)
        if room == user_room(self.identity.user_id) or not self._host.rooms.leave(self, room):
            raise _not_allowed("you cannot leave this room")
        self._rarely().left[room] = name
        self._ack(frame, action="leave", room=room)

    def has_left(self, room: str) -> bool:
        """Tell whether the client asked to be out of a room its user belongs to."""
        return self._rare is not None and room in self._rare.left

    def rooms_left(self) -> set[str]:
        """Return the rooms the client asked to be out of."""
        return set(() if self._rare is None else self._rare.left)

    def forget_left(self, room: str) -> None:
        """The user no longer belongs to a room: it cannot be joined again on request."""
        if self._rare is not None:
            self._rare.left.pop(room, None)

    @staticmethod
    def _room_of(frame: ClientFrame) -> str:
        room = frame.room or envelope.room_name(frame.data.get("room"))
        if room is None:
            raise EnvelopeError(
                ReplyCode.BAD_REQUEST, "room must be user:{id} or group:{24 hexadecimal digits}"
            )
        return room

    def _watch(self, frame: ClientFrame) -> None:
        users = _users_of(frame)
        if not self._host.presence.watch(self, users):
            raise EnvelopeError(
                ReplyCode.LIMIT, f"a connection may watch {MAX_WATCHED} users at most"
            )
        self._ack(frame, action="subscribe_presence", user_ids=users)

    def _unwatch(self, frame: ClientFrame) -> None:
        users = _users_of(frame)
        self._host.presence.unwatch(self, users)
        self._ack(frame, action="unsubscribe_presence", user_ids=users)

    def _auth(self, frame: ClientFrame) -> None:
        token = frame.data.get("token")
        if not isinstance(token, str):
            raise EnvelopeError(ReplyCode.BAD_REQUEST, "data.token must be a string")
        try:
            identity = self._host.verify(token)
        except AuthError:
            raise _not_allowed("the token is not valid") from None
        if identity.user_id != self.identity.user_id:
            self.close(CloseReason.FORBIDDEN)
            return
        self.identity = identity
        now = self._host.clock.time()
        self._set_expiry(now)
        self.send(
            envelope.encode(
                envelope.AUTH, now=now, id=frame.id, data={"expires_at": identity.expires_at}
            )
        )
        self._host.refresh(self)


def _not_allowed(message: str) -> EnvelopeError:
    return EnvelopeError(ReplyCode.FORBIDDEN, message)


def _wrong_type(kind: str) -> EnvelopeError:
    if kind in envelope.BROADCAST_TYPES:
        return _not_allowed("clients may not send messages of this type")
    return EnvelopeError(
        ReplyCode.UNKNOWN_TYPE, f"type must be one of {', '.join(sorted(envelope.CLIENT_TYPES))}"
    )


def _users_of(frame: ClientFrame) -> list[str]:
    users = frame.data.get("user_ids", [frame.data.get("user_id")])
    if (
        not isinstance(users, list)
        or not 1 <= len(users) <= MAX_USERS_PER_REQUEST
        or not all(isinstance(user, str) and envelope.room_name(user_room(user)) for user in users)
    ):
        raise EnvelopeError(
            ReplyCode.BAD_REQUEST,
            f"data.user_ids must be a list of 1 to {MAX_USERS_PER_REQUEST} user ids",
        )
    return users


_STRIKES: Final = frozenset({ReplyCode.BAD_JSON, ReplyCode.BAD_REQUEST})

_ACTIONS: Final[dict[str, Callable[[Session, ClientFrame], None]]] = {
    "message": Session._message,
    "presence": Session._presence,
    "heartbeat": Session._presence,
    "system": Session._system,
    "auth": Session._auth,
}

_SYSTEM_ACTIONS: Final[dict[str, Callable[[Session, ClientFrame], None]]] = {
    "ping": Session._ping,
    "join": Session._join,
    "leave": Session._leave,
    "subscribe_presence": Session._watch,
    "unsubscribe_presence": Session._unwatch,
}
