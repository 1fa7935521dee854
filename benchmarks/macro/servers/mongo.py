"""A MongoDB that knows one question: the groups of many users, answered after a network's delay.

It speaks as much of the wire protocol as the real drivers need to ask that question and to follow
changes, of which there are none. User and character are made of each other's numbers, so nothing is
stored. It says nothing about the speed of MongoDB; it counts questions and holds them back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import struct
import sys
from collections import Counter
from importlib.metadata import version
from typing import Any

import bson

from benchmarks.macro.servers.real import FIRST_CHARACTER, user_id

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
HEADER = struct.Struct("<iiii")
#: The cursor of the change stream.
STREAM = 7


class Answering:
    """The server; `latency` seconds pass before each answer."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.questions: Counter[str] = Counter()
        self.most_users = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until it ends."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size, request, _, opcode = HEADER.unpack(await reader.readexactly(HEADER.size))
                body = await reader.readexactly(size - HEADER.size)
                start = body.index(b"\0", 4) + 9 if opcode == OP_QUERY else 5
                reply = bson.encode({"ok": 1.0, **await self.answer(bson.decode(body[start:]))})
                if opcode == OP_QUERY:
                    payload, code = struct.pack("<iqii", 8, 0, 0, 1) + reply, OP_REPLY
                else:
                    payload, code = b"\0" * 5 + reply, OP_MSG
                head = HEADER.pack(HEADER.size + len(payload), 0, request, code)
                await asyncio.sleep(self.latency)
                writer.write(head + payload)
                await writer.drain()
        writer.close()

    async def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return what a command is answered with."""
        name = next(iter(command))
        if name == "aggregate" and "$changeStream" not in command["pipeline"][0]:
            self.questions["groups"] += 1
            return self.groups(command)
        self.questions[name] += 1
        if name in {"hello", "ismaster"}:
            return self.hello()
        if name == "getMore":
            await asyncio.sleep(command["maxTimeMS"] / 1000)
            return cursor([], ident=STREAM, part="nextBatch")
        if name == "aggregate":
            return cursor([], ident=STREAM)
        return cursor([]) if name in {"find", "listIndexes"} else {}

    def hello(self) -> dict[str, Any]:
        """Introduce ourselves as a primary that is alone."""
        address = f"127.0.0.1:{self.port}"
        return {
            **{"ismaster": True, "isWritablePrimary": True, "helloOk": True},
            **{"maxBsonObjectSize": 2**24, "maxMessageSizeBytes": 48_000_000},
            **{"maxWriteBatchSize": 100_000, "minWireVersion": 0, "maxWireVersion": 21},
            **{"setName": "rs0", "hosts": [address], "me": address, "primary": address},
            "logicalSessionTimeoutMinutes": 30,
        }

    def groups(self, command: dict[str, Any]) -> dict[str, Any]:
        """Put every character into a group of its own."""
        users, characters = (
            next(iter(one.values()))["$in"] for one in command["pipeline"][0]["$match"]["$or"]
        )
        self.most_users = max(self.most_users, len(users))
        rows = []
        for character in characters:
            group = bson.ObjectId(f"{character:024x}")
            rows.append(
                {
                    "_id": bson.ObjectId(f"{1:08x}{character:016x}"),
                    "user_id": user_id(character - FIRST_CHARACTER),
                    "character_id": bson.Int64(character),
                    "character_name": f"Pilot {character - FIRST_CHARACTER}",
                    "valid": True,
                    "membership": {
                        "_id": bson.ObjectId(f"{2:08x}{character:016x}"),
                        "group_id": group,
                        "is_active": True,
                    },
                    "group": [{"_id": group, "name": "Fleet", "type": "custom", "is_active": True}],
                }
            )
        return cursor(rows)


def cursor(rows: list[Any], *, ident: int = 0, part: str = "firstBatch") -> dict[str, Any]:
    """Wrap rows as a cursor's batch."""
    return {
        "cursor": {
            "id": bson.Int64(ident),
            "ns": "falcon.user_profiles",
            part: rows,
            "postBatchResumeToken": {"_data": "0"},
        }
    }


async def main(latency: float) -> None:
    """Speak the protocol of child.py until the end of input."""
    answering = Answering(latency)
    server = await asyncio.start_server(answering.serve, "127.0.0.1", 0)
    answering.port = server.sockets[0].getsockname()[1]
    say(event="ready", port=answering.port, versions={"pymongo": version("pymongo")})
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        say(
            event="count",
            groups=answering.questions["groups"],
            all=sum(answering.questions.values()),
            most_users=answering.most_users,
        )


def say(**line: object) -> None:
    """Print an answer."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, required=True, help="seconds")
    parser.add_argument("--loop", help="as for all servers; this one runs on asyncio's own")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().latency))
