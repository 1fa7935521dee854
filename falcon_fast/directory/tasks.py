"""Work in the background, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final

__all__ = ["Tasks"]

AGAIN: Final = 0.1
"""Seconds after which a task that did not heed its end is told again.

A driver may answer a cancellation with an error of its own, which looks like any other failure.
"""


class Tasks:
    """Tasks that live until they are done, or until all are ended."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[object, object, None], *, name: str) -> None:
        """Begin something that looks after its own failures."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """End everything, and wait until it has ended."""
        while tasks := set(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=AGAIN)
            # Those that are done are taken out by their callbacks, in the loop's next turn.
            await asyncio.sleep(0)
