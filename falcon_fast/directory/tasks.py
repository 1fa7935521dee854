"""Work in the background of a directory, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from falcon_fast.tasks import end_tasks

__all__ = ["Tasks"]


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
        """End everything, also what is begun meanwhile, and wait until it has ended."""
        while tasks := list(self._tasks):
            await end_tasks(tasks)
            self._tasks.difference_update(tasks)
