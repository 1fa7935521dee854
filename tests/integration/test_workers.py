"""A node of several processes: one node to everybody outside, whatever becomes of its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ..support.admin import Admin
from ..support.client import DEADLINE, Client, Closed, Ended, Message
from ..support.cluster import Cluster
from ..support.original_node import CHANNELS
from ..support.redis_server import RedisServer
from ..support.server import ServerProcess, eventually, serving

pytestmark = pytest.mark.integration

WORKERS: Final = 2
SETTINGS: Final = {"FALCON_WORKERS": str(WORKERS), "FALCON_MESSAGE_RATE": "100000"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("workers"), SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> Admin:
    return Admin(server)


@pytest.fixture(autouse=True)
def nobody_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begin and end each test on the shared server without connections."""
    yield
    if "server" in request.fixturenames:
        shared: ServerProcess = request.getfixturevalue("server")
        shared.hang_up()
        eventually(lambda: shared.connections() == 0, "everybody is gone")


def workers(server: ServerProcess) -> dict[str, int]:
    """Return the ids of the workers that serve, each with the number of its process."""
    found: dict[str, int] = {}
    for record in server.records():
        if record["message"] == "a worker is ready":
            found[record["process_id"]] = record["pid"]
        elif record["message"] == "a worker died":
            del found[record["process_id"]]
    return found


def place(server: ServerProcess, client: Client) -> str:
    """Return the worker that holds a client's connection: the one that has its socket open."""
    port = client.wire.socket.getsockname()[1]
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].partition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    for process_id, pid in workers(server).items():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(descriptor) in inodes:
                    return process_id
    raise AssertionError("no worker has this connection")


def connect(server: ServerProcess, user: str, character: int = 1) -> Client:
    """Connect a user whose connection before may have ended just now."""
    until = time.monotonic() + DEADLINE
    while True:
        client = Client(server.wire())
        client.open(token=server.token(user, character))
        try:
            client.welcome = client.hear()
            client.id = client.welcome["data"]["connection_id"]
            # That the one before is gone may be told first.
            hear_update(client, "joined")
            return client
        except Closed as refused:
            if refused.code != 4409 or time.monotonic() > until:
                raise
            time.sleep(0.02)


def apart(server: ServerProcess, *users: tuple[str, int]) -> tuple[Client, Client]:
    """Connect two users, one to each of two workers."""
    first, second = users
    one = server.connect(*first)
    for _ in range(60):
        other = connect(server, *second)
        if place(server, other) != place(server, one):
            return one, other
        other.close()
    raise AssertionError("the kernel gives everybody to one worker")


def updates(messages: list[Message]) -> list[dict[str, Any]]:
    return [message["data"] for message in messages if message["type"] == "room_update"]


def hear_update(client: Client, action: str) -> dict[str, Any]:
    found = client.hear_until(
        lambda one: one["type"] == "room_update" and one["data"]["action"] == action
    )
    data: dict[str, Any] = found["data"]
    return data


# ------------------------------------------------------------------------------------- one node


def test_members_on_two_workers_talk(server: ServerProcess) -> None:
    room = server.group("Talkers", 11, 12)
    ann, bob = apart(server, ("ann", 11), ("bob", 12))
    joined = hear_update(ann, "member_joined")
    assert joined["member_count"] == 2
    for number in range(50):
        ann.say(id=f"a{number}", type="message", room=room, data={"n": number})
        bob.say(id=f"b{number}", type="message", room=room, data={"n": number})
    heard = {client: [client.hear_message([]) for _ in range(100)] for client in (ann, bob)}
    for messages in heard.values():
        for speaker in "ab":
            mine = [message["id"] for message in messages if message["id"].startswith(speaker)]
            assert mine == [f"{speaker}{number}" for number in range(50)]
    assert ann.sync() == bob.sync() == []  # each came once
    bob.close()
    assert hear_update(ann, "member_left")["member_count"] == 1


