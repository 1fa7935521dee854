"""Every limit of one node is crossed once over real sockets, and nobody else is touched by it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from ..support.canary import Canary, watched
from ..support.client import Answer, Client, Closed, Ended, Message, request
from ..support.frames import more, text
from ..support.heads import add
from ..support.server import ServerProcess, eventually, serving

pytestmark = pytest.mark.integration

MIB = 1024 * 1024

HEAD_BYTES = 2048
HANDSHAKE_TIMEOUT = 1.0
BURST = 5
PER_USER = 3
MESSAGE_BYTES = 1024
FRAGMENTS = 4
JSON_DEPTH = 4
MESSAGE_RATE = 50
MESSAGE_BURST = 20
ROOMS = 3

FLOOD_SECONDS = 10.0
"""How long a client may go on above its message rate; fixed."""

_sources = (f"127.0.2.{number}" for number in itertools.count(1))


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {
        "FALCON_MAX_HEAD_BYTES": str(HEAD_BYTES),
        "FALCON_HANDSHAKE_TIMEOUT": str(HANDSHAKE_TIMEOUT),
        "FALCON_CONNECTION_RATE": "0.5",
        "FALCON_CONNECTION_BURST": str(BURST),
        "FALCON_TRUSTED_PROXIES": "127.0.3.0/24",
        "FALCON_MAX_CONNECTIONS_PER_USER": str(PER_USER),
        "FALCON_MAX_MESSAGE_BYTES": str(MESSAGE_BYTES),
        "FALCON_MAX_FRAGMENTS": str(FRAGMENTS),
        "FALCON_MAX_JSON_DEPTH": str(JSON_DEPTH),
        "FALCON_MESSAGE_RATE": str(MESSAGE_RATE),
        "FALCON_MESSAGE_BURST": str(MESSAGE_BURST),
        "FALCON_MAX_ROOMS": str(ROOMS),
    }


@pytest.fixture
def source() -> str:
    """An address that has made no connection yet."""
    return next(_sources)


def refused(status: int, phrase: str, **headers: str) -> Answer:
    return Answer(
        status,
        {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(phrase)),
            "Connection": "close",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        },
        phrase.encode(),
    )


# ------------------------------------------------------------------------ before the 101


@pytest.mark.usefixtures("canary")
def test_max_head_bytes(server: ServerProcess, source: str) -> None:
    good = request(token=server.token("u"))
    longest = add(good, b"X: " + b"x" * (HEAD_BYTES - len(good) - len(b"X: \r\n")))
    assert len(longest) == HEAD_BYTES
    wire = server.wire(source=source)
    wire.send(longest)
    assert wire.read_head().startswith(b"HTTP/1.1 101 ")
    answer = server.ask(longest.replace(b"X: ", b"X: x"), source=source)
    assert answer == refused(431, "Request Header Fields Too Large")


@pytest.mark.usefixtures("canary")
def test_handshake_timeout(server: ServerProcess, source: str) -> None:
    wire = server.wire(source=source)
    began = time.monotonic()
    wire.send(request(token=server.token("u"))[:-2])
    assert wire.read_to_end() == b""
    assert HANDSHAKE_TIMEOUT - 0.2 <= time.monotonic() - began <= HANDSHAKE_TIMEOUT + 2.0


def connects(server: ServerProcess, source: str, *lines: str) -> bool:
    """Try to connect; a refusal must be the right one."""
    wire = server.wire(source=source)
    wire.send(request(*lines, token=server.token("u")))
    if wire.read_head().startswith(b"HTTP/1.1 101 "):
        wire.close()
        return True
    wire.close()
    return False


@pytest.mark.usefixtures("canary")
def test_connection_burst_and_rate(server: ServerProcess, source: str) -> None:
    for _ in range(BURST):
        assert connects(server, source)
    answer = server.ask(request(token=server.token("u")), source=source)
    wait = answer.headers["Retry-After"]
    assert wait in {"1", "2"}
    assert answer == refused(429, "Too Many Requests", Retry_After=wait)
    # A wrong token is told no more than a right one, and costs as much.
    assert server.ask(request(token="x"), source=source).status == 429
    assert connects(server, next(_sources)), "another address is not touched"
    eventually(lambda: connects(server, source), "it may come again", within=int(wait) + 2.0)


@pytest.mark.usefixtures("canary")
def test_h16_forwarded_for_counts_only_from_trusted_proxies(
    server: ServerProcess, source: str
) -> None:
    def attempts(address: str, *, forged: bool = False) -> list[bool]:
        client = "X-Forwarded-For: {}198.51.100.{}"
        return [
            connects(server, address, client.format("1.1.1.1, " if forged else "", number))
            for number in range(BURST + 1)
        ]

    assert attempts(source) == [True] * BURST + [False], "anybody may write such a header"
    assert attempts("127.0.3.1") == [True] * (BURST + 1), "each is another client of the proxy"
    forged = [
        connects(server, "127.0.3.2", f"X-Forwarded-For: 1.1.1.{number}, 203.0.113.9")
        for number in range(BURST + 1)
    ]
    assert forged == [True] * BURST + [False], "what the client itself wrote is not believed"


@pytest.mark.usefixtures("canary")
def test_r01_connections_of_a_user_reject(server: ServerProcess, source: str) -> None:
    first = [server.connect("many", source=source) for _ in range(PER_USER)]
    wire = server.wire(source=source)
    wire.send(request(token=server.token("many")))
    assert wire.read_head().startswith(b"HTTP/1.1 101 ")
    # Not even welcomed.
    assert wire.frame().code == 4409
    assert wire.read_until_closed() == b""
    for client in first:
        assert all(message["type"] == "room_update" for message in client.sync())
    connections = server.connections()
    first[0].close()
    eventually(lambda: server.connections() < connections, "one is gone")
    server.connect("many", source=source)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A node for few, where a user's newest connections win."""
    settings = {
        "FALCON_MAX_CONNECTIONS": "6",
        "FALCON_MAX_CONNECTIONS_PER_USER": "2",
        "FALCON_CONNECTION_LIMIT_POLICY": "replace",
    }
    with serving(tmp_path_factory.mktemp("small"), settings) as small:
        yield small


