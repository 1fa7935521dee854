"""The fault proxy does to connections what it says, and undoes it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ..support.fault_proxy import FaultProxy, Side
from ..support.server import eventually

pytestmark = pytest.mark.integration

SOON = 0.3
"""Seconds in which octets come that nothing holds back."""


class Echo:
    """A server that says what it hears, and remembers the sizes of what it read."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.ended = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._open: list[socket.socket] = []
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while data := client.recv(65_536):
                self.reads.append(len(data))
                client.sendall(data)
        self.ended += 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self._open:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.address) as proxy:
        yield proxy


@contextlib.contextmanager
def connected(proxy: FaultProxy, within: float = 2.0) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), within) as client:
        client.settimeout(within)
        yield client


def ask(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    return read(client, len(data))


def read(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = client.recv(size - len(found))
        assert piece, "the end came early"
        found += piece
    return found


def silent(client: socket.socket) -> bool:
    client.settimeout(SOON)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(2.0)
    return False


def test_without_a_fault_it_passes_on_everything(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 4096
    with connected(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        assert read(client, len(data)) == data
        sender.join()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert proxy.accepted == 1
    assert (proxy.octets(Side.SERVER), proxy.octets(Side.CLIENT)) == (len(data), len(data))
    eventually(lambda: proxy.live == 0, "no connection is left")
    assert proxy.cuts == 0


def test_delay_is_per_octet_and_not_per_read(proxy: FaultProxy) -> None:
    with connected(proxy) as client:
        ask(client, b"warm")
        proxy.slow(0.1, jitter=0.02)
        began = time.monotonic()
        for _ in range(10):
            client.sendall(b"x" * 100)
            time.sleep(0.005)
        read(client, 1000)
        took = time.monotonic() - began
        assert 0.2 <= took < 0.8, took
        proxy.heal()
        began = time.monotonic()
        ask(client, b"fast")
        assert time.monotonic() - began < 0.1


def test_bandwidth_towards_one_side(proxy: FaultProxy) -> None:
    with connected(proxy) as client:
        proxy.slow(bandwidth=20_000, towards=Side.CLIENT)
        began = time.monotonic()
        ask(client, b"x" * 10_000)
        assert 0.4 <= time.monotonic() - began < 2.0


def test_slices_arrive_one_by_one(echo: Echo, proxy: FaultProxy) -> None:
    proxy.slice(1, towards=Side.SERVER)
    with connected(proxy) as client:
        assert ask(client, b"abcdefghij") == b"abcdefghij"
    assert max(echo.reads) < 10, echo.reads


@pytest.mark.parametrize("towards", [None, Side.CLIENT, Side.SERVER])
def test_a_blackhole_is_silent_and_forgets_nothing(
    echo: Echo, proxy: FaultProxy, towards: Side | None
) -> None:
    with connected(proxy) as client:
        ask(client, b"before")
        proxy.blackhole(towards=towards)
        client.sendall(b"within")
        assert silent(client)
        assert sum(echo.reads) == (12 if towards is Side.CLIENT else 6)
        proxy.heal()
        assert read(client, 6) == b"within"
        assert ask(client, b"after") == b"after"
    assert proxy.cuts == 0


def test_a_blackhole_does_not_answer_new_connections(proxy: FaultProxy) -> None:
    proxy.blackhole()
    with pytest.raises(TimeoutError), connected(proxy, within=SOON):
        pass
    proxy.heal()
    with connected(proxy) as client:
        assert ask(client, b"again") == b"again"
    assert proxy.accepted == 1


def test_a_one_way_blackhole_answers_new_connections(proxy: FaultProxy) -> None:
    proxy.blackhole(towards=Side.CLIENT)
    with connected(proxy) as client:
        client.sendall(b"lost?")
        assert silent(client)
        proxy.heal()
        assert read(client, 5) == b"lost?"


def test_a_cut_resets_both_sides(echo: Echo, proxy: FaultProxy) -> None:
    with connected(proxy) as client:
        ask(client, b"x")
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        eventually(lambda: echo.ended == 1, "the server knows")
    assert (proxy.live, proxy.cuts) == (0, 1)
    with connected(proxy) as client:
        assert ask(client, b"y") == b"y"


def test_refused_connections_and_old_ones(proxy: FaultProxy) -> None:
    with connected(proxy) as client:
        ask(client, b"x")
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError), connected(proxy):
            pass
        assert ask(client, b"y") == b"y"
    port = proxy.port
    proxy.heal()
    assert proxy.port == port
    with connected(proxy) as client:
        assert ask(client, b"z") == b"z"


@pytest.mark.parametrize("side", Side)
def test_half_open(echo: Echo, proxy: FaultProxy, side: Side) -> None:
    with connected(proxy) as client:
        ask(client, b"x")
        assert proxy.forget(side) == 1
        if side is Side.SERVER:
            eventually(lambda: echo.ended == 1, "the server has forgotten the client")
            client.sendall(b"are you there?")
            assert silent(client)
        else:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert echo.ended == 0
        with connected(proxy) as other:
            assert ask(other, b"y") == b"y"
        proxy.heal()
        if side is Side.SERVER:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        eventually(lambda: echo.ended == 2, "both are gone")


def test_a_limit_of_octets(proxy: FaultProxy) -> None:
    proxy.limit(7, towards=Side.CLIENT)
    with connected(proxy) as client:
        client.sendall(b"0123456789")
        eventually(lambda: proxy.live == 0, "the connection is reset")
        with pytest.raises(ConnectionResetError):
            read(client, 10)
    assert (proxy.octets(Side.CLIENT), proxy.cuts) == (7, 1)


def test_without_a_server_clients_are_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = closed.getsockname()
    with FaultProxy(address) as proxy:
        # It may be as early as the connect itself.
        with pytest.raises(ConnectionResetError), connected(proxy) as client:
            client.recv(1)


def test_close_twice_and_with_connections(echo: Echo) -> None:
    proxy = FaultProxy(echo.address)
    with connected(proxy) as client:
        ask(client, b"x")
        proxy.close()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
