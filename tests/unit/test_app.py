"""The assembly: what it refuses to start with, and the order of start and stop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from falcon_fast import app, process
from falcon_fast.clock import SystemClock
from falcon_fast.errors import DirectoryUnavailable, FalconError, SettingsError
from falcon_fast.identity import new_id
from falcon_fast.settings import Settings
from falcon_fast.statistics import Statistics

SETTINGS = Settings(
    jwt_secret="a secret of tests that is long enough",
    host="127.0.0.1",
    sqlite_path=":memory:",
    max_connections=16,
)


# --- what it refuses ------------------------------------------------------------------------------


def test_nothing_is_wrong_with_the_embedded_defaults() -> None:
    app.refuse_unsupported(SETTINGS)


def test_workers_are_for_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SETTINGS, workers=3)
    monkeypatch.setattr("falcon_fast.process.sys.platform", "linux")
    app.refuse_unsupported(settings)
    monkeypatch.setattr("falcon_fast.process.sys.platform", "darwin")
    app.refuse_unsupported(SETTINGS)
    with pytest.raises(SettingsError) as caught:
        app.refuse_unsupported(settings)
    (problem,) = caught.value.problems
    assert problem.startswith("FALCON_WORKERS: 3, but only Linux ")
    assert problem.endswith("this is darwin; allowed here: 1")


async def test_running_refuses_before_it_opens_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("falcon_fast.process.sys.platform", "darwin")
    settings = dataclasses.replace(SETTINGS, workers=2, sqlite_path=str(tmp_path / "a.db"))
    with pytest.raises(SettingsError):
        async with app.running(settings):
            raise AssertionError("it runs")
    assert list(tmp_path.iterdir()) == []


# --- running --------------------------------------------------------------------------------------


class Fake:
    """Something that starts and closes, and notes it in a list they all share."""

    def __init__(self, name: str, log: list[str], fail: Exception | None = None) -> None:
        self.name = name
        self.log = log
        self.fail = fail
        self.url = f"{name}-url"
        self.drained = asyncio.Event()
        self.drained.set()

    async def start(self) -> None:
        self.log.append(f"start {self.name}")
        if self.fail is not None:
            raise self.fail

    async def close(self) -> None:
        self.log.append(f"close {self.name}")

    async def drain(self) -> None:
        self.log.append("drain")
        await self.drained.wait()

    async def run(self, work: object) -> str:
        self.log.append("seed")
        return "seeded"

    def statistics(self) -> Statistics:
        return Statistics(0, 3, 0, 0, 0, None)

    def __getattr__(self, name: str) -> str:
        # Whatever else is passed from one part to another.
        return f"{self.name}.{name}"


class House:
    """The assembly with all its parts replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.directory = Fake("directory", self.log)
        self.gateway = Fake("gateway", self.log)
        self.admin = Fake("admin", self.log)

        async def start_admin(*_: object, **__: object) -> Fake:
            await self.admin.start()
            return self.admin

        monkeypatch.setattr(process, "SqliteDirectory", lambda *_, **__: self.directory)
        monkeypatch.setattr(process, "Gateway", lambda *_, **__: self.gateway)
        for name in ("Service", "Metrics", "Gatekeeper"):
            part = Fake(name, self.log)
            monkeypatch.setattr(app, name, lambda *_, part=part, **__: part)
        monkeypatch.setattr(app, "start_admin", start_admin)
        monkeypatch.setattr(app, "set_up_logging", lambda **_: None)
        monkeypatch.setattr(app, "loop_factory", lambda: None)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    return House(monkeypatch)


STARTED = ["start directory", "start gateway", "start admin"]
CLOSED = ["close admin", "close gateway", "close directory"]


async def test_what_starts_last_is_closed_first(house: House) -> None:
    async with app.running(SETTINGS) as server:
        assert house.log == STARTED
        assert server.settings is SETTINGS
    assert house.log == STARTED + CLOSED


