"""Mutated request heads: we never accept one that both strict parsers refuse (H18).

The peers are ``h11`` (with ``wsproto`` on it for the WebSocket part) and ``websockets``. Being
stricter than either is fine; being more lenient than both is a hole, unless it is one of the
reviewed exceptions below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.http11 import Request as WebsocketsRequest
from websockets.server import ServerProtocol
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection
from wsproto.events import Request as WsprotoRequest
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from falcon_fast.handshake import Accept, Endpoint, Policy, Refuse, decide, route
from falcon_fast.head import Request, parse_head
from falcon_fast.identity import Identity

from ..model.head import parse_head_slowly
from ..support import FUZZ_EXAMPLES
from ..support.heads import BROWSERS, MINIMAL, add, swap

#: Heads per property; FALCON_FUZZ_EXAMPLES raises it for a long run.
EXAMPLES: Final = FUZZ_EXAMPLES or 2_000

fuzz: Final = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

#: Everything but the handshake is let through, so that the handshake is what is compared.
OPEN: Final = Policy(allow_any_origin=True, cookie_auth=False)
ANYONE: Final = Identity("anyone", 1, "Anyone", "", 1_700_003_600)

SEEDS: Final = (
    *[add(head, b"Authorization: Bearer h.p.s") for head in BROWSERS.values()],
    MINIMAL,
    MINIMAL.replace(b"/websocket", b"http://localhost:3000/websocket"),
    add(MINIMAL, b"Content-Length: 0"),
    b"POST /websocket/connect HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
)

#: Pieces that parsers are known to disagree about.
PIECES: Final = (
    *[bytes([value]) for value in b"\x00\x01\x09\x0a\x0b\x0c\x0d\x1b\x20\x22\x2c\x3a\x3b\x3d\x7f"],
    b"\x80",
    b"\x85",
    b"\xa0",
    b"\xff",
    b"\r\n",
    b"\r\n ",
    b"\r\n\t",
    b"\n\n",
    b"\r\r\n",
    b" \r\n",
    b" :",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"websocket",
    b"Upgrade",
    b"keep-alive, ",
    b"13",
    b"0",
    b"\r\nHost: b",
    b"\r\nHost:",
    b"\r\nConnection: Upgrade",
    b"\r\nConnection: close",
    b"\r\nUpgrade: h2c",
    b"\r\nContent-Length: 0",
    b"\r\nContent-Length: 5",
    b"\r\nContent-Length: +0",
    b"\r\nTransfer-Encoding: chunked",
    b"\r\nTransfer-Encoding: identity",
    b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"\r\nSec-WebSocket-Version: 8",
    b"\r\nSec-WebSocket-Protocol: falcon.v1",
    b"\r\nX: " + b"v" * 8_200,
    b"\r\nX: y" * 101,
)

Mutation = Callable[[bytes], bytes]


def at(position: float, head: bytes) -> int:
    return int(position * len(head))


def insert(position: float, piece: bytes) -> Mutation:
    return lambda head: head[: at(position, head)] + piece + head[at(position, head) :]


def replace_byte(position: float, value: int) -> Mutation:
    return lambda head: head[: at(position, head)] + bytes([value]) + head[at(position, head) + 1 :]


def delete(position: float, length: int) -> Mutation:
    return lambda head: head[: at(position, head)] + head[at(position, head) + length :]


def repeat(position: float, length: int) -> Mutation:
    return lambda head: head[: at(position, head) + length] + head[at(position, head) :]


def change_case(position: float, length: int) -> Mutation:
    def mutate(head: bytes) -> bytes:
        start = at(position, head)
        return head[:start] + head[start : start + length].swapcase() + head[start + length :]

    return mutate


def move_line(position: float, target: float, *, keep: bool) -> Mutation:
    """Move or copy one whole line, the request line included."""

    def mutate(head: bytes) -> bytes:
        lines = head.split(b"\r\n")
        line = lines[at(position, head) % len(lines)]
        if not keep:
            lines.remove(line)
        lines.insert(at(target, head) % (len(lines) + 1), line)
        return b"\r\n".join(lines)

    return mutate


def drop_line(position: float) -> Mutation:
    def mutate(head: bytes) -> bytes:
        lines = head.split(b"\r\n")
        del lines[at(position, head) % len(lines)]
        return b"\r\n".join(lines)

    return mutate


places: Final = st.floats(0, 1, exclude_max=True)
mutations: Final = st.one_of(
    st.builds(insert, places, st.sampled_from(PIECES)),
    st.builds(insert, places, st.binary(min_size=1, max_size=4)),
    st.builds(replace_byte, places, st.integers(0, 255)),
    st.builds(delete, places, st.integers(1, 24)),
    st.builds(repeat, places, st.integers(1, 40)),
    st.builds(change_case, places, st.integers(1, 40)),
    st.builds(move_line, places, places, keep=st.booleans()),
    st.builds(drop_line, places),
)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A seed after a few mutations, cut after its first empty line as the reader does it."""
    head = draw(st.sampled_from(SEEDS))
    for mutate in draw(st.lists(mutations, min_size=1, max_size=4)):
        head = mutate(head)
    return head.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


