"""Seats: what is kept of a connection in few octets, and the way from its id to it."""

from __future__ import annotations

import gc
import random
import sys
import uuid
import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from falcon_fast._core import Seat, Seats, squeeze, stretch
from falcon_fast.identity import new_id

LEAST, MOST = -(2**63), 2**63 - 1

facts = st.lists(
    st.none()
    | st.integers(LEAST, MOST)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.uuids().map(str)
)


class Guest(Seat):
    __slots__ = ("__weakref__",)

    def __init__(self, ident: str) -> None:
        self.id = ident


@given(facts)
def test_what_is_squeezed_is_the_same_again(told: Sequence[str | int | None]) -> None:
    assert stretch(squeeze(*told)) == tuple(told)
    assert stretch(b"abc" + squeeze(*told), 3) == tuple(told)


@pytest.mark.parametrize("size", [249, 250, 251, 70_000])
def test_long_texts(size: int) -> None:
    assert stretch(squeeze("x" * size, 1)) == ("x" * size, 1)


def test_what_is_squeezed_is_small() -> None:
    ident = str(uuid.uuid4())
    assert len(squeeze(ident)) == 17
    # Only in the one form in which an id is written: it has to be the same again.
    for other in (ident.upper().replace("0", "A"), ident.replace("-", "_"), ident[:-1] + "g"):
        assert len(squeeze(other)) == 37
        assert stretch(squeeze(other)) == (other,)
    assert [len(squeeze(number)) for number in (0, 2**40 - 1, 2**40, -1)] == [6, 6, 9, 9]


@pytest.mark.parametrize("number", [LEAST - 1, MOST + 1])
def test_integers_above_64_bits_are_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        squeeze(number)


@pytest.mark.parametrize("fact", [1.0, True, b"x", ()])
def test_other_types_are_refused(fact: object) -> None:
    with pytest.raises(TypeError, match="a fact is a text, an integer or None"):
        squeeze(fact)  # type: ignore[arg-type]


def test_surrogates_are_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        squeeze("\ud800")


@given(st.binary(max_size=40), st.integers(-3, 50))
def test_any_octets_are_facts_or_refused(octets: bytes, at: int) -> None:
    try:
        found = stretch(octets, at)
    except ValueError:
        return
    assert len(octets) <= at + sum(9 if isinstance(fact, int) else 41 for fact in found) + 41


@pytest.mark.parametrize("cut", range(1, 16))
def test_facts_that_were_cut_off_are_refused(cut: int) -> None:
    for fact in (new_id(), "x" * 300, 2**50, 77):
        packed = squeeze(fact)
        if cut < len(packed):
            with pytest.raises(ValueError, match="not squeezed here"):
                stretch(packed[:-cut])


def test_a_seat_remembers() -> None:
    ident = new_id()
    guest = Guest(ident)
    assert (guest.id, guest.conn, guest.phase, guest.record) == (ident, 0, 0, None)
    guest.conn, guest.phase, guest.record = (2**32 - 1) << 16 | 0xFFFF, 255, b"abc"
    assert (guest.conn, guest.phase, guest.record) == (2**48 - 1, 255, b"abc")
    guest.record = b""
    assert guest.record == b""
    guest.record = b"x" * 65_535
    assert guest.record == b"x" * 65_535
    with pytest.raises(ValueError, match="at most 65535 octets"):
        guest.record = b"x" * 65_536
    guest.record = None
    assert guest.record is None


def test_a_seat_takes_what_fits() -> None:
    guest = Guest(new_id())
    with pytest.raises(OverflowError):
        guest.conn = 2**48
    with pytest.raises(OverflowError):
        guest.phase = 256
    for ident in ("", "x" * 36, new_id().upper() + "A", "é" * 18, new_id() + "\0"):
        with pytest.raises(ValueError, match="is not an id"):
            guest.id = ident


def test_the_collector_does_not_know_of_seats_and_they_end_without_it() -> None:
    guest = Guest(new_id())
    assert not gc.is_tracked(guest)
    guest.record = b"x" * 100
    guest._rare = rare = [object()]  # type: ignore[attr-defined]
    ended = weakref.ref(guest)
    held = sys.getrefcount(rare)
    del guest
    assert ended() is None
    assert sys.getrefcount(rare) == held - 1


def test_seats_are_found_by_their_ids() -> None:
    seats: Seats[Guest] = Seats()
    guest, other = Guest(new_id()), Guest(new_id())
    seats.add(guest)
    assert seats.find(guest.id) is guest
    assert seats.find(other.id) is None
    assert len(seats) == 1
    with pytest.raises(KeyError):
        seats.remove(other)
    seats.remove(guest)
    assert seats.find(guest.id) is None
    with pytest.raises(KeyError):
        seats.remove(guest)
    assert len(seats) == 0


@pytest.mark.parametrize("ident", ["", "x", "x" * 36, "é" * 36, "\ud800" * 36, new_id().upper()])
def test_any_text_may_be_looked_for(ident: str) -> None:
    seats: Seats[Guest] = Seats()
    guest = Guest(ident.lower()) if ident.lower().count("-") == 4 else Guest(new_id())
    seats.add(guest)
    if ident != guest.id:
        assert seats.find(ident) is None


def test_a_seat_is_listed_once_and_under_one_id() -> None:
    seats: Seats[Guest] = Seats()
    elsewhere: Seats[Guest] = Seats()
    guest = Guest(new_id())
    seats.add(guest)
    for taken in (guest, Guest(guest.id)):
        with pytest.raises(ValueError, match="is known already"):
            seats.add(taken)
    with pytest.raises(ValueError, match="is known already"):
        elsewhere.add(guest)
    with pytest.raises(ValueError, match="known by its id"):
        guest.id = new_id()
    seats.remove(guest)
    guest.id = new_id()
    seats.add(guest)
    assert seats.find(guest.id) is guest


def test_seats_that_nobody_holds_any_more_let_go() -> None:
    guests = [Guest(new_id()) for _ in range(300)]
    held = [sys.getrefcount(guest) for guest in guests]
    seats: Seats[Guest] = Seats()
    for guest in guests:
        seats.add(guest)
    del seats, guest
    assert [sys.getrefcount(guest) for guest in guests] == held
    again: Seats[Guest] = Seats()
    for guest in guests:
        again.add(guest)  # it is listed nowhere any more
    assert len(again) == 300


def test_many_seats_are_like_a_dict() -> None:
    dice = random.Random(7)
    seats: Seats[Guest] = Seats()
    model: dict[str, Guest] = {}
    # Ids that begin alike share a head.
    idents = [new_id() for _ in range(2_000)]
    idents += [f"00000000{new_id()[8:]}" for _ in range(200)]
    for _ in range(10_000):
        ident = dice.choice(idents)
        known = model.pop(ident, None)
        if known is None:
            model[ident] = Guest(ident)
            seats.add(model[ident])
        else:
            seats.remove(known)
        assert len(seats) == len(model)
    for ident in idents:
        assert seats.find(ident) is model.get(ident)
