"""Settings: every row, every refusal, and no secret in any text."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from falcon_fast.errors import SettingsError
from falcon_fast.settings import (
    MAX_SLOTS,
    RESERVED_DESCRIPTORS,
    SETTINGS,
    Settings,
    default_max_connections,
    describe,
    normalise_origin,
    secret_problem,
)

from ..support import ROOT

SECRET = "correct-horse-battery-staple-0123456789"
DOCUMENT = ROOT / "docs" / "reference" / "settings.md"


def load(**environ: str) -> Settings:
    return Settings.from_environ({"JWT_SECRET": SECRET, **environ})


def problems(**environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(**environ)
    return caught.value.problems


def settings_table() -> list[str]:
    """Return the table of settings as the reference page must have it."""
    lines = [
        "| name | default | unit | meaning | crossing it | allowed |",
        "|---|---|---|---|---|---|",
    ]
    for row in describe():
        cells = (row.default, row.unit, row.meaning, row.crossing, row.allowed)
        lines.append(f"| `{row.name}` | " + " | ".join(cell or "-" for cell in cells) + " |")
    return lines


# --- the table -----------------------------------------------------------------------------------


def test_the_table_has_one_row_for_each_field() -> None:
    fields = [field.name for field in dataclasses.fields(Settings)]
    assert sorted(setting.field for setting in SETTINGS) == sorted(fields)
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)


def test_the_reference_page_lists_every_setting() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "\n".join(settings_table()) + "\n\n" in text


def test_no_cell_breaks_the_table() -> None:
    for row in describe():
        assert "|" not in "".join(dataclasses.astuple(row))


def test_defaults_are_those_of_the_dataclass() -> None:
    loaded = load()
    assert dataclasses.replace(loaded, jwt_secret="") == Settings()
    assert loaded.jwt_secret == SECRET
    assert (loaded.host, loaded.port) == ("0.0.0.0", 3000)
    assert (loaded.admin_host, loaded.admin_port) == ("127.0.0.1", 3001)


DEFAULTS = {
    "WEBSOCKET_PATH": "/websocket/connect",
    "FALCON_PORT": "3000",
    "FALCON_COOKIE_AUTH": "1",
    "FALCON_PING_TIMEOUT": "60",
    "FALCON_MAX_QUEUE_BYTES": "1048576",
    "FALCON_ROOM_EVENTS_MAX": "1000",
    "WEBSOCKET_ALLOWED_ORIGINS": "not set",
    "JWT_SECRET": "none: must be set",
}


def test_described_defaults() -> None:
    shown = {row.name: row.default for row in describe()}
    assert {name: shown[name] for name in DEFAULTS} == DEFAULTS
    assert all(row.value == "" for row in describe())


def test_described_defaults_are_accepted_as_values() -> None:
    environ = {
        row.name: row.default
        for row, setting in zip(describe(), SETTINGS, strict=True)
        if row.default != "not set" and not setting.default_text
    }
    assert len(environ) > 25
    assert load(**environ) == load()


def test_described_values_show_no_secret() -> None:
    loaded = load(
        REDIS_URL="redis://:hunter2@redis:6379/0",
        WEBSOCKET_ALLOWED_ORIGINS="https://a.example,https://b.example",
        WEBSOCKET_DEBUG="yes",
    )
    shown = {row.name: row.value for row in loaded.describe()}
    assert shown["JWT_SECRET"] == "set"
    assert shown["REDIS_URL"] == "set"
    assert shown["MONGODB_URI"] == "not set"
    assert shown["WEBSOCKET_ALLOWED_ORIGINS"] == "https://a.example,https://b.example"
    assert shown["WEBSOCKET_DEBUG"] == "1"
    assert shown["FALCON_TLS_CERT"] == "not set"
    assert shown["FALCON_CONNECTION_RATE"] == "20"
    text = repr(loaded) + repr(loaded.describe())
    assert SECRET not in text
    assert "hunter2" not in text


# --- what is accepted ----------------------------------------------------------------------------

ACCEPTED: list[tuple[str, str, object]] = [
    ("MONGODB_URI", "mongodb://u:p@a:27017,b:27017/falcon?replicaSet=r", None),
    ("MONGODB_URI", "mongodb+srv://cluster.example", None),
    ("REDIS_URL", "redis://localhost", None),
    ("REDIS_URL", "rediss://u:p@redis.example:6380/1", None),
    ("REDIS_URL", "unix:///run/redis.sock?db=1", None),
    ("REDIS_URL", "redis+sentinel://:p@a,b:26380/main/2", None),
    ("REDIS_URL", "rediss+cluster://u:p@a:7000,b:7001?ssl_ca_certs=/etc/ca.pem", None),
    ("WEBSOCKET_URL", "wss://ws.example.com/websocket/connect", None),
    ("WEBSOCKET_PATH", "/ws", None),
    ("WEBSOCKET_PATH", "/a/b.c/~d_-", None),
    (
        "WEBSOCKET_ALLOWED_ORIGINS",
        " https://App.Example.com:443 ,, http://localhost:5173,https://app.example.com",
        ("https://app.example.com", "http://localhost:5173"),
    ),
    ("WEBSOCKET_DEBUG", "On", True),
    ("WEBSOCKET_DEBUG", "TRUE", True),
    ("FALCON_COOKIE_AUTH", "no", False),
    ("FALCON_COOKIE_AUTH", " off ", False),
    ("FALCON_HOST", "::1", "::1"),
    ("FALCON_HOST", "0:0:0:0:0:0:0:1", "::1"),
    ("FALCON_HOST", "Node-1.Example.com", "node-1.example.com"),
    ("FALCON_PORT", "0", 0),
    ("FALCON_ADMIN_PORT", "65535", 65_535),
    ("FALCON_WORKERS", "4", 4),
    ("FALCON_COOKIE_NAME", "__Host-token", None),
    ("FALCON_SQLITE_PATH", ":memory:", None),
    ("FALCON_MONGO_DB", "falcon_2", None),
    ("FALCON_MONGO_DRIVER", "pymongo", None),
    ("FALCON_BUS_ROUTING", "sharded", None),
    ("FALCON_LOG_FORMAT", "json", None),
    ("FALCON_PING_INTERVAL", "0.05", 0.05),
    ("FALCON_PING_TIMEOUT", "7200", 7_200.0),
    ("FALCON_DRAIN_TIMEOUT", "0", 0.0),
    ("FALCON_CONNECTION_RATE", "0.5", 0.5),
    (
        "FALCON_TRUSTED_PROXIES",
        "10.0.0.0/8, 192.0.2.7,fd00::/8",
        ("10.0.0.0/8", "192.0.2.7/32", "fd00::/8"),
    ),
    ("FALCON_MAX_CONNECTIONS", "1", 1),
    ("FALCON_CONNECTION_LIMIT_POLICY", "replace", None),
    ("FALCON_MAX_MESSAGE_BYTES", "128", 128),
    ("FALCON_ROOM_EVENTS_MAX", "0", 0),
]


@pytest.mark.parametrize("name, text, expected", ACCEPTED)
def test_accepted(name: str, text: str, expected: object) -> None:
    field = next(setting.field for setting in SETTINGS if setting.name == name)
    assert getattr(load(**{name: text}), field) == (text if expected is None else expected)


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(REDIS_URL="", FALCON_PORT="  ", WEBSOCKET_URL="") == load()


def test_other_variables_are_ignored() -> None:
    assert load(PATH="/bin", REDIS_URI="nonsense", HOME="/") == load()


# --- what is refused -----------------------------------------------------------------------------

REFUSED = [
    ("MONGODB_URI", "http://mongo"),
    ("MONGODB_URI", "mongodb://"),
    ("MONGODB_URI", "mongodb://u:p@"),
    ("MONGODB_URI", "mongodb://a b"),
    ("MONGODB_URI", "mongodb://[::1"),
    ("REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "redis://"),
    ("REDIS_URL", "unix://"),
    ("REDIS_URL", "redis://höst"),
    ("REDIS_URL", "redis://a,b"),
    ("REDIS_URL", "redis+sentinel://a"),
    ("WEBSOCKET_URL", "https://ws.example.com"),
    ("WEBSOCKET_URL", "wss://user:pw@ws.example.com"),
    ("WEBSOCKET_URL", "wss://ws.example.com/?token=x"),
    ("WEBSOCKET_URL", "wss://ws.example.com/#x"),
    ("WEBSOCKET_PATH", "websocket"),
    ("WEBSOCKET_PATH", "/"),
    ("WEBSOCKET_PATH", "/a//b"),
    ("WEBSOCKET_PATH", "/a/../b"),
    ("WEBSOCKET_PATH", "/a?b"),
    ("WEBSOCKET_PATH", "/websocket/status"),
    ("WEBSOCKET_PATH", "/healthz"),
    ("WEBSOCKET_PATH", "/" + "a" * 256),
    ("WEBSOCKET_ALLOWED_ORIGINS", "https://app.example.com/"),
    ("WEBSOCKET_ALLOWED_ORIGINS", "https://ok.example,null"),
    ("WEBSOCKET_ALLOWED_ORIGINS", "app.example.com"),
    ("WEBSOCKET_DEBUG", "maybe"),
    ("FALCON_COOKIE_AUTH", "2"),
    ("FALCON_HOST", "300.1.1.1"),
    ("FALCON_HOST", "a b"),
    ("FALCON_HOST", "-a"),
    ("FALCON_PORT", "65536"),
    ("FALCON_PORT", "-1"),
    ("FALCON_PORT", "3_000"),
    ("FALCON_PORT", "+80"),
    ("FALCON_PORT", "٣"),
    ("FALCON_PORT", "1" * 5_000),
    ("FALCON_WORKERS", "0"),
    ("FALCON_WORKERS", "2.5"),
    ("FALCON_TLS_CERT", "/no/such/file"),
    ("FALCON_COOKIE_NAME", "a b"),
    ("FALCON_COOKIE_NAME", "a=b"),
    ("FALCON_SQLITE_PATH", "/no/such/directory/falcon.db"),
    ("FALCON_SQLITE_PATH", "."),
    ("FALCON_SQLITE_PATH", "a\0b"),
    ("FALCON_MONGO_DB", "a.b"),
    ("FALCON_MONGO_DRIVER", "Motor"),
    ("FALCON_BUS_ROUTING", "x"),
    ("FALCON_LOG_FORMAT", "xml"),
    ("FALCON_PING_INTERVAL", "nan"),
    ("FALCON_PING_INTERVAL", "inf"),
    ("FALCON_PING_INTERVAL", "1e3"),
    ("FALCON_PING_INTERVAL", "0"),
    ("FALCON_HANDSHAKE_TIMEOUT", "61"),
    ("FALCON_CONNECTION_RATE", "0"),
    ("FALCON_TRUSTED_PROXIES", "10.0.0.1/8"),
    ("FALCON_TRUSTED_PROXIES", "proxy.example"),
    ("FALCON_TRUSTED_PROXIES", "0.0.0.0/0"),
    ("FALCON_TRUSTED_PROXIES", "::/0"),
    ("FALCON_MAX_CONNECTIONS", "0"),
    ("FALCON_MAX_CONNECTIONS", "65537"),
    ("FALCON_CONNECTION_LIMIT_POLICY", "drop"),
    ("FALCON_MAX_JSON_DEPTH", "255"),
]


@pytest.mark.parametrize("name, text", REFUSED)
def test_refused(name: str, text: str) -> None:
    setting = next(setting for setting in SETTINGS if setting.name == name)
    (problem,) = problems(**{name: text})
    assert problem.startswith(f"{name}: came ")
    assert problem.endswith(f"; allowed: {setting.kind.allowed}")
    assert f"{len(text)} character" in problem
    assert len(problem) < 400
    assert problem.isprintable()


def test_limits_of_every_number_are_inclusive() -> None:
    """Both ends of each range are accepted, and one step beyond is refused."""
    checked = 0
    for setting in SETTINGS:
        words = setting.kind.allowed.split()
        if words[:3] != ["an", "integer", "from"] or setting.field == "max_connections":
            continue
        low, high = int(words[3]), int(words[5])
        assert setting.kind.parse(str(low)) == low
        assert setting.kind.parse(str(high)) == high
        for outside in (str(low - 1), str(high + 1)):
            with pytest.raises(ValueError):
                setting.kind.parse(outside)
        checked += 1
    assert checked == 15


def test_all_problems_are_listed_at_once() -> None:
    found = problems(
        FALCON_PORT="x",
        FALCON_PROT="3000",
        FALCON_TLS_CERT=__file__,
        WEBSOCKET_ALLOWED_ORIGINS="*",
        JWT_SECRET="short",
    )
    assert [problem.partition(":")[0] for problem in found] == [
        "JWT_SECRET",
        "FALCON_PORT",
        "FALCON_PROT",
        "WEBSOCKET_ALLOWED_ORIGINS",
        "FALCON_TLS_KEY",
    ]


def test_the_line_of_a_problem() -> None:
    assert problems(FALCON_PORT="abc") == (
        "FALCON_PORT: came 'abc' (3 characters); "
        "allowed: a port from 0 to 65535 (0: any free port)",
    )
    assert problems(FALCON_WORKERS="x") == (
        "FALCON_WORKERS: came 'x' (1 character); allowed: an integer from 1 to 256",
    )
    (long,) = problems(FALCON_LOG_FORMAT="j" * 1_000)
    assert f"'{'j' * 60}'... (1000 characters)" in long


@pytest.mark.parametrize("name", ["REDIS_URL", "MONGODB_URI", "WEBSOCKET_URL", "FALCON_HOST"])
@pytest.mark.parametrize(
    "text", ["http://u:hunter2@h", "redis ://u:hunter2@h", "u:hunter2@[", "redis://u:hunter2@"]
)
def test_no_password_in_a_problem(name: str, text: str) -> None:
    (problem,) = problems(**{name: text})
    assert "hunter2" not in problem
    assert f"a value of {len(text)} characters (not shown)" in problem


# --- names ---------------------------------------------------------------------------------------


def test_unknown_names_are_problems_with_a_hint() -> None:
    assert problems(FALCON_PROT="hunter2") == (
        "FALCON_PROT: unknown name; did you mean FALCON_PORT?",
    )
    assert problems(FALCON_MAX_MESSAGE_SIZE="1") == (
        "FALCON_MAX_MESSAGE_SIZE: unknown name; did you mean FALCON_MAX_MESSAGE_BYTES?",
    )
    assert problems(FALCON_ZZZZZZZZ="1") == ("FALCON_ZZZZZZZZ: unknown name; no such setting",)


def test_names_of_the_build_and_the_tests_are_left_alone() -> None:
    assert load(FALCON_BUILD_TRACE="1", FALCON_REQUIRE_ALL="1") == load()


def test_variables_of_kubernetes_services_are_left_alone() -> None:
    assert (
        load(
            FALCON_FAST_SERVICE_HOST="10.0.0.1",
            FALCON_FAST_SERVICE_PORT="3000",
            FALCON_FAST_SERVICE_PORT_HTTP="3000",
            FALCON_FAST_PORT="tcp://10.0.0.1:3000",
            FALCON_FAST_PORT_3000_TCP="tcp://10.0.0.1:3000",
            FALCON_FAST_PORT_3000_TCP_PROTO="tcp",
            FALCON_SERVICE_HOST="10.0.0.1",
        )
        == load()
    )
    assert problems(FALCON_FAST_PORT="3000") != ()


def test_a_kubernetes_service_that_takes_our_name_is_explained() -> None:
    (problem,) = problems(FALCON_PORT="tcp://10.0.0.1:3000")
    assert "enableServiceLinks: false" in problem


# --- what settings must agree on -----------------------------------------------------------------


def test_any_origin_with_cookies_is_refused() -> None:
    """A12: cookies and any origin would let every web page connect as its visitor."""
    (problem,) = problems(WEBSOCKET_ALLOWED_ORIGINS="*")
    assert "any web page" in problem
    loaded = load(WEBSOCKET_ALLOWED_ORIGINS="*", FALCON_COOKIE_AUTH="0")
    assert loaded.allowed_origins == ("*",)


def test_any_origin_stands_alone() -> None:
    (problem,) = problems(WEBSOCKET_ALLOWED_ORIGINS="*,https://a.example", FALCON_COOKIE_AUTH="0")
    assert "'*' alone" in problem


def test_tls_needs_both_files(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.write_text("x")
    loaded = load(FALCON_TLS_CERT=str(file), FALCON_TLS_KEY=str(file))
    assert (loaded.tls_cert, loaded.tls_key) == (str(file), str(file))
    assert problems(FALCON_TLS_CERT=str(file))[0].startswith("FALCON_TLS_KEY: not set")
    assert problems(FALCON_TLS_KEY=str(file))[0].startswith("FALCON_TLS_CERT: not set")


def test_an_unreadable_tls_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.pem"
    file.write_text("x")
    # Root may read everything, so the answer of the system is put in.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    found = problems(FALCON_TLS_CERT=str(file), FALCON_TLS_KEY=str(file))
    assert ["cannot be read" in problem for problem in found] == [True, True]


def test_the_ping_timeout_is_more_than_the_interval() -> None:
    (problem,) = problems(FALCON_PING_INTERVAL="60")
    assert problem.startswith("FALCON_PING_TIMEOUT: 60 s with a ping every 60 s")
    assert load(FALCON_PING_INTERVAL="59.9").ping_interval == 59.9


def test_the_two_ports_differ() -> None:
    (problem,) = problems(FALCON_PORT="3001")
    assert problem.startswith("FALCON_ADMIN_PORT: 3001 is FALCON_PORT too")
    assert load(FALCON_PORT="0", FALCON_ADMIN_PORT="0").port == 0


def test_workers_cannot_share_a_database_in_memory() -> None:
    memory = {"FALCON_WORKERS": "2", "FALCON_SQLITE_PATH": ":memory:"}
    (problem,) = problems(**memory)
    assert problem.startswith("FALCON_SQLITE_PATH: ':memory:' with 2 workers")
    assert load(**memory, MONGODB_URI="mongodb://m").workers == 2


# --- the number of connections -------------------------------------------------------------------


@pytest.mark.parametrize(
    "soft, expected",
    [
        (-1, MAX_SLOTS),
        (1_000_000, MAX_SLOTS),
        (20_000, 20_000 - RESERVED_DESCRIPTORS),
        (100, 1),
    ],
)
def test_connections_follow_the_open_file_limit(
    soft: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (soft, -1))
    assert default_max_connections() == expected
    assert load().max_connections == expected


def test_connections_beyond_the_open_file_limit_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1_024, -1))
    assert load(FALCON_MAX_CONNECTIONS="768").max_connections == 768
    (problem,) = problems(FALCON_MAX_CONNECTIONS="769")
    assert "the open-file limit allows 768" in problem


def test_connections_without_an_open_file_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert default_max_connections() == MAX_SLOTS


# --- the secret ----------------------------------------------------------------------------------


def test_a_missing_secret() -> None:
    """A03: no secret, no start."""
    for environ in ({}, {"JWT_SECRET": ""}):
        with pytest.raises(SettingsError) as caught:
            Settings.from_environ(environ)
        (problem,) = caught.value.problems
        assert problem.startswith("JWT_SECRET: not set; ")
        assert Settings.from_environ(environ, require_secret=False).jwt_secret == ""


@pytest.mark.parametrize("secret", ["a", "x" * 31, " " * 40, "x" * 31 + "\n" * 9, "é" * 15])
def test_a_short_secret_A03(secret: str) -> None:
    for require in (True, False):
        with pytest.raises(SettingsError) as caught:
            Settings.from_environ({"JWT_SECRET": secret}, require_secret=require)
        (problem,) = caught.value.problems
        assert "too short" in problem
        assert secret.strip() == "a" or not secret.strip() or secret.strip() not in problem


def test_a_secret_of_exactly_32_bytes() -> None:
    assert load(JWT_SECRET="x" * 32).jwt_secret == "x" * 32
    assert load(JWT_SECRET="é" * 16).jwt_secret == "é" * 16


def test_a_secret_is_taken_as_it_is() -> None:
    """White space may be part of it: the issuer signs with the same bytes."""
    assert load(JWT_SECRET=f" {SECRET} ").jwt_secret == f" {SECRET} "
    # A byte that is not UTF-8 comes from the environment as a lone surrogate.
    assert load(JWT_SECRET="x" * 32 + "\udcff").jwt_secret == "x" * 32 + "\udcff"


def test_a_secret_that_cannot_be_bytes() -> None:
    assert secret_problem("x" * 40 + "\ud800") == "it is not valid UTF-8"


# Public keys made for these tests; the halves that are secret were thrown away.
RSA_DER = base64.b64decode(
    "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA2rXzLK3qtcyzDipuGzaDzafFrH1nn123bCr3"
    "h7iCtAfsQK+4w34xPEDS0pp0+04pZmWL+bXZnEuDVguh9+OwQT8neBCtMikkCOUHbZ3gcFHkNW2AUaKU"
    "jWd+uf7Ulktjz5pSvmF3ZAzOvod/g5hQoYDHfnEZsDhJuFpPVfcahaIvTQLNjfmuokSPQPMFp9ieS0ks"
    "CKDwis1i/hcApNIoP+WlnQSV5TUxaXjgrcaa5/rrxCS8/FYyioV/rwOGR4zCNrXkmH8E4vtZa2vcCCP6"
    "AR/Dyk9WonS0WM+V06lKTFVOZBWfyFsdMQUEZov3Rk9jetAcXafRnvARHLdg94FRZwIDAQAB"
)
PKCS1_DER = RSA_DER[24:]
ED25519_DER = base64.b64decode("MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=")


def pem(label: str, der: bytes, *, newline: str = "\n") -> str:
    body = base64.b64encode(der).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return newline.join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


RSA_PEM = pem("PUBLIC KEY", RSA_DER)
SSH_BLOB = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + ED25519_DER[-32:]).decode()
JWK = json.dumps({"kty": "OKP", "crv": "Ed25519", "x": "GbtEO2lhM3-hUG6wWfcO5bIUIaqMLa2ywxc"})

KEYS = {
    "pem-lf": RSA_PEM,
    "pem-crlf": pem("PUBLIC KEY", RSA_DER, newline="\r\n"),
    "pem-literal-backslash-n": pem("PUBLIC KEY", RSA_DER, newline="\\n"),
    "pem-one-line": pem("PUBLIC KEY", RSA_DER, newline=" "),
    "pem-indented": RSA_PEM.replace("\n", "\n    "),
    "pem-spaces-around": f" \t\n{RSA_PEM}\n\n ",
    "pem-spaces-inside-the-marker": RSA_PEM.replace("-----BEGIN", "----- BEGIN"),
    "pem-text-before": "my key\n" + RSA_PEM,
    "pem-lower-case": RSA_PEM.lower(),
    "pem-pkcs1": pem("RSA PUBLIC KEY", PKCS1_DER),
    "pem-certificate": pem("CERTIFICATE", RSA_DER),
    "pem-private": pem("PRIVATE KEY", RSA_DER),
    "pem-ssh2": "---- BEGIN SSH2 PUBLIC KEY ----\n" + SSH_BLOB,
    "pem-in-base64": base64.b64encode(RSA_PEM.encode()).decode(),
    "pem-in-json-string": json.dumps(RSA_PEM),
    "der-in-base64": base64.b64encode(RSA_DER).decode(),
    "der-in-base64url": base64.urlsafe_b64encode(RSA_DER).decode().rstrip("="),
    "der-in-base64-lines": base64.encodebytes(RSA_DER).decode(),
    "der-pkcs1-in-base64": base64.b64encode(PKCS1_DER).decode(),
    "der-ed25519-in-base64": base64.b64encode(ED25519_DER).decode(),
    "der-as-bytes": RSA_DER.decode("utf-8", "surrogateescape"),
    "ssh-ed25519": f"ssh-ed25519 {SSH_BLOB} me@example",
    "ssh-rsa": "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7 me@example",
    "ssh-ecdsa": "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAI me",
    "ssh-security-key": "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9w me",
    "ssh-with-options": f'no-pty,from="10.0.0.1" ssh-ed25519 {SSH_BLOB} me',
    "ssh-blob-alone": SSH_BLOB,
    "jwk": JWK,
    "jwk-spaces": f"\n  {JWK}  \n",
    "jwk-byte-order-mark": "\ufeff" + JWK,
    "jwk-set": json.dumps({"keys": [json.loads(JWK)]}),
    "jwk-in-list": f"[{JWK}]",
    "jwk-quoted": json.dumps(JWK),
    "jwk-in-base64": base64.b64encode(JWK.encode()).decode(),
    "json-too-deep-to-read": "[" * 100_000,
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_as_the_secret_A02(name: str) -> None:
    key = KEYS[name]
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({"JWT_SECRET": key})
    (problem,) = caught.value.problems
    assert "is a key or a certificate" in problem
    assert len(problem) < 300
    assert key[30:60] not in problem


@settings(max_examples=200, deadline=None)
@example(b"{" + b"x" * 40)
@example(b"\x30" + b"\x20" * 40)
@example(b"\x30\x1e" + b"\x02\x01\x00" * 9 + b"\x02\x02\x00")
@given(st.binary(min_size=32, max_size=64))
def test_random_secrets_are_accepted(data: bytes) -> None:
    """Random bytes in hex and in both forms of base64: what people use as secrets."""
    for secret in (
        data.hex(),
        base64.b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
    ):
        assert secret_problem(secret) is None


@pytest.mark.parametrize(
    "secret",
    [
        "{not json, only a password with braces}",
        "[another one with brackets, not closed ",
        '"quoted password of thirty-two characters"',
        "12345678901234567890123456789012",
        "this is about ssh-keys and how to begin one",
    ],
)
def test_secrets_that_only_look_odd_are_accepted(secret: str) -> None:
    assert secret_problem(secret) is None


# Almost DER: each breaks one rule of the structure, so each is an ordinary secret.
@pytest.mark.parametrize(
    "data",
    [
        b"\x30\x80" + bytes(40),
        b"\x30\x85" + bytes(40),
        b"\x30\x84\x01\x02",
        b"\x31\x26" + b"\x02\x01\x00" * 12 + b"\x05\x00",
        b"\x30\x26" + b"\x02\x24" + bytes(36),
        b"\x30\x26" + b"\x02\x01\x00" * 12 + b"\x09\x00",
        b"\x30\x26" + b"\x02\x01\x00" * 12 + b"\x05\x01",
        b"\x30\x25" + b"\x02\x01\x00" * 12 + b"\x05",
    ],
    ids=[
        "indefinite-length",
        "five-byte-length",
        "cut-off",
        "a-set",
        "one-child",
        "strange-tag",
        "child-too-long",
        "child-without-length",
    ],
)
def test_almost_a_key_is_a_secret(data: bytes) -> None:
    assert secret_problem(base64.b64encode(data.ljust(32, b"\0")).decode()) is None


# --- origins -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin, normal",
    [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://APP.example.COM", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80", "http://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_origins(origin: str, normal: str) -> None:
    assert normalise_origin(origin) == normal
    assert normalise_origin(normal) == normal


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "*",
        "https://",
        "//app.example.com",
        "app.example.com",
        "https://app.example.com/",
        "https://app.example.com?x",
        "https://app.example.com#x",
        "https://app.example.com.",
        "https://.app.example.com",
        "https://user@app.example.com",
        "https://app.example.com:",
        "https://app.example.com:0",
        "https://app.example.com:0443",
        "https://app.example.com:65536",
        "https://app.example.com:443443",
        "https://a.example https://b.example",
        "https://a.example,https://b.example",
        "https://bücher.example",
        "https://*.example.com",
        "https://app.example.com\n",
        " https://app.example.com",
        "https://[::1",
        "https://[::1::]",
        "https://[1.2.3.4]",
        "https://" + "a" * 64 + ".example",
    ],
)
def test_what_is_no_origin(origin: str) -> None:
    assert normalise_origin(origin) is None


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="htps:/.[]@a1-*, \n", max_size=40))
def test_normalising_is_total_and_stable(text: str) -> None:
    normal = normalise_origin(text)
    if normal is not None:
        assert normalise_origin(normal) == normal


# --- keys of tokens ------------------------------------------------------------------------------

OTHER_SECRET = SECRET[::-1]
URL = "https://issuer.example/.well-known/jwks.json"


def key_problems(**environ: str) -> list[str]:
    """Return the problems of an environment that names its keys itself."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ(environ)
    return list(caught.value.problems)


