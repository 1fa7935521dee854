"""The demo directory and the lines to paste."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Self

import pytest

from falcon_fast.auth import TokenVerifier
from falcon_fast.demo import TOKEN_TTL, Demo, DemoUser, banner, origins, seed
from falcon_fast.directory import Group
from falcon_fast.directory.sqlite_store import MEMORY, Counts, SqliteStore
from falcon_fast.errors import DirectoryError
from falcon_fast.identity import Identity

from ..support.clock import FakeClock

SECRET = "correct-horse-battery-staple-0123456789"
URL = "ws://127.0.0.1:3000/websocket/connect"
NOW = 1_700_000_000
FLEET = "f1ee7c0de000000000000001"
ADMINS = "ad0000000000000000000001"


@pytest.fixture
def demo() -> Demo:
    with SqliteStore(MEMORY) as store:
        return seed(store)


def text(demo: Demo, *, url: str = URL, path: str = "./falcon.db") -> str:
    return banner(
        demo,
        public_url=url,
        admin_url="http://127.0.0.1:3001/",
        secret=SECRET,
        now=NOW,
        sqlite_path=path,
        command="falcon-fast",
    )


def verify(token: str) -> Identity:
    return TokenVerifier(SECRET, clock=FakeClock(NOW)).verify(token)


# --- seeding -------------------------------------------------------------------------------------


def test_seed_makes_two_chatters_and_an_admin(demo: Demo) -> None:
    assert demo == Demo(
        alice=DemoUser("demo-alice", 90000001, "Alice"),
        bob=DemoUser("demo-bob", 90000002, "Bob"),
        admin=DemoUser("demo-admin", 90000003, "Admin"),
        fleet=Group(FLEET, "Fleet Commanders", "custom"),
        admins=Group(ADMINS, "Super Administrator", "system", "super_admin"),
    )


def test_seed_twice_is_the_same_as_once() -> None:
    with SqliteStore(MEMORY) as store:
        first = seed(store)
        store.remove_member(FLEET, 90000002)
        assert seed(store) == first
        assert store.counts() == Counts(users=3, characters=3, groups=2)
        assert store.groups_of({"demo-alice": (), "demo-bob": (), "demo-admin": ()}) == {
            "demo-alice": {first.fleet},
            "demo-bob": {first.fleet},
            "demo-admin": {first.admins},
        }


def test_seed_leaves_others_alone_and_uses_their_super_admins() -> None:
    with SqliteStore(MEMORY) as store:
        theirs = store.add_group("Bosses", system_name="super_admin")
        store.add_user("boss", 1, "Boss")
        store.add_member(theirs, 1)
        demo = seed(store)
        assert demo.admins == Group(theirs, "Bosses", "system", "super_admin")
        assert [member.user_id for member in store.list_members(theirs)] == ["boss", "demo-admin"]


def test_seed_takes_no_character_from_a_real_user() -> None:
    with SqliteStore(MEMORY) as store:
        store.add_user("real", 90000002, "Real")
        with pytest.raises(
            DirectoryError,
            match=r"^:memory:: character 90000002 belongs to user real, so this is no demo",
        ):
            seed(store)
        assert store.counts() == Counts(users=1, characters=1, groups=0)


def test_origins_are_those_of_this_machine() -> None:
    assert origins(80, 0, 3001) == (
        "http://localhost:80",
        "http://127.0.0.1:80",
        "http://localhost:3001",
        "http://127.0.0.1:3001",
    )


# --- the banner ----------------------------------------------------------------------------------


def test_banner_has_a_token_for_each_user_and_no_secret(demo: Demo) -> None:
    shown = text(demo)
    tokens = re.findall(r"^(Alice|Bob|Admin).*: (eyJ\S+)$", shown, re.M)
    found = {name: verify(token) for name, token in tokens}
    assert {name: identity.user_id for name, identity in found.items()} == {
        "Alice": "demo-alice",
        "Bob": "demo-bob",
        "Admin": "demo-admin",
    }
    assert {identity.expires_at for identity in found.values()} == {NOW + TOKEN_TTL}
    assert "valid for 12 hours" in shown
    assert "  clients  ws://127.0.0.1:3000/websocket/connect\n" in shown
    assert "  admin    http://127.0.0.1:3001/\n" in shown
    assert SECRET not in shown
    assert shown.endswith("\n")


def test_wscat_line_is_one_command(demo: Demo) -> None:
    (line,) = [line for line in text(demo).splitlines() if line.startswith("wscat")]
    words = shlex.split(line)
    assert words[:4] == ["wscat", "-c", URL, "-H"]
    name, _, value = words[4].partition(": ")
    scheme, token = value.split(" ")
    assert (name, scheme, verify(token).user_id) == ("Authorization", "Bearer", "demo-alice")
    assert len(words) == 5


def test_message_to_type_goes_to_the_group(demo: Demo) -> None:
    (line,) = [line for line in text(demo).splitlines() if line.startswith("{")]
    assert json.loads(line) == {
        "type": "message",
        "room": f"group:{FLEET}",
        "data": {"text": "Hello from Alice"},
    }


def test_python_lines_run(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []

    class Connection:
        def __init__(self, url: str, *, additional_headers: dict[str, str]) -> None:
            calls.extend([url, additional_headers])
            self._frames = iter(["welcome", "hello"])

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def send(self, message: str) -> None:
            calls.append(json.loads(message))

        def __iter__(self) -> Self:
            return self

        def __next__(self) -> str:
            return next(self._frames)

    client = types.ModuleType("websockets.sync.client")
    client.connect = Connection  # type: ignore[attr-defined]
    for name in ("websockets", "websockets.sync"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "websockets.sync.client", client)
    code = re.search(r"^from websockets.*?\n\n", text(demo), re.M | re.S)
    assert code is not None
    exec(code[0], {})
    url, headers, message = calls
    assert url == URL
    assert isinstance(headers, dict)
    assert verify(headers["Authorization"].removeprefix("Bearer ")).user_id == "demo-bob"
    assert message == {
        "type": "message",
        "room": f"group:{FLEET}",
        "data": {"text": "Hello from Bob"},
    }
    assert capsys.readouterr().out == "welcome\nhello\n"


def test_browser_lines_carry_the_token_as_a_subprotocol(demo: Demo) -> None:
    found = re.search(r"^ws = new WebSocket\((.*)\);$", text(demo), re.M)
    assert found is not None
    url, protocols = json.loads(f"[{found[1]}]")
    assert (url, protocols[0], len(protocols)) == (URL, "falcon.v1", 2)
    assert verify(protocols[1].removeprefix("falcon.bearer.")).user_id == "demo-bob"


@pytest.mark.parametrize(
    ("url", "page"),
    [
        (URL, "http://127.0.0.1:3000/healthz"),
        ("wss://falcon.example/websocket/connect", "https://falcon.example/healthz"),
    ],
)
def test_browser_page_is_of_the_public_listener(demo: Demo, url: str, page: str) -> None:
    assert f"open {page} in a browser" in text(demo, url=url)


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("./falcon.db", []),
        ("my folder/x.db", ["FALCON_SQLITE_PATH={}/my folder/x.db"]),
        (MEMORY, None),
    ],
)
def test_lines_that_change_the_directory_name_the_file(
    demo: Demo,
    path: str,
    prefix: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        line for line in text(demo, path=path).splitlines() if FLEET in line and " member " in line
    ]
    if prefix is None:
        assert lines == []
        return
    setting = [word.format(tmp_path) for word in prefix]
    assert [shlex.split(line) for line in lines] == [
        [*setting, "falcon-fast", "member", verb, FLEET, "90000002"] for verb in ("remove", "add")
    ]


@pytest.mark.parametrize(
    ("argv0", "found", "command"),
    [
        ("/usr/bin/falcon-fast", "/usr/bin/falcon-fast", "falcon-fast"),
        (".venv/bin/falcon-fast", None, ".venv/bin/falcon-fast"),
        ("/my venv/falcon-fast", "/usr/bin/falcon-fast", "'/my venv/falcon-fast'"),
        ("/lib/falcon_fast/__main__.py", None, "/py -m falcon_fast"),
        ("/lib/pytest/__main__.py", None, "falcon-fast"),
    ],
)
def test_lines_name_the_program_as_it_was_started(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, argv0: str, found: str | None, command: str
) -> None:
    monkeypatch.setattr(sys, "argv", [argv0])
    monkeypatch.setattr(sys, "executable", "/py")
    monkeypatch.setattr("shutil.which", lambda name: found)
    shown = banner(demo, public_url=URL, admin_url="http://a/", secret=SECRET, now=NOW)
    assert f"\n{command} member remove {FLEET} 90000002\n" in shown
