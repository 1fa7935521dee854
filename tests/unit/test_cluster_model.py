"""Z13: three nodes and a Redis that drops, doubles and delays; nobody is deceived by any of it.

Hypothesis lets users come, go, speak, be put into groups, be removed from them and be banned on
three real gateways with real buses, while links break, nodes die, and single messages get lost,
come twice or come late. The accounts of it all (see `support.ledger`) must hold: no message outside
of a membership, none twice, none out of order, and no loss that is not announced. Time is the
model's: half a unit for what is not waited for, ten for what is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Final, TypeVar
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis.exceptions import ConnectionError

from falcon_fast import gateway as module
from falcon_fast.bus.redis import RedisBus
from falcon_fast.bus.redis_address import RedisAddress
from falcon_fast.identity import new_id

from ..support import FUZZ_EXAMPLES
from ..support.directory import group
from ..support.fake_redis import Connection, FakeRedis
from ..support.gateway import Client, Node
from ..support.ledger import Ledger, audit
from ..support.loop import FakeTimeLoop, turns
from ..support.nodes import LATER

SETTLED: Final = 3 * LATER
"""Turns of the loop after which nothing is under way any more, across two links."""

GROUPS = [group(number, f"Group {number}") for number in (1, 2)]
ROOMS = [f"group:{each.id}" for each in GROUPS]
USERS = ("ann", "bob", "cat")

ResultT = TypeVar("ResultT")


class Unreliable(FakeRedis):
    """A Redis of which not everything arrives as it was sent.

    Attributes:
        fates: of the next deliveries, in order: `drop`, `twice` or `late`; then all is well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fates: list[str] = []
        self._late: dict[Connection, list[list[bytes]]] = {}

    def publish(self, channel: bytes, payload: bytes, *, kind: bytes = b"message") -> int:
        reached = 0
        for connection in self.connections:
            if channel not in connection.channels:
                continue
            reached += 1
            message = [kind, channel, payload]
            fate = self.fates.pop(0) if self.fates else "well"
            late = self._late.pop(connection, [])
            if fate == "late":
                self._late[connection] = [*late, message]
                continue
            for each in {"drop": [], "well": [message], "twice": [message, message]}[fate]:
                connection.send(each)
            for each in late:
                connection.send(each)
        return reached

    def let_go(self) -> None:
        """Deliver what is late, if there is still somebody to deliver it to."""
        self.fates.clear()
        late, self._late = self._late, {}
        for connection, messages in late.items():
            for message in messages:
                connection.send(message)


class Member:
    """A client and what the model knows of it."""

    def __init__(self, name: str, user: str, node: int, client: Client) -> None:
        self.name = name
        self.user = user
        self.node = node
        self.client = client
        self.said = 0


class _Listener:
    def close(self) -> None:
        pass


async def _listen(door: object, **_: object) -> _Listener:
    return _Listener()


