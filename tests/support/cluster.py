"""Several nodes as processes of their own, with one Redis and one directory between them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from .admin import Admin
from .client import Client
from .fault_proxy import FaultProxy
from .redis_server import RedisServer
from .server import SERVE, ServerProcess, eventually

READY_TIMEOUT: Final = 30.0
"""Seconds until nodes that were started know of each other."""

OWN_SETTINGS: Final = {
    # Tests count messages, and a limit would count them too.
    "FALCON_MESSAGE_RATE": "1000000",
    "FALCON_MESSAGE_BURST": "1000000",
}


class Node:
    """One node: a server process that may end and be started again.

    Attributes:
        name: for folders and failures.
        proxy: what stands between it and Redis, if anything does.
        server: the process, another one after `restart`.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: dict[str, str],
        proxy: FaultProxy | None,
        program: Sequence[str] = SERVE,
    ) -> None:
        self.name = name
        self.proxy = proxy
        self._folder = folder
        self._settings = settings
        self._program = program
        self._starts = 0
        self._admin: Admin | None = None
        self.server = self._start()
        self.node_id = str(self.status()["node_id"])

    def _start(self) -> ServerProcess:
        self._starts += 1
        folder = self._folder / f"{self.name}-{self._starts}"
        folder.mkdir()
        return ServerProcess(folder, self._settings, program=self._program)

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.server.process.poll() is None

    @property
    def pid(self) -> int:
        """The process."""
        return self.server.process.pid

    @property
    def link(self) -> FaultProxy:
        """The proxy that stands between it and Redis."""
        assert self.proxy is not None, "the cluster was started without proxies"
        return self.proxy

    @property
    def admin(self) -> Admin:
        """Its admin listener; the first call makes the super administrator."""
        if self._admin is None:
            self._admin = Admin(self.server)
        return self._admin

    def connect(self, user: str, character: int = 1, *, source: str | None = None) -> Client:
        """Connect a client and wait until it is in its rooms; it lives until the node does not."""
        client = self.server.connect(user, character, source=source)
        self.server.keep(client.wire)
        return client

    def status(self) -> dict[str, Any]:
        """Return what its `/websocket/status` says."""
        return self.server.status()

    def readiness(self) -> int:
        """Return the status code of its `/readyz`."""
        return self.server.get("/readyz").status

    def metric(self, name: str) -> float:
        """Return a metric without labels, or the sum over its labels; 0 if there is none."""
        connection = self.admin.ask("GET", "/metrics")
        total = 0.0
        for line in connection.body.decode().splitlines():
            if line.partition("{")[0].partition(" ")[0] == name:
                total += float(line.rpartition(" ")[2])
        return total

    def kill(self) -> None:
        """End it without a word."""
        self.server.kill()

    def freeze(self) -> None:
        """Let it do nothing at all."""
        self.server.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self.server.signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start it, after ending it well if it runs; it gets new ports and a new id."""
        self.close()
        self._admin = None
        self.server = self._start()
        self.node_id = str(self.status()["node_id"])

    def close(self) -> None:
        """End it if it runs, by force if need be."""
        if self.is_running:
            self.thaw()
            self.server.stop()
        self.server.forget()


class Cluster:
    """Nodes that share a Redis and a directory.

    Args:
        folder: holds everything.
        redis: what they are connected to.
        number: of nodes.
        settings: of all nodes.
        own_settings: of single nodes, by their number.
        proxies: puts a proxy of its own between each node and Redis.
        url: the setting REDIS_URL, if it is not simply the server's.
        program: arguments of the interpreter.
        wait: whether they must find each other before this returns.

    Attributes:
        nodes: in the order of their numbers.
    """

    def __init__(
        self,
        folder: Path,
        redis: RedisServer,
        number: int = 2,
        *,
        settings: Mapping[str, str] | None = None,
        own_settings: Mapping[int, Mapping[str, str]] | None = None,
        proxies: bool = False,
        url: str | None = None,
        program: Sequence[str] = SERVE,
        wait: bool = True,
    ) -> None:
        self.folder = folder
        self.redis = redis
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:

            def start(place: int) -> Node:
                proxy = FaultProxy(redis.address) if proxies else None
                if proxy is not None:
                    stack.callback(proxy.close)
                reached = url or redis.url_through(proxy.port if proxy else redis.port)
                node = Node(
                    f"node-{place}",
                    folder,
                    {
                        "REDIS_URL": reached,
                        "FALCON_SQLITE_PATH": str(folder / "falcon.db"),
                        **OWN_SETTINGS,
                        **(settings or {}),
                        **(own_settings or {}).get(place, {}),
                    },
                    proxy,
                    program,
                )
                stack.callback(node.close)
                return node

            # The first makes the directory's tables; the others start beside each other.
            self.nodes: Final = [start(0)]
            with ThreadPoolExecutor() as pool:
                self.nodes.extend(pool.map(start, range(1, number)))
            if wait:
                self.wait_until_whole()
            self._stack = stack.pop_all()

    def __getitem__(self, place: int) -> Node:
        return self.nodes[place]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all nodes."""
        self._stack.close()

    @property
    def alive(self) -> Sequence[Node]:
        """The nodes that run."""
        return [node for node in self.nodes if node.is_running]

    def wait_until_whole(self, within: float = READY_TIMEOUT) -> None:
        """Wait until every node that runs is ready and knows of all that do."""
        number = len(self.alive)
        for node in self.alive:
            eventually(
                partial(_knows, node, number), f"{node.name} is ready and knows {number}", within
            )

    def mend(self) -> None:
        """Undo whatever a test has done to the links, to Redis and to the nodes."""
        self.redis.thaw()
        if self.redis.process.poll() is not None:
            self.redis.start()
        for node in self.nodes:
            if node.proxy is not None:
                node.proxy.heal()
            if node.is_running:
                node.thaw()
            else:
                node.restart()
        self.wait_until_whole()

    def group(self, name: str, *characters: int) -> str:
        """Make a group with members and return the name of its room."""
        return self.alive[0].server.group(name, *characters)

    def records(self) -> list[dict[str, Any]]:
        """Return the log lines of all processes that are the nodes now."""
        return [record for node in self.nodes for record in node.server.records()]


def _knows(node: Node, number: int) -> bool:
    # Nodes of the original program that were heard of, and nodes that died, are counted as well.
    return node.readiness() == 200 and int(node.status()["nodes"]) >= number
