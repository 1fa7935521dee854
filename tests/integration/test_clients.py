"""The real server and clients of other makers: who is in the group hears it, nobody else does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ..support import ROOT
from .peers import (
    FLEET,
    FLEET_ROOM,
    Ear,
    PythonClient,
    Served,
    all_leaving,
    messages,
    node_ws,
    said,
    serve,
    without_time,
    wscat,
)

pytestmark = pytest.mark.integration

NOTICED_WITHIN: Final = 1.0
"""Seconds from the end of `falcon-fast member remove`; promised by its help text."""

BOB: Final = "90000002"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path) as served:
        yield served


async def test_members_hear_the_group_and_a_removed_member_no_longer(served: Served) -> None:
    """Python's `websockets`, wscat and a Node script with `ws` chat; an outsider listens."""
    carol_token = await asyncio.to_thread(served.newcomer, "carol", 90000011, "Carol", member=True)
    async with all_leaving() as clients:
        clients.append(await PythonClient.join("alice", served.url, served.token_of("Alice")))
        clients.append(await wscat("bob", served.url, served.token_of("Bob")))
        clients.append(await node_ws("carol", served.url, carol_token))
        clients.append(await PythonClient.join("admin", served.url, served.token_of("Admin")))
        ears = alice, bob, carol, outsider = [Ear(client) for client in clients]
        members = (alice, bob, carol)

        for ear, name in zip(members, ("demo-alice", "demo-bob", "carol"), strict=True):
            assert await ear.joined() == [f"user:{name}", FLEET_ROOM]
        assert FLEET_ROOM not in await outsider.joined()

        for sender in members:
            message = said(f"hello from {sender.client.name}")
            await sender.client.say(message)
            heard = [await ear.until("message") for ear in members]
            assert [without_time(frame) for frame in heard] == [message] * 3
            assert heard[0] == heard[1] == heard[2], "everybody hears the same"
        for ear in ears:
            assert messages(await ear.so_far()) == [], "nobody hears more"

        # The stranger is told that he may not, and nobody hears it.
        await outsider.client.say(said("let me in", ident="intruder"))
        refused = await outsider.until("error", code="forbidden")
        assert refused["id"] == "intruder"

        await asyncio.to_thread(served.command, "member", "remove", FLEET, BOB)
        removed = time.monotonic()
        change = await bob.until("group_membership_change", group_id=FLEET, joined=False)
        assert time.monotonic() - removed < NOTICED_WITHIN
        assert change["data"]["user_id"] == "demo-bob"  # type: ignore[index]

        await alice.client.say(said("without bob"))
        for ear in (alice, carol):
            assert without_time(await ear.until("message")) == said("without bob")
        # Bob is alive, hears his own room and nothing of the group.
        await bob.client.say(
            {"type": "message", "id": "note", "to": "user:demo-bob", "data": {"text": "to myself"}}
        )
        assert (await bob.until("message"))["id"] == "note"
        assert messages(await bob.so_far()) == []
        await bob.client.say(said("may I?", ident="shut-out"))
        assert (await bob.until("error", code="forbidden"))["id"] == "shut-out"
        for ear in (alice, carol, outsider):
            assert messages(await ear.so_far()) == []

        await asyncio.to_thread(served.command, "member", "add", FLEET, BOB)
        await bob.until("group_membership_change", group_id=FLEET, joined=True)
        await carol.client.say(said("welcome back"))
        for ear in members:
            assert without_time(await ear.until("message")) == said("welcome back")


async def test_clients_are_told_of_a_restart(served: Served) -> None:
    async with all_leaving() as clients:
        alice = await PythonClient.join("alice", served.url, served.token_of("Alice"))
        clients.append(alice)
        bob = await node_ws("bob", served.url, served.token_of("Bob"))
        clients.append(bob)
        for client in clients:
            await Ear(client).joined()
        begin = time.monotonic()
        assert await asyncio.to_thread(served.program.stop) == 0
        assert time.monotonic() - begin < 5.0
        farewell = {"closed": 1012, "reason": "service restart"}
        assert await alice.end() == farewell
        ear = Ear(bob)
        while (last := await ear.next()).get("type") == "room_update":
            pass
        assert last == farewell


def test_without_node_it_is_left_out_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A client that had joined before one was found to be missing was left open."""
    here = f"{__file__}::{test_clients_are_told_of_a_restart.__name__}"
    environment = {key: value for key, value in os.environ.items() if key != "FALCON_REQUIRE_ALL"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", here],
        cwd=ROOT,
        env={**environment, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60.0,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "node is missing" in done.stdout
    assert "1 skipped" in done.stdout
