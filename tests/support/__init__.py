"""What tests share: the root of the tree and programs of other makers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds pyproject.toml."""

NODE_MODULES = ROOT / ".cache" / "node" / "node_modules"
"""Where ``make node-tools`` puts packages for Node; NODE_PATH for tests that run scripts."""

REQUIRE_ALL = os.environ.get("FALCON_REQUIRE_ALL") == "1"
"""True where everything is expected to be installed, so that nothing is left out unseen."""

MONGODB_URI = os.environ.get("FALCON_TEST_MONGODB_URI", "")
"""A real MongoDB, a replica set of one member at least, to test against instead of SecantusDB."""

FUZZ_EXAMPLES = int(os.environ.get("FALCON_FUZZ_EXAMPLES", "0"))
"""Inputs each fuzz test makes, for long runs; 0 leaves the number to the test."""

ALL_CASES = os.environ.get("FALCON_CONFORMANCE") == "all"
"""True for the whole of a protocol suite where usually a part of it has to do."""

LONG_FAULTS = os.environ.get("FALCON_LONG_FAULTS") == "1"
"""True where faults last as long as they do in life: for runs of many minutes."""

KILLS = int(os.environ.get("FALCON_KILLS", "3"))
"""How often a node of a cluster dies at a random moment."""


def missing(what: str, *, hint: str = "") -> NoReturn:
    """Leave the test out, or fail it where everything must be there.

    Args:
        what: what is missing, as a reader would name it.
        hint: how to get it.
    """
    reason = f"{what} is missing" + (f": {hint}" if hint else "")
    if REQUIRE_ALL:
        pytest.fail(f"{reason} (FALCON_REQUIRE_ALL=1)", pytrace=False)
    pytest.skip(reason)


def require(program: str, *alternatives: str, hint: str = "") -> str:
    """Find a program of another maker.

    Args:
        program: its usual name.
        alternatives: other names it may have, in order of preference.
        hint: how to get it, told when it is missing.

    Returns:
        The path of the first one found, in NODE_MODULES' programs first, then on PATH.
    """
    path = os.pathsep.join([str(NODE_MODULES / ".bin"), os.environ.get("PATH", os.defpath)])
    for name in (program, *alternatives):
        found = shutil.which(name, path=path)
        if found is not None:
            return found
    missing(program, hint=hint)
