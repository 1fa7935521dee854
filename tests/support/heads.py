"""Request heads as real clients send them, byte for byte.

The Chromium 156 and Firefox 153 heads were captured from those browsers with a page that sets
the cookie and opens ``new WebSocket(url)`` or ``new WebSocket(url, [...])``. Safari does not run
where the captures were made: its heads, and that of the older Firefox, follow published traces.
"""

from __future__ import annotations

from typing import Final

#: The token in every head here; a stand-in, no signed token.
TOKEN: Final = "h.p.s"

CHROMIUM: Final = (
    b"GET /websocket/connect HTTP/1.1\r\n"
    b"Host: localhost:34329\r\n"
    b"Connection: Upgrade\r\n"
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"HeadlessChrome/156.0.0.0 Safari/537.36\r\n"
    b"Upgrade: websocket\r\n"
    b"Origin: http://localhost:34329\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Accept-Language: en-US,en;q=0.9\r\n"
    b"Cookie: falcon_auth_token=h.p.s; theme=dark\r\n"
    b"Sec-WebSocket-Key: STxGVCMlBqDZPKUekT48GQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"\r\n"
)

CHROMIUM_SUBPROTOCOL: Final = (
    b"GET /websocket/connect HTTP/1.1\r\n"
    b"Host: localhost:34329\r\n"
    b"Connection: Upgrade\r\n"
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"HeadlessChrome/156.0.0.0 Safari/537.36\r\n"
    b"Upgrade: websocket\r\n"
    b"Origin: http://localhost:34329\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Accept-Language: en-US,en;q=0.9\r\n"
    b"Cookie: falcon_auth_token=h.p.s; theme=dark\r\n"
    b"Sec-WebSocket-Key: uGz0gmaBmExo6b+84lyanA==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"Sec-WebSocket-Protocol: falcon.v1, falcon.bearer.h.p.s\r\n"
    b"\r\n"
)

FIREFOX: Final = (
    b"GET /websocket/connect HTTP/1.1\r\n"
    b"Host: localhost:36347\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0\r\n"
    b"Accept: */*\r\n"
    b"Accept-Language: en-US,en;q=0.9\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Origin: http://localhost:36347\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    b"Sec-WebSocket-Key: 7xilOUOyL9wHnyDmQ5JorQ==\r\n"
    b"Connection: Upgrade\r\n"
    b"Cookie: falcon_auth_token=h.p.s; theme=dark\r\n"
    b"Sec-Fetch-Dest: empty\r\n"
    b"Sec-Fetch-Mode: websocket\r\n"
    b"Sec-Fetch-Site: same-origin\r\n"
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Upgrade: websocket\r\n"
    b"\r\n"
)

FIREFOX_SUBPROTOCOL: Final = (
    b"GET /websocket/connect HTTP/1.1\r\n"
    b"Host: localhost:36347\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0\r\n"
    b"Accept: */*\r\n"
    b"Accept-Language: en-US,en;q=0.9\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Origin: http://localhost:36347\r\n"
    b"Sec-WebSocket-Protocol: falcon.v1, falcon.bearer.h.p.s\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    b"Sec-WebSocket-Key: nVyxvv7XBPmo9jXp+hsCNQ==\r\n"
    b"Connection: Upgrade\r\n"
    b"Cookie: falcon_auth_token=h.p.s; theme=dark\r\n"
    b"Sec-Fetch-Dest: empty\r\n"
    b"Sec-Fetch-Mode: websocket\r\n"
    b"Sec-Fetch-Site: same-origin\r\n"
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Upgrade: websocket\r\n"
    b"\r\n"
)

