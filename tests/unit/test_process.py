"""One process: certificates, the secrets it keeps, the loop it runs on."""

from __future__ import annotations

import dataclasses
import ssl
import subprocess
from pathlib import Path

import pytest

from falcon_fast import process
from falcon_fast.errors import SettingsError
from falcon_fast.settings import Settings

from ..support import require

SETTINGS = Settings(jwt_secret="a secret of tests that is long enough", max_connections=16)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Make a certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subject = ["-x509", "-days", "2", "-subj", "/CN=localhost", "-nodes"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        [require("openssl"), "req", *subject, *curve, "-out", cert, "-keyout", key],
        check=True,
        capture_output=True,
    )
    return cert, key


# --- certificates ---------------------------------------------------------------------------------


def test_without_a_certificate_there_is_no_tls() -> None:
    assert process.tls_context(SETTINGS) is None
    assert process.tls_context(dataclasses.replace(SETTINGS, tls_cert="/a")) is None


def test_a_certificate_is_used_with_tls_1_2_at_least(certificate: tuple[str, str]) -> None:
    cert, key = certificate
    context = process.tls_context(dataclasses.replace(SETTINGS, tls_cert=cert, tls_key=key))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.protocol == ssl.PROTOCOL_TLS_SERVER


@pytest.mark.parametrize("case", ["missing", "no PEM", "swapped", "encrypted"])
def test_certificates_that_cannot_be_used(
    case: str, certificate: tuple[str, str], tmp_path: Path
) -> None:
    cert, key = certificate
    if case == "missing":
        key = str(tmp_path / "nothing.pem")
    elif case == "no PEM":
        key = str(tmp_path / "key.pem")
        Path(key).write_text("this is no key", encoding="utf-8")
    elif case == "encrypted":
        locked = str(tmp_path / "locked.pem")
        command = [require("openssl"), "ec", "-in", key, "-out", locked, "-aes128"]
        subprocess.run([*command, "-passout", "pass:abc"], check=True, capture_output=True)
        key = locked
    else:
        cert, key = key, cert
    with pytest.raises(SettingsError) as caught:
        process.tls_context(dataclasses.replace(SETTINGS, tls_cert=cert, tls_key=key))
    (problem,) = caught.value.problems
    assert problem.startswith("FALCON_TLS_CERT and FALCON_TLS_KEY: expected a certificate chain")
    assert cert in problem
    assert key in problem


# --- secrets --------------------------------------------------------------------------------------


def test_secrets_are_known_in_each_way_they_are_written() -> None:
    settings = dataclasses.replace(
        SETTINGS, redis_url="redis://:p%40ss@a/0", mongodb_uri="mongodb://[broken"
    )
    assert process.secrets_of(settings) >= {
        SETTINGS.jwt_secret,
        "redis://:p%40ss@a/0",
        "p%40ss",
        "p@ss",
        "mongodb://[broken",
    }


async def test_the_name_of_the_loop() -> None:
    assert process.loop_name() == "asyncio"


def test_the_loop_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = process.loop_factory()
    assert factory is not None
    assert factory.__module__.startswith("uvloop")
    monkeypatch.setattr("falcon_fast.process.os.name", "nt")
    assert process.loop_factory() is None
