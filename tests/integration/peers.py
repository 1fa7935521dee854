"""The clients that chat in `test_clients` and `test_browser`, and the server they chat on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from websockets.asyncio.client import ClientConnection, connect

from falcon_fast.auth import generate_secret

from ..support import NODE_MODULES, missing, require
from ..support.process import Program, run, running

Frame: TypeAlias = dict[str, object]

PATIENCE: Final = 20.0
"""Seconds after which something that must come is taken for lost; nothing waits that long."""

FLEET: Final = "f1ee7c0de000000000000001"
FLEET_ROOM: Final = f"group:{FLEET}"
"""The group that `serve --dev` makes; Alice and Bob are in it, the admin is not."""

NODE_HINT: Final = "make node-tools"


@dataclass(frozen=True, slots=True)
class Served:
    """A running `falcon-fast serve --dev`.

    Attributes:
        url: for clients.
        folder: where the commands are run.
        settings: the environment of server and commands.
        program: the process.
    """

    url: str
    folder: Path
    settings: Mapping[str, str]
    program: Program

    def command(self, *arguments: str) -> str:
        """Run a command of `falcon-fast` beside the server; returns what it printed."""
        done = run("falcon_fast", *arguments, folder=self.folder, settings=self.settings)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.strip()

    def token_of(self, name: str) -> str:
        """Return a token that the server printed at its start."""
        return self.program.wait_for(rf"^{name}(?: \(.*\))?: (ey\S+)$")[1]

    def newcomer(self, user_id: str, character_id: int, name: str, *, member: bool) -> str:
        """Make a user with the commands, in the group or not; returns a token."""
        who = ("--user-id", user_id, "--character-id", str(character_id))
        self.command("user", "add", *who, "--character-name", name)
        if member:
            self.command("member", "add", FLEET, str(character_id))
        return self.command("token", *who, "--character-name", name, "--ttl", "600")


@contextlib.contextmanager
def serve(folder: Path, **more: str) -> Iterator[Served]:
    """Run the real program with its demo directory, on any free ports."""
    settings = {
        "JWT_SECRET": generate_secret(),
        "FALCON_HOST": "127.0.0.1",
        "FALCON_PORT": "0",
        "FALCON_ADMIN_PORT": "0",
        "FALCON_DRAIN_TIMEOUT": "2",
        **more,
    }
    with running("falcon_fast", "serve", "--dev", folder=folder, settings=settings) as program:
        url = program.wait_for(r"^  clients +(ws://\S+)$")[1]
        commands = {"JWT_SECRET": settings["JWT_SECRET"]}
        yield Served(url, folder, commands, program)
        assert program.stop() == 0, program.output
    assert "Traceback" not in program.output


class Client(Protocol):
    """A client of another maker."""

    name: str

    async def say(self, frame: Frame) -> None:
        """Send one frame."""

    async def hear(self) -> Frame:
        """Return the next frame that arrived."""

    async def leave(self) -> None:
        """End the connection."""


class PythonClient:
    """Python's `websockets`."""

    def __init__(self, name: str, connection: ClientConnection) -> None:
        self.name = name
        self._connection = connection

    @classmethod
    async def join(cls, name: str, url: str, token: str) -> PythonClient:
        headers = {"Authorization": f"Bearer {token}"}
        return cls(name, await connect(url, additional_headers=headers))

    async def say(self, frame: Frame) -> None:
        await self._connection.send(json.dumps(frame))

    async def hear(self) -> Frame:
        frame: Frame = json.loads(await self._connection.recv())
        return frame

    async def end(self) -> Frame:
        """Wait for the end; returns code and reason."""
        await asyncio.wait_for(self._connection.wait_closed(), PATIENCE)
        return {"closed": self._connection.close_code, "reason": self._connection.close_reason}

    async def leave(self) -> None:
        await self._connection.close()


class LineClient:
    """A program that prints each message as a line and sends each line it is given."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def start(cls, name: str, *command: str) -> LineClient:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        )
        return cls(name, process)

    async def say(self, frame: Frame) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(frame).encode() + b"\n")
        await self._process.stdin.drain()

    async def hear(self) -> Frame:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"{self.name} has ended"
        # wscat writes its prompt in front.
        frame: Frame = json.loads(line[line.index(b"{") :])
        return frame

    async def leave(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.communicate()


async def wscat(name: str, url: str, token: str) -> LineClient:
    """Join with wscat, the command-line client of `ws`'s makers."""
    program = require("wscat", hint=NODE_HINT)
    header = f"Authorization: Bearer {token}"
    return await LineClient.start(name, program, "--no-color", "-c", url, "-H", header)


SCRIPT: Final = """
const WebSocket = require("ws");
const [url, token] = process.argv.slice(1);
const socket = new WebSocket(url, { headers: { Authorization: `Bearer ${token}` } });
socket.on("message", (data) => console.log(data.toString()));
socket.on("close", (code, reason) => {
  console.log(JSON.stringify({ closed: code, reason: String(reason) }));
  process.exit();
});
require("readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => socket.send(line));
"""


async def node_ws(name: str, url: str, token: str) -> LineClient:
    """Join with a script on Node that uses `ws`."""
    node = require("node")
    if not (NODE_MODULES / "ws").is_dir():
        missing("the package ws for Node", hint=NODE_HINT)
    return await LineClient.start(name, node, "-e", SCRIPT, url, token)


class Ear:
    """What one client hears, in order."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._put_back: deque[Frame] = deque()
        self._beats = 0

    async def next(self) -> Frame:
        """Return the next frame."""
        if self._put_back:
            return self._put_back.popleft()
        return await asyncio.wait_for(self.client.hear(), PATIENCE)

    async def until(self, kind: str, **data: object) -> Frame:
        """Return the next frame of a type with these items in its data; others are passed over."""
        while True:
            frame = await self.next()
            found = frame.get("data")
            if frame["type"] == kind and isinstance(found, dict) and data.items() <= found.items():
                return frame

    async def joined(self) -> list[str]:
        """Wait for the frames of the beginning; returns the rooms."""
        welcome = await self.next()
        assert welcome["type"] == "system_notification", welcome
        frame = await self.until("room_update", action="joined")
        assert isinstance(frame["data"], dict)
        rooms: list[str] = frame["data"]["rooms"]
        return rooms

    async def so_far(self) -> list[Frame]:
        """Return all that came before the answer to a heartbeat sent now.

        The server answers in order, so whatever it sent to this client earlier is in the list.
        """
        self._beats += 1
        ident = f"beat-{self._beats}"
        await self.client.say({"type": "heartbeat", "id": ident})
        frames: list[Frame] = []
        while (frame := await self.next()).get("id") != ident:
            frames.append(frame)
        assert frame["type"] == "presence"
        assert frame["data"]["status"] == "online"  # type: ignore[index]
        return frames


@contextlib.asynccontextmanager
async def all_leaving() -> AsyncIterator[list[Client]]:
    """Give a list whose clients leave at the end."""
    clients: list[Client] = []
    try:
        yield clients
    finally:
        for client in clients:
            await client.leave()


def said(text: str, *, room: str = FLEET_ROOM, ident: str | None = None) -> Frame:
    """Build a message to a room."""
    return {"type": "message", "id": ident or text, "room": room, "data": {"text": text}}


def without_time(frame: Frame) -> Frame:
    """Return a frame without what only the server knows."""
    return {key: value for key, value in frame.items() if key not in {"timestamp", "from"}}


def messages(frames: list[Frame]) -> list[Frame]:
    """Return the messages among frames."""
    return [frame for frame in frames if frame["type"] == "message"]
