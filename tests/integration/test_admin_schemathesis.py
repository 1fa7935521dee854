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
from ..support.server import ServerProcess

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
    output = schemathesis(admin, tmp_path, "--header", f"Authorization: Bearer {admin.token}")
    # All routes, and the public pages that the document has but for the one it was read from.
    assert f"Tested: {len(ROUTES) + 3}\n" in output
    assert stays.wire.socket.fileno() >= 0


def test_w11_super_admin_with_ids_that_exist(admin: Admin, stays: Client, tmp_path: Path) -> None:
    config = STAYS.format(id=stays.id)
    schemathesis(admin, tmp_path, "--header", f"Authorization: Bearer {admin.token}", config=config)
