"""The log: one line an event, as JSON or for a person, that nobody outside can forge or flood.

Modules log through `logging.getLogger(__name__)`, with a constant message and what belongs to it in
`extra`. This module decides what becomes of it, in this order:

1. `Sampler` lets `LINES_PER_SECOND` of one kind pass and counts the rest.
2. `JsonFormatter` or `ConsoleFormatter` makes one line: whatever a client may have put into a value
   cannot end it, begin another one, or speak to a terminal.
3. `Redactor` takes out what must never be told, should it have got so far: the secrets of the
   settings, and everything that looks like a token.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Final, Literal, TextIO

__all__ = [
    "LINES_PER_SECOND",
    "ConsoleFormatter",
    "JsonFormatter",
    "LogFormat",
    "Redactor",
    "Sampler",
    "set_up_logging",
]

LogFormat = Literal["auto", "json", "console"]

LINES_PER_SECOND: Final = 10
"""Lines of one kind within a second; further ones are counted and not written."""

MAX_KINDS: Final = 1024
"""Kinds remembered at a time; with more, the whole account begins anew."""

MAX_VALUE: Final = 1000
"""Characters of one value; a longer one is cut."""

OUR_LOGGERS: Final = "falcon_fast"

REDACTED: Final = "[redacted]"

# What tokens are made of. Every character is looked at once, whatever the text.
_RUN: Final = re.compile(r"[A-Za-z0-9_.-]+")
# A token's first segment is a JSON object in base64url: it always begins so, with `{"`.
_TOKEN_BEGINS: Final = "eyJ"
_SHORTEST_HEADER: Final = 8

_MIN_SECRET: Final = 6
"""Characters below which a secret is a word that lines are full of anyway."""

# Whatever else a record has was put there through `extra`.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime",
    "color_message",
    "kind",
    "message",
    "taskName",
}


class Redactor:
    """Replaces secrets in a finished line.

    Args:
        secrets: texts that must not appear, such as passwords; empty and short ones are ignored.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({text for text in secrets if len(text) >= _MIN_SECRET}, key=len)
        # Also the way JSON writes it. The longest first: one may be a part of another.
        known = [form for text in reversed(known) for form in {text, json.dumps(text)[1:-1]}]
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, line: str) -> str:
        """Return the line without secrets."""
        if self._known is not None:
            line = self._known.sub(REDACTED, line)
        return _RUN.sub(_without_token, line) if _TOKEN_BEGINS in line else line


class Sampler(logging.Filter):
    """Lets a few lines of each kind pass in a second.

    The kind of a line is its `kind` in `extra`, or the place in the code it comes from. Lines at
    INFO without a `kind` always pass: they are rare by their nature, as one a connection, whose
    number is limited elsewhere.

    Args:
        clock: monotonic seconds.
        per_second: lines of one kind.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, per_second: int = LINES_PER_SECOND
    ) -> None:
        super().__init__()
        self._clock = clock
        self._per_second = per_second
        # kind -> when its second began, lines in that second, lines left out since the last one
        self._seen: dict[tuple[str, object], tuple[float, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide about a line; the first of a kind after others were left out says how many."""
        kind = getattr(record, "kind", None)
        if kind is None:
            if record.levelno == logging.INFO:
                return True
            kind = record.lineno
        key = (record.pathname, kind)
        now = self._clock()
        began, written, left_out = self._seen.get(key, (now, 0, 0))
        if now - began >= 1.0:
            began, written = now, 0
        if written >= self._per_second:
            self._seen[key] = (began, written, left_out + 1)
            return False
        if key not in self._seen and len(self._seen) >= MAX_KINDS:
            self._seen.clear()
        self._seen[key] = (began, written + 1, 0)
        if left_out:
            record.left_out = left_out
        return True


