"""The SQLite directory: the store's rules, and that the gateway hears of every change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast import sqlite_file
from falcon_fast.directory import Directory, Group, MembershipChange
from falcon_fast.directory.sqlite import BATCH_USERS, SqliteDirectory
from falcon_fast.directory.sqlite_store import (
    MAX_CHARACTER_ID,
    MEMORY,
    SCHEMA_VERSION,
    Counts,
    Member,
    SqliteStore,
)
from falcon_fast.errors import DirectoryError, DirectoryUnavailable

from ..support.clock import FakeClock

A = "a" * 24
B = "b" * 24
C = "c" * 24
START = "2023-11-14T22:13:20.000000Z"
QUICK = 0.005
"""Seconds between two looks for changes where a test is not about that time."""
SOON = 5.0
"""Seconds after which something that must happen has failed to."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "falcon.db")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(path: str, clock: FakeClock) -> Iterator[SqliteStore]:
    with SqliteStore(path, clock=clock) as store:
        yield store


def group(id: str, name: str = "Fleet") -> Group:
    return Group(id, name, "custom")


def fill(store: SqliteStore) -> None:
    """Alice has two characters and is in A and B; Bob has one and is in A."""
    for id in (A, B, C):
        store.add_group("Fleet", id=id)
    store.add_user("alice", 1, "Alice")
    store.add_user("alice", 2, "Alt of Alice")
    store.add_user("bob", 3, "Bob")
    store.add_member(A, 1)
    store.add_member(B, 2)
    store.add_member(A, 3)


# --- the port ------------------------------------------------------------------------------------


def test_change_between_two_sets_goes_by_ids() -> None:
    before = frozenset({group(A), group(B)})
    after = frozenset({group(B, "new name"), group(C)})
    change = MembershipChange.between("u", before, after)
    assert change == MembershipChange("u", after, joined=(group(C),), left=(group(A),))


def test_sqlite_directory_fits_the_port() -> None:
    directory: Directory = SqliteDirectory(MEMORY)
    assert not directory.is_banned("anybody")


# --- the store: users ----------------------------------------------------------------------------


def test_add_user_adds_then_updates(store: SqliteStore) -> None:
    assert store.add_user("alice", 1, "Alice") is True
    assert store.add_user("alice", 1, "Alice the Second") is False
    assert store.add_user("bob", 1, "Bob") is False
    assert store.owner_of(1) == "bob"
    assert store.owner_of(2) is None
    assert store.counts() == Counts(users=1, characters=1, groups=0)


def test_rows_look_like_the_documents_of_mongodb(
    store: SqliteStore, path: str, clock: FakeClock
) -> None:
    store.add_user("alice", 1, "Alice")
    store.add_group("Fleet", id=A, type="alliance")
    store.add_member(A, 1, added_by=7)
    clock.advance(1.5)
    store.add_user("alice", 1, "Alicia")
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.row_factory = sqlite3.Row
        (profile,) = map(dict, other.execute("SELECT * FROM user_profiles"))
        (fleet,) = map(dict, other.execute('SELECT * FROM "groups"'))
        (membership,) = map(dict, other.execute("SELECT * FROM group_memberships"))
    assert profile == {
        "character_id": 1,
        "user_id": "alice",
        "character_name": "Alicia",
        "valid": 1,
        "banned": 0,
        "created_at": START,
        "updated_at": "2023-11-14T22:13:21.500000Z",
    }
    assert fleet == {
        "id": A,
        "name": "Fleet",
        "type": "alliance",
        "system_name": None,
        "is_active": 1,
        "created_at": START,
        "updated_at": START,
    }
    assert membership == {
        "group_id": A,
        "character_id": 1,
        "is_active": 1,
        "added_by": 7,
        "added_at": START,
        "updated_at": START,
    }


def test_ban_goes_with_the_user_and_not_with_the_character(store: SqliteStore) -> None:
    store.add_user("alice", 1, "Alice")
    store.add_user("bob", 2, "Bob")
    assert store.banned_users() == frozenset()
    store.set_banned("alice", True)
    store.add_user("alice", 3, "Alt")
    assert store.banned_users() == {"alice"}
    store.add_user("bob", 1, "Alice")
    store.set_banned("alice", True)
    assert store.banned_users() == {"alice"}
    store.set_banned("alice", False)
    assert store.banned_users() == frozenset()


def test_ban_of_an_unknown_user_is_refused(store: SqliteStore) -> None:
    with pytest.raises(DirectoryError, match=r"^no user has the id 'nobody'$"):
        store.set_banned("nobody", True)