def test_messages_to_one_find_their_worker(server: ServerProcess) -> None:
    server.group("Pairs", 13, 14)
    ann, bob = apart(server, ("ann", 13), ("bob", 14))
    answer = ann.ask(type="message", to=bob.id, data={"n": 1})
    assert answer["type"] in {"ack", "message"}, answer
    assert bob.hear_message([])["data"] == {"n": 1}
    ann.ask(type="message", to="user:bob", data={"n": 2})
    assert bob.hear_message([])["data"] == {"n": 2}
    refused = ann.ask(type="message", to="00000000-0000-4000-8000-000000000000", data={})
    assert refused["data"]["code"] == "not_found"


def test_presence_goes_from_worker_to_worker(server: ServerProcess) -> None:
    server.group("Watchers", 15, 16)
    ann, bob = apart(server, ("ann", 15), ("bob", 16))
    answer = ann.ask(type="system", data={"action": "subscribe_presence", "user_id": "bob"})
    assert answer["type"] != "error", answer
    bob.close()
    gone = ann.hear_until(
        lambda one: one["type"] == "presence" and one["data"].get("status") == "offline"
    )
    assert gone["data"]["user_id"] == "bob"


def test_operators_see_and_reach_everybody(server: ServerProcess, admin: Admin) -> None:
    room = server.group("Seen", 17, 18)
    ann, bob = apart(server, ("ann", 17), ("bob", 18))
    listed = admin.get("/websocket/connections").json
    assert {one["id"] for one in listed["connections"]} == {ann.id, bob.id}
    assert {one["node_id"] for one in listed["connections"]} == {server.status()["node_id"]}
    assert "partial" not in listed or not listed["partial"]
    seen = admin.get(f"/websocket/rooms/{room}").json["room"]
    assert seen["member_count"] == 2
    assert set(seen["members"]) == {ann.id, bob.id}
    for path, number in (
        ("broadcast", 2),
        (f"rooms/{room}/message", 2),
        ("users/bob/message", 1),
        (f"connections/{ann.id}/message", 1),
    ):
        sent = admin.post(f"/websocket/{path}", {"type": "notification", "data": {"at": path}}).json
        assert sent["recipients_count"] == number, path
    got = [
        [one["data"]["at"] for one in client.sync() if one["type"] == "notification"]
        for client in (ann, bob)
    ]
    assert got == [
        ["broadcast", f"rooms/{room}/message", f"connections/{ann.id}/message"],
        ["broadcast", f"rooms/{room}/message", "users/bob/message"],
    ]
    assert admin.ask("DELETE", f"/websocket/connections/{bob.id}").status in {200, 204}
    assert bob.closing()[0] == 4403


