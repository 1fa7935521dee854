"""A cluster on this machine, to try it out: one Redis server and several nodes, each a process.

What ``falcon-fast cluster`` starts. Everything lives in a folder of its own that is gone with it.
A node may die, which is worth trying; with Ctrl+C, without Redis, or after the last node, the rest
ends too.
"""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from falcon_fast import demo
from falcon_fast.directory.sqlite_store import SqliteStore
from falcon_fast.errors import FalconError

__all__ = ["run"]

START_TIMEOUT: Final = 30.0
"""Seconds that a process has until it is there."""

STOP_TIMEOUT: Final = 10.0
"""Seconds that a process has to end."""

_LISTENING: Final = re.compile(r"listening on (\S+), admin on (\S+?)[\s\"]")


@dataclass(frozen=True, slots=True)
class _Node:
    """A node that listens."""

    process: subprocess.Popen[str]
    url: str
    admin_url: str


def run(environ: Mapping[str, str], *, nodes: int, port: int) -> int:
    """Start the cluster, print what to paste into clients, and wait for its end.

    Args:
        environ: of the nodes, whose own settings are added. A REDIS_URL in it is used instead of
            a Redis server of our own.
        nodes: how many.
        port: of the first node; its admin listener has the next one, and the second node begins
            ten further. 0 is any free port for all of them.

    Returns:
        0 after SIGINT or SIGTERM, 1 when Redis or all nodes ended by themselves.

    Raises:
        FalconError: there is no redis-server, or something did not start; the text says what.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="falcon-cluster-")))
        redis_url = environ.get("REDIS_URL", "")
        redis: subprocess.Popen[str] | None = None
        if not redis_url:
            redis, redis_url = stack.enter_context(_redis(folder))
        secret = environ.get("JWT_SECRET") or secrets.token_urlsafe(48)
        path = str(folder / "falcon.db")
        with SqliteStore(path, create=True) as store:
            found = demo.seed(store)
        ports = [port + 10 * number if port else 0 for number in range(nodes)]
        origins = demo.origins(*(one + more for one in ports if one for more in (0, 1)))
        settings = {
            **environ,
            "JWT_SECRET": secret,
            "REDIS_URL": redis_url,
            "FALCON_SQLITE_PATH": path,
            "WEBSOCKET_ALLOWED_ORIGINS": environ.get("WEBSOCKET_ALLOWED_ORIGINS")
            or ",".join(origins),
        }
        started = []
        for one in ports:
            mine = {"FALCON_PORT": str(one), "FALCON_ADMIN_PORT": str(one + 1 if one else 0)}
            node = stack.enter_context(_node({**settings, **mine}))
            started.append(node)
        print(_banner(started, found, secret, redis_url if "@" not in redis_url else "REDIS_URL"))
        sys.stdout.flush()
        return _wait(redis, [node.process for node in started])


def _wait(redis: subprocess.Popen[str] | None, nodes: list[subprocess.Popen[str]]) -> int:
    ended = threading.Event()
    previous = {
        number: signal.signal(number, lambda *_: ended.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while not ended.wait(0.2):
            if redis is not None and redis.poll() is not None:
                print("redis-server has ended by itself", file=sys.stderr)
                return 1
            for process in [process for process in nodes if process.poll() is not None]:
                nodes.remove(process)
                print(f"the node of process {process.pid} has ended by itself", file=sys.stderr)
            if not nodes:
                return 1
        return 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _redis(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    program = shutil.which("redis-server")
    if program is None:
        raise FalconError(
            "redis-server: not found; install it (Debian: apt install redis-server), or set "
            "REDIS_URL to a Redis that is running"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(  # noqa: S603 - a program of that name on the PATH, and numbers
        [program, *options],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl+C is for us: the nodes end first
    )
    with _ending(process):
        until = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > until:
                    raise FalconError(f"redis-server did not start on port {port}") from error
                time.sleep(0.05)
        yield process, f"redis://127.0.0.1:{port}"


@contextmanager
def _node(settings: Mapping[str, str]) -> Iterator[_Node]:
    process = subprocess.Popen(
        [sys.executable, "-m", "falcon_fast", "serve"],
        env=dict(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with _ending(process):
        listens = threading.Event()
        found: list[re.Match[str]] = []

        def read() -> None:
            """Pass the node's log on, and look for its addresses in it."""
            for line in process.stderr or ():
                if not found and (match := _LISTENING.search(line)) is not None:
                    found.append(match)
                    listens.set()
                sys.stderr.write(line)
            listens.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        listens.wait(START_TIMEOUT)
        if not found:
            raise FalconError("a node did not start; what it said stands above")
        yield _Node(process, found[0][1], found[0][2])


@contextmanager
def _ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """Have a process end with the block, by force if need be."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _banner(nodes: list[_Node], found: demo.Demo, secret: str, redis: str) -> str:
    now = int(time.time())
    room = f"group:{found.fleet.id}"
    alice, bob, admin = (
        one.token(secret, now=now) for one in (found.alice, found.bob, found.admin)
    )
    lines = ["", f"A cluster of {len(nodes)} nodes is ready; they meet at {redis}.", ""]
    for number, node in enumerate(nodes, 1):
        lines.append(f"  node {number}   clients {node.url}   admin {node.admin_url}")
    lines += [
        "",
        "1. Be Alice on the first node, and Bob on the last (npm install -g wscat):",
        "",
        f'wscat -c {nodes[0].url} -H "Authorization: Bearer {alice}"',
        f'wscat -c {nodes[-1].url} -H "Authorization: Bearer {bob}"',
        "",
        "2. Speak to the group on either; both get it:",
        "",
        demo.message(room, "Hello from the other node"),
        "",
        "3. Be the operator, on any node: everybody on all nodes is listed, counted and reached:",
        "",
        *demo.operator(nodes[-1].admin_url, admin, room),
        "",
        "The tokens:",
        "",
        f"Alice: {alice}",
        f"Bob: {bob}",
        f"Admin: {admin}",
        "",
        f"Ctrl+C stops all of it. To see a node die: kill -9 {nodes[-1].process.pid}",
        "",
    ]
    return "\n".join(lines)
