"""Redis servers of the tests: one alone, one with a replica and a sentinel, a cluster of three.

Each runs on a free port of 127.0.0.1 in a folder of its own, and can be stopped, killed, frozen and
started again there.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from . import require
from .certificate import Certificate
from .server import POLL, eventually

HINT: Final = "install the package redis-server"

SENTINEL_NAME: Final = "falcon"
"""What the sentinel calls the primary that it watches."""

SLOTS: Final = 16_384
"""Hash slots of a Redis Cluster."""

START_TIMEOUT: Final = 15.0
COMMAND_TIMEOUT: Final = 10.0

_ATTEMPTS: Final = 5
"""A port that was free may be somebody else's a moment later."""


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A running redis-server.

    Args:
        folder: where it runs and keeps its data; made if it is not there.
        config: directives beyond those that every server gets, as in redis.conf.
        user: makes this the only user that may do anything, with `password`.
        password: of the user, or, without a user, of the whole server.
        tls: makes it speak TLS only.
        sentinel: run it as a sentinel.

    Attributes:
        port: stays the same when it is started again.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, str] | None = None,
        *,
        user: str | None = None,
        password: str | None = None,
        tls: Certificate | None = None,
        sentinel: bool = False,
    ) -> None:
        self._program = require("redis-server", hint=HINT)
        self.folder = folder
        self.port = 0
        self._config = dict(config or {})
        self._user = user
        self._password = password
        self._tls = tls
        self._sentinel = sentinel
        # Its commands have no types.
        self._client: Any = None
        self._log = folder / "redis.log"
        self._file = folder / "redis.conf"
        folder.mkdir(parents=True, exist_ok=True)
        self.process = self._first_start()

    # ------------------------------------------------------------------------------- its life

    def _first_start(self) -> subprocess.Popen[bytes]:
        for attempt in range(1, _ATTEMPTS + 1):
            self.port = free_port()
            # Servers write into it themselves what they learn, so it is written once.
            self._file.write_text(self._configuration())
            self.process = self._spawn()
            if self._waits_for_commands():
                break
            self.kill()
            text = self.log()
            is_taken = "in use" in text and attempt < _ATTEMPTS
            assert is_taken, f"redis-server did not start:\n{text}"
        return self.process

    def _configuration(self) -> str:
        listener = "tls-port" if self._tls is not None else "port"
        lines = {
            "bind": "127.0.0.1",
            "port": "0",
            listener: str(self.port),
            "dir": str(self.folder),
            "logfile": str(self._log),
            "daemonize": "no",
            "protected-mode": "no",
            "tcp-backlog": "128",
        }
        if not self._sentinel:
            lines |= {"save": '""', "appendonly": "no", "enable-debug-command": "local"}
        if self._tls is not None:
            lines |= {
                "tls-cert-file": str(self._tls.certificate),
                "tls-key-file": str(self._tls.key),
                "tls-ca-cert-file": str(self._tls.certificate),
                "tls-auth-clients": "no",
            }
        if self._user is not None:
            lines["user"] = f"{self._user} on >{self._password} ~* &* +@all\nuser default off"
        elif self._password is not None:
            lines["requirepass"] = self._password
        lines |= self._config
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _spawn(self) -> subprocess.Popen[bytes]:
        argv = [self._program, str(self._file), *(["--sentinel"] if self._sentinel else [])]
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _waits_for_commands(self) -> bool:
        until = time.monotonic() + START_TIMEOUT
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                self.command("PING")
                return True
            time.sleep(POLL)
        return False

    def start(self) -> None:
        """Start it again after `stop` or `kill`, on the same port and in the same folder."""
        assert self.process.poll() is not None, "it runs"
        self.process = self._spawn()
        assert self._waits_for_commands(), f"redis-server did not start:\n{self.log()}"

    def stop(self, *, keep_data: bool = False) -> None:
        """Ask it to end.

        Args:
            keep_data: it writes its data down, and has them again after `start`.
        """
        self._hang_up()
        (self.folder / "dump.rdb").unlink(missing_ok=True)
        if keep_data:
            self.command("SAVE")
            self._hang_up()
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._hang_up()
        self.process.kill()
        self.process.wait()

    def restart(self, *, keep_data: bool = False, after: float = 0.0) -> None:
        """End it and start it again.

        Args:
            keep_data: whether it has its data again.
            after: seconds in which there is no server.
        """
        self.stop(keep_data=keep_data)
        time.sleep(after)
        self.start()

    def freeze(self) -> None:
        """Let it do nothing at all: connections stay, and nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it if it still runs."""
        self._hang_up()
        if self.process.poll() is None:
            self.kill()

    def log(self) -> str:
        """Return what it has written."""
        return self._log.read_text() if self._log.exists() else ""

    # ------------------------------------------------------------------------- how to reach it

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        """Its URL, with user and password, for database 0."""
        return self.url_through(self.port)

    def url_through(self, port: int) -> str:
        """Return its URL with another port, such as that of a proxy."""
        scheme = "rediss" if self._tls is not None else "redis"
        secret = ""
        if self._password is not None:
            secret = f"{quote(self._user or '', safe='')}:{quote(self._password, safe='')}@"
        return f"{scheme}://{secret}127.0.0.1:{port}/0"

    def client(self) -> redis.Redis:
        """Make a client; who makes it closes it."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            username=self._user,
            password=self._password,
            socket_timeout=COMMAND_TIMEOUT,
            socket_connect_timeout=COMMAND_TIMEOUT,
            ssl=self._tls is not None,
            ssl_ca_certs=str(self._tls.certificate) if self._tls is not None else None,
            retry=Retry(NoBackoff(), 0),
        )

    def command(self, *words: str | bytes | int) -> Any:  # noqa: ANN401
        """Give it a command on a connection that is kept, and return the answer."""
        if self._client is None:
            self._client = self.client()
        try:
            return self._client.execute_command(*words)
        except (redis.ConnectionError, redis.TimeoutError):
            # What comes on it next might be the answer to this.
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    # ------------------------------------------------------------------------- what tests need

    def set(self, directive: str, value: str) -> None:
        """Set a directive of its configuration while it runs, until it is started again."""
        assert self.command("CONFIG", "SET", directive, value), directive

    def publish(self, channel: str, message: str | bytes) -> int:
        """Publish something; returns how many subscribers got it."""
        return int(self.command("PUBLISH", channel, message))

    def subscribers(self, channel: str) -> int:
        """Return how many connections are subscribed to a channel."""
        return int(self.command("PUBSUB", "NUMSUB", channel)[1])

    def wait_for_subscribers(self, channel: str, number: int, within: float = 15.0) -> None:
        """Wait until exactly so many connections are subscribed to a channel."""
        eventually(
            lambda: self.subscribers(channel) == number,
            f"{number} subscribers of {channel}",
            within,
        )

    def kill_subscribers(self) -> int:
        """Cut the connections of all subscribers; returns how many there were."""
        return int(self.command("CLIENT", "KILL", "TYPE", "pubsub"))

    def limit_subscribers(self, hard: int, soft: int = 0, seconds: int = 0) -> None:
        """Cut subscribers that have so many octets waiting for them; 0 for no limit."""
        self.set("client-output-buffer-limit", f"pubsub {hard} {soft} {seconds}")

    def keys(self, pattern: str = "*") -> list[str]:
        """Return the names of its keys, in order."""
        return sorted(key.decode() for key in self.command("KEYS", pattern))

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO, each value as text."""
        found = self.command("INFO", section)
        return {str(name): str(value) for name, value in found.items()}


