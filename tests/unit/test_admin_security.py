"""Who may call the admin API, and in which order that is found out."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from falcon_fast.admin import security
from falcon_fast.admin.problems import Problem
from falcon_fast.admin.security import NOT_ADMIN, Caller, Gatekeeper
from falcon_fast.errors import AuthError, DirectoryUnavailable
from falcon_fast.identity import Identity

from ..support.clock import FakeClock

COOKIE = "falcon_auth_token"
HOST = ("Host", "admin.example.com:3001")
OWN = "http://admin.example.com:3001"


def identity(user_id: str) -> Identity:
    return Identity(user_id, 1, "Name", "", 2_000_000_000, None)


def verify(token: str) -> Identity:
    """Accept the tokens that name their user."""
    if not token.startswith("ok-"):
        raise AuthError("signature does not match")
    return identity(token.removeprefix("ok-"))


async def is_super_admin(user_id: str, character_id: int) -> bool:
    if user_id == "lost":
        raise DirectoryUnavailable("down")
    return user_id in {"boss", "banned"}


KEEPER = Gatekeeper(
    verify=verify,
    is_banned=lambda user_id: user_id == "banned",
    is_super_admin=is_super_admin,
    cookie_name=COOKIE,
)


def request(*headers: tuple[str, str]) -> web.Request:
    return make_mocked_request("POST", "/", headers=CIMultiDict(headers))


def refused(*headers: tuple[str, str], keeper: Gatekeeper = KEEPER) -> str:
    with pytest.raises(Problem) as caught:
        keeper.authenticate(request(*headers))
    assert caught.value.status == 401
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}
    return caught.value.detail


def bearer(token: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {token}"


def cookie(token: str) -> tuple[str, str]:
    return "Cookie", f"{COOKIE}={token}"


@pytest.mark.parametrize(
    ("headers", "user", "by_cookie"),
    [
        ([bearer("ok-a")], "a", False),
        ([("Authorization", "bEaReR ok-a")], "a", False),
        ([cookie("ok-b")], "b", True),
        ([("Cookie", f'x=1; {COOKIE}="ok-b"; y=2')], "b", True),
        ([bearer("ok-a"), cookie("ok-b")], "a", False),
        ([bearer("ok-a"), cookie("bad")], "a", False),
        ([bearer("ok-a"), cookie("ok-b"), cookie("ok-c")], "a", False),
    ],
)
def test_a10_who_asks(headers: list[tuple[str, str]], user: str, by_cookie: bool) -> None:
    assert KEEPER.authenticate(request(*headers)) == Caller(identity(user), by_cookie)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Cookie", "other=ok-a")],
        [("Cookie", f"{COOKIE.upper()}=ok-a")],
        [("Sec-WebSocket-Protocol", "falcon.v1, falcon.bearer.ok-a")],
    ],
    ids=["nothing", "other cookie", "cookie in capitals", "subprotocol"],
)
def test_no_token(headers: list[tuple[str, str]]) -> None:
    assert refused(*headers) == "Authentication required"


@pytest.mark.parametrize(
    "headers",
    [
        [bearer("bad")],
        [bearer("bad"), cookie("ok-a")],
        [("Authorization", "")],
        [("Authorization", ""), cookie("ok-a")],
        [("Authorization", "Basic ok-a"), cookie("ok-a")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ok-a ok-b")],
        [("Authorization", "Bearer ok-a, Bearer ok-b")],
        [bearer("ok-a"), bearer("ok-a")],
        [bearer("ok-a"), ("Authorization", "Basic x")],
        [cookie("bad")],
        [cookie("")],
        [cookie("ok-a"), cookie("ok-a")],
        [("Cookie", f"{COOKIE}=ok-a; {COOKIE}=ok-a")],
    ],
)
def test_a10_bad_tokens_are_final(headers: list[tuple[str, str]]) -> None:
    assert refused(*headers) == "Invalid authentication token"


def test_cookies_can_be_switched_off() -> None:
    keeper = Gatekeeper(
        verify=verify, is_banned=lambda _: False, is_super_admin=is_super_admin, cookie_name=None
    )
    assert refused(cookie("ok-a"), keeper=keeper) == "Authentication required"
    assert keeper.authenticate(request(bearer("ok-a"))).identity.user_id == "a"


async def outcome(
    user_id: str, *headers: tuple[str, str], by_cookie: bool = False, writes: bool = False
) -> tuple[int, str] | None:
    """Return how a caller is refused, None if not at all."""
    try:
        await KEEPER.authorise(
            request(*headers), Caller(identity(user_id), by_cookie), writes=writes
        )
    except Problem as problem:
        return problem.status, problem.detail
    return None


async def test_only_super_administrators_pass() -> None:
    assert await outcome("boss") is None
    assert await outcome("user") == (403, "Super admin access required")
    assert await outcome("banned") == (403, "User is banned")
    status, detail = await outcome("lost") or (0, "")
    assert (status, "nothing was done" in detail) == (503, True)


async def test_a_directory_that_hangs_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(user_id: str, character_id: int) -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(security, "LOOKUP_TIMEOUT", 0.0)
    keeper = Gatekeeper(
        verify=verify, is_banned=lambda _: False, is_super_admin=never, cookie_name=COOKIE
    )
    with pytest.raises(Problem) as caught:
        await keeper.authorise(request(), Caller(identity("boss"), False), writes=False)
    assert caught.value.status == 503


SAME = ("Sec-Fetch-Site", "same-origin")


@pytest.mark.parametrize(
    "headers",
    [
        [HOST, ("Origin", OWN)],
        [HOST, ("Origin", OWN), SAME],
        [HOST, SAME],
        [("Host", "ADMIN.example.com:80"), ("Origin", "http://admin.example.com")],
        [HOST, ("Origin", "https://admin.example.com:3001"), SAME],
        [("Host", "[::1]:3001"), ("Origin", "http://[::1]:3001")],
    ],
    ids=["origin", "both", "fetch site", "default port", "behind TLS", "IPv6"],
)
async def test_w02_writes_with_the_cookie_from_our_own_page(headers: list[tuple[str, str]]) -> None:
    assert await outcome("boss", *headers, by_cookie=True, writes=True) is None


EVIL = [
    "https://evil.example",
    "null",
    "",
    OWN + ".evil",
    "http://xadmin.example.com:3001",
    "http://admin.example.com:3002",
    "http://admin.example.com",
    "HTTP://ADMIN.EXAMPLE.COM:3001",
    "http://admin.example.com.:3001",
    "http://аdmin.example.com:3001",  # the first letter is Cyrillic
    "https://admin.example.com:3001",
    OWN + "/",
    OWN + " " + OWN,
    "http://user@admin.example.com:3001",
]


@pytest.mark.parametrize("origin", EVIL)
async def test_a11_w02_writes_with_the_cookie_from_elsewhere(origin: str) -> None:
    refusal = (403, "A write with the cookie must come from a page of this server")
    headers = [HOST, ("Origin", origin)]
    assert await outcome("boss", *headers, by_cookie=True, writes=True) == refusal
    assert await outcome("user", *headers, by_cookie=True, writes=True) == refusal
    # The token in a header was put there by whoever asks, and a read changes nothing.
    assert await outcome("boss", *headers, by_cookie=False, writes=True) is None
    assert await outcome("boss", *headers, by_cookie=True, writes=False) is None


@pytest.mark.parametrize(
    "headers",
    [
        [HOST],
        [HOST, ("Origin", OWN), ("Origin", OWN)],
        [HOST, ("Origin", OWN), ("Sec-Fetch-Site", "cross-site")],
        [HOST, ("Origin", OWN), ("Sec-Fetch-Site", "same-site")],
        [HOST, ("Sec-Fetch-Site", "none")],
        [HOST, SAME, SAME],
        [HOST, ("Origin", "https://evil.example"), SAME],
        [("Origin", OWN)],
        [HOST, HOST, ("Origin", OWN)],
        [("Host", "a b"), ("Origin", "null")],
    ],
    ids=[
        "no origin",
        "two origins",
        "cross-site",
        "same-site",
        "typed in",
        "two sites",
        "contradiction",
        "no host",
        "two hosts",
        "bad host",
    ],
)
async def test_w02_writes_with_the_cookie_that_nobody_vouches_for(
    headers: list[tuple[str, str]],
) -> None:
    assert (await outcome("boss", *headers, by_cookie=True, writes=True) or (0,))[0] == 403


class _Directory:
    """Says yes to one user, and counts how often it was asked."""

    def __init__(self) -> None:
        self.admin = True
        self.asked = 0

    async def is_super_admin(self, user_id: str, character_id: int) -> bool:
        self.asked += 1
        return self.admin


async def test_a_yes_of_the_directory_holds_for_a_second_and_a_no_for_nothing() -> None:
    directory, clock = _Directory(), FakeClock()
    gatekeeper = Gatekeeper(
        verify=verify,
        is_banned=lambda _: False,
        is_super_admin=directory.is_super_admin,
        cookie_name=None,
        monotonic=clock.monotonic,
    )
    caller = Caller(Identity("admin", 1, "Admin", "", 0), by_cookie=False)
    request = make_mocked_request("GET", "/")  # no cookie, no write: nothing else to look at
    for _ in range(3):
        await gatekeeper.authorise(request, caller, writes=False)
    assert directory.asked == 1
    directory.admin = False
    clock.advance(1.0)
    for asked in (2, 3):
        with pytest.raises(Problem) as refused:
            await gatekeeper.authorise(request, caller, writes=False)
        assert (refused.value.status, refused.value.detail) == (403, NOT_ADMIN)
        assert directory.asked == asked
    directory.admin = True
    await gatekeeper.authorise(request, caller, writes=False)
    assert directory.asked == 4
