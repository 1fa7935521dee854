"""Nodes that die, stand still, and are started again; and what the others make of it.

In everyday runs nodes take each other for dead after seconds instead of most of a minute. With
FALCON_LONG_FAULTS=1 they have the constants that they have in life. FALCON_KILLS says how often a
node dies at a random moment.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from ..support import KILLS, LONG_FAULTS
from ..support.client import Client, Closed, Message
from ..support.cluster import Cluster, Node
from ..support.ledger import Audit
from ..support.redis_server import RedisServer
from ..support.server import SERVE, eventually
from ..support.witness import Crowd, Witness, crowd_on

pytestmark = pytest.mark.integration

LIMIT = 3
"""Connections that a user may have, on all nodes together."""

HASTY = (
    "-c",
    """
import sys
import falcon_fast.cluster as cluster

cluster.BEAT, cluster.SILENT, cluster.GONE = 0.5, 1.5, 3.0
import falcon_fast.registrar as registrar

registrar.DEAD = 5.0
from falcon_fast.cli import main

sys.exit(main(["serve"]))
""",
)
"""A server whose patience with other nodes is a tenth of the usual."""

GONE_WITHIN = 90.0 if LONG_FAULTS else 10.0
"""Seconds after which nothing is left of a node that died: the contract's, or the hasty ones'."""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def mortals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("mortals")
    with RedisServer(folder / "redis") as redis:
        settings = {"FALCON_MAX_CONNECTIONS_PER_USER": str(LIMIT)}
        program = SERVE if LONG_FAULTS else HASTY
        with Cluster(folder, redis, 3, settings=settings, program=program) as cluster:
            yield cluster


@pytest.fixture
def cluster(mortals: Cluster) -> Iterator[Cluster]:
    mortals.mend()
    yield mortals
    mortals.mend()


def documents(cluster: Cluster, user: str) -> list[dict[str, object]]:
    """Return what the registry says of a user's connections."""
    redis = cluster.redis
    idents = sorted(ident.decode() for ident in redis.command("SMEMBERS", f"websocket:user:{user}"))
    found = [redis.command("GET", f"websocket:connection:{ident}") for ident in idents]
    return [json.loads(document) for document in found if document is not None]


def owners(cluster: Cluster, user: str) -> list[str]:
    """Return the nodes on which the registry says that a user is connected."""
    return sorted(str(document["node_id"]) for document in documents(cluster, user))


def is_on(cluster: Cluster, user: str, nodes: list[str]) -> bool:
    return owners(cluster, user) == nodes


def is_unknown(cluster: Cluster, user: str) -> bool:
    """Whether no connection is counted as the user's, with a document or without."""
    return bool(cluster.redis.command("EXISTS", f"websocket:user:{user}") == 0)


def is_refused(node: Node, user: str) -> bool:
    """Whether a user's next connection is closed for the limit; if not, it is closed by us."""
    client = Client(node.server.wire())
    client.open(token=node.server.token(user))
    code = None
    try:
        while client.hear().get("data", {}).get("action") != "joined":
            pass
    except Closed as closed:
        code = closed.code
    client.close()
    assert code in {None, 4409}
    return code == 4409


def presence(messages: list[Message], user: str) -> list[str]:
    """Return the statuses of a user that a client was told of."""
    return [
        message["data"]["status"]
        for message in messages
        if message["type"] == "presence" and message["data"].get("user_id") == user
    ]


def of_node(crowd: Crowd, name: str) -> list[Witness]:
    return [one for one in crowd.witnesses if one.name.startswith(f"{name}-")]


def is_disconnected(witnesses: list[Witness]) -> bool:
    return not any(one.is_connected for one in witnesses)


# --------------------------------------------------------------------------------- the limit


def test_r01_a_users_limit_holds_on_all_nodes_together(cluster: Cluster) -> None:
    user = f"r01-{next(_numbers)}"
    clients = [cluster[place % 3].connect(user) for place in range(LIMIT)]
    for node in cluster:
        assert is_refused(node, user)
    for client in clients:
        client.sync()
    clients[0].close()
    eventually(lambda: not is_refused(cluster[1], user), "there is room for another one")
    for client in clients[1:]:
        client.sync()
        client.close()


