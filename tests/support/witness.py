"""Clients that speak and listen by themselves while a test breaks things, and keep a ledger."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Self

from .client import DEADLINE, Client, Closed, Ended, Message
from .cluster import Cluster
from .ledger import ANNOUNCED_WITHIN, Audit, Ledger, audit
from .server import eventually

LISTENS_FOR: Final = 3600.0


class Witness:
    """A connection that reads all the time, in a thread of its own.

    Args:
        ledger: where it writes what happens to it; it is in its rooms from the start.
        name: of the connection, unique in the ledger.
        client: connected and admitted; only the witness reads from it.

    Attributes:
        others: what came that is neither a message of a witness nor a pong, with the time.
        closed: code and reason of the Close that came, if one came.
        is_connected: whether its connection has not ended.
        rooms: of groups, in which it speaks.
    """

    def __init__(self, ledger: Ledger, name: str, client: Client) -> None:
        self.ledger = ledger
        self.name = name
        self.client = client
        self.others: list[tuple[float, Message]] = []
        self.closed: tuple[int | None, str] | None = None
        self.is_connected = True
        self.rooms = [room for room in client.rooms if room.startswith("group:")]
        self._numbers = itertools.count()
        self._failure: BaseException | None = None
        self._pongs: set[str] = set()
        self._has_quit = False
        for room in client.rooms:
            ledger.join(name, room)
        self._thread = threading.Thread(target=self._listen, name=f"witness {name}", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            while True:
                self._take(self.client.hear(LISTENS_FOR))
        except Closed as closed:
            self.closed = (closed.code, closed.reason)
        except (Ended, OSError):
            # A reset, or we have hung up.
            pass
        except BaseException as failure:
            self._failure = failure
        finally:
            self.is_connected = False
            if not self._has_quit:
                self.ledger.end(self.name)

    def _take(self, message: Message) -> None:
        now = time.monotonic()
        kind, data = message["type"], message.get("data") or {}
        if kind == "message" and "by" in data:
            self.ledger.hear(self.name, data["by"], message["room"], data["n"], now)
            return
        if kind == "system":
            self._pongs.add(message.get("id", ""))
            return
        self.others.append((now, message))
        if kind == "room_update" and data.get("action") == "resync":
            self.ledger.tell(self.name, message.get("room"), now)
        elif kind == "group_membership_change":
            room = f"group:{data['group_id']}"
            if data["joined"]:
                self.ledger.join(self.name, room, now)
            else:
                self.ledger.leave(self.name, room, now)
        elif kind == "error" and message.get("id", "").startswith(f"{self.name}/"):
            _, room, number = message["id"].split("/")
            self.ledger.refuse(self.name, room, int(number))

    @property
    def resyncs(self) -> list[float]:
        """When it was told that it may have missed something."""
        return [told.at for told in list(self.ledger.told) if told.receiver == self.name]

    def say(self, room: str) -> int:
        """Say something in a room; returns its number."""
        number = next(self._numbers)
        self.ledger.say(self.name, room, number)
        self.client.say(
            type="message",
            id=f"{self.name}/{room}/{number}",
            room=room,
            data={"by": self.name, "n": number},
        )
        return number

    def has_heard(self, sender: str, number: int) -> bool:
        """Whether a message has come."""
        return any(
            one.receiver == self.name and one.sender == sender and one.number == number
            for one in reversed(list(self.ledger.heard))
        )

    def sync(self, within: float = DEADLINE) -> None:
        """Wait until everything that this connection's server has to say now is read."""
        ident = f"sync-{next(self._numbers)}"
        self.client.say(id=ident, type="system", data={"action": "ping"})
        eventually(
            lambda: ident in self._pongs or not self.is_connected,
            f"{self.name} is answered",
            within,
        )

    def hang_up(self, *, midway: bool = False) -> None:
        """End the connection without a word.

        Args:
            midway: others go on; without it, all that was said until now must have been heard.
        """
        self._has_quit = True
        if midway:
            self.ledger.quit(self.name)
        with contextlib.suppress(OSError):
            self.client.wire.socket.shutdown(2)
        self._thread.join(DEADLINE)
        self.client.close()
        if self._failure is not None:
            raise AssertionError(f"{self.name} could not go on") from self._failure


