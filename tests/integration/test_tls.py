"""The server with a certificate: the same conversation, the same verdicts, over TLS (T01, T03)."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator

import pytest

from falcon_fast.codes import CloseReason

from ..support.certificate import Certificate, make_certificate
from ..support.client import Answer, Client, Closed, Ended, Message, Wire, request
from ..support.deflate import packed_text
from ..support.frames import CLOSE, close, ping, text
from ..support.server import ServerProcess, eventually, offering, serving
from ..support.violations import VIOLATIONS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("canary")]

TIMEOUT = 1.0
"""FALCON_HANDSHAKE_TIMEOUT, in seconds."""

LATE = 2.0

SLOW, SENDER = 1, 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[ServerProcess]:
    settings = {
        **certificate.settings,
        "FALCON_HANDSHAKE_TIMEOUT": str(TIMEOUT),
        "FALCON_MESSAGE_RATE": "1000000",
        "FALCON_MESSAGE_BURST": "1000000",
        "FALCON_MAX_QUEUE_BYTES": "262144",
    }
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, settings, tls=certificate.trusting()) as server:
        yield server


def plain_wire(server: ServerProcess) -> Wire:
    """Connect without TLS."""
    server.opened += 1
    return Wire(("127.0.0.1", server.port))


# ----------------------------------------------------------------------------- conversation


def test_chat_over_tls(server: ServerProcess) -> None:
    assert "listening on wss://127.0.0.1:" in server.log()
    room = server.group("Chat", 11, 12)
    alice, bob = server.connect("alice", 11), server.connect("bob", 12)
    alice.say(type="message", id="1", room=room, data={"text": "o7"})
    for client in (alice, bob):
        heard = client.hear_until(lambda message: message["type"] == "message")
        assert (heard["from"], heard["id"], heard["data"]) == (alice.id, "1", {"text": "o7"})
    answer = bob.ask(type="message", to=alice.id, data={"n": 2**64 - 1})
    assert answer["type"] == "ack"
    alice.sync()
    bob.wire.send(ping(b"still there?"))
    assert bob.wire.frame().payload == b"still there?"
    bob.wire.send(close(1000, b"bye"))
    assert bob.closing() == (1000, "")
    told = alice.hear()
    assert (told["data"]["action"], told["data"]["connection_id"]) == ("member_left", bob.id)


def test_compressed_both_ways_over_tls(server: ServerProcess) -> None:
    room = server.group("Compressed", 13, 14)
    alice, bob = offering(server, "d-alice", 13), server.connect("d-bob", 14)
    frame = {"type": "message", "id": "1", "room": room, "data": {"text": "all is well " * 900}}
    alice.wire.send(packed_text(json.dumps(frame)))
    for client in (alice, bob):
        heard = client.hear_until(lambda message: message["type"] == "message")
        assert heard["data"] == frame["data"]
    alice.wire.send(packed_text(b"\xff"))
    assert alice.closing() == (CloseReason.INVALID_PAYLOAD.code, CloseReason.INVALID_PAYLOAD.text)


def test_large_messages_and_every_size_of_record(server: ServerProcess) -> None:
    client = server.connect("large")
    stream = text('{"type":"presence","id":"x"}'.ljust(65_536)) * 3
    for size in (100_000, 16_384, 1000):
        for at in range(0, len(stream), size):
            client.wire.send(stream[at : at + size])
        assert [client.hear()["id"] for _ in range(3)] == ["x"] * 3


def test_t03_violations_close_with_their_codes(server: ServerProcess) -> None:
    clients = {
        case: server.connect(f"offender-{number}", number)
        for number, case in enumerate(VIOLATIONS, start=1000)
    }
    for case, client in clients.items():
        client.wire.send(VIOLATIONS[case][0])
    for case, client in clients.items():
        assert client.closing() == VIOLATIONS[case][1], case


def test_t03_refusals(server: ServerProcess) -> None:
    assert server.ask(request(token="no.such.token")) == Answer(
        401,
        {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": "12",
            "Connection": "close",
            "WWW-Authenticate": "Bearer",
        },
        b"Unauthorized",
    )
    assert server.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 404
    assert server.ask(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n").status == 414
    assert server.get("/healthz").body == b"ok\n"


def test_t03_early_frames(server: ServerProcess) -> None:
    wire = server.wire()
    frames = b"".join([text(f'{{"type":"presence","id":"{n}"}}') for n in range(50)])
    wire.send(request(token=server.token("early")) + frames)
    assert wire.read_head().startswith(b"HTTP/1.1 101 ")
    client = Client(wire)
    client.enter()
    assert [client.hear()["id"] for _ in range(50)] == [str(n) for n in range(50)]


def test_t03_slow_consumer(server: ServerProcess) -> None:
    room = server.group("Slow", SLOW, SENDER)
    sender = server.connect("sender", SENDER)
    slow = server.connect("slow", SLOW, receive_buffer=4096)
    sender.sync()
    passed: list[Message] = []
    for n in range(400):
        sender.say(type="message", room=room, data={"n": n, "x": "x" * 30_000})
        sender.hear_message(passed)
        if slow.id in server.closes():
            break
    eventually(lambda: slow.id in server.closes(), "the slow one is closed")
    assert server.closes()[slow.id] == ("slow_consumer", 4000)
    told = [*passed, *sender.sync()]
    assert ("member_left", slow.id) in [
        (one["data"].get("action"), one["data"].get("connection_id")) for one in told
    ]
    numbers: list[int] = []
    while True:
        try:
            message = slow.hear()
        except (Closed, Ended, ssl.SSLError):
            break
        if message["type"] == "message":
            numbers.append(message["data"]["n"])
    assert numbers == list(range(len(numbers)))


def test_t03_expiry(server: ServerProcess) -> None:
    assert server.connect("short", ttl=1).closing() == (4401, "token expired")


def test_socket_of_a_closed_connection_is_freed_without_the_client(server: ServerProcess) -> None:
    fds = server.fds()
    client = server.connect("stays")
    client.wire.send(close(1000))
    while client.wire.frame().opcode != CLOSE:
        pass
    eventually(lambda: server.fds() <= fds, "the socket is closed", within=1.5)


def test_socket_of_a_refused_connection_is_freed_without_the_client(server: ServerProcess) -> None:
    fds = server.fds()
    silent = server.wire()
    silent.send(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")
    while b"404" not in silent.received:
        assert silent.read()
    eventually(lambda: server.fds() <= fds, "the socket is closed", within=2.0)


def test_reset_and_half_close(server: ServerProcess) -> None:
    for n in range(5):
        client = server.connect(f"gone-{n}")
        server.keep(client.wire)
        client.wire.send_reset()


# ----------------------------------------------------------------------------------- T01


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1 is deprecated:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_t01_old_versions_are_refused(server: ServerProcess, version: str) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    # Otherwise the client itself would not even try.
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion[version]
    server.opened += 1
    with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
        Wire(("127.0.0.1", server.port), tls=old)
    assert "NO_PROTOCOLS_AVAILABLE" not in str(caught.value), "the client did not try"


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_t01_present_versions_are_spoken(
    server: ServerProcess, certificate: Certificate, version: str
) -> None:
    context = certificate.trusting()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    server.opened += 1
    wire = Wire(("127.0.0.1", server.port), tls=context)
    wire.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_answer().status == 200
    wire.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\xff" * 100,
        b"\x80\x2e\x01\0\2\0\x15\0\0\0\x10",
        b"\0" * 2000,
    ],
    ids=["http", "garbage", "sslv2", "zeros"],
)
def test_t01_what_is_no_tls_gets_nothing(server: ServerProcess, sent: bytes) -> None:
    wire = plain_wire(server)
    try:
        wire.send(sent)
        answer = wire.read_to_end(within=TIMEOUT + LATE)
        # At most an alert record.
        assert answer[:1] in {b"", b"\x15"}
        assert len(answer) <= 64
    finally:
        wire.close()


def test_t01_silence_ends_at_the_deadline(server: ServerProcess) -> None:
    began = time.monotonic()
    silent = plain_wire(server)
    behind_tls = server.wire()
    try:
        assert silent.read_to_end() == b""
        assert behind_tls.read_to_end() == b""
        # The TLS handshake may take half of the time, what follows the other half.
        assert TIMEOUT / 2 - 0.3 <= time.monotonic() - began <= TIMEOUT + LATE
    finally:
        silent.close()


def test_t01_client_hello_in_single_octets(server: ServerProcess, certificate: Certificate) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificate.trusting().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    wire = plain_wire(server)
    try:
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        for octet in outgoing.read():
            wire.send(bytes([octet]))
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                wire.send(outgoing.read())
                assert wire.read()
                incoming.write(bytes(wire.received))
                wire.received.clear()
        wire.send(outgoing.read())
    finally:
        wire.close()
