"""Revoked tokens in the SQLite file of users and groups, in a table of their own.

The table is made with its first row, and the file too where users and groups live elsewhere. Other
processes on the file are noticed by its change counter, asked for when the file's times have moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from falcon_fast.clock import until_beat
from falcon_fast.errors import BusUnavailable
from falcon_fast.revocation import Revocation
from falcon_fast.revocations import Listener
from falcon_fast.sqlite_file import SqliteFile
from falcon_fast.tasks import end_tasks

__all__ = ["SqliteRevocations"]

log = logging.getLogger(__name__)

POLL_INTERVAL: Final = 0.5
"""Seconds between two looks for changes; other processes have a second to know."""

BUSY_TIMEOUT: Final = 5.0
"""Seconds for which a writer waits for the other writers of the file."""

_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS revocations (
        id       TEXT PRIMARY KEY NOT NULL,
        document TEXT NOT NULL
    ) WITHOUT ROWID
"""

# A withdrawal wins over the rule, whichever comes last.
_SAVE: Final = """
    INSERT INTO revocations (id, document) VALUES (?1, ?2)
    ON CONFLICT (id) DO UPDATE SET document = excluded.document WHERE ?3
"""

T = TypeVar("T")


class SqliteRevocations:
    """A `RevocationStore` on a SQLite file.

    Args:
        path: The file; it need not be there.
        poll_interval: Seconds between two looks for changes.
    """

    def __init__(self, path: str, *, poll_interval: float = POLL_INTERVAL) -> None:
        self._path = path
        self._poll_interval = poll_interval
        self._executor: ThreadPoolExecutor | None = None
        self._poller: asyncio.Task[None] | None = None
        self._failing = False
        self._outside = SqliteFile(path)
        # Used in the worker thread only.
        self._db: sqlite3.Connection | None = None
        self._file = (0, 0)
        self._seen: object = None

    async def start(self, listener: Listener) -> None:
        """See `RevocationStore.start`."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="falcon-revocations")
        try:
            rules = await self._in_worker(lambda: self._changed() or [])
        except BaseException:
            await self.close()
            raise
        listener.compare(rules)
        self._poller = asyncio.create_task(self._poll(listener), name="revocations-poll")

    async def save(self, rule: Revocation) -> None:
        """See `RevocationStore.save`."""
        document = rule.to_json().decode()

        def work() -> None:
            with _writing(self._opened()) as db:
                # It may be missing in a file that was put in place of the other one, too.
                db.execute(_TABLE)
                db.execute(_SAVE, (rule.id, document, rule.withdrawn))

        await self._in_worker(work)

    async def forget(self, idents: Collection[str]) -> None:
        """See `RevocationStore.forget`."""

        def work() -> None:
            if not os.path.exists(self._path) or not _has_table(db := self._opened()):
                return
            with _writing(db):
                db.executemany("DELETE FROM revocations WHERE id = ?", [(one,) for one in idents])

        await self._in_worker(work)

    async def close(self) -> None:
        """See `RevocationStore.close`."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        if self._poller is not None:
            await end_tasks([self._poller])
        await asyncio.get_running_loop().run_in_executor(executor, self._close)
        executor.shutdown()

    async def _poll(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(until_beat(loop.time(), self._poll_interval))
            if not self._outside.may_have_changed(loop.time()) and not self._failing:
                continue
            try:
                rules = await self._in_worker(self._changed)
            except BusUnavailable as error:
                if not self._failing:
                    log.warning("revoked tokens cannot be read: %s", error)
                self._failing = True
                continue
            if self._failing:
                log.info("revoked tokens can be read again")
            self._failing = False
            if rules is not None:
                listener.compare(rules)

    async def _in_worker(self, work: Callable[[], T]) -> T:
        if self._executor is None:
            raise BusUnavailable(f"{self._path}: not open")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except (sqlite3.Error, OSError) as error:
            raise BusUnavailable(f"{self._path}: {error}") from error

    # --- the worker thread -----------------------------------------------------------------------

    def _changed(self) -> list[Revocation] | None:
        """Return all rules if they may have changed since the last call."""
        if not os.path.exists(self._path):
            return None
        db = self._opened()
        # data_version counts the commits of other connections only.
        (others,) = db.execute("PRAGMA data_version").fetchone()
        seen = (self._file, others, db.total_changes)
        if seen == self._seen:
            return None
        rows = db.execute("SELECT id, document FROM revocations") if _has_table(db) else ()
        rules = []
        for ident, document in rows:
            rule = Revocation.read(str(ident), str(document).encode("utf-8", "replace"))
            if isinstance(rule, Revocation):
                rules.append(rule)
            else:
                log.error("a row of revocations is no rule: %s", rule, extra={"kind": "revocation"})
        self._seen = seen
        return rules

    def _opened(self) -> sqlite3.Connection:
        """Return the file's connection; another one if the file was put in place of the old one."""
        if self._db is None or self._identify() != self._file:
            self._close()
            self._db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._file = self._identify()
            self._seen = None
        return self._db

    def _identify(self) -> tuple[int, int]:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return 0, 0
        return status.st_dev, status.st_ino

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


@contextlib.contextmanager
def _writing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        # SQLite ends the transaction itself after some errors, such as a full disk.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _has_table(db: sqlite3.Connection) -> bool:
    found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'revocations'").fetchone()
    return found is not None
