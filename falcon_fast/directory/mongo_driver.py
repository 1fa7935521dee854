"""The seam to MongoDB: both drivers behind one class, and their errors translated, once.

The directory above sees plain documents and DirectoryUnavailable. What an error says is a constant
text for the log: no address, no query and no part of MONGODB_URI is ever in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import struct
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol, Self, TypeAlias

from bson.codec_options import CodecOptions
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference
from pymongo import errors as driver_errors

from falcon_fast.directory.mongo_rows import (
    COLLECTIONS,
    GROUPS,
    MEMBERSHIPS,
    PROFILES,
    Document,
    groups_pipeline,
)
from falcon_fast.errors import DirectoryUnavailable

__all__ = [
    "Changes",
    "Driver",
    "MongoStore",
    "NoChangeStreams",
    "Refused",
    "Store",
    "TokenLost",
    "Unreadable",
]

Driver: TypeAlias = Literal["motor", "pymongo"]

QUERY_TIMEOUT: Final = 3.0
"""Seconds for one question, finding a server and reading the whole answer included."""

GRACE: Final = 1.0
"""Seconds after which a driver that overlooked its deadline is left to itself."""

STREAM_WAIT: Final = 1.0
"""Seconds for which the server holds back an empty batch of changes."""

MAX_POOL: Final = 16
"""Connections to one server: more than there are questions at a time."""

MAX_ROWS: Final = 50_000
"""Memberships in one answer; a cursor that never ends must end here."""

BATCH_ROWS: Final = 4000
"""Documents in one batch of an answer: decoding a batch keeps the loop for some milliseconds."""

# mongod's src/mongo/base/error_codes.yml
_AUTHENTICATION_FAILED: Final = frozenset({18, 8000})
_UNAUTHORIZED: Final = 13
_TIME_LIMIT: Final = frozenset({50, 89, 202, 262})
_NO_PRIMARY: Final = frozenset({91, 189, 10058, 10107, 11600, 11602, 13435, 13436})
_TOKEN_LOST: Final = frozenset({136, 222, 237, 260, 280, 286})
_CURSOR_GONE: Final = 43
_TOO_LARGE: Final = frozenset({292, 10334, 16389, 17419, 17420, 31256})
# 40573 is a server that is no member of a replica set; 59, 115, 303 and 40324 are servers of other
# makers that do not know the stage; 13 is a user who may find but not watch.
_NO_STREAMS: Final = frozenset({_UNAUTHORIZED, 40573, 40324, 59, 115, 303})

_Document: TypeAlias = dict[str, object]


class Refused(DirectoryUnavailable):
    """The server does not want these settings: waiting will not help."""


class Unreadable(DirectoryUnavailable):
    """The server answers, but this answer cannot be used; another question may succeed."""


class NoChangeStreams(DirectoryUnavailable):
    """The server has no change streams, or not for this user."""


class TokenLost(DirectoryUnavailable):
    """The change stream cannot go on where it stopped: changes may have been missed."""


class Changes(Protocol):
    """A change stream that is open."""

    @property
    def token(self) -> Document | None:
        """Where to go on."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def next(self) -> Document | None:
        """Wait for a change, for a second at most."""


class Store(Protocol):
    """What the directory asks of a database; everything raises DirectoryUnavailable."""

    async def open(self) -> None:
        """Connect; Refused when the settings are wrong."""

    async def close(self) -> None:
        """Disconnect; a second call does nothing."""

    async def ping(self) -> None:
        """Ask for a sign of life."""

    async def groups_of(
        self, users: Collection[str], characters: Collection[int]
    ) -> Sequence[Document]:
        """Return the rows of :func:`~falcon_fast.directory.mongo_rows.groups_pipeline`."""

    async def banned_users(self) -> frozenset[str]:
        """Return every user of whom a profile is banned."""

    async def owner_of(self, character_id: int) -> str | None:
        """Return the user whose profile has the character."""

    async def changed_since(self, since: float, limit: int) -> Sequence[Document]:
        """Return documents whose ``updated_at`` is not before a time, as change events."""

    async def sizes(self) -> Mapping[str, int]:
        """Return how many documents each collection has, by the server's own count."""

    async def leading_fields(self) -> Mapping[str, frozenset[str]]:
        """Return for each collection the fields with which an index begins."""

    def changes(self, token: Document | None) -> Changes:
        """Prepare a change stream that goes on where another one stopped."""


