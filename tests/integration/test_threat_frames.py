"""Threat cases F over real sockets: the exact Close, the end of TCP, and nobody else hears it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ..support import ROOT
from ..support.canary import Canary, watched
from ..support.client import CLOSED_WITHIN, Client, Ended, Wire, request
from ..support.frames import (
    CLOSE,
    MASK,
    PING,
    PONG,
    TEXT,
    ServerFrame,
    client_frame,
    close,
    more,
    ping,
    pong,
    text,
)
from ..support.server import ServerProcess, eventually, serving
from ..support.violations import PROTOCOL_ERROR, TOO_BIG, TOO_MANY_FRAGMENTS, VIOLATIONS

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("canary", "nobody_hears")]

ROOM_NUMBER = "f0" * 12
ROOM = f"group:{ROOM_NUMBER}"
OFFENDER, WITNESS = 1, 2
MIB = 1024 * 1024

SHOUT = text(json.dumps({"type": "message", "room": ROOM, "data": {"shout": 1}}))
"""A message everybody in the room would hear."""

PRESENCE = '{"type":"presence","id":"p"}'


@pytest.fixture(scope="module")
def room(server: ServerProcess) -> str:
    with server.store() as store:
        store.add_group("Everybody", id=ROOM_NUMBER)
        for character in (OFFENDER, WITNESS):
            store.add_member(ROOM_NUMBER, character)
    return ROOM


@pytest.fixture(scope="module")
def witness(server: ServerProcess, room: str) -> Iterator[Client]:
    """Somebody else in the offender's room."""
    client = server.connect("witness", WITNESS)
    server.keep(client.wire)
    assert client.rooms == ["user:witness", room]
    yield client
    client.close()


@pytest.fixture
def nobody_hears(witness: Client, canary: Canary) -> Iterator[None]:
    """Whatever happens in the test, the other member hears of comings and goings only."""
    witness.sync()
    yield
    heard = {message["type"] for message in witness.sync()}
    assert heard <= {"room_update"}, heard


@pytest.fixture
def offender(server: ServerProcess, witness: Client) -> Client:
    """A member of the room who is about to break the rules."""
    return server.connect("offender", OFFENDER)


@pytest.mark.parametrize("case", VIOLATIONS)
def test_violation_closes_with_its_code(offender: Client, case: str) -> None:
    stream, wanted = VIOLATIONS[case]
    # What stands behind the violation must not be handled any more.
    offender.wire.send(stream + SHOUT)
    assert offender.closing() == wanted


def test_all_violations_at_once_free_their_sockets_within_a_second(
    server: ServerProcess, witness: Client
) -> None:
    """TCP is closed by the server, also for clients that do not hang up themselves."""
    fds = server.fds()
    clients = {
        case: server.connect(f"many-{number}", OFFENDER) for number, case in enumerate(VIOLATIONS)
    }
    for case, client in clients.items():
        client.wire.send(VIOLATIONS[case][0] + SHOUT)
    for case, client in clients.items():
        assert client.closing() == VIOLATIONS[case][1], case
    eventually(lambda: server.fds() <= fds, "sockets are closed", within=CLOSED_WITHIN)


@pytest.mark.parametrize("declared", [2**62, 65_537], ids=["F06", "F07"])
def test_promised_memory_is_not_taken(
    server: ServerProcess, witness: Client, declared: int
) -> None:
    clients = [server.connect(f"big-{number}", OFFENDER) for number in range(50)]
    rss = server.rss()
    for client in clients:
        client.wire.send(client_frame(TEXT, b"x" * 10, declared=declared, width=8))
    for client in clients:
        assert client.closing() == TOO_BIG
    assert server.rss() - rss < 2 * MIB


def test_f10_fragments_take_no_memory(server: ServerProcess, witness: Client) -> None:
    clients = [server.connect(f"fragments-{number}", OFFENDER) for number in range(50)]
    rss = server.rss()
    for client in clients:
        client.wire.send(text("x", fin=False) + more(b"") * 126)
    for client in clients:
        client.wire.send(more(b"") * 100)
        assert client.closing() == TOO_MANY_FRAGMENTS
    assert server.rss() - rss < 2 * MIB


# ----------------------------------------------------------------------- what is allowed


def test_f07_message_of_the_largest_size(offender: Client) -> None:
    longest = PRESENCE + " " * (65_536 - len(PRESENCE))
    offender.wire.send(text(longest))
    assert offender.hear_until(lambda message: message.get("id") == "p")["type"] == "presence"


