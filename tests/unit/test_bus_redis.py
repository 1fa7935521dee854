"""The Redis bus over a Redis without sockets, in a time that passes at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import orjson
import pytest

from falcon_fast.bus import Loss, Target
from falcon_fast.bus import redis_publisher as publisher_module
from falcon_fast.bus.redis import ANNOUNCE_INTERVAL, STRANGER_KEPT, RedisBus
from falcon_fast.bus.redis_address import RedisAddress, ShardOwners
from falcon_fast.bus.redis_wire import (
    CHANNELS,
    NODES,
    Seal,
    Writer,
    node_channel,
    pack_members,
    shard_channel,
)
from falcon_fast.bus.shards import LINGER, SHARDS, shard_of
from falcon_fast.errors import BusUnavailable, SettingsError

from ..support.bus import FakeReceiver
from ..support.fake_redis import FakeRedis
from ..support.loop import FakeTimeLoop, turns

loop_factory = FakeTimeLoop

ROOM = "group:" + "0" * 24
SHARD = shard_of(ROOM)
OTHER_ROOM = "group:" + "0" * 23 + "1"
SECRET = b"s" * 32
MESSAGES, ROOMS, USERS, SYSTEM = CHANNELS
STAMP = b"2026-01-02T03:04:05.123456Z"
LATER = 40
EVERYTHING = Loss(None, 0, frozenset(Target))

Routing = Literal["compatible", "sharded"]


def frame(number: int, room: str = ROOM) -> bytes:
    return orjson.dumps({"type": "message", "room": room, "data": {"n": number}})


class Party(FakeReceiver):
    """A node's bus and what it was told."""

    def __init__(
        self,
        redis: FakeRedis,
        name: str,
        *,
        routing: Routing = "compatible",
        address: RedisAddress | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(ROOM)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeTimeLoop)
        self.id = name
        self.clock = loop.clock
        self.bus = RedisBus(
            address or RedisAddress("redis://localhost"),
            node_id=name,
            clock=loop.clock,
            routing=routing,
            connect=redis.connect,
            **{"secrets": [SECRET], **kwargs},
        )

    def say(self, number: int, room: str = ROOM) -> None:
        self.bus.publish(Target.ROOM, room, frame(number, room))

    @property
    def numbers(self) -> list[int]:
        return [orjson.loads(content)["data"]["n"] for _, _, content in self.delivered]

    def missed(self) -> list[tuple[str | None, int]]:
        found = [(loss.node_id, loss.number) for loss in self.losses]
        self.losses.clear()
        return found


Join = Callable[..., Any]


@pytest.fixture
def redis() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
async def join(redis: FakeRedis) -> AsyncIterator[Join]:
    async with contextlib.AsyncExitStack() as stack:

        async def join(name: str, **kwargs: Any) -> Party:  # noqa: ANN401
            one = Party(redis, name, **kwargs)
            stack.push_async_callback(one.bus.close)
            await one.bus.start(one)
            return one

        yield join
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def outside(name: str, epoch: int = 1) -> tuple[Writer, Seal]:
    return Writer(name, epoch), Seal([SECRET])


# --- publishing ----------------------------------------------------------------------------------


async def test_what_is_published_in_one_turn_leaves_in_one_write(
    redis: FakeRedis, join: Join
) -> None:
    ann, bob = await join("ann"), await join("bob")
    speaker = redis.speakers[0]
    before = speaker.writes, len(speaker.commands)
    for number in range(1000):
        ann.say(number)
    assert ann.numbers == list(range(1000)), "here at once"
    await turns(LATER)
    assert (speaker.writes - before[0], len(speaker.commands) - before[1]) == (1, 1000)
    assert bob.numbers == list(range(1000))
    assert bob.missed() == ann.missed() == []
    told = ann.bus.statistics()
    assert (told.published, told.unpublished, told.received) == (1000, 0, 0)
    told = bob.bus.statistics()
    assert (told.published, told.received, told.ignored, told.gaps) == (0, 1000, 0, 0)
    assert told.octets_in > 100_000 > told.octets_out > 0


