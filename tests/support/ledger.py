"""The accounting: who said what when, who heard it, and who was told that something is missing.

Threads write into a `Ledger` while a test runs, all with one monotonic clock. Afterwards `audit`
proves from it, or says why not, that

* nobody heard a room outside of the time of his membership,
* what one sender said in one room was heard in that order and never twice,
* whoever missed something was told so in time, by a `resync` or by the end of his connection.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

ANNOUNCED_WITHIN: Final = 5.0
"""Seconds between a loss, or the end of what caused it, and its announcement."""

SETTLED: Final = 1.0
"""Seconds before a member's end in a room in which a message need not reach him any more, and
before a sender's end in which the server need not have read what he wrote."""

REMOVED_WITHIN: Final = 1.0
"""Seconds a member who was removed may still hear the room, if another node removed him."""

MAX_FAULTS: Final = 20
"""Faults that a failure lists."""


class Said(NamedTuple):
    """A message that was written to a connection of the sender's."""

    sender: str
    room: str
    number: int
    at: float


class Heard(NamedTuple):
    """A message that was read from a connection of the receiver's."""

    receiver: str
    sender: str
    room: str
    number: int
    at: float


class Told(NamedTuple):
    """A `resync` that was read; without a room it is for all rooms."""

    receiver: str
    room: str | None
    at: float


@dataclass(slots=True)
class Stay:
    """Somebody's time in a room."""

    begin: float
    end: float = float("inf")


@dataclass(slots=True)
class Ledger:
    """What is written down while a test runs; a name stands for one connection.

    Attributes:
        repairs: when what was broken worked again.
        ends: when a connection was found to have been ended by the server.
        quits: when a client ended his connection himself, while the others went on.
        refusals: messages whose senders were told that they were not sent to everybody.
    """

    said: list[Said] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    stays: defaultdict[tuple[str, str], list[Stay]] = field(
        default_factory=lambda: defaultdict(list)
    )
    ends: dict[str, float] = field(default_factory=dict)
    quits: dict[str, float] = field(default_factory=dict)
    repairs: list[float] = field(default_factory=list)
    refusals: set[tuple[str, str, int]] = field(default_factory=set)

    def say(self, sender: str, room: str, number: int, at: float | None = None) -> None:
        """Write down a message, before it is sent."""
        self.said.append(Said(sender, room, number, _at(at)))

    def hear(
        self, receiver: str, sender: str, room: str, number: int, at: float | None = None
    ) -> None:
        """Write down a message that came."""
        self.heard.append(Heard(receiver, sender, room, number, _at(at)))

    def refuse(self, sender: str, room: str, number: int) -> None:
        """Write down that a sender was told that a message was not sent to everybody."""
        self.refusals.add((sender, room, number))

    def tell(self, receiver: str, room: str | None = None, at: float | None = None) -> None:
        """Write down a `resync` that came."""
        self.told.append(Told(receiver, room, _at(at)))

    def join(self, receiver: str, room: str, at: float | None = None) -> None:
        """Write down that a member knows that he is in a room."""
        self.stays[receiver, room].append(Stay(_at(at)))

    def leave(self, receiver: str, room: str, at: float | None = None) -> None:
        """Write down that a member knows that he is in a room no longer."""
        self.stays[receiver, room][-1].end = _at(at)

    def end(self, name: str, at: float | None = None) -> None:
        """Write down that a connection was ended by the server, and with it every membership."""
        moment = _at(at)
        self.ends[name] = moment
        self._end_stays(name, moment)

    def quit(self, name: str, at: float | None = None) -> None:
        """Write down that a client has left by himself: he cannot be told of anything any more."""
        moment = _at(at)
        self.quits[name] = moment
        self._end_stays(name, moment)

    def _end_stays(self, name: str, moment: float) -> None:
        for (receiver, _), stays in list(self.stays.items()):
            if receiver == name:
                stays[-1].end = min(stays[-1].end, moment)

    def repair(self, at: float | None = None) -> None:
        """Write down that what was broken works again."""
        self.repairs.append(_at(at))


def _at(at: float | None) -> float:
    return time.monotonic() if at is None else at


