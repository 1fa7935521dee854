"""Failures no real MongoDB can be asked for: the real drivers on a scripted server."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import bson
import pytest
from bson import ObjectId

from falcon_fast.directory import Group
from falcon_fast.directory.mongo import MongoDirectory
from falcon_fast.directory.mongo_check import examine
from falcon_fast.directory.mongo_driver import Driver, MongoStore, Refused
from falcon_fast.directory.mongo_lookup import MAX_IN_FLIGHT
from falcon_fast.errors import DirectoryUnavailable

from ..support.mongo_server import DRIVERS
from ..support.mongo_watcher import LEAVES_SOCKETS, SOON, Watcher, directory_in, directory_on, holds
from ..support.mongo_wire import (
    Cut,
    Error,
    Fault,
    Json,
    Late,
    Raw,
    Reply,
    WireServer,
    group,
    row,
    wire_server,
)

pytestmark = [pytest.mark.integration, *LEAVES_SOCKETS]

TIMEOUT = 0.4
"""Seconds for one question in these tests."""

PATIENT = 3.0
"""Seconds for one question where the driver is to find the server again, for which it takes half a
second at least (minHeartbeatFrequencyMS of the specification)."""

FLEET = group(1)
FLEET_ID = str(FLEET["_id"])
NOT_ASKED = "not asked, since MongoDB does not answer"
NOT_PRIMARY = Error(10107, "NotWritablePrimary")
STEPPED_DOWN = Error(91, "ShutdownInProgress")


@pytest.fixture(scope="module", autouse=True)
def sockets() -> Iterator[None]:
    """Let what PyMongo left be found here and not in the next module."""
    yield
    gc.collect()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    driver: Driver = request.param
    return driver


@pytest.fixture
async def wire() -> AsyncIterator[WireServer]:
    async with wire_server() as wire:
        wire.rows = [*row("ann", 1, FLEET), *row("bob", 2, FLEET)]
        yield wire


@pytest.fixture
async def directory(wire: WireServer, driver: Driver) -> AsyncIterator[MongoDirectory]:
    async with directory_in(wire.uri, "falcon", driver, timeout=TIMEOUT) as directory:
        yield directory


async def following(directory: MongoDirectory, wire: WireServer) -> Watcher:
    """Let the directory follow Ann, as after her admission."""
    watcher = Watcher(directory)
    directory.track("ann", 1)
    assert {one.id for one in await directory.groups_of("ann", 1)} == {FLEET_ID}
    await holds(lambda: bool(wire.commands["getMore"]))
    return watcher


# --- answers that are none -----------------------------------------------------------------------


def document(**changes: object) -> bytes:
    return bson.encode({"ok": 1.0, "cursor": {"id": 0, "ns": "a.b", "firstBatch": []}, **changes})


GOOD = document()
BROKEN: dict[str, Raw] = {
    "truncated": Raw(GOOD[:-7]),
    "too long by its own word": Raw(struct.pack("<i", len(GOOD) + 50) + GOOD[4:]),
    "too short by its own word": Raw(struct.pack("<i", 11) + GOOD[4:]),
    "negative length": Raw(struct.pack("<i", -1) + GOOD[4:]),
    "unknown type": Raw(GOOD.replace(b"\x03cursor", b"\x99cursor")),
    "noise": Raw(bytes(range(256))),
    "empty": Raw(b""),
    "cursor of another type": Raw(document(cursor=5)),
    "rows of another type": Raw(document(cursor={"id": 0, "ns": "a.b", "firstBatch": 7})),
}


async def test_m03_a_broken_answer_is_an_error_and_no_empty_set(
    wire: WireServer, directory: MongoDirectory
) -> None:
    watcher = await following(directory, wire)
    for what, fault in BROKEN.items():
        directory._breaker.succeeded()
        wire.always("groups", fault)
        with pytest.raises(DirectoryUnavailable) as caught:
            await directory.groups_of(f"bob of {what}", 2)
        assert_tells_nothing(str(caught.value), wire)
    wire.forgive()
    await holds_groups(directory, "bob", 2)
    assert watcher.last.get("ann", {FLEET_ID}) == {FLEET_ID}


async def holds_groups(directory: MongoDirectory, user_id: str, character_id: int) -> None:
    """Ask until there is an answer, as the gateway does."""
    async with asyncio.timeout(SOON):
        while True:
            try:
                found = await directory.groups_of(user_id, character_id)
            except DirectoryUnavailable:
                await asyncio.sleep(0.05)
            else:
                assert {one.id for one in found} == {FLEET_ID}
                return


def assert_tells_nothing(text: str, wire: WireServer) -> None:
    """No address, no server's own words, no query."""
    for secret in ("127.0.0.1", str(wire.port), "internal", "aggregate", "mongodb://"):
        assert secret not in text


