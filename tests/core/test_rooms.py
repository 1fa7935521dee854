"""Rooms: who is in them, who hears what, and that large ones behave like small ones."""

from __future__ import annotations

import random
from typing import Final

import pytest

from falcon_fast._core import Core
from falcon_fast.codes import CloseReason

from ..support.core import CoreFactory, Rig
from ..support.frames import says
from ..support.transport import FakeTransport
from .conftest import NATIVE

LARGE: Final = 4400
"""More members than a sorted array holds; the native core then changes to a bitset."""


def test_join_and_leave(rig: Rig) -> None:
    core = rig.core
    one, other = rig.connect("one"), rig.connect("other")
    first, second = core.open_room(), core.open_room()
    assert first != second
    assert core.join(one.handle, first) == 1
    assert core.join(one.handle, first) == 0
    assert core.join(one.handle, second) == 1
    assert core.join(other.handle, second) == 1
    assert core.rooms_of(one.handle) == [first, second]
    assert core.room_count(one.handle) == 2
    assert sorted(core.members(second)) == ["one", "other"]
    assert (core.member_count(first), core.member_count(second)) == (1, 2)
    assert core.is_member(one.handle, first)
    assert not core.is_member(other.handle, first)
    assert core.leave(one.handle, first) is True
    assert core.leave(one.handle, first) is False
    assert core.members(first) == []
    assert core.rooms_of(one.handle) == [second]


def test_rooms_that_do_not_exist(rig: Rig) -> None:
    core, peer = rig.core, rig.connect()
    closed_room = core.open_room()
    core.close_room(closed_room)
    for room in (closed_room, 0, 10**6):
        for call in (
            lambda room=room: core.join(peer.handle, room),
            lambda room=room: core.leave(peer.handle, room),
            lambda room=room: core.is_member(peer.handle, room),
            lambda room=room: core.member_count(room),
            lambda room=room: core.members(room),
            lambda room=room: core.fan_out(room, b"x"),
            lambda room=room: core.close_room(room),
        ):
            with pytest.raises(ValueError, match=r"no such room|there is no room"):
                call()


def test_close_room_wants_an_empty_one(rig: Rig) -> None:
    room, peer = rig.core.open_room(), rig.connect()
    rig.core.join(peer.handle, room)
    with pytest.raises(ValueError, match="members"):
        rig.core.close_room(room)
    rig.core.fan_out(room, b"last")
    rig.core.close(peer.handle, CloseReason.NORMAL)
    rig.core.close_room(room)
    assert peer.frames()[0] == says("last")


def test_a_new_room_with_an_old_number_is_empty_and_silent(rig: Rig) -> None:
    core, peer = rig.core, rig.connect()
    old = core.open_room()
    core.join(peer.handle, old)
    core.fan_out(old, b"said in the old one")
    core.leave(peer.handle, old)
    core.close_room(old)
    new = core.open_room()
    assert core.member_count(new) == 0
    core.join(peer.handle, new)
    rig.turn()
    assert peer.frames() == [says("said in the old one")]


def test_r07_rooms_of_a_connection_are_limited(make: CoreFactory) -> None:
    rig = Rig(make, {"max_rooms": 3})
    peer = rig.connect()
    rooms = [rig.core.open_room() for _ in range(4)]
    assert [rig.core.join(peer.handle, room) for room in rooms] == [1, 1, 1, -1]
    assert rig.core.join(peer.handle, rooms[0]) == 0
    rig.core.leave(peer.handle, rooms[1])
    assert rig.core.join(peer.handle, rooms[3]) == 1
    assert rig.core.rooms_of(peer.handle) == [rooms[0], rooms[2], rooms[3]]


def test_many_rooms_keep_their_order(rig: Rig) -> None:
    peer = rig.connect()
    rooms = [rig.core.open_room() for _ in range(512)]
    dice = random.Random(1)
    dice.shuffle(rooms)
    assert all(rig.core.join(peer.handle, room) == 1 for room in rooms)
    assert rig.core.join(peer.handle, rig.core.open_room()) == -1
    assert rig.core.rooms_of(peer.handle) == rooms
    for room in rooms[::3]:
        assert rig.core.leave(peer.handle, room)
    kept = [room for index, room in enumerate(rooms) if index % 3]
    assert rig.core.rooms_of(peer.handle) == kept
    for room in kept:
        rig.core.fan_out(room, b"%d" % room)
    rig.turn()
    assert peer.frames() == [says(str(room)) for room in kept]


