"""The directory in MongoDB without a database: races, losses and outages, in no time at all."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Coroutine

import pytest

from falcon_fast.directory import Directory, Group
from falcon_fast.directory import mongo as module
from falcon_fast.directory.mongo import CACHE_TIME, HANDOVER, MongoDirectory
from falcon_fast.directory.mongo_driver import Refused, Unreadable
from falcon_fast.directory.mongo_follow import COMPARE_INTERVAL, POLL_INTERVAL, TRY_STREAM_AGAIN
from falcon_fast.directory.mongo_lookup import BATCH_USERS, MAX_IN_FLIGHT, MAX_SPLITS
from falcon_fast.directory.mongo_rows import GROUPS, MEMBERSHIPS, PROFILES, Document
from falcon_fast.errors import DirectoryUnavailable

from ..support.loop import FakeTimeLoop, turns
from ..support.mongo_store import FakeStore, group_id
from ..support.mongo_watcher import Watcher, directory_on, holds

loop_factory = FakeTimeLoop

AWAY = DirectoryUnavailable("MongoDB cannot be reached at the addresses of MONGODB_URI")
LOST = 60.0
"""Seconds after which a change must have taken effect whose event was lost."""


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    store.group(1)
    store.group(2, "Others")
    store.user("ann", 7)
    store.user("bob", 8)
    store.join(1, 7)
    store.join(1, 8)
    return store


@pytest.fixture
async def directory(store: FakeStore) -> AsyncIterator[MongoDirectory]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    async with directory_on(store, clock=loop.clock) as directory:
        # The first compare is over: what a test sees is its own doing.
        await asyncio.sleep(1.0)
        store.questions.clear()
        yield directory


async def follow(directory: MongoDirectory, user_id: str = "ann", character: int = 7) -> Watcher:
    watcher = Watcher(directory)
    directory.track(user_id, character)
    await directory.groups_of(user_id, character)
    await asyncio.sleep(HANDOVER)
    return watcher


def ids(*numbers: int) -> set[str]:
    return {group_id(number) for number in numbers}


def test_it_fits_the_port(store: FakeStore) -> None:
    async def make() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeTimeLoop)
        directory: Directory = MongoDirectory(store, clock=loop.clock)
        assert not directory.is_banned("anybody")
        await directory.close()

    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        runner.run(make())


# --- changes that nobody tells of ----------------------------------------------------------------


async def test_m05_a_lost_event_is_made_up_for_within_a_minute(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = await follow(directory)
    for _ in range(5):
        store.is_lossy = True
        store.leave(1, 7)
        async with asyncio.timeout(LOST):
            await watcher.until(lambda: watcher.last.get("ann") == set(), within=LOST)
        store.join(1, 7)
        await watcher.until(lambda: watcher.last.get("ann") == ids(1), within=LOST)
        await asyncio.sleep(random.uniform(0, COMPARE_INTERVAL))


async def test_m05_a_lost_ban_is_made_up_for_within_a_minute(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = await follow(directory)
    store.is_lossy = True
    store.user("ann", 7, banned=True)
    await watcher.until(lambda: watcher.bans == ["ann"], within=LOST)
    store.user("ann", 7, banned=False)
    await asyncio.sleep(LOST)
    assert not directory.is_banned("ann")


async def test_a_silent_stream_is_compared_and_stays_available(
    store: FakeStore, directory: MongoDirectory
) -> None:
    await follow(directory)
    await asyncio.sleep(10 * LOST)
    assert directory.is_available
    # Ten minutes: a compare each three quarters of a minute, and nothing else.
    assert 12 <= len(store.questions) <= 18


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
async def test_z06_replayed_and_shuffled_events_end_with_what_is_true(
    store: FakeStore, directory: MongoDirectory, seed: int
) -> None:
    chance = random.Random(seed)
    watcher = await follow(directory)
    store.is_lossy = True
    events = []
    for _ in range(12):
        number = chance.choice([1, 2])
        ident = f"{number}/7"
        if ident in store.documents[MEMBERSHIPS]:
            store.leave(number, 7)
            events.append(("delete", ident))
        else:
            store.join(number, 7)
            events.append(("insert", ident))
        if chance.random() < 0.5:
            chance.shuffle(events)
            for kind, key in events[: chance.randint(1, 4)]:
                store.tell(
                    {
                        "operationType": kind,
                        "ns": {"coll": MEMBERSHIPS},
                        "documentKey": {"_id": key},
                        **({"fullDocument": {"character_id": 7}} if kind == "insert" else {}),
                    }
                )
        await asyncio.sleep(chance.uniform(0, 0.05))
    for kind, key in events:
        store.tell(
            {
                "operationType": kind,
                "ns": {"coll": MEMBERSHIPS},
                "documentKey": {"_id": key},
                "fullDocument": {"character_id": 7},
            }
        )
    await asyncio.sleep(1.0)
    truth = {
        one["group_id"] for one in store.documents[MEMBERSHIPS].values() if one["character_id"] == 7
    }
    assert watcher.last.get("ann", ids(1)) == truth


@pytest.mark.parametrize("step", range(0, 90, 3))
async def test_z06_a_change_around_a_question_is_never_lost(store: FakeStore, step: int) -> None:
    """The change comes three milliseconds later each time, the question takes seventy."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    async with directory_on(store, clock=loop.clock) as directory:
        await asyncio.sleep(1.0)
        watcher = Watcher(directory)
        directory.track("ann", 7)
        question = asyncio.create_task(directory.groups_of("ann", 7))
        await asyncio.sleep(step / 1000)
        store.leave(1, 7)
        answer = {group.id for group in await question}
        await asyncio.sleep(1.0)
        assert watcher.last.get("ann", answer) == set()