@pytest.fixture(scope="module")
def small_bird(small: ServerProcess) -> Iterator[Canary]:
    with Canary(small) as bird:
        yield bird


def test_connections_of_a_user_replace(small: ServerProcess, small_bird: Canary) -> None:
    with watched(small_bird):
        clients = [small.connect("many") for _ in range(2)]
        for _ in range(3):
            clients.append(small.connect("many"))
            assert clients.pop(0).closing() == (4410, "replaced by a newer connection")
        for client in clients:
            assert all(message["type"] == "room_update" for message in client.sync())


def test_r01_max_connections(small: ServerProcess, small_bird: Canary) -> None:
    with watched(small_bird):
        clients = [small.connect(f"u{number}") for number in range(4)]
        for _ in range(3):
            answer = small.ask(request(token=small.token("late")))
            assert answer == refused(503, "Service Unavailable", Retry_After="5")
        assert small.get("/healthz").body == b"ok\n"
        for client in clients:
            assert client.sync() == []
        clients[0].close()
        eventually(lambda: small.connections() < 6, "one is gone")
        small.connect("late")


# ------------------------------------------------------------------------------ messages


@pytest.mark.usefixtures("canary")
def test_max_message_bytes(server: ServerProcess, source: str) -> None:
    client = server.connect("u", source=source)
    longest = '{"type":"presence"}'.ljust(MESSAGE_BYTES)
    client.wire.send(text(longest))
    assert client.hear()["type"] == "presence"
    client.wire.send(text(longest + " "))
    assert client.closing() == (1009, "message too big")


@pytest.mark.usefixtures("canary")
def test_max_fragments(server: ServerProcess, source: str) -> None:
    client = server.connect("u", source=source)
    opening = text('{"type":"presence"}', fin=False)
    client.wire.send(opening + more(b"") * (FRAGMENTS - 2) + more(b"", fin=True))
    assert client.hear()["type"] == "presence"
    client.wire.send(opening + more(b"") * (FRAGMENTS - 1) + more(b"", fin=True))
    assert client.closing() == (1008, "too many fragments in one message")