class Failover:
    """A primary, its replica, and a sentinel that puts the replica in the primary's place.

    Args:
        folder: has a folder for each of the three.

    Attributes:
        servers: primary and replica, as they were at first.
        sentinel: watches them, and alone decides.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            at_once = {"repl-diskless-sync-delay": "0"}
            primary = stack.enter_context(RedisServer(folder / "first", at_once))
            replica = stack.enter_context(
                RedisServer(
                    folder / "second", {**at_once, "replicaof": f"127.0.0.1 {primary.port}"}
                )
            )
            self.servers: Final = (primary, replica)
            eventually(
                lambda: replica.info("replication")["master_link_status"] == "up",
                "the replica follows",
                START_TIMEOUT,
            )
            watch = f"{SENTINEL_NAME} 127.0.0.1 {primary.port} 1"
            self.sentinel = stack.enter_context(
                RedisServer(
                    folder / "sentinel",
                    {
                        "sentinel monitor": watch,
                        "sentinel down-after-milliseconds": f"{SENTINEL_NAME} 500",
                        "sentinel failover-timeout": f"{SENTINEL_NAME} 3000",
                    },
                    sentinel=True,
                )
            )
            # Without having heard of the replica it cannot promote it.
            eventually(
                lambda: self._known("num-slaves") == "1" and self._known("flags") == "master",
                "the sentinel knows the replica",
                30.0,
            )
            self._stack = stack.pop_all()

    def _known(self, name: str) -> str:
        found = self.sentinel.command("SENTINEL", "MASTER", SENTINEL_NAME)
        return next(_text(value) for key, value in found.items() if _text(key) == name)

    @property
    def primary(self) -> RedisServer:
        """The one that the sentinel says is the primary."""
        address = self.sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SENTINEL_NAME)
        port = int(address[1])
        return next(server for server in self.servers if server.port == port)

    def fail_over(self, *, kill: bool = True) -> RedisServer:
        """End the primary, or only freeze it, and return the one that takes its place."""
        before = self.primary
        if kill:
            before.kill()
        else:
            before.freeze()
        eventually(lambda: self.primary is not before, "the replica is promoted", 30.0)
        after = self.primary
        eventually(
            lambda: after.info("replication")["role"] == "master", "it knows of it", START_TIMEOUT
        )
        return after

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all three."""
        self._stack.close()