class Cluster(RuleBasedStateMachine):
    """Three nodes, three users, two rooms."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FakeTimeLoop()
        self.redis = Unreliable()
        self.links: dict[int, list[Connection]] = {0: [], 1: [], 2: []}
        self.dead: set[int] = set()
        self.nodes: list[Node] = []
        self.members: list[Member] = []
        self.groups: dict[str, set[int]] = {user: {0, 1} for user in USERS}
        self.banned: set[str] = set()
        self.ledger = Ledger()
        self.now = 0.0
        self.names = 0

    def run_in_loop(self, work: Coroutine[object, object, ResultT]) -> ResultT:
        return self.loop.run_until_complete(work)

    async def connect_to_redis(self, number: int, node: tuple[str, int] | None) -> Connection:
        if number in self.dead:
            raise ConnectionError("it is dead")
        connection = await self.redis.connect(node)
        self.links[number].append(connection)
        return connection

    @initialize(sharded=st.booleans())
    def start(self, sharded: bool) -> None:
        async def work() -> None:
            for number in range(3):
                node_id = new_id()
                bus = RedisBus(
                    RedisAddress("redis://localhost"),
                    node_id=node_id,
                    clock=self.loop.clock,
                    secrets=[b"s" * 32],
                    routing="sharded" if sharded else "compatible",
                    connect=partial(self.connect_to_redis, number),
                )
                node = Node(bus=bus, node_id=node_id)
                self.nodes.append(node)
                await node.gateway.start()
            await asyncio.sleep(10.0)

        with mock.patch.object(module, "listen", _listen):
            self.run_in_loop(work())
        for place, user in enumerate(USERS * 2):
            self.come(user, place % 3 if place < 3 else 0, waits=True)

    # --------------------------------------------------------------------------- what happens

    async def settle(self) -> None:
        await turns(SETTLED)
        self.read()
        self.now += 10.0

    def read(self) -> None:
        """Write down what clients have heard by now."""
        for member in list(self.members):
            for message in member.client.take():
                self.heard(member, message)
            if not member.client.is_open:
                self.ledger.end(member.name, self.now)
                self.members.remove(member)

    def heard(self, member: Member, message: dict[str, object]) -> None:
        kind, data = message["type"], message.get("data") or {}
        assert isinstance(data, dict)
        if kind == "message":
            room = str(message["room"])
            self.ledger.hear(member.name, data["by"], room, data["n"], self.now)
        elif kind == "room_update" and data["action"] == "joined":
            for room in data["rooms"]:
                self.ledger.join(member.name, room, self.now)
        elif kind == "room_update" and data["action"] == "resync":
            named = message.get("room")
            assert named is None or isinstance(named, str)
            self.ledger.tell(member.name, named, self.now)
        elif kind == "group_membership_change":
            room = f"group:{data['group_id']}"
            stays = self.ledger.stays[member.name, room]
            is_in = bool(stays) and stays[-1].end == float("inf")
            if data["joined"] and not is_in:
                self.ledger.join(member.name, room, self.now)
            elif not data["joined"] and is_in:
                self.ledger.leave(member.name, room, self.now)
        elif kind == "error" and (ident := str(message.get("id", ""))):
            sender, room, number = ident.split("/")
            self.ledger.refuse(sender, room, int(number))

    def alive(self) -> list[int]:
        return [number for number in range(3) if number not in self.dead]

    @rule(user=st.sampled_from(USERS), place=st.integers(0, 2), waits=st.booleans())
    def come(self, user: str, place: int, waits: bool) -> None:
        if len(self.members) > 8 or user in self.banned:
            return
        number = self.alive()[place % len(self.alive())]
        self.names += 1
        groups = [GROUPS[index] for index in sorted(self.groups[user])]

        async def work() -> None:
            client = self.nodes[number].dial(user, *groups)
            self.members.append(Member(f"{user}-{self.names}", user, number, client))
            await turns(SETTLED if waits else 3)
            if waits:
                await self.settle()

        self.run_in_loop(work())

    @precondition(lambda self: self.members)
    @rule(which=st.integers(0, 99))
    def go(self, which: int) -> None:
        member = self.members.pop(which % len(self.members))
        self.ledger.quit(member.name, self.now)

        async def work() -> None:
            member.client.vanish()
            await self.settle()

        self.run_in_loop(work())

    @rule(waits=st.booleans())
    def everybody_speaks(self, waits: bool) -> None:
        for which in range(len(self.members)):
            self.say(which, which % 2, 2, waits=False)
        if waits:
            self.run_in_loop(self.settle())

    @precondition(lambda self: self.members)
    @rule(
        which=st.integers(0, 99),
        room=st.integers(0, 1),
        times=st.integers(1, 3),
        waits=st.booleans(),
    )
    def say(self, which: int, room: int, times: int, waits: bool) -> None:
        self.read()
        if not self.members:
            return
        member, name = self.members[which % len(self.members)], ROOMS[room]
        if room not in self.groups[member.user]:
            # He must not: nobody may hear it, which the ledger checks as something unsaid.
            number = 1_000_000
        elif (member.name, name) in self.ledger.stays:
            number = member.said
            member.said += times
        else:
            return  # he has not been told yet that he may

        async def work() -> None:
            for offset in range(times):
                if number < 1_000_000:
                    self.ledger.say(member.name, name, number + offset, self.now)
                member.client.send(
                    {
                        "type": "message",
                        "id": f"{member.name}/{name}/{number + offset}",
                        "room": name,
                        "data": {"by": member.name, "n": number + offset},
                    }
                )
            await turns(2)
            self.read()
            self.now += 0.5
            if waits:
                await self.settle()

        self.run_in_loop(work())

    @rule(user=st.sampled_from(USERS), index=st.integers(0, 1))
    def change_membership(self, user: str, index: int) -> None:
        """Put a user into a group or take him out; every node is told at once."""

        async def work() -> None:
            self.groups[user] ^= {index}
            found = frozenset(GROUPS[each] for each in self.groups[user])
            for number in self.alive():
                directory = self.nodes[number].directory
                directory.put(user, *found)
                directory.tell(user)
            # What was under way when he was removed is heard before, or never.
            self.read()
            self.now += 0.5
            await self.settle()

        self.run_in_loop(work())

    @precondition(lambda self: not self.banned)
    @rule(user=st.sampled_from(USERS))
    def ban(self, user: str) -> None:
        async def work() -> None:
            self.banned.add(user)
            for number in self.alive():
                self.nodes[number].directory.ban(user)
            await self.settle()
            assert not [member for member in self.members if member.user == user]

        self.run_in_loop(work())

    @rule(fates=st.lists(st.sampled_from(["drop", "twice", "late", "well"]), max_size=6))
    def be_unreliable(self, fates: list[str]) -> None:
        self.redis.fates += fates

    @rule(place=st.integers(0, 2), waits=st.booleans())
    def cut_links(self, place: int, waits: bool) -> None:
        async def work() -> None:
            for connection in self.links[place]:
                connection.cut(ConnectionResetError())
            self.links[place].clear()
            if waits:
                await asyncio.sleep(1.0)
                await self.settle()

        self.run_in_loop(work())

    @precondition(lambda self: not self.dead)
    @rule(place=st.integers(0, 2))
    def kill(self, place: int) -> None:
        """A node dies without a word, and its clients' connections with it."""

        async def work() -> None:
            self.read()
            self.dead.add(place)
            for connection in self.links[place]:
                connection.cut(ConnectionResetError())
            for member in [member for member in self.members if member.node == place]:
                self.members.remove(member)
                self.ledger.end(member.name, self.now)
                # Nobody can tell any more what was its last word.
                for said in self.ledger.said:
                    if said.sender == member.name:
                        self.ledger.refuse(said.sender, said.room, said.number)
            await self.settle()

        self.run_in_loop(work())

    @rule(seconds=st.sampled_from([1.0, 7.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        async def work() -> None:
            await asyncio.sleep(seconds)
            await self.settle()

        self.run_in_loop(work())

    # ------------------------------------------------------------------------ what must hold

    @invariant()
    def nobody_hears_what_is_not_his(self) -> None:
        found = audit(self.ledger)
        bad = ("duplicate", "disorder", "outside", "unsaid", "late")
        assert not any(found.counts[kind] for kind in bad), found.faults

    def teardown(self) -> None:
        if not self.nodes:
            self.loop.close()
            return

        async def end() -> None:
            self.redis.let_go()
            # Links are made again, every node has told twice how far it is, clients were told.
            await asyncio.sleep(20.0)
            self.ledger.repair(self.now + 20.0)
            await self.settle()
            self.now += 20.0
            self.read()
            for node in self.nodes:
                await node.gateway.close()

        try:
            self.run_in_loop(end())
            audit(self.ledger).require()
        finally:
            self.loop.close()


Cluster.TestCase.settings = settings(
    max_examples=FUZZ_EXAMPLES or 15, stateful_step_count=40, deadline=None
)
TestZ13 = Cluster.TestCase
