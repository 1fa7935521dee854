"""Ids: uuid4 as RFC 9562 writes it."""

from __future__ import annotations

import uuid

import pytest

from falcon_fast.identity import Identity, new_id, packed_character, unpack


def test_ids_are_uuid4() -> None:
    for _ in range(200):
        made = new_id()
        parsed = uuid.UUID(made)
        assert str(parsed) == made
        assert parsed.version == 4
        assert parsed.variant == uuid.RFC_4122


def test_ids_differ() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "identity",
    [
        Identity("u", 0, "", "", 0),
        Identity("u" * 64, 2**63 - 1, "Zoë ✈ \U0001f680", "a b", 253_402_300_799, "jti", 7),
    ],
)
def test_a_packed_identity_is_the_same_again(identity: Identity) -> None:
    packed = identity.pack()
    assert unpack(packed) == identity
    assert packed_character(packed) == identity.character_id
