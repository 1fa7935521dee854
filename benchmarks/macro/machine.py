"""The kernel's accounting: CPU time and memory of a process, pinning, and what machine this is."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.macro.figures import Json


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process, past ones included, to the nanosecond.

    This is the process clock of clock_getcpuclockid(3), whose number is ``~pid << 3 | 2`` on
    Linux: the scheduler's own sum, where /proc/<pid>/stat counts in ticks of 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def process_tree(pid: int) -> list[int]:
    """Return a process and all its living descendants."""
    tree = [pid]
    for member in tree:  # grows while it is walked
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                tree += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # the thread has ended
    return tree


def softirq_seconds() -> float:
    """Return the CPU time of the ksoftirqd threads, in seconds; 0 where they cannot be seen.

    Network work that the kernel hands to them is in nobody's account, so it is watched.
    """
    total = 0
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().startswith("ksoftirqd/"):
                total += int(comm.with_name("schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            continue  # the process has gone, or its accounts are hidden
    return total * 1e-9


def busy_seconds(cores: Iterable[int]) -> float:
    """Return how long these CPUs have not been idle, in seconds, in ticks of 10 ms."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *times = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, times[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, exactly (statm lags behind per-CPU counters)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no Rss for process {pid}")


def slab_bytes() -> int:
    """Return the kernel's slab memory: sockets of both ends, epoll items, files, buffers."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1]) * 1024
    raise OSError("no Slab in /proc/meminfo")


def free_port() -> int:
    """Return a loopback port that was free a moment ago, for servers that must be told one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Cores:
    """Which CPU the server gets and which the generator; equal sets mean no pinning."""

    server: frozenset[int]
    client: frozenset[int]

    @classmethod
    def choose(cls) -> Cores:
        """Give the first allowed CPU to the server and the last to the generator."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            return cls(frozenset(allowed), frozenset(allowed))
        return cls(frozenset(allowed[:1]), frozenset(allowed[-1:]))

    @property
    def pinned(self) -> bool:
        """Whether both sides have a CPU of their own."""
        return self.server != self.client


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Run the body on these CPUs: a child started in it inherits them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def describe(cores: Cores) -> dict[str, Json]:
    """Return what a reader needs to place the figures; nothing that names the machine."""
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "python": platform.python_version(),
        "pinned": cores.pinned,
    }