class _GivenUp(logging.Filter):
    """Leaves out what uvloop says of TLS handshakes that were given up in the middle.

    It closes the connection, then tries to write to it once more, and reports that with a
    traceback; or it reports how a handshake ended for which nobody waits any more. Whoever has
    given it up, for a deadline that has passed, says so in a line of his own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the line is to be written."""
        if record.name != "asyncio" or not record.exc_info:
            return True
        error, text = record.exc_info[1], record.getMessage()
        if text.startswith("Fatal error on SSL protocol"):
            return not (isinstance(error, RuntimeError) and "handler is closed" in str(error))
        if text.startswith("Future exception was never retrieved"):
            return not isinstance(error, ssl.SSLError)
        return True


class _Signature(logging.Filter):
    """Says in each line which process wrote it."""

    def __init__(self, process_id: str) -> None:
        super().__init__()
        self._process_id = process_id

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "process_id"):
            record.process_id = self._process_id
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: `time`, `level`, `logger`, `message`, then the fields."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        document: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        for name, value in _fields(record).items():
            document.setdefault(name, value)
        exception = _exception(self, record)
        if exception:
            document["exception"] = exception
        # ASCII: a terminal obeys C1 controls too, and JSON's own escapes leave these alone.
        text = json.dumps(document, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")
        return self._redact(text)


class ConsoleFormatter(logging.Formatter):
    """A line for a person; an exception's traceback follows, set in."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines."""
        parts = [
            _timestamp(record),
            f"{record.levelname:<7}",
            f"{record.name}: {_printable(_cut(record.getMessage()))}",
        ]
        for name, value in _fields(record).items():
            text = _printable(str(value))
            parts.append(f"{name}={text}" if _is_word(text) else f"{name}={_quoted(text)}")
        lines = [" ".join(parts)]
        # Set in, so that no text in an exception can look like a line of its own.
        lines += [f"    {_printable(line)}" for line in _exception(self, record).splitlines()]
        return self._redact("\n".join(lines))


def set_up_logging(
    *,
    log_format: LogFormat,
    debug: bool = False,
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
    process_id: str | None = None,
) -> None:
    """Send all log lines of the process to one stream; does nothing where that is set up already.

    Args:
        log_format: `auto` is `console` on a terminal and `json` elsewhere.
        debug: DEBUG and above of our own modules, else INFO and above. Packages of other makers
            stay at INFO: some write down whole requests or commands at DEBUG.
        secrets: texts to be taken out wherever they appear.
        stream: stderr by default.
        process_id: put into every line, for a process whose siblings write to the same stream.
    """
    stream = sys.stderr if stream is None else stream
    if log_format == "auto":
        log_format = "console" if stream.isatty() else "json"
    redact = Redactor(secrets)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter(redact) if log_format == "json" else ConsoleFormatter(redact)
    )
    handler.addFilter(_GivenUp())
    handler.addFilter(Sampler())
    if process_id is not None:
        handler.addFilter(_Signature(process_id))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger(OUR_LOGGERS).setLevel(logging.DEBUG if debug else logging.NOTSET)
    # One line a request tells an operator nothing that the proxy in front does not.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def _without_token(run: re.Match[str]) -> str:
    text = run[0]
    begin = text.find(_TOKEN_BEGINS)
    if begin < 0 or text.find(".", begin + _SHORTEST_HEADER) < 0:
        return text
    return text[:begin] + REDACTED


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.created % 1 * 1000):03d}Z"


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields: dict[str, object] = {}
    for name, value in vars(record).items():
        if name in _STANDARD or name.startswith("_"):
            continue
        # Infinity and NaN are no JSON.
        is_plain = isinstance(value, int) or (isinstance(value, float) and isfinite(value))
        fields[name] = value if is_plain else _cut(str(value))
    return fields


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = ""
    if record.exc_info:
        text = formatter.formatException(record.exc_info)
    elif record.exc_text:
        text = record.exc_text
    if record.stack_info:
        text = f"{text}\n{record.stack_info}" if text else record.stack_info
    return text


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "…"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def _is_word(text: str) -> bool:
    return bool(text) and not any(one in ' "=' for one in text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
