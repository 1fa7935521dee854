"""Settings: the only reader of the environment, between the command line and the assembly.

:meth:`Settings.from_environ` turns environment variables into one frozen value, or refuses with
**all** problems at once. Every setting is one row of :data:`SETTINGS`; the reference page, the
``check`` command and the parser all read that table.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import difflib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from falcon_fast.errors import SettingsError
from falcon_fast.redis_url import parse_redis_url

__all__ = [
    "ALGORITHM_FAMILIES",
    "DEFAULT_ISSUER",
    "DEFAULT_MAX_LIFETIME",
    "MIN_SECRET_BYTES",
    "SETTINGS",
    "Row",
    "Setting",
    "Settings",
    "default_max_connections",
    "describe",
    "normalise_origin",
    "secret_problem",
]

MIN_SECRET_BYTES: Final = 32
"""RFC 7518 3.2: "A key of the same size as the hash output [...] or larger MUST be used"."""

DEFAULT_ISSUER: Final = "go-falcon"
"""The ``iss`` of tokens made by the go-falcon authentication service."""

DEFAULT_MAX_LIFETIME: Final = 366 * 86_400
"""Seconds; a longer life is more likely a mistake. It bounds how long a revocation is kept."""

ALGORITHM_FAMILIES: Final = (
    ("HS256",),
    ("RS256", "RS384", "RS512"),
    ("PS256", "PS384", "PS512"),
    ("ES256", "ES384", "ES512"),
    ("EdDSA",),
)
"""Names of RFC 7518 3.1 and RFC 8037 3.1; the tokens of one server are of one family."""

MAX_SLOTS: Final = 65_536
"""Connections one process can hold: a slot number in the native core has 16 bits."""

RESERVED_DESCRIPTORS: Final = 256
"""Open files kept back for listeners, backends, the admin API and the log."""

MAX_SHOWN_CHARACTERS: Final = 60
"""A longer wrong value is shown by its beginning only."""

RESERVED_PATHS: Final = frozenset({"/websocket/status", "/healthz", "/readyz"})
"""Paths the public listener answers itself."""

_PREFIX: Final = "FALCON_"

_NOT_SETTINGS: Final = ("FALCON_BUILD_", "FALCON_REQUIRE_ALL")
"""How names begin that the build and the tests of this package read."""

# Kubernetes sets these for a service whose name begins with "falcon" (service links); they are
# nobody's spelling mistake.
_SERVICE_LINK: Final = re.compile(
    r"FALCON_(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    r"|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_VALUE: Final = re.compile(r"(?:tcp|udp|sctp)://")


def default_max_connections() -> int:
    """Return how many connections this process may hold: its open-file limit less a reserve.

    Returns:
        1 to 65 536.
    """
    try:
        import resource
    except ImportError:  # a platform without open-file limits
        return MAX_SLOTS
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_SLOTS
    return max(1, min(MAX_SLOTS, soft - RESERVED_DESCRIPTORS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set, parsed and checked; meanings and units are in SETTINGS.

    Building one directly (as tests and host programs do) checks nothing. Sizes are bytes, times
    are seconds. Secrets and URIs are left out of the repr.
    """

    mongodb_uri: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    jwt_secret: str = field(default="", repr=False)
    jwt_secret_previous: str | None = field(default=None, repr=False)
    jwt_public_key: str | None = None
    jwt_jwks_url: str | None = None
    jwt_algorithms: tuple[str, ...] = ()
    jwt_issuer: str = DEFAULT_ISSUER
    jwt_audience: str | None = None
    jwt_max_lifetime: int = DEFAULT_MAX_LIFETIME
    websocket_url: str | None = None
    websocket_path: str = "/websocket/connect"
    allowed_origins: tuple[str, ...] = ()
    debug: bool = False
    host: str = "0.0.0.0"
    port: int = 3000
    admin_host: str = "127.0.0.1"
    admin_port: int = 3001
    workers: int = 1
    tls_cert: str | None = None
    tls_key: str | None = None
    cookie_name: str = "falcon_auth_token"
    cookie_auth: bool = True
    sqlite_path: str = "./falcon.db"
    mongo_db: str = "falcon"
    mongo_driver: Literal["motor", "pymongo"] = "motor"
    bus_routing: Literal["compatible", "sharded"] = "compatible"
    ping_interval: float = 30.0
    ping_timeout: float = 60.0
    drain_timeout: float = 30.0
    compression: bool = True
    compression_min_bytes: int = 512
    compression_level: int = 6
    log_format: Literal["auto", "json", "console"] = "auto"
    max_head_bytes: int = 16_384
    handshake_timeout: float = 5.0
    connection_rate: float = 20.0
    connection_burst: int = 100
    trusted_proxies: tuple[str, ...] = ()
    max_connections: int = field(default_factory=default_max_connections)
    max_connections_per_user: int = 10
    connection_limit_policy: Literal["reject", "replace"] = "reject"
    max_message_bytes: int = 65_536
    max_fragments: int = 128
    max_json_depth: int = 32
    message_rate: float = 50.0
    message_burst: int = 100
    max_rooms: int = 512
    max_queue_bytes: int = 1_048_576
    max_queue_messages: int = 1_024
    write_timeout: float = 10.0
    room_events_max: int = 1_000

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, require_secret: bool = True) -> Settings:
        """Read and check every setting.

        A variable that is set to the empty string counts as not set.

        Args:
            environ: Usually ``os.environ``.
            require_secret: Whether it is a problem that there is neither ``JWT_SECRET`` nor a
                public key. What is there is checked in any case.

        Returns:
            The settings; ``jwt_secret`` is empty only if it was neither set nor required.

        Raises:
            SettingsError: Something is wrong; lists every problem, and shows no secret.
        """
        problems: list[str] = []
        values: dict[str, Any] = {}
        # What is set, also if its value is refused: one mistake is told once.
        given = set()
        for setting in SETTINGS:
            raw = environ.get(setting.name, "")
            text = raw if setting.secret else raw.strip()
            if text:
                given.add(setting.name)
                try:
                    values[setting.field] = setting.kind.parse(text)
                except ValueError as error:
                    problems.append(_problem(setting, text, str(error)))
        if require_secret and given.isdisjoint(_KEY_SETTINGS):
            problems.append(
                "JWT_SECRET: not set; allowed: the secret the tokens are signed with, at least "
                f"{MIN_SECRET_BYTES} bytes (it has no default)"
            )
        problems.extend(_unknown_names(environ))
        settings = cls(**values)
        problems.extend(_token_conflicts(settings, given))
        problems.extend(_conflicts(settings))
        if problems:
            raise SettingsError(problems)
        return settings

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What tokens are signed with: names of one family."""
        return self.jwt_algorithms or ALGORITHM_FAMILIES[0]

    @property
    def has_public_keys(self) -> bool:
        """Whether tokens are checked with public keys, so that none can be signed here."""
        return self.jwt_public_key is not None or self.jwt_jwks_url is not None

    def describe(self) -> tuple[Row, ...]:
        """Return one row for each setting, with its present value; secrets only as "set"."""
        return describe(self)


@dataclass(frozen=True, slots=True)
class Kind:
    """How the text of a setting is read.

    Attributes:
        allowed: What is allowed, for people; ends the line that reports a problem.
        parse: Text to value; raises ValueError, whose text may add what exactly is wrong.
    """

    allowed: str
    parse: Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting: a row of the table.

    Attributes:
        name: The environment variable.
        field: The attribute of :class:`Settings`.
        kind: How its text is read.
        unit: The unit of the value, or "" if it has none.
        meaning: One sentence.
        crossing: What happens when a limit is crossed, or "" if it is not a limit.
        default_text: Shown as the default where the value itself would not explain it.
        secret: Whether the value is never shown.
    """

    name: str
    field: str
    kind: Kind
    meaning: str
    unit: str = ""
    crossing: str = ""
    default_text: str = ""
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as shown to people; ``value`` is empty unless settings were given."""

    name: str
    default: str
    unit: str
    meaning: str
    crossing: str
    allowed: str
    value: str


def describe(settings: Settings | None = None) -> tuple[Row, ...]:
    """Return one row for each setting, in the order of the table.

    Args:
        settings: Fills in the present values; a secret is shown as "set" or "not set" only.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(Settings)}
    rows = []
    for setting in SETTINGS:
        value = ""
        if settings is not None:
            present: object = getattr(settings, setting.field)
            value = ("set" if present else "not set") if setting.secret else _show(present)
        default = setting.default_text or _show(defaults[setting.field])
        rows.append(
            Row(
                name=setting.name,
                default=default,
                unit=setting.unit,
                meaning=setting.meaning,
                crossing=setting.crossing,
                allowed=setting.kind.allowed,
                value=value,
            )
        )
    return tuple(rows)


