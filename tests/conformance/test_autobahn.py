"""Autobahn's cases against the echo server: its handshake, frames and closes are those of `serve`.

The cases are the original files of the Autobahn test suite, driven by kosoku. Every result that is
not plain OK stands in `expected.json` with its reason. Groups 12 and 13 are about compression: a
thousand messages a case, of which a part has to do unless FALCON_CONFORMANCE=all. Group 11 does not
exist.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypedDict

import pytest
from kosoku import FailureError, run_fuzzingclient
from kosoku._caseindex import initialize_shims

from ..support import ALL_CASES
from ..support.process import running

pytestmark = pytest.mark.conformance

PROTOCOL: Final = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")
PROTOCOL_CASES: Final = 247

LARGE: Final = ("9.*",)
LARGE_CASES: Final = 54
LARGE_LIMITS: Final = ("--max-message-bytes", "20000000", "--max-fragments", "1000000")
"""Group 9 sends up to 16 MiB in one message, and 4 MiB in frames of 64 octets."""

COMPRESSED: Final = ("12.*", "13.*")
COMPRESSED_CASES: Final = 216
COMPRESSED_PART: Final = tuple(
    f"{group}.{number}"
    for group in (
        *(f"12.{data}" for data in range(1, 6)),
        *(f"13.{offer}" for offer in range(1, 8)),
    )
    for number in (1, 3, 5, 11)  # 16, 256 and 4096 octets, and 8192 in frames of 256
)
COMPRESSED_LIMITS: Final = (*LARGE_LIMITS, "--compression-min-bytes", "1")
"""Groups 12 and 13 send up to 128 KiB in one message."""

CONCURRENCY: Final = 4
"""Cases at a time; some wait a second for something that must not come."""

OK: Final = ("OK", "OK")

MODES: Final = {"epoll": (), "epoll-uvloop": ("--uvloop",), "transport": ("--no-epoll",)}
"""How the server is started; on uvloop the transports are others, the sockets the same."""


class Expected(TypedDict):
    """A result other than OK; the code is what the server's Close said."""

    behavior: str
    close: str
    code: int | None
    reason: str


EXPECTED: Final[dict[str, Expected]] = json.loads(
    (Path(__file__).parent / "expected.json").read_text(encoding="utf-8")
)


async def results(
    folder: Path, mode: Sequence[str], cases: Sequence[str], *, concurrency: int = CONCURRENCY
) -> dict[str, Expected]:
    """Run cases against a server of its own; returns all that is not plain OK, and how many ran."""
    arguments = ("falcon_fast.testing", "--echo", "--port", "0", *mode)
    with running(*arguments, folder=folder) as program:
        address = program.wait_for(r"ws://(\S+)/")[1]
        try:
            found = await run_fuzzingclient(f"ws://{address}/", cases, concurrency=concurrency)
        except FailureError as failure:
            failed = [
                f"{result.case_id}: {result.result} {result.result_close}"
                for result in failure.results
                if not result.passed
            ]
            pytest.fail("\n".join([*failed, program.output]), pytrace=False)
        assert program.stop() == 0
        assert program.lines == [f"echo server on ws://{address}/"], "nothing was logged"
    return {
        result.case_id: Expected(
            behavior=result.behavior.value,
            close=result.behavior_close.value,
            code=result.remote_close_code,
            reason="",
        )
        for result in found
    }


def other_than_ok(found: dict[str, Expected]) -> dict[str, Expected]:
    return {
        case: {**result, "reason": EXPECTED.get(case, result)["reason"]}
        for case, result in found.items()
        if (result["behavior"], result["close"]) != OK
    }


def test_every_expected_result_has_a_reason() -> None:
    for case, result in EXPECTED.items():
        assert result["behavior"] in {"NON-STRICT", "INFORMATIONAL"}, case
        assert len(result["reason"]) > 40, case


@pytest.mark.parametrize("mode", MODES)
async def test_groups_1_to_7_and_10(mode: str, tmp_path: Path) -> None:
    found = await results(tmp_path, MODES[mode], PROTOCOL)
    assert len(found) == PROTOCOL_CASES
    assert other_than_ok(found) == EXPECTED


@pytest.mark.parametrize("mode", MODES)
async def test_group_9_large_messages_and_many_frames(mode: str, tmp_path: Path) -> None:
    found = await results(tmp_path, (*MODES[mode], *LARGE_LIMITS), LARGE)
    assert len(found) == LARGE_CASES
    assert other_than_ok(found) == {}


@pytest.fixture
def uncompressed_echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cases of groups 12 and 13 take an echo that does not pay to be compressed.

    kosoku hands them such a message as text, an octet a character, which they cannot hash.
    """
    initialize_shims()
    cases = importlib.import_module("case12_x_x")
    for case in (*cases.Case12_X_X, *cases.Case13_X_X):
        monkeypatch.setattr(case, "onMessage", as_octets(case.onMessage))


def as_octets(on_message: Callable[[object, bytes, bool], None]) -> Callable[..., None]:
    def wrapped(self: object, message: bytes | str, binary: bool) -> None:
        octets = message.encode("latin-1") if isinstance(message, str) else message
        on_message(self, octets, binary)

    return wrapped


# The cases leave the files open that they take their messages from.
cases_leave_files_open = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)


@pytest.mark.slow
@cases_leave_files_open
@pytest.mark.usefixtures("uncompressed_echoes")
@pytest.mark.parametrize("mode", MODES if ALL_CASES else ["epoll"])
async def test_groups_12_and_13_compression(mode: str, tmp_path: Path) -> None:
    cases = COMPRESSED if ALL_CASES else COMPRESSED_PART
    # Beside a case of 128 KiB messages, one of a thousand short ones may not end within its minute.
    concurrency = 1 if ALL_CASES else CONCURRENCY
    arguments = (*MODES[mode], *COMPRESSED_LIMITS)
    found = await results(tmp_path, arguments, cases, concurrency=concurrency)
    assert len(found) == (COMPRESSED_CASES if ALL_CASES else len(COMPRESSED_PART))
    assert other_than_ok(found) == {}


@cases_leave_files_open
@pytest.mark.usefixtures("uncompressed_echoes")
@pytest.mark.parametrize("mode", ["epoll-uvloop", "transport"])
async def test_compression_in_the_other_modes(mode: str, tmp_path: Path) -> None:
    cases = ("12.1.5", "12.3.3", "13.3.11", "13.7.4")
    found = await results(tmp_path, (*MODES[mode], *COMPRESSED_LIMITS), cases)
    assert len(found) == len(cases)
    assert other_than_ok(found) == {}
