"""Counts the instructions of the core's work and compares them with the committed baseline.

A count does not depend on who else uses the machine, so it can be a gate where a time cannot. It
does depend on the interpreter, the compiler and the architecture: for others than those of the
baseline the counts are reported only.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.macro.build import CACHE
from benchmarks.macro.errors import BenchmarkError, PeerMissing

HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
#: Largest growth of a count that is let pass.
TOLERANCE = 0.05
#: Seconds for all of it; it takes a quarter.
TIMEOUT = 300

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Change:
    """A count and what it was in the baseline."""

    name: str
    before: int | None
    now: int | None

    @property
    def growth(self) -> float:
        """Share by which it grew; 0 where there is nothing to compare."""
        return self.now / self.before - 1 if self.before and self.now else 0.0

    @property
    def failed(self) -> bool:
        """Whether this is a reason to look: too much, or not there on one side."""
        return self.before is None or self.now is None or self.growth > TOLERANCE

    def text(self) -> str:
        """Return one line for the reader."""
        if self.before is None or self.now is None:
            where = "the baseline" if self.before is None else "this run"
            return f"{self.name:<28}not in {where}"
        note = ""
        if self.failed:
            note = "  MORE THAN ALLOWED"
        elif self.growth < -TOLERANCE:
            note = "  less: worth a new baseline"
        return f"{self.name:<28}{self.now:>14,}  {self.growth:+.1%}{note}"


def changes(before: Counts, now: Counts) -> list[Change]:
    """Compare two sets of counts, in the order of the workloads."""
    names = [*now, *(name for name in before if name not in now)]
    return [Change(name, before.get(name), now.get(name)) for name in names]


def key() -> str:
    """Name what counts depend on: interpreter, architecture, compiler."""
    compiler = "unknown compiler"
    if path := shutil.which("cc"):
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        compiler = done.stdout.partition("\n")[0]
        compiler = re.sub(r"\s*\([^)]*\)", "", compiler).strip()
    return f"{platform.python_implementation()} {platform.python_version()}, " + (
        f"{platform.machine()}, {compiler}"
    )


def library() -> Path:
    """Return the library that speaks to callgrind, compiled unless it was.

    Raises:
        PeerMissing: valgrind's headers or a compiler are not there.
    """
    source = HERE / "counter.c"
    target = CACHE / f"counter-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    if target.exists():
        return target
    compiler = shutil.which("cc")
    if compiler is None:
        raise PeerMissing("a C compiler (cc)")
    CACHE.mkdir(exist_ok=True)
    fresh = target.with_suffix(f".{os.getpid()}")
    command = [compiler, "-O2", "-shared", "-fPIC", str(source), "-o", str(fresh)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PeerMissing(f"the headers of valgrind: {done.stderr.strip()[:200]}")
    fresh.replace(target)
    return target


def count() -> Counts:
    """Run the workloads under callgrind.

    Raises:
        PeerMissing: valgrind is not there.
        BenchmarkError: The workloads failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise PeerMissing("valgrind")
    with tempfile.TemporaryDirectory(prefix="falcon-bench-") as directory:
        command = [
            *steady(),
            valgrind,
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={directory}/out",
            sys.executable,
            "-m",
            "benchmarks.instructions.workloads",
            str(library()),
        ]
        done = subprocess.run(
            command,
            cwd=HERE.parents[1],
            # Nothing of the caller's environment: even its size moves the stack.
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise BenchmarkError(f"the workloads failed:\n{done.stderr.strip()[-2000:]}")
        return read_dumps(Path(directory))


def steady() -> list[str]:
    """Return what starts a program at the same addresses each time, where that is allowed."""
    setarch = shutil.which("setarch")
    if setarch is None:
        return []
    command = [setarch, platform.machine(), "-R"]
    done = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if done.returncode == 0 else []


def read_dumps(directory: Path) -> Counts:
    """Return the count of each dump that callgrind has written, by the name it was given."""
    counts: list[tuple[int, str, int]] = []
    for path in directory.glob("out.*"):
        text = path.read_text(errors="replace")
        name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
        part = re.search(r"^part: (\d+)$", text, re.MULTILINE)
        total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
        if name and part and total:
            counts.append((int(part[1]), name[1], int(total[1])))
    return {name: total for _, name, total in sorted(counts)}


def baselines() -> dict[str, Counts]:
    """Return the committed counts, by what they depend on."""
    if not BASELINE.exists():
        return {}
    found: dict[str, Counts] = json.loads(BASELINE.read_text())
    return found


def instructions(*, update: bool) -> int:
    """Count, compare and print.

    Args:
        update: write the counts down as the new baseline.

    Returns:
        The exit code: 1 when a count grew by more than is allowed.

    Raises:
        BenchmarkError: Counting is not possible here.
    """
    now, known = count(), baselines()
    if update:
        known[key()] = now
        BASELINE.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        print(f"baseline written for {key()}")
        return 0
    before = known.get(key())
    print(f"instructions, {key()}")
    if before is None:
        for name, total in now.items():
            print(f"{name:<28}{total:>14,}")
        print(f"no baseline for this, nothing compared; there is one for: {'; '.join(known)}")
        return 0
    found = changes(before, now)
    for change in found:
        print(change.text())
    return 1 if any(change.failed for change in found) else 0