async def test_channels_and_envelopes_are_the_originals(redis: FakeRedis, join: Join) -> None:
    ann = await join("ann")
    ann.bus.publish(Target.ROOM, ROOM, frame(1), members=3)
    ann.bus.publish(Target.USER, "bob", b'{"type":"presence","data":{"user_id":"x"}}', receipt="r")
    ann.bus.publish(Target.CONNECTION, "c-1", b'{"type":"message","to":"c-1"}')
    ann.bus.publish(Target.ALL, "", b'{"type":"backend_status"}')
    await turns(LATER)
    epoch = ann.bus._epoch
    sent = [
        (channel, orjson.loads(payload))
        for name, channel, payload in redis.speakers[0].commands[-4:]
        if name == b"PUBLISH"
    ]
    ours = {"server_id": "ann", "seq": 1, "epoch": epoch, "v": 1}
    stamp = sent[0][1]["timestamp"]
    assert sent == [
        (
            ROOMS,
            {
                **ours,
                "room": ROOM,
                "members": pack_members(3, None),
                "message": orjson.loads(frame(1)),
                "timestamp": stamp,
            },
        ),
        (
            USERS,
            {
                **ours,
                "user": "bob",
                "was": "x",
                "receipt": "r",
                "message": {"type": "presence", "data": {"user_id": "bob"}},
                "timestamp": stamp,
            },
        ),
        (
            MESSAGES,
            {
                **ours,
                "to": "c-1",
                "message": {"type": "message", "to": "c-1"},
                "timestamp": stamp,
            },
        ),
        (SYSTEM, {**ours, "message": {"type": "backend_status"}, "timestamp": stamp}),
    ]


async def test_what_comes_of_a_local_delivery_stands_behind_it(
    redis: FakeRedis, join: Join
) -> None:
    bob = await join("bob")

    class Echo(Party):
        def deliver(self, target: Target, ident: str, content: bytes) -> int:
            if content == frame(1):
                self.say(2)
            return super().deliver(target, ident, content)

    ann = Echo(redis, "ann")
    await ann.bus.start(ann)
    ann.say(1)
    await turns(LATER)
    assert bob.numbers == [1, 2]
    await ann.bus.close()


async def test_room_changes_and_receipts(join: Join) -> None:
    ann, bob = await join("ann"), await join("bob")
    for ident in (ROOM, OTHER_ROOM):
        ann.bus.publish(Target.ROOM, ident, frame(1, ident), members=5, receipt="r-" + ident[-1])
    ann.bus.publish(Target.CONNECTION, "c-1", b'{"type":"message","to":"c-1"}', receipt="r-2")
    await turns(LATER)
    assert bob.changes == [("ann", ROOM, 5, frame(1))]
    assert bob.delivered == [(Target.CONNECTION, "c-1", b'{"type":"message","to":"c-1"}')]
    assert bob.confirmed == [("ann", "r-0", 0), ("ann", "r-1", 0), ("ann", "r-2", 1)]
    assert bob.bus.statistics().ignored == 1


async def test_nobody_elsewhere_could_have_a_strange_id(redis: FakeRedis, join: Join) -> None:
    ann = await join("ann")
    await turns(LATER)
    before = len(redis.speakers[0].commands)
    assert ann.bus.publish(Target.CONNECTION, 'a"b', b'{"type":"message"}') == 1
    ann.bus.tell(b"{}", "a b")
    await turns(LATER)
    assert len(redis.speakers[0].commands) == before


async def test_limits_of_what_is_sent(join: Join) -> None:
    ann = await join("ann", max_message_bytes=2_000_000)
    large = b'{"type":"message","data":{"x":"' + b"x" * 1_990_000 + b'"}}'
    assert ann.bus.publish(Target.ALL, "", large) == 1
    with pytest.raises(BusUnavailable):
        ann.bus.publish(Target.ALL, "", large.replace(b"xxx", b"xxxx"))
    with pytest.raises(ValueError, match="1048576"):
        ann.bus.tell(b" " * 1_048_577)


async def test_too_much_waits_for_the_socket(
    redis: FakeRedis, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "MAX_WAITING", 1000)
    ann = await join("ann")
    redis.deaf = True
    published = 0
    while ann.bus._main.publisher.is_up:
        ann.say(published)
        published += 1
    with pytest.raises(BusUnavailable):
        ann.say(-1)
    assert 1 < published < 20
    await turns(LATER)
    with pytest.raises(BusUnavailable):
        ann.say(-1)
    told = ann.bus.statistics()
    assert (told.published, told.unpublished) == (published, 2)


async def test_before_the_start_and_after_the_end(redis: FakeRedis, join: Join) -> None:
    early = Party(redis, "early")
    assert early.bus.publish(Target.ROOM, ROOM, frame(1)) == 0
    with pytest.raises(BusUnavailable):
        early.bus.tell(b"{}")
    await early.bus.close()
    ann, bob = await join("ann"), await join("bob")
    ann.say(1)
    await ann.bus.close()
    await ann.bus.close()
    assert ann.bus.publish(Target.ROOM, ROOM, frame(2)) == 0
    bob.say(3)
    await turns(LATER)
    assert bob.numbers == [1, 3], "what was published before the end has left"
    assert ann.numbers == [1]
    assert not ann.bus.is_available


async def test_the_end_waits_a_second_at_most(redis: FakeRedis, join: Join) -> None:
    ann = await join("ann")
    redis.silent = True
    ann.say(1)
    began = ann.clock.monotonic()
    await ann.bus.close()
    assert ann.clock.monotonic() - began == pytest.approx(1.0)


# --- losses --------------------------------------------------------------------------------------


