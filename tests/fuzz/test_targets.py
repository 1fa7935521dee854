"""The fuzz targets over their seeds, changed at random; under a fuzzer they run by hand.

docs/howto/fuzz-the-core.md tells how. A finding becomes a seed, so that it is run here for good.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..support import FUZZ_EXAMPLES
from .targets import bus, envelopes, frames, heads, operations, tokens, upgrades

CORPUS: Final = Path(__file__).parent / "corpus"

Target = Callable[[bytes], None]

TARGETS: Final[dict[str, Target]] = {
    "bus": bus.one_input,
    "envelopes": envelopes.one_input,
    "frames": frames.one_input,
    "heads": heads.one_input,
    "operations": operations.one_input,
    "tokens": tokens.one_input,
    "upgrades": upgrades.one_input,
}

SEEDS: Final = {
    name: [path.read_bytes() for path in sorted((CORPUS / name).iterdir())] for name in TARGETS
}

EXAMPLES: Final = FUZZ_EXAMPLES or 300
"""Inputs per target; FALCON_FUZZ_EXAMPLES raises it for a long run."""

MAX_SEED_BYTES: Final = 16_384


def changed(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Take seeds apart and put pieces of them together, with octets changed."""
    seed = st.sampled_from(seeds)
    place = st.floats(0, 1, exclude_max=True)

    def spliced(pieces: list[tuple[bytes, float, float]]) -> bytes:
        parts = [whole[int(a * len(whole)) : int(b * len(whole)) + 1] for whole, a, b in pieces]
        return b"".join(parts)

    def mutated(parts: tuple[bytes, list[tuple[float, bytes]]]) -> bytes:
        data, edits = parts
        for at, piece in edits:
            spot = int(at * len(data))
            data = data[:spot] + piece + data[spot + (len(piece) & 1) :]
        return data

    edits = st.lists(st.tuples(place, st.binary(max_size=3)), max_size=4)
    splices = st.lists(st.tuples(seed, place, place), min_size=1, max_size=6).map(spliced)
    return st.one_of(
        st.tuples(seed, edits).map(mutated),
        st.tuples(splices, edits).map(mutated),
        st.binary(max_size=200),
    )


def test_every_target_has_its_seeds_and_nothing_else_is_there() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    modules = {path.stem for path in (CORPUS.parent / "targets").glob("*.py")}
    assert modules - {"__init__"} == set(TARGETS)
    for name, seeds in SEEDS.items():
        assert len(seeds) >= 10, name
        assert all(len(seed) <= MAX_SEED_BYTES for seed in seeds), name


@pytest.mark.parametrize(
    ("name", "seed"),
    [(name, path.name) for name in TARGETS for path in sorted((CORPUS / name).iterdir())],
    ids=lambda part: str(part),
)
def test_seed(name: str, seed: str) -> None:
    TARGETS[name]((CORPUS / name / seed).read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_seeds(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(changed(SEEDS[name])))


def test_the_target_can_fail_when_the_core_says_nothing_of_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A target that swallowed its assertions would pass for ever.
    monkeypatch.setattr(frames, "FROM_INPUT", frozenset())
    with pytest.raises(AssertionError):
        frames.one_input(b"\0\0")