def test_two_secrets_while_rotating_A17() -> None:
    loaded = load(JWT_SECRET_PREVIOUS=OTHER_SECRET)
    assert (loaded.jwt_secret, loaded.jwt_secret_previous) == (SECRET, OTHER_SECRET)
    assert OTHER_SECRET not in repr(loaded)
    assert {row.name: row.value for row in loaded.describe()}["JWT_SECRET_PREVIOUS"] == "set"


def test_a_previous_secret_that_makes_no_sense() -> None:
    (problem,) = problems(JWT_SECRET_PREVIOUS=SECRET)
    assert problem.startswith("JWT_SECRET_PREVIOUS: the same as JWT_SECRET; ")
    for environ in (
        {"JWT_JWKS_URL": URL, "JWT_ALGORITHMS": "RS256"},
        {"JWT_PUBLIC_KEY": str(DOCUMENT), "JWT_ALGORITHMS": "RS256"},
    ):
        (problem,) = key_problems(**environ, JWT_SECRET_PREVIOUS=OTHER_SECRET)
        assert problem.startswith("JWT_SECRET_PREVIOUS: set without JWT_SECRET; ")
    first, second = key_problems(JWT_SECRET_PREVIOUS=OTHER_SECRET)
    assert first.startswith("JWT_SECRET: not set; ")
    assert second.startswith("JWT_SECRET_PREVIOUS: set without JWT_SECRET; ")


