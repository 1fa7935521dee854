"""Close reasons and reply codes: the two vocabularies a client sees when something ends or fails.

A close reason ends a connection. Each one is used under the same name in the Close frame, the
log field, the metric label and the listing. The number tells the client whether to come back:
4000-4399 with back-off, 4401 with a new token, 4400 and 4403-4499 not at all.

A reply code refuses one message; the connection stays open.
"""

from __future__ import annotations

import enum
from typing import Final, Self

__all__ = [
    "MAX_CLOSE_TEXT_BYTES",
    "CloseReason",
    "Reconnect",
    "ReplyCode",
    "close_table",
]

MAX_CLOSE_TEXT_BYTES: Final = 123
"""RFC 6455 5.5: a control frame has at most 125 bytes of payload; 2 of them are the code."""


class Reconnect(enum.StrEnum):
    """What a client should do after a close."""

    NO = "no"
    BACKOFF = "with back-off"
    NEW_TOKEN = "with a new token"


_RECONNECT: Final = {
    1001: Reconnect.BACKOFF,
    1006: Reconnect.BACKOFF,
    1011: Reconnect.BACKOFF,
    1012: Reconnect.BACKOFF,
    1013: Reconnect.BACKOFF,
    4401: Reconnect.NEW_TOKEN,
}
_BACKOFF_CODES: Final = range(4000, 4400)


class CloseReason(enum.IntEnum):
    """Why a connection ended.

    The value is a small stable ordinal: it indexes the table the native core is given and must
    never be renumbered, only added to at the end.

    Attributes:
        code: The close code on the wire (RFC 6455 7.4).
        text: The constant reason text on the wire, at most 123 bytes of UTF-8.
    """

    code: int
    text: str

    # The defaults are never used: they let type checkers accept the look-up CloseReason(ordinal).
    def __new__(cls, ordinal: int, code: int = 0, text: str = "") -> Self:
        """Make the member whose value is the ordinal."""
        self = int.__new__(cls, ordinal)
        self._value_ = ordinal
        self.code = code
        self.text = text
        return self

    NORMAL = (0, 1000, "closed normally")
    GOING_AWAY = (1, 1001, "node is leaving")
    PROTOCOL_ERROR = (2, 1002, "WebSocket protocol error")
    UNSUPPORTED_DATA = (3, 1003, "only text messages are supported")
    INVALID_PAYLOAD = (4, 1007, "text is not valid UTF-8")
    POLICY_VIOLATION = (5, 1008, "policy violation")
    TOO_MANY_FRAGMENTS = (6, 1008, "too many fragments in one message")
    TOO_MANY_ERRORS = (7, 1008, "too many malformed messages")
    EARLY_DATA = (8, 1008, "too much data before the connection was admitted")
    MESSAGE_TOO_BIG = (9, 1009, "message too big")
    INTERNAL_ERROR = (10, 1011, "internal error")
    SERVICE_RESTART = (11, 1012, "service restart")
    TRY_AGAIN_LATER = (12, 1013, "try again later")
    SLOW_CONSUMER = (13, 4000, "slow consumer")
    NO_PONG = (14, 4001, "no pong")
    INSUFFICIENT_STATE = (15, 4002, "insufficient state")
    RATE_LIMITED = (16, 4003, "rate limited")
    BAD_PROTOCOL_USE = (17, 4400, "bad protocol use")
    TOKEN_EXPIRED = (18, 4401, "token expired")
    REVOKED = (19, 4403, "access revoked")
    KICKED = (20, 4403, "closed by an operator")
    FORBIDDEN = (21, 4403, "forbidden")
    CONNECTION_LIMIT = (22, 4409, "too many connections of this user")
    REPLACED = (23, 4410, "replaced by a newer connection")
    # The two below are never sent as a reason of ours: the first echoes the peer's own code, and
    # RFC 6455 7.4.1: 1006 "MUST NOT be set as a status code in a Close control frame".
    PEER_CLOSED = (24, 1000, "closed by the peer")
    CONNECTION_LOST = (25, 1006, "connection lost")

    @property
    def label(self) -> str:
        """The name in snake_case: the log field and the metric label."""
        return self.name.lower()

    @property
    def reconnect(self) -> Reconnect:
        """What the client should do next; follows from the code alone."""
        if self.code in _BACKOFF_CODES:
            return Reconnect.BACKOFF
        return _RECONNECT.get(self.code, Reconnect.NO)


def close_table() -> tuple[tuple[int, bytes], ...]:
    """Return (wire code, reason text in UTF-8) of every close reason, indexed by its ordinal."""
    return tuple((reason.code, reason.text.encode()) for reason in CloseReason)


class ReplyCode(enum.StrEnum):
    """Why one message of a client was refused: ``data.code`` of an ``error`` reply."""

    BAD_JSON = "bad_json"
    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    UNKNOWN_TYPE = "unknown_type"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    LIMIT = "limit"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """Whether the same message may succeed later without being changed."""
        return self in _RETRYABLE


_RETRYABLE: Final = frozenset({ReplyCode.RATE_LIMITED, ReplyCode.UNAVAILABLE, ReplyCode.INTERNAL})
