"""What does it cost to read and check one message of a client?"""

from __future__ import annotations

import json

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from falcon_fast import envelope

ROOM = "group:" + "0" * 24
MESSAGES: dict[str, dict[str, object]] = {
    "heartbeat": {"type": "heartbeat"},
    "ping": {"type": "system", "id": "17", "data": {"action": "ping"}},
    "chat": {"type": "message", "id": "17", "room": ROOM, "data": {"text": "x" * 80}},
    "large": {"type": "message", "room": ROOM, "data": {"lines": ["x" * 100] * 100}},
    "nested": {"type": "message", "room": ROOM, "data": {str(n): [[n]] for n in range(300)}},
}


@pytest.mark.benchmark(group="decode an envelope")
@pytest.mark.parametrize("name", MESSAGES)
def test_decode(benchmark: BenchmarkFixture, name: str) -> None:
    payload = json.dumps(MESSAGES[name]).encode()
    benchmark.extra_info["bytes"] = len(payload)
    frame = benchmark(envelope.decode, payload, max_depth=32)
    assert frame.type == MESSAGES[name]["type"]
