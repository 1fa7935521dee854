"""The command line: arguments and environment become settings and one call each; exit codes.

0 is success, 1 a failure, 2 a wrong argument or setting. Results go to standard output; problems go
to standard error, one line each, which says what was expected and what came. What a command needs
is imported when it runs, so that ``--help`` comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import platform
import re
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from falcon_fast._version import __version__
from falcon_fast.errors import (
    AuthError,
    DirectoryError,
    DirectoryUnavailable,
    FalconError,
    SettingsError,
)

if TYPE_CHECKING:
    from falcon_fast.directory.sqlite_store import SqliteStore
    from falcon_fast.settings import Settings

__all__ = ["build_parser", "main"]

OK: Final = 0
FAILURE: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells have it."""

HELP_COLUMNS: Final = 78
"""Width of a command's description, whose examples must not be wrapped."""

MAX_TRIAL_NODES: Final = 9
"""Nodes of a cluster that one machine is to show."""

MAX_TTL: Final = 366 * 86_400
"""Seconds; a longer life is more likely a mistake, since a token cannot be called back."""

TOKEN_SETTINGS: Final = (
    *("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL", "JWT_ALGORITHMS"),
    *("JWT_ISSUER", "JWT_AUDIENCE", "JWT_MAX_LIFETIME"),
)
"""What a token depends on."""

MAKE_A_SECRET: Final = (
    "export JWT_SECRET=\"$(python3 -c 'import secrets; print(secrets.token_urlsafe(48))')\""
)

_TTL: Final = re.compile(r"([0-9]{1,9})([smhd]?)")
_TTL_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_INTEGER: Final = re.compile(r"-?[0-9]{1,30}")

ROOT_EPILOG: Final = """\
first steps:
  falcon-fast serve --dev         a server with demo users; prints what to paste into a client
  falcon-fast check               are my settings right, and does everything answer?

users and groups of a server without MongoDB (it notices a change within a second):
  falcon-fast user add --user-id u-1 --character-id 90000001 --character-name "Alice"
  falcon-fast group add "Fleet Commanders"
  falcon-fast member add f1ee7c0de000000000000001 90000001

Settings are environment variables; `falcon-fast check` lists all of them with their meaning.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments without the name of the program; those of the process if None.

    Returns:
        The exit code.

    Raises:
        SystemExit: After ``--help`` and ``--version``, and with code 2 for wrong arguments.
    """
    _never_fail_to_print()
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        arguments.parser.error(_unexpected(unknown))
    run: Callable[[argparse.Namespace], int] = arguments.run
    prog: str = arguments.parser.prog
    try:
        code = run(arguments)
        # A closed pipe is to be noticed here, not by the interpreter after its last line.
        sys.stdout.flush()
    except SettingsError as error:
        for problem in error.problems:
            _complain(prog, _with_advice(problem))
        return USAGE
    except FalconError as error:
        _complain(prog, str(error))
        return FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as head, has seen enough. What is left must go somewhere.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        _complain(prog, str(error))
        return FAILURE
    return code


# --- arguments -----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        _complain(self.prog, f"{message} (see {self.prog} --help)")
        raise SystemExit(USAGE)


