"""The look at a database from outside: after which changes, and how long, SQLite is asked."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from falcon_fast.sqlite_file import AT_LATEST, SETTLES, SqliteFile


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.db")


@pytest.fixture
def db(path: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (x)")
        yield db


def settled(path: str) -> tuple[SqliteFile, float]:
    """Return what has seen the files long enough, and the time."""
    file, now = SqliteFile(path), 1000.0
    assert file.may_have_changed(now)
    now += SETTLES
    assert not file.may_have_changed(now)
    return file, now


def test_it_is_asked_for_a_while_after_each_change(db: sqlite3.Connection, path: str) -> None:
    file, now = settled(path)
    db.execute("INSERT INTO t VALUES (1)")
    for _ in range(6):
        assert file.may_have_changed(now)
        now += SETTLES / 6
    # The writer may wait for its disk between the write that is seen here and the change itself.
    assert not file.may_have_changed(now)


def test_it_is_asked_now_and_then_without_a_change(db: sqlite3.Connection, path: str) -> None:
    file, now = settled(path)
    asked = [quarter / 4 for quarter in range(1, 120) if file.may_have_changed(now + quarter / 4)]
    # The last time it was asked was when it was first looked at.
    assert asked[0] == AT_LATEST - SETTLES
    assert [later - one for one, later in pairwise(asked)] == [AT_LATEST] * 5


def test_a_checkpoint_and_the_write_ahead_log_from_the_start_are_changes(
    db: sqlite3.Connection, path: str
) -> None:
    db.execute("INSERT INTO t VALUES (1)")
    file, now = settled(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert file.may_have_changed(now)
    now += SETTLES
    assert not file.may_have_changed(now)
    db.execute("INSERT INTO t VALUES (2)")
    assert file.may_have_changed(now)


def test_a_file_that_comes_goes_or_is_another_one(path: str) -> None:
    file, now = settled(path)
    Path(path).touch()
    assert file.may_have_changed(now)
    now += SETTLES
    assert not file.may_have_changed(now)
    other = Path(f"{path}.new")
    other.touch()
    status = os.stat(path)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)
    assert file.may_have_changed(now)
    now += SETTLES
    assert not file.may_have_changed(now)
    os.unlink(path)
    assert file.may_have_changed(now)
