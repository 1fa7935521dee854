"""Threat cases A over real sockets: who gets in, who does not, and how long one may stay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ..support import ROOT, require
from ..support.client import PATH, Answer, Client, request, switching
from ..support.server import SECRET, ServerProcess, eventually, sign

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("canary")]

ORIGIN = "https://app.example.com"
ORIGINS = f"{ORIGIN},http://localhost:8080"
COOKIE = "falcon_auth_token"

HEADER = {"alg": "HS256", "typ": "JWT"}
NOTICED_WITHIN = 1.0
"""Seconds in which a ban must take effect, by the contract; test machines get some more."""

SLACK = 1.0

UNAUTHORIZED = Answer(
    401,
    {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": "12",
        "Connection": "close",
        "WWW-Authenticate": "Bearer",
    },
    b"Unauthorized",
)
FORBIDDEN = Answer(
    403,
    {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": "9",
        "Connection": "close",
    },
    b"Forbidden",
)


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"WEBSOCKET_ALLOWED_ORIGINS": ORIGINS}


def claims(**changes: object) -> dict[str, object]:
    """Return good claims, with changes; None leaves a claim out."""
    now = int(time.time())
    good: dict[str, object] = {
        "user_id": "u",
        "character_id": 1,
        "character_name": "Name",
        "scopes": "",
        "exp": now + 86_400,
        "iat": now,
        "iss": "go-falcon",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def header(**changes: object) -> dict[str, object]:
    """Return a good header, with changes; None leaves a member out."""
    return {name: value for name, value in {**HEADER, **changes}.items() if value is not None}


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


def cookie(*tokens: str) -> str:
    return "Cookie: theme=dark; " + "; ".join([f"{COOKIE}={token}" for token in tokens])


def offer(*tokens: str) -> str:
    return "Sec-WebSocket-Protocol: falcon.v1, " + ", ".join(
        [f"falcon.bearer.{token}" for token in tokens]
    )


def enter(server: ServerProcess, *lines: str) -> Client:
    """Connect with these header lines."""
    client = Client(server.wire())
    client.open(*lines)
    client.enter()
    return client


# --------------------------------------------------------------------------- A01, A04 to A08


def unsigned(token: str) -> str:
    return token.rpartition(".")[0] + "."


def tokens() -> dict[str, str]:
    """Return tokens of which none may be accepted, by case."""
    good = sign(HEADER, claims())
    head, payload, signature = good.split(".")
    deep = b'{"user_id":' + b"[" * 3000 + b"]" * 3000 + b"}"
    twice = json.dumps(claims())[:-1] + ',"user_id":"admin"}'
    now = int(time.time())
    return {
        **{
            f"A01-alg-{label}": sign(header(alg=alg), claims())
            for label, alg in {
                "none": "none",
                "nOnE": "nOnE",
                "missing": None,
                "list": ["HS256"],
                "dict": {"a": "HS256"},
                "hs512": "HS512",
                "rs256": "RS256",
                "empty": "",
                "lower": "hs256",
            }.items()
        },
        "A01-none-unsigned": unsigned(sign({"alg": "none"}, claims())),
        "A01-none-without-dot": sign({"alg": "none"}, claims()).rpartition(".")[0],
        "A01-other-secret": sign(HEADER, claims(), secret="x" * 40),
        "A01-empty-secret": sign(HEADER, claims(), secret=""),
        "A05-crit": sign(header(crit=["exp"]), claims()),
        "A05-crit-unknown": sign(header(crit=["x"], x=1), claims()),
        "A05-b64": sign(header(b64=False), claims()),
        "A05-typ": sign(header(typ="JWE"), claims()),
        "A05-detached": f"{head}..{signature}",
        "A05-two-segments": f"{head}.{payload}",
        "A05-four-segments": f"{good}.{signature}",
        "A05-five-segments": f"{good}.{signature}.{signature}",
        "A05-padding": f"{good}=",
        "A05-double-padding": f"{head}==.{payload}.{signature}",
        "A05-not-canonical": f"{head}.{payload}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}",
        "A05-signature-of-standard-base64": f"{head}.{payload}.{'+' * 43}",
        "A05-header-is-a-list": sign([HEADER], claims()),
        "A05-header-is-no-json": sign(b"{", claims()),
        "A05-header-twice": sign(b'{"alg":"none","alg":"HS256"}', claims()),
        "A06-exp-past": sign(HEADER, claims(exp=now - 60)),
        "A06-exp-beyond-the-leeway": sign(HEADER, claims(exp=now - 11)),
        "A06-exp-text": sign(HEADER, claims(exp=str(now + 600))),
        "A06-exp-float": sign(HEADER, claims(exp=now + 600.5)),
        "A06-exp-true": sign(HEADER, claims(exp=True)),
        "A06-exp-nan": sign(HEADER, claims(exp=float("nan"))),
        "A06-exp-1e18": sign(HEADER, claims(exp=10**18)),
        "A06-exp-negative": sign(HEADER, claims(exp=-1)),
        "A06-exp-missing": sign(HEADER, claims(exp=None)),
        "A06-nbf-future": sign(HEADER, claims(nbf=now + 86_400)),
        "A06-nbf-text": sign(HEADER, claims(nbf="0")),
        "A06-iat-future": sign(HEADER, claims(iat=now + 86_400)),
        "A06-iat-float": sign(HEADER, claims(iat=1.5)),
        "A06-iss-other": sign(HEADER, claims(iss="evil")),
        "A06-iss-list": sign(HEADER, claims(iss=["go-falcon"])),
        "A06-iss-missing": sign(HEADER, claims(iss=None)),
        **{
            f"A07-user-{label}": sign(HEADER, claims(user_id=user))
            for label, user in {
                "int": 5,
                "empty": "",
                "missing": None,
                "65": "x" * 65,
                "2k": "x" * 2048,
                "nul": "a\0b",
                "newline": "a\n",
                "colon": "a:b",
                "star": "*",
                "path": "../a",
                "dot": "a.b",
                "cyrillic": "\u0430dmin",
                "blank": "a b",
                "list": ["a"],
                "object": {"$ne": 1},
            }.items()
        },
        "A07-character-text": sign(HEADER, claims(character_id="1")),
        "A07-character-negative": sign(HEADER, claims(character_id=-1)),
        "A07-character-2^63": sign(HEADER, claims(character_id=2**63)),
        "A07-character-true": sign(HEADER, claims(character_id=True)),
        "A07-name-missing": sign(HEADER, claims(character_name=None)),
        "A07-name-control": sign(HEADER, claims(character_name="a\r\nb")),
        "A08-deep": sign(HEADER, deep),
        "A08-list": sign(HEADER, [claims()]),
        "A08-exp-4000-digits": sign(HEADER, b'{"user_id":"u","exp":' + b"9" * 4000 + b"}"),
        "A08-user-twice": sign(HEADER, twice.encode()),
        "A08-not-json": sign(HEADER, b"\xff\xfe"),
        "A08-empty": sign(HEADER, b""),
    }


BAD_TOKENS = tokens()


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_bad_token_is_401_wherever_it_stands(server: ServerProcess, case: str) -> None:
    token = server.never_log(BAD_TOKENS[case])
    assert server.ask(request(bearer(token))) == UNAUTHORIZED
    assert server.ask(request(cookie(token), f"Origin: {ORIGIN}")) == UNAUTHORIZED
    if "=" not in token and "+" not in token:
        assert server.ask(request(offer(token))) == UNAUTHORIZED


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer {token} x",
        "Bearer {token},",
        "{token}",
        "Bearer\t{token}",
        'Bearer "{token}"',
        "Bearer={token}",
    ],
)
def test_a05_authorization_of_another_shape(server: ServerProcess, value: str) -> None:
    line = "Authorization: " + value.format(token=server.token("u"))
    assert server.ask(request(line)) == UNAUTHORIZED


def test_a05_truncated_and_changed_tokens(server: ServerProcess) -> None:
    token = server.token("u")
    for at in (0, 10, len(token) // 2, len(token) - 2):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert server.ask(request(bearer(changed))) == UNAUTHORIZED
        if at:
            assert server.ask(request(bearer(token[:at]))) == UNAUTHORIZED


def test_a04_what_the_header_names_is_not_looked_at(server: ServerProcess) -> None:
    """Neither files nor the network: a listener of ours would be called."""
    for changes in (
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "x" * 4096},
        {"kid": 5},
        {"jku": f"http://127.0.0.1:{server.admin_port}/", "x5u": "file:///etc/passwd"},
        {"jwk": {"kty": "oct", "k": "QUFBQQ"}},
        {"x5c": ["AAAA"]},
    ):
        enter(server, bearer(server.never_log(sign(header(**changes), claims())))).close()
        forged = sign(header(**changes), claims(), secret="")
        assert server.ask(request(bearer(forged))) == UNAUTHORIZED


def test_a06_a_little_too_late_is_still_in_time(server: ServerProcess) -> None:
    """The leeway lets it in; the end of the token, which was just now, ends it again."""
    token = sign(HEADER, claims(exp=int(time.time()) - 1))
    wire = server.wire()
    wire.send(request(bearer(server.never_log(token))))
    assert wire.read_head() == switching("dGhlIHNhbXBsZSBub25jZQ==")
    assert Client(wire).closing() == (4401, "token expired")


# ----------------------------------------------------------------------------- A02, A03, A12


def refuses_to_start(folder: Path, **settings: str) -> str:
    """Start a server that must not start, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "falcon_fast", "serve"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FALCON_PORT": "0",
            "FALCON_ADMIN_PORT": "0",
            **settings,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert list(folder.glob("falcon.db*")) == []
    return done.stderr