@pytest.mark.usefixtures("canary")
def test_max_json_depth(server: ServerProcess, source: str) -> None:
    client = server.connect("u", source=source)
    assert client.ask(type="presence", data={"a": {"b": {"c": 1}}})["type"] == "presence"
    client.say(type="presence", data={"a": {"b": {"c": []}}})
    assert client.hear()["data"]["code"] == "bad_request"
    assert client.sync() == []


@pytest.mark.usefixtures("canary")
def test_message_burst_and_rate(server: ServerProcess, source: str) -> None:
    client = server.connect("u", source=source)
    number = 3 * MESSAGE_BURST
    client.wire.send(b"".join([text(f'{{"type":"presence","id":"{n}"}}') for n in range(number)]))
    handled: list[int] = []
    not_handled = 0
    while len(handled) + not_handled < number:
        message = client.hear()
        if message["type"] == "presence":
            handled.append(int(message["id"]))
        else:
            data = message["data"]
            assert (data["code"], data["retryable"]) == ("rate_limited", True)
            not_handled += data["refused"]
    assert handled[:MESSAGE_BURST] == list(range(MESSAGE_BURST))
    assert not_handled > 0
    # Who slows down is heard again.
    time.sleep(5 / MESSAGE_RATE)
    assert client.sync() == []


@pytest.mark.usefixtures("canary")
def test_r04_flood_of_ten_seconds(server: ServerProcess, source: str) -> None:
    client = server.connect("u", source=source)
    some = text('{"type":"presence"}') * 5
    answers = {"presence": 0, "error": 0}
    began = time.monotonic()
    end: Closed | None = None
    while end is None and time.monotonic() - began < FLOOD_SECONDS + 10:
        client.wire.send(some)
        try:
            while True:
                answers[client.hear(within=0.01)["type"]] += 1
        except TimeoutError:
            continue
        except Closed as closed:
            end = closed
    lasted = time.monotonic() - began
    assert end is not None
    assert (end.code, end.reason) == (4003, "rate limited")
    assert FLOOD_SECONDS - 0.5 <= lasted <= FLOOD_SECONDS + 5
    assert answers["error"] > 0
    assert answers["presence"] > MESSAGE_BURST


@pytest.mark.usefixtures("canary")
def test_max_rooms(server: ServerProcess, source: str) -> None:
    rooms = sorted([server.group(f"Group {number}", 31) for number in range(ROOMS + 2)])
    client = Client(server.wire(source=source))
    client.open(token=server.token("collector", 31))
    assert client.hear()["type"] == "system_notification"
    refusal = client.hear()
    assert (refusal["type"], refusal["data"]["code"]) == ("error", "limit")
    joined = client.hear()
    assert joined["data"] == {
        "action": "joined",
        "rooms": ["user:collector", *rooms[: ROOMS - 1]],
    }
    # Out of one of them there is room for another, but only for one's own.
    data = {"action": "leave"}
    assert client.ask(type="system", room=rooms[0], data=data)["type"] == "ack"
    assert client.ask(type="system", room=rooms[0], data={"action": "join"})["type"] == "ack"


@pytest.mark.usefixtures("canary")
def test_many_presence_subscriptions(server: ServerProcess, source: str) -> None:
    client = server.connect("curious", source=source)
    for at in range(0, 1000, 50):
        users = [f"u{number}" for number in range(at, at + 50)]
        data = {"action": "subscribe_presence", "user_ids": users}
        assert client.ask(type="system", data=data)["type"] == "ack"
        time.sleep(1 / MESSAGE_RATE)
    data = {"action": "subscribe_presence", "user_ids": ["one-more"]}
    assert client.ask(type="system", data=data)["data"]["code"] == "limit"


# ----------------------------------------------------------------------- slow consumers

UNLIMITED = {
    "FALCON_MESSAGE_RATE": "1000000",
    "FALCON_MESSAGE_BURST": "1000000",
    "FALCON_MAX_QUEUE_BYTES": "1073741824",
    "FALCON_MAX_QUEUE_MESSAGES": "1000000",
    "FALCON_WRITE_TIMEOUT": "600",
}