def _show(value: object) -> str:
    if value is None or value == ():
        return "not set"
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


# --- problems ------------------------------------------------------------------------------------


def _shape(value: str, *, secret: bool) -> str:
    """Describe a refused value; one that may hold a password only by its length."""
    if secret or "@" in value:
        return f"a value of {len(value)} characters (not shown)"
    shown = value[:MAX_SHOWN_CHARACTERS]
    dots = "..." if len(value) > MAX_SHOWN_CHARACTERS else ""
    plural = "" if len(value) == 1 else "s"
    return f"{shown!r}{dots} ({len(value)} character{plural})"


def _problem(setting: Setting, text: str, detail: str) -> str:
    came = _shape(text, secret=setting.secret)
    middle = f"{detail}; " if detail else ""
    return f"{setting.name}: came {came}; {middle}allowed: {setting.kind.allowed}"


def _unknown_names(environ: Mapping[str, str]) -> list[str]:
    known = [setting.name for setting in SETTINGS]
    problems = []
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name.startswith(_NOT_SETTINGS) or name in known:
            continue
        # The value of an unknown name is not shown: nobody knows whether it is a secret.
        if _SERVICE_LINK.fullmatch(name) or (
            name.endswith("_PORT") and _SERVICE_LINK_VALUE.match(environ[name])
        ):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "no such setting"
        problems.append(f"{name}: unknown name; {hint}")
    return problems


