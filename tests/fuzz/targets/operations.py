"""Random calls into the core, many connections and rooms at once: members hear what they must.

Each octet, with those behind it as arguments, is one call: connecting, input, joining, saying
something to a room, closing, stalling, time. Calls also happen inside callbacks. What each member
must hear is noted beside it; the twin is compared elsewhere, here sockets take part too.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from falcon_fast._core import Core
from falcon_fast.codes import CloseReason

from ...support.core import Closed, CoreFactory, Event, Failed, Message, Rig
from ...support.deflate import packed_text, plain
from ...support.frames import CLOSE, TEXT, ServerFrame, binary, close, ping, server_frames, text
from ...support.transport import FakeTransport

NATIVE: Final[CoreFactory] = Core

CONNECTIONS: Final = 6
ROOMS: Final = 4
CALLS: Final = 300
WINDOWS: Final = (0, 15, 9)

LIMITS: Final[dict[str, float]] = {
    "max_connections": CONNECTIONS,
    "max_message_bytes": 512,
    "max_queue_bytes": 4_096,
    "max_queue_messages": 16,
    "max_rooms": 3,
    "deflate_min_bytes": 64,
    "message_rate": 20.0,
    "message_burst": 10,
    "ping_interval": 5.0,
    "ping_timeout": 10.0,
    "write_timeout": 3.0,
    "epoll": True,
}

INPUTS: Final = (
    text("hello"),
    binary(b"\0" * 400),
    ping(b"p" * 125),
    text("x" * 100, fin=False),
    close(1000),
    text(b"\xff"),
    text("y" * 2_000),
    text("leave"),
    text("close"),
    text("say"),
    text("raise"),
    packed_text("say"),
    packed_text("z" * 600),
)

REASONS: Final = (
    CloseReason.NORMAL,
    CloseReason.SERVICE_RESTART,
    CloseReason.TOKEN_EXPIRED,
    CloseReason.KICKED,
)


@dataclass(slots=True)
class Client:
    """One connection as the test knows it.

    Attributes:
        due: what it must hear, in this order; nothing else.
    """

    name: str
    handle: int
    transport: FakeTransport | None = None
    lose: Callable[[], None] | None = None
    feed: Callable[[bytes], None] | None = None
    peer: socket.socket | None = None
    heard: bytearray = field(default_factory=bytearray)
    due: list[bytes] = field(default_factory=list)
    open: bool = True


class Play:
    """One input being played."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.made = 0
        self.rig = Rig(NATIVE, LIMITS)
        self.rig.hook = self.called_back
        self.core = self.rig.core
        self.clients: list[Client | None] = [None] * CONNECTIONS
        self.past: list[Client] = []
        self.rooms: list[int | None] = [None] * ROOMS
        self.members: list[list[Client]] = [[] for _ in range(ROOMS)]

    def octet(self) -> int:
        """Take the next octet; 0 behind the end."""
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def client(self) -> Client | None:
        return self.clients[self.octet() % CONNECTIONS]

    def play(self) -> None:
        """Make the calls, end everything and check."""
        for _ in range(CALLS):
            if self.at >= len(self.data):
                break
            self.CALLS[self.octet() % len(self.CALLS)](self)
            self.check_counts()
        self.turn()
        up_to_date = [
            client for client in self.clients if client is not None and self.is_up(client)
        ]
        self.core.shutdown()
        for client in [*self.past, *filter(None, self.clients)]:
            self.check_heard(client, all_of_it=client in up_to_date)
            if client.peer is not None:
                client.peer.close()
        assert self.core.count == 0
        ends = [event.owner for event in self.rig.events if isinstance(event, Closed)]
        assert len(ends) == len(set(ends)) == self.made, "told of each end exactly once"
        for event in self.rig.events:
            assert not isinstance(event, Failed) or "on request" in event.error

    # ----------------------------------------------------------------------------- the calls

    def connect_link(self) -> None:
        place = self.octet() % CONNECTIONS
        if self.clients[place] is not None or self.core.count == CONNECTIONS:
            return
        how = self.octet()
        transport = FakeTransport()
        try:
            peer = self.rig.connect(
                f"c{self.made}",
                transport=transport,
                paused=how % 4 == 0,
                deflate=WINDOWS[how // 4 % len(WINDOWS)],
            )
        except ConnectionError:
            return  # slots of this tick's closes are not free yet
        client = Client(
            peer.owner,
            peer.handle,
            transport=transport,
            lose=lambda: peer.link.connection_lost(None),
            feed=peer.put,
        )
        self.made += 1
        self.clients[place] = client

    def connect_socket(self) -> None:
        place = self.octet() % CONNECTIONS
        if self.clients[place] is not None or self.core.count == CONNECTIONS:
            return
        how = self.octet()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        name = f"c{self.made}"
        try:
            handle = self.core.adopt_socket(
                ours.detach(),
                name,
                paused=how % 4 == 0,
                deflate=WINDOWS[how // 4 % len(WINDOWS)],
            )
        except ConnectionError:
            theirs.close()
            return
        self.made += 1
        self.clients[place] = Client(
            name,
            handle,
            peer=theirs,
            lose=lambda: theirs.shutdown(socket.SHUT_RDWR),
            feed=lambda data: give(theirs, data),
        )

    def feed(self) -> None:
        client, which = self.client(), self.octet()
        if client is None or client.feed is None:
            return
        data = INPUTS[which % len(INPUTS)]
        if which >= 128:
            data = data[: 1 + which % 7]  # part of a frame; the stream is broken from here on
        client.feed(data)

    def resume(self) -> None:
        client = self.client()
        if client is not None:
            self.core.resume(client.handle)

    def join(self) -> None:
        client, room = self.client(), self.octet() % ROOMS
        if client is None:
            return
        number = self.rooms[room]
        if number is None:
            number = self.rooms[room] = self.core.open_room()
        was_member = client in self.members[room]
        mine = sum(client in members for members in self.members)
        joined = self.core.join(client.handle, number)
        if not client.open:
            assert joined <= 0
        elif was_member:
            assert joined == 0
        elif mine == LIMITS["max_rooms"]:
            assert joined == -1
        else:
            assert joined == 1
            self.members[room].append(client)

    def leave(self, client: Client | None = None, room: int | None = None) -> None:
        client = self.client() if client is None else client
        room = self.octet() % ROOMS if room is None else room
        number = self.rooms[room]
        if client is None or number is None:
            return
        assert self.core.leave(client.handle, number) == (client in self.members[room])
        if client in self.members[room]:
            self.members[room].remove(client)

    def close_room(self) -> None:
        room = self.octet() % ROOMS
        number = self.rooms[room]
        if number is not None and not self.members[room]:
            self.core.close_room(number)
            self.rooms[room] = None

    def say(self) -> None:
        room, size = self.octet() % ROOMS, self.octet()
        number = self.rooms[room]
        if number is None:
            return
        payload = f"r{room} {self.at} ".encode() + b"." * size
        members = list(self.members[room])
        assert self.core.fan_out(number, payload) == len(members)
        for client in members:
            client.due.append(payload)

    def broadcast(self) -> None:
        payload = f"all {self.at}".encode()
        everybody = [client for client in self.clients if client is not None and client.open]
        assert self.core.broadcast(payload) == len(everybody)
        for client in everybody:
            client.due.append(payload)

    def send(self) -> None:
        client, size = self.client(), self.octet()
        if client is None:
            return
        payload = f"to {client.name} {self.at} ".encode() + b"-" * (size * 8)
        verdict = self.core.send(client.handle, payload)
        assert (verdict == 3) == (not client.open)
        if client.open:
            client.due.append(payload)

    def close(self) -> None:
        client, reason = self.client(), self.octet()
        if client is not None:
            self.core.close(client.handle, REASONS[reason % len(REASONS)])
            assert not client.open

    def abort(self) -> None:
        client = self.client()
        if client is not None:
            self.core.abort(client.handle, CloseReason.INTERNAL_ERROR)
            assert not client.open

    def expire(self) -> None:
        client = self.client()
        if client is not None:
            self.core.set_expiry(client.handle, self.rig.clock.monotonic() + 1.0)

    def lose(self) -> None:
        client = self.client()
        if client is not None and client.lose is not None:
            client.lose()
            client.lose = client.feed = None

    def stall(self) -> None:
        client = self.client()
        if client is not None and client.transport is not None:
            client.transport.stall()

    def drain(self) -> None:
        client = self.client()
        if client is None:
            return
        if client.transport is not None and not client.transport.aborted:
            client.transport.drain()
        elif client.peer is not None:
            take(client)

    def forget(self) -> None:
        place = self.octet() % CONNECTIONS
        client = self.clients[place]
        if client is not None and not client.open:
            # The handle is stale from here on, and its slot may be another's.
            self.past.append(client)
            self.clients[place] = None

    def use_stale(self) -> None:
        if not self.past:
            return
        client = self.past[self.octet() % len(self.past)]
        assert self.core.owner(client.handle) is None
        assert self.core.send(client.handle, b"nobody") == 3
        self.core.resume(client.handle)
        self.core.close(client.handle, CloseReason.NORMAL)
        self.core.set_expiry(client.handle, 0.0)
        assert self.core.rooms_of(client.handle) == []

    def ready(self) -> None:
        self.core.ready()

    def turn(self) -> None:
        # `ready` and `tick` flush by themselves, so what was scheduled before is still there.
        while self.rig.scheduled:
            self.rig.scheduled.pop(0)()

    def wait(self) -> None:
        for _ in range(1 + self.octet() % 8):
            self.rig.clock.advance(0.25)
            self.core.tick()
            self.turn()

    CALLS: Final = (
        connect_link,
        connect_socket,
        feed,
        feed,
        resume,
        join,
        join,
        leave,
        close_room,
        say,
        say,
        broadcast,
        send,
        close,
        abort,
        expire,
        lose,
        stall,
        drain,
        forget,
        use_stale,
        ready,
        turn,
        wait,
    )

    # ------------------------------------------------------------------------- what comes back

    def called_back(self, event: Event) -> None:
        if isinstance(event, Closed):
            client = self.find(event.owner)
            if client is not None:
                client.open = False
                for members in self.members:
                    if client in members:
                        members.remove(client)
        elif isinstance(event, Message):
            client = self.find(event.owner)
            if client is None:
                return
            if event.payload == b"leave":
                for room in range(ROOMS):
                    self.leave(client, room)
            elif event.payload == b"close":
                self.core.close(client.handle, CloseReason.NORMAL)
            elif event.payload == b"say":
                payload = f"said {client.name} {self.at}".encode()
                if self.core.send(client.handle, payload) != 3:
                    client.due.append(payload)
            elif event.payload == b"raise":
                raise RuntimeError("on request")

    def find(self, name: str) -> Client | None:
        found = [client for client in self.clients if client is not None and client.name == name]
        return found[0] if found else None

    # ------------------------------------------------------------------------------- the rules

    def check_counts(self) -> None:
        """The core's view of who is where is ours."""
        assert self.core.count == sum(client is not None and client.open for client in self.clients)
        for number, members in zip(self.rooms, self.members, strict=True):
            if number is not None:
                names = [client.name for client in members]
                assert sorted(self.core.members(number)) == sorted(names)
                assert self.core.member_count(number) == len(names)

    def is_up(self, client: Client) -> bool:
        """Tell whether nothing waits for a client."""
        waits = client.transport is not None and client.transport.get_write_buffer_size() > 0
        return client.open and not waits and self.core.queued_bytes(client.handle) == 0

    def check_heard(self, client: Client, *, all_of_it: bool) -> None:
        """A client heard what was due, in that order, up to where it was cut off."""
        if client.peer is not None:
            take(client)
            stream = bytes(client.heard)
        else:
            assert client.transport is not None
            stream = client.transport.sent
        frames = whole_frames(stream)
        texts = [plain(frame).payload for frame in frames if frame.opcode == TEXT]
        assert texts == (client.due if all_of_it else client.due[: len(texts)]), client.name
        closes = [at for at, frame in enumerate(frames) if frame.opcode == CLOSE]
        assert closes in ([], [len(frames) - 1]), "something was sent behind the Close"


def give(peer: socket.socket, data: bytes) -> None:
    """Send what the socket takes."""
    try:
        peer.sendall(data)
    except OSError:
        pass  # the core is done with this client


def take(client: Client) -> None:
    """Read what a client's socket has."""
    assert client.peer is not None
    try:
        while got := client.peer.recv(65_536):
            client.heard += got
    except OSError:
        pass


def whole_frames(stream: bytes) -> list[ServerFrame]:
    """Take a stream apart that may end in the middle of a frame."""
    end = at = 0
    while at + 2 <= len(stream):
        width = {126: 2, 127: 8}.get(stream[at + 1], 0)
        size = stream[at + 1] if not width else int.from_bytes(stream[at + 2 : at + 2 + width])
        at += 2 + width + size
        if at <= len(stream):
            end = at
    return server_frames(stream[:end])


def one_input(data: bytes) -> None:
    """Play one input."""
    Play(data).play()
