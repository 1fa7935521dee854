"""Faults of Redis and of what lies before it, by their ids; more of them are in the accounts."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ..support import LONG_FAULTS
from ..support.certificate import Certificate, make_certificate
from ..support.client import Client, Message, request
from ..support.cluster import OWN_SETTINGS, Cluster
from ..support.fault_proxy import Side
from ..support.original_node import CHANNELS, ROOMS
from ..support.redis_server import SENTINEL_NAME, Failover, RedisCluster, RedisServer
from ..support.server import ServerProcess, eventually, serving
from ..support.witness import Crowd, away, crowd_on

pytestmark = pytest.mark.integration

RECONNECT = 5.0
"""Seconds after Redis' return within which nodes are connected again."""

_numbers = itertools.count(1)


@contextlib.contextmanager
def node_on(folder: Path, url: str, **settings: str) -> Iterator[ServerProcess]:
    with serving(folder, {"REDIS_URL": url, **OWN_SETTINGS, **settings}) as server:
        yield server


def is_ready(server: ServerProcess) -> bool:
    return server.get("/readyz").status == 200


# ------------------------------------------------------------------------------- X01: no Redis


def test_x01_redis_is_down_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with RedisServer(tmp_path / "redis") as redis:
        redis.kill()
        began = time.monotonic()
        with node_on(tmp_path / "node", redis.url) as server:
            assert time.monotonic() - began < 5.0 + 3.0  # and what it takes to start Python
            assert server.status()["status"] in {"degraded", "unhealthy"}
            assert server.get("/readyz").status == 503
            assert server.get("/healthz").status == 200
            room = server.group("Alone", 1, 2)
            ann, bob = server.connect("ann", 1), server.connect("bob", 2)
            ann.say(type="message", id="1", room=room, data={"n": 1})
            assert bob.hear_until(lambda m: m["type"] == "message")["data"] == {"n": 1}
            redis.start()
            eventually(lambda: is_ready(server), "it finds Redis", RECONNECT)
            redis.wait_for_subscribers(ROOMS, 1)
            bob.sync()


# --------------------------------------------------------------------- X07: errors and failover


class Grumpy:
    """A server that answers every command with one error.

    Attributes:
        error: what it answers, from now on.
        commands: how many it has answered.
    """

    def __init__(self) -> None:
        self.error = b"LOADING Redis is loading the dataset in memory"
        self.commands = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while data := client.recv(65_536):
                # As many answers as there were commands: each begins with an asterisk.
                number = data.count(b"\r\n*") + data.startswith(b"*")
                self.commands += number
                client.sendall((b"-" + self.error + b"\r\n") * number)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def test_x07_errors_are_survived(tmp_path: Path) -> None:
    errors = [
        b"LOADING Redis is loading the dataset in memory",
        b"MASTERDOWN Link with MASTER is down",
        b"NOAUTH Authentication required.",
        b"READONLY You can't write against a read only replica.",
        b"MOVED 3999 127.0.0.1:1",
        b"OOM command not allowed when used memory > 'maxmemory'.",
        b"",
    ]
    grumpy = Grumpy()
    try:
        with node_on(tmp_path, f"redis://127.0.0.1:{grumpy.port}/0") as server:
            client = server.connect("ann")
            for error in errors:
                grumpy.error = error
                before = grumpy.commands
                eventually(lambda before=before: grumpy.commands > before, f"again: {error!r}")  # type: ignore[misc]
                assert client.ask(type="system", data={"action": "ping"})["type"] == "system"
            before, log = grumpy.commands, server.log_size()
            time.sleep(1.0)
            assert grumpy.commands - before < 100, "it does not wait between two attempts"
            assert len(server.records(log)) < 50
            assert server.status()["status"] in {"degraded", "unhealthy"}
            assert "Traceback" not in server.log()
    finally:
        grumpy.close()


