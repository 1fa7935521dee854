"""The port to users and groups: who belongs where, and who is banned; asked by the gateway.

The gateway declares here what it needs; an adapter (SQLite in this process, MongoDB outside it)
gives it. The contract, which no signature can tell:

Whose groups
    A user's groups are the active groups in which one of the user's characters is an active
    member. The user's characters are those whose profile names the user, and those that a token
    of the user vouches for (the argument ``character_id``, and every character that is tracked
    for the user) unless a profile says that the character is somebody else's. A character whose
    profile says ``valid: false`` brings no groups.

Order
    ``on_change`` and ``on_ban`` come on the loop's thread, never from inside another call of the
    directory. Changes of one user come in the order in which they happened; several in a row may
    be told as one. An answer of :meth:`Directory.groups_of` may reach its caller after an
    ``on_change`` that is newer: in that case the same ``on_change`` is repeated afterwards. The
    last set that was told is therefore always the right one, and telling a set twice must do no
    harm.

Guarantee
    Track a user first and ask afterwards: then no change between the two is lost. A change in the
    store reaches ``on_change``, ``on_ban`` and :meth:`Directory.is_banned` at most one second
    after it was written. When the store does not answer, nothing is told, and what was known goes
    on to hold: an outage never empties a room and never lifts a ban. When it answers again, what
    was missed is told.

Who may call when
    Everything is called on the loop's thread between ``start`` and ``close``. ``watch`` is called
    once, before the first ``track``.

What it raises
    :class:`~falcon_fast.errors.DirectoryUnavailable` when the store does not answer; nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = [
    "GROUP_TYPES",
    "SUPER_ADMIN",
    "SUPER_ADMIN_NAME",
    "Directory",
    "Group",
    "MembershipChange",
]

GROUP_TYPES: Final = ("system", "corporation", "alliance", "custom")
"""What a group may be."""

SUPER_ADMIN: Final = "super_admin"
"""The ``system_name`` of the group whose members may use the admin API."""

SUPER_ADMIN_NAME: Final = "Super Administrator"
"""The name of that group, as go-falcon writes it."""


@dataclass(frozen=True, slots=True)
class Group:
    """A group as the server sees it.

    Attributes:
        id: 24 hexadecimal digits in lower case; ``group:`` and the id is the group's room.
        name: For people.
        type: One of :data:`GROUP_TYPES`.
        system_name: A fixed name by which programs know the group, or None.
    """

    id: str
    name: str
    type: str
    system_name: str | None = None


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """What became different for one user.

    Attributes:
        user_id: The user.
        groups: All groups of the user from now on.
        joined: Those that are new, sorted by id.
        left: Those that are no longer there, sorted by id.
    """

    user_id: str
    groups: frozenset[Group]
    joined: tuple[Group, ...]
    left: tuple[Group, ...]

    @classmethod
    def between(
        cls, user_id: str, before: frozenset[Group], after: frozenset[Group]
    ) -> MembershipChange:
        """Compare two sets by the ids of their groups, so that a new name is no change."""
        old = {group.id: group for group in before}
        new = {group.id: group for group in after}
        joined = tuple(new[key] for key in sorted(new.keys() - old.keys()))
        left = tuple(old[key] for key in sorted(old.keys() - new.keys()))
        return cls(user_id, after, joined, left)


class Directory(Protocol):
    """Users and groups; the contract is in the docstring of this module."""

    async def start(self) -> None:
        """Open the store and read who is banned.

        Raises:
            DirectoryUnavailable: The store cannot be opened; the text says what to mend.
        """

    async def close(self) -> None:
        """Stop following changes and let the store go; a second call does nothing.

        Questions still waiting end with DirectoryUnavailable.
        """

    async def ping(self) -> None:
        """Ask the store for a sign of life.

        Raises:
            DirectoryUnavailable: There was none.
        """

    @property
    def is_available(self) -> bool:
        """Whether the store answered when changes were last looked for; says so from memory."""

    def is_banned(self, user_id: str) -> bool:
        """Tell from memory, without waiting, whether the user is banned."""

    def groups_of(self, user_id: str, character_id: int) -> Awaitable[frozenset[Group]]:
        """Return the groups of a user, to be awaited; a future costs less than a coroutine.

        Calls that are made together are answered together, so a storm of reconnecting clients
        costs few queries.

        Args:
            user_id: The user, as the token names it.
            character_id: The character the token was issued to.

        Raises:
            DirectoryUnavailable: The store does not answer; asking again later may succeed.
        """

    async def refresh(self, user_ids: Iterable[str]) -> None:
        """Somebody says that these users' memberships changed: look now.

        What is remembered of them is dropped. Who is tracked is told through ``on_change`` before
        this returns, whether the groups are other ones or not, from a look that began after the
        call.

        Raises:
            DirectoryUnavailable: The store does not answer; it is looked again when it does.
        """

    async def user_of(self, character_id: int) -> str | None:
        """Return the user whose profile has the character, or None.

        Raises:
            DirectoryUnavailable: The store does not answer.
        """

    async def is_super_admin(self, user_id: str, character_id: int) -> bool:
        """Tell whether one of the user's groups is the super administrators'.

        Raises:
            DirectoryUnavailable: The store does not answer.
        """

    def watch(
        self,
        *,
        on_change: Callable[[str, frozenset[Group]], None],
        on_ban: Callable[[str], None],
        on_profile: Callable[[str, int, str], None] | None = None,
    ) -> None:
        """Say who is to be told of changes.

        Args:
            on_change: Called with a tracked user and all groups the user now has.
            on_ban: Called with a tracked user who is banned.
            on_profile: Called with a tracked user, a tracked character and the name that its
                profile has, by directories that learn of names; at first and when it changes.
        """

    def track(self, user_id: str, character_id: int) -> None:
        """Follow the changes of a user, who has a connection now.

        Called once more for the same user it adds a character and starts nothing twice.
        """

    def forget(self, user_id: str) -> None:
        """Follow the user no longer: the last connection is gone. Unknown users do no harm."""
