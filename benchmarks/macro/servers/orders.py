"""Messages as a game's market sends them: JSON, the same keys over and over, other numbers."""

from __future__ import annotations

import json
import random
import uuid
from typing import Any

#: The moment all messages are said to be of.
MOMENT = "2026-01-02T03:04:05"


def message(draw: random.Random, size: int) -> bytes:
    """Make a message of the server's shape.

    Args:
        draw: where its numbers come from.
        size: least bytes; it is at most one order longer.
    """
    orders: list[dict[str, object]] = []
    frame: dict[str, Any] = {
        "id": str(uuid.UUID(int=draw.getrandbits(128))),
        "type": "message",
        "room": f"group:{draw.getrandbits(96):024x}",
        "from": str(uuid.UUID(int=draw.getrandbits(128))),
        "data": {"region_id": 10_000_002, "orders": orders},
        "timestamp": f"{MOMENT}.{draw.randrange(10**6):06d}Z",
    }
    while True:
        orders.append(
            {
                "order_id": 6_000_000_000 + draw.randrange(10**9),
                "type_id": draw.randrange(18, 60_000),
                "location_id": 60_003_760,
                "price": round(draw.uniform(1, 10**7), 2),
                "volume_remain": draw.randrange(1, 10**5),
                "is_buy_order": draw.random() < 0.4,
            }
        )
        encoded = json.dumps(frame, separators=(",", ":")).encode()
        if len(encoded) >= size:
            return encoded
