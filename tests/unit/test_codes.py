"""Close reasons and reply codes: the numbers are promises to clients."""

from __future__ import annotations

import pytest

from falcon_fast.codes import (
    MAX_CLOSE_TEXT_BYTES,
    CloseReason,
    Reconnect,
    ReplyCode,
    close_table,
)

from ..support import ROOT

DOCUMENT = ROOT / "docs" / "reference" / "close-codes.md"

# Written out once more on purpose: a renumbering must be seen in two places.
ORDINALS = [
    ("normal", 1000),
    ("going_away", 1001),
    ("protocol_error", 1002),
    ("unsupported_data", 1003),
    ("invalid_payload", 1007),
    ("policy_violation", 1008),
    ("too_many_fragments", 1008),
    ("too_many_errors", 1008),
    ("early_data", 1008),
    ("message_too_big", 1009),
    ("internal_error", 1011),
    ("service_restart", 1012),
    ("try_again_later", 1013),
    ("slow_consumer", 4000),
    ("no_pong", 4001),
    ("insufficient_state", 4002),
    ("rate_limited", 4003),
    ("bad_protocol_use", 4400),
    ("token_expired", 4401),
    ("revoked", 4403),
    ("kicked", 4403),
    ("forbidden", 4403),
    ("connection_limit", 4409),
    ("replaced", 4410),
    ("peer_closed", 1000),
    ("connection_lost", 1006),
]


def close_table_lines() -> list[str]:
    """Return the table of close reasons as the reference page must have it."""
    return [
        "| code | reason | text | reconnect |",
        "|---|---|---|---|",
        *(
            f"| {reason.code} | `{reason.label}` | {reason.text} | {reason.reconnect} |"
            for reason in sorted(CloseReason, key=lambda reason: (reason.code, reason))
        ),
    ]


def reply_table_lines() -> list[str]:
    """Return the table of reply codes as the reference page must have it."""
    return [
        "| code | retryable |",
        "|---|---|",
        *(f"| `{code}` | {'yes' if code.retryable else 'no'} |" for code in ReplyCode),
    ]


def test_ordinals_and_codes_are_stable() -> None:
    assert [(reason.label, reason.code) for reason in CloseReason] == ORDINALS
    assert [reason.value for reason in CloseReason] == list(range(len(ORDINALS)))
    assert [int(reason) for reason in CloseReason] == list(range(len(ORDINALS)))


def test_an_ordinal_from_the_core_leads_back_to_its_reason() -> None:
    assert CloseReason(13) is CloseReason.SLOW_CONSUMER
    with pytest.raises(ValueError):
        CloseReason(len(ORDINALS))


@pytest.mark.parametrize("reason", CloseReason, ids=lambda reason: reason.label)
def test_texts_fit_into_a_close_frame(reason: CloseReason) -> None:
    assert 0 < len(reason.text.encode()) <= MAX_CLOSE_TEXT_BYTES
    assert reason.text.isascii()
    assert reason.text.isprintable()
    assert reason.label == reason.name.lower()


def test_texts_are_distinct() -> None:
    assert len({reason.text for reason in CloseReason}) == len(CloseReason)


@pytest.mark.parametrize("reason", CloseReason, ids=lambda reason: reason.label)
def test_the_number_says_whether_to_come_back(reason: CloseReason) -> None:
    if 4000 <= reason.code <= 4399:
        assert reason.reconnect is Reconnect.BACKOFF
    elif reason.code == 4401:
        assert reason.reconnect is Reconnect.NEW_TOKEN
    elif 4400 <= reason.code <= 4499:
        assert reason.reconnect is Reconnect.NO
    elif reason.code in {1001, 1006, 1011, 1012, 1013}:
        assert reason.reconnect is Reconnect.BACKOFF
    else:
        assert reason.reconnect is Reconnect.NO


def test_the_table_for_the_core_is_indexed_by_ordinal() -> None:
    table = close_table()
    assert len(table) == len(CloseReason)
    assert table[CloseReason.TOKEN_EXPIRED] == (4401, b"token expired")
    assert table[0] == (1000, b"closed normally")


def test_reply_codes_are_their_own_text() -> None:
    assert list(ReplyCode) == [
        "bad_json",
        "bad_request",
        "too_large",
        "unknown_type",
        "forbidden",
        "not_found",
        "rate_limited",
        "limit",
        "unavailable",
        "internal",
    ]
    assert [code.name.lower() for code in ReplyCode] == [code.value for code in ReplyCode]


def test_retryable_reply_codes() -> None:
    assert {code for code in ReplyCode if code.retryable} == {
        ReplyCode.RATE_LIMITED,
        ReplyCode.UNAVAILABLE,
        ReplyCode.INTERNAL,
    }


def test_the_reference_page_lists_every_close_reason_and_reply_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "\n".join(close_table_lines()) + "\n\n" in text
    assert text.endswith("\n".join(reply_table_lines()) + "\n")