def test_r01_the_counter_is_exact_after_much_coming_and_going(cluster: Cluster) -> None:
    users = [f"churn-{number}" for number in range(12)]
    rounds = 10_000 if LONG_FAULTS else 300
    taken = itertools.count()
    failures: list[BaseException] = []

    def churn(node: Node) -> None:
        try:
            while (number := next(taken)) < rounds:
                client = Client(node.server.wire())
                client.open(token=node.server.token(users[number % len(users)]))
                if number % 3:
                    client.hear()
                if number % 5:
                    client.wire.send_reset()
                else:
                    client.close()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=churn, args=(node,)) for node in cluster for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for user in users:
        eventually(partial(is_unknown, cluster, user), f"nothing is counted of {user}", 20.0)
    clients = [node.connect(user) for user in users for node in cluster]
    assert all(is_refused(cluster[0], user) for user in users[:3])
    for user in users:
        everywhere = sorted(node.node_id for node in cluster)
        eventually(partial(is_on, cluster, user, everywhere), f"{user} is there three times")
    for client in clients:
        client.close()


# ----------------------------------------------------------------------------- sudden death


def test_x14_nothing_is_left_of_a_node_that_died(cluster: Cluster) -> None:
    number = next(_numbers)
    user, other = f"x14-{number}", f"x14-other-{number}"
    room = cluster.group(f"Mortals {number}", 1, 2, 3)
    victim = cluster[2]
    watchers = [cluster[place].connect(f"watcher-{number}-{place}", place + 1) for place in (0, 1)]
    for client in (*(victim.connect(user, 3) for _ in range(LIMIT - 1)), cluster[0].connect(user)):
        assert client.id
    lonely = victim.connect(other, 3)
    for watcher in watchers:
        answer = watcher.ask(
            type="system", data={"action": "subscribe_presence", "user_ids": [user, other]}
        )
        assert answer["type"] == "ack"
    assert is_refused(cluster[1], user)
    eventually(lambda: len(documents(cluster, user)) == LIMIT, "the registry has all")
    eventually(lambda: len(documents(cluster, other)) == 1, "and the other one")
    for watcher in watchers:
        watcher.sync()

    victim.kill()
    began = time.monotonic()
    died = victim.node_id
    eventually(lambda: died not in owners(cluster, user), "its connections", GONE_WITHIN)
    eventually(lambda: documents(cluster, other) == [], "its users", 5.0)
    print(f"\nnothing is left after {time.monotonic() - began:.1f} s")
    assert len(documents(cluster, user)) == 1
    assert cluster.redis.command("GET", f"websocket:connection:{lonely.id}") is None
    assert not is_refused(cluster[1], user)
    # Two watchers and one connection of the user are left.
    reply = cluster[0].admin.get(f"/websocket/rooms/{room}")
    assert (reply.json["room"]["member_count"], reply.json.get("partial")) == (3, None)
    page = cluster[1].admin.get(f"/websocket/connections?room_id={room}")
    assert (page.json["total"], page.json.get("partial")) == (3, None)
    stored = json.loads(cluster.redis.command("GET", f"websocket:room:{room}"))
    assert stored["member_count"] == 3
    # Both survivors saw it die; each watcher hears of it once, and of who is elsewhere not at all.
    time.sleep(6.0)
    for watcher in watchers:
        heard = watcher.sync()
        assert presence(heard, other) == ["offline"]
        assert presence(heard, user) == []
        resyncs = [m["room"] for m in heard if m.get("data", {}).get("action") == "resync"]
        assert resyncs == [room]
        watcher.close()


