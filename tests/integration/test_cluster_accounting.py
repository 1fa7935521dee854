"""The accounts of a cluster under faults: nothing twice, nothing out of order, nothing in silence.

Outages as long as operators see them, marked `slow`, run with FALCON_LONG_FAULTS=1.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator

import pytest

from ..support.cluster import Cluster
from ..support.fault_proxy import Side
from ..support.original_node import CHANNELS
from ..support.server import eventually
from ..support.witness import Crowd, away, crowd_on

pytestmark = pytest.mark.integration


@pytest.fixture
def crowd(cluster: Cluster) -> Iterator[Crowd]:
    """Two rooms with members on every node; one member on each node speaks in both."""
    with crowd_on(cluster) as crowd:
        yield crowd


def whole_again(cluster: Cluster, crowd: Crowd, *, within: float = 5.0) -> None:
    """Every node is healthy within five seconds after what was broken works again."""
    nodes = cluster.alive

    def is_whole() -> bool:
        # Subscriptions first: a node that does not know yet of its loss is still ready.
        return all(
            cluster.redis.subscribers(channel) == len(nodes) for channel in CHANNELS
        ) and all(node.readiness() == 200 for node in nodes)

    left = crowd.ledger.repairs[-1] + within - time.monotonic()
    eventually(is_whole, "every node is ready and subscribed again", max(0.1, left))


# ----------------------------------------------------------------------------- faults of links


Fault = Callable[[Cluster, Crowd], None]


def undisturbed(cluster: Cluster, crowd: Crowd) -> None:
    time.sleep(0.5)
    crowd.ledger.repair()


def subscribers_killed(cluster: Cluster, crowd: Crowd) -> None:
    for _ in range(3):
        assert cluster.redis.kill_subscribers() >= len(cluster.nodes)
        crowd.ledger.repair()
        time.sleep(0.5)


def redis_restarted(cluster: Cluster, crowd: Crowd) -> None:
    with away(cluster.redis.kill, cluster.redis.start, crowd.ledger):
        time.sleep(0.5)


def redis_frozen(cluster: Cluster, crowd: Crowd) -> None:
    with away(cluster.redis.freeze, cluster.redis.thaw, crowd.ledger):
        time.sleep(3.0)


def one_link_cut(cluster: Cluster, crowd: Crowd) -> None:
    link = cluster[1].link
    for _ in range(3):
        eventually(lambda: link.live > 0, "it is connected again")
        link.cut()
        crowd.ledger.repair()
        time.sleep(0.3)


def one_link_refused(cluster: Cluster, crowd: Crowd) -> None:
    link = cluster[1].link
    with away(link.refuse, link.heal, crowd.ledger):
        link.cut()
        time.sleep(1.0)


def dead_links(cluster: Cluster, crowd: Crowd) -> None:
    """One node's cable is cut; Redis has forgotten another one, which does not know it."""
    hole, half = cluster[1].link, cluster[2].link
    hole.blackhole()
    assert half.forget(Side.SERVER) > 0
    # Longer than from one probe to the next, and its deadline.
    time.sleep(6.5)
    hole.heal()
    half.heal()
    crowd.ledger.repair()


def deaf_and_dumb(cluster: Cluster, crowd: Crowd) -> None:
    """One node can speak and not hear, another one can hear and not speak."""
    deaf, dumb = cluster[1].link, cluster[2].link
    deaf.blackhole(towards=Side.CLIENT)
    dumb.blackhole(towards=Side.SERVER)
    time.sleep(6.5)
    # Whoever looks at his links sees it by now.
    assert [node.readiness() for node in cluster] == [200, 503, 503]
    deaf.heal()
    dumb.heal()
    crowd.ledger.repair()


def forgotten_by_the_node(cluster: Cluster, crowd: Crowd) -> None:
    link = cluster[1].link
    with away(lambda: link.forget(Side.CLIENT), link.heal, crowd.ledger):
        time.sleep(1.0)


def slow_and_sliced(cluster: Cluster, crowd: Crowd) -> None:
    for node in cluster:
        node.link.slow(0.1, jitter=0.05)
        node.link.slice(97)
    time.sleep(2.0)
    for node in cluster:
        node.link.heal()
    crowd.ledger.repair()


def output_buffer_cut(cluster: Cluster, crowd: Crowd) -> None:
    redis = cluster.redis
    redis.limit_subscribers(hard=1_000_000)
    cluster[1].link.blackhole(towards=Side.CLIENT)
    garbage = b"x" * 500_000
    before = redis.subscribers("websocket:system")
    until = time.monotonic() + 10
    while redis.subscribers("websocket:system") == before and time.monotonic() < until:
        redis.publish("websocket:system", garbage)
    assert redis.subscribers("websocket:system") < before, "nobody was cut"
    cluster[1].link.heal()
    crowd.ledger.repair()
    redis.limit_subscribers(hard=33_554_432)


