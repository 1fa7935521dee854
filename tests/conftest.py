"""Set-up of the whole run: no test may see the settings of the shell it is started from."""

from __future__ import annotations

import os

import pytest

# Read before the environment is emptied below: it is no setting of the server.
from .support import REQUIRE_ALL

REQUESTED = {name for name, value in os.environ.items() if value == "1"}

SETTINGS = ("FALCON_", "WEBSOCKET_", "JWT_SECRET", "MONGODB_URI", "REDIS_URL")


def pytest_configure(config: pytest.Config) -> None:
    """Take every setting out of the environment, also for the processes that tests start."""
    for name in [name for name in os.environ if name.startswith(SETTINGS)]:
        del os.environ[name]


def pytest_report_header(config: pytest.Config) -> str:
    """Say what happens to a test whose program is not installed."""
    return f"missing programs: tests that need one {'fail' if REQUIRE_ALL else 'are left out'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless it is asked for by the name that its mark gives."""
    left_out = []
    for item in items:
        mark = item.get_closest_marker("on_request")
        if mark is not None and mark.args[0] not in REQUESTED:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
