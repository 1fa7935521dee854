"""The bus over Redis: what is published here, what is heard from others, and what was missed.

Between the gateway and the links. See `redis_wire` for what is sent, `positions` for how losses are
found, `redis_pair` for how the links are kept, and docs/explanation/losses.md for all of it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from redis.exceptions import RedisError

from falcon_fast._core import Sifter
from falcon_fast.bus import BusStatistics, Loss, Receiver, Target
from falcon_fast.bus.positions import BASELINE, DROP, UNKNOWN, Positions
from falcon_fast.bus.redis_address import RedisAddress, ShardOwners, describe_error
from falcon_fast.bus.redis_link import Opened, open_transport
from falcon_fast.bus.redis_pair import PROBE, Pair
from falcon_fast.bus.redis_publisher import error_word
from falcon_fast.bus.redis_wire import (
    CHANNELS,
    ENVELOPE_BYTES,
    FIRST_SHARD,
    MAX_CONTROL_BYTES,
    MESSAGES,
    NODES,
    ROOMS,
    SYSTEM_STREAM,
    USERS,
    Announcement,
    Refused,
    Seal,
    Writer,
    checked_frame,
    is_ident,
    is_node_id,
    node_channel,
    pack_members,
    read_announcement,
    read_foreign,
    read_word,
    shard_channel,
    target_of,
    unpack_members,
)
from falcon_fast.bus.shards import SHARDS, Interest, shard_of
from falcon_fast.clock import Clock, rfc3339
from falcon_fast.envelope import BROADCAST_TYPES
from falcon_fast.errors import BusUnavailable, SettingsError
from falcon_fast.redis_url import Topology
from falcon_fast.tasks import end_tasks

__all__ = ["RedisBus"]

TURN: Final = 0.25
"""Seconds between two looks at the links and at what is overdue."""

ANNOUNCE_INTERVAL: Final = 5.0
"""Seconds between two announcements of how far this node is."""

LIVE: Final = 12.0
"""Seconds after which a silent node is not waited for: two announcements were not heard."""

ANSWER_WAIT: Final = 2.0
"""Seconds that other nodes have to say how far they are, after an outage here. After a restart of
Redis they need as long as this node to be back themselves."""

STRANGER_KEPT: Final = 600.0
"""Seconds for which a node of the original program is taken to be there."""

MAX_STRANGERS: Final = 1024
"""Nodes of the original program kept in mind."""

START_WAIT: Final = 4.0
"""Seconds that the start waits for Redis and the other nodes, at most."""

CLOSE_WAIT: Final = 1.0
"""Seconds for what was published to leave."""

CONNECT_DEADLINE: Final = 2.0
"""Seconds for an attempt to connect, log in and subscribe."""

SEVERAL_DEADLINE: Final = 5.0
"""The same, where sentinels or servers of a cluster have to be asked first, some of which may be
down."""

OWNERS_INTERVAL: Final = 30.0
"""Seconds between two questions which server holds which shard, without a reason to ask."""

MIN_MESSAGE_BYTES: Final = 1_048_576
"""Octets of a frame that every node takes."""

COMPLAINT_INTERVAL: Final = 1.0
"""Seconds between two log lines about messages that are none."""

# A member of an enumeration is looked up by way of its class.
_ROOM: Final = Target.ROOM

_Outside: TypeAlias = tuple[
    bool, str, int, int, str, str, str | int | None, int | None, str | None, int, int
]

Connect: TypeAlias = Callable[[tuple[str, int] | None], Awaitable[Opened]]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Round:
    """The other nodes are asked how far they are.

    Attributes:
        deadline: when it is over.
        expected: those who were there before.
        answered: those who have answered.
        others: how many Redis says have got the question, None while it has not said.
        done: set when it is over.
    """

    deadline: float
    expected: set[str]
    done: asyncio.Future[None]
    answered: set[str] = field(default_factory=set)
    others: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether everybody has answered."""
        heard = self.others is not None and len(self.answered) >= self.others
        return heard and self.expected <= self.answered