@pytest.mark.slow
@pytest.mark.on_request("FALCON_LONG_FAULTS")
def test_x07_a_replica_takes_the_place_of_the_primary(tmp_path: Path) -> None:
    with Failover(tmp_path) as failover:
        sentinel = failover.sentinel
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/{SENTINEL_NAME}"
        with Cluster(tmp_path, failover.primary, 2, url=url) as cluster, Crowd() as crowd:
            characters = (1, 2, 3, 4)
            cluster.group("Failed over", *characters)
            for place in characters:
                client = cluster[place % 2].connect(f"user-{place}", place)
                crowd.add(f"witness-{place}", client, speaks=place <= 2)
            time.sleep(0.5)
            after = failover.fail_over()
            crowd.ledger.repair()
            eventually(lambda: all(node.readiness() == 200 for node in cluster), "all follow", 10.0)
            assert after.subscribers(ROOMS) == 2
            # The repair is when the sentinel's word has reached the nodes.
            crowd.ledger.repair()
            found = crowd.verdict()
            print(f"\nfailover: {found}")
            found.require(said=50, heard=150)


# ------------------------------------------------------------------ X08, X09: once and only once


def test_x08_a_publish_that_redis_did_and_could_not_confirm(cluster: Cluster) -> None:
    """Redis hears the node, the node does not hear Redis: nothing is published a second time."""
    room = cluster.group(f"Once {next(_numbers)}", 1, 2)
    ann, bob = cluster[0].connect("x8-ann", 1), cluster[1].connect("x8-bob", 2)
    cluster[0].link.blackhole(towards=Side.CLIENT)
    for number in range(20):
        ann.say(type="message", id=f"x8-{number}", room=room, data={"n": number})
    # Longer than any deadline of a command, so that whoever repeats has repeated.
    time.sleep(4.0)
    cluster[0].link.heal()
    eventually(lambda: cluster[0].readiness() == 200, "it is back", 10.0)
    ann.say(type="message", id="x8-last", room=room, data={"n": 99})
    heard: list[int] = []
    while not heard or heard[-1] != 99:
        message = bob.hear()
        if message["type"] == "message":
            heard.append(message["data"]["n"])
    assert heard == sorted(set(heard)), heard
    ann.close()
    bob.close()


def test_x09_replayed_messages_are_dropped(cluster: Cluster) -> None:
    redis = cluster.redis
    room = cluster.group(f"Replayed {next(_numbers)}", 1, 2)
    ann, bob = cluster[0].connect("x9-ann", 1), cluster[1].connect("x9-bob", 2)
    with redis.client() as client:
        tap = client.pubsub()
        tap.subscribe(*CHANNELS)
        for _ in CHANNELS:
            tap.get_message(timeout=5)
        for number in range(3):
            ann.say(type="message", id=f"x9-{number}", room=room, data={"n": number})
        captured: list[bytes] = []
        until = time.monotonic() + 5
        while len(captured) < 3 and time.monotonic() < until:
            got = tap.get_message(timeout=0.5)
            if got and got["channel"] == ROOMS.encode() and b"x9-" in got["data"]:
                captured.append(got["data"])
        tap.close()
    assert len(captured) == 3
    # Echoed, repeated, and played again from the start: on its own channel and on others.
    for payload in (*captured, captured[0], *reversed(captured)):
        for channel in CHANNELS:
            redis.publish(channel, payload)
    mark = json.dumps({"server_id": "x9", "message": {"type": "notification", "data": {"end": 1}}})
    redis.publish("websocket:system", mark.replace('"message"', '"timestamp":"","message"'))
    redis.publish("websocket:system", mark)
    for client_ in (ann, bob):
        heard = []
        while (message := client_.hear()).get("data", {}).get("end") != 1:
            heard.append(message)
        assert [m["data"]["n"] for m in heard if m["type"] == "message"] == [0, 1, 2]
    ann.close()
    bob.close()


# ---------------------------------------------------------------------- X10, X11: what others say


