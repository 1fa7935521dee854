"""Request heads by regular expressions: what the core's `read_head` and `head.parse_head` must do.

The grammar is RFC 9112 without its leniencies, written the way the standard writes it. What the
path of a target is has one reading only, which is taken from there.
"""

from __future__ import annotations

import re
from typing import Final

from falcon_fast.head import (
    BAD_HEAD,
    BAD_HTTP_VERSION,
    BODY_NOT_ALLOWED,
    HEAD_TOO_LARGE,
    URI_TOO_LONG,
    HeadLimits,
    Refuse,
    Request,
    _path_of,
)

# RFC 9110 section 5.6.2: token = 1*tchar
_TOKEN: Final = r"[-!#$%&'*+.^_`|~0-9A-Za-z]"

# RFC 9112 section 3: request-line = method SP request-target SP HTTP-version. No registered
# method is longer than 17 characters; a longer one is noise.
_REQUEST_LINE: Final = re.compile(
    rf"({_TOKEN}{{1,32}}+) ([\x21-\x7e]++) HTTP/([0-9]\.[0-9])".encode("ascii")
)

# RFC 9112 section 5: field-line = field-name ":" OWS field-value OWS. The repeats are possessive
# (they give nothing back), so a head that fits nowhere costs one pass, not one per character.
_FIELD_LINES: Final = re.compile(
    rf"(?:{_TOKEN}++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n".encode("ascii")
)

#: Optional white space around a field value (RFC 9110 section 5.6.3).
_OWS: Final = " \t"


def parse_head_slowly(head: bytes, limits: HeadLimits) -> Request | Refuse:
    """Read a request head, see `head.parse_head`.

    Args:
        head: Everything up to and including the first empty line. A head that crossed
            ``max_head_bytes`` may be given without its end: it is told which limit it crossed.
        limits: What is too much; a :class:`~falcon_fast.handshake.Policy` is one.

    Returns:
        The request; or 400 (grammar, or a body is announced), 414, 431 or 505.
    """
    line_end = head.find(b"\r\n")
    request_line = head if line_end < 0 else head[:line_end]
    if _target_length(request_line) > limits.max_target:
        return URI_TOO_LONG
    # Counted before it is read: the request line and the closing empty line are no headers.
    if len(head) > limits.max_head_bytes or head.count(b"\r\n") - 2 > limits.max_headers:
        return HEAD_TOO_LARGE

    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        return BAD_HEAD
    method, raw_target, version = match.groups()
    if version != b"1.1":
        return BAD_HTTP_VERSION
    if _FIELD_LINES.fullmatch(head, line_end + 2) is None:
        return BAD_HEAD
    target = raw_target.decode("ascii")
    path = _path_of(target)
    if path is None:
        return BAD_HEAD

    headers: list[tuple[str, str]] = []
    for line in head[line_end + 2 : -4].decode("latin-1").split("\r\n"):
        if len(line) > limits.max_line:
            return HEAD_TOO_LARGE
        name, colon, value = line.partition(":")
        if colon:  # absent only where there is no header at all
            headers.append((name.lower(), value.strip(_OWS)))

    fields: dict[str, tuple[str, ...]] = {}
    for name, value in headers:
        fields[name] = (*fields.get(name, ()), value)
    request = Request(method.decode("ascii"), target, path, fields)
    # RFC 9112 section 6: "The presence of a message body in a request is signaled by a
    # Content-Length or Transfer-Encoding header field." What would follow here are frames, so
    # only the one spelling of "no body" that nobody can misread is let through.
    lengths = request.get_all("content-length")
    if lengths not in ((), ("0",)) or request.get_all("transfer-encoding"):
        return BODY_NOT_ALLOWED
    return request


def _target_length(request_line: bytes) -> int:
    """Return the length of what stands between the first two spaces, complete or not."""
    start = request_line.find(b" ") + 1
    if not start:
        return 0
    end = request_line.find(b" ", start)
    return (len(request_line) if end < 0 else end) - start
