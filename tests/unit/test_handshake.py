"""Who may connect and how they are told: tokens, origins, handshake headers, routes, addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network

import pytest

from falcon_fast.deflate import Deflate, agree
from falcon_fast.errors import AuthError
from falcon_fast.handshake import (
    BAD_HOST,
    BAD_KEY,
    BAD_SUBPROTOCOL,
    BAD_TOKEN,
    BAD_VERSION,
    BANNED,
    FORBIDDEN_ORIGIN,
    INTERNAL_ERROR,
    MANY_TOKENS,
    METHOD_NOT_ALLOWED,
    NO_TOKEN,
    NOT_FOUND,
    NOT_WEBSOCKET,
    Accept,
    Endpoint,
    Policy,
    Refuse,
    Request,
    authenticate,
    client_address,
    decide,
    draining,
    full,
    no_keys,
    parse_head,
    route,
    too_many_connections,
    upgrade,
)
from falcon_fast.head import (
    BAD_HEAD,
    BAD_HTTP_VERSION,
    BODY_NOT_ALLOWED,
    HEAD_TOO_LARGE,
    URI_TOO_LONG,
)
from falcon_fast.identity import Identity

from ..support import ROOT
from ..support.growth import LINEAR, growth
from ..support.heads import BROWSERS, CHROMIUM, MINIMAL, TOKEN, add, drop, field, swap

ALICE = Identity("alice", 90_000_001, "Alice", "", 1_700_003_600)
BOB = Identity("bob", 90_000_002, "Bob", "", 1_700_003_600)
TOKENS = {TOKEN: ALICE, "b.o.b": BOB}

APP = "https://app.example.com"
POLICY = Policy(
    allowed_origins=frozenset({APP, "http://localhost:3000", "https://app.example.com:8443"})
)
#: A browser's request with the cookie, and no other token.
COOKIE = swap(swap(CHROMIUM, b"Origin", APP.encode("ascii")), b"Cookie", b"falcon_auth_token=h.p.s")
#: A request without any token, and without Origin.
BARE = drop(MINIMAL, b"Authorization")


def verify(token: str) -> Identity:
    if token not in TOKENS:
        raise AuthError("unknown")
    return TOKENS[token]


def is_banned(user_id: str) -> bool:
    return user_id == BOB.user_id


def deflate_of(head: bytes) -> Deflate | None:
    """Return what is agreed on with a browser, all of which leave the window to us."""
    return agree(("permessage-deflate",)) if b"permessage-deflate" in head else None


def request_of(head: bytes, policy: Policy = POLICY) -> Request:
    request = parse_head(head, policy)
    assert isinstance(request, Request), request
    return request


def authenticated(head: bytes, policy: Policy = POLICY) -> Identity | Refuse:
    return authenticate(request_of(head), policy, verify=verify, is_banned=is_banned)


def decided(head: bytes, policy: Policy = POLICY) -> Accept | Refuse:
    request = request_of(head)
    assert route(request, policy) is None
    return decide(request, policy, verify=verify, is_banned=is_banned, peer_ip="192.0.2.7")


def upgraded(head: bytes) -> tuple[str, str | None] | Refuse:
    return upgrade(request_of(head))


# --- the whole decision -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROWSERS)
def test_h01_accepts_every_browser(name: str) -> None:
    head = BROWSERS[name]
    policy = Policy(allowed_origins=frozenset({field(head, b"Origin")}))
    subprotocol = "falcon.v1" if name.endswith("-subprotocol") else None
    key = field(head, b"Sec-WebSocket-Key")
    assert decided(head, policy) == Accept(ALICE, key, subprotocol, "192.0.2.7", deflate_of(head))
    without = decided(head, replace(policy, compression=False))
    assert without == Accept(ALICE, key, subprotocol, "192.0.2.7")


@pytest.mark.parametrize("name", BROWSERS)
def test_a11_refuses_every_browser_from_another_origin(name: str) -> None:
    assert decided(BROWSERS[name], Policy()) is FORBIDDEN_ORIGIN


@pytest.mark.parametrize("name", ["chromium-subprotocol", "firefox-subprotocol"])
def test_h01_accepts_a_browser_without_cookies_by_subprotocol(name: str) -> None:
    head = drop(BROWSERS[name], b"Cookie")
    policy = Policy(allowed_origins=frozenset({field(head, b"Origin")}))
    key = field(head, b"Sec-WebSocket-Key")
    assert decided(head, policy) == Accept(ALICE, key, "falcon.v1", "192.0.2.7", deflate_of(head))


def test_accepts_the_least_a_program_can_send() -> None:
    assert decided(MINIMAL) == Accept(ALICE, "dGhlIHNhbXBsZSBub25jZQ==", None, "192.0.2.7")


def test_the_clients_address_is_the_one_behind_a_trusted_proxy() -> None:
    policy = Policy(trusted_proxies=(ip_network("192.0.2.0/24"),))
    accept = decided(add(MINIMAL, b"X-Forwarded-For: 203.0.113.9"), policy)
    assert isinstance(accept, Accept)
    assert accept.remote_address == "203.0.113.9"


def test_the_order_of_refusals_is_token_origin_ban_headers() -> None:
    worst = swap(drop(swap(BARE, b"Authorization", b"Bearer x"), b"Host"), b"Origin", b"null")
    assert decided(worst) is BAD_TOKEN
    worst = swap(worst, b"Authorization", b"Bearer b.o.b")
    assert decided(worst) is FORBIDDEN_ORIGIN
    worst = swap(worst, b"Origin", APP.encode("ascii"))
    assert decided(worst) is BANNED
    worst = swap(worst, b"Authorization", b"Bearer h.p.s")
    assert decided(worst) is BAD_HOST
    assert isinstance(decided(swap(worst, b"Host", b"localhost")), Accept)


def test_a18_an_exception_that_is_no_autherror_is_not_hidden() -> None:
    def broken(token: str) -> Identity:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        authenticate(request_of(MINIMAL), POLICY, verify=broken, is_banned=is_banned)


# --- tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [b"Bearer h.p.s", b"bearer h.p.s", b"BEARER h.p.s", b"Bearer    h.p.s"]
)
def test_token_by_authorization(value: bytes) -> None:
    assert authenticated(swap(BARE, b"Authorization", value)) is ALICE


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"h.p.s",
        b"Basic h.p.s",
        b"Token h.p.s",
        b"Bearerh.p.s",
        b"Bearer\th.p.s",
        b"Bearer: h.p.s",
        b"Bearer h.p.s x",
        b"Bearer h.p.s, Bearer h.p.s",
        b"Bearer h.p.s,",
        b'Bearer "h.p.s"',
        b"Bearer token=h.p.s",
        b"Bearer" + b" " * 9 + b"h.p.s",
        b"Bearer h.p.\xe9",
        b"Bearer H.P.S",
    ],
)
def test_a10_authorization_that_is_not_good_is_final(value: bytes) -> None:
    everywhere = add(COOKIE, b"Sec-WebSocket-Protocol: falcon.v1, falcon.bearer.h.p.s")
    assert authenticated(add(everywhere, b"Authorization: " + value)) is BAD_TOKEN


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([b"Bearer h.p.s", b"Bearer h.p.s"], id="A10-same"),
        pytest.param([b"Bearer h.p.s", b"Bearer b.o.b"], id="A10-different"),
        pytest.param([b"Bearer h.p.s", b""], id="A10-one-empty"),
    ],
)
def test_two_authorization_headers_are_refused(values: list[bytes]) -> None:
    assert authenticated(swap(BARE, b"Authorization", *values)) is MANY_TOKENS


@pytest.mark.parametrize(
    "cookie",
    [
        b"falcon_auth_token=h.p.s",
        b'falcon_auth_token="h.p.s"',
        b"a=b; falcon_auth_token=h.p.s; c=d",
        b"a=b;falcon_auth_token=h.p.s;c=d",
        b"a=b;\tfalcon_auth_token=h.p.s ;",
        b";;=; =x; a; falcon_auth_token=h.p.s",
        b"falcon_auth_token; falcon_auth_token=h.p.s",
        b"xfalcon_auth_token=x; falcon_auth_tokenx=x; falcon_auth_token=h.p.s",
        b"Falcon_Auth_Token=x; falcon_auth_token=h.p.s",
        b"x=falcon_auth_token=y; falcon_auth_token=h.p.s",
        b"falcon_auth_token =x; falcon_auth_token=h.p.s",
        b"theme=\xe9; falcon_auth_token=h.p.s",
    ],
)
def test_token_by_cookie(cookie: bytes) -> None:
    assert authenticated(swap(COOKIE, b"Cookie", cookie)) is ALICE


def test_token_by_cookie_in_one_of_several_cookie_headers() -> None:
    head = swap(COOKIE, b"Cookie", b"a=b", b"falcon_auth_token=h.p.s", b"c=d")
    assert authenticated(head) is ALICE


def test_the_cookies_name_is_settable() -> None:
    policy = Policy(cookie_name="sid", allowed_origins=POLICY.allowed_origins)
    assert authenticated(COOKIE, policy) is NO_TOKEN
    assert authenticated(swap(COOKIE, b"Cookie", b"sid=h.p.s"), policy) is ALICE


@pytest.mark.parametrize(
    "cookie",
    [
        b"falcon_auth_token=",
        b'falcon_auth_token=""',
        b'falcon_auth_token="',
        b'falcon_auth_token="h.p.s',
        b"falcon_auth_token==h.p.s",
        b"falcon_auth_token= h.p.s",
        b"falcon_auth_token=x",
        b"falcon_auth_token=h.p.s, falcon_auth_token=h.p.s",
    ],
)
def test_a10_a_cookie_that_is_not_good_is_final(cookie: bytes) -> None:
    head = add(
        swap(COOKIE, b"Cookie", cookie),
        b"Sec-WebSocket-Protocol: falcon.v1, falcon.bearer.h.p.s",
    )
    assert authenticated(head) is BAD_TOKEN


@pytest.mark.parametrize(
    "cookies",
    [
        pytest.param([b"falcon_auth_token=h.p.s; falcon_auth_token=h.p.s"], id="A10-one-header"),
        pytest.param([b"falcon_auth_token=h.p.s", b"falcon_auth_token=h.p.s"], id="A10-two"),
        pytest.param([b"falcon_auth_token=; falcon_auth_token=h.p.s"], id="A10-one-empty"),
    ],
)
def test_two_cookies_of_the_name_are_refused(cookies: list[bytes]) -> None:
    assert authenticated(swap(COOKIE, b"Cookie", *cookies)) is MANY_TOKENS


def test_cookies_are_not_read_when_switched_off() -> None:
    policy = Policy(cookie_auth=False, allowed_origins=POLICY.allowed_origins)
    assert authenticated(COOKIE, policy) is NO_TOKEN
    twice = swap(COOKIE, b"Cookie", b"falcon_auth_token=x; falcon_auth_token=y")
    by_subprotocol = add(twice, b"Sec-WebSocket-Protocol: falcon.v1, falcon.bearer.h.p.s")
    assert authenticated(by_subprotocol, policy) is ALICE


@pytest.mark.parametrize(
    "values",
    [
        [b"falcon.v1, falcon.bearer.h.p.s"],
        [b"falcon.bearer.h.p.s,falcon.v1"],
        [b"other, falcon.v1 ,\tfalcon.bearer.h.p.s, another"],
        [b"falcon.v1", b"falcon.bearer.h.p.s"],
        [b"falcon.v1, falcon.v1, falcon.bearer.h.p.s"],
        [b",, falcon.v1,, falcon.bearer.h.p.s,,"],
    ],
)
def test_token_by_subprotocol(values: list[bytes]) -> None:
    assert authenticated(swap(BARE, b"Sec-WebSocket-Protocol", *values)) is ALICE


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        (b"", NO_TOKEN),
        (b"falcon.v1", NO_TOKEN),
        (b"falcon.bearer.h.p.s", NO_TOKEN),
        (b"falcon.v2, falcon.bearer.h.p.s", NO_TOKEN),
        (b"FALCON.V1, falcon.bearer.h.p.s", NO_TOKEN),
        (b"falcon.v1, Falcon.Bearer.h.p.s", NO_TOKEN),
        (b"falcon.v1 falcon.bearer.h.p.s", NO_TOKEN),
        (b"falcon.v1, falcon.bearer", NO_TOKEN),
        (b"falcon.v1, falcon.bearer.", BAD_TOKEN),
        (b"falcon.v1, falcon.bearer.x", BAD_TOKEN),
        (b"falcon.v1, falcon.bearer. h.p.s", BAD_TOKEN),
        (b"falcon.v1, falcon.bearer.h.p.s, falcon.bearer.h.p.s", MANY_TOKENS),
        (b"falcon.v1, falcon.bearer.h.p.s, falcon.bearer.", MANY_TOKENS),
    ],
)
def test_no_token_by_subprotocol(value: bytes, refusal: Refuse) -> None:
    assert authenticated(swap(BARE, b"Sec-WebSocket-Protocol", value)) is refusal


@pytest.mark.parametrize(
    ("bearer", "cookie", "outcome"),
    [
        pytest.param(b"h.p.s", b"x", ALICE, id="A10-good-and-bad"),
        pytest.param(b"x", b"h.p.s", BAD_TOKEN, id="A10-bad-and-good"),
        pytest.param(b"h.p.s", b"b.o.b", ALICE, id="A10-two-users"),
        pytest.param(b"b.o.b", b"h.p.s", BANNED, id="A10-two-users-first-banned"),
    ],
)
def test_authorization_decides_alone(
    bearer: bytes, cookie: bytes, outcome: Identity | Refuse
) -> None:
    head = swap(COOKIE, b"Cookie", b"falcon_auth_token=" + cookie)
    assert authenticated(add(head, b"Authorization: Bearer " + bearer)) is outcome


def test_cookie_goes_before_subprotocol() -> None:
    head = swap(COOKIE, b"Sec-WebSocket-Protocol", b"falcon.v1, falcon.bearer.b.o.b")
    assert authenticated(head) is ALICE


@pytest.mark.parametrize(
    "target", [b"?token=h.p.s", b"?access_token=h.p.s", b"?authorization=Bearer%20h.p.s", b"?h.p.s"]
)
def test_no_token_is_read_from_a_url(target: bytes) -> None:
    head = BARE.replace(b"/websocket/connect", b"/websocket/connect" + target)
    assert decided(head) is NO_TOKEN


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(
            swap(COOKIE, b"Cookie", *[b"a%d=b; falcon_auth_token" % n for n in range(80)]),
            id="A09-80-headers",
        ),
        pytest.param(
            swap(COOKIE, b"Cookie", b"; ".join([b"c%d=v" % n for n in range(200)])),
            id="A09-200-cookies",
        ),
        pytest.param(swap(COOKIE, b"Cookie", b";=\x80 ,;" * 1_000), id="A09-malformed"),
    ],
)
def test_many_cookies_without_the_token(head: bytes) -> None:
    assert authenticated(head) is NO_TOKEN


def test_a09_a_token_goes_to_the_check_whole() -> None:
    seen: list[str] = []

    def spy(token: str) -> Identity:
        seen.append(token)
        raise AuthError("too long")

    head = swap(BARE, b"Authorization", b"Bearer " + b"t" * 8_100)
    assert authenticate(request_of(head), POLICY, verify=spy, is_banned=is_banned) is BAD_TOKEN
    assert seen == ["t" * 8_100]


# --- origins ------------------------------------------------------------------------------------

FOREIGN_ORIGINS = {
    "A11-evil": b"https://evil.example",
    "A11-null": b"null",
    "A11-empty": b"",
    "A11-suffix": b"https://app.example.com.evil",
    "A11-suffix-joined": b"https://app.example.comevil.example",
    "A11-prefix": b"https://evilapp.example.com",
    "A11-subdomain": b"https://x.app.example.com",
    "A11-parent": b"https://example.com",
    "A11-port": b"https://app.example.com:8444",
    "A11-default-port-spelled-out": b"https://app.example.com:443",
    "A11-case": b"https://APP.example.com",
    "A11-scheme-case": b"HTTPS://app.example.com",
    "A11-trailing-dot": b"https://app.example.com.",
    "A11-trailing-slash": b"https://app.example.com/",
    "A11-path": b"https://app.example.com/x",
    "A11-user": b"https://app.example.com@evil.example",
    "A11-http-for-https": b"http://app.example.com",
    "A11-https-for-http": b"https://localhost:3000",
    "A11-websocket-scheme": b"wss://app.example.com",
    "A11-no-scheme": b"app.example.com",
    "A11-idn-unicode": "https://äpp.example.com".encode(),
    "A11-idn-punycode": b"https://xn--pp-uia.example.com",
    "A11-homoglyph": "https://аpp.example.com".encode(),
    "A11-list": b"https://app.example.com, https://app.example.com",
    "A11-two-in-one": b"https://app.example.com https://evil.example",
    "A11-star": b"*",
}


@pytest.mark.parametrize("case", FOREIGN_ORIGINS)
def test_an_origin_that_is_not_listed_is_refused_with_any_token(case: str) -> None:
    origin = FOREIGN_ORIGINS[case]
    assert authenticated(swap(COOKIE, b"Origin", origin)) is FORBIDDEN_ORIGIN
    assert authenticated(swap(MINIMAL, b"Origin", origin)) is FORBIDDEN_ORIGIN
    by_subprotocol = swap(BARE, b"Sec-WebSocket-Protocol", b"falcon.v1, falcon.bearer.h.p.s")
    assert authenticated(swap(by_subprotocol, b"Origin", origin)) is FORBIDDEN_ORIGIN


@pytest.mark.parametrize("origin", sorted(POLICY.allowed_origins))
def test_a11_a_listed_origin_passes_with_any_token(origin: str) -> None:
    value = origin.encode("ascii")
    assert authenticated(swap(COOKIE, b"Origin", value)) is ALICE
    assert authenticated(swap(MINIMAL, b"Origin", value)) is ALICE


def test_a11_a_cookie_needs_an_origin() -> None:
    assert authenticated(drop(COOKIE, b"Origin")) is FORBIDDEN_ORIGIN


def test_a11_a_bearer_token_needs_none() -> None:
    assert authenticated(MINIMAL) is ALICE
    by_subprotocol = swap(BARE, b"Sec-WebSocket-Protocol", b"falcon.v1, falcon.bearer.h.p.s")
    assert authenticated(by_subprotocol) is ALICE


@pytest.mark.parametrize("head", [COOKIE, MINIMAL], ids=["A11-cookie", "A11-bearer"])
@pytest.mark.parametrize("second", [APP.encode("ascii"), b"https://evil.example", b""])
def test_two_origins_are_refused(head: bytes, second: bytes) -> None:
    assert authenticated(swap(head, b"Origin", APP.encode("ascii"), second)) is FORBIDDEN_ORIGIN


def test_a11_other_headers_do_not_stand_in_for_the_origin() -> None:
    head = add(drop(COOKIE, b"Origin"), b"Sec-WebSocket-Origin: " + APP.encode("ascii"))
    head = add(head, b"Referer: " + APP.encode("ascii"), b"Sec-Fetch-Site: same-origin")
    assert authenticated(head) is FORBIDDEN_ORIGIN


def test_a12_an_empty_list_denies_every_origin() -> None:
    assert authenticated(COOKIE, Policy()) is FORBIDDEN_ORIGIN
    assert authenticated(swap(MINIMAL, b"Origin", APP.encode("ascii")), Policy()) is (
        FORBIDDEN_ORIGIN
    )
    assert authenticated(MINIMAL, Policy()) is ALICE


def test_a12_any_origin_and_cookies_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        Policy(allow_any_origin=True)
    with pytest.raises(ValueError, match="exclude each other"):
        Policy(allow_any_origin=True, cookie_auth=True, allowed_origins=frozenset({APP}))


def test_a12_any_origin_without_cookies() -> None:
    policy = Policy(allow_any_origin=True, cookie_auth=False)
    assert authenticated(swap(MINIMAL, b"Origin", b"https://anywhere.example"), policy) is ALICE
    assert authenticated(swap(MINIMAL, b"Origin", b"null"), policy) is ALICE
    assert authenticated(swap(MINIMAL, b"Origin", b"null", b"null"), policy) is FORBIDDEN_ORIGIN
    assert authenticated(COOKIE, policy) is NO_TOKEN


def test_a_star_in_the_list_is_only_a_name() -> None:
    policy = Policy(allowed_origins=frozenset({"*"}))
    assert authenticated(COOKIE, policy) is FORBIDDEN_ORIGIN


# --- bans ---------------------------------------------------------------------------------------


def test_a_banned_user_is_refused() -> None:
    assert authenticated(swap(BARE, b"Authorization", b"Bearer b.o.b")) is BANNED


def test_the_ban_list_is_not_asked_about_a_user_whose_token_is_bad() -> None:
    def unasked(user_id: str) -> bool:
        raise ZeroDivisionError

    request = request_of(swap(BARE, b"Authorization", b"Bearer x"))
    assert authenticate(request, POLICY, verify=verify, is_banned=unasked) is BAD_TOKEN


# --- handshake headers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([b"keep-alive, Upgrade"], id="H02-firefox"),
        pytest.param([b"Upgrade, keep-alive"], id="H02-reversed"),
        pytest.param([b"upgrade,foo"], id="H02-no-space"),
        pytest.param([b"UPGRADE"], id="H02-case"),
        pytest.param([b"keep-alive", b"Upgrade"], id="H02-two-headers"),
        pytest.param([b"Upgrade", b"Upgrade"], id="H02-twice"),
        pytest.param([b" ,, \tUpgrade\t,"], id="H02-empty-elements"),
    ],
)
def test_connection_is_a_list(values: list[bytes]) -> None:
    assert not isinstance(upgraded(swap(MINIMAL, b"Connection", *values)), Refuse)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"keep-alive"],
        [b"xUpgrade"],
        [b"Upgrade/1"],
        [b"close Upgrade"],
        [b'Upgrade, "x"'],
        [b"Upgrade, a/b"],
        [b"Upgrade", b"\x80"],
    ],
)
def test_connection_without_upgrade_is_refused(values: list[bytes]) -> None:
    assert upgraded(swap(MINIMAL, b"Connection", *values)) is NOT_WEBSOCKET


@pytest.mark.parametrize(
    "values", [[b"websocket"], [b"WebSocket"], [b"h2c, websocket"], [b"TLS/1.0", b"WEBSOCKET"]]
)
def test_upgrade_is_a_list(values: list[bytes]) -> None:
    assert not isinstance(upgraded(swap(MINIMAL, b"Upgrade", *values)), Refuse)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"h2c"],
        [b"websockets"],
        [b"websocket/13"],
        [b"web socket"],
        [b'websocket, "x"'],
        [b"websocket", b"\x80"],
    ],
)
def test_upgrade_to_anything_else_is_refused(values: list[bytes]) -> None:
    assert upgraded(swap(MINIMAL, b"Upgrade", *values)) is NOT_WEBSOCKET


def test_a_plain_get_is_refused() -> None:
    head = b"GET /websocket/connect HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer h.p.s\r\n\r\n"
    assert decided(head) is NOT_WEBSOCKET


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="H04-absent"),
        pytest.param([b""], id="H04-empty"),
        pytest.param([b"7"], id="H04-7"),
        pytest.param([b"8"], id="H04-8"),
        pytest.param([b"12"], id="H04-12"),
        pytest.param([b"99"], id="H04-99"),
        pytest.param([b"13, 8"], id="H04-list"),
        pytest.param([b"13", b"8"], id="H04-two"),
        pytest.param([b"13", b"13"], id="H04-twice"),
        pytest.param([b"013"], id="H04-zero"),
        pytest.param([b"+13"], id="H04-sign"),
        pytest.param([b"13.0"], id="H04-fraction"),
        pytest.param([b"\xb9\xb3"], id="H04-superscript"),
    ],
)
def test_any_version_but_13_is_refused(values: list[bytes]) -> None:
    assert upgraded(swap(MINIMAL, b"Sec-WebSocket-Version", *values)) is BAD_VERSION


@pytest.mark.parametrize("last", b"AQgw")
def test_h05_canonical_keys(last: int) -> None:
    key = b"+/89azAZ+/89azAZ+/89a%c==" % last
    accepted = upgraded(swap(MINIMAL, b"Sec-WebSocket-Key", key))
    assert accepted == (key.decode("ascii"), None)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="H05-absent"),
        pytest.param([b""], id="H05-empty"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZQ=="] * 2, id="H05-duplicate"),
        pytest.param([b"dGhlIHNhbXBsZSBub25j"], id="H05-15-bytes"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZQAA"], id="H05-18-bytes"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZSE="], id="H05-17-bytes"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZR=="], id="H05-not-canonical"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZQ"], id="H05-no-padding"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZQ="], id="H05-half-padding"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZQ==="], id="H05-more-padding"),
        pytest.param([b"!!dGhlIHNhbXBsZSBub25jZQ=="], id="H05-junk-before"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZQ==!!"], id="H05-junk-after"),
        pytest.param([b"dGhlIHNhb XBsZSBub25jZQ=="], id="H05-space-inside"),
        pytest.param([b"dGhlIHNhb-BsZSBub25jZQ=="], id="H05-url-alphabet"),
        pytest.param([b"dGhlIHNhbXBsZSBub25jZQ==, x"], id="H05-list"),
        pytest.param([b'"dGhlIHNhbXBsZSBub25jZQ=="'], id="H05-quoted"),
        pytest.param([b"dGhlIHNhb\xe9BsZSBub25jZQ=="], id="H05-not-ascii"),
    ],
)
def test_any_other_key_is_refused(values: list[bytes]) -> None:
    assert upgraded(swap(MINIMAL, b"Sec-WebSocket-Key", *values)) is BAD_KEY


@pytest.mark.parametrize("hosts", [[], [b""], [b"a", b"b"], [b"a b"]])
def test_h03_host_missing_twice_or_bad_is_refused(hosts: list[bytes]) -> None:
    assert upgraded(swap(MINIMAL, b"Host", *hosts)) is BAD_HOST
    assert decided(swap(MINIMAL, b"Host", *hosts)) is BAD_HOST


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        pytest.param([], None, id="H13-none"),
        pytest.param([b""], None, id="H13-empty"),
        pytest.param([b"chat, superchat"], None, id="H13-unknown"),
        pytest.param([b"falcon.v2"], None, id="H13-other-version"),
        pytest.param([b"Falcon.V1"], None, id="H13-case"),
        pytest.param([b"falcon.v1"], "falcon.v1", id="H13-ours"),
        pytest.param([b"chat, falcon.v1"], "falcon.v1", id="H13-among-others"),
        pytest.param([b"falcon.v1,falcon.v1"], "falcon.v1", id="H13-duplicate"),
        pytest.param([b"chat", b"falcon.v1"], "falcon.v1", id="H13-two-headers"),
        pytest.param([b"falcon.bearer.h.p.s"], None, id="H13-never-the-token"),
        pytest.param([b"falcon.bearer.h.p.s, falcon.v1"], "falcon.v1", id="H13-token-first"),
        pytest.param([b", ".join([b"p%d" % n for n in range(1_000)])], None, id="H13-thousand"),
        pytest.param([b"x" + b" " * 8_000], None, id="H13-white-space"),
        pytest.param([b" , ,falcon.v1,, "], "falcon.v1", id="H13-empty-elements"),
    ],
)
def test_only_our_subprotocol_is_answered(values: list[bytes], answer: str | None) -> None:
    accepted = upgraded(swap(MINIMAL, b"Sec-WebSocket-Protocol", *values))
    assert accepted == ("dGhlIHNhbXBsZSBub25jZQ==", answer)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([b'falcon.v1, "x"'], id="H13-quoted"),
        pytest.param([b"falcon.v1 falcon.v2"], id="H13-no-comma"),
        pytest.param([b"x" + b" " * 8_000 + b"y"], id="H13-white-space-inside"),
        pytest.param([b"falcon.v1", b"a/b"], id="H13-separator"),
        pytest.param([b"falcon.v1; q=1"], id="H13-parameter"),
        pytest.param([b"falcon.v1, \x80"], id="H13-not-ascii"),
    ],
)
def test_a_subprotocol_list_that_breaks_the_grammar_is_refused(values: list[bytes]) -> None:
    assert upgraded(swap(MINIMAL, b"Sec-WebSocket-Protocol", *values)) is BAD_SUBPROTOCOL


def test_d01_extension_offers_are_passed_over() -> None:
    head = add(MINIMAL, b'Sec-WebSocket-Extensions: permessage-deflate; x="y", ;;=,' + b"a," * 999)
    assert not isinstance(upgraded(head), Refuse)


# --- routes -------------------------------------------------------------------------------------


def routed(target: str, method: str = "GET", host: str = "Host: a\r\n") -> object:
    head = f"{method} {target} HTTP/1.1\r\n{host}\r\n".encode("ascii")
    return route(request_of(head), POLICY)


@pytest.mark.parametrize(
    "target",
    [
        "/websocket/connect",
        "/websocket/connect?",
        "/websocket/connect?token=x&a=b",
        "http://localhost:3000/websocket/connect",
    ],
)
def test_the_websocket_path_goes_on(target: str) -> None:
    assert routed(target) is None


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/websocket/status", "status"),
        ("/healthz", "healthz"),
        ("/readyz", "readyz"),
        ("/healthz?verbose=1", "healthz"),
        ("http://localhost/readyz", "readyz"),
    ],
)
def test_the_plain_endpoints(target: str, name: str) -> None:
    endpoint = routed(target)
    assert isinstance(endpoint, Endpoint)
    assert endpoint.name == name


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/websocket",
        "/websocket/connect/",
        "/websocket/Connect",
        "/websocket/%63onnect",
        "//websocket/connect",
        "/x/../websocket/connect",
        "/websocket/connect;x",
        "/websocket/connect#x",
        "/healthz/",
        "/metrics",
        "/docs",
    ],
)
def test_other_paths_are_not_found(target: str) -> None:
    assert routed(target) is NOT_FOUND
    assert routed(target, "POST") is NOT_FOUND


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get", "Get"])
@pytest.mark.parametrize("target", ["/websocket/connect", "/healthz"])
def test_h06_other_methods_are_not_allowed(method: str, target: str) -> None:
    assert routed(target, method) is METHOD_NOT_ALLOWED


@pytest.mark.parametrize(
    ("target", "status", "headers"),
    [
        ("/websocket/connect", 405, (("Allow", "GET"),)),
        ("/healthz", 405, (("Allow", "GET"),)),
        ("/nowhere", 404, ()),
    ],
)
def test_h06_head_is_refused_without_a_body(
    target: str, status: int, headers: tuple[tuple[str, str], ...]
) -> None:
    refusal = routed(target, "HEAD")
    assert isinstance(refusal, Refuse)
    assert (refusal.status, refusal.body, refusal.headers) == (status, b"", headers)
    assert refusal.to_bytes().endswith(b"\r\n\r\n")


@pytest.mark.parametrize("host", ["", "Host:\r\n", "Host: a\r\nHost: a\r\n", "Host: a b\r\n"])
def test_h03_plain_endpoints_need_a_host_too(host: str) -> None:
    assert routed("/healthz", host=host) is BAD_HOST


def test_the_websocket_path_is_settable() -> None:
    policy = Policy(path="/ws")
    assert route(request_of(b"GET /ws HTTP/1.1\r\n\r\n"), policy) is None
    assert route(request_of(b"GET /websocket/connect HTTP/1.1\r\n\r\n"), policy) is NOT_FOUND


# --- addresses ----------------------------------------------------------------------------------

PROXIED = Policy(
    trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("192.0.2.1/32"), ip_network("fd00::/8"))
)


def address(*forwarded: str, peer: str = "10.0.0.1", policy: Policy = PROXIED) -> str:
    head = add(MINIMAL, *[b"X-Forwarded-For: " + value.encode("latin-1") for value in forwarded])
    return client_address(request_of(head), peer, policy)


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        pytest.param(["203.0.113.9"], "203.0.113.9", id="H16-one-proxy"),
        pytest.param(["203.0.113.9, 10.0.0.2"], "203.0.113.9", id="H16-two-proxies"),
        pytest.param(["203.0.113.9", "10.0.0.2"], "203.0.113.9", id="H16-two-headers"),
        pytest.param(["203.0.113.9,10.0.0.2,192.0.2.1"], "203.0.113.9", id="H16-three-proxies"),
        pytest.param(["1.2.3.4, 203.0.113.9"], "203.0.113.9", id="H16-forged-beginning"),
        pytest.param(["1.2.3.4", "203.0.113.9, 10.0.0.2"], "203.0.113.9", id="H16-forged-header"),
        pytest.param(["<script>, 203.0.113.9"], "203.0.113.9", id="H16-junk-beginning"),
        pytest.param(["10.0.0.9"], "10.0.0.9", id="H16-only-trusted"),
        pytest.param(["10.0.0.9, 10.0.0.8"], "10.0.0.9", id="H16-only-trusted-two"),
        pytest.param(["203.0.113.9:51000"], "203.0.113.9", id="H16-port"),
        pytest.param(["2001:DB8:0::9"], "2001:db8::9", id="H16-ipv6"),
        pytest.param(["[2001:db8::9]"], "2001:db8::9", id="H16-ipv6-brackets"),
        pytest.param(["[2001:db8::9]:51000"], "2001:db8::9", id="H16-ipv6-port"),
        pytest.param(["::ffff:203.0.113.9"], "203.0.113.9", id="H16-ipv4-mapped"),
        pytest.param(["203.0.113.9, fd00::7"], "203.0.113.9", id="H16-ipv6-proxy"),
        pytest.param(["\t203.0.113.9 ,  10.0.0.2"], "203.0.113.9", id="H16-white-space"),
    ],
)
def test_x_forwarded_for_of_a_trusted_proxy(forwarded: list[str], client: str) -> None:
    assert address(*forwarded) == client


@pytest.mark.parametrize(
    "forwarded",
    [
        pytest.param([], id="H16-absent"),
        pytest.param([""], id="H16-empty"),
        pytest.param([",,,"], id="H16-commas"),
        pytest.param(["203.0.113.9,"], id="H16-ends-in-comma"),
        pytest.param(["unknown"], id="H16-unknown"),
        pytest.param(["_hidden, 10.0.0.2"], id="H16-hidden"),
        pytest.param(["203.0.113"], id="H16-short"),
        pytest.param(["203.0.113.256"], id="H16-range"),
        pytest.param(["0203.0.113.9"], id="H16-octal"),
        pytest.param(["203.0.113.9:port"], id="H16-bad-port"),
        pytest.param(["203.0.113.9 10.0.0.2"], id="H16-no-comma"),
        pytest.param(["fe80::1%eth0"], id="H16-zone"),
        pytest.param(["[2001:db8::9"], id="H16-open-bracket"),
        pytest.param(["[2001:db8::9]x"], id="H16-after-bracket"),
        pytest.param(["1:2:3:4:5:6:7:8:9"], id="H16-too-many-groups"),
        pytest.param(["\xb2.0.113.9"], id="H16-unicode-digit"),
        pytest.param([",".join(["10.0.0.2"] * 800)], id="H16-endless"),
        pytest.param(["203.0.113.9," + ",".join(["10.0.0.2"] * 32)], id="H16-one-too-many"),
    ],
)
def test_a_list_that_says_nothing_leaves_the_peer(forwarded: list[str]) -> None:
    assert address(*forwarded) == "10.0.0.1"


def test_h16_the_longest_list_that_is_walked() -> None:
    assert address("203.0.113.9," + ",".join(["10.0.0.2"] * 31)) == "203.0.113.9"


def test_h16_a_thousand_hops_behind_one_client() -> None:
    assert address(",".join(["1.2.3.4"] * 900 + ["203.0.113.9"])) == "203.0.113.9"


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("192.0.2.2", "192.0.2.2"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:DB8::0:7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", ""),
        ("@falcon", "@falcon"),
    ],
)
def test_h16_a_peer_that_is_no_trusted_proxy_is_not_believed(peer: str, client: str) -> None:
    assert address("1.2.3.4", peer=peer) == client


def test_h16_nobody_is_trusted_by_default() -> None:
    assert address("1.2.3.4", peer="127.0.0.1", policy=POLICY) == "127.0.0.1"


def test_h16_a_trusted_proxy_on_a_dual_stack_socket() -> None:
    assert address("203.0.113.9", peer="::ffff:10.0.0.1") == "203.0.113.9"


def test_h16_other_headers_are_not_believed() -> None:
    head = add(MINIMAL, b"X-Real-IP: 1.2.3.4", b"Forwarded: for=1.2.3.4", b"Client-IP: 1.2.3.4")
    assert client_address(request_of(head), "10.0.0.1", PROXIED) == "10.0.0.1"


# --- what clients are told ----------------------------------------------------------------------


REFUSALS = [
    (BAD_HEAD, 400, b"Bad Request", "bad_head"),
    (BODY_NOT_ALLOWED, 400, b"Bad Request", "body_not_allowed"),
    (BAD_HOST, 400, b"Bad Request", "bad_host"),
    (NOT_WEBSOCKET, 400, b"Bad Request", "not_websocket"),
    (BAD_KEY, 400, b"Bad Request", "bad_key"),
    (BAD_SUBPROTOCOL, 400, b"Bad Request", "bad_subprotocol"),
    (NO_TOKEN, 401, b"Unauthorized", "no_token"),
    (MANY_TOKENS, 401, b"Unauthorized", "many_tokens"),
    (BAD_TOKEN, 401, b"Unauthorized", "bad_token"),
    (FORBIDDEN_ORIGIN, 403, b"Forbidden", "forbidden_origin"),
    (BANNED, 403, b"Forbidden", "banned"),
    (NOT_FOUND, 404, b"Not Found", "not_found"),
    (METHOD_NOT_ALLOWED, 405, b"Method Not Allowed", "method_not_allowed"),
    (URI_TOO_LONG, 414, b"URI Too Long", "uri_too_long"),
    (BAD_VERSION, 426, b"Upgrade Required", "bad_version"),
    (too_many_connections(1), 429, b"Too Many Requests", "too_many_connections"),
    (HEAD_TOO_LARGE, 431, b"Request Header Fields Too Large", "head_too_large"),
    (INTERNAL_ERROR, 500, b"Internal Server Error", "internal_error"),
    (draining(1), 503, b"Service Unavailable", "draining"),
    (full(1), 503, b"Service Unavailable", "full"),
    (no_keys(1), 503, b"Service Unavailable", "no_keys"),
    (BAD_HTTP_VERSION, 505, b"HTTP Version Not Supported", "bad_http_version"),
]


@pytest.mark.parametrize(
    ("refusal", "status", "body", "label"), REFUSALS, ids=[label for *_, label in REFUSALS]
)
def test_refusals_are_constant(refusal: Refuse, status: int, body: bytes, label: str) -> None:
    assert (refusal.status, refusal.body, refusal.label) == (status, body, label)
    assert b"\r\nConnection: close\r\n" in refusal.to_bytes()


def test_the_documented_refusals_are_these() -> None:
    page = (ROOT / "docs" / "reference" / "connecting.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \| `(\w+)` \|[^|]+\|([^|]*)\|$", page, re.MULTILINE)
    documented = [
        (int(status), body.encode("ascii"), label, re.findall(r"`([^`]+)`", headers))
        for status, body, label, headers in rows
    ]
    assert documented == [
        (
            status,
            body,
            label,
            [f"{name}: {value}" for name, value in refusal.headers if name != "Retry-After"]
            or ["Retry-After: <seconds>"] * len(refusal.headers),
        )
        for refusal, status, body, label in REFUSALS
    ]


def test_what_cannot_be_told_apart_by_the_client_is_the_same_bytes() -> None:
    assert NO_TOKEN.to_bytes() == MANY_TOKENS.to_bytes() == BAD_TOKEN.to_bytes()
    assert FORBIDDEN_ORIGIN.to_bytes() == BANNED.to_bytes()


def test_h04_the_answer_to_a_wrong_version_names_the_right_one() -> None:
    assert BAD_VERSION.to_bytes() == (
        b"HTTP/1.1 426 Upgrade Required\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 16\r\n"
        b"Connection: close\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"\r\n"
        b"Upgrade Required"
    )


def test_unauthorized_carries_a_challenge_and_405_what_is_allowed() -> None:
    assert NO_TOKEN.headers == (("WWW-Authenticate", "Bearer"),)
    assert METHOD_NOT_ALLOWED.headers == (("Allow", "GET"),)


@pytest.mark.parametrize("refuse", [too_many_connections, draining, full])
@pytest.mark.parametrize(
    ("seconds", "sent"), [(0, "1"), (-3, "1"), (0.05, "1"), (1, "1"), (1.2, "2"), (30.0, "30")]
)
def test_r01_retry_after_is_in_whole_seconds(
    refuse: Callable[[float], Refuse], seconds: float, sent: str
) -> None:
    assert refuse(seconds).headers == (("Retry-After", sent),)


def test_no_refusal_shows_a_token() -> None:
    token = b"eyJhbGciOiJIUzI1NiJ9.e30.c2ln"
    refusal = decided(swap(BARE, b"Authorization", b"Bearer " + token))
    assert isinstance(refusal, Refuse)
    assert token not in refusal.to_bytes()
    assert token.decode("ascii") not in repr(refusal)


# --- work ---------------------------------------------------------------------------------------

WIDE = Policy(
    allowed_origins=POLICY.allowed_origins,
    trusted_proxies=PROXIED.trusted_proxies,
    max_head_bytes=1 << 30,
    max_line=1 << 30,
)

BOMBS: dict[str, Callable[[int], bytes]] = {
    "cookie-semicolons": lambda n: swap(COOKIE, b"Cookie", b"falcon_auth_token" + b";" * n),
    "cookie-equals": lambda n: swap(COOKIE, b"Cookie", b"falcon_auth_token" + b"=" * n),
    "cookie-spaces": lambda n: swap(COOKIE, b"Cookie", b"falcon_auth_token ; " + b" \t" * n + b";"),
    "cookie-names": lambda n: swap(COOKIE, b"Cookie", b"falcon_auth_token=" * (n // 18)),
    "cookie-quotes": lambda n: swap(COOKIE, b"Cookie", b'falcon_auth_token="' + b'"' * n),
    "bearer-spaces": lambda n: swap(BARE, b"Authorization", b"Bearer" + b" " * n + b"x"),
    "bearer-long": lambda n: swap(BARE, b"Authorization", b"Bearer " + b"x" * n + b" "),
    "protocol-commas": lambda n: swap(BARE, b"Sec-WebSocket-Protocol", b"falcon.v1" + b"," * n),
    "protocol-spaces": lambda n: swap(
        BARE, b"Sec-WebSocket-Protocol", b"falcon.v1, x" + b" " * n + b"x"
    ),
    "protocol-tokens": lambda n: swap(
        BARE, b"Sec-WebSocket-Protocol", b"falcon.v1" + b",falcon.bearer.x" * (n // 16)
    ),
    "connection-commas": lambda n: swap(MINIMAL, b"Connection", b"," * n),
    "upgrade-spaces": lambda n: swap(MINIMAL, b"Upgrade", b"x" + b" " * n + b"x"),
    "origin": lambda n: swap(MINIMAL, b"Origin", b"https://" + b"a" * n),
    "key": lambda n: swap(MINIMAL, b"Sec-WebSocket-Key", b"A" * n),
    "host": lambda n: swap(MINIMAL, b"Host", b"a" * n + b":"),
    "version": lambda n: swap(MINIMAL, b"Sec-WebSocket-Version", b"1" * n),
    "forwarded-commas": lambda n: add(MINIMAL, b"X-Forwarded-For: " + b"," * n),
    "forwarded-digits": lambda n: add(MINIMAL, b"X-Forwarded-For: " + b"1" * n),
    "forwarded-trusted": lambda n: add(MINIMAL, b"X-Forwarded-For: " + b"10.0.0.1," * (n // 9)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_h13_work_grows_with_the_length_and_not_with_its_square(bomb: str) -> None:
    small = 16_384
    requests = {size: request_of(BOMBS[bomb](size), WIDE) for size in (small, 8 * small)}

    def work(size: int) -> None:
        decide(requests[size], WIDE, verify=verify, is_banned=is_banned, peer_ip="10.0.0.1")

    assert growth(work, small) < LINEAR


def test_h13_the_longest_legal_lists_are_read_in_full() -> None:
    offers = b"falcon.v1," + b",".join([b"p%d" % n for n in range(1_200)]) + b",falcon.bearer.h.p.s"
    assert authenticated(swap(BARE, b"Sec-WebSocket-Protocol", offers)) is ALICE
    cookies = b"; ".join([b"c%d=v" % n for n in range(800)]) + b"; falcon_auth_token=h.p.s"
    assert authenticated(swap(COOKIE, b"Cookie", cookies)) is ALICE
