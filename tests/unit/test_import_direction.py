"""The direction of imports: every module has a layer, and imports point downwards only.

A new module without a row fails here, so where it stands is decided when it is written. The table
is explained in docs/explanation/architecture.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ..support import ROOT

# Low to high. A module may import what is below it; within a layer, whatever makes no circle.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "_core",
        "_version",
        "clock",
        "codes",
        "errors",
        "identity",
        "redis_url",
        "sqlite_file",
        "tasks",
    ),
    ("envelope", "jose", "logs", "revocation", "settings", "statistics"),
    ("bus", "directory", "registry", "revocations"),
    (
        *("auth", "cluster", "deflate", "handshake", "head", "jwks", "keys"),
        *("presence", "revoker", "rooms", "session", "throttle"),
        *(
            "directory.breaker",
            "directory.mongo",
            "directory.mongo_check",
            "directory.mongo_driver",
        ),
        *("directory.mongo_follow", "directory.mongo_lookup", "directory.mongo_rows"),
        *("directory.sqlite", "directory.sqlite_store", "directory.tasks"),
        *("bus.hub", "bus.node_link", "bus.node_pipe", "bus.node_registry", "bus.node_wire"),
        *("bus.memory", "bus.positions", "bus.redis", "bus.redis_address", "bus.redis_keeper"),
        *("bus.redis_link", "bus.redis_listener", "bus.redis_pair", "bus.redis_publisher"),
        *("bus.redis_facts", "bus.redis_registry", "bus.redis_wire", "bus.shards"),
        *("revocations.memory", "revocations.redis", "revocations.sqlite"),
    ),
    (
        *("admission", "doorstep", "driver", "gateway", "memberships", "neighbours"),
        *("registrar", "upgrade"),
    ),
    ("crew", "listings", "metrics", "service"),
    (
        *("admin", "admin.app", "admin.cursors", "admin.examples", "admin.listener"),
        *(
            "admin.openapi",
            "admin.pages",
            "admin.problems",
            "admin.routes",
            "admin.schemas",
            "admin.security",
        ),
    ),
    ("app", "checks", "demo", "process", "trial", "worker", "workers"),
    ("", "__main__", "cli", "testing"),
)

# Folders of ports. What is inside implements the port; it sees the port, what is below that, and
# its own folder. Only the assembly, and commands for the embedded directory, choose one.
PORTS = frozenset({"bus", "directory", "revocations"})
CHOOSERS = frozenset({"app", "checks", "cli", "demo", "process", "trial", "worker", "workers"})

# Modules that only compute: given the same input they return the same output, without a loop.
PURE = frozenset(
    {
        "_version",
        "auth",
        "bus.positions",
        "bus.node_wire",
        "bus.redis_wire",
        "bus.shards",
        "clock",
        "codes",
        "deflate",
        "directory.breaker",
        "directory.mongo_rows",
        "envelope",
        "errors",
        "handshake",
        "head",
        "identity",
        "jose",
        "keys",
        "redis_url",
        "revocation",
        "settings",
        "statistics",
    }
)
LOOP_AND_SOCKETS = frozenset({"asyncio", "picows", "select", "selectors", "socket", "uvloop"})

# A package of other makers -> the only modules that may import it.
ROOMS_OF_PACKAGES: dict[str, frozenset[str]] = {
    "aiohttp": frozenset({"admin", "admin.*", "jwks"}),
    "bson": frozenset({"directory.mongo_driver"}),
    "cryptography": frozenset({"keys"}),
    "hiredis": frozenset({"bus.redis_link", "bus.redis_listener", "bus.redis_publisher"}),
    "jwt": frozenset({"auth", "keys"}),
    "motor": frozenset({"directory.mongo_driver"}),
    "openapi_pydantic": frozenset({"admin.openapi"}),
    "pydantic": frozenset({"admin.*"}),
    "prometheus_client": frozenset({"metrics"}),
    "pymongo": frozenset({"directory.mongo_driver"}),
    "redis": frozenset(
        {
            "bus.redis",
            "bus.redis_address",
            "bus.redis_facts",
            "bus.redis_keeper",
            "bus.redis_link",
            "bus.redis_registry",
            "revocations.redis",
        }
    ),
    "sqlite3": frozenset({"directory.sqlite", "directory.sqlite_store", "revocations.sqlite"}),
}

LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}


def sources() -> dict[str, Path]:
    """Find the modules of the tree by their names inside falcon_fast; "" is the package itself."""
    found: dict[str, Path] = {}
    for base, prefix in ((ROOT / "falcon_fast", ()), (ROOT / "admin", ("admin",))):
        for path in base.rglob("*.py*"):
            relative = path.relative_to(base)
            # falcon_fast/admin is a link to admin/, which is walked on its own.
            if path.suffix not in {".py", ".pyx"} or relative.parts[0] == "admin":
                continue
            parts = (*prefix, *relative.with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()
# What has no row fails in one place, with its name, instead of in all tests.
KNOWN = sorted(SOURCES.keys() & LAYER_OF.keys())


def absolute(module: str, node: ast.ImportFrom, *, is_package: bool) -> str:
    """Return the full name that an import statement names, also when it is a relative one."""
    if node.level == 0:
        return node.module or ""
    parts = ["falcon_fast", *(module.split(".") if module else [])]
    up = node.level - (1 if is_package else 0)
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def imported(module: str, path: Path) -> Iterator[str]:
    """List the full names that a module imports, wherever in it the statement stands."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".pyx":
        # Cython is not Python; its import lines are.
        for line in re.findall(r"^\s*(?:from|c?import)\s+.*", text, flags=re.MULTILINE):
            yield line.split()[1].rstrip(",")
        return
    for node in ast.walk(ast.parse(text, filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = absolute(module, node, is_package=path.name == "__init__.py")
            for alias in node.names:
                # `from falcon_fast import codes` names a module, `… import Core` something in one.
                inner = f"{name}.{alias.name}"
                yield inner if inner.removeprefix("falcon_fast.") in LAYER_OF else name


def inside(name: str) -> str | None:
    """Return the name inside falcon_fast, None for other packages."""
    if name == "falcon_fast":
        return ""
    return name.removeprefix("falcon_fast.") if name.startswith("falcon_fast.") else None


def edges(module: str) -> set[str]:
    """List the modules of the house that a module imports."""
    names = (inside(name) for name in imported(module, SOURCES[module]))
    return {name for name in names if name is not None and name in LAYER_OF} - {module}


def port_of(module: str) -> str | None:
    """Return the port that a module implements, None for all other modules."""
    folder, dot, _ = module.partition(".")
    return folder if dot and folder in PORTS else None


def may_import(importer: str, target: str) -> bool:
    """Say whether the table lets one module import another."""
    if LAYER_OF[target] > LAYER_OF[importer]:
        return False
    if port_of(target) is not None:
        return port_of(target) == port_of(importer) or importer in CHOOSERS
    return LAYER_OF[target] < LAYER_OF[importer] or port_of(importer) is None


def is_room(module: str, rooms: frozenset[str]) -> bool:
    """Say whether a module is among rooms, where ``admin.*`` names all of a folder."""
    return module in rooms or f"{module.partition('.')[0]}.*" in rooms


def test_every_module_has_a_row() -> None:
    assert sorted(SOURCES.keys() - LAYER_OF.keys()) == []


def test_every_row_has_a_module() -> None:
    named = LAYER_OF.keys() | PURE | CHOOSERS
    assert sorted(named - SOURCES.keys()) == []


@pytest.mark.parametrize("module", KNOWN, ids=lambda name: name or "falcon_fast")
def test_imports_point_downwards(module: str) -> None:
    wrong = sorted(target for target in edges(module) if not may_import(module, target))
    assert wrong == []


def test_no_circle() -> None:
    order = list(TopologicalSorter({module: edges(module) for module in KNOWN}).static_order())
    assert set(KNOWN) <= set(order)


@pytest.mark.parametrize("module", KNOWN, ids=lambda name: name or "falcon_fast")
def test_packages_of_other_makers_stay_in_their_room(module: str) -> None:
    tops = {name.partition(".")[0] for name in imported(module, SOURCES[module])}
    wrong = sorted(
        top
        for top in tops & ROOMS_OF_PACKAGES.keys()
        if not is_room(module, ROOMS_OF_PACKAGES[top])
    )
    assert wrong == []


@pytest.mark.parametrize("module", sorted(PURE & SOURCES.keys()))
def test_pure_modules_know_no_loop_and_no_sockets(module: str) -> None:
    tops = {name.partition(".")[0] for name in imported(module, SOURCES[module])}
    assert sorted(tops & LOOP_AND_SOCKETS) == []


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("envelope", "codes", True),
        ("codes", "envelope", False),
        ("session", "rooms", True),
        ("bus.memory", "bus", True),
        ("bus.memory", "session", False),
        ("session", "directory.sqlite", False),
        ("gateway", "bus.memory", False),
        ("directory.sqlite", "directory.sqlite_store", True),
        ("directory.sqlite", "bus.memory", False),
        ("app", "directory.sqlite", True),
        ("service", "admin.app", False),
        ("gateway", "", False),
    ],
)
def test_the_rule_itself(importer: str, target: str, allowed: bool) -> None:
    assert may_import(importer, target) is allowed


def test_all_spellings_of_an_import_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "memory.py"
    source.write_text(
        "import falcon_fast.codes\n"
        "from falcon_fast import clock\n"
        "from falcon_fast.errors import BusUnavailable\n"
        "from . import Bus\n"
        "from ..session import Session\n"
        "from .. import rooms\n"
        "def late():\n"
        "    import redis.asyncio\n",
        encoding="utf-8",
    )
    assert sorted(imported("bus.memory", source)) == [
        "falcon_fast.bus",
        "falcon_fast.clock",
        "falcon_fast.codes",
        "falcon_fast.errors",
        "falcon_fast.rooms",
        "falcon_fast.session",
        "redis.asyncio",
    ]
