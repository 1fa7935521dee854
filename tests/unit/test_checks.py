"""What ``falcon-fast check`` finds out, with real files and ports of this machine only."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from falcon_fast import checks
from falcon_fast.checks import Result, results
from falcon_fast.directory.sqlite_store import MEMORY, SqliteStore
from falcon_fast.errors import KeysUnavailable
from falcon_fast.settings import Settings

from ..support import require
from ..support.keys import issuer, key_set

LOCAL = Settings(
    jwt_secret="x" * 32,
    host="127.0.0.1",
    port=0,
    admin_host="127.0.0.1",
    admin_port=0,
    sqlite_path=MEMORY,
)


def check(what: str, **changes: object) -> Result:
    """Run all trials; returns the named one and makes sure that the others went well."""
    found = {result.what: result for result in results(dataclasses.replace(LOCAL, **changes))}  # type: ignore[arg-type]
    assert [name for name, result in found.items() if not result.ok and name != what] == []
    return found[what]


def test_everything_is_tried() -> None:
    assert list(results(LOCAL)) == [
        Result(True, "tokens", "JWT_SECRET is long enough and is not a key of another kind"),
        Result(True, "users and groups", "kept in memory, and gone when the server stops"),
        Result(True, "other nodes", "none: this is the only node"),
        Result(True, "processes", "one"),
        Result(
            True,
            "certificate",
            "none: clients connect with ws://, or with wss:// through a proxy that has one",
        ),
        Result(True, "public port", "127.0.0.1: any free port, printed at the start"),
        Result(True, "admin port", "127.0.0.1: any free port, printed at the start"),
    ]


# --- tokens --------------------------------------------------------------------------------------


def test_a_rotation_is_explained() -> None:
    assert check("tokens", jwt_secret_previous="y" * 32) == Result(
        True,
        "tokens",
        "JWT_SECRET signs and is accepted, JWT_SECRET_PREVIOUS is still accepted: unset it when "
        "the last token signed with it has expired",
    )


def test_a_file_of_public_keys(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(issuer("ES256").pem() + issuer("ES256", "other").pem())
    given = {"jwt_secret": "", "jwt_public_key": str(path)}
    found = check("tokens", **given, jwt_algorithms=("ES256", "ES384"))
    assert found == Result(True, "tokens", f"{path}: public keys for ES256, ES384: 2")
    found = check("tokens", **given, jwt_algorithms=("EdDSA",))
    assert (found.ok, found.explanation) == (
        False,
        f"JWT_PUBLIC_KEY: {str(path)!r}: block 1 is no key for EdDSA (RSA keys have 2048 to 8192 "
        "bits)",
    )


def test_a_published_key_set(monkeypatch: pytest.MonkeyPatch) -> None:
    document = key_set(issuer("ES256").jwk("k"))

    async def fetch(url: str) -> bytes:
        assert url == "https://issuer.example/jwks?key=hunter2"
        if not document:
            raise KeysUnavailable("the answer was 404, not 200")
        return document

    monkeypatch.setattr(checks, "fetch", fetch)
    given = {"jwt_secret": "", "jwt_jwks_url": "https://issuer.example/jwks?key=hunter2"}
    found = check("tokens", **given, jwt_algorithms=("ES256",))
    assert found == Result(True, "tokens", "JWT_JWKS_URL answers: public keys for ES256: 1")
    found = check("tokens", **given, jwt_algorithms=("EdDSA",))
    assert (found.ok, found.explanation) == (
        False,
        "JWT_JWKS_URL https://issuer.example/jwks: it has no public key for these algorithms; the "
        "server starts all the same, and refuses every token until it has keys",
    )
    document = b""
    found = check("tokens", **given, jwt_algorithms=("ES256",))
    assert not found.ok
    assert "the answer was 404, not 200; the server starts" in found.explanation


# --- users and groups ----------------------------------------------------------------------------


def test_directory_that_answers(tmp_path: Path) -> None:
    path = str(tmp_path / "falcon.db")
    with SqliteStore(path) as store:
        store.add_group("Fleet")
        store.add_user("alice", 1, "Alice")
        store.add_user("alice", 2, "Alt")
    assert check("users and groups", sqlite_path=path) == Result(
        True,
        "users and groups",
        f"{path} opens and answers: users 1, characters 2, groups 1",
    )


def test_directory_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "falcon.db")
    assert check("users and groups", sqlite_path=path) == Result(
        True, "users and groups", f"{path} is not there yet; the server makes it"
    )
    assert os.listdir(tmp_path) == []
    # root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert check("users and groups", sqlite_path=path) == Result(
        False,
        "users and groups",
        f"{path}: not there, and this user may not make files in {tmp_path}",
    )


def test_directory_that_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "falcon.db"
    path.write_bytes(b"no database" * 100)
    result = check("users and groups", sqlite_path=str(path))
    assert not result.ok
    assert result.explanation.startswith(f"{path}: it is not a SQLite database; ")


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("falcon_fast.checks.os.cpu_count", lambda: 4)
    assert check("processes") == Result(True, "processes", "one")
    found = check("processes", workers=4)
    assert found == Result(True, "processes", "a node process and 4 workers on 4 cores")
    found = check("processes", workers=5)
    assert not found.ok
    assert "more workers than cores" in found.explanation
    monkeypatch.setattr("falcon_fast.process.sys.platform", "darwin")
    found = check("processes", workers=4)
    assert not found.ok
    assert "only Linux" in found.explanation


def test_x16_a_redis_that_is_not_there() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        found = check("other nodes", redis_url=f"redis://:hunter2@127.0.0.1:{port}")
    assert not found.ok
    assert found.explanation.startswith(f"redis://127.0.0.1:{port}")
    assert "does not answer (ConnectionError)" in found.explanation


# --- the certificate -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates with their keys, and the first key with a password."""
    folder = tmp_path_factory.mktemp("pems")
    openssl = require("openssl")
    for name in ("one", "two"):
        make = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        out = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run(
            [*make, "-nodes", "-subj", f"/CN={name}", *out],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    subprocess.run(
        [openssl, "pkey", "-in", "one.key", "-aes256", "-passout", "pass:x", "-out", "locked.key"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (folder / "text").write_text("no key")
    return folder


def test_certificate_that_loads(pems: Path) -> None:
    cert, key = str(pems / "one.crt"), str(pems / "one.key")
    assert check("certificate", tls_cert=cert, tls_key=key) == Result(
        True, "certificate", f"{cert} and its key load"
    )


@pytest.mark.parametrize(
    ("cert", "key", "explanation"),
    [
        (
            "one.crt",
            "two.key",
            "FALCON_TLS_KEY: {two.key} is not the key of the certificate {one.crt}",
        ),
        ("one.crt", "text", "FALCON_TLS_CERT {one.crt} and FALCON_TLS_KEY {text}: expected a "),
        ("text", "one.key", "FALCON_TLS_CERT {text} and FALCON_TLS_KEY {one.key}: expected a "),
        ("one.crt", "locked.key", "FALCON_TLS_CERT {one.crt} and FALCON_TLS_KEY {locked.key}: exp"),
        ("one.crt", "gone", "FALCON_TLS_CERT, FALCON_TLS_KEY: [Errno 2] No such file or directory"),
    ],
)
def test_certificate_that_does_not_load(pems: Path, cert: str, key: str, explanation: str) -> None:
    result = check("certificate", tls_cert=str(pems / cert), tls_key=str(pems / key))
    for name in (cert, key):
        explanation = explanation.replace(f"{{{name}}}", str(pems / name))
    assert not result.ok
    assert result.explanation.startswith(explanation)


# --- ports ---------------------------------------------------------------------------------------


def test_port_in_use_and_free_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert check("public port", port=port) == Result(
            False,
            "public port",
            f"127.0.0.1:{port}: in use; if it is a falcon_fast that is running, all is well, else "
            "stop the other program or set FALCON_PORT",
        )
        assert check("admin port", admin_port=port).explanation.endswith("FALCON_ADMIN_PORT")
    assert check("public port", port=port) == Result(
        True, "public port", f"127.0.0.1:{port} is free"
    )


def test_address_of_another_machine() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737) and nobody's.
    assert check("public port", host="192.0.2.1", port=3000) == Result(
        False, "public port", "192.0.2.1:3000: not an address of this machine"
    )


def test_host_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = socket.getaddrinfo

    def fail(host: str, port: int, *, type: int, flags: int) -> object:
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return lookup(host, port, type=type, flags=flags)

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    result = check("admin port", admin_host="nowhere.invalid")
    assert not result.ok
    assert result.explanation.startswith("nowhere.invalid: this host name has no address here (")


@pytest.mark.parametrize(
    ("port", "number", "explanation"),
    [
        (
            443,
            errno.EACCES,
            "127.0.0.1:443: this user may not use ports up to 1023; set FALCON_PORT",
        ),
        (8443, errno.EACCES, "127.0.0.1:8443: Permission denied"),
        (443, errno.EMFILE, "127.0.0.1:443: Too many open files"),
    ],
)
def test_port_that_may_not_be_used(
    monkeypatch: pytest.MonkeyPatch, port: int, number: int, explanation: str
) -> None:
    make = socket.create_server

    def fail(address: tuple[str, int], **options: object) -> socket.socket:
        if address[1] == port:
            raise OSError(number, os.strerror(number))
        return make(address, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_server", fail)
    assert check("public port", port=port) == Result(False, "public port", explanation)
