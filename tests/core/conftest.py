"""Which implementations the tests of the core run on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from falcon_fast._core import Core

from ..model.core import Twin
from ..support.core import CoreFactory, Failed, Rig

NATIVE: Final[CoreFactory] = Core
TWIN: Final[CoreFactory] = Twin


@pytest.fixture(params=[NATIVE, TWIN], ids=["core", "twin"])
def make(request: pytest.FixtureRequest) -> CoreFactory:
    """Return the native core, then its twin."""
    factory: CoreFactory = request.param
    return factory


@pytest.fixture
def rig(make: CoreFactory) -> Iterator[Rig]:
    """Return a rig with the default limits; nothing may have failed unseen when the test ends."""
    rig = Rig(make)
    yield rig
    assert not [event for event in rig.events if isinstance(event, Failed)]
