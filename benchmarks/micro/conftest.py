"""How every micro benchmark is measured."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def settled_heap() -> Iterator[None]:
    """Keep what earlier benchmarks left behind out of this one's collections."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
