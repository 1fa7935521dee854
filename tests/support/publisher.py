"""An issuer's address over HTTP: answers with a key set, or with whatever an attacker would."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

PATH: Final = "/.well-known/jwks.json"


class Publisher:
    """What is answered, to be changed at any time, and what was asked.

    Attributes:
        document: the body.
        status: of the answer.
        headers: further headers.
        delay: seconds before the head, and between its two halves of the body.
        requests: the request lines that came, each with its headers.
    """

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.status = 200
        self.headers: dict[str, str] = {}
        self.delay = 0.0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        """Where it is published."""
        return f"{self.scheme}://127.0.0.1:{self.port}{PATH}"


@contextmanager
def publishing(document: bytes, *, tls: ssl.SSLContext | None = None) -> Iterator[Publisher]:
    """Run a publisher as long as the context lasts."""
    publisher = Publisher(document)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            head = {name.lower(): value for name, value in self.headers.items()}
            publisher.requests.append((self.requestline, head))
            time.sleep(publisher.delay)
            self.send_response(publisher.status)
            for name, value in publisher.headers.items():
                self.send_header(name, value)
            self.end_headers()
            half = len(publisher.document) // 2
            try:
                self.wfile.write(publisher.document[:half])
                self.wfile.flush()
                time.sleep(publisher.delay)
                self.wfile.write(publisher.document[half:])
            except OSError:
                pass  # the client has seen enough

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        publisher.scheme = "https"
    publisher.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield publisher
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