class RedisBus:
    """Messages between nodes through the channels of Redis; see `falcon_fast.bus.Bus`.

    Args:
        address: of Redis.
        node_id: of this node, new with each start of the process.
        clock: for the epoch and timestamps; pauses and deadlines are the loop's.
        secrets: with which nodes prove that they belong here: the first seals, each is accepted.
        routing: `compatible`, or `sharded` where all nodes are.
        max_message_bytes: of a client's message, which a frame for other nodes may have at least.
        connect: opens a connection to a server; for tests.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        node_id: str,
        clock: Clock,
        secrets: Sequence[bytes] = (),
        routing: Literal["compatible", "sharded"] = "compatible",
        max_message_bytes: int = MIN_MESSAGE_BYTES,
        connect: Connect | None = None,
    ) -> None:
        self._address = address
        self._node_id = node_id
        self._own = node_id.encode()
        self._clock = clock
        self._epoch = int(clock.time() * 1000)
        self._writer = Writer(node_id, self._epoch)
        self._seal = Seal(secrets)
        self._wants_shards = routing == "sharded"
        self._has_shards: bool | None = None if self._wants_shards else False
        self._max_frame = max(MIN_MESSAGE_BYTES, max_message_bytes) + ENVELOPE_BYTES
        self._connect: Connect = connect or functools.partial(open_transport, address)
        single = address.url.topology is Topology.SINGLE
        self._deadline = CONNECT_DEADLINE if single else SEVERAL_DEADLINE
        self._is_spread = self._wants_shards and address.url.topology is Topology.CLUSTER

        streams = FIRST_SHARD + (SHARDS if self._wants_shards else 0)
        self._positions = Positions(streams, ordered=FIRST_SHARD)
        self._sent = [0] * streams
        self._words = 0
        self._streams = dict(zip(CHANNELS, range(FIRST_SHARD), strict=True))
        self._channels = list(CHANNELS)
        for shard in range(streams - FIRST_SHARD):
            self._channels.append(shard_channel(shard))
            self._streams[shard_channel(shard)] = FIRST_SHARD + shard
        self._own_channel = node_channel(node_id)
        self._strangers: dict[str, float] = {}
        self._interest = Interest()
        self._shards_in_use = False

        self._sifter = Sifter(
            own=self._own,
            streams=self._streams,
            records=self._positions.records,
            types=BROADCAST_TYPES,
            passed=self._pass_on,
            left=self._left,
        )
        self._probed: dict[bytes, Pair] = {}
        self._main = self._pair("Redis", None, (*CHANNELS, NODES), self._own_channel)
        self._others: dict[tuple[str, int], Pair] = {}
        self._owners: ShardOwners | None = None
        self._owners_at = float("-inf")
        self._owners_doubted = True
        self._owners_task: asyncio.Task[None] | None = None
        self._asking_shards: asyncio.Future[None] | None = None

        self._receiver: Receiver | None = None
        self._rooms: Container[str] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._round: _Round | None = None
        self._listening: set[Pair] = set()
        self._speaking: set[Pair] = set()
        self._expected: set[str] = set()
        self._deaf_at: float | None = None
        self._was_available = False
        self._announced_at = 0.0
        self._stamp = (0, b"")
        self._complained_at = float("-inf")
        self._untold = 0

        self._unpublished = 0
        self._received = 0
        self._ignored = 0
        self._refused = 0
        self._duplicates = 0
        self._lost_number = 0
        self._gaps = 0
        # What pairs have counted that are no more.
        self._gone = BusStatistics()

    # --------------------------------------------------------------------------- start and stop

    async def start(self, receiver: Receiver) -> None:
        """See `Bus.start`."""
        self._loop = asyncio.get_running_loop()
        self._receiver = receiver
        self._rooms = self._sifter.rooms = receiver.rooms
        self._announced_at = self._loop.time()
        self._main.start()
        self._turn()
        try:
            async with asyncio.timeout(START_WAIT):
                await self._main.tried()
                if self._wants_shards and self._main.publisher.is_up:
                    self._asking_shards = self._asking_shards or self._loop.create_future()
                    await self._asking_shards
                if self._round is not None:
                    await asyncio.shield(self._round.done)
        except TimeoutError:
            log.debug("starting without an answer of Redis or of all nodes")
        if self._wants_shards and self._has_shards is False:
            await self.close()
            raise SettingsError(
                [
                    "FALCON_BUS_ROUTING: came 'sharded', but the Redis of REDIS_URL has no sharded "
                    "channels, or its user may not use them; allowed: Redis 7 or later, or "
                    "'compatible'"
                ]
            )

    async def close(self) -> None:
        """See `Bus.close`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._receiver = None
        pairs = (self._main, *self._others.values())
        try:
            async with asyncio.timeout(CLOSE_WAIT):
                await asyncio.gather(*(pair.publisher.drained() for pair in pairs))
        except TimeoutError:
            log.warning("not everything that was published has left")
        if self._owners_task is not None:
            await end_tasks([self._owners_task])
        await asyncio.gather(*(pair.close() for pair in pairs))
        if self._round is not None and not self._round.done.done():
            self._round.done.set_result(None)
        await self._address.close()

    def _pair(
        self,
        name: str,
        node: tuple[str, int] | None,
        channels: tuple[bytes, ...],
        probe_channel: bytes,
    ) -> Pair:
        pair = Pair(
            name,
            connect=functools.partial(self._connect, node),
            channels=(*channels, probe_channel),
            probe_channel=probe_channel,
            shards=functools.partial(self._shards_of, node),
            on_message=self._take,
            split=self._sifter.feed,
            on_change=self._link_changed,
            on_moved=self._doubt_owners,
            deadline=self._deadline,
        )
        self._probed[probe_channel] = pair
        return pair

    # --------------------------------------------------------------------------------- publishing

    @property
    def is_available(self) -> bool:
        """See `Bus.is_available`."""
        if not self._main.is_up:
            return False
        return not self._is_spread or (
            bool(self._others) and all(pair.is_up for pair in self._others.values())
        )

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
        if members is not None:
            members = pack_members(members, process_id)
        receiver = self._receiver
        if receiver is None:
            return 0
        # Before the local delivery, so that whatever comes of that stands behind it.
        is_told = self._enqueue(target, ident, frame, members, receipt)
        reached = receiver.deliver(target, ident, frame)
        if not is_told:
            self._unpublished += 1
            raise BusUnavailable("other nodes were not told: there is no link to Redis")
        return reached

    def _enqueue(
        self, target: Target, ident: str, frame: bytes, members: int | None, receipt: str | None
    ) -> bool:
        if not is_ident(target, ident):
            return True  # no node could have it
        stream = _STREAM_OF[target]
        pair: Pair | None = self._main
        command = b"PUBLISH"
        is_sharded = self._shards_in_use and target in _SHARDED
        if is_sharded:
            shard = shard_of(ident if target is Target.ROOM else f"user:{ident}")
            stream, pair, command = FIRST_SHARD + shard, self._pair_of(shard), b"SPUBLISH"
        # The number is used up in any case: by the gap the others learn what they were not told.
        seq = self._sent[stream] = self._sent[stream] + 1
        if pair is None or not pair.publisher.is_up or len(frame) > self._max_frame:
            return False
        payload = self._writer.message(
            seq,
            target,
            ident,
            frame,
            timestamp=self._timestamp(),
            members=members,
            receipt=receipt,
            for_original=not is_sharded,
        )
        pair.publisher.publish(command, self._channels[stream], payload)
        return True

    def _timestamp(self) -> bytes:
        now = self._clock.time()
        tick = int(now * 1000)
        if tick != self._stamp[0]:
            self._stamp = (tick, rfc3339(now).encode())
        return self._stamp[1]

    def tell(self, control: bytes, node_id: str | None = None) -> None:
        """See `Bus.tell`."""
        if len(control) > MAX_CONTROL_BYTES:
            raise ValueError(f"at most {MAX_CONTROL_BYTES} octets can be told")
        if not self._say("tell", control, node_id):
            raise BusUnavailable("other nodes were not told: there is no link to Redis")

    def _say(
        self,
        word: str,
        control: bytes,
        node_id: str | None = None,
        on_result: Callable[[object], None] | None = None,
    ) -> bool:
        """Tell nodes something; return whether it leaves."""
        publisher = self._main.publisher
        if not publisher.is_up:
            return False
        if node_id is not None and not is_node_id(node_id):
            return True  # nobody could have it
        channel = NODES if node_id is None else node_channel(node_id)
        self._words += 1
        payload = self._writer.word(self._words, word, control, timestamp=self._timestamp())
        publisher.send(
            b"PUBLISH",
            channel,
            self._seal.close(channel, payload),
            on_result=on_result or _ignore,
        )
        return True

    # ----------------------------------------------------------------------------------- hearing

    # Most of what comes is for rooms without members here, or plain; the sifter is done with that.

    def _take(self, channel: bytes, payload: bytes) -> None:
        """Take what came through no stream, or by way of hiredis."""
        if channel in self._streams:
            self._sifter.take(channel, payload)
        else:
            self._left(channel, payload, None)

    def _pass_on(self, channel: bytes, room: str, frame: bytes) -> None:
        """Deliver what needs no further look."""
        receiver = self._receiver
        if receiver is None:
            return
        try:
            if not receiver.deliver(_ROOM, room, frame):
                self._ignored += 1
        except Exception:
            self._fault(channel)

    def _left(self, channel: bytes, payload: bytes, found: _Outside | Exception | None) -> None:
        """Take whatever the sifter has left; `found` is what it says of it.

        Nothing that comes can end the link.
        """
        receiver = self._receiver
        if receiver is None:
            return
        try:
            stream = self._streams.get(channel)
            if stream is None:
                self._word(receiver, channel, payload)
            elif found is None:
                self._foreign(receiver, stream, payload)
            else:
                self._received += 1
                if isinstance(found, Exception):
                    raise found
                self._message(receiver, stream, payload, found)
        except Refused as error:
            self._refuse(channel, str(error))
        except Exception:
            self._fault(channel)

    def _fault(self, channel: bytes) -> None:
        self._refuse(channel, "it could not be handled")
        log.exception("a message from Redis could not be handled", extra={"kind": "bus_error"})

    def _message(self, receiver: Receiver, stream: int, payload: bytes, outside: _Outside) -> None:
        """Take a message of our kind that may be meant for somebody here."""
        is_next, node_id, seq, epoch, kind, ident, restore, members, receipt, start, end = outside
        target = target_of(kind, stream)
        if not is_next:
            missing = self._positions.take(node_id, stream, epoch, seq)
            if missing != BASELINE and not self._gap(node_id, stream, missing):
                return
        if not self._is_wanted(target, ident):
            self._ignored += 1
            if receipt is not None:
                receiver.confirm(node_id, receipt, 0)
            return
        if end - start > self._max_frame:
            raise Refused("it is too long")
        frame = checked_frame(
            payload[start:end], target, ident, restore=restore, is_sharded=stream >= FIRST_SHARD
        )
        self._deliver(receiver, node_id, target, ident, frame, members, receipt)

    def _is_wanted(self, target: Target, ident: str) -> bool:
        if target is Target.ROOM:
            return ident in self._rooms
        if target is Target.USER:
            return f"user:{ident}" in self._rooms
        return True

    def _foreign(self, receiver: Receiver, stream: int, payload: bytes) -> None:
        """Take what does not look like ours: the original program's, or none at all."""
        if len(payload) > self._max_frame + ENVELOPE_BYTES:
            self._received += 1
            raise Refused("it is too long")
        try:
            message = read_foreign(payload, stream)
        except Refused:
            self._received += 1
            raise
        if message.node_id == self._node_id:
            return
        self._received += 1
        if message.seq is None:
            self._heard_stranger(message.node_id)
        else:
            missing = self._positions.take(message.node_id, stream, message.epoch, message.seq)
            if missing != BASELINE and not self._gap(message.node_id, stream, missing):
                return
        if not self._is_wanted(message.target, message.ident):
            self._ignored += 1
            if message.receipt is not None:
                receiver.confirm(message.node_id, message.receipt, 0)
            return
        self._deliver(
            receiver,
            message.node_id,
            message.target,
            message.ident,
            message.frame,
            message.members,
            message.receipt,
        )

    def _deliver(
        self,
        receiver: Receiver,
        node_id: str,
        target: Target,
        ident: str,
        frame: bytes,
        members: int | None,
        receipt: str | None,
    ) -> None:
        reached = 0
        if members is not None and target is Target.ROOM:
            receiver.counted(*unpack_members(members, node_id, ident), frame)
        else:
            reached = receiver.deliver(target, ident, frame)
            if not reached:
                self._ignored += 1
        if receipt is not None:
            receiver.confirm(node_id, receipt, reached)

    def _gap(self, node_id: str, stream: int, missing: int) -> bool:
        """Deal with a message that is not the next one; return whether to take it."""
        if missing == DROP:
            self._duplicates += 1
            return False
        self._missed(node_id, {stream: missing})
        return True

    def _heard_stranger(self, node_id: str) -> None:
        is_new = node_id not in self._strangers
        if is_new and len(self._strangers) >= MAX_STRANGERS:
            return
        self._strangers[node_id] = self._positions.now
        if is_new:
            log.info("a node of the original program is there", extra={"node_id": node_id})
            self._choose_routing()

    def _refuse(self, channel: bytes, reason: str) -> None:
        self._refused += 1
        self._untold += 1
        now = self._positions.now
        if now - self._complained_at >= COMPLAINT_INTERVAL:
            log.warning(
                "something on a channel is no message",
                extra={"channel": channel.decode(), "reason": reason, "number": self._untold},
            )
            self._complained_at = now
            self._untold = 0

    def _word(self, receiver: Receiver, channel: bytes, payload: bytes) -> None:
        if payload.startswith(PROBE):
            pair = self._probed.get(channel)
            if pair is not None:
                pair.probed(payload)
                return
        if payload.startswith(self._own, 14):
            return
        if len(payload) > MAX_CONTROL_BYTES + ENVELOPE_BYTES:
            raise Refused("it is too long")
        word = read_word(self._seal.open(channel, payload))
        if word.node_id == self._node_id:
            return
        lane = 0 if channel == NODES else 1
        if not self._positions.accept(word.node_id, lane, word.epoch, word.seq):
            raise Refused("it was told before")
        if word.word == "tell":
            receiver.heard(word.node_id, word.control)
        elif word.word in {"hello", "positions"}:
            announcement = read_announcement(word.control)
            self._announcement(word.node_id, word.epoch, announcement)
            if word.word == "hello":
                self._say("positions", self._announce(), word.node_id)

    # ---------------------------------------------------------------------------- what was missed

    def _announce(self) -> bytes:
        at = {stream: sent for stream, sent in enumerate(self._sent) if sent}
        return Announcement(at, self._has_shards is True).encode()

    def _announcement(self, node_id: str, epoch: int, announcement: Announcement) -> None:
        record = self._positions.get(node_id)
        if record is not None and record.is_sharded is not announcement.is_sharded:
            record.is_sharded = announcement.is_sharded
            self._choose_routing()
        missing = self._positions.announced(node_id, epoch, announcement.at)
        if missing:
            self._missed(node_id, missing)
        if self._round is not None:
            self._round.answered.add(node_id)
            self._end_round_if_complete()

    def _missed(self, node_id: str, missing: Mapping[int, int]) -> None:
        """Tell what is missing of one node's streams."""
        for is_shard in (False, True):
            streams = [stream for stream in missing if (stream >= FIRST_SHARD) is is_shard]
            if not streams:
                continue
            numbers = [missing[stream] for stream in streams]
            number = 0 if UNKNOWN in numbers else sum(numbers)
            self._gaps += len(streams)
            self._lost_number += sum(number for number in numbers if number > 0)
            targets = frozenset(_SHARDED if is_shard else (_TARGET_AT[s] for s in streams))
            shards = frozenset(s - FIRST_SHARD for s in streams) if is_shard else None
            self._tell_loss(Loss(node_id, number, targets, shards))

    def _tell_loss(self, loss: Loss) -> None:
        if self._receiver is not None:
            self._receiver.lost(loss)

    def _begin_round(self) -> None:
        """This node hears again, or for the first time: ask the others how far they are."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._positions.since == 0:
            self._positions.since = int(self._clock.time() * 1000)
        expected, self._expected = self._expected, set()
        done = self._round.done if self._round is not None else loop.create_future()
        self._round = _Round(now + ANSWER_WAIT, expected, done)
        if self._deaf_at is not None and self._strangers_since(self._deaf_at - STRANGER_KEPT):
            # They number nothing, so whether something was missed is not known.
            self._gaps += 1
            self._tell_loss(Loss(None, 0, _ALL_TARGETS))
        self._deaf_at = None
        self._greet()

    def _greet(self) -> None:
        def counted(result: object) -> None:
            if type(result) is int and self._round is current and current is not None:
                current.others = max(0, result - 1)
                self._end_round_if_complete()

        if self._wants_shards and self._has_shards is None:
            return  # it is done when that is known
        current = self._round
        self._announced_at = asyncio.get_running_loop().time()
        self._say("hello", self._announce(), on_result=counted)

    def _end_round_if_complete(self) -> None:
        if self._round is not None and self._round.is_complete:
            self._end_round()

    def _end_round(self) -> None:
        current, self._round = self._round, None
        if current is None:
            return
        self._positions.is_settled = True
        silent = current.expected - current.answered
        if silent:
            self._gaps += 1
            self._tell_loss(Loss(None, 0, _ALL_TARGETS))
        self._choose_routing()
        if not current.done.done():
            current.done.set_result(None)

    # ------------------------------------------------------------------------------------- links

    def _turn(self) -> None:
        """Look after everything that has to do with time."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TURN, self._turn)
        now = self._positions.now = loop.time()
        for pair in (self._main, *self._others.values()):
            pair.turn(now)
        if self._round is not None and now >= self._round.deadline:
            self._end_round()
        for node_id, missing in self._positions.overdue():
            self._missed(node_id, missing)
        if now - self._announced_at >= ANNOUNCE_INTERVAL:
            self._announced_at = now
            self._say("positions", self._announce())
            self._positions.forget()
            self._forget_strangers(now)
        if self._wants_shards:
            self._choose_routing()
            self._let_go_of_shards(now)
        if self._is_spread and self._owners_task is None:
            doubted = self._owners_doubted and now - self._owners_at >= 1.0
            if doubted or now - self._owners_at >= OWNERS_INTERVAL:
                self._owners_at = now
                self._owners_doubted = False
                self._owners_task = loop.create_task(self._ask_owners())
        self._weigh()

    def _link_changed(self, pair: Pair) -> None:
        """A link of a pair came or went, maybe both."""
        was_listening, was_speaking = pair in self._listening, pair in self._speaking
        is_listening, is_speaking = pair.listener.is_up, pair.publisher.keeper.link is not None
        if was_listening and not is_listening:
            self._listening.discard(pair)
            self._deaf(pair)
        if was_speaking and not is_speaking:
            self._speaking.discard(pair)
        if pair is not self._main and not (is_listening and is_speaking):
            self._doubt_owners()
        if is_speaking and not was_speaking:
            self._speaking.add(pair)
            self._ask_for_shards()
        if is_listening and not was_listening:
            self._listening.add(pair)
            self._begin_round()
        elif is_speaking and not was_speaking:
            # A last message may have been lost with the link before: the others will see.
            self._greet()
        self._weigh()

    def _deaf(self, pair: Pair) -> None:
        now = asyncio.get_running_loop().time()
        if self._deaf_at is None:
            self._deaf_at = now
        if pair is self._main:
            self._positions.deaf(range(FIRST_SHARD))
        self._positions.deaf(
            FIRST_SHARD + s for s in self._interest.shards if self._pair_of(s) is pair
        )
        self._expected |= self._positions.live(now - LIVE)
        if self._round is not None:
            self._expected |= self._round.expected - self._round.answered

    def _weigh(self) -> None:
        """Tell if other nodes have come into reach or gone out of it."""
        is_available = self.is_available
        if is_available is not self._was_available and self._receiver is not None:
            self._was_available = is_available
            self._receiver.changed(is_available=is_available)

    # ------------------------------------------------------------------------------------- shards

    def reaches_all(self, target: Target) -> bool:
        """See `Bus.reaches_all`."""
        return not (self._shards_in_use and target in _SHARDED)

    def hears(self, target: Target, ident: str) -> bool:
        """See `Bus.hears`."""
        if not self._main.listener.is_up:
            return False
        if self.reaches_all(target):
            return True
        shard = shard_of(ident if target is Target.ROOM else f"user:{ident}")
        pair = self._pair_of(shard)
        return pair is not None and shard_channel(shard) in pair.listener.heard

    def follow(self, room: str) -> Awaitable[None] | None:
        """See `Bus.follow`."""
        if not self._wants_shards or self._has_shards is False:
            return None
        shard = self._interest.add(room)
        pair = self._pair_of(shard_of(room))
        if shard is not None:
            is_sure = self._has_shards is True and pair is not None and pair.listener.is_up
            self._positions.follow(FIRST_SHARD + shard, is_sure=is_sure)
        if pair is None or self._has_shards is None:
            return None
        future = pair.listener.follow(shard_channel(shard_of(room)))
        return None if future.done() else future

    def unfollow(self, room: str) -> None:
        """See `Bus.unfollow`."""
        if self._wants_shards:
            self._interest.remove(room, self._positions.now)

    def shard_of(self, room: str) -> int | None:
        """See `Bus.shard_of`."""
        return shard_of(room) if self._wants_shards else None

    def _let_go_of_shards(self, now: float) -> None:
        for shard in self._interest.tired(now):
            self._positions.unfollow(FIRST_SHARD + shard)
            pair = self._pair_of(shard)
            if pair is not None:
                pair.listener.unfollow(shard_channel(shard))

    def _choose_routing(self) -> None:
        """Use shards while all nodes there are do so, and no node of the original is there."""
        if not self._wants_shards:
            return
        in_use = (
            self._has_shards is True
            and self._positions.is_settled
            and not self._strangers
            and (not self._is_spread or self._owners is not None)
            and self._positions.all_sharded(self._positions.now - LIVE)
        )
        if in_use is not self._shards_in_use:
            self._shards_in_use = in_use
            log.info("rooms go %s", "through shards" if in_use else "through one channel")

    def _ask_for_shards(self) -> None:
        """Find out whether this Redis knows sharded channels at all."""
        if not self._wants_shards or self._has_shards is not None:
            return

        def told(reply: object) -> None:
            word = error_word(reply)
            self._has_shards = word not in {"ERR", "NOPERM"}
            if not self._has_shards:
                log.error("this Redis has no sharded channels for us", extra={"reason": word})
            for shard in self._interest.shards if self._has_shards else ():
                if (pair := self._pair_of(shard)) is not None:
                    pair.listener.follow(shard_channel(shard))
            if self._asking_shards is not None and not self._asking_shards.done():
                self._asking_shards.set_result(None)
            self._greet()

        if self._asking_shards is None:
            self._asking_shards = asyncio.get_running_loop().create_future()
        # To end a subscription that is none does nothing, where the command exists.
        self._main.publisher.send(b"SUNSUBSCRIBE", shard_channel(0), on_result=told)

    def _pair_of(self, shard: int) -> Pair | None:
        if not self._is_spread:
            return self._main
        owner = self._owner_of(shard)
        return None if owner is None else self._others.get(owner)

    def _owner_of(self, shard: int) -> tuple[str, int] | None:
        if self._owners is None:
            return None
        return self._owners.owner(shard_channel(shard).decode())

    def _shards_of(self, node: tuple[str, int] | None) -> list[bytes]:
        """List the channels of the shards that are wanted from one server."""
        if not self._has_shards or (node is None and self._is_spread):
            return []
        wanted = self._interest.shards
        if node is not None:
            wanted = frozenset(shard for shard in wanted if self._owner_of(shard) == node)
        return [shard_channel(shard) for shard in sorted(wanted)]

    def _doubt_owners(self) -> None:
        self._owners_doubted = True

    async def _ask_owners(self) -> None:
        """Learn which server of the cluster holds which shard, and change links accordingly."""
        try:
            owners = await self._address.owners()
        except (RedisError, OSError) as error:
            log.warning("the cluster does not answer", extra={"reason": describe_error(error)})
            self._owners_doubted = True
        else:
            await self._settle(owners)
        finally:
            self._owners_task = None

    async def _settle(self, owners: ShardOwners) -> None:
        before = {shard: self._pair_of(shard) for shard in self._interest.shards}
        self._owners = owners
        gone = [node for node in self._others if node not in owners.masters]
        for node in owners.masters - self._others.keys():
            channel = b"%b:%b:%d" % (self._own_channel, node[0].encode(), node[1])
            pair = self._others[node] = self._pair(
                f"Redis at {node[0]}:{node[1]}", node, (), channel
            )
            pair.start()
        for shard, old in before.items():
            new = self._pair_of(shard)
            channel = shard_channel(shard)
            if old is not new:
                self._positions.deaf([FIRST_SHARD + shard])
                if old is not None:
                    old.listener.unfollow(channel)
            if new is not None and channel not in new.listener.heard:
                new.listener.follow(channel)
        for node in gone:
            pair = self._others.pop(node)
            self._gone = _add(self._gone, pair)
            self._listening.discard(pair)
            self._speaking.discard(pair)
            self._probed = {c: p for c, p in self._probed.items() if p is not pair}
            await pair.close()
        self._choose_routing()
        self._weigh()

    # -------------------------------------------------------------------------- strangers, figures

    def strangers(self) -> tuple[str, ...]:
        """See `Bus.strangers`."""
        return tuple(self._strangers)

    def _strangers_since(self, since: float) -> bool:
        return any(heard >= since for heard in self._strangers.values())

    def _forget_strangers(self, now: float) -> None:
        # While nothing can be heard, nobody is forgotten.
        if not self._main.listener.is_up:
            return
        long_ago = now - STRANGER_KEPT
        self._strangers = {n: heard for n, heard in self._strangers.items() if heard > long_ago}

    def statistics(self) -> BusStatistics:
        """See `Bus.statistics`."""
        total = self._gone
        for pair in (self._main, *self._others.values()):
            total = _add(total, pair)
        probes = [self._main.probe_seconds, *(p.probe_seconds for p in self._others.values())]
        known = [probe for probe in probes if probe is not None]
        return BusStatistics(
            published=total.published,
            unpublished=total.unpublished + self._unpublished,
            unconfirmed=total.unconfirmed,
            received=self._received + self._sifter.taken,
            ignored=self._ignored + self._sifter.unwanted,
            refused=self._refused,
            duplicates=self._duplicates,
            lost=self._lost_number,
            gaps=self._gaps,
            reconnects=total.reconnects,
            octets_in=total.octets_in,
            octets_out=total.octets_out,
            probe_seconds=max(known) if known else None,
        )


_STREAM_OF: Final = {
    Target.CONNECTION: MESSAGES,
    Target.ROOM: ROOMS,
    Target.USER: USERS,
    Target.ALL: SYSTEM_STREAM,
}
_TARGET_AT: Final = {stream: target for target, stream in _STREAM_OF.items()}
_SHARDED: Final = frozenset({Target.ROOM, Target.USER})
_ALL_TARGETS: Final = frozenset(Target)


def _ignore(_result: object) -> None:
    """Do nothing with an answer."""


def _add(total: BusStatistics, pair: Pair) -> BusStatistics:
    listener, publisher = pair.listener, pair.publisher
    octets = [link.keeper.octets for link in (listener, publisher)]
    again = sum(max(0, link.keeper.made - 1) for link in (listener, publisher))
    return BusStatistics(
        published=total.published + publisher.published,
        unpublished=total.unpublished + publisher.unpublished,
        unconfirmed=total.unconfirmed + publisher.unconfirmed,
        reconnects=total.reconnects + again,
        octets_in=total.octets_in + octets[0][0] + octets[1][0],
        octets_out=total.octets_out + octets[0][1] + octets[1][1],
    )
