"""Run a fuzz target under atheris, guided by the coverage of the native core; started by hand.

docs/howto/fuzz-the-core.md says how to build the core for it. The first argument is the name of a
target, the others are libFuzzer's:

    python -m tests.fuzz.atheris_frames frames -max_total_time=300 CORPUS_FOLDER
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

SEEDS = Path(__file__).parent / "corpus"


def main() -> None:
    """Fuzz until told to stop; libFuzzer ends the process itself."""
    if len(sys.argv) < 2:
        sys.exit("give the name of a module in tests/fuzz/targets, such as frames")
    name, *options = sys.argv[1:]
    # The core's coverage comes from the compiler, Python's from here.
    with atheris.instrument_imports(include=["falcon_fast", "orjson"]):
        target = importlib.import_module(f"{__package__}.targets.{name}")
    seeds = SEEDS / name
    atheris.Setup(
        [sys.argv[0], *options, *([str(seeds)] if seeds.is_dir() else [])], target.one_input
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
