"""The canary: a healthy client of the same server, which must notice nothing of an attack."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from .client import DEADLINE, Client
from .server import POLL, ServerProcess, eventually

SOURCE: Final = "127.0.0.250"
"""The canary's own address, so that limits by address do not touch it."""

USER: Final = "canary"
CHARACTER: Final = 999_999_999

SLOWEST: Final = 3.0
"""Seconds a message of the canary may take, on a machine that has other work to do as well."""

LINES_PER_CONNECTION: Final = 10
RSS_FACTOR: Final = 1.10
RSS_ALLOWANCE: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Before:
    """How the server was before a test."""

    connections: int
    rooms: int
    fds: int
    rss: int
    log_size: int
    opened: int


class Canary:
    """Two connections of one user that talk to each other without a pause.

    Args:
        server: where they are connected.
        interval: seconds between two messages.
    """

    def __init__(self, server: ServerProcess, *, interval: float = 0.05) -> None:
        self.server = server
        self.rounds = 0
        self.slowest = 0.0
        self._interval = interval
        self._failure: BaseException | None = None
        self._hurry = threading.Event()
        self._stopped = False
        self._pid = server.process.pid
        self._clients = [server.connect(USER, CHARACTER, source=SOURCE) for _ in range(2)]
        for client in self._clients:
            server.keep(client.wire)
        self._thread = threading.Thread(target=self._sing, name="canary", daemon=True)
        self._thread.start()

    def _sing(self) -> None:
        room = f"user:{USER}"
        speaker = self._clients[0]
        try:
            for number in itertools.count():
                began = time.monotonic()
                speaker.say(type="message", id=f"canary-{number}", room=room, data={"n": number})
                for listener in self._clients:
                    self._expect(listener, number)
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.rounds += 1
                self._hurry.wait(self._interval)
                self._hurry.clear()
                if self._stopped:
                    return
        except BaseException as error:
            self._failure = error

    @staticmethod
    def _expect(listener: Client, number: int) -> None:
        message = listener.hear_until(lambda heard: heard["type"] == "message")
        assert message["data"] == {"n": number}, f"number {number} expected: {message}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self._stopped = True
        self._hurry.set()
        self._thread.join(DEADLINE)
        for client in self._clients:
            client.close()

    def look(self) -> Before:
        """Take down how the server is."""
        stats = self.server.status()["stats"]
        self.slowest = 0.0
        fds = self._settled_fds()
        return Before(
            connections=stats["active_connections"],
            rooms=stats["total_rooms"],
            fds=fds,
            rss=self.server.rss(),
            log_size=self.server.log_size(),
            opened=self.server.opened,
        )

    def _settled_fds(self) -> int:
        """Return the number of descriptors when the connection that asked is gone."""
        fds = self.server.fds()
        while True:
            time.sleep(2 * POLL)
            if (now := self.server.fds()) >= fds:
                return fds
            fds = now

    def check(self, before: Before) -> None:
        """Fail the test unless the server is as well as it was before."""
        server = self.server
        opened = server.opened - before.opened
        server.hang_up()
        assert server.process.poll() is None, f"the server died:\n{server.log()[-4000:]}"
        assert server.process.pid == self._pid
        self._check_song()
        self._check_gauges(before)
        eventually(lambda: server.fds() <= before.fds, "all descriptors are given back")
        most = before.rss * RSS_FACTOR + RSS_ALLOWANCE
        eventually(
            lambda: server.rss() <= most,
            f"memory is back at {before.rss >> 10} KiB, not {server.rss() >> 10}",
        )
        self._check_log(before.log_size, opened)

    def _check_song(self) -> None:
        """A message that was begun after the attack has arrived, and all before it, in order."""
        wanted = self.rounds + 2

        def is_over() -> bool:
            self._hurry.set()
            return self._failure is not None or self.rounds >= wanted

        eventually(is_over, "the canary still sings")
        if self._failure is not None:
            raise AssertionError("the canary is dead") from self._failure
        assert self.slowest <= SLOWEST, f"a message of the canary took {self.slowest:.2f} s"

    def _check_gauges(self, before: Before) -> None:
        wanted = (before.connections, before.rooms)
        found = (-1, -1)

        def are_back() -> bool:
            nonlocal found
            stats = self.server.status()["stats"]
            found = (stats["active_connections"], stats["total_rooms"])
            return found == wanted

        with contextlib.suppress(AssertionError):
            eventually(are_back, "gauges")
        assert found == wanted, "connections and rooms did not come back"

    def _check_log(self, since: int, opened: int) -> None:
        records = self.server.records(since)
        bad = [
            record
            for record in records
            if record["level"] in {"error", "critical"} or "exception" in record
        ]
        assert bad == []
        assert len(records) <= LINES_PER_CONNECTION * max(opened, 1), records[-10:]
        text = self.server.log(since)
        assert "Traceback" not in text
        for secret in self.server.secrets:
            assert secret not in text, "a secret is in the log"


@contextlib.contextmanager
def watched(canary: Canary) -> Iterator[None]:
    """Apply the canary rule to what happens in the context."""
    before = canary.look()
    yield
    canary.check(before)