def test_status_and_metrics_are_those_of_the_node(server: ServerProcess, admin: Admin) -> None:
    server.group("Counted", 19, 20)
    before = server.status()["stats"]
    ann, bob = apart(server, ("ann", 19), ("bob", 20))

    def is_told_everywhere() -> bool:
        # Whichever worker answers.
        found = [server.status() for _ in range(8)]
        return all(
            (one["stats"]["active_connections"], one["stats"]["total_rooms"], one["nodes"])
            == (2, 3, 1)
            for one in found
        )

    eventually(is_told_everywhere, "all workers speak for the node")
    assert server.status()["stats"]["total_connections"] >= before["total_connections"] + 2
    seen = admin.get("/websocket/status").json
    assert seen["stats"]["active_connections"] == 2
    assert server.get("/readyz").status == 200
    bob.sync()
    ann.sync()

    def samples() -> dict[str, float]:
        body = admin.ask("GET", "/metrics").body.decode()
        lines = [line for line in body.splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    eventually(lambda: samples()["falcon_connections"] == 2, "the metrics are the node's")
    now = samples()
    assert now['falcon_rooms{type="group"}'] == 1
    assert now['falcon_rooms{type="personal"}'] == 2
    assert now["falcon_workers"] == WORKERS
    assert now["falcon_worker_restarts_total"] == 0
    assert now['falcon_handshakes_total{result="accepted"}'] >= 2
    assert now["falcon_event_loop_lag_seconds_count"] > 0
    assert now["falcon_messages_received_total"] >= 2
    resident = sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in (server.process.pid, *workers(server).values())
    )
    assert now["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.3)


def test_l01_the_limit_of_a_user_holds_over_all_workers(tmp_path: Path) -> None:
    settings = {**SETTINGS, "FALCON_MAX_CONNECTIONS_PER_USER": "16"}
    with serving(tmp_path, settings) as server:
        clients = [server.connect("ann") for _ in range(16)]
        assert len({place(server, client) for client in clients}) == WORKERS
        for _ in range(4):
            late = Client(server.wire())
            late.open(token=server.token("ann"))
            # Its user's other connections hear of it before it is turned away, and it of them.
            assert late.closing()[0] == 4409
        clients[0].close()
        connect(server, "ann")
        eventually(lambda: server.connections() == 16, "as many as may be")


# ---------------------------------------------------------------------------------- their ends


def test_p03_a_dead_worker_costs_its_own_connections_only(tmp_path: Path) -> None:
    with serving(tmp_path, {**SETTINGS, "FALCON_MAX_CONNECTIONS_PER_USER": "1"}) as server:
        server.group("Shared", 1, 2)
        ann, bob = apart(server, ("ann", 1), ("bob", 2))
        ann.sync()
        dead = place(server, bob)
        began = time.monotonic()
        os.kill(workers(server)[dead], signal.SIGKILL)
        assert hear_update(ann, "member_count")["member_count"] == 1
        told = time.monotonic() - began
        eventually(lambda: len(workers(server)) == WORKERS, "another worker takes its place")
        restarted = time.monotonic() - began
        with pytest.raises(Ended):
            bob.hear()
        assert ann.sync() == []
        eventually(lambda: server.connections() == 1, "the dead are not counted")
        assert dead not in workers(server)
        # Its connections are not held against their users, and the new one serves like the others.
        again = [server.connect(f"u{number}") for number in range(20)]
        again.append(connect(server, "bob", 2))
        assert {place(server, client) for client in again} == set(workers(server))
        assert hear_update(ann, "member_joined")["member_count"] == 2
        [death] = [one for one in server.records() if one["message"] == "a worker died"]
        assert (death["reason"], death["level"]) == ("SIGKILL", "error")
        samples = Admin(server).ask("GET", "/metrics").body.decode()
        assert "falcon_worker_restarts_total 1.0" in samples
        # Generous: the machine of a test run has other things to do.
        assert told < 5.0
        assert restarted < 10.0


def test_p03_a_crash_loop_ends_the_node(tmp_path: Path) -> None:
    with serving(tmp_path, SETTINGS, ends_itself=True) as server:
        ann = server.connect("ann")
        safe = place(server, ann)
        place_of_death = next(one for one in workers(server) if one != safe)
        until = time.monotonic() + 60.0
        killed: set[int] = set()
        while server.process.poll() is None and time.monotonic() < until:
            for name, pid in workers(server).items():
                if name != safe and pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        assert server.wait() == 1
        assert ann.closing()[0] == 1012
        assert len(killed) == 5
        assert place_of_death not in workers(server)
        assert any(one["level"] == "critical" for one in server.records())


@pytest.mark.parametrize("to", ["node process", "all processes"])
def test_p01_a_signal_drains_all_workers(tmp_path: Path, to: str) -> None:
    with serving(tmp_path, {**SETTINGS, "FALCON_DRAIN_TIMEOUT": "10"}, ends_itself=True) as server:
        clients = [server.connect(f"u{number}") for number in range(40)]
        assert len({place(server, client) for client in clients}) == WORKERS
        if to == "all processes":
            for pid in workers(server).values():
                os.kill(pid, signal.SIGTERM)
        server.signal(signal.SIGTERM)
        assert {client.closing() for client in clients} == {(1012, "service restart")}
        assert server.wait(15.0) == 0
        levels = {record["level"] for record in server.records()}
        assert levels <= {"debug", "info"}, server.log()[-3000:]
        for pid in workers(server).values():
            assert not Path(f"/proc/{pid}").exists()


def test_p01_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, {**SETTINGS, "FALCON_DRAIN_TIMEOUT": "60"}, ends_itself=True) as server:
        clients = [server.connect(f"u{number}") for number in range(300)]
        server.signal(signal.SIGTERM)
        assert clients  # a drain of so many takes a while
        eventually(lambda: "draining" in server.log(), "it begins to drain")
        server.signal(signal.SIGTERM)
        assert server.wait(10.0) == 0
        for pid in workers(server).values():
            assert not Path(f"/proc/{pid}").exists()


