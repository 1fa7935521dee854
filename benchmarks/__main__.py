"""The command line: `python -m benchmarks list`, `run SCENARIO` and `micro`."""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.macro import machine, report
from benchmarks.macro.control import LOOPS
from benchmarks.macro.errors import BenchmarkError
from benchmarks.macro.figures import Json
from benchmarks.macro.run import Run
from benchmarks.macro.scenarios import ALL

RESULTS = Path(__file__).parent / "results"
MICRO = Path(__file__).parent / "micro"


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
    run.add_argument("--connections", type=int, help="connections, or members of the room")
    run.add_argument("--repeats", type=int, help="repetitions of the round of contenders")
    run.add_argument("--loop", choices=LOOPS, default="uvloop", help="loop of the Python servers")
    run.add_argument(
        "--soak", type=float, default=0.0, metavar="SECONDS", help="density: watch growth so long"
    )
    run.add_argument(
        "--quick",
        action="store_true",
        help="tiny numbers, to try the harness; not written unless --results is given",
    )
    run.add_argument("--results", type=Path, metavar="DIR", help="where the JSON goes")
    run.add_argument(
        "--check", action="store_true", help="exit with 1 if a target was missed or not measured"
    )
    micro = commands.add_parser("micro", help="run the micro benchmarks (pytest-benchmark)")
    micro.add_argument("pytest", nargs="*", help="files, and behind -- options of pytest")
    return root


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
        soak=options.soak,
    )
    before = os.getloadavg()
    try:
        outcome = ALL[options.scenario].run(run)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    after = os.getloadavg()
    print(outcome.text())
    directory = options.results or (None if options.quick else RESULTS)
    if directory is not None:
        document: dict[str, Json] = {
            "scenario": options.scenario,
            "machine": machine.describe(cores),
            "load_average": {"before": list(before), "after": list(after)},
            **outcome.json(),
        }
        report.save(directory / f"{options.scenario}.json", document)
    if options.check and not (outcome.targets and all(t.met for t in outcome.targets)):
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
