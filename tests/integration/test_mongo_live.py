"""A running server on MongoDB: what clients see of removals and of outages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.client import Client, Message
from ..support.fault_proxy import FaultProxy
from ..support.mongo_server import Gateway, MongoServer
from ..support.server import ServerProcess, eventually, serving

pytestmark = [pytest.mark.integration]

NOTICED_WITHIN = 1.0
"""Seconds in which a change in the directory must take effect."""

SLACK = 1.0

HEALS_WITHIN = 25.0
"""Seconds after an outage: a client whose rooms are pending asks again after so long at most."""


@pytest.fixture(scope="module")
def mongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    with MongoServer(tmp_path_factory.mktemp("mongo") / "data") as mongo:
        yield mongo


@pytest.fixture
def proxy(mongo: MongoServer) -> Iterator[FaultProxy]:
    with FaultProxy(("127.0.0.1", mongo.port)) as proxy:
        yield proxy


@pytest.fixture
def gateway(mongo: MongoServer) -> Iterator[Gateway]:
    with Gateway(mongo.uri) as gateway:
        gateway.make_indexes()
        yield gateway


@pytest.fixture
def server(tmp_path: Path, proxy: FaultProxy, gateway: Gateway) -> Iterator[ServerProcess]:
    settings = {
        "MONGODB_URI": f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true",
        "FALCON_MONGO_DB": gateway.name,
    }
    with serving(tmp_path, settings) as server:
        yield server


def is_change(message: Message) -> bool:
    return bool(message["type"] == "group_membership_change")


def texts(client: Client) -> list[str]:
    return [one["data"]["text"] for one in client.sync() if one["type"] == "message"]


def test_rooms_follow_the_database_and_outlive_it(
    server: ServerProcess, gateway: Gateway, proxy: FaultProxy
) -> None:
    fleet = gateway.add_group("Fleet")
    room = f"group:{fleet}"
    for user, character in (("ann", 1), ("ann", 2), ("bob", 3), ("cid", 4)):
        gateway.add_user(user, character)
    for character in (2, 3, 4):
        gateway.add_member(fleet, character)
    ann, bob = server.connect("ann", 1), server.connect("bob", 3)
    assert ann.rooms == ["user:ann", room]

    # A removal takes effect, and is told once.
    gateway.remove_member(fleet, 3)
    told = bob.hear_until(is_change, within=NOTICED_WITHIN + SLACK)
    assert (told["data"]["group_id"], told["data"]["joined"]) == (str(fleet), False)
    ann.say(type="message", room=room, data={"text": "to the fleet"})
    assert texts(ann) == ["to the fleet"]
    assert texts(bob) == []
    gateway.add_member(fleet, 3)
    assert bob.hear_until(is_change, within=NOTICED_WITHIN + SLACK)["data"]["joined"] is True
    assert server.get("/readyz").status == 200

    # M01: the database is gone. Who is in a room stays, and who comes is told to wait.
    proxy.refuse()
    proxy.cut()
    eventually(lambda: server.get("/readyz").status == 503, "it says so", within=10.0)
    gateway.remove_member(fleet, 3)
    cid = Client(server.wire())
    cid.open(token=server.token("cid", 4))
    pending = cid.hear_until(lambda one: one["data"].get("action") == "rooms_pending", within=7.0)
    assert "rooms" not in pending["data"]
    bob.say(type="message", room=room, data={"text": "still here"})
    assert texts(bob) == ["still here"]
    assert texts(ann) == ["still here"]
    assert server.status()["status"] == "degraded"

    # It is back: what was missed is told, and who waited gets in.
    proxy.heal()
    began = time.monotonic()
    told = bob.hear_until(is_change, within=HEALS_WITHIN)
    assert told["data"]["joined"] is False
    joined = cid.hear_until(lambda one: one["data"].get("action") == "joined", within=HEALS_WITHIN)
    assert joined["data"]["rooms"] == ["user:cid", room]
    assert time.monotonic() - began < HEALS_WITHIN
    eventually(lambda: server.status()["status"] == "healthy", "all is well", within=10.0)

    # A ban ends the connection, and the next one is refused.
    gateway.set(gateway.profiles, {"user_id": "cid"}, banned=True)
    assert cid.closing()[0] == 4403
    for record in server.records():
        text = str(record)
        assert "mongodb://" not in text
        assert str(proxy.port) not in text
