"""Redis of the tests can be broken and mended in every way that tests of the bus need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..support.certificate import make_certificate
from ..support.original_node import MESSAGES, ROOMS, USERS, OriginalNode
from ..support.redis_server import Failover, RedisCluster, RedisServer

pytestmark = pytest.mark.integration

ONCE = Retry(NoBackoff(), 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_data_is_kept_or_lost_when_it_is_started_again(server: RedisServer) -> None:
    port = server.port
    server.command("SET", "key", "value")
    server.restart(keep_data=True)
    assert (server.port, server.keys()) == (port, ["key"])
    server.restart()
    assert server.keys() == []
    server.command("SET", "key", "value")
    server.kill()
    with pytest.raises(redis.ConnectionError):
        server.command("PING")
    server.start()
    assert server.keys() == []


def test_a_frozen_server_goes_on_where_it_was(server: RedisServer) -> None:
    server.command("SET", "key", "value")
    with server.client() as client:
        server.freeze()
        client.connection_pool.connection_kwargs["socket_timeout"] = 0.1
        with pytest.raises(redis.TimeoutError):
            client.get("key")
        server.thaw()
        assert client.get("key") == b"value"


def test_subscribers_can_be_seen_and_killed(server: RedisServer) -> None:
    with server.client() as client:
        subscription = client.pubsub()
        subscription.subscribe("channel")
        server.wait_for_subscribers("channel", 1)
        assert server.publish("channel", "text") == 1
        assert server.kill_subscribers() == 1
        server.wait_for_subscribers("channel", 0)
        subscription.close()


def test_a_slow_subscriber_is_cut(server: RedisServer) -> None:
    server.limit_subscribers(hard=1_000_000)
    with server.client() as client:
        subscription = client.pubsub()
        subscription.subscribe("channel")
        server.wait_for_subscribers("channel", 1)
        text = "x" * 100_000
        until = time.monotonic() + 10
        while server.publish("channel", text) and time.monotonic() < until:
            pass
        assert server.subscribers("channel") == 0
        subscription.close()
    server.limit_subscribers(hard=0)


def test_only_its_user_may_use_it(tmp_path: Path) -> None:
    with RedisServer(tmp_path, user="ann", password="p@ss:/word") as server:
        assert server.url == f"redis://ann:p%40ss%3A%2Fword@127.0.0.1:{server.port}/0"
        assert server.command("PING")
        with redis.Redis(port=server.port, retry=ONCE) as client:
            with pytest.raises(redis.AuthenticationError):
                client.ping()


def test_it_speaks_tls_only(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", password="word", tls=make_certificate(tmp_path)) as server:
        assert server.url == f"rediss://:word@127.0.0.1:{server.port}/0"
        assert server.command("PING")
        with redis.Redis(port=server.port, socket_timeout=5, retry=ONCE) as client:
            with pytest.raises(redis.ConnectionError):
                client.ping()


def test_a_replica_takes_the_place_of_the_primary(tmp_path: Path) -> None:
    with Failover(tmp_path) as failover:
        before = failover.primary
        before.command("SET", "key", "value")
        assert before.command("WAIT", "1", "5000") == 1
        after = failover.fail_over()
        assert after is not before
        assert after.keys() == ["key"]


def test_a_cluster_shares_slots(tmp_path: Path) -> None:
    with RedisCluster(tmp_path) as cluster:
        names = [f"room-{number}" for number in range(20)]
        owners = [cluster.owner(name) for name in names]
        assert set(owners) == set(cluster.servers)
        for name, owner in zip(names, owners, strict=True):
            assert owner.command("SPUBLISH", name, "text") == 0
            assert owner.command("SET", name, "value")


def test_two_original_nodes_hear_each_other(server: RedisServer) -> None:
    with OriginalNode(server) as one, OriginalNode(server) as other:
        ann, bob = one.connect("ann", "group:a"), other.connect("bob", "group:a")
        one.send_to_room("group:a", "message", {"n": 1}, id="m-1")
        one.send_to_room("group:b", "message", {"n": 2})
        one.send_to_user("bob", "notification", {"n": 3})
        one.send_to_connection(bob.id, "message", {"n": 4})
        one.broadcast("notification", {"n": 5})
        one.send_system("system_notification", {"n": 6})
        server.publish(ROOMS, "not JSON")
        server.publish(USERS, '{"message":{"type":1}}')
        server.publish(MESSAGES, '{"server_id":"x","message":{"type":"message"}}')
        other.wait_for(7)
        assert [message["type"] for message in bob.messages[-1:]] == ["message"]
        assert [message["data"]["n"] for message in bob.messages[:-1]] == [1, 3, 4, 5, 6]
        assert bob.messages[1]["data"] == {"n": 3, "user_id": "bob"}
        one.wait_for(1)
        assert [message["data"]["n"] for message in ann.messages[:-1]] == [1, 5, 6]
        assert len(one.refused) == len(other.refused) == 2
        assert ann.heard[0] == bob.heard[0]