async def test_z06_an_older_answer_never_follows_a_newer_one(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = await follow(directory)
    store.is_lossy = True
    store.latency = 1.0
    slow = asyncio.create_task(directory.refresh(["ann"]))
    await asyncio.sleep(0.75)  # what it will tell is on its way back
    store.latency = 0.0
    store.leave(1, 7)
    await directory.refresh(["ann"])
    await slow
    assert watcher.last == {"ann": set()}


async def test_a_change_right_after_an_answer_is_told_twice(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = Watcher(directory)
    store.is_lossy = True
    store.latency = 0.0
    directory.track("ann", 7)
    await asyncio.sleep(HANDOVER)
    await directory.groups_of("ann", 7)
    directory._lookups._departed = 0.0
    store.leave(1, 7)
    await directory.refresh(["ann"])
    directory._lookups._departed = 0.0
    store.join(2, 7)
    await directory.refresh(["ann"])
    await asyncio.sleep(5.0)
    # The last one once more, for an answer that was still on its way.
    assert watcher.changes == [("ann", set()), ("ann", ids(2)), ("ann", ids(2))]


async def test_a_second_connection_does_not_swallow_the_change_for_the_first(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = await follow(directory)
    await asyncio.sleep(CACHE_TIME + 0.1)
    store.is_lossy = True
    store.leave(1, 7)
    directory.track("ann", 7)
    assert await directory.groups_of("ann", 7) == frozenset()
    assert watcher.last == {"ann": set()}


async def test_another_character_of_a_token_joins_its_groups(
    store: FakeStore, directory: MongoDirectory
) -> None:
    store.join(2, 9)
    watcher = await follow(directory)
    directory.track("ann", 9)
    assert {group.id for group in await directory.groups_of("ann", 9)} == ids(1, 2)
    await watcher.until(lambda: watcher.last.get("ann") == ids(1, 2))


async def test_only_who_is_followed_is_told(store: FakeStore, directory: MongoDirectory) -> None:
    watcher = await follow(directory)
    directory.forget("ann")
    directory.forget("nobody")
    store.leave(1, 7)
    store.user("ann", 7, banned=True)
    await asyncio.sleep(1.0)
    assert (watcher.changes, watcher.bans) == ([], [])
    assert directory.is_banned("ann")


async def test_a_ban_between_handshake_and_track_is_told(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = Watcher(directory)
    store.user("ann", 7, banned=True)
    await asyncio.sleep(0.5)
    directory.track("ann", 7)
    assert watcher.bans == []
    await turns()
    assert watcher.bans == ["ann"]


async def test_a_ban_that_comes_while_the_list_is_read_stays(
    store: FakeStore, directory: MongoDirectory
) -> None:
    store.latency = 1.0
    compare = asyncio.create_task(directory.compare())
    await asyncio.sleep(0.75)  # the list is on its way back
    store.user("ann", 7, banned=True)
    await asyncio.sleep(0.1)
    assert directory.is_banned("ann")
    await compare
    assert directory.is_banned("ann")


async def test_a_ban_that_was_lifted_during_an_outage_is_noticed(
    store: FakeStore, directory: MongoDirectory
) -> None:
    store.user("ann", 7, banned=True)
    await asyncio.sleep(1.0)
    store.user("ann", 7, banned=False)
    await asyncio.sleep(0.1)
    store.error = AWAY  # before the list is read
    await asyncio.sleep(2.0)
    assert directory.is_banned("ann")
    store.error = None
    await holds(lambda: not directory.is_banned("ann"), within=10.0)


async def test_a_ban_is_seen_in_any_answer(store: FakeStore, directory: MongoDirectory) -> None:
    watcher = await follow(directory)
    store.is_lossy = True
    store.user("ann", 7, banned=True)
    await directory.refresh(["ann"])
    assert watcher.bans == ["ann"]


# --- few questions -------------------------------------------------------------------------------


async def test_m06_a_storm_costs_few_questions_and_none_waits_long(
    store: FakeStore, directory: MongoDirectory
) -> None:
    users = 3000
    began = asyncio.get_running_loop().time()

    async def one(number: int) -> float:
        await asyncio.sleep(number * 3.0 / users)
        directory.track(f"user-{number}", 1000 + number)
        asked = asyncio.get_running_loop().time()
        await directory.groups_of(f"user-{number}", 1000 + number)
        return asyncio.get_running_loop().time() - asked

    waits = await asyncio.gather(*(one(number) for number in range(users)))
    assert asyncio.get_running_loop().time() - began < 4.0
    assert max(waits) < 0.3
    assert len(store.questions) <= 35
    assert store.most_at_once <= MAX_IN_FLIGHT


async def test_a_sudden_crowd_is_asked_about_in_full_batches(
    store: FakeStore, directory: MongoDirectory
) -> None:
    users = 6 * BATCH_USERS
    await asyncio.gather(*(directory.groups_of(f"user-{n}", 1000 + n) for n in range(users)))
    assert [len(one) for one in store.questions] == [BATCH_USERS] * 6
    assert store.most_at_once == MAX_IN_FLIGHT


async def test_an_answer_is_given_again_only_for_a_moment(
    store: FakeStore, directory: MongoDirectory
) -> None:
    for _ in range(3):
        await directory.groups_of("ann", 7)
    assert len(store.questions) == 1
    await asyncio.sleep(CACHE_TIME + 0.1)
    await directory.groups_of("ann", 7)
    assert len(store.questions) == 2
    # Another character was not asked about.
    await directory.groups_of("ann", 99)
    assert len(store.questions) == 3
    store.leave(1, 7)
    await asyncio.sleep(0.05)
    assert await directory.groups_of("ann", 7) == frozenset()


async def test_a_remembered_answer_is_followed_too(
    store: FakeStore, directory: MongoDirectory
) -> None:
    """As when somebody used the admin API a moment before connecting."""
    watcher = Watcher(directory)
    await directory.groups_of("ann", 7)
    directory.track("ann", 7)
    assert {group.id for group in await directory.groups_of("ann", 7)} == ids(1)
    assert len(store.questions) == 1
    store.leave(1, 7)
    await watcher.until(lambda: watcher.last.get("ann") == set(), within=1.0)


async def test_remembered_answers_are_bounded(
    store: FakeStore, directory: MongoDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHE_SIZE", 4)
    for number in range(10):
        await directory.groups_of(f"user-{number}", 1000 + number)
    assert list(directory._cache) == ["user-6", "user-7", "user-8", "user-9"]
    store.tell({"operationType": "drop", "ns": {"coll": GROUPS}})
    await asyncio.sleep(0.05)
    assert directory._cache == {}


async def test_a_change_asks_about_those_it_concerns_only(
    store: FakeStore, directory: MongoDirectory
) -> None:
    for number in range(50):
        directory.track(f"user-{number}", 1000 + number)
        await directory.groups_of(f"user-{number}", 1000 + number)
    watcher = await follow(directory)
    store.questions.clear()
    store.leave(1, 7)
    await watcher.until(lambda: watcher.last.get("ann") == set())
    store.put(GROUPS, group_id(2), name="Nobody is in it")
    await asyncio.sleep(1.0)
    assert store.questions == [["ann"]]


async def test_too_many_changes_at_once_are_compared(
    store: FakeStore, directory: MongoDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 10)
    monkeypatch.setattr(module, "GATHERING", 1.0)
    watcher = await follow(directory)
    for number in range(20):
        store.join(2, 5000 + number)
    store.leave(1, 7)
    await watcher.until(lambda: watcher.last.get("ann") == set())


async def test_a_question_nobody_waits_for_any_more_is_not_asked(
    store: FakeStore, directory: MongoDirectory
) -> None:
    question = asyncio.create_task(directory.groups_of("ann", 7))
    await turns()
    question.cancel()
    await asyncio.sleep(1.0)
    assert store.questions == []


# --- outages -------------------------------------------------------------------------------------


async def test_an_outage_of_hours_costs_few_questions_and_heals(
    store: FakeStore, directory: MongoDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="falcon_fast.directory")
    watcher = await follow(directory)
    store.user("bob", 8, banned=True)
    await asyncio.sleep(1.0)
    store.error = AWAY
    store.is_lossy = True
    store.leave(1, 7)
    store.questions.clear()
    await asyncio.sleep(2 * 3600)
    assert watcher.changes == []
    assert directory.is_banned("bob")
    assert not directory.is_available
    assert len(store.questions) <= 2 * 3600 / 5
    with pytest.raises(DirectoryUnavailable):
        await directory.groups_of("ann", 7)
    store.error = None
    await watcher.until(lambda: watcher.last == {"ann": set()}, within=15.0)
    await holds(lambda: directory.is_available)
    lines = [one.levelname for one in caplog.records if "available" in one.message]
    assert lines == ["WARNING", "INFO"]


async def test_who_got_no_answer_is_told_when_there_is_one(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = Watcher(directory)
    store.error = AWAY
    directory.track("ann", 7)
    with pytest.raises(DirectoryUnavailable, match="cannot be reached"):
        await directory.groups_of("ann", 7)
    store.error = None
    await watcher.until(lambda: watcher.last == {"ann": ids(1)}, within=5.0)


async def test_a_refused_question_is_refused_at_once(
    store: FakeStore, directory: MongoDirectory
) -> None:
    store.error = AWAY
    for number in range(3):
        with pytest.raises(DirectoryUnavailable, match="cannot be reached"):
            await directory.groups_of(f"user-{number}", 1000 + number)
    waiting = asyncio.create_task(directory.groups_of("waits", 1))
    began = asyncio.get_running_loop().time()
    questions: list[Coroutine[object, object, object]] = [
        directory.groups_of("ann", 7),
        directory.user_of(7),
        directory.is_super_admin("ann", 7),
    ]
    for question in questions:
        with pytest.raises(DirectoryUnavailable, match="not asked, since MongoDB does not answer"):
            await question
    await directory.refresh(["nobody who is followed"])
    assert asyncio.get_running_loop().time() == began
    with pytest.raises(DirectoryUnavailable):
        await waiting


async def test_each_caller_gets_an_exception_of_its_own(
    store: FakeStore, directory: MongoDirectory
) -> None:
    store.error = AWAY
    first, second = await asyncio.gather(
        directory.groups_of("ann", 7), directory.groups_of("ann", 7), return_exceptions=True
    )
    assert isinstance(first, DirectoryUnavailable)
    assert first is not second
    assert first.__cause__ is AWAY


async def test_a_user_who_cannot_be_read_is_no_outage(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = await follow(directory)
    store.unreadable = "bob"
    directory.track("bob", 8)
    answers = await asyncio.gather(
        *(directory.groups_of(f"user-{number}", 1000 + number) for number in range(20)),
        directory.groups_of("bob", 8),
        return_exceptions=True,
    )
    assert [isinstance(one, Exception) for one in answers] == [False] * 20 + [True]
    store.is_lossy = True
    store.leave(1, 7)
    await watcher.until(lambda: watcher.last.get("ann") == set(), within=LOST)
    assert directory.is_available


async def test_a_server_of_which_nothing_can_be_read_is_an_outage(
    store: FakeStore, directory: MongoDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(*_: object) -> list[Document]:
        store.questions.append([])
        raise Unreadable("MongoDB's answer cannot be read")

    monkeypatch.setattr(store, "groups_of", unreadable)
    answers = await asyncio.gather(
        *(directory.groups_of(f"user-{number}", 1000 + number) for number in range(BATCH_USERS)),
        return_exceptions=True,
    )
    assert all(isinstance(answer, Unreadable) for answer in answers)
    assert len(store.questions) <= 2 * MAX_SPLITS + 1
    assert not directory.is_available


async def test_closed_it_refuses_and_whoever_waits_is_told(
    store: FakeStore, directory: MongoDirectory
) -> None:
    waiting = [
        asyncio.create_task(directory.groups_of("ann", 7)),
        asyncio.create_task(directory.refresh(["bob"])),
    ]
    directory.track("bob", 8)
    await asyncio.sleep(0.015)
    late = asyncio.create_task(directory.groups_of("late", 1))
    await turns()
    await directory.close()
    await directory.close()
    for task in (*waiting, late):
        with pytest.raises(DirectoryUnavailable, match="the directory is not open"):
            await task
    with pytest.raises(DirectoryUnavailable, match="the directory is not open"):
        await directory.groups_of("ann", 7)
    directory.track("bob", 9)
    assert not store.is_open


async def test_the_start_gives_up_in_the_end(store: FakeStore) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    store.error = AWAY
    with pytest.raises(DirectoryUnavailable, match="cannot be reached"):
        async with directory_on(store, clock=loop.clock, start_timeout=10.0):
            raise AssertionError("it runs")
    assert store.asked["open"] > 10
    store.error = Refused("MongoDB refuses the user or password of MONGODB_URI")
    store.asked.clear()
    with pytest.raises(Refused):
        async with directory_on(store, clock=loop.clock, start_timeout=10.0):
            raise AssertionError("it runs")
    assert store.asked == {"open": 1}


# --- following -----------------------------------------------------------------------------------


async def test_a_stream_goes_on_where_it_stopped(
    store: FakeStore, directory: MongoDirectory
) -> None:
    watcher = await follow(directory)
    store.put(GROUPS, group_id(2), name="Renamed")
    await asyncio.sleep(0.5)
    at = len(store._events)
    store.error = AWAY
    store.put(GROUPS, group_id(1), name="Armada")
    await asyncio.sleep(3.0)
    store.error = None
    await watcher.until(lambda: watcher.titles.get(group_id(1)) == "Armada")
    assert store.tokens[-1] == {"at": at}


async def test_a_lost_token_means_a_compare(store: FakeStore, directory: MongoDirectory) -> None:
    watcher = await follow(directory)
    store.error = AWAY
    await asyncio.sleep(2.0)
    store.is_lossy = True
    store.leave(1, 7)
    store.knows_tokens = False
    store.error = None
    await watcher.until(lambda: watcher.last.get("ann") == set(), within=10.0)
    await holds(lambda: store.tokens[-1] is None)


async def test_without_streams_it_polls_and_tries_again(store: FakeStore) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    store.has_streams = False
    async with directory_on(store, clock=loop.clock) as directory:
        watcher = await follow(directory)
        await asyncio.sleep(10.0)
        assert directory._follower.mode == "polling"
        store.join(2, 7)
        store.put(MEMBERSHIPS, "2/7", updated_at=loop.clock.time())
        await watcher.until(lambda: watcher.last.get("ann") == ids(1, 2), within=2 * POLL_INTERVAL)
        # A deletion has no updated_at; that there are fewer is noticed.
        store.leave(1, 7)
        await watcher.until(lambda: watcher.last.get("ann") == ids(2), within=10.0)
        store.put(PROFILES, "p7", banned=True, updated_at=loop.clock.time())
        await watcher.until(lambda: watcher.bans == ["ann"], within=2 * POLL_INTERVAL)
        asked = len(store.questions)
        await asyncio.sleep(30.0)
        # What was seen is not looked up again each second.
        assert len(store.questions) - asked <= 2
        store.error = AWAY
        await asyncio.sleep(5.0)
        assert not directory.is_available
        store.error = None
        store.has_streams = True
        await asyncio.sleep(TRY_STREAM_AGAIN)
        await holds(lambda: directory.is_available and directory._follower.mode == "stream")


async def test_more_changes_than_one_look_may_find_are_compared(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    monkeypatch.setattr("falcon_fast.directory.mongo_follow.POLL_LIMIT", 3)
    store.has_streams = False
    async with directory_on(store, clock=loop.clock) as directory:
        watcher = await follow(directory)
        await asyncio.sleep(10.0)
        for number in range(5):
            store.group(100 + number, updated_at=loop.clock.time())
        store.put(GROUPS, group_id(1), name="Armada", updated_at=loop.clock.time())
        await watcher.until(lambda: watcher.titles.get(group_id(1)) == "Armada", within=8.0)


async def test_what_fails_in_the_gateway_is_logged_and_stops_nothing(
    store: FakeStore, directory: MongoDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("of the gateway")

    directory.watch(on_change=fail, on_ban=fail, on_profile=fail)
    directory.track("ann", 7)
    await directory.groups_of("ann", 7)
    store.leave(1, 7)
    store.user("ann", 7, banned=True)
    await asyncio.sleep(1.0)
    assert set(caplog.messages) == {"telling a change of users and groups failed"}
    assert await directory.groups_of("bob", 8) == {Group(group_id(1), "Fleet", "custom")}


async def test_a_mistake_of_ours_is_logged_and_stops_nothing(
    store: FakeStore,
    directory: MongoDirectory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watcher = await follow(directory)

    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    with monkeypatch.context() as patch:
        patch.setattr("falcon_fast.directory.mongo_lookup.read_groups", fail)
        with pytest.raises(DirectoryUnavailable, match="not open"):
            await directory.groups_of("bob", 8)
        patch.setattr(directory, "changed", fail)
        store.leave(1, 7)
        await asyncio.sleep(1.0)
        patch.setattr(directory, "compare", fail)
        await asyncio.sleep(2 * COMPARE_INTERVAL)
    assert set(caplog.messages) >= {
        "asking for groups failed",
        "following changes of users and groups failed",
        "comparing users and groups failed",
    }
    await watcher.until(lambda: watcher.last.get("ann") == set(), within=LOST)
