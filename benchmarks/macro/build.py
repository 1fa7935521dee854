"""Compiles the C programs of the benchmarks on demand; asked by whoever starts one of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.macro.errors import BenchmarkError

SOURCES = Path(__file__).parent
CACHE = SOURCES.parent / ".build"
FLAGS = ("-O2", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")


def program(name: str) -> Path:
    """Return the executable of ``<name>.c``, compiled unless this very source already was.

    Args:
        name: File name of the source without its ending.

    Returns:
        The path of the executable in the cache directory.

    Raises:
        BenchmarkError: There is no C compiler, or it refused the source.
    """
    source = SOURCES / f"{name}.c"
    recipe = source.read_bytes() + (SOURCES / "common.h").read_bytes() + " ".join(FLAGS).encode()
    target = CACHE / f"{name}-{hashlib.sha256(recipe).hexdigest()[:16]}"
    if target.exists():
        return target
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchmarkError("a C compiler (cc) is needed to build the load generator")
    CACHE.mkdir(exist_ok=True)
    # Two runs may compile at the same time: each writes its own file, the last rename wins.
    fresh = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, *FLAGS, str(source), "-o", str(fresh)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{name}.c does not compile:\n{done.stderr}")
    fresh.replace(target)
    return target
