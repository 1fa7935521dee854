"""The opening handshake decided: a request head -> Accept | Refuse | Endpoint, before the 101.

Pure: no I/O, no state, no clock; the token check and the ban list come in as callables. The
order of a birth is :func:`~falcon_fast.head.parse_head`, :func:`route`, :func:`decide`, and
inside the last one, first failure wins::

    token    401   Authorization, else cookie, else subprotocol; a bad one is final
    origin   403   a listed Origin; only a request without cookie may come without one
    ban      403
    upgrade  400   Host, Upgrade, Connection, Sec-WebSocket-Key, Sec-WebSocket-Protocol
             426   Sec-WebSocket-Version

Nothing the client sent is ever reflected: the answers are constants and the one subprotocol
that can be agreed is ours.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Literal

from falcon_fast.deflate import Deflate, agree
from falcon_fast.errors import AuthError
from falcon_fast.head import HeadLimits, Refuse, Request, has_valid_host, parse_head
from falcon_fast.identity import Identity

__all__ = [
    "BAD_HOST",
    "BAD_KEY",
    "BAD_SUBPROTOCOL",
    "BAD_TOKEN",
    "BAD_VERSION",
    "BANNED",
    "BEARER_PREFIX",
    "FORBIDDEN_ORIGIN",
    "INTERNAL_ERROR",
    "MANY_TOKENS",
    "METHOD_NOT_ALLOWED",
    "NOT_FOUND",
    "NOT_WEBSOCKET",
    "NO_TOKEN",
    "SUBPROTOCOL",
    "Accept",
    "Endpoint",
    "Policy",
    "Refuse",
    "Request",
    "authenticate",
    "bearer_token",
    "client_address",
    "cookie_values",
    "decide",
    "draining",
    "extension",
    "full",
    "no_keys",
    "parse_head",
    "route",
    "too_many_connections",
    "upgrade",
]

#: The one subprotocol this server answers.
SUBPROTOCOL: Final = "falcon.v1"
#: What a browser puts before its token to offer it beside :data:`SUBPROTOCOL`.
BEARER_PREFIX: Final = "falcon.bearer."

#: Entries of X-Forwarded-For that are looked at, counted from the nearest: more than any chain
#: of real proxies, few enough that a forged list costs nothing.
_MAX_FORWARDED_HOPS: Final = 32

# RFC 7235 section 2.1: credentials = auth-scheme 1*SP token68; the scheme in any case.
_BEARER: Final = re.compile(r"bearer {1,8}+([^ \t,]++)", re.IGNORECASE)

# 16 bytes in base64 are 22 characters and two "="; of the last character only the two high bits
# are used, so a canonical one is A, Q, g or w.
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==")

# What the elements of a list consist of once they are joined: tchar (RFC 9110 section 5.6.2), and
# in Upgrade also the "/" before a version.
_TOKENS: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]*+")
_PROTOCOLS: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z/]*+")

# An address as proxies write it: bare, or with a port, then an IPv6 one is in brackets. A zone
# ("%eth0") is refused: it is free text, and addresses are keys of the rate limit.
_HOP: Final = re.compile(
    r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15})(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})"
)

_Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(HeadLimits):
    """What decides about a request, fixed at start.

    Attributes:
        path: The path that upgrades, compared byte for byte.
        cookie_name: The cookie that may carry the token.
        cookie_auth: Whether that cookie is read at all.
        allowed_origins: Origins as browsers write them (``scheme://host[:port]``, lower case,
            no default port), compared byte for byte.
        allow_any_origin: ``*`` was listed; never together with ``cookie_auth``.
        trusted_proxies: Networks whose X-Forwarded-For is believed.
        compression: Whether permessage-deflate is agreed on with clients that offer it.

    Raises:
        ValueError: ``allow_any_origin`` together with ``cookie_auth``: any web page could then
            connect as its visitor.
    """

    path: str = "/websocket/connect"
    cookie_name: str = "falcon_auth_token"
    cookie_auth: bool = True
    allowed_origins: frozenset[str] = frozenset()
    allow_any_origin: bool = False
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    compression: bool = True

    def __post_init__(self) -> None:
        if self.allow_any_origin and self.cookie_auth:
            raise ValueError("any origin and cookie authentication exclude each other")


@dataclass(frozen=True, slots=True)
class Accept:
    """A request to answer with 101.

    Attributes:
        identity: Whom the token names.
        key: The client's Sec-WebSocket-Key: canonical base64 of 16 bytes.
        subprotocol: :data:`SUBPROTOCOL` if the client offered it, else None.
        remote_address: Where the client is, see :func:`client_address`.
        deflate: What was agreed on for compression, or None.
    """

    identity: Identity
    key: str
    subprotocol: str | None
    remote_address: str
    deflate: Deflate | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A plain GET that the public listener answers itself."""

    name: Literal["status", "healthz", "readyz"]


