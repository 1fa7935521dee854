"""The SQLite file of users and groups: what the directory reads and the command line writes.

Three tables, named and filled as the MongoDB collections of the same names, so that a directory can
move from one to the other row by row. Everything here blocks; it knows neither asyncio nor rooms.

Any number of processes may have the file open. Writers take turns (``BEGIN IMMEDIATE`` and a busy
timeout), readers never wait for them (write-ahead log).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import orjson

from falcon_fast.clock import Clock, SystemClock, rfc3339
from falcon_fast.directory import GROUP_TYPES, Group
from falcon_fast.errors import DirectoryError, DirectoryUnavailable

__all__ = [
    "MEMORY",
    "Counts",
    "Member",
    "SqliteStore",
    "check_character_id",
    "check_name",
    "check_user_id",
    "checked_group_id",
]

MEMORY: Final = ":memory:"
"""The path of a database that lives as long as its connection and that nobody else sees."""

BUSY_TIMEOUT: Final = 5.0
"""Seconds for which a writer waits for the other writers."""

MAX_NAME_LENGTH: Final = 256
"""Characters in the name of a character or group, as in tokens."""

MAX_CHARACTER_ID: Final = 2**63 - 1
"""The largest integer that SQLite and MongoDB hold."""

SCHEMA_VERSION: Final = 1
"""Kept in the file's user_version; a file with a higher one is not touched."""

_RETRY_INTERVAL: Final = 0.02
"""Seconds between two attempts where SQLite reports a lock without waiting for it."""

_USER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_GROUP_ID: Final = re.compile(r"[0-9a-f]{24}")
_SYSTEM_NAME: Final = re.compile(r"[a-z0-9_]{1,64}")

