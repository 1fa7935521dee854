"""The other processes of the cluster: who they are, how they are, and questions to them.

A process that holds connections makes itself known with a beat every few seconds and answers what
the others ask. What is asked and told, and what it means, is said by those who register for it (see
`neighbours` and `service`); here is only how it travels. Everything goes through `Bus.tell`, so a
lone process asks nobody and waits for nothing.

*Node* and *process* are two things: a node is what operators start, with one link to the bus; the
connections are held by processes of the node. The id of a node's first process is the node's own,
that of another one is the node's with a dot and something behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import orjson

from falcon_fast.bus import Bus, Target
from falcon_fast.clock import Clock
from falcon_fast.errors import BusUnavailable
from falcon_fast.identity import new_id

__all__ = [
    "ASK_TIMEOUT",
    "BEAT",
    "GONE",
    "SILENT",
    "Answers",
    "Cluster",
    "Json",
    "Peer",
    "Receipt",
    "integer",
    "node_of",
    "text",
    "texts",
]

BEAT: Final = 5.0
"""Seconds between two beats of a process."""

SILENT: Final = 12.0
"""Seconds without a beat after which nobody waits for a process's answer: two beats may be lost."""

GONE: Final = 45.0
"""Seconds without a beat after which a process is taken for dead, with all its connections."""

ASK_TIMEOUT: Final = 1.5
"""Seconds other processes have for an answer; operators are answered within two."""

MAX_PEERS: Final = 4096
"""Processes kept in mind: what a broken sender could invent must have an end."""

Json: TypeAlias = dict[str, object]

Handler: TypeAlias = Callable[[str, Json], Json | Awaitable[Json]]
"""Answers (who asks, what) with an object; raises ValueError when the question makes no sense."""

Listener: TypeAlias = Callable[[str, Json], None]
"""Takes (who tells, what); raises ValueError when it makes no sense."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Peer:
    """Another process, as its latest beat says.

    Attributes:
        process_id: its own id, which the bus knows it by.
        node_id: the node it belongs to.
        connections: that it holds.
        heard_at: when, by the monotonic clock.
    """

    process_id: str
    node_id: str
    connections: int
    heard_at: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back to a question.

    Attributes:
        by_process: the answers.
        missing: ids of the nodes of which something did not answer, sorted.
    """

    by_process: Mapping[str, Json]
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class _Question:
    """A question, or a receipt, that waits for answers."""

    waits_for: set[str]
    done: asyncio.Future[None]
    answers: dict[str, Json] = field(default_factory=dict)
    on_answer: Callable[[str, Json], None] | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """A message whose deliveries on other nodes are to be counted.

    Attributes:
        id: what to give to `Bus.publish`.
    """

    id: str
    question: _Question


