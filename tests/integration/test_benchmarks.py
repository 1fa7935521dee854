"""The benchmarks run: real sockets and processes, tiny numbers, nothing said about speed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.macro.load import Latencies, upper_edge

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
        "admin",
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


def test_quick_admin_compares_latencies_with_and_without_a_listing(tmp_path: Path) -> None:
    done = benchmarks("run", "admin", "--quick", "--repeats", "1", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "admin.json").read_text())
    assert result["parameters"]["messages_per_second"] == 1000
    windows = result["figures"]["windows"]
    # Every delivery is counted, none is estimated: 500 messages to 20 members.
    assert {name: window["deliveries"] for name, window in windows.items()} == {
        "alone": 10_000,
        "while listing": 10_000,
    }
    for window in windows.values():
        pooled = window["pooled_ms"]
        assert 0 < pooled["p50"] <= pooled["p90"] <= pooled["p99"] <= pooled["p99.9"]
    assert result["figures"]["complete_listings"] >= 1
    (target,) = result["targets"]
    assert target["value"] == result["figures"]["p99_ratio"]["median"]
    assert target["at_most"] == 1.2


def test_micro_benchmarks_run_and_check_their_results() -> None:
    done = benchmarks("micro", "--", "--benchmark-disable")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_every_micro_benchmark_says_which_question_it_answers() -> None:
    files = sorted((ROOT / "benchmarks" / "micro").glob("test_*.py"))
    assert len(files) >= 7
    for file in files:
        assert re.match(r'"""[^"]*?\?', file.read_text()), file


@pytest.mark.parametrize("nanoseconds", [0, 1, 63, 64, 127, 128, 1000, 123_456, 9_999_999, 2**40])
def test_a_latency_is_known_to_1_6_percent(nanoseconds: int) -> None:
    # The bucket as load.c computes it.
    power = max(nanoseconds.bit_length() - 1, 6)
    bucket = (power - 6 << 6) + (nanoseconds >> power - 6)
    edge = upper_edge(bucket, 6)
    assert nanoseconds < edge <= max(nanoseconds + 1, nanoseconds * 65 / 64)


def test_quantiles_are_those_of_all_deliveries() -> None:
    many = Latencies({1_000_000: 98, 2_000_000: 1}, 1_900_000, 99)
    both = many + Latencies({8_000_000: 1}, 7_900_000, 1)
    assert [both.quantile(share) for share in (0.5, 0.98, 0.99, 1.0)] == [1.0, 1.0, 2.0, 8.0]
    assert (both.total, both.wanted, both.slowest) == (100, 100, 7_900_000)