def test_p02_a_node_dies_at_any_moment(cluster: Cluster) -> None:
    """Its clients know it by their connections; the others have its messages, or are told."""
    rng = random.Random(2)
    total = Audit()
    for _ in range(KILLS):
        with crowd_on(cluster, interval=0.005) as crowd:
            time.sleep(rng.uniform(0.0, 0.5))
            victim = cluster[rng.randrange(3)]
            victim.kill()
            eventually(partial(is_disconnected, of_node(crowd, victim.name)), "its clients know")
            time.sleep(0.1)
            # What it echoed last and did not write to Redis is told when it is buried.
            found = crowd.verdict(unfinished_within=GONE_WITHIN)
            found.require(said=30, heard=100)
            assert found.counts["unfinished"] == 0
            total.counts.update(found.counts)
        victim.restart()
        cluster.wait_until_whole()
    print(f"\n{KILLS} deaths: {total}")
    assert total.counts["heard"] > 100 * KILLS


# ------------------------------------------------------------------------------- standing still


# After much longer, what waited for the sleeper's clients is more than their queues hold: they are
# closed as slow (4000) and come again, which is another test's subject.
@pytest.mark.parametrize("seconds", [5, 40] if LONG_FAULTS else [7])
def test_p04_a_node_stands_still_and_goes_on(cluster: Cluster, seconds: int) -> None:
    """It was buried meanwhile. It comes back as what it is, and nobody is there twice."""
    number = next(_numbers)
    user = f"p04-{number}"
    frozen = cluster[1]
    with crowd_on(cluster) as crowd:
        room = crowd.witnesses[0].rooms[0]
        with cluster[0].server.store() as store:
            for place in (1, 2):
                store.add_member(room.removeprefix("group:"), 9000 + 10 * number + place)
        watcher = cluster[0].connect(f"p04-watcher-{number}", 9000 + 10 * number + 1)
        sleeper = frozen.connect(user, 9000 + 10 * number + 2)
        answer = watcher.ask(
            type="system", data={"action": "subscribe_presence", "user_ids": [user]}
        )
        assert answer["type"] == "ack"
        eventually(lambda: len(documents(cluster, user)) == 1, "the registry has it")
        watcher.sync()

        frozen.freeze()
        heard: list[Message] = []
        thaws_at = time.monotonic() + seconds
        while (left := thaws_at - time.monotonic()) > 0:
            # Whoever does not answer pings for a minute is not there any more.
            heard += watcher.sync()
            time.sleep(min(left, 5.0))
        others = cluster[2].admin.get(f"/websocket/rooms/{room}")
        frozen.thaw()
        crowd.ledger.repair()
        # Whoever lives says so now: after a stand-still, silence counts from the sixth second on.
        sleeper.sync()

        assert others.status == 200
        eventually(
            lambda: all(
                node.readiness() == 200
                and node.admin.get(f"/websocket/rooms/{room}").json["room"]["member_count"] == 8
                for node in cluster
            ),
            "everybody knows of everybody",
            20.0,
        )
        eventually(lambda: owners(cluster, user) == [frozen.node_id], "the registry has it again")
        found = crowd.verdict()
        print(f"\nfrozen {seconds} s: {found}")
        found.require(said=100, heard=300)
        statuses = presence(heard + watcher.sync(), user)
        assert statuses in ([], ["offline", "online"]), statuses
        sleeper.sync()
        for client in (watcher, sleeper):
            client.close()


# ------------------------------------------------------------------------------------- restarts


def test_p08_nodes_are_restarted_one_after_the_other(cluster: Cluster) -> None:
    """Nobody who stays misses anything, and who is sent away is told to come back."""
    slowest = 0.0
    with crowd_on(cluster, interval=0.02) as crowd:
        rooms = crowd.witnesses[0].rooms
        for node in cluster:
            number = 90_000 + next(_numbers)
            with cluster[0].server.store() as store:
                for room in rooms:
                    store.add_member(room.removeprefix("group:"), number)
            node.restart()
            began = time.monotonic()
            client = node.connect(f"user-{number}", number)
            slowest = max(slowest, time.monotonic() - began)
            crowd.add(f"{node.name}-again", client, speaks=True)
        found = crowd.verdict()
        print(f"\nrolling restart: {found}, slowest reconnect {slowest:.2f} s")
        found.require(said=100, heard=300)
        assert found.counts["announced"] == found.counts["ended"] == 0, found
        assert slowest < 5.0
        for witness in crowd.witnesses[:6]:
            assert witness.closed is not None
            assert witness.closed[0] in {1001, 1012}
