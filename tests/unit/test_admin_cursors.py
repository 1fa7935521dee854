"""Cursors come back as what they were, and nothing else passes for one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast.admin.cursors import Cursors

CURSORS = Cursors(b"k" * 32)
FILTERS = {"user_id": "alice", "character_id": None}


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=64))
def test_a_position_comes_back(position: str) -> None:
    cursor = CURSORS.write("rooms", FILTERS, position)
    assert CURSORS.read("rooms", FILTERS, cursor) == position
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_z09_every_change_of_one_character_is_seen() -> None:
    cursor = CURSORS.write("rooms", FILTERS, "user:ann")
    changed = [
        cursor[:at] + other + cursor[at + 1 :]
        for at in range(len(cursor))
        for other in "AQgw_-8"
        if other != cursor[at]
    ]
    for one in changed:
        with pytest.raises(ValueError):
            CURSORS.read("rooms", FILTERS, one)


@pytest.mark.parametrize(
    ("kind", "filters", "server"),
    [
        ("connections", FILTERS, CURSORS),
        ("rooms", {**FILTERS, "user_id": "bob"}, CURSORS),
        ("rooms", {**FILTERS, "character_id": 1}, CURSORS),
        ("rooms", FILTERS, Cursors()),
    ],
    ids=["other listing", "other filter", "added filter", "other server"],
)
def test_a_cursor_belongs_to_one_listing(
    kind: str, filters: dict[str, object], server: Cursors
) -> None:
    cursor = CURSORS.write("rooms", FILTERS, "7")
    with pytest.raises(ValueError, match="another listing"):
        server.read(kind, filters, cursor)


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "1",
        "MQ",
        "é",
        "a b",
        "=" * 26,
        CURSORS.write("rooms", FILTERS, "7") + "=",
        CURSORS.write("rooms", FILTERS, "7") + "A",
        CURSORS.write("rooms", FILTERS, "7")[:-1],
        base64.urlsafe_b64encode(b"\x02" + bytes(10)).decode(),
    ],
)
def test_z09_other_texts_are_no_cursors(cursor: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        CURSORS.read("rooms", FILTERS, cursor)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    with pytest.raises(ValueError):
        CURSORS.read("rooms", FILTERS, text)
