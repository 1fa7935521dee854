"""What ``falcon-fast check`` finds out about MongoDB before a server relies on it."""

from __future__ import annotations

from dataclasses import dataclass

from falcon_fast.directory.mongo import missing_indexes
from falcon_fast.directory.mongo_driver import NoChangeStreams, Store
from falcon_fast.errors import DirectoryUnavailable

__all__ = ["Examination", "examine"]


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        sizes: How many documents there are, by collection.
        has_streams: Whether changes can be followed as they come.
        missing: Commands that make the indexes that are needed and not there, or None where this
            user may not see the indexes.
    """

    sizes: dict[str, int]
    has_streams: bool
    missing: list[str] | None


async def examine(store: Store) -> Examination:
    """Connect, look, and disconnect.

    Raises:
        DirectoryUnavailable: It cannot be used; the text says what to mend.
    """
    try:
        await store.open()
        sizes = dict(await store.sizes())
        # Whom these refuse, the server itself would refuse.
        await store.banned_users()
        await store.groups_of({""}, ())
        has_streams = True
        try:
            async with store.changes(None):
                pass
        except NoChangeStreams:
            has_streams = False
        try:
            missing = missing_indexes(await store.leading_fields(), polling=not has_streams)
        except DirectoryUnavailable:
            return Examination(sizes, has_streams, None)
        return Examination(sizes, has_streams, missing)
    finally:
        await store.close()