@pytest.mark.parametrize("name", KEYS)
def test_a_key_as_the_previous_secret_A02(name: str) -> None:
    (problem,) = problems(JWT_SECRET_PREVIOUS=KEYS[name])
    assert problem.startswith("JWT_SECRET_PREVIOUS: came a value of ")
    assert "is a key or a certificate" in problem


@pytest.mark.parametrize("algorithms", ["RS256", "RS512,RS256", "PS384", "ES256, ES384", "EdDSA"])
def test_public_keys_need_no_secret(algorithms: str) -> None:
    names = tuple(name.strip() for name in algorithms.split(","))
    by_url = Settings.from_environ({"JWT_JWKS_URL": URL, "JWT_ALGORITHMS": algorithms})
    assert (by_url.jwt_jwks_url, by_url.algorithms) == (URL, names)
    by_file = Settings.from_environ({"JWT_PUBLIC_KEY": str(DOCUMENT), "JWT_ALGORITHMS": algorithms})
    assert (by_file.jwt_public_key, by_file.algorithms) == (str(DOCUMENT), names)
    assert by_url.has_public_keys
    assert by_file.has_public_keys
    assert by_url.jwt_secret == by_file.jwt_secret == ""


def test_a_secret_means_HS256() -> None:
    assert load().algorithms == load(JWT_ALGORITHMS="HS256").algorithms == ("HS256",)
    assert not load().has_public_keys