class Cluster:
    """The view that one process has of the others.

    Args:
        bus: carries what is told.
        clock: where the time comes from.
        connections: how many this process holds, for its beats.
        node_id: of this node; made up if not given.
        process_id: of this process; that of the node if not given.

    Attributes:
        node_id: of this node.
        process_id: of this process.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        clock: Clock,
        connections: Callable[[], int],
        node_id: str | None = None,
        process_id: str | None = None,
    ) -> None:
        self.node_id = node_id or new_id()
        self.process_id = process_id or self.node_id
        self._bus = bus
        self._clock = clock
        self._connections = connections
        self._peers: dict[str, Peer] = {}
        self._questions: dict[str, _Question] = {}
        self._handlers: dict[str, Handler] = {}
        self._listeners: dict[str, Listener] = {}
        self._came: list[Callable[[str], None]] = []
        self._went: list[Callable[[str, bool], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._beating: asyncio.TimerHandle | None = None

    # --------------------------------------------------------------------------- start and stop

    def start(self) -> None:
        """Make this process known, and ask the others to do the same."""
        self._beat(hello=True)
        self._plan()

    def stop(self) -> None:
        """Say goodbye and wait for nobody any more."""
        if self._beating is None:
            return
        self._beating.cancel()
        self._beating = None
        self._tell_quietly({"op": "bye"})
        for task in self._tasks:
            task.cancel()
        for question in self._questions.values():
            if not question.done.done():
                question.done.set_result(None)

    def hello(self) -> None:
        """Greet the others again, as after an outage: each answers with a beat."""
        if self._beating is not None:
            self._beat(hello=True)

    def _plan(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + BEAT

        def turn() -> None:
            if loop.time() > due + BEAT:
                self.spare()  # this process stood still, and what was told to it waits to be read
            self._plan()
            self._beat()
            self._bury()

        self._beating = loop.call_later(BEAT, turn)

    def _beat(self, *, hello: bool = False, process_id: str | None = None) -> None:
        beat: Json = {"op": "beat", "connections": self._connections()}
        if hello:
            beat["hello"] = True
        self._tell_quietly(beat, process_id)

    def _bury(self) -> None:
        """Take processes for dead that were silent for too long, but not for our own deafness."""
        if not self._bus.is_available:
            return
        long_ago = self._clock.monotonic() - GONE
        for peer in [peer for peer in self._peers.values() if peer.heard_at < long_ago]:
            log.warning("a process is gone", extra={"node_id": peer.node_id})
            self._remove(peer.process_id, has_died=True)

    def _remove(self, process_id: str, *, has_died: bool) -> None:
        if self._peers.pop(process_id, None) is None:
            return
        for question in self._questions.values():
            self._tick_off(question, process_id)
        for went in self._went:
            went(process_id, has_died)

    # ------------------------------------------------------------------------------- who is there

    def on_peer(self, *, came: Callable[[str], None], went: Callable[[str, bool], None]) -> None:
        """Say who is to be told of processes that come and go.

        Args:
            came: called with the id of a process.
            went: called with the id of a process, and whether it has died: it may have told its own
                clients something that no other process was told.
        """
        self._came.append(came)
        self._went.append(went)

    def spare(self) -> None:
        """Give all processes new time to be heard of: it was us who heard nothing."""
        now = self._clock.monotonic()
        for peer in self._peers.values():
            peer.heard_at = now

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The other processes that are taken to be alive."""
        return tuple(self._peers.values())

    @property
    def connections(self) -> int:
        """How many connections this process holds."""
        return self._connections()

    @property
    def nodes(self) -> int:
        """How many nodes there are, this one included."""
        return len({self.node_id, *(peer.node_id for peer in self._peers.values())})

    def bury(self, process_id: str) -> None:
        """Tell everybody that a process of this node has died."""
        self._remove(process_id, has_died=True)
        self._tell_quietly({"op": "bye", "process": process_id, "died": True})

    def _awake(self) -> set[str]:
        recently = self._clock.monotonic() - SILENT
        return {peer.process_id for peer in self._peers.values() if peer.heard_at >= recently}

    # ------------------------------------------------------------------------- asking and telling

    def answers_to(self, what: str, handler: Handler) -> None:
        """Say who answers a kind of question."""
        self._handlers[what] = handler

    def listens_to(self, what: str, listener: Listener) -> None:
        """Say who takes what is told of a kind."""
        self._listeners[what] = listener

    def tell(self, what: str, args: Json, process_id: str | None = None) -> None:
        """Tell something to one process or to all.

        Raises:
            BusUnavailable: it is not sent.
        """
        if process_id is not None or self._peers:
            self._send({"op": "tell", "what": what, "args": args}, process_id)

    def tell_if_possible(self, what: str, args: Json) -> None:
        """Tell something to all processes, which find out by themselves if it does not arrive."""
        try:
            self.tell(what, args)
        except BusUnavailable:
            log.debug("not told: %s", what)

    async def ask(
        self,
        what: str,
        args: Json,
        *,
        process_ids: Iterable[str] | None = None,
        on_answer: Callable[[str, Json], None] | None = None,
    ) -> Answers:
        """Ask other processes, and wait for all that are awake, for `ASK_TIMEOUT` at most.

        Args:
            what: the kind of question.
            args: the question.
            process_ids: whom to ask; all the others if not given. One that is not there is missing.
            on_answer: called with (who, what) for each answer as soon as it comes: what a process
                tells after its answer is heard after it, and must not be undone by it.
        """
        wanted = set(self._peers) if process_ids is None else set(process_ids)
        awake = wanted & self._awake()
        ident = new_id()
        question = self._question(ident, awake)
        question.on_answer = on_answer
        message: Json = {"op": "ask", "id": ident, "what": what, "args": args}
        try:
            if process_ids is None and awake:
                self._send(message)
        except BusUnavailable:
            self._expect_only_ours(question)
        for process_id in awake if process_ids is not None else ():
            try:
                self._send(message, process_id)
            except BusUnavailable:
                self._tick_off(question, process_id)
        return await self._wait(ident, question, wanted)

    def expect(self) -> Receipt:
        """Prepare to count the deliveries of a message on the other nodes."""
        ident = new_id()
        return Receipt(ident, self._question(ident, self._awake()))

    def give_up(self, receipt: Receipt) -> None:
        """Expect nothing any more of a message that was not sent."""
        self._questions.pop(receipt.id, None)

    async def count(self, receipt: Receipt, target: Target, ident: str) -> tuple[int, Answers]:
        """Wait until the others have said to how many connections they delivered a message.

        Args:
            receipt: with which the message was published just now.
            target: whom it is for.
            ident: of whom it is for.

        Returns:
            The number of deliveries on other nodes, and who said it.
        """
        wanted = set(self._peers)
        if not self._bus.reaches_all(target) and receipt.question.waits_for:
            # Who does not follow the room gets nothing and says so at once.
            self._tell_quietly(
                {"op": "expect", "id": receipt.id, "target": target.value, "ident": ident}
            )
        answers = await self._wait(receipt.id, receipt.question, wanted)
        total = sum(integer(answer, "n") for answer in answers.by_process.values())
        return total, answers

    def _question(self, ident: str, waits_for: set[str]) -> _Question:
        question = _Question(waits_for, asyncio.get_running_loop().create_future())
        self._questions[ident] = question
        if not waits_for:
            question.done.set_result(None)
        return question

    async def _wait(self, ident: str, question: _Question, wanted: set[str]) -> Answers:
        try:
            if not question.done.done():
                await asyncio.wait([question.done], timeout=ASK_TIMEOUT)
        finally:
            self._questions.pop(ident, None)
        silent = wanted - question.answers.keys()
        return Answers(question.answers, tuple(sorted({node_of(one) for one in silent})))

    def _expect_only_ours(self, question: _Question) -> None:
        """Wait for the processes of this node only: the bus has told nobody else."""
        for process_id in list(question.waits_for):
            if node_of(process_id) != self.node_id:
                self._tick_off(question, process_id)

    def _tick_off(self, question: _Question, process_id: str) -> None:
        question.waits_for.discard(process_id)
        if not question.waits_for and not question.done.done():
            question.done.set_result(None)

    # ----------------------------------------------------------------------------- what is heard

    def heard(self, node_id: str, control: bytes) -> None:
        """Take what a process of another node, or of this one, has told.

        Args:
            node_id: the node that the bus says it comes from; see `bus.Receiver.heard`.
            control: which may say that it is for one process only.
        """
        try:
            message = orjson.loads(control)
            if not isinstance(message, dict):
                raise TypeError("not an object")
            process_id = text(message, "process") if "process" in message else node_id
            if node_of(process_id) != node_id:
                raise ValueError("a node spoke for a process of another")
            if process_id != self.process_id and message.get("to") in {None, self.process_id}:
                self._act(process_id, message)
        except (TypeError, ValueError) as error:
            log.warning(
                "another node told something strange",
                extra={"kind": "bad_control", "node_id": node_id, "error": str(error)},
            )

    def _act(self, process_id: str, message: Json) -> None:
        operation = message.get("op")
        if operation == "beat":
            self._heard_beat(process_id, message)
        elif operation == "bye":
            self._remove(process_id, has_died=message.get("died") is True)
        elif operation == "ask":
            self._answer(process_id, message)
        elif operation in {"answer", "receipt"}:
            question = self._questions.get(text(message, "id"))
            if question is not None and process_id in question.waits_for:
                if operation == "receipt":
                    question.answers[process_id] = {"n": integer(message, "n")}
                elif isinstance(answer := message.get("answer"), dict):
                    question.answers[process_id] = answer
                    if question.on_answer is not None:
                        question.on_answer(process_id, answer)
                self._tick_off(question, process_id)
        elif operation == "tell":
            listener = self._listeners.get(text(message, "what"))
            if listener is not None:
                listener(process_id, _args(message))
        elif operation == "expect":
            target = Target(text(message, "target"))
            if not self._bus.hears(target, text(message, "ident")):
                self.confirm(process_id, text(message, "id"), 0)

    def _heard_beat(self, process_id: str, message: Json) -> None:
        connections = integer(message, "connections")
        now = self._clock.monotonic()
        peer = self._peers.get(process_id)
        if peer is None:
            if len(self._peers) >= MAX_PEERS:
                return
            self._peers[process_id] = Peer(process_id, node_of(process_id), connections, now)
        else:
            peer.connections, peer.heard_at = connections, now
        if message.get("hello") is True:
            self._beat(process_id=process_id)
        if peer is None:
            for came in self._came:
                came(process_id)

    def _answer(self, process_id: str, message: Json) -> None:
        ident = text(message, "id")
        handler = self._handlers.get(text(message, "what"))
        # A process of another version may ask what this one does not know: it is told so at once.
        answer = handler(process_id, _args(message)) if handler is not None else None
        if answer is None or isinstance(answer, dict):
            self._tell_quietly({"op": "answer", "id": ident, "answer": answer}, process_id)
            return

        async def later(answer: Awaitable[Json]) -> None:
            try:
                found = await answer
            except ValueError as error:
                log.warning("a question of another node failed", extra={"error": str(error)})
                return
            self._tell_quietly({"op": "answer", "id": ident, "answer": found}, process_id)

        task = asyncio.ensure_future(later(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def confirm(self, process_id: str, receipt: str, connections: int) -> None:
        """Tell a process how many got its message here; see `bus.Receiver.confirm`."""
        self._tell_quietly({"op": "receipt", "id": receipt, "n": connections}, process_id)

    def _tell_quietly(self, message: Json, process_id: str | None = None) -> None:
        """Tell what nobody needs to know of if it fails: whoever waits for it has a deadline."""
        try:
            self._send(message, process_id)
        except BusUnavailable:
            log.debug("not told: %s", message["op"])

    def _send(self, message: Json, process_id: str | None = None) -> None:
        """Send a message to one process or to all; raises BusUnavailable."""
        if self.process_id != self.node_id:
            message = {"process": self.process_id, **message}
        node_id = None
        if process_id is not None:
            node_id = node_of(process_id)
            message = {**message, "to": process_id}
        self._bus.tell(orjson.dumps(message), node_id)


def node_of(process_id: str) -> str:
    """Return the node that a process belongs to."""
    return process_id.partition(".")[0]


def _args(message: Json) -> Json:
    args = message.get("args")
    if not isinstance(args, dict):
        raise TypeError("args is not an object")
    return args


def text(values: Mapping[str, object], key: str) -> str:
    """Return a value that must be text.

    Raises:
        ValueError: it is not there, or something else.
    """
    value = values.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text")  # noqa: TRY004
    return value


def integer(values: Mapping[str, object], key: str) -> int:
    """Return a value that must be a whole number from 0; see `text`."""
    value = values.get(key)
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is not a count")
    return value


def texts(value: object) -> list[str]:
    """Return a list that must hold texts only; see `text`."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("not a list of texts")
    return value
