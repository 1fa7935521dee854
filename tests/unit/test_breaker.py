"""The circuit breaker."""

from __future__ import annotations

import pytest

from falcon_fast.directory.breaker import FIRST_DELAY, LAST_DELAY, THRESHOLD, Breaker

from ..support.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def breaker(clock: FakeClock) -> Breaker:
    return Breaker(clock.monotonic)


def test_it_opens_after_failures_in_a_row(breaker: Breaker, clock: FakeClock) -> None:
    for number in range(THRESHOLD):
        assert (breaker.is_open, breaker.is_refusing) == (False, False)
        breaker.failed(clock.monotonic())
        assert breaker.wait() > 0, number
        clock.advance(0.001)
    assert (breaker.is_open, breaker.is_refusing) == (True, True)
    breaker.succeeded()
    assert (breaker.is_open, breaker.is_refusing, breaker.wait()) == (False, False, 0.0)


def test_an_answer_in_between_begins_the_count_anew(breaker: Breaker, clock: FakeClock) -> None:
    for _ in range(10):
        for _ in range(THRESHOLD - 1):
            breaker.failed(clock.monotonic())
        breaker.succeeded()
        clock.advance(1.0)
    assert not breaker.is_open


def test_pauses_grow_up_to_the_last_and_end(breaker: Breaker, clock: FakeClock) -> None:
    pauses = []
    for _ in range(40):
        breaker.failed(clock.monotonic())
        pauses.append(breaker.wait())
        clock.advance(breaker.wait())
        assert not breaker.is_refusing
        clock.advance(0.001)
    assert FIRST_DELAY / 2 <= pauses[0] <= FIRST_DELAY
    assert LAST_DELAY / 2 <= min(pauses[10:]) <= max(pauses[10:]) <= LAST_DELAY
    assert len({round(pause, 6) for pause in pauses[10:]}) > 20


def test_questions_that_fail_together_lengthen_the_pause_once(
    breaker: Breaker, clock: FakeClock
) -> None:
    began = clock.monotonic()
    clock.advance(3.0)
    for _ in range(8):
        breaker.failed(began)
    assert breaker.is_refusing
    assert breaker.wait() <= FIRST_DELAY