_KEY_SETTINGS: Final = ("JWT_SECRET", "JWT_PUBLIC_KEY", "JWT_JWKS_URL")
"""Where the key is from that tokens are checked with; exactly one of these is set."""


def _token_conflicts(settings: Settings, given: set[str]) -> list[str]:
    """Check that there is one kind of key, and algorithms for it.

    A public key that can be taken for the secret of HS256 is the oldest hole in tokens.
    """
    problems = []
    kinds = [name for name in _KEY_SETTINGS if name in given]
    if len(kinds) > 1:
        problems.append(
            f"{kinds[-1]}: set together with {' and '.join(kinds[:-1])}; allowed: one of them, so "
            "that there is one kind of key"
        )
    if "JWT_SECRET_PREVIOUS" in given and kinds != ["JWT_SECRET"]:
        problems.append(
            "JWT_SECRET_PREVIOUS: set without JWT_SECRET; allowed: the secret before JWT_SECRET, "
            "while its tokens are still valid"
        )
    if settings.jwt_secret and settings.jwt_secret == settings.jwt_secret_previous:
        problems.append(
            "JWT_SECRET_PREVIOUS: the same as JWT_SECRET; allowed: the secret before it, or none"
        )
    is_shared = settings.algorithms == ALGORITHM_FAMILIES[0]
    public = [name for name in kinds if name != "JWT_SECRET"]
    if public and "JWT_ALGORITHMS" not in given:
        problems.append(
            f"JWT_ALGORITHMS: not set; allowed with {public[0]}: what the issuer signs with, such "
            "as RS256, ES256 or EdDSA"
        )
    elif settings.jwt_algorithms and kinds == ["JWT_SECRET"] and not is_shared:
        problems.append(
            f"JWT_ALGORITHMS: came {','.join(settings.jwt_algorithms)!r} with JWT_SECRET; allowed: "
            "HS256, or JWT_PUBLIC_KEY or JWT_JWKS_URL instead of the secret"
        )
    elif settings.jwt_algorithms and public and is_shared:
        problems.append(
            f"JWT_ALGORITHMS: came 'HS256' with {public[0]}, so everybody who has the public key "
            "could sign; allowed: what the issuer signs with, such as RS256, ES256 or EdDSA"
        )
    return problems


def _conflicts(settings: Settings) -> list[str]:
    """Check what no single setting can tell; a refused value stands at its default here."""
    problems = []
    if "*" in settings.allowed_origins:
        if settings.cookie_auth:
            problems.append(
                "WEBSOCKET_ALLOWED_ORIGINS: came '*' with cookie authentication on, so any web "
                "page could connect as its visitor; allowed: a list of origins, or '*' with "
                "FALCON_COOKIE_AUTH=0"
            )
        if len(settings.allowed_origins) > 1:
            problems.append(
                "WEBSOCKET_ALLOWED_ORIGINS: came '*' together with other origins; allowed: "
                "'*' alone, or a list of origins"
            )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        missing = "FALCON_TLS_KEY" if settings.tls_key is None else "FALCON_TLS_CERT"
        problems.append(f"{missing}: not set; allowed: FALCON_TLS_CERT and FALCON_TLS_KEY, or none")
    if settings.ping_timeout <= settings.ping_interval:
        problems.append(
            f"FALCON_PING_TIMEOUT: {settings.ping_timeout:g} s with a ping every "
            f"{settings.ping_interval:g} s (FALCON_PING_INTERVAL); allowed: more than the interval"
        )
    if settings.port == settings.admin_port != 0:
        problems.append(
            f"FALCON_ADMIN_PORT: {settings.admin_port} is FALCON_PORT too; allowed: another port"
        )
    if settings.workers > 1 and settings.sqlite_path == ":memory:" and not settings.mongodb_uri:
        problems.append(
            f"FALCON_SQLITE_PATH: ':memory:' with {settings.workers} workers, each of which would "
            "have users and groups of its own; allowed: a file, or FALCON_WORKERS=1"
        )
    return problems


# --- kinds of values -----------------------------------------------------------------------------

_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_FLAGS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_HOSTNAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_PRINTABLE_ASCII: Final = re.compile(r"[!-~]+")