def test_without_the_node_process_the_workers_end(tmp_path: Path) -> None:
    with serving(tmp_path, SETTINGS, ends_itself=True) as server:
        ann = server.connect("ann")
        pids = list(workers(server).values())
        server.kill()
        with pytest.raises(Ended):
            ann.hear()
        eventually(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the workers are gone"
        )
        assert "the node process is gone" in server.log()


def test_a_port_that_is_taken_is_not_shared(server: ServerProcess, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"cannot listen on 127\.0\.0\.1"):
        ServerProcess(tmp_path, {**SETTINGS, "FALCON_PORT": str(server.port)})


# ----------------------------------------------------------------------------- with other nodes


def test_nodes_of_workers_are_nodes_to_each_other(tmp_path: Path) -> None:
    settings = {"FALCON_WORKERS": str(WORKERS), "FALCON_MAX_CONNECTIONS_PER_USER": "16"}
    with (
        RedisServer(tmp_path / "redis") as redis,
        Cluster(tmp_path, redis, settings=settings) as pair,
    ):
        # What is said is read from Redis once a node, whatever the number of its workers.
        for channel in CHANNELS:
            redis.wait_for_subscribers(channel, 2)
        room = pair.group("All", 1, 2, 3)
        ann, bob = apart(pair[0].server, ("ann", 1), ("bob", 2))
        cat = pair[1].connect("cat", 3)
        for number, speaker in enumerate((ann, bob, cat)):
            speaker.say(type="message", id=f"m{number}", room=room, data={"n": number})
        for client in (ann, bob, cat):
            heard = sorted(client.hear_message([])["data"]["n"] for _ in range(3))
            assert heard == [0, 1, 2]
            assert [one for one in client.sync() if one["type"] == "message"] == []
        for node in pair:
            listed = node.admin.get("/websocket/connections").json
            assert {one["id"] for one in listed["connections"]} == {ann.id, bob.id, cat.id}
            sent = node.admin.post(
                f"/websocket/rooms/{room}/message", {"type": "notification", "data": {}}
            ).json
            assert sent["recipients_count"] == 3
            assert not sent.get("partial")
        # A message of the other node came over the link once, and went to both workers.
        before = pair[0].metric("falcon_bus_received_total")
        cat.ask(type="message", room=room, data={"n": 3})
        assert [client.hear_message([])["data"]["n"] for client in (ann, bob)] == [3, 3]
        eventually(
            lambda: pair[0].metric("falcon_bus_received_total") > before, "the message is counted"
        )
        # The dead are out of the registry and of everybody's counts at once.
        wanted = f"websocket:connection:{bob.id}"
        eventually(lambda: wanted in redis.keys(), "the registry has everybody")
        for client in (ann, cat):
            client.sync()
        os.kill(workers(pair[0].server)[place(pair[0].server, bob)], signal.SIGKILL)
        eventually(lambda: wanted not in redis.keys(), "the registry has no dead", within=5.0)
        assert hear_update(cat, "member_count")["member_count"] == 2
        assert hear_update(ann, "member_count")["member_count"] == 2
