"""What ``serve --dev`` shows a newcomer: demo users in the directory, and lines to paste.

:func:`seed` fills the directory before the server listens, :func:`banner` is printed once it does.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from falcon_fast.auth import issue_token
from falcon_fast.directory import SUPER_ADMIN, SUPER_ADMIN_NAME, Group
from falcon_fast.directory.sqlite_store import MEMORY, SqliteStore
from falcon_fast.errors import DirectoryError

__all__ = [
    "TOKEN_TTL",
    "Demo",
    "DemoUser",
    "banner",
    "message",
    "operator",
    "origins",
    "seed",
]

TOKEN_TTL: Final = 12 * 3600
"""Seconds for which the printed tokens are valid: a day's work."""

FLEET_ID: Final = "f1ee7c0de000000000000001"
FLEET_NAME: Final = "Fleet Commanders"
ADMINS_ID: Final = "ad0000000000000000000001"

DEFAULT_PATH: Final = "./falcon.db"
"""Where other commands look for the directory without being told."""

_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class DemoUser:
    """A user that tokens are made for."""

    user_id: str
    character_id: int
    character_name: str

    def token(self, secret: str, *, now: int) -> str:
        """Make a token of the user, valid for TOKEN_TTL from ``now``, in seconds since 1970."""
        return issue_token(
            secret,
            user_id=self.user_id,
            character_id=self.character_id,
            character_name=self.character_name,
            ttl=TOKEN_TTL,
            now=now,
        )


@dataclass(frozen=True, slots=True)
class Demo:
    """Who and what the demo directory holds.

    Attributes:
        alice: A member of ``fleet``.
        bob: A member of ``fleet``.
        admin: A member of ``admins`` only.
        fleet: The group to chat in.
        admins: The group whose members may use the admin API.
    """

    alice: DemoUser
    bob: DemoUser
    admin: DemoUser
    fleet: Group
    admins: Group


ALICE: Final = DemoUser("demo-alice", 90000001, "Alice")
BOB: Final = DemoUser("demo-bob", 90000002, "Bob")
ADMIN: Final = DemoUser("demo-admin", 90000003, "Admin")


def seed(store: SqliteStore) -> Demo:
    """Put the demo users and groups into the store; what is there already stays.

    Args:
        store: Any store; the users and groups of others in it are left alone.

    Raises:
        DirectoryError: A demo character belongs to somebody else in this store, so it is a real
            one and must not be taken over.
        DirectoryUnavailable: The store cannot be written.
    """
    for user in (ALICE, BOB, ADMIN):
        owner = store.owner_of(user.character_id)
        if owner not in {None, user.user_id}:
            raise DirectoryError(
                f"{store.path}: character {user.character_id} belongs to user {owner}, so this is "
                "no demo directory; name another file with FALCON_SQLITE_PATH"
            )
    for user in (ALICE, BOB, ADMIN):
        store.add_user(user.user_id, user.character_id, user.character_name)
    present = {group.id: group for group, _members in store.list_groups()}
    if FLEET_ID not in present:
        store.add_group(FLEET_NAME, id=FLEET_ID)
    # A store that was in use before may have a super administrators' group of its own.
    admins_id = store.group_id_of(SUPER_ADMIN)
    if admins_id is None:
        admins_id = store.add_group(SUPER_ADMIN_NAME, id=ADMINS_ID, system_name=SUPER_ADMIN)
    store.add_member(FLEET_ID, ALICE.character_id)
    store.add_member(FLEET_ID, BOB.character_id)
    store.add_member(admins_id, ADMIN.character_id)
    present = {group.id: group for group, _members in store.list_groups()}
    return Demo(ALICE, BOB, ADMIN, fleet=present[FLEET_ID], admins=present[admins_id])


def origins(*ports: int) -> tuple[str, ...]:
    """Return the origins of pages that this machine itself serves on the ports.

    A browser sends the origin of the page whose console is used; in development these are let in
    unless WEBSOCKET_ALLOWED_ORIGINS says otherwise.

    Args:
        ports: Those of the listeners; 0, not known yet, is left out.
    """
    return tuple(f"http://{host}:{port}" for port in ports if port for host in _LOCAL_HOSTS)