async def test_m03_a_name_that_is_no_utf8(wire: WireServer, directory: MongoDirectory) -> None:
    octets = bson.encode(
        {
            "ok": 1.0,
            "cursor": {
                "id": 0,
                "ns": "falcon.user_profiles",
                "firstBatch": row("ann", 1, group(1, "NAME")),
            },
        }
    )
    wire.fail("groups", Raw(octets.replace(b"NAME", b"\xff\xfe\xc3\x28")))
    (found,) = await directory.groups_of("ann", 1)
    assert found == Group(FLEET_ID, "\ufffd\ufffd\ufffd(", "custom")


TEXTS: list[tuple[Fault, str]] = [
    # The driver asks again as long as there is time.
    (NOT_PRIMARY, "MongoDB (has no primary at the moment|did not answer in time)"),
    (STEPPED_DOWN, "MongoDB (has no primary at the moment|did not answer in time)"),
    (Cut(), "MongoDB (cannot be reached at the addresses.*|did not answer in time)"),
    (Cut(60), "MongoDB (cannot be reached at the addresses.*|did not answer in time)"),
    (Error(50, "MaxTimeMSExpired"), "MongoDB did not answer in time"),
    (Error(13, "Unauthorized"), "the user of MONGODB_URI may not read the database 'falcon'"),
    (Error(18, "AuthenticationFailed"), "MongoDB refuses the user or password of MONGODB_URI"),
    (Error(10334, "BSONObjectTooLarge"), "MongoDB's answer cannot be read"),
    (Error(2, "BadValue"), r"MongoDB refuses the question \(error 2\)"),
    (Late(60.0), "MongoDB did not answer in time"),
    (Late(60.0, heeds_limit=False), "MongoDB did not answer in time"),
]


async def test_m03_each_failure_has_one_text(wire: WireServer, directory: MongoDirectory) -> None:
    for number, (fault, text) in enumerate(TEXTS):
        directory._breaker.succeeded()
        wire.always("groups", fault)
        with pytest.raises(DirectoryUnavailable) as caught:
            await directory.groups_of(f"bob-{number}", 2)
        assert re.fullmatch(text, str(caught.value)), (fault, str(caught.value))


async def test_m03_a_primary_gone_in_the_middle_of_a_reply_is_asked_again(
    wire: WireServer, driver: Driver
) -> None:
    async with directory_in(wire.uri, "falcon", driver, timeout=PATIENT) as directory:
        wire.fail("groups", Cut(40))
        found = await directory.groups_of("ann", 1)
    assert {one.id for one in found} == {FLEET_ID}
    assert wire.commands["groups"] == 2


async def test_m03_a_killed_cursor_and_one_that_never_ends(
    wire: WireServer, directory: MongoDirectory
) -> None:
    rows = row("ann", 1, FLEET)
    cursor = {"id": bson.Int64(99), "ns": "falcon.user_profiles", "firstBatch": rows}
    endless = Reply({"ok": 1.0, "cursor": cursor})
    wire.fail("groups", endless)
    wire.fail("getMore", Error(43, "CursorNotFound"), Error(43, "CursorNotFound"))
    wire.always("groups", endless)
    with pytest.raises(DirectoryUnavailable):
        await directory.groups_of("ann", 1)
    wire.always("groups", None)
    await holds_groups(directory, "ann", 1)


