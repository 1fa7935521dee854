"""Which event loop the asynchronous unit tests run on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Let a module choose its loop by a name of its own: ``loop_factory``."""
    module = getattr(item, "module", None)
    return {"loop": getattr(module, "loop_factory", asyncio.new_event_loop)}
