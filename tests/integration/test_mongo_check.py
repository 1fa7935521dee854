"""What ``falcon-fast check`` says of MongoDB, and a server that has no change streams."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from functools import partial

import pytest
from bson import ObjectId

from falcon_fast.checks import Result, results
from falcon_fast.directory.mongo import MongoDirectory
from falcon_fast.directory.mongo_driver import Driver
from falcon_fast.settings import Settings

from ..support.gateway import SECRET
from ..support.mongo_server import DRIVERS, Gateway, MongoServer
from ..support.mongo_watcher import LEAVES_SOCKETS, Watcher, directory_in, holds
from ..support.redis_server import free_port

pytestmark = [pytest.mark.integration, *LEAVES_SOCKETS]

LOCAL = Settings(jwt_secret=SECRET, host="127.0.0.1", port=0, admin_port=0, max_connections=100)


def check(uri: str, database: str, driver: Driver) -> dict[str, Result]:
    """Try a MongoDB; whatever else is tried must be well."""
    settings = dataclasses.replace(LOCAL, mongodb_uri=uri, mongo_db=database, mongo_driver=driver)
    found = {result.what: result for result in results(settings)}
    about = ("users and groups", "changes", "indexes")
    assert [one.what for one in found.values() if not one.ok and one.what not in about] == []
    for result in found.values():
        assert "hunter2" not in result.explanation
        assert "127.0.0.1" not in result.explanation or result.what.endswith("port")
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """A server that is no member of a replica set."""
    with MongoServer(tmp_path_factory.mktemp("mongo") / "data", "--standalone") as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def sockets() -> Iterator[None]:
    """Let what PyMongo left be found here and not in the next module."""
    yield
    gc.collect()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    driver: Driver = request.param
    return driver


def test_nobody_answers(driver: Driver) -> None:
    uri = f"mongodb://root:hunter2@127.0.0.1:{free_port()}/"
    found = check(uri, "falcon", driver)
    assert found["users and groups"] == Result(
        False,
        "users and groups",
        "MongoDB cannot be reached at the addresses of MONGODB_URI",
    )
    assert "indexes" not in found


def test_passwords_roles_and_indexes(tmp_path_factory: pytest.TempPathFactory) -> None:
    with MongoServer(tmp_path_factory.mktemp("mongo") / "data") as server:
        with Gateway(server.uri, "falcon") as gateway:
            gateway.add_user("ann", 1)
            for driver in DRIVERS:
                found = check(server.uri, "falcon", driver)
                assert found["users and groups"].explanation == (
                    "database falcon answers: group_memberships 0, groups 0, user_profiles 1"
                )
                assert found["changes"].explanation.startswith("followed with a change stream")
                assert not found["indexes"].ok
                assert (
                    "db.user_profiles.createIndex({user_id: 1}); " in found["indexes"].explanation
                )
            gateway.make_indexes()
            admin = gateway.client["admin"]
            for user, database in (("reader", "falcon"), ("stranger", "another")):
                roles = [{"role": "read", "db": database}]
                admin.command("createUser", user, pwd="hunter2", roles=roles)
            server.stop()
            server.start("--auth")
            address = f"127.0.0.1:{server.port}/?authSource=admin"
            for driver in DRIVERS:
                found = check(f"mongodb://reader:hunter2@{address}", "falcon", driver)
                assert all(one.ok for one in found.values()), found
                wrong = check(f"mongodb://reader:not-hunter2@{address}", "falcon", driver)
                assert wrong["users and groups"] == Result(
                    False,
                    "users and groups",
                    "MongoDB refuses the user or password of MONGODB_URI",
                )
                other = check(f"mongodb://stranger:hunter2@{address}", "falcon", driver)
                assert other["users and groups"] == Result(
                    False,
                    "users and groups",
                    "the user of MONGODB_URI may not read the database 'falcon'",
                )


def is_polling(directory: MongoDirectory) -> bool:
    return directory._follower.mode == "polling"


def has(watcher: Watcher, *groups: ObjectId) -> bool:
    return watcher.last.get("ann") == {str(group) for group in groups}


def has_title(watcher: Watcher, group: ObjectId, title: str) -> bool:
    return watcher.titles.get(str(group)) == title


async def test_without_change_streams(alone: MongoServer) -> None:
    """Both drivers at once: it is the polling that takes its time."""
    with Gateway(alone.uri) as gateway:
        gateway.make_indexes()
        for driver in DRIVERS:
            found = await asyncio.to_thread(check, alone.uri, gateway.name, driver)
            assert found["changes"].ok
            assert found["changes"].explanation.startswith("this MongoDB has no change streams")
            assert "createIndex({updated_at: 1})" in found["indexes"].explanation
        first, second = gateway.add_group("First"), gateway.add_group("Second")
        gateway.add_user("ann", 1)
        gateway.add_member(first, 1)
        async with contextlib.AsyncExitStack() as stack:
            watchers = []
            for driver in DRIVERS:
                directory = await stack.enter_async_context(
                    directory_in(gateway.uri, gateway.name, driver)
                )
                watchers.append(Watcher(directory))
                directory.track("ann", 1)
                await directory.groups_of("ann", 1)
                await holds(partial(is_polling, directory))
            gateway.add_member(second, 1)
            for watcher in watchers:
                await watcher.until(partial(has, watcher, first, second))
            gateway.set(gateway.groups, {"_id": second}, name="Renamed")
            for watcher in watchers:
                await watcher.until(partial(has_title, watcher, second, "Renamed"))
            gateway.remove_member(first, 1)
            for watcher in watchers:
                await watcher.until(partial(has, watcher, second), within=10.0)