@dataclass(slots=True)
class Audit:
    """What a ledger proves.

    Attributes:
        counts: how often each thing happened; see `COUNTS`.
        faults: what must not have happened, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def require(self, **at_least: int) -> None:
        """Fail the test if there are faults, or if something happened less often than it should.

        Args:
            at_least: counts, so that a test in which nothing happened does not pass.
        """
        listed = "\n".join(self.faults[:MAX_FAULTS])
        assert not self.faults, f"{len(self.faults)} faults, {self}:\n{listed}"
        for name, number in at_least.items():
            assert name in COUNTS, name
            assert self.counts[name] >= number, f"{name} only {self.counts[name]}: {self}"

    def __str__(self) -> str:
        return ", ".join(f"{name} {self.counts[name]}" for name in COUNTS)


COUNTS: Final = (
    # Messages: written by senders; never taken by a server whose connection to the sender ended;
    # answered with an error.
    "said",
    "untaken",
    "refused",
    # Deliveries: wanted, made; missing and announced; missing since the receiver's own connection,
    # or membership, ended before he had to be told; the last ones of a sender whose connection
    # ended, announced and not.
    "wanted",
    "heard",
    "announced",
    "ended",
    "unfinished_announced",
    "unfinished",
    # Heard in the second after a removal.
    "late",
    # Faults.
    "silent",
    "duplicate",
    "disorder",
    "outside",
    "unsaid",
)


def audit(ledger: Ledger, *, unfinished_within: float | None = None) -> Audit:
    """Prove what can be proved from a ledger that nobody writes into any more.

    Args:
        ledger: all that happened.
        unfinished_within: seconds after a sender's end within which others must be told that his
            last messages may be missing; None if they need not be told.
    """
    return _Auditor(ledger, unfinished_within).run()


class _Auditor:
    def __init__(self, ledger: Ledger, unfinished_within: float | None) -> None:
        self.ledger = ledger
        self.unfinished_within = unfinished_within
        self.result = Audit()
        self.repairs = sorted(ledger.repairs)
        self.told: dict[str, list[Told]] = defaultdict(list)
        for told in ledger.told:
            self.told[told.receiver].append(told)
        # For each receiver, sender and room: the numbers heard, in the order in which they came.
        self.streams: dict[tuple[str, str, str], list[Heard]] = defaultdict(list)
        for heard in ledger.heard:
            self.streams[heard.receiver, heard.sender, heard.room].append(heard)
        self.taken = {(one.sender, one.room, one.number) for one in ledger.heard}

    def run(self) -> Audit:
        self.result.counts["said"] = len(self.ledger.said)
        self.result.counts["heard"] = len(self.ledger.heard)
        self.result.counts["refused"] = len(self.ledger.refusals)
        self._check_streams()
        self._check_losses()
        return self.result

    def _fault(self, kind: str, text: str) -> None:
        self.result.counts[kind] += 1
        self.result.faults.append(f"{kind}: {text}")

    # ------------------------------------------------------------------- what somebody heard

    def _check_streams(self) -> None:
        said = {(one.sender, one.room, one.number) for one in self.ledger.said}
        for (receiver, sender, room), stream in self.streams.items():
            seen: set[int] = set()
            last = -1
            stays = self.ledger.stays.get((receiver, room), [])
            for one in stream:
                what = f"{receiver} heard {sender} #{one.number} in {room} at {one.at:.3f}"
                if (sender, room, one.number) not in said:
                    self._fault("unsaid", what)
                if one.number in seen:
                    self._fault("duplicate", what)
                elif one.number < last:
                    self._fault("disorder", f"{what}, after #{last}")
                seen.add(one.number)
                last = max(last, one.number)
                if any(stay.begin <= one.at <= stay.end for stay in stays):
                    continue
                if any(stay.begin <= one.at <= stay.end + REMOVED_WITHIN for stay in stays):
                    self.result.counts["late"] += 1
                else:
                    self._fault("outside", what)

    # ------------------------------------------------------------------- what somebody missed

    def _check_losses(self) -> None:
        members: dict[str, list[tuple[str, list[Stay]]]] = defaultdict(list)
        for (receiver, room), stays in list(self.ledger.stays.items()):
            members[room].append((receiver, stays))
        heard = {key: {one.number: None for one in stream} for key, stream in self.streams.items()}
        for said in self.ledger.said:
            if self._is_untaken(said):
                continue
            for receiver, stays in members[said.room]:
                stay = next((s for s in stays if s.begin < said.at < s.end - SETTLED), None)
                if stay is None:
                    continue
                self.result.counts["wanted"] += 1
                key = (receiver, said.sender, said.room)
                if said.number not in heard.get(key, ()):
                    self._check_loss(receiver, said, stay.end)

    def _is_untaken(self, said: Said) -> bool:
        """Whether a server never got hold of a message, or has told its sender of the failure."""
        key = (said.sender, said.room, said.number)
        if key in self.taken:
            return False
        if key in self.ledger.refusals:
            return True
        end = self.ledger.ends.get(said.sender)
        if end is None or said.at < end - SETTLED:
            self._fault(
                "silent", f"nobody heard {said.sender} #{said.number} in {said.room}, not even he"
            )
        self.result.counts["untaken"] += 1
        return True

    def _check_loss(self, receiver: str, said: Said, left: float) -> None:
        counts = self.result.counts
        deadline = self._deadline(said.at)
        if self._was_told(receiver, said, deadline):
            counts["announced"] += 1
            return
        never = float("inf")
        end = min(self.ledger.ends.get(receiver, never), self.ledger.quits.get(receiver, never))
        if min(end, left) <= deadline:
            counts["ended"] += 1
            return
        what = f"{receiver} missed {said.sender} #{said.number} in {said.room}"
        what += f", said at {said.at:.3f}, unannounced at {deadline:.3f}"
        if not self._is_unfinished(receiver, said):
            self._fault("silent", what)
        elif self.unfinished_within is None:
            counts["unfinished"] += 1
        elif self._was_told(receiver, said, self.ledger.ends[said.sender] + self.unfinished_within):
            counts["unfinished_announced"] += 1
        else:
            self._fault("silent", f"{what}, nor after its sender's end")

    def _deadline(self, at: float) -> float:
        """Return when a loss must have been announced: after the next repair, if there is one."""
        following = bisect_left(self.repairs, at)
        begin = self.repairs[following] if following < len(self.repairs) else at
        return begin + ANNOUNCED_WITHIN

    def _was_told(self, receiver: str, said: Said, deadline: float) -> bool:
        return any(
            said.at <= told.at <= deadline and told.room in {None, said.room}
            for told in self.told.get(receiver, ())
        )

    def _is_unfinished(self, receiver: str, said: Said) -> bool:
        """Whether it is one of the last things a sender said before his connection ended.

        Either just before, or with his knowledge that it was not sent to everybody: a node that
        was cut off and dies before it is back can tell nobody else.
        """
        end = self.ledger.ends.get(said.sender)
        is_known = (said.sender, said.room, said.number) in self.ledger.refusals
        if end is None or (said.at < end - SETTLED and not is_known):
            return False
        stream = self.streams.get((receiver, said.sender, said.room), [])
        return all(one.number < said.number for one in stream)
