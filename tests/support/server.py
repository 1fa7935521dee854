"""The real server in a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import os
import re
import resource
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from falcon_fast.auth import issue_token
from falcon_fast.directory.sqlite_store import SqliteStore

from . import ROOT
from .client import DEADLINE, Answer, Client, Wire
from .deflate import ANSWER

SECRET: Final = "not-a-secret-but-long-enough-to-sign-with"
"""The signing secret of every test server."""

SERVE: Final = ("-m", "falcon_fast", "serve")

LISTENING: Final = re.compile(r"listening on wss?://127\.0\.0\.1:(\d+)/\S*, admin on \S+:(\d+)/")

POLL: Final = 0.01
"""Seconds between two looks at something that cannot be waited for otherwise."""


def eventually(condition: Callable[[], bool], what: str, within: float = DEADLINE) -> None:
    """Wait until a condition holds; fail the test when it does not become true.

    Args:
        condition: looked at every 10 ms.
        what: what was waited for, as the failure's text.
        within: seconds.
    """
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until, f"not within {within:g} s: {what}"
        time.sleep(POLL)


def sign(header: object, payload: object, secret: str = SECRET) -> str:
    """Make an HS256 token of any header and payload; octets are taken as they are."""

    def segment(part: object) -> str:
        octets = part if isinstance(part, bytes) else json.dumps(part).encode()
        return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

    signed = f"{segment(header)}.{segment(payload)}"
    return f"{signed}.{segment(hmac.digest(secret.encode(), signed.encode(), 'sha256'))}"


class ServerProcess:
    """A running server.

    Args:
        folder: where it runs; holds its directory and its log.
        settings: environment variables beyond those that every test server gets.
        program: arguments of the interpreter.
        tls: how clients connect, for a server with a certificate.

    Attributes:
        folder: where it runs.
        port: of the public listener.
        admin_port: of the admin listener.
        opened: how many connections `wire` has made.
        secrets: texts that must never be in the log.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, str],
        *,
        program: Sequence[str] = SERVE,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.folder = folder
        self.opened = 0
        self.secrets = {SECRET}
        self._tls = tls
        self._wires: list[Wire] = []
        self._kept: list[Wire] = []
        self._log = folder / "server.log"
        self._environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "JWT_SECRET": SECRET,
            "FALCON_HOST": "127.0.0.1",
            "FALCON_PORT": "0",
            "FALCON_ADMIN_PORT": "0",
            "FALCON_SQLITE_PATH": str(folder / "falcon.db"),
            # Tests open many connections from few addresses, unless that is what they are about.
            "FALCON_CONNECTION_RATE": "100000",
            "FALCON_CONNECTION_BURST": "100000",
            "FALCON_DRAIN_TIMEOUT": "0.1",
            "FALCON_LOG_FORMAT": "json",
            # The most talkative level: what must not be told must not be told there either.
            "WEBSOCKET_DEBUG": "1",
            **settings,
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program],
                cwd=folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            eventually(self._is_listening, "the server listens", within=60.0)
        except BaseException:
            self.kill()
            raise
        found = LISTENING.search(self.log())
        assert found is not None, f"the server did not start:\n{self.log()}"
        self.port, self.admin_port = int(found[1]), int(found[2])

    def _is_listening(self) -> bool:
        return self.process.poll() is not None or LISTENING.search(self.log()) is not None

    # ------------------------------------------------------------------------- its life

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, within: float = DEADLINE) -> int:
        """Return its exit code."""
        return self.process.wait(within)

    def stop(self) -> int:
        """Ask it to end, without time to say goodbye, and return its exit code."""
        self.hang_up()
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait()
        self.kill()
        raise AssertionError(f"the server did not stop:\n{self.log()[-2000:]}")

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    # -------------------------------------------------------------------------- clients

    def wire(self, *, source: str | None = None, receive_buffer: int | None = None) -> Wire:
        """Connect; the connection ends with `hang_up` at the latest."""
        wire = Wire(
            ("127.0.0.1", self.port), source=source, receive_buffer=receive_buffer, tls=self._tls
        )
        self.opened += 1
        self._wires.append(wire)
        return wire

    def keep(self, wire: Wire) -> None:
        """Let a connection outlive `hang_up`."""
        self._wires.remove(wire)
        self._kept.append(wire)

    def hang_up(self) -> None:
        """Close every connection that `wire` has made."""
        for wire in self._wires:
            wire.close()
        self._wires.clear()

    def forget(self) -> None:
        """Close all connections, also those that were kept."""
        self.hang_up()
        for wire in self._kept:
            wire.close()
        self._kept.clear()

    def token(self, user: str, character: int = 1, *, ttl: int = 3600) -> str:
        """Make a token."""
        token = issue_token(
            SECRET,
            user_id=user,
            character_id=character,
            character_name=f"Character {character}",
            ttl=ttl,
            now=int(time.time()),
        )
        return self.never_log(token)

    def never_log(self, token: str) -> str:
        """Watch out for a token in the log from now on."""
        signature = token.rpartition(".")[2]
        if len(signature) >= 16:
            self.secrets.add(signature)
        return token

    def connect(
        self,
        user: str,
        character: int = 1,
        *,
        source: str | None = None,
        receive_buffer: int | None = None,
        ttl: int = 3600,
    ) -> Client:
        """Connect a client and wait until it is in its rooms."""
        client = Client(self.wire(source=source, receive_buffer=receive_buffer))
        client.open(token=self.token(user, character, ttl=ttl))
        client.enter()
        return client

    def ask(self, head: bytes, *, source: str | None = None) -> Answer:
        """Send a request head and return the answer, which must end the connection."""
        wire = self.wire(source=source)
        wire.send(head)
        answer = wire.read_answer()
        wire.close()
        return answer

    def get(self, path: str) -> Answer:
        """Ask for one of the plain endpoints."""
        return self.ask(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    # ------------------------------------------------------------- what it looks like inside

    def status(self) -> dict[str, Any]:
        """Return what `/websocket/status` says."""
        answer = self.get("/websocket/status")
        assert answer.status == 200, answer
        document: dict[str, Any] = json.loads(answer.body)
        return document

    def connections(self) -> int:
        """Return how many connections it says it has."""
        return int(self.status()["stats"]["active_connections"])

    def log(self, since: int = 0) -> str:
        """Return what it has written, from a position on."""
        return self._log.read_bytes()[since:].decode()

    def records(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the complete lines of its log, which must all be JSON, from a position on."""
        lines = self.log(since).rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines]

    def closes(self) -> dict[str, tuple[str, int]]:
        """Return reason and code of every closed connection of which there is a line in the log."""
        return {
            record["connection_id"]: (record["reason"], record["code"])
            for record in self.records()
            if record["message"] == "connection closed"
        }

    def log_size(self) -> int:
        """Return the position up to which it has written."""
        return self._log.stat().st_size

    def rss(self) -> int:
        """Return the octets of its memory that are in use."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def fds(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def descriptor_kinds(self) -> list[str]:
        """Return what its descriptors stand for, as the system writes it."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        return [os.readlink(folder / number) for number in os.listdir(folder)]

    def limit_fds(self, number: int) -> None:
        """Set how many descriptors it may have open."""
        hard = resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (number, hard))

    def cpu_seconds(self) -> float:
        """Return how much processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # ----------------------------------------------------------------------- its directory

    @contextlib.contextmanager
    def store(self) -> Iterator[SqliteStore]:
        """Open its directory from another process: this one."""
        with SqliteStore(self._environ["FALCON_SQLITE_PATH"]) as store:
            yield store

    def group(self, name: str, *characters: int) -> str:
        """Make a group with members and return the name of its room."""
        with self.store() as store:
            group = store.add_group(name)
            for character in characters:
                store.add_member(group, character)
        return f"group:{group}"

    def command(self, *argv: str) -> str:
        """Run a command of the command line beside the server and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "falcon_fast", *argv],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout


@contextlib.contextmanager
def serving(
    folder: Path,
    settings: dict[str, str] | None = None,
    *,
    program: Sequence[str] = SERVE,
    tls: ssl.SSLContext | None = None,
    ends_itself: bool = False,
) -> Iterator[ServerProcess]:
    """Run a server for as long as the context lasts; it must then end well when asked to.

    Args:
        folder: where it runs.
        settings: environment variables.
        program: arguments of the interpreter.
        tls: how clients connect, for a server with a certificate.
        ends_itself: the test looks after its end.
    """
    server = ServerProcess(folder, settings or {}, program=program, tls=tls)
    try:
        yield server
        if not ends_itself:
            assert server.process.poll() is None, f"the server died:\n{server.log()[-2000:]}"
            assert server.stop() == 0
    finally:
        if server.process.poll() is None:
            server.kill()
        server.forget()


def offering(
    server: ServerProcess,
    user: str,
    character: int = 1,
    *,
    offer: str = "permessage-deflate",
    answer: str | None = ANSWER,
) -> Client:
    """Connect a client that offers compression and is answered so, and wait for its rooms."""
    client = Client(server.wire())
    client.open(token=server.token(user, character), offer=offer, answer=answer)
    client.enter()
    return client
