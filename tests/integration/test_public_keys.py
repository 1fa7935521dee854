"""Tokens signed with private keys: the real server, its file of keys, and an issuer's address."""

from __future__ import annotations

import gzip
import hmac
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from falcon_fast import jwks
from falcon_fast.errors import KeysUnavailable
from falcon_fast.jwks import MAX_DOCUMENT_BYTES, fetch

from ..support.certificate import make_certificate
from ..support.client import Client, request
from ..support.keys import base64url, issuer, key_set
from ..support.publisher import PATH, Publisher, publishing
from ..support.server import SECRET, ServerProcess, eventually, serving, sign

pytestmark = pytest.mark.integration

OLD = issuer("ES256", "old")
NEW = issuer("ES256", "new")
DOCUMENT = key_set(OLD.jwk("old"))


def claims(**changes: object) -> dict[str, object]:
    now = int(time.time())
    return {
        "user_id": "u",
        "character_id": 1,
        "character_name": "Name",
        "exp": now + 600,
        "iat": now,
        "iss": "go-falcon",
        **changes,
    }


def enter(server: ServerProcess, token: str) -> Client:
    client = Client(server.wire())
    client.open(token=token)
    client.enter()
    return client


def refused(server: ServerProcess, token: str) -> int:
    """Return the status of the answer to a handshake that is refused."""
    return server.ask(request(token=token)).status


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing(DOCUMENT) as running:
        yield running


# --- one fetch ------------------------------------------------------------------------------------


async def test_a_fetch(publisher: Publisher) -> None:
    assert await fetch(publisher.url) == DOCUMENT
    ((line, headers),) = publisher.requests
    assert line == f"GET {PATH} HTTP/1.1"
    assert headers["accept-encoding"] == "identity"
    assert "cookie" not in headers
    assert "authorization" not in headers


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed_A04_CVE_2026_102267(
    publisher: Publisher, code: int
) -> None:
    with publishing(DOCUMENT) as elsewhere:
        publisher.status, publisher.headers = code, {"Location": elsewhere.url}
        with pytest.raises(KeysUnavailable, match=f"the answer was {code}, not 200"):
            await fetch(publisher.url)
        assert elsewhere.requests == []


@pytest.mark.parametrize("code", [206, 404, 500])
async def test_other_answers(publisher: Publisher, code: int) -> None:
    publisher.status = code
    with pytest.raises(KeysUnavailable, match=f"the answer was {code}"):
        await fetch(publisher.url)


async def test_a_document_that_does_not_end(publisher: Publisher) -> None:
    publisher.document = b" " * MAX_DOCUMENT_BYTES
    assert len(await fetch(publisher.url)) == MAX_DOCUMENT_BYTES
    publisher.document += b" "
    with pytest.raises(KeysUnavailable, match="more than 262144 bytes"):
        await fetch(publisher.url)
    publisher.document = b" " * 50_000_000
    with pytest.raises(KeysUnavailable, match="more than 262144 bytes"):
        await fetch(publisher.url)


async def test_a_compressed_document_is_not_unpacked(publisher: Publisher) -> None:
    publisher.document = gzip.compress(b" " * 50_000_000)
    publisher.headers = {"Content-Encoding": "gzip"}
    assert await fetch(publisher.url) == publisher.document


