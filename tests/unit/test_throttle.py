"""How fast one address may open connections."""

from __future__ import annotations

import pytest

from falcon_fast import throttle
from falcon_fast.throttle import Throttle

from ..support.clock import FakeClock


def test_the_burst_then_the_rate() -> None:
    clock = FakeClock()
    limit = Throttle(20.0, 100, clock=clock)
    assert [limit.wait("192.0.2.1") for _ in range(100)] == [0.0] * 100
    assert limit.wait("192.0.2.1") == pytest.approx(0.05)
    # What was refused costs nothing: the wait does not grow.
    assert limit.wait("192.0.2.1") == pytest.approx(0.05)
    clock.advance(0.051)
    assert limit.wait("192.0.2.1") == 0.0
    assert limit.wait("192.0.2.1") == pytest.approx(0.049)


def test_addresses_do_not_share() -> None:
    limit = Throttle(1.0, 1, clock=FakeClock())
    assert limit.wait("192.0.2.1") == 0.0
    assert limit.wait("192.0.2.1") == pytest.approx(1.0)
    assert limit.wait("192.0.2.2") == 0.0


def test_a_bucket_fills_up_to_the_burst_and_no_further() -> None:
    clock = FakeClock()
    limit = Throttle(10.0, 3, clock=clock)
    for _ in range(3):
        limit.wait("a")
    clock.advance(3_600)
    assert [limit.wait("a") for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.1)]


def test_rate_zero_allows_everything_and_remembers_nothing() -> None:
    limit = Throttle(0.0, 1, clock=FakeClock())
    assert [limit.wait("a") for _ in range(1_000)] == [0.0] * 1_000
    assert limit._buckets == {}


def test_a_burst_of_zero_is_one() -> None:
    limit = Throttle(2.0, 0, clock=FakeClock())
    assert limit.wait("a") == 0.0
    assert limit.wait("a") == pytest.approx(0.5)


def test_full_buckets_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_ADDRESSES", 4)
    clock = FakeClock()
    limit = Throttle(1.0, 2, clock=clock)
    for address in "ab":
        limit.wait(address)
    clock.advance(2.0)
    for address in "cde":
        limit.wait(address)
    assert list(limit._buckets) == ["c", "d", "e"]


def test_of_too_many_busy_addresses_those_that_came_longest_ago_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throttle, "MAX_ADDRESSES", 4)
    limit = Throttle(1.0, 2, clock=FakeClock())
    for address in "abcd":
        limit.wait(address)
    limit.wait("a")
    assert limit.wait("a") == pytest.approx(1.0)
    limit.wait("e")
    # The one that knocks all the time is still known, though it was the first.
    assert list(limit._buckets) == ["d", "a", "e"]
    assert limit.wait("a") == pytest.approx(1.0)
