"""A process of the benchmark that is spoken to in lines: commands on stdin, JSON on stdout.

Servers, the load generator and the send loop all speak this protocol, whatever language they are
written in, so a new peer is one script:

1. It prints ``{"event": "ready", "port": N, "versions": {...}}``, or
   ``{"event": "missing", "reason": "..."}`` when what it needs is not installed.
2. For each command line ``verb key=value key=value`` it prints one JSON object with "event".
   Servers know ``fanout messages=K bytes=S`` (send K text messages of S bytes to everyone in one
   turn of the loop), ``settle`` (collect garbage, give free memory back) and ``count``.
3. End of input ends it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from benchmarks.macro.errors import ChildFailed, PeerMissing
from benchmarks.macro.figures import Json
from benchmarks.macro.machine import cpu_seconds, on_cores, process_tree, resident_bytes

#: Seconds a program may take to say that it is ready.
START_TIMEOUT = 30.0
#: Characters of a failed program's stderr shown to the reader.
STDERR_TAIL = 2000


class Child:
    """One running program; a context manager that ends it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cores: frozenset[int],
        environment: Mapping[str, str] | None = None,
        replies: IO[bytes] | None = None,
        inherited: int | None = None,
        directory: Path | None = None,
    ) -> None:
        """Start the program on these CPUs and wait until it is ready.

        Args:
            name: What errors and tables call it.
            command: Program and arguments.
            cores: CPUs it may use.
            environment: Its whole environment; None for ours.
            replies: Where its answers come from when that is not its stdout.
            inherited: The descriptor it writes its answers to, in that case; closed here, so that
                the program's end is the end of its answers.
            directory: Where it runs; None for where we do.

        Raises:
            PeerMissing: It says that something it needs is not installed.
            ChildFailed: It ended or stayed silent.
        """
        self.name = name
        self.cores = cores
        self._errors = tempfile.TemporaryFile()
        try:
            with on_cores(cores):
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if replies is None else subprocess.DEVNULL,
                    stderr=self._errors,
                    env=None if environment is None else dict(environment),
                    cwd=directory,
                    pass_fds=() if inherited is None else (inherited,),
                )
        finally:
            if inherited is not None:
                os.close(inherited)
        source = replies if replies is not None else self._process.stdout
        assert source is not None
        assert self._process.stdin is not None
        self._source = source
        self._commands = self._process.stdin
        self._held = b""
        try:
            self.ready = self._answer(START_TIMEOUT)
            if self.ready["event"] == "missing":
                raise PeerMissing(f"{name}: {self.ready.get('reason')}")
        except BaseException:
            self.close()
            raise

    @property
    def port(self) -> int:
        """The port it listens on."""
        port = self.ready.get("port")
        if not isinstance(port, int):
            raise ChildFailed(f"{self.name} named no port")
        return port

    @property
    def versions(self) -> dict[str, Json]:
        """Versions of what it is built on, by package."""
        versions = self.ready.get("versions")
        return dict(versions) if isinstance(versions, dict) else {}

    def ask(self, command: str, *, timeout: float = 60.0) -> dict[str, Json]:
        """Send a command and return its answer.

        Args:
            command: Verb and ``key=value`` pairs.
            timeout: Seconds to wait for the answer.

        Raises:
            ChildFailed: It ended, stayed silent, or answered with an error.
        """
        self.tell(command)
        return self._answer(timeout)

    def tell(self, command: str) -> None:
        """Send a command whose answer is fetched later with `answer`."""
        try:
            self._commands.write(command.encode() + b"\n")
            self._commands.flush()
        except OSError as error:
            raise self._failure(f"took no command: {error}") from error

    def answer(self, *, timeout: float = 60.0) -> dict[str, Json]:
        """Return the answer to an earlier `tell`."""
        return self._answer(timeout)

    def cpu_seconds(self) -> float:
        """CPU time used so far, all threads, child processes included."""
        return sum(self.cpu_by_process().values())

    def cpu_by_process(self) -> dict[int, float]:
        """CPU time used so far by the program itself, which comes first, and by each child."""
        used = {self._process.pid: cpu_seconds(self._process.pid)}
        for pid in process_tree(self._process.pid)[1:]:
            try:
                used[pid] = cpu_seconds(pid)
            except OSError:
                continue  # it has ended just now
        return used

    def resident_bytes(self) -> int:
        """Resident memory now, child processes included."""
        return sum(resident_bytes(pid) for pid in process_tree(self._process.pid))

    def pause(self) -> None:
        """Stop the program where it is, until `resume`."""
        for pid in process_tree(self._process.pid):
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a stopped program go on; nothing to one that was not."""
        for pid in process_tree(self._process.pid):
            os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End the program: end of input first, a kill for what does not listen."""
        try:
            self._commands.close()
        except OSError:
            pass  # it has ended already, with a command in the pipe
        self._process.send_signal(signal.SIGCONT)  # a stopped one would not hear the next
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._source.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, timeout: float) -> dict[str, Json]:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._held:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._source], [], [], left)[0]:
                raise self._failure(f"gave no answer within {timeout:g} s")
            got = os.read(self._source.fileno(), 65536)
            if not got:
                raise self._failure("ended")
            self._held += got
        line, _, self._held = self._held.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._failure(f"said {line[:200]!r}") from error
        if not isinstance(answer, dict) or answer.get("event") in (None, "error"):
            raise self._failure(f"answered {line[:200]!r}")
        return answer

    def _failure(self, what: str) -> ChildFailed:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - STDERR_TAIL))
        tail = self._errors.read().decode(errors="replace").strip()
        return ChildFailed(f"{self.name} {what}" + (f"\n{tail}" if tail else ""))
