"""L01, L02: what must not be told is told nowhere, at the most talkative level of a real server."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ..support.frames import text
from ..support.server import SECRET, ServerProcess, serving

pytestmark = pytest.mark.integration

PAYLOAD: Final = "canary-of-a-payload"
COOKIE: Final = "canary-of-another-cookie"


@pytest.fixture(scope="module", params=["json", "console"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server at DEBUG whose life was seen: clients, refusals, messages, errors."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, {"FALCON_LOG_FORMAT": request.param}) as server:
        yield server


def upgrade(server: ServerProcess, *lines: str) -> bytes:
    head = [
        "GET /websocket/connect HTTP/1.1",
        f"Host: localhost:{server.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *lines,
    ]
    return "".join(f"{line}\r\n" for line in head).encode() + b"\r\n"


def admin(server: ServerProcess, path: str, token: str | None = None) -> str:
    """Return what the admin listener answers, headers and body, whatever the status."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.admin_port}{path}")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    request.add_header("Cookie", f"other={COOKIE}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return f"{answer.headers}{answer.read().decode()}"
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.headers}{error.read().decode()}"


def live(server: ServerProcess) -> tuple[list[str], list[str]]:
    """Do everything a token or a payload takes part in; return the secrets and all answers."""
    good = server.token("ann", 1)
    head, claims, signature = good.split(".")
    forged = server.never_log(f"{head}.{claims}.{signature[::-1]}")
    expired = server.token("bob", 2, ttl=-3600)
    answers = [
        str(server.ask(upgrade(server, line, f"Cookie: a={COOKIE}; falcon_auth_token={forged}")))
        for line in (
            f"Authorization: Bearer {forged}",
            f"Authorization: Bearer {expired}",
            f"Authorization: Basic {forged}",
            f"Authorization: Bearer {good}\r\nAuthorization: Bearer {good}",
            f"Sec-WebSocket-Protocol: falcon.v1, falcon.bearer.{forged}",
            f"Authorization: Bearer {good}\r\nbroken line {good}",
            "X-Nothing: 1",
        )
    ]
    answers.append(str(server.get(f"/websocket/connect?token={good}")))
    answers.append(str(server.get(f"/{good}")))
    client = server.connect("ann", 1)
    client.say(type="heartbeat", id=PAYLOAD)
    client.say(type="auth", id="1", data={"token": forged})
    client.say(type="auth", id="2", data={"token": good, "more": PAYLOAD})
    client.say(type="message", room="user:ann", data={"text": PAYLOAD})
    for _ in range(10):
        client.wire.send(text(f'{{"broken": "{PAYLOAD} {good}"'))
    assert client.closing()[0] == 1008
    for path in ("/websocket/status", "/metrics", "/openapi.json", "/websocket/connections", "/x"):
        answers += [admin(server, path), admin(server, path, forged), admin(server, path, good)]
    answers.append(str(server.get("/websocket/status")))
    secrets = [SECRET, PAYLOAD, COOKIE]
    for token in (good, forged, expired):
        secrets += token.split(".")[1:]
    return secrets, answers


def test_l01_no_secret_in_the_log_or_in_any_answer(server: ServerProcess) -> None:
    secrets, answers = live(server)
    log = server.log()
    assert "connection closed" in log
    assert "too_many_errors" in log
    assert "handshake refused" in log, "the log is not at DEBUG"
    for secret in secrets:
        assert secret not in log
        assert not [answer for answer in answers if secret in answer]
    # Nothing had to be taken out at the last moment: nobody logs secrets in the first place.
    assert "[redacted]" not in log


def test_l01_the_settings_are_shown_without_their_secrets(server: ServerProcess) -> None:
    assert SECRET not in server.command("check")


def test_every_line_is_whole_and_has_its_fields(server: ServerProcess) -> None:
    server.connect("cid", 3).close()
    found: list[dict[str, Any]] = []
    for line in server.log().splitlines():
        if line.startswith("{"):
            found.append(json.loads(line))
        else:
            assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z]+ +[\w.]+: ", line), line
    for document in found:
        assert {"time", "level", "logger", "message"} <= document.keys()
    lives = [one for one in found if one["message"] == "connection closed"]
    for life in lives:
        assert life.keys() >= {
            *("connection_id", "user_id", "character_id", "remote_address", "node_id"),
            *("reason", "code", "seconds"),
        }


def test_l02_a_failure_while_a_token_is_handled_tells_nothing(tmp_path: Path) -> None:
    # A program that is ours but for one defect, in the very place that has the token in its hands.
    program = tmp_path / "broken.py"
    program.write_text(
        "import os, sys\n"
        "from falcon_fast import auth, cli\n"
        "def verify(self, token):\n"
        "    raise RuntimeError('no way: ' + repr([token, os.environ['JWT_SECRET']]))\n"
        "auth.TokenVerifier.verify = verify\n"
        "sys.exit(cli.main(['serve']))\n"
    )
    with serving(tmp_path, program=[str(program)]) as server:
        token = server.token("ann", 1)
        answer = server.ask(upgrade(server, f"Authorization: Bearer {token}"))
        assert answer.status == 500
        log = server.log()
        assert log.count("RuntimeError: no way: ['[redacted]', '[redacted]']") == 1
        for secret in (SECRET, *token.split(".")[1:]):
            assert secret not in log
            assert secret not in str(answer)