def test_z04_who_joins_hears_nothing_that_was_said_before(rig: Rig) -> None:
    room, old, new = rig.core.open_room(), rig.connect("old"), rig.connect("new")
    rig.core.join(old.handle, room)
    rig.core.send(new.handle, b"1 mine")
    rig.core.fan_out(room, b"2 before")
    rig.core.join(new.handle, room)
    rig.core.send(new.handle, b"3 mine")
    rig.core.fan_out(room, b"4 after")
    rig.turn()
    assert new.frames() == [says("1 mine"), says("3 mine"), says("4 after")]
    assert old.frames() == [says("2 before"), says("4 after")]


def test_z04_who_leaves_hears_everything_until_then_and_nothing_after(rig: Rig) -> None:
    room, other = rig.core.open_room(), rig.core.open_room()
    peer, stays = rig.connect("leaves"), rig.connect("stays")
    for number in (peer.handle, stays.handle):
        rig.core.join(number, room)
        rig.core.join(number, other)
    rig.core.fan_out(other, b"1")
    rig.core.fan_out(room, b"2")
    rig.core.send(peer.handle, b"3")
    rig.core.leave(peer.handle, room)
    rig.core.fan_out(room, b"4")
    rig.core.fan_out(other, b"5")
    rig.core.broadcast(b"6")
    rig.turn()
    assert peer.frames() == [says(word) for word in "12356"]
    assert stays.frames() == [says(word) for word in "12456"]


def test_z04_in_and_out_within_one_tick(rig: Rig) -> None:
    room, peer, stays = rig.core.open_room(), rig.connect("a"), rig.connect("b")
    rig.core.join(stays.handle, room)
    for number in range(10):
        rig.core.fan_out(room, b"%d" % number)
        if number in (1, 5, 8):
            rig.core.join(peer.handle, room)
        if number in (3, 6):
            rig.core.leave(peer.handle, room)
    rig.turn()
    assert peer.frames() == [says(word) for word in "2369"]
    assert stays.frames() == [says(word) for word in "0123456789"]


def test_z04_who_connects_does_not_hear_what_was_broadcast_before(rig: Rig) -> None:
    rig.connect("old")
    rig.core.broadcast(b"before")
    peer = rig.connect("new")
    rig.core.broadcast(b"after")
    rig.turn()
    assert peer.frames() == [says("after")]


def test_who_is_closed_hears_what_was_said_before(rig: Rig) -> None:
    room, peer = rig.core.open_room(), rig.connect()
    rig.core.join(peer.handle, room)
    rig.core.fan_out(room, b"1")
    rig.core.broadcast(b"2")
    rig.core.close(peer.handle, CloseReason.NORMAL)
    rig.core.fan_out(room, b"3")
    rig.turn()
    assert peer.frames()[:2] == [says("1"), says("2")]
    assert len(peer.frames()) == 0


def test_every_member_hears_its_own_rooms_in_the_order_of_saying(rig: Rig) -> None:
    dice = random.Random(7)
    rooms = [rig.core.open_room() for _ in range(8)]
    peers = [rig.connect(str(number)) for number in range(60)]
    membership = {peer.owner: {r for r in rooms if dice.random() < 0.4} for peer in peers}
    for peer in peers:
        for room in membership[peer.owner]:
            rig.core.join(peer.handle, room)
    for turn in range(5):
        expected: dict[str, list[str]] = {peer.owner: [] for peer in peers}
        for number in range(40):
            words = f"{turn}.{number}"
            if number % 7 == 0:
                chosen = dice.choice(peers)
                rig.core.send(chosen.handle, words.encode())
                expected[chosen.owner].append(words)
                continue
            room = dice.choice(rooms)
            rig.core.fan_out(room, words.encode())
            for owner, its_rooms in membership.items():
                if room in its_rooms:
                    expected[owner].append(words)
        rig.turn()
        for peer in peers:
            assert peer.frames() == [says(words) for words in expected[peer.owner]]