Subparsers = argparse._SubParsersAction  # the type has no public name


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; the reference page is checked against it."""
    parser = _Parser(
        prog="falcon-fast",
        description="A real-time WebSocket server: rooms, presence and messages to groups.",
        epilog=ROOT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version = f"falcon_fast {__version__} (Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version)
    commands = _commands(parser)

    serve = _command(
        commands,
        "serve",
        _serve,
        summary="start the server",
        description="Start the server: clients on FALCON_PORT (3000), operators on "
        "FALCON_ADMIN_PORT (3001, this machine only). Ctrl+C or SIGTERM stops it; connected "
        "clients are told to come back.",
        examples="""\
  falcon-fast serve --dev
  JWT_SECRET=... WEBSOCKET_ALLOWED_ORIGINS=https://app.example falcon-fast serve""",
    )
    serve.add_argument(
        "--dev",
        action="store_true",
        help="for trying out: adds demo users and a group to the directory, makes a random "
        "JWT_SECRET for this run if none is set, lets pages of this machine connect, and prints "
        "tokens and lines to paste into clients",
    )

    cluster = _command(
        commands,
        "cluster",
        _cluster,
        summary="start several nodes and a Redis on this machine, to try",
        description="Start a Redis server (or use the one of REDIS_URL) and several nodes on this "
        "machine, with demo users, and print tokens and lines to paste. For trying out only: all "
        "of it lives in a temporary folder and ends with Ctrl+C.",
        examples="""\
  falcon-fast cluster
  falcon-fast cluster --nodes 3 --port 4000""",
    )
    cluster.add_argument(
        "--nodes",
        type=_between("a number of nodes", 1, MAX_TRIAL_NODES),
        default=2,
        metavar="N",
        help="how many nodes, 1 to 9 (default: 2)",
    )
    cluster.add_argument(
        "--port",
        type=_between("a port", 0, 65_000),
        default=3000,
        metavar="PORT",
        help="of the first node; its admin listener has the next one, the second node begins ten "
        "further (default: 3000; 0: any free ports)",
    )

    token = _command(
        commands,
        "token",
        _token,
        summary="make a token for a client",
        description="Make a token, signed with JWT_SECRET (HS256), and print it and nothing else. "
        "A server with the same JWT_SECRET lets its bearer in as the given user. Where tokens are "
        "checked with public keys, only the issuer can make them.",
        examples="""\
  falcon-fast token --user-id u-1 --character-id 90000001 --character-name Alice
  TOKEN=$(falcon-fast token --user-id u-1 --character-id 90000001 --character-name Alice --ttl 8h)
  wscat -c ws://127.0.0.1:3000/websocket/connect -H "Authorization: Bearer $TOKEN\"""",
    )
    _user_options(token)
    token.add_argument(
        "--scopes", default="", metavar="TEXT", help="scopes, separated by spaces (default: none)"
    )
    token.add_argument(
        "--ttl",
        type=_ttl,
        default="1h",
        metavar="TIME",
        help="how long the token is valid: seconds, or a number with s, m, h or d, such as 3600, "
        "15m, 8h or 7d (default: 1h)",
    )

    user = _group_of_commands(commands, "user", "users and their characters")
    user_add = _command(
        user,
        "add",
        _user_add,
        summary="give a user a character",
        description="Give a user a character. A user with several characters is added once for "
        "each. A character that is there already gets the given user and name.",
        examples="  falcon-fast user add --user-id u-1 --character-id 90000001 "
        '--character-name "Alice"',
    )
    _user_options(user_add)

    group = _group_of_commands(commands, "group", "groups, each of which is a room")
    group_add = _command(
        group,
        "add",
        _group_add,
        summary="make a group",
        description="Make a group and print its id. The id is needed to add members; the group's "
        "room is group: and the id.",
        examples="""\
  falcon-fast group add "Fleet Commanders"
  falcon-fast group add "Super Administrator" --system-name super_admin""",
    )
    group_add.add_argument("name", type=_named("group name"), metavar="NAME", help="its name")
    group_add.add_argument(
        "--id",
        type=_group_id,
        metavar="HEX24",
        help="its id, 24 hexadecimal digits (default: a new one)",
    )
    group_add.add_argument(
        "--type",
        choices=("system", "corporation", "alliance", "custom"),
        help="its kind (default: system with --system-name, else custom)",
    )
    group_add.add_argument(
        "--system-name",
        metavar="TEXT",
        help="a fixed name by which programs know it; the members of the group super_admin may "
        "use the admin API",
    )
    group_list = _command(
        group,
        "list",
        _group_list,
        summary="show all groups",
        description="Show all groups with their ids and how many members each has.",
        examples="  falcon-fast group list\n  falcon-fast group list --json",
    )
    _json_option(group_list)
    group_remove = _command(
        group,
        "remove",
        _group_remove,
        summary="delete a group",
        description="Delete a group with its memberships. Connected members leave its room "
        "within a second.",
        examples="  falcon-fast group remove f1ee7c0de000000000000001",
    )
    _group_id_argument(group_remove)

    member = _group_of_commands(commands, "member", "who is in a group")
    member_add = _command(
        member,
        "add",
        _member_add,
        summary="put a character into a group",
        description="Put a character into a group. Its user, if connected, joins the room within "
        "a second.",
        examples="  falcon-fast member add f1ee7c0de000000000000001 90000001",
    )
    _group_id_argument(member_add)
    _character_id_argument(member_add)
    member_remove = _command(
        member,
        "remove",
        _member_remove,
        summary="take a character out of a group",
        description="Take a character out of a group. Its user, if connected, hears nothing more "
        "from the room within a second, unless another of the user's characters is in the group.",
        examples="  falcon-fast member remove f1ee7c0de000000000000001 90000001",
    )
    _group_id_argument(member_remove)
    _character_id_argument(member_remove)
    member_list = _command(
        member,
        "list",
        _member_list,
        summary="show the members of a group",
        description="Show the members of a group. A member without a user is a character that no "
        "user has been given yet.",
        examples="""\
  falcon-fast member list f1ee7c0de000000000000001
  falcon-fast member list f1ee7c0de000000000000001 --json""",
    )
    _group_id_argument(member_list)
    _json_option(member_list)

    _command(
        commands,
        "check",
        _check,
        summary="show all settings and try what the server needs",
        description="Show every setting with its meaning, then try what the server needs: the "
        "directory, the certificate, the ports. Secrets are shown as their length only. Exit "
        "code 0 means that `falcon-fast serve` with these settings would start.",
        examples="  falcon-fast check\n  FALCON_PORT=8080 falcon-fast check",
    )
    return parser


