"""Following an issuer's published keys: when it is asked, how often, and what a failure changes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator

import pytest

from falcon_fast import jwks
from falcon_fast.auth import TokenVerifier
from falcon_fast.errors import AuthError, KeysUnavailable
from falcon_fast.jwks import REFRESH, UNKNOWN_INTERVAL, KeySetFetcher
from falcon_fast.keys import KeySet

from ..support.clock import FakeClock
from ..support.keys import issuer, key_set
from ..support.loop import FakeTimeLoop, turns

loop_factory = FakeTimeLoop

URL = "https://issuer.example/jwks?key=hunter2"
OLD = issuer("EdDSA", "old")
NEW = issuer("EdDSA", "new")


class Publisher:
    """The issuer's address: what it answers, and when it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        self.answer: bytes | Exception = key_set(OLD.jwk("old"))
        self.asked: list[float] = []
        self.took = 0.0
        self._clock = clock
        self._start = clock.monotonic()

    async def fetch(self, url: str, *, tls: object = None) -> bytes:
        assert url == URL
        self.asked.append(round(self._clock.monotonic() - self._start, 3))
        await asyncio.sleep(self.took)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Setting:
    """A fetcher, its keys, and a verifier that uses them."""

    def __init__(self, clock: FakeClock, publisher: Publisher) -> None:
        self.clock = clock
        self.publisher = publisher
        self.keys = KeySet(("EdDSA",), issuer="go-falcon")
        self.fetcher = KeySetFetcher(URL, self.keys)
        self.verifier = TokenVerifier(self.keys, clock=clock)

    @property
    def is_ready(self) -> bool:
        return self.verifier.is_ready

    def accepts(self, kid: str) -> bool:
        """Tell whether a fresh token of the named key is accepted now."""
        now = int(self.clock.time())
        claims = {
            "user_id": "u",
            "character_id": 1,
            "character_name": "U",
            "exp": now + 60,
            "iss": "go-falcon",
        }
        signer = NEW if kid == "new" else OLD
        try:
            self.verifier.verify(signer.token(claims, kid=kid))
        except AuthError as error:
            rule = str(error)
        else:
            rule = ""
        assert rule in {"", "kid is not of a known key"}
        return rule == ""


@pytest.fixture
async def it(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Setting]:
    """Return a fetcher that was not started yet; it is closed at the end."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    made = Setting(loop.clock, Publisher(loop.clock))
    monkeypatch.setattr(jwks, "fetch", made.publisher.fetch)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    yield made
    await made.fetcher.close()
    await made.fetcher.close()


async def test_the_first_fetch_is_waited_for_and_the_others_are_not(it: Setting) -> None:
    assert not it.accepts("old")
    await it.fetcher.start()
    assert it.is_ready
    assert it.accepts("old")
    await asyncio.sleep(3 * REFRESH + 1)
    assert it.publisher.asked == [0, 300, 600, 900]


async def test_a_new_key_is_known_after_the_next_fetch_A17(it: Setting) -> None:
    await it.fetcher.start()
    it.publisher.answer = key_set(NEW.jwk("new"))
    await asyncio.sleep(REFRESH - 1)
    assert it.accepts("old")
    await asyncio.sleep(2)
    assert it.accepts("new")
    assert not it.accepts("old")


async def test_an_unknown_key_brings_one_fetch_and_the_token_is_refused_meanwhile_A04(
    it: Setting,
) -> None:
    await it.fetcher.start()
    await asyncio.sleep(100)
    it.publisher.answer = key_set(OLD.jwk("old"), NEW.jwk("new"))
    it.publisher.took = 2.0
    for _ in range(1_000):
        assert not it.accepts("new")
    await turns()
    assert it.publisher.asked == [0, 100]
    assert not it.accepts("new")
    assert it.accepts("old")
    await asyncio.sleep(2.1)
    assert it.accepts("new")
    await asyncio.sleep(UNKNOWN_INTERVAL)
    # What came while it was being fetched brought another fetch, half a minute later.
    assert it.publisher.asked == [0, 100, 130]


async def test_a_flood_of_unknown_keys_brings_one_fetch_in_half_a_minute_A04(it: Setting) -> None:
    await it.fetcher.start()
    for second in range(200):
        for number in range(5):
            assert not it.accepts(f"{second}-{number}")
        await asyncio.sleep(1)
    assert it.publisher.asked == [0, 30, 60, 90, 120, 150, 180]


async def test_after_the_flood_the_usual_pace_returns(it: Setting) -> None:
    await it.fetcher.start()
    await asyncio.sleep(50)
    assert not it.accepts("x")
    await asyncio.sleep(2 * REFRESH + 1)
    assert it.publisher.asked == [0, 50, 350, 650]


@pytest.mark.parametrize(
    "answer",
    [
        KeysUnavailable("no answer within 5 s"),
        b"<html>",
        b'{"keys":[]}',
        key_set(issuer("ES256").jwk("old")),
    ],
    ids=["unavailable", "html", "empty", "other-family"],
)
async def test_a_fetch_that_fails_keeps_the_keys(
    it: Setting, answer: bytes | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    await it.fetcher.start()
    it.publisher.answer = answer
    with caplog.at_level(logging.INFO, logger="falcon_fast.jwks"):
        await asyncio.sleep(REFRESH + 140)
        assert it.accepts("old")
        # Back-off: 1, 2, 4 … 60 seconds, and one line for all of it.
        assert it.publisher.asked == [0, 300, 301, 303, 307, 315, 331, 363, 423]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        it.publisher.answer = key_set(NEW.jwk("new"))
        await asyncio.sleep(60)
    assert it.accepts("new")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "hunter2" not in str([record.__dict__ for record in caplog.records])
    await asyncio.sleep(REFRESH)
    assert it.publisher.asked[-2:] == [483, 783]


async def test_a_start_without_an_answer_waits_for_a_later_one(it: Setting) -> None:
    it.publisher.answer = KeysUnavailable("no answer")
    await it.fetcher.start()
    assert not it.is_ready
    assert not it.accepts("old")
    it.publisher.answer = key_set(OLD.jwk("old"))
    await asyncio.sleep(1.5)
    assert it.accepts("old")


async def test_close_in_the_middle_of_a_fetch(it: Setting) -> None:
    await it.fetcher.start()
    it.publisher.took = 3.0
    await asyncio.sleep(REFRESH + 1)
    await it.fetcher.close()
    await asyncio.sleep(REFRESH)
    assert it.publisher.asked == [0, 300]
