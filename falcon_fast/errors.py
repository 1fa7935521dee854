"""Every exception falcon_fast raises on purpose; the lowest room of the house, imported by all.

::

    Exception
    └── FalconError               anything this package raises on purpose
        ├── SettingsError         the environment cannot be used; lists every problem at once
        ├── AuthError             a token was refused
        ├── EnvelopeError         a client's message was refused; carries the reply code
        ├── DirectoryError        a bad id, or a group or user that does not exist
        ├── DirectoryUnavailable  the store of users and groups does not answer
        ├── KeysUnavailable       the issuer's key set cannot be fetched or used
        ├── BusUnavailable        the bus between nodes does not answer
        ├── NodesUnavailable      some nodes did not answer, so the answer is not known
        └── NotFoundError         no such connection, room, or user with connections

Exceptions are one of three vocabularies that are never mixed: exceptions here, reply errors
(:class:`~falcon_fast.codes.ReplyCode`) and close reasons
(:class:`~falcon_fast.codes.CloseReason`).
"""

from __future__ import annotations

from collections.abc import Iterable

from falcon_fast.codes import ReplyCode

__all__ = [
    "AuthError",
    "BusUnavailable",
    "DirectoryError",
    "DirectoryUnavailable",
    "EnvelopeError",
    "FalconError",
    "KeysUnavailable",
    "NodesUnavailable",
    "NotFoundError",
    "SettingsError",
]


class FalconError(Exception):
    """The base of every exception this package raises on purpose."""


class SettingsError(FalconError):
    """The settings cannot be used.

    Args:
        problems: One line for each problem: the name, what came, and what is allowed. A secret
            is described by its shape, never by its value.
    """

    problems: tuple[str, ...]

    def __init__(self, problems: Iterable[str]) -> None:
        lines = tuple(problems)
        # The lines themselves are the exception's arguments, so that it survives pickling.
        super().__init__(lines)
        self.problems = lines

    def __str__(self) -> str:
        return "\n".join(self.problems)


class AuthError(FalconError):
    """A token was refused.

    The text says which rule was broken and is meant for the log. It is a constant: no part of
    the token is ever in it. The client learns only "Unauthorized".
    """


class EnvelopeError(FalconError):
    """A client's message was refused, and the client is told so.

    Args:
        code: The reply code, stable and meant for programs.
        message: One sentence for people; sent to the client, so it holds nothing private.
    """

    code: ReplyCode
    message: str

    def __init__(self, code: ReplyCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code.value}: {self.message}"


class DirectoryError(FalconError):
    """The directory was asked something it cannot do: a bad id, an unknown group or user."""


class DirectoryUnavailable(FalconError):
    """The store of users and groups does not answer; asking again later may succeed."""


class KeysUnavailable(FalconError):
    """The key set that tokens are checked with cannot be fetched, or has no key of use."""


class BusUnavailable(FalconError):
    """The bus between nodes does not answer; the message was not sent to other nodes."""


class NodesUnavailable(FalconError):
    """What was asked for is on no node that answered, and not all did.

    Args:
        nodes: The ids of those that did not.
    """

    nodes: tuple[str, ...]

    def __init__(self, nodes: tuple[str, ...]) -> None:
        super().__init__(nodes)
        self.nodes = nodes

    def __str__(self) -> str:
        return f"Not found on the nodes that answered; no answer from {', '.join(self.nodes)}"


class NotFoundError(FalconError):
    """What an operation is for is not there; the text names it and is meant for operators."""
