"""The embedded bus: publishing is delivering, between start and close."""

from __future__ import annotations

from falcon_fast.bus import Bus, BusStatistics, Target
from falcon_fast.bus.memory import MemoryBus

from ..support.bus import FakeReceiver


class Receiver(FakeReceiver):
    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[Target, str, bytes]] = []

    def deliver(self, target: Target, ident: str, frame: bytes) -> int:
        self.got.append((target, ident, frame))
        return len(self.got)


async def test_publishing_delivers_at_once_and_returns_the_receivers() -> None:
    bus: Bus = MemoryBus()
    receiver = Receiver()
    await bus.start(receiver)
    assert bus.publish(Target.ROOM, "group:a", b"1") == 1
    assert bus.publish(Target.ALL, "", b"2") == 2
    assert receiver.got == [(Target.ROOM, "group:a", b"1"), (Target.ALL, "", b"2")]


async def test_nothing_is_delivered_before_start_and_after_close() -> None:
    bus = MemoryBus()
    receiver = Receiver()
    assert bus.publish(Target.USER, "ann", b"1") == 0
    await bus.start(receiver)
    await bus.close()
    await bus.close()
    assert bus.publish(Target.CONNECTION, "c-1", b"2") == 0
    assert receiver.got == []


async def test_publishing_from_inside_a_delivery() -> None:
    bus = MemoryBus()
    order: list[bytes] = []

    class Echoing(FakeReceiver):
        def deliver(self, target: Target, ident: str, frame: bytes) -> int:
            order.append(frame)
            if frame == b"1":
                bus.publish(target, ident, b"2")
            return 1

    await bus.start(Echoing())
    assert bus.publish(Target.ROOM, "group:a", b"1") == 1
    assert order == [b"1", b"2"]


async def test_there_is_nobody_else() -> None:
    bus: Bus = MemoryBus()
    await bus.start(FakeReceiver())
    assert bus.is_available
    bus.tell(b"{}")
    assert bus.reaches_all(Target.ROOM)
    assert bus.hears(Target.ROOM, "group:a")
    assert bus.follow("group:a") is None
    bus.unfollow("group:a")
    assert bus.shard_of("group:a") is None
    assert bus.strangers() == ()
    assert bus.statistics() == BusStatistics()
