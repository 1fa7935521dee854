"""Revoking tokens: rules from operators, host programs and other nodes, in force at once.

Between the service and the store. A rule is in force here before it is kept anywhere; what could
not be kept is tried again until it is, and whoever asked for it is told. The rules themselves are
asked by `auth` for each token; what is connected already is closed through `on_revoked`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from falcon_fast.clock import Clock, until_beat
from falcon_fast.errors import BusUnavailable, NotFoundError
from falcon_fast.identity import new_id
from falcon_fast.revocation import (
    Kind,
    Revocation,
    Revocations,
    is_over,
    is_token_id,
    is_user_id,
)
from falcon_fast.revocations import RevocationStore
from falcon_fast.tasks import end_tasks

__all__ = ["NOT_FOUND", "Revoker"]

log = logging.getLogger(__name__)

TICK: Final = 1.0
"""Seconds between two looks at what is to be done."""

PURGE_INTERVAL: Final = 60.0
"""Seconds between two looks for rules that are over."""

RETRY_FIRST: Final = 1.0
RETRY_LAST: Final = 15.0
"""Seconds between attempts to keep what could not be kept, with jitter."""

MAX_AHEAD: Final = 10
"""Seconds by which `issued_before` may lie in the future: as much as clocks may differ.

More would shut out users who log in anew.
"""

NOT_FOUND: Final = "Revocation not found"


class Revoker:
    """Makes rules, keeps them, and takes those of others.

    Args:
        revocations: The rules in force; `auth` has the same object.
        store: Where they are kept.
        clock: Where the time comes from.
        max_lifetime: The longest life of a token in seconds, which bounds how long a rule is kept.
        on_revoked: Called with rules that were not in force before, to close connections.
    """

    def __init__(
        self,
        revocations: Revocations,
        store: RevocationStore,
        *,
        clock: Clock,
        max_lifetime: int,
        on_revoked: Callable[[Collection[Revocation]], None],
    ) -> None:
        self._revocations = revocations
        self._store = store
        self._clock = clock
        self._max_lifetime = max_lifetime
        self._on_revoked = on_revoked
        self._unsaved: dict[str, Revocation] = {}
        self._over: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def unsaved(self) -> int:
        """How many rules are in force here that were not kept yet."""
        return len(self._unsaved)

    async def start(self) -> None:
        """Read the rules and follow them; returns before they are there if the store is away.

        Raises:
            BusUnavailable: A file of rules is there and cannot be read.
        """
        self._revocations.is_complete = False
        await self._store.start(self)
        self._task = asyncio.create_task(self._tend(), name="revocations-tend")

    async def close(self) -> None:
        """Stop following; a second call does nothing."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])
        await self._store.close()

    # --- what operators do -----------------------------------------------------------------------

    async def revoke_token(self, token_id: str, *, expires_at: int | None = None) -> Revocation:
        """Revoke one token.

        Args:
            token_id: Its ``jti``.
            expires_at: Its ``exp``, after which the rule is forgotten; if not known, the longest
                life of a token from now.

        Raises:
            ValueError: An argument cannot be used.
            BusUnavailable: It is in force here, but not kept, and other nodes are not told yet.
        """
        if not is_token_id(token_id):
            raise ValueError("token_id must have 1 to 128 printable characters")
        now = int(self._clock.time())
        ends = self._end(now + MAX_AHEAD, expires_at)
        return await self._revoke(_rule("token", token_id, 0, ends, now))

    async def revoke_user(
        self, user_id: str, *, issued_before: int | None = None, expires_at: int | None = None
    ) -> Revocation:
        """Revoke the tokens of a user that were issued before a time.

        Args:
            user_id: The user.
            issued_before: Seconds since 1970, at most 10 in the future; the end of this second if
                None, so that what was issued in it is revoked too.
            expires_at: When the last of the tokens expires; if not known, the longest life of a
                token from now.

        Raises:
            ValueError: An argument cannot be used.
            BusUnavailable: It is in force here, but not kept, and other nodes are not told yet.
        """
        if not is_user_id(user_id):
            raise ValueError("user_id must have 1 to 64 characters of A-Z, a-z, 0-9, _ and -")
        return await self._revoke_before("user", user_id, issued_before, expires_at)

    async def revoke_all(
        self, issued_before: int | None = None, *, expires_at: int | None = None
    ) -> Revocation:
        """Revoke all tokens that were issued before a time; see `revoke_user`."""
        return await self._revoke_before("all", "", issued_before, expires_at)

    async def withdraw(self, ident: str) -> None:
        """Take a rule back: tokens that are still valid are accepted again.

        Raises:
            NotFoundError: There is no such rule.
            BusUnavailable: It is taken back here, and other nodes are not told yet.
        """
        rule = self._revocations.get(ident)
        if rule is None or rule.withdrawn:
            raise NotFoundError(NOT_FOUND)
        await self._keep(replace(rule, withdrawn=True))

    def list(self) -> Sequence[Revocation]:
        """Return the rules in force, by id."""
        rules = (rule for rule in self._revocations if not rule.withdrawn)
        return sorted(rules, key=lambda rule: rule.id)

    async def _revoke_before(
        self, kind: Kind, target: str, issued_before: int | None, expires_at: int | None
    ) -> Revocation:
        now = int(self._clock.time())
        before = now + 1 if issued_before is None else issued_before
        if not 1 <= before <= now + MAX_AHEAD:
            raise ValueError(f"issued_before must not be more than {MAX_AHEAD} s in the future")
        # From now at least: a token without iat may have been issued just now.
        ends = self._end(max(before, now), expires_at)
        return await self._revoke(_rule(kind, target, before, ends, now))

    def _end(self, issued_before: int, expires_at: int | None) -> int:
        """Return when the last of the tokens has expired; later than that none can."""
        latest = issued_before + self._max_lifetime
        if expires_at is None:
            return latest
        if expires_at < 0:
            raise ValueError("expires_at must be seconds since 1970")
        return min(latest, expires_at)

    async def _revoke(self, rule: Revocation) -> Revocation:
        # The log tells what happened to whom; the audit log of the admin API tells who did it.
        log.info("tokens revoked", extra={"revocation": rule.id, "about": rule.kind})
        await self._keep(rule)
        return rule

    async def _keep(self, rule: Revocation) -> None:
        self._take([rule])
        # Whatever becomes of this call, also if it is cancelled, the rule is kept in the end.
        self._unsaved[rule.id] = rule
        await self._save(rule)

    async def _save(self, rule: Revocation) -> None:
        await self._store.save(rule)
        if self._unsaved.get(rule.id) is rule:
            del self._unsaved[rule.id]

    # --- what the store tells (revocations.Listener) ---------------------------------------------

    def heard(self, rules: Collection[Revocation]) -> None:
        """See `revocations.Listener`."""
        self._take(rules)

    def compare(self, rules: Sequence[Revocation]) -> None:
        """See `revocations.Listener`."""
        self._take(rules)
        self._revocations.is_complete = True
        there = {rule.id for rule in rules}
        now = self._clock.time()
        self._over.update(rule.id for rule in rules if is_over(rule, now))
        lost = [
            rule
            for rule in self._revocations
            if rule.id not in there and rule.id not in self._unsaved and not is_over(rule, now)
        ]
        if lost:
            # A Redis that lost its memory must not let revoked tokens in again.
            log.warning("revocations were lost and are written again", extra={"number": len(lost)})
            self._unsaved.update({rule.id: rule for rule in lost})

    def _take(self, rules: Iterable[Revocation]) -> None:
        now = self._clock.time()
        fresh = [rule for rule in rules if not is_over(rule, now) and self._revocations.put(rule)]
        if fresh:
            self._on_revoked(fresh)

    # --- in the background -----------------------------------------------------------------------

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        purge_at = loop.time() + PURGE_INTERVAL
        save_at, delay = loop.time(), RETRY_FIRST
        while True:
            await asyncio.sleep(until_beat(loop.time(), TICK))
            if self._unsaved and loop.time() >= save_at:
                delay = RETRY_FIRST if await self._save_all() else min(RETRY_LAST, delay * 2)
                save_at = loop.time() + delay * random.uniform(0.5, 1.0)
            if loop.time() >= purge_at:
                purge_at = loop.time() + PURGE_INTERVAL
                await self._purge()

    async def _save_all(self) -> bool:
        for rule in list(self._unsaved.values()):
            try:
                await self._save(rule)
            except BusUnavailable:
                return False
        return True

    async def _purge(self) -> None:
        gone = self._revocations.purge(self._clock.time())
        for ident in gone:
            self._unsaved.pop(ident, None)
        self._over.update(gone)
        if self._over:
            # If this fails, somebody else does it, or the next time.
            with contextlib.suppress(BusUnavailable):
                await self._store.forget(tuple(self._over))
                self._over.clear()


def _rule(kind: Kind, target: str, issued_before: int, expires_at: int, now: int) -> Revocation:
    return Revocation(
        id=new_id(),
        kind=kind,
        target=target,
        issued_before=issued_before,
        expires_at=expires_at,
        created_at=now,
    )
