"""The benchmarks run: real sockets and processes, tiny numbers, nothing said about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = 20


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmarks` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_list_names_every_scenario() -> None:
    done = benchmarks("list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "density",
        "fanout",
        "echo",
        "upgrades",
    ]


def test_quick_fanout_writes_ratios_to_the_send_loop(tmp_path: Path) -> None:
    done = benchmarks(
        "run",
        "fanout",
        "--quick",
        "--connections",
        str(MEMBERS),
        "--repeats",
        "2",
        "--results",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "fanout.json").read_text()
    result = json.loads(text)
    assert result["scenario"] == "fanout"
    assert result["parameters"]["members"] == MEMBERS
    ratios = result["figures"]["ratios_to_send_loop"]
    contenders = {name.rpartition(", ")[0] for name in ratios}
    assert {"C send loop", "falcon_fast core", "websockets broadcast"} <= contenders
    assert {name.rpartition(", ")[2] for name in ratios} == {"1", "16", "64"}
    # Ratios are to the mean of the two loops, so theirs lie opposite each other around 1.
    both = ratios["C send loop, 16"]["median"] + ratios["C send loop again, 16"]["median"]
    assert both == pytest.approx(2.0, rel=0.001)
    assert all(0 < ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in ratios.values())
    assert [target["at_most"] for target in result["targets"]] == [1.15, 1.3]
    assert str(ROOT) not in text, "a result names no path of this machine"
    for ratio in ratios:
        assert ratio.rpartition(", ")[0] in done.stdout


def test_unknown_scenario_is_refused_with_the_choices() -> None:
    done = benchmarks("run", "nonesuch")
    assert done.returncode == 2
    assert "fanout" in done.stderr
