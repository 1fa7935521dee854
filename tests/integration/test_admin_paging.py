"""Listings in pages, while connections come and go."""

from __future__ import annotations

import random
import time
from typing import Any, Final

import pytest

from ..support.admin import Admin
from ..support.client import Client
from ..support.server import ServerProcess, eventually

pytestmark = pytest.mark.integration

STAYING: Final = 40


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"FALCON_MAX_CONNECTIONS_PER_USER": "1000"}


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> Admin:
    return Admin(server)


def page(admin: Admin, path: str, cursor: str | None) -> dict[str, Any]:
    document = admin.get(path + (f"&cursor={cursor}" if cursor else "")).json
    assert ("next_cursor" in document) or len(document) == 2
    return document


@pytest.mark.parametrize("query", ["", "room_id=user:pager&", "user_id=pager&character_id=1&"])
def test_a_staying_connection_is_listed_exactly_once(
    server: ServerProcess, admin: Admin, query: str
) -> None:
    chance = random.Random(7)
    people: dict[str, Client] = {}

    def come() -> None:
        client = server.connect("pager", 1)
        people[client.id] = client

    def go(ident: str) -> None:
        people.pop(ident).close()

    for _ in range(2 * STAYING):
        come()
    staying = set(chance.sample(sorted(people), STAYING))
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        document = page(admin, f"/websocket/connections?{query}limit=7", cursor)
        assert len(document["connections"]) <= 7
        seen += [one["id"] for one in document["connections"]]
        pages += 1
        cursor = document.get("next_cursor")
        if cursor is None:
            break
        # Some who were listed, and some who were not yet, go; others come into their places.
        for ident in chance.sample(sorted(people.keys() - staying), 3):
            go(ident)
        for _ in range(3):
            come()
    assert pages >= STAYING / 7
    assert [ident for ident in staying if seen.count(ident) != 1] == []
    assert len(seen) == len(set(seen))
    for ident in list(people):
        go(ident)
    eventually(lambda: server.connections() == 0, "everybody is gone")


def test_rooms_in_pages(server: ServerProcess, admin: Admin) -> None:
    clients = [server.connect(f"guest-{number}", number) for number in range(1, 26)]
    for query in ("", "type=personal&"):
        found: list[str] = []
        cursor: str | None = None
        while True:
            document = page(admin, f"/websocket/rooms?{query}limit=10", cursor)
            assert document["total"] == 25
            found += [room["id"] for room in document["rooms"]]
            cursor = document.get("next_cursor")
            if cursor is None:
                break
        assert sorted(found) == sorted(f"user:guest-{number}" for number in range(1, 26))
    for client in clients:
        client.close()
    eventually(lambda: server.connections() == 0, "everybody is gone")


def test_w06_a_cursor_belongs_to_its_listing(server: ServerProcess, admin: Admin) -> None:
    clients = [server.connect("pager", 1) for _ in range(3)]
    cursor = page(admin, "/websocket/connections?limit=2", None)["next_cursor"]
    assert page(admin, "/websocket/connections?limit=1", cursor)["connections"] != []
    for path in (
        f"/websocket/connections?user_id=pager&cursor={cursor}",
        f"/websocket/rooms?cursor={cursor}",
        f"/websocket/connections?cursor={cursor[:-1]}",
        f"/websocket/connections?cursor={cursor}A",
        f"/websocket/connections?cursor={'B' if cursor[0] == 'A' else 'A'}{cursor[1:]}",
    ):
        assert admin.get(path).locations == ["query.cursor"]
    for client in clients:
        client.close()
    eventually(lambda: server.connections() == 0, "everybody is gone")


def test_w06_a_large_page_is_quick(server: ServerProcess, admin: Admin) -> None:
    clients = [server.connect(f"pager-{number}", number) for number in range(300)]
    admin.get("/websocket/connections?limit=1000")
    began = time.perf_counter()
    document = admin.get("/websocket/connections?limit=1000").json
    took = time.perf_counter() - began
    assert len(document["connections"]) == 300
    # The loop stands still for less than that: this is the whole way there and back.
    assert took < 0.3
    for client in clients:
        client.close()
    eventually(lambda: server.connections() == 0, "everybody is gone")