class Crowd:
    """Witnesses, of which some speak without a pause.

    Args:
        ledger: of them all.
        interval: seconds between two messages of one speaker.
    """

    def __init__(self, ledger: Ledger | None = None, *, interval: float = 0.02) -> None:
        self.ledger = ledger or Ledger()
        self.witnesses: list[Witness] = []
        self._interval = interval
        self._speakers: dict[str, threading.Thread] = {}
        self._stopped = threading.Event()
        self._failure: BaseException | None = None

    def add(self, name: str, client: Client, *, speaks: bool = False) -> Witness:
        """Let a client listen, and speak in its groups if told so."""
        witness = Witness(self.ledger, name, client)
        self.witnesses.append(witness)
        if speaks:
            self.speak(witness)
        return witness

    def speak(self, witness: Witness) -> None:
        """Let a witness speak in its groups, in turn, until its connection ends or `silence`."""
        thread = threading.Thread(target=self._speak, args=(witness,), daemon=True)
        self._speakers[witness.name] = thread
        thread.start()

    def _speak(self, witness: Witness) -> None:
        try:
            for room in itertools.cycle(witness.rooms):
                if self._stopped.wait(self._interval) or not witness.is_connected:
                    return
                witness.say(room)
        except OSError:
            # The connection has ended under our hands.
            pass
        except BaseException as failure:
            self._failure = failure

    def silence(self) -> None:
        """Let nobody speak any more; what was said is on its way."""
        self._stopped.set()
        for thread in self._speakers.values():
            thread.join(DEADLINE)
        self._speakers.clear()
        self._stopped = threading.Event()
        if self._failure is not None:
            raise AssertionError("a speaker could not go on") from self._failure

    def connected(self) -> Sequence[Witness]:
        """Return the witnesses whose connections have not ended."""
        return [witness for witness in self.witnesses if witness.is_connected]

    def settle(self, within: float = DEADLINE) -> None:
        """Wait until every witness that is connected has heard a last message of each other.

        Until nothing that was said before can be under way any more: order is kept.
        """
        for speaker in self.connected():
            for room in speaker.rooms:
                self._wait_for_last(speaker, room, within)

    def _wait_for_last(self, speaker: Witness, room: str, within: float) -> None:
        listeners = [one for one in self.connected() if room in one.rooms]
        until = time.monotonic() + within
        while True:
            # What is said while a link is made again may be lost: it is said anew.
            number = speaker.say(room)
            missing = [one.name for one in listeners if not _soon(one, speaker, number)]
            if not missing:
                return
            assert time.monotonic() < until, f"{speaker.name} does not reach {missing} in {room}"

    def verdict(self, *, unfinished_within: float | None = None) -> Audit:
        """Silence everybody, wait until all is said and told, and audit the ledger.

        Args:
            unfinished_within: see `audit`.
        """
        self.silence()
        self.settle()
        # What is missing now must be announced in the next seconds, while they still listen.
        until = time.monotonic() + ANNOUNCED_WITHIN + (unfinished_within or 0.0)
        while audit(self.ledger, unfinished_within=unfinished_within).faults:
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        for witness in self.witnesses:
            witness.hang_up()
        return audit(self.ledger, unfinished_within=unfinished_within)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """End all connections."""
        self._stopped.set()
        for witness in self.witnesses:
            with contextlib.suppress(AssertionError):
                witness.hang_up()


def _soon(listener: Witness, speaker: Witness, number: int, within: float = 1.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        if not listener.is_connected or listener.has_heard(speaker.name, number):
            return True
        time.sleep(0.005)
    return False


@contextlib.contextmanager
def away(begin: Callable[[], object], end: Callable[[], object], ledger: Ledger) -> Iterator[None]:
    """Break something for as long as the context lasts, and write down when it is mended."""
    begin()
    try:
        yield
    finally:
        end()
        ledger.repair()


_crowds = itertools.count(1)


@contextlib.contextmanager
def crowd_on(cluster: Cluster, *, interval: float = 0.01) -> Iterator[Crowd]:
    """Gather a crowd: two rooms, two members of both on each node, of whom one speaks.

    Args:
        cluster: where they are connected.
        interval: seconds between two messages of one speaker.
    """
    number = next(_crowds)
    places = range(2 * len(cluster.nodes))
    characters = [100 * number + place for place in places]
    rooms = [cluster.group(f"{name} {number}", *characters) for name in ("Red", "Blue")]
    with Crowd(interval=interval) as crowd:
        for place, character in zip(places, characters, strict=True):
            node = cluster.nodes[place % len(cluster.nodes)]
            client = node.connect(f"user-{character}", character)
            witness = crowd.add(f"{node.name}-{place}", client)
            assert sorted(witness.rooms) == sorted(rooms)
        crowd.settle()
        for witness in crowd.witnesses[: len(cluster.nodes)]:
            crowd.speak(witness)
        time.sleep(0.3)
        yield crowd
