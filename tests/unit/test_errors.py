"""The tree of exceptions, and what each carries."""

from __future__ import annotations

import pickle

import pytest

from falcon_fast import errors
from falcon_fast.codes import ReplyCode
from falcon_fast.errors import (
    AuthError,
    BusUnavailable,
    DirectoryError,
    DirectoryUnavailable,
    EnvelopeError,
    FalconError,
    KeysUnavailable,
    SettingsError,
)


def test_every_public_name_is_a_falcon_error() -> None:
    assert sorted(errors.__all__) == [
        "AuthError",
        "BusUnavailable",
        "DirectoryError",
        "DirectoryUnavailable",
        "EnvelopeError",
        "FalconError",
        "KeysUnavailable",
        "NodesUnavailable",
        "NotFoundError",
        "SettingsError",
    ]
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), FalconError)


@pytest.mark.parametrize(
    "kind",
    [
        AuthError,
        BusUnavailable,
        DirectoryError,
        DirectoryUnavailable,
        EnvelopeError,
        KeysUnavailable,
        SettingsError,
    ],
)
def test_the_tree_is_flat_so_that_catching_one_never_catches_another(
    kind: type[FalconError],
) -> None:
    assert kind.__bases__ == (FalconError,)


def test_the_tree_in_the_docstring_names_every_exception() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        assert f" {name} " in errors.__doc__


def test_settings_error_keeps_every_problem_and_prints_one_a_line() -> None:
    error = SettingsError(problem for problem in ("A: wrong", "B: wrong"))
    assert error.problems == ("A: wrong", "B: wrong")
    assert str(error) == "A: wrong\nB: wrong"


def test_envelope_error_carries_code_and_message() -> None:
    error = EnvelopeError(ReplyCode.BAD_JSON, "not JSON")
    assert error.code is ReplyCode.BAD_JSON
    assert error.message == "not JSON"
    assert str(error) == "bad_json: not JSON"


def test_exceptions_survive_pickling() -> None:
    settings_error = pickle.loads(pickle.dumps(SettingsError(["A: wrong"])))
    assert settings_error.problems == ("A: wrong",)
    envelope_error = pickle.loads(pickle.dumps(EnvelopeError(ReplyCode.LIMIT, "full")))
    assert (envelope_error.code, envelope_error.message) == (ReplyCode.LIMIT, "full")
