"""Errors of the admin API: every one is ``application/problem+json`` (RFC 9457), in one shape.

Whatever refuses a request raises `Problem`; the listener makes the answer of it, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aiohttp import web
from pydantic import JsonValue, ValidationError

from falcon_fast.admin.schemas import ProblemDetails, ProblemItem

__all__ = ["TITLES", "VALIDATION_FAILED", "Problem", "invalid", "of_validation", "response"]

TITLES: Final[Mapping[int, str]] = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    422: "Unprocessable Entity",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
"""The phrases go-falcon answers with. Python's own changed between two of its versions."""

VALIDATION_FAILED: Final = "validation failed"

CONTENT_TYPE: Final = "application/problem+json"

MAX_ERRORS: Final = 100
"""Errors told at once: nobody reads more, and one request can have hundreds of thousands."""

MAX_TEXT: Final = 256
"""Characters of a value or a name that are told back."""

# pydantic's texts name Python's types and its own classes; these say the same of JSON.
_MESSAGES: Final[Mapping[str, str]] = {
    "missing": "required, but absent",
    "extra_forbidden": "unknown",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "string_type": "must be a string",
    "int_type": "must be an integer",
}


class Problem(Exception):
    """A request is refused.

    Args:
        status: one of `TITLES`.
        detail: a sentence for a person.
        errors: what is wrong where, for 422.
        headers: what the status demands, such as ``Allow``.
        close: end the connection after the answer, because the rest of the body was not read.
    """

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        errors: Sequence[ProblemItem] = (),
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail or TITLES[status]
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.close = close


def response(problem: Problem) -> web.Response:
    """Make the answer of a problem."""
    details = ProblemDetails(
        title=TITLES[problem.status],
        status=problem.status,
        detail=problem.detail,
        errors=list(problem.errors) or None,
    )
    # Not exclude_none: the value of an error may be null.
    keep = None if problem.errors else {"errors"}
    answer = web.Response(
        status=problem.status,
        body=details.model_dump_json(exclude=keep).encode(),
        content_type=CONTENT_TYPE,
        headers=problem.headers,
    )
    if problem.close:
        answer.force_close()
    return answer


def invalid(location: str, message: str, value: object = None) -> Problem:
    """Refuse one value of a request with 422.

    Args:
        location: the way to it, such as ``query.cursor``.
        message: what is wrong with it.
        value: what came.
    """
    item = ProblemItem(message=message, location=location, value=_told(value))
    return Problem(422, VALIDATION_FAILED, errors=[item])


def of_validation(error: ValidationError) -> Problem:
    """Refuse a request for all that the models found wrong with it, with 422."""
    found = error.errors(include_url=False, include_context=False)
    items = [
        ProblemItem(
            message=_MESSAGES.get(one["type"], one["msg"]),
            location=_location(one["loc"]),
            value=None if one["type"] == "missing" else _told(one["input"]),
        )
        for one in found[:MAX_ERRORS]
    ]
    return Problem(422, VALIDATION_FAILED, errors=items)


def _location(parts: Iterable[int | str]) -> str:
    return ".".join(_cut(str(part)) for part in parts)


def _told(value: object) -> JsonValue:
    """Return a value as it may be told back to who sent it."""
    if isinstance(value, str):
        return _cut(value)
    return value if isinstance(value, bool | int | float) else None


def _cut(text: str) -> str:
    # Octets of a path that are no UTF-8 arrive as lone surrogates, which JSON cannot hold.
    text = text[:MAX_TEXT].encode("utf-8", "replace").decode()
    return text if len(text) < MAX_TEXT else text + "…"
