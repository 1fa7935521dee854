"""Revoked tokens of one process that keeps nothing: they end with it, as its users do."""

from __future__ import annotations

from collections.abc import Collection

from falcon_fast.revocation import Revocation
from falcon_fast.revocations import Listener

__all__ = ["MemoryRevocations"]


class MemoryRevocations:
    """Keeps nothing beyond what `revoker` has; there is nobody to tell."""

    async def start(self, listener: Listener) -> None:
        """See `RevocationStore.start`."""
        listener.compare(())

    async def save(self, rule: Revocation) -> None:
        """See `RevocationStore.save`."""

    async def forget(self, idents: Collection[str]) -> None:
        """See `RevocationStore.forget`."""

    async def close(self) -> None:
        """See `RevocationStore.close`."""