@pytest.mark.parametrize(
    "user_id", ["", "a" * 65, "a b", "a:b", "group:x", "ünicode", "a\n", "../x", "a\0"]
)
def test_bad_user_id_is_refused(store: SqliteStore, user_id: str) -> None:
    with pytest.raises(DirectoryError, match="user id: expected 1 to 64 characters of A-Z"):
        store.add_user(user_id, 1, "Name")
    with pytest.raises(DirectoryError, match="user id: expected"):
        store.set_banned(user_id, True)


@pytest.mark.parametrize("character_id", [-1, MAX_CHARACTER_ID + 1, True, "1", 1.0])
def test_bad_character_id_is_refused(store: SqliteStore, character_id: int) -> None:
    store.add_group("Fleet", id=A)
    for call in (
        lambda: store.add_user("alice", character_id, "Alice"),
        lambda: store.owner_of(character_id),
        lambda: store.add_member(A, character_id),
        lambda: store.remove_member(A, character_id),
    ):
        with pytest.raises(
            DirectoryError, match=f"character id: expected an integer from 0 to {MAX_CHARACTER_ID}"
        ):
            call()


@pytest.mark.parametrize("character_id", [0, 2**31, 2**53 + 1, MAX_CHARACTER_ID])
def test_every_64_bit_character_id_keeps_its_digits(store: SqliteStore, character_id: int) -> None:
    store.add_group("Fleet", id=A)
    store.add_user("alice", character_id, "Alice")
    store.add_member(A, character_id)
    assert store.owner_of(character_id) == "alice"
    assert store.groups_of({"alice": ()}) == {"alice": {group(A)}}
    assert store.groups_of({"alice": (character_id,)}) == {"alice": {group(A)}}


@pytest.mark.parametrize(
    "name", ["", "  ", "a" * 257, "a\nb", "a\x1b[2J", "a\0", "\ud800", "\u2028"]
)
def test_bad_name_is_refused(store: SqliteStore, name: str) -> None:
    with pytest.raises(DirectoryError, match="character name: expected 1 to 256 characters"):
        store.add_user("alice", 1, name)
    with pytest.raises(DirectoryError, match="group name: expected 1 to 256 characters"):
        store.add_group(name)


def test_refusal_shows_what_came_shortened_and_escaped(store: SqliteStore) -> None:
    with pytest.raises(DirectoryError) as caught:
        store.add_user("ü" * 1000, 1, "Name")
    assert str(caught.value).endswith("came '" + "\\xfc" * 19 + "...")


# --- the store: groups ---------------------------------------------------------------------------


def test_new_group_id_begins_with_the_time_as_in_mongodb(store: SqliteStore) -> None:
    first, second = store.add_group("Fleet"), store.add_group("Fleet")
    assert re.fullmatch(r"6553f100[0-9a-f]{16}", first)
    assert first != second


def test_group_id_in_capitals_is_the_same_group(store: SqliteStore) -> None:
    assert store.add_group("Fleet", id=A.upper()) == A
    assert store.add_member(A.upper(), 1) is True
    assert store.remove_member(A.upper(), 1) is True
    assert store.list_members(A.upper()) == []
    assert store.remove_group(A.upper()) == 0


def test_type_follows_from_the_system_name_unless_given(store: SqliteStore) -> None:
    store.add_group("1", id=A)
    store.add_group("2", id=B, system_name="super_admin")
    store.add_group("3", id=C, type="corporation", system_name="corp_1")
    assert store.list_groups() == [
        (Group(A, "1", "custom"), 0),
        (Group(B, "2", "system", "super_admin"), 0),
        (Group(C, "3", "corporation", "corp_1"), 0),
    ]
    assert store.group_id_of("super_admin") == B
    assert store.group_id_of("nothing") is None


def test_taken_id_and_taken_system_name_are_refused(store: SqliteStore) -> None:
    store.add_group("Admins", id=A, system_name="super_admin")
    with pytest.raises(DirectoryError, match=f"^there is a group with the id {A} already$"):
        store.add_group("Other", id=A)
    with pytest.raises(
        DirectoryError, match=f"^group {A} has the system name super_admin already$"
    ):
        store.add_group("Other", system_name="super_admin")
    assert len(store.list_groups()) == 1


def test_bad_type_and_bad_system_name_are_refused(store: SqliteStore) -> None:
    with pytest.raises(
        DirectoryError,
        match="expected one of system, corporation, alliance, custom; came 'club'",
    ):
        store.add_group("Fleet", type="club")
    for name in ("", "Super Admin", "a" * 65):
        with pytest.raises(DirectoryError, match="system name: expected 1 to 64 characters"):
            store.add_group("Fleet", system_name=name)


@pytest.mark.parametrize("id", ["", "a" * 23, "a" * 25, "g" * 24, A + "\n", 5])
def test_bad_group_id_is_refused(store: SqliteStore, id: str) -> None:
    for call in (
        lambda: store.add_group("Fleet", id=id),
        lambda: store.remove_group(id),
        lambda: store.add_member(id, 1),
        lambda: store.remove_member(id, 1),
        lambda: store.list_members(id),
    ):
        with pytest.raises(DirectoryError, match="group id: expected 24 hexadecimal digits; came"):
            call()


