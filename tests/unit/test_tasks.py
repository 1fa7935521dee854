"""Tasks are ended for good, whatever they do with their first cancellation."""

from __future__ import annotations

import asyncio

from falcon_fast.tasks import end_tasks

from ..support.loop import FakeTimeLoop, turns

loop_factory = FakeTimeLoop


async def test_a_task_that_swallows_cancellations_is_cancelled_again() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if swallowed == 2:
                    raise
                swallowed += 1

    task = asyncio.create_task(stubborn())
    await turns()
    await end_tasks([task])
    assert (swallowed, task.cancelled()) == (2, True)


async def test_python_3_11_drops_a_cancellation_that_comes_with_the_answer() -> None:
    """What redis-py does inside: the reason for all this."""
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ask() -> None:
        await asyncio.wait_for(asyncio.shield(answer), 10)
        await asyncio.sleep(3600)

    task = asyncio.create_task(ask())
    await turns()
    answer.set_result(None)
    await end_tasks([task])
    assert task.cancelled()


async def test_tasks_that_have_ended_and_tasks_that_fail_while_they_end() -> None:
    async def fails_late() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ValueError("too late to be of interest")

    async def fails() -> None:
        raise ValueError("seen elsewhere")

    tasks = [asyncio.create_task(work()) for work in (fails_late, fails)]
    await turns()
    await end_tasks(tasks)
    assert all(task.done() for task in tasks)
    await end_tasks([])
