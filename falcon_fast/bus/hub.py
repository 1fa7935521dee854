"""The bus within a node of several processes: joins them with each other and with other nodes.

The node process holds the only link to other nodes, and the hub stands between that and everybody
in the node: it is the receiver of the outer bus, the bus of the node process's own gateway, and the
far end of each worker's `NodeLink`. A message crosses from here to each interested worker once,
whatever the number of its connections there; which workers those are is known from what they
follow. A message of a worker has reached the worker's own connections already; it goes to its
siblings and to the outer bus, once.

So the order that `bus` promises for a room is that of each process: two workers that speak at the
same time have each heard themselves first, as two nodes have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import orjson

from falcon_fast.bus import Bus, BusStatistics, Loss, Receiver, Target
from falcon_fast.bus import node_wire as wire
from falcon_fast.bus.node_pipe import Pipe
from falcon_fast.clock import until_beat
from falcon_fast.errors import BusUnavailable

__all__ = ["Answer", "Branch", "Hub"]

FIRST: Final = 1
"""The node process's own bit in a set of processes; each worker has another one."""

MAX_SETS: Final = 4096
"""Sets of processes whose members are remembered."""

LOOK: Final = 1.0
"""Seconds between two looks at what the outer bus does not tell by itself."""

Answer: TypeAlias = Callable[[str, bytes], bytes | Awaitable[bytes]]
"""Answers (which process calls, what it says); a `BusUnavailable` is told to the caller."""

log = logging.getLogger(__name__)


class _Publishing(NamedTuple):
    """What is being published by a process of this node, while the outer bus delivers it here.

    Attributes:
        origin: the bit of the process.
        process_id: its id.
        members: see `Bus.publish`.
        wired: the frame for a worker, where it came as one.
    """

    origin: int
    process_id: str
    members: int | None
    wired: bytes | None = None


class Branch:
    """A worker, as the hub sees it.

    Args:
        hub: where it belongs.
        process_id: of the worker.
        bit: that stands for it in sets of processes.
        on_note: called with the name and the body of each note from it.
        on_end: called with the reason when nothing more will come from it.

    Attributes:
        pipe: the protocol of this end of the socket pair.
    """

    def __init__(
        self,
        hub: Hub,
        process_id: str,
        bit: int,
        *,
        on_note: Callable[[str, bytes], None],
        on_end: Callable[[str], None],
    ) -> None:
        self.process_id = process_id
        self.bit = bit
        self.waits: set[asyncio.Task[None]] = set()
        self.on_note = on_note
        self.pipe = Pipe(
            on_room=partial(hub.take_room, self),
            on_frame=partial(hub.take, self),
            on_end=self._on_end,
            keeps_frames=True,
        )
        self._hub = hub
        self._told_end = on_end

    def note(self, what: str, body: bytes = b"") -> None:
        """Tell the worker something."""
        self.pipe.send(wire.write_note(what, body))

    def _on_end(self, reason: str) -> None:
        self._hub.detach(self)
        self._told_end(reason)


