"""One server process a module, and a canary on it that watches every test that asks for it.

Tests of many nodes share one cluster, which each of them finds whole.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.canary import Canary, watched
from ..support.cluster import Cluster
from ..support.redis_server import RedisServer
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


@pytest.fixture(scope="session")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, each with a proxy between it and the Redis of them all."""
    folder = tmp_path_factory.mktemp("trio")
    with RedisServer(folder / "redis") as redis, Cluster(folder, redis, 3, proxies=True) as trio:
        yield trio


@pytest.fixture
def cluster(trio: Cluster) -> Iterator[Cluster]:
    """The cluster of three, whole before a test and after it."""
    trio.mend()
    yield trio
    trio.mend()
