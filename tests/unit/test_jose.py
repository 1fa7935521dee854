"""The outside of tokens: the core's readers against the standard library's."""

from __future__ import annotations

import base64
import json
import re
from typing import Final, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_fast._core import from_base64url, split_token
from falcon_fast.errors import AuthError
from falcon_fast.jose import decode, parse_json, parse_object

COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

segments: Final = st.text(st.sampled_from("AZaz09_-QgwEI048"), max_size=9)


def split_slowly(token: str) -> tuple[str, str, str, str] | None:
    if COMPACT.fullmatch(token) is None:
        return None
    signed, _, signature = token.rpartition(".")
    header, _, claims = signed.partition(".")
    return header, claims, signature, signed


@given(st.text(st.sampled_from("aZ9_-..=+/ é\n\x00\u0100"), max_size=12))
def test_tokens_are_taken_apart_A02(token: str) -> None:
    assert split_token(token) == split_slowly(token)


@pytest.mark.parametrize("token", ["", ".", "..", "...", "a.b", "a..c", ".b.c", "a.b.", "a.b.c.d"])
def test_tokens_that_are_none_A02(token: str) -> None:
    assert split_token(token) is None


def test_a_token_is_taken_apart() -> None:
    assert split_token("a.bc.d") == ("a", "bc", "d", "a.bc")


@given(st.binary(max_size=70))
def test_base64url_is_decoded(data: bytes) -> None:
    text = base64.urlsafe_b64encode(data).decode().rstrip("=")
    assert decode(text) == data


@given(segments)
def test_base64url_has_one_spelling(text: str) -> None:
    decoded = from_base64url(text)
    if decoded is not None:
        assert base64.urlsafe_b64encode(decoded).decode().rstrip("=") == text
    else:
        with pytest.raises(AuthError, match="base64url is not canonical"):
            decode(text)


@pytest.mark.parametrize(
    "text", ["a", "AAAAA", "AB", "AAB", "A=", "AA==", "A A", "+/+/", "é", "\u0100A"]
)
def test_base64url_that_is_none(text: str) -> None:
    assert from_base64url(text) is None


# --- JSON ---------------------------------------------------------------------------------------


def parse_slowly(data: bytes) -> dict[str, object] | None:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError
        return dict(pairs)

    def constant(_text: str) -> NoReturn:
        raise ValueError

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


values: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=3), values, max_size=4))
def test_objects_are_read(value: dict[str, object]) -> None:
    assert parse_json(json.dumps(value).encode()) == value


scraps: Final = st.sampled_from(
    [
        *("{", "}", "[", "]", ":", ",", '"a"', '"b"', '"\\ud800"', '"\\u0000"', '"a":', '{"a":1}'),
        *("1", "-0", "1.5", "1e999", "18446744073709551616", "NaN", "Infinity", "true", "null"),
        *(" ", "\ufeff"),
    ]
)


@given(st.lists(scraps, max_size=12))
def test_scraps_are_read_as_the_slow_reader_does_A08(parts: list[str]) -> None:
    data = "".join(parts).encode()
    assert parse_json(data) == parse_slowly(data)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"b":{"a":1,"a":2}}',
        b'{"b":[{"a":1,"a":2}]}',
        b"[]",
        b"1",
        b"",
        b"\xff",
        b'{"a":NaN}',
        b'{"a":1}x',
        b"[" * 100_000,
    ],
)
def test_what_is_no_object_with_unique_names_A08(text: bytes) -> None:
    assert parse_json(text) is None


def test_segments_that_are_no_objects_A08() -> None:
    with pytest.raises(AuthError, match="not a JSON object"):
        parse_object(base64.urlsafe_b64encode(b"[1]").decode().rstrip("="))