class Hub:
    """A `Bus` for the node process, a `Receiver` for the outer bus, and what joins the workers.

    Args:
        outer: the bus between nodes.
        node_id: by which the outer bus knows this node; also the id of the node process.
    """

    def __init__(self, outer: Bus, *, node_id: str) -> None:
        self._outer = outer
        self._node_id = node_id
        self._receiver: Receiver | None = None
        self._branches: dict[str, Branch] = {}
        self._bits = FIRST  # in use
        self._members: dict[int, tuple[Branch, ...]] = {}  # of sets of processes
        self._interest: dict[str, int] = {}  # room -> set of the processes that follow it
        self._personal = 0  # of these rooms, those of users
        self._following: dict[str, asyncio.Task[None]] = {}
        self._publishing: _Publishing | None = None
        self._delivered = 0  # the set of processes that got the latest message
        self._answers: dict[str, Answer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._state = wire.State()
        self._look: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------- the workers

    def attach(
        self,
        process_id: str,
        *,
        on_note: Callable[[str, bytes], None],
        on_end: Callable[[str], None],
    ) -> Branch:
        """Make a place for a worker that will be at the other end of `Branch.pipe`.

        Args:
            process_id: of the worker; no other may have it at the same time.
            on_note: called with the name and the body of each note from it.
            on_end: called with the reason when nothing more will come from it.
        """
        if process_id in self._branches:
            raise ValueError(f"{process_id} is there already")
        bit = ~self._bits & (self._bits + 1)  # the lowest that is free
        self._bits |= bit
        branch = Branch(self, process_id, bit, on_note=on_note, on_end=on_end)
        self._branches[process_id] = branch
        self._members.clear()
        branch.pipe.send(wire.write_state(self._state_now()))
        return branch

    def detach(self, branch: Branch) -> None:
        """Forget a worker that has ended; may be called more than once."""
        if self._branches.get(branch.process_id) is not branch:
            return
        del self._branches[branch.process_id]
        self._members.clear()
        for room in [room for room, who in self._interest.items() if who & branch.bit]:
            self._lose_interest(room, branch.bit)
        self._bits &= ~branch.bit
        self._delivered &= ~branch.bit

    def answers_to(self, what: str, answer: Answer) -> None:
        """Say who answers workers' calls of a kind."""
        self._answers[what] = answer

    def count_rooms(self) -> tuple[int, int]:
        """Return how many personal rooms and how many others have members in this node."""
        return self._personal, len(self._interest) - self._personal

    def take_room(self, branch: Branch, room: str, message: bytes, frame: bytes | None) -> None:
        """Take a worker's message to a room.

        Args:
            branch: the worker.
            room: its name.
            message: for its members.
            frame: in which it came: siblings get it as it is.
        """
        publishing = _Publishing(branch.bit, branch.process_id, None, frame)
        self._publish_for(publishing, Target.ROOM, room, message, None)

    def _publish_for(
        self,
        publishing: _Publishing,
        target: Target,
        ident: str,
        frame: bytes,
        receipt: str | None,
    ) -> None:
        try:
            self._publish(publishing, target, ident, frame, receipt)
        except BusUnavailable:
            # The worker has said so by itself, from what it knows of the outer bus.
            log.debug("other nodes were not told of a worker's message")

    def take(self, branch: Branch, kind: int, body: bytes) -> None:
        """Take any other frame of a worker."""
        if kind == wire.Kind.PUBLISH:
            target, ident, frame, members, receipt = wire.read_publication(body)
            publishing = _Publishing(branch.bit, branch.process_id, members)
            self._publish_for(publishing, target, ident, frame, receipt)
        elif kind == wire.Kind.TELL:
            word = wire.read_word(body)
            try:
                self._tell(branch.bit, word.control, word.node_id)
            except (BusUnavailable, ValueError) as error:
                log.debug("a worker's word was not told: %s", error)
        elif kind == wire.Kind.FOLLOW:
            self._gain_interest(body.decode(), branch.bit, branch.waits)
        elif kind == wire.Kind.UNFOLLOW:
            self._lose_interest(body.decode(), branch.bit)
        elif kind == wire.Kind.SYNC:
            self._sync(branch, wire.read_ticket(body))
        elif kind == wire.Kind.CALL:
            self._answer(branch, wire.read_call(body))
        elif kind == wire.Kind.NOTE:
            note = wire.read_note(body)
            branch.on_note(note.what, note.body)
        else:
            raise ValueError(f"a worker sent a frame of kind {kind}")

    def _sync(self, branch: Branch, ticket: int) -> None:
        done = wire.write_ticket(wire.Kind.SYNCED, ticket)
        waits, branch.waits = branch.waits, set()
        waits = {task for task in waits if not task.done()}
        if not waits:
            branch.pipe.send(done)
            return

        async def later() -> None:
            await asyncio.wait(waits)
            branch.pipe.send(done)

        self._spawn(later())

    def _answer(self, branch: Branch, call: wire.Call) -> None:
        async def later(awaited: Awaitable[bytes]) -> None:
            try:
                answer = await awaited
            except BusUnavailable as error:
                refuse(error)
            else:
                branch.pipe.send(wire.write_reply(call.number, answer, is_well=True))

        def refuse(error: Exception) -> None:
            branch.pipe.send(wire.write_reply(call.number, str(error).encode(), is_well=False))

        try:
            answer = self._answers[call.what](branch.process_id, call.body)
        except BusUnavailable as error:
            refuse(error)
            return
        if isinstance(answer, bytes):
            branch.pipe.send(wire.write_reply(call.number, answer, is_well=True))
        else:
            self._spawn(later(answer))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a task failed", exc_info=error)

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)

    def _in(self, who: int) -> tuple[Branch, ...]:
        """Return the workers in a set of processes."""
        found = self._members.get(who)
        if found is None:
            if len(self._members) >= MAX_SETS:
                self._members.clear()
            found = tuple(branch for branch in self._branches.values() if branch.bit & who)
            self._members[who] = found
        return found

    # ---------------------------------------------------------------------------------- interest

    def _gain_interest(self, room: str, bit: int, waits: set[asyncio.Task[None]]) -> None:
        """Note that a process follows a room; what it has to wait for is added to `waits`."""
        before = self._interest.get(room, 0)
        self._interest[room] = before | bit
        if not before:
            self._personal += room.startswith("user:")
        if not before and (follow := self._outer.follow(room)) is not None:
            self._await_follow(room, follow)
        task = self._following.get(room)
        if task is not None:
            waits.add(task)

    def _await_follow(self, room: str, follow: Awaitable[None]) -> None:
        async def wait() -> None:
            await follow

        def done(ended: asyncio.Task[None]) -> None:
            if self._following.get(room) is ended:
                del self._following[room]

        task = asyncio.get_running_loop().create_task(wait())
        self._following[room] = task
        task.add_done_callback(done)

    def _lose_interest(self, room: str, bit: int) -> None:
        before = self._interest.get(room, 0)
        remaining = before & ~bit
        if remaining:
            self._interest[room] = remaining
        elif before:
            del self._interest[room]
            self._personal -= room.startswith("user:")
            self._outer.unfollow(room)

    def _wanted_by(self, target: Target, ident: str) -> int:
        """Return the set of processes that messages for a target are for."""
        if target is Target.ROOM:
            return self._interest.get(ident, 0)
        if target is Target.USER:
            return self._interest.get(f"user:{ident}", 0)
        return self._bits

    # -------------------------------------------------------------- the bus of the node process

    @property
    def is_available(self) -> bool:
        """See `Bus.is_available`."""
        return self._outer.is_available

    async def start(self, receiver: Receiver) -> None:
        """See `Bus.start`."""
        self._receiver = receiver
        await self._outer.start(self)
        self._look_at_outer()

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
        return self._publish(
            _Publishing(FIRST, process_id or self._node_id, members), target, ident, frame, receipt
        )

    def _publish(
        self,
        publishing: _Publishing,
        target: Target,
        ident: str,
        frame: bytes,
        receipt: str | None,
    ) -> int:
        process_id = publishing.process_id
        self._publishing = publishing
        try:
            # The outer bus delivers it here by calling `deliver`, and then sends it.
            return self._outer.publish(
                target,
                ident,
                frame,
                members=publishing.members,
                receipt=receipt,
                process_id=None if process_id == self._node_id else process_id,
            )
        finally:
            self._publishing = None
            if receipt is not None:
                self._ask_to_confirm(process_id, receipt, publishing.origin)

    def tell(self, control: bytes, node_id: str | None = None) -> None:
        """See `Bus.tell`; the workers of this node are told in any case."""
        self._tell(FIRST, control, node_id)

    def _tell(self, origin: int, control: bytes, node_id: str | None) -> None:
        if node_id in {None, self._node_id}:
            whom = None if node_id is None else _addressee(control)
            self._hand_in(control, self._node_id, whom, self._bits & ~origin)
        if node_id != self._node_id:
            self._outer.tell(control, node_id)

    def reaches_all(self, target: Target) -> bool:
        """See `Bus.reaches_all`."""
        return self._outer.reaches_all(target)

    def hears(self, target: Target, ident: str) -> bool:
        """See `Bus.hears`."""
        return self._outer.hears(target, ident)

    def follow(self, room: str) -> Awaitable[None] | None:
        """See `Bus.follow`."""
        waits: set[asyncio.Task[None]] = set()
        self._gain_interest(room, FIRST, waits)
        return next(iter(waits), None)

    def unfollow(self, room: str) -> None:
        """See `Bus.unfollow`."""
        self._lose_interest(room, FIRST)

    def shard_of(self, room: str) -> int | None:
        """See `Bus.shard_of`."""
        return self._outer.shard_of(room)

    def strangers(self) -> tuple[str, ...]:
        """See `Bus.strangers`."""
        return self._outer.strangers()

    def statistics(self) -> BusStatistics:
        """See `Bus.statistics`."""
        return self._outer.statistics()

    async def close(self) -> None:
        """See `Bus.close`; the workers have ended before."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        for task in (*self._tasks, *self._following.values()):
            task.cancel()
        await self._outer.close()
        self._receiver = None

    # ---------------------------------------------------------------- the receiver of other nodes

    @property
    def rooms(self) -> Container[str]:
        """See `Receiver.rooms`: those with a connection on any process of this node."""
        return self._interest

    def deliver(self, target: Target, ident: str, frame: bytes) -> int:
        """Hand a message to the processes it is for.

        Returns:
            To how many connections of the node process, and of workers to how many workers: 0 says
            that nobody in this node is meant.
        """
        who = self._wanted_by(target, ident)
        publishing = self._publishing
        if publishing is not None:
            who &= ~publishing.origin
            if publishing.members is not None:
                self._hand_counted(publishing.process_id, ident, publishing.members, frame, who)
            else:
                self._hand_out(target, ident, frame, who, publishing.wired)
            self._delivered = who
            # To the publisher itself: what a worker publishes is delivered there before it is sent.
            if publishing.origin != FIRST or self._receiver is None:
                return 0
            return self._receiver.deliver(target, ident, frame)
        self._delivered = who
        return self._hand_out(target, ident, frame, who)

    def _hand_out(
        self, target: Target, ident: str, frame: bytes, who: int, wired: bytes | None = None
    ) -> int:
        reached = 0
        branches = self._in(who)
        if branches:
            if target is Target.ROOM:
                message = wired or wire.write_room(ident, frame)
            else:
                message = wire.write_delivery(target, ident, frame)
            for branch in branches:
                branch.pipe.send(message)
            reached = len(branches)
        if who & FIRST and self._receiver is not None:
            reached += self._receiver.deliver(target, ident, frame)
        return reached

    def counted(self, process_id: str, room: str, members: int, frame: bytes) -> None:
        """See `Receiver.counted`."""
        self._hand_counted(process_id, room, members, frame, self._interest.get(room, 0))

    def _hand_counted(
        self, process_id: str, room: str, members: int, frame: bytes, who: int
    ) -> None:
        branches = self._in(who)
        if branches:
            message = wire.write_counted(process_id, room, members, frame)
            for branch in branches:
                branch.pipe.send(message)
        if who & FIRST and self._receiver is not None:
            self._receiver.counted(process_id, room, members, frame)

    def confirm(self, node_id: str, receipt: str, connections: int) -> None:
        """Have each process say how many got a message; who was not given it says so too."""
        if not connections:
            self._delivered = 0  # nobody was meant, or it was not even delivered here
        self._ask_to_confirm(node_id, receipt, 0, connections)

    def _ask_to_confirm(
        self, process_id: str, receipt: str, origin: int, connections: int = 0
    ) -> None:
        """Ask all processes but the one that published a message to confirm it.

        Args:
            process_id: who wants to know.
            receipt: of which message.
            origin: the bit of a process that is not asked.
            connections: what `deliver` returned, for a message of another node.
        """
        delivered, self._delivered = self._delivered, 0
        for branch in self._in(self._bits & ~origin):
            was_delivered = bool(delivered & branch.bit)
            branch.pipe.send(wire.write_confirm(process_id, receipt, was_delivered=was_delivered))
        if not origin & FIRST and self._receiver is not None:
            mine = connections - len(self._in(delivered)) if delivered & FIRST else 0
            self._receiver.confirm(process_id, receipt, max(0, mine))

    def heard(self, node_id: str, control: bytes) -> None:
        """See `Receiver.heard`."""
        self._hand_in(control, node_id, _addressee(control), self._bits)

    def _hand_in(self, control: bytes, node_id: str, whom: str | None, who: int) -> None:
        """Give what was told to one process of this node, or to all in a set."""
        if whom is None:
            branches: Iterable[Branch] = self._in(who)
        else:
            branch = self._branches.get(whom)
            branches = () if branch is None else (branch,)
        if branches:
            message = wire.write_word(wire.Kind.HEARD, node_id, control)
            for branch in branches:
                branch.pipe.send(message)
        is_for_first = who & FIRST and whom in {None, self._node_id}
        if is_for_first and self._receiver is not None:
            self._receiver.heard(node_id, control)

    def lost(self, loss: Loss) -> None:
        """See `Receiver.lost`; a worker learns which of its rooms are concerned."""
        for branch in self._branches.values():
            shards: dict[str, int] = {}
            for room in self._interest if loss.shards is not None else ():
                shard = self._outer.shard_of(room) if self._interest[room] & branch.bit else None
                if shard is not None and loss.shards is not None and shard in loss.shards:
                    shards[room] = shard
            branch.pipe.send(wire.write_lost(loss, shards))
        if self._receiver is not None:
            self._receiver.lost(loss)

    def changed(self, *, is_available: bool) -> None:
        """See `Receiver.changed`."""
        self._tell_state()
        if self._receiver is not None:
            self._receiver.changed(is_available=is_available)

    def _look_at_outer(self) -> None:
        self._tell_state()
        loop = asyncio.get_running_loop()
        self._look = loop.call_later(until_beat(loop.time(), LOOK), self._look_at_outer)

    def _tell_state(self) -> None:
        state = self._state_now()
        if state != self._state:
            self._state = state
            message = wire.write_state(state)
            for branch in self._branches.values():
                branch.pipe.send(message)

    def _state_now(self) -> wire.State:
        outer = self._outer
        return wire.State(
            outer.is_available,
            frozenset(target for target in Target if outer.reaches_all(target)),
            outer.strangers(),
        )


def _addressee(control: bytes) -> str | None:
    """Return the process that a control message is for, None if it is for all."""
    try:
        message = orjson.loads(control)
    except orjson.JSONDecodeError:
        return None  # whoever takes it says that it is strange
    whom = message.get("to") if isinstance(message, dict) else None
    return whom if isinstance(whom, str) else None
