"""What does it cost to check a token, and to refuse one?"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from falcon_fast.auth import TokenVerifier, generate_secret, issue_token
from falcon_fast.clock import SystemClock
from falcon_fast.errors import AuthError

SECRET = generate_secret()


def token(clock: SystemClock) -> str:
    return issue_token(
        SECRET,
        user_id="0f3b2c1e-5d4a-4b6c-8e7f-9a0b1c2d3e4f",
        character_id=90_000_001,
        character_name="A Pilot",
        scopes="publicData esi-location.read_location.v1",
        ttl=86_400,
        now=int(clock.time()),
    )


@pytest.mark.benchmark(group="verify a token")
def test_good(benchmark: BenchmarkFixture) -> None:
    clock = SystemClock()
    identity = benchmark(TokenVerifier(SECRET, clock=clock).verify, token(clock))
    assert identity.character_id == 90_000_001


@pytest.mark.benchmark(group="verify a token")
def test_signed_by_somebody_else(benchmark: BenchmarkFixture) -> None:
    clock = SystemClock()
    verifier = TokenVerifier(generate_secret(), clock=clock)
    stranger = token(clock)

    def refuse() -> bool:
        try:
            verifier.verify(stranger)
        except AuthError:
            return True
        return False

    assert benchmark(refuse)
