"""What does it cost to write one message?"""

from __future__ import annotations

import json
import uuid

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from falcon_fast import envelope

NOW = 1_700_000_000.123456
ROOM = "group:" + "0" * 24
CONNECTION = str(uuid.UUID(int=7))


@pytest.mark.benchmark(group="encode an envelope")
@pytest.mark.parametrize("length", [80, 8_000])
def test_message(benchmark: BenchmarkFixture, length: int) -> None:
    frame = benchmark(
        envelope.encode,
        "message",
        now=NOW,
        id="17",
        room=ROOM,
        sender=CONNECTION,
        data={"text": "x" * length},
    )
    assert json.loads(frame)["data"] == {"text": "x" * length}


@pytest.mark.benchmark(group="encode an envelope")
def test_presence_reply(benchmark: BenchmarkFixture) -> None:
    frame = benchmark(envelope.presence_reply, "17", now=NOW)
    assert json.loads(frame)["id"] == "17"
