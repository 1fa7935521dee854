"""What MongoDB is asked about users and groups, and what its answers mean; pure, for every driver.

A user's set of groups follows from a handful of documents: profiles, memberships, groups. Each is
known by a key, a number of 64 bits, and a user's keys are kept beside the user: a change in the
database is about those users who have one of its keys.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from falcon_fast.directory import GROUP_TYPES, Group

__all__ = [
    "COLLECTIONS",
    "GROUPS",
    "MEMBERSHIPS",
    "PROFILES",
    "Document",
    "Found",
    "banned_by",
    "character_number",
    "groups_pipeline",
    "is_about_profiles",
    "keys_of",
    "read_groups",
]

GROUPS: Final = "groups"
MEMBERSHIPS: Final = "group_memberships"
PROFILES: Final = "user_profiles"

COLLECTIONS: Final = (GROUPS, MEMBERSHIPS, PROFILES)
"""Everything that is read; nothing is ever written."""

Document: TypeAlias = Mapping[str, object]
"""A document as the drivers give it."""

_GROUP_ID: Final = re.compile(r"[0-9a-f]{24}")
_MAX_CHARACTER_ID: Final = 2**63 - 1
_ONE_DOCUMENT: Final = ("insert", "update", "replace", "delete")


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the database told of one user.

    Attributes:
        groups: The groups.
        names: The names of the user's characters by their profiles, sorted.
        is_banned: Whether one of the profiles says so.
        keys: Of all documents the above follows from, and of those that could be added.
    """

    groups: frozenset[Group]
    names: tuple[tuple[int, str], ...]
    is_banned: bool
    keys: array[int]


def groups_pipeline(users: Collection[str], characters: Collection[int]) -> list[dict[str, object]]:
    """Build the aggregation on the profiles that tells everything about many users at once.

    Its rows are one for each membership of each character: ``character_id``, ``membership`` and
    ``group`` (a list of at most one), beside the profile's fields where the character has one. A
    character without memberships has one row. Only stages that every server since 4.4 has.

    Args:
        users: All their characters count.
        characters: Those that tokens vouch for; they count without a profile too.
    """
    vouched = sorted(characters)
    return [
        {"$match": {"$or": [_among("user_id", sorted(users)), _among("character_id", vouched)]}},
        {
            "$lookup": {
                "from": MEMBERSHIPS,
                "localField": "character_id",
                "foreignField": "character_id",
                "as": "membership",
            }
        },
        {"$unwind": {"path": "$membership", "preserveNullAndEmptyArrays": True}},
        {
            "$unionWith": {
                "coll": MEMBERSHIPS,
                "pipeline": [
                    {"$match": _among("character_id", vouched)},
                    {
                        "$group": {
                            "_id": "$character_id",
                            "membership": {
                                "$push": {
                                    "_id": "$_id",
                                    "group_id": "$group_id",
                                    "is_active": "$is_active",
                                }
                            },
                        }
                    },
                    {
                        "$lookup": {
                            "from": PROFILES,
                            "localField": "_id",
                            "foreignField": "character_id",
                            "as": "profiles",
                        }
                    },
                    {"$match": {"profiles": {"$size": 0}}},
                    {"$unwind": "$membership"},
                    {"$project": {"_id": 0, "character_id": "$_id", "membership": 1}},
                ],
            }
        },
        {
            "$lookup": {
                "from": GROUPS,
                "localField": "membership.group_id",
                "foreignField": "_id",
                "as": "group",
            }
        },
        {
            "$project": {
                **dict.fromkeys(
                    ("user_id", "character_id", "character_name", "valid", "banned"), 1
                ),
                **dict.fromkeys(
                    ("membership._id", "membership.group_id", "membership.is_active"), 1
                ),
                **dict.fromkeys(
                    (
                        "group._id",
                        "group.name",
                        "group.type",
                        "group.system_name",
                        "group.is_active",
                    ),
                    1,
                ),
            }
        },
    ]


def _among(name: str, values: list[str] | list[int]) -> dict[str, object]:
    # Values come from tokens: as members of a list none of them can be an operator.
    return {name: {"$in": values}}


@dataclass(slots=True)
class _Gathered:
    groups: set[Group] = field(default_factory=set)
    names: dict[int, str] = field(default_factory=dict)
    is_banned: bool = False
    keys: set[int] = field(default_factory=set)


