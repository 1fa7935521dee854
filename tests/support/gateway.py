"""A whole node without a socket: the real gateway on fake transports, clock and directory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn, TypeAlias

from falcon_fast.auth import TokenVerifier, issue_token
from falcon_fast.bus import Bus, Target
from falcon_fast.bus.memory import MemoryBus
from falcon_fast.codes import CloseReason
from falcon_fast.deflate import agree
from falcon_fast.directory import Directory, Group
from falcon_fast.errors import BusUnavailable
from falcon_fast.gateway import Crew, Gateway, Listens
from falcon_fast.handshake import Accept
from falcon_fast.identity import Identity, new_id
from falcon_fast.registry import Registry
from falcon_fast.revocations import RevocationStore
from falcon_fast.revocations.memory import MemoryRevocations
from falcon_fast.revoker import Revoker
from falcon_fast.session import Session
from falcon_fast.settings import Settings

from .bus import Switchboard
from .deflate import plain
from .directory import FakeDirectory
from .frames import CLOSE, TEXT, client_frame, close, server_frames, text
from .loop import FakeTimeLoop, turns
from .transport import FakeTransport

Json: TypeAlias = dict[str, Any]
"""A decoded frame; what is in it is the test's to say."""

SECRET: Final = "a secret of tests that is long enough"
ADDRESS: Final = "192.0.2.7"
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
SETTINGS: Final = Settings(
    jwt_secret=SECRET, max_connections=1000, message_rate=0.0, ping_interval=30.0
)
"""The defaults, but a known number of slots, and no limit on messages."""


def strict(payload: bytes) -> Json:
    """Decode a frame of the server as the strictest of clients would.

    Raises:
        ValueError: it is no JSON object, has a key twice, or has a number that JSON has not.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    def once(pairs: Sequence[tuple[str, object]]) -> Json:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError(f"a key comes twice in {pairs}")
        return found

    frame = json.loads(payload, parse_constant=refuse, object_pairs_hook=once)
    if not isinstance(frame, dict):
        raise TypeError(f"a frame must be an object, not {frame!r}")
    return frame


class CutBus(MemoryBus):
    """A bus whose other nodes are out of reach while ``cut`` is set."""

    cut = False

    def publish(
        self,
        target: Target,
        ident: str,
        frame: bytes,
        *,
        members: int | None = None,
        receipt: str | None = None,
        process_id: str | None = None,
    ) -> int:
        reached = super().publish(
            target, ident, frame, members=members, receipt=receipt, process_id=process_id
        )
        if self.cut:
            raise BusUnavailable("other nodes were not told")
        return reached


class Client:
    """The far side of one connection."""

    def __init__(self, node: Node, transport: FakeTransport, user_id: str) -> None:
        self.node = node
        self.transport = transport
        self.user_id = user_id
        self._seen = 0

    def put(self, octets: bytes) -> None:
        """Let octets arrive, in as many reads as they need."""
        link = self.transport.get_protocol()
        assert isinstance(link, asyncio.BufferedProtocol)
        while octets:
            buffer = memoryview(link.get_buffer(-1))
            size = min(len(buffer), len(octets))
            buffer[:size] = octets[:size]
            link.buffer_updated(size)
            octets = octets[size:]

    def send(self, frame: Json | str | bytes) -> None:
        """Let one text message arrive."""
        self.put(text(json.dumps(frame) if isinstance(frame, dict) else frame))

    async def ask(self, frame: Json | str | bytes) -> list[Json]:
        """Let one text message arrive, and return what is answered at once."""
        self.take()
        self.send(frame)
        await turns()
        return self.take()

    def leave(self, code: int = 1000) -> None:
        """Let a Close arrive."""
        self.put(close(code))

    def vanish(self) -> None:
        """Lose the connection without a word."""
        link = self.transport.get_protocol()
        assert isinstance(link, asyncio.BufferedProtocol)
        link.connection_lost(None)

    def take(self) -> list[Json]:
        """Return the frames that came since the last call; Closes are for ``closed``."""
        return [strict(payload) for payload in self.payloads()]

    def payloads(self) -> list[bytes]:
        """Return the text messages that came since the last call, as they came."""
        written = bytes(self.transport.written[self._seen :])
        self._seen = len(self.transport.written)
        return [plain(frame).payload for frame in server_frames(written) if frame.opcode == TEXT]

    @property
    def closed(self) -> tuple[int, str] | None:
        """The code and text of the Close that came."""
        for frame in server_frames(bytes(self.transport.written)):
            if frame.opcode == CLOSE:
                return frame.code or 1005, frame.payload[2:].decode()
        return None

    @property
    def is_open(self) -> bool:
        """Whether no Close came."""
        return self.closed is None

    @property
    def session(self) -> Session:
        """The server's side, while it lives."""
        found = [
            session
            for session in self.node.gateway.core.owners()
            if session.conn == getattr(self.transport.get_protocol(), "handle", None)
        ]
        assert len(found) == 1, "there is no such connection"
        return found[0]

    @property
    def id(self) -> str:
        """Its connection id."""
        return self.session.id

    @property
    def rooms(self) -> list[str]:
        """The rooms it is in."""
        return self.node.gateway.rooms.names_of(self.session)


