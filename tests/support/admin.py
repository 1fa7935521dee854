"""The admin listener of a running server, as a blocking HTTP client sees it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from falcon_fast.directory import SUPER_ADMIN, SUPER_ADMIN_NAME

from .client import DEADLINE
from .server import ServerProcess

ADMIN: Final = "operator"
ADMIN_CHARACTER: Final = 99
COOKIE: Final = "falcon_auth_token"
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"

Headers = dict[str, str]


class Reply(NamedTuple):
    """An answer; names of headers are in lower case."""

    status: int
    headers: Headers
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body, which must be JSON and be called so."""
        kind = self.headers["content-type"]
        assert kind == (JSON if self.status == 200 else PROBLEM), self
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def detail(self) -> str:
        """The detail of a problem, whose status must be that of the answer."""
        assert self.json["status"] == self.status
        return str(self.json["detail"])

    @property
    def locations(self) -> list[str]:
        """Where a request failed validation."""
        assert (self.status, self.detail) == (422, "validation failed"), self
        return [item["location"] for item in self.json["errors"]]


class Admin:
    """Calls the admin listener of a server, on a connection of its own each time."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{server.admin_port}"
        self.origin = self.url
        with server.store() as store:
            group = store.group_id_of(SUPER_ADMIN)
            if group is None:
                group = store.add_group(SUPER_ADMIN_NAME, type="system", system_name=SUPER_ADMIN)
            self.group = group
            store.add_user(ADMIN, ADMIN_CHARACTER, "Operator")
            store.add_member(group, ADMIN_CHARACTER)
        self.token = server.token(ADMIN, ADMIN_CHARACTER)

    def bearer(self, token: str | None = None) -> Headers:
        """Return the header that carries a token, the super administrator's by default."""
        return {"Authorization": f"Bearer {token or self.token}"}

    def cookie(self, token: str | None = None) -> Headers:
        """Return the headers of a page of this listener whose browser has the cookie."""
        return {"Cookie": f"{COOKIE}={token or self.token}", "Origin": self.origin}

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | str | None = None,
        json_body: object = None,
    ) -> Reply:
        """Send a request, as the super administrator if no headers are given."""
        sent = dict(self.bearer() if headers is None else headers)
        if json_body is not None:
            body = json.dumps(json_body)
            sent.setdefault("Content-Type", JSON)
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.server.admin_port, timeout=DEADLINE
        )
        try:
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        """Read something as the super administrator."""
        return self.ask("GET", path, headers={**self.bearer(), **headers})

    def post(self, path: str, body: object) -> Reply:
        """Send something as the super administrator."""
        return self.ask("POST", path, json_body=body)

    @contextmanager
    def wire(self) -> Iterator[socket.socket]:
        """Connect, to send what no HTTP client would."""
        with socket.create_connection(("127.0.0.1", self.server.admin_port), DEADLINE) as plain:
            yield plain

    def raw(self, request: bytes, *, is_last: bool = False) -> Reply:
        """Send octets, and return the first answer to them.

        Args:
            request: what is sent.
            is_last: nothing but the end of the connection may follow the answer.
        """
        with self.wire() as plain:
            plain.sendall(request)
            if is_last:
                return last(b"".join(iter(lambda: plain.recv(65_536), b"")))
            answer = http.client.HTTPResponse(plain)
            answer.begin()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())


def last(octets: bytes) -> Reply:
    """Read the only answer of a connection, after which nothing may have come."""
    head, _, body = octets.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert len(body) == int(found["content-length"]), octets
    return Reply(int(first.split(" ")[1]), found, body)
