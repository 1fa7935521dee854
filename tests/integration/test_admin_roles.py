"""Every route for everybody who may ask, made from the table: a new route cannot be forgotten."""

from __future__ import annotations

import time
from typing import Final

import pytest

from falcon_fast.admin import pages
from falcon_fast.admin.routes import ROUTES

from ..support.admin import Admin, Headers, Reply
from ..support.client import Client
from ..support.server import ServerProcess, eventually, serving, sign

pytestmark = pytest.mark.integration

GROUP_ADMIN: Final = 7
USER: Final = 8

TARGETS: Final = [(route.method, route.path, route.role) for route in ROUTES] + [
    ("GET", path, "public")
    for path in (
        *(page.path for page in (pages.INDEX, pages.DOCS, pages.OPENAPI_JSON)),
        *(page.path for page in (pages.OPENAPI_YAML, pages.METRICS)),
        *pages.ASSETS,
    )
]
AUTHENTICATION: Final = (401, "Authentication required")
INVALID: Final = (401, "Invalid authentication token")
FORBIDDEN: Final = (403, "Super admin access required")

# Who asks -> how they are refused where only a super administrator may ask.
ROLES: Final[dict[str, tuple[int, str] | None]] = {
    "nobody": AUTHENTICATION,
    "bad token": INVALID,
    "expired": INVALID,
    "foreign key": INVALID,
    "user": FORBIDDEN,
    "group admin": FORBIDDEN,
    "banned": (403, "User is banned"),
    "super admin": None,
}


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> Admin:
    admin = Admin(server)
    with server.store() as store:
        # The name is not what counts; nor are groups that are called alike.
        store.add_member(store.add_group("Super Administrator"), GROUP_ADMIN)
        store.add_user("banned", 9, "Banned")
        store.add_member(admin.group, 9)
        store.set_banned("banned", True)
    headers = admin.bearer(server.token("banned", 9))
    eventually(
        lambda: admin.ask("GET", "/websocket/rooms", headers=headers).status == 403,
        "the ban is known",
    )
    return admin


@pytest.fixture(scope="module")
def tokens(server: ServerProcess, admin: Admin) -> dict[str, str]:
    claims = {"user_id": "operator", "character_id": 99, "character_name": "Operator"}
    return {
        "nobody": "",
        "bad token": "abc",
        "expired": server.token("operator", 99, ttl=-60),
        "foreign key": sign(
            {"alg": "HS256", "typ": "JWT"},
            {**claims, "exp": 4_000_000_000, "iss": "go-falcon"},
            secret="another secret that is long enough to sign",
        ),
        "user": server.token("user", USER),
        "group admin": server.token("group-admin", GROUP_ADMIN),
        "banned": server.token("banned", 9),
        "super admin": admin.token,
    }


def call(
    admin: Admin,
    method: str,
    path: str,
    headers: Headers,
    *,
    ident: str = "",
    rule: str = "",
    valid: bool = True,
) -> Reply:
    filled = path.format(
        connection_id=ident, user_id="target", room_id="user:target", revocation_id=rule or ident
    )
    body: dict[str, object] | None = None
    if method == "POST":
        good: dict[str, object]
        good = {"token_id": "x"} if "revocations" in path else {"type": "message", "data": {}}
        body = good if valid else {"type": "nothing"}
    return admin.ask(method, filled, headers=headers, json_body=body)


@pytest.fixture
def target(server: ServerProcess) -> Client:
    return server.connect("target", 5)


@pytest.mark.parametrize("way", ["bearer", "cookie"])
@pytest.mark.parametrize("role", ROLES)
def test_w01_every_route_for_every_role(
    server: ServerProcess, admin: Admin, tokens: dict[str, str], target: Client, role: str, way: str
) -> None:
    headers: Headers = {}
    if role != "nobody":
        headers = (admin.bearer if way == "bearer" else admin.cookie)(tokens[role])
    refusal = ROLES[role]
    made = admin.post("/websocket/revocations", {"token_id": "y"}).json
    rule = made["revocation"]["id"]
    # The kick comes last, so that everything else has its target.
    for method, path, needed in sorted(TARGETS, key=lambda row: row[0] == "DELETE"):
        answer = call(admin, method, path, headers, ident=target.id, rule=rule)
        if needed == "public" or refusal is None:
            assert answer.status == 200, (method, path, answer)
            continue
        assert (answer.status, answer.detail) == refusal, (method, path)
        assert (answer.headers.get("www-authenticate") == "Bearer") is (answer.status == 401)
    if refusal is not None:
        assert [frame for frame in target.sync() if frame["type"] == "message"] == []
    target.close()


@pytest.mark.parametrize("role", [role for role, refusal in ROLES.items() if refusal])
def test_w09_nobody_learns_what_exists_nor_what_is_valid(
    admin: Admin, tokens: dict[str, str], target: Client, role: str
) -> None:
    headers = {} if role == "nobody" else admin.bearer(tokens[role])
    for method, path, needed in TARGETS:
        if needed == "public":
            continue
        answers = {
            (answer.status, answer.body)
            for answer in (
                call(admin, method, path, headers, ident=target.id),
                call(admin, method, path, headers, ident="no-such"),
                call(admin, method, path, headers, ident="%20*%0a"),
                call(admin, method, path + "?limit=x&y", headers, ident=target.id, valid=False),
            )
        }
        assert len(answers) == 1, (method, path)
    target.close()


def test_a14_a_super_administrator_who_is_removed_is_one_no_more(
    server: ServerProcess, admin: Admin
) -> None:
    headers = admin.bearer(server.token("deputy", 11))
    with server.store() as store:
        store.add_member(admin.group, 11)
    assert admin.ask("GET", "/websocket/rooms", headers=headers).status == 200
    with server.store() as store:
        store.remove_member(admin.group, 11)
    # A yes of the directory is remembered for a second, and not longer.
    deadline = time.monotonic() + 2.0
    while admin.ask("GET", "/websocket/rooms", headers=headers).status != 403:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_any_character_of_the_user_will_do(server: ServerProcess, admin: Admin) -> None:
    with server.store() as store:
        store.add_user("twin", 21, "First")
        store.add_user("twin", 22, "Second")
        store.add_member(admin.group, 22)
    headers = admin.bearer(server.token("twin", 21))
    assert admin.ask("GET", "/websocket/rooms", headers=headers).status == 200


def test_cookies_do_nothing_where_they_are_switched_off(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("cookieless")
    with serving(folder, {"FALCON_COOKIE_AUTH": "0"}) as server:
        admin = Admin(server)
        answer = admin.ask("GET", "/websocket/rooms", headers=admin.cookie())
        assert (answer.status, answer.detail) == AUTHENTICATION
        assert admin.get("/websocket/rooms").status == 200
