"""Which offer of permessage-deflate is accepted, and what is answered."""

from __future__ import annotations

import pytest
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.headers import parse_extension

from falcon_fast.deflate import agree

from ..support.growth import LINEAR, growth

ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def window(*offers: str) -> int | None:
    agreed = agree(offers)
    return None if agreed is None else agreed.window


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",  # Chromium, Firefox, Safari
        "permessage-deflate; client_max_window_bits=15",
        "permessage-deflate;client_max_window_bits=8",
        "permessage-deflate ; client_max_window_bits = 10",
        'permessage-deflate; client_max_window_bits="9"',
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "  permessage-deflate\t",
        "permessage-deflate,",
        ", ,permessage-deflate",
        "x-webkit-deflate-frame, permessage-deflate",
        'x-other; a="b, permessage-deflate; c\\"", permessage-deflate',
        "permessage-deflate; unknown, permessage-deflate",
        "permessage-deflate; server_max_window_bits=7, permessage-deflate",
    ],
)
def test_d01_an_offer_that_leaves_the_window_to_us(offer: str) -> None:
    agreed = agree((offer,))
    assert agreed is not None
    assert (agreed.window, agreed.answer) == (15, ANSWER)


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("form", ["{}", '"{}"', " {} "])
def test_d01_an_offer_that_limits_our_window(bits: int, form: str) -> None:
    agreed = agree((f"permessage-deflate; server_max_window_bits={form.format(bits)}",))
    assert agreed is not None
    assert agreed.window == bits
    # Section 7.1.2.1: accepted "by including this parameter", with 15 as with any other.
    assert agreed.answer == f"{ANSWER}; server_max_window_bits={bits}"


def test_d01_a_quoted_value_may_be_escaped() -> None:
    assert window('permessage-deflate; server_max_window_bits="1\\0"') == 10


@pytest.mark.parametrize(
    "offer",
    [
        "",
        ",",
        "permessage-deflate-x",
        "x-permessage-deflate",
        "Permessage-Deflate",
        "permessage-deflate client_max_window_bits",
        "permessage-deflate;",
        "permessage-deflate; ;client_max_window_bits",
        "permessage-deflate=1",
        "permessage-deflate; unknown",
        "permessage-deflate; unknown=1",
        "permessage-deflate; server_no_context_takeover=1",
        'permessage-deflate; client_no_context_takeover=""',
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
        *[
            f"permessage-deflate; {side}_max_window_bits={bits}"
            for side in ("client", "server")
            for bits in (
                "",
                '""',
                '"',
                "7",
                "16",
                "08",
                "+9",
                "-9",
                "9.0",
                "1e1",
                "١٠",
                "9 9",
                "9\\9",
            )
        ],
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",  # which zlib cannot do
        'permessage-deflate; client_max_window_bits="9',
        'x="permessage-deflate',
        'x="\\',
        'x="y, permessage-deflate"',
        'x="y", "permessage-deflate"',
    ],
)
def test_d01_an_offer_that_cannot_be_accepted(offer: str) -> None:
    assert window(offer) is None
    # It is passed over, and the next one taken, in the same header or in another one.
    assert window(offer, "permessage-deflate; server_max_window_bits=11") == 11
    if offer.count('"') % 2 == 0:
        assert window(f"{offer}, permessage-deflate; server_max_window_bits=12") == 12


def test_d01_the_first_offer_that_can_be_accepted_is() -> None:
    offers = (
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=10, permessage-deflate",
    )
    assert window(*offers) == 10
    assert window() is None


@pytest.mark.parametrize(
    "piece",
    [
        "permessage-deflate; server_max_window_bits=8, ",
        "permessage-deflate; a; b; c, ",
        ",",
        ";",
        '"',
        '"\\',
        '"x" ',
        'permessage-deflate; x="',
        "permessage-deflate;permessage-deflate;",
    ],
)
def test_d01_huge_headers_take_time_in_proportion(piece: str) -> None:
    assert growth(lambda number: agree((piece * number,)), 400) < LINEAR


@pytest.mark.parametrize(("number", "found"), [(1, 15), (31, 15), (32, None), (999, None)])
def test_d01_many_bad_offers_in_front_of_a_good_one(number: int, found: int | None) -> None:
    offers = ", ".join(f"permessage-deflate; unknown_{n}" for n in range(number))
    assert window(f"{offers}, permessage-deflate") == found
    assert window("x-other, " * 1_000 + "permessage-deflate") == 15


@pytest.mark.parametrize(
    ("limits", "accepted"),
    [
        ({}, True),
        ({"client_max_window_bits": True}, True),
        ({"client_max_window_bits": 12, "server_max_window_bits": 12}, True),
        ({"server_max_window_bits": 8}, False),
        ({"server_no_context_takeover": True, "client_no_context_takeover": True}, True),
    ],
)
def test_d01_websockets_offers_and_is_content_with_the_answer(
    limits: dict[str, bool | int], accepted: bool
) -> None:
    factory = ClientPerMessageDeflateFactory(**limits)  # type: ignore[arg-type]
    parameters = [
        name if value is None else f"{name}={value}" for name, value in factory.get_request_params()
    ]
    agreed = agree(("; ".join(["permessage-deflate", *parameters]),))
    assert (agreed is not None) == accepted
    if agreed is None:
        return
    ((name, answered),) = parse_extension(agreed.answer)
    assert name == "permessage-deflate"
    extension = factory.process_response_params(answered, [])
    assert extension.remote_no_context_takeover
    assert extension.local_no_context_takeover
    assert extension.remote_max_window_bits == agreed.window


def test_d01_websockets_would_not_be_content_with_a_larger_window() -> None:
    factory = ClientPerMessageDeflateFactory(server_max_window_bits=10)
    with pytest.raises(NegotiationError):
        factory.process_response_params([("server_max_window_bits", "11")], [])
