"""schemathesis reads the document and tries everything it says, and what it does not say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from falcon_fast.admin.routes import ROUTES

from ..support.admin import Admin
from ..support.client import Client
from ..support.server import ServerProcess, serving

pytestmark = pytest.mark.integration

EXAMPLES: Final = 6
"""Inputs made for each operation, beside the many that each constraint of the document gives."""

TIMEOUT: Final = 120

NOT_CHECKED: Final = (
    # No text fits the schema of a cursor and is one: only the server can make it.
    "positive_data_acceptance"
)

STAYS: Final = """
[parameters]
"path.user_id" = "stays"
"path.room_id" = "user:stays"
"query.user_id" = "stays"
"query.room_id" = "user:stays"
"query.room" = "user:stays"
"query.member_id" = "{id}"
"path.connection_id" = "{id}"

[[operations]]
include-operation-id = "close_connection"
enabled = false
"""

NO_REVOCATIONS: Final = """
[[operations]]
include-operation-id = "add_revocation"
enabled = false
"""
"""Sooner or later it would revoke all tokens, its own included."""


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> Admin:
    return Admin(server)


@pytest.fixture(scope="module")
def stays(server: ServerProcess) -> Iterator[Client]:
    client = server.connect("stays", 5)
    yield client
    client.close()


def schemathesis(admin: Admin, folder: Path, *arguments: str, config: str = "") -> str:
    """Run schemathesis; returns what it printed, and fails with that when it found something."""
    (folder / "schemathesis.toml").write_text(config)
    before = admin.server.log_size()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{admin.url}/openapi.json"),
            *("--checks", "all", "--exclude-checks", NOT_CHECKED, "--seed", "1", "--no-color"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
            *("--generation-database", "none", "--request-timeout", "15", *arguments),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Traceback" not in admin.server.log(before)
    return done.stdout


def test_w11_nobody(admin: Admin, tmp_path: Path) -> None:
    schemathesis(admin, tmp_path)


def test_w11_user(admin: Admin, server: ServerProcess, tmp_path: Path) -> None:
    token = server.token("user", 8)
    schemathesis(admin, tmp_path, "--header", f"Authorization: Bearer {token}")


def test_w11_super_admin(admin: Admin, stays: Client, tmp_path: Path) -> None:
    header = f"Authorization: Bearer {admin.token}"
    output = schemathesis(admin, tmp_path, "--header", header, config=NO_REVOCATIONS)
    # All routes but one, and the public pages but for the one it was read from.
    assert f"Tested: {len(ROUTES) + 2}\n" in output
    assert stays.wire.socket.fileno() >= 0


def test_w11_super_admin_with_ids_that_exist(admin: Admin, stays: Client, tmp_path: Path) -> None:
    config = STAYS.format(id=stays.id) + NO_REVOCATIONS
    schemathesis(admin, tmp_path, "--header", f"Authorization: Bearer {admin.token}", config=config)


def test_w11_super_admin_who_revokes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """On a server of its own, whose tokens may end up revoked."""
    with serving(tmp_path_factory.mktemp("revoking")) as server:
        admin = Admin(server)
        schemathesis(
            admin,
            tmp_path_factory.mktemp("schemathesis"),
            *("--header", f"Authorization: Bearer {admin.token}"),
            *("--include-path", "/websocket/revocations"),
        )