def test_f07_half_a_frame_and_silence(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"FALCON_PING_INTERVAL": "0.3", "FALCON_PING_TIMEOUT": "1"}
    with serving(tmp_path_factory.mktemp("pinging"), settings) as server:
        client = server.connect("u")
        client.wire.send(text(PRESENCE)[:10])
        # It is pinged, says nothing, and is given up.
        began = time.monotonic()
        assert client.wire.frame() == ServerFrame(PING, b"")
        assert client.closing() == (4001, "no pong")
        assert 0.5 <= time.monotonic() - began <= 5.0
        # A pong is life enough.
        client = server.connect("u")
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            assert client.wire.frame() == ServerFrame(PING, b"")
            client.wire.send(pong())


def test_f09_f10_fragments_up_to_both_limits(offender: Client) -> None:
    opening = text(PRESENCE, fin=False)
    offender.wire.send(opening + more(b" ") * 126 + more(b" ", fin=True))
    assert offender.hear_until(lambda message: message.get("id") == "p")
    offender.wire.send(
        opening + more(b" " * 32_000) + more(b" " * (33_536 - len(PRESENCE)), fin=True)
    )
    assert offender.hear_until(lambda message: message.get("id") == "p")


def test_fragments_with_control_frames_between(offender: Client) -> None:
    offender.wire.send(
        text(PRESENCE[:5], fin=False)
        + ping(b"in between")
        + more(PRESENCE[5:9].encode())
        + pong(b"unasked")
        + more(PRESENCE[9:].encode(), fin=True)
    )
    seen = [offender.wire.frame() for _ in range(2)]
    assert seen[0] == ServerFrame(PONG, b"in between")
    assert json.loads(seen[1].payload)["id"] == "p"


def test_f11_frame_in_single_octets(offender: Client) -> None:
    for stream in (
        text(PRESENCE),
        text(json.dumps({"type": "presence", "id": "p", "data": {"x": "y" * 300}})),
    ):
        for octet in stream:
            offender.wire.send(bytes([octet]))
        assert offender.hear_until(lambda message: message.get("id") == "p")


def test_f12_utf8_split_between_octets(offender: Client) -> None:
    name = "Ωμέγα € 𝄞 \U0010ffff"
    message = json.dumps(
        {"type": "message", "room": "user:offender", "data": {"n": name}}, ensure_ascii=False
    ).encode()
    for at in range(0, len(message), 3):
        offender.wire.send(text(message[:at], fin=False) + more(message[at:], fin=True))
        assert offender.hear_until(lambda heard: heard["type"] == "message")["data"] == {"n": name}


@pytest.mark.parametrize(
    "code",
    [
        1000,
        1001,
        1002,
        1003,
        1007,
        1008,
        1009,
        1010,
        1011,
        1012,
        1013,
        1014,
        3000,
        3999,
        4000,
        4999,
    ],
    ids=lambda code: f"F14-{code}",
)
def test_close_is_answered_with_its_code(offender: Client, code: int) -> None:
    offender.wire.send(close(code, "Lebewohl ✓".encode()) + SHOUT)
    assert offender.closing() == (code, "")


def test_f14_empty_close_is_answered_with_an_empty_one(offender: Client) -> None:
    offender.wire.send(close())
    frame = offender.wire.frame()
    while frame.opcode != CLOSE:
        frame = offender.wire.frame()
    assert frame == ServerFrame(CLOSE, b"")
    assert offender.wire.read_until_closed() == b""


def test_f15_nothing_is_handled_after_the_close(offender: Client) -> None:
    # That no shout is heard is looked after by the witness.
    offender.wire.send(close(1000) + SHOUT * 3 + ping(b"?") + close(1001) + SHOUT)
    assert offender.closing() == (1000, "")
    offender.wire.send(SHOUT)


# ------------------------------------------------------------------ ends without a goodbye


def left(witness: Client, ident: str) -> int:
    """Return how often the witness was told that a connection has left."""
    return sum(
        message["data"]
        == {
            "action": "member_left",
            "connection_id": ident,
            "member_count": 1,
            "room_id": ROOM,
        }
        for message in witness.sync()
    )


@pytest.mark.parametrize("kind", ["F16-fin", "F16-reset", "F16-reset-under-output", "F16-close"])
def test_end_is_told_once(
    server: ServerProcess, offender: Client, witness: Client, kind: str
) -> None:
    connections = server.connections()
    if kind == "F16-fin":
        offender.wire.finish()
        assert offender.wire.read_to_end(within=CLOSED_WITHIN) == b""
    elif kind == "F16-close":
        offender.wire.send(close(1000))
        assert offender.closing() == (1000, "")
    else:
        if kind == "F16-reset-under-output":
            for _ in range(50):
                offender.wire.send(text(PRESENCE))
        server.keep(offender.wire)
        offender.wire.send_reset()
    eventually(lambda: server.connections() == connections - 1, "it is gone")
    assert left(witness, offender.id) == 1