@pytest.mark.parametrize(
    "algorithms",
    [
        *("HS256,RS256", "RS256,ES256", "RS256,PS256", "EdDSA,ES256", "none", "HS512", "rs256"),
        *("RS256,none", "HS384", "ES256K", "RSA", "RS256;RS512", "*", ","),
    ],
)
def test_families_are_not_mixed_A02(algorithms: str) -> None:
    (problem,) = key_problems(JWT_JWKS_URL=URL, JWT_ALGORITHMS=algorithms)
    assert problem.startswith("JWT_ALGORITHMS: came ")
    assert "names of one family: HS256; RS256, RS384, RS512; " in problem


@pytest.mark.parametrize("name, value", [("JWT_JWKS_URL", URL), ("JWT_PUBLIC_KEY", str(DOCUMENT))])
def test_one_kind_of_key_A02(name: str, value: str) -> None:
    environ = {name: value, "JWT_ALGORITHMS": "RS256"}
    (problem,) = key_problems(**environ, JWT_SECRET=SECRET)
    assert problem.startswith(f"{name}: set together with JWT_SECRET; ")
    (problem,) = key_problems(**{name: value})
    assert problem.startswith(f"JWT_ALGORITHMS: not set; allowed with {name}: ")
    (problem,) = key_problems(**environ | {"JWT_ALGORITHMS": "HS256"})
    assert problem.startswith(f"JWT_ALGORITHMS: came 'HS256' with {name}, so everybody ")
    (problem,) = problems(JWT_ALGORITHMS="RS256")
    assert problem.startswith("JWT_ALGORITHMS: came 'RS256' with JWT_SECRET; ")


