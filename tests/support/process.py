"""Programs of this tree in a process of their own, as an operator starts them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from . import ROOT

START_TIMEOUT: Final = 30.0
"""Seconds a program has until it says what it is waited for."""

STOP_TIMEOUT: Final = 40.0
"""Seconds after SIGTERM; a server drains for 30 at most."""


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with the tree importable and the settings added."""
    # The tree is put first, so that a copy without installation is tested too.
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **(settings or {})}


class Program:
    """A running program and the lines it has written so far, both of its outputs together.

    Args:
        process: started with one pipe for both outputs, as text.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        """All that was written."""
        with self._changed:
            return "\n".join(self.lines)

    def wait_for(self, pattern: str, *, timeout: float = START_TIMEOUT) -> re.Match[str]:
        """Wait for a line that has the pattern in it, past ones included.

        Raises:
            AssertionError: the program ended, or the time did, without such a line.
        """
        wanted = re.compile(pattern)
        found: list[re.Match[str]] = []

        def is_there() -> bool:
            found.extend(match for line in self.lines if (match := wanted.search(line)))
            return bool(found) or self._ended

        with self._changed:
            self._changed.wait_for(is_there, timeout)
        assert found, f"nothing like {pattern!r} in:\n{self.output}"
        return found[0]

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for the end, by force when it does not come; returns the exit code."""
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.returncode


@contextlib.contextmanager
def running(
    *arguments: str, folder: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Run `python -m arguments...` for as long as the context lasts.

    Args:
        arguments: the module and what follows it.
        folder: the working directory.
        settings: environment variables to add.
    """
    program = Program(
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    try:
        yield program
    finally:
        if program.process.returncode is None:
            program.stop()


def run(
    *arguments: str, folder: Path, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m arguments...` to its end, as in a second terminal."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT,
        check=False,
    )
