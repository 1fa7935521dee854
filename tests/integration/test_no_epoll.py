"""The server without its epoll set, as on systems that have none: the same conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from falcon_fast.codes import CloseReason

from ..support.client import Client, request
from ..support.deflate import packed_text
from ..support.frames import PONG, ServerFrame, close, more, ping, text
from ..support.server import ServerProcess, eventually, offering, serving
from ..support.violations import VIOLATIONS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("canary")]

WITHOUT_EPOLL = (
    "-c",
    "import functools, sys\n"
    "from falcon_fast import app, cli\n"
    "app.running = functools.partial(app.running, epoll=False)\n"
    "sys.exit(cli.main(['serve']))",
)
"""`falcon-fast serve`, with what the system offers left unused."""

SLOW, SENDER = 1, 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {
        "FALCON_MESSAGE_RATE": "1000000",
        "FALCON_MESSAGE_BURST": "1000000",
        "FALCON_MAX_QUEUE_BYTES": "262144",
    }
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, settings, program=WITHOUT_EPOLL) as server:
        yield server


def test_core_has_no_epoll_set_of_its_own(server: ServerProcess) -> None:
    """Only the loop has one, so that this module does test the other way."""
    kinds = server.descriptor_kinds()
    assert kinds.count("anon_inode:[eventpoll]") == 1, kinds


def test_compressed_both_ways(server: ServerProcess) -> None:
    room = server.group("Compressed", 13, 14)
    alice, bob = offering(server, "d-alice", 13), server.connect("d-bob", 14)
    frame = {"type": "message", "id": "1", "room": room, "data": {"text": "all is well " * 900}}
    for _ in range(5):
        alice.wire.send(packed_text(json.dumps(frame)))
    for client in (alice, bob):
        for _ in range(5):
            heard = client.hear_until(lambda message: message["type"] == "message")
            assert heard["data"] == frame["data"]
    alice.wire.send(packed_text(bytes(70_000)))
    assert alice.closing() == (CloseReason.MESSAGE_TOO_BIG.code, CloseReason.MESSAGE_TOO_BIG.text)


def test_chat(server: ServerProcess) -> None:
    room = server.group("Chat", 11, 12)
    alice, bob = server.connect("alice", 11), server.connect("bob", 12)
    for n in range(50):
        alice.say(type="message", id=str(n), room=room, data={"n": n})
    for client in (alice, bob):
        heard = [client.hear_until(lambda message: message["type"] == "message") for _ in range(50)]
        assert [message["data"]["n"] for message in heard] == list(range(50))
    assert bob.ask(type="message", to="user:alice", data={})["type"] == "ack"
    alice.sync()
    bob.wire.send(close(4999, b"bye"))
    assert bob.closing() == (4999, "")
    told = alice.hear()
    assert (told["data"]["action"], told["data"]["connection_id"]) == ("member_left", bob.id)


@pytest.mark.parametrize("case", VIOLATIONS)
def test_violation_closes_with_its_code(server: ServerProcess, case: str) -> None:
    client = server.connect("offender")
    stream, wanted = VIOLATIONS[case]
    client.wire.send(stream)
    assert client.closing() == wanted


def test_early_frames_and_fragments(server: ServerProcess) -> None:
    wire = server.wire()
    frames = b"".join([text(f'{{"type":"presence","id":"{n}"}}') for n in range(50)])
    wire.send(request(token=server.token("early")) + frames)
    assert wire.read_head().startswith(b"HTTP/1.1 101 ")
    client = Client(wire)
    client.enter()
    assert [client.hear()["id"] for _ in range(50)] == [str(n) for n in range(50)]
    wire.send(text('{"type":', fin=False) + ping(b"between") + more(b'"presence"}', fin=True))
    assert wire.frame() == ServerFrame(PONG, b"between")
    assert client.hear()["type"] == "presence"


def test_much_early_input_is_not_lost(server: ServerProcess) -> None:
    wire = server.wire()
    frame = text('{"type":"presence","id":"x"}'.ljust(30_000))
    wire.send(request(token=server.token("early")) + frame * 20)
    assert wire.read_head().startswith(b"HTTP/1.1 101 ")
    client = Client(wire)
    client.enter()
    assert [client.hear()["id"] for _ in range(20)] == ["x"] * 20


def test_slow_consumer(server: ServerProcess) -> None:
    room = server.group("Slow", SLOW, SENDER)
    sender = server.connect("sender", SENDER)
    slow = server.connect("slow", SLOW, receive_buffer=4096)
    sender.sync()
    for n in range(400):
        sender.say(type="message", room=room, data={"n": n, "x": "x" * 30_000})
        sender.hear_until(lambda message: message["type"] == "message")
        if slow.id in server.closes():
            break
    assert server.closes()[slow.id] == ("slow_consumer", 4000)


def test_ends_without_goodbye(server: ServerProcess) -> None:
    connections = server.connections()
    half, reset = server.connect("half", 21), server.connect("reset", 22)
    half.wire.finish()
    assert half.wire.read_to_end() == b""
    server.keep(reset.wire)
    reset.wire.send_reset()
    eventually(lambda: server.connections() == connections, "both are gone")


def test_expiry(server: ServerProcess) -> None:
    assert server.connect("short", ttl=1).closing() == (4401, "token expired")


def test_socket_of_a_closed_connection_is_freed_without_the_client(server: ServerProcess) -> None:
    fds = server.fds()
    client = server.connect("stays")
    client.wire.send(close(1000))
    assert client.closing() == (1000, "")
    eventually(lambda: server.fds() <= fds, "the socket is closed", within=1.5)
