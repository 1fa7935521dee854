"""How far this process has heard each other node: duplicates, gaps, and what will never come.

Pure: time and epochs are given. Every node numbers what it sends, from 1, in each of its streams
(a channel, or a shard), and begins a new epoch with each start. From time to time it announces how
far it is, so that the loss of the last messages before a silence is found as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

__all__ = ["BASELINE", "DROP", "UNKNOWN", "Positions", "Record"]

BASELINE: Final = 0
"""Verdict: in order, or the first that could be heard."""

DROP: Final = -1
"""Verdict: heard before, or of an epoch that is over."""

UNKNOWN: Final = -2
"""Verdict: to be taken, but others before it are missing, and nobody knows how many."""

NEVER: Final = -1
"""A stream of which nothing was heard yet and of which nothing need have been heard."""

UNSURE: Final = -2
"""The same, but something may have been missed."""

TOLERANCE: Final = 1.0
"""Seconds until an announcement about shards is believed: it comes by another way than they."""

KEPT: Final = 600.0
"""Seconds for which a silent node is kept in mind."""

MAX_NODES: Final = 4096
"""Nodes kept in mind: what a broken sender could invent must have an end."""


@dataclass(slots=True)
class Record:
    """What was heard of one node.

    Attributes:
        epoch: of its messages.
        last: number of the latest message in each stream, or NEVER or UNSURE.
        heard: when something came from it.
        is_complete: whether a stream that was silent so far would begin at 1.
        word_epoch: of what it tells nodes.
        words: latest number of what it tells to all, and to this one.
        is_sharded: whether it uses shards, None while it has not said.
        told: its latest announcement, None before the first.
    """

    epoch: int
    last: list[int]
    heard: float
    is_complete: bool = False
    word_epoch: int = 0
    words: list[int] = field(default_factory=lambda: [0, 0])
    is_sharded: bool | None = None
    told: Mapping[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Claim:
    due: float
    node_id: str
    epoch: int
    at: Mapping[int, int]
    before: Mapping[int, int] | None

    def is_news(self, stream: int) -> bool:
        """Whether something was said in a stream since the announcement before, if there was one.

        It may have been said before the stream was followed; nothing tells the two apart, and one
        `resync` too many is better than one too few.
        """
        return self.before is not None and self.before.get(stream, 0) != self.at[stream]


class Positions:
    """The records of all other nodes.

    Args:
        streams: how many streams a node has in all.
        ordered: how many of these, the first ones, come by the same way as announcements do, so
            that these can be believed at once.

    Attributes:
        is_settled: whether this process has listened for so long that it knows all nodes: what is
            unknown then has begun since, or was missed.
        since: the epoch, in milliseconds since 1970, from which on no beginning can be missed.
        now: the time, set by the caller; used for everything that is heard.
        records: by node; `_core.Sifter` looks into them as well.
    """

    def __init__(self, streams: int, ordered: int) -> None:
        self.is_settled = False
        self.since = 0
        self.now = 0.0
        self._streams = streams
        self._ordered = ordered
        self._followed: set[int] = set()
        self.records: Final[dict[str, Record]] = {}
        self._claims: list[_Claim] = []

    def get(self, node_id: str) -> Record | None:
        """Return what was heard of a node."""
        return self.records.get(node_id)

    def live(self, since: float) -> set[str]:
        """Return the nodes of which something was heard since a time."""
        return {node_id for node_id, record in self.records.items() if record.heard >= since}

    def all_sharded(self, since: float) -> bool:
        """Whether each node heard of since a time has said that it uses shards."""
        return all(record.is_sharded for record in self.records.values() if record.heard >= since)

    def take(self, node_id: str, stream: int, epoch: int, seq: int) -> int:
        """Note a message.

        Returns:
            BASELINE, DROP, UNKNOWN, or how many messages before this one are missing.
        """
        record = self.records.get(node_id)
        if record is not None and record.epoch == epoch and record.last[stream] + 1 == seq:
            # Numbers begin at 1, so neither NEVER nor UNSURE leads here.
            record.last[stream] = seq
            record.heard = self.now
            return BASELINE
        return self._odd(record, node_id, stream, epoch, seq)

    def _odd(self, record: Record | None, node_id: str, stream: int, epoch: int, seq: int) -> int:
        if seq < 1:
            return DROP
        if record is None:
            record = self._new(node_id, epoch)
            if record is None:
                return BASELINE
        elif epoch != record.epoch:
            if epoch < record.epoch:
                return DROP
            self._restart(record, epoch)
        record.heard = self.now
        last = record.last[stream]
        if last >= 0 and seq <= last:
            return DROP
        record.last[stream] = seq
        if last == NEVER:
            return BASELINE
        if last == UNSURE:
            return UNKNOWN if seq > 1 else BASELINE
        missing = seq - last - 1
        return missing if missing == 0 or last > 0 else self._since_its_start(record, missing)

    def _since_its_start(self, record: Record, missing: int) -> int:
        """Say how many are missing of a stream of which nothing was heard before."""
        return missing if record.epoch >= self.since else UNKNOWN

    def _new(self, node_id: str, epoch: int) -> Record | None:
        if len(self.records) >= MAX_NODES and not self.forget():
            return None
        record = Record(epoch, [], self.now, is_complete=self.is_settled)
        record.last = self._beginning(0 if self.is_settled else NEVER)
        self.records[node_id] = record
        return record

    def _restart(self, record: Record, epoch: int) -> None:
        record.epoch = epoch
        record.last = self._beginning(0)
        record.is_complete = True

    def _beginning(self, first: int) -> list[int]:
        last = [first] * self._ordered
        last.extend(
            first if stream in self._followed else NEVER
            for stream in range(self._ordered, self._streams)
        )
        return last

    # -------------------------------------------------------------------------- what nodes tell

    def accept(self, node_id: str, lane: int, epoch: int, seq: int) -> bool:
        """Note what a node tells nodes, which counts by itself and may have gaps.

        Args:
            node_id: who.
            lane: 0 for what it tells to all, 1 for what it tells to this one.
            epoch: of the words.
            seq: of the words.

        Returns:
            Whether it is new; what is not may be a replay.
        """
        record = self.records.get(node_id)
        if record is None:
            record = self._new(node_id, epoch)
            if record is None:
                return False
        if epoch > record.word_epoch:
            record.word_epoch = epoch
            record.words = [0, 0]
        elif epoch < record.word_epoch:
            return False
        if seq <= record.words[lane]:
            return False
        record.words[lane] = seq
        record.heard = self.now
        return True

    def announced(self, node_id: str, epoch: int, at: Mapping[int, int]) -> dict[int, int]:
        """Compare with what a node says it has sent, after `accept`.

        The node's own word is the truth. Where more was heard than it sent, somebody else has
        spoken in its name, and what it said since was dropped.

        Args:
            node_id: who.
            epoch: of the announcement.
            at: number of its latest message in each stream where there was one.

        Returns:
            The ordered streams with missing messages, and how many these are, or UNKNOWN. What
            other streams miss comes out of `overdue` later.
        """
        record = self.records.get(node_id)
        if record is None:
            return {}
        found: dict[int, int] = {}
        if record.epoch != epoch:
            if record.epoch > epoch:
                found = dict.fromkeys(range(self._ordered), UNKNOWN)
            self._restart(record, epoch)
        for stream in range(self._ordered):
            sent = at.get(stream, 0)
            last = record.last[stream]
            record.last[stream] = sent
            if last == sent or stream in found:
                continue
            if last == NEVER and not record.is_complete:
                continue
            if last < 0 or last > sent:
                if sent or last > 0:
                    found[stream] = UNKNOWN
            else:
                found[stream] = sent - last if last else self._since_its_start(record, sent)
        record.is_complete = True
        before, record.told = record.told, at
        for stream in self._followed:
            if record.last[stream] == NEVER and stream not in at:
                record.last[stream] = 0  # so whatever it says there is said from now on
        if claimed := {s: n for s, n in at.items() if s in self._followed}:
            self._claims.append(_Claim(self.now + TOLERANCE, node_id, epoch, claimed, before))
        return found

    def overdue(self) -> list[tuple[str, dict[int, int]]]:
        """Return what announcements say of other streams and did not arrive in time.

        Returns:
            For each node the streams with missing messages, and how many, or UNKNOWN.
        """
        found = []
        while self._claims and self._claims[0].due <= self.now:
            claim = self._claims.pop(0)
            record = self.records.get(claim.node_id)
            if record is None or record.epoch != claim.epoch:
                continue
            missing: dict[int, int] = {}
            for stream, sent in claim.at.items():
                last = record.last[stream]
                if last >= sent or stream not in self._followed:
                    continue
                record.last[stream] = sent
                if last == UNSURE or (last == NEVER and claim.is_news(stream)):
                    missing[stream] = UNKNOWN
                elif last >= 0:
                    missing[stream] = sent - last
            if missing:
                found.append((claim.node_id, missing))
        return found

    # ------------------------------------------------------------------------- streams and links

    def follow(self, stream: int, *, is_sure: bool) -> None:
        """Begin to hear a stream that is not ordered.

        Args:
            stream: which.
            is_sure: whether it is heard from now on; if not, something may be missed until it is.
        """
        self._followed.add(stream)
        self._forget_claims(stream)
        for record in self.records.values():
            record.last[stream] = NEVER if is_sure else UNSURE

    def unfollow(self, stream: int) -> None:
        """Stop hearing a stream that is not ordered."""
        self._followed.discard(stream)
        for record in self.records.values():
            record.last[stream] = NEVER

    def deaf(self, streams: Iterable[int]) -> None:
        """Note that streams are not heard for now, so that some of it may be missed."""
        for stream in streams:
            if stream < self._ordered or stream in self._followed:
                for record in self.records.values():
                    if record.last[stream] == NEVER:
                        record.last[stream] = UNSURE

    def _forget_claims(self, stream: int) -> None:
        """Drop what was announced before a stream was heard: it was not meant for us."""
        self._claims = [
            replace(c, at={s: n for s, n in c.at.items() if s != stream}) if stream in c.at else c
            for c in self._claims
        ]

    def forget(self) -> int:
        """Forget nodes that were silent for long; return how many."""
        long_ago = self.now - KEPT
        gone = [node_id for node_id, record in self.records.items() if record.heard < long_ago]
        for node_id in gone:
            del self.records[node_id]
        return len(gone)