_ENDPOINTS: Final[dict[str, Endpoint]] = {
    "/websocket/status": Endpoint("status"),
    "/healthz": Endpoint("healthz"),
    "/readyz": Endpoint("readyz"),
}

# RFC 9110 section 15.5.2: "The server generating a 401 response MUST send a WWW-Authenticate
# header field".
_CHALLENGE: Final = ("WWW-Authenticate", "Bearer")

NO_TOKEN: Final = Refuse.of(401, "no_token", _CHALLENGE)
MANY_TOKENS: Final = Refuse.of(401, "many_tokens", _CHALLENGE)
BAD_TOKEN: Final = Refuse.of(401, "bad_token", _CHALLENGE)
FORBIDDEN_ORIGIN: Final = Refuse.of(403, "forbidden_origin")
BANNED: Final = Refuse.of(403, "banned")
BAD_HOST: Final = Refuse.of(400, "bad_host")
NOT_WEBSOCKET: Final = Refuse.of(400, "not_websocket")
BAD_KEY: Final = Refuse.of(400, "bad_key")
BAD_SUBPROTOCOL: Final = Refuse.of(400, "bad_subprotocol")
# RFC 9110 section 15.5.22: "The server MUST send an Upgrade header field in a 426 response", and
# section 7.8 wants it named in Connection; a second Connection line extends the first one.
BAD_VERSION: Final = Refuse.of(
    426,
    "bad_version",
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
)
NOT_FOUND: Final = Refuse.of(404, "not_found")
METHOD_NOT_ALLOWED: Final = Refuse.of(405, "method_not_allowed", ("Allow", "GET"))
#: For whoever catches an unexpected exception: its text must not reach the client.
INTERNAL_ERROR: Final = Refuse.of(500, "internal_error")


def too_many_connections(retry_after: float) -> Refuse:
    """Refuse an address that connects too often.

    Args:
        retry_after: Seconds until it may try again; sent rounded up, at least 1.
    """
    return Refuse.of(429, "too_many_connections", _retry_after(retry_after))


def draining(retry_after: float) -> Refuse:
    """Refuse because this node is going away.

    Args:
        retry_after: Seconds until it makes sense to try again; sent rounded up, at least 1.
    """
    return Refuse.of(503, "draining", _retry_after(retry_after))


def full(retry_after: float) -> Refuse:
    """Refuse because this node has all the connections it may have.

    Args:
        retry_after: Seconds until it makes sense to try again; sent rounded up, at least 1.
    """
    return Refuse.of(503, "full", _retry_after(retry_after))


def no_keys(retry_after: float) -> Refuse:
    """Refuse because the keys that tokens are checked with are not there yet.

    Not 401: a client would throw away a token that is good.

    Args:
        retry_after: Seconds until it makes sense to try again; sent rounded up, at least 1.
    """
    return Refuse.of(503, "no_keys", _retry_after(retry_after))


def route(request: Request, policy: Policy) -> Endpoint | Refuse | None:
    """Find what a request is for.

    The query string plays no part: nothing is ever read from a URL but its path.

    Returns:
        None for the WebSocket path: go on with :func:`decide`. Else one of the plain endpoints,
        or 404, 405, or 400 for an endpoint asked for without a proper Host.
    """
    endpoint = None
    refusal = None
    if request.path != policy.path:
        endpoint = _ENDPOINTS.get(request.path)
        if endpoint is None:
            refusal = NOT_FOUND
    if refusal is None and request.method != "GET":
        refusal = METHOD_NOT_ALLOWED
    if refusal is not None:
        # RFC 9110 section 9.3.2: "the server MUST NOT send content in the response" to HEAD.
        return replace(refusal, body=b"") if request.method == "HEAD" else refusal
    if endpoint is not None and not has_valid_host(request):
        return BAD_HOST
    return endpoint