class Node:
    """A gateway that was started, without a listener.

    Args:
        settings: of the node.
        board: joins it with other nodes.
        registry: that it shares with them.
        store: where revocations are kept.
        directory: asked instead of the fake one.
        bus: how messages travel, for a process of a node of several.
        node_id: of its node then.
        process_id: its own then.
        listens: how clients reach it.
        crew: the other processes of the node.
        changes: of the settings.

    Attributes:
        clock: also the loop's; it goes on when a test awaits a sleep.
    """

    def __init__(
        self,
        settings: Settings = SETTINGS,
        *,
        board: Switchboard | None = None,
        registry: Registry | None = None,
        store: RevocationStore | None = None,
        directory: Directory | None = None,
        bus: Bus | None = None,
        node_id: str | None = None,
        process_id: str | None = None,
        listens: Listens = "alone",
        crew: Crew | None = None,
        **changes: Any,  # noqa: ANN401
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeTimeLoop), "the module must say loop_factory = FakeTimeLoop"
        self.settings = replace(settings, **changes)
        self.clock = loop.clock
        self.bus = CutBus()
        node_id = node_id or new_id()
        self.wire = None if board is None else board.plug(node_id)
        self.directory = FakeDirectory()
        self.gateway = Gateway(
            self.settings,
            clock=self.clock,
            bus=bus or self.wire or self.bus,
            directory=directory or self.directory,
            verifier=TokenVerifier(SECRET, clock=self.clock),
            epoll=False,
            alone=self.wire is None and bus is None,
            registry=registry,
            node_id=node_id,
            process_id=process_id,
            listens=listens,
            crew=crew,
        )
        self.revocations = self.gateway._verifier.revocations
        self.revoker = Revoker(
            self.revocations,
            store or MemoryRevocations(),
            clock=self.clock,
            max_lifetime=self.settings.jwt_max_lifetime,
            on_revoked=self.gateway.close_revoked,
        )

    def identity(self, user_id: str, character_id: int = 7, *, ttl: int = 36_000) -> Identity:
        """Make an identity whose token has been issued just now."""
        now = int(self.clock.time())
        return Identity(
            user_id, character_id, user_id.title(), "", now + ttl, f"{user_id}'s token", now
        )

    def token(self, user_id: str, character_id: int = 7, *, ttl: int = 36_000) -> str:
        """Make a token for a user."""
        return issue_token(
            SECRET,
            user_id=user_id,
            character_id=character_id,
            character_name=user_id.title(),
            ttl=ttl,
            now=int(self.clock.time()),
        )

    def dial(
        self,
        user_id: str,
        *groups: Group,
        character_id: int = 7,
        ttl: int = 36_000,
        early: bytes = b"",
        transport: FakeTransport | None = None,
        offer: str | None = None,
    ) -> Client:
        """Let a client arrive behind its 101; its user is in the groups as well as before."""
        known = self.directory.groups.get(user_id, frozenset())
        self.directory.groups[user_id] = known | frozenset(groups)
        transport = transport or FakeTransport()
        client = Client(self, transport, user_id)
        identity = self.identity(user_id, character_id, ttl=ttl)
        deflate = None if offer is None else agree((offer,))
        accept = Accept(identity, KEY, None, ADDRESS, deflate)
        self.gateway.born(accept, transport, early)
        return client

    async def connect(
        self,
        user_id: str,
        *groups: Group,
        character_id: int = 7,
        ttl: int = 36_000,
        offer: str | None = None,
    ) -> Client:
        """Let a client arrive and be admitted; the frames of that are taken already."""
        client = self.dial(user_id, *groups, character_id=character_id, ttl=ttl, offer=offer)
        await turns()
        assert client.closed is None, client.closed
        client.take()
        return client

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of anybody: no connection, room, subscription or question."""
        gateway = self.gateway
        return (
            gateway.core.count == 0
            and not gateway.core.owners()
            and len(gateway.rooms) == 0
            and not gateway._sessions
            and not gateway.admissions.are_pending
            and not gateway._tasks
            and not gateway.presence._watchers
            and not gateway.presence._watched
            and not self.directory.tracked
        )


def said(reason: CloseReason) -> tuple[int, str]:
    """What ``Client.closed`` is after a close for a reason of ours."""
    return reason.code, reason.text


def binary_message(payload: bytes = b"\x00") -> bytes:
    """Build a frame that no client of ours sends."""
    return client_frame(2, payload)