def test_x10_a_forged_control_message_does_nothing(cluster: Cluster) -> None:
    """Who can publish on Redis but does not know the cluster's secret commands nobody."""
    redis = cluster.redis
    victim = cluster[1].connect("x10-victim", 1)
    before = [node.status()["nodes"] for node in cluster]
    forged = {
        "kick": {
            "op": "ask",
            "id": "1",
            "what": "close",
            "args": {"connection_id": victim.id, "reason": 3},
        },
        "bye": {"op": "bye"},
        "direct": {
            "op": "ask",
            "id": "2",
            "what": "direct",
            "args": {"to": victim.id, "rooms": victim.rooms, "frame": '{"type":"message"}'},
        },
    }
    for control in forged.values():
        for mac in (None, "0" * 64, ""):
            for channel in ("websocket:nodes", f"websocket:node:{cluster[1].node_id}"):
                envelope: dict[str, object] = {
                    "server_id": cluster[0].node_id,
                    "seq": 2**40,
                    "epoch": 2**50,
                    "v": 1,
                    "word": "tell",
                    "message": control,
                    "timestamp": "2026-01-02T03:04:05.000000Z",
                }
                if mac is not None:
                    envelope["mac"] = mac
                redis.publish(channel, json.dumps(envelope, separators=(",", ":")))
    time.sleep(0.3)
    assert [message["type"] for message in victim.sync()] == []
    assert [node.status()["nodes"] for node in cluster] == before
    victim.close()


def test_x10_floods_of_strange_messages_are_counted_and_hardly_logged(cluster: Cluster) -> None:
    node = cluster[2]
    before = node.server.log_size()
    refused = node.metric("falcon_bus_refused_total")
    began = time.monotonic()
    for _ in range(500):
        for channel in CHANNELS:
            cluster.redis.publish(channel, b"\x80\x04pickle?")
    took = time.monotonic() - began
    time.sleep(0.5)
    records = [r for r in node.server.records(before) if r["level"] in {"warning", "error"}]
    assert len(records) <= 4 * (took + 2), records[:3]
    assert "Traceback" not in node.server.log(before)
    assert node.metric("falcon_bus_refused_total") - refused == 2000


def test_x11_a_newer_node_adds_fields_that_are_unknown_here(cluster: Cluster) -> None:
    room = cluster.group(f"Newer {next(_numbers)}", 1)
    ann = cluster[0].connect("x11-ann", 1)
    for seq in (1, 2):
        envelope = {
            "server_id": "11111111-2222-4333-8444-555555555555",
            "seq": seq,
            "epoch": 1_800_000_000_000,
            "v": 1,
            "colour": {"of": ["the", "future"]},
            "room": room,
            "message": {
                "type": "message",
                "room": room,
                "data": {"n": seq},
                "priority": 9,
                "timestamp": "2026-01-02T03:04:05Z",
            },
            "timestamp": "2026-01-02T03:04:05Z",
        }
        cluster.redis.publish(ROOMS, json.dumps(envelope))
    heard = [ann.hear_until(lambda m: m["type"] == "message") for _ in range(2)]
    assert [message["data"] for message in heard] == [{"n": 1}, {"n": 2}]
    assert all("priority" not in message for message in heard)
    ann.close()


# ------------------------------------------------------------------------- X12: Redis is full


def test_x12_redis_is_full(cluster: Cluster) -> None:
    """Writes to the registry fail; live messages, and the admission of clients, go on."""
    redis = cluster.redis
    room = cluster.group(f"Full {next(_numbers)}", 1, 2)
    ann = cluster[0].connect("x12-ann", 1)
    redis.set("maxmemory", "1")
    try:
        bob = cluster[1].connect("x12-bob", 2)
        ann.say(type="message", id="x12", room=room, data={"n": 1})
        assert bob.hear_until(lambda m: m["type"] == "message")["data"] == {"n": 1}
        answer = cluster[2].admin.post(
            f"/websocket/rooms/{room}/message", {"type": "notification", "data": {"n": 2}}
        )
        assert (answer.status, answer.json["recipients_count"]) == (200, 2)
    finally:
        redis.set("maxmemory", "0")
    eventually(
        lambda: f"websocket:connection:{bob.id}" in redis.keys("websocket:connection:*"),
        "what could not be written is written later",
        30.0,
    )
    ann.close()
    bob.close()