#: Method, target and the values of each header, as one parser read them.
Reading = tuple[str, str, dict[str, tuple[str, ...]]]


def by_name(headers: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Sort headers by their names; values of one name keep their order."""
    values: dict[str, tuple[str, ...]] = {}
    for name, value in headers:
        values[name] = (*values.get(name, ()), value)
    return values


def read_by_h11(head: bytes) -> Reading | None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Request) or event.http_version != b"1.1":
        return None
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers]
    return event.method.decode("ascii"), event.target.decode("ascii"), by_name(headers)


def websockets_request(head: bytes) -> tuple[ServerProtocol, WebsocketsRequest | None]:
    protocol = ServerProtocol()
    protocol.receive_data(head)
    for event in protocol.events_received():
        if isinstance(event, WebsocketsRequest) and event.protocol == "HTTP/1.1":
            return protocol, event
    return protocol, None


def read_by_websockets(head: bytes) -> Reading | None:
    _, request = websockets_request(head)
    if request is None:
        return None
    headers = [(name.lower(), value) for name, value in request.headers.raw_items()]
    return request.method, request.path, by_name(headers)


def accepted_by_websockets(head: bytes) -> bool:
    protocol, request = websockets_request(head)
    return request is not None and protocol.accept(request).status_code == 101


def accepted_by_wsproto(head: bytes) -> bool:
    server = H11Handshake(ConnectionType.SERVER)
    try:
        server.receive_data(head)
        if not any(isinstance(event, WsprotoRequest) for event in server.events()):
            return False
        return server.send(AcceptConnection()).startswith(b"HTTP/1.1 101 ")
    except (RemoteProtocolError, UnicodeError):
        return False


def read_by_us(head: bytes) -> Request | None:
    request = parse_head(head, OPEN)
    return request if isinstance(request, Request) else None


def decided_by_us(head: bytes) -> Accept | None:
    request = read_by_us(head)
    if request is None or route(request, OPEN) is not None:
        return None
    decision = decide(
        request, OPEN, verify=lambda _: ANYONE, is_banned=lambda _: False, peer_ip="192.0.2.7"
    )
    return decision if isinstance(decision, Accept) else None


# --- reviewed exceptions ------------------------------------------------------------------------


@dataclass(frozen=True)
class Exemption:
    """Something we let pass that a peer does not.

    Attributes:
        reason: Why it is right to let it pass.
        applies: Tells whether a request has it.
        sample: A head that has it.
        websockets: Whether that peer refuses the sample.
        wsproto: Whether that peer refuses the sample.
    """

    reason: str
    applies: Callable[[Request], bool]
    sample: bytes
    websockets: bool
    wsproto: bool


def elements(request: Request, name: str) -> list[str]:
    values = ",".join(request.get_all(name)).split(",")
    return [value.strip(" \t").lower() for value in values]


EXEMPTIONS: Final = {
    "upgrade-list": Exemption(
        "RFC 9110 section 7.8: Upgrade is a list in order of preference, of which a server takes "
        "the one it wants. Both peers demand that it holds nothing but websocket.",
        lambda request: elements(request, "upgrade") != ["websocket"],
        swap(MINIMAL, b"Upgrade", b"h2c, websocket"),
        websockets=True,
        wsproto=True,
    ),
    "subprotocol-empty": Exemption(
        "RFC 9110 section 5.6.1.2: empty elements are to be ignored, so an empty list offers "
        "nothing, like no list at all.",
        lambda request: (
            bool(request.get_all("sec-websocket-protocol"))
            and "" in elements(request, "sec-websocket-protocol")
        ),
        add(MINIMAL, b"Sec-WebSocket-Protocol:"),
        websockets=True,
        wsproto=False,
    ),
    "connection-lines": Exemption(
        "RFC 9110 section 5.3: lines of one name are one list. wsproto reads the last line only.",
        lambda request: len(lines := request.get_all("connection")) > 1 and all(lines),
        swap(MINIMAL, b"Connection", b"Upgrade", b"keep-alive"),
        websockets=False,
        wsproto=True,
    ),
    "connection-empty-line": Exemption(
        "The same, and section 5.6.1.2: empty elements are to be ignored. websockets refuses a "
        "line that holds nothing, though not an empty element between others.",
        lambda request: not all(request.get_all("connection")),
        swap(MINIMAL, b"Connection", b"Upgrade", b""),
        websockets=True,
        wsproto=True,
    ),
    "host-idna": Exemption(
        "The Host is checked against the grammar of RFC 3986 and used for nothing. wsproto "
        "decodes it as an internationalised name, which not every registered name is.",
        lambda request: not_idna(request.get_all("host")),
        swap(MINIMAL, b"Host", b"xn--a"),
        websockets=False,
        wsproto=True,
    ),
}


def not_idna(hosts: tuple[str, ...]) -> bool:
    try:
        hosts[0].encode("ascii").decode("idna")
    except UnicodeError:
        return True
    return False


@pytest.mark.parametrize("name", EXEMPTIONS)
def test_h18_every_exemption_is_needed(name: str) -> None:
    exemption = EXEMPTIONS[name]
    request = read_by_us(exemption.sample)
    assert request is not None
    assert exemption.applies(request)
    assert decided_by_us(exemption.sample) is not None
    assert accepted_by_websockets(exemption.sample) is not exemption.websockets
    assert accepted_by_wsproto(exemption.sample) is not exemption.wsproto
    assert [key for key, each in EXEMPTIONS.items() if each.applies(request)] == [name]


@pytest.mark.parametrize("name", [*BROWSERS, "minimal"])
def test_h18_everyone_accepts_the_unchanged_heads(name: str) -> None:
    head = BROWSERS.get(name, MINIMAL)
    head = head if name == "minimal" else add(head, b"Authorization: Bearer h.p.s")
    assert decided_by_us(head) is not None
    assert accepted_by_websockets(head)
    assert accepted_by_wsproto(head)


# --- the core's reading and the standard's -------------------------------------------------------

SMALL: Final = Policy(
    allow_any_origin=True,
    cookie_auth=False,
    max_head_bytes=300,
    max_line=60,
    max_headers=9,
    max_target=30,
)


@fuzz
@given(heads(), st.sampled_from([OPEN, SMALL]))
def test_h18_heads_are_read_as_the_grammar_says(head: bytes, policy: Policy) -> None:
    assert parse_head(head, policy) == parse_head_slowly(head, policy)


@fuzz
@given(st.lists(st.sampled_from([*PIECES, b"GET ", b"/", b" HTTP/1.1\r\n", b"a:b", b"\r\n\r\n"])))
def test_h18_scraps_of_heads_are_read_as_the_grammar_says(scraps: list[bytes]) -> None:
    head = b"".join(scraps)
    assert parse_head(head, OPEN) == parse_head_slowly(head, OPEN)


# --- properties ---------------------------------------------------------------------------------


@fuzz
@given(heads())
def test_h18_never_more_lenient_than_both_http_parsers(head: bytes) -> None:
    request = read_by_us(head)
    if request is None:
        return
    ours = (request.method, request.target, request.fields)
    readings = [read for read in (read_by_h11(head), read_by_websockets(head)) if read is not None]
    assert readings, "accepted by us only"
    # Who accepts a head must also read the same in it: a disagreement is a smuggled request.
    assert all(reading == ours for reading in readings)


@fuzz
@given(heads())
def test_h18_never_more_lenient_than_both_handshakes(head: bytes) -> None:
    accept = decided_by_us(head)
    if accept is None:
        return
    if accepted_by_websockets(head) or accepted_by_wsproto(head):
        return
    request = read_by_us(head)
    assert request is not None
    refused_by_websockets = any(
        each.applies(request) for each in EXEMPTIONS.values() if each.websockets
    )
    refused_by_wsproto = any(each.applies(request) for each in EXEMPTIONS.values() if each.wsproto)
    assert refused_by_websockets, "refused by websockets for a reason nobody reviewed"
    assert refused_by_wsproto, "refused by wsproto for a reason nobody reviewed"


@fuzz
@given(heads())
def test_h14_every_head_gets_an_answer_and_nothing_of_it_comes_back(head: bytes) -> None:
    marked = head.replace(b"h.p.s", b"s3cr3t").replace(b"localhost", b"m4rk3r")
    answer: object = parse_head(marked, OPEN)
    if isinstance(answer, Request):
        answer = route(answer, OPEN) or decide(
            answer, OPEN, verify=lambda _: ANYONE, is_banned=lambda _: False, peer_ip="192.0.2.7"
        )
    assert isinstance(answer, Accept | Refuse | Endpoint)
    if isinstance(answer, Refuse):
        response = answer.to_bytes()
        assert response.startswith(b"HTTP/1.1 %d " % answer.status)
        assert response.count(b"\r\n\r\n") == 1
        assert b"s3cr3t" not in response
        assert b"m4rk3r" not in response


@fuzz
@given(st.binary(max_size=400).filter(lambda noise: b"\r\n\r\n" not in noise))
def test_h06_noise_is_refused(noise: bytes) -> None:
    answer = parse_head(noise + b"\r\n\r\n", OPEN)
    assert isinstance(answer, Refuse) or read_by_h11(noise + b"\r\n\r\n") is not None