async def test_an_answer_that_takes_too_long(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time counts for all of it: an octet now and then does not prolong it."""
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 0.3)
    publisher.delay = 0.2
    with pytest.raises(KeysUnavailable, match=r"no answer within 0\.3 s"):
        await fetch(publisher.url)


async def test_nobody_there(publisher: Publisher) -> None:
    url = publisher.url.replace(str(publisher.port), "1")
    with pytest.raises(KeysUnavailable, match="ClientConnector"):
        await fetch(url)


async def test_a_certificate_must_be_trusted(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    with publishing(DOCUMENT, tls=context) as publisher:
        assert await fetch(publisher.url, tls=made.trusting()) == DOCUMENT
        with pytest.raises(KeysUnavailable, match="Certificate"):
            await fetch(publisher.url)
        with pytest.raises(KeysUnavailable):
            await fetch(publisher.url.replace("127.0.0.1", "localhost"), tls=made.trusting())


# --- the server -----------------------------------------------------------------------------------


def test_a_server_with_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.pem"
    path.write_bytes(OLD.pem() + NEW.pem())
    settings = {
        "JWT_SECRET": "",
        "JWT_PUBLIC_KEY": str(path),
        "JWT_ALGORITHMS": "ES256",
        "JWT_ISSUER": "https://issuer.example",
        "JWT_AUDIENCE": "falcon",
        "JWT_MAX_LIFETIME": "3600",
    }
    good = claims(iss="https://issuer.example", aud=["falcon", "others"])
    late = good | {"exp": int(time.time()) + 3_700}
    with serving(tmp_path, settings) as server:
        for signer in (OLD, NEW):
            enter(server, signer.token(good))
        for token in (
            issuer("ES256", "a stranger").token(good),
            OLD.token(good | {"iss": "go-falcon"}),
            OLD.token(good | {"aud": "others"}),
            OLD.token(late),
            sign({"alg": "HS256", "typ": "JWT"}, good, OLD.pem().decode()),
        ):
            assert refused(server, token) == 401


def test_a_server_follows_its_issuer_A17(tmp_path: Path, publisher: Publisher) -> None:
    """A start without keys, and then with some; no token waits for a fetch."""
    publisher.status = 503
    settings = {"JWT_SECRET": "", "JWT_JWKS_URL": publisher.url, "JWT_ALGORITHMS": "ES256"}
    with serving(tmp_path, settings) as server:
        assert server.get("/readyz").status == 503
        assert refused(server, OLD.token(claims(), kid="old")) == 503
        publisher.status = 200
        eventually(lambda: server.get("/readyz").status == 200, "the keys are there")
        enter(server, OLD.token(claims(), kid="old"))
        asked = len(publisher.requests)
        assert refused(server, NEW.token(claims(), kid="new")) == 401
        assert len(publisher.requests) == asked
        told = [record for record in server.records() if "keys of tokens" in record["message"]]
        assert [record.get("error") for record in told] == ["the answer was 503, not 200", None]


def test_in_place_refresh_with_a_public_key(tmp_path: Path) -> None:
    signer = issuer("RS256")
    path = tmp_path / "key.pem"
    path.write_bytes(signer.pem())
    settings = {"JWT_SECRET": "", "JWT_PUBLIC_KEY": str(path), "JWT_ALGORITHMS": "RS256,RS512"}
    with serving(tmp_path, settings) as server:
        client = enter(server, signer.token(claims()))
        ends = int(time.time()) + 900
        answer = client.ask(type="auth", data={"token": signer.token(claims(exp=ends))})
        assert (answer["type"], answer["data"]) == ("auth", {"expires_at": ends})


def test_a_secret_is_rotated_A17(tmp_path: Path) -> None:
    """Both secrets are accepted at once; what is signed here is signed with the new one."""
    previous = "the-secret-of-last-year-0123456789-0123456789"
    head = {"alg": "HS256", "typ": "JWT"}
    with serving(tmp_path, {"JWT_SECRET_PREVIOUS": previous}) as server:
        server.secrets.add(previous)
        enter(server, sign(head, claims(), previous))
        enter(server, sign(head, claims()))
        made = server.command(
            *("token", "--user-id", "u", "--character-id", "1", "--character-name", "U")
        ).strip()
        signed, _, signature = made.rpartition(".")
        mac = hmac.digest(SECRET.encode(), signed.encode(), "sha256")
        assert signature == base64url(mac)
        enter(server, made)
        assert previous not in server.log()
    with serving(tmp_path) as server:
        assert refused(server, sign(head, claims(), previous)) == 401
        enter(server, made)