def _integer(low: int, high: int) -> Kind:
    def parse(text: str) -> int:
        if not _DIGITS.fullmatch(text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Kind(f"an integer from {low} to {high}", parse)


def _port() -> Kind:
    bounded = _integer(0, 65_535)

    def parse(text: str) -> object:
        if _SERVICE_LINK_VALUE.match(text):
            raise ValueError(
                "Kubernetes sets this for a service of that name (set enableServiceLinks: false)"
            )
        return bounded.parse(text)

    return Kind("a port from 0 to 65535 (0: any free port)", parse)


def _max_connections() -> Kind:
    def parse(text: str) -> int:
        if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= MAX_SLOTS:
            raise ValueError
        if int(text) > (most := default_max_connections()):
            raise ValueError(f"the open-file limit allows {most} (raise it with ulimit -n)")
        return int(text)

    return Kind(
        f"an integer from 1 to {MAX_SLOTS}, and at most the open-file limit less "
        f"{RESERVED_DESCRIPTORS}",
        parse,
    )


def _number(low: float, high: float) -> Kind:
    def parse(text: str) -> float:
        if not _DECIMAL.fullmatch(text) or not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return Kind(f"a number from {low:g} to {high:.0f}", parse)


def _flag() -> Kind:
    def parse(text: str) -> bool:
        value = _FLAGS.get(text.lower())
        if value is None:
            raise ValueError
        return value

    return Kind("1, true, yes, on, 0, false, no or off", parse)


def _choice(*choices: str) -> Kind:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return Kind(" or ".join(choices), parse)


def _matching(pattern: str, allowed: str) -> Kind:
    compiled = re.compile(pattern)

    def parse(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError
        return text

    return Kind(allowed, parse)


def _url(*schemes: str, plain: bool = False) -> Kind:
    """A URL; a plain one carries no user, query or fragment."""

    def parse(text: str) -> str:
        if not _PRINTABLE_ASCII.fullmatch(text):
            raise ValueError("it has blanks or characters that are not ASCII")
        # urlsplit itself raises ValueError, whose text may quote the password: it is dropped.
        try:
            parts = urlsplit(text)
        except ValueError:
            raise ValueError from None
        host = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
        if parts.scheme not in schemes or not host:
            raise ValueError
        if plain and ("@" in parts.netloc or parts.query or parts.fragment):
            raise ValueError("it has a user, a query or a fragment, which every client would see")
        return text

    names = " or ".join(f"{scheme}://" for scheme in schemes)
    return Kind(f"a URL that begins with {names}", parse)


def _redis() -> Kind:
    def parse(text: str) -> str:
        parse_redis_url(text)
        return text

    return Kind(
        "a URL that begins with redis:// or rediss:// (TLS), unix://, redis+sentinel:// or "
        "redis+cluster://",
        parse,
    )


def _key_set_url() -> Kind:
    """Where keys are fetched from: nobody on the way may change them."""
    url = _url("https", "http")

    def parse(text: str) -> object:
        url.parse(text)
        parts = urlsplit(text)
        try:
            host, _port = parts.hostname or "", parts.port
        except ValueError:
            raise ValueError("its port is no port") from None
        if not host or "@" in parts.netloc or parts.fragment:
            raise ValueError("it has a user or a fragment, or no host")
        if parts.scheme == "http" and not _is_loopback(host):
            raise ValueError("without TLS anybody on the way could put in keys of their own")
        return text

    return Kind("a URL that begins with https:// (http:// for this machine only)", parse)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _algorithms() -> Kind:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(_items(text))
        if not names or not any(set(names) <= set(family) for family in ALGORITHM_FAMILIES):
            raise ValueError
        return names

    families = "; ".join(", ".join(family) for family in ALGORITHM_FAMILIES)
    return Kind(f"a comma list of names of one family: {families}", parse)


def _path() -> Kind:
    pattern = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")

    def parse(text: str) -> str:
        if not pattern.fullmatch(text) or len(text) > 256:
            raise ValueError
        if any(part in {".", ".."} for part in text.split("/")):
            raise ValueError("it has dot segments, which clients remove")
        if text in RESERVED_PATHS:
            raise ValueError("the server answers this path itself")
        return text

    return Kind("a path such as /websocket/connect, at most 256 characters", parse)


def _host() -> Kind:
    def parse(text: str) -> str:
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            if not _HOSTNAME.fullmatch(text) or re.fullmatch(r"[0-9.]+", text):
                raise ValueError from None
        return text.lower()

    return Kind("an IP address or a host name", parse)


def _file() -> Kind:
    def parse(text: str) -> str:
        if "\0" in text or not os.path.isfile(text):
            raise ValueError("no such file")
        if not os.access(text, os.R_OK):
            raise ValueError("the file cannot be read by this user")
        return text

    return Kind("the path of a file in PEM format", parse)


def _database_file() -> Kind:
    def parse(text: str) -> str:
        if text == ":memory:":
            return text
        if "\0" in text or not os.path.isdir(os.path.dirname(text) or "."):
            raise ValueError("its directory does not exist")
        if os.path.isdir(text):
            raise ValueError("it is a directory")
        return text

    return Kind("the path of a file in a directory that exists, or :memory:", parse)


def _items(text: str) -> list[str]:
    """Split a comma list, dropping empty items and repetitions."""
    return list(dict.fromkeys(item for part in text.split(",") if (item := part.strip())))


def _origins() -> Kind:
    def parse(text: str) -> tuple[str, ...]:
        origins = []
        for item in _items(text):
            origin = item if item == "*" else normalise_origin(item)
            if origin is None:
                raise ValueError(f"{_shape(item, secret=False)} is not an origin")
            origins.append(origin)
        return tuple(dict.fromkeys(origins))

    return Kind(
        "a comma list of origins, each scheme://host or scheme://host:port without a path", parse
    )


def _networks() -> Kind:
    def parse(text: str) -> tuple[str, ...]:
        networks = []
        for item in _items(text):
            try:
                network = ipaddress.ip_network(item)
            except ValueError:
                raise ValueError(f"{_shape(item, secret=False)} is not a network") from None
            if network.prefixlen == 0:
                raise ValueError(f"{item} is every address, so anybody could forge theirs")
            networks.append(str(network))
        return tuple(dict.fromkeys(networks))

    return Kind("a comma list of networks such as 10.0.0.0/8 or fd00::/8", parse)


def _secret() -> Kind:
    def parse(text: str) -> str:
        problem = secret_problem(text)
        if problem is not None:
            raise ValueError(problem)
        return text

    return Kind(f"at least {MIN_SECRET_BYTES} bytes that are not a key in a known format", parse)


# --- origins -------------------------------------------------------------------------------------

_ORIGIN: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,30})://"
    r"(?:(?P<name>[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63}){0,126})|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def normalise_origin(origin: str) -> str | None:
    """Bring an origin into the one form in which origins are compared.

    RFC 6454 4 and 6.2: scheme and host in lower case, the default port left out. A host with a
    trailing dot is another origin for browsers and is not accepted; international names must
    come in their ``xn--`` form, as browsers send them.

    Args:
        origin: ``scheme://host`` or ``scheme://host:port``.

    Returns:
        The normal form, or None for anything else (``null``, a path, a user, more than one).
    """
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return None
    scheme = match["scheme"].lower()
    if match["v6"] is not None:
        try:
            host = f"[{ipaddress.IPv6Address(match['v6'])}]"
        except ValueError:
            return None
    else:
        host = match["name"].lower()
    if match["port"] is None:
        return f"{scheme}://{host}"
    port = int(match["port"])
    if port > 65_535:
        return None
    if _DEFAULT_PORTS.get(scheme) == port:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