# --------------------------------------------------------------------- X13: clients that vanish


def test_x13_clients_vanish_while_redis_is_asked_for_them(cluster: Cluster) -> None:
    node = cluster[0]
    node.link.slow(0.01)
    before = node.server.log_size()
    for number in range(150):
        client = Client(node.server.wire())
        client.wire.send(request(token=node.server.token(f"x13-{number % 7}")))
        if number % 3 == 0:
            client.wire.read_head()
        client.wire.send_reset()
    node.link.heal()
    eventually(
        lambda: not cluster.redis.keys("websocket:user:x13-*"),
        "nothing is left of them",
        20.0,
    )
    bad = [r for r in node.server.records(before) if r["level"] == "error" or "exception" in r]
    assert bad == []
    ann = node.connect("x13-ann")
    documents = eventually_document(cluster, ann.id)
    assert documents["user_id"] == "x13-ann"
    ann.close()


def eventually_document(cluster: Cluster, connection_id: str) -> dict[str, object]:
    """Return what the registry says of a connection, when it says it."""
    key = f"websocket:connection:{connection_id}"
    eventually(lambda: bool(cluster.redis.command("GET", key)), f"{key} is written")
    document: dict[str, object] = json.loads(cluster.redis.command("GET", key))
    return document


# ---------------------------------------------------------------------- X15: many subscriptions


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes whose rooms go through shards, with proxies."""
    folder = tmp_path_factory.mktemp("sharded")
    settings = {"FALCON_BUS_ROUTING": "sharded"}
    with RedisServer(folder / "redis") as redis:
        with Cluster(folder, redis, 2, settings=settings, proxies=True) as cluster:
            yield cluster


def test_x15_many_rooms_are_subscribed_to_again_at_once(sharded: Cluster) -> None:
    """Ten thousand rooms are at most 128 shards, which are followed again in one go."""
    redis = sharded.redis
    groups = []
    with sharded[0].server.store() as store:
        for number in range(300):
            groups.append(f"group:{store.add_group(f'Room {number}')}")
            for character in (151, 152):
                store.add_member(groups[-1].removeprefix("group:"), character)
    ann, bob = sharded[0].connect("x15-ann", 151), sharded[1].connect("x15-bob", 152)
    assert len(ann.rooms) == len(groups) + 1
    channels = len(redis.command("PUBSUB", "SHARDCHANNELS"))
    assert 64 < channels <= 128

    def is_whole() -> bool:
        return len(redis.command("PUBSUB", "SHARDCHANNELS")) == channels and all(
            node.readiness() == 200 for node in sharded
        )

    assert redis.kill_subscribers() >= 2
    began = time.monotonic()
    eventually(is_whole, "all shards are followed again", RECONNECT)
    print(f"\n{channels} shards again after {time.monotonic() - began:.2f} s")
    for place in (0, 150, 299):
        ann.say(type="message", id=f"x15-{place}", room=groups[place], data={})
        bob.hear_until(partial(has_id, f"x15-{place}"))
    ann.close()
    bob.close()


def has_id(ident: str, message: Message) -> bool:
    return message.get("id") == ident


def test_sharded_routing_under_faults(sharded: Cluster) -> None:
    first, second = sharded[0].link, sharded[1].link
    with crowd_on(sharded) as crowd:
        first.cut()
        crowd.ledger.repair()
        time.sleep(0.5)
        sharded.redis.restart(after=0.3)
        crowd.ledger.repair()
        time.sleep(0.5)
        with away(second.blackhole, second.heal, crowd.ledger):
            time.sleep(3.0)
        eventually(lambda: all(node.readiness() == 200 for node in sharded), "all are back", 8.0)
        found = crowd.verdict()
    print(f"\nsharded: {found}")
    found.require(said=50, heard=150, announced=1)


# -------------------------------------------------------------------------- X16: wrong secrets


PASSWORD = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, Certificate]]:
    """A Redis that speaks TLS and wants a password."""
    folder = tmp_path_factory.mktemp("locked")
    certificate = make_certificate(folder)
    with RedisServer(folder / "redis", user="falcon", password=PASSWORD, tls=certificate) as redis:
        yield redis, certificate


def test_x16_the_right_login_over_tls(
    tmp_path: Path, locked: tuple[RedisServer, Certificate]
) -> None:
    redis, certificate = locked
    url = f"{redis.url}?ssl_ca_certs={certificate.certificate}"
    with node_on(tmp_path, url) as server:
        server.never_log(f".{PASSWORD}")
        eventually(lambda: is_ready(server), "it is connected")
        assert PASSWORD not in server.log()
        assert PASSWORD not in json.dumps(server.status())


def test_x16_wrong_logins_fail_closed_and_are_not_told(
    tmp_path: Path, locked: tuple[RedisServer, Certificate]
) -> None:
    redis, certificate = locked
    trust = f"?ssl_ca_certs={certificate.certificate}"
    urls = {
        "password": f"rediss://falcon:wrong-{PASSWORD}@127.0.0.1:{redis.port}/0{trust}",
        "untrusted": redis.url,
        "no-tls": f"redis://falcon:{PASSWORD}@127.0.0.1:{redis.port}/0",
    }
    for name in urls:
        (tmp_path / name).mkdir()

    def serve(name: str) -> tuple[int, str, str]:
        with node_on(tmp_path / name, urls[name]) as server:
            time.sleep(1.0)
            told = server.log() + json.dumps(server.status())
            assert not [record for record in server.records() if "exception" in record]
            return server.get("/readyz").status, server.status()["status"], told

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(serve, urls))
    assert [code for code, _, _ in results] == [503] * 3
    assert {status for _, status, _ in results} <= {"degraded", "unhealthy"}
    for _, _, told in results:
        assert PASSWORD not in told
    assert redis.subscribers(ROOMS) == 0


def test_x16_a_url_that_is_none_stops_the_start_without_being_told(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="did not start") as caught:
        ServerProcess(tmp_path, {"REDIS_URL": f"http://falcon:{PASSWORD}@127.0.0.1:1/0"})
    assert "REDIS_URL" in str(caught.value)
    assert PASSWORD not in str(caught.value)


# --------------------------------------------------------------------------- other kinds of Redis


@pytest.mark.parametrize("routing", ["sharded", *(["compatible"] if LONG_FAULTS else [])])
def test_a_redis_cluster(tmp_path: Path, routing: str) -> None:
    with RedisCluster(tmp_path) as servers:
        nodes = ",".join(f"{host}:{port}" for host, port in servers.addresses)
        url = f"redis+cluster://{nodes}"
        settings = {"FALCON_BUS_ROUTING": routing}
        with Cluster(tmp_path, servers.servers[0], 2, url=url, settings=settings) as cluster:
            with crowd_on(cluster) as crowd:
                for server in servers.servers:
                    server.kill_subscribers()
                    crowd.ledger.repair()
                    time.sleep(0.3)
                eventually(lambda: all(node.readiness() == 200 for node in cluster), "all are back")
                answer = cluster[0].admin.get("/websocket/connections")
                assert (answer.json["total"], answer.json.get("partial")) == (4, None)
                found = crowd.verdict()
            print(f"\n{routing}: {found}")
            found.require(said=50, heard=150)
