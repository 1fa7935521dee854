"""One server process a module, and a canary on it that watches every test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.canary import Canary, watched
from ..support.server import ServerProcess, serving


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Environment variables of the module's server; modules bring their own."""
    return {}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]
) -> Iterator[ServerProcess]:
    """The module's server."""
    with serving(tmp_path_factory.mktemp("server"), settings) as server:
        yield server


@pytest.fixture(scope="module")
def bird(server: ServerProcess) -> Iterator[Canary]:
    """The canary of the module's server."""
    with Canary(server) as canary:
        yield canary


@pytest.fixture
def canary(server: ServerProcess, bird: Canary) -> Iterator[Canary]:
    """Apply the canary rule to one test."""
    with watched(bird):
        yield bird