# --- the signing secret --------------------------------------------------------------------------

_SSH_KEY: Final = re.compile(
    r"(?:^|\s)(?:sk-)?(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-nistp[0-9]+)(?:@openssh\.com)?\s"
)
_SSH_BLOB: Final = re.compile(rb"\x00\x00\x00.(?:sk-)?(?:ssh-|ecdsa-sha2-)", re.DOTALL)
_DER_SEQUENCE: Final = 0x30
# INTEGER, BIT STRING, OCTET STRING, NULL, OBJECT IDENTIFIER, SEQUENCE, context tags 0 to 3.
_DER_CHILDREN: Final = frozenset({0x02, 0x03, 0x04, 0x05, 0x06, 0x30, 0xA0, 0xA1, 0xA2, 0xA3})


def secret_problem(secret: str) -> str | None:
    """Say why a text must not be the signing secret, without quoting it.

    A public key used as the secret of HS256 lets everybody who has that key sign tokens
    (CVE-2017-11424, CVE-2022-29217 and their successors), so a text that looks like a key of any
    common format is refused, also with changed white space, quoted, or in base64.

    Returns:
        The reason, or None if the secret may be used.
    """
    try:
        whole = secret.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "it is not valid UTF-8"
    raw = secret.strip().encode("utf-8", "surrogateescape")
    if len(raw) < MIN_SECRET_BYTES:
        return f"too short ({len(raw)} bytes)"
    # The last byte of a key may be one that looks like white space.
    if _is_der(raw) or _is_der(whole) or _SSH_BLOB.match(raw):
        return "it is a key or a certificate, not a secret"
    for text in (secret, *_unwrapped(secret)):
        if _is_key_text(text):
            return "it is a key or a certificate, not a secret"
    try:
        decoded = base64.b64decode("".join(secret.split()).translate(_FROM_URL_SAFE) + "==")
    except (ValueError, binascii.Error):
        return None
    if _is_der(decoded) or _SSH_BLOB.match(decoded) or _is_key_text(decoded.decode("latin-1")):
        return "it is a key or a certificate in base64, not a secret"
    return None


