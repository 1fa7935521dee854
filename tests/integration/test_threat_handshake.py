"""Threat cases H over real sockets: every opening handshake gets its exact answer, or its end."""

from __future__ import annotations

import base64
import json
import select
import time
from collections.abc import Iterator

import pytest

from ..support import heads
from ..support.canary import Canary, watched
from ..support.client import CLOSED_WITHIN, Answer, Client, Wire, request, switching
from ..support.frames import CLOSE, TEXT, text
from ..support.server import ServerProcess, eventually, serving

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("canary")]

TIMEOUT = 1.0
"""FALCON_HANDSHAKE_TIMEOUT of the hasty server, in seconds."""

LATE = 2.0
"""Seconds by which a deadline may be missed on a busy machine."""

CROWD = 100

KEY = "dGhlIHNhbXBsZSBub25jZQ=="

PHRASES = {
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    414: b"URI Too Long",
    426: b"Upgrade Required",
    431: b"Request Header Fields Too Large",
    505: b"HTTP Version Not Supported",
}


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    origins = {heads.field(head, b"Origin") for head in heads.BROWSERS.values()}
    return {"WEBSOCKET_ALLOWED_ORIGINS": ",".join(sorted(origins))}


def refusal(status: int, *headers: str, body: bytes | None = None) -> bytes:
    """Return the whole answer of a refusal, to the octet."""
    body = PHRASES[status] if body is None else body
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    extra = "".join([f"{line}\r\n" for line in headers])
    return (
        f"HTTP/1.1 {status} {PHRASES[status].decode()}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\n{length}Connection: close\r\n{extra}\r\n"
    ).encode() + body


UPGRADE_REQUIRED = refusal(
    426, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"
)


def refused(server: ServerProcess, head: bytes) -> bytes:
    """Return the whole answer to a head; the connection must end within a second after it."""
    wire = server.wire()
    wire.send(head)
    return wire.read_until_closed()


DEFLATE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
"""What browsers are answered, all of which leave the window to the server."""


def head(server: ServerProcess, user: str = "h", *lines: str) -> bytes:
    """Return a good opening handshake."""
    return request(*lines, token=server.token(user))


def admitted(
    wire: Wire, subprotocol: str | None = None, key: str = KEY, extension: str | None = None
) -> Client:
    """Read the 101 and what follows it."""
    assert wire.read_head() == switching(key, subprotocol, extension)
    client = Client(wire)
    client.enter()
    return client


# --------------------------------------------------------------------------------------- H01, H02


@pytest.mark.parametrize("browser", heads.BROWSERS)
def test_h01_browser_head_is_answered_to_the_octet(server: ServerProcess, browser: str) -> None:
    sent = heads.BROWSERS[browser].replace(b"h.p.s", server.token(browser).encode())
    wire = server.wire()
    wire.send(sent)
    offered = b"Sec-WebSocket-Protocol" in sent
    key = heads.field(sent, b"Sec-WebSocket-Key")
    compressed = DEFLATE if b"permessage-deflate" in sent else None
    client = admitted(wire, "falcon.v1" if offered else None, key, compressed)
    assert client.rooms == [f"user:{browser}"]


@pytest.mark.parametrize(
    "values",
    [
        (b"keep-alive, Upgrade",),
        (b"upgrade,foo",),
        (b"keep-alive", b"Upgrade"),
        (b"UPGRADE",),
        (b"keep-alive ,\tUpgrade , ",),
    ],
    ids=["H02-firefox", "H02-foo", "H02-two-headers", "H02-upper", "H02-blanks"],
)
def test_connection_is_a_list_of_tokens(server: ServerProcess, values: tuple[bytes, ...]) -> None:
    wire = server.wire()
    wire.send(heads.swap(head(server), b"Connection", *values))
    admitted(wire)


# ------------------------------------------------------------------------------- H03 to H08, H15


@pytest.mark.parametrize(
    "values",
    [(), (b"a", b"b"), (b"",), (b"a b",), (b"a", b"a")],
    ids=["H03-none", "H03-two", "H03-empty", "H03-blank", "H03-twice-the-same"],
)
def test_host_must_be_there_once(server: ServerProcess, values: tuple[bytes, ...]) -> None:
    assert refused(server, heads.swap(head(server), b"Host", *values)) == refusal(400)


