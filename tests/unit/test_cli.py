"""The command line: what goes to which stream, the exit codes, and the documents about it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import runpy
import shlex
import sqlite3
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from falcon_fast import __version__, cli
from falcon_fast.auth import TokenVerifier, generate_secret
from falcon_fast.clock import SystemClock
from falcon_fast.directory.sqlite_store import SqliteStore
from falcon_fast.errors import FalconError, SettingsError
from falcon_fast.settings import SETTINGS, Settings

from ..support import ROOT
from .test_docs_code import blocks

SECRET = "correct-horse-battery-staple-0123456789"
A = "a" * 24
USER = ("--user-id", "u-1", "--character-id", "90000001", "--character-name", "Alice")


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


class Terminal:
    """Runs commands in an empty folder and keeps what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str) -> Done:
        try:
            code = cli.main(argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Done(code, *self._capsys.readouterr())

    def fails(self, *argv: str, code: int = cli.FAILURE) -> str:
        """Run a command that must fail; returns its only line, without the end of line."""
        done = self(*argv)
        assert done.code == code
        assert done.out == ""
        (line,) = done.err.splitlines()
        return line

    def works(self, *argv: str) -> str:
        """Run a command that must work without a word on standard error."""
        done = self(*argv)
        assert (done.code, done.err) == (0, "")
        return done.out


@pytest.fixture
def ff(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Terminal:
    monkeypatch.chdir(tmp_path)
    return Terminal(capsys)


def commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Walk through all commands that do something, with their parsers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from commands(inner, (*path, name))
            return
    yield path, parser


COMMANDS = dict(commands(cli.build_parser()))


# --- the parser ----------------------------------------------------------------------------------


def test_the_commands_are_these() -> None:
    assert list(COMMANDS) == [
        ("serve",),
        ("cluster",),
        ("token",),
        ("user", "add"),
        ("group", "add"),
        ("group", "list"),
        ("group", "remove"),
        ("member", "add"),
        ("member", "remove"),
        ("member", "list"),
        ("check",),
    ]


def test_version(ff: Terminal) -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    assert ff.works("--version") == f"falcon_fast {__version__} (Python {python})\n"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(ff: Terminal, path: tuple[str, ...]) -> None:
    text = ff.works(*path, "--help")
    assert text.startswith(f"usage: falcon-fast {' '.join(path)} ")
    assert f"\nexamples:\n{' ' * 2}" in text
    assert f"falcon-fast {' '.join(path)}" in text.partition("\nexamples:\n")[2]
    assert all(action.help for action in COMMANDS[path]._actions)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_examples_in_help_texts_can_be_typed(path: tuple[str, ...]) -> None:
    epilog = COMMANDS[path].epilog
    assert epilog is not None
    lines = [line for line in epilog.splitlines() if "falcon-fast" in line]
    assert lines
    for line in lines:
        words = shlex.split(line.replace("$(", " ").replace(")", " "))
        cli.build_parser().parse_args(words[words.index("falcon-fast") + 1 :])


def test_help_of_a_group_of_commands_lists_them(ff: Terminal) -> None:
    text = ff.works("member", "--help")
    assert re.findall(r"^    (\w+)  ", text, re.MULTILINE) == ["add", "remove", "list"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ((), "falcon-fast: the following arguments are required: COMMAND (see falcon-fast --help)"),
        (("--port", "1"), "falcon-fast: argument COMMAND: invalid choice: '1' (choose from "),
        (("start",), "falcon-fast: argument COMMAND: invalid choice: 'start' (choose from "),
        (("group",), "falcon-fast group: the following arguments are required: COMMAND "),
        (("serve", "--port=80"), "falcon-fast serve: no such option: '--port' (see "),
        (("serve", "--de"), "falcon-fast serve: no such option: '--de' (see "),
        (
            ("group", "add", "Fleet", "Commanders"),
            "falcon-fast group add: one argument too many: 'Commanders'; a name with blanks needs ",
        ),
        (
            ("group", "add", "Fleet", "--id", "12"),
            "falcon-fast group add: argument --id: expected 24 hexadecimal digits; came '12' (see ",
        ),
        (
            ("group", "add", " "),
            "falcon-fast group add: argument NAME: expected 1 to 256 characters without control "
            "characters; came ' ' (see ",
        ),
        (("group", "add", "x", "--type", "y"), "falcon-fast group add: argument --type: invalid "),
        (
            ("member", "add", A, "-1"),
            "falcon-fast member add: argument CHARACTER_ID: expected an integer from 0 to "
            "9223372036854775807; came '-1' (see ",
        ),
        (
            ("member", "add", A, "9" * 5000),
            "falcon-fast member add: argument CHARACTER_ID: expected an integer from 0 to "
            f"9223372036854775807; came '{'9' * 76}... (see ",
        ),
        (("member", "add", A, "٣"), "falcon-fast member add: argument CHARACTER_ID: expected an "),
        (
            ("user", "add", "--user-id", "a b", *USER[2:]),
            "falcon-fast user add: argument --user-id: expected 1 to 64 characters of A-Z, a-z, "
            "0-9, _ and -; came 'a b' (see ",
        ),
        (
            ("user", "add", *USER[:4]),
            "falcon-fast user add: the following arguments are required: --character-name (see ",
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_wrong_arguments_give_one_line_and_code_2(
    ff: Terminal, argv: tuple[str, ...], line: str
) -> None:
    assert ff.fails(*argv, code=cli.USAGE).startswith(line)
    assert os.listdir() == []


def test_a_value_behind_an_unknown_option_is_not_repeated(ff: Terminal) -> None:
    assert "hunter2" not in ff.fails("check", "--secret=hunter2", code=cli.USAGE)


# --- token ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        (None, 3600),
        ("3600", 3600),
        ("90s", 90),
        ("15m", 900),
        ("8h", 28_800),
        ("7d", 604_800),
        ("366d", 31_622_400),
    ],
)
def test_token_is_printed_alone_and_is_valid(
    ff: Terminal, monkeypatch: pytest.MonkeyPatch, ttl: str | None, seconds: int
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    # Nothing else that is wrong may be in the way.
    monkeypatch.setenv("FALCON_PORT", "wrong")
    options = () if ttl is None else ("--ttl", ttl)
    before = int(SystemClock().time())
    out = ff.works("token", *USER, "--scopes", "a b", *options)
    identity = TokenVerifier(SECRET, clock=SystemClock()).verify(out.removesuffix("\n"))
    assert (identity.user_id, identity.character_id) == ("u-1", 90000001)
    assert (identity.character_name, identity.scopes) == ("Alice", "a b")
    assert before + seconds <= identity.expires_at <= int(SystemClock().time()) + seconds


@pytest.mark.parametrize("ttl", ["0", "-5", "1.5", "8x", "h", "", "367d", "9" * 20, "1h30m", "٣"])
def test_wrong_ttl(ff: Terminal, ttl: str) -> None:
    line = ff.fails("token", *USER, f"--ttl={ttl}", code=cli.USAGE)
    assert line.startswith(
        "falcon-fast token: argument --ttl: expected seconds, or a number with s, m, h or d, such "
        f"as 3600, 15m, 8h or 7d, and at most 366d; came {ttl!a} "
    )


def test_token_without_a_secret_says_how_to_make_one(ff: Terminal) -> None:
    line = ff.fails("token", *USER, code=cli.USAGE)
    assert line.startswith("falcon-fast token: JWT_SECRET: not set; allowed: ")
    assert line.endswith(f"; make one with: {cli.MAKE_A_SECRET}")


def test_the_way_to_make_a_secret_makes_a_good_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = re.search(r"python3 -c '(.*?)'", cli.MAKE_A_SECRET)
    assert code is not None
    exec(code[1], {})
    secret = capsys.readouterr().out.strip()
    assert Settings.from_environ({"JWT_SECRET": secret}).jwt_secret == secret


def test_bad_secret_is_refused_and_not_shown(ff: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", "hunter2")
    line = ff.fails("token", *USER, code=cli.USAGE)
    assert line.startswith("falcon-fast token: JWT_SECRET: came a value of 7 characters (not shown")
    assert "hunter2" not in line


def test_claims_a_server_would_refuse(ff: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    line = ff.fails("token", *USER, "--scopes", "x" * 9000, code=cli.USAGE)
    assert line.startswith("falcon-fast token: a server would refuse such a token: ")


def test_token_as_the_servers_settings_want_it(
    ff: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("JWT_ISSUER", "https://issuer.example")
    monkeypatch.setenv("JWT_AUDIENCE", "falcon")
    monkeypatch.setenv("JWT_MAX_LIFETIME", "3600")
    token = ff.works("token", *USER).removesuffix("\n")
    by = TokenVerifier(
        SECRET, issuer="https://issuer.example", audience="falcon", clock=SystemClock()
    )
    assert by.verify(token).user_id == "u-1"
    line = ff.fails("token", *USER, "--ttl", "3601", code=cli.USAGE)
    assert line == (
        "falcon-fast token: JWT_MAX_LIFETIME: 3600 seconds, so a server would refuse a token of "
        "3601 seconds; allowed: a --ttl up to it"
    )


@pytest.mark.parametrize("command", [("token", *USER), ("serve", "--dev")])
def test_with_public_keys_nobody_here_can_sign(
    ff: Terminal, app: FakeApp, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("JWT_JWKS_URL", "https://issuer.example/jwks")
    monkeypatch.setenv("JWT_ALGORITHMS", "ES256")
    line = ff.fails(*command, code=cli.USAGE)
    assert "JWT_PUBLIC_KEY or JWT_JWKS_URL: set, so " in line
    assert app.calls == []


# --- users and groups ----------------------------------------------------------------------------


def test_user_add_adds_updates_and_moves(ff: Terminal) -> None:
    assert ff.works("user", "add", *USER) == "added character 90000001 (Alice) to user u-1\n"
    assert ff.works("user", "add", *USER[:5], "Al") == (
        "updated character 90000001 (Al) of user u-1\n"
    )
    assert ff.works("user", "add", "--user-id", "u-2", *USER[2:]) == (
        "moved character 90000001 (Alice) from user u-1 to user u-2\n"
    )
    with SqliteStore("falcon.db") as store:
        assert store.owner_of(90000001) == "u-2"


def test_group_add_prints_the_id_alone(ff: Terminal) -> None:
    first = ff.works("group", "add", "Fleet Commanders")
    assert re.fullmatch(r"[0-9a-f]{24}\n", first)
    assert ff.works("group", "add", "Other", "--id", A.upper(), "--type", "alliance") == f"{A}\n"
    assert ff.fails("group", "add", "Again", "--id", A) == (
        f"falcon-fast group add: there is a group with the id {A} already"
    )
    assert ff.fails("group", "add", "Again", "--system-name", "No Good").startswith(
        "falcon-fast group add: system name: expected 1 to 64 characters of a-z, 0-9 and _, such "
    )


def test_group_list_is_an_aligned_table(ff: Terminal) -> None:
    ff.works("group", "add", "Fleet", "--id", A)
    ff.works("group", "add", "漢字", "--id", "b" * 24, "--system-name", "super_admin")
    ff("member", "add", A, "7")
    assert ff.works("group", "list") == (
        "ID                        TYPE    SYSTEM NAME  MEMBERS  NAME\n"
        f"{A}  custom  -            1        Fleet\n"
        f"{'b' * 24}  system  super_admin  0        漢字\n"
    )


def test_group_list_for_scripts(ff: Terminal) -> None:
    ff.works("group", "add", "Fleet", "--id", A)
    ff("member", "add", A, "7")
    assert json.loads(ff.works("group", "list", "--json")) == [
        {"id": A, "name": "Fleet", "type": "custom", "system_name": None, "members": 1}
    ]


def test_group_list_of_nothing(ff: Terminal) -> None:
    ff.works("user", "add", *USER)
    assert ff("group", "list") == Done(
        0, "", "note: there are no groups yet; make one with: falcon-fast group add NAME\n"
    )
    assert ff.works("group", "list", "--json") == "[]\n"


def test_group_remove(ff: Terminal) -> None:
    ff.works("group", "add", "Fleet", "--id", A)
    ff("member", "add", A, "7")
    assert ff.works("group", "remove", A) == f"removed group {A}, which had 1 member\n"
    assert ff.fails("group", "remove", A) == f"falcon-fast group remove: no group has the id {A}"


def test_members_come_and_go(ff: Terminal) -> None:
    ff.works("group", "add", "Fleet", "--id", A)
    ff.works("user", "add", *USER)
    assert ff.works("member", "add", A, "90000001") == f"added character 90000001 in group {A}\n"
    assert ff.works("member", "add", A, "90000001") == (
        f"already there: character 90000001 in group {A}\n"
    )
    assert ff("member", "add", A, "7") == Done(
        0,
        f"added character 7 in group {A}\n",
        "note: no user has character 7 yet; see falcon-fast user add --help\n",
    )
    table = ff.works("member", "list", A).splitlines()
    assert table[0] == "CHARACTER ID  USER ID  ADDED AT                     CHARACTER NAME"
    assert re.fullmatch(r"7             -        [\d-]{10}T[\d:.]{15}Z  -", table[1])
    assert re.fullmatch(r"90000001      u-1      [\d-]{10}T[\d:.]{15}Z  Alice", table[2])
    listed = json.loads(ff.works("member", "list", A, "--json"))
    assert [member.pop("added_at")[10] for member in listed] == ["T", "T"]
    assert listed == [
        {"character_id": 7, "character_name": None, "user_id": None},
        {"character_id": 90000001, "character_name": "Alice", "user_id": "u-1"},
    ]
    assert ff.works("member", "remove", A, "7") == f"removed character 7 from group {A}\n"
    assert ff.fails("member", "remove", A, "7") == (
        f"falcon-fast member remove: character 7 is not in group {A}; see falcon-fast member list"
    )
    ff.works("member", "remove", A, "90000001")
    assert ff("member", "list", A) == Done(
        0,
        "",
        "note: the group has no members yet; add one with: "
        f"falcon-fast member add {A} CHARACTER_ID\n",
    )


@pytest.mark.parametrize(
    "argv",
    [
        ("group", "list"),
        ("group", "remove", A),
        ("member", "add", A, "1"),
        ("member", "remove", A, "1"),
        ("member", "list", A),
    ],
    ids=" ".join,
)
def test_a_file_that_is_not_there_is_not_made_by_mistake(
    ff: Terminal, argv: tuple[str, ...]
) -> None:
    assert "./falcon.db: no such file; expected the one the server uses" in ff.fails(*argv)
    assert os.listdir() == []


def test_the_file_is_the_one_in_the_setting(ff: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALCON_SQLITE_PATH", "other.db")
    monkeypatch.setenv("FALCON_PORT", "wrong")
    ff.works("group", "add", "Fleet")
    assert os.listdir() == ["other.db"]
    monkeypatch.setenv("FALCON_SQLITE_PATH", "nowhere/other.db")
    line = ff.fails("group", "add", "Fleet", code=cli.USAGE)
    assert line.startswith("falcon-fast group add: FALCON_SQLITE_PATH: came 'nowhere/other.db'")


def test_dev_is_for_the_embedded_directory(ff: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGODB_URI", "mongodb://root:hunter2@db/")
    line = ff.fails("serve", "--dev", code=2)
    assert line.startswith("falcon-fast serve: MONGODB_URI: set, so users and groups come from ")
    assert "hunter2" not in line


def test_memory_and_mongodb_are_no_file(ff: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALCON_SQLITE_PATH", ":memory:")
    assert ff.fails("group", "list", code=cli.USAGE) == (
        "falcon-fast group list: FALCON_SQLITE_PATH: came ':memory:', which only the server itself "
        "can see; allowed here: the path of a file"
    )
    monkeypatch.setenv("MONGODB_URI", "mongodb://root:hunter2@db/")
    line = ff.fails("user", "add", *USER, code=cli.USAGE)
    assert line.startswith("falcon-fast user add: MONGODB_URI: set, so the server takes users and ")
    assert "hunter2" not in line
    assert os.listdir() == []


def test_broken_file_is_a_failure_in_one_line(ff: Terminal) -> None:
    Path("falcon.db").write_bytes(b"no database" * 100)
    assert ff.fails("group", "list") == (
        "falcon-fast group list: ./falcon.db: it is not a SQLite database; name another file, or "
        "move this one away"
    )


def test_names_that_were_not_written_by_us_cannot_move_the_cursor(ff: Terminal) -> None:
    ff.works("group", "add", "Fleet", "--id", A)
    with contextlib.closing(sqlite3.connect("falcon.db")) as other, other:
        other.execute("UPDATE \"groups\" SET name = 'a' || char(27) || '[2J'")
    assert "\x1b" not in ff.works("group", "list")
    assert ff.works("group", "list").endswith("  a\\x1b[2J\n")


# --- check ---------------------------------------------------------------------------------------


def test_check_shows_every_setting_and_finds_nothing_wrong(
    ff: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("JWT_SECRET", SECRET),
        ("FALCON_PORT", "0"),
        ("FALCON_ADMIN_PORT", "0"),
        ("FALCON_HOST", "127.0.0.1"),
        ("FALCON_SQLITE_PATH", "new.db"),
    ):
        monkeypatch.setenv(name, value)
    out = ff.works("check")
    shown = [line.split()[0] for line in out.partition("\n\n")[0].splitlines()]
    assert shown == ["SETTING", *(setting.name for setting in SETTINGS)]
    assert re.search(r"^JWT_SECRET +set \(39 characters, not shown\)  The secret", out, re.M)
    assert re.search(r"^FALCON_PING_INTERVAL +30 seconds  ", out, re.M)
    assert re.search(r"^MONGODB_URI +not set  ", out, re.M)
    assert re.search(
        r"^ok +users and groups +new\.db is not there yet; the server makes", out, re.M
    )
    assert out.endswith("\neverything is ready\n")
    assert SECRET not in out
    assert os.listdir() == []


def test_check_explains_problems_and_shows_no_secret(
    ff: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("JWT_SECRET", SECRET),
        ("FALCON_PORT", "0"),
        ("FALCON_ADMIN_PORT", "0"),
        ("MONGODB_URI", "mongodb://root:hunter2@db/"),
        ("REDIS_URL", "redis://:hunter2@cache"),
    ):
        monkeypatch.setenv(name, value)
    done = ff("check")
    assert (done.code, done.err) == (1, "")
    assert "hunter2" not in done.out
    assert re.search(r"^REDIS_URL +set \(22 characters, not shown\)  ", done.out, re.M)
    assert re.findall(r"^problem +(.+?)  ", done.out, re.M) == ["users and groups", "other nodes"]
    assert done.out.endswith("\n2 problems\n")


def test_check_lists_all_wrong_settings(ff: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALCON_PORT", "many")
    done = ff("check")
    assert (done.code, done.err) == (1, "")
    states = [line.split()[:2] for line in done.out.splitlines()[:3]]
    assert states == [["STATE", "SETTING"], ["problem", "FALCON_PORT:"], ["problem", "JWT_SECRET:"]]
    assert cli.MAKE_A_SECRET in done.out
    assert done.out.endswith("\n2 problems; nothing else was tried\n")


# --- serve ---------------------------------------------------------------------------------------


class FakeApp(types.ModuleType):
    """Stands for falcon_fast.app: notes how it was called."""

    def __init__(self) -> None:
        super().__init__("falcon_fast.app")
        self.calls: list[tuple[Settings, bool]] = []
        self.outcome: int | BaseException = 0

    def run(self, settings: Settings, *, dev: bool) -> int:
        self.calls.append((settings, dev))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FakeApp:
    fake = FakeApp()
    monkeypatch.setitem(sys.modules, "falcon_fast.app", fake)
    return fake


def test_serve_passes_the_settings_on(
    ff: Terminal, app: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("FALCON_PORT", "8080")
    assert ff.works("serve") == ""
    expected = dataclasses.replace(Settings(jwt_secret=SECRET), port=8080)
    assert app.calls == [(expected, False)]
    app.outcome = 3
    assert ff("serve") == Done(3, "", "")


def test_serve_refuses_to_start_without_a_secret(ff: Terminal, app: FakeApp) -> None:
    line = ff.fails("serve", code=cli.USAGE)
    assert line.startswith("falcon-fast serve: JWT_SECRET: not set; allowed: ")
    assert app.calls == []


def test_serve_lists_all_problems(
    ff: Terminal, app: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FALCON_PORT", "x")
    monkeypatch.setenv("FALCON_PROT", "1")
    done = ff("serve", "--dev")
    assert (done.code, done.out) == (2, "")
    assert [line.split(": ")[:2] for line in done.err.splitlines()] == [
        ["falcon-fast serve", "FALCON_PORT"],
        ["falcon-fast serve", "FALCON_PROT"],
    ]
    assert app.calls == []


def test_serve_dev_makes_a_secret_and_lets_local_pages_in(ff: Terminal, app: FakeApp) -> None:
    for _ in range(2):
        done = ff("serve", "--dev")
        assert (done.code, done.out) == (0, "")
        assert done.err.startswith(
            "note: JWT_SECRET is not set: made a random one for this run, so the tokens end with "
        )
    (first, dev), (second, _) = app.calls
    assert dev is True
    assert len(first.jwt_secret) == len(generate_secret())
    assert first.jwt_secret != second.jwt_secret
    assert first.jwt_secret not in done.err
    assert first.allowed_origins == (
        "http://localhost:3000",
        "http://127.0.0.1:3000",
        "http://localhost:3001",
        "http://127.0.0.1:3001",
    )


def test_serve_dev_keeps_what_is_set(
    ff: Terminal, app: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("WEBSOCKET_ALLOWED_ORIGINS", "https://app.example")
    assert ff.works("serve", "--dev") == ""
    ((settings, _dev),) = app.calls
    assert settings.jwt_secret == SECRET
    assert settings.allowed_origins == ("https://app.example",)


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (FalconError("the house is on fire"), 1, "falcon-fast serve: the house is on fire\n"),
        (FalconError("two\nlines"), 1, "falcon-fast serve: two lines\n"),
        (SettingsError(["A: wrong"]), 2, "falcon-fast serve: A: wrong\n"),
        (
            OSError(98, "Address already in use"),
            1,
            "falcon-fast serve: [Errno 98] Address already in use\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["failure", "lines", "settings", "port", "ctrl-c"],
)
def test_failures_are_one_line_and_no_traceback(
    ff: Terminal,
    app: FakeApp,
    monkeypatch: pytest.MonkeyPatch,
    outcome: BaseException,
    code: int,
    line: str,
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    app.outcome = outcome
    assert ff("serve") == Done(code, "", line)


class Missing:
    """Makes the import of falcon_fast.app fail, because of itself or of what it imports."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "falcon_fast.app":
            raise ModuleNotFoundError(f"No module named {self._missing!r}", name=self._missing)


def test_a_core_that_was_not_built_is_explained(
    ff: Terminal, app: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.delitem(sys.modules, "falcon_fast.app")
    monkeypatch.setattr(sys, "meta_path", [Missing("falcon_fast._core"), *sys.meta_path])
    assert ff.fails("serve").startswith("falcon-fast serve: the native core is not built; in a ")


def test_any_other_missing_module_is_a_mistake_and_shows_itself(
    ff: Terminal, app: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.delitem(sys.modules, "falcon_fast.app")
    monkeypatch.setattr(sys, "meta_path", [Missing("picows"), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="picows"):
        ff("serve")


# --- streams -------------------------------------------------------------------------------------


def test_a_reader_that_has_seen_enough_is_no_failure_worth_a_word(
    ff: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ff.works("group", "add", "Fleet")
    read, write = os.pipe()
    os.close(read)
    # Closing the stream writes what is left, which must have somewhere to go by then.
    with open(write, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert cli.main(["group", "list"]) == 1
    assert capsys.readouterr().err == ""


def test_a_name_that_the_terminal_cannot_show_is_escaped(
    ff: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    ff.works("group", "add", "Größe", "--id", A)
    raw = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        assert cli.main(["group", "list"]) == 0
        out = raw.getvalue().decode("ascii")
    assert out.splitlines()[1].endswith("  Gr\\xf6\\xdfe")


def test_python_m_falcon_fast_is_the_same_program(
    ff: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["falcon_fast", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("falcon_fast", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"falcon_fast {__version__} ")


# --- documents -----------------------------------------------------------------------------------

REFERENCE = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
HOWTO = (ROOT / "docs" / "howto" / "manage-groups.md").read_text(encoding="utf-8")


def section(path: tuple[str, ...]) -> str:
    """Cut a command's section out of the reference page."""
    found = re.search(
        rf"^## `falcon-fast {' '.join(path)}`\n(.*?)(?=^## |\Z)", REFERENCE, re.M | re.S
    )
    assert found is not None, f"no section about {' '.join(path)}"
    return found[1]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_reference_has_every_argument_of_a_command_and_no_other(path: tuple[str, ...]) -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", section(path), re.M)
    expected = []
    for action in COMMANDS[path]._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = action.option_strings[0] if action.option_strings else ""
        value = "" if action.nargs == 0 else action.metavar or (action.choices and "TYPE")
        expected.append(f"{name} {value}".strip())
    assert rows == expected


def test_reference_has_no_section_of_a_command_that_is_gone() -> None:
    named = re.findall(r"^## `falcon-fast ([a-z ]+)`$", REFERENCE, re.M)
    assert named == [" ".join(path) for path in COMMANDS]


def test_reference_names_the_exit_codes() -> None:
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", REFERENCE, re.M)]
    assert codes == [cli.OK, cli.FAILURE, cli.USAGE, cli.INTERRUPTED]


def test_howto_commands_run_and_print_what_the_page_shows(
    ff: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    commands_run = 0
    for block in blocks(HOWTO, name="manage-groups.md"):
        assert block.language == "console", block.place
        for part in re.split(r"^\$ ", block.code, flags=re.M)[1:]:
            command, _, shown = part.partition("\n")
            words = shlex.split(command)
            assert words[0] == "falcon-fast", block.place
            if words[1] == "serve":
                continue
            done = ff(*words[1:])
            assert done.code == 0, done.err
            # Times and new ids differ: the page shows them as dots.
            pattern = re.escape(shown).replace(r"\.\.\.", ".+")
            assert re.fullmatch(pattern, done.out), block.place
            commands_run += 1
    assert commands_run >= 8