def decide(
    request: Request,
    policy: Policy,
    *,
    verify: Callable[[str], Identity],
    is_banned: Callable[[str], bool],
    peer_ip: str,
) -> Accept | Refuse:
    """Decide about a request to the WebSocket path.

    Args:
        request: What :func:`route` answered None to.
        policy: The server's policy.
        verify: Turns a token into an identity; raises AuthError, and nothing else.
        is_banned: Tells whether a user id is banned.
        peer_ip: The address of the socket's other end.
    """
    identity = authenticate(request, policy, verify=verify, is_banned=is_banned)
    if isinstance(identity, Refuse):
        return identity
    agreed = upgrade(request)
    if isinstance(agreed, Refuse):
        return agreed
    key, subprotocol = agreed
    return Accept(
        identity,
        key,
        subprotocol,
        client_address(request, peer_ip, policy),
        extension(request, policy),
    )


def authenticate(
    request: Request,
    policy: Policy,
    *,
    verify: Callable[[str], Identity],
    is_banned: Callable[[str], bool],
) -> Identity | Refuse:
    """Find out who asks, and whether they may ask from there.

    Args:
        request: The request head.
        policy: The server's policy.
        verify: Turns a token into an identity; raises AuthError, and nothing else.
        is_banned: Tells whether a user id is banned.

    Returns:
        The identity; or 401 for the token; or 403 for the origin or a banned user.
    """
    found = _find_token(request, policy)
    if isinstance(found, Refuse):
        return found
    token, from_cookie = found
    try:
        identity = verify(token)
    except AuthError:
        return BAD_TOKEN
    if not _origin_allowed(request.get_all("origin"), policy, required=from_cookie):
        return FORBIDDEN_ORIGIN
    if is_banned(identity.user_id):
        return BANNED
    return identity


def upgrade(request: Request) -> tuple[str, str | None] | Refuse:
    """Check the handshake headers.

    RFC 6455 section 4.2.1: a server that finds "any violations of the ABNF grammar specified for
    the components of the handshake" must stop and answer with an error. Extensions are left to
    :func:`extension`: passing over an offer is always right.

    Returns:
        The key and the agreed subprotocol; or 400; or 426 for any version but 13.
    """
    if not has_valid_host(request):
        return BAD_HOST
    if not _lists(request.get_all("upgrade"), "websocket", _PROTOCOLS):
        return NOT_WEBSOCKET
    # A list: Firefox long sent "keep-alive, Upgrade", proxies add their own.
    if not _lists(request.get_all("connection"), "upgrade", _TOKENS):
        return NOT_WEBSOCKET
    if request.get_all("sec-websocket-version") != ("13",):
        return BAD_VERSION
    keys = request.get_all("sec-websocket-key")
    if len(keys) != 1 or _KEY.fullmatch(keys[0]) is None:
        return BAD_KEY
    protocols = request.get_all("sec-websocket-protocol")
    if not protocols:
        return keys[0], None
    offers = _elements(protocols)
    if _TOKENS.fullmatch("".join(offers)) is None:
        return BAD_SUBPROTOCOL
    return keys[0], SUBPROTOCOL if SUBPROTOCOL in offers else None


def extension(request: Request, policy: Policy) -> Deflate | None:
    """Agree on permessage-deflate, or on no extension: nothing offered can be a violation."""
    if not policy.compression:
        return None
    offers = request.get_all("sec-websocket-extensions")
    return agree(offers) if offers else None


def client_address(request: Request, peer_ip: str, policy: Policy) -> str:
    """Return the address that limits are counted for.

    X-Forwarded-For is believed only as far as trusted proxies wrote it: each appends the address
    it was called from, so the list is walked from its end, over trusted addresses, to the first
    one that is not.

    Args:
        request: The request head.
        peer_ip: The address of the socket's other end.
        policy: Names the trusted proxies.

    Returns:
        The address in canonical spelling, an IPv4-mapped IPv6 address as IPv4. The peer's if it
        is no trusted proxy, or if the list is empty, malformed or endless. A ``peer_ip`` that is
        no address (a Unix socket) comes back as it is.
    """
    if not policy.trusted_proxies:
        return _canonical_text(peer_ip)
    try:
        peer = _canonical(ip_address(peer_ip))
    except ValueError:
        return peer_ip
    if not _is_trusted(peer, policy):
        return str(peer)
    hops = ",".join(request.get_all("x-forwarded-for")).rsplit(",", _MAX_FORWARDED_HOPS - 1)
    client = peer
    for hop in reversed(hops):
        parsed = _parse_hop(hop.strip(" \t"))
        if parsed is None:
            return str(peer)
        client = parsed
        if not _is_trusted(client, policy):
            break
    return str(client)