@pytest.mark.parametrize(
    "values",
    [(b"7",), (b"8",), (b"12",), (b"99",), (), (b"13, 8",), (b"13", b"13"), (b"013",)],
    ids=lambda values: "H04-" + b"+".join(values).decode().replace(", ", "-"),
)
def test_version_must_be_13(server: ServerProcess, values: tuple[bytes, ...]) -> None:
    sent = heads.swap(head(server), b"Sec-WebSocket-Version", *values)
    assert refused(server, sent) == UPGRADE_REQUIRED


@pytest.mark.parametrize(
    "values",
    [
        (),
        (KEY.encode(), KEY.encode()),
        (base64.b64encode(bytes(15)),),
        (base64.b64encode(bytes(17)),),
        (b"not base64 at all!!!!!==",),
        (b"AAAAAAAAAAAAAAAAAAAAAB==",),
        (b"!!" + KEY.encode(),),
        (b"",),
    ],
    ids=[
        "H05-none",
        "H05-two",
        "H05-15-octets",
        "H05-17-octets",
        "H05-no-base64",
        "H05-not-canonical",
        "H05-marks-before",
        "H05-empty",
    ],
)
def test_key_must_be_right(server: ServerProcess, values: tuple[bytes, ...]) -> None:
    assert refused(server, heads.swap(head(server), b"Sec-WebSocket-Key", *values)) == refusal(400)


@pytest.mark.parametrize(
    "old, new, answer",
    [
        (b"GET ", b"POST ", refusal(405, "Allow: GET")),
        (b"GET ", b"HEAD ", refusal(405, "Allow: GET", body=b"")),
        (b"GET ", b"CONNECT ", refusal(405, "Allow: GET")),
        (b"GET ", b"OPTIONS ", refusal(405, "Allow: GET")),
        (b"GET ", b"get ", refusal(405, "Allow: GET")),
        (b"GET /websocket/connect", b"GET /websocket/connect/", refusal(404)),
        (b"GET /websocket/connect", b"GET /", refusal(404)),
        (b"GET /websocket/connect", b"GET //websocket/connect", refusal(404)),
        (b"GET /websocket/connect", b"GET /websocket/%63onnect", refusal(404)),
        (b"GET /websocket/connect", b"GET *", refusal(400)),
        (b"GET /websocket/connect", b"GET localhost:80", refusal(400)),
        (b"HTTP/1.1", b"HTTP/1.0", refusal(505)),
        (b"HTTP/1.1", b"HTTP/2.0", refusal(505)),
        (b"HTTP/1.1", b"HTTP/1.10", refusal(400)),
        (b"HTTP/1.1", b"http/1.1", refusal(400)),
        (b" HTTP/1.1", b"", refusal(400)),
        (b"GET /", b"GET  /", refusal(400)),
    ],
    ids=[
        "H06-post",
        "H06-head",
        "H06-connect",
        "H06-options",
        "H06-lower-case",
        "H06-slash-behind",
        "H06-root",
        "H06-two-slashes",
        "H06-escaped",
        "H06-asterisk",
        "H06-authority",
        "H06-http-1.0",
        "H06-http-2.0",
        "H06-http-1.10",
        "H06-lower-case-version",
        "H06-http-0.9",
        "H06-two-blanks",
    ],
)
def test_wrong_request_line(server: ServerProcess, old: bytes, new: bytes, answer: bytes) -> None:
    assert refused(server, head(server).replace(old, new, 1)) == answer


@pytest.mark.parametrize(
    "sent, answer",
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", refusal(505)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", refusal(400)),
        (b"\r\n\r\n", refusal(400)),
        (b"hello\r\n\r\n", refusal(400)),
        (b"\0" * 64 + b"\r\n\r\n", refusal(400)),
    ],
    ids=["H06-http2-preface", "H06-tls", "H06-empty", "H06-hello", "H06-zeros"],
)
def test_something_else_than_http(server: ServerProcess, sent: bytes, answer: bytes) -> None:
    assert refused(server, sent) == answer


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 5",),
        (b"Transfer-Encoding: chunked",),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 0", b"Content-Length: 0"),
        (b"Content-Length: +0",),
        (b"Content-Length: 0x0",),
        (b"Content-Length: 00",),
        (b"Content-Length: -1",),
        (b"Content-Length: 0, 0",),
        (b"Content-Length:",),
        (b"Transfer-Encoding: identity",),
    ],
    ids=[
        "H07-length",
        "H07-chunked",
        "H07-both",
        "H07-zero-twice",
        "H07-plus",
        "H07-hex",
        "H07-two-zeros",
        "H07-minus",
        "H07-list",
        "H07-empty",
        "H07-identity",
    ],
)
def test_a_body_is_refused_and_never_read_as_frames(
    server: ServerProcess, lines: tuple[bytes, ...]
) -> None:
    # What looks like a body would be answered by a Close frame if it were read as frames.
    sent = heads.add(head(server), *lines) + b"\x88\x80\0\0\0\0"
    assert refused(server, sent) == refusal(400)


