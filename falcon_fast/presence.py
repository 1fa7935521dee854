"""Who wants to know whether somebody is there, and telling them.

Somebody is there while one of their connections is admitted, on whatever process. For users who are
watched here it is kept on which processes they are; nobody else costs anything.

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
        watched: called with users that nobody here has watched before: where they are has to be
            found out, and told with `found`.
    """

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], Timer],
        *,
        watched: Callable[[list[str]], None],
    ) -> None:
        self._later = later
        self._new = watched
        self._watchers: dict[str, dict[WatcherT, None]] = {}
        self._watched: dict[WatcherT, set[str]] = {}
        # Of watched users: on which processes they are, and in which rooms there.
        self._places: dict[str, dict[str, frozenset[str]]] = {}
        self._leaving: dict[str, tuple[Timer, frozenset[str]]] = {}  # and the rooms they left

    def watch(self, watcher: WatcherT, users: Iterable[str]) -> bool:
        """Subscribe a connection to users; False (and nothing changed) when they are too many."""
        wanted = self._watched.get(watcher, set()) | set(users)
        if len(wanted) > MAX_WATCHED:
            return False
        self._watched[watcher] = wanted
        new = []
        for user in wanted:
            if user not in self._watchers:
                self._watchers[user] = {}
                new.append(user)
            self._watchers[user][watcher] = None
        if new:
            self._new(new)
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
                self._places.pop(user, None)
        if not watched:
            del self._watched[watcher]

    @property
    def watched(self) -> list[str]:
        """The users that somebody here watches."""
        return list(self._watchers)

    def matters(self, user: str) -> bool:
        """Tell whether anybody wants to know of a user, or is about to be told."""
        return user in self._watchers or user in self._leaving

    def found(self, user: str, process_id: str, rooms: frozenset[str] | None) -> None:
        """Learn, on asking, whether a user is on a process; this is no news to anybody.

        Args:
            user: the user.
            process_id: where it was looked.
            rooms: the user's there; None if the user is not there.
        """
        if user not in self._watchers:
            return
        if rooms is not None:
            self._places.setdefault(user, {})[process_id] = rooms
            leaving = self._leaving.pop(user, None)
            if leaving is not None:
                leaving[0].cancel()
        elif process_id in self._places.get(user, ()):
            # The news of it were lost.
            self.went(user, process_id, frozenset())

    def came(self, user: str, process_id: str, rooms: frozenset[str]) -> None:
        """A user's first connection on a process is in its rooms."""
        if not self.matters(user):
            return
        places = self._places.setdefault(user, {})
        was_there = bool(places)
        places[process_id] = rooms
        leaving = self._leaving.pop(user, None)
        if leaving is not None:
            leaving[0].cancel()
        elif not was_there:
            self._tell(user, "online", rooms)
        if user not in self._watchers:  # who was told may have unwatched at once
            self._places.pop(user, None)

    def went(self, user: str, process_id: str, rooms: frozenset[str]) -> None:
        """A user's last connection on a process has left these rooms."""

        def gone() -> None:
            _, rooms = self._leaving.pop(user)
            self._tell(user, "offline", rooms)

        if user not in self._watchers:
            return
        places = self._places.get(user, {})
        rooms |= places.pop(process_id, frozenset())
        if places:
            return
        self._places.pop(user, None)
        if user in self._leaving:
            # Back and gone again, maybe before its rooms were known: the earlier ones still count.
            timer, earlier = self._leaving[user]
            timer.cancel()
            rooms |= earlier
        self._leaving[user] = self._later(GRACE, gone), rooms

    def forget_process(self, process_id: str) -> None:
        """A process is gone, and every user who was on it."""
        for user in [user for user, places in self._places.items() if process_id in places]:
            self.went(user, process_id, frozenset())

    def close(self) -> None:
        """Forget who is leaving: nobody is told any more."""
        for timer, _ in self._leaving.values():
            timer.cancel()
        self._leaving.clear()

    def _tell(self, user: str, status: str, rooms: frozenset[str]) -> None:
        for watcher in list(self._watchers.get(user, ())):
            if watcher.is_in_any(rooms):
                watcher.tell_presence(user, status)
