"""Time: the system clock, the formatter, and the clock that tests turn."""

from __future__ import annotations

import datetime
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast.clock import Clock, SystemClock, rfc3339, until_beat

from ..support.clock import FakeClock


def test_the_system_clock_reads_the_machine() -> None:
    clock: Clock = SystemClock()
    before, now, after = time.time(), clock.time(), time.time()
    assert before <= now <= after
    first, reading, last = time.monotonic(), clock.monotonic(), time.monotonic()
    assert first <= reading <= last


@pytest.mark.parametrize(
    "unix, text",
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1.9999999, "1970-01-01T00:00:02.000000Z"),
        (1767323045.123456, "2026-01-02T03:04:05.123456Z"),
        (1767323045, "2026-01-02T03:04:05.000000Z"),
        (1709164800.5, "2024-02-29T00:00:00.500000Z"),
        (253402300799.0, "9999-12-31T23:59:59.000000Z"),
    ],
)
def test_rfc3339(unix: float, text: str) -> None:
    assert rfc3339(unix) == text


@pytest.mark.parametrize("unix", [-0.1, 253402300800.0, math.inf, -math.inf, math.nan])
def test_rfc3339_refuses_what_has_no_four_digit_year(unix: float) -> None:
    with pytest.raises(ValueError, match="1970 to 9999"):
        rfc3339(unix)


@settings(max_examples=100, deadline=None)
@given(st.integers(min_value=0, max_value=4_102_444_800_000_000))
def test_rfc3339_agrees_with_datetime(microseconds: int) -> None:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    expected = epoch + datetime.timedelta(microseconds=microseconds)
    text = rfc3339(microseconds / 1_000_000)
    assert len(text) == 27
    assert datetime.datetime.fromisoformat(text) == expected


def test_the_fake_clock_moves_only_when_told() -> None:
    clock = FakeClock()
    as_port: Clock = clock
    assert (as_port.time(), as_port.monotonic()) == (1_700_000_000.0, 1_000.0)
    clock.advance(2.5)
    assert (clock.time(), clock.monotonic()) == (1_700_000_002.5, 1_002.5)
    clock.step(-10)
    assert (clock.time(), clock.monotonic()) == (1_699_999_992.5, 1_002.5)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


@pytest.mark.parametrize("every", [0.25, 0.5, 1.0])
def test_beats_of_one_and_of_several_fall_together(every: float) -> None:
    # uvloop gives whole milliseconds.
    for millisecond in range(977_000, 979_001, 7):
        now = millisecond / 1000
        wait = until_beat(now, every)
        assert 0.1 * every <= wait <= 1.1 * every
        assert (now + wait) / every == pytest.approx(round((now + wait) / every), abs=1e-9)


def test_a_timer_that_fires_a_moment_early_is_not_due_twice() -> None:
    assert until_beat(7.999_999_999, 0.25) == pytest.approx(0.25, abs=1e-6)
    assert until_beat(8.0, 0.25) == 0.25
    assert until_beat(8.001, 0.25) == pytest.approx(0.249)
