"""A redis-server of its own, for scenarios with several nodes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.machine import free_port, on_cores

#: Seconds it may take to start.
START_TIMEOUT = 10.0


@contextmanager
def redis_server(*, cores: frozenset[int]) -> Iterator[int]:
    """Run a redis-server that keeps nothing, and yield its port.

    Raises:
        BenchmarkError: It is not installed, or does not start.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise BenchmarkError("no redis-server: install it (Debian: apt-get install redis-server)")
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", "/tmp"]
    # A contender that is slower than the feed must not be cut off for it.
    command += ["--client-output-buffer-limit", "pubsub 0 0 0", "--logfile", ""]
    with on_cores(cores):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    raise BenchmarkError("redis-server did not start") from None
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()
