"""The server's end of the protocol in child.py, for servers written in Python."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

from benchmarks.macro.figures import Json

LoopName = Literal["asyncio", "uvloop"]
#: The loops a Python server can run on, as the command line names them.
LOOPS: tuple[LoopName, ...] = ("asyncio", "uvloop")
#: A command's arguments: "key=value" pairs, numbers only.
Arguments = Mapping[str, int]
Handler = Callable[[Arguments], dict[str, Json]]


def say(event: str, **fields: Json) -> None:
    """Print one answer."""
    print(json.dumps({"event": event, **fields}), flush=True)


def require(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of these packages, or say which one is missing and end.

    Args:
        packages: Names of distributions that are imported under the same name.
    """
    versions: dict[str, str] = {}
    for package in packages:
        try:
            importlib.import_module(package)
            versions[package] = importlib.metadata.version(package)
        except ImportError as error:
            say("missing", reason=f"Python package {error.name or package!r}")
            raise SystemExit(0) from error
    return versions


def server_versions() -> dict[str, str]:
    """Return the versions of the server under test and of what it runs on, as far as present."""
    from falcon_fast._version import __version__

    versions = {"falcon_fast": __version__}
    for package in ("picows", "uvloop"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def give_back_memory() -> None:
    """Collect garbage and hand free heap pages to the kernel, so that what is left is in use."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def settle(_arguments: Arguments) -> dict[str, Json]:
    """Answer the command of that name."""
    give_back_memory()
    return {}


def answer(line: str, handlers: Mapping[str, Handler]) -> None:
    """Carry out one command line and print its answer."""
    verb, *pairs = line.split()
    handler = handlers.get(verb)
    if handler is None:
        say("error", reason=f"unknown command {verb!r}")
        return
    arguments = {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    say("done", **handler(arguments))


async def obey(handlers: Mapping[str, Handler]) -> None:
    """Carry out the commands on stdin, on the loop, until stdin ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    held = b""

    def on_input() -> None:
        nonlocal held
        got = os.read(sys.stdin.fileno(), 65536)
        if not got:
            loop.remove_reader(sys.stdin.fileno())
            ended.set()
            return
        *lines, held = (held + got).split(b"\n")
        for line in lines:
            answer(line.decode(), handlers)

    os.set_blocking(sys.stdin.fileno(), False)
    loop.add_reader(sys.stdin.fileno(), on_input)
    await ended.wait()


def run(main: Callable[[], Awaitable[None]], loop: LoopName) -> None:
    """Run the server's main coroutine on the named loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop

    async def body() -> None:
        await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(body())
