"""Starts the real server on a directory of its own: users, groups, tokens, settings."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from benchmarks.macro.child import Child
from benchmarks.macro.errors import PeerMissing
from benchmarks.macro.machine import free_port

if TYPE_CHECKING:
    from falcon_fast.directory.sqlite_store import SqliteStore

#: Directories that were filled once.
CACHE = Path(__file__).parents[2] / ".build" / "directories"
#: Path of the WebSocket endpoint.
PATH = "/websocket/connect"
#: Character id of the first user, in the range of real ones.
FIRST_CHARACTER = 90_000_000
#: Seconds a token lasts: longer than any run.
TOKEN_TTL = 86_400
#: Limits of a single client that the generator is meant to exceed.
UNLIMITED = {
    "FALCON_CONNECTION_RATE": "1000000",
    "FALCON_CONNECTION_BURST": "1000000",
    "FALCON_HANDSHAKE_TIMEOUT": "60",
}


@dataclass(frozen=True, slots=True)
class Population:
    """How many users there are and how large their groups.

    Each user is in two groups, so in three rooms with the personal one.
    """

    users: int
    group_size: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A directory that is filled, with a token for each of its users.

    Attributes:
        rooms: those of the first kind of groups; the first users are in the first one.
    """

    database: Path
    secret: str
    tokens: Sequence[str]
    rooms: Sequence[str]


@contextmanager
def prepared(population: Population) -> Iterator[Prepared]:
    """Fill a new directory database, to be used by one server after the other.

    User i is in the groups i // size and i % groups: members of one group are spread over the
    other kind, so that no two rooms are alike.

    Raises:
        PeerMissing: The server is not there.
    """
    try:
        from falcon_fast.auth import generate_secret, issue_token
        from falcon_fast.directory import sqlite_store
    except ImportError as error:
        raise PeerMissing(f"falcon_fast: no module {error.name!r}") from error
    secret = generate_secret()
    now = int(time())
    # Thirty thousand changes take half a minute: a directory is filled once and then copied.
    recipe = Path(__file__).read_bytes() + Path(sqlite_store.__file__).read_bytes()
    name = f"{population.users}-{population.group_size}-{hashlib.sha256(recipe).hexdigest()[:16]}"
    filled = CACHE / name
    if not filled.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=CACHE))
        with sqlite_store.SqliteStore(str(fresh / "falcon.db")) as store:
            first = fill(store, population)
        (fresh / "groups.json").write_text(json.dumps(first))
        try:
            fresh.rename(filled)
        except OSError:  # another run was faster, and its directory is as good
            shutil.rmtree(fresh)
    groups = json.loads((filled / "groups.json").read_text())
    tokens = [
        issue_token(
            secret,
            user_id=user_id(number),
            character_id=FIRST_CHARACTER + number,
            character_name=f"Pilot {number}",
            ttl=TOKEN_TTL,
            now=now,
        )
        for number in range(population.users)
    ]
    with tempfile.TemporaryDirectory(prefix="falcon-bench-") as directory:
        database = Path(directory, "falcon.db")
        shutil.copy(filled / "falcon.db", database)
        yield Prepared(database, secret, tokens, [f"group:{group}" for group in groups])


def user_id(number: int) -> str:
    """Return the id of a user: a random-looking UUID, the same in each run."""
    return str(uuid.UUID(int=random.Random(number).getrandbits(128), version=4))


def fill(store: SqliteStore, population: Population) -> list[str]:
    """Add the users and their groups; returns the first kind of groups."""
    groups = max(1, population.users // population.group_size)
    first = [store.add_group(f"first {number}") for number in range(groups)]
    second = [store.add_group(f"second {number}") for number in range(groups)]
    for number in range(population.users):
        character_id = FIRST_CHARACTER + number
        block = min(number // population.group_size, groups - 1)
        store.add_user(user_id(number), character_id, f"Pilot {number}")
        store.add_member(first[block], character_id)
        store.add_member(second[number % groups], character_id)
    return first


@contextmanager
def hosted(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    port: int,
    cores: frozenset[int],
    environment: Mapping[str, str] | None = None,
    tree: Path | None = None,
) -> Iterator[Child]:
    """Run a module of the server under the harness (see servers/hosted.py)."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as replies:
        command = [sys.executable, "-m", "benchmarks.macro.servers.hosted"]
        command += ["--replies", str(write_end), "--port", str(port), module, *arguments]
        child = Child(
            name,
            command,
            cores=cores,
            environment=environment,
            replies=replies,
            inherited=write_end,
            directory=tree,
        )
        with child:
            yield child


@contextmanager
def real_server(
    ready: Prepared,
    *,
    cores: frozenset[int],
    settings: Mapping[str, str] | None = None,
    tree: Path | None = None,
) -> Iterator[Child]:
    """Run `falcon-fast serve` on a prepared directory until the body ends.

    Args:
        ready: Its users and groups.
        cores: CPUs it may use.
        settings: Settings beyond `UNLIMITED`, by their environment names.
        tree: Another copy of this repository, built in place, whose server it is; None for ours.

    Raises:
        PeerMissing: The server is not built.
    """
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if _neutral(name)},
        **UNLIMITED,
        "FALCON_ADMIN_PORT": "0",
        **(settings or {}),
        "JWT_SECRET": ready.secret,
        "FALCON_SQLITE_PATH": str(ready.database),
        "FALCON_HOST": "127.0.0.1",
        "FALCON_PORT": str(port),
    }
    with hosted(
        "falcon_fast",
        "falcon_fast",
        ["serve"],
        port=port,
        cores=cores,
        environment=environment,
        tree=tree,
    ) as child:
        yield child


def _neutral(name: str) -> bool:
    """Whether a variable of our own environment leaves the server's settings alone."""
    return not name.startswith(("FALCON_", "WEBSOCKET_", "REDIS_", "MONGODB_", "JWT_"))