def strange_messages(cluster: Cluster, crowd: Crowd) -> None:
    rng = random.Random(4)
    sent = 0
    node_id = cluster[0].node_id
    room = crowd.witnesses[0].rooms[0]
    for payload in strange(node_id, room) * 6:
        for channel in (*CHANNELS, "websocket:nodes", f"websocket:node:{cluster[1].node_id}"):
            cluster.redis.publish(channel, payload)
            sent += 1
        if rng.random() < 0.2:
            time.sleep(0.002)
    assert sent > 700
    crowd.ledger.repair()


def strange(node_id: str, room: str) -> list[bytes]:
    """Return what a bus must not believe, nor fall over."""
    stamp = "2026-01-02T03:04:05Z"
    forged = {"by": "node-0-0", "n": 1_000_000}
    message = {"type": "message", "room": room, "data": forged, "timestamp": stamp}
    return [
        b"",
        b"not JSON",
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07os.exit\x94.",
        b"\xff\xfe" * 50,
        b"[" * 100_000,
        b'{"server_id":"x","message":' + b'{"data":' * 400 + b"1" + b"}" * 401,
        b"null",
        b"[]",
        b"{}",
        b'{"server_id":7,"message":{},"timestamp":""}',
        b'{"server_id":"x","message":[],"timestamp":""}',
        b'{"server_id":"x","message":{"type":"ack"},"timestamp":"","v":99}',
        json.dumps({"server_id": "x", "message": {"type": "become_super_admin"}}).encode(),
        json.dumps({"server_id": "", "message": message, "timestamp": stamp}).encode(),
        # In the name of a node that lives: its own numbers, far away, and another version.
        json.dumps(
            {"server_id": node_id, "seq": -1, "epoch": 1, "v": 1, "message": message}
        ).encode(),
        json.dumps(
            {"server_id": node_id, "seq": 2**70, "epoch": 1, "v": 1, "message": message}
        ).encode(),
        json.dumps(
            {"server_id": node_id, "seq": 1, "epoch": 1, "v": 2, "message": message}
        ).encode(),
        b'{"server_id":"x","seq":1,"epoch":1,"v":1,"word":"tell","message":{"op":"bye"}}',
        b'{"op":"ask","id":"1","what":"close","args":{}}',
        b"x" * 2_000_000,
    ]


# What a fault must have led to, so that a fault that does nothing does not pass.
FAULTS: dict[str, tuple[Fault, dict[str, int]]] = {
    "undisturbed": (undisturbed, {}),
    "subscribers killed": (subscribers_killed, {}),
    "Redis restarted": (redis_restarted, {"announced": 1}),
    "Redis frozen": (redis_frozen, {}),
    "one link cut": (one_link_cut, {}),
    "one link refused": (one_link_refused, {"announced": 1}),
    "dead links": (dead_links, {"announced": 1}),
    "deaf and dumb": (deaf_and_dumb, {"announced": 1}),
    "forgotten by the node": (forgotten_by_the_node, {}),
    "slow and sliced": (slow_and_sliced, {}),
    "output buffer cut": (output_buffer_cut, {"announced": 1}),
    "strange messages": (strange_messages, {}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_accounts(cluster: Cluster, crowd: Crowd, name: str) -> None:
    fault, at_least = FAULTS[name]
    fault(cluster, crowd)
    whole_again(cluster, crowd)
    found = crowd.verdict()
    print(f"\n{name}: {found}")
    found.require(said=100, heard=600, **at_least)
    if name in {"undisturbed", "slow and sliced", "strange messages"}:
        assert found.counts["heard"] == found.counts["wanted"], found
        assert [one.resyncs for one in crowd.witnesses] == [[]] * 6


@pytest.mark.slow
@pytest.mark.on_request("FALCON_LONG_FAULTS")
@pytest.mark.parametrize("seconds", [2, 20, 120])
@pytest.mark.parametrize("how", ["kill", "freeze", "blackhole"])
def test_x02_long_outages(cluster: Cluster, crowd: Crowd, how: str, seconds: int) -> None:
    redis = cluster.redis

    def hole() -> None:
        for node in cluster:
            node.link.blackhole()

    def heal() -> None:
        for node in cluster:
            node.link.heal()

    begin, end = {
        "kill": (redis.kill, redis.start),
        "freeze": (redis.freeze, redis.thaw),
        "blackhole": (hole, heal),
    }[how]
    with away(begin, end, crowd.ledger):
        time.sleep(seconds)
    whole_again(cluster, crowd)
    found = crowd.verdict()
    print(f"\n{how} {seconds} s: {found}")
    # What is only held up for two seconds arrives after all.
    found.require(announced=1 if seconds > 2 or how == "kill" else 0)
