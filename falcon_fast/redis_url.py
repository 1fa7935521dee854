"""Where a Redis is and how to log in: REDIS_URL taken apart, for the settings and the Redis bus.

Pure: nothing is asked of the network. Beside the URLs that redis-py knows there are two for several
servers, written as other programs write them::

    redis://[user:password@]host[:port][/database]           rediss:// with TLS
    unix://[user:password@]/path/to/socket[?db=database]
    redis+sentinel://[user:password@]host[:port][,host[:port]...]/master[/database]
    redis+cluster://[user:password@]host[:port][,host[:port]...]

The last two with TLS are ``rediss+sentinel`` and ``rediss+cluster``. Behind a question mark stand
the options of :data:`OPTIONS`.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["OPTIONS", "RedisUrl", "Topology", "parse_redis_url"]

OPTIONS: Final = frozenset(
    {
        "client_name",
        "db",
        "password",
        "sentinel_password",
        "sentinel_username",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "ssl_password",
        "username",
    }
)
"""What may stand behind the question mark, by redis-py's names; the two of Sentinel are ours."""

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
MAX_DATABASE: Final = 65_535

_PRINTABLE_ASCII: Final = re.compile(r"[!-~]+")
_NODE: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9]{1,16})?)\]|(?P<name>[A-Za-z0-9_.-]{1,253}))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_MASTER: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_FLAGS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Topology(enum.Enum):
    """How the servers behind an address belong together."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisUrl:
    """A checked address.

    Attributes:
        topology: What the nodes are: the server, its sentinels, or some members of a cluster.
        nodes: Host and port of each; empty with a socket's path.
        path: Of a Unix socket, or None.
        master: What the sentinels call the server; empty without sentinels.
        database: The number given to SELECT.
        tls: Whether connections are encrypted.
        username: Of an ACL user, or None.
        password: Or None.
        sentinel_username: The same for the sentinels themselves.
        sentinel_password: The same for the sentinels themselves.
        client_name: What the connections call themselves, or None.
        tls_options: The options that begin with ``ssl_``, by redis-py's names.
    """

    topology: Topology = Topology.SINGLE
    nodes: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    master: str = ""
    database: int = 0
    tls: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    client_name: str | None = None
    tls_options: tuple[tuple[str, str | bool], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        """Say where it is, without anything that is secret."""
        if self.path is not None:
            return f"unix://{self.path}?db={self.database}"
        kind = "" if self.topology is Topology.SINGLE else f"+{self.topology.value}"
        nodes = ",".join(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for h, p in self.nodes)
        end = "".join(f"/{part}" for part in (self.master, str(self.database or "")) if part)
        return f"redis{'s' * self.tls}{kind}://{nodes}{end}"

    @property
    def secrets(self) -> frozenset[str]:
        """The texts in it that no log may contain."""
        given = (self.password, self.sentinel_password, dict(self.tls_options).get("ssl_password"))
        return frozenset(text for text in given if isinstance(text, str) and text)


def parse_redis_url(text: str) -> RedisUrl:
    """Take an address apart.

    Args:
        text: the URL.

    Raises:
        ValueError: it is none; the text says why and quotes nothing that may be secret.
    """
    if not _PRINTABLE_ASCII.fullmatch(text):
        raise ValueError("it has blanks or characters that are not ASCII")
    # urlsplit itself raises ValueError, whose text may quote the password: it is dropped.
    try:
        parts = urlsplit(text)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError("it cannot be taken apart") from None
    scheme, plus, kind = parts.scheme.partition("+")
    if (scheme, kind) not in _SCHEMES or (plus and not kind):
        raise ValueError("it begins with another scheme")
    if parts.fragment:
        raise ValueError("it has a fragment; write # in a password as %23")
    options = _options(given)
    user, at, hosts = parts.netloc.rpartition("@")
    username, colon, password = user.partition(":")
    if at and not colon and not username:
        raise ValueError("there is nothing before the @")
    login = RedisUrl(
        username=options.get("username") or unquote(username) or None,
        password=options.get("password") or unquote(password) or None,
        sentinel_username=options.get("sentinel_username") or None,
        sentinel_password=options.get("sentinel_password") or None,
        client_name=options.get("client_name") or None,
    )
    database = options.get("db", "")
    path = parts.path
    if scheme == "unix":
        if hosts or path in {"", "/"}:
            raise ValueError("it has no path of a socket")
        return replace(login, path=unquote(path), database=_database(database))
    topology = Topology(kind or "single")
    master = ""
    if topology is Topology.SENTINEL:
        master, _, rest = path.removeprefix("/").partition("/")
        if not _MASTER.fullmatch(master):
            raise ValueError("it does not name the master behind the sentinels")
        path = f"/{rest}"
    tls_options = _tls_options(options)
    if tls_options and scheme != "rediss":
        raise ValueError("it has options of TLS, which needs rediss")
    found = replace(
        login,
        topology=topology,
        nodes=_nodes(hosts, topology),
        master=master,
        database=_database(database or path.removeprefix("/")),
        tls=scheme == "rediss",
        tls_options=tls_options,
    )
    if topology is Topology.CLUSTER and found.database:
        raise ValueError("a cluster has no databases but 0")
    return found


_SCHEMES: Final = frozenset(
    {("unix", "")}
    | {(s, k) for s in ("redis", "rediss") for k in ("", Topology.SENTINEL.value, "cluster")}
)


def _options(given: list[tuple[str, str]]) -> dict[str, str]:
    options = dict(given)
    if len(options) != len(given):
        raise ValueError("it has an option twice")
    if unknown := options.keys() - OPTIONS:
        known = ", ".join(sorted(OPTIONS))
        raise ValueError(f"it has {len(unknown)} unknown options; there are {known}")
    return options


def _nodes(hosts: str, topology: Topology) -> tuple[tuple[str, int], ...]:
    default = SENTINEL_PORT if topology is Topology.SENTINEL else REDIS_PORT
    nodes = []
    for item in hosts.split(","):
        match = _NODE.fullmatch(item)
        if match is None:
            raise ValueError("it has no host, or one that is none")
        port = int(match["port"] or default)
        if not 0 < port <= 65_535:
            raise ValueError("it has a port that is none")
        nodes.append((match["v6"] or match["name"], port))
    if topology is Topology.SINGLE and len(nodes) > 1:
        raise ValueError("it has several hosts, which needs redis+sentinel or redis+cluster")
    return tuple(dict.fromkeys(nodes))


def _database(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > MAX_DATABASE:
        raise ValueError("it has a database that is no number")
    return int(text)


def _tls_options(options: dict[str, str]) -> tuple[tuple[str, str | bool], ...]:
    found: list[tuple[str, str | bool]] = []
    for name, value in options.items():
        if not name.startswith("ssl_"):
            continue
        if name == "ssl_check_hostname":
            if value.lower() not in _FLAGS:
                raise ValueError("ssl_check_hostname is neither true nor false")
            found.append((name, _FLAGS[value.lower()]))
        elif name == "ssl_cert_reqs" and value not in {"none", "optional", "required"}:
            raise ValueError("ssl_cert_reqs is not required, optional or none")
        else:
            found.append((name, value))
    return tuple(found)
