"""The command line in its own process, beside a directory that is in use."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from falcon_fast.demo import seed
from falcon_fast.directory import Group
from falcon_fast.directory.sqlite import SqliteDirectory
from falcon_fast.directory.sqlite_store import Counts, SqliteStore

from ..support import ROOT

pytestmark = pytest.mark.integration

NOTICED_WITHIN = 1.0
"""Seconds; promised by the command's help text."""

WRITERS = 6


def falcon_fast(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a folder, as in a second terminal."""
    # The tree is put first, so that a copy without installation is tested too.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "falcon_fast", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class Told:
    """Keeps the groups of the tracked users as they are told."""

    def __init__(self, directory: SqliteDirectory) -> None:
        self.groups: dict[str, frozenset[Group]] = {}
        self._changed = asyncio.Event()
        directory.watch(on_change=self._on_change, on_ban=lambda user_id: None)

    def _on_change(self, user_id: str, groups: frozenset[Group]) -> None:
        self.groups[user_id] = groups
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(NOTICED_WITHIN):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


async def test_member_remove_and_add_are_noticed_within_a_second(tmp_path: Path) -> None:
    directory = SqliteDirectory(str(tmp_path / "falcon.db"))
    await directory.start()
    try:
        demo = await directory.run(seed)
        told = Told(directory)
        for user in (demo.alice, demo.bob):
            directory.track(user.user_id, user.character_id)
            found = await directory.groups_of(user.user_id, user.character_id)
            told.groups[user.user_id] = found
        fleet, bob = demo.fleet.id, str(demo.bob.character_id)
        for verb, groups in (("remove", frozenset()), ("add", frozenset({demo.fleet}))):
            done = await asyncio.to_thread(falcon_fast, tmp_path, "member", verb, fleet, bob)
            assert (done.returncode, done.stderr) == (0, "")
            await told.until(lambda groups=groups: told.groups["demo-bob"] == groups)  # type: ignore[misc]
            assert told.groups["demo-alice"] == {demo.fleet}
    finally:
        await directory.close()


def test_commands_of_many_processes_at_once_all_succeed(tmp_path: Path) -> None:
    def add(number: int) -> subprocess.CompletedProcess[str]:
        user = ["--user-id", f"u-{number}", "--character-id", str(number)]
        return falcon_fast(tmp_path, "user", "add", *user, "--character-name", "Name")

    with ThreadPoolExecutor(WRITERS) as pool:
        finished = list(pool.map(add, range(WRITERS)))
    assert [(done.returncode, done.stderr) for done in finished] == [(0, "")] * WRITERS
    with SqliteStore(str(tmp_path / "falcon.db")) as store:
        assert store.counts() == Counts(users=WRITERS, characters=WRITERS, groups=0)


OPENERS = 3
ROUNDS = 10
"""How often each of the writers opens the file."""


def write_much(path: str, number: int) -> None:
    """Open the file anew for every change, as the command line does."""
    for round in range(ROUNDS):
        with SqliteStore(path) as store:
            store.add_user(f"user-{number}", number * ROUNDS + round, "Name")


def test_processes_that_write_at_once_all_succeed(tmp_path: Path) -> None:
    path = str(tmp_path / "falcon.db")
    # Nobody has made the file: making the tables is part of the race.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_much, args=(path, n)) for n in range(OPENERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * OPENERS
    with SqliteStore(path) as store:
        assert store.counts() == Counts(users=OPENERS, characters=OPENERS * ROUNDS, groups=0)


def test_failure_of_a_real_process_is_one_line(tmp_path: Path) -> None:
    done = falcon_fast(tmp_path, "group", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("falcon-fast group list: ./falcon.db: no such file; ")
    assert done.stderr.count("\n") == 1


def test_help_does_not_wait_for_what_it_does_not_need(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "falcon_fast", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "falcon_fast.cli" in loaded
    heavy = {"aiohttp", "asyncio", "falcon_fast.app", "falcon_fast.settings", "jwt", "sqlite3"}
    assert loaded & heavy == set()
