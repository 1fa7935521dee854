"""The port of revoked tokens: where rules are kept, so that they outlive a process and reach all.

`revoker` declares here what it needs; an adapter (nothing, the SQLite file, or Redis) gives it. The
contract, which no signature can tell:

Guarantee
    What `save` returned from is kept, and every process with the same store hears of it within a
    second while the store answers. A process that was cut off hears of everything once it is not.

Rules only grow
    A rule is not changed after it was saved, except that it is withdrawn; a withdrawn rule is never
    put back by `save`. So rules may be saved and heard of twice, and in any order.

Who may call when
    Everything is called on the loop's thread between `start` and `close`; so are the listener's
    methods, never from inside a call of the store's own.

What it raises
    :class:`~falcon_fast.errors.BusUnavailable`, where a rule was not kept or others are not told.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from falcon_fast.revocation import Revocation

__all__ = ["Listener", "RevocationStore"]


class Listener(Protocol):
    """What a store tells."""

    def heard(self, rules: Collection[Revocation]) -> None:
        """Take rules that are new, changed, or known already."""

    def compare(self, rules: Sequence[Revocation]) -> None:
        """Take all rules that the store has; one that is missing was lost by the store."""


class RevocationStore(Protocol):
    """Where rules are kept."""

    async def start(self, listener: Listener) -> None:
        """Read all rules, tell them, and begin to follow what others save.

        Returns after a few seconds also when an outside system does not answer; it is tried again
        for as long as the store lives.

        Raises:
            BusUnavailable: A file is there but cannot be read.
        """

    async def save(self, rule: Revocation) -> None:
        """Keep a rule and tell the other processes.

        Raises:
            BusUnavailable: It is not kept, or maybe not, or others are not told; may be repeated.
        """

    async def forget(self, idents: Collection[str]) -> None:
        """Delete rules that are over.

        Raises:
            BusUnavailable: They are still there.
        """

    async def close(self) -> None:
        """Stop following and let go of everything; may be called more than once."""
