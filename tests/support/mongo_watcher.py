"""A directory on MongoDB for a test, and one who writes down what it tells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import pytest

from falcon_fast.clock import Clock, SystemClock
from falcon_fast.directory import Directory, Group
from falcon_fast.directory.mongo import MongoDirectory
from falcon_fast.directory.mongo_driver import Driver, MongoStore, Store

from .server import POLL

SOON: Final = 5.0
"""Seconds after which something that must happen has failed to."""


LEAVES_SOCKETS: Final = (
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    ),
)
"""For modules in which PyMongo is closed while it connects: it leaves the socket behind."""


class Watcher:
    """Writes down what a directory tells and lets a test wait for it.

    Attributes:
        last: the groups that were last told of each user, by their ids.
        changes: all that was told, in order.
        bans: users told to be banned.
        names: what characters were told to be called.
    """

    def __init__(self, directory: Directory) -> None:
        self.last: dict[str, set[str]] = {}
        self.titles: dict[str, str] = {}
        self.changes: list[tuple[str, set[str]]] = []
        self.bans: list[str] = []
        self.names: dict[tuple[str, int], str] = {}
        self._told = asyncio.Event()
        directory.watch(on_change=self._on_change, on_ban=self._on_ban, on_profile=self._on_profile)

    def _on_change(self, user_id: str, groups: frozenset[Group]) -> None:
        ids = {group.id for group in groups}
        self.changes.append((user_id, ids))
        self.last[user_id] = ids
        self.titles.update((group.id, group.name) for group in groups)
        self._told.set()

    def _on_ban(self, user_id: str) -> None:
        self.bans.append(user_id)
        self._told.set()

    def _on_profile(self, user_id: str, character_id: int, name: str) -> None:
        self.names[user_id, character_id] = name
        self._told.set()

    async def until(self, condition: Callable[[], bool], *, within: float = SOON) -> None:
        """Wait until what was told meets a condition."""
        async with asyncio.timeout(within):
            while not condition():
                self._told.clear()
                await self._told.wait()


async def holds(condition: Callable[[], bool], *, within: float = SOON) -> None:
    """Wait until a condition holds that nobody tells of."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within
    while True:
        if condition():
            return
        assert loop.time() < until, f"not within {within:g} s"
        await asyncio.sleep(POLL)


@contextlib.asynccontextmanager
async def directory_on(
    store: Store, *, clock: Clock | None = None, start_timeout: float = 0.0
) -> AsyncIterator[MongoDirectory]:
    """Run a directory for as long as the context lasts."""
    directory = MongoDirectory(store, clock=clock or SystemClock(), start_timeout=start_timeout)
    await directory.start()
    try:
        yield directory
    finally:
        await directory.close()


@contextlib.asynccontextmanager
async def directory_in(
    uri: str, database: str, driver: Driver, *, timeout: float = 3.0
) -> AsyncIterator[MongoDirectory]:
    """Run a directory on a database of a real server."""
    store = MongoStore(uri, database, driver=driver, timeout=timeout)
    async with directory_on(store, start_timeout=SOON) as directory:
        yield directory