async def test_gaps_and_duplicates(redis: FakeRedis, join: Join) -> None:
    bob = await join("bob")
    write = Writer("ann", bob.bus._epoch + 1)
    for seq in (1, 2, 2, 5, 4, 6):
        payload = write.message(seq, Target.ROOM, ROOM, frame(seq), timestamp=STAMP)
        redis.publish(ROOMS, payload)
    redis.publish(SYSTEM, write.message(3, Target.ALL, "", frame(9), timestamp=STAMP))
    await turns(LATER)
    assert bob.numbers == [1, 2, 5, 6, 9]
    assert bob.losses == [
        Loss("ann", 2, frozenset({Target.ROOM})),
        Loss("ann", 2, frozenset({Target.ALL})),
    ]
    told = bob.bus.statistics()
    assert (told.duplicates, told.lost, told.gaps) == (2, 4, 2)


async def test_what_could_not_be_sent_is_told_to_the_others(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann"), await join("bob")
    redis.refuses = True
    redis.kill()
    await turns(LATER)
    for number in range(3):
        with pytest.raises(BusUnavailable, match="not told"):
            ann.say(number)
    assert ann.numbers == [0, 1, 2]
    assert ann.bus.statistics().unpublished == 3
    await asyncio.sleep(20)
    redis.refuses = False
    await asyncio.sleep(5)
    assert bob.missed() == [("ann", 3)]
    assert ann.missed() == []
    assert ann.availability == bob.availability == [True, False, True]
    ann.say(3)
    await turns(LATER)
    assert bob.numbers == [3]
    assert bob.bus.statistics().reconnects == 2


async def test_an_outage_in_which_nothing_was_said_is_told_to_nobody(
    redis: FakeRedis, join: Join
) -> None:
    ann, bob, carl = await join("ann"), await join("bob"), await join("carl")
    ann.say(1)
    await asyncio.sleep(1)
    redis.refuses = True
    redis.kill()
    await asyncio.sleep(20)
    redis.refuses = False
    await asyncio.sleep(10)
    for one in (ann, bob, carl):
        assert one.missed() == []
        assert one.bus.is_available


async def test_who_died_meanwhile_may_have_said_anything(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann"), await join("bob")
    await asyncio.sleep(1)
    redis.refuses = True
    redis.kill()
    await asyncio.sleep(1)
    await ann.bus.close()
    await asyncio.sleep(9)
    redis.refuses = False
    await asyncio.sleep(5)
    assert bob.losses == [EVERYTHING]


async def test_nodes_of_the_original_number_nothing(redis: FakeRedis, join: Join) -> None:
    bob = await join("bob")
    said = {"server_id": "old", "message": orjson.loads(frame(1)), "timestamp": "2026-01-02T03:04Z"}
    redis.publish(ROOMS, orjson.dumps(said))
    said["message"] = {"type": "message", "room": OTHER_ROOM}
    redis.publish(ROOMS, orjson.dumps(said))
    redis.publish(ROOMS, orjson.dumps({**said, "server_id": "bob"}))
    await turns(LATER)
    assert bob.numbers == [1]
    assert bob.bus.strangers() == ("old",)
    assert (bob.bus.statistics().received, bob.bus.statistics().ignored) == (2, 1)
    redis.kill(*redis.listeners)
    await asyncio.sleep(1)
    assert bob.losses == [EVERYTHING]
    bob.losses.clear()
    await asyncio.sleep(STRANGER_KEPT + ANNOUNCE_INTERVAL)
    assert bob.bus.strangers() == ()
    redis.kill(*redis.listeners)
    await asyncio.sleep(5)
    assert bob.losses == []


async def test_strangers_have_an_end(
    redis: FakeRedis, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("falcon_fast.bus.redis.MAX_STRANGERS", 2)
    bob = await join("bob")
    for number in range(5):
        said = {"server_id": f"n{number}", "message": orjson.loads(frame(number))}
        redis.publish(ROOMS, orjson.dumps(said))
    await turns(LATER)
    assert bob.bus.strangers() == ("n0", "n1")
    assert len(bob.numbers) == 5


async def test_a_foreign_order_of_keys_is_numbered_all_the_same(
    redis: FakeRedis, join: Join
) -> None:
    bob = await join("bob")
    write = Writer("ann", bob.bus._epoch + 1)
    for seq, room in ((1, ROOM), (3, ROOM), (3, ROOM), (4, OTHER_ROOM)):
        payload = write.message(
            seq, Target.ROOM, room, frame(seq, room), timestamp=STAMP, receipt=f"r-{seq}"
        )
        redis.publish(ROOMS, orjson.dumps(dict(reversed(orjson.loads(payload).items()))))
    await turns(LATER)
    assert bob.numbers == [1, 3]
    assert bob.missed() == [("ann", 1)]
    assert bob.bus.statistics().duplicates == 1
    assert bob.confirmed == [("ann", "r-1", 1), ("ann", "r-3", 1), ("ann", "r-4", 0)]


async def test_a_lost_end_is_found_by_the_next_announcement(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann"), await join("bob")
    ann.say(1)
    await turns(LATER)
    redis.errors[b"PUBLISH"] = "ERR something"
    ann.say(2)
    await turns(LATER)
    del redis.errors[b"PUBLISH"]
    assert ann.bus.statistics().unpublished == 1
    await asyncio.sleep(ANNOUNCE_INTERVAL + 1)
    assert bob.missed() == [("ann", 1)]


# --- what is refused -----------------------------------------------------------------------------


async def test_x10_nothing_that_comes_does_harm(
    redis: FakeRedis, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    bob = await join("bob")
    await turns(LATER)
    write, seal = outside("ann", bob.bus._epoch + 1)
    good = write.message(1, Target.ROOM, ROOM, frame(1), timestamp=STAMP)
    noise = [
        b"",
        b"\x80\x04\x95.",
        b"nonsense",
        b'{"server_id":"x","message":{"type":"super_admin"}}',
        good.replace(b'"v":1', b'"v":2'),
        good[:-1],
        b"x" * 3_000_000,
    ]
    refused = 0
    for channel in (MESSAGES, USERS, SYSTEM):
        for payload in (*noise, good):
            redis.publish(channel, payload)
            refused += 1
    for payload in (*noise, good.replace(b'"room":"group', b'"roof":"group')):
        redis.publish(ROOMS, payload)
        refused += 1
    redis.publish(ROOMS, write.message(1, Target.ROOM, ROOM, b"{}}", timestamp=STAMP))
    long = b'{"type":"message","room":"%b","data":{"x":"%b"}}' % (ROOM.encode(), b"x" * 1_100_000)
    redis.publish(ROOMS, write.message(2, Target.ROOM, ROOM, long, timestamp=STAMP))
    refused += 2
    word = write.word(1, "tell", b'{"op":"kick"}', timestamp=STAMP)
    elsewhere = seal.close(node_channel("carl"), word)
    for channel in (NODES, node_channel("bob")):
        for payload in (*noise, word, elsewhere, Seal([b"x" * 32]).close(channel, word)):
            redis.publish(channel, payload)
            refused += 1
    odd = write.word(2, "positions", b"[]", timestamp=STAMP)
    redis.publish(NODES, seal.close(NODES, odd))
    redis.publish(NODES, seal.close(NODES, odd))
    redis.publish(NODES, seal.close(NODES, write.word(3, "later", b"[]", timestamp=STAMP)))
    refused += 2
    await turns(LATER)
    assert bob.delivered == bob.told == bob.losses == []
    assert bob.bus.is_available
    assert bob.bus.statistics().refused == refused
    lines = [r for r in caplog.records if "no message" in r.message]
    assert len(lines) == 1
    await asyncio.sleep(2)
    redis.publish(ROOMS, b"again")
    await turns(LATER)
    lines = [r for r in caplog.records if "no message" in r.message]
    assert [vars(line)["number"] for line in lines] == [1, refused]


async def test_a_fault_of_the_receiver_does_not_end_the_link(
    redis: FakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy(Party):
        def deliver(self, target: Target, ident: str, content: bytes) -> int:
            if content == frame(1):
                raise RuntimeError("a fault")
            return super().deliver(target, ident, content)

    bob = Clumsy(redis, "bob")
    await bob.bus.start(bob)
    write = Writer("ann", bob.bus._epoch + 1)
    for seq in (1, 2):
        redis.publish(ROOMS, write.message(seq, Target.ROOM, ROOM, frame(seq), timestamp=STAMP))
    await turns(LATER)
    assert bob.numbers == [2]
    assert "could not be handled" in caplog.text
    await bob.bus.close()


async def test_words_go_to_one_or_to_all_and_never_twice(redis: FakeRedis, join: Join) -> None:
    ann, bob, carl = await join("ann"), await join("bob"), await join("carl")
    ann.bus.tell(b"1")
    ann.bus.tell(b"2", "bob")
    await turns(LATER)
    assert bob.told == [("ann", b"1"), ("ann", b"2")]
    assert carl.told == [("ann", b"1")]
    assert ann.told == []
    again = [(c[1], c[2]) for c in redis.speakers[0].commands if b'"word":"tell"' in c[-1]]
    for channel, payload in again:
        redis.publish(channel, payload)
    await turns(LATER)
    assert (len(bob.told), len(carl.told)) == (2, 1)
    assert bob.bus.statistics().refused == 2


async def test_nodes_without_a_secret_believe_each_other(join: Join) -> None:
    ann, bob = await join("ann", secrets=[]), await join("bob", secrets=[])
    ann.bus.tell(b"1")
    await turns(LATER)
    assert bob.told == [("ann", b"1")]


# --- links ---------------------------------------------------------------------------------------


async def test_x01_down_at_the_start(redis: FakeRedis, join: Join) -> None:
    redis.refuses = True
    began = asyncio.get_running_loop().time()
    ann = await join("ann")
    assert asyncio.get_running_loop().time() - began < 5.0
    assert not ann.bus.is_available
    with pytest.raises(BusUnavailable):
        ann.say(1)
    await asyncio.sleep(60)
    redis.refuses = False
    await asyncio.sleep(5)
    assert ann.bus.is_available
    assert ann.availability == [True]
    pauses = [b - a for (a, _), (b, _) in itertools.pairwise(redis.attempts[::2])]
    assert max(pauses) < 3.1
    assert len({round(pause, 4) for pause in pauses}) > len(pauses) // 2, "never in step"
    assert 60 < len(redis.attempts) < 140


async def test_hanging_at_the_start(redis: FakeRedis, join: Join) -> None:
    redis.hangs = True
    began = asyncio.get_running_loop().time()
    ann = await join("ann")
    assert asyncio.get_running_loop().time() - began <= 4.0
    redis.hangs = False
    await asyncio.sleep(5)
    assert ann.bus.is_available


async def test_x05_silence_ends_both_links(redis: FakeRedis, join: Join) -> None:
    ann = await join("ann")
    redis.silent = True
    old = list(redis.connections)
    for number in range(3):
        ann.say(number)
    assert ann.bus.is_available
    await asyncio.sleep(3)
    assert not ann.bus.is_available
    assert all(connection.released for connection in old)
    assert ann.bus.statistics().unconfirmed == 3
    await asyncio.sleep(30)
    redis.silent = False
    await asyncio.sleep(5)
    assert ann.bus.is_available
    assert ann.availability == [True, False, True]


@pytest.mark.parametrize("what", [b"PUBLISH", b"ROLE"])
async def test_x06_a_probe_that_does_not_come_back(
    redis: FakeRedis, join: Join, what: bytes
) -> None:
    ann = await join("ann")
    redis.errors[what] = "ERR something" if what == b"PUBLISH" else "READONLY it is"
    await asyncio.sleep(8)
    redis.errors.clear()
    await asyncio.sleep(5)
    assert ann.availability[:3] == [True, False, True]
    assert ann.bus.is_available


@pytest.mark.parametrize("code", ["READONLY x", "LOADING x", "MASTERDOWN x", "NOAUTH hunter2"])
async def test_x07_states_of_a_server_end_the_link(
    redis: FakeRedis, join: Join, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    ann = await join("ann")
    redis.errors[b"PUBLISH"] = code
    ann.say(1)
    await turns(LATER)
    assert not ann.bus.is_available
    assert ann.bus.statistics().unpublished == 1
    redis.errors.clear()
    await asyncio.sleep(5)
    assert ann.bus.is_available
    assert "hunter2" not in "".join(str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize("reply", [[b"slave", b"h", 1, b"connected", 0], [b"sentinel", []]])
async def test_x07_a_replica_is_not_published_to(
    redis: FakeRedis, join: Join, reply: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ..support import fake_redis

    do = fake_redis.Connection._do

    def replica(self: fake_redis.Connection, command: list[bytes]) -> None:
        if command == [b"ROLE"]:
            self.send(reply)
        else:
            do(self, command)

    ann = await join("ann")
    monkeypatch.setattr(fake_redis.Connection, "_do", replica)
    await asyncio.sleep(7)
    assert not ann.bus.is_available
    monkeypatch.undo()
    await asyncio.sleep(5)
    assert ann.bus.is_available


async def test_a_user_who_may_not_ask_for_the_role(redis: FakeRedis, join: Join) -> None:
    redis.errors[b"ROLE"] = "NOPERM this user has no permissions"
    ann = await join("ann")
    await asyncio.sleep(20)
    assert ann.availability == [True]


async def test_a_user_who_may_not_subscribe(
    redis: FakeRedis, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    redis.errors[b"SUBSCRIBE"] = "NOPERM this user has no permissions"
    ann = await join("ann")
    await asyncio.sleep(20)
    assert not ann.bus.is_available
    lines = [r for r in caplog.records if r.message == "no link to Redis"]
    assert len(lines) == 1, "the same problem is told once"
    assert vars(lines[0])["reason"] == "Redis says NOPERM"


async def test_only_the_listener_is_cut(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann"), await join("bob")
    redis.kill(*redis.listeners)
    ann.say(1)
    await asyncio.sleep(1)
    assert bob.missed() == [("ann", 1)]
    assert ann.bus.statistics().unpublished == 0
    assert ann.bus.statistics().reconnects == 1


async def test_only_the_speaker_is_cut(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann"), await join("bob")
    ann.say(1)
    redis.speakers[0].cut(ConnectionResetError())
    await asyncio.sleep(1)
    ann.say(2)
    await turns(LATER)
    assert bob.numbers == [2]
    assert bob.missed() == [("ann", 1)]
    assert ann.bus.statistics().unpublished + ann.bus.statistics().unconfirmed == 1


async def test_a_listener_without_a_speaker_that_hears_nothing_is_ended(
    redis: FakeRedis, join: Join
) -> None:
    ann = await join("ann")
    redis.refuses = True
    redis.kill(*redis.speakers)
    await asyncio.sleep(1.5)
    assert len(redis.listeners) == 1
    await asyncio.sleep(3)
    assert redis.listeners == []
    redis.refuses = False
    await asyncio.sleep(5)
    assert ann.bus.is_available


@pytest.mark.parametrize(
    "octets",
    [b"HTTP/1.1 400 Bad Request\r\n", b"$-5\r\n", b":1\r\n", b"$3\r\nabc\r\n", b"*1\r\n:1\r\n"],
)
@pytest.mark.parametrize("whose", ["listeners", "speakers"])
async def test_what_is_not_redis_ends_the_link(
    redis: FakeRedis, join: Join, octets: bytes, whose: str
) -> None:
    ann = await join("ann")
    (connection,) = getattr(redis, whose)
    connection.send_octets(octets)
    await turns(LATER)
    assert connection.released
    await asyncio.sleep(5)
    assert ann.bus.is_available


async def test_a_reply_without_an_end(
    redis: FakeRedis, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("falcon_fast.bus.redis_link.MAX_UNREAD", 10_000)
    ann = await join("ann")
    (connection,) = redis.listeners
    connection.send_octets(b"$100000\r\n")
    for _ in range(3):
        connection.send_octets(b"x" * 4_000)
    await turns(LATER)
    assert connection.released
    await asyncio.sleep(5)
    assert ann.bus.is_available


async def test_a_connection_that_is_closed_before_it_is_taken_over(
    redis: FakeRedis, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ..support import fake_redis

    monkeypatch.setattr(fake_redis.Connection, "write", lambda self, data: None)
    monkeypatch.setattr(fake_redis.Connection, "is_closing", lambda self: True)
    ann = await join("ann")
    assert not ann.bus.is_available
    monkeypatch.undo()
    await asyncio.sleep(5)
    assert ann.bus.is_available


async def test_the_probe_is_measured_and_nobodys_else(redis: FakeRedis, join: Join) -> None:
    ann = await join("ann")
    assert ann.bus.statistics().probe_seconds is None
    redis.publish(node_channel("ann"), b"probe of somebody else")
    await asyncio.sleep(2)
    assert ann.bus.statistics().probe_seconds is not None
    assert ann.bus.statistics().refused == 0


# --- shards --------------------------------------------------------------------------------------


async def test_sharded_rooms_go_only_where_they_have_members(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann", routing="sharded"), await join("bob", routing="sharded")
    follow = bob.bus.follow(ROOM)
    assert follow is not None
    assert bob.bus.follow(ROOM) is not None, "not yet"
    assert not bob.bus.hears(Target.ROOM, ROOM)
    await follow
    assert bob.bus.follow(ROOM) is None
    assert bob.bus.hears(Target.ROOM, ROOM)
    assert bob.bus.hears(Target.ALL, "")
    assert not ann.bus.hears(Target.USER, "bob")
    assert (bob.bus.reaches_all(Target.ROOM), bob.bus.reaches_all(Target.ALL)) == (False, True)
    assert bob.bus.shard_of(ROOM) == SHARD
    bob.rooms.add("user:bob")
    await bob.bus.follow("user:bob")
    ann.say(1)
    ann.bus.publish(Target.USER, "bob", b'{"type":"presence","data":{"user_id":"x"}}')
    ann.bus.publish(Target.ALL, "", frame(2))
    await turns(LATER)
    assert [content for _, _, content in bob.delivered] == [
        *(frame(1), b'{"type":"presence","data":{"user_id":"x"}}', frame(2))
    ]
    assert ann.bus.statistics().received == 0
    assert redis.subscribed(shard_channel(SHARD)) == 1
    bob.bus.unfollow(ROOM)
    await asyncio.sleep(LINGER - 1)
    assert bob.bus.hears(Target.ROOM, ROOM)
    await asyncio.sleep(2)
    assert not bob.bus.hears(Target.ROOM, ROOM)
    assert redis.subscribed(shard_channel(SHARD)) == 0
    assert bob.losses == []


async def test_compatible_routing_knows_no_shards(join: Join) -> None:
    ann = await join("ann")
    assert ann.bus.follow(ROOM) is None
    ann.bus.unfollow(ROOM)
    assert ann.bus.shard_of(ROOM) is None
    assert ann.bus.hears(Target.ROOM, ROOM)
    assert ann.bus.reaches_all(Target.ROOM)


async def test_moving_from_one_routing_to_the_other_and_back(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann", routing="sharded"), await join("bob", routing="sharded")
    for one in (ann, bob):
        await one.bus.follow(ROOM)
    carl = await join("carl")
    for number, one in enumerate((ann, bob, carl)):
        assert one.bus.reaches_all(Target.ROOM), "carl listens to no shards"
        one.say(number)
    await turns(LATER)
    assert [sorted(one.numbers) for one in (ann, bob, carl)] == [[0, 1, 2]] * 3
    await carl.bus.close()
    await asyncio.sleep(13)
    assert not ann.bus.reaches_all(Target.ROOM)
    carl = await join("carl-2", routing="sharded")
    await carl.bus.follow(ROOM)
    for number, one in enumerate((ann, bob, carl)):
        assert not one.bus.reaches_all(Target.ROOM)
        one.say(number)
    await turns(LATER)
    assert sorted(carl.numbers) == [0, 1, 2]
    assert ann.losses == bob.losses == carl.losses == []


async def test_a_node_of_the_original_keeps_everything_on_the_channels(
    redis: FakeRedis, join: Join
) -> None:
    ann = await join("ann", routing="sharded")
    assert not ann.bus.reaches_all(Target.ROOM)
    redis.publish(SYSTEM, b'{"server_id":"old","message":{"type":"backend_status"}}')
    await turns(LATER)
    assert ann.bus.reaches_all(Target.ROOM)
    await asyncio.sleep(STRANGER_KEPT + ANNOUNCE_INTERVAL)
    assert not ann.bus.reaches_all(Target.ROOM)


async def test_losses_in_shards(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann", routing="sharded"), await join("bob", routing="sharded")
    await bob.bus.follow(ROOM)
    ann.say(1)
    await turns(LATER)
    redis.errors[b"SPUBLISH"] = "ERR something"
    ann.say(2)
    await turns(LATER)
    redis.errors.clear()
    await asyncio.sleep(ANNOUNCE_INTERVAL + 2)
    targets = frozenset({Target.ROOM, Target.USER})
    assert bob.losses == [Loss("ann", 1, targets, frozenset({SHARD}))]
    bob.losses.clear()
    redis.kill(*redis.listeners)
    ann.say(3)
    await asyncio.sleep(4)
    assert bob.losses == [Loss("ann", 1, targets, frozenset({SHARD}))]
    assert bob.numbers == [1]


async def test_a_room_that_opens_during_an_outage(redis: FakeRedis, join: Join) -> None:
    ann, bob = await join("ann", routing="sharded"), await join("bob", routing="sharded")
    redis.kill(*redis.listeners)
    await turns(2)
    assert bob.bus.follow(ROOM) is None, "there is nothing to wait for"
    ann.say(1)
    await asyncio.sleep(4)
    assert bob.bus.hears(Target.ROOM, ROOM)
    targets = frozenset({Target.ROOM, Target.USER})
    assert bob.losses == [Loss("ann", 0, targets, frozenset({SHARD}))]


async def test_the_link_breaks_while_a_shard_is_awaited(redis: FakeRedis, join: Join) -> None:
    bob = await join("bob", routing="sharded")
    redis.silent = True
    follow = bob.bus.follow(ROOM)
    other = bob.bus.follow(OTHER_ROOM)
    assert follow is not None
    assert other is not None
    bob.bus.unfollow(OTHER_ROOM)
    redis.kill()
    await asyncio.wait_for(follow, 1.0)
    redis.silent = False
    await asyncio.sleep(3)
    assert bob.bus.hears(Target.ROOM, ROOM)


async def test_shards_need_redis_7(redis: FakeRedis) -> None:
    redis.errors[b"SUNSUBSCRIBE"] = "ERR unknown command 'SUNSUBSCRIBE'"
    ann = Party(redis, "ann", routing="sharded")
    with pytest.raises(SettingsError, match="Redis 7"):
        await ann.bus.start(ann)
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_old_redis_that_appears_later(
    redis: FakeRedis, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    redis.errors[b"SUNSUBSCRIBE"] = "ERR unknown command 'SUNSUBSCRIBE'"
    redis.refuses = True
    ann = await join("ann", routing="sharded")
    assert ann.bus.follow(ROOM) is None
    redis.refuses = False
    await asyncio.sleep(5)
    assert ann.bus.is_available
    assert ann.bus.reaches_all(Target.ROOM)
    assert ann.bus.follow(ROOM) is None
    assert [r for r in caplog.records if r.levelno == logging.ERROR]


async def test_a_redis_with_shards_that_appears_later(redis: FakeRedis, join: Join) -> None:
    redis.refuses = True
    ann = await join("ann", routing="sharded")
    assert ann.bus.follow(ROOM) is None
    redis.refuses = False
    await asyncio.sleep(5)
    assert ann.bus.hears(Target.ROOM, ROOM)
    assert not ann.bus.reaches_all(Target.ROOM)


# --- a cluster -----------------------------------------------------------------------------------

A, B, C = ("a", 1), ("b", 2), ("c", 3)


class Cluster(RedisAddress):
    """An address whose cluster changes when a test says so."""

    def __init__(self, redis: FakeRedis, *masters: tuple[str, int]) -> None:
        super().__init__("redis+cluster://a:1")
        self.redis = redis
        self.asked = 0
        self.is_down = False
        self.set(*masters)

    def set(self, *masters: tuple[str, int]) -> None:
        def owner(channel: str) -> tuple[str, int]:
            return masters[int(channel.rpartition(":")[2]) % len(masters)]

        self.now = ShardOwners(owner, frozenset(masters))
        self.redis.owner = owner

    async def owners(self) -> ShardOwners:
        self.asked += 1
        if self.is_down:
            raise ConnectionRefusedError
        return self.now


async def test_each_shard_is_heard_from_its_owner(redis: FakeRedis, join: Join) -> None:
    address = Cluster(redis, A, B)
    ann = await join("ann", routing="sharded", address=address)
    bob = await join("bob", routing="sharded", address=address)
    await asyncio.sleep(1)
    assert ann.availability == [True]
    rooms = [f"group:{number:024x}" for number in range(300)]
    for room in rooms:
        bob.rooms.add(room)
        if (follow := bob.bus.follow(room)) is not None:
            await follow
    by_node = dict.fromkeys((None, A, B), 0)
    for connection in redis.listeners:
        by_node[connection.node] += sum(b"shard" in channel for channel in connection.channels)
    assert by_node[None] == 0
    assert min(by_node[A], by_node[B]) > 40
    assert by_node[A] + by_node[B] == len({shard_of(room) for room in rooms})
    for number, room in enumerate(rooms):
        ann.say(number, room)
    await turns(LATER)
    assert sorted(bob.numbers) == list(range(300))
    assert bob.losses == []


async def test_shards_that_move_are_followed_and_what_went_astray_is_told(
    redis: FakeRedis, join: Join
) -> None:
    address = Cluster(redis, A, B)
    ann = await join("ann", routing="sharded", address=address)
    bob = await join("bob", routing="sharded", address=address)
    await asyncio.sleep(1)
    rooms = [f"group:{number:024x}" for number in range(SHARDS)]
    for room in rooms:
        bob.rooms.add(room)
        bob.bus.follow(room)
    await turns(LATER)
    for number, room in enumerate(rooms):
        ann.say(number, room)
    await turns(LATER)
    assert len(bob.numbers) == SHARDS
    bob.delivered.clear()
    address.set(B, C)
    for number, room in enumerate(rooms):
        ann.say(number, room)
    await turns(LATER)
    astray = ann.bus.statistics().unpublished
    assert astray == len(rooms), "each shard has another owner now"
    # A server tells its subscribers of slots that it gives away.
    for connection in redis.listeners:
        for channel in [c for c in connection.channels if b"shard" in c]:
            connection.send([b"sunsubscribe", channel, 0])
    await asyncio.sleep(12)
    assert sum(loss.number for loss in bob.losses) == astray
    assert not [c for c in redis.connections if c.node == A]
    bob.losses.clear()
    for number, room in enumerate(rooms):
        ann.say(number, room)
    await turns(LATER)
    assert sorted(bob.numbers) == list(range(SHARDS))
    await asyncio.sleep(10)
    assert bob.losses == ann.losses == []
    assert ann.bus.statistics().published == 3 * SHARDS


async def test_a_master_that_dies_is_looked_for(redis: FakeRedis, join: Join) -> None:
    address = Cluster(redis, A, B)
    bob = await join("bob", routing="sharded", address=address)
    await asyncio.sleep(1)
    await bob.bus.follow(ROOM) if bob.bus.follow(ROOM) else None
    asked = address.asked
    address.is_down = True
    redis.kill(*[c for c in redis.connections if c.node == A])
    await turns(LATER)
    assert not bob.bus.is_available
    await asyncio.sleep(5)
    assert address.asked > asked + 2
    address.is_down = False
    address.set(B)
    await asyncio.sleep(5)
    assert bob.bus.is_available
    assert bob.bus.hears(Target.ROOM, ROOM)
    assert {c.node for c in redis.connections} == {None, B}


async def test_a_cluster_that_does_not_answer_at_first(redis: FakeRedis, join: Join) -> None:
    address = Cluster(redis, A)
    address.is_down = True
    ann = await join("ann", routing="sharded", address=address)
    assert not ann.bus.is_available
    assert ann.bus.reaches_all(Target.ROOM)
    assert ann.bus.follow(ROOM) is None
    address.is_down = False
    await asyncio.sleep(5)
    assert ann.bus.is_available
    assert not ann.bus.reaches_all(Target.ROOM)
    assert ann.bus.hears(Target.ROOM, ROOM)
