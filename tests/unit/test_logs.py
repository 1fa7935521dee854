"""The log's lines: nobody can forge, flood or leak through them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from falcon_fast.auth import issue_token
from falcon_fast.handshake import Request
from falcon_fast.logs import (
    LINES_PER_SECOND,
    MAX_KINDS,
    MAX_VALUE,
    ConsoleFormatter,
    JsonFormatter,
    LogFormat,
    Redactor,
    Sampler,
    set_up_logging,
)
from falcon_fast.process import secrets_of
from falcon_fast.settings import Settings

from ..support.clock import FakeClock
from ..support.server import LISTENING

SECRET: Final = "canary-of-the-signing-secret-0123456789"
TOKEN: Final = issue_token(
    SECRET, user_id="ann", character_id=1, character_name="Ann", ttl=60, now=1_700_000_000
)
NASTY: Final = (
    "a\r\nb",
    "a\nERROR everything is lost",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\x00",
    "\x7f",
    "\u2028\u2029\x85\x0b\x0c",
    "\u202egnp.exe",
    "\ud800",
    'quote " backslash \\ equals =',
)

FORMATTERS: Final = pytest.mark.parametrize("make", [JsonFormatter, ConsoleFormatter])

Make = Callable[[Callable[[str], str]], logging.Formatter]


def record(
    message: str = "something happened",
    level: int = logging.WARNING,
    *,
    args: tuple[object, ...] = (),
    line: int = 1,
    **extra: object,
) -> logging.LogRecord:
    made = logging.LogRecord("falcon_fast.test", level, "test.py", line, message, args, None)
    made.created = 1_700_000_000.25
    vars(made).update(extra)
    return made


def failed(error: BaseException) -> logging.LogRecord:
    made = record("it failed", logging.ERROR)
    try:
        raise error
    except type(error):
        made.exc_info = sys.exc_info()
    return made


def plain(line: str) -> str:
    return line


@contextlib.contextmanager
def bare_root() -> Iterator[logging.Logger]:
    """Lend the root logger without the handlers of the test runner; it is then as it was."""
    root = logging.getLogger()
    names = ("falcon_fast", "aiohttp.access")
    before = root.handlers[:], root.level, [logging.getLogger(name).level for name in names]
    root.handlers[:] = []
    try:
        yield root
    finally:
        root.handlers[:], level, levels = before
        root.setLevel(level)
        for name, its in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(its)


# --------------------------------------------------------------------------------- the two forms


def test_json_has_the_fields_in_order() -> None:
    line = JsonFormatter(plain).format(
        record("%d of %s", args=(3, "four"), connection_id="c-1", code=1000, seconds=0.5, ok=True)
    )
    assert line == (
        '{"time": "2023-11-14T22:13:20.250Z", "level": "warning", "logger": "falcon_fast.test", '
        '"message": "3 of four", "connection_id": "c-1", "code": 1000, "seconds": 0.5, "ok": true}'
    )


def test_console_is_readable() -> None:
    line = ConsoleFormatter(plain).format(
        record("connection closed", logging.INFO, user_id="ann", note="two words", empty="")
    )
    assert line == (
        "2023-11-14T22:13:20.250Z INFO    falcon_fast.test: connection closed "
        'user_id=ann note="two words" empty=""'
    )


def test_fields_cannot_take_the_place_of_the_lines_own() -> None:
    made = record(time="never", logger="mine")
    made.level = "none"
    line = JsonFormatter(plain).format(made)
    assert json.loads(line)["level"] == "warning"
    assert json.loads(line)["logger"] == "falcon_fast.test"


def test_numbers_that_json_has_not_become_texts() -> None:
    line = JsonFormatter(plain).format(record(a=float("nan"), b=float("-inf"), c=None))
    assert line.endswith('"a": "nan", "b": "-inf", "c": "None"}')


@FORMATTERS
def test_long_values_are_cut(make: Make) -> None:
    line = make(plain).format(record("m" * 5000, value="v" * 5000))
    assert line.count("m" * MAX_VALUE) == 1
    assert len(line) < 2 * MAX_VALUE + 200


@FORMATTERS
@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
def test_nothing_in_a_value_can_end_a_line_or_speak_to_a_terminal(make: Make, nasty: str) -> None:
    line = make(plain).format(record("got %s", args=(nasty,), value=nasty))
    assert line.isprintable()
    assert len(line.splitlines()) == 1
    line.encode()


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
def test_json_gives_back_what_was_logged(nasty: str) -> None:
    document = json.loads(JsonFormatter(plain).format(record("got %s", args=(nasty,), value=nasty)))
    assert document["message"] == f"got {nasty}"
    assert document["value"] == nasty


def test_names_of_people_stay_readable_on_the_console() -> None:
    line = ConsoleFormatter(plain).format(record(character_name="Žofie"))
    assert line.endswith("character_name=Žofie")


def test_an_exceptions_text_cannot_begin_a_line_on_the_console() -> None:
    line = ConsoleFormatter(plain).format(
        failed(ValueError("x\n2023-11-14 ERROR forged\r\x1b[2Jend"))
    )
    first, *rest = line.split("\n")
    assert first.endswith("it failed")
    assert all(one.startswith("    ") and one.isprintable() for one in rest)
    assert any("ValueError: x" in one for one in rest)
    assert any(one.endswith("2023-11-14 ERROR forged") for one in rest)


def test_an_exception_is_one_field_in_json() -> None:
    line = JsonFormatter(plain).format(failed(ValueError("x\ny")))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: x\ny")


def test_stacks_and_texts_made_elsewhere_are_kept() -> None:
    made = record()
    made.stack_info = "Stack: here"
    assert json.loads(JsonFormatter(plain).format(made))["exception"] == "Stack: here"
    made.exc_text = "Traceback: there"
    assert (
        json.loads(JsonFormatter(plain).format(made))["exception"]
        == "Traceback: there\nStack: here"
    )


# ------------------------------------------------------------------------------------- secrets


@FORMATTERS
def test_l01_secrets_are_taken_out_wherever_they_are(make: Make) -> None:
    formatter = make(Redactor([SECRET, 'p:ss"w0rd\\']))
    made = failed(RuntimeError(f'the secret is {SECRET}, the password p:ss"w0rd\\'))
    made.msg = f"it is {SECRET}"
    vars(made).update(value=f"<{SECRET}>", token=TOKEN, cookie=f"falcon_auth_token={TOKEN}; a=b")
    line = formatter.format(made)
    assert SECRET not in line
    assert "w0rd" not in line
    for part in TOKEN.split("."):
        assert part not in line
    assert line.count("[redacted]") == 6


@FORMATTERS
@pytest.mark.parametrize("cut", [0, 1, 20, 43], ids=lambda cut: f"L01-{cut}")
def test_l01_a_token_is_known_by_its_look_also_when_it_was_cut(make: Make, cut: int) -> None:
    token = TOKEN[: len(TOKEN) - cut]
    line = make(Redactor()).format(record("head: %s", args=(f"Bearer {token}",)))
    assert TOKEN.split(".")[1] not in line
    assert "Bearer [redacted]" in line


@FORMATTERS
def test_l02_the_repr_of_a_request_in_an_exception_is_redacted(make: Make) -> None:
    request = Request("GET", "/x", "/x", {"authorization": (f"Bearer {TOKEN}",), "host": ("a",)})
    line = make(Redactor()).format(failed(ValueError(repr(request))))
    assert TOKEN.split(".")[1] not in line
    assert TOKEN.split(".")[2] not in line
    assert "'host': ('a',)" in line


def test_a_secret_within_another_does_not_leave_the_rest() -> None:
    assert Redactor(["password", "password-and-more"])("password-and-more") == "[redacted]"


def test_words_that_are_too_short_for_a_secret_are_left() -> None:
    assert Redactor(["", "a", "falco"])("a falcon flies") == "a falcon flies"


def test_r13_redaction_takes_linear_time() -> None:
    redact = Redactor()
    for text in ("eyJ" * 300_000, "eyJaaaa." * 100_000, "eyJaaaa" + "a" * 900_000):
        assert isinstance(redact(text), str)  # quadratic, this would take minutes


def test_the_settings_secrets_in_every_spelling() -> None:
    settings = Settings(
        jwt_secret=SECRET,
        jwt_secret_previous=SECRET[::-1],
        mongodb_uri="mongodb://user:p%40ssword@db/falcon",
        redis_url="redis://[broken",
    )
    assert secrets_of(settings) == {
        SECRET,
        SECRET[::-1],
        "mongodb://user:p%40ssword@db/falcon",
        "p%40ssword",
        "p@ssword",
        "redis://[broken",
    }


# -------------------------------------------------------------------------------------- floods


def test_r11_ten_lines_of_a_kind_in_a_second() -> None:
    clock = FakeClock()
    sampler = Sampler(clock.monotonic)
    written = sum(sampler.filter(record("bad frame %d", args=(n,))) for n in range(100_000))
    assert written == LINES_PER_SECOND == 10
    clock.advance(1.0)
    first = record()
    assert sampler.filter(first)
    assert vars(first)["left_out"] == 99_990
    second = record()
    assert sampler.filter(second)
    assert "left_out" not in vars(second)


def test_r11_a_flood_of_several_seconds() -> None:
    clock = FakeClock()
    sampler = Sampler(clock.monotonic)
    written = 0
    for _ in range(1000):
        written += sum(sampler.filter(record()) for _ in range(5))
        clock.advance(0.01)
    assert written == 100


def test_kinds_do_not_take_from_one_another() -> None:
    sampler = Sampler(FakeClock().monotonic)

    def passed(**what: Any) -> int:  # noqa: ANN401
        return sum(sampler.filter(record(**what)) for _ in range(20))

    assert passed() == 10
    assert passed(line=2) == 10
    assert passed(kind="protocol_error") == 10
    assert passed(kind="rate_limited", line=2) == 10
    assert passed(kind="protocol_error", level=logging.INFO) == 0


def test_information_without_a_kind_always_passes() -> None:
    sampler = Sampler(FakeClock().monotonic)
    assert all(sampler.filter(record(level=logging.INFO)) for _ in range(1000))


def test_memory_for_kinds_is_bounded() -> None:
    sampler = Sampler(FakeClock().monotonic)
    for number in range(3 * MAX_KINDS):
        assert sampler.filter(record(kind=str(number)))
    assert len(sampler._seen) <= MAX_KINDS


def test_the_number_left_out_is_on_the_line() -> None:
    line = ConsoleFormatter(plain).format(record(left_out=7, kind="hidden"))
    assert line.endswith("something happened left_out=7")


# ---------------------------------------------------------------------------------- the whole


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", Terminal(), False),
        ("auto", io.StringIO(), True),
        ("json", Terminal(), True),
        ("console", io.StringIO(), False),
    ],
)
def test_the_form_follows_the_setting_and_the_terminal(
    log_format: LogFormat, stream: io.StringIO, is_json: bool
) -> None:
    with bare_root():
        set_up_logging(log_format=log_format, stream=stream)
        logging.getLogger("falcon_fast.x").info("hello")
    assert stream.getvalue().startswith("{") is is_json


@pytest.mark.parametrize(("debug", "lines"), [(False, 1), (True, 2)])
def test_debug_lines_come_when_asked_for(debug: bool, lines: int) -> None:
    stream = io.StringIO()
    with bare_root():
        set_up_logging(log_format="json", debug=debug, secrets=[SECRET], stream=stream)
        log = logging.getLogger("falcon_fast.x")
        log.debug("detail %s", SECRET)
        log.info("event %s", SECRET)
        logging.getLogger("asyncio").debug("chatter")
        logging.getLogger("aiohttp.access").info("chatter")
    found = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert found == ["detail [redacted]", "event [redacted]"][-lines:]


def test_errors_are_sampled() -> None:
    stream = io.StringIO()
    with bare_root():
        set_up_logging(log_format="json", stream=stream)
        for _ in range(50):
            logging.getLogger("falcon_fast.x").error("again")
    # Twice as many if a second ends meanwhile.
    assert stream.getvalue().count("\n") in (10, 20)


CLOSED: Final = "unable to perform operation on <TCPTransport closed=True>; the handler is closed"


@pytest.mark.parametrize(
    ("name", "text", "error", "is_written"),
    [
        ("asyncio", "Fatal error on SSL protocol\nprotocol: …", RuntimeError(CLOSED), False),
        ("asyncio", "Future exception was never retrieved", ssl.SSLError(1, "[SSL] no"), False),
        ("asyncio", "Fatal error on SSL protocol\nprotocol: …", RuntimeError("other"), True),
        ("asyncio", "Fatal error on SSL protocol\nprotocol: …", OSError(CLOSED), True),
        ("asyncio", "Future exception was never retrieved", RuntimeError(CLOSED), True),
        ("asyncio", "Exception in callback", RuntimeError(CLOSED), True),
        ("falcon_fast.x", "Fatal error on SSL protocol", RuntimeError(CLOSED), True),
        ("asyncio", "Fatal error on SSL protocol", None, True),
    ],
)
def test_x16_a_tls_handshake_that_was_given_up_is_told_once(
    name: str, text: str, error: Exception | None, is_written: bool
) -> None:
    stream = io.StringIO()
    with bare_root():
        set_up_logging(log_format="json", stream=stream)
        logging.getLogger(name).error(text, exc_info=error)
    assert bool(stream.getvalue()) is is_written


def test_each_line_of_a_process_says_which_it_is() -> None:
    stream = io.StringIO()
    with bare_root():
        set_up_logging(log_format="json", stream=stream, process_id="node.1")
        logging.getLogger("falcon_fast.x").info("mine")
        logging.getLogger("another").warning("of another maker")
        logging.getLogger("falcon_fast.x").info("theirs", extra={"process_id": "node.2"})
    found = [json.loads(line)["process_id"] for line in stream.getvalue().splitlines()]
    assert found == ["node.1", "node.1", "node.2"]


def test_logging_that_is_set_up_already_is_left_alone() -> None:
    mine = logging.NullHandler()
    with bare_root() as root:
        root.addHandler(mine)
        set_up_logging(log_format="json", stream=io.StringIO())
        assert root.handlers == [mine]


@FORMATTERS
def test_the_line_that_names_the_ports_is_found_by_the_tests_of_the_server(make: Make) -> None:
    line = make(Redactor()).format(
        record(
            "listening on %s, admin on %s",
            logging.INFO,
            args=("ws://127.0.0.1:3000/websocket/connect", "http://127.0.0.1:3001/"),
        )
    )
    found = re.search(LISTENING, line)
    assert found is not None
    assert found.groups() == ("3000", "3001")
