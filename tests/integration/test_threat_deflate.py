"""Threat cases D over real sockets: what is agreed on, what is refused, and what it costs."""

from __future__ import annotations

import json
import os

import pytest

from falcon_fast.codes import CloseReason

from ..support.client import CLOSED_WITHIN, Client
from ..support.deflate import ANSWER, deflated, deflated_final, packed_text, plain
from ..support.frames import BINARY, TEXT, client_frame, more, text
from ..support.server import ServerProcess, eventually, offering, serving

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("canary")]

PROTOCOL_ERROR, INVALID, TOO_BIG = (
    (reason.code, reason.text)
    for reason in (
        CloseReason.PROTOCOL_ERROR,
        CloseReason.INVALID_PAYLOAD,
        CloseReason.MESSAGE_TOO_BIG,
    )
)

BOMB = deflated(bytes(64 << 20))
MIB = 1024 * 1024

MANY = ", ".join(["permessage-deflate; unknown_parameter"] * 200)
"""Nearly a whole header line of bad offers."""


def news(size: int = 2_000) -> dict[str, object]:
    return {"text": "all is well, " * (size // 13)}


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate; client_max_window_bits", ANSWER),
        ("permessage-deflate; server_max_window_bits=9", f"{ANSWER}; server_max_window_bits=9"),
        ('permessage-deflate; server_max_window_bits="15"', f"{ANSWER}; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits=7, permessage-deflate", ANSWER),
        ("permessage-deflate; server_max_window_bits=08", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", None),
        ('permessage-deflate; "', None),
        ("x-webkit-deflate-frame, permessage-deflate", ANSWER),
        (MANY, None),
    ],
)
def test_d01_offers(server: ServerProcess, offer: str, answer: str | None) -> None:
    """Whatever is offered: a 101, and a connection that works."""
    client = offering(server, "d01", offer=offer, answer=answer)
    reply = client.ask(type="system", data={"action": "ping"})
    assert reply["data"] == {"action": "pong"}
    client.close()


def test_compressed_both_ways(server: ServerProcess) -> None:
    room = server.group("Compressed", 41, 42, 43, 44)
    clients = [
        offering(server, "d-one", 41),
        offering(
            server,
            "d-two",
            42,
            offer="permessage-deflate; server_max_window_bits=10",
            answer=f"{ANSWER}; server_max_window_bits=10",
        ),
        server.connect("d-plain", 43),
    ]
    for n in range(20):
        frame = {"type": "message", "id": str(n), "room": room, "data": news(100 * n)}
        clients[0].wire.send(packed_text(json.dumps(frame)))
    for client in clients:
        heard = [client.hear_until(lambda m: m["type"] == "message") for _ in range(20)]
        assert [message["data"] for message in heard] == [news(100 * n) for n in range(20)]
        client.close()


def test_what_is_long_enough_is_compressed_on_the_wire(server: ServerProcess) -> None:
    client = offering(server, "d-long", 45)
    client.sync()
    client.say(type="message", id="i", to=client.id, data=news())
    sizes = []
    for _ in range(2):
        frame = client.wire.frame()
        message = json.loads(plain(frame).payload)
        sizes.append((message["type"], frame.compressed, len(frame.payload)))
    client.close()
    (_, compressed, size), (_, other, _) = sorted(sizes, key=lambda one: one[0] != "message")
    assert compressed
    assert size < 500
    assert not other, "an ack is short"


def test_d02_compressed_without_having_agreed(server: ServerProcess) -> None:
    for client in (server.connect("d02"), offering(server, "d02-b", offer="x-other", answer=None)):
        client.wire.send(packed_text('{"type":"heartbeat"}'))
        assert client.closing(CLOSED_WITHIN) == PROTOCOL_ERROR


def test_d03_d04_bombs_cost_nothing(server: ServerProcess) -> None:
    """64 KiB that would become 64 MiB, whole and in fragments, again and again."""
    whole = client_frame(BINARY, BOMB, rsv=4)
    pieces = [BOMB[at : at + 4_096] for at in range(0, len(BOMB), 4_096)]
    fragments = client_frame(BINARY, pieces[0], fin=False, rsv=4)
    fragments += b"".join([more(piece, fin=piece is pieces[-1]) for piece in pieces[1:]])

    def throw(number: int) -> None:
        client = offering(server, f"d03-{number}")
        client.wire.send((whole, fragments)[number % 2])
        assert client.closing(CLOSED_WITHIN) == TOO_BIG

    throw(0)
    throw(1)  # what zlib needs once, and the first pages of buffers
    before = server.rss()
    for number in range(2, 60):
        throw(number)
    eventually(lambda: server.rss() - before < MIB, "the memory is where it was")


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff", deflated(b"{}" * 50)[:-3], b"\x00\x05\x00\xfa\xfehello\x00", b"\x03\x00\xff"],
    ids=bytes.hex,
)
def test_d05_corrupt(server: ServerProcess, data: bytes) -> None:
    client = offering(server, "d05")
    client.wire.send(client_frame(TEXT, data, rsv=4))
    assert client.closing(CLOSED_WITHIN) == INVALID


def test_d06_a_last_block_and_then_another_message(server: ServerProcess) -> None:
    client = offering(server, "d06")
    for number in range(3):
        ping = json.dumps({"type": "system", "id": str(number), "data": {"action": "ping"}})
        client.wire.send(client_frame(TEXT, deflated_final(ping.encode()), rsv=4))
        assert client.hear_until(lambda m: m.get("id") is not None)["id"] == str(number)
    client.close()


def test_d10_no_token_is_in_what_is_compressed(server: ServerProcess) -> None:
    """Nothing secret stands beside what others can choose: a token never comes back."""
    token = server.token("d10", 46)
    client = Client(server.wire())
    client.open(token=token, offer="permessage-deflate", answer=ANSWER)
    client.enter()
    client.say(type="message", id="1", to=client.id, data=news())
    client.say(type="auth", id="2", data={"token": token})
    client.say(type="message", id="3", data={"token": "guess " * 200})
    client.say(type="system", id="4", data={"action": "ping"})
    heard = [client.welcome]
    while heard[-1].get("id") != "4":
        heard.append(client.hear())
    client.close()
    for part in token.split("."):
        assert part not in json.dumps(heard)


def test_compression_can_be_switched_off(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"FALCON_COMPRESSION": "0"}
    with serving(tmp_path_factory.mktemp("off"), settings) as server:
        client = offering(server, "off", answer=None)
        client.wire.send(text('{"type":"heartbeat"}'))
        assert client.hear()["type"] == "presence"
        client.wire.send(packed_text('{"type":"heartbeat"}'))
        assert client.closing(CLOSED_WITHIN) == PROTOCOL_ERROR


def test_the_threshold_is_set(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"FALCON_COMPRESSION_MIN_BYTES": "50", "FALCON_COMPRESSION_LEVEL": "9"}
    with serving(tmp_path_factory.mktemp("low"), settings) as server:
        client = Client(server.wire())
        client.open(token=server.token("low"), offer="permessage-deflate", answer=ANSWER)
        assert client.wire.frame().compressed, "the welcome"
        client.close()


def test_noise_of_full_size(server: ServerProcess) -> None:
    """What does not compress is longer on the wire than the limit, and is allowed."""
    client = offering(server, "d-noise")
    filler = os.urandom(24_000).hex()
    payload = json.dumps({"type": "system", "id": "n", "data": {"action": "ping", "x": filler}})
    payload += " " * (65_536 - len(payload))
    client.wire.send(client_frame(TEXT, deflated(payload.encode(), level=0), rsv=4))
    assert client.hear()["id"] == "n"
    client.close()
