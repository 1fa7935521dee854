"""Ending asyncio tasks for good, for those that have libraries working within them.

Stands beside everything: nothing flows through it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["end_tasks"]

CANCEL_AGAIN: Final = 0.1
"""Seconds until a task that goes on although it was cancelled is cancelled once more."""


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, as often as it takes, and return when all have ended, however they did.

    Once is not enough: Python 3.11's `asyncio.wait_for` drops a cancellation that comes in the very
    turn in which what it waits for is done, and redis-py is built on it.
    """
    everyone = set(tasks)
    pending = {task for task in everyone if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN)
    # What they failed with is no news any more, and must not be reported as unseen.
    await asyncio.gather(*everyone, return_exceptions=True)