async def test_m03_a_user_who_cannot_be_read_keeps_nobody_waiting(
    wire: WireServer,
    directory: MongoDirectory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = wire._reply

    async def reply(name: str, command: Mapping[str, Any], fault: Fault | None) -> Json:
        if name == "groups" and "'user-5'" in str(command["pipeline"][0]):
            fault = Error(10334, "BSONObjectTooLarge")
        return await usual(name, command, fault)

    monkeypatch.setattr(wire, "_reply", reply)
    wire.answer = lambda users, _: [
        one for user in users for one in row(user, int(user.rpartition("-")[2]), FLEET)
    ]
    questions = [directory.groups_of(f"user-{number}", number) for number in range(16)]
    answers = await asyncio.gather(*questions, return_exceptions=True)
    failed = [number for number, one in enumerate(answers) if isinstance(one, Exception)]
    assert failed == [5]
    assert str(answers[5]) == "MongoDB's answer cannot be read"
    assert directory.is_available
    lines = [one for one in caplog.records if one.message == "the groups of a user cannot be read"]
    assert [one.__dict__["user_id"] for one in lines] == ["user-5"]


# --- outages -------------------------------------------------------------------------------------


async def test_m02_m06_a_slow_server_gets_few_questions_and_nobody_waits_for_ever(
    wire: WireServer, directory: MongoDirectory
) -> None:
    wire.always("groups", Late(60.0))
    async with asyncio.timeout(SOON):
        answers = await asyncio.gather(
            *(directory.groups_of(f"user-{number}", number) for number in range(3000)),
            return_exceptions=True,
        )
    assert all(isinstance(answer, DirectoryUnavailable) for answer in answers)
    assert wire.most_at_once <= MAX_IN_FLIGHT
    assert not directory.is_available
    # From here on nobody waits at all.
    before = wire.commands["groups"]
    with pytest.raises(DirectoryUnavailable, match=NOT_ASKED):
        await directory.groups_of("ann", 1)
    with pytest.raises(DirectoryUnavailable, match=NOT_ASKED):
        await directory.user_of(1)
    assert wire.commands["groups"] == before
    wire.always("groups", None)
    wire.hang_up()
    await holds_groups(directory, "ann", 1)
    await holds(lambda: directory.is_available)


async def test_m01_an_outage_empties_nothing_and_what_was_missed_is_told(
    wire: WireServer, directory: MongoDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="falcon_fast")
    watcher = await following(directory, wire)
    for command in ("groups", "stream", "getMore", "find", "ping"):
        wire.always(command, Cut())
    wire.hang_up()
    await holds(lambda: not directory.is_available)
    with pytest.raises(DirectoryUnavailable):
        await directory.refresh(["ann"])
    with pytest.raises(DirectoryUnavailable):
        await directory.ping()
    assert watcher.changes == []
    wire.rows = row("ann", 1)
    for command in ("groups", "stream", "getMore", "find", "ping"):
        wire.always(command, None)
    await watcher.until(lambda: watcher.last == {"ann": set()})
    await holds(lambda: directory.is_available)
    outage = [
        one.levelname
        for one in caplog.records
        if "available" in one.message and "users and groups" in one.message
    ]
    assert outage == ["WARNING", "INFO"]
    for record in caplog.records:
        assert_tells_nothing(record.getMessage(), wire)


async def test_a_flapping_server_empties_nothing(
    wire: WireServer, directory: MongoDirectory
) -> None:
    watcher = await following(directory, wire)
    for _ in range(4):
        wire.fail("groups", NOT_PRIMARY, Cut(20), Raw(b"\1"))
        wire.fail("getMore", Cut(), NOT_PRIMARY)
        wire.happen("update", "group_memberships", f"1 in {FLEET_ID}", character_id=1)
        wire.hang_up()
        await asyncio.sleep(0.1)
    assert all(groups == {FLEET_ID} for _user, groups in watcher.changes)
    wire.forgive()
    wire.rows = row("ann", 1)
    wire.happen("update", "groups", FLEET["_id"])
    await watcher.until(lambda: watcher.last == {"ann": set()}, within=2 * SOON)


async def test_a_start_without_a_server_says_what_to_mend(driver: Driver) -> None:
    async with wire_server() as wire:
        pass
    store = MongoStore(wire.uri, "falcon", driver=driver, timeout=0.2)
    with pytest.raises(DirectoryUnavailable) as caught:
        async with directory_on(store):
            raise AssertionError("it runs")
    assert str(caught.value) == "MongoDB cannot be reached at the addresses of MONGODB_URI"


async def test_a_start_waits_for_a_server_that_is_late(driver: Driver) -> None:
    async with wire_server() as wire:
        wire.fail("ping", Cut(), Cut(), NOT_PRIMARY, NOT_PRIMARY)
        store = MongoStore(wire.uri, "falcon", driver=driver, timeout=PATIENT)
        async with directory_on(store, start_timeout=10.0) as directory:
            assert directory.is_available


async def test_a_start_with_a_wrong_password_does_not_wait(driver: Driver) -> None:
    async with wire_server() as wire:
        wire.always("find", Error(18, "AuthenticationFailed"))
        store = MongoStore(wire.uri, "falcon", driver=driver, timeout=0.5)
        async with asyncio.timeout(SOON):
            with pytest.raises(Refused):
                async with directory_on(store, start_timeout=60.0):
                    raise AssertionError("it runs")


async def test_start_does_not_need_the_list_of_indexes(wire: WireServer, driver: Driver) -> None:
    wire.always("listIndexes", Error(13, "Unauthorized"))
    async with directory_in(wire.uri, "falcon", driver, timeout=TIMEOUT) as directory:
        assert directory.is_available


async def test_m06_a_pool_without_a_free_connection_is_an_error_in_time(
    wire: WireServer, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("falcon_fast.directory.mongo_driver.MAX_POOL", 1)
    store = MongoStore(wire.uri, "falcon", driver=driver, timeout=TIMEOUT)
    await store.open()
    wire.always("groups", Late(60.0, heeds_limit=False))
    async with asyncio.timeout(SOON):
        answers = await asyncio.gather(
            *(store.groups_of({f"user-{number}"}, ()) for number in range(4)),
            return_exceptions=True,
        )
    await store.close()
    texts = {str(answer) for answer in answers}
    assert all(isinstance(answer, DirectoryUnavailable) for answer in answers)
    assert texts <= {
        "MongoDB did not answer in time",
        "all connections to MongoDB are in use",
        "MongoDB cannot be reached at the addresses of MONGODB_URI",
    }


async def test_a_store_that_is_not_open_says_so(wire: WireServer, driver: Driver) -> None:
    store = MongoStore(wire.uri, "falcon", driver=driver)
    with pytest.raises(DirectoryUnavailable, match="the directory is not open"):
        await store.ping()
    await store.close()


async def test_check_does_not_need_the_list_of_indexes(wire: WireServer, driver: Driver) -> None:
    wire.always("listIndexes", Error(13, "Unauthorized"))
    found = await examine(MongoStore(wire.uri, "falcon", driver=driver))
    assert found.has_streams
    assert found.missing is None


# --- the change stream ---------------------------------------------------------------------------


async def test_a_stream_that_breaks_goes_on_where_it_stopped(
    wire: WireServer, directory: MongoDirectory
) -> None:
    watcher = await following(directory, wire)
    wire.happen("update", "groups", ObjectId())
    await holds(lambda: wire._last == 1)
    await asyncio.sleep(0.05)
    wire.fail("getMore", Error(6, "HostUnreachable"))
    wire.hang_up()
    await holds(lambda: len(wire.resumed) > 1)
    assert wire.resumed[0] is None
    assert wire.resumed[-1] == {"_data": "1"}
    wire.rows = row("ann", 1)
    wire.happen("delete", "groups", FLEET["_id"])
    await watcher.until(lambda: watcher.last == {"ann": set()})


@pytest.mark.parametrize("code", [286, 260])
async def test_a_lost_resume_token_begins_anew_and_compares(
    wire: WireServer, directory: MongoDirectory, code: int
) -> None:
    watcher = await following(directory, wire)
    await holds(lambda: wire.commands["find"] > 1)  # the first compare is over
    wire.rows = row("ann", 1)
    assert watcher.changes == []
    # The driver resumes by itself first, which fails likewise.
    wire.fail("stream", Error(code, "Lost"))
    wire.fail("getMore", Error(code, "Lost"))
    wire.hang_up()
    await watcher.until(lambda: watcher.last == {"ann": set()})
    assert wire.resumed[-1] is None
    await holds(lambda: directory.is_available)


async def test_a_stream_that_ends_begins_anew(wire: WireServer, directory: MongoDirectory) -> None:
    watcher = await following(directory, wire)
    wire.rows = row("ann", 1)
    ended = {"id": bson.Int64(0), "ns": "falcon.$cmd.aggregate", "nextBatch": []}
    wire.fail("getMore", Reply({"ok": 1.0, "cursor": ended}))
    await watcher.until(lambda: watcher.last == {"ann": set()})
    await holds(lambda: len(wire.resumed) > 1)
    assert wire.resumed[-1] is None


async def test_an_invalidated_stream_begins_anew(
    wire: WireServer, directory: MongoDirectory
) -> None:
    watcher = await following(directory, wire)
    wire.rows = row("ann", 1)
    wire.happen("invalidate", "groups", None)
    await watcher.until(lambda: watcher.last == {"ann": set()})
    await holds(lambda: len(wire.resumed) > 1)
    assert wire.resumed[-1] is None


async def test_events_of_other_collections_and_odd_ones_do_no_harm(
    wire: WireServer, directory: MongoDirectory
) -> None:
    watcher = await following(directory, wire)
    before = wire.commands["groups"]
    wire.happen("insert", "fleets", 1, character_id=1)
    wire.happen("update", "user_profiles", {"odd": []}, user_id=["ann"], character_id="1")
    wire.happen("delete", "group_memberships", None)
    await holds(lambda: wire._last == 3)
    await asyncio.sleep(0.2)
    assert wire.commands["groups"] <= before + 1
    assert watcher.changes == []
    assert directory.is_available


async def test_without_streams_it_polls(wire: WireServer, driver: Driver) -> None:
    wire.has_streams = False
    async with directory_in(wire.uri, "falcon", driver, timeout=TIMEOUT) as directory:
        watcher = Watcher(directory)
        directory.track("ann", 1)
        await directory.groups_of("ann", 1)
        await holds(lambda: wire.commands["count"] >= 3)
        assert directory._follower.mode == "polling"
        assert directory.is_available
        wire.rows = row("ann", 1)
        await directory.refresh(["ann"])
        assert watcher.last == {"ann": set()}
