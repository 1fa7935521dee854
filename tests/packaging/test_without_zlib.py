"""A machine without zlib's header can build, one without zlib is told what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..support import ROOT

pytestmark = pytest.mark.packaging

# Load the extension that was built, whose file comes as the argument.
TRY = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("falcon_fast._core", sys.argv[1])
spec = importlib.util.spec_from_loader("falcon_fast._core", loader)
core = importlib.util.module_from_spec(spec)
loader.exec_module(core)
print(core.Core.__name__)
"""


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-temp", folder, "--build-lib", folder],
        cwd=ROOT,
        env={**os.environ, "FALCON_BUILD_DEBUG": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_without_the_header_the_library_is_enough(tmp_path: Path) -> None:
    # In front of the real one: a header that cannot be compiled, as good as none.
    (tmp_path / "zlib.h").write_text("#error missing\n")
    done = build(tmp_path, CFLAGS=f"-I{tmp_path}")
    assert done.returncode == 0, done.stderr
    [built] = (tmp_path / "falcon_fast").glob("_core.*.so")
    # Every function it needs is looked up at once, not when it is called first.
    tried = subprocess.run(
        [sys.executable, "-c", TRY, built],
        env={**os.environ, "LD_BIND_NOW": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert tried.stdout == "Core\n"


def test_without_the_library_it_says_so_before_anything_else(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *zlib_probe*) exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    done = build(tmp_path, CC=str(compiler))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("falcon_fast cannot be built: neither zlib.h nor the library libz.so.1")
    assert "zlib1g-dev" in last
    assert "Cythonizing" not in done.stdout
