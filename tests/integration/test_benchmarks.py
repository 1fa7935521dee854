"""The benchmarks run: real sockets and processes, tiny numbers, nothing said about speed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.instructions.count import baselines, changes, read_dumps
from benchmarks.instructions.workloads import WORKLOADS
from benchmarks.macro.load import Latencies, upper_edge
from benchmarks.macro.peers_table import markdown, merged
from benchmarks.macro.report import Comparison, Outcome

from ..support import require
from ..support.redis_server import HINT

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
        "deflate",
        "broadcast",
        "rooms",
        "idle",
        "storm",
        "large",
        "stalled",
        "presence",
        "bus",
        "groups",
        "workers",
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


def test_quick_deflate_counts_one_compression_a_message(tmp_path: Path) -> None:
    done = benchmarks("run", "deflate", "--quick", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "deflate.json").read_text())
    figures = result["figures"]["deliveries"]
    assert len(figures) == 4
    for name, figure in figures.items():
        once = figure["compressions_per_message"]
        assert once["low"] == once["high"] == (1.0 if name.startswith("deflated") else 0.0), name
        octets = figure["bytes_per_delivery"]["median"]
        assert octets < 450 if name.startswith("deflated") else 1024 <= octets < 1200
    assert "Compression: median" in done.stdout


def test_quick_groups_counts_the_questions_to_the_database(tmp_path: Path) -> None:
    done = benchmarks("run", "groups", "--quick", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "groups.json").read_text())
    (storm,) = result["figures"]["storms"].values()
    # Sixty clients within half a second: more than one question, and far fewer than clients.
    assert 1 < storm["questions"]["median"] <= 20
    assert 0.4 < storm["seconds"]["median"] < 15
    assert [target["at_most"] for target in result["targets"]] == [15.0, 200.0]


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


def test_quick_rooms_finds_a_knee_and_times_every_delivery(tmp_path: Path) -> None:
    done = benchmarks("run", "rooms", "--quick", "--burst", "4", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "rooms.json").read_text())
    assert (result["parameters"]["rooms"], result["parameters"]["members"]) == (2, 10)
    contenders = result["figures"]["contenders"]
    assert {"C relay", "falcon_fast", "websockets"} <= contenders.keys()
    for name, got in contenders.items():
        assert got["cpu_us_per_delivery"]["median"] > 0, name
        for window in got["steps"]:
            rate, wanted = window["messages_per_second"], window["deliveries"] + window["lost"]
            # Every member of the room is to get every message; none is sampled.
            assert wanted == pytest.approx(rate * 0.2 * 10, abs=10), name
            assert window["ms"]["p50"] <= window["ms"]["p99"] <= window["max_ms"] * 1.02
    # Four messages that were due together are one read of a client, for the two that batch.
    for name in ("C relay", "falcon_fast"):
        assert contenders[name]["steps"][-1]["messages_per_read"] > 1.5, name
    names = [target["name"] for target in result["targets"]]
    assert len(names) == 2
    assert all("websockets" in name for name in names)


def test_the_server_of_another_tree_takes_part(tmp_path: Path) -> None:
    refused = benchmarks("run", "large", "--quick", "--against", str(tmp_path))
    assert refused.returncode == 2
    assert "no server is built" in refused.stderr
    done = benchmarks(
        *("run", "large", "--quick", "--peers", "", "--against", str(ROOT)),
        *("--results", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "large.json").read_text()
    assert json.loads(text)["figures"]["contenders"].keys() == {
        "C relay",
        "falcon_fast",
        "falcon_fast, other tree",
    }
    assert str(ROOT) not in text, "a result names no path of this machine"


def test_quick_broadcast_of_peers_writes_the_table(tmp_path: Path) -> None:
    done = benchmarks(
        *("peers", "--scenario", "broadcast", "--quick"),
        *("--peers", "websockets", "--results", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "peers.json").read_text())
    (part,) = document["parts"].values()
    assert part["rows"].keys() == {"C relay", "falcon_fast", "websockets"}
    assert all(row["values"]["lost"] == 0 for row in part["rows"].values())
    table = (tmp_path / "peers.md").read_text()
    assert "| **falcon_fast** |" in table
    assert re.search(r"\| websockets \| \S+ \(\S+ ×\)", table)


def test_ratios_in_the_table_of_peers_are_those_of_one_run(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    for own, peer, cost in ((1.0, "ws", 3.0), (2.0, "Bun", 3.0)):
        values = {"falcon_fast": {"cpu": own}, peer: {"cpu": cost}}
        outcome = Outcome({}, comparison=Comparison("a title", {"cpu": "µs"}, values))
        path.write_text(json.dumps(merged(path, outcome, {})))
    rows = json.loads(path.read_text())["parts"]["a title"]["rows"]
    assert {name: row["beside"] for name, row in rows.items()} == {
        "falcon_fast": {"cpu": 2.0},
        "ws": {"cpu": 1.0},
        "Bun": {"cpu": 2.0},
    }
    table = markdown(merged(path, Outcome({}), {}))
    assert "| ws | 3 (3 ×) |" in table
    assert "| Bun | 3 (1.5 ×) |" in table
    assert "| **falcon_fast** | 1.5 |" in table


def test_a_peer_that_is_not_installed_is_left_out_with_a_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "FALCON_BENCH_PEERS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.macro.peers.centrifugo"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert answer["event"] == "missing"
    assert "peers --install" in answer["reason"]


def test_a_peer_of_an_unknown_name_is_refused_with_the_choices() -> None:
    done = benchmarks("run", "rooms", "--quick", "--peers", "nonesuch")
    assert done.returncode == 2
    assert "uWebSockets.js" in done.stderr


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


@pytest.mark.parametrize("scenario", ["idle", "storm", "stalled", "presence"])
def test_quick_runs_of_the_other_open_loop_scenarios(scenario: str, tmp_path: Path) -> None:
    done = benchmarks("run", scenario, "--quick", "--peers", "", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / f"{scenario}.json").read_text())
    assert result["skipped"] == []
    if scenario == "presence":
        assert result["figures"]["cycles"] >= 10
        # Whoever comes or goes is told to those who stay, in both of the groups.
        assert result["figures"]["events_per_cycle"] > 1
        return
    got = result["figures"]["contenders"]["falcon_fast"]
    if scenario == "idle":
        assert got["resident_bytes_per_connection"] > 0
    elif scenario == "storm":
        assert got["failed"] == 0
        assert 0 < got["upgrade_ms"]["p50"] <= got["upgrade_ms"]["max"]
    else:
        assert got["lost_by_the_others"] == 0
        assert got["p99_ms"].keys() == {"all read", "1 % stall"}


def test_a_count_may_grow_by_a_twentieth_and_shrink_as_it_likes() -> None:
    before = {"same": 1000, "a bit more": 1000, "too much": 1000, "less": 1000, "gone": 1000}
    now = {"same": 1000, "a bit more": 1049, "too much": 1051, "less": 500, "new": 1000}
    found = {change.name: change for change in changes(before, now)}
    assert [name for name, change in found.items() if change.failed] == ["too much", "new", "gone"]
    assert "MORE THAN ALLOWED" in found["too much"].text()
    assert "new baseline" in found["less"].text()


def test_counts_are_read_by_the_name_they_were_given(tmp_path: Path) -> None:
    # What callgrind writes: a file for each request, and one at the end that nobody asked for.
    form = "# callgrind format\npart: {part}\n\ndesc: Trigger: {why}\n\nevents: Ir\n{total}\n"
    (tmp_path / "out.1").write_text(
        form.format(part=1, why="Client Request: second", total="summary: 7")
    )
    (tmp_path / "out.2").write_text(
        form.format(part=2, why="Client Request: third", total="totals: 9")
    )
    (tmp_path / "out.3").write_text(
        form.format(part=3, why="Program termination", total="summary: 1")
    )
    assert read_dumps(tmp_path) == {"second": 7, "third": 9}


def test_the_baseline_has_every_workload() -> None:
    known = baselines()
    assert known
    for counts in known.values():
        assert list(counts) == list(WORKLOADS)
        assert min(counts.values()) > 0


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_do_the_same_each_time(name: str) -> None:
    work = WORKLOADS[name]()
    for _ in range(2):
        work()  # a failure in a callback is raised here


def test_quick_bus_compares_three_ways_to_take_a_message(tmp_path: Path) -> None:
    require("redis-server", hint=HINT)
    done = benchmarks("run", "bus", "--quick", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bus.json").read_text())
    ways = {name.partition(",")[0] for name in result["figures"]["receiving"]}
    assert ways == {"falcon_fast", "redis-py listen()", "hiredis alone"}
    assert result["figures"]["publishing"]["writes"] == 1
    assert set(result["figures"]["latency"]) == {"same node", "other node"}


def test_a_server_ends_with_the_peer_that_runs_it(tmp_path: Path) -> None:
    """Left behind, it would take its share of the CPU in the runs that follow."""
    program = tmp_path / "server.py"
    program.write_text(
        "import os, socket, sys\n"
        f"with open({str(tmp_path / 'pid')!r}, 'w') as file: file.write(str(os.getpid()))\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "while True: listener.accept()\n"
    )
    peer = (
        "import sys\n"
        "from benchmarks.macro.peers.external import host\n"
        f"host(lambda port: [sys.executable, {str(program)!r}, str(port)], dict)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", peer],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        server = int((tmp_path / "pid").read_text())
        os.kill(server, 0)
        process.terminate()
        assert process.wait(10) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)