class MongoStore:
    """A :class:`Store` in MongoDB.

    Args:
        uri: Where it is; options about time and connections in it give way to ours.
        database: Its name.
        driver: ``motor``, or ``pymongo`` for PyMongo's own asyncio client.
        timeout: Seconds for one question.
    """

    def __init__(
        self, uri: str, database: str, *, driver: Driver, timeout: float = QUERY_TIMEOUT
    ) -> None:
        self._uri = uri
        self._name = database
        self._driver = driver
        self._timeout = timeout
        # The drivers' classes have no common ancestor; what is used of them is the same.
        self._client: Any = None
        self._database: Any = None

    async def open(self) -> None:
        """Connect."""
        async with self.within_time():
            try:
                self._client = self._connect()
            except (driver_errors.ConfigurationError, ValueError, TypeError) as error:
                # The texts of these quote the address.
                raise Refused(
                    f"MONGODB_URI cannot be used ({type(error).__name__}): an option, a host name, "
                    "a port or an escape in it is wrong"
                ) from error
            self._database = self._client.get_database(
                self._name,
                # One broken name must not make a whole answer unreadable.
                codec_options=CodecOptions(unicode_decode_error_handler="replace"),
                # A secondary may be behind the event that made us ask.
                read_preference=ReadPreference.PRIMARY,
            )
        await self.ping()

    def _connect(self) -> object:
        milliseconds = int(self._timeout * 1000)
        options: dict[str, Any] = {
            "appname": "falcon_fast",
            "timeoutMS": milliseconds,
            "connectTimeoutMS": milliseconds,
            "serverSelectionTimeoutMS": milliseconds,
            "maxPoolSize": MAX_POOL,
        }
        if self._driver == "pymongo":
            return AsyncMongoClient(self._uri, **options)
        from motor.motor_asyncio import AsyncIOMotorClient

        return AsyncIOMotorClient(self._uri, **options)

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is None:
            return
        if self._driver == "pymongo":
            await client.close()
        else:
            # Motor says goodbye to the server and waits for its threads, on the loop's own thread.
            await asyncio.to_thread(client.close)

    async def ping(self) -> None:
        """Ask for a sign of life."""
        async with self.within_time():
            await self._opened().command("ping")

    async def groups_of(
        self, users: Collection[str], characters: Collection[int]
    ) -> Sequence[Document]:
        """Ask one aggregation about many users."""
        async with self.within_time():
            cursor = await _awaited(
                self._opened()[PROFILES].aggregate(
                    groups_pipeline(users, characters), batchSize=BATCH_ROWS
                )
            )
            return await _all(cursor, MAX_ROWS)

    async def banned_users(self) -> frozenset[str]:
        """Return every user of whom a profile is banned."""
        async with self.within_time():
            profiles = self._opened()[PROFILES]
            cursor = profiles.find({"banned": True}, {"_id": 0, "user_id": 1})
            rows = await _all(cursor.batch_size(BATCH_ROWS), None)
        users = (row.get("user_id") for row in rows)
        return frozenset(user for user in users if isinstance(user, str))

    async def owner_of(self, character_id: int) -> str | None:
        """Return the user whose profile has the character."""
        async with self.within_time():
            found = await self._opened()[PROFILES].find_one(
                {"character_id": character_id}, {"_id": 0, "user_id": 1}
            )
        user = None if found is None else found.get("user_id")
        return user if isinstance(user, str) else None

    async def changed_since(self, since: float, limit: int) -> Sequence[Document]:
        """Return what was written since, as change events."""
        moment = datetime.fromtimestamp(since, UTC)
        found: list[Document] = []
        for name in COLLECTIONS:
            async with self.within_time():
                cursor = self._opened()[name].find(
                    {"updated_at": {"$gte": moment}},
                    {"user_id": 1, "character_id": 1, "banned": 1, "updated_at": 1},
                )
                rows = await _all(cursor.limit(limit).batch_size(BATCH_ROWS), None)
            found.extend(
                {
                    "operationType": "update",
                    "ns": {"db": self._name, "coll": name},
                    "documentKey": {"_id": row.get("_id")},
                    "fullDocument": row,
                }
                for row in rows
            )
        return found

    async def sizes(self) -> Mapping[str, int]:
        """Return how many documents each collection has."""
        async with self.within_time():
            database = self._opened()
            return {
                name: int(await database[name].estimated_document_count()) for name in COLLECTIONS
            }

    async def leading_fields(self) -> Mapping[str, frozenset[str]]:
        """Return for each collection the fields with which an index begins."""
        found = {}
        for name in COLLECTIONS:
            async with self.within_time():
                indexes = await self._opened()[name].index_information()
            found[name] = frozenset(index["key"][0][0] for index in indexes.values())
        return found

    def changes(self, token: Document | None) -> Changes:
        """Prepare a change stream."""
        return _ChangeStream(self, token)

    async def watch(self, token: Document | None) -> Any:  # noqa: ANN401
        """Open the driver's change stream."""
        watching = self._opened().watch(
            [
                {"$match": {"ns.coll": {"$in": [GROUPS, MEMBERSHIPS, PROFILES, None]}}},
                {
                    "$project": {
                        "operationType": 1,
                        "ns": 1,
                        "documentKey": 1,
                        "fullDocument.user_id": 1,
                        "fullDocument.character_id": 1,
                        "fullDocument.banned": 1,
                    }
                },
            ],
            full_document="updateLookup",
            resume_after=token,
            max_await_time_ms=int(STREAM_WAIT * 1000),
        )
        return await _awaited(watching)

    def _opened(self) -> Any:  # noqa: ANN401
        if self._client is None:
            raise DirectoryUnavailable("the directory is not open")
        return self._database

    @contextlib.asynccontextmanager
    async def within_time(
        self, seconds: float | None = None, *, stream: bool = False
    ) -> AsyncIterator[None]:
        """Let a question end in time, and with our errors: the one seam for both."""
        try:
            async with asyncio.timeout((self._timeout if seconds is None else seconds) + GRACE):
                yield
        except _DRIVER_ERRORS as error:
            raise _translated(error, self._name, stream=stream) from error


