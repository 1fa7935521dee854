"""Following what changes in MongoDB: a change stream, or polling; and a full compare in any case.

A change stream tells every change within milliseconds, and goes on where it stopped. A server
without one is asked every second for documents with a new ``updated_at``, and for its counts, which
betray a deletion. Neither is trusted alone: whatever they miss, the compare finds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Mapping
from typing import Final, Protocol

from falcon_fast.clock import Clock
from falcon_fast.directory.mongo_driver import (
    Changes,
    NoChangeStreams,
    Store,
    TokenLost,
    Unreadable,
)
from falcon_fast.directory.mongo_rows import Document
from falcon_fast.directory.tasks import Tasks
from falcon_fast.errors import DirectoryUnavailable

__all__ = ["COMPARE_INTERVAL", "Audience", "Follower"]

COMPARE_INTERVAL: Final = 45.0
"""Seconds between two compares: one that takes its time still ends within the sixty that a change
may stay unnoticed."""

POLL_INTERVAL: Final = 1.0
"""Seconds between two looks for new ``updated_at``, where there are no change streams."""

POLL_WINDOW: Final = 30.0
"""Seconds by which the clock of whoever writes ``updated_at`` may differ from ours."""

POLL_LIMIT: Final = 2000
"""Documents one look may find in a collection; above it everything is compared."""

COMPARE_GAP: Final = 5.0
"""Seconds between two compares that polling asks for."""

TRY_STREAM_AGAIN: Final = 600.0
"""Seconds after which a server without change streams is asked for one again."""

FIRST_DELAY: Final = 0.25
LAST_DELAY: Final = 5.0
"""Seconds between two attempts while the database does not answer."""

KEEP_TOKEN: Final = 10
"""Attempts, some forty seconds, after which a stream is no longer asked to go on where it was."""

log = logging.getLogger(__name__)


class Audience(Protocol):
    """Who hears of what is followed."""

    def changed(self, change: Document) -> None:
        """Act on a change event."""

    async def compare(self) -> None:
        """Compare all that is known with the database; raises DirectoryUnavailable."""


class Follower:
    """Follows the changes of a database from ``start`` to ``close``.

    Args:
        store: The database.
        audience: Who is told.
        clock: Gives the time that ``updated_at`` is compared with.

    Attributes:
        is_failing: Whether the last look failed.
        mode: ``stream``, ``polling``, or empty before the first look.
    """

    def __init__(self, store: Store, audience: Audience, *, clock: Clock) -> None:
        self._store = store
        self._audience = audience
        self._clock = clock
        self._tasks = Tasks()
        self._compare_now = asyncio.Event()
        self._token: Document | None = None
        self._seen: dict[tuple[object, str], object] = {}
        self._sizes: Mapping[str, int] = {}
        self.is_failing = False
        self.mode = ""

    def start(self) -> None:
        """Begin to follow."""
        self._tasks.run(self._follow(), name="directory-follow")
        self._tasks.run(self._keep_comparing(), name="directory-compare")

    async def close(self) -> None:
        """Stop."""
        await self._tasks.end()

    def compare_soon(self) -> None:
        """Compare everything as soon as that can be done."""
        self._compare_now.set()

    # --- changes as they come --------------------------------------------------------------------

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                await self._stream()
            except NoChangeStreams as error:
                self._enter("polling", str(error))
                await self._poll_for(TRY_STREAM_AGAIN)
                failures = 0
            except (TokenLost, Unreadable) as error:
                log.warning("changes may have been missed: %s", error)
                self._token = None
                self.compare_soon()
                failures += 1
                await asyncio.sleep(_delay(failures) if failures > 1 else 0.0)
            except DirectoryUnavailable as error:
                failures = 1 if not self.is_failing else failures + 1
                if failures > KEEP_TOKEN:
                    # It may be the token's fault, and everything is compared afterwards anyway.
                    self._token = None
                self._failed(error)
                await asyncio.sleep(_delay(failures))
            except Exception:
                log.exception("following changes of users and groups failed")
                failures += 1
                self.compare_soon()
                await asyncio.sleep(_delay(failures))

    async def _stream(self) -> None:
        changes = self._store.changes(self._token)
        async with changes:
            self._enter("stream")
            if self._token is None:
                # What changed between the last look and the beginning of the stream.
                self.compare_soon()
            await self._listen(changes)

    async def _listen(self, changes: Changes) -> None:
        while True:
            change = await changes.next()
            self._answered()
            if change is not None:
                self._audience.changed(change)
                if change.get("operationType") == "invalidate":
                    raise TokenLost("the database was dropped or renamed")
            # Kept only now: a change that was not acted on comes again.
            self._token = changes.token

    async def _poll_for(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        self.compare_soon()
        while loop.time() < until:
            try:
                await self._poll()
            except DirectoryUnavailable as error:
                self._failed(error)
            else:
                self._answered()
            await asyncio.sleep(POLL_INTERVAL * random.uniform(0.8, 1.0))

    async def _poll(self) -> None:
        found = await self._store.changed_since(self._clock.time() - POLL_WINDOW, POLL_LIMIT)
        sizes = await self._store.sizes()
        seen: dict[tuple[object, str], object] = {}
        counts: dict[object, int] = {}
        for change in found:
            key, updated = _version(change)
            seen[key] = updated
            counts[key[0]] = counts.get(key[0], 0) + 1
            if self._seen.get(key) != updated:
                self._audience.changed(change)
        is_cut = any(count >= POLL_LIMIT for count in counts.values())
        fewer = any(size < self._sizes.get(name, 0) for name, size in sizes.items())
        if is_cut or fewer:
            self.compare_soon()
        self._seen, self._sizes = seen, sizes

    # --- the compare -----------------------------------------------------------------------------

    async def _keep_comparing(self) -> None:
        failures = 0
        while True:
            if not failures:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(COMPARE_INTERVAL * random.uniform(0.9, 1.0)):
                        await self._compare_now.wait()
            self._compare_now.clear()
            try:
                await self._audience.compare()
            except DirectoryUnavailable:
                failures += 1
                await asyncio.sleep(_delay(failures))
            except Exception:
                log.exception("comparing users and groups failed")
                failures = 0
            else:
                failures = 0
                if self.mode == "polling":
                    # Deletions come in rows; a compare for each would be too many.
                    await asyncio.sleep(COMPARE_GAP)

    # --- whether it answers ----------------------------------------------------------------------

    def _enter(self, mode: str, why: str = "") -> None:
        if mode != self.mode:
            self.mode = mode
            log.info("changes of users and groups are followed", extra={"mode": mode, "why": why})
        self._answered()

    def _failed(self, error: DirectoryUnavailable) -> None:
        if not self.is_failing:
            log.warning("users and groups are unavailable: %s", error)
        self.is_failing = True

    def _answered(self) -> None:
        if self.is_failing:
            log.info("users and groups are available again")
            self.is_failing = False
            # Whatever was missed meanwhile.
            self.compare_soon()


def _version(change: Document) -> tuple[tuple[object, str], object]:
    namespace, key, document = (change.get(one) for one in ("ns", "documentKey", "fullDocument"))
    collection = namespace.get("coll") if isinstance(namespace, Mapping) else None
    ident = key.get("_id") if isinstance(key, Mapping) else None
    updated = document.get("updated_at") if isinstance(document, Mapping) else None
    return (collection, repr(ident)), updated


def _delay(failures: int) -> float:
    delay = min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))
    return delay * random.uniform(0.5, 1.0)
