"""A worker's bus: the worker's end of the socket pair to its node process.

What the worker publishes reaches its own connections at once and leaves for the hub at the end of
the loop's turn, or about a millisecond later (see `node_pipe`); what it hears of siblings and of
other nodes, it hears from the hub. Whether other nodes can be reached is known from what the hub
has told last. Without the node process there is nothing left to do for a worker: when the pipe
ends, so does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from falcon_fast.bus import BusStatistics, Loss, Receiver, Target
from falcon_fast.bus import node_wire as wire
from falcon_fast.bus.node_pipe import Pipe
from falcon_fast.errors import BusUnavailable

__all__ = ["NodeLink"]

STALL: Final = 120.0
"""Seconds the node process may stand still: without it no worker can serve anybody for long."""

CALL_TIMEOUT: Final = 3.0
"""Seconds the node process has for an answer."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds in which what was published last is sent."""


class NodeLink:
    """A `falcon_fast.bus.Bus` on the pipe to the node process.

    Args:
        on_note: called with the name and the body of each note of the node process.
        on_end: called with the reason when the pipe has ended.

    Attributes:
        pipe: the protocol of this end of the socket pair.
    """

    def __init__(
        self, *, on_note: Callable[[str, bytes], None], on_end: Callable[[str], None]
    ) -> None:
        self.pipe = Pipe(
            on_room=self._take_room, on_frame=self._take, on_end=self._on_end, stall=STALL
        )
        self._on_note = on_note
        self._told_end = on_end
        self._node_id = ""
        self._receiver: Receiver | None = None
        self._state = wire.State()
        self._shards: dict[str, int] = {}  # of rooms of which something was lost
        self._number = 0
        self._sync: asyncio.Future[None] | None = None  # of the follows of this turn
        self._syncs: dict[int, asyncio.Future[None]] = {}
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._last = 0  # connections that the latest message of others was delivered to
        self._has_ended = False

    # -------------------------------------------------------------------- with the node process

    def belongs_to(self, node_id: str) -> None:
        """Say which node this is."""
        self._node_id = node_id

    def note(self, what: str, body: bytes = b"") -> None:
        """Tell the node process something."""
        self.pipe.send(wire.write_note(what, body))

    async def call(self, what: str, body: bytes) -> bytes:
        """Ask the node process something.

        Raises:
            BusUnavailable: it cannot say, or does not answer in time.
        """
        if self._has_ended:
            raise BusUnavailable("the node process is gone")
        self._number += 1
        number = self._number
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self.pipe.send(wire.write_call(number, what, body))
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                return await answer
        except TimeoutError:
            raise BusUnavailable("the node process does not answer") from None
        finally:
            del self._calls[number]

    def _on_end(self, reason: str) -> None:
        self._has_ended = True
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(BusUnavailable("the node process is gone"))
        for done in self._syncs.values():
            if not done.done():
                done.set_result(None)
        self._told_end(reason)

    # -------------------------------------------------------------------------- what it hears

    def _take_room(self, room: str, message: bytes, _: bytes | None) -> None:
        if self._receiver is not None:
            self._last = self._receiver.deliver(Target.ROOM, room, message)

    def _take(self, kind: int, body: bytes) -> None:
        if kind == wire.Kind.NOTE:
            note = wire.read_note(body)
            self._on_note(note.what, note.body)
        elif kind == wire.Kind.STATE:
            self._take_state(wire.read_state(body))
        elif kind == wire.Kind.SYNCED:
            done = self._syncs.pop(wire.read_ticket(body), None)
            if done is not None and not done.done():
                done.set_result(None)
        elif kind == wire.Kind.REPLY:
            self._take_reply(wire.read_reply(body))
        elif self._receiver is not None:
            self._hear(self._receiver, kind, body)

    def _hear(self, receiver: Receiver, kind: int, body: bytes) -> None:
        if kind == wire.Kind.DELIVER:
            self._last = receiver.deliver(*wire.read_delivery(body))
        elif kind == wire.Kind.COUNTED:
            change = wire.read_counted(body)
            # The worker may have left the room while this was on its way.
            if change.room in receiver.rooms:
                receiver.counted(change.process_id, change.room, change.members, change.frame)
        elif kind == wire.Kind.CONFIRM:
            asked = wire.read_confirm(body)
            reached = self._last if asked.was_delivered else 0
            receiver.confirm(asked.process_id, asked.receipt, reached)
        elif kind == wire.Kind.HEARD:
            word = wire.read_word(body)
            receiver.heard(word.node_id or self._node_id, word.control)
        elif kind == wire.Kind.LOST:
            loss, shards = wire.read_lost(body)
            self._take_loss(receiver, loss, shards)
        else:
            raise ValueError(f"the node process sent a frame of kind {kind}")

    def _take_loss(self, receiver: Receiver, loss: Loss, shards: dict[str, int]) -> None:
        self._shards.update(shards)
        receiver.lost(loss)

    def _take_state(self, state: wire.State) -> None:
        was_available, self._state = self._state.is_available, state
        if self._receiver is not None and state.is_available != was_available:
            self._receiver.changed(is_available=state.is_available)

    def _take_reply(self, reply: wire.Reply) -> None:
        answer = self._calls.get(reply.number)
        if answer is None or answer.done():
            return
        if reply.is_well:
            answer.set_result(reply.body)
        else:
            answer.set_exception(BusUnavailable(reply.body.decode()))

    # ------------------------------------------------------------------------------- the bus

    @property
    def is_available(self) -> bool:
        """See `Bus.is_available`."""
        return self._state.is_available

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
        """See `Bus.publish`; a receipt is confirmed by the processes of this node only."""
        receiver = self._receiver
        if receiver is None:
            return 0
        here = receiver.deliver(target, ident, frame)
        if target is Target.ROOM and members is None and receipt is None:
            self.pipe.send(wire.write_room(ident, frame))
        else:
            self.pipe.send(wire.write_publication(target, ident, frame, members, receipt))
        if not self._state.is_available:
            raise BusUnavailable("other nodes were not told")
        return here

    def tell(self, control: bytes, node_id: str | None = None) -> None:
        """See `Bus.tell`; the processes of this node are told in any case."""
        is_inside = node_id == self._node_id
        if is_inside or node_id is None or self._state.is_available:
            self.pipe.send(wire.write_word(wire.Kind.TELL, node_id, control))
        if not is_inside and not self._state.is_available:
            raise BusUnavailable("other nodes were not told")

    def reaches_all(self, target: Target) -> bool:
        """See `Bus.reaches_all`: the hub has those confirm that were not interested."""
        return target in self._state.reaches_all

    def hears(self, target: Target, ident: str) -> bool:
        """See `Bus.hears`; a room that is not followed by this worker is not heard here."""
        if self.reaches_all(target):
            return True
        room = ident if target is Target.ROOM else f"user:{ident}"
        return self._receiver is not None and room in self._receiver.rooms

    def follow(self, room: str) -> Awaitable[None] | None:
        """See `Bus.follow`; what is followed in one turn of the loop is waited for together."""
        self.pipe.send(wire.frame(wire.Kind.FOLLOW, room.encode()))
        if self._has_ended:
            return None
        if self._sync is None:
            loop = asyncio.get_running_loop()
            self._sync = loop.create_future()
            loop.call_soon(self._ask_sync, self._sync)
        return self._sync

    def _ask_sync(self, done: asyncio.Future[None]) -> None:
        self._sync = None
        if self._has_ended:
            if not done.done():
                done.set_result(None)
            return
        self._number += 1
        self._syncs[self._number] = done
        self.pipe.send(wire.write_ticket(wire.Kind.SYNC, self._number))

    def unfollow(self, room: str) -> None:
        """See `Bus.unfollow`."""
        self._shards.pop(room, None)
        self.pipe.send(wire.frame(wire.Kind.UNFOLLOW, room.encode()))

    def shard_of(self, room: str) -> int | None:
        """See `Bus.shard_of`; known of rooms of which the hub has told a loss."""
        return self._shards.get(room)

    def strangers(self) -> tuple[str, ...]:
        """See `Bus.strangers`."""
        return self._state.strangers

    def statistics(self) -> BusStatistics:
        """See `Bus.statistics`; the link to other nodes is the node process's, which counts."""
        return BusStatistics()

    async def close(self) -> None:
        """See `Bus.close`; the pipe stays for what the worker has to say at its end."""
        await self.pipe.drained(CLOSE_TIMEOUT)
        self._receiver = None
