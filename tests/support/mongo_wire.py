"""A small scripted server that speaks MongoDB's wire protocol, for failures of no real one.

It knows the commands that the directory sends and nothing else. By default it answers them well,
from rows in memory; a test puts faults before the answers: errors, broken octets, a hang, an end in
the middle. https://github.com/mongodb/specifications/blob/master/source/message/OP_MSG.md
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import bson
from bson import ObjectId

OP_REPLY: Final = 1
OP_QUERY: Final = 2004
OP_MSG: Final = 2013

HEADER: Final = struct.Struct("<iiii")
STREAM: Final = 7
"""The cursor of the change stream."""

Json: TypeAlias = dict[str, Any]
Rows: TypeAlias = Callable[[list[str], list[int]], Iterable[Json]]


@dataclass(frozen=True, slots=True)
class Error:
    """The command fails."""

    code: int
    name: str = "Error"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Raw:
    """These octets stand where the reply's document should."""

    octets: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection ends after so many octets of the reply."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Late:
    """The reply takes its time; a server that heeds its limit gives up by itself."""

    seconds: float
    heeds_limit: bool = True


@dataclass(frozen=True, slots=True)
class Reply:
    """Another reply than usual."""

    document: Json


Fault: TypeAlias = Error | Raw | Cut | Late | Reply


def row(user_id: str, character_id: int, *groups: Json | None, **more: object) -> list[Json]:
    """Make the rows that the aggregation has for a character with memberships of some groups."""
    profile = {
        "_id": f"{user_id}/{character_id}",
        "user_id": user_id,
        "character_id": character_id,
        "character_name": user_id.title(),
        **more,
    }
    if not groups:
        return [{**profile, "group": []}]
    return [
        {
            **profile,
            "membership": {
                "_id": f"{character_id} in {group['_id'] if group else None}",
                "group_id": group["_id"] if group else ObjectId(),
                "is_active": True,
            },
            "group": [group] if group else [],
        }
        for group in groups
    ]


def group(number: int, name: str = "Fleet", **more: object) -> Json:
    """Make a group whose id ends in the number."""
    return {
        "_id": ObjectId(f"{number:024x}"),
        "name": name,
        "type": "custom",
        "is_active": True,
        **more,
    }