def test_h07_zero_length_alone_is_no_body(server: ServerProcess) -> None:
    wire = server.wire()
    wire.send(heads.add(head(server), b"Content-Length: 0"))
    admitted(wire)


@pytest.mark.parametrize(
    "line",
    [
        b"Host : x",
        b" Host: x",
        b"\tfolded",
        b"X: a\nY: b",
        b"X: a\rY: b",
        b"X: a\0b",
        b"X: a\x0bb",
        b"X: a\x7fb",
        b"X\t: a",
        b"X(): a",
        b"X\xe9: a",
        b": a",
        b"no colon",
        b"Transfer-Encoding\x0b: chunked",
        # H15: what would be a header of ours if it were reflected
        b"Sec-WebSocket-Protocol: falcon.v1\r\n Set-Cookie: a=b",
        b"Sec-WebSocket-Protocol: falcon.v1\rSet-Cookie: a=b",
        b"Sec-WebSocket-Protocol: falcon.v1\nSet-Cookie: a=b",
    ],
    ids=[
        "H08-blank-before-colon",
        "H08-obs-fold",
        "H08-obs-fold-tab",
        "H08-bare-lf",
        "H08-bare-cr",
        "H08-nul",
        "H08-vt",
        "H08-del",
        "H08-tab-before-colon",
        "H08-no-token",
        "H08-latin-1-name",
        "H08-no-name",
        "H08-no-colon",
        "H08-vt-in-name",
        "H15-obs-fold",
        "H15-cr",
        "H15-lf",
    ],
)
def test_smuggling(server: ServerProcess, line: bytes) -> None:
    assert refused(server, heads.add(head(server), line)) == refusal(400)


def test_h08_head_of_bare_line_feeds(server: ServerProcess) -> None:
    assert refused(server, head(server).replace(b"\r\n", b"\n")) == refusal(400)


@pytest.mark.parametrize("path", ["/%0d%0aSet-Cookie:a=b", "/?a=%0d%0aX:y"])
def test_h15_target_is_not_reflected(server: ServerProcess, path: str) -> None:
    assert refused(server, request(path=path)) == refusal(404)


# --------------------------------------------------------------------------------------- H09, H17


def padded(good: bytes, size: int) -> bytes:
    """Fill a head up to a size with lines of legal length."""
    while size - len(good) > 4096 + 64:
        good = heads.add(good, b"X-Padding: " + b"x" * 4000)
    return heads.add(good, b"X-Rest: " + b"x" * (size - len(good) - len(b"X-Rest: \r\n")))


def with_lines(good: bytes, number: int) -> bytes:
    """Add header lines until there are that many."""
    have = good.count(b"\r\n") - 2
    return heads.add(good, *[b"a: b"] * (number - have))


def with_target(server: ServerProcess, size: int) -> bytes:
    path = "/websocket/connect?"
    return request(token=server.token("h"), path=path + "x" * (size - len(path)))


def test_h09_head_at_its_limits_is_accepted(server: ServerProcess) -> None:
    good = head(server)
    line = b"X: " + b"x" * (8192 - 3)
    for sent in (
        padded(good, 16_384),
        heads.add(good, line),
        with_lines(good, 100),
        with_target(server, 8192),
    ):
        wire = server.wire()
        wire.send(sent)
        admitted(wire).close()


def test_h09_head_beyond_its_limits_is_refused(server: ServerProcess) -> None:
    good = head(server)
    line = b"X: " + b"x" * (8193 - 3)
    assert refused(server, padded(good, 16_385)) == refusal(431)
    assert refused(server, heads.add(good, line)) == refusal(431)
    assert refused(server, with_lines(good, 101)) == refusal(431)
    assert refused(server, with_target(server, 8193)) == refusal(414)


def test_h09_endless_head_is_refused_while_it_comes(server: ServerProcess) -> None:
    assert refused(server, padded(head(server), 17_000)[:-2]) == refusal(431)
    assert refused(server, b"GET /" + b"x" * 20_000) == refusal(414)
    assert refused(server, b"x" * 20_000) == refusal(431)


def test_h17_two_thousand_headers(server: ServerProcess) -> None:
    assert refused(server, heads.add(head(server), *[b"a:b"] * 2000)) == refusal(431)


