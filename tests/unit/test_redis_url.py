"""REDIS_URL: every form that is accepted, every one that is refused, and no secret in either."""

from __future__ import annotations

import pytest

from falcon_fast.redis_url import RedisUrl, Topology, parse_redis_url

SENTINEL, CLUSTER = Topology.SENTINEL, Topology.CLUSTER

ACCEPTED = [
    ("redis://localhost", RedisUrl(nodes=(("localhost", 6379),))),
    ("redis://10.0.0.7:6380/3", RedisUrl(nodes=(("10.0.0.7", 6380),), database=3)),
    ("redis://[::1]:7", RedisUrl(nodes=(("::1", 7),))),
    ("redis://:p%40ss@r/", RedisUrl(nodes=(("r", 6379),), password="p@ss")),
    (
        "redis://ann:pw@r?db=4",
        RedisUrl(nodes=(("r", 6379),), username="ann", password="pw", database=4),
    ),
    ("redis://ann@r?password=pw", RedisUrl(nodes=(("r", 6379),), username="ann", password="pw")),
    ("redis://r?client_name=node-1", RedisUrl(nodes=(("r", 6379),), client_name="node-1")),
    (
        "rediss://r?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=False&ssl_cert_reqs=required",
        RedisUrl(
            nodes=(("r", 6379),),
            tls=True,
            tls_options=(
                ("ssl_ca_certs", "/etc/ca.pem"),
                ("ssl_check_hostname", False),
                ("ssl_cert_reqs", "required"),
            ),
        ),
    ),
    ("unix:///run/redis.sock", RedisUrl(path="/run/redis.sock")),
    ("unix://:pw@/run/r%20x.sock?db=1", RedisUrl(path="/run/r x.sock", password="pw", database=1)),
    (
        "redis+sentinel://ann:pw@a,b:26380/main/2?sentinel_password=other",
        RedisUrl(
            topology=SENTINEL,
            nodes=(("a", 26379), ("b", 26380)),
            master="main",
            database=2,
            username="ann",
            password="pw",
            sentinel_password="other",
        ),
    ),
    (
        "rediss+sentinel://a/main",
        RedisUrl(topology=SENTINEL, nodes=(("a", 26379),), master="main", tls=True),
    ),
    ("redis+cluster://a:1,a:1,[::2]:3", RedisUrl(topology=CLUSTER, nodes=(("a", 1), ("::2", 3)))),
    ("rediss+cluster://a/0", RedisUrl(topology=CLUSTER, nodes=(("a", 6379),), tls=True)),
]


@pytest.mark.parametrize(("text", "expected"), ACCEPTED)
def test_accepted(text: str, expected: RedisUrl) -> None:
    assert parse_redis_url(text) == expected


REFUSED = [
    ("", "blanks"),
    ("redis://a b", "blanks"),
    ("redis://höst", "ASCII"),
    ("redis://[::1", "taken apart"),
    ("redis://r?x", "taken apart"),
    ("http://r", "scheme"),
    ("redis+://r", "scheme"),
    ("redis+single://r", "scheme"),
    ("unix+cluster:///r", "scheme"),
    ("redis://r#x", "fragment"),
    ("redis://@r", "before the @"),
    ("redis://", "no host"),
    ("redis://hunter2@", "no host"),
    ("redis://a,b", "several hosts"),
    ("redis://a:0", "port"),
    ("redis://a:65536", "port"),
    ("redis://a/x", "database"),
    ("redis://a/65536", "database"),
    ("redis://a?db=-1", "database"),
    ("redis://a?db=1&db=2", "twice"),
    ("redis://a?hunter2=hunter2", "unknown"),
    ("redis://a?ssl_ca_certs=/x", "rediss"),
    ("rediss://a?ssl_check_hostname=perhaps", "ssl_check_hostname"),
    ("rediss://a?ssl_cert_reqs=hunter2", "ssl_cert_reqs"),
    ("unix://", "path"),
    ("unix://host/x", "path"),
    ("redis+sentinel://a", "master"),
    ("redis+sentinel://a/b c", "blanks"),
    ("redis+sentinel://a/main/x", "database"),
    ("redis+cluster://a/1", "databases"),
    ("redis+cluster://a,,b", "host"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_redis_url(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://ann:hunter2@r", "redis://r:6379"),
        ("rediss://:hunter2@[::1]:1/2", "rediss://[::1]:1/2"),
        ("unix://:hunter2@/run/r?db=1", "unix:///run/r?db=1"),
        (
            "redis+sentinel://:hunter2@a,b/main/2?sentinel_password=hunter2",
            "redis+sentinel://a:26379,b:26379/main/2",
        ),
        ("rediss+cluster://:hunter2@a?ssl_password=hunter2", "rediss+cluster://a:6379"),
    ],
)
def test_shown_without_secrets(text: str, shown: str) -> None:
    url = parse_redis_url(text)
    assert str(url) == shown
    assert "hunter2" not in repr(url)
    assert url.secrets == {"hunter2"}


def test_no_secret_is_no_secret() -> None:
    assert parse_redis_url("redis://r").secrets == frozenset()
