"""scan_json against a slow reading of the same rules, and against what orjson would let pass."""

from __future__ import annotations

import json
import re
from typing import Final, TypeAlias

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast._core import scan_json

from ..support.growth import LINEAR, growth

OK, TOO_DEEP, INTEGER, TOO_MANY_KEYS = range(4)

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

TOKEN: Final = re.compile(
    rb'"(?:\\.|[^"\\])*(?:"|\\?\Z)'  # a string, perhaps without an end
    rb"|-?[0-9]+[-+.eE0-9]*|-[-+.eE0-9]*"  # whatever begins like a number
    rb"|[][{}:]",
    re.DOTALL,
)


def reference(payload: bytes, max_depth: int, max_keys: int) -> int:
    """Say what is found first, token by token."""
    depth = keys = 0
    for match in TOKEN.finditer(payload):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
            if depth > max_depth:
                return TOO_DEEP
        elif token in (b"]", b"}"):
            depth = max(depth - 1, 0)
        elif token == b":":
            keys += 1
            if keys > max_keys:
                return TOO_MANY_KEYS
        elif re.fullmatch(rb"-?[0-9]+", token) and not -(2**63) <= big(token) < 2**64:
            return INTEGER
    return OK


def big(digits: bytes) -> int:
    """Read an integer of any length: int() refuses more than 4300 digits."""
    value = 0
    for at in range(0, len(digits.lstrip(b"-")), 1000):
        piece = digits.lstrip(b"-")[at : at + 1000]
        value = value * 10 ** len(piece) + int(piece)
    return -value if digits.startswith(b"-") else value


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", OK),
        (b"null", OK),
        (b"[[[]]]", OK),
        (b"[[[[]]]]", TOO_DEEP),
        (b'{"a":{"b":{"c":1}}}', OK),
        (b'{"a":{"b":[{"c":1}]}}', TOO_DEEP),
        (b"[][][][]", OK),
        (b"]]]][[[", OK),
        (b"]]]][[[[", TOO_DEEP),
        (b'"[[[[[[["', OK),
        (b'"\\"[[[[[[["', OK),
        (b'"\\\\"[[[[', TOO_DEEP),
        (b'"\\', OK),
        (b'"unfinished [[[[', OK),
        (b"18446744073709551615", OK),
        (b"18446744073709551616", INTEGER),
        (b"-9223372036854775808", OK),
        (b"-9223372036854775809", INTEGER),
        (b"[99999999999999999999]", INTEGER),
        (b"100000000000000000000", INTEGER),
        (b'{"id":18446744073709551616}', INTEGER),
        (b'{"id":"18446744073709551616"}', OK),
        (b"1" + b"0" * 5000, INTEGER),
        (b"-1" + b"0" * 5000, INTEGER),
        (b"184467440737095516150000.0", OK),
        (b"1e400", OK),
        (b"18446744073709551616e0", OK),
        (b"-0", OK),
        (b"0", OK),
        (b"000000000000000000000000000000001", OK),
        (b"[1,-2,3.5,4e5,6E-7]", OK),
    ],
)
def test_j01_j04_examples(payload: bytes, expected: int) -> None:
    assert scan_json(payload, 3) == expected
    assert reference(payload, 3, 1 << 32) == expected


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [32, 33, 1025, 200_000])
def test_j01_depth(opening: bytes, depth: int) -> None:
    assert scan_json(opening * depth, 32) == (OK if depth <= 32 else TOO_DEEP)


def test_j02_keys() -> None:
    payload = orjson.dumps({f"k{number}:": {"[": ":"} for number in range(500)})
    assert scan_json(payload, 32) == OK
    assert scan_json(payload, 32, 1000) == OK
    assert scan_json(payload, 32, 999) == TOO_MANY_KEYS
    assert scan_json(b'"a:b:c"', 32, 0) == OK
    assert scan_json(b"{}", 32, 0) == OK


def test_what_comes_first_is_told() -> None:
    assert scan_json(b'[99999999999999999999,[[[[[{"a":1}', 2, 0) == INTEGER
    assert scan_json(b'[[[[[{"a":99999999999999999999', 2, 0) == TOO_DEEP
    assert scan_json(b'{"a":[[99999999999999999999', 2, 0) == TOO_MANY_KEYS


PIECES: Final = [
    *[bytes([octet]) for octet in b'[]{}:,"\\-10.e+ \xff'],
    *[b"18446744073709551615", b"9223372036854775808", b'"x"'],
]


@settings(max_examples=300, deadline=None)
@given(
    payload=st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join),
        st.binary(max_size=60),
    ),
    max_depth=st.integers(0, 5),
    max_keys=st.integers(0, 5),
)
def test_any_octets_are_read_as_the_reference_reads_them(
    payload: bytes, max_depth: int, max_keys: int
) -> None:
    assert scan_json(payload, max_depth, max_keys) == reference(payload, max_depth, max_keys)


values: st.SearchStrategy[Json] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**66), 2**66),
        st.sampled_from([2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**19, 10**20]),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def facts(value: Json) -> tuple[int, int, bool]:
    """Return depth, number of keys, and whether every integer fits into 64 bits."""
    if isinstance(value, dict | list):
        inside = [facts(item) for item in (value.values() if isinstance(value, dict) else value)]
        depth = 1 + max((depth for depth, _, _ in inside), default=0)
        keys = sum(keys for _, keys, _ in inside) + (len(value) if isinstance(value, dict) else 0)
        return depth, keys, all(fits for _, _, fits in inside)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return 0, 0, not whole or -(2**63) <= int(value or 0) < 2**64


@settings(max_examples=300, deadline=None)
@given(value=values, indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_j01_j04_valid_json_is_judged_by_its_contents(
    value: Json, indent: int | None, ascii_only: bool
) -> None:
    payload = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    depth, keys, fits = facts(value)
    wrong = {
        problem
        for problem, there in [
            (TOO_DEEP, depth > 3),
            (TOO_MANY_KEYS, keys > 4),
            (INTEGER, not fits),
        ]
        if there
    }
    found = scan_json(payload, 3, 4)
    assert found in wrong if wrong else found == OK
    if fits:
        # What is let pass comes out of the parser digit for digit.
        assert orjson.loads(payload) == value


@pytest.mark.parametrize("piece", [b"[", b'"', b"\\", b'"\\"', b"1", b"-", b"[1,", b"\xff"])
def test_j01_the_time_is_linear_in_the_size(piece: bytes) -> None:
    assert growth(lambda size: scan_json(piece * size, 1 << 30), 20_000) < LINEAR


@pytest.mark.parametrize("payload", ["text", bytearray(b"[]"), None])
def test_only_bytes_are_read(payload: bytes) -> None:
    with pytest.raises(TypeError):
        scan_json(payload, 32)
