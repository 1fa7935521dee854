"""The grammar of request heads, the limits on them, and the bytes of a refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from falcon_fast.head import (
    BAD_HEAD,
    BAD_HTTP_VERSION,
    BODY_NOT_ALLOWED,
    HEAD_TOO_LARGE,
    URI_TOO_LONG,
    HeadLimits,
    Refuse,
    Request,
    has_valid_host,
    parse_head,
)

from ..support.growth import LINEAR, growth
from ..support.heads import BROWSERS, CHROMIUM, MINIMAL, add, drop, swap

LIMITS = HeadLimits()


def head_with(*lines: bytes) -> bytes:
    return add(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", *lines)


def parsed(head: bytes, limits: HeadLimits = LIMITS) -> Request:
    request = parse_head(head, limits)
    assert isinstance(request, Request), request
    return request


# --- what is read -------------------------------------------------------------------------------


def test_h01_reads_every_part_of_a_browsers_head() -> None:
    request = parsed(CHROMIUM)
    assert (request.method, request.target, request.path) == (
        "GET",
        "/websocket/connect",
        "/websocket/connect",
    )
    assert list(request.fields) == [
        "host",
        "connection",
        "pragma",
        "cache-control",
        "user-agent",
        "upgrade",
        "origin",
        "sec-websocket-version",
        "accept-encoding",
        "accept-language",
        "cookie",
        "sec-websocket-key",
        "sec-websocket-extensions",
    ]
    assert request.get_all("cookie") == ("falcon_auth_token=h.p.s; theme=dark",)
    assert request.get_all("accept-encoding") == ("gzip, deflate, br, zstd",)


@pytest.mark.parametrize("name", BROWSERS)
def test_h01_reads_each_header_of_each_browser(name: str) -> None:
    head = BROWSERS[name]
    lines = head.decode("ascii").split("\r\n")[1:-2]
    expected = {line.split(": ", 1)[0].lower(): (line.split(": ", 1)[1],) for line in lines}
    assert parsed(head).fields == expected


def test_reads_a_head_without_headers() -> None:
    assert parsed(b"GET /x HTTP/1.1\r\n\r\n") == Request("GET", "/x", "/x", {})


def test_keeps_repeated_headers_in_order() -> None:
    request = parsed(head_with(b"X-A: 1", b"x-b: 2", b"x-A:3"))
    assert request.get_all("x-a") == ("1", "3")
    assert request.get_all("x-missing") == ()


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"x:", ""),
        (b"x:   ", ""),
        (b"x:v", "v"),
        (b"x: \t v \t ", "v"),
        (b"x: a  b", "a  b"),
        (b"x: a\tb", "a\tb"),
        (b"x: a:b", "a:b"),
        (b"x: :", ":"),
        (b"x: \xe9\xff\x80", "\xe9\xff\x80"),
        (b"x: \xa0v\xa0", "\xa0v\xa0"),
    ],
)
def test_reads_a_value_without_the_white_space_around_it(line: bytes, value: str) -> None:
    assert parsed(head_with(line)).get_all("x") == (value,)


def test_reads_every_character_a_name_may_have() -> None:
    name = b"!#$%&'*+-.^_`|~09azAZ"
    assert parsed(head_with(name + b": v")).get_all(name.decode("ascii").lower()) == ("v",)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a?token=x", "/a"),
        ("/a?", "/a"),
        ("/a?b?c", "/a"),
        ("/%61", "/%61"),
        ("//a", "//a"),
        ("/a#b", "/a#b"),
        ("http://localhost:3000/a?b", "/a"),
        ("HTTPS://LOCALHOST/A", "/A"),
        ("ws://localhost/a", "/a"),
        ("wss://[::1]:3000/a", "/a"),
        ("http://localhost", "/"),
        ("http://localhost?a", "/"),
    ],
)
def test_reads_the_path_of_a_target(target: str, path: str) -> None:
    request = parsed(f"GET {target} HTTP/1.1\r\n\r\n".encode("ascii"))
    assert (request.target, request.path) == (target, path)


@pytest.mark.parametrize(
    "target",
    [
        b"*",
        b"a/b",
        b"?a",
        b"example.com:443",
        b"ftp://localhost/a",
        b"http://",
        b"http:///a",
        b"http://user@localhost/a",
        b"http://a:999999/",
        b"http://[::1/a",
    ],
)
def test_refuses_other_forms_of_a_target(target: bytes) -> None:
    assert parse_head(b"GET " + target + b" HTTP/1.1\r\n\r\n", LIMITS) is BAD_HEAD


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "HEAD", "get", "OPTIONS", "M-SEARCH"])
def test_h06_reads_any_method_for_route_to_refuse(method: str) -> None:
    assert parsed(f"{method} / HTTP/1.1\r\n\r\n".encode("ascii")).method == method


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET\t/\tHTTP/1.1",
        b"GET / http/1.1",
        b"GET / HTTP/1",
        b"GET / HTTP/11.1",
        b"GET / HTTP/1.1.1",
        b"GET / HTTP/x.y",
        b"GET /\x00 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"GET /\xe9 HTTP/1.1",
        b"GET /\n HTTP/1.1",
        b"GET /\r HTTP/1.1",
        b"GE(T / HTTP/1.1",
        b"\x00GET / HTTP/1.1",
        b"G" * 33 + b" / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_h06_refuses_what_is_no_request_line(line: bytes) -> None:
    assert parse_head(line + b"\r\nHost: a\r\n\r\n", LIMITS) is BAD_HEAD


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", id="H06-1.0"),
        pytest.param(b"GET / HTTP/0.9\r\n\r\n", id="H06-0.9"),
        pytest.param(b"GET / HTTP/1.2\r\n\r\n", id="H06-1.2"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\n", id="H06-http2-preface"),
    ],
)
def test_refuses_other_http_versions(head: bytes) -> None:
    assert parse_head(head, LIMITS) is BAD_HTTP_VERSION


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"Host : x", id="H08-space-before-colon"),
        pytest.param(b"Host\t: x", id="H08-tab-before-colon"),
        pytest.param(b" Host: x", id="H08-obs-fold"),
        pytest.param(b"\tfolded", id="H08-obs-fold-tab"),
        pytest.param(b"a: b\n c", id="H08-bare-lf-fold"),
        pytest.param(b"a: b\nc: d", id="H08-bare-lf"),
        pytest.param(b"a: b\rc: d", id="H08-bare-cr"),
        pytest.param(b"a: b\r", id="H08-cr-before-crlf"),
        pytest.param(b"a: b\x00c", id="H08-nul"),
        pytest.param(b"a: \x0bb", id="H08-vertical-tab"),
        pytest.param(b"a: b\x0c", id="H08-form-feed"),
        pytest.param(b"a: \x01", id="H08-control"),
        pytest.param(b"a: \x1b[0m", id="H08-escape"),
        pytest.param(b"a: \x7f", id="H08-delete"),
        pytest.param(b"na me: x", id="H08-space-in-name"),
        pytest.param(b"n\xe9: x", id="H08-name-not-ascii"),
        pytest.param(b"na(me: x", id="H08-separator-in-name"),
        pytest.param(b"no colon", id="H08-no-colon"),
        pytest.param(b"nocolon", id="H08-no-colon-token"),
        pytest.param(b": x", id="H08-no-name"),
        pytest.param(b":", id="H08-colon-only"),
        pytest.param(b"\x00", id="H08-nul-line"),
        pytest.param(b"", id="H08-empty-line-inside"),
    ],
)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_refuses_a_line_that_can_be_read_in_two_ways(line: bytes, where: str) -> None:
    lines = [b"Host: a", b"X-Y: z"]
    lines.insert({"first": 0, "middle": 1, "last": 2}[where], line)
    head = b"GET / HTTP/1.1\r\n" + b"".join([each + b"\r\n" for each in lines]) + b"\r\n"
    assert parse_head(head, LIMITS) is BAD_HEAD


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"GET / HTTP/1.1", id="no-line-end"),
        pytest.param(b"GET / HTTP/1.1\r\n", id="no-empty-line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n", id="no-empty-line-after-headers"),
        pytest.param(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", id="empty-line-first"),
        pytest.param(b"\r\n\r\n", id="only-empty-lines"),
        pytest.param(MINIMAL + b"\x81\x80", id="bytes-after-the-head"),
        pytest.param(MINIMAL + MINIMAL, id="two-heads"),
        pytest.param(b"GET / HTTP/1.1\nHost: a\n\n", id="H08-bare-lf-throughout"),
    ],
)
def test_refuses_what_is_not_exactly_one_head(head: bytes) -> None:
    assert parse_head(head, LIMITS) is BAD_HEAD


@pytest.mark.parametrize("end", range(len(MINIMAL)))
def test_h12_no_part_of_a_head_passes_for_the_whole(end: int) -> None:
    assert parse_head(MINIMAL[:end], LIMITS) is BAD_HEAD


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"Content-Length: 5"], id="H07-length"),
        pytest.param([b"Transfer-Encoding: chunked"], id="H07-chunked"),
        pytest.param([b"transfer-encoding:"], id="H07-empty-coding"),
        pytest.param([b"Content-Length: 0", b"Transfer-Encoding: chunked"], id="H07-both"),
        pytest.param([b"Content-Length: 0", b"Content-Length: 0"], id="H07-twice"),
        pytest.param([b"Content-Length: 0, 0"], id="H07-list"),
        pytest.param([b"Content-Length: +0"], id="H07-sign"),
        pytest.param([b"Content-Length: -0"], id="H07-negative"),
        pytest.param([b"Content-Length: 0x0"], id="H07-hex"),
        pytest.param([b"Content-Length: 00"], id="H07-zeros"),
        pytest.param([b"Content-Length:"], id="H07-empty"),
        pytest.param([b"Content-Length: \xb2"], id="H07-unicode-digit"),
    ],
)
def test_refuses_a_body(lines: list[bytes]) -> None:
    assert parse_head(add(MINIMAL, *lines), LIMITS) is BODY_NOT_ALLOWED


def test_h07_allows_a_length_of_zero() -> None:
    assert parsed(add(MINIMAL, b"Content-Length: 0")).get_all("content-length") == ("0",)


# --- limits -------------------------------------------------------------------------------------


def test_h09_head_of_16_kib_passes_and_one_byte_more_does_not() -> None:
    head = head_with(*[b"x: " + b"v" * 4_000] * 4)
    fill = 16_384 - len(head) - len(b"y: \r\n")
    assert len(full := add(head, b"y: " + b"v" * fill)) == 16_384
    assert parsed(full).get_all("y") == ("v" * fill,)
    assert parse_head(add(head, b"y: " + b"v" * (fill + 1)), LIMITS) is HEAD_TOO_LARGE


def test_h09_header_line_of_8_kib_passes_and_one_byte_more_does_not() -> None:
    assert len(parsed(head_with(b"x:" + b"v" * 8_190)).get_all("x")[0]) == 8_190
    assert parse_head(head_with(b"x:" + b"v" * 8_191), LIMITS) is HEAD_TOO_LARGE
    assert parse_head(head_with(b"x:" + b" " * 8_191), LIMITS) is HEAD_TOO_LARGE
    assert parse_head(head_with(b"x" * 8_192 + b":"), LIMITS) is HEAD_TOO_LARGE


def test_h09_hundred_headers_pass_and_one_more_does_not() -> None:
    assert len(parsed(head_with(*[b"x: v"] * 99)).get_all("x")) == 99
    assert parse_head(head_with(*[b"x: v"] * 100), LIMITS) is HEAD_TOO_LARGE


def test_h09_target_of_8_kib_passes_and_one_byte_more_does_not() -> None:
    target = b"/" + b"a" * 8_191
    assert parsed(b"GET " + target + b" HTTP/1.1\r\n\r\n").path == target.decode("ascii")
    assert parse_head(b"GET " + target + b"a HTTP/1.1\r\n\r\n", LIMITS) is URI_TOO_LONG


@pytest.mark.parametrize(
    ("head", "refusal"),
    [
        pytest.param(b"GET /" + b"a" * 16_400, URI_TOO_LONG, id="H09-in-the-target"),
        pytest.param(b"GET / HTTP/1.1\r\nx: " + b"a" * 16_400, HEAD_TOO_LARGE, id="H09-in-a-line"),
        pytest.param(b"a" * 16_400, HEAD_TOO_LARGE, id="H09-in-the-method"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 2_000, HEAD_TOO_LARGE, id="H17"),
    ],
)
def test_says_which_limit_an_unfinished_head_crossed(head: bytes, refusal: Refuse) -> None:
    assert parse_head(head, LIMITS) is refusal


def test_h17_two_thousand_headers_within_the_bytes_are_refused() -> None:
    assert parse_head(head_with(*[b"a:"] * 2_000), LIMITS) is HEAD_TOO_LARGE


def test_limits_are_settable() -> None:
    limits = HeadLimits(max_head_bytes=64, max_line=10, max_headers=2, max_target=4)
    assert parsed(b"GET /abc HTTP/1.1\r\na: 3456789\r\nb: 2\r\n\r\n", limits).path == "/abc"
    assert parse_head(b"GET /abcd HTTP/1.1\r\n\r\n", limits) is URI_TOO_LONG
    assert parse_head(b"GET / HTTP/1.1\r\na: 34567890\r\n\r\n", limits) is HEAD_TOO_LARGE
    assert parse_head(b"GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\n\r\n", limits) is HEAD_TOO_LARGE
    assert parse_head(b"GET / HTTP/1.1\r\n" + b"a: 1\r\n" * 9 + b"\r\n", limits) is HEAD_TOO_LARGE


# --- Host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:3000",
        b"localhost:",
        b"ws.example.com",
        b"a_b.example",
        b"xn--bcher-kva.example",
        b"127.0.0.1:80",
        b"[::1]",
        b"[2001:db8::7]:3000",
    ],
)
def test_h03_a_proper_host(host: bytes) -> None:
    assert has_valid_host(parsed(swap(MINIMAL, b"Host", host)))


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param([], id="H03-none"),
        pytest.param([b""], id="H03-empty"),
        pytest.param([b"a", b"a"], id="H03-two"),
        pytest.param([b"a, b"], id="H03-list"),
        pytest.param([b"a b"], id="H03-space"),
        pytest.param([b":3000"], id="H03-port-only"),
        pytest.param([b"a:b"], id="H03-port-not-digits"),
        pytest.param([b"a:123456"], id="H03-port-too-long"),
        pytest.param([b"a/b"], id="H03-path"),
        pytest.param([b"u@a"], id="H03-user"),
        pytest.param([b"http://a"], id="H03-url"),
        pytest.param([b"::1"], id="H03-bare-ipv6"),
        pytest.param([b"[::1"], id="H03-open-bracket"),
        pytest.param([b"[g::1]"], id="H03-not-hex"),
        pytest.param([b"a" * 256], id="H03-too-long"),
        pytest.param([b"\xe9"], id="H03-not-ascii"),
    ],
)
def test_no_proper_host(hosts: list[bytes]) -> None:
    assert not has_valid_host(parsed(add(drop(MINIMAL, b"Host"), *[b"Host: " + h for h in hosts])))


# --- refusals -----------------------------------------------------------------------------------


def test_a_refusal_as_bytes() -> None:
    assert Refuse.of(429, "busy", ("Retry-After", "3")).to_bytes() == (
        b"HTTP/1.1 429 Too Many Requests\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 17\r\n"
        b"Connection: close\r\n"
        b"Retry-After: 3\r\n"
        b"\r\n"
        b"Too Many Requests"
    )


def test_a_refusal_without_a_body_gives_no_length() -> None:
    assert Refuse(404, b"").to_bytes() == (
        b"HTTP/1.1 404 Not Found\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Connection: close\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\x00", "a\x7f"])
def test_h15_a_refusals_header_cannot_break_out_of_its_line(text: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        Refuse.of(400, "x", ("X-Reflected", text))
    with pytest.raises(ValueError, match="control character"):
        Refuse.of(400, "x", (text, "value"))


@pytest.mark.parametrize("status", [101, 200, 418, 0])
def test_a_refusal_has_a_status_of_a_refusal(status: int) -> None:
    with pytest.raises(ValueError, match="not a status of a refusal"):
        Refuse.of(status, "x")


# --- work ---------------------------------------------------------------------------------------

#: No limit is in the way, so that growth shows.
WIDE = HeadLimits(max_head_bytes=1 << 30, max_line=1 << 30, max_headers=1 << 30, max_target=1 << 30)


BOMBS: dict[str, Callable[[int], bytes]] = {
    "spaces-in-value": lambda n: head_with(b"x: x" + b" " * n + b"x"),
    "spaces-after-value": lambda n: head_with(b"x: x" + b" " * n),
    "spaces-then-control": lambda n: head_with(b"x: x" + b" " * n + b"\x00"),
    "name-without-colon": lambda n: head_with(b"x" * n),
    "name-then-space": lambda n: head_with(b"x" * n + b" : y"),
    "lines-then-garbage": lambda n: head_with(*[b"a:b"] * (n // 5), b"\x00"),
    "lines": lambda n: head_with(*[b"a:b"] * (n // 5)),
    "carriage-returns": lambda n: head_with(b"x: " + b"\r" * n),
    "line-feeds": lambda n: head_with(b"x: " + b"\n" * n),
    "target": lambda n: b"GET /" + b"a" * n + b" HTTP/1.1\r\n\r\n",
    "target-questions": lambda n: b"GET /" + b"?" * n + b" HTTP/1.1\r\n\r\n",
    "target-absolute": lambda n: b"GET http://" + b"a" * n + b" HTTP/1.1\r\n\r\n",
    "request-line-spaces": lambda n: b"GET" + b" " * n + b"/ HTTP/1.1\r\n\r\n",
    "method": lambda n: b"G" * n + b"\r\n\r\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_h13_work_grows_with_the_length_and_not_with_its_square(bomb: str) -> None:
    heads = {size: BOMBS[bomb](size) for size in (32_768, 8 * 32_768)}

    assert growth(lambda size: parse_head(heads[size], WIDE), 32_768) < LINEAR
