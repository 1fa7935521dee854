"""Revoking: in force at once, kept in the end, heard by others, and closing who is connected."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace

import pytest

from falcon_fast import gateway as module
from falcon_fast.codes import CloseReason
from falcon_fast.errors import AuthError, BusUnavailable, NotFoundError
from falcon_fast.handshake import Accept
from falcon_fast.identity import Identity
from falcon_fast.revocation import GRACE, Revocation
from falcon_fast.revocations import Listener

from ..support.gateway import ADDRESS, KEY, Client, Node, said
from ..support.loop import FakeTimeLoop, turns
from ..support.transport import FakeTransport

loop_factory = FakeTimeLoop

LIFETIME = 86_400


class Store:
    """A store in memory that several nodes share, and that fails when it is told to."""

    def __init__(self) -> None:
        self.rules: dict[str, Revocation] = {}
        self.listeners: list[Listener] = []
        self.is_cut = False
        self.saves = 0
        self.gate: asyncio.Event | None = None

    async def start(self, listener: Listener) -> None:
        self.listeners.append(listener)
        if not self.is_cut:
            listener.compare(list(self.rules.values()))

    async def save(self, rule: Revocation) -> None:
        self.saves += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.is_cut:
            raise BusUnavailable("cut")
        if rule.withdrawn or rule.id not in self.rules:
            self.rules[rule.id] = rule
        for listener in self.listeners:
            listener.heard([rule])

    async def forget(self, idents: Collection[str]) -> None:
        if self.is_cut:
            raise BusUnavailable("cut")
        for ident in idents:
            self.rules.pop(ident, None)

    async def close(self) -> None:
        self.listeners.clear()

    def compare(self, rules: Sequence[Revocation] | None = None) -> None:
        for listener in self.listeners:
            listener.compare(list(self.rules.values()) if rules is None else rules)


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[Store], Node]]:
    nodes: list[Node] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    monkeypatch.setattr(module, "SWEEP_BATCH", 4)

    def made(store: Store) -> Node:
        nodes.append(Node(store=store, jwt_max_lifetime=LIFETIME))
        return nodes[-1]

    yield made
    for node in nodes:
        await node.revoker.close()
        await node.gateway.close()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def node(make: Callable[[Store], Node], store: Store) -> Node:
    found = make(store)
    await found.revoker.start()
    return found


def now(node: Node) -> int:
    return int(node.clock.time())


def dial(node: Node, identity: Identity) -> Client:
    """Let a client arrive behind its 101, with an identity of its own."""
    transport = FakeTransport()
    node.gateway.born(Accept(identity, KEY, None, ADDRESS), transport, b"")
    return Client(node, transport, identity.user_id)


async def connect(node: Node, user_id: str, *, token_id: str | None = None) -> Client:
    client = dial(node, replace(node.identity(user_id), token_id=token_id))
    await turns()
    assert client.is_open
    return client


# --- connections ----------------------------------------------------------------------------------


async def test_one_token_is_revoked(node: Node, store: Store) -> None:
    clients = [await connect(node, f"u{n}", token_id=f"t{n}") for n in range(10)]
    rule = await node.revoker.revoke_token("t7", expires_at=now(node) + 60)
    await turns()
    assert [client.closed for client in clients] == [
        said(CloseReason.REVOKED) if n == 7 else None for n in range(10)
    ]
    assert (rule.kind, rule.target, rule.expires_at) == ("token", "t7", now(node) + 60)
    assert store.rules == {rule.id: rule}
    assert node.gateway.closes[CloseReason.REVOKED] == 1


async def test_a_users_tokens_are_revoked(node: Node) -> None:
    ann, ann2, bob = [await connect(node, user) for user in ("ann", "ann", "bob")]
    rule = await node.revoker.revoke_user("ann")
    # At once: within the call.
    assert ann.closed == ann2.closed == said(CloseReason.REVOKED)
    assert rule.issued_before == now(node) + 1
    assert rule.expires_at == rule.issued_before + LIFETIME
    await turns()
    assert bob.is_open
    # Who logs in again gets a token of a later second.
    token = node.token("ann")
    with pytest.raises(AuthError, match="token is revoked"):
        node.gateway.verify(token)
    await asyncio.sleep(1)
    assert node.gateway.verify(node.token("ann")).user_id == "ann"
    await connect(node, "ann")


async def test_only_tokens_issued_before_are_revoked(node: Node) -> None:
    before = await connect(node, "ann")
    await asyncio.sleep(5)
    after = await connect(node, "ann")
    await node.revoker.revoke_user("ann", issued_before=now(node))
    await turns()
    assert before.closed == said(CloseReason.REVOKED)
    assert after.is_open


async def test_all_tokens_are_revoked(node: Node) -> None:
    old = [await connect(node, f"u{n}") for n in range(9)]
    await asyncio.sleep(5)
    new = await connect(node, "new")
    await node.revoker.revoke_all(now(node))
    await turns(30)
    assert {client.closed for client in old} == {said(CloseReason.REVOKED)}
    assert new.is_open
    await node.revoker.revoke_all()
    await asyncio.sleep(0.5)
    assert new.closed == said(CloseReason.REVOKED)


async def test_revocations_that_come_one_by_one_share_a_look_at_all_connections(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = [await connect(node, f"u{n}", token_id=f"t{n}") for n in range(20)]
    passes = 0
    genuine = node.gateway.core.owners

    def owners() -> list[object]:
        nonlocal passes
        passes += 1
        return genuine()  # type: ignore[return-value]

    monkeypatch.setattr(node.gateway, "core", Counting(node.gateway.core, owners))
    for number in range(20):
        await node.revoker.revoke_token(f"t{number}")
    await asyncio.sleep(1)
    assert {client.closed for client in clients} == {said(CloseReason.REVOKED)}
    assert passes <= 3


class Counting:
    """The core, but for one method."""

    def __init__(self, core: object, owners: Callable[[], list[object]]) -> None:
        self._core = core
        self.owners = owners

    def __getattr__(self, name: str) -> object:
        return getattr(self._core, name)


@pytest.mark.parametrize("kind", ["token", "user", "all"])
@pytest.mark.parametrize("step", ["long before", "before", "born", "open"])
async def test_a_revocation_racing_with_a_connection_A15(node: Node, kind: str, step: str) -> None:
    """Revoked at each step from the check of the token to the admission: never left connected."""
    identity = node.gateway.verify(node.token("ann"))
    assert identity.token_id is not None

    async def revoke() -> None:
        if kind == "token":
            await node.revoker.revoke_token(identity.token_id or "")
        elif kind == "user":
            await node.revoker.revoke_user("ann")
        else:
            await node.revoker.revoke_all()

    if step.endswith("before"):  # between the check and the birth
        await revoke()
    if step == "long before":  # all connections were looked at already
        await asyncio.sleep(1)
    client = dial(node, identity)
    if step == "born":  # its groups are being looked up
        await revoke()
    await turns()
    if step == "open":
        assert client.is_open
        await revoke()
    await turns()
    assert client.closed == said(CloseReason.REVOKED)
    assert node.gateway.core.count == 0


async def test_a_connection_born_while_all_are_looked_at_A15(node: Node) -> None:
    """The look at all connections began before it was there; its birth asks for itself."""
    others = [await connect(node, f"u{n}") for n in range(20)]
    identity = node.gateway.verify(node.token("late"))
    await node.revoker.revoke_all()
    await asyncio.sleep(0)  # the first few were looked at
    late = dial(node, identity)
    await turns(30)
    assert late.closed == said(CloseReason.REVOKED)
    assert {client.closed for client in others} == {said(CloseReason.REVOKED)}


async def test_a_revoked_token_does_not_refresh_a_connection(node: Node) -> None:
    client = await connect(node, "ann")
    revoked = node.token("ann")
    token_id = node.gateway.verify(revoked).token_id
    assert token_id is not None
    await node.revoker.revoke_token(token_id)
    (answer,) = await client.ask({"type": "auth", "id": "1", "data": {"token": revoked}})
    assert (answer["type"], answer["data"]["code"]) == ("error", "forbidden")
    assert client.is_open
    # And one that was refreshed in time with a good one stays.
    await client.ask({"type": "auth", "id": "2", "data": {"token": node.token("ann")}})
    await turns()
    assert client.is_open


# --- the arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("token_id", ["", "x" * 129, "a\nb"])
async def test_token_ids_that_no_token_has(node: Node, token_id: str) -> None:
    with pytest.raises(ValueError, match="token_id must"):
        await node.revoker.revoke_token(token_id)


async def test_arguments_that_cannot_be_used(node: Node) -> None:
    with pytest.raises(ValueError, match="user_id must"):
        await node.revoker.revoke_user("a:b")
    for wrong in (0, -5, now(node) + 11):
        with pytest.raises(ValueError, match="issued_before must"):
            await node.revoker.revoke_all(wrong)
    with pytest.raises(ValueError, match="expires_at must"):
        await node.revoker.revoke_all(expires_at=-1)
    assert node.revoker.list() == []
    assert (await node.revoker.revoke_all(now(node) + 10)).issued_before == now(node) + 10


async def test_how_long_a_rule_is_kept(node: Node) -> None:
    revoker, start = node.revoker, now(node)
    assert (await revoker.revoke_token("t")).expires_at == start + 10 + LIFETIME
    assert (await revoker.revoke_token("t", expires_at=start + 5)).expires_at == start + 5
    # No token can live longer than that, whatever its issuer says.
    assert (await revoker.revoke_token("t", expires_at=10**11)).expires_at == start + 10 + LIFETIME
    for before in (1, start - 100, start):
        rule = await revoker.revoke_user("u", issued_before=before)
        assert rule.expires_at == start + LIFETIME
    assert (await revoker.revoke_all(start + 10)).expires_at == start + 10 + LIFETIME


async def test_a_token_that_has_expired_can_be_revoked(node: Node) -> None:
    """Logging out just after the end is no error, and the rule is soon gone."""
    await node.revoker.revoke_token("t", expires_at=now(node) - 1)
    assert len(node.revoker.list()) == 1
    await asyncio.sleep(61)
    assert node.revoker.list() == []


async def test_a_rule_is_forgotten_when_its_tokens_have_expired(node: Node, store: Store) -> None:
    await node.revoker.revoke_token("t", expires_at=now(node) + 100)
    await node.revoker.revoke_user("u", expires_at=now(node) + 100)
    await asyncio.sleep(100)
    assert len(store.rules) == len(node.revoker.list()) == 2
    await asyncio.sleep(GRACE + 60)
    assert store.rules == {}
    assert node.revoker.list() == []
    assert not node.revocations.any


# --- withdrawing ----------------------------------------------------------------------------------


async def test_a_rule_is_withdrawn(node: Node, store: Store) -> None:
    token = node.token("ann")
    rule = await node.revoker.revoke_user("ann")
    with pytest.raises(AuthError):
        node.gateway.verify(token)
    await node.revoker.withdraw(rule.id)
    assert node.gateway.verify(token).user_id == "ann"
    assert store.rules[rule.id].withdrawn
    assert node.revoker.list() == []
    for ident in (rule.id, "unheard-of"):
        with pytest.raises(NotFoundError, match="Revocation not found"):
            await node.revoker.withdraw(ident)


# --- other nodes ----------------------------------------------------------------------------------


async def test_every_node_hears_of_it_A14(make: Callable[[Store], Node], store: Store) -> None:
    one, two = make(store), make(store)
    for node in (one, two):
        await node.revoker.start()
    there = await connect(two, "ann", token_id="t")
    rule = await one.revoker.revoke_token("t")
    await turns()
    assert there.closed == said(CloseReason.REVOKED)
    await one.revoker.withdraw(rule.id)
    assert two.revoker.list() == []
    assert store.saves == 2


async def test_a_node_that_starts_later_knows_older_rules(
    make: Callable[[Store], Node], store: Store, node: Node
) -> None:
    await node.revoker.revoke_user("ann")
    late = make(store)
    await late.revoker.start()
    with pytest.raises(AuthError, match="token is revoked"):
        late.gateway.verify(late.token("ann"))


async def test_a_node_that_missed_the_news_closes_when_it_compares_A14(
    make: Callable[[Store], Node], store: Store, node: Node
) -> None:
    deaf = make(store)
    await deaf.revoker.start()
    store.listeners.pop()
    client = await connect(deaf, "ann")
    await node.revoker.revoke_user("ann")
    assert client.is_open
    deaf.revoker.compare(list(store.rules.values()))
    assert client.closed == said(CloseReason.REVOKED)


async def test_a_node_is_not_ready_before_it_knows_older_rules(
    make: Callable[[Store], Node], store: Store
) -> None:
    store.is_cut = True
    node = make(store)
    await node.revoker.start()
    assert not node.revocations.is_complete
    store.compare()
    assert node.revocations.is_complete


# --- a store that does not answer ----------------------------------------------------------------


async def test_without_the_store_it_is_in_force_here_and_kept_later(
    make: Callable[[Store], Node], store: Store, node: Node
) -> None:
    other = make(store)
    await other.revoker.start()
    client, there = await connect(node, "ann"), await connect(other, "ann")
    store.is_cut = True
    with pytest.raises(BusUnavailable):
        await node.revoker.revoke_user("ann")
    assert client.closed == said(CloseReason.REVOKED)
    assert there.is_open
    assert node.revoker.unsaved == 1
    # What the others have says nothing against it.
    store.compare()
    assert len(node.revoker.list()) == 1
    await asyncio.sleep(60)
    # Back-off: 1, 2, 4, 8, 15, 15 … seconds.
    assert 6 <= store.saves <= 9
    store.is_cut = False
    await asyncio.sleep(16)
    assert node.revoker.unsaved == 0
    assert there.closed == said(CloseReason.REVOKED)
    assert len(store.rules) == 1


async def test_a_rule_that_ends_before_it_could_be_kept_is_dropped(
    node: Node, store: Store
) -> None:
    store.is_cut = True
    with pytest.raises(BusUnavailable):
        await node.revoker.revoke_token("t", expires_at=now(node) + 5)
    await asyncio.sleep(120)
    assert node.revoker.unsaved == 0
    saves = store.saves
    await asyncio.sleep(60)
    assert store.saves == saves


async def test_a_call_that_is_cancelled_is_kept_all_the_same(node: Node, store: Store) -> None:
    store.gate = asyncio.Event()
    call = asyncio.ensure_future(node.revoker.revoke_token("t"))
    await turns()
    call.cancel()
    await turns()
    assert store.rules == {}
    store.gate = None
    await asyncio.sleep(2)
    assert [rule.target for rule in store.rules.values()] == ["t"]


async def test_what_the_store_has_lost_is_written_again(
    node: Node, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that restarts empty must not let revoked tokens in again."""
    rule = await node.revoker.revoke_user("ann")
    gone = await node.revoker.revoke_user("bob")
    await node.revoker.withdraw(gone.id)
    store.rules.clear()
    with caplog.at_level(logging.WARNING, logger="falcon_fast.revoker"):
        store.compare()
    assert [record.getMessage() for record in caplog.records] == [
        "revocations were lost and are written again"
    ]
    with pytest.raises(AuthError):
        node.gateway.verify(node.token("ann"))
    await asyncio.sleep(2)
    assert store.rules == {rule.id: rule, gone.id: replace(gone, withdrawn=True)}


async def test_what_is_over_is_cleared_out_of_the_store(node: Node, store: Store) -> None:
    """Also what another program left there, or a node that is gone."""
    over = Revocation(
        id="old",
        kind="token",
        target="t",
        issued_before=0,
        expires_at=now(node) - GRACE,
        created_at=0,
    )
    store.rules["old"] = over
    store.compare()
    assert node.revoker.list() == []
    store.is_cut = True
    await asyncio.sleep(61)
    assert "old" in store.rules
    store.is_cut = False
    await asyncio.sleep(60)
    assert store.rules == {}


async def test_a_second_close_does_nothing(make: Callable[[Store], Node], store: Store) -> None:
    node = make(store)
    await node.revoker.start()
    await node.revoker.close()
    await node.revoker.close()
