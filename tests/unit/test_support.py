"""`require` leaves a test out, or fails it where nothing may be left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from .. import support


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put one program, and nothing else, where programs are looked for."""
    path = tmp_path / "second-name"
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(support, "NODE_MODULES", tmp_path / "nothing")
    return path


def test_require_finds_the_first_name_there_is(program: Path) -> None:
    assert support.require("first-name", "second-name") == str(program)


def test_require_looks_among_the_packages_for_node_first(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "node_modules" / ".bin"
    folder.mkdir(parents=True)
    (folder / "second-name").symlink_to(program)
    monkeypatch.setattr(support, "NODE_MODULES", folder.parent)
    assert support.require("second-name") == str(folder / "second-name")


def test_require_leaves_the_test_out(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "REQUIRE_ALL", False)
    with pytest.raises(pytest.skip.Exception, match=r"^first-name is missing: make node-tools$"):
        support.require("first-name", hint="make node-tools")


def test_require_fails_where_everything_must_be_there(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "REQUIRE_ALL", True)
    with pytest.raises(pytest.fail.Exception, match=r"^first-name is missing \(FALCON_REQUIRE_ALL"):
        support.require("first-name")


def test_root_is_the_folder_of_the_project() -> None:
    assert (support.ROOT / "pyproject.toml").is_file()
