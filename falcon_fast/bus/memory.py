"""The embedded bus: one node, so publishing is delivering."""

from __future__ import annotations

from falcon_fast.bus import Deliver, Target

__all__ = ["MemoryBus"]


class MemoryBus:
    """Delivers to this process at once; there are no other nodes that could be out of reach."""

    def __init__(self) -> None:
        self._deliver: Deliver | None = None

    async def start(self, deliver: Deliver) -> None:
        """See `Bus.start`."""
        self._deliver = deliver

    def publish(self, target: Target, ident: str, frame: bytes) -> int:
        """See `Bus.publish`."""
        return self._deliver(target, ident, frame) if self._deliver is not None else 0

    async def close(self) -> None:
        """See `Bus.close`."""
        self._deliver = None
