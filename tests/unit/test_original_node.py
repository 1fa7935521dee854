"""The double of an original node writes JSON as Go does; the answers here are Go's own."""

from __future__ import annotations

import json

import pytest

from ..support.original_node import (
    Struct,
    Undecodable,
    decode_envelope,
    go_json,
    go_time,
    now,
)

STAMP = "2026-01-02T03:04:05.25Z"


@pytest.mark.parametrize(
    "text, written",
    [
        ("0", "0"),
        ("-0.0", "-0"),
        ("1.50", "1.5"),
        ("1E+2", "100"),
        ("9007199254740993", "9007199254740992"),
        ("192283599326683738", "192283599326683740"),
        ("8942608924243441930859999", "8.942608924243442e+24"),
        ("1e21", "1e+21"),
        ("1e20", "100000000000000000000"),
        ("0.000001", "0.000001"),
        ("0.0000001", "1e-7"),
        ("-9.530656860344199e-21", "-9.530656860344199e-21"),
    ],
)
def test_numbers(text: str, written: str) -> None:
    assert go_json(json.loads(text)) == written


def test_strings_and_orders() -> None:
    assert go_json("<a href='x'>&\u2028\x7f\n\x01é\ud800") == (
        "\"\\u003ca href='x'\\u003e\\u0026\\u2028\x7f\\n\\u0001é\N{REPLACEMENT CHARACTER}\""
    )
    assert go_json({"b": [None, True, False], "a": {}}) == '{"a":{},"b":[null,true,false]}'
    assert go_json(Struct(b=1, a=2)) == '{"b":1,"a":2}'
    with pytest.raises(TypeError):
        go_json(object())
    with pytest.raises(Undecodable):
        go_json(float("inf"))


@pytest.mark.parametrize(
    "text, written",
    [
        ("2026-01-02T03:04:05.1200Z", "2026-01-02T03:04:05.12Z"),
        ("2026-01-02T03:04:05.000Z", "2026-01-02T03:04:05Z"),
        ("2026-01-02T03:04:05.1234567891Z", "2026-01-02T03:04:05.123456789Z"),
        ("2026-01-02T03:04:05.5-07:30", "2026-01-02T03:04:05.5-07:30"),
        ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05Z"),
    ],
)
def test_timestamps(text: str, written: str) -> None:
    assert go_time(text) == written


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-02-30T00:00:00Z", "2026-01-02T03:04:60Z", "2026-01-02 03:04:05Z"],
)
def test_no_timestamps(text: str) -> None:
    with pytest.raises(Undecodable):
        go_time(text)


def test_now_is_a_timestamp() -> None:
    moment = now()
    assert go_time(moment) == moment


def test_an_envelope() -> None:
    server_id, message = decode_envelope(
        b'{"v":1,"seq":3,"SERVER_ID":"n","message":{"Type":"message","data":{"z":1,"a":"<"},'
        b'"room":"group:a","unknown":[],"from":null,"timestamp":"2026-01-02T03:04:05.250Z"},'
        b'"timestamp":"2026-01-02T03:04:05Z"}'
    )
    assert server_id == "n"
    assert go_json(message) == (
        '{"type":"message","room":"group:a","data":{"a":"\\u003c","z":1},'
        f'"timestamp":"{STAMP}"}}'
    )


def test_an_empty_envelope() -> None:
    nothing = '{"type":"","timestamp":"0001-01-01T00:00:00Z"}'
    assert [go_json(decode_envelope(text)[1]) for text in (b"{}", b'{"message":{}}')] == [
        nothing,
        nothing,
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"server_id":1}',
        b'{"timestamp":"x"}',
        b'{"message":1}',
        b'{"message":{"type":1}}',
        b'{"message":{"data":[]}}',
        b'{"message":{"timestamp":1}}',
        b'{"message":{"timestamp":"x"}}',
        b'{"message":{"data":{"n":NaN}}}',
    ],
)
def test_no_envelopes(text: bytes) -> None:
    with pytest.raises(Undecodable):
        decode_envelope(text)
