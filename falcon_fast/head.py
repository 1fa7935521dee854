"""HTTP/1.1 request heads: the first step of a birth, bytes -> Request | Refuse.

Only the grammar of HTTP is decided here; what the request may do is decided in
:mod:`falcon_fast.handshake`. Pure: no I/O, no state. The core reads the octets; every step is
linear in the length of the head, which is bounded before anything looks inside it.

The grammar is RFC 9112 without its leniencies: no obsolete line folding, no bare CR or LF, no
control characters, no white space before a colon. A head that two programs could read in two
ways (request smuggling) is refused here, so the rest of the house sees one reading only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from falcon_fast._core import read_head

__all__ = [
    "BAD_HEAD",
    "BAD_HTTP_VERSION",
    "BODY_NOT_ALLOWED",
    "HEAD_TOO_LARGE",
    "URI_TOO_LONG",
    "HeadLimits",
    "Refuse",
    "Request",
    "has_valid_host",
    "parse_head",
]

#: The reason phrase of every status this server refuses with; it is also the body. Written out
#: because the phrases of :class:`http.HTTPStatus` differ between Python versions.
_PHRASES: Final[dict[int, str]] = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    414: "URI Too Long",
    426: "Upgrade Required",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

# RFC 9110 section 7.2: Host = uri-host [ ":" port ]. Narrower than RFC 3986: the "sub-delims"
# that no host name has are left out.
_HOST_AND_PORT: Final = r"(?:[A-Za-z0-9._~%-]{1,255}+|\[[0-9A-Fa-f:.]{2,45}+\])(?::[0-9]{0,5}+)?"
_HOST: Final = re.compile(_HOST_AND_PORT)

# RFC 9112 section 3.2.2: "a server MUST accept the absolute-form in requests".
_ABSOLUTE_FORM: Final = re.compile(rf"(?:https?|wss?)://{_HOST_AND_PORT}(?=[/?]|\Z)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """How much of a head is read before it is refused.

    Attributes:
        max_head_bytes: Bytes of the whole head, the closing empty line included.
        max_line: Bytes of one header line, without its CRLF.
        max_headers: Header lines in a head.
        max_target: Bytes of the request target.
    """

    max_head_bytes: int = 16_384
    max_line: int = 8_192
    max_headers: int = 100
    max_target: int = 8_192


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request head.

    Attributes:
        method: As sent; methods are case-sensitive.
        target: The request target as sent, at most :attr:`HeadLimits.max_target` bytes.
        path: The target's path, not decoded, without the query; begins with ``/``.
        fields: The values of each field, by its name in lower case, in the order sent; without
            the white space around them, bytes above 0x7F as Latin-1.
    """

    method: str
    target: str
    path: str
    fields: dict[str, tuple[str, ...]]

    def get_all(self, name: str) -> tuple[str, ...]:
        """Return every value sent under a name, in the order sent.

        Args:
            name: The header's name in lower case.
        """
        return self.fields.get(name, ())


@dataclass(frozen=True, slots=True)
class Refuse:
    """An answer other than 101; the connection closes after it.

    Attributes:
        status: The HTTP status.
        body: The whole body: constant text, nothing of the request is ever in it.
        headers: Headers beyond Content-Type, Content-Length and Connection.
        label: snake_case reason for logs and metrics; finer than the status, never sent.

    Raises:
        ValueError: The status is unknown, or a header would break out of its line.
    """

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    label: str = "refused"

    def __post_init__(self) -> None:
        if self.status not in _PHRASES:
            raise ValueError(f"{self.status} is not a status of a refusal")
        for name, value in self.headers:
            if not (name + value).isprintable():
                raise ValueError("a response header holds a control character")

    @classmethod
    def of(cls, status: int, label: str, *headers: tuple[str, str]) -> Refuse:
        """Build a refusal whose body is the status's reason phrase."""
        return cls(status, _PHRASES.get(status, "").encode("ascii"), headers, label)

    def to_bytes(self) -> bytes:
        """Return the complete HTTP/1.1 response."""
        extra = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        # Only the answer to HEAD has no body, and RFC 9110 section 8.6 forbids to give its
        # length there unless GET would get the same; the end of the connection ends it.
        length = f"Content-Length: {len(self.body)}\r\n" if self.body else ""
        head = (
            f"HTTP/1.1 {self.status} {_PHRASES[self.status]}\r\n"
            f"Content-Type: text/plain; charset=utf-8\r\n{length}"
            f"Connection: close\r\n{extra}\r\n"
        )
        return head.encode("ascii") + self.body


BAD_HEAD: Final = Refuse.of(400, "bad_head")
BODY_NOT_ALLOWED: Final = Refuse.of(400, "body_not_allowed")
URI_TOO_LONG: Final = Refuse.of(414, "uri_too_long")
HEAD_TOO_LARGE: Final = Refuse.of(431, "head_too_large")
BAD_HTTP_VERSION: Final = Refuse.of(505, "bad_http_version")


def parse_head(head: bytes, limits: HeadLimits) -> Request | Refuse:
    """Read a request head.

    Args:
        head: Everything up to and including the first empty line. A head that crossed
            ``max_head_bytes`` may be given without its end: it is told which limit it crossed.
        limits: What is too much; a :class:`~falcon_fast.handshake.Policy` is one.

    Returns:
        The request; or 400 (grammar, or a body is announced), 414, 431 or 505.
    """
    # More than that is in the request line only if the target is too long.
    if len(head) > limits.max_target and _target_length(head) > limits.max_target:
        return URI_TOO_LONG
    # Counted before it is read: the request line and the closing empty line are no headers.
    if len(head) > limits.max_head_bytes or head.count(b"\r\n") - 2 > limits.max_headers:
        return HEAD_TOO_LARGE
    found = read_head(head, limits.max_line)
    if isinstance(found, int):
        return BAD_HTTP_VERSION if found == BAD_HTTP_VERSION.status else BAD_HEAD
    method, target, fields = found
    path = _path_of(target)
    if path is None:
        return BAD_HEAD
    if fields is None:
        return HEAD_TOO_LARGE
    # RFC 9112 section 6: "The presence of a message body in a request is signaled by a
    # Content-Length or Transfer-Encoding header field." What would follow here are frames, so
    # only the one spelling of "no body" that nobody can misread is let through.
    if "transfer-encoding" in fields or fields.get("content-length", ("0",)) != ("0",):
        return BODY_NOT_ALLOWED
    return Request(method, target, path, fields)


def has_valid_host(request: Request) -> bool:
    """Tell whether the request names its host exactly once and well.

    RFC 9112 section 3.2: "A server MUST respond with a 400 (Bad Request) status code to any
    HTTP/1.1 request message that lacks a Host header field and to any request message that
    contains more than one Host header field line or a Host header field with an invalid field
    value." An empty value is refused too: no ``ws`` or ``http`` URI is without a host.
    """
    hosts = request.get_all("host")
    return len(hosts) == 1 and _HOST.fullmatch(hosts[0]) is not None


def _target_length(head: bytes) -> int:
    """Return the length of what stands between the request line's first two spaces, so far."""
    line = head.partition(b"\r\n")[0]
    start = line.find(b" ") + 1
    if not start:
        return 0
    end = line.find(b" ", start)
    return (len(line) if end < 0 else end) - start


def _path_of(target: str) -> str | None:
    """Return the path of a target in origin-form or absolute-form, None for any other form."""
    if not target.startswith("/"):
        match = _ABSOLUTE_FORM.match(target)
        if match is None:
            return None
        target = target[match.end() :]
    return target.partition("?")[0] or "/"
