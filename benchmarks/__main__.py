"""The command line of the benchmarks: `list`, `run`, `peers`, `micro` and `instructions`."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.instructions.count import instructions
from benchmarks.macro import machine, peers_table, report
from benchmarks.macro.control import LOOPS
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json
from benchmarks.macro.peers.install import install
from benchmarks.macro.run import Run, say
from benchmarks.macro.scenarios import ALL

RESULTS = Path(__file__).parent / "results"
MICRO = Path(__file__).parent / "micro"


#: Scenarios that know all peers.
COMPARED = ("broadcast", "rooms", "idle", "storm", "large", "stalled", "echo")


def names(text: str) -> list[str]:
    """Read a list of names; none for an empty text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def tree(text: str) -> Path:
    """Read the path of a copy of this repository.

    Raises:
        argparse.ArgumentTypeError: There is no server in it.
    """
    path = Path(text).resolve()
    if not any((path / "falcon_fast").glob("_core*.so")):
        raise argparse.ArgumentTypeError(f"no server is built in {path}")
    return path


def options_of_a_run(command: argparse.ArgumentParser) -> None:
    """Add the options that `run` and `peers` have in common."""
    command.add_argument("--connections", type=int, help="connections, or members of the room")
    command.add_argument("--repeats", type=int, help="repetitions of the round of contenders")
    command.add_argument(
        "--loop", choices=LOOPS, default="uvloop", help="loop of the Python servers"
    )
    command.add_argument(
        "--layout",
        type=layout,
        metavar="RxM",
        help="rooms and members of each, in scenarios with room traffic",
    )
    command.add_argument(
        "--burst",
        type=int,
        default=1,
        help="messages that are due at the same moment, in scenarios with room traffic",
    )
    command.add_argument(
        "--against",
        type=tree,
        metavar="DIR",
        help="another copy of this repository, built in place: its server takes its turns too",
    )
    command.add_argument(
        "--quick",
        action="store_true",
        help="tiny numbers, to try the harness; not written unless --results is given",
    )
    command.add_argument("--results", type=Path, metavar="DIR", help="where the JSON goes")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the server, next to its peers, on real sockets.",
    )
    commands = root.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the scenarios and what each one asks")
    run = commands.add_parser("run", help="run a scenario, print its table, write its JSON")
    run.add_argument("scenario", choices=list(ALL))
    run.add_argument(
        "--peers",
        type=names,
        default=["websockets"],
        metavar="NAME,…",
        help="who else takes part in the open-loop scenarios (%(default)s)",
    )
    run.add_argument(
        "--soak", type=float, default=0.0, metavar="SECONDS", help="density: watch growth so long"
    )
    run.add_argument(
        "--check", action="store_true", help="exit with 1 if a target was missed or not measured"
    )
    peers = commands.add_parser(
        "peers", help="compare with servers of other makers; written to results/peers.*"
    )
    peers.add_argument(
        "--install", action="store_true", help="fetch the peers into .cache/peers, and that is all"
    )
    peers.add_argument(
        "--scenario",
        dest="scenarios",
        action="append",
        choices=COMPARED,
        help="one of the scenarios that compare (all of them); may be given again",
    )
    peers.add_argument(
        "--peers", type=names, default=None, metavar="NAME,…", help="only these peers (all)"
    )
    for command in (run, peers):
        options_of_a_run(command)
    micro = commands.add_parser("micro", help="run the micro benchmarks (pytest-benchmark)")
    micro.add_argument("pytest", nargs="*", help="files, and behind -- options of pytest")
    counts = commands.add_parser(
        "instructions", help="compare the core's instruction counts with the baseline (callgrind)"
    )
    counts.add_argument("--update", action="store_true", help="write the baseline instead")
    return root


def layout(text: str) -> tuple[int, int]:
    """Read a layout as the command line has it: 10x1000.

    Raises:
        ValueError: It is none.
    """
    rooms, _, members = text.partition("x")
    found = int(rooms), int(members)
    if min(found) < 1:
        raise ValueError(text)
    return found


def micro(arguments: list[str]) -> int:
    """Run the micro benchmarks and return pytest's exit code.

    Args:
        arguments: for pytest; later ones win over ours.
    """
    files = [argument for argument in arguments if not argument.startswith("-")]
    command = [sys.executable, "-m", "pytest", "-q", *([] if files else [str(MICRO)])]
    # Not the project's own options, which leave benchmarks out.
    command += ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["--benchmark-group-by=group", "--benchmark-sort=fullname"]
    command += ["--benchmark-columns=min,median,iqr,ops,rounds", "--benchmark-warmup=on"]
    command += ["--benchmark-disable-gc", "--benchmark-min-rounds=20", *arguments]
    return subprocess.run(command, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    """Carry out a command line and return the exit code."""
    options = parser().parse_args(arguments)
    if options.command == "list":
        for scenario in ALL.values():
            print(f"{scenario.name:<10}{scenario.question}")
        return 0
    if options.command == "micro":
        return micro(options.pytest)
    if options.command == "instructions":
        try:
            return instructions(update=options.update)
        except BenchmarkError as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 2
    if options.command == "peers" and options.install:
        failures = install(say)
        for failure in failures:
            print(f"could not be had: {failure}", file=sys.stderr)
        return 1 if failures else 0
    # Children inherit the limit: servers and generators hold thousands of sockets each.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = machine.Cores.choose()
    os.sched_setaffinity(0, cores.client)  # the harness itself keeps off the server's CPU
    run = Run(
        cores=cores,
        quick=options.quick,
        repeats=options.repeats,
        loop=options.loop,
        connections=options.connections,
        soak=getattr(options, "soak", 0.0),
        layout=options.layout,
        burst=options.burst,
        against=options.against,
        peers=options.peers,
    )
    directory = options.results or (None if options.quick else RESULTS)
    try:
        if options.command == "peers":
            for name in options.scenarios or COMPARED:
                compare(name, run, directory)
            return 0
        return single(options.scenario, run, directory, check=options.check)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def single(scenario: str, run: Run, directory: Path | None, *, check: bool) -> int:
    """Run a scenario, print its tables, keep its record; returns the exit code."""
    before = os.getloadavg()
    outcome = ALL[scenario].run(run)
    after = os.getloadavg()
    print(outcome.text())
    if directory is not None:
        document: dict[str, Json] = {
            "scenario": scenario,
            "machine": machine.describe(run.cores),
            "load_average": {"before": list(before), "after": list(after)},
            **outcome.json(),
        }
        report.save(directory / f"{scenario}.json", document)
    return 1 if check and not (outcome.targets and all(t.met for t in outcome.targets)) else 0


def compare(scenario: str, run: Run, directory: Path | None) -> None:
    """Run a scenario with all peers asked for, and put what it found into the table of peers."""
    outcome = ALL[scenario].run(run)
    print(outcome.text())
    if directory is None:
        return
    path = directory / "peers.json"
    document = peers_table.merged(path, outcome, machine.describe(run.cores))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(peers_table.markdown(document))


if __name__ == "__main__":
    raise SystemExit(main())