_FROM_URL_SAFE: Final = str.maketrans("-_", "+/")


def _unwrapped(text: str) -> list[str]:
    """Return what is inside when the text is a JSON string, as some tools store a key."""
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [inner] if isinstance(inner, str) else []


def _is_key_text(text: str) -> bool:
    # White space is taken out first: loaders of PEM forgive more of it than a pattern would.
    if "----BEGIN" in "".join(text.split()).upper():
        return True
    if _SSH_KEY.search(text):
        return True
    stripped = text.lstrip("\ufeff \t\r\n")
    if not stripped.startswith(("{", "[")):
        return False
    try:
        json.loads(stripped)
    except ValueError:
        return False
    except RecursionError:
        return True
    return True


def _is_der(data: bytes) -> bool:
    """Whether the bytes are exactly one ASN.1 SEQUENCE of the parts keys are made of."""
    outer = _der_element(data, 0)
    if outer is None or outer[0] != _DER_SEQUENCE or outer[2] != len(data):
        return False
    position, children = outer[1], 0
    while position < len(data):
        child = _der_element(data, position)
        if child is None or child[0] not in _DER_CHILDREN:
            return False
        position, children = child[2], children + 1
    return children >= 2


def _der_element(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Return (tag, start of the content, end of the content), or None if it does not fit."""
    if at + 2 > len(data):
        return None
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or start + size > len(data):
            return None
        length, start = int.from_bytes(data[start : start + size], "big"), start + size
    return (tag, start, start + length) if start + length <= len(data) else None


# --- the table -----------------------------------------------------------------------------------

_SECONDS: Final = "seconds"
_BYTES: Final = "bytes"

SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        name="JWT_SECRET",
        field="jwt_secret",
        kind=_secret(),
        secret=True,
        default_text="none: must be set",
        meaning="The secret that tokens are signed with (HS256), shared with the issuer; not with "
        "JWT_PUBLIC_KEY or JWT_JWKS_URL.",
    ),
    Setting(
        name="JWT_SECRET_PREVIOUS",
        field="jwt_secret_previous",
        kind=_secret(),
        secret=True,
        meaning="The secret before JWT_SECRET: its tokens are accepted too, none is signed with "
        "it.",
    ),
    Setting(
        name="JWT_PUBLIC_KEY",
        field="jwt_public_key",
        kind=_file(),
        meaning="Public keys that tokens are checked with instead of JWT_SECRET, one or several in "
        "one file.",
    ),
    Setting(
        name="JWT_JWKS_URL",
        field="jwt_jwks_url",
        kind=_key_set_url(),
        meaning="Where the issuer publishes its public keys (JWKS), instead of JWT_SECRET.",
    ),
    Setting(
        name="JWT_ALGORITHMS",
        field="jwt_algorithms",
        kind=_algorithms(),
        default_text="HS256",
        meaning="What tokens are signed with; must be set with public keys.",
    ),
    Setting(
        name="JWT_ISSUER",
        field="jwt_issuer",
        kind=_matching(r"[!-~]{1,256}", "1 to 256 characters of ASCII without blanks"),
        crossing="401",
        meaning="The only accepted `iss` of a token.",
    ),
    Setting(
        name="JWT_AUDIENCE",
        field="jwt_audience",
        kind=_matching(r"[!-~]{1,256}", "1 to 256 characters of ASCII without blanks"),
        crossing="401",
        meaning="What the `aud` of a token must be or contain; not looked at if not set.",
    ),
    Setting(
        name="JWT_MAX_LIFETIME",
        field="jwt_max_lifetime",
        kind=_integer(60, 10 * DEFAULT_MAX_LIFETIME),
        unit=_SECONDS,
        crossing="401",
        meaning="The longest life of a token, from `iat` to `exp`; so long is a revocation kept.",
    ),
    Setting(
        name="MONGODB_URI",
        field="mongodb_uri",
        kind=_url("mongodb", "mongodb+srv"),
        secret=True,
        meaning="Users and groups come from this MongoDB instead of the SQLite file.",
    ),
    Setting(
        name="REDIS_URL",
        field="redis_url",
        kind=_redis(),
        secret=True,
        meaning="Nodes talk to each other over this Redis; without it there is one node.",
    ),
    Setting(
        name="WEBSOCKET_URL",
        field="websocket_url",
        kind=_url("ws", "wss", plain=True),
        meaning="The public URL for clients, as reported by the status endpoint.",
    ),
    Setting(
        name="WEBSOCKET_PATH",
        field="websocket_path",
        kind=_path(),
        meaning="The path of the WebSocket endpoint.",
    ),
    Setting(
        name="WEBSOCKET_ALLOWED_ORIGINS",
        field="allowed_origins",
        kind=_origins(),
        crossing="403",
        meaning="Web origins that may connect, separated by commas; `*` is any origin and needs "
        "FALCON_COOKIE_AUTH=0.",
    ),
    Setting(
        name="WEBSOCKET_DEBUG",
        field="debug",
        kind=_flag(),
        meaning="Log at level DEBUG.",
    ),
    Setting(
        name="FALCON_HOST",
        field="host",
        kind=_host(),
        meaning="The address of the public listener.",
    ),
    Setting(
        name="FALCON_PORT",
        field="port",
        kind=_port(),
        meaning="The port of the public listener; 0 is any free port, printed at the start.",
    ),
    Setting(
        name="FALCON_ADMIN_HOST",
        field="admin_host",
        kind=_host(),
        meaning="The address of the admin listener.",
    ),
    Setting(
        name="FALCON_ADMIN_PORT",
        field="admin_port",
        kind=_port(),
        meaning="The port of the admin listener; 0 is any free port, printed at the start.",
    ),
    Setting(
        name="FALCON_WORKERS",
        field="workers",
        kind=_integer(1, 256),
        unit="processes",
        meaning="How many processes serve the public port.",
    ),
    Setting(
        name="FALCON_TLS_CERT",
        field="tls_cert",
        kind=_file(),
        meaning="The certificate chain of the public listener; needs FALCON_TLS_KEY.",
    ),
    Setting(
        name="FALCON_TLS_KEY",
        field="tls_key",
        kind=_file(),
        meaning="The private key of the public listener; needs FALCON_TLS_CERT.",
    ),
    Setting(
        name="FALCON_COOKIE_NAME",
        field="cookie_name",
        kind=_matching(
            r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}", "1 to 64 characters of a cookie name (RFC 6265)"
        ),
        meaning="The cookie a token is read from.",
    ),
    Setting(
        name="FALCON_COOKIE_AUTH",
        field="cookie_auth",
        kind=_flag(),
        meaning="Whether a token is read from the cookie at all.",
    ),
    Setting(
        name="FALCON_SQLITE_PATH",
        field="sqlite_path",
        kind=_database_file(),
        meaning="The file of users and groups while MONGODB_URI is not set; `:memory:` keeps "
        "them for the run only.",
    ),
    Setting(
        name="FALCON_MONGO_DB",
        field="mongo_db",
        kind=_matching(r"[A-Za-z0-9_-]{1,63}", "1 to 63 letters, digits, - or _"),
        meaning="The name of the MongoDB database.",
    ),
    Setting(
        name="FALCON_MONGO_DRIVER",
        field="mongo_driver",
        kind=_choice("motor", "pymongo"),
        meaning="The MongoDB driver: `motor`, or `pymongo` with its own asyncio client.",
    ),
    Setting(
        name="FALCON_BUS_ROUTING",
        field="bus_routing",
        kind=_choice("compatible", "sharded"),
        meaning="How messages are spread over Redis channels: `compatible` with go-falcon nodes, "
        "or `sharded`.",
    ),
    Setting(
        name="FALCON_PING_INTERVAL",
        field="ping_interval",
        kind=_number(0.05, 3_600),
        unit=_SECONDS,
        meaning="A silent connection is pinged this often.",
    ),
    Setting(
        name="FALCON_PING_TIMEOUT",
        field="ping_timeout",
        kind=_number(0.05, 7_200),
        unit=_SECONDS,
        crossing="4001",
        meaning="A connection that was silent for this long is dead; more than the interval.",
    ),
    Setting(
        name="FALCON_DRAIN_TIMEOUT",
        field="drain_timeout",
        kind=_number(0, 3_600),
        unit=_SECONDS,
        crossing="1012",
        meaning="How long a stopping node takes to close its connections.",
    ),
    Setting(
        name="FALCON_COMPRESSION",
        field="compression",
        kind=_flag(),
        meaning="Whether permessage-deflate is agreed on with clients that offer it.",
    ),
    Setting(
        name="FALCON_COMPRESSION_MIN_BYTES",
        field="compression_min_bytes",
        kind=_integer(1, 16_777_216),
        unit=_BYTES,
        meaning="A shorter message is sent as it is.",
    ),
    Setting(
        name="FALCON_COMPRESSION_LEVEL",
        field="compression_level",
        kind=_integer(1, 9),
        meaning="How hard zlib tries: 1 is fast, 9 is small.",
    ),
    Setting(
        name="FALCON_LOG_FORMAT",
        field="log_format",
        kind=_choice("auto", "json", "console"),
        meaning="The form of the log; `auto` is `console` on a terminal and `json` elsewhere.",
    ),
    Setting(
        name="FALCON_MAX_HEAD_BYTES",
        field="max_head_bytes",
        kind=_integer(1_024, 65_536),
        unit=_BYTES,
        crossing="431 or 414",
        meaning="The head of an HTTP request; a header line may have 8192 bytes, and there may be "
        "100 of them.",
    ),
    Setting(
        name="FALCON_HANDSHAKE_TIMEOUT",
        field="handshake_timeout",
        kind=_number(0.05, 60),
        unit=_SECONDS,
        crossing="closed",
        meaning="From accepting a connection to the end of its handshake, in all.",
    ),
    Setting(
        name="FALCON_CONNECTION_RATE",
        field="connection_rate",
        kind=_number(0.1, 1_000_000),
        unit="per second",
        crossing="429 + Retry-After",
        meaning="New connections from one client address.",
    ),
    Setting(
        name="FALCON_CONNECTION_BURST",
        field="connection_burst",
        kind=_integer(1, 1_000_000),
        unit="connections",
        crossing="429 + Retry-After",
        meaning="New connections from one client address at once, before the rate counts.",
    ),
    Setting(
        name="FALCON_TRUSTED_PROXIES",
        field="trusted_proxies",
        kind=_networks(),
        meaning="Networks of proxies whose `X-Forwarded-For` is believed, separated by commas.",
    ),
    Setting(
        name="FALCON_MAX_CONNECTIONS",
        field="max_connections",
        kind=_max_connections(),
        unit="connections",
        crossing="503 + Retry-After",
        default_text="open-file limit - 256, at most 65536",
        meaning="Connections one process holds.",
    ),
    Setting(
        name="FALCON_MAX_CONNECTIONS_PER_USER",
        field="max_connections_per_user",
        kind=_integer(1, MAX_SLOTS),
        unit="connections",
        crossing="4409 or 4410",
        meaning="Connections of one user on all nodes.",
    ),
    Setting(
        name="FALCON_CONNECTION_LIMIT_POLICY",
        field="connection_limit_policy",
        kind=_choice("reject", "replace"),
        meaning="With too many connections of one user: `reject` the new one (4409), or "
        "`replace` the oldest (4410).",
    ),
    Setting(
        name="FALCON_MAX_MESSAGE_BYTES",
        field="max_message_bytes",
        kind=_integer(128, 16_777_216),
        unit=_BYTES,
        crossing="1009",
        meaning="One message of a client, all its fragments together.",
    ),
    Setting(
        name="FALCON_MAX_FRAGMENTS",
        field="max_fragments",
        kind=_integer(1, 10_000),
        unit="frames",
        crossing="1008",
        meaning="Frames of one message.",
    ),
    Setting(
        name="FALCON_MAX_JSON_DEPTH",
        field="max_json_depth",
        # orjson, which writes what is passed on, nests 254 deep at most.
        kind=_integer(2, 254),
        unit="levels",
        crossing="error `bad_request`",
        meaning="Nested objects and arrays in one message.",
    ),
    Setting(
        name="FALCON_MESSAGE_RATE",
        field="message_rate",
        kind=_number(0.1, 1_000_000),
        unit="per second",
        crossing="error `rate_limited`; for 10 s on end: 4003",
        meaning="Messages of one connection.",
    ),
    Setting(
        name="FALCON_MESSAGE_BURST",
        field="message_burst",
        kind=_integer(1, 1_000_000),
        unit="messages",
        crossing="error `rate_limited`; for 10 s on end: 4003",
        meaning="Messages of one connection at once, before the rate counts.",
    ),
    Setting(
        name="FALCON_MAX_ROOMS",
        field="max_rooms",
        kind=_integer(1, 10_000),
        unit="rooms",
        crossing="error `limit`",
        meaning="Rooms of one connection; the personal room comes first.",
    ),
    Setting(
        name="FALCON_MAX_QUEUE_BYTES",
        field="max_queue_bytes",
        kind=_integer(1_024, 1_073_741_824),
        unit=_BYTES,
        crossing="4000",
        meaning="What waits to be sent to one connection.",
    ),
    Setting(
        name="FALCON_MAX_QUEUE_MESSAGES",
        field="max_queue_messages",
        kind=_integer(1, 1_000_000),
        unit="messages",
        crossing="4000",
        meaning="Messages that wait to be sent to one connection.",
    ),
    Setting(
        name="FALCON_WRITE_TIMEOUT",
        field="write_timeout",
        kind=_number(0.05, 3_600),
        unit=_SECONDS,
        crossing="4000",
        meaning="How long a connection may take nothing of what waits for it.",
    ),
    Setting(
        name="FALCON_ROOM_EVENTS_MAX",
        field="room_events_max",
        kind=_integer(0, MAX_SLOTS),
        unit="members",
        crossing="one `member_count` event a second",
        meaning="Largest room in which every joining and leaving member is announced.",
    ),
)
"""Every setting, in the order in which they are shown."""