#: What Firefox sent for years and many installed ones still do: a list in Connection.
FIREFOX_KEEP_ALIVE: Final = (
    b"GET /websocket/connect HTTP/1.1\r\n"
    b"Host: localhost:3000\r\n"
    b"User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:115.0) Gecko/20100101 "
    b"Firefox/115.0\r\n"
    b"Accept: */*\r\n"
    b"Accept-Language: fr,fr-FR;q=0.8,en-US;q=0.5,en;q=0.3\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Origin: http://localhost:3000\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    b"Sec-WebSocket-Key: EtZmERSW4zOyYBPtfaKYjA==\r\n"
    b"DNT: 1\r\n"
    b"Connection: keep-alive, Upgrade\r\n"
    b"Cookie: theme=dark; falcon_auth_token=h.p.s\r\n"
    b"Sec-Fetch-Dest: empty\r\n"
    b"Sec-Fetch-Mode: websocket\r\n"
    b"Sec-Fetch-Site: same-origin\r\n"
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Upgrade: websocket\r\n"
    b"\r\n"
)

SAFARI: Final = (
    b"GET /websocket/connect HTTP/1.1\r\n"
    b"Host: localhost:3000\r\n"
    b"Pragma: no-cache\r\n"
    b"Accept: */*\r\n"
    b"Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
    b"Sec-Fetch-Site: same-origin\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Sec-Fetch-Mode: websocket\r\n"
    b"Accept-Language: en-GB,en;q=0.9\r\n"
    b"Origin: http://localhost:3000\r\n"
    b"User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 "
    b"(KHTML, like Gecko) Version/17.4 Safari/605.1.15\r\n"
    b"Connection: Upgrade\r\n"
    b"Accept-Encoding: gzip, deflate\r\n"
    b"Upgrade: websocket\r\n"
    b"Cookie: falcon_auth_token=h.p.s\r\n"
    b"Sec-Fetch-Dest: websocket\r\n"
    b"\r\n"
)

#: WebKit before it learned permessage-deflate: an extension nobody else has, and few headers.
SAFARI_WEBKIT_DEFLATE: Final = (
    b"GET /websocket/connect HTTP/1.1\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Host: localhost:3000\r\n"
    b"Origin: http://localhost:3000\r\n"
    b"Cookie: falcon_auth_token=h.p.s\r\n"
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Sec-WebSocket-Key: crda+fH2MDdI0BafoawOTQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: x-webkit-deflate-frame\r\n"
    b"User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_11_3) AppleWebKit/601.4.4 "
    b"(KHTML, like Gecko) Version/9.0.3 Safari/601.4.4\r\n"
    b"\r\n"
)

#: The least that is accepted; the key is the sample of RFC 6455.
MINIMAL: Final = (
    b"GET /websocket/connect HTTP/1.1\r\n"
    b"Host: localhost:3000\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Authorization: Bearer h.p.s\r\n"
    b"\r\n"
)

#: Every browser head, by a name for test ids.
BROWSERS: Final[dict[str, bytes]] = {
    "chromium": CHROMIUM,
    "chromium-subprotocol": CHROMIUM_SUBPROTOCOL,
    "firefox": FIREFOX,
    "firefox-subprotocol": FIREFOX_SUBPROTOCOL,
    "firefox-keep-alive": FIREFOX_KEEP_ALIVE,
    "safari": SAFARI,
    "safari-webkit-deflate": SAFARI_WEBKIT_DEFLATE,
}


def field(head: bytes, name: bytes) -> str:
    """Return the value of the one header line of that name, as spelled in the head."""
    values = [line for line in head.split(b"\r\n") if line.startswith(name + b": ")]
    assert len(values) == 1, values
    return values[0][len(name) + 2 :].decode("ascii")


def drop(head: bytes, name: bytes) -> bytes:
    """Return the head without its header lines of that name, as spelled in the head."""
    lines = head.split(b"\r\n")
    return b"\r\n".join([line for line in lines if not line.startswith(name + b":")])


def add(head: bytes, *lines: bytes) -> bytes:
    """Return the head with lines added at its end, each taken as it is."""
    return head[:-2] + b"".join([line + b"\r\n" for line in lines]) + b"\r\n"


def swap(head: bytes, name: bytes, *values: bytes) -> bytes:
    """Return the head with the lines of that name replaced by one line a value."""
    return add(drop(head, name), *[name + b": " + value for value in values])
