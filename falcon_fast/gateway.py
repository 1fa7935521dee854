"""The server clients connect to: births, live sessions, deliveries, and the drain at the end.

Everything that is said reaches clients through one door, `deliver`, whether it comes from a client
of this node or from the bus.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import Counter
from collections.abc import Collection, Coroutine, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Final, Literal, Protocol, TypeAlias

import orjson

from falcon_fast import envelope, handshake
from falcon_fast._core import Core, Seats
from falcon_fast.admission import Admissions
from falcon_fast.auth import TokenVerifier
from falcon_fast.bus import Bus, BusStatistics, Loss, Target
from falcon_fast.clock import Clock, until_beat
from falcon_fast.cluster import Cluster
from falcon_fast.codes import CloseReason, close_table
from falcon_fast.directory import Directory
from falcon_fast.driver import CoreDriver
from falcon_fast.errors import BusUnavailable
from falcon_fast.handshake import Accept, Endpoint, Policy, Refuse, Request
from falcon_fast.identity import Identity, new_id
from falcon_fast.memberships import Memberships
from falcon_fast.neighbours import Neighbours
from falcon_fast.presence import Presence
from falcon_fast.registrar import Registrar
from falcon_fast.registry import Registry
from falcon_fast.revocation import Revocation
from falcon_fast.rooms import Rooms, user_room
from falcon_fast.session import Session, State
from falcon_fast.settings import MAX_SLOTS, Settings
from falcon_fast.statistics import (
    Health,
    Histogram,
    Share,
    Statistics,
    status_document,
    worst,
)
from falcon_fast.throttle import Throttle
from falcon_fast.upgrade import Listener, adopt, listen, plain_answer, server_port

__all__ = ["Crew", "Gateway", "Listens"]

RETRY_AFTER_FULL: Final = 5.0
RETRY_AFTER_DRAINING: Final = 2.0
RETRY_AFTER_NO_KEYS: Final = 5.0
"""Seconds after which a refused client should come again."""

WAITING_ABOVE_FULL: Final = 128
"""Connections that may still ask when the node is full, to be told so.