QUEUES = {
    "bytes": {"FALCON_MAX_QUEUE_BYTES": "262144"},
    "messages": {"FALCON_MAX_QUEUE_MESSAGES": "16"},
    "write-timeout": {"FALCON_WRITE_TIMEOUT": "1"},
}

SLOW, SENDER, READER = 1, 2, 3
FILLING = "x" * 30_000
MOST = 300
"""Messages after which no kernel has buffers left for somebody who does not read."""


@pytest.mark.parametrize("limit", QUEUES, ids=lambda limit: f"R02-{limit}")
def test_slow_consumer(tmp_path_factory: pytest.TempPathFactory, limit: str) -> None:
    settings = {**UNLIMITED, **QUEUES[limit]}
    with serving(tmp_path_factory.mktemp("slow"), settings) as server:
        room = server.group("Everybody", SLOW, SENDER, READER)
        with Canary(server) as bird, watched(bird):
            reader = server.connect("reader", READER)
            sender = server.connect("sender", SENDER)
            slow = server.connect("slow", SLOW, receive_buffer=4096)
            assert slow.rooms == ["user:slow", room]
            began = time.monotonic()
            passed: list[Message] = []
            for number in range(MOST):
                sender.say(type="message", room=room, data={"n": number, "x": FILLING})
                for other in (sender, reader):
                    heard = other.hear_message(passed if other is reader else [])
                    assert heard["data"]["n"] == number
                if slow.id in server.closes():
                    break
            eventually(lambda: slow.id in server.closes(), "the slow one is closed")
            lasted = time.monotonic() - began
            assert server.closes()[slow.id] == ("slow_consumer", 4000)
            if limit == "write-timeout":
                assert lasted >= 1.0
            assert heard_by(slow)
            # The news may have come before the messages that were sent until it was in the log.
            told = [*passed, *reader.sync()]
            assert ("member_left", slow.id) in [
                (one["data"].get("action"), one["data"].get("connection_id")) for one in told
            ]


def heard_by(slow: Client) -> list[int]:
    """Read what is left for a slow consumer: messages without a gap, then 4000 or just the end.

    The Close comes behind the message that the client has begun to receive; whether the client
    reads that far before the server gives up its socket is up to the client.
    """
    numbers: list[int] = []
    end: Closed | Ended | None = None
    while end is None:
        try:
            message = slow.hear()
        except (Closed, Ended) as error:
            end = error
        else:
            if message["type"] == "message":
                numbers.append(message["data"]["n"])
    if isinstance(end, Closed):
        assert (end.code, end.reason) == (4000, "slow consumer")
    assert numbers == list(range(len(numbers)))
    return numbers


def test_r03_many_slow_consumers_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    number, queue = 30, 262_144
    settings = {**UNLIMITED, "FALCON_MAX_QUEUE_BYTES": str(queue)}
    with serving(tmp_path_factory.mktemp("slow"), settings) as server:
        room = server.group("Everybody", SLOW, SENDER)
        with Canary(server) as bird, watched(bird):
            sender = server.connect("sender", SENDER)
            slow = [server.connect(f"slow-{n}", SLOW, receive_buffer=4096) for n in range(number)]
            base = highest = server.rss()
            for n in range(MOST):
                sender.say(type="message", room=room, data={"n": n, "x": FILLING})
                sender.hear_until(lambda message: message["type"] == "message")
                highest = max(highest, server.rss())
                if len(server.closes()) == number:
                    break
            assert server.closes() == {client.id: ("slow_consumer", 4000) for client in slow}
            assert highest - base < number * (queue + MIB // 10)
            for client in slow:
                heard_by(client)


def test_the_limits_are_those_of_the_log(server: ServerProcess) -> None:
    """A sanity check of this module: nothing here was closed for a reason it was not closed for."""
    reasons = {reason for reason, _ in server.closes().values()}
    assert reasons <= {
        "connection_lost",
        "connection_limit",
        "message_too_big",
        "too_many_fragments",
        "rate_limited",
    }