def test_unknown_group_is_refused_everywhere(store: SqliteStore) -> None:
    for call in (
        lambda: store.remove_group(A),
        lambda: store.add_member(A, 1),
        lambda: store.remove_member(A, 1),
        lambda: store.list_members(A),
    ):
        with pytest.raises(DirectoryError, match=f"^no group has the id {A}$"):
            call()


def test_removed_group_takes_its_memberships_along(store: SqliteStore) -> None:
    fill(store)
    assert store.remove_group(A) == 2
    assert store.groups_of({"alice": (), "bob": ()}) == {"alice": {group(B)}, "bob": set()}
    store.add_group("Again", id=A)
    assert store.list_members(A) == []


# --- the store: memberships ----------------------------------------------------------------------


def test_members_with_and_without_a_user(store: SqliteStore) -> None:
    fill(store)
    assert store.add_member(A, 9) is True
    assert store.list_members(A) == [
        Member(1, "Alice", "alice", START),
        Member(3, "Bob", "bob", START),
        Member(9, None, None, START),
    ]
    assert [members for _group, members in store.list_groups()] == [3, 1, 0]


def test_adding_and_removing_twice_tells_so(store: SqliteStore) -> None:
    fill(store)
    assert store.add_member(A, 1) is False
    assert store.remove_member(A, 1) is True
    assert store.remove_member(A, 1) is False
    assert store.add_member(A, 1) is True


def test_inactive_rows_count_for_nothing(store: SqliteStore, path: str) -> None:
    fill(store)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute('UPDATE "groups" SET is_active = 0 WHERE id = ?', (B,))
        other.execute("UPDATE group_memberships SET is_active = 0 WHERE character_id = 3")
    assert store.groups_of({"alice": (2,), "bob": ()}) == {"alice": {group(A)}, "bob": set()}
    assert [(one.id, members) for one, members in store.list_groups()] == [(A, 1), (C, 0)]
    assert [member.character_id for member in store.list_members(A)] == [1]
    assert store.add_member(A, 3) is True
    assert store.groups_of({"bob": ()}) == {"bob": {group(A)}}


def test_a_character_that_is_not_valid_brings_no_groups(store: SqliteStore, path: str) -> None:
    fill(store)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE user_profiles SET valid = 0 WHERE character_id IN (2, 3)")
    assert store.groups_of({"alice": (), "bob": (3,), "eve": (3,)}) == {
        "alice": {group(A)},
        "bob": set(),
        "eve": set(),
    }
    assert store.owner_of(3) == "bob"


# --- the store: whose groups ---------------------------------------------------------------------


def test_groups_of_all_characters_of_a_user(store: SqliteStore) -> None:
    fill(store)
    assert store.groups_of({"alice": (1,), "bob": (3,), "nobody": ()}) == {
        "alice": {group(A), group(B)},
        "bob": {group(A)},
        "nobody": set(),
    }
    assert store.groups_of({}) == {}


def test_a_vouched_character_counts_unless_it_is_somebody_elses(store: SqliteStore) -> None:
    fill(store)
    store.add_member(C, 9)
    assert store.groups_of({"eve": (9,)}) == {"eve": {group(C)}}
    assert store.groups_of({"eve": (1, 2, 3)}) == {"eve": set()}
    assert store.groups_of({"eve": (1,), "alice": ()}) == {
        "eve": set(),
        "alice": {group(A), group(B)},
    }
    assert store.groups_of({"eve": (9,), "mallory": (9,)}) == {
        "eve": {group(C)},
        "mallory": {group(C)},
    }
    store.add_user("bob", 9, "Mine")
    assert store.groups_of({"eve": (9,), "bob": ()}) == {
        "eve": set(),
        "bob": {group(A), group(C)},
    }


GROUPS = (A, B, C)
CHARACTERS = st.integers(0, 4)
USERS = st.sampled_from(["u0", "u1", "u2"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("own"), USERS, CHARACTERS),
        st.tuples(st.just("add"), st.sampled_from(GROUPS), CHARACTERS),
        st.tuples(st.just("remove"), st.sampled_from(GROUPS), CHARACTERS),
    ),
    max_size=15,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, wanted=st.dictionaries(USERS, st.frozensets(CHARACTERS, max_size=2)))