# ------------------------------------------------------------------------------ ping floods

PINGS = 100_000


def test_f17_ping_flood_of_a_reader(server: ServerProcess, offender: Client) -> None:
    rss = server.rss()
    flood = b"".join([ping(number.to_bytes(4, "big")) for number in range(PINGS)])
    pongs: list[int] = []
    for at in range(0, len(flood), 65_536):
        offender.wire.send(flood[at : at + 65_536])
    while not pongs or pongs[-1] != PINGS - 1:
        frame = offender.wire.frame()
        assert frame.opcode == PONG
        pongs.append(int.from_bytes(frame.payload, "big"))
    assert pongs == sorted(set(pongs)), "pongs answer pings in their order, each at most once"
    assert len(pongs) <= PINGS // 4, "of the pings read together, most need no answer"
    assert server.rss() - rss < 2 * MIB
    assert offender.sync() == []


def test_f18_ping_flood_of_who_does_not_read(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"FALCON_WRITE_TIMEOUT": "1"}
    with serving(tmp_path_factory.mktemp("flooded"), settings) as server:
        with Canary(server) as bird, watched(bird):
            flooder = server.connect("flooder", receive_buffer=4096)
            rss = server.rss()
            # As many as are answered one by one, so that the pongs pile up fast.
            some = ping(b"x" * 125) * 15
            until = time.monotonic() + 60
            highest = rss
            while flooder.id not in server.closes() and time.monotonic() < until:
                for _ in range(200):
                    flooder.wire.send(some)
                highest = max(highest, server.rss())
            assert server.closes()[flooder.id] == ("slow_consumer", 4000)
            assert highest - rss < 2 * MIB


# ---------------------------------------------------------------------------- F19, the echo


@pytest.fixture(scope="module")
def echo_port() -> Iterator[int]:
    """The echo server, which answers binary messages too."""
    process = subprocess.Popen(
        [sys.executable, "-m", "falcon_fast.testing", "--echo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
    finally:
        process.terminate()
        assert process.wait(15) == 0
        process.stdout.close()


@pytest.mark.parametrize(
    "mask",
    [bytes(4), MASK, b"\xff\xff\xff\xff", b"\0\0\0\1"],
    ids=["F19-zero", "F19-same", "F19-ones", "F19-one-bit"],
)
def test_masks_and_lengths_come_back_to_the_octet(echo_port: int, mask: bytes) -> None:
    wire = Wire(("127.0.0.1", echo_port))
    try:
        wire.send(request(path="/"))
        wire.read_head()
        source = random.Random(19)
        lengths = [*range(301), 4095, 4096, 65_531, 65_535, 65_536]
        payloads = [source.randbytes(length) for length in lengths]
        stream = b"".join([client_frame(2, payload, mask=mask) for payload in payloads])
        # Pieces of odd sizes, so that payloads begin and end at every alignment of a read.
        at = 0
        while at < len(stream):
            size = source.choice((1, 7, 333, 4099, 40_000))
            wire.send(stream[at : at + size])
            at += size
        for payload in payloads:
            assert wire.frame() == ServerFrame(2, payload)
    finally:
        wire.close()


def test_f19_every_split_of_a_frame_comes_back(echo_port: int) -> None:
    wire = Wire(("127.0.0.1", echo_port))
    try:
        wire.send(request(path="/"))
        wire.read_head()
        frame = client_frame(2, bytes(range(130)))
        for at in range(1, len(frame)):
            wire.send(frame[:at])
            wire.send(frame[at:] + ping())
            assert wire.frame() == ServerFrame(2, bytes(range(130)))
            assert wire.frame() == ServerFrame(PONG, b"")
    finally:
        wire.close()


def test_reset_of_a_server_that_lingers(server: ServerProcess, offender: Client) -> None:
    """A client that gets its Close and then goes on sending is cut off, and costs nothing more."""
    fds = server.fds()
    offender.wire.send(client_frame(3, b"x"))
    assert offender.closing() == PROTOCOL_ERROR
    until = time.monotonic() + CLOSED_WITHIN + 2.0
    while offender.wire.send(SHOUT * 10):
        assert time.monotonic() < until, "the server goes on reading"
        time.sleep(0.02)
    assert server.fds() < fds


def test_ended_is_raised_at_the_end(offender: Client) -> None:
    """The clients of these tests tell a lost connection from a closed one."""
    offender.wire.finish()
    with pytest.raises(Ended):
        offender.closing()