def test_a_large_room_behaves_like_a_small_one() -> None:
    rig = Rig(NATIVE, {"max_connections": LARGE})
    core, dice = rig.core, random.Random(3)
    room, small = core.open_room(), core.open_room()
    peers = {}
    for number in range(LARGE):
        owner = str(number)
        peer = rig.connect(owner)
        peers[owner] = peer
        assert core.join(peer.handle, room) == 1
    assert core.members(room) == list(peers)
    first = [peers[str(number)] for number in range(0, LARGE, 100)]
    for peer in first:
        core.join(peer.handle, small)

    inside = dict(peers)
    order = list(peers)
    dice.shuffle(order)
    marks = {4097, 4096, 4095, 2049, 2048, 2047, 2046, 1, 0}
    while True:
        if len(inside) in marks:
            words = b"%d inside" % len(inside)
            assert core.member_count(room) == len(inside)
            assert sorted(core.members(room)) == sorted(inside)
            assert core.fan_out(room, words) == len(inside)
            core.fan_out(small, b"small")
            rig.turn()
            for owner, peer in peers.items():
                heard = [says(words)] if owner in inside else []
                assert peer.frames() == heard + [says("small")] * (int(owner) % 100 == 0)
        if not order:
            break
        owner = order.pop()
        assert core.is_member(peers[owner].handle, room)
        assert core.leave(peers[owner].handle, room)
        assert not core.is_member(peers[owner].handle, room)
        assert not core.leave(peers[owner].handle, room)
        del inside[owner]
    # And back in again, over the same marks.
    for number, owner in enumerate(peers):
        assert core.join(peers[owner].handle, room) == 1
        assert core.member_count(room) == number + 1
    assert core.members(room) == list(peers)
    assert core.owners() == list(peers)
    core.fan_out(room, b"all")
    core.shutdown()
    assert core.member_count(room) == 0


def test_owners_can_be_read_in_pages_while_they_come_and_go() -> None:
    rig = Rig(NATIVE)
    core = rig.core
    assert isinstance(core, Core)
    assert core.owners_from(0, 10) == ([], -1)
    peers = [rig.connect(str(number)) for number in range(10)]
    assert core.owners_from(0, 10) == ([str(number) for number in range(10)], -1)
    assert core.owners_from(0, 3) == (["0", "1", "2"], 3)
    core.close(peers[1].handle, CloseReason.NORMAL)
    core.abort(peers[3].handle, CloseReason.NORMAL)
    core.abort(peers[5].handle, CloseReason.NORMAL)
    newcomer = rig.connect("new", paused=True)
    page, at = core.owners_from(3, 4)
    assert sorted(page) == ["4", "6", "7", "new"]
    page, at = core.owners_from(at, 4)
    assert (page, at) == (["8", "9"], -1)
    for beyond in (10, 11, 65536, 2**31):
        assert core.owners_from(beyond, 5) == ([], -1)
    assert core.owners_from(-5, 1)[0] == ["0"]
    assert newcomer.alive()


def test_the_last_slot_is_a_slot_like_any_other() -> None:
    rig = Rig(NATIVE, {"max_connections": 65536})
    rooms = [rig.core.open_room() for _ in range(2)]
    transport = FakeTransport()
    peers = [rig.connect(str(number), transport=transport) for number in range(65535)]
    last = rig.connect("last")
    with pytest.raises(ConnectionError):
        rig.connect("one too many")
    assert rig.core.count == 65536
    assert rig.core.join(last.handle, rooms[0]) == 1
    assert rig.core.join(peers[0].handle, rooms[0]) == 1
    assert rig.core.fan_out(rooms[0], b"x") == 2
    assert rig.core.broadcast(b"y") == 65536
    rig.turn()
    assert last.frames() == [says("x"), says("y")]
    assert len(transport.written) == 65535 * 3 + 3
    last.link.connection_lost(None)
    assert rig.core.members(rooms[0]) == ["0"]
    assert rig.core.count == 65535
