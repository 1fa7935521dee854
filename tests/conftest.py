"""Set-up of the whole run: no test may see the settings of the shell it is started from."""

from __future__ import annotations

import os

import pytest

# Read before the environment is emptied below: it is no setting of the server.
from .support import REQUIRE_ALL

SETTINGS = ("FALCON_", "WEBSOCKET_", "JWT_SECRET", "MONGODB_URI", "REDIS_URL")


def pytest_configure(config: pytest.Config) -> None:
    """Take every setting out of the environment, also for the processes that tests start."""
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        del os.environ[name]


def pytest_report_header(config: pytest.Config) -> str:
    """Say what happens to a test whose program is not installed."""
    return f"missing programs: tests that need one {'fail' if REQUIRE_ALL else 'are left out'}"