_SCHEMA: Final = (
    """
    CREATE TABLE "groups" (
        id          TEXT PRIMARY KEY NOT NULL,
        name        TEXT NOT NULL,
        type        TEXT NOT NULL CHECK (type IN ('system', 'corporation', 'alliance', 'custom')),
        system_name TEXT UNIQUE,
        is_active   INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
        created_at  TEXT NOT NULL,
        updated_at  TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE group_memberships (
        group_id     TEXT NOT NULL REFERENCES "groups" (id) ON DELETE CASCADE,
        character_id INTEGER NOT NULL,
        is_active    INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
        added_by     INTEGER,
        added_at     TEXT NOT NULL,
        updated_at   TEXT NOT NULL,
        PRIMARY KEY (character_id, group_id)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX group_memberships_group_id ON group_memberships (group_id)",
    """
    CREATE TABLE user_profiles (
        character_id   INTEGER PRIMARY KEY NOT NULL,
        user_id        TEXT NOT NULL,
        character_name TEXT NOT NULL,
        valid          INTEGER NOT NULL DEFAULT 1 CHECK (valid IN (0, 1)),
        banned         INTEGER NOT NULL DEFAULT 0 CHECK (banned IN (0, 1)),
        created_at     TEXT NOT NULL,
        updated_at     TEXT NOT NULL
    )
    """,
    "CREATE INDEX user_profiles_user_id ON user_profiles (user_id)",
    "CREATE INDEX user_profiles_banned ON user_profiles (user_id) WHERE banned = 1",
)

_WHAT_TO_MEND: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_BUSY: "another program keeps it locked; end that program and try again",
    sqlite3.SQLITE_LOCKED: "another program keeps it locked; end that program and try again",
    sqlite3.SQLITE_READONLY: "it cannot be written; this user needs write permission for the "
    "file and for its directory",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; its directory must exist, and this user needs "
    "permission to read and write there",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database; name another file, or move this one away",
    sqlite3.SQLITE_CORRUPT: "the database is damaged; put back a copy, or try the .recover command "
    "of the sqlite3 program",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reports an error",
}
_PRIMARY_CODE: Final = 0xFF
"""The low byte of an extended result code is the primary one (sqlite.org/rescode.html)."""

_BUSY_CODES: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@dataclass(frozen=True, slots=True)
class Member:
    """A character in a group.

    Attributes:
        character_id: The character.
        character_name: Its name, or None if no profile has the character.
        user_id: Its user, or None if no profile has the character.
        added_at: RFC 3339, UTC.
    """

    character_id: int
    character_name: str | None
    user_id: str | None
    added_at: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is in the store."""

    users: int
    characters: int
    groups: int


class SqliteStore:
    """An open file of users and groups, for use by one thread.

    Args:
        path: The file, or ``:memory:``.
        create: Whether a file that is not there is made.
        busy_timeout: Seconds for which a writer waits for other writers.
        clock: Gives the timestamps.

    Raises:
        DirectoryUnavailable: The file cannot be used; the text says what to mend.
    """

    def __init__(
        self,
        path: str,
        *,
        create: bool = True,
        busy_timeout: float = BUSY_TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        self.path = path
        self._clock = clock if clock is not None else SystemClock()
        self._busy_timeout = busy_timeout
        if not create and path != MEMORY and not os.path.exists(path):
            raise DirectoryUnavailable(f"{path}: no such file")
        with self._explained():
            self._db = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._db.close()

    # --- what the directory reads ----------------------------------------------------------------

    def version(self) -> tuple[int, int]:
        """Return a value that differs after every change, whoever made it."""
        with self._explained():
            # data_version counts the commits of other connections only.
            (others,) = self._db.execute("PRAGMA data_version").fetchone()
            return others, self._db.total_changes

    def groups_of(self, wanted: Mapping[str, Collection[int]]) -> dict[str, frozenset[Group]]:
        """Look up the groups of many users at once, all at the same moment.

        Args:
            wanted: For each user the characters a token vouches for. They count unless a profile
                names another user for them or says that they are not valid.

        Returns:
            For each user asked about, the active groups of all the user's characters.
        """
        vouched: dict[int, list[str]] = {}
        for user, characters in wanted.items():
            for character in characters:
                vouched.setdefault(character, []).append(user)
        # One row with everything: the GIL is let go for each row, and in a storm of clients every
        # one of these is a wait for the thread that serves them.
        with self._reading() as db:
            (profiles,) = db.execute(
                "SELECT json_group_array(json_array(character_id, user_id, valid)) FROM ("
                "SELECT character_id, user_id, valid FROM user_profiles WHERE user_id IN "
                "(SELECT value FROM json_each(?)) UNION SELECT character_id, user_id, valid FROM "
                "user_profiles WHERE character_id IN (SELECT value FROM json_each(?)))",
                (json.dumps(list(wanted)), json.dumps(list(vouched))),
            ).fetchone()
            owners: dict[int, str] = {}
            invalid: set[int] = set()
            for character, user, is_valid in orjson.loads(profiles):
                owners[character] = user
                if not is_valid:
                    invalid.add(character)
            (rows,) = db.execute(
                "SELECT json_group_array("
                "json_array(m.character_id, g.id, g.name, g.type, g.system_name)) "
                'FROM group_memberships AS m JOIN "groups" AS g ON g.id = m.group_id '
                "WHERE m.is_active AND g.is_active "
                "AND m.character_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list((owners.keys() | vouched) - invalid)),),
            ).fetchone()
        groups: dict[str, Group] = {}
        of_character: dict[int, list[Group]] = {}
        for character, group_id, name, kind, system_name in orjson.loads(rows):
            group = groups.get(group_id)
            if group is None:
                group = groups[group_id] = Group(group_id, name, kind, system_name)
            of_character.setdefault(character, []).append(group)
        of_user: dict[str, set[Group]] = {user: set() for user in wanted}
        for character, theirs in of_character.items():
            owner = owners.get(character)
            for user in vouched[character] if owner is None else (owner,):
                if user in of_user:
                    of_user[user].update(theirs)
        return {user: frozenset(mine) for user, mine in of_user.items()}

    def banned_users(self) -> frozenset[str]:
        """Return every user of whom a profile is banned."""
        with self._explained():
            rows = self._db.execute("SELECT DISTINCT user_id FROM user_profiles WHERE banned = 1")
            return frozenset(user for (user,) in rows)

    def counts(self) -> Counts:
        """Count users, characters and groups; also a sign of life."""
        with self._explained():
            row = self._db.execute(
                "SELECT (SELECT count(DISTINCT user_id) FROM user_profiles), "
                '(SELECT count(*) FROM user_profiles), (SELECT count(*) FROM "groups")'
            ).fetchone()
            return Counts(*row)

    # --- users -----------------------------------------------------------------------------------

    def owner_of(self, character_id: int) -> str | None:
        """Return the user whose character this is, or None if no profile has it."""
        check_character_id(character_id)
        with self._explained():
            row = self._db.execute(
                "SELECT user_id FROM user_profiles WHERE character_id = ?", (character_id,)
            ).fetchone()
            return None if row is None else str(row[0])

    def add_user(self, user_id: str, character_id: int, character_name: str) -> bool:
        """Give a user a character; a character that is there already gets this user and name.

        A ban goes with the user, not with the character: a character that comes to a banned user
        is banned, one that leaves a banned user is not.

        Returns:
            Whether the character is new.

        Raises:
            DirectoryError: An argument cannot be used.
        """
        check_user_id(user_id)
        check_character_id(character_id)
        check_name("character name", character_name)
        now = self._now()
        with self._writing() as db:
            new = self.owner_of(character_id) is None
            db.execute(
                "INSERT INTO user_profiles "
                "(character_id, user_id, character_name, banned, created_at, updated_at) VALUES "
                "(:character, :user, :name, EXISTS (SELECT 1 FROM user_profiles WHERE "
                "user_id = :user AND banned = 1), :now, :now) "
                "ON CONFLICT (character_id) DO UPDATE SET user_id = excluded.user_id, "
                "character_name = excluded.character_name, banned = excluded.banned, "
                "updated_at = excluded.updated_at",
                {"character": character_id, "user": user_id, "name": character_name, "now": now},
            )
        return new

    def set_banned(self, user_id: str, banned: bool) -> None:
        """Ban a user or lift the ban.

        Raises:
            DirectoryError: No such user.
        """
        check_user_id(user_id)
        with self._writing() as db:
            done = db.execute(
                "UPDATE user_profiles SET banned = ?, updated_at = ? WHERE user_id = ?",
                (int(banned), self._now(), user_id),
            )
            if done.rowcount == 0:
                raise DirectoryError(f"no user has the id {user_id!r}")

    # --- groups ----------------------------------------------------------------------------------

    def add_group(
        self,
        name: str,
        id: str | None = None,
        type: str | None = None,
        system_name: str | None = None,
    ) -> str:
        """Make a group.

        Args:
            name: For people; two groups may have the same.
            id: 24 hexadecimal digits; made up if not given.
            type: One of GROUP_TYPES; without it "system" for a group with a system name, else
                "custom".
            system_name: The fixed name by which programs know the group.

        Returns:
            The id.

        Raises:
            DirectoryError: An argument cannot be used, or the id or system name is taken.
        """
        check_name("group name", name)
        if type is None:
            type = "custom" if system_name is None else "system"
        if type not in GROUP_TYPES:
            raise DirectoryError(
                f"group type: expected one of {', '.join(GROUP_TYPES)}; came {_shown(type)}"
            )
        if system_name is not None and not _SYSTEM_NAME.fullmatch(system_name):
            raise DirectoryError(
                "system name: expected 1 to 64 characters of a-z, 0-9 and _, such as "
                f"super_admin; came {_shown(system_name)}"
            )
        group_id = self._new_id() if id is None else checked_group_id(id)
        now = self._now()
        with self._writing() as db:
            if self._group_name(group_id) is not None:
                raise DirectoryError(f"there is a group with the id {group_id} already")
            if system_name is not None:
                taken = self.group_id_of(system_name)
                if taken is not None:
                    raise DirectoryError(f"group {taken} has the system name {system_name} already")
            db.execute(
                'INSERT INTO "groups" (id, name, type, system_name, created_at, updated_at) '
                "VALUES (?, ?, ?, ?, ?, ?)",
                (group_id, name, type, system_name, now, now),
            )
        return group_id

    def group_id_of(self, system_name: str) -> str | None:
        """Return the id of the group with this system name, or None."""
        with self._explained():
            row = self._db.execute(
                'SELECT id FROM "groups" WHERE system_name = ?', (system_name,)
            ).fetchone()
            return None if row is None else str(row[0])

    def list_groups(self) -> list[tuple[Group, int]]:
        """Return the active groups with the number of their active members, sorted by name."""
        with self._explained():
            rows = self._db.execute(
                "SELECT g.id, g.name, g.type, g.system_name, (SELECT count(*) FROM "
                "group_memberships AS m WHERE m.group_id = g.id AND m.is_active) "
                'FROM "groups" AS g WHERE g.is_active ORDER BY g.name, g.id'
            )
            return [(Group(*row[:4]), int(row[4])) for row in rows]

    def remove_group(self, group_id: str) -> int:
        """Delete a group and its memberships.

        Returns:
            How many members it had.

        Raises:
            DirectoryError: No such group.
        """
        group_id = checked_group_id(group_id)
        with self._writing() as db:
            self._require_group(group_id)
            gone = db.execute("DELETE FROM group_memberships WHERE group_id = ?", (group_id,))
            db.execute('DELETE FROM "groups" WHERE id = ?', (group_id,))
        return gone.rowcount

    # --- memberships -----------------------------------------------------------------------------

    def add_member(self, group_id: str, character_id: int, added_by: int | None = None) -> bool:
        """Put a character into a group; a character that no user has may be put there too.

        Returns:
            Whether it was not a member before.

        Raises:
            DirectoryError: No such group, or the character id cannot be used.
        """
        group_id = checked_group_id(group_id)
        check_character_id(character_id)
        now = self._now()
        with self._writing() as db:
            self._require_group(group_id)
            before = db.execute(
                "SELECT 1 FROM group_memberships WHERE group_id = ? AND character_id = ? "
                "AND is_active",
                (group_id, character_id),
            ).fetchone()
            if before is None:
                db.execute(
                    "INSERT INTO group_memberships "
                    "(group_id, character_id, added_by, added_at, updated_at) "
                    "VALUES (?, ?, ?, ?, ?) ON CONFLICT (character_id, group_id) DO UPDATE SET "
                    "is_active = 1, added_by = excluded.added_by, updated_at = excluded.updated_at",
                    (group_id, character_id, added_by, now, now),
                )
        return before is None

    def remove_member(self, group_id: str, character_id: int) -> bool:
        """Take a character out of a group; the row is deleted, as in MongoDB.

        Returns:
            Whether it was a member.

        Raises:
            DirectoryError: No such group, or the character id cannot be used.
        """
        group_id = checked_group_id(group_id)
        check_character_id(character_id)
        with self._writing() as db:
            self._require_group(group_id)
            gone = db.execute(
                "DELETE FROM group_memberships WHERE group_id = ? AND character_id = ?",
                (group_id, character_id),
            )
        return gone.rowcount > 0

    def list_members(self, group_id: str) -> list[Member]:
        """Return the active members of a group, sorted by character id.

        Raises:
            DirectoryError: No such group.
        """
        group_id = checked_group_id(group_id)
        with self._reading() as db:
            self._require_group(group_id)
            rows = db.execute(
                "SELECT m.character_id, p.character_name, p.user_id, m.added_at "
                "FROM group_memberships AS m LEFT JOIN user_profiles AS p USING (character_id) "
                "WHERE m.group_id = ? AND m.is_active ORDER BY m.character_id",
                (group_id,),
            )
            return [Member(*row) for row in rows]

    # --- inside ----------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._db.execute("PRAGMA foreign_keys = ON")
        if self.path != MEMORY:
            self._use_write_ahead_log()
        if self._schema_version() == 0:
            with self._writing():
                # Another process may have made the tables while this one waited for its turn.
                if self._schema_version() == 0:
                    self._make_tables()
        if self._schema_version() != SCHEMA_VERSION:
            raise DirectoryUnavailable(
                f"{self.path}: its tables have version {self._schema_version()}, this program "
                f"knows {SCHEMA_VERSION}; use the falcon_fast that wrote it"
            )

    def _use_write_ahead_log(self) -> None:
        # SQLite may report a lock at once for this switch, so waiting is done here too.
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if _primary_code(error) not in _BUSY_CODES or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_INTERVAL)
            else:
                return

    def _make_tables(self) -> None:
        # Revoked tokens are kept here too, also while users and groups are elsewhere.
        (tables,) = self._db.execute(
            "SELECT count(*) FROM sqlite_master WHERE tbl_name != 'revocations'"
        ).fetchone()
        if tables:
            raise DirectoryUnavailable(
                f"{self.path}: it is the database of another program; name another file"
            )
        for statement in _SCHEMA:
            self._db.execute(statement)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _schema_version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the driver raises into what the port promises: the one seam for it."""
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
            raise  # wrong use of the driver, a mistake of this module and no outage
        except sqlite3.Error as error:
            what = _WHAT_TO_MEND.get(_primary_code(error), str(error))
            raise DirectoryUnavailable(f"{self.path}: {what}") from error

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                # SQLite ends the transaction itself after some errors, such as a full disk.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        # Taking the lock at once makes writers wait for each other; a transaction that begins by
        # reading would fail instead when it comes to write (SQLITE_BUSY_SNAPSHOT).
        with self._transaction("BEGIN IMMEDIATE") as db:
            yield db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._transaction("BEGIN") as db:
            yield db

    def _group_name(self, group_id: str) -> str | None:
        row = self._db.execute('SELECT name FROM "groups" WHERE id = ?', (group_id,)).fetchone()
        return None if row is None else str(row[0])

    def _require_group(self, group_id: str) -> None:
        if self._group_name(group_id) is None:
            raise DirectoryError(f"no group has the id {group_id}")

    def _now(self) -> str:
        return rfc3339(self._clock.time())

    def _new_id(self) -> str:
        # As MongoDB makes them: seconds since 1970 in four bytes, then eight that are unique.
        return f"{int(self._clock.time()) & 0xFFFF_FFFF:08x}{secrets.token_hex(8)}"


def _primary_code(error: sqlite3.Error) -> int:
    # Errors that the Python module raises by itself carry no code.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & _PRIMARY_CODE


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_user_id(user_id: str) -> None:
    """Refuse what cannot be the id of a user.

    Raises:
        DirectoryError: Says what was expected and what came.
    """
    if not isinstance(user_id, str) or not _USER_ID.fullmatch(user_id):
        raise DirectoryError(
            "user id: expected 1 to 64 characters of A-Z, a-z, 0-9, _ and -; "
            f"came {_shown(user_id)}"
        )


def check_character_id(character_id: int) -> None:
    """Refuse what cannot be the id of a character.

    Raises:
        DirectoryError: Says what was expected and what came.
    """
    if (
        not isinstance(character_id, int)
        or isinstance(character_id, bool)
        or not 0 <= character_id <= MAX_CHARACTER_ID
    ):
        raise DirectoryError(
            f"character id: expected an integer from 0 to {MAX_CHARACTER_ID}; "
            f"came {_shown(character_id)}"
        )


def checked_group_id(group_id: str) -> str:
    """Refuse what cannot be the id of a group.

    Returns:
        The id in lower case, in which it is stored and names a room.

    Raises:
        DirectoryError: Says what was expected and what came.
    """
    lower = group_id.lower() if isinstance(group_id, str) else ""
    if not _GROUP_ID.fullmatch(lower):
        raise DirectoryError(f"group id: expected 24 hexadecimal digits; came {_shown(group_id)}")
    return lower


def check_name(what: str, name: str) -> None:
    """Refuse what cannot be a name.

    Args:
        what: Whose name it is; begins the text of the exception.
        name: The name.

    Raises:
        DirectoryError: Says what was expected and what came.
    """
    # Cc are control characters, Cs halves of characters, Zl and Zp line ends: all would garble
    # logs and tables, and halves cannot be stored at all.
    if (
        not isinstance(name, str)
        or not name.strip()
        or len(name) > MAX_NAME_LENGTH
        or any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} for letter in name)
    ):
        raise DirectoryError(
            f"{what}: expected 1 to {MAX_NAME_LENGTH} characters without control characters; "
            f"came {_shown(name)}"
        )
