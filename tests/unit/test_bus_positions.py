"""Positions: every message is new, late, or behind a gap, and every silence is accounted for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_fast.bus import positions as module
from falcon_fast.bus.positions import (
    BASELINE,
    DROP,
    KEPT,
    TOLERANCE,
    UNKNOWN,
    Positions,
)
from falcon_fast.bus.shards import LINGER, SHARDS, Interest, shard_of

ANN, BOB = "ann", "bob"
ORDERED = 2
SHARD = 3
EPOCH = 1_000


def make(*, settled: bool = True, since: int = EPOCH) -> Positions:
    positions = Positions(5, ordered=ORDERED)
    positions.since = since
    positions.is_settled = settled
    return positions


def test_in_order_again_and_behind_a_gap() -> None:
    positions = make()
    assert [positions.take(ANN, 0, EPOCH, seq) for seq in (1, 2, 2, 1, 5, 4, 6)] == [
        *(BASELINE, BASELINE, DROP, DROP, 2, DROP, BASELINE)
    ]
    assert positions.take(ANN, 1, EPOCH, 2) == 1, "each stream counts by itself"
    assert positions.take(BOB, 0, EPOCH, 1) == BASELINE
    assert positions.take(ANN, 0, EPOCH, 0) == DROP


def test_the_first_that_is_heard_depends_on_how_long_this_process_listens() -> None:
    assert make(settled=False).take(ANN, 0, EPOCH, 50) == BASELINE
    assert make().take(ANN, 0, EPOCH, 50) == 49, "it began while we listened"
    assert make().take(ANN, 0, EPOCH - 1, 50) == UNKNOWN, "it was there before us"
    assert make().take(ANN, 0, EPOCH - 1, 1) == BASELINE


def test_x09_a_new_epoch_begins_anew_and_an_old_one_is_over() -> None:
    positions = make()
    assert positions.take(ANN, 0, EPOCH, 7) == 6
    assert positions.take(ANN, 0, EPOCH + 5, 2) == 1
    assert positions.take(ANN, 0, EPOCH, 8) == DROP
    assert positions.take(ANN, 1, EPOCH + 5, 1) == BASELINE


def test_an_announcement_finds_the_lost_end() -> None:
    positions = make()
    positions.take(ANN, 0, EPOCH, 1)
    assert positions.announced(ANN, EPOCH, {0: 4, 1: 2}) == {0: 3, 1: 2}
    assert positions.announced(ANN, EPOCH, {0: 4, 1: 2}) == {}
    assert positions.take(ANN, 0, EPOCH, 4) == DROP, "it was told as lost"
    assert positions.take(ANN, 0, EPOCH, 5) == BASELINE


def test_the_first_announcement_is_where_a_newcomer_begins() -> None:
    positions = make(settled=False)
    assert positions.accept(ANN, 0, EPOCH, 1)
    positions.take(ANN, 0, EPOCH, 7)
    assert positions.announced(ANN, EPOCH, {0: 7, 1: 9}) == {}
    assert positions.take(ANN, 1, EPOCH, 10) == BASELINE
    assert positions.take(BOB, 0, EPOCH, 7) == BASELINE
    assert positions.announced(BOB, EPOCH, {0: 9}) == {0: 2}
    assert positions.take(BOB, 1, EPOCH, 2) == 1


def test_a_node_that_was_forgotten_may_have_said_anything() -> None:
    positions = make()
    assert positions.accept(ANN, 0, EPOCH - 1, 1)
    assert positions.announced(ANN, EPOCH - 1, {0: 3}) == {0: UNKNOWN}
    assert positions.announced(BOB, EPOCH, {0: 3}) == {}, "of whom nothing was accepted"


def test_x10_who_speaks_in_anothers_name_silences_it_only_until_it_announces() -> None:
    positions = make()
    positions.take(ANN, 0, EPOCH, 1)
    assert positions.take(ANN, 0, EPOCH, 1_000_000) == 999_998
    assert positions.take(ANN, 0, EPOCH, 2) == DROP
    assert positions.announced(ANN, EPOCH, {0: 2}) == {0: UNKNOWN}
    assert positions.take(ANN, 0, EPOCH, 3) == BASELINE
    assert positions.take(ANN, 0, EPOCH + 9, 1) == BASELINE
    assert positions.take(ANN, 0, EPOCH, 4) == DROP
    assert positions.announced(ANN, EPOCH, {0: 4}) == {0: UNKNOWN, 1: UNKNOWN}
    assert positions.take(ANN, 0, EPOCH, 5) == BASELINE
    assert positions.announced(ANN, EPOCH + 9, {0: 1}) == {0: 1}


def test_words_are_taken_once() -> None:
    positions = make()
    steps = [(0, 1, 1), (0, 1, 1), (1, 1, 1), (0, 1, 5), (0, 1, 4), (0, 2, 1), (0, 1, 9)]
    assert [positions.accept(ANN, lane, EPOCH + e, n) for lane, e, n in steps] == [
        *(True, False, True, True, False, True, False)
    ]


def test_shards_are_believed_after_a_while() -> None:
    positions = make()
    positions.follow(SHARD, is_sure=True)
    assert positions.take(ANN, SHARD, EPOCH, 1) == BASELINE
    assert positions.announced(ANN, EPOCH, {SHARD: 3, 4: 8}) == {}
    positions.now = TOLERANCE - 0.01
    assert positions.overdue() == []
    assert positions.take(ANN, SHARD, EPOCH, 2) == BASELINE
    positions.now = TOLERANCE
    assert positions.overdue() == [(ANN, {SHARD: 1})]
    assert positions.overdue() == []
    assert positions.take(ANN, SHARD, EPOCH, 3) == DROP
    assert positions.announced(ANN, EPOCH, {SHARD: 4}) == {}
    assert positions.take(ANN, SHARD, EPOCH, 4) == BASELINE
    positions.now *= 3
    assert positions.overdue() == []


def test_a_shard_begins_with_what_is_heard_first() -> None:
    positions = make()
    positions.take(ANN, 0, EPOCH, 1)
    positions.announced(ANN, EPOCH, {0: 1, SHARD: 4})
    positions.follow(SHARD, is_sure=True)
    positions.announced(ANN, EPOCH, {0: 1, SHARD: 5})
    assert positions.take(ANN, SHARD, EPOCH, 5) == BASELINE, "it was under way"
    positions.now = TOLERANCE
    assert positions.overdue() == []
    positions.unfollow(SHARD)
    positions.follow(SHARD, is_sure=True)
    positions.announced(ANN, EPOCH, {0: 1, SHARD: 5})
    positions.now *= 2
    assert positions.overdue() == []
    assert positions.take(ANN, SHARD, EPOCH, 7) == 1


def test_a_shard_in_which_nothing_was_said_begins_at_one() -> None:
    positions = make()
    positions.take(ANN, 0, EPOCH, 1)
    positions.follow(SHARD, is_sure=True)
    positions.announced(ANN, EPOCH, {0: 1})
    positions.announced(ANN, EPOCH, {0: 1, SHARD: 2})
    positions.now = TOLERANCE
    assert positions.overdue() == [(ANN, {SHARD: 2})]


def test_what_was_said_around_the_time_a_shard_was_followed_may_be_missing() -> None:
    positions = make()
    positions.take(ANN, 0, EPOCH, 1)
    positions.announced(ANN, EPOCH, {0: 1, SHARD: 5})
    positions.follow(SHARD, is_sure=True)
    positions.announced(ANN, EPOCH, {0: 1, SHARD: 7})
    positions.now = TOLERANCE
    assert positions.overdue() == [(ANN, {SHARD: UNKNOWN})]
    assert positions.take(ANN, SHARD, EPOCH, 9) == 1


def test_what_was_announced_before_a_shard_was_heard_is_not_missing() -> None:
    positions = make()
    positions.follow(SHARD, is_sure=True)
    positions.take(ANN, SHARD, EPOCH, 1)
    positions.announced(ANN, EPOCH, {SHARD: 9})
    positions.announced(ANN, EPOCH, {0: 0})
    positions.unfollow(SHARD)
    positions.follow(SHARD, is_sure=True)
    positions.now = TOLERANCE
    assert positions.overdue() == []


def test_an_announcement_that_is_overtaken_by_a_restart_means_nothing() -> None:
    positions = make()
    positions.follow(SHARD, is_sure=True)
    positions.take(ANN, SHARD, EPOCH, 1)
    positions.announced(ANN, EPOCH, {SHARD: 9})
    assert positions.take(ANN, SHARD, EPOCH + 1, 1) == BASELINE
    positions.now = TOLERANCE
    assert positions.overdue() == []


@pytest.mark.parametrize(
    ("sent", "first", "verdict"), [(5, 6, UNKNOWN), (0, 1, BASELINE), (0, 2, UNKNOWN)]
)
def test_an_outage_before_the_first_message_of_a_shard(sent: int, first: int, verdict: int) -> None:
    positions = make()
    positions.take(ANN, 0, EPOCH, 1)
    positions.follow(SHARD, is_sure=True)
    positions.deaf([0, SHARD, 4])
    assert positions.take(ANN, SHARD, EPOCH, first) == verdict
    positions = make()
    positions.take(ANN, 0, EPOCH, 1)
    positions.follow(SHARD, is_sure=False)
    positions.announced(ANN, EPOCH, {0: 1, **({SHARD: sent} if sent else {})})
    positions.now = TOLERANCE
    assert positions.overdue() == ([(ANN, {SHARD: UNKNOWN})] if sent else [])


@pytest.mark.parametrize(("sent", "found"), [(3, {0: UNKNOWN}), (0, {})])
def test_an_outage_before_the_first_message_of_a_newcomer(sent: int, found: dict[int, int]) -> None:
    positions = make(settled=False)
    positions.take(ANN, 1, EPOCH, 7)
    positions.deaf(range(ORDERED))
    assert positions.announced(ANN, EPOCH, {0: sent, 1: 7}) == found


def test_who_is_there_and_who_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NODES", 2)
    positions = make()
    positions.take(ANN, 0, EPOCH, 1)
    positions.now = 10.0
    positions.accept(BOB, 0, EPOCH, 1)
    assert positions.live(0.0) == {ANN, BOB}
    assert positions.live(5.0) == {BOB}
    assert not positions.all_sharded(0.0)
    record = positions.get(BOB)
    assert record is not None
    record.is_sharded = True
    assert positions.all_sharded(5.0)
    assert positions.take("carl", 0, EPOCH, 9) == BASELINE, "there is no room for it"
    assert not positions.accept("carl", 0, EPOCH, 9)
    assert positions.get("carl") is None
    positions.now = KEPT + 5.0
    assert positions.take("carl", 0, EPOCH, 9) == 8
    assert positions.live(0.0) == {BOB, "carl"}
    assert positions.forget() == 0


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["lose", "take", "twice", "announce"])),
        max_size=60,
    )
)
def test_each_message_is_taken_or_missing_and_never_both(steps: list[tuple[bool, str]]) -> None:
    """The account: what was sent is what was delivered and what was told as lost, to the last."""
    positions = make()
    positions.accept(ANN, 0, EPOCH, 1)
    positions.announced(ANN, EPOCH, {})
    sent, delivered, lost = [0, 0], [0, 0], [0, 0]

    def announce() -> None:
        for stream, number in positions.announced(ANN, EPOCH, dict(enumerate(sent))).items():
            lost[stream] += number

    for which, what in steps:
        stream = int(which)
        if what == "announce":
            announce()
            continue
        sent[stream] += 1
        for _ in range({"lose": 0, "take": 1, "twice": 2}[what]):
            verdict = positions.take(ANN, stream, EPOCH, sent[stream])
            if verdict != DROP:
                delivered[stream] += 1
                lost[stream] += verdict
    announce()
    assert [d + n for d, n in zip(delivered, lost, strict=True)] == sent


def test_shards_of_rooms() -> None:
    found = {shard_of(f"group:{number:024x}") for number in range(2000)}
    assert found == set(range(SHARDS))
    assert shard_of("user:ann") == 73, "as long as there are nodes that expect it there"


def test_interest_in_shards() -> None:
    interest = Interest()
    rooms = [f"user:{number}" for number in range(500)]
    one, two = [room for room in rooms if shard_of(room) == 7][:2]
    assert interest.add(one) == 7
    assert interest.add(two) is None
    assert interest.add(two) is None
    assert interest.shards == {7}
    interest.remove(one, 0.0)
    interest.remove("user:other", 0.0)
    assert interest.tired(1e9) == []
    interest.remove(two, 5.0)
    interest.remove(two, 9.0)
    assert interest.tired(5.0 + LINGER - 0.01) == []
    assert interest.add(one) is None
    assert interest.tired(1e9) == []
    interest.remove(one, 50.0)
    assert interest.tired(50.0 + LINGER) == [7]
    assert interest.shards == frozenset()
    assert interest.add(one) == 7
