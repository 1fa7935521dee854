"""Who may call the admin API: a request -> the caller, before anything of the request is looked at.

The order is part of the contract, first failure wins::

    token            401   Authorization if there is one, else the cookie; a bad one is final
    same origin      403   only a write that the cookie speaks for
    ban              403
    super admin      403   503 when the directory does not answer

So nobody but a super administrator can learn from an answer what exists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from falcon_fast.admin.problems import Problem
from falcon_fast.errors import AuthError, DirectoryUnavailable
from falcon_fast.handshake import bearer_token, cookie_values
from falcon_fast.identity import Identity
from falcon_fast.settings import normalise_origin

__all__ = ["BAD_TOKEN", "BANNED", "CROSS_SITE", "NOT_ADMIN", "NO_TOKEN", "Caller", "Gatekeeper"]

NO_TOKEN: Final = "Authentication required"
BAD_TOKEN: Final = "Invalid authentication token"
NOT_ADMIN: Final = "Super admin access required"
BANNED: Final = "User is banned"
CROSS_SITE: Final = "A write with the cookie must come from a page of this server"
NO_DIRECTORY: Final = "The directory of users and groups does not answer; nothing was done"

LOOKUP_TIMEOUT: Final = 5.0
"""Seconds the directory has to say who is a super administrator."""

REMEMBERED: Final = 1.0
"""Seconds for which a yes of the directory holds: a change may take as long to be noticed anyway.

Who pages through thousands of connections would else ask it for each page.
"""

MAX_REMEMBERED: Final = 100
"""Administrators remembered at once."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        identity: whom the token names.
        by_cookie: the token came by cookie, which a browser adds on its own.
    """

    identity: Identity
    by_cookie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gatekeeper:
    """Decides who may call.

    Attributes:
        verify: turns a token into an identity; raises AuthError, and nothing else.
        is_banned: tells from memory whether a user id is banned.
        is_super_admin: tells whether a user id and a character id are a super administrator's;
            raises DirectoryUnavailable.
        cookie_name: the cookie that may carry the token; None if none may.
        monotonic: seconds, for how long an answer of the directory holds.
    """

    verify: Callable[[str], Identity]
    is_banned: Callable[[str], bool]
    is_super_admin: Callable[[str, int], Awaitable[bool]]
    cookie_name: str | None
    monotonic: Callable[[], float] = time.monotonic
    _known: dict[tuple[str, int], float] = field(default_factory=dict, init=False, repr=False)

    def authenticate(self, request: web.Request) -> Caller:
        """Find out who asks.

        Raises:
            Problem: 401.
        """
        token, by_cookie = self._token(request)
        try:
            return Caller(self.verify(token), by_cookie)
        except AuthError:
            raise _unauthenticated(BAD_TOKEN) from None

    def _token(self, request: web.Request) -> tuple[str, bool]:
        credentials = request.headers.getall("Authorization", [])
        if credentials:
            token = bearer_token(credentials[0]) if len(credentials) == 1 else None
            if token is None:
                raise _unauthenticated(BAD_TOKEN)
            return token, False
        cookies: list[str] = []
        if self.cookie_name is not None:
            cookies = cookie_values(request.headers.getall("Cookie", []), self.cookie_name)
        if not cookies:
            raise _unauthenticated(NO_TOKEN)
        if len(cookies) > 1:
            raise _unauthenticated(BAD_TOKEN)
        return cookies[0], True

    async def authorise(self, request: web.Request, caller: Caller, *, writes: bool) -> None:
        """Let only a super administrator through.

        Args:
            request: what is asked.
            caller: who asks.
            writes: the request changes or sends something.

        Raises:
            Problem: 403, or 503.
        """
        if writes and caller.by_cookie and not _is_same_origin(request):
            raise Problem(403, CROSS_SITE)
        identity = caller.identity
        if self.is_banned(identity.user_id):
            raise Problem(403, BANNED)
        key = identity.user_id, identity.character_id
        if self.monotonic() < self._known.get(key, 0.0):
            return
        self._known.pop(key, None)
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT):
                is_admin = await self.is_super_admin(*key)
        except (DirectoryUnavailable, TimeoutError):
            raise Problem(503, NO_DIRECTORY) from None
        if not is_admin:
            raise Problem(403, NOT_ADMIN)
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[key] = self.monotonic() + REMEMBERED


def _unauthenticated(detail: str) -> Problem:
    # RFC 9110 section 15.5.2: "The server generating a 401 response MUST send a WWW-Authenticate
    # header field".
    return Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _is_same_origin(request: web.Request) -> bool:
    """Tell whether a browser says that a page of this listener asks.

    Page scripts can set neither header. Behind a proxy that does TLS the page's origin has a scheme
    that is not ours; then Sec-Fetch-Site, which browsers send to such a site, must vouch for it.
    """
    origins = request.headers.getall("Origin", [])
    sites = request.headers.getall("Sec-Fetch-Site", [])
    if len(origins) > 1 or (sites and sites != ["same-origin"]):
        return False
    if not origins:
        return bool(sites)
    return origins[0] in _own_origins(request.headers.getall("Host", []), vouched=bool(sites))


def _own_origins(hosts: Sequence[str], *, vouched: bool) -> list[str | None]:
    if len(hosts) != 1:
        return []
    schemes = ("http", "https") if vouched else ("http",)
    return [normalise_origin(f"{scheme}://{hosts[0]}") for scheme in schemes]