@dataclass(eq=False)
class WireServer:
    """The server, inside the test's loop.

    Attributes:
        rows: what the aggregation about groups answers, by users and characters.
        banned: what the list of bans answers.
        has_streams: whether change streams are known.
        commands: how often each command came; the aggregations as `groups` and `stream`.
        resumed: the tokens with which streams were opened.
        most_at_once: commands about groups that were under way at the same time.
    """

    rows: list[Json] = field(default_factory=list)
    banned: list[str] = field(default_factory=list)
    has_streams: bool = True
    answer: Rows | None = None
    commands: Counter[str] = field(default_factory=Counter)
    resumed: list[object] = field(default_factory=list)
    most_at_once: int = 0
    port: int = 0
    _faults: dict[str, deque[Fault]] = field(default_factory=dict)
    _always: dict[str, Fault] = field(default_factory=dict)
    _events: deque[Json] = field(default_factory=deque)
    _happened: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _at_once: int = 0
    _tokens: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _last: int = 0

    # --- what the test does ----------------------------------------------------------------------

    @property
    def uri(self) -> str:
        """The address, without the discovery of other members."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    def fail(self, command: str, *faults: Fault) -> None:
        """Put faults before the next answers to a command."""
        self._faults.setdefault(command, deque()).extend(faults)

    def always(self, command: str, fault: Fault | None) -> None:
        """Let a command fail until further notice; None ends that."""
        self._always.pop(command, None)
        if fault is not None:
            self._always[command] = fault

    def forgive(self) -> None:
        """Let everything work again."""
        self._faults.clear()
        self._always.clear()

    def happen(self, kind: str, collection: str, ident: object, **full: object) -> None:
        """Let a change event come."""
        event: Json = {
            "operationType": kind,
            "ns": {"db": "falcon", "coll": collection},
            "documentKey": {"_id": ident},
        }
        if full:
            event["fullDocument"] = {"_id": ident, **full}
        self._events.append(event)
        self._happened.set()

    def hang_up(self) -> None:
        """Reset all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def end(self) -> None:
        """End all connections, also those that are about to be answered."""
        self.hang_up()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # --- the protocol ----------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # It is cancelled at the end of the test, which is nothing to complain of.
            with contextlib.suppress(
                asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError
            ):
                while await self._serve_one(reader, writer):
                    pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readexactly(HEADER.size)
        size, request, _, opcode = HEADER.unpack(head)
        body = await reader.readexactly(size - HEADER.size)
        if opcode == OP_QUERY:
            name_end = body.index(b"\0", 4) + 1
            command = bson.decode(body[name_end + 8 :])
        else:
            command = bson.decode(body[5:])
        name = self._name_of(command)
        self.commands[name] += 1
        fault = self._fault(name)
        document = await self._reply(name, command, fault)
        octets = fault.octets if isinstance(fault, Raw) else bson.encode(document)
        if opcode == OP_QUERY:
            payload = struct.pack("<iqii", 8, 0, 0, 1) + octets
            code = OP_REPLY
        else:
            payload = b"\0\0\0\0\0" + octets
            code = OP_MSG
        message = HEADER.pack(HEADER.size + len(payload), 0, request, code) + payload
        if isinstance(fault, Cut):
            writer.write(message[: fault.after])
            await writer.drain()
            return False
        writer.write(message)
        await writer.drain()
        return True

    def _fault(self, name: str) -> Fault | None:
        waiting = self._faults.get(name)
        return waiting.popleft() if waiting else self._always.get(name)

    @staticmethod
    def _name_of(command: Mapping[str, Any]) -> str:
        name = next(iter(command))
        if name != "aggregate":
            return name
        return "stream" if "$changeStream" in command["pipeline"][0] else "groups"

    async def _reply(self, name: str, command: Mapping[str, Any], fault: Fault | None) -> Json:
        if name == "groups":
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if isinstance(fault, Late):
                limit = command.get("maxTimeMS", 10_000) / 1000
                if fault.heeds_limit and limit < fault.seconds:
                    await asyncio.sleep(limit)
                    fault = Error(50, "MaxTimeMSExpired")
                else:
                    await asyncio.sleep(fault.seconds)
        finally:
            if name == "groups":
                self._at_once -= 1
        if isinstance(fault, Error):
            return {
                "ok": 0.0,
                "code": fault.code,
                "codeName": fault.name,
                "errmsg": f"told by db.internal.example:27017: {fault.name}",
                "errorLabels": list(fault.labels),
            }
        if isinstance(fault, Reply):
            return fault.document
        answers: dict[str, Callable[[Mapping[str, Any]], Json]] = {
            "hello": self._hello,
            "ismaster": self._hello,
            "isMaster": self._hello,
            "find": self._find,
            "groups": self._groups,
            "stream": self._stream,
            "listIndexes": self._indexes,
            "count": lambda _: {"n": 0},
        }
        if name == "getMore":
            document = await self._more(command)
        else:
            document = answers[name](command) if name in answers else {}
        return {"ok": 1.0, **document}

    def _hello(self, _: Mapping[str, Any]) -> Json:
        address = f"127.0.0.1:{self.port}"
        return {
            **{"ismaster": True, "isWritablePrimary": True, "helloOk": True},
            **{"maxBsonObjectSize": 2**24, "maxMessageSizeBytes": 48_000_000},
            **{"maxWriteBatchSize": 100_000, "minWireVersion": 0, "maxWireVersion": 21},
            **{"setName": "rs0", "hosts": [address], "me": address, "primary": address},
            "logicalSessionTimeoutMinutes": 30,
        }

    def _find(self, command: Mapping[str, Any]) -> Json:
        rows = [{"user_id": user} for user in self.banned] if "banned" in command["filter"] else []
        return _cursor(rows)

    def _groups(self, command: Mapping[str, Any]) -> Json:
        users, characters = (
            next(iter(one.values()))["$in"] for one in command["pipeline"][0]["$match"]["$or"]
        )
        if self.answer is not None:
            return _cursor(list(self.answer(users, characters)))
        return _cursor(
            [
                one
                for one in self.rows
                if one.get("user_id") in users or one["character_id"] in characters
            ]
        )

    def _stream(self, command: Mapping[str, Any]) -> Json:
        stage = command["pipeline"][0]["$changeStream"]
        self.resumed.append(stage.get("resumeAfter"))
        if not self.has_streams:
            return {"ok": 0.0, "code": 40573, "errmsg": "only supported on replica sets"}
        return _cursor([], ident=STREAM, token=self._last)

    async def _more(self, command: Mapping[str, Any]) -> Json:
        if command["getMore"] != STREAM:
            return _cursor([{"character_id": 1}] * 100, ident=command["getMore"], part="nextBatch")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(command.get("maxTimeMS", 1000) / 1000):
                await self._happened.wait()
        self._happened.clear()
        events = []
        while self._events:
            self._last = next(self._tokens)
            events.append({"_id": {"_data": str(self._last)}, **self._events.popleft()})
        return _cursor(events, ident=STREAM, part="nextBatch", token=self._last)

    @staticmethod
    def _indexes(_: Mapping[str, Any]) -> Json:
        return _cursor([{"v": 2, "key": {"_id": 1}, "name": "_id_"}])


def _cursor(
    rows: list[Json], *, ident: int = 0, part: str = "firstBatch", token: int | None = None
) -> Json:
    cursor: Json = {"id": bson.Int64(ident), "ns": "falcon.user_profiles", part: rows}
    if token is not None:
        cursor["postBatchResumeToken"] = {"_data": str(token)}
    return {"cursor": cursor}


@contextlib.asynccontextmanager
async def wire_server() -> AsyncIterator[WireServer]:
    """Run a scripted server on a free port for as long as the context lasts."""
    scripted = WireServer()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
        await scripted.end()
