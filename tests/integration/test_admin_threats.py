"""What bad intentions may send to the admin listener: groups W and L, rows A10 and A11."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import zlib
from collections.abc import Iterator
from typing import Final

import pytest

from ..support.admin import JSON, Admin, Headers
from ..support.client import Client
from ..support.server import ServerProcess, eventually

pytestmark = pytest.mark.integration

BROADCAST: Final = "/websocket/broadcast"
MESSAGE: Final = '{"type":"message","data":{"text":"hello"}}'
MIB: Final = 1024 * 1024


@pytest.fixture(scope="module")
def admin(server: ServerProcess) -> Admin:
    return Admin(server)


@pytest.fixture
def ear(server: ServerProcess) -> Iterator[Client]:
    """Somebody who must hear nothing of what is refused."""
    client = server.connect("ear", 5)
    yield client
    client.close()


def deaf(ear: Client) -> bool:
    """Tell whether nothing was said."""
    return ear.sync() == []


def test_d10_answers_are_not_compressed(admin: Admin) -> None:
    """What an operator reads may stand beside what others could choose."""
    for path in ("/websocket/connections", "/openapi.json", "/metrics", "/"):
        reply = admin.get(path, **{"Accept-Encoding": "gzip, deflate, br, zstd"}, **admin.bearer())
        assert reply.status == 200, path
        assert "content-encoding" not in reply.headers, path


# ----------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/problem+json",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
    ],
)
def test_w02_other_types_of_body(admin: Admin, ear: Client, kind: str | None) -> None:
    headers = {**admin.bearer(), **({"Content-Type": kind} if kind else {})}
    answer = admin.ask("POST", BROADCAST, headers=headers, body=MESSAGE)
    assert (answer.status, answer.detail) == (415, "the body must be application/json")
    assert deaf(ear)


@pytest.mark.parametrize("kind", ["APPLICATION/JSON", "application/json;charset=UTF-8"])
def test_json_by_other_spellings(admin: Admin, kind: str) -> None:
    headers = {**admin.bearer(), "Content-Type": kind}
    assert admin.ask("POST", BROADCAST, headers=headers, body=MESSAGE).status == 200


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "the body is empty"),
        (b" ", "not valid JSON at line 1 column 2"),
        (b"{", "not valid JSON at line 1 column 2"),
        (MESSAGE.encode() + b"x", "not valid JSON at line 1 column 43"),
        (b"\xef\xbb\xbf" + MESSAGE.encode(), "not valid JSON at line 1 column 1"),
        (b'{"type":"message","data":{"x":NaN}}', "not valid JSON at line 1 column 31"),
        (b'{"type":"message","data":{"x":"\xff"}}', "not valid JSON at line 1 column 1"),
        (b'{"type":"message","data":{"x":"\\ud800"}}', "not valid JSON at line 1 column 32"),
        (b"type=message", "not valid JSON at line 1 column 1"),
        (b"{'type':'message'}", "not valid JSON at line 1 column 2"),
    ],
)
def test_j05_bodies_that_are_no_json(admin: Admin, ear: Client, body: bytes, detail: str) -> None:
    answer = admin.ask(
        "POST", BROADCAST, headers={**admin.bearer(), "Content-Type": JSON}, body=body
    )
    assert answer.status == 400
    assert answer.detail.startswith("not valid JSON" if body else "the body is empty")
    assert deaf(ear)


@pytest.mark.parametrize(
    ("body", "locations"),
    [
        ("[]", ["body"]),
        ("null", ["body"]),
        ('"message"', ["body"]),
        ("{}", ["body.type", "body.data"]),
        ('{"type":"shout","data":{}}', ["body.type"]),
        ('{"type":"message","data":[1]}', ["body.data"]),
        ('{"type":"message","data":{},"__proto__":{}}', ["body.__proto__"]),
        ('{"type":"message","data":{"a":18446744073709551616}}', ["body"]),
        ('{"type":"message","data":{"a":-9223372036854775809}}', ["body"]),
        ('{"type":"message","data":{"a":%s}}' % ("9" * 5000), ["body"]),
        ('{"type":"message","data":%s}' % ('{"a":' * 32 + "1" + "}" * 32), ["body"]),
        ('{"type":"message","data":%s}' % ("[" * 200_000), ["body"]),
        (json.dumps({"type": "message", "data": dict.fromkeys(map(str, range(1001)))}), ["body"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_w07_j01_j02_j04_bodies_of_another_shape(
    admin: Admin, ear: Client, body: str, locations: list[str]
) -> None:
    answer = admin.ask(
        "POST", BROADCAST, headers={**admin.bearer(), "Content-Type": JSON}, body=body
    )
    assert answer.locations == locations
    assert deaf(ear)


def test_j03_of_a_key_given_twice_the_checked_one_is_sent(admin: Admin, ear: Client) -> None:
    body = '{"type":"message","type":"critical_alert","data":{"a":1,"a":2}}'
    headers = {**admin.bearer(), "Content-Type": JSON}
    assert admin.ask("POST", BROADCAST, headers=headers, body=body).status == 200
    frame = ear.hear()
    assert (frame["type"], frame["data"]) == ("critical_alert", {"a": 2})


def test_w05_a_body_of_one_octet_too_many(admin: Admin, ear: Client) -> None:
    def padded(size: int) -> str:
        return MESSAGE + " " * (size - len(MESSAGE))

    headers = {**admin.bearer(), "Content-Type": JSON}
    assert admin.ask("POST", BROADCAST, headers=headers, body=padded(MIB)).status == 200
    assert ear.hear()["data"] == {"text": "hello"}
    answer = admin.ask("POST", BROADCAST, headers=headers, body=padded(MIB + 1))
    assert (answer.status, answer.detail) == (413, "the body is larger than 1 MiB")
    assert answer.headers["connection"] == "close"
    assert deaf(ear)


def head(admin: Admin, *lines: str, token: str | None = None, path: str = BROADCAST) -> bytes:
    """Write the head of a POST."""
    first = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {token or admin.token}",
        f"Content-Type: {JSON}",
    ]
    return "\r\n".join([*first, *lines, "", ""]).encode("latin-1")


def test_w05_a_body_without_end(admin: Admin, server: ServerProcess, ear: Client) -> None:
    before = server.rss()
    with admin.wire() as plain:
        plain.sendall(head(admin, "Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(64):
            try:
                plain.sendall(chunk)
            except (BrokenPipeError, ConnectionResetError):
                break
        answer = http.client.HTTPResponse(plain)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["status"]) == (413, 413)
    assert server.rss() - before < 16 * MIB
    assert deaf(ear)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
def test_w05_compressed_bodies(
    admin: Admin, server: ServerProcess, ear: Client, encoding: str
) -> None:
    before = server.rss()
    bomb = (
        zlib.compress(bytes(64 * MIB)) if encoding == "deflate" else gzip.compress(bytes(64 * MIB))
    )
    headers = {**admin.bearer(), "Content-Type": JSON, "Content-Encoding": encoding}
    answer = admin.ask("POST", BROADCAST, headers=headers, body=bomb)
    assert (answer.status, answer.detail) == (415, "the body must not be compressed")
    assert server.rss() - before < 16 * MIB
    assert deaf(ear)


def test_w05_ten_thousand_parts_are_not_read(admin: Admin, ear: Client) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    headers = {**admin.bearer(), "Content-Type": "multipart/form-data; boundary=x"}
    answer = admin.ask("POST", BROADCAST, headers=headers, body=part * 10_000 + b"--x--\r\n")
    assert answer.status == 415
    assert deaf(ear)


def test_w05_nobody_need_be_heard_out_before_they_are_refused(admin: Admin) -> None:
    answer = admin.raw(head(admin, "Content-Length: 1000000", token="abc"))
    assert (answer.status, answer.detail) == (401, "Invalid authentication token")


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"-1\r\n", b"2;x\r\n{}\r\nxx\r\n", b"fffffffffffffffff\r\n"]
)
def test_w10_broken_chunks(admin: Admin, ear: Client, body: bytes) -> None:
    answer = admin.raw(head(admin, "Transfer-Encoding: chunked") + body)
    assert answer.status == 400
    assert deaf(ear)


def test_a_client_that_leaves_amid_its_body(admin: Admin, server: ServerProcess) -> None:
    since = server.log_size()
    with admin.wire() as plain:
        plain.sendall(head(admin, "Content-Length: 100") + b"{")
    eventually(lambda: admin.get("/websocket/rooms").status == 200, "it goes on")
    assert "Traceback" not in server.log(since)


# ----------------------------------------------------------------------------------------- queries


@pytest.mark.parametrize(
    ("query", "location"),
    [
        ("limit=-1", "query.limit"),
        ("limit=0", "query.limit"),
        ("limit=1000000000", "query.limit"),
        ("limit=abc", "query.limit"),
        ("limit=1&limit=2", "query.limit"),
        ("cursor=AAAA", "query.cursor"),
        ("cursor=%00", "query.cursor"),
        ("cursor=%ff%fe", "query.cursor"),
        ("cursor=../../etc/passwd", "query.cursor"),
        ("user_id=$ne", "query.user_id"),
        ("user_id[$ne]=x", "query.user_id[$ne]"),
        ("order=asc", "query.order"),
    ],
)
def test_w06_queries(admin: Admin, query: str, location: str) -> None:
    assert admin.get(f"/websocket/connections?{query}").locations == [location]


def test_w06_a_thousand_parameters(admin: Admin) -> None:
    query = "&".join(f"k{number}=1" for number in range(1000))
    answer = admin.get(f"/websocket/rooms?{query}")
    assert len(answer.locations) == 100
    assert len(answer.body) < 20_000


@pytest.mark.parametrize(
    "ident", ["%00", "%0d%0aX-Evil:1", "%ff%fe", "a%2fb", "%C3%A9", "a" * 65, "%1b[31m", "a.b"]
)
def test_w04_ids_that_are_none(admin: Admin, server: ServerProcess, ident: str) -> None:
    since = server.log_size()
    for method in ("GET", "DELETE"):
        answer = admin.ask(method, f"/websocket/connections/{ident}")
        assert answer.locations == ["path.connection_id"]
        assert "x-evil" not in answer.headers
    logged = server.log(since)
    assert "admin write" in logged
    assert not [line for line in logged.splitlines() if not line.isprintable()]


def test_octets_that_are_no_text_in_the_target(admin: Admin) -> None:
    request = (
        b"GET /websocket/rooms/\xff\xfe?type=\xff HTTP/1.1\r\nHost: localhost\r\n"
        b"Authorization: Bearer " + admin.token.encode() + b"\r\n\r\n"
    )
    assert admin.raw(request).status in {400, 422}


# ------------------------------------------------------------------------------------ from browsers

FOREIGN: Final[list[Headers]] = [
    {},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:9", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("origin", FOREIGN, ids=str)
def test_a11_w02_writes_with_the_cookie_from_elsewhere(
    admin: Admin, ear: Client, origin: Headers
) -> None:
    headers = {"Cookie": f"falcon_auth_token={admin.token}", **origin}
    for method, path in (("POST", BROADCAST), ("DELETE", f"/websocket/connections/{ear.id}")):
        answer = admin.ask(method, path, headers={**headers, "Content-Type": JSON}, body=MESSAGE)
        assert (answer.status, answer.detail) == (
            403,
            "A write with the cookie must come from a page of this server",
        )
    assert deaf(ear)


def test_a10_a_bad_token_is_not_mended_by_a_good_cookie(admin: Admin) -> None:
    headers = {**admin.cookie(), **admin.bearer("abc")}
    answer = admin.ask("GET", "/websocket/rooms", headers=headers)
    assert (answer.status, answer.detail) == (401, "Invalid authentication token")


@pytest.mark.parametrize("twice", ["Authorization: Bearer {}", "Cookie: falcon_auth_token={}"])
def test_a10_two_tokens(admin: Admin, twice: str) -> None:
    line = twice.format(admin.token)
    request = f"GET /websocket/rooms HTTP/1.1\r\nHost: x\r\n{line}\r\n{line}\r\n\r\n".encode()
    assert admin.raw(request).status in {400, 401}


@pytest.mark.parametrize("path", ["/", "/websocket/status", "/websocket/broadcast", "/metrics"])
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "CONNECT", "BREW"])
def test_w10_other_methods(admin: Admin, method: str, path: str) -> None:
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    if method == "CONNECT":
        answer = admin.raw(f"CONNECT {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.status in {400, 404, 405}
        return
    answer = admin.ask(method, path, headers={**admin.bearer(), **preflight})
    allowed = "POST" if path == BROADCAST else "GET"
    if method == "BREW" and answer.status == 400:
        return  # the parser knows no such method
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert (answer.body == b"") is (method == "HEAD")
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/", "/websocket/rooms", "/docs", "/nothing", "/openapi.json"])
def test_w10_no_answer_is_for_other_origins(admin: Admin, path: str) -> None:
    answer = admin.get(path, Origin="https://evil.example")
    assert not [name for name in answer.headers if name.startswith("access-control-")]


GOOD: Final = b"GET /websocket/status HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        GOOD + b"Host: evil\r\n\r\n",
        GOOD + b"X : y\r\n\r\n",
        GOOD + b" folded: y\r\n\r\n",
        GOOD + b"X: a\x00b\r\n\r\n",
        GOOD + b"X: a\rb\r\n\r\n",
        GOOD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        GOOD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        GOOD + b"Content-Length: +1\r\n\r\na",
        GOOD + b"Content-Length: 0x1\r\n\r\na",
        GOOD + b"Transfer-Encoding: chunked, identity\r\n\r\n",
        GOOD + b"X: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
    ids=lambda value: repr(bytes(value))[2:].replace("GET /websocket/status HTTP/1.1", "")[:60],
)
def test_w10_smuggling_and_no_http_at_all(
    admin: Admin, server: ServerProcess, request_: bytes
) -> None:
    since = server.log_size()
    answer = admin.raw(request_ + GOOD + b"\r\n", is_last=True)
    # One answer like all others, and the end: what follows is never taken for a request.
    assert (answer.status, answer.detail) == (400, "Bad Request")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "Traceback" not in server.log(since)


def test_w10_pipelined_requests_are_each_checked(admin: Admin) -> None:
    one = b"GET /websocket/rooms HTTP/1.1\r\nHost: localhost\r\n"
    good = one + b"Authorization: Bearer " + admin.token.encode() + b"\r\n\r\n"
    with admin.wire() as plain:
        plain.sendall(good + one + b"\r\n" + good.replace(b"Host", b"Connection: close\r\nHost"))
        octets = b"".join(iter(lambda: plain.recv(65_536), b""))
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", octets)
    assert statuses == [b"200", b"401", b"200"]


@pytest.mark.parametrize("path", ["/", "/docs", "/websocket/rooms", "/nothing", "/static/docs.js"])
def test_every_answer_has_the_headers(admin: Admin, path: str) -> None:
    headers = admin.ask("GET", path, headers={}).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["server"] == "falcon_fast"
    expected = "no-cache" if path.startswith("/static/") else "no-store"
    assert headers["cache-control"] == expected


@pytest.mark.parametrize(
    "path",
    ["/static/", "/static/../app.py", "/static/%2e%2e/app.py", "/static/swagger-ui/README.md"],
)
def test_only_named_files_are_served(admin: Admin, path: str) -> None:
    assert admin.get(path).status == 404


# ------------------------------------------------------------------------------- status and the log


def test_w08_status_is_public_and_tells_no_more_than_it_may(admin: Admin, ear: Client) -> None:
    answer = admin.ask("GET", "/websocket/status?x=1", headers={})
    assert set(answer.json) == {"module", "status", "stats", "message", "node_id", "nodes"}
    for told in (ear.id, "ear", "127.0.0.1", str(admin.server.port), "falcon.db"):
        assert told.encode() not in answer.body


def test_w08_status_under_a_flood(admin: Admin, ear: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", admin.server.admin_port, timeout=15)
    for _ in range(500):
        connection.request("GET", "/websocket/status")
        assert connection.getresponse().read().startswith(b'{"module":"websocket"')
    connection.close()
    assert deaf(ear)


def audit(log: str) -> list[dict[str, str]]:
    """Return the fields of the log's lines about writes, whichever format it has."""
    found = []
    for line in log.splitlines():
        if "admin write" not in line:
            continue
        if line.startswith("{"):
            found.append({key: str(value) for key, value in json.loads(line).items()})
        else:
            fields = line.partition("admin write")[2].split()
            found.append(dict(field.split("=", 1) for field in fields))
    return found