def test_lookup_agrees_with_the_contract_in_plain_words(
    steps: list[tuple[str, str, int]], wanted: dict[str, frozenset[int]]
) -> None:
    owners: dict[int, str] = {}
    members: set[tuple[str, int]] = set()
    with SqliteStore(MEMORY) as store:
        for id in GROUPS:
            store.add_group("Fleet", id=id)
        for step, name, character in steps:
            if step == "own":
                store.add_user(name, character, "Name")
                owners[character] = name
            elif step == "add":
                store.add_member(name, character)
                members.add((name, character))
            else:
                assert store.remove_member(name, character) is ((name, character) in members)
                members.discard((name, character))
        found = store.groups_of(wanted)
    expected = {
        user: {
            group(id)
            for id, character in members
            if owners.get(character, user if character in vouched else None) == user
        }
        for user, vouched in wanted.items()
    }
    assert found == expected


# --- the store: the file -------------------------------------------------------------------------


def test_version_differs_after_every_change(store: SqliteStore, path: str) -> None:
    seen = [store.version()]
    assert store.version() == seen[0]
    store.add_group("Own", id=A)
    seen.append(store.version())
    with SqliteStore(path) as other:
        other.add_member(A, 1)
        seen.append(store.version())
        other.remove_member(A, 1)
        seen.append(store.version())
    assert len(set(seen)) == 4


def test_reading_does_not_wait_for_a_writer(store: SqliteStore, path: str) -> None:
    fill(store)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM group_memberships")
        assert store.groups_of({"bob": ()}) == {"bob": {group(A)}}
        writer.execute("COMMIT")
    assert store.groups_of({"bob": ()}) == {"bob": set()}


def test_a_writer_that_never_ends_is_reported(path: str) -> None:
    with SqliteStore(path, busy_timeout=0.02) as store:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(DirectoryUnavailable) as caught:
                store.add_group("Fleet")
            writer.execute("ROLLBACK")
        assert str(caught.value) == (
            f"{path}: another program keeps it locked; end that program and try again"
        )
        assert store.add_group("Fleet", id=A) == A


def test_opening_waits_for_the_write_ahead_log(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DirectoryUnavailable, match="another program keeps it locked"):
            SqliteStore(path, busy_timeout=0.05)


def test_failed_write_leaves_nothing_behind(store: SqliteStore, path: str) -> None:
    fill(store)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute(
            "CREATE TRIGGER no BEFORE DELETE ON \"groups\" BEGIN SELECT RAISE (ABORT, 'no'); END"
        )
    with pytest.raises(DirectoryUnavailable, match=f"^{re.escape(path)}: no$"):
        store.remove_group(A)
    assert len(store.list_members(A)) == 2


def test_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "falcon.db"
    path.write_text("not a database, but long enough to have a header " * 20)
    with pytest.raises(DirectoryUnavailable, match=r"falcon\.db: it is not a SQLite database"):
        SqliteStore(str(path))
    assert path.read_text().startswith("not a database")


def test_damaged_file(path: str) -> None:
    with SqliteStore(path) as store:
        fill(store)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (os.path.getsize(path) - 4096))
    with SqliteStore(path) as store, pytest.raises(DirectoryUnavailable, match="is damaged"):
        store.groups_of({"alice": ()})