def test_a03_secret_must_be_there_and_long_enough(tmp_path: Path) -> None:
    said = refuses_to_start(tmp_path)
    assert said.startswith("falcon-fast serve: JWT_SECRET: not set; ")
    assert said.count("\n") == 1
    short = "only-thirty-one-characters-long"
    said = refuses_to_start(tmp_path, JWT_SECRET=short)
    assert said.startswith("falcon-fast serve: JWT_SECRET: ")
    assert short not in said


def test_a02_secret_must_be_no_key_of_another_kind(tmp_path: Path) -> None:
    openssl = require("openssl")
    made = subprocess.run(
        [openssl, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        capture_output=True,
        check=True,
    )
    public = subprocess.run(
        [openssl, "pkey", "-pubout"], input=made.stdout, capture_output=True, check=True
    ).stdout.decode()
    for key in (
        public,
        public.replace("\n", "\r\n"),
        "  \n" + public,
        made.stdout.decode(),
        json.dumps({"kty": "RSA", "n": "x" * 40, "e": "AQAB"}),
        "ssh-rsa " + "A" * 80 + " user@host",
    ):
        said = refuses_to_start(tmp_path, JWT_SECRET=key)
        assert said.startswith("falcon-fast serve: JWT_SECRET: ")
        assert key.strip()[:40] not in said


def test_a12_any_origin_with_cookies_is_refused_at_the_start(tmp_path: Path) -> None:
    said = refuses_to_start(tmp_path, JWT_SECRET=SECRET, WEBSOCKET_ALLOWED_ORIGINS="*")
    assert said.startswith("falcon-fast serve: WEBSOCKET_ALLOWED_ORIGINS: came '*' with cookie ")
    assert said.count("\n") == 1
    assert SECRET not in said


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    said = refuses_to_start(
        tmp_path, JWT_SECRET="x", FALCON_PING_INTERVAL="soon", FALCON_MAX_HEAD_BITES="1"
    )
    lines = said.splitlines()
    assert len(lines) == 3
    named = {line.split(": ")[1] for line in lines}
    assert named == {"JWT_SECRET", "FALCON_PING_INTERVAL", "FALCON_MAX_HEAD_BITES"}


# -------------------------------------------------------------------------------- A09, A10


def test_a09_too_large(server: ServerProcess) -> None:
    good = sign(HEADER, claims())
    long = good + "A" * (8170 - len(good))  # the header line is as long as it may be
    assert server.ask(request(bearer(long))) == UNAUTHORIZED
    for line in (
        bearer(good + "A" * (8193 - len(good))),
        "Cookie: a=" + "x" * 16_384,
        bearer("A" * 1_048_576),
    ):
        wire = server.wire()
        wire.send(request(line))
        answer = wire.read_answer()
        assert (answer.status, answer.body) == (431, b"Request Header Fields Too Large")


def test_a09_many_cookies_and_malformed_ones(server: ServerProcess) -> None:
    token = server.token("u")
    many = "; ".join([f"c{number}=v" for number in range(200)])
    malformed = ";".join(["=", "a", "a==b", '"', "\xff=\xfe", " ; "] * 160)
    for noise in (many, malformed):
        line = f"Cookie: {noise}; {COOKIE}={token}; {noise}"
        enter(server, line, f"Origin: {ORIGIN}").close()
        assert server.ask(request(f"Cookie: {noise}", f"Origin: {ORIGIN}")) == UNAUTHORIZED


def test_a10_the_first_place_decides_alone(server: ServerProcess) -> None:
    one, other = server.token("one"), server.token("other")
    origin = f"Origin: {ORIGIN}"
    bad = "not.a.token"
    assert enter(server, bearer(one), cookie(other), origin).rooms == ["user:one"]
    assert enter(server, bearer(one), cookie(bad), origin).rooms == ["user:one"]
    assert enter(server, bearer(one), offer(other)).rooms == ["user:one"]
    assert enter(server, cookie(one), offer(other), origin).rooms == ["user:one"]
    assert enter(server, offer(one)).rooms == ["user:one"]
    for lines in (
        (bearer(bad), cookie(one), origin),
        (bearer(bad), offer(one)),
        (cookie(bad), offer(one), origin),
        ("Authorization: Basic eDp5", cookie(one), origin),
        (bearer(one), bearer(one)),
        (bearer(one), bearer(other)),
        (cookie(one, one), origin),
        (cookie(one), cookie(other), origin),
        (offer(one, other),),
        (offer(one, one),),
        (f"Sec-WebSocket-Protocol: falcon.bearer.{one}",),
        (),
    ):
        assert server.ask(request(*lines)) == UNAUTHORIZED, [line[:30] for line in lines]


@pytest.mark.parametrize("query", ["?token={}", "?access_token={}", f"?{COOKIE}={{}}", "#token={}"])
def test_a10_no_token_in_an_address(server: ServerProcess, query: str) -> None:
    answer = server.ask(request(path=PATH + query.format(server.token("u"))))
    assert answer.status in {401, 404}
    assert answer.status == (404 if query.startswith("#") else 401)


def test_token_comes_before_everything_else(server: ServerProcess) -> None:
    """Who has no token learns nothing about what else is wrong."""
    sent = request(f"Origin: {ORIGIN}.evil").replace(b"Version: 13", b"Version: 8")
    assert server.ask(sent) == UNAUTHORIZED


# --------------------------------------------------------------------------------------- A11

FOREIGN = {
    "evil": ("https://evil.example",),
    "null": ("null",),
    "empty": ("",),
    "suffix": (f"{ORIGIN}.evil",),
    "prefix": ("https://evil-app.example.com",),
    "subdomain": ("https://x.app.example.com",),
    "parent": ("https://example.com",),
    "port": (f"{ORIGIN}:444",),
    "default-port": (f"{ORIGIN}:443",),
    "no-port": ("http://localhost",),
    "case": ("https://App.Example.Com",),
    "trailing-dot": (f"{ORIGIN}.",),
    "slash": (f"{ORIGIN}/",),
    "path": (f"{ORIGIN}/x",),
    "user": (f"https://{ORIGIN.removeprefix('https://')}@evil.example",),
    "idn": ("https://\xe4pp.example.com",),
    "punycode": ("https://xn--pp-uia.example.com",),
    "http": (ORIGIN.replace("https", "http"),),
    "wss": (ORIGIN.replace("https", "wss"),),
    "list": (ORIGINS.replace(",", " "),),
    "comma-list": (ORIGINS,),
    "two": (ORIGIN, "https://evil.example"),
    "twice": (ORIGIN, ORIGIN),
    "star": ("*",),
}


@pytest.mark.parametrize("case", FOREIGN, ids=lambda case: f"A11-{case}")
def test_foreign_origin_is_403_however_the_token_came(server: ServerProcess, case: str) -> None:
    token = server.token("u")
    origins = [f"Origin: {value}" for value in FOREIGN[case]]
    for credential in (cookie(token), bearer(token), offer(token)):
        assert server.ask(request(credential, *origins)) == FORBIDDEN


def test_a11_cookie_needs_an_origin_and_a_bearer_does_not(server: ServerProcess) -> None:
    token = server.token("u")
    assert server.ask(request(cookie(token))) == FORBIDDEN
    enter(server, bearer(token))
    enter(server, offer(token))
    for origin in ORIGINS.split(","):
        for credential in (cookie(token), bearer(token), offer(token)):
            enter(server, credential, f"Origin: {origin}").close()


# --------------------------------------------------------------------------------------- A13


def test_a13_expiry_closes_with_4401(server: ServerProcess) -> None:
    client = server.connect("short", ttl=2)
    expires_at = client.welcome["data"]["expires_at"]
    assert client.closing() == (4401, "token expired")
    assert expires_at - 1.0 <= time.time() <= expires_at + 1.0 + SLACK


def test_a13_refresh_in_place_prolongs_the_connection(server: ServerProcess) -> None:
    client = server.connect("refreshed", ttl=2)
    expires_at = client.welcome["data"]["expires_at"]
    answer = client.ask(type="auth", data={"token": server.token("refreshed", ttl=600)})
    assert answer["type"] == "auth"
    assert set(answer["data"]) == {"expires_at"}
    assert answer["data"]["expires_at"] > expires_at + 500
    with pytest.raises(TimeoutError):
        client.hear(within=expires_at + 1.0 - time.time())
    assert client.sync() == []


def test_a13_refresh_can_also_shorten(server: ServerProcess) -> None:
    client = server.connect("shortened")
    answer = client.ask(type="auth", data={"token": server.token("shortened", ttl=1)})
    assert answer["type"] == "auth"
    assert client.closing() == (4401, "token expired")


def test_refresh_reads_the_groups_again(server: ServerProcess) -> None:
    room = server.group("Of the second character", 72)
    client = server.connect("changed", 71)
    assert client.rooms == ["user:changed"]
    assert client.ask(type="auth", data={"token": server.token("changed", 72)})["type"] == "auth"
    told = client.hear_until(lambda message: message["type"] == "group_membership_change")
    assert (told["data"]["group_id"], told["data"]["joined"]) == (room.removeprefix("group:"), True)
    said = client.ask(type="message", room=room, data={"a": 1})
    assert (said["type"], said["room"]) == ("message", room)


def test_refresh_with_a_bad_token_changes_nothing(server: ServerProcess) -> None:
    client = server.connect("stays", ttl=600)
    for token in ("", "x", BAD_TOKENS["A01-other-secret"], server.token("stays", ttl=-60)):
        answer = client.ask(type="auth", data={"token": token})
        assert (answer["type"], answer["data"]["code"]) == ("error", "forbidden")
        assert token == "" or token not in json.dumps(answer)
    assert client.sync() == []


def test_refresh_for_another_user_closes_with_4403(server: ServerProcess) -> None:
    client = server.connect("one")
    client.say(type="auth", id="1", data={"token": server.token("other")})
    assert client.closing() == (4403, "forbidden")


# --------------------------------------------------------------------------------------- A14


def ban(server: ServerProcess, user: str, character: int) -> None:
    with server.store() as store:
        store.add_user(user, character, "Somebody")
        store.set_banned(user, True)


def test_a14_banned_user_is_403_and_comes_back_when_the_ban_ends(server: ServerProcess) -> None:
    ban(server, "banned", 81)
    head = request(bearer(server.token("banned", 81)))
    answers: list[Answer] = []

    def is_refused() -> bool:
        wire = server.wire()
        wire.send(head)
        if wire.read_head().startswith(b"HTTP/1.1 101 "):
            wire.close()
            return False
        wire.close()
        answers.append(server.ask(head))
        return True

    eventually(is_refused, "the ban is known", within=NOTICED_WITHIN + SLACK)
    assert answers == [FORBIDDEN]
    with server.store() as store:
        store.set_banned("banned", False)
    eventually(lambda: not is_refused(), "the ban is over", within=NOTICED_WITHIN + SLACK)


def test_a14_ban_ends_live_connections(server: ServerProcess) -> None:
    clients = [server.connect("unruly", 82) for _ in range(3)]
    other = server.connect("innocent", 83)
    ban(server, "unruly", 82)
    began = time.monotonic()
    for client in clients:
        assert client.closing() == (4403, "access revoked")
    assert time.monotonic() - began <= NOTICED_WITHIN + SLACK
    assert other.sync() == []


# ----------------------------------------------------------------------------------------- L


def test_l01_no_secret_is_told_anywhere(server: ServerProcess) -> None:
    """The log, in all of the module, at its most talkative level; and what the server answers."""
    token = server.token("secretive")
    client = server.connect("secretive")
    client.say(type="auth", id="1", data={"token": token + "x"})
    said: list[Any] = [client.sync(), server.get("/websocket/status"), server.get("/healthz")]
    said.append(server.ask(request(bearer(token[:-1]))))
    everything = server.log() + repr(said)
    for secret in server.secrets:
        assert secret not in everything
    assert "Authorization" not in everything
    assert COOKIE not in everything