def _commands(parser: argparse.ArgumentParser) -> Subparsers[_Parser]:
    commands: Subparsers[_Parser] = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=_Parser
    )
    return commands


def _command(
    commands: Subparsers[_Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
    examples: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, HELP_COLUMNS),
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def _group_of_commands(
    commands: Subparsers[_Parser], name: str, summary: str
) -> Subparsers[_Parser]:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"Show or change {summary}, in the SQLite file of a server without MongoDB "
        "(FALCON_SQLITE_PATH, ./falcon.db). A running server notices within a second.",
        allow_abbrev=False,
    )
    return _commands(parser)


def _user_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--user-id",
        type=_user_id,
        required=True,
        metavar="ID",
        help="the user: 1 to 64 characters of A-Z, a-z, 0-9, _ and -",
    )
    parser.add_argument(
        "--character-id",
        type=_character_id,
        required=True,
        metavar="NUMBER",
        help="the character, a whole number",
    )
    parser.add_argument(
        "--character-name",
        type=_named("character name"),
        required=True,
        metavar="NAME",
        help="the character's name, as others see it",
    )


def _group_id_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "group_id",
        type=_group_id,
        metavar="GROUP_ID",
        help="the group: 24 hexadecimal digits (see falcon-fast group list)",
    )


def _character_id_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "character_id",
        type=_character_id,
        metavar="CHARACTER_ID",
        help="the character, a whole number",
    )


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


@contextlib.contextmanager
def _as_wrong_argument() -> Iterator[None]:
    try:
        yield
    except DirectoryError as error:
        # argparse puts the argument's name before the text.
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from error


def _user_id(text: str) -> str:
    from falcon_fast.directory.sqlite_store import check_user_id

    with _as_wrong_argument():
        check_user_id(text)
    return text


def _group_id(text: str) -> str:
    from falcon_fast.directory.sqlite_store import checked_group_id

    with _as_wrong_argument():
        return checked_group_id(text)