class RedisCluster:
    """A Redis Cluster without replicas.

    Args:
        folder: has a folder for each server.
        size: how many servers share the slots.

    Attributes:
        servers: in the order of their slots.
    """

    def __init__(self, folder: Path, size: int = 3) -> None:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.servers: Final = tuple(
                stack.enter_context(
                    RedisServer(
                        folder / f"server-{number}",
                        {
                            "cluster-enabled": "yes",
                            "cluster-port": str(free_port()),
                            "cluster-node-timeout": "2000",
                            "cluster-announce-ip": "127.0.0.1",
                        },
                    )
                )
                for number in range(size)
            )
            self._share_out()
            self._stack = stack.pop_all()

    def _share_out(self) -> None:
        first = self.servers[0]
        size = len(self.servers)
        for number, server in enumerate(self.servers):
            begin, end = SLOTS * number // size, SLOTS * (number + 1) // size - 1
            server.command("CLUSTER", "ADDSLOTSRANGE", begin, end)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            port = int(server._config["cluster-port"])
            first.command("CLUSTER", "MEET", "127.0.0.1", server.port, port)
        for server in self.servers:
            eventually(partial(self._is_whole, server), "the cluster is whole", 30.0)

    def _is_whole(self, server: RedisServer) -> bool:
        info = server.command("CLUSTER", "INFO")
        text = (
            info
            if isinstance(info, dict)
            else dict(line.split(":", 1) for line in _text(info).split())
        )
        return (
            text["cluster_state"] == "ok"
            and int(text["cluster_known_nodes"]) == len(self.servers)
            and int(text["cluster_slots_assigned"]) == SLOTS
        )

    @property
    def addresses(self) -> Sequence[tuple[str, int]]:
        """Where its servers listen."""
        return [server.address for server in self.servers]

    def owner(self, channel: str) -> RedisServer:
        """Return the server whose slots a sharded channel, or a key, falls into."""
        slot = int(self.servers[0].command("CLUSTER", "KEYSLOT", channel))
        size = len(self.servers)
        return next(
            server
            for number, server in enumerate(self.servers)
            if slot < SLOTS * (number + 1) // size
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all of them."""
        self._stack.close()


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
