"""A request head through every decision that is made about it: an answer, never an exception."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Final

from falcon_fast.errors import AuthError
from falcon_fast.handshake import (
    Accept,
    Endpoint,
    Policy,
    Refuse,
    Request,
    client_address,
    decide,
    parse_head,
    route,
)
from falcon_fast.identity import Identity

TOKEN: Final = "h.p.s"
PEER: Final = "10.0.0.1"

POLICY: Final = Policy(
    path="/websocket/connect",
    allowed_origins=frozenset({"http://localhost:3000", "http://localhost:34329"}),
    trusted_proxies=(ip_network("10.0.0.0/8"),),
)
"""With a trusted proxy, so that X-Forwarded-For is read."""


def one_input(data: bytes) -> None:
    """Decide about one head."""
    found = parse_head(data, POLICY)
    if isinstance(found, Refuse):
        check_refusal(found, data)
        return
    check_request(found, data)
    ip_address(client_address(found, PEER, POLICY))
    where = route(found, POLICY)
    if isinstance(where, Refuse):
        check_refusal(where, data)
    if where is not None:
        assert isinstance(where, Refuse | Endpoint)
        return
    decision = decide(found, POLICY, verify=verify, is_banned=is_banned, peer_ip=PEER)
    if isinstance(decision, Refuse):
        check_refusal(decision, data)
        return
    check_accept(decision, found)


def verify(token: str) -> Identity:
    if token != TOKEN:
        raise AuthError("not this one")
    return Identity("anyone", 1, "Anyone", "", 1_700_003_600)


def is_banned(user_id: str) -> bool:
    return False


def check_refusal(refuse: Refuse, data: bytes) -> None:
    """A refusal is one well-formed response without anything of the request in it."""
    head, _, body = refuse.to_bytes().partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(f"HTTP/1.1 {refuse.status} ".encode())
    assert b"Connection: close" in lines
    assert f"Content-Length: {len(body)}".encode() in lines or not body
    assert len(refuse.to_bytes()) < 300


def check_request(request: Request, data: bytes) -> None:
    """What was read stands in the head, cleanly."""
    assert data.endswith(b"\r\n\r\n")
    assert data.count(b"\r") == data.count(b"\n") == data.count(b"\r\n")
    assert request.path.startswith("/")
    assert "?" not in request.path
    assert sum(len(values) for values in request.fields.values()) <= POLICY.max_headers
    for name, values in request.fields.items():
        assert name == name.lower()
        assert name.isascii()
        assert not {"\r", "\n", "\0"} & {*name, *"".join(values)}


def check_accept(accept: Accept, request: Request) -> None:
    """Only a request with all it takes is accepted."""
    assert accept.subprotocol in (None, "falcon.v1")
    assert request.method == "GET"
    assert request.get_all("sec-websocket-key") == (accept.key,)
    assert request.get_all("sec-websocket-version") == ("13",)
    assert len(request.get_all("host")) == 1
    assert all(origin in POLICY.allowed_origins for origin in request.get_all("origin"))
    offered = ",".join(request.get_all("sec-websocket-protocol"))
    values = [*request.get_all("authorization"), *request.get_all("cookie"), offered]
    assert any(TOKEN in value for value in values), "accepted without a token"
    if accept.subprotocol:
        assert accept.subprotocol in offered
    if accept.deflate is not None:
        extensions = ",".join(request.get_all("sec-websocket-extensions"))
        assert "permessage-deflate" in extensions
        assert 9 <= accept.deflate.window <= 15
        if accept.deflate.window < 15:
            assert "server_max_window_bits" in extensions
