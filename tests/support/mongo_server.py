"""A MongoDB for tests: SecantusDB in a process of its own, or a mongod that is running already.

SecantusDB speaks MongoDB's wire protocol; it is started as a program and never imported. With
``FALCON_TEST_MONGODB_URI`` set, whatever needs no server of its own uses that one instead. Each
test gets a database of its own, which is dropped afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import pymongo
from bson import ObjectId
from bson.int64 import Int64
from pymongo.errors import PyMongoError

from falcon_fast.directory.mongo_driver import Driver

from . import MONGODB_URI, missing
from .redis_server import free_port
from .server import POLL

HINT: Final = "pip install --pre secantusdb==0.7.0b3 (CPython up to 3.13)"

START_TIMEOUT: Final = 20.0

DRIVERS: Final[tuple[Driver, ...]] = ("motor", "pymongo")

_numbers = itertools.count()


class MongoServer:
    """A running SecantusDB on a free port of 127.0.0.1.

    Args:
        folder: where it keeps its data.
        options: of its command line.

    Attributes:
        port: stays the same when it is started again.
        uri: how clients on this machine reach it.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        program = Path(sys.executable).with_name("secantusd-py")
        if not program.exists():
            missing("secantusd-py", hint=HINT)
        self._program = program
        self._folder = folder
        self._options = options
        self._log = folder.with_name(f"{folder.name}.log")
        self.port = free_port()
        self.uri = f"mongodb://127.0.0.1:{self.port}/"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, *options: str) -> None:
        """Start it, again with the same data, with further options."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    str(self._program),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                    *("--storage-path", str(self._folder), "--log-level", "WARNING"),
                    *("--cache-size", "64M"),
                    *(*self._options, *options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # One process, few threads: nothing of it is a measure of MongoDB.
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
        until = time.monotonic() + START_TIMEOUT
        while not self._answers():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(POLL)

    def _answers(self) -> bool:
        try:
            with pymongo.MongoClient[dict[str, Any]](
                self.uri, serverSelectionTimeoutMS=250, directConnection=True
            ) as client:
                client.admin.command("ping")
        except PyMongoError:
            return False
        return True

    def stop(self) -> None:
        """End it well."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.kill()


@contextlib.contextmanager
def any_server(folder: Path) -> Iterator[str]:
    """Provide a MongoDB with change streams, and return its address."""
    if MONGODB_URI:
        yield MONGODB_URI
        return
    with MongoServer(folder) as server:
        yield server.uri


class Gateway:
    """The program that writes the collections: what go-falcon does, as far as it concerns us.

    Args:
        uri: of the server.
        name: of the database; a new one if not given.
    """

    def __init__(self, uri: str, name: str | None = None) -> None:
        self.uri = uri
        self.name = name or f"falcon_test_{os.getpid()}_{next(_numbers)}"
        self.client = pymongo.MongoClient[dict[str, Any]](uri)
        self.database = self.client[self.name]
        self.groups = self.database["groups"]
        self.memberships = self.database["group_memberships"]
        self.profiles = self.database["user_profiles"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(PyMongoError):
            self.client.drop_database(self.name)
        self.client.close()

    def make_indexes(self) -> None:
        """Make the indexes that the manual asks for."""
        self.profiles.create_index("user_id")
        self.profiles.create_index("character_id", unique=True)
        self.profiles.create_index("banned", partialFilterExpression={"banned": True})
        self.memberships.create_index([("character_id", 1), ("group_id", 1)], unique=True)

    def add_user(self, user_id: str, character_id: int, name: str = "", **more: object) -> ObjectId:
        """Write a profile."""
        return self._insert(
            self.profiles,
            {
                "user_id": user_id,
                "character_id": character_id,
                "character_name": name or f"Character {character_id}",
                "valid": True,
                **more,
            },
        )

    def add_group(self, name: str = "Fleet", **more: object) -> ObjectId:
        """Write a group."""
        return self._insert(
            self.groups, {"name": name, "type": "custom", "is_active": True, **more}
        )

    def add_member(self, group: object, character_id: int, **more: object) -> ObjectId:
        """Write a membership."""
        return self._insert(
            self.memberships,
            {
                "group_id": group,
                "character_id": character_id,
                "is_active": True,
                "added_by": Int64(1),
                "added_at": datetime.now(UTC),
                **more,
            },
        )

    @staticmethod
    def _insert(
        collection: pymongo.collection.Collection[dict[str, Any]], document: Mapping[str, object]
    ) -> ObjectId:
        ident = collection.insert_one({"updated_at": datetime.now(UTC), **document}).inserted_id
        assert isinstance(ident, ObjectId)
        return ident

    def remove_member(self, group: ObjectId, character_id: int) -> None:
        """Delete a membership, as the original does."""
        done = self.memberships.delete_one({"group_id": group, "character_id": character_id})
        assert done.deleted_count == 1

    def set(
        self,
        collection: pymongo.collection.Collection[dict[str, Any]],
        which: Mapping[str, object],
        **values: object,
    ) -> None:
        """Change fields of one document."""
        done = collection.update_one(
            dict(which), {"$set": {**values, "updated_at": datetime.now(UTC)}}
        )
        assert done.matched_count == 1


def ids(groups: Sequence[ObjectId]) -> set[str]:
    """Return the ids as the directory has them."""
    return {str(group) for group in groups}
