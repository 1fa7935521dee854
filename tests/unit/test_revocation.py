"""Rules that revoke tokens: which tokens they are about, how they are written, when they end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon_fast.identity import Identity
from falcon_fast.revocation import GRACE, Revocation, Revocations

NOW = 1_700_000_000


def identity(
    user_id: str = "ann", *, token_id: str | None = "t-1", issued_at: int = NOW
) -> Identity:
    return Identity(user_id, 1, "Ann", "", NOW + 3_600, token_id, issued_at)


def token_rule(
    token_id: str = "t-1", *, ident: str = "a", expires_at: int = NOW + 60
) -> Revocation:
    return Revocation(
        id=ident,
        kind="token",
        target=token_id,
        issued_before=0,
        expires_at=expires_at,
        created_at=NOW,
    )


def user_rule(
    user_id: str = "ann", before: int = NOW + 1, *, ident: str = "u", expires_at: int = NOW + 60
) -> Revocation:
    return Revocation(
        id=ident,
        kind="user",
        target=user_id,
        issued_before=before,
        expires_at=expires_at,
        created_at=NOW,
    )


def all_rule(before: int = NOW + 1, *, ident: str = "all") -> Revocation:
    return Revocation(
        id=ident,
        kind="all",
        target="",
        issued_before=before,
        expires_at=NOW + 60,
        created_at=NOW,
    )


def known(*rules: Revocation) -> Revocations:
    revocations = Revocations()
    for rule in rules:
        revocations.put(rule)
    return revocations


# --- what they are about --------------------------------------------------------------------------


def test_nothing_is_revoked_at_first() -> None:
    revocations = Revocations()
    assert not revocations.any
    assert revocations.is_complete
    assert not revocations.covers(identity())
    assert not revocations.covers(identity(token_id=None, issued_at=0))
    assert len(revocations) == 0


def test_one_token() -> None:
    revocations = known(token_rule("t-1"))
    assert revocations.any
    assert revocations.covers(identity(token_id="t-1"))
    assert revocations.covers(identity("bob", token_id="t-1", issued_at=0))
    for other in ("t-2", "t-", "T-1", None):
        assert not revocations.covers(identity(token_id=other))


def test_the_tokens_of_a_user_issued_before_a_time() -> None:
    revocations = known(user_rule("ann", NOW))
    assert revocations.covers(identity(issued_at=NOW - 1))
    assert not revocations.covers(identity(issued_at=NOW))
    assert not revocations.covers(identity("bob", issued_at=NOW - 1))


def test_all_tokens_issued_before_a_time() -> None:
    revocations = known(all_rule(NOW))
    assert revocations.covers(identity("anybody", token_id=None, issued_at=NOW - 1))
    assert not revocations.covers(identity("anybody", issued_at=NOW))


@pytest.mark.parametrize("rule", [user_rule(before=1), all_rule(before=1)])
def test_a_token_without_iat_counts_as_issued_before_any_time(rule: Revocation) -> None:
    revocations = known(rule)
    assert revocations.covers(identity(token_id=None, issued_at=0))
    assert not revocations.covers(identity(token_id=None, issued_at=1))


def test_the_widest_of_several_rules_counts() -> None:
    revocations = known(
        user_rule("ann", NOW - 10, ident="a"),
        user_rule("ann", NOW + 1, ident="b"),
        user_rule("ann", NOW - 20, ident="c"),
        all_rule(NOW - 5, ident="d"),
        all_rule(NOW - 50, ident="e"),
    )
    assert revocations.covers(identity(issued_at=NOW))
    assert revocations.covers(identity("bob", issued_at=NOW - 6))
    revocations.put(replace(user_rule("ann", NOW + 1, ident="b"), withdrawn=True))
    assert not revocations.covers(identity(issued_at=NOW - 5))
    assert revocations.covers(identity(issued_at=NOW - 6))
    revocations.put(replace(all_rule(NOW - 5, ident="d"), withdrawn=True))
    assert not revocations.covers(identity(issued_at=NOW - 6))
    assert revocations.covers(identity(issued_at=NOW - 11))
    assert revocations.covers(identity("bob", issued_at=NOW - 51))


# --- coming and going -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [token_rule(), user_rule(), all_rule()], ids=["token", "user", "all"]
)
def test_a_withdrawn_rule_stays_withdrawn(rule: Revocation) -> None:
    revocations = Revocations()
    assert revocations.put(rule)
    assert not revocations.put(rule)
    assert revocations.covers(identity())
    withdrawn = replace(rule, withdrawn=True)
    assert not revocations.put(withdrawn)
    assert not revocations.any
    assert not revocations.covers(identity())
    # What comes late, from who has not heard of it, does not bring it back.
    assert not revocations.put(rule)
    assert not revocations.covers(identity())
    assert revocations.get(rule.id) == withdrawn
    assert list(revocations) == [withdrawn]


def test_a_withdrawal_may_come_first() -> None:
    revocations = known(replace(token_rule(), withdrawn=True))
    assert not revocations.put(token_rule())
    assert not revocations.covers(identity())


def test_two_rules_about_one_token() -> None:
    revocations = known(token_rule(ident="a"), token_rule(ident="b"))
    revocations.put(replace(token_rule(ident="a"), withdrawn=True))
    assert revocations.covers(identity())
    revocations.put(replace(token_rule(ident="b"), withdrawn=True))
    assert not revocations.covers(identity())


def test_a_rule_that_was_written_anew_by_another_program() -> None:
    revocations = known(token_rule("t-1"))
    assert revocations.put(token_rule("t-2"))
    assert not revocations.covers(identity(token_id="t-1"))
    assert revocations.covers(identity(token_id="t-2"))


def test_rules_are_forgotten_when_their_tokens_have_expired() -> None:
    rules = [
        token_rule(expires_at=NOW, ident="t"),
        user_rule(expires_at=NOW, ident="u"),
        replace(all_rule(ident="a"), expires_at=NOW),
        replace(token_rule(expires_at=NOW, ident="w"), withdrawn=True),
        token_rule("t-9", expires_at=NOW + 1, ident="later"),
    ]
    revocations = known(*rules)
    assert revocations.purge(NOW + GRACE - 0.5) == []
    assert revocations.covers(identity())
    assert revocations.purge(NOW + GRACE) == ["t", "u", "a", "w"]
    assert not revocations.covers(identity())
    assert revocations.covers(identity(token_id="t-9"))
    assert revocations.purge(NOW + GRACE + 1) == ["later"]
    assert not revocations.any
    assert len(revocations) == 0
    # Nothing is left that would grow.
    for name in ("_tokens", "_users", "_user_rules", "_all", "_rules"):
        assert not getattr(revocations, name)


# --- as stores keep them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule, members",
    [
        (token_rule(), {"token_id": "t-1", "expires_at": NOW + 60, "created_at": NOW}),
        (
            user_rule(),
            {
                "user_id": "ann",
                "issued_before": NOW + 1,
                "expires_at": NOW + 60,
                "created_at": NOW,
            },
        ),
        (
            replace(all_rule(), withdrawn=True),
            {
                "all": True,
                "issued_before": NOW + 1,
                "expires_at": NOW + 60,
                "created_at": NOW,
                "withdrawn": True,
            },
        ),
    ],
    ids=["token", "user", "all"],
)
def test_how_a_rule_is_written(rule: Revocation, members: dict[str, object]) -> None:
    assert json.loads(rule.to_json()) == members
    assert Revocation.from_json(rule.id, rule.to_json()) == rule
    assert Revocation.read(rule.id, rule.to_json()) == rule


def test_what_another_program_may_leave_out_or_add() -> None:
    rule = Revocation.from_json("x", b'{"token_id":"t-1","expires_at":5,"why":"stolen","n":1.5}')
    assert rule == replace(token_rule(ident="x"), expires_at=5, created_at=0)
    assert Revocation.from_json("x", b'{"token_id":"t","expires_at":5,"issued_before":7}') == (
        replace(token_rule("t", ident="x"), expires_at=5, created_at=0)
    )


GOOD: dict[str, object] = {"user_id": "ann", "issued_before": 7, "expires_at": 9}


@pytest.mark.parametrize(
    "document, problem",
    [
        (b"", "it is not a JSON object"),
        (b"[]", "it is not a JSON object"),
        (b"\xff{}", "it is not a JSON object"),
        (b"[" * 100_000, "it is not a JSON object"),
        ({}, "it must have one of token_id, user_id and all"),
        (GOOD | {"all": True}, "it must have one of token_id, user_id and all"),
        (GOOD | {"user_id": "a:b"}, "its user_id is malformed"),
        (GOOD | {"user_id": 7}, "its user_id is malformed"),
        ({"token_id": "", "expires_at": 9}, "its token_id is malformed"),
        ({"token_id": "x" * 129, "expires_at": 9}, "its token_id is malformed"),
        ({"token_id": "a\nb", "expires_at": 9}, "its token_id is malformed"),
        ({"all": 1, "issued_before": 7, "expires_at": 9}, "its all is malformed"),
        ({"all": False, "issued_before": 7, "expires_at": 9}, "its all is malformed"),
        ({"user_id": "ann", "expires_at": 9}, "it must have issued_before"),
        (GOOD | {"issued_before": "7"}, "its issued_before is not an integer of seconds"),
        (GOOD | {"issued_before": True}, "its issued_before is not an integer of seconds"),
        (GOOD | {"issued_before": -1}, "its issued_before is not an integer of seconds"),
        (GOOD | {"expires_at": 9.5}, "its expires_at is not an integer of seconds"),
        (GOOD | {"expires_at": 10**18}, "its expires_at is not an integer of seconds"),
        (GOOD | {"created_at": None}, "its created_at is not an integer of seconds"),
        ({"user_id": "ann", "issued_before": 7}, "its expires_at is not an integer of seconds"),
    ],
    ids=ascii,
)
def test_what_is_no_rule(document: bytes | dict[str, object], problem: str) -> None:
    octets = document if isinstance(document, bytes) else json.dumps(document).encode()
    assert Revocation.read("x", octets) == problem
    with pytest.raises(ValueError, match=problem):
        Revocation.from_json("x", octets)


@pytest.mark.parametrize("ident", ["", "x" * 129, "a b", "a\n", "é", "a/b"])
def test_ids_that_are_none(ident: str) -> None:
    assert Revocation.read(ident, token_rule().to_json()) == "its id is malformed"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=10), st.binary(max_size=80))
def test_reading_is_total(ident: str, document: bytes) -> None:
    assert isinstance(Revocation.read(ident, document), Revocation | str)
