"""A machine without zlib's headers is told what to install, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..support import ROOT

pytestmark = pytest.mark.packaging


def test_a_build_without_zlib_says_so_before_anything_else(tmp_path: Path) -> None:
    # In front of the real one: a header that cannot be compiled, as good as none.
    (tmp_path / "zlib.h").write_text("#error missing\n")
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            "--build-temp",
            str(tmp_path),
            "--build-lib",
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "CFLAGS": f"-I{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("falcon_fast cannot be built: zlib.h was not")
    assert "zlib1g-dev" in done.stderr
    assert "Cythonizing" not in done.stdout
