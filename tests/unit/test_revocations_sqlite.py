"""Revocations in the SQLite file: kept, shared by the processes on the file, never in its way."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from falcon_fast import sqlite_file
from falcon_fast.directory.sqlite_store import SqliteStore
from falcon_fast.errors import BusUnavailable
from falcon_fast.revocation import Revocation
from falcon_fast.revocations import sqlite
from falcon_fast.revocations.sqlite import SqliteRevocations

POLL = 0.01

RULE = Revocation(
    id="a", kind="user", target="ann", issued_before=7, expires_at=4_000_000_000, created_at=5
)
OTHER = replace(RULE, id="b", target="bob")


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.compared: list[list[Revocation]] = []
        self.news = asyncio.Event()

    def heard(self, rules: Collection[Revocation]) -> None:
        raise AssertionError("the file tells all of it each time")

    def compare(self, rules: Sequence[Revocation]) -> None:
        self.compared.append(list(rules))
        self.news.set()

    async def until(self, rules: list[Revocation]) -> None:
        """Wait until it was told exactly these."""
        async with asyncio.timeout(5):
            while not self.compared or self.compared[-1] != rules:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "falcon.db")


@pytest.fixture
async def opened(path: str) -> AsyncIterator[Callable[[], SqliteRevocations]]:
    """Return a function that makes a store on the file; all are closed at the end."""
    made: list[SqliteRevocations] = []

    def make() -> SqliteRevocations:
        made.append(SqliteRevocations(path, poll_interval=POLL))
        return made[-1]

    yield make
    for store in made:
        await store.close()
        await store.close()


async def test_rules_outlive_the_store(opened: Callable[[], SqliteRevocations]) -> None:
    first, listener = opened(), Listener()
    await first.start(listener)
    assert listener.compared == [[]]
    await first.save(RULE)
    await first.save(OTHER)
    await first.close()
    again = Listener()
    await opened().start(again)
    assert again.compared == [[RULE, OTHER]]


async def test_another_process_hears_of_it(opened: Callable[[], SqliteRevocations]) -> None:
    one, two, ours, theirs = opened(), opened(), Listener(), Listener()
    await one.start(ours)
    await two.start(theirs)
    await one.save(RULE)
    await theirs.until([RULE])
    await two.save(replace(RULE, withdrawn=True))
    await ours.until([replace(RULE, withdrawn=True)])


async def test_a_withdrawn_rule_is_not_put_back(opened: Callable[[], SqliteRevocations]) -> None:
    store = opened()
    await store.start(Listener())
    await store.save(replace(RULE, withdrawn=True))
    await store.save(RULE)
    await store.save(OTHER)
    await store.save(replace(OTHER, target="mallory"))
    again = Listener()
    await opened().start(again)
    assert again.compared == [[replace(RULE, withdrawn=True), OTHER]]


async def test_rules_are_deleted(opened: Callable[[], SqliteRevocations]) -> None:
    store = opened()
    await store.start(Listener())
    await store.forget(["a"])
    await store.save(RULE)
    await store.save(OTHER)
    await store.forget(["a", "unheard of"])
    again = Listener()
    await opened().start(again)
    assert again.compared == [[OTHER]]


async def test_no_file_is_made_before_there_is_a_rule(
    opened: Callable[[], SqliteRevocations], path: str
) -> None:
    store = opened()
    await store.start(Listener())
    await asyncio.sleep(3 * POLL)
    await store.forget(["a"])
    assert not os.path.exists(path)
    await store.save(RULE)
    assert os.path.exists(path)


async def test_a_file_that_nobody_writes_is_not_asked(
    opened: Callable[[], SqliteRevocations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "SETTLES", 5 * POLL)
    store, other, listener = opened(), opened(), Listener()
    await store.start(listener)
    await other.start(Listener())
    await other.save(OTHER)
    await listener.until([OTHER])
    asked = 0
    changed = store._changed

    def counted() -> list[Revocation] | None:
        nonlocal asked
        asked += 1
        return changed()

    monkeypatch.setattr(store, "_changed", counted)
    before = -1
    async with asyncio.timeout(5):
        while before != asked:  # until the last change has settled
            before = asked
            await asyncio.sleep(10 * POLL)
    await asyncio.sleep(10 * POLL)
    assert asked == before
    await other.save(RULE)
    await listener.until([RULE, OTHER])


@pytest.mark.parametrize("directory_first", [True, False])
async def test_users_and_groups_are_in_the_same_file(
    opened: Callable[[], SqliteRevocations], path: str, directory_first: bool
) -> None:
    def users() -> int:
        with SqliteStore(path) as store:
            store.add_user("ann", 1, "Ann")
            return store.counts().users

    if directory_first:
        assert users() == 1
    store = opened()
    await store.start(Listener())
    await store.save(RULE)
    assert users() == 1
    again = Listener()
    await opened().start(again)
    assert again.compared == [[RULE]]


async def test_a_file_that_was_put_in_place_of_the_other(
    opened: Callable[[], SqliteRevocations], path: str
) -> None:
    store, listener = opened(), Listener()
    await store.start(listener)
    await store.save(RULE)
    await listener.until([RULE])
    for name in os.listdir(os.path.dirname(path)):
        os.unlink(os.path.join(os.path.dirname(path), name))
    with SqliteStore(path) as directory:
        directory.add_user("ann", 1, "Ann")
    # The rule is missing there: who hears that writes it again.
    await listener.until([])
    await store.save(RULE)
    await listener.until([RULE])


async def test_rows_that_are_no_rules(
    opened: Callable[[], SqliteRevocations], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened()
    await store.start(Listener())
    await store.save(RULE)
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO revocations VALUES ('x y', ?)", (RULE.to_json().decode(),))
        db.execute("INSERT INTO revocations VALUES ('z', 'hunter2')")
    db.close()
    again = Listener()
    await opened().start(again)
    assert again.compared == [[RULE]]
    assert [record.getMessage() for record in caplog.records] == [
        "a row of revocations is no rule: its id is malformed",
        "a row of revocations is no rule: it is not a JSON object",
    ]


async def test_a_file_that_cannot_be_read_stops_the_start(
    opened: Callable[[], SqliteRevocations], path: str
) -> None:
    Path(path).write_bytes(b"this is no database, and long enough to see that" * 20)
    with pytest.raises(BusUnavailable, match="not a database"):
        await opened().start(Listener())


async def test_a_file_that_cannot_be_written(
    opened: Callable[[], SqliteRevocations], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="falcon_fast.revocations.sqlite")
    store, listener = opened(), Listener()
    await store.start(listener)
    await store.save(RULE)
    await listener.until([RULE])
    os.unlink(path)
    os.mkdir(path)
    for work in (store.save(OTHER), store.forget(["a"])):
        with pytest.raises(BusUnavailable):
            await work
    await asyncio.sleep(4 * POLL)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    os.rmdir(path)
    for name in ("-wal", "-shm"):
        if os.path.exists(path + name):
            os.unlink(path + name)
    await store.save(OTHER)
    await listener.until([OTHER])
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_after_the_end_nothing_is_kept(opened: Callable[[], SqliteRevocations]) -> None:
    store = opened()
    await store.start(Listener())
    await store.close()
    with pytest.raises(BusUnavailable, match="not open"):
        await store.save(RULE)


async def test_a_failure_half_way_leaves_the_file_free(
    opened: Callable[[], SqliteRevocations], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    await store.start(Listener())
    with monkeypatch.context() as broken:
        broken.setattr(sqlite, "_SAVE", "INSERT INTO nowhere VALUES (?1, ?2, ?3)")
        with pytest.raises(BusUnavailable, match="no such table"):
            await store.save(RULE)
    with SqliteStore(path, busy_timeout=0.1) as directory:
        directory.add_user("ann", 1, "Ann")
    await store.save(RULE)
