"""What is handed out: the sdist is whole, and the wheel built from it holds what the tree holds."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from ..support import ROOT

pytestmark = [pytest.mark.packaging, pytest.mark.slow]

BUILD_TIMEOUT = 600
"""Seconds for both builds; the compiler takes most of them."""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist from the tree and the wheel from that sdist, as a release does."""
    folder = tmp_path_factory.mktemp("dist")
    before = set((ROOT / "falcon_fast").glob("*.c"))
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert set((ROOT / "falcon_fast").glob("*.c")) == before
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> list[str]:
    """List the files of the wheel."""
    (path,) = dist.glob("falcon_fast-*.whl")
    with zipfile.ZipFile(path) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def sdist(dist: Path) -> list[str]:
    """List the files of the sdist, without its top folder."""
    (path,) = dist.glob("falcon_fast-*.tar.gz")
    with tarfile.open(path) as archive:
        files = [member for member in archive.getmembers() if not member.isdir()]
    assert [member.name for member in files if not member.isreg()] == []
    return sorted(member.name.partition("/")[2] for member in files)


def tree(*patterns: str) -> list[str]:
    """List the files of the packages in the tree, by the names they have once installed."""
    found: set[str] = set()
    for base, prefix in (("falcon_fast", "falcon_fast"), ("admin", "falcon_fast/admin")):
        for pattern in patterns:
            for path in (ROOT / base).rglob(pattern):
                relative = path.relative_to(ROOT / base)
                if "__pycache__" not in relative.parts and (base, relative.parts[0]) != (
                    "falcon_fast",
                    "admin",
                ):
                    found.add(f"{prefix}/{relative.as_posix()}")
    return sorted(found)


def test_wheel_holds_every_python_file_of_the_tree(wheel: list[str]) -> None:
    assert [name for name in wheel if name.endswith(".py")] == tree("*.py")


def test_wheel_holds_the_types(wheel: list[str]) -> None:
    typed = [name for name in wheel if name.endswith((".pyi", ".pxd", "py.typed"))]
    assert typed == tree("*.pyi", "*.pxd", "py.typed")
    assert "falcon_fast/_core.pyi" in typed


def test_wheel_holds_what_the_pages_of_the_admin_listener_are_made_of(wheel: list[str]) -> None:
    static = [
        f"falcon_fast/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "admin" / "static").rglob("*")
        if path.is_file()
    ]
    assert [name for name in wheel if "/static/" in name] == sorted(static)
    assert "falcon_fast/admin/static/swagger-ui/LICENSE" in static


def test_wheel_holds_one_native_core_and_no_sources_of_it(wheel: list[str]) -> None:
    native = [name for name in wheel if name.endswith((".so", ".pyd"))]
    assert [name.split(".")[0] for name in native] == ["falcon_fast/_core"]
    assert [name for name in wheel if name.endswith((".c", ".h", ".pyx", ".pxi"))] == []


def test_wheel_holds_nothing_outside_the_package(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"falcon_fast"}


def test_wheel_carries_licence_version_and_command(dist: Path, wheel: list[str]) -> None:
    (path,) = dist.glob("falcon_fast-*.whl")
    with zipfile.ZipFile(path) as archive:
        (metadata,) = (name for name in wheel if name.endswith(".dist-info/METADATA"))
        (commands,) = (name for name in wheel if name.endswith(".dist-info/entry_points.txt"))
        text = archive.read(metadata).decode()
        assert "falcon-fast = falcon_fast.cli:main" in archive.read(commands).decode()
    version = (ROOT / "falcon_fast" / "_version.py").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("Version: "))
    assert f'__version__ = "{line.removeprefix("Version: ")}"' in version
    assert "License-Expression: Apache-2.0" in text
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


def test_sdist_holds_the_sources_of_the_core(sdist: list[str]) -> None:
    sources = [
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.pyx", "*.pxi", "*.pxd", "*.h")
        for path in (ROOT / "falcon_fast").glob(pattern)
    ]
    assert sources != []
    assert [name for name in sources if name not in sdist] == []


def test_sdist_holds_no_generated_code(sdist: list[str]) -> None:
    assert [name for name in sdist if name.endswith((".so", ".o", ".pyc"))] == []
    assert [
        name for name in sdist if name.endswith(".c") and not name.startswith("benchmarks/")
    ] == []


def test_sdist_holds_the_benchmarks_own_c(sdist: list[str]) -> None:
    own = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").rglob("*.c"))
    assert own != []
    assert [name for name in sdist if name.endswith(".c")] == own


def test_sdist_has_no_second_copy_of_admin(sdist: list[str]) -> None:
    assert "admin/app.py" in sdist
    assert [name for name in sdist if name.startswith("falcon_fast/admin")] == []


def test_sdist_can_be_tested(sdist: list[str]) -> None:
    needed = {"Makefile", "README.md", "CHANGELOG.md", "LICENSE", "tests/conftest.py"}
    assert needed - set(sdist) == set()


def test_declared_packages_are_those_of_the_tree() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = sorted(str(Path(name).parent).replace("/", ".") for name in tree("__init__.py"))
    assert declared["tool"]["setuptools"]["packages"] == packages