def test_two_sources_of_public_keys() -> None:
    (problem,) = key_problems(
        JWT_JWKS_URL=URL, JWT_PUBLIC_KEY=str(DOCUMENT), JWT_ALGORITHMS="ES256"
    )
    assert problem.startswith("JWT_JWKS_URL: set together with JWT_PUBLIC_KEY; ")


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "https://issuer.example:8443/keys?tenant=1",
        "https://[2001:db8::1]/keys",
        "http://127.0.0.1:8080/keys",
        "http://127.1.2.3/keys",
        "http://[::1]:8080/keys",
        "http://localhost/keys",
    ],
)
def test_where_keys_may_come_from(url: str) -> None:
    environ = {"JWT_JWKS_URL": url, "JWT_ALGORITHMS": "ES256"}
    assert Settings.from_environ(environ).jwt_jwks_url == url


@pytest.mark.parametrize(
    "url, detail",
    [
        ("http://issuer.example/keys", "without TLS anybody"),
        ("http://10.0.0.1/keys", "without TLS anybody"),
        ("http://localhost.example/keys", "without TLS anybody"),
        ("http://127.0.0.1.example/keys", "without TLS anybody"),
        ("http://0.0.0.0/keys", "without TLS anybody"),
        ("https://user:hunter2@issuer.example/keys", "it has a user"),
        ("http://127.0.0.1@issuer.example/keys", "it has a user"),
        ("https://issuer.example/keys#x", "it has a user or a fragment"),
        ("https://issuer.example:99999/keys", "its port is no port"),
        ("https://:443/keys", "no host"),
        ("https:///keys", "allowed: a URL"),
        ("file:///etc/passwd", "allowed: a URL"),
        ("ftp://issuer.example/keys", "allowed: a URL"),
        ("issuer.example/keys", "allowed: a URL"),
        ("https://issuer.example/a b", "blanks"),
    ],
)
def test_where_keys_may_not_come_from_A04(url: str, detail: str) -> None:
    (problem,) = key_problems(JWT_JWKS_URL=url, JWT_ALGORITHMS="ES256")
    assert problem.startswith("JWT_JWKS_URL: came ")
    assert detail in problem
    assert "hunter2" not in problem


def test_issuer_audience_and_lifetime() -> None:
    loaded = load(JWT_ISSUER="https://issuer.example", JWT_AUDIENCE="falcon")
    assert (loaded.jwt_issuer, loaded.jwt_audience) == ("https://issuer.example", "falcon")
    assert load().jwt_issuer == "go-falcon"
    assert load().jwt_audience is None
    assert load().jwt_max_lifetime == 366 * 86_400
    assert load(JWT_MAX_LIFETIME="86400").jwt_max_lifetime == 86_400
    for name in ("JWT_ISSUER", "JWT_AUDIENCE"):
        for wrong in ("a b", "x" * 257, "ü"):
            (problem,) = problems(**{name: wrong})
            assert problem.startswith(f"{name}: came ")


def test_a02_a_key_that_ends_like_white_space_is_a_key() -> None:
    # A SEQUENCE of two INTEGERs, the last byte of which is a blank.
    key = bytes([0x30, 0x26, 0x02, 0x20, *range(0x40, 0x60), 0x02, 0x02, 0x01, 0x20])
    problem = secret_problem(key.decode("utf-8", "surrogateescape"))
    assert problem == "it is a key or a certificate, not a secret"
