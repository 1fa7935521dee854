"""Who is compared in the open-loop scenarios, and what their clients have to say to take part.

Every contender is asked for the same: connections in rooms, and a text that one member says goes to
all members of its room. Most peers are programs of ours on another's library (macro/peers): there a
client names its room in the path and its text is passed on as it is. Finished servers have a
protocol of their own: the generator speaks it, with the same number of bytes for each delivery.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.macro.build import program
from benchmarks.macro.child import Child
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.load import Clients, Load
from benchmarks.macro.places import PYTHON_PACKAGES, SCRIPTS, found
from benchmarks.macro.run import Run
from benchmarks.macro.servers.real import PATH, Population, Prepared, prepared, real_server

ROOFLINE = "C relay"
SUBJECT = "falcon_fast"
#: The server of another tree (--against), for a comparison of two states of the source.
OTHER = "falcon_fast, other tree"
#: Variable that tells a peer after how many seconds to ping a silent client, where it would not.
PING = "BENCHMARK_PING"
#: Letters and digits that a stamp takes in a message.
STAMP_BYTES = 17
#: Settings of the real server for a client that is a crowd, and for rooms whose members come at
#: once: no limit on messages, and in rooms above a hundred only their number is told.
OPEN_LIMITS = {
    "FALCON_MESSAGE_RATE": "1000000",
    "FALCON_MESSAGE_BURST": "1000000",
    "FALCON_ROOM_EVENTS_MAX": "100",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """So many rooms with so many members each."""

    rooms: int
    members: int

    @property
    def connections(self) -> int:
        """Connections in all."""
        return self.rooms * self.members

    def text(self) -> str:
        """Return the form that names it in tables and results."""
        return f"{self.rooms} x {self.members}"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How clients of a server take part.

    Attributes:
        path: path of the request, with a place for the room.
        message: what a client says to its room: "{stamp}" and "{pad}" are the content, "{size}"
            their number of bytes, "{room}" the room.
        setup: texts that a client sends once it is open.
        pong: the server's ping, when it is a message of its own, and the answer to it.
    """

    path: str = "/room/{room}"
    message: str = "{pad}{stamp}"
    setup: tuple[str, ...] = ()
    pong: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """A server with its generator, whose clients are not connected yet.

    Attributes:
        pad: letters that make a delivery as long as everybody's; see `open_loop.calibrate`.
        pauses: see `Peer`.
    """

    name: str
    server: Child
    load: Load
    layout: Layout
    message: str
    pad: int = 0
    pauses: bool = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have its turn: one that pauses is stopped outside of it."""
        if self.pauses:
            self.server.resume()
        try:
            yield
        finally:
            if self.pauses:
                self.server.pause()

    def text(self) -> str:
        """Return what a client says, for the generator."""
        return self.message.replace("{size}", str(STAMP_BYTES + self.pad))

    def padded(self, pad: int) -> Contender:
        """Return the same with another padding."""
        return replace(self, pad=pad)


#: Texts of the Centrifugo JSON protocol.
CENTRIFUGO = Dialect(
    path="/connection/websocket",
    setup=('{"id":1,"connect":{}}', '{"id":2,"subscribe":{"channel":"{room}"}}'),
    message='{"id":3,"publish":{"channel":"{room}","data":"{pad}{stamp}"}}',
    pong=("{}", "{}"),
)
#: Texts of the NATS protocol; a message is "PUB subject size" and its payload.
NATS = Dialect(
    path="/",
    setup=(
        r'CONNECT {"verbose":false,"pedantic":false,"protocol":1}\r\n',
        r"SUB room.{room} 1\r\n",
    ),
    message=r"PUB room.{room} {size}\r\n{pad}{stamp}\r\n",
    pong=(r"PING\r\n", r"PONG\r\n"),
)
#: Packets of Engine.IO and, in them, of Socket.IO: 40 connects, 42 is an event, 2 and 3 ping.
SOCKETIO = Dialect(
    path="/socket.io/?EIO=4&transport=websocket&room={room}",
    setup=("40",),
    message='42["say","{pad}{stamp}"]',
    pong=("2", "3"),
)
PLAIN = Dialect()


@dataclass(frozen=True, slots=True)
class Peer:
    """A server of another maker.

    Attributes:
        command: returns what starts it; raises PeerMissing.
        pauses: it keeps its CPU busy when there is nothing to do, or long after its turn with what
            was too much for it, so it is stopped while others have theirs.
    """

    name: str
    command: Callable[[Run], Sequence[str]]
    dialect: Dialect = PLAIN
    pauses: bool = False


def _python(module: str, *arguments: str) -> Callable[[Run], Sequence[str]]:
    return lambda run: run.module(f"peers.{module}", *arguments)


def _node(script: str) -> Callable[[Run], Sequence[str]]:
    return lambda run: [found("node"), "--expose-gc", str(SCRIPTS / script)]


def _wrapped(module: str) -> Callable[[Run], Sequence[str]]:
    return lambda run: [sys.executable, "-m", f"benchmarks.macro.peers.{module}"]


#: The room's part of the path is a number for all but the real server.
PEERS = (
    Peer("websockets", _python("websockets_broadcast", "--no-keepalive")),
    Peer("picows", _python("picows_loop")),
    Peer("aiohttp", _python("aiohttp_loop")),
    Peer("python-socketio", _python("socketio_uvicorn"), SOCKETIO, pauses=True),
    Peer("ws", _node("node_ws.js")),
    Peer("socket.io", _node("node_socketio.js"), SOCKETIO),
    Peer("uWebSockets.js", _node("node_uws.js")),
    Peer("socketify", _wrapped("socketify_app"), pauses=True),
    Peer("Bun", _wrapped("bun")),
    Peer("nginx + nchan", _wrapped("nchan")),
    Peer("nats-server", _wrapped("nats"), NATS),
    Peer("gorilla", _wrapped("go_gorilla")),
    Peer("Centrifugo", _wrapped("centrifugo"), CENTRIFUGO),
)


def environment() -> dict[str, str]:
    """Return the environment of peers: they find the packages that were fetched for them."""
    paths = [str(PYTHON_PACKAGES), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def room_names(layout: Layout) -> list[str]:
    """Return the rooms' names for peers: numbers of one length, so that all messages have one."""
    return [f"{number:05}" for number in range(layout.rooms)]


