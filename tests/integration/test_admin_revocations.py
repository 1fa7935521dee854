"""Revoking through the admin API: exact answers, live connections, and a server that restarts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ..support.admin import Admin
from ..support.client import Client, request
from ..support.server import SECRET, ServerProcess, eventually, serving, sign
from .test_admin_contract import UUID, is_now

pytestmark = pytest.mark.integration

PATH = "/websocket/revocations"
HEADER = {"alg": "HS256", "typ": "JWT"}
LIFETIME = 366 * 86_400

REVOKED = (4403, "access revoked")


@pytest.fixture
def server(tmp_path: Path) -> Any:  # noqa: ANN401
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def admin(server: ServerProcess) -> Admin:
    return Admin(server)


def token(user: str, **changes: object) -> str:
    now = int(time.time())
    claims = {
        "user_id": user,
        "character_id": 1,
        "character_name": user,
        "exp": now + 3_600,
        "iat": now,
        "iss": "go-falcon",
        **changes,
    }
    return sign(HEADER, {key: value for key, value in claims.items() if value is not None}, SECRET)


def enter(server: ServerProcess, token: str) -> Client:
    client = Client(server.wire())
    client.open(token=token)
    client.enter()
    return client


def refused(server: ServerProcess, token: str) -> int:
    return server.ask(request(token=token)).status


def test_one_token(server: ServerProcess, admin: Admin) -> None:
    ends = int(time.time()) + 3_600
    stolen, other = token("ann", jti="stolen", exp=ends), token("ann", jti="other")
    thief, ann = enter(server, stolen), enter(server, other)
    answer = admin.post(PATH, {"token_id": "stolen", "expires_at": ends})
    revocation = answer.json["revocation"]
    assert (answer.status, answer.json) == (
        200,
        {
            "success": True,
            "revocation": {
                "id": revocation["id"],
                "token_id": "stolen",
                "expires_at": ends,
                "created_at": revocation["created_at"],
            },
            "message": "Tokens revoked successfully",
        },
    )
    assert UUID.fullmatch(revocation["id"])
    assert abs(time.time() - ends + 3_600) < 60
    assert thief.closing(within=1.0) == REVOKED
    assert refused(server, stolen) == 401
    ann.sync()
    assert admin.get(PATH).json == {"revocations": [revocation], "total": 1}
    answer = admin.ask("DELETE", f"{PATH}/{revocation['id']}")
    assert (answer.status, answer.json) == (
        200,
        {
            "success": True,
            "revocation_id": revocation["id"],
            "message": "Revocation withdrawn successfully",
        },
    )
    assert admin.get(PATH).json == {"revocations": [], "total": 0}
    enter(server, stolen)
    again = admin.ask("DELETE", f"{PATH}/{revocation['id']}")
    assert (again.status, again.detail) == (404, "Revocation not found")
    # The log says who did what, and not to which token.
    written = [line for line in server.records() if line["message"] == "admin write"]
    assert [(line["action"], line["target"], line["status"]) for line in written] == [
        ("add_revocation", "all", 200),
        ("withdraw_revocation", revocation["id"], 200),
        ("withdraw_revocation", revocation["id"], 404),
    ]
    assert "stolen" not in server.log()


def test_the_tokens_of_a_user(server: ServerProcess, admin: Admin) -> None:
    now = int(time.time())
    old, new = token("ann", iat=now - 100), token("ann", iat=now - 10)
    undated, bob = token("ann", iat=None), token("bob", iat=now - 100)
    clients = [enter(server, one) for one in (old, new, undated, bob)]
    revocation = admin.post(PATH, {"user_id": "ann", "issued_before": now - 50}).json["revocation"]
    assert revocation["issued_before"] == now - 50
    assert 0 <= revocation["expires_at"] - now - LIFETIME <= 60
    assert is_now(revocation["created_at"].replace(".000000Z", ".000001Z"))
    assert clients[0].closing(within=1.0) == REVOKED
    # A token that does not say when it was issued counts as older than any time.
    assert clients[2].closing(within=1.0) == REVOKED
    clients[1].sync()
    clients[3].sync()
    assert [refused(server, one) for one in (old, undated)] == [401, 401]
    enter(server, new)
    revocation = admin.post(PATH, {"user_id": "ann"}).json["revocation"]
    assert 0 <= revocation["issued_before"] - now <= 60
    assert clients[1].closing(within=1.0) == REVOKED
    clients[3].sync()
    clients[3].say(type="auth", id="1", data={"token": token("bob")})
    assert clients[3].hear_until(lambda frame: frame.get("id") == "1")["type"] == "auth"


def test_all_tokens_and_the_callers_own(server: ServerProcess, admin: Admin) -> None:
    clients = [enter(server, token(f"u{number}")) for number in range(20)]
    assert admin.post(PATH, {"all": True, "issued_before": 1}).status == 200
    for client in clients:
        client.sync()
    assert admin.post(PATH, {"all": True}).status == 200
    for client in clients:
        assert client.closing(within=2.0) == REVOKED
    answer = admin.get(PATH)
    assert (answer.status, answer.detail) == (401, "Invalid authentication token")
    time.sleep(1.1)
    admin.token = server.token("operator", 99)
    assert admin.get(PATH).json["total"] == 2


@pytest.mark.parametrize(
    ("body", "locations"),
    [
        ({}, ["body"]),
        ({"token_id": "a", "user_id": "b"}, ["body"]),
        ({"token_id": "a", "issued_before": 5}, ["body"]),
        ({"user_id": None}, ["body.user_id"]),
        ({"user_id": "ann", "token_id": None}, ["body.token_id"]),
        ({"all": False}, ["body.all"]),
        ({"all": 1}, ["body.all"]),
        ({"user_id": "a:b"}, ["body.user_id"]),
        ({"token_id": ""}, ["body.token_id"]),
        ({"token_id": "x" * 129}, ["body.token_id"]),
        ({"token_id": "a\nb"}, ["body.token_id"]),
        ({"token_id": 7}, ["body.token_id"]),
        ({"user_id": "ann", "reason": "x"}, ["body.reason"]),
        ({"user_id": "ann", "issued_before": "5"}, ["body.issued_before"]),
        ({"user_id": "ann", "issued_before": 0}, ["body.issued_before"]),
        ({"user_id": "ann", "issued_before": 4_000_000_000}, ["body.issued_before"]),
        ({"user_id": "ann", "expires_at": 1.5}, ["body.expires_at"]),
        ([], ["body"]),
    ],
    ids=str,
)
def test_bodies_that_are_refused(shared: Admin, body: object, locations: list[str]) -> None:
    assert shared.ask("POST", PATH, json_body=body).locations == locations
    assert shared.get(PATH).json["total"] == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    """A server for what changes nothing."""
    with serving(tmp_path_factory.mktemp("shared")) as running:
        yield Admin(running)


def test_pages(server: ServerProcess, admin: Admin) -> None:
    made = [admin.post(PATH, {"token_id": str(number)}).json["revocation"] for number in range(5)]
    found: list[dict[str, Any]] = []
    query = "?limit=2"
    for size in (2, 2, 1):
        page = admin.get(PATH + query).json
        assert (len(page["revocations"]), page["total"]) == (size, 5)
        found += page["revocations"]
        query = f"?limit=2&cursor={page.get('next_cursor')}"
    assert "next_cursor" not in page
    assert sorted(found, key=lambda one: str(one["token_id"])) == made
    assert admin.get(f"{PATH}?cursor=x").locations == ["query.cursor"]


def test_a_restart_keeps_them(tmp_path: Path) -> None:
    stolen = token("ann", jti="stolen")
    with serving(tmp_path) as server:
        admin = Admin(server)
        kept = admin.post(PATH, {"token_id": "stolen"}).json["revocation"]
        gone = admin.post(PATH, {"user_id": "bob"}).json["revocation"]
        admin.ask("DELETE", f"{PATH}/{gone['id']}")
    with serving(tmp_path) as server:
        assert server.get("/readyz").status == 200
        assert refused(server, stolen) == 401
        enter(server, token("bob", iat=int(time.time()) - 100, exp=int(time.time()) + 60))
        assert Admin(server).get(PATH).json == {"revocations": [kept], "total": 1}


def test_a_disk_that_fails_is_told_and_made_up_for(server: ServerProcess, admin: Admin) -> None:
    """In force at once; 503 says that it is not kept; later it is."""
    ann = enter(server, token("ann"))
    with server.store() as store:
        # Somebody keeps the file locked: longer than a writer waits for it.
        store._db.execute("BEGIN IMMEDIATE")
        answer = admin.post(PATH, {"user_id": "ann"})
        assert answer.status == 503
        assert answer.detail.startswith("In force on this node, but not kept: ")
        assert ann.closing(within=1.0) == REVOKED
        store._db.execute("ROLLBACK")
    (rule,) = admin.get(PATH).json["revocations"]

    def kept() -> bool:
        with server.store() as store:
            rows = store._db.execute(
                "SELECT id FROM revocations WHERE id = ?", (rule["id"],)
            ).fetchall()
            return bool(rows)

    with server.store() as store:
        eventually(
            lambda: bool(
                store._db.execute(
                    "SELECT 1 FROM sqlite_master WHERE name = 'revocations'"
                ).fetchone()
            ),
            "the table is made",
        )
    eventually(kept, "the rule is kept")