def banner(
    demo: Demo,
    *,
    public_url: str,
    admin_url: str,
    secret: str,
    now: int,
    sqlite_path: str = DEFAULT_PATH,
    command: str | None = None,
) -> str:
    """Write what a newcomer pastes into clients, with tokens that are ready to use.

    Args:
        demo: What :func:`seed` returned.
        public_url: The WebSocket URL with the port in use, such as
            ``ws://127.0.0.1:3000/websocket/connect``.
        admin_url: The URL of the admin listener.
        secret: Signs the tokens; it is not in the text.
        now: Seconds since 1970 UTC.
        sqlite_path: The directory's file, for the commands that change it.
        command: How to start this program; found out if not given.

    Returns:
        The text, with a newline at its end.
    """
    command = command if command is not None else _own_command()
    alice = demo.alice.token(secret, now=now)
    bob = demo.bob.token(secret, now=now)
    admin = demo.admin.token(secret, now=now)
    room = f"group:{demo.fleet.id}"
    lines = [
        "",
        "falcon_fast is ready, in development mode: the tokens below are for this machine only.",
        "",
        f"  clients  {public_url}",
        f"  admin    {admin_url}",
        f"  group    {demo.fleet.name}: {demo.alice.character_name} and "
        f"{demo.bob.character_name}; its room is {room}",
        "",
        f"1. Be {demo.alice.character_name}. In a second terminal (wscat: npm install -g wscat):",
        "",
        f'wscat -c {public_url} -H "Authorization: Bearer {alice}"',
        "",
        f"2. Be {demo.bob.character_name}. In a third terminal, start python3 and paste "
        "(pip install websockets):",
        "",
        *_python(public_url, bob, message(room, f"Hello from {demo.bob.character_name}")),
        "",
        f"   Or open {_page(public_url)} in a browser, press F12, and paste into the console:",
        "",
        *_browser(public_url, bob, message(room, f"Hello from {demo.bob.character_name}")),
        "",
        f"3. Answer as {demo.alice.character_name}. Type into wscat:",
        "",
        message(room, f"Hello from {demo.alice.character_name}"),
        "",
        "   Every member of the group gets it, the sender too.",
        "",
    ]
    if sqlite_path != MEMORY:
        setting = ""
        if sqlite_path != DEFAULT_PATH:
            setting = f"FALCON_SQLITE_PATH={shlex.quote(os.path.abspath(sqlite_path))} "
        lines += [
            f"4. Take {demo.bob.character_name} out of the group, and bring him back "
            "(in another terminal, in this folder):",
            "",
            f"{setting}{command} member remove {demo.fleet.id} {demo.bob.character_id}",
            f"{setting}{command} member add {demo.fleet.id} {demo.bob.character_id}",
            "",
        ]
    number = 4 if sqlite_path == MEMORY else 5
    lines += [
        f"{number}. Be the operator. See who is connected, and speak to the group:",
        "",
        *operator(admin_url, admin, room),
        "",
        f"   All the operator can do, to read and to try: {admin_url}docs "
        f"(its metrics: {admin_url}metrics)",
        "",
        f"The tokens, valid for {TOKEN_TTL // 3600} hours:",
        "",
        f"{demo.alice.character_name}: {alice}",
        f"{demo.bob.character_name}: {bob}",
        f"{demo.admin.character_name} (super administrator, for the admin API): {admin}",
        "",
        "Ctrl+C stops the server.",
        "",
    ]
    return "\n".join(lines)


def operator(admin_url: str, token: str, room: str) -> list[str]:
    """Write how to list who is connected, and to speak to a room."""
    header = f'-H "Authorization: Bearer {token}"'
    body = '{"type": "notification", "data": {"title": "Hello from the operator"}}'
    return [
        f"curl {header} {admin_url}websocket/connections",
        f"curl {header} -H \"Content-Type: application/json\" -d '{body}' "
        f"{admin_url}websocket/rooms/{room}/message",
    ]


def message(room: str, text: str) -> str:
    """Write the frame with which a client speaks to a room."""
    message = {"type": "message", "room": room, "data": {"text": text}}
    return json.dumps(message, separators=(",", ":"))


def _python(url: str, token: str, message: str) -> list[str]:
    # The empty line at the end closes the block for the interactive interpreter.
    headers = json.dumps({"Authorization": f"Bearer {token}"})
    return [
        "from websockets.sync.client import connect",
        f"with connect({json.dumps(url)}, additional_headers={headers}) as ws:",
        f"    ws.send('{message}')",
        "    for frame in ws: print(frame)",
        "",
    ]


def _browser(url: str, token: str, message: str) -> list[str]:
    return [
        f'ws = new WebSocket({json.dumps(url)}, ["falcon.v1", "falcon.bearer.{token}"]);',
        "ws.onmessage = (event) => console.log(event.data);",
        f"ws.onopen = () => ws.send('{message}');",
    ]


def _page(public_url: str) -> str:
    """Return a page of the public listener: a page elsewhere has an origin that is not let in."""
    parts = urlsplit(public_url)
    scheme = "https" if parts.scheme == "wss" else "http"
    return f"{scheme}://{parts.netloc}/healthz"


def _own_command() -> str:
    """Return how this program was started, to be typed in another terminal."""
    script = sys.argv[0]
    name = os.path.basename(script)
    if name == "__main__.py" and os.path.basename(os.path.dirname(script)) == "falcon_fast":
        return f"{shlex.quote(sys.executable)} -m falcon_fast"
    if name != "falcon-fast" or shutil.which(name) == script:
        return "falcon-fast"
    return shlex.quote(script)
