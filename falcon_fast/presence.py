"""Who wants to know whether somebody is there, and telling them.

A subscription is taken for any user and holds nothing back: whether the two share a room is looked
at when there is something to tell. So the answer to a subscription says nothing about who exists,
who is there, or who is in which group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["GRACE", "MAX_WATCHED", "Presence", "Timer"]

GRACE: Final = 5.0
"""Seconds a user's last connection may be gone before the others are told; a reload is not news."""

MAX_WATCHED: Final = 1000
"""Users one connection may watch."""


class Watcher(Protocol):
    """What presence needs of a connection."""

    def is_in_any(self, rooms: frozenset[str]) -> bool:
        """Tell whether the connection is in one of the rooms."""

    def tell_presence(self, user_id: str, status: str) -> None:
        """Tell the connection's client."""


WatcherT = TypeVar("WatcherT", bound=Watcher)


class Timer(Protocol):
    """What `later` returns: an asyncio handle, or a test's."""

    def cancel(self) -> None:
        """Make it not happen."""


class Presence(Generic[WatcherT]):
    """Subscriptions to users, by user.

    Args:
        later: calls a function after so many seconds (`loop.call_later`).
    """

    def __init__(self, later: Callable[[float, Callable[[], None]], Timer]) -> None:
        self._later = later
        self._watchers: dict[str, dict[WatcherT, None]] = {}
        self._watched: dict[WatcherT, set[str]] = {}
        self._leaving: dict[str, tuple[Timer, frozenset[str]]] = {}  # and the rooms they left

    def watch(self, watcher: WatcherT, users: Iterable[str]) -> bool:
        """Subscribe a connection to users; False (and nothing changed) when they are too many."""
        wanted = self._watched.get(watcher, set()) | set(users)
        if len(wanted) > MAX_WATCHED:
            return False
        self._watched[watcher] = wanted
        for user in wanted:
            self._watchers.setdefault(user, {})[watcher] = None
        return True

    def unwatch(self, watcher: WatcherT, users: Iterable[str] | None = None) -> None:
        """End some subscriptions of a connection, or all of them."""
        watched = self._watched.get(watcher)
        if watched is None:
            return
        for user in list(watched) if users is None else watched.intersection(users):
            watched.discard(user)
            watchers = self._watchers[user]
            del watchers[watcher]
            if not watchers:
                del self._watchers[user]
        if not watched:
            del self._watched[watcher]

    def matters(self, user: str) -> bool:
        """Tell whether anybody wants to know of a user, or is about to be told."""
        return user in self._watchers or user in self._leaving

    def came(self, user: str, rooms: frozenset[str]) -> None:
        """A user's first connection is in its rooms."""
        leaving = self._leaving.pop(user, None)
        if leaving is None:
            self._tell(user, "online", rooms)
        else:
            leaving[0].cancel()

    def went(self, user: str, rooms: frozenset[str]) -> None:
        """A user's last connection has left these rooms."""

        def gone() -> None:
            _, rooms = self._leaving.pop(user)
            self._tell(user, "offline", rooms)

        if user not in self._watchers:
            return
        if user in self._leaving:
            # Back and gone again, maybe before its rooms were known: the earlier ones still count.
            timer, earlier = self._leaving[user]
            timer.cancel()
            rooms |= earlier
        self._leaving[user] = self._later(GRACE, gone), rooms

    def close(self) -> None:
        """Forget who is leaving: nobody is told any more."""
        for timer, _ in self._leaving.values():
            timer.cancel()
        self._leaving.clear()

    def _tell(self, user: str, status: str, rooms: frozenset[str]) -> None:
        for watcher in list(self._watchers.get(user, ())):
            if watcher.is_in_any(rooms):
                watcher.tell_presence(user, status)
