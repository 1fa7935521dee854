"""A directory that knows what a test tells it, answers when it is let, and fails when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from falcon_fast.directory import SUPER_ADMIN, Group
from falcon_fast.errors import DirectoryUnavailable


def group(number: int, name: str | None = None) -> Group:
    """Make a group whose id ends in the number."""
    return Group(f"{number:024x}", name or f"Group {number}", "custom", None)


class FakeDirectory:
    """A :class:`falcon_fast.directory.Directory` in a dictionary.

    Attributes:
        groups: of each user; users without an entry have none.
        banned: users who are.
        error: raised by every question while it is set.
        is_available: what it says of itself.
        asked: (user, character) of every question, in order.
        refreshed: users looked up because somebody said that they changed, in order.
        tracked: the characters of each tracked user.
    """

    def __init__(self) -> None:
        self.groups: dict[str, frozenset[Group]] = {}
        self.banned: set[str] = set()
        self.error: Exception | None = None
        self.is_available = True
        self.asked: list[tuple[str, int]] = []
        self.refreshed: list[str] = []
        self.tracked: dict[str, set[int]] = {}
        self._gate: asyncio.Event | None = None
        self._on_change: Callable[[str, frozenset[Group]], None] | None = None
        self._on_ban: Callable[[str], None] | None = None
        self._on_profile: Callable[[str, int, str], None] | None = None

    # What the test does.

    def put(self, user_id: str, *groups: Group) -> None:
        """Set a user's groups and tell nobody."""
        self.groups[user_id] = frozenset(groups)

    def tell(self, user_id: str, groups: Iterable[Group] | None = None) -> None:
        """Call back with a user's groups, as if they had changed; with those of ``put`` if none.

        As the port says: only users who are tracked.
        """
        if groups is not None:
            self.groups[user_id] = frozenset(groups)
        if user_id in self.tracked and self._on_change is not None:
            self._on_change(user_id, self.groups.get(user_id, frozenset()))

    def name(self, user_id: str, character_id: int, name: str) -> None:
        """Say that a profile has a name."""
        if user_id in self.tracked and self._on_profile is not None:
            self._on_profile(user_id, character_id, name)

    def ban(self, user_id: str) -> None:
        """Ban a user and say so."""
        self.banned.add(user_id)
        if user_id in self.tracked and self._on_ban is not None:
            self._on_ban(user_id)

    def hold(self) -> None:
        """Answer nothing until ``release``; what is answered then is what was true when asked."""
        self._gate = asyncio.Event()

    def release(self) -> None:
        """Answer all that waits."""
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    # The port.

    async def start(self) -> None:
        """See `Directory.start`."""

    async def close(self) -> None:
        """See `Directory.close`."""

    async def ping(self) -> None:
        if self.error is not None:
            raise DirectoryUnavailable("the fake directory is away") from self.error

    def is_banned(self, user_id: str) -> bool:
        return user_id in self.banned

    async def groups_of(self, user_id: str, character_id: int) -> frozenset[Group]:
        self.asked.append((user_id, character_id))
        found, error, gate = self.groups.get(user_id, frozenset()), self.error, self._gate
        if gate is not None:
            await gate.wait()
        if error is not None:
            raise error
        return found

    async def refresh(self, user_ids: Iterable[str]) -> None:
        users = list(user_ids)
        self.refreshed.extend(users)
        if self._gate is not None:
            await self._gate.wait()
        if self.error is not None:
            raise self.error
        for user_id in users:
            self.tell(user_id)

    async def user_of(self, character_id: int) -> str | None:
        if self.error is not None:
            raise self.error
        for user_id, characters in self.tracked.items():
            if character_id in characters:
                return user_id
        return None

    async def is_super_admin(self, user_id: str, character_id: int) -> bool:
        groups = await self.groups_of(user_id, character_id)
        return any(group.system_name == SUPER_ADMIN for group in groups)

    def watch(
        self,
        *,
        on_change: Callable[[str, frozenset[Group]], None],
        on_ban: Callable[[str], None],
        on_profile: Callable[[str, int, str], None] | None = None,
    ) -> None:
        self._on_change, self._on_ban, self._on_profile = on_change, on_ban, on_profile

    def track(self, user_id: str, character_id: int) -> None:
        self.tracked.setdefault(user_id, set()).add(character_id)

    def forget(self, user_id: str) -> None:
        self.tracked.pop(user_id, None)
