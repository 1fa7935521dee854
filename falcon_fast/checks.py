"""What ``falcon-fast check`` tries: would the server start with these settings?

Nothing here changes anything: no file is made, and a port is let go as soon as it was got.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from falcon_fast.bus.redis_facts import facts
from falcon_fast.directory.sqlite_store import MEMORY, SqliteStore
from falcon_fast.errors import DirectoryUnavailable, FalconError, KeysUnavailable
from falcon_fast.jwks import fetch
from falcon_fast.keys import KeySet, PinnedKeys, keys_of
from falcon_fast.process import workers_problem
from falcon_fast.settings import Settings

__all__ = ["Result", "results"]

HIGHEST_RESERVED_PORT: Final = 1023
"""Ports up to here need a privilege on most systems."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one trial.

    Attributes:
        ok: Whether the server can use it.
        what: What was tried.
        explanation: What was found, and what to do about a problem.
    """

    ok: bool
    what: str
    explanation: str


def results(settings: Settings) -> Iterator[Result]:
    """Try everything the server needs, one after the other."""
    yield _tried("tokens", _tokens, settings)
    if settings.mongodb_uri is None:
        yield _tried("users and groups", _directory, settings)
    else:
        yield from _mongodb(settings, settings.mongodb_uri)
    yield _tried("other nodes", _bus, settings)
    yield _tried("processes", _processes, settings)
    yield _tried("certificate", _certificate, settings)
    yield _tried(
        "public port", lambda given: _port("FALCON_PORT", given.host, given.port), settings
    )
    yield _tried(
        "admin port",
        lambda given: _port("FALCON_ADMIN_PORT", given.admin_host, given.admin_port),
        settings,
    )


class _Problem(Exception):
    """A trial failed; the text is the explanation."""


def _tried(what: str, trial: Callable[[Settings], str], settings: Settings) -> Result:
    try:
        return Result(True, what, trial(settings))
    except (_Problem, FalconError) as problem:
        return Result(False, what, str(problem))


def _tokens(settings: Settings) -> str:
    keys = keys_of(settings)
    algorithms = ", ".join(settings.algorithms)
    if isinstance(keys, PinnedKeys):
        return f"{settings.jwt_public_key}: public keys for {algorithms}: {len(keys)}"
    if isinstance(keys, KeySet):
        url = settings.jwt_jwks_url or ""
        try:
            count = keys.replace(asyncio.run(fetch(url)))
        except (KeysUnavailable, ValueError) as problem:
            raise _Problem(
                f"JWT_JWKS_URL {url.partition('?')[0]}: {problem}; the server starts all the same, "
                "and refuses every token until it has keys"
            ) from problem
        return f"JWT_JWKS_URL answers: public keys for {algorithms}: {count}"
    if settings.jwt_secret_previous:
        return (
            "JWT_SECRET signs and is accepted, JWT_SECRET_PREVIOUS is still accepted: unset it "
            "when the last token signed with it has expired"
        )
    return "JWT_SECRET is long enough and is not a key of another kind"


def _directory(settings: Settings) -> str:
    path = settings.sqlite_path
    if path == MEMORY:
        return "kept in memory, and gone when the server stops"
    if not os.path.exists(path):
        folder = os.path.dirname(path) or "."
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _Problem(f"{path}: not there, and this user may not make files in {folder}")
        return f"{path} is not there yet; the server makes it"
    with SqliteStore(path, create=False) as store:
        found = store.counts()
    return (
        f"{path} opens and answers: users {found.users}, characters {found.characters}, "
        f"groups {found.groups}"
    )


def _mongodb(settings: Settings, uri: str) -> Iterator[Result]:
    # Late, since the drivers take longer to import than everything else.
    from falcon_fast.directory.mongo_check import examine
    from falcon_fast.directory.mongo_driver import MongoStore

    store = MongoStore(uri, settings.mongo_db, driver=settings.mongo_driver)
    try:
        found = asyncio.run(examine(store))
    except DirectoryUnavailable as problem:
        yield Result(False, "users and groups", str(problem))
        return
    counts = ", ".join(f"{name} {size}" for name, size in sorted(found.sizes.items()))
    yield Result(True, "users and groups", f"database {settings.mongo_db} answers: {counts}")
    if found.has_streams:
        yield Result(True, "changes", "followed with a change stream, and compared every minute")
    else:
        yield Result(
            True,
            "changes",
            "this MongoDB has no change streams, or not for this user: the server asks for new "
            "updated_at every second and compares every minute. A replica set, of one member too, "
            "tells changes at once",
        )
    if found.missing is None:
        yield Result(True, "indexes", "this user may not list them")
    elif found.missing:
        yield Result(
            False,
            "indexes",
            "missing, so every question reads a whole collection; create them in the shell: "
            + "; ".join(found.missing),
        )
    else:
        yield Result(True, "indexes", "all that questions need are there")


def _bus(settings: Settings) -> str:
    if settings.redis_url:
        found = asyncio.run(facts(settings.redis_url))
        if settings.bus_routing == "sharded" and not found.has_shards:
            raise _Problem(
                f"FALCON_BUS_ROUTING is sharded, which needs Redis 7 or newer; REDIS_URL leads to "
                f"{found.version or 'a server that does not say its version'}"
            )
        return f"Redis {found.version} answers; messages are {settings.bus_routing}"
    return "none: this is the only node"


def _processes(settings: Settings) -> str:
    problem = workers_problem(settings)
    if problem is not None:
        raise _Problem(problem)
    if settings.workers == 1:
        return "one"
    cores = os.cpu_count() or 1
    text = f"a node process and {settings.workers} workers on {cores} cores"
    if settings.workers > cores:
        raise _Problem(f"{text}; more workers than cores share what there is; set FALCON_WORKERS")
    return text


def _certificate(settings: Settings) -> str:
    if settings.tls_cert is None or settings.tls_key is None:
        return "none: clients connect with ws://, or with wss:// through a proxy that has one"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: without one OpenSSL would ask for it on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _Problem(
                f"FALCON_TLS_KEY: {settings.tls_key} is not the key of the certificate "
                f"{settings.tls_cert}"
            ) from error
        raise _Problem(
            f"FALCON_TLS_CERT {settings.tls_cert} and FALCON_TLS_KEY {settings.tls_key}: expected "
            f"a certificate chain and its key without a password, both in PEM format; OpenSSL "
            f"says {error.reason or 'nothing more'}"
        ) from error
    except (OSError, ValueError) as error:
        raise _Problem(f"FALCON_TLS_CERT, FALCON_TLS_KEY: {error}") from error
    return f"{settings.tls_cert} and its key load"


def _port(setting: str, host: str, port: int) -> str:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _Problem(f"{host}: this host name has no address here ({error})") from error
    family, _kind, _protocol, _name, address = addresses[0]
    try:
        # create_server sets SO_REUSEADDR where that means what the server itself gets.
        with socket.create_server(address[:2], family=family):
            pass
    except OSError as error:
        raise _Problem(f"{host}:{port}: {_reason(setting, port, error)}") from error
    if port == 0:
        return f"{host}: any free port, printed at the start"
    return f"{host}:{port} is free"


def _reason(setting: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            "in use; if it is a falcon_fast that is running, all is well, else stop the other "
            f"program or set {setting}"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "not an address of this machine"
    if error.errno == errno.EACCES and port <= HIGHEST_RESERVED_PORT:
        return f"this user may not use ports up to {HIGHEST_RESERVED_PORT}; set {setting}"
    return str(error.strerror or error)