def read_groups(
    rows: Iterable[Document], wanted: Mapping[str, Collection[int]]
) -> dict[str, Found]:
    """Understand the rows of :func:`groups_pipeline`.

    A membership counts when it and its group say ``is_active: true`` and the character's profile,
    if there is one, does not say ``valid: false``. Whatever is of another shape than expected
    counts for nothing and disturbs nothing else.

    Args:
        rows: The answer.
        wanted: For each user asked about, the characters that tokens vouch for.

    Returns:
        One entry for each user asked about.
    """
    gathered = {user: _Gathered(keys={_key("u", user)}) for user in wanted}
    vouched: dict[int, list[str]] = {}
    for user, characters in wanted.items():
        for character in characters:
            vouched.setdefault(character, []).append(user)
            gathered[user].keys.add(_key("c", character))
    seen: dict[str, Group | None] = {}
    for row in rows:
        number = character_number(row.get("character_id"))
        if number is None:
            continue
        users = vouched.get(number, [])
        is_valid = True
        if "_id" in row:
            for user in users:
                gathered[user].keys.add(_key("p", row["_id"]))
            owner = row.get("user_id")
            if not isinstance(owner, str) or owner not in gathered:
                continue
            users = [owner]
            is_valid = row.get("valid") is not False
            mine = gathered[owner]
            mine.keys.add(_key("p", row["_id"]))
            mine.keys.add(_key("c", number))
            mine.is_banned |= row.get("banned") is True
            name = row.get("character_name")
            if isinstance(name, str) and name:
                mine.names[number] = name
        membership = row.get("membership")
        if not isinstance(membership, Mapping):
            continue
        group = _group_of(row, seen) if is_valid and membership.get("is_active") is True else None
        for user in users:
            mine = gathered[user]
            mine.keys.add(_key("m", membership.get("_id")))
            mine.keys.add(_key("g", membership.get("group_id")))
            if group is not None:
                mine.groups.add(group)
    return {
        user: Found(
            frozenset(mine.groups),
            tuple(sorted(mine.names.items())),
            mine.is_banned,
            array("q", sorted(mine.keys)),
        )
        for user, mine in gathered.items()
    }


def _group_of(row: Document, seen: dict[str, Group | None]) -> Group | None:
    found = row.get("group")
    document = found[0] if isinstance(found, list) and found else None
    if not isinstance(document, Mapping):
        return None
    # An ObjectId's text is its 24 digits.
    ident = str(document.get("_id")).lower()
    if ident not in seen:
        seen[ident] = _group(ident, document)
    return seen[ident]


def _group(ident: str, document: Document) -> Group | None:
    if not _GROUP_ID.fullmatch(ident) or document.get("is_active") is not True:
        return None
    name, kind, system_name = (document.get(key) for key in ("name", "type", "system_name"))
    return Group(
        ident,
        name if isinstance(name, str) else "",
        kind if isinstance(kind, str) and kind in GROUP_TYPES else "custom",
        system_name if isinstance(system_name, str) and system_name else None,
    )


def character_number(value: object) -> int | None:
    """Read the id of a character; None for what is none.

    Integers come with 32 or 64 bits, and from the hands of a shell as floats.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return int(value) if 0 <= value <= _MAX_CHARACTER_ID else None


def keys_of(change: Document) -> frozenset[int] | None:
    """Return the keys of what a change event is about; None when it may be about everything."""
    namespace, document_key = change.get("ns"), change.get("documentKey")
    if (
        change.get("operationType") not in _ONE_DOCUMENT
        or not isinstance(namespace, Mapping)
        or not isinstance(document_key, Mapping)
    ):
        return None
    ident = document_key.get("_id")
    full = change.get("fullDocument")
    document: Document = full if isinstance(full, Mapping) else {}
    character = character_number(document.get("character_id"))
    keys = set() if character is None else {_key("c", character)}
    collection = namespace.get("coll")
    if collection == GROUPS:
        return frozenset({_key("g", ident)})
    if collection == MEMBERSHIPS:
        keys.add(_key("m", ident))
    elif collection == PROFILES:
        keys |= {_key("p", ident), _key("u", document.get("user_id"))}
    else:
        return frozenset()
    return frozenset(keys)


def is_about_profiles(change: Document) -> bool:
    """Tell whether a change event may have banned somebody or lifted a ban."""
    namespace = change.get("ns")
    return not isinstance(namespace, Mapping) or namespace.get("coll") in (PROFILES, None)


def banned_by(change: Document) -> str | None:
    """Return the user whom a change event of a profile shows to be banned, if any."""
    document = change.get("fullDocument")
    if not isinstance(document, Mapping) or document.get("banned") is not True:
        return None
    user = document.get("user_id")
    return user if isinstance(user, str) else None


def _key(kind: str, value: object) -> int:
    try:
        return hash((kind, value))
    except TypeError:
        # A document or list may be an _id too.
        return hash((kind, repr(value)))