def _find_token(request: Request, policy: Policy) -> tuple[str, bool] | Refuse:
    """Return the token and whether a cookie carried it; the first place that has one decides."""
    credentials = request.get_all("authorization")
    if credentials:
        if len(credentials) > 1:
            return MANY_TOKENS
        token = bearer_token(credentials[0])
        return BAD_TOKEN if token is None else (token, False)

    if policy.cookie_auth:
        cookies = cookie_values(request.get_all("cookie"), policy.cookie_name)
        if cookies:
            return MANY_TOKENS if len(cookies) > 1 else (cookies[0], True)

    offers = _elements(request.get_all("sec-websocket-protocol"))
    if SUBPROTOCOL in offers:
        tokens = [offer for offer in offers if offer.startswith(BEARER_PREFIX)]
        if tokens:
            if len(tokens) > 1:
                return MANY_TOKENS
            return tokens[0].removeprefix(BEARER_PREFIX), False
    return NO_TOKEN


def bearer_token(credentials: str) -> str | None:
    """Return the token of an Authorization header, or None if it is of another kind."""
    match = _BEARER.fullmatch(credentials)
    return None if match is None else match[1]


def cookie_values(headers: Iterable[str], name: str) -> list[str]:
    """Return the values of every cookie of a name; what is malformed is passed over."""
    values: list[str] = []
    for header in headers:
        if name not in header:
            continue
        for pair in header.split(";"):
            key, equals, value = pair.strip(" \t").partition("=")
            if equals and key == name:
                # RFC 6265 section 4.1.1: cookie-value = *cookie-octet / DQUOTE ... DQUOTE
                quoted = len(value) > 1 and value[0] == value[-1] == '"'
                values.append(value[1:-1] if quoted else value)
    return values


def _origin_allowed(origins: tuple[str, ...], policy: Policy, *, required: bool) -> bool:
    """Apply the origin rule: an Origin that is present must be listed, word for word.

    Args:
        origins: Every Origin header of the request.
        policy: Lists the origins.
        required: The token came by cookie, which a browser adds on its own: only the origin
            tells whose page asked.
    """
    if not origins:
        return not required
    if len(origins) > 1:
        return False
    return policy.allow_any_origin or origins[0] in policy.allowed_origins


def _elements(values: Iterable[str]) -> list[str]:
    """Return the elements of a comma separated header (RFC 9110 section 5.6.1)."""
    return [element.strip(" \t") for value in values for element in value.split(",")]


def _lists(values: Sequence[str], wanted: str, grammar: re.Pattern[str]) -> bool:
    """Tell whether a list header is well-formed and holds a token, in any case."""
    if len(values) == 1 and values[0].lower() == wanted:
        return True  # what nearly everybody sends
    elements = _elements(values)
    if grammar.fullmatch("".join(elements)) is None:
        return False
    return any(element.lower() == wanted for element in elements)


def _parse_hop(text: str) -> _Address | None:
    match = _HOP.fullmatch(text)
    if match is None or match.lastindex is None:
        return None
    try:
        return _canonical(ip_address(match[match.lastindex]))
    except ValueError:
        return None


def _canonical(address: _Address) -> _Address:
    """Return an IPv4-mapped IPv6 address, as a dual-stack socket reports it, as IPv4."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


@functools.lru_cache(maxsize=4096)
def _canonical_text(peer_ip: str) -> str:
    # Clients come back: parsing an address costs as much as the rest of a small request.
    try:
        return str(_canonical(ip_address(peer_ip)))
    except ValueError:
        return peer_ip


def _is_trusted(address: _Address, policy: Policy) -> bool:
    return any(address in network for network in policy.trusted_proxies)


def _retry_after(seconds: float) -> tuple[str, str]:
    return "Retry-After", str(max(1, math.ceil(seconds)))
