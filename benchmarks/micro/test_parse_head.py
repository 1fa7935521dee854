"""What does it cost to read the head of a request, and to decide about it?"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from falcon_fast.auth import TokenVerifier, generate_secret, issue_token
from falcon_fast.clock import SystemClock
from falcon_fast.handshake import Accept, Policy, Request, decide, parse_head

POLICY = Policy(
    path="/websocket/connect",
    cookie_name="falcon_auth_token",
    cookie_auth=True,
    allowed_origins=frozenset({"https://example.org"}),
    allow_any_origin=False,
    trusted_proxies=(),
)
SECRET = generate_secret()


def head(*more: str) -> bytes:
    """Build the head of an authenticated opening handshake, as a program sends it."""
    token = issue_token(
        SECRET,
        user_id="pilot-1",
        character_id=90_000_001,
        character_name="A Pilot",
        ttl=86_400,
        now=int(SystemClock().time()),
    )
    lines = [
        "GET /websocket/connect HTTP/1.1",
        "Host: example.org",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        f"Authorization: Bearer {token}",
        *more,
    ]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept: */*",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Sec-WebSocket-Extensions: permessage-deflate",
    "Origin: https://example.org",
    "Sec-Fetch-Dest: empty",
    "Sec-Fetch-Mode: websocket",
    "Sec-Fetch-Site: same-origin",
    "Pragma: no-cache",
    "Cache-Control: no-cache",
)
HEADS = {"program": head(), "browser": head(*BROWSER), "100 headers": head(*["X-A: b"] * 93)}


@pytest.mark.benchmark(group="parse a head")
@pytest.mark.parametrize("name", HEADS)
def test_parse(benchmark: BenchmarkFixture, name: str) -> None:
    assert isinstance(benchmark(parse_head, HEADS[name], POLICY), Request)


@pytest.mark.benchmark(group="decide about a request")
@pytest.mark.parametrize("name", ["program", "browser"])
def test_decide(benchmark: BenchmarkFixture, name: str) -> None:
    request = parse_head(HEADS[name], POLICY)
    assert isinstance(request, Request)
    verify = TokenVerifier(SECRET, clock=SystemClock()).verify
    found = benchmark(
        decide, request, POLICY, verify=verify, is_banned=lambda _user: False, peer_ip="192.0.2.1"
    )
    assert isinstance(found, Accept)
