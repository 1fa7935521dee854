"""The directory in MongoDB: one suite for both drivers, on a real server."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator

import pytest
from bson import ObjectId
from bson.int64 import Int64

from falcon_fast.directory import Group
from falcon_fast.directory.mongo import CACHE_TIME
from falcon_fast.directory.mongo_driver import Driver, MongoStore, Refused
from falcon_fast.directory.mongo_lookup import BATCH_USERS

from ..support.mongo_server import DRIVERS, Gateway, any_server, ids
from ..support.mongo_watcher import LEAVES_SOCKETS, Watcher, directory_in, holds

pytestmark = [pytest.mark.integration, *LEAVES_SOCKETS]

NOTICED_WITHIN = 1.0
"""Seconds in which the contract lets a change take effect."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with any_server(tmp_path_factory.mktemp("mongo") / "data") as uri:
        yield uri


@pytest.fixture
def gateway(uri: str) -> Iterator[Gateway]:
    with Gateway(uri) as gateway:
        yield gateway


@pytest.fixture(scope="module", autouse=True)
def sockets() -> Iterator[None]:
    """Let what PyMongo left be found here and not in the next module."""
    yield
    gc.collect()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    driver: Driver = request.param
    return driver


# --- questions -----------------------------------------------------------------------------------


async def test_groups_of_all_characters_in_one_question(gateway: Gateway, driver: Driver) -> None:
    first, second, foreign = (gateway.add_group(name) for name in ("First", "Second", "Foreign"))
    gateway.add_user("ann", 1)
    gateway.add_user("ann", 2)
    gateway.add_user("bob", 3)
    for group, character in ((first, 1), (first, 2), (second, 2), (foreign, 3), (foreign, 4)):
        gateway.add_member(group, character)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        await directory.ping()
        assert directory.is_available
        assert await directory.groups_of("ann", 1) == {
            Group(str(first), "First", "custom"),
            Group(str(second), "Second", "custom"),
        }
        assert directory._lookups.queries == 1
        # A token may vouch for a character that no profile has, but for nobody else's.
        assert {group.name for group in await directory.groups_of("eve", 4)} == {"Foreign"}
        assert await directory.groups_of("eve", 3) == frozenset()
        assert await directory.groups_of("nobody", 99) == frozenset()
        assert await directory.user_of(2) == "ann"
        assert await directory.user_of(4) is None
        assert await directory.user_of(2**63) is None
        assert await directory.is_super_admin("ann", 1) is False


async def test_super_admin_through_any_character(gateway: Gateway, driver: Driver) -> None:
    admins = gateway.add_group("Super Administrator", type="system", system_name="super_admin")
    retired = gateway.add_group("Old", system_name="super_admin", is_active=False)
    gateway.add_user("ann", 1)
    gateway.add_user("ann", 2)
    gateway.add_user("bob", 3)
    gateway.add_user("cid", 4, valid=False)
    gateway.add_member(admins, 2)
    gateway.add_member(retired, 3)
    gateway.add_member(admins, 4)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        assert await directory.is_super_admin("ann", 1) is True
        assert await directory.is_super_admin("bob", 3) is False
        assert await directory.is_super_admin("cid", 4) is False


async def test_ids_of_32_and_64_bits(gateway: Gateway, driver: Driver) -> None:
    group = gateway.add_group()
    numbers = [0, 7, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1]
    for number in numbers:
        gateway.add_user(f"user-{number}", Int64(number))
        gateway.add_member(group, number)
    # As a shell writes it.
    gateway.profiles.insert_one({"user_id": "shell", "character_id": 8.0})
    gateway.memberships.insert_one({"group_id": group, "character_id": 8.0, "is_active": True})
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        for number in numbers:
            found = await directory.groups_of(f"user-{number}", number)
            assert {one.id for one in found} == {str(group)}
            assert await directory.user_of(number) == f"user-{number}"
        assert len(await directory.groups_of("shell", 8)) == 1