class _ChangeStream:
    """A driver's change stream as :class:`Changes`."""

    def __init__(self, store: MongoStore, token: Document | None) -> None:
        self._store = store
        self._token = token
        self._stream: Any = None

    @property
    def token(self) -> Document | None:
        """Where to go on."""
        return self._token

    async def __aenter__(self) -> Self:
        async with self._store.within_time(stream=True):
            self._stream = await self._store.watch(self._token)
            # Motor opens a stream with the first look only.
            await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # It is being left because of an error that says more than this one.
        with contextlib.suppress(DirectoryUnavailable):
            async with self._store.within_time(stream=True):
                await self._stream.close()

    async def next(self) -> Document | None:
        """Wait for a change."""
        async with self._store.within_time(STREAM_WAIT + QUERY_TIMEOUT, stream=True):
            change: Document | None = await self._stream.try_next()
            if not self._stream.alive:
                raise TokenLost("the change stream has ended")
            self._token = self._stream.resume_token
        return change


async def _awaited(value: Any) -> Any:  # noqa: ANN401
    """Return what a call of either driver gives: one returns it, the other has it awaited."""
    return await value if inspect.isawaitable(value) else value


async def _all(cursor: Any, limit: int | None) -> list[_Document]:  # noqa: ANN401
    try:
        rows: list[_Document] = await cursor.to_list(None if limit is None else limit + 1)
    finally:
        await cursor.close()
    if limit is not None and len(rows) > limit:
        raise Unreadable(f"more than {limit} memberships in one answer")
    return rows


# What the drivers raise for a reply that is none is not always theirs.
_DRIVER_ERRORS: Final = (
    driver_errors.PyMongoError,
    BSONError,
    OSError,
    struct.error,
    LookupError,
)


def _translated(error: BaseException, name: str, *, stream: bool) -> DirectoryUnavailable:
    code = error.code if isinstance(error, driver_errors.OperationFailure) else None
    if stream and (code in _TOKEN_LOST or code == _CURSOR_GONE):
        return TokenLost("the change stream cannot go on where it stopped")
    if stream and code in _NO_STREAMS:
        return NoChangeStreams("MongoDB has no change streams for this user")
    if code in _AUTHENTICATION_FAILED:
        return Refused("MongoDB refuses the user or password of MONGODB_URI")
    if code == _UNAUTHORIZED:
        return Refused(f"the user of MONGODB_URI may not read the database {name!r}")
    if isinstance(error, driver_errors.ConfigurationError):
        return Refused(
            f"MONGODB_URI cannot be used ({type(error).__name__}): the server does not have "
            "what it asks for"
        )
    if isinstance(error, driver_errors.ServerSelectionTimeoutError):
        return DirectoryUnavailable("MongoDB cannot be reached at the addresses of MONGODB_URI")
    if isinstance(error, driver_errors.WaitQueueTimeoutError):
        return DirectoryUnavailable("all connections to MongoDB are in use")
    if code in _TIME_LIMIT or getattr(error, "timeout", False) or isinstance(error, TimeoutError):
        return DirectoryUnavailable("MongoDB did not answer in time")
    if isinstance(error, driver_errors.NotPrimaryError) or code in _NO_PRIMARY:
        return DirectoryUnavailable("MongoDB has no primary at the moment")
    if isinstance(error, driver_errors.ConnectionFailure | OSError):
        return DirectoryUnavailable("MongoDB cannot be reached at the addresses of MONGODB_URI")
    if code in _TOO_LARGE or not isinstance(error, driver_errors.PyMongoError):
        return Unreadable("MongoDB's answer cannot be read")
    if isinstance(error, driver_errors.ProtocolError | driver_errors.DocumentTooLarge):
        return Unreadable("MongoDB's answer cannot be read")
    if code is not None:
        return DirectoryUnavailable(f"MongoDB refuses the question (error {code})")
    return DirectoryUnavailable(f"MongoDB fails ({type(error).__name__})")