def test_database_of_another_program(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE notes (text)")
    with pytest.raises(DirectoryUnavailable, match="it is the database of another program"):
        SqliteStore(path)


def test_database_of_a_later_version(path: str) -> None:
    SqliteStore(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(DirectoryUnavailable, match="its tables have version 2, this program"):
        SqliteStore(path)


def test_file_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryUnavailable, match="it cannot be opened; its directory must"):
        SqliteStore(str(tmp_path / "file" / "falcon.db"))


def test_file_that_must_be_there(path: str) -> None:
    with pytest.raises(DirectoryUnavailable, match=f"^{re.escape(path)}: no such file$"):
        SqliteStore(path, create=False)
    assert not os.path.exists(path)


def test_file_that_cannot_be_written(store: SqliteStore) -> None:
    # As the owner of everything root can write any file; this is the same error for all users.
    store._db.execute("PRAGMA query_only = 1")
    with pytest.raises(DirectoryUnavailable, match="it cannot be written; this user needs write"):
        store.add_group("Fleet")


def test_wrong_use_of_the_driver_is_no_outage(store: SqliteStore) -> None:
    store.close()
    store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        store.counts()


# --- the directory -------------------------------------------------------------------------------


class Watcher:
    """Writes down what is told and lets a test wait for it."""

    def __init__(self, directory: SqliteDirectory) -> None:
        self.changes: list[tuple[str, set[str]]] = []
        self.bans: list[str] = []
        self._told = asyncio.Event()
        directory.watch(on_change=self._on_change, on_ban=self._on_ban)

    def _on_change(self, user_id: str, groups: frozenset[Group]) -> None:
        self.changes.append((user_id, {group.id for group in groups}))
        self._told.set()

    def _on_ban(self, user_id: str) -> None:
        self.bans.append(user_id)
        self._told.set()

    async def until(self, condition: Callable[[], bool], *, within: float = SOON) -> None:
        async with asyncio.timeout(within):
            while not condition():
                self._told.clear()
                await self._told.wait()


@contextlib.asynccontextmanager
async def running(path: str, poll_interval: float = QUICK) -> AsyncIterator[SqliteDirectory]:
    directory = SqliteDirectory(path, poll_interval=poll_interval)
    await directory.start()
    try:
        yield directory
    finally:
        await directory.close()


async def looks(directory: SqliteDirectory, number: int = 2) -> None:
    """Wait until the directory has looked for changes, from the beginning, ``number`` times."""
    done = asyncio.Event()
    follow = directory._follow
    count = 0

    async def counted() -> None:
        nonlocal count
        try:
            await follow()
        finally:
            count += 1
            if count > number:
                done.set()

    directory._follow = counted  # type: ignore[method-assign]
    try:
        async with asyncio.timeout(SOON):
            await done.wait()
    finally:
        directory._follow = follow  # type: ignore[method-assign]


async def settle(directory: SqliteDirectory) -> None:
    """Wait until answers count as arrived, so that changes are told once."""
    for tracked in directory._tracked.awake.values():
        tracked.answered_at = float("-inf")


async def test_answers_from_the_file(store: SqliteStore, path: str) -> None:
    fill(store)
    store.add_group("Admins", id="d" * 24, system_name="super_admin")
    store.add_member("d" * 24, 2)
    async with running(path) as directory:
        await directory.ping()
        assert {one.id for one in await directory.groups_of("alice", 1)} == {A, B, "d" * 24}
        assert await directory.groups_of("bob", 3) == {group(A)}
        assert await directory.groups_of("nobody", 77) == frozenset()
        assert await directory.is_super_admin("alice", 1) is True
        assert await directory.is_super_admin("bob", 3) is False
        assert await directory.is_super_admin("eve", 2) is False


async def test_memory_is_seeded_through_run_and_followed() -> None:
    async with running(MEMORY) as directory:
        watcher = Watcher(directory)
        await directory.run(fill)
        directory.track("bob", 3)
        assert await directory.groups_of("bob", 3) == {group(A)}
        await settle(directory)
        assert await directory.run(lambda store: store.remove_member(A, 3)) is True
        await watcher.until(lambda: watcher.changes == [("bob", set())])
        await directory.ping()


async def test_change_of_another_connection_is_told_within_a_second(
    store: SqliteStore, path: str
) -> None:
    fill(store)
    directory = SqliteDirectory(path)
    await directory.start()
    try:
        watcher = Watcher(directory)
        directory.track("alice", 1)
        directory.track("bob", 3)
        await directory.groups_of("alice", 1)
        await directory.groups_of("bob", 3)
        await settle(directory)
        store.remove_member(A, 3)
        await watcher.until(lambda: watcher.changes == [("bob", set())], within=1.0)
        store.add_member(C, 2)
        await watcher.until(lambda: watcher.changes[1:] == [("alice", {A, B, C})], within=1.0)
        store.set_banned("bob", True)
        await watcher.until(lambda: watcher.bans == ["bob"], within=1.0)
    finally:
        await directory.close()


async def test_every_kind_of_change_reaches_the_user(store: SqliteStore, path: str) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("alice", 1)
        await directory.groups_of("alice", 1)
        await settle(directory)
        steps: list[tuple[Callable[[], object], set[str]]] = [
            (lambda: store.remove_group(B), {A}),
            (lambda: store.add_member(C, 3), {A}),
            (lambda: store.add_user("alice", 3, "Bob, bought"), {A, C}),
            (lambda: store.remove_member(A, 1), {A, C}),
            (lambda: store.add_user("bob", 3, "Bob, given back"), set()),
        ]
        expected = [("alice", {A, B})]
        for change, groups in steps:
            change()
            if expected[-1][1] != groups:
                expected.append(("alice", groups))
            await watcher.until(lambda: watcher.changes == expected[1:])
            await looks(directory)
        assert watcher.changes == expected[1:]


async def test_only_tracked_users_are_told(store: SqliteStore, path: str) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("alice", 1)
        directory.track("bob", 3)
        await directory.groups_of("alice", 1)
        await directory.groups_of("bob", 3)
        await settle(directory)
        # Who is tracked and has not asked yet may be told unasked.
        watcher.changes.clear()
        directory.forget("bob")
        directory.forget("nobody")
        store.set_banned("bob", True)
        store.remove_member(A, 3)
        store.remove_member(A, 1)
        await watcher.until(lambda: ("alice", {B}) in watcher.changes)
        # A set may be told again so soon after an answer.
        assert {user for user, _groups in watcher.changes} == {"alice"}
        assert watcher.bans == []
        assert directory.is_banned("bob")


async def test_a_file_that_nobody_writes_is_not_asked(
    store: SqliteStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "SETTLES", 10 * QUICK)
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        await directory.groups_of("bob", 3)
        asked = 0
        look = directory._look

        def counted() -> object:
            nonlocal asked
            asked += 1
            return look()

        monkeypatch.setattr(directory, "_look", counted)
        async with asyncio.timeout(SOON):
            before = -1
            while before != asked:  # until the last change has settled, and the answer to Bob too
                before = asked
                await asyncio.sleep(0.2)
        await asyncio.sleep(0.2)
        assert asked == before > 0
        store.remove_member(A, 3)
        await watcher.until(lambda: watcher.changes == [("bob", set())])


async def test_nothing_is_told_without_a_change(store: SqliteStore, path: str) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        await directory.groups_of("bob", 3)
        store.add_user("carol", 8, "Carol")
        await looks(directory)
        assert watcher.changes == []


async def test_change_between_track_and_the_first_question_is_in_the_answer(
    store: SqliteStore, path: str
) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        store.remove_member(A, 3)
        assert await directory.groups_of("bob", 3) == frozenset()
        await looks(directory)
        assert watcher.changes == []


async def test_user_tracked_after_the_answer_is_told_once(store: SqliteStore, path: str) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        await directory.groups_of("bob", 3)
        store.remove_member(A, 3)
        directory.track("bob", 3)
        await watcher.until(lambda: watcher.changes == [("bob", set())])
        await looks(directory)
        assert len(watcher.changes) == 1


async def test_a_second_connection_does_not_swallow_the_change_for_the_first(
    store: SqliteStore, path: str
) -> None:
    fill(store)
    async with running(path, poll_interval=0.05) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        await directory.groups_of("bob", 3)
        store.remove_member(A, 3)
        directory.track("bob", 3)
        # The second connection hears of it first; the first must be told all the same.
        assert await directory.groups_of("bob", 3) == frozenset()
        await watcher.until(lambda: ("bob", set()) in watcher.changes)


async def test_a_change_right_after_an_answer_is_repeated_until_the_answer_has_arrived(
    store: SqliteStore, path: str
) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        await directory.groups_of("bob", 3)
        store.remove_member(A, 3)
        await watcher.until(lambda: len(watcher.changes) >= 2)
        await settle(directory)
        await looks(directory)
        told = len(watcher.changes)
        await looks(directory)
        assert watcher.changes == [("bob", set())] * told


async def test_another_character_of_a_token_joins_its_groups_to_the_user(
    store: SqliteStore, path: str
) -> None:
    fill(store)
    store.add_member(C, 9)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        assert await directory.groups_of("bob", 3) == {group(A)}
        await settle(directory)
        directory.track("bob", 9)
        assert await directory.groups_of("bob", 3) == {group(A), group(C)}
        await watcher.until(lambda: ("bob", {A, C}) in watcher.changes)


async def test_refresh_tells_at_once_and_also_what_did_not_change(
    store: SqliteStore, path: str
) -> None:
    fill(store)
    async with running(path, poll_interval=SOON) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        await directory.groups_of("bob", 3)
        await settle(directory)
        await directory.refresh(["bob", "nobody"])
        store.remove_member(A, 3)
        await directory.refresh(["bob"])
        assert watcher.changes == [("bob", {A}), ("bob", set())]


async def test_refresh_that_failed_is_made_up_for(
    store: SqliteStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        await directory.groups_of("bob", 3)
        await settle(directory)
        with monkeypatch.context() as patch:

            def fail(self: SqliteStore, wanted: object) -> None:
                raise DirectoryUnavailable("away")

            patch.setattr(SqliteStore, "groups_of", fail)
            with pytest.raises(DirectoryUnavailable, match="away"):
                await directory.refresh(["bob"])
            assert watcher.changes == []
        await watcher.until(lambda: ("bob", {A}) in watcher.changes)


async def test_a_ban_between_handshake_and_track_is_told(store: SqliteStore, path: str) -> None:
    fill(store)
    store.set_banned("bob", True)
    async with running(path) as directory:
        watcher = Watcher(directory)
        assert directory.is_banned("bob")
        assert not directory.is_banned("alice")
        directory.track("bob", 3)
        assert watcher.bans == []
        await watcher.until(lambda: watcher.bans == ["bob"])


async def test_a_lifted_ban_is_noticed(store: SqliteStore, path: str) -> None:
    fill(store)
    store.set_banned("bob", True)
    async with running(path) as directory:
        store.set_banned("bob", False)
        await looks(directory)
        assert not directory.is_banned("bob")


async def test_questions_of_one_turn_share_a_query(
    store: SqliteStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    batches: list[int] = []
    lookup = SqliteStore.groups_of

    def counted(self: SqliteStore, wanted: dict[str, set[int]]) -> dict[str, frozenset[Group]]:
        batches.append(len(wanted))
        return lookup(self, wanted)

    monkeypatch.setattr(SqliteStore, "groups_of", counted)
    async with running(path, poll_interval=SOON) as directory:
        users = [f"user-{n}" for n in range(BATCH_USERS)] + ["alice", "bob"]
        answers = await asyncio.gather(*(directory.groups_of(user, 99) for user in users))
    assert batches == [BATCH_USERS, 2]
    assert answers[-2:] == [{group(A), group(B)}, {group(A)}]
    assert set(answers[:-2]) == {frozenset()}


async def test_many_tracked_users_are_compared_in_batches(store: SqliteStore, path: str) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        for number in range(BATCH_USERS + 1):
            directory.track(f"user-{number}", 1000 + number)
        store.add_member(A, 1000)
        store.add_member(B, 1000 + BATCH_USERS)
        await watcher.until(
            lambda: (
                {("user-0", A), (f"user-{BATCH_USERS}", B)}
                <= {(user, id) for user, ids in watcher.changes for id in ids}
            )
        )
        assert len(watcher.changes) == BATCH_USERS + 1


async def test_quiet_users_are_packed_and_miss_nothing(store: SqliteStore, path: str) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        for user_id, character_id in (("alice", 1), ("bob", 3)):
            directory.track(user_id, character_id)
            await directory.groups_of(user_id, character_id)
        await settle(directory)
        await looks(directory)
        assert not directory._tracked.awake
        assert set(directory._tracked) == {"alice", "bob"}
        assert directory._tracked.characters_of("alice") == (1,)
        # A write that is none of theirs wakes nobody, and one that is tells whom it concerns.
        store.add_group("another")
        await looks(directory)
        assert not directory._tracked.awake
        store.remove_member(A, 3)
        await watcher.until(lambda: watcher.changes == [("bob", set())])
        # The same character again is no news; another one is.
        directory.track("alice", 1)
        await settle(directory)
        await looks(directory)
        assert len(watcher.changes) == 1
        directory.track("alice", 7)
        assert directory._tracked.characters_of("alice") == (1, 7)
        await watcher.until(lambda: len(watcher.changes) == 2)
        directory.forget("alice")
        directory.forget("bob")
        assert "alice" not in directory._tracked
        assert directory._tracked.characters_of("alice") == ()


async def test_a_cancelled_question_disturbs_nobody(store: SqliteStore, path: str) -> None:
    fill(store)
    async with running(path) as directory:
        directory.track("alice", 1)
        given_up = asyncio.ensure_future(directory.groups_of("alice", 1))
        other = asyncio.ensure_future(directory.groups_of("bob", 3))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await other == {group(A)}
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert directory._tracked.awake["alice"].asking == 0


async def test_a_callback_that_fails_is_logged_and_the_next_is_called(
    store: SqliteStore, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store)
    called: list[str] = []
    done = asyncio.Event()

    def fail(user_id: str, *_rest: object) -> None:
        called.append(user_id)
        if len(called) == 3:
            done.set()
        raise RuntimeError("of the gateway")

    async with running(path) as directory:
        directory.watch(on_change=fail, on_ban=fail)
        for user, character in (("alice", 1), ("bob", 3)):
            directory.track(user, character)
            await directory.groups_of(user, character)
        await settle(directory)
        with caplog.at_level(logging.ERROR):
            with contextlib.closing(sqlite3.connect(path)) as other, other:
                other.execute("DELETE FROM group_memberships")
                other.execute("UPDATE user_profiles SET banned = 1 WHERE user_id = 'bob'")
            async with asyncio.timeout(SOON):
                await done.wait()
    assert sorted(called) == ["alice", "bob", "bob"]
    assert [record.message for record in caplog.records] == [
        "telling a ban failed",
        "telling a change of groups failed",
        "telling a change of groups failed",
    ]


async def test_changes_before_watch_are_kept_to_oneself(store: SqliteStore, path: str) -> None:
    fill(store)
    async with running(path) as directory:
        directory.track("bob", 3)
        await directory.groups_of("bob", 3)
        store.set_banned("bob", True)
        store.remove_member(A, 3)
        await looks(directory)
        assert directory.is_banned("bob")


# --- the directory: outages ----------------------------------------------------------------------


async def test_an_outage_is_told_once_and_empties_nothing(
    store: SqliteStore, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store)
    store.set_banned("bob", True)
    store.close()
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("alice", 1)
        await directory.groups_of("alice", 1)
        await settle(directory)
        with caplog.at_level(logging.INFO, logger="falcon_fast.directory.sqlite"):
            os.rename(path, tmp_path / "away.db")
            await looks(directory)
            with pytest.raises(DirectoryUnavailable, match=r"falcon\.db: No such file"):
                await directory.ping()
            assert directory.is_banned("bob")
            available = [directory.is_available]
            assert watcher.changes == []
            assert not os.path.exists(path)
            os.rename(tmp_path / "away.db", path)
            await looks(directory)
            await directory.ping()
            available.append(directory.is_available)
        assert available == [False, True]
        assert watcher.changes == []
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_a_file_put_in_place_of_the_other_is_followed(path: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")
    for name, member in ((path, 3), (copy, 4)):
        with SqliteStore(name) as store:
            store.add_group("Fleet", id=A)
            store.add_user("bob", 3, "Bob")
            store.add_member(A, member)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        assert await directory.groups_of("bob", 3) == {group(A)}
        await settle(directory)
        os.replace(copy, path)
        await watcher.until(lambda: watcher.changes == [("bob", set())])
        with SqliteStore(path) as store:
            store.add_member(A, 3)
        await watcher.until(lambda: watcher.changes[1:] == [("bob", {A})])


async def test_a_wrong_file_put_in_place_leaves_the_old_one_open(
    store: SqliteStore, path: str, tmp_path: Path
) -> None:
    fill(store)
    store.close()
    (tmp_path / "wrong").write_bytes(b"x" * 5000)
    async with running(path) as directory:
        os.replace(tmp_path / "wrong", path)
        with pytest.raises(DirectoryUnavailable, match="it is not a SQLite database"):
            await directory.ping()
        assert await directory.groups_of("bob", 3) == {group(A)}


async def test_a_failing_query_fails_every_question_with_its_own_exception(
    store: SqliteStore, path: str
) -> None:
    async with running(path, poll_interval=SOON) as directory:
        with contextlib.closing(sqlite3.connect(path)) as other, other:
            other.execute("DROP TABLE group_memberships")
        directory.track("alice", 1)
        answers = await asyncio.gather(
            directory.groups_of("alice", 1), directory.groups_of("bob", 3), return_exceptions=True
        )
    first, second = answers
    assert isinstance(first, DirectoryUnavailable)
    assert isinstance(second, DirectoryUnavailable)
    assert first is not second
    assert str(first) == str(second) == f"{path}: no such table: group_memberships"


async def test_after_a_failed_question_the_user_is_told_when_it_works_again(
    store: SqliteStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        with monkeypatch.context() as patch:

            def fail(self: SqliteStore, wanted: object) -> None:
                raise DirectoryUnavailable("away")

            patch.setattr(SqliteStore, "groups_of", fail)
            with pytest.raises(DirectoryUnavailable, match="away"):
                await directory.groups_of("bob", 3)
            assert watcher.changes == []
        await watcher.until(lambda: watcher.changes == [("bob", {A})])


async def test_a_mistake_in_a_lookup_is_passed_on_and_the_poll_lives(
    store: SqliteStore,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        with monkeypatch.context() as patch:

            def fail(self: SqliteStore, wanted: object) -> None:
                raise RuntimeError("a mistake")

            patch.setattr(SqliteStore, "groups_of", fail)
            with pytest.raises(RuntimeError, match="a mistake"):
                await directory.groups_of("bob", 3)
            await looks(directory)
        assert "looking for changes of users and groups failed" in caplog.messages
        await watcher.until(lambda: watcher.changes == [("bob", {A})])


async def test_a_look_that_failed_by_a_mistake_is_not_left_until_the_next_change(
    store: SqliteStore, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "SETTLES", 0.0)
    fill(store)
    async with running(path) as directory:
        watcher = Watcher(directory)
        directory.track("bob", 3)
        await directory.groups_of("bob", 3)
        await settle(directory)
        await directory._follow()
        assert not directory._tracked.awake
        with monkeypatch.context() as patch:

            def fail(self: SqliteStore) -> None:
                raise RuntimeError("a mistake")

            patch.setattr(SqliteStore, "banned_users", fail)
            store.remove_member(A, 3)
            await looks(directory)
        await watcher.until(lambda: watcher.changes == [("bob", set())])


async def test_start_reports_what_to_mend(tmp_path: Path) -> None:
    directory = SqliteDirectory(str(tmp_path / "nowhere" / "falcon.db"))
    with pytest.raises(DirectoryUnavailable, match="its directory must exist"):
        await directory.start()
    await directory.close()


async def test_closed_directory_refuses_and_waiting_questions_end(
    store: SqliteStore, path: str
) -> None:
    directory = SqliteDirectory(path)
    with pytest.raises(DirectoryUnavailable, match="the directory is not open"):
        await directory.groups_of("bob", 3)
    await directory.start()
    waiting = asyncio.ensure_future(directory.groups_of("bob", 3))
    await asyncio.sleep(0)
    await directory.close()
    await directory.close()
    with pytest.raises(DirectoryUnavailable, match="the directory is not open"):
        await waiting
    with pytest.raises(DirectoryUnavailable, match="the directory is not open"):
        await directory.ping()
