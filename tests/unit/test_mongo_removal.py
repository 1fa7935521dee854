"""Z04 to Z06: a removal from a group races with everything else, at each step of the way.

The real gateway on the real directory for MongoDB; in between, time passes a millisecond at a time.
"""

from __future__ import annotations

import asyncio

import pytest

from falcon_fast import envelope
from falcon_fast.bus import Target
from falcon_fast.directory.mongo import MongoDirectory
from falcon_fast.errors import DirectoryUnavailable

from ..support.gateway import Client, Node
from ..support.loop import FakeTimeLoop, turns
from ..support.mongo_store import FakeStore, group_id

loop_factory = FakeTimeLoop

FLEET = group_id(1)
ROOM = f"group:{FLEET}"
NOTICED_WITHIN = 1.0
LOST_WITHIN = 60.0
STEPS = range(0, 120, 1)
"""Milliseconds after which the removal comes; an admission takes seventy."""


class Party:
    """A node whose users are in a database, and what is said in the room."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeTimeLoop)
        self.store = FakeStore()
        self.store.group(1)
        for user, character in (("ann", 7), ("bob", 8)):
            self.store.user(user, character)
            self.store.join(1, character)
        self.directory = MongoDirectory(self.store, clock=loop.clock)
        self.node = Node(directory=self.directory, ping_interval=0.0)

    async def start(self) -> None:
        await self.directory.start()
        await self.node.gateway.start()
        # The first compare is over.
        await asyncio.sleep(0.5)

    async def end(self) -> None:
        await self.node.gateway.close()
        await self.directory.close()

    def say(self, text: str) -> None:
        """Publish to the room, as another member would."""
        frame = envelope.encode(
            "message", now=self.node.clock.time(), room=ROOM, data={"text": text}
        )
        self.node.gateway.publish(Target.ROOM, ROOM, frame)

    def confirm_removal(self) -> asyncio.Task[None]:
        """Act on the event of a removal."""
        return asyncio.create_task(
            self.node.gateway.memberships.changed("ann", 7, FLEET, "Fleet", joined=False)
        )


def heard(client: Client) -> list[str]:
    return [one["data"]["text"] for one in client.take() if one["type"] == "message"]


@pytest.fixture(autouse=True)
def listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are handed to the gateway behind their handshake; nothing listens."""

    class Server:
        def close(self) -> None:
            pass

    async def listen(*_: object, **__: object) -> Server:
        return Server()

    monkeypatch.setattr("falcon_fast.gateway.listen", listen)


async def test_z04_after_a_confirmed_removal_nothing_is_heard_at_any_step() -> None:
    for step in STEPS:
        party = Party()
        await party.start()
        ann, other = party.node.dial("ann"), party.node.dial("ann")
        bob = party.node.dial("bob", character_id=8)
        await asyncio.sleep(step / 1000)
        party.say("before")
        party.store.leave(1, 7)
        removal = party.confirm_removal()
        # Published while the removal is under way: heard by both of hers, or by none.
        party.say("meanwhile")
        await removal
        party.say("after")
        await asyncio.sleep(0.001)
        party.say("a moment after")
        await asyncio.sleep(NOTICED_WITHIN)
        party.say("long after")
        await turns()
        mine, too, his = heard(ann), heard(other), heard(bob)
        assert mine == too, step
        assert not {"after", "a moment after", "long after"} & set(mine), (step, mine)
        assert {"a moment after", "long after"} <= set(his), (step, his)
        assert ann.rooms == other.rooms == ["user:ann"], step
        await party.end()


async def test_z04_a_removal_that_only_the_stream_tells_takes_a_second_at_most() -> None:
    for step in STEPS:
        party = Party()
        await party.start()
        ann = party.node.dial("ann")
        await asyncio.sleep(step / 1000)
        party.store.leave(1, 7)
        await asyncio.sleep(NOTICED_WITHIN)
        ann.take()
        party.say("after")
        await turns()
        assert heard(ann) == [], step
        assert ann.rooms == ["user:ann"], step
        await party.end()


@pytest.mark.parametrize("step", [0, 11, 25, 45, 500])
async def test_z04_m05_a_removal_of_which_nobody_tells_takes_a_minute_at_most(step: int) -> None:
    party = Party()
    await party.start()
    ann = party.node.dial("ann")
    await asyncio.sleep(step / 1000)
    party.store.is_lossy = True
    party.store.leave(1, 7)
    await asyncio.sleep(LOST_WITHIN)
    ann.take()
    party.say("after")
    await turns()
    assert heard(ann) == []
    await party.end()


async def test_z05_what_was_not_sent_yet_stays_with_who_was_a_member() -> None:
    """Messages before the removal are the member's, whenever they leave the queue; none after."""
    party = Party()
    await party.start()
    ann = party.node.dial("ann")
    await asyncio.sleep(0.5)
    ann.take()
    party.say("one")
    party.say("two")
    party.store.leave(1, 7)
    removal = party.confirm_removal()
    await turns()
    party.say("three")
    await removal
    party.say("four")
    await turns()
    assert heard(ann) == ["one", "two"]
    await party.end()


async def test_z06_out_and_in_again_ends_inside() -> None:
    for step in range(0, 100, 5):
        party = Party()
        await party.start()
        ann = party.node.dial("ann")
        await asyncio.sleep(0.5)
        party.store.leave(1, 7)
        removal = party.confirm_removal()
        await asyncio.sleep(step / 1000)
        party.store.join(1, 7)
        await removal
        await asyncio.sleep(NOTICED_WITHIN)
        ann.take()
        party.say("welcome back")
        await turns()
        assert heard(ann) == ["welcome back"], step
        await party.end()


async def test_m01_down_at_connect_down_in_between_and_back() -> None:
    party = Party()
    await party.start()
    bob = party.node.dial("bob", character_id=8)
    await asyncio.sleep(0.5)
    bob.take()
    party.store.error = DirectoryUnavailable("MongoDB cannot be reached")
    party.store.is_lossy = True
    ann = party.node.dial("ann")
    await asyncio.sleep(10.0)
    told = [one["data"].get("action") for one in ann.take() if one["type"] == "room_update"]
    assert told == ["rooms_pending"]
    assert ann.rooms == ["user:ann"]
    assert bob.rooms == ["user:bob", ROOM]
    health = [party.node.gateway.health]
    # An event that cannot be looked up: who was removed is out all the same.
    party.store.leave(1, 8)
    with pytest.raises(DirectoryUnavailable):
        await party.node.gateway.memberships.changed("bob", 8, FLEET, "Fleet", joined=False)
    assert bob.rooms == ["user:bob"]
    party.store.error = None
    await asyncio.sleep(30.0)
    joined = [one["data"] for one in ann.take() if one["data"].get("action") == "joined"]
    assert joined == [{"action": "joined", "rooms": ["user:ann", ROOM]}]
    assert bob.rooms == ["user:bob"]
    assert [*health, party.node.gateway.health] == ["degraded", "healthy"]
    assert bob.is_open
    await party.end()


async def test_a_name_that_changes_is_shown() -> None:
    party = Party()
    await party.start()
    ann = party.node.dial("ann")
    await asyncio.sleep(0.5)
    party.store.user("ann", 7, character_name="Ann the Second")
    await asyncio.sleep(NOTICED_WITHIN)
    assert ann.session.identity.character_name == "Ann the Second"
    await party.end()