def falcon_message() -> str:
    """Return what a client of the real server says to its room."""
    message = {"type": "message", "room": "{room}", "data": {"at": "{pad}{stamp}"}}
    return json.dumps(message, separators=(",", ":"))


@contextmanager
def start_peer(run: Run, peer: Peer, layout: Layout, ping: float = 0.0) -> Iterator[Contender]:
    """Start a peer and a generator for it.

    Args:
        run: its CPUs.
        peer: the server.
        layout: the rooms.
        ping: see `starts`.

    Raises:
        PeerMissing: What it needs is not installed.
    """
    dialect = peer.dialect
    clients = Clients(
        path=dialect.path,
        rooms=room_names(layout),
        members=layout.members,
        setup=dialect.setup,
        pong=dialect.pong,
    )
    command = peer.command(run)
    told = {**environment(), **({PING: f"{ping:g}"} if ping else {})}
    with (
        Child(peer.name, command, cores=run.cores.server, environment=told) as server,
        Load(server.port, cores=run.cores.client, clients=clients) as load,
    ):
        yield Contender(peer.name, server, load, layout, dialect.message, pauses=peer.pauses)


@contextmanager
def start_roofline(run: Run, layout: Layout, ping: float = 0.0) -> Iterator[Contender]:
    """Start the C loop over send(2)."""
    arguments = ["--ping", f"{ping:g}"] if ping else []
    clients = Clients(path=PLAIN.path, rooms=room_names(layout), members=layout.members)
    with (
        run.server(ROOFLINE, [str(program("sendloop")), *arguments]) as server,
        Load(server.port, cores=run.cores.client, clients=clients) as load,
    ):
        yield Contender(ROOFLINE, server, load, layout, PLAIN.message)


@contextmanager
def start_falcon(
    run: Run,
    layout: Layout,
    name: str = SUBJECT,
    tree: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Contender]:
    """Start the real server, on a directory with a user for each connection."""
    with prepared(Population(layout.connections, layout.members)) as ready:
        yield from _falcon(run, layout, ready, name, tree, {**OPEN_LIMITS, **(settings or {})})


def _falcon(
    run: Run,
    layout: Layout,
    ready: Prepared,
    name: str,
    tree: Path | None,
    settings: Mapping[str, str],
) -> Iterator[Contender]:
    clients = Clients(path=PATH, tokens=ready.tokens, rooms=ready.rooms, members=layout.members)
    with (
        real_server(ready, cores=run.cores.server, settings=settings, tree=tree) as server,
        Load(server.port, cores=run.cores.client, clients=clients) as load,
    ):
        yield Contender(name, server, load, layout, falcon_message())


#: Names of all peers: a run goes on without one that does not start.
NAMES = tuple(peer.name for peer in PEERS)
Starts = list[tuple[str, Callable[[], AbstractContextManager[Contender]]]]


def starts(
    run: Run, layout: Layout, wanted: Sequence[str] | None = None, *, ping: float = 0.0
) -> Starts:
    """Return what starts each contender, the C loop and the server first.

    Args:
        run: its CPUs and loop.
        layout: the rooms.
        wanted: names of peers; None for all.
        ping: seconds between the pings of the C loop and of peers that send them only if told to;
            0 for none. The server has its own 30 s.

    Raises:
        BenchmarkError: There is no peer of such a name.
    """
    unknown = set(wanted or ()) - {peer.name for peer in PEERS}
    if unknown:
        known = ", ".join(peer.name for peer in PEERS)
        raise BenchmarkError(f"no peer {sorted(unknown)[0]!r}; there are {known}")
    return [
        (ROOFLINE, partial(start_roofline, run, layout, ping)),
        (SUBJECT, partial(start_falcon, run, layout)),
        *(
            [(OTHER, partial(start_falcon, run, layout, OTHER, run.against))]
            if run.against is not None
            else []
        ),
        *(
            (peer.name, partial(start_peer, run, peer, layout, ping))
            for peer in PEERS
            if wanted is None or peer.name in wanted
        ),
    ]
