"""A line to an S3 server on which anything can go wrong: a real HTTP proxy that answers 503, hangs up, or waits."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from tests import web

Kind = Literal["answer", "hang up before", "hang up within", "lose the answer", "cut the answer", "meet"]


@dataclass(kw_only=True)
class Trouble:
    """What happens to the next `times` requests of `method` (all: None) whose path holds `path`.

    answer            `status` and `code`, without asking the server
    hang up before    half of the request is read, nothing of it reaches the server
    hang up within    half of its body reaches the server
    lose the answer   the server has done it, nobody says so
    cut the answer    half of the answer's body arrives
    meet              no request goes on before `times` of them are here
    """

    kind: Kind
    times: int = 1
    method: str | None = None
    path: str = ""
    status: int = 503
    code: str = "ServiceUnavailable"
    meeting: threading.Barrier = field(init=False)

    def __post_init__(self) -> None:
        self.meeting = threading.Barrier(self.times if self.kind == "meet" else 1, timeout=60)


@dataclass
class Line:
    """`url` is where clients ask. `seen` is each request that arrived, as `PUT /bucket/key`."""

    server: str
    url: str = ""
    seen: list[str] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def trouble_for(self, method: str, path: str) -> Trouble | None:
        with self._lock:
            self.seen.append(f"{method} {path}")
            for trouble in self.troubles:
                if trouble.times > 0 and trouble.method in (None, method) and trouble.path in path:
                    trouble.times -= 1
                    return trouble
        return None


@contextmanager
def a_line_to(server: str) -> Iterator[Line]:
    """A proxy in front of the server at the URL `server`, until the block ends."""
    line = Line(server)

    class Handler(_Handler):
        asked = line

    with web.serving(Handler) as line.url:
        yield line


class _Handler(web.Handler):
    protocol_version = "HTTP/1.1"
    asked: Line

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that hangs up
            self.close_connection = True

    def _proxy(self) -> None:
        trouble = self.asked.trouble_for(self.command, self.path)
        size = int(self.headers.get("Content-Length", 0))
        if trouble is not None and trouble.kind == "hang up before":
            self.rfile.read(size // 2)
            self._hang_up()
            return
        if trouble is not None and trouble.kind == "hang up within":
            self._ask(self.rfile.read(size // 2), ends_early=True)
            self._hang_up()
            return
        body = self.rfile.read(size)
        if trouble is not None and trouble.kind == "answer":
            error = f"<Error><Code>{trouble.code}</Code><Message>trouble</Message></Error>".encode()
            self._reply(trouble.status, [("Content-Type", "application/xml")], error)
            return
        if trouble is not None and trouble.kind == "meet":
            trouble.meeting.wait()
        reply = self._ask(body)
        if trouble is not None and trouble.kind == "lose the answer":
            self._hang_up()
            return
        self._reply(*reply, cut=trouble is not None and trouble.kind == "cut the answer")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _proxy  # noqa: N815  # the names that http.server looks for

    def _ask(self, body: bytes, *, ends_early: bool = False) -> tuple[int, list[tuple[str, str]], bytes]:
        address = urlsplit(self.asked.server)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            if ends_early:
                return 0, [], b""
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _reply(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        own = {"connection", "transfer-encoding"} | (set() if self.command == "HEAD" else {"content-length"})
        for name, value in headers:
            if name.lower() not in own:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