def test_w12_each_write_is_one_record_without_what_was_said(
    admin: Admin, server: ServerProcess, ear: Client
) -> None:
    since = server.log_size()
    body = {"type": "message", "data": {"text": "the-secret-plan"}}
    user = admin.bearer(server.token("nosy", 4))
    writes = [
        ("POST", BROADCAST, admin.bearer(), "broadcast", "all", 200),
        ("POST", "/websocket/users/ear/message", admin.bearer(), "send_to_user", "ear", 200),
        ("POST", "/websocket/users/gone/message", admin.bearer(), "send_to_user", "gone", 404),
        ("POST", BROADCAST, user, "broadcast", "all", 403),
        (
            "DELETE",
            f"/websocket/connections/{ear.id}",
            admin.bearer(),
            "close_connection",
            ear.id,
            200,
        ),
    ]
    for number, (method, path, headers, *_rest) in enumerate(writes):
        sent = {**headers, "X-Request-ID": f"write-{number}"}
        answer = admin.ask(method, path, headers=sent, json_body=body)
        assert answer.headers["x-request-id"] == f"write-{number}"
    # Neither reads nor people without a token are written down.
    assert admin.get("/websocket/rooms").status == 200
    assert admin.ask("POST", BROADCAST, headers={}, json_body=body).status == 401
    log = server.log(since)
    records = audit(log)
    assert [(one["action"], one["target"], int(one["status"])) for one in records] == [
        (action, target, status) for *_, action, target, status in writes
    ]
    assert [one["request_id"] for one in records] == [f"write-{n}" for n in range(len(writes))]
    users = ["operator"] * 3 + ["nosy", "operator"]
    assert [one["user_id"] for one in records] == users
    assert {one["remote_address"] for one in records} == {"127.0.0.1"}
    assert "the-secret-plan" not in log


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é", "\x1b[31m", "a\tb", "{}"])
def test_h15_request_ids_that_are_not_taken_over(admin: Admin, given: str) -> None:
    request = f"GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: {given}\r\n\r\n".encode()
    answer = admin.raw(request)
    if answer.status != 400:
        assert len(answer.headers["x-request-id"]) == 36
        assert answer.headers["x-request-id"] != given


def test_two_request_ids_are_none(admin: Admin) -> None:
    answer = admin.raw(b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\r\nX-Request-ID: b\r\n\r\n")
    assert len(answer.headers["x-request-id"]) == 36


def test_l01_tokens_are_told_nowhere(admin: Admin, server: ServerProcess) -> None:
    stolen = server.never_log(server.token("victim", 6))
    signature = stolen.rpartition(".")[2].encode()
    cookie = f"falcon_auth_token={stolen}"
    answers = [
        admin.ask("GET", "/websocket/rooms", headers=admin.bearer(stolen)),
        admin.ask("GET", "/websocket/rooms", headers=admin.bearer(stolen + "x")),
        admin.ask("POST", BROADCAST, headers={"Cookie": cookie}, json_body={}),
        admin.ask("POST", BROADCAST, json_body={"type": "message", "data": {}, "x": 1}),
        admin.raw(f"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nCookie: {cookie}\r\n\r\n".encode()),
        admin.raw(f"GET / HTTP/1.1\r\nHost: a\r\nCookie : {cookie}\r\n\r\n".encode()),
        admin.raw(f"Bearer {stolen} / HTTP/1.1\r\nHost: a\r\n\r\n".encode()),
        admin.ask("GET", "/metrics", headers=admin.bearer(stolen)),
        admin.ask("GET", "/websocket/status", headers=admin.bearer(stolen)),
    ]
    for answer in answers:
        assert signature not in answer.body
    log = server.log()
    assert [secret for secret in server.secrets if secret in log] == []
