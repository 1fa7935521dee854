"""The embedded bus: one node, so publishing is delivering."""

from __future__ import annotations

from falcon_fast.bus import BusStatistics, Receiver, Target

__all__ = ["MemoryBus"]


class MemoryBus:
    """Delivers to this process at once; there are no other nodes that could be out of reach."""

    def __init__(self) -> None:
        self._receiver: Receiver | None = None

    @property
    def is_available(self) -> bool:
        """See `Bus.is_available`."""
        return True

    async def start(self, receiver: Receiver) -> None:
        """See `Bus.start`."""
        self._receiver = receiver

    def publish(
        self,
        target: Target,
        ident: str,
        frame: bytes,
        *,
        members: int | None = None,
        receipt: str | None = None,
        process_id: str | None = None,
    ) -> int:
        """See `Bus.publish`."""
        return self._receiver.deliver(target, ident, frame) if self._receiver is not None else 0

    def tell(self, control: bytes, node_id: str | None = None) -> None:
        """See `Bus.tell`."""

    def reaches_all(self, target: Target) -> bool:
        """See `Bus.reaches_all`."""
        return True

    def hears(self, target: Target, ident: str) -> bool:
        """See `Bus.hears`."""
        return True

    def follow(self, room: str) -> None:
        """See `Bus.follow`."""

    def unfollow(self, room: str) -> None:
        """See `Bus.unfollow`."""

    def shard_of(self, room: str) -> None:
        """See `Bus.shard_of`."""

    def strangers(self) -> tuple[str, ...]:
        """See `Bus.strangers`."""
        return ()

    def statistics(self) -> BusStatistics:
        """See `Bus.statistics`."""
        return BusStatistics()

    async def close(self) -> None:
        """See `Bus.close`."""
        self._receiver = None