async def test_only_what_is_active_and_valid_counts(gateway: Gateway, driver: Driver) -> None:
    active, idle = gateway.add_group("Active"), gateway.add_group("Idle", is_active=False)
    for user, character, is_valid in (("ann", 1, True), ("bob", 2, False), ("cid", 3, True)):
        gateway.add_user(user, character, valid=is_valid)
        gateway.add_member(idle, character)
    gateway.add_member(active, 1)
    gateway.add_member(active, 2)
    gateway.add_member(active, 3, is_active=False)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        found = {
            user: {group.name for group in await directory.groups_of(user, character)}
            for user, character in (("ann", 1), ("bob", 2), ("cid", 3), ("eve", 2))
        }
    assert found == {"ann": {"Active"}, "bob": set(), "cid": set(), "eve": set()}


NAMES = (
    *("Ünï", "日本語", "👩‍🚀", "a\0b", "a\nb", "\x1b[2J", "\u2028", "$where", "a.b"),
    *("'\"`;--", " " * 300, "\u202e", "\ufffe"),
)


async def test_names_with_every_kind_of_character(gateway: Gateway, driver: Driver) -> None:
    for number, name in enumerate(NAMES):
        gateway.add_user("ann", number, name)
        gateway.add_member(gateway.add_group(name), number)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        watcher = Watcher(directory)
        for number in range(len(NAMES)):
            directory.track("ann", number)
        assert {group.name for group in await directory.groups_of("ann", 1)} == set(NAMES)
        assert watcher.names == {("ann", number): name for number, name in enumerate(NAMES)}


async def test_m04_what_does_not_fit_together_counts_for_nothing(
    gateway: Gateway, driver: Driver
) -> None:
    good, nameless = gateway.add_group("Good"), gateway.add_group()
    gateway.groups.update_one({"_id": nameless}, {"$unset": {"name": 1, "type": 1}})
    odd: list[object] = [ObjectId(), str(good), "x", 7, None, {"a": 1}, [good, nameless]]
    gateway.groups.insert_one({"_id": "not an id", "name": "Odd", "is_active": True})
    gateway.groups.insert_one({"name": "Says nothing of being active"})
    gateway.groups.insert_one({"_id": 5, "name": 5, "type": [], "is_active": "yes"})
    gateway.add_user("ann", 1)
    gateway.add_user("ann", 1)
    for group in (good, good, nameless, *odd, "not an id", 5):
        gateway.add_member(group, 1)
    gateway.memberships.insert_one({"character_id": 1})
    gateway.memberships.insert_one({"character_id": "1", "group_id": good, "is_active": True})
    gateway.profiles.insert_one({"character_id": 1, "user_id": 7})
    gateway.profiles.insert_one({"user_id": "ann"})
    gateway.profiles.insert_one({"user_id": "ann", "character_id": "1", "banned": "yes"})
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        groups = await directory.groups_of("ann", 1)
        assert not directory.is_banned("ann")
    assert {(group.id, group.name, group.type) for group in groups} >= {
        (str(good), "Good", "custom"),
        (str(nameless), "", "custom"),
    }
    assert {group.id for group in groups} <= ids([good, nameless])


async def test_a_user_id_is_never_an_operator(gateway: Gateway, driver: Driver) -> None:
    gateway.add_user("ann", 1)
    gateway.add_member(gateway.add_group(), 1)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        for user in ("$ne", "$gt", "{}", "ann\0", "*", ".*"):
            assert await directory.groups_of(user, 99) == frozenset()


