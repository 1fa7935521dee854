"""Ids: uuid4 as RFC 9562 writes it."""

from __future__ import annotations

import uuid

from falcon_fast.identity import new_id


def test_ids_are_uuid4() -> None:
    for _ in range(200):
        made = new_id()
        parsed = uuid.UUID(made)
        assert str(parsed) == made
        assert parsed.version == 4
        assert parsed.variant == uuid.RFC_4122


def test_ids_differ() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000