@pytest.mark.parametrize(
    "broken, log",
    [
        ("directory", STARTED[:1]),
        ("gateway", [*STARTED[:2], *CLOSED[1:]]),
        ("admin", [*STARTED, *CLOSED[1:]]),
    ],
)
async def test_what_was_started_is_closed_when_the_next_cannot_start(
    house: House, broken: str, log: list[str]
) -> None:
    part: Fake = getattr(house, broken)
    part.fail = DirectoryUnavailable("no")
    with pytest.raises(FalconError, match="no"):
        async with app.running(SETTINGS):
            raise AssertionError("it runs")
    assert house.log == log


async def test_a_falcon_says_goodbye_first(house: House) -> None:
    falcon = app.Falcon(SETTINGS)
    with pytest.raises(RuntimeError, match="async with"):
        _ = falcon.url
    async with falcon:
        assert (falcon.url, falcon.admin_url) == ("gateway-url", "admin-url")
        assert falcon.service.name == "Service"  # type: ignore[attr-defined]  # the fake
    assert house.log == [*STARTED, "drain", *CLOSED]
    with pytest.raises(RuntimeError, match="entered once"):
        await falcon.__aenter__()


def test_a_falcon_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", "another secret of tests, long enough")
    monkeypatch.setenv("FALCON_PORT", "4712")
    assert app.Falcon().settings.port == 4712


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture
def quiet_collector(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep the collector of the test run as it is."""
    called: list[str] = []
    for name in ("collect", "freeze", "set_threshold"):
        monkeypatch.setattr(f"falcon_fast.app.gc.{name}", lambda *_, name=name: called.append(name))
    return called


def run_with_signals(
    monkeypatch: pytest.MonkeyPatch, numbers: list[signal.Signals], *, dev: bool
) -> int:
    """Run the server; the signals are there as soon as it listens for them."""

    def add(self: object, number: int, callback: Callable[..., object], *values: object) -> None:
        if number == signal.SIGINT:
            for one in numbers:
                callback(one)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "add_signal_handler", add)
    return app.run(SETTINGS, dev=dev)


def test_a_signal_drains_and_ends_it(
    monkeypatch: pytest.MonkeyPatch, quiet_collector: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    house = House(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert run_with_signals(monkeypatch, [signal.SIGTERM], dev=False) == 0
    assert house.log == [*STARTED, "drain", *CLOSED]
    assert quiet_collector == ["collect", "freeze", "set_threshold"]
    draining = [one for one in caplog.records if one.getMessage() == "draining"]
    assert [getattr(one, "signal", None) for one in draining] == ["SIGTERM"]


def test_a_second_signal_ends_the_draining(
    monkeypatch: pytest.MonkeyPatch, quiet_collector: list[str]
) -> None:
    house = House(monkeypatch)
    house.gateway.drained.clear()
    assert run_with_signals(monkeypatch, [signal.SIGTERM, signal.SIGINT], dev=False) == 0
    assert house.log == [*STARTED, "drain", *CLOSED]


def test_dev_seeds_and_prints_the_banner(
    monkeypatch: pytest.MonkeyPatch, quiet_collector: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    house = House(monkeypatch)
    monkeypatch.setattr(
        "falcon_fast.app.demo.banner",
        lambda found, **more: f"{found} {more['public_url']} {more['now'] > 0}",
    )
    assert run_with_signals(monkeypatch, [signal.SIGINT], dev=True) == 0
    assert house.log == [*STARTED, "seed", "drain", *CLOSED]
    assert capsys.readouterr().out == "seeded gateway-url True\n"


def test_an_address_that_cannot_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    house.gateway.fail = OSError(98, "Address already in use")
    with pytest.raises(FalconError, match=r"^cannot listen on 127\.0\.0\.1:3000: Address already"):
        run_with_signals(monkeypatch, [], dev=False)
    assert house.log[-1] == "close directory"


async def test_a_secret_of_any_bytes_is_a_key_for_the_nodes() -> None:
    # What the environment holds that is no UTF-8 comes as lone surrogates.
    settings = dataclasses.replace(
        SETTINGS, jwt_secret="x" * 40 + "\udcff", redis_url="redis://127.0.0.1:1"
    )
    assert len(app._derived(settings, b"cursors") or b"") == 32
    bus, registry = app.bus_of(settings, node_id=new_id(), clock=SystemClock())
    assert registry is not None
    await bus.close()
    await registry.close()