Each holds a descriptor of the 256 that `FALCON_MAX_CONNECTIONS` leaves free.
"""

DRAIN_STEP: Final = 0.1
"""Seconds between two batches of closes."""

DRAIN_RATE: Final = 1000.0
"""Connections that a node closes a second when time allows, so that others are not stormed."""

SWEEP_BATCH: Final = 512
"""Connections looked at for revoked tokens before the loop gets its turn."""

SWEEP_INTERVAL: Final = 0.25
"""Seconds between two looks at all connections: revocations that come one by one share them."""

COUNT_EVERY: Final = 1.0
"""Seconds between two reports of how many are in the rooms that somebody watches."""

MISBEHAVIOUR: Final = frozenset(
    {
        CloseReason.PROTOCOL_ERROR,
        CloseReason.UNSUPPORTED_DATA,
        CloseReason.INVALID_PAYLOAD,
        CloseReason.POLICY_VIOLATION,
        CloseReason.TOO_MANY_FRAGMENTS,
        CloseReason.TOO_MANY_ERRORS,
        CloseReason.EARLY_DATA,
        CloseReason.MESSAGE_TOO_BIG,
        CloseReason.INTERNAL_ERROR,
        CloseReason.RATE_LIMITED,
        CloseReason.BAD_PROTOCOL_USE,
        CloseReason.CONNECTION_LIMIT,
    }
)
"""What a client can bring about as often as it likes: the log gets samples of these ends."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a message.

    Attributes:
        connections: to how many it was queued, on all nodes.
        missing: ids of nodes that did not say how many of theirs.
        strangers: ids of nodes of the original program, which never say.
    """

    connections: int
    missing: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()


Listens: TypeAlias = Literal["alone", "shared", "nowhere"]
"""Whether a gateway has a port of its own, shares it with siblings, or accepts nobody."""


class Crew(Protocol):
    """The other processes of this node, for a gateway whose node has several."""

    def share(self) -> Share:
        """Return what is known of them."""

    async def drain(self) -> None:
        """Have those drained that this process answers for."""


class Gateway:
    """One listening server and everybody connected to it.

    In a node of several processes each has a gateway: those of workers share the port, that of the
    node process accepts nobody and speaks for all.

    Args:
        settings: limits and addresses.
        clock: where the time comes from.
        bus: how messages travel.
        directory: who belongs where.
        verifier: checks tokens.
        tls: the certificate of the public listener.
        epoll: False to leave all connections on their asyncio transports.
        alone: whether the bus reaches this process only.
        registry: where it is written down who is connected where, if there are other nodes.
        node_id: by which the bus knows this node; made up if there are no others.
        process_id: of this process, if its node has several.
        listens: how clients reach it.
        crew: the other processes of the node, if it has several.

    Attributes:
        cluster: the other processes.
        neighbours: what is told to them and heard of them.
        handshakes: how many opening handshakes ended how: the label of a refusal, or `accepted`.
        closes: how many connections ended for each close reason, by its ordinal.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        bus: Bus,
        directory: Directory,
        verifier: TokenVerifier,
        tls: ssl.SSLContext | None = None,
        epoll: bool = True,
        alone: bool = True,
        registry: Registry | None = None,
        node_id: str | None = None,
        process_id: str | None = None,
        listens: Listens = "alone",
        crew: Crew | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.cluster = Cluster(
            bus,
            clock=clock,
            connections=lambda: self.core.count,
            node_id=node_id,
            process_id=process_id,
        )
        self.node_id = self.cluster.node_id
        self.clock = clock
        self.max_json_depth = settings.max_json_depth
        self.heartbeat_interval = settings.ping_interval
        self.handshake_timeout = settings.handshake_timeout
        self.waiting = 0
        self.handshakes: Counter[str] = Counter()
        self.closes = [0] * len(CloseReason)
        self.policy = policy_of(settings)
        self.core: Core[Session] = Core(
            on_message=self._on_message,
            on_close=self._on_close,
            on_refused=self._on_refused,
            on_expire=Session.expired,
            on_error=self._on_error,
            schedule=loop.call_soon,
            close_table=close_table(),
            clock=clock.monotonic,
            # A closed connection keeps its slot until its peer has hung up, for a second at most.
            max_connections=min(MAX_SLOTS, settings.max_connections + WAITING_ABOVE_FULL),
            max_message_bytes=settings.max_message_bytes,
            max_fragments=settings.max_fragments,
            max_queue_bytes=settings.max_queue_bytes,
            max_queue_messages=settings.max_queue_messages,
            write_timeout=settings.write_timeout,
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            message_rate=settings.message_rate,
            message_burst=settings.message_burst,
            max_rooms=settings.max_rooms,
            deflate_min_bytes=settings.compression_min_bytes,
            deflate_level=settings.compression_level,
            epoll=epoll,
        )
        self.rooms: Rooms[Session] = Rooms(
            self.core,
            clock=clock,
            max_rooms=settings.max_rooms,
            events_max=settings.room_events_max,
            publish=self._tell_room,
            alone=alone,
            opened=None if alone else self._room_opened,
            closed=None if alone else bus.unfollow,
            touched=None if registry is None else self._touched,
        )
        self.presence: Presence[Session] = Presence(loop.call_later, watched=self._watched)
        self.neighbours = Neighbours(self, self.cluster)
        self.memberships = Memberships(self, directory)
        self._settings = settings
        self._loop = loop
        self._driver = CoreDriver(self.core, loop)
        self._registrar = (
            None
            if registry is None
            else Registrar(
                registry,
                cluster=self.cluster,
                rooms=self.rooms,
                sessions=self.core.owners,
                statistics=self.statistics,
                evict=self._evict,
                clock=clock,
                limit=settings.max_connections_per_user,
                replaces=settings.connection_limit_policy == "replace",
            )
        )
        self.admissions = Admissions(
            self, directory=directory, bus=bus, registrar=self._registrar, alone=alone
        )
        self._bus = bus
        self._directory = directory
        self._verifier = verifier
        self._tls = tls
        self._throttle = Throttle(settings.connection_rate, settings.connection_burst, clock=clock)
        self._sessions: Seats[Session] = Seats()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping = False
        self._unswept = False
        self._server: Listener | None = None
        self._counting: asyncio.TimerHandle | None = None
        self._alone = alone
        self._listens = listens
        self._crew = crew
        self._draining = False
        self._closed = False
        self._last_connection: float | None = None
        self._from_service = 0

    # --------------------------------------------------------------------------- start and stop

    async def start(self) -> None:
        """Begin to accept connections.

        Raises:
            OSError: the address cannot be bound.
            BusUnavailable: the bus cannot be reached.
        """
        self.memberships.watch()
        await self._bus.start(self)
        self.cluster.start()
        if self._registrar is not None:
            self._registrar.start()
        self._driver.start()
        self._count_rooms()
        if self._listens != "nowhere":
            self._server = await listen(
                self,
                host=self._settings.host,
                port=self._settings.port,
                tls=self._tls,
                reuse_port=self._listens == "shared",
                adopts=self.core.epoll_fd >= 0,
                greets=True,
            )

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        if self._listens == "nowhere":
            return self._settings.port
        if self._server is None:
            raise RuntimeError("the gateway is not listening")
        return server_port(self._server)

    @property
    def url(self) -> str:
        """The address a client on this machine connects to."""
        host = self._settings.host
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        host = f"[{host}]" if ":" in host else host
        scheme = "ws" if self._tls is None else "wss"
        return f"{scheme}://{host}:{self.port}{self._settings.websocket_path}"

    async def drain(self) -> None:
        """Refuse new connections, and ask everybody to come back elsewhere.

        Closes in batches of random order, spread so that the clients do not all arrive at another
        node at once, and within the drain timeout. Returns when all are gone or time is up.
        """
        self._draining = True
        if self._crew is not None:
            await self._crew.drain()
        leaving = self.core.owners()
        random.shuffle(leaving)
        # A fifth of the time is kept for Close frames to be answered.
        budget = self._settings.drain_timeout * 0.8
        spread = min(budget, len(leaving) * self._settings.workers / DRAIN_RATE)
        steps = max(1, round(spread / DRAIN_STEP))
        for step in range(steps):
            for session in leaving[step::steps]:
                session.close(CloseReason.SERVICE_RESTART)
            if step + 1 < steps:
                await asyncio.sleep(DRAIN_STEP * random.uniform(0.5, 1.5))
        # Who connected between the refusal and its flag, and the last goodbyes.
        for session in self.core.owners():
            session.close(CloseReason.SERVICE_RESTART)
        if leaving:
            await asyncio.sleep(min(1.0, self._settings.drain_timeout * 0.1))

    async def close(self) -> None:
        """Stop listening and end whatever is left, at once. May be called more than once."""
        self._draining = self._closed = True
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None
        # The connections first: their messages could start tasks that nobody would wait for.
        self._driver.stop()
        self.presence.close()
        self.cluster.stop()
        self.admissions.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._registrar is not None:
            await self._registrar.close()
        await self._bus.close()

    # ----------------------------------------------------------------- births (upgrade.Door)

    @property
    def max_waiting(self) -> int:
        """See `upgrade.Door`."""
        return self._settings.max_connections - self.core.count + WAITING_ABOVE_FULL

    def decide(self, request: Request, peer_ip: str) -> Accept | Refuse:
        """See `upgrade.Door`."""
        if self._draining:
            return handshake.draining(RETRY_AFTER_DRAINING)
        if self.core.count >= self._settings.max_connections:
            return handshake.full(RETRY_AFTER_FULL)
        if not self._verifier.is_ready:
            return handshake.no_keys(RETRY_AFTER_NO_KEYS)
        address = handshake.client_address(request, peer_ip, self.policy)
        wait = self._throttle.wait(address)
        if wait:
            return handshake.too_many_connections(wait)
        return handshake.decide(
            request,
            self.policy,
            verify=self._verifier.verify,
            is_banned=self._directory.is_banned,
            peer_ip=peer_ip,
        )

    def answer(self, endpoint: Endpoint) -> bytes:
        """See `upgrade.Door`."""
        if endpoint.name == "status":
            return plain_answer(
                "200 OK", orjson.dumps(self.status()), content_type="application/json"
            )
        if endpoint.name == "readyz" and (problem := self.problem) is not None:
            return plain_answer("503 Service Unavailable", f"{problem}\n".encode())
        return plain_answer("200 OK", b"ready\n" if endpoint.name == "readyz" else b"ok\n")

    @property
    def own_problem(self) -> str | None:
        """Why this process would turn away who connects now; None if it would not."""
        if self._draining:
            return "draining"
        if not self._directory.is_available:
            return "users and groups are unavailable"
        if not self._bus.is_available:
            return "other nodes are out of reach"
        if not self._verifier.is_ready:
            return "there are no keys for tokens yet"
        if not self._verifier.revocations.is_complete:
            return "revoked tokens are not known yet"
        return None

    @property
    def problem(self) -> str | None:
        """Why the node is not ready; None if it is."""
        own = self.own_problem
        return own if own is not None or self._crew is None else self._crew.share().problem

    def refused(self, refuse: Refuse) -> None:
        """See `upgrade.Door`."""
        self.handshakes[refuse.label] += 1
        log.debug(
            "handshake refused",
            extra={"kind": refuse.label, "status": refuse.status, "reason": refuse.label},
        )

    def born(self, accept: Accept, transport: asyncio.Transport, early: bytes) -> None:
        """See `upgrade.Door`."""
        self.handshakes["accepted"] += 1
        identity = accept.identity
        now = self.clock.time()
        session = Session(
            self,
            new_id(),
            identity,
            remote_address=accept.remote_address,
            created_at=now,
        )
        if self._closed:
            transport.abort()  # its 101 left in the loop's turn in which the server ended
            return
        try:
            session.conn = adopt(
                self.core, transport, session, early=early, paused=True, deflate=accept.deflate
            )
        except OSError:
            log.warning("no room for another connection")
            transport.abort()
            return
        self._sessions.add(session)
        self._last_connection = now
        if self._is_revoked(identity):
            session.close(CloseReason.REVOKED)  # between its handshake and now
            return
        others = self.rooms.members(user_room(identity.user_id))
        # With a registry, which of a user's connections is the oldest is not for us to say alone.
        is_ours = self._registrar is None or not self._registrar.is_available
        if len(others) >= self._settings.max_connections_per_user:
            if self._settings.connection_limit_policy == "reject":
                session.close(CloseReason.CONNECTION_LIMIT)
                return
            if is_ours:
                min(others, key=lambda other: other.created_at).close(CloseReason.REPLACED)
        session.welcome()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("connection opened", extra=self._who(session))
        self._directory.track(identity.user_id, identity.character_id)
        self.admissions.begin(session)

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """See `neighbours.Host`."""

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("a task failed", exc_info=error)

        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)

    def run(self, session: Session, work: Coroutine[object, object, None]) -> None:
        """See `admission.Host`."""

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                self.failed(session, error)

        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)

    def failed(self, session: Session, error: BaseException) -> None:
        """See `admission.Host`."""
        # Half admitted it would wait for ever.
        self._on_error(error)
        session.close(CloseReason.INTERNAL_ERROR)

    def refresh(self, session: Session) -> None:
        """See `session.Host`."""
        self.admissions.refresh(session)

    def _room_opened(self, name: str) -> None:
        self.admissions.follow(name)
        self.neighbours.room_opened(name)

    def _touched(self, session: Session, name: str) -> None:
        if self._registrar is not None:
            self._registrar.changed(session)
            self._registrar.room_changed(name)

    async def bury(self, process_id: str) -> None:
        """Let everybody know that a worker of this node is dead, and clear up after it."""
        self.cluster.bury(process_id)
        if self._registrar is not None:
            await self._registrar.bury(process_id)

    async def _evict(self, connection_id: str) -> None:
        session = self.find(connection_id)
        if session is not None:
            session.close(CloseReason.REPLACED)
        else:
            await self.neighbours.close(connection_id, CloseReason.REPLACED)

    def _watched(self, users: list[str]) -> None:
        self.neighbours.watched(users)

    def rooms_of_user(self, user_id: str) -> frozenset[str] | None:
        """See `neighbours.Host`."""
        for session in self.rooms.members(user_room(user_id)):
            if self.admissions.is_admitted(session):
                return frozenset(self.rooms.names_of(session))
        return None

    def is_settled(self, session: Session) -> bool:
        """See `memberships.Host`."""
        return self.admissions.is_settled(session)

    def renamed(self, session: Session) -> None:
        """See `memberships.Host`."""
        if self._registrar is not None:
            self._registrar.changed(session)

    # ------------------------------------------------------------------------- revoked tokens

    def close_revoked(self, rules: Collection[Revocation]) -> None:
        """Close the connections that rules are about, which have just come into force."""
        for user_id in {rule.target for rule in rules if rule.kind == "user"}:
            for session in self.rooms.members(user_room(user_id)):
                if self._is_revoked(session.identity):
                    session.close(CloseReason.REVOKED)
        if any(rule.kind != "user" for rule in rules):
            self._unswept = True
            if not self._sweeping:
                self._sweeping = True
                self.spawn(self._sweep())

    async def _sweep(self) -> None:
        """Look at all connections; who connects meanwhile is looked at when it is born."""
        try:
            while self._unswept:
                self._unswept = False
                for number, session in enumerate(self.core.owners(), 1):
                    if self._is_revoked(session.identity):
                        session.close(CloseReason.REVOKED)
                    if number % SWEEP_BATCH == 0:
                        await asyncio.sleep(0)
                await asyncio.sleep(SWEEP_INTERVAL)
        finally:
            self._sweeping = False

    def _is_revoked(self, identity: Identity) -> bool:
        revocations = self._verifier.revocations
        return revocations.any and revocations.covers(identity)

    # --------------------------------------------------------------------- what the core tells

    def _on_message(self, session: Session, payload: bytes, is_text: bool) -> None:
        session.handle(payload, is_text=is_text)

    def _on_refused(self, session: Session, first: bytes, number: int) -> None:
        session.refused(first, number)

    def _on_error(self, error: BaseException) -> None:
        log.error("a connection failed", exc_info=error)

    def _on_close(self, session: Session, reason: int, code: int) -> None:
        user_id = session.identity.user_id
        was_admitted = self.admissions.is_admitted(session)
        rooms = frozenset(self.rooms.names_of(session))
        self.rooms.leave_all(session)
        session.closed()
        self._sessions.remove(session)
        if self._registrar is not None:
            self._registrar.gone(session)
        self.admissions.forget(session)
        self.presence.unwatch(session)
        if rooms and user_room(user_id) not in self.rooms:
            self._directory.forget(user_id)
        if was_admitted and self.admissions.is_only_one(session):
            self.neighbours.user_went(user_id, rooms)
        self.closes[reason] += 1
        self._log_life(session, CloseReason(reason), code)

    def _log_life(self, session: Session, reason: CloseReason, code: int) -> None:
        """Write the one line that a connection gets."""
        if not log.isEnabledFor(logging.INFO):
            return
        fields: dict[str, object] = {
            **self._who(session),
            "reason": reason.label,
            "code": code,
            "seconds": round(self.clock.time() - session.created_at, 3),
        }
        if reason in MISBEHAVIOUR:
            fields["kind"] = reason.label  # one client could fill the log with these
        log.info("connection closed", extra=fields)

    def _who(self, session: Session) -> dict[str, object]:
        return {
            "connection_id": session.id,
            "user_id": session.identity.user_id,
            "character_id": session.identity.character_id,
            "remote_address": session.remote_address,
            "node_id": self.node_id,
        }

    # ------------------------------------------------------------------- what is said, and heard

    def publish(self, target: Target, ident: str, frame: bytes) -> int:
        """See `session.Host`."""
        return self._bus.publish(target, ident, frame)

    async def send(self, target: Target, ident: str, frame: bytes) -> Sent:
        """Publish a frame on behalf of an operator or a host program, and count who gets it.

        Raises:
            BusUnavailable: other nodes were not told; this node's connections were.
        """
        self._from_service += 1
        if self._alone:
            return Sent(self._bus.publish(target, ident, frame))
        if target is Target.CONNECTION and self.find(ident) is not None:
            # It is nowhere else, so nobody else need be reached.
            return Sent(self.deliver(target, ident, frame))
        receipt = self.cluster.expect()
        try:
            here = self._bus.publish(target, ident, frame, receipt=receipt.id)
        except BusUnavailable:
            self.cluster.give_up(receipt)
            raise
        elsewhere, answers = await self.cluster.count(receipt, target, ident)
        return Sent(here + elsewhere, answers.missing, self._bus.strangers())

    def deliver(self, target: Target, ident: str, frame: bytes) -> int:
        """Queue a frame to this node's connections; the one way in for everything that is said.

        See `bus.Receiver`.

        Returns:
            To how many connections.
        """
        if target is Target.ROOM:
            return self.rooms.fan_out(ident, frame)
        if target is Target.USER:
            event = envelope.membership_event(frame)
            if event is not None:
                return self.memberships.heard(ident, event)
            profile = envelope.profile_event(frame)
            if profile is not None:
                self.memberships.on_profile(ident, *profile)
            return self.rooms.fan_out(user_room(ident), frame)
        if target is Target.ALL:
            return self.core.broadcast(frame)
        session = self._sessions.find(ident)
        if session is None:
            return 0
        session.send(frame)
        return 1

    @property
    def has_others(self) -> bool:
        """See `session.Host`."""
        return bool(self.cluster.peers)

    def direct_elsewhere(
        self,
        session: Session,
        ident: str | None,
        to: str,
        message: bytes,
        *,
        found: bool,
        shared: bool,
    ) -> None:
        """See `session.Host`."""

        async def ask() -> None:
            there = await self.neighbours.direct(to, rooms, message)
            if session.state is not State.CLOSED:
                session.directed(
                    ident,
                    found=found or there.found,
                    shared=shared or there.shared,
                    missing=there.missing,
                )

        rooms = self.rooms.names_of(session)
        self.run(session, ask())

    def counted(self, process_id: str, room: str, members: int, frame: bytes) -> None:
        """See `bus.Receiver`."""
        self.rooms.heard_change(process_id, room, members, frame)

    def confirm(self, node_id: str, receipt: str, connections: int) -> None:
        """See `bus.Receiver`."""
        self.cluster.confirm(node_id, receipt, connections)

    def heard(self, node_id: str, control: bytes) -> None:
        """See `bus.Receiver`."""
        self.cluster.heard(node_id, control)

    def lost(self, loss: Loss) -> None:
        """See `bus.Receiver`."""
        log.warning(
            "messages of other nodes were lost",
            extra={"kind": "bus_loss", "node_id": loss.node_id or "unknown", "number": loss.number},
        )
        self.neighbours.lost(loss)

    def changed(self, *, is_available: bool) -> None:
        """See `bus.Receiver`."""
        if is_available:
            log.info("other nodes are within reach")
            self.cluster.spare()
            self.cluster.hello()
        else:
            log.warning("other nodes are out of reach; messages are delivered on this node only")

    def resync(self, losses: list[Loss], rooms: Iterable[str]) -> None:
        """See `neighbours.Host`."""
        now = self.clock.time()
        number = sum(loss.number for loss in losses) if all(loss.number for loss in losses) else 0
        if any(loss.shards is None for loss in losses):
            self.core.broadcast(envelope.resync(number=number, now=now))
            return
        shards = {shard for loss in losses for shard in loss.shards or ()}
        names = {name for name in rooms if name in self.rooms}
        if shards:
            names.update(name for name in self.rooms.names() if self._bus.shard_of(name) in shards)
        for name in names:
            self.rooms.fan_out(name, envelope.resync(number=0, room=name, now=now))

    def _tell_room(self, room: str, frame: bytes, members: int) -> None:
        process_id = self.cluster.process_id
        try:
            self._bus.publish(
                Target.ROOM,
                room,
                frame,
                members=members,
                process_id=None if process_id == self.node_id else process_id,
            )
        except BusUnavailable:
            # The members here were told; the others will hear the count when the bus is back.
            log.debug("other nodes were not told of a room's change", extra={"room": room})

    def _count_rooms(self) -> None:
        self.rooms.tell_counts()
        wait = until_beat(self._loop.time(), COUNT_EVERY)
        self._counting = self._loop.call_later(wait, self._count_rooms)

    def find(self, connection_id: str) -> Session | None:
        """See `session.Host`."""
        return self._sessions.find(connection_id)

    def verify(self, token: str) -> Identity:
        """See `session.Host`."""
        return self._verifier.verify(token)

    # ---------------------------------------------------------------------------------- status

    @property
    def own_health(self) -> Health:
        """How this process is."""
        if self._draining:
            return "unhealthy"
        is_whole = (
            self._directory.is_available
            and self._bus.is_available
            and not self.admissions.are_pending
        )
        return "healthy" if is_whole else "degraded"

    @property
    def health(self) -> Health:
        """How the node is."""
        own = self.own_health
        return own if self._crew is None else worst(own, self._crew.share().health)

    @property
    def bus_statistics(self) -> BusStatistics:
        """What the bus has done so far."""
        return self._bus.statistics()

    @property
    def is_bus_available(self) -> bool:
        """Whether other nodes can be reached, as far as is known."""
        return self._bus.is_available

    @property
    def nodes(self) -> int:
        """How many nodes are known, this one and those of the original program included."""
        return self.cluster.nodes + len(self._bus.strangers())

    @property
    def strangers(self) -> tuple[str, ...]:
        """Ids of nodes of the original program heard of lately."""
        return self._bus.strangers()

    @property
    def messages_from_service(self) -> int:
        """How many messages operators and host programs have sent here."""
        return self._from_service

    @property
    def lag(self) -> Histogram:
        """How late the event loop was, in seconds."""
        return self._driver.lag

    def own_statistics(self) -> Statistics:
        """Return what this process has done so far."""
        bus = self._bus.statistics()
        taken = bus.received - bus.ignored - bus.refused
        return Statistics(
            total_connections=self.core.adopted,
            active_connections=self.core.count,
            total_rooms=len(self.rooms),
            messages_processed=self.core.messages_in + self._from_service + max(0, taken),
            messages_broadcast=self.core.deliveries,
            last_connection_time=self._last_connection,
        )

    def statistics(self) -> Statistics:
        """Return what the node has done so far."""
        own = self.own_statistics()
        if self._crew is None:
            return own
        whole = own + self._crew.share().statistics
        return replace(whole, total_rooms=sum(self.room_counts()))

    def room_counts(self) -> tuple[int, int]:
        """Return how many personal rooms and how many others have members in this node."""
        if self._crew is not None:
            share = self._crew.share()
            return share.personal_rooms, share.group_rooms
        personal = self.rooms.count("personal")
        return personal, len(self.rooms) - personal

    def status(self) -> dict[str, object]:
        """Return what `GET /websocket/status` answers."""
        return status_document(
            self.statistics(),
            health=self.health,
            is_alone=not self._bus.is_available,
            node_id=self.node_id,
            nodes=self.nodes,
            websocket_url=self._settings.websocket_url,
        )


def policy_of(settings: Settings) -> Policy:
    """Return what the settings say about opening handshakes."""
    return Policy(
        path=settings.websocket_path,
        cookie_name=settings.cookie_name,
        cookie_auth=settings.cookie_auth,
        allowed_origins=frozenset(settings.allowed_origins) - {"*"},
        allow_any_origin="*" in settings.allowed_origins,
        trusted_proxies=tuple(ip_network(proxy) for proxy in settings.trusted_proxies),
        max_head_bytes=settings.max_head_bytes,
        compression=settings.compression,
    )
