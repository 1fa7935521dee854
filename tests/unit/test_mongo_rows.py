"""What MongoDB's rows and events mean."""

from __future__ import annotations

import pytest
from bson import ObjectId
from bson.int64 import Int64
from hypothesis import given
from hypothesis import strategies as st

from falcon_fast.directory import Group
from falcon_fast.directory.mongo import missing_indexes
from falcon_fast.directory.mongo_rows import (
    GROUPS,
    MEMBERSHIPS,
    PROFILES,
    banned_by,
    character_number,
    groups_pipeline,
    is_about_profiles,
    keys_of,
    read_groups,
)

from ..support.mongo_wire import Json, group, row

FLEET = group(1)
FLEET_ID = str(FLEET["_id"])


def event(kind: str, collection: str, ident: object, **full: object) -> Json:
    found: Json = {
        "operationType": kind,
        "ns": {"db": "falcon", "coll": collection},
        "documentKey": {"_id": ident},
    }
    return {**found, "fullDocument": full} if full else found


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0),
        (Int64(7), 7),
        (2**63 - 1, 2**63 - 1),
        (7.0, 7),
        (2**63, None),
        (-1, None),
        (True, None),
        (7.5, None),
        (float("nan"), None),
        (float("inf"), None),
        ("7", None),
        (None, None),
        ([7], None),
    ],
)
def test_ids_of_characters(value: object, number: int | None) -> None:
    found = character_number(value)
    assert (found, type(found)) == (number, type(number))


def test_the_pipeline_is_the_same_for_the_same_question() -> None:
    assert groups_pipeline({"b", "a"}, {2, 1}) == groups_pipeline(["a", "b"], [1, 2])
    match = groups_pipeline(["$ne"], [])[0]
    assert match == {
        "$match": {"$or": [{"user_id": {"$in": ["$ne"]}}, {"character_id": {"$in": []}}]}
    }


def test_every_key_of_an_answer_is_that_of_an_event() -> None:
    rows = row("ann", 1, FLEET)
    found = read_groups(rows, {"ann": [9]})["ann"]
    keys = set(found.keys)
    events = [
        event("delete", PROFILES, rows[0]["_id"]),
        event("insert", PROFILES, "another", user_id="ann", character_id=5),
        event("insert", PROFILES, "another", user_id="bob", character_id=9),
        event("delete", MEMBERSHIPS, rows[0]["membership"]["_id"]),
        event("insert", MEMBERSHIPS, "another", character_id=1),
        event("insert", MEMBERSHIPS, "another", character_id=Int64(9)),
        event("update", GROUPS, FLEET["_id"]),
        event("delete", GROUPS, FLEET["_id"]),
    ]
    for one in events:
        about = keys_of(one)
        assert about is not None
        assert about & keys, one
    others = [
        event("delete", PROFILES, "another"),
        event("insert", MEMBERSHIPS, "another", character_id=2),
        event("update", GROUPS, ObjectId()),
        event("insert", "fleets", rows[0]["_id"], user_id="ann"),
    ]
    for one in others:
        about = keys_of(one)
        assert about is not None
        assert not about & keys, one


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"operationType": "drop", "ns": {"coll": GROUPS}},
        {"operationType": "rename", "ns": {"coll": GROUPS}, "to": {"coll": "x"}},
        {"operationType": "dropDatabase", "ns": {"db": "falcon"}},
        {"operationType": "invalidate"},
        {"operationType": "update", "ns": 5, "documentKey": {}},
        {"operationType": "update", "ns": {"coll": GROUPS}, "documentKey": 5},
    ],
    ids=str,
)
def test_whatever_is_not_about_one_document_is_about_everything(change: Json) -> None:
    assert keys_of(change) is None


def test_bans_in_events() -> None:
    assert banned_by(event("update", PROFILES, 1, user_id="ann", banned=True)) == "ann"
    assert banned_by(event("update", PROFILES, 1, user_id="ann", banned=False)) is None
    assert banned_by(event("update", PROFILES, 1, user_id="ann", banned="yes")) is None
    assert banned_by(event("update", PROFILES, 1, user_id=7, banned=True)) is None
    assert banned_by(event("delete", PROFILES, 1)) is None
    assert is_about_profiles(event("delete", PROFILES, 1))
    assert is_about_profiles({"operationType": "dropDatabase", "ns": {"db": "falcon"}})
    assert is_about_profiles({})
    assert not is_about_profiles(event("delete", GROUPS, 1))


def test_a_character_of_somebody_else_brings_nothing() -> None:
    found = read_groups(row("bob", 2, FLEET), {"ann": [2], "bob": []})
    assert found["ann"].groups == frozenset()
    assert found["bob"].groups == {Group(FLEET_ID, "Fleet", "custom")}
    assert found["bob"].names == ((2, "Bob"),)


def test_a_character_without_a_profile_counts_for_all_who_vouch_for_it() -> None:
    (one,) = row("nobody", 9, FLEET)
    for name in ("_id", "user_id", "character_name"):
        del one[name]
    found = read_groups([one], {"ann": [9], "bob": [9], "cid": []})
    assert [len(found[user].groups) for user in ("ann", "bob", "cid")] == [1, 1, 0]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
FIELDS = st.sampled_from(
    ["_id", "user_id", "character_id", "character_name", "valid", "banned", "membership", "group"]
)
INNER = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("_id", "group_id", "is_active", "name", "type", "system_name"), JUNK),
)


@given(
    st.lists(
        st.dictionaries(FIELDS, JUNK | INNER | st.lists(INNER, max_size=2) | st.just(1)),
        max_size=5,
    )
)
def test_m04_no_row_can_do_harm(rows: list[Json]) -> None:
    found = read_groups([*row("ann", 1, FLEET), *rows], {"ann": [1], "bob": [7]})
    assert set(found) == {"ann", "bob"}
    assert Group(FLEET_ID, "Fleet", "custom") in found["ann"].groups
    assert {one.id for user in found for one in found[user].groups} <= {FLEET_ID}


@given(st.dictionaries(st.sampled_from(["operationType", "ns", "documentKey"]), JUNK))
def test_m04_no_event_can_do_harm(change: Json) -> None:
    keys_of(change)
    keys_of({**event("update", PROFILES, 1, user_id="ann"), **change})
    banned_by(change)
    is_about_profiles(change)


def test_indexes_that_are_missing() -> None:
    everything = dict.fromkeys(
        (GROUPS, MEMBERSHIPS, PROFILES),
        frozenset({"user_id", "character_id", "banned", "updated_at"}),
    )
    assert missing_indexes(everything, polling=True) == []
    without = {**everything, MEMBERSHIPS: frozenset({"_id", "group_id"})}
    assert missing_indexes(without, polling=True) == [
        "db.group_memberships.createIndex({character_id: 1, group_id: 1}, {unique: true})",
        "db.group_memberships.createIndex({updated_at: 1})",
    ]
    assert len(missing_indexes({})) == 4