async def test_many_users_share_few_questions(gateway: Gateway, driver: Driver) -> None:
    group = gateway.add_group()
    users = 40
    for number in range(users):
        gateway.add_user(f"user-{number}", number)
        gateway.add_member(group, number)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        answers = await asyncio.gather(
            *(directory.groups_of(f"user-{number}", number) for number in range(users)),
            *(directory.groups_of(f"nobody-{number}", 10_000 + number) for number in range(20)),
        )
        assert [len(answer) for answer in answers] == [1] * users + [0] * 20
        assert directory._lookups.queries == -(-(users + 20) // BATCH_USERS)


async def test_an_answer_is_given_again_for_a_moment(gateway: Gateway, driver: Driver) -> None:
    group = gateway.add_group()
    gateway.add_user("ann", 1)
    gateway.add_member(group, 1)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        for _ in range(5):
            assert len(await directory.groups_of("ann", 1)) == 1
        assert directory._lookups.queries == 1
        # Untracked: the change is noticed for the cache all the same.
        gateway.remove_member(group, 1)
        async with asyncio.timeout(CACHE_TIME / 2):
            left = await directory.groups_of("ann", 1)
            while left:
                await asyncio.sleep(0.01)
                left = await directory.groups_of("ann", 1)


# --- changes -------------------------------------------------------------------------------------


async def test_every_kind_of_change_reaches_the_user(gateway: Gateway, driver: Driver) -> None:
    fleet, corps = gateway.add_group("Fleet"), gateway.add_group("Corps")
    gateway.add_user("ann", 1)
    gateway.add_user("ann", 2)
    gateway.add_user("bob", 3)
    gateway.add_member(fleet, 1)
    gateway.add_member(corps, 3)
    groups, members, profiles = gateway.groups, gateway.memberships, gateway.profiles
    steps: list[tuple[str, Callable[[], object], set[str]]] = [
        ("added", lambda: gateway.add_member(corps, 2), ids([fleet, corps])),
        ("removed", lambda: gateway.remove_member(fleet, 1), ids([corps])),
        (
            "membership paused",
            lambda: gateway.set(members, {"character_id": 2}, is_active=False),
            set(),
        ),
        (
            "membership resumed",
            lambda: gateway.set(members, {"character_id": 2}, is_active=True),
            ids([corps]),
        ),
        (
            "group deactivated",
            lambda: gateway.set(groups, {"_id": corps}, is_active=False),
            set(),
        ),
        (
            "group activated",
            lambda: gateway.set(groups, {"_id": corps}, is_active=True),
            ids([corps]),
        ),
        ("invalid", lambda: gateway.set(profiles, {"character_id": 2}, valid=False), set()),
        ("valid", lambda: gateway.set(profiles, {"character_id": 2}, valid=True), ids([corps])),
        ("sold", lambda: gateway.set(profiles, {"character_id": 2}, user_id="bob"), set()),
        (
            "bought",
            lambda: gateway.set(profiles, {"character_id": 2}, user_id="ann"),
            ids([corps]),
        ),
        ("profile gone", lambda: profiles.delete_one({"character_id": 2}), set()),
        ("profile back", lambda: gateway.add_user("ann", 2), ids([corps])),
        ("group deleted", lambda: groups.delete_one({"_id": corps}), set()),
    ]
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        watcher = Watcher(directory)
        directory.track("ann", 1)
        assert {group.id for group in await directory.groups_of("ann", 1)} == {str(fleet)}
        for what, change, expected in steps:
            change()
            try:
                await watcher.until(
                    lambda expected=expected: watcher.last.get("ann") == expected,  # type: ignore[misc]
                    within=NOTICED_WITHIN,
                )
            except TimeoutError:
                pytest.fail(f"{what}: expected {expected}, told {watcher.changes}")
        assert {user for user, _groups in watcher.changes} == {"ann"}


async def test_a_renamed_group_and_character_are_told(gateway: Gateway, driver: Driver) -> None:
    group = gateway.add_group("Fleet")
    gateway.add_user("ann", 1, "Ann")
    gateway.add_member(group, 1)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        watcher = Watcher(directory)
        directory.track("ann", 1)
        await directory.groups_of("ann", 1)
        gateway.set(gateway.groups, {"_id": group}, name="Armada")
        gateway.set(gateway.profiles, {"character_id": 1}, character_name="Ann II")
        await watcher.until(
            lambda: (
                watcher.titles.get(str(group)) == "Armada"
                and watcher.names == {("ann", 1): "Ann II"}
            ),
            within=NOTICED_WITHIN,
        )


async def test_bans_are_told_and_lifted(gateway: Gateway, driver: Driver) -> None:
    gateway.add_user("ann", 1)
    gateway.add_user("bob", 2, banned=True)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        watcher = Watcher(directory)
        assert directory.is_banned("bob")
        assert not directory.is_banned("ann")
        directory.track("ann", 1)
        await directory.groups_of("ann", 1)
        gateway.set(gateway.profiles, {"user_id": "ann"}, banned=True)
        await watcher.until(lambda: watcher.bans == ["ann"], within=NOTICED_WITHIN)
        assert directory.is_banned("ann")
        gateway.set(gateway.profiles, {"user_id": "ann"}, banned=False)
        gateway.profiles.delete_one({"user_id": "bob"})
        await holds(
            lambda: not (directory.is_banned("ann") or directory.is_banned("bob")),
            within=2 * NOTICED_WITHIN,
        )
        assert watcher.bans == ["ann"]


async def test_a_dropped_collection_empties_the_rooms_it_filled(
    gateway: Gateway, driver: Driver
) -> None:
    """That is no outage: the database answers, and says that there are no memberships."""
    group = gateway.add_group()
    gateway.add_user("ann", 1)
    gateway.add_member(group, 1)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        watcher = Watcher(directory)
        directory.track("ann", 1)
        await directory.groups_of("ann", 1)
        gateway.memberships.drop()
        await watcher.until(lambda: watcher.last.get("ann") == set())
        gateway.add_member(group, 1)
        await watcher.until(lambda: watcher.last.get("ann") == {str(group)})


async def test_a_storm_of_changes_ends_with_the_right_set(gateway: Gateway, driver: Driver) -> None:
    groups = [gateway.add_group(f"Group {number}") for number in range(5)]
    gateway.add_user("ann", 1)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        watcher = Watcher(directory)
        directory.track("ann", 1)
        question = asyncio.create_task(directory.groups_of("ann", 1))
        for _ in range(4):
            for group in groups:
                await asyncio.to_thread(gateway.add_member, group, 1)
            for group in groups[1:]:
                await asyncio.to_thread(gateway.remove_member, group, 1)
            await asyncio.to_thread(gateway.remove_member, groups[0], 1)
        await asyncio.to_thread(gateway.add_member, groups[2], 1)
        await question
        await watcher.until(lambda: watcher.last.get("ann") == {str(groups[2])})
        await asyncio.sleep(0.3)
        assert watcher.last["ann"] == {str(groups[2])}


async def test_refresh_looks_at_once_and_tells_what_it_sees(
    gateway: Gateway, driver: Driver
) -> None:
    group = gateway.add_group()
    gateway.add_user("ann", 1)
    gateway.add_member(group, 1)
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        watcher = Watcher(directory)
        directory.track("ann", 1)
        await directory.groups_of("ann", 1)
        await directory.refresh(["ann", "nobody"])
        assert watcher.changes == [("ann", {str(group)})]
        gateway.remove_member(group, 1)
        await directory.refresh(["ann"])
        assert watcher.last == {"ann": set()}


async def test_nothing_is_written(gateway: Gateway, driver: Driver) -> None:
    gateway.add_user("ann", 1)
    before = sorted(gateway.database.list_collection_names())
    async with directory_in(gateway.uri, gateway.name, driver) as directory:
        directory.track("ann", 1)
        await directory.groups_of("ann", 1)
        await directory.user_of(1)
        await directory.compare()
    assert sorted(gateway.database.list_collection_names()) == before
    assert gateway.profiles.count_documents({}) == 1


async def test_indexes_that_are_missing_are_named(
    gateway: Gateway, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.add_user("ann", 1)
    async with directory_in(gateway.uri, gateway.name, driver):
        pass
    named = [record.__dict__["create"] for record in caplog.records if "create" in record.__dict__]
    assert named == [
        "db.user_profiles.createIndex({user_id: 1})",
        "db.user_profiles.createIndex({character_id: 1}, {unique: true})",
        "db.user_profiles.createIndex({banned: 1}, {partialFilterExpression: {banned: true}})",
        "db.group_memberships.createIndex({character_id: 1, group_id: 1}, {unique: true})",
    ]
    caplog.clear()
    gateway.make_indexes()
    async with directory_in(gateway.uri, gateway.name, driver):
        pass
    assert [record for record in caplog.records if "create" in record.__dict__] == []


@pytest.mark.parametrize("uri", ["mongodb://a:b:c@h/", "mongodb://h:99999/", "mongodb://u:p%ZZ@h/"])
async def test_an_address_that_is_none_is_refused_without_being_told(
    uri: str, driver: Driver
) -> None:
    store = MongoStore(uri, "falcon", driver=driver)
    with pytest.raises(Refused, match=r"^MONGODB_URI cannot be used \("):
        await store.open()
    await store.close()