def _character_id(text: str) -> int:
    from falcon_fast.directory.sqlite_store import MAX_CHARACTER_ID

    if not _INTEGER.fullmatch(text) or not 0 <= int(text) <= MAX_CHARACTER_ID:
        raise argparse.ArgumentTypeError(
            f"expected an integer from 0 to {MAX_CHARACTER_ID}; came {_quoted(text)}"
        )
    return int(text)


def _named(what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        from falcon_fast.directory.sqlite_store import check_name

        with _as_wrong_argument():
            check_name(what, text)
        return text

    return parse


def _ttl(text: str) -> int:
    match = _TTL.fullmatch(text)
    seconds = int(match[1]) * _TTL_UNITS[match[2]] if match else 0
    if not 0 < seconds <= MAX_TTL:
        raise argparse.ArgumentTypeError(
            "expected seconds, or a number with s, m, h or d, such as 3600, 15m, 8h or 7d, and at "
            f"most {MAX_TTL // 86_400}d; came {_quoted(text)}"
        )
    return seconds


def _between(what: str, low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"expected {what} from {low} to {high}; came {_quoted(text)}"
            )
        return int(text)

    return parse


def _unexpected(unknown: Sequence[str]) -> str:
    """Name what is too much; a value after ``=`` may be private and is left out."""
    first = unknown[0]
    if first.startswith("-"):
        return f"no such option: {_quoted(first.partition('=')[0])}"
    return f"one argument too many: {_quoted(first)}; a name with blanks needs quotes"


# --- serve and token -----------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    from falcon_fast.settings import Settings

    dev: bool = arguments.dev
    settings = Settings.from_environ(os.environ, require_secret=not dev)
    if dev:
        if settings.mongodb_uri:
            raise SettingsError(
                [
                    "MONGODB_URI: set, so users and groups come from MongoDB, which is never "
                    "written; allowed with --dev: not set, since demo users are put into the "
                    "SQLite file. Without --dev the server uses MongoDB"
                ]
            )
        settings = _for_development(settings)
    try:
        from falcon_fast.app import run
    except ModuleNotFoundError as error:
        if error.name != "falcon_fast._core":
            raise
        raise FalconError(
            "the native core is not built; in a copy of the source, run: pip install -e ."
        ) from error
    return run(settings, dev=dev)


def _cluster(arguments: argparse.Namespace) -> int:
    from falcon_fast import trial

    return trial.run(os.environ, nodes=arguments.nodes, port=arguments.port)


def _for_development(settings: Settings) -> Settings:
    """Fill in what a newcomer has not set."""
    from falcon_fast.auth import generate_secret
    from falcon_fast.demo import origins

    if settings.has_public_keys:
        raise SettingsError(
            [
                "JWT_PUBLIC_KEY or JWT_JWKS_URL: set, so nobody here can sign the tokens that "
                "--dev prints; allowed with --dev: JWT_SECRET, or none of them"
            ]
        )
    if not settings.jwt_secret:
        _note(
            "JWT_SECRET is not set: made a random one for this run, so the tokens end with it. "
            f"To keep them: {MAKE_A_SECRET}"
        )
        settings = dataclasses.replace(settings, jwt_secret=generate_secret())
    if not settings.allowed_origins:
        settings = dataclasses.replace(
            settings, allowed_origins=origins(settings.port, settings.admin_port)
        )
    return settings


def _token(arguments: argparse.Namespace) -> int:
    from falcon_fast.auth import issue_token
    from falcon_fast.clock import SystemClock

    settings = _settings_from(*TOKEN_SETTINGS, require_secret=True)
    if settings.has_public_keys:
        raise SettingsError(
            [
                "JWT_PUBLIC_KEY or JWT_JWKS_URL: set, so tokens are signed by the issuer alone; "
                "allowed here: JWT_SECRET, since this command signs with HS256 only"
            ]
        )
    ttl: int = arguments.ttl
    if ttl > settings.jwt_max_lifetime:
        raise SettingsError(
            [
                f"JWT_MAX_LIFETIME: {settings.jwt_max_lifetime} seconds, so a server would refuse "
                f"a token of {ttl} seconds; allowed: a --ttl up to it"
            ]
        )
    try:
        token = issue_token(
            settings.jwt_secret,
            user_id=arguments.user_id,
            character_id=arguments.character_id,
            character_name=arguments.character_name,
            scopes=arguments.scopes,
            ttl=ttl,
            now=int(SystemClock().time()),
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
        )
    except AuthError as error:
        _complain(arguments.parser.prog, f"a server would refuse such a token: {error}")
        return USAGE
    print(token)
    return OK


# --- users and groups ----------------------------------------------------------------------------


def _open_store(*, create: bool = False) -> SqliteStore:
    """Open the file that the server uses.

    Raises:
        SettingsError: The server would use something else, so a change here would have no effect.
        DirectoryUnavailable: The file cannot be used, or is not there and must not be made.
    """
    from falcon_fast.directory.sqlite_store import MEMORY, SqliteStore

    settings = _settings_from("FALCON_SQLITE_PATH", "MONGODB_URI")
    if settings.mongodb_uri:
        raise SettingsError(
            [
                "MONGODB_URI: set, so the server takes users and groups from MongoDB; allowed "
                "here: not set, since this command changes the SQLite file only"
            ]
        )
    path = settings.sqlite_path
    if path == MEMORY:
        raise SettingsError(
            [
                f"FALCON_SQLITE_PATH: came '{MEMORY}', which only the server itself can see; "
                "allowed here: the path of a file"
            ]
        )
    if not create and not os.path.exists(path):
        raise DirectoryUnavailable(
            f"{path}: no such file; expected the one the server uses (FALCON_SQLITE_PATH), or make "
            "one with: falcon-fast group add NAME"
        )
    return SqliteStore(path, create=create)


def _settings_from(*names: str, require_secret: bool = False) -> Settings:
    """Read the named settings only, so that a mistake in another one is not in the way."""
    from falcon_fast.settings import Settings

    chosen = {name: os.environ[name] for name in names if name in os.environ}
    return Settings.from_environ(chosen, require_secret=require_secret)


def _user_add(arguments: argparse.Namespace) -> int:
    user, character, name = arguments.user_id, arguments.character_id, arguments.character_name
    with _open_store(create=True) as store:
        before = store.owner_of(character)
        store.add_user(user, character, name)
    if before is None:
        print(f"added character {character} ({name}) to user {user}")
    elif before == user:
        print(f"updated character {character} ({name}) of user {user}")
    else:
        print(f"moved character {character} ({name}) from user {before} to user {user}")
    return OK


def _group_add(arguments: argparse.Namespace) -> int:
    with _open_store(create=True) as store:
        print(
            store.add_group(
                arguments.name,
                id=arguments.id,
                type=arguments.type,
                system_name=arguments.system_name,
            )
        )
    return OK


def _group_list(arguments: argparse.Namespace) -> int:
    with _open_store() as store:
        groups = store.list_groups()
    if arguments.json:
        _print_json({**dataclasses.asdict(group), "members": members} for group, members in groups)
    elif not groups:
        _note("there are no groups yet; make one with: falcon-fast group add NAME")
    else:
        _print_table(
            ("ID", "TYPE", "SYSTEM NAME", "MEMBERS", "NAME"),
            (
                (group.id, group.type, group.system_name or "-", str(members), group.name)
                for group, members in groups
            ),
        )
    return OK


def _group_remove(arguments: argparse.Namespace) -> int:
    with _open_store() as store:
        members = store.remove_group(arguments.group_id)
    print(f"removed group {arguments.group_id}, which had {_count(members, 'member')}")
    return OK


def _member_add(arguments: argparse.Namespace) -> int:
    group, character = arguments.group_id, arguments.character_id
    with _open_store() as store:
        new = store.add_member(group, character)
        owner = store.owner_of(character)
    print(f"{'added' if new else 'already there:'} character {character} in group {group}")
    if owner is None:
        _note(f"no user has character {character} yet; see falcon-fast user add --help")
    return OK


def _member_remove(arguments: argparse.Namespace) -> int:
    group, character = arguments.group_id, arguments.character_id
    with _open_store() as store:
        if not store.remove_member(group, character):
            raise DirectoryError(
                f"character {character} is not in group {group}; see falcon-fast member list"
            )
    print(f"removed character {character} from group {group}")
    return OK


def _member_list(arguments: argparse.Namespace) -> int:
    with _open_store() as store:
        members = store.list_members(arguments.group_id)
    if arguments.json:
        _print_json(dataclasses.asdict(member) for member in members)
    elif not members:
        _note(
            "the group has no members yet; add one with: "
            f"falcon-fast member add {arguments.group_id} CHARACTER_ID"
        )
    else:
        _print_table(
            ("CHARACTER ID", "USER ID", "ADDED AT", "CHARACTER NAME"),
            (
                (
                    str(member.character_id),
                    member.user_id or "-",
                    member.added_at,
                    member.character_name or "-",
                )
                for member in members
            ),
        )
    return OK


# --- check ---------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    from falcon_fast.checks import results
    from falcon_fast.settings import Settings

    try:
        settings = Settings.from_environ(os.environ)
    except SettingsError as error:
        _print_table(
            ("STATE", "SETTING"), (("problem", _with_advice(line)) for line in error.problems)
        )
        print(f"\n{_count(len(error.problems), 'problem')}; nothing else was tried")
        return FAILURE
    _print_settings(settings)
    print()
    tried = list(results(settings))
    _print_table(
        ("STATE", "WHAT", "EXPLANATION"),
        (("ok" if one.ok else "problem", one.what, one.explanation) for one in tried),
    )
    problems = sum(not one.ok for one in tried)
    print("\neverything is ready" if not problems else f"\n{_count(problems, 'problem')}")
    return FAILURE if problems else OK


def _print_settings(settings: Settings) -> None:
    from falcon_fast.settings import SETTINGS

    secrets: Mapping[str, str] = {
        setting.name: getattr(settings, setting.field) or ""
        for setting in SETTINGS
        if setting.secret
    }
    rows = []
    for row in settings.describe():
        value = row.value
        if secrets.get(row.name):
            value = f"set ({len(secrets[row.name])} characters, not shown)"
        elif value not in {"", "not set"} and row.unit:
            value = f"{value} {row.unit}"
        rows.append((row.name, value, row.meaning))
    _print_table(("SETTING", "VALUE", "MEANING"), rows)


# --- output --------------------------------------------------------------------------------------


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns under their heads; the last one, the longest, is not filled up."""
    table = [tuple(head), *(tuple(_printable(cell) for cell in row) for row in rows)]
    widths = [max(_columns(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        cells = [
            cell + " " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _print_json(items: Iterable[Mapping[str, object]]) -> None:
    print(json.dumps(list(items), indent=2))


def _columns(text: str) -> int:
    """Return how many columns a terminal uses: two for a wide East Asian character."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _printable(text: str) -> str:
    """Escape what could move the cursor; names may have come from anywhere."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _quoted(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _with_advice(problem: str) -> str:
    if problem.startswith("JWT_SECRET: not set"):
        return f"{problem}; make one with: {MAKE_A_SECRET}"
    return problem


def _complain(prog: str, text: str) -> None:
    print(f"{prog}: {' '.join(_printable(line) for line in text.splitlines())}", file=sys.stderr)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _never_fail_to_print() -> None:
    """Escape what the terminal's encoding does not have, rather than fail on a name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