# --------------------------------------------------------------------------------------- H10, H11


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that gives a handshake one second."""
    settings = {"FALCON_HANDSHAKE_TIMEOUT": str(TIMEOUT)}
    with serving(tmp_path_factory.mktemp("hasty"), settings) as hasty:
        yield hasty


@pytest.fixture(scope="module")
def hasty_bird(hasty: ServerProcess) -> Iterator[Canary]:
    with Canary(hasty) as bird:
        yield bird


def ends_of(wires: list[Wire], *, drip: bytes, every: float) -> list[float]:
    """Send one octet each now and then, and return the seconds until each connection ended."""
    began = time.monotonic()
    ends: dict[Wire, float] = {}
    sent = 0
    while len(ends) < len(wires) and time.monotonic() - began < TIMEOUT + 3 * LATE:
        waiting = {wire.socket: wire for wire in wires if wire not in ends}
        for readable in select.select(list(waiting), [], [], every)[0]:
            wire = waiting[readable]
            assert not wire.read(), "nothing was to be answered"
            ends[wire] = time.monotonic() - began
        sent += 1
        for wire in wires:
            if wire not in ends and drip:
                wire.send(drip[sent % len(drip) :][:1])
    assert len(ends) == len(wires), f"{len(wires) - len(ends)} connections were left open"
    return list(ends.values())


def test_h10_slowloris_from_many_addresses(hasty: ServerProcess, hasty_bird: Canary) -> None:
    with watched(hasty_bird):
        rss = hasty.rss()
        wires = [hasty.wire(source=f"127.0.1.{1 + number}") for number in range(CROWD)]
        opened = time.monotonic()
        eventually(lambda: hasty.fds() > CROWD, "all are accepted")
        # The deadline runs from the accept; when the last was made, the first had run this long.
        head_start = time.monotonic() - opened + 1.0
        ends = ends_of(wires, drip=b"GET / HTTP/1.1\r\nX: y", every=0.1)
        assert min(ends) >= TIMEOUT - head_start
        assert max(ends) <= TIMEOUT + LATE
        assert hasty.rss() - rss < 20 * 1024 * 1024


def test_h11_silence_ends_at_the_deadline(hasty: ServerProcess, hasty_bird: Canary) -> None:
    with watched(hasty_bird):
        silent, half = hasty.wire(), hasty.wire()
        half.send(head(hasty)[:60])
        ends = ends_of([silent, half], drip=b"", every=0.1)
        assert min(ends) >= TIMEOUT - 0.5
        assert max(ends) <= TIMEOUT + LATE


def test_h11_half_a_head_and_the_end(server: ServerProcess) -> None:
    wire = server.wire()
    wire.send(head(server)[:60])
    wire.finish()
    assert wire.read_to_end(within=CLOSED_WITHIN) == b""


def test_h11_reset_in_the_head(server: ServerProcess) -> None:
    fds = server.fds()
    for size in (0, 1, 60, 200):
        wire = server.wire()
        wire.send(head(server)[:size])
        server.keep(wire)
        wire.send_reset()
    eventually(lambda: server.fds() <= fds, "the descriptors are given back")


def test_h11_reset_behind_the_head(server: ServerProcess) -> None:
    for number in range(20):
        wire = server.wire()
        wire.send(head(server, f"reset-{number}"))
        server.keep(wire)
        wire.send_reset()


# -------------------------------------------------------------------------------------------- H12


def test_h12_head_and_frames_split_at_every_offset(server: ServerProcess) -> None:
    frames = text('{"type":"presence","id":"1"}') + text('{"type":"heartbeat","id":"2"}')
    for at in range(1, len(head(server, "split-0000") + frames)):
        stream = head(server, f"split-{at:04}") + frames
        wire = server.wire()
        wire.send(stream[:at])
        # Most of the second pieces come while the first one is being handled, some before.
        time.sleep(0.001)
        wire.send(stream[at:])
        client = admitted(wire)
        for ident in ("1", "2"):
            answer = client.hear()
            assert (answer["type"], answer["id"]) == ("presence", ident), at
        client.close()


def test_h12_everything_in_one_segment_and_octet_by_octet(server: ServerProcess) -> None:
    for user, size in (("whole", 100_000), ("octets", 1)):
        stream = head(server, user) + text('{"type":"presence","id":"1"}')
        wire = server.wire()
        for at in range(0, len(stream), size):
            wire.send(stream[at : at + size])
        client = admitted(wire)
        assert client.hear()["id"] == "1"


def test_h12_much_early_input_arrives_whole_and_in_order(server: ServerProcess) -> None:
    # 90 messages, to stay below the message rate: 180 KiB, more than is read at once.
    wire = server.wire()
    data = {"filling": "x" * 2000}
    messages = [
        text(json.dumps({"type": "message", "room": "user:hasty", "id": str(n), "data": data}))
        for n in range(90)
    ]
    wire.send(head(server, "hasty") + b"".join(messages))
    client = admitted(wire)
    assert [client.hear()["id"] for _ in range(90)] == [str(number) for number in range(90)]


def test_h12_nothing_early_is_handled_for_who_is_refused(server: ServerProcess) -> None:
    witness = server.connect("victim")
    stream = request(token="not.a.token") + text('{"type":"message","room":"user:victim"}')
    assert refused(server, stream) == refusal(401, "WWW-Authenticate: Bearer")
    assert witness.sync() == []


def test_h12_early_violation_is_answered_after_the_101(server: ServerProcess) -> None:
    wire = server.wire()
    wire.send(head(server, "early") + b"\x83\x80\0\0\0\0")
    client = Client(wire)
    assert wire.read_head() == switching(KEY)
    client.enter()
    assert client.closing() == (1002, "WebSocket protocol error")


# --------------------------------------------------------------------------------------- H13, H16


@pytest.mark.parametrize(
    "lines, agreed",
    [
        (("chat",), None),
        (("falcon.v2",), None),
        (("FALCON.V1",), None),
        (("chat, falcon.v1",), "falcon.v1"),
        (("falcon.v1, falcon.v1",), "falcon.v1"),
        (("chat", "falcon.v1"), "falcon.v1"),
        ((",".join(["x"] * 1000),), None),
        ((",".join(["x"] * 1000) + ",falcon.v1",), "falcon.v1"),
        (("x" + " " * 8000,), None),
        (("x," + " " * 8000 + ",falcon.v1",), "falcon.v1"),
    ],
    ids=[
        "H13-unknown",
        "H13-other-version",
        "H13-upper",
        "H13-second",
        "H13-twice",
        "H13-two-headers",
        "H13-thousand",
        "H13-thousand-and-ours",
        "H13-blanks-behind",
        "H13-blanks-between",
    ],
)
def test_subprotocol_is_ours_or_none(
    server: ServerProcess, lines: tuple[str, ...], agreed: str | None
) -> None:
    wire = server.wire()
    wire.send(head(server, "h", *[f"Sec-WebSocket-Protocol: {line}" for line in lines]))
    admitted(wire, agreed)


def test_h13_malformed_subprotocol(server: ServerProcess) -> None:
    for value in ("x" + " " * 8000 + "y", "a b", '"falcon.v1"', "falcon.v1;q=1"):
        sent = head(server, "h", f"Sec-WebSocket-Protocol: {value}")
        assert refused(server, sent) == refusal(400), value[:20]


@pytest.mark.parametrize(
    "value",
    ["1.2.3.4", ",".join(["1.2.3.4"] * 1000), "", ",,,", "no address", "[::1", "1.2.3.4:99999999"],
    ids=["one", "thousand", "empty", "commas", "words", "bracket", "port"],
)
def test_h16_forwarded_for_of_anybody_does_no_harm(server: ServerProcess, value: str) -> None:
    wire = server.wire()
    wire.send(head(server, "h", f"X-Forwarded-For: {value}"))
    admitted(wire)


# ------------------------------------------------------------------------- the plain endpoints


def test_plain_endpoints_answer_and_close(server: ServerProcess) -> None:
    hardened = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
    }
    for path, body in (("/healthz", b"ok\n"), ("/readyz", b"ready\n")):
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
            **hardened,
        }
        assert server.get(path) == Answer(200, headers, body)


def test_endpoints_know_no_other_method(server: ServerProcess) -> None:
    for path in ("/websocket/status", "/healthz", "/readyz"):
        sent = request(path=path).replace(b"GET", b"POST", 1)
        assert refused(server, sent) == refusal(405, "Allow: GET")


def test_many_requests_in_one_segment_get_one_answer(server: ServerProcess) -> None:
    answer = refused(server, request(path="/nothing") * 50)
    assert answer == refusal(404)


def test_frames_of_the_handshake_are_what_they_should_be(server: ServerProcess) -> None:
    """Behind the 101 come two text frames, and after the client's Close an empty one."""
    wire = server.wire()
    wire.send(head(server) + b"\x88\x80\0\0\0\0")
    assert wire.read_head() == switching(KEY)
    assert [wire.frame().opcode for _ in range(3)] == [TEXT, TEXT, CLOSE]
    assert wire.read_until_closed() == b""
