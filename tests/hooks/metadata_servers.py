"""The three clouds' metadata services as their documentation describes them, with their bad days: loopback HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Reply = tuple[int, str, dict[str, str]]


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: Any


@dataclass
class Service:
    """`answer` is the service; `errors` and `hangs` are answered first, one for each request."""

    answer: Callable[[Request], Reply]
    errors: list[int] = field(default_factory=list)
    is_hanging: bool = False
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def reply(self, request: Request) -> Reply | None:
        self.requests.append(request)
        if self.is_hanging:
            return None
        if self.errors:
            return self.errors.pop(0), "try again", {}
        return self.answer(request)


@contextmanager
def serving(answer: Callable[[Request], Reply]) -> Iterator[Service]:
    service = Service(answer)
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            reply = service.reply(Request(self.command, parts.path, query, self.headers))
            if reply is None:
                released.wait(60)
                return
            self.send_response(reply[0])
            for name, value in reply[2].items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply[1])))
            self.end_headers()
            self.wfile.write(reply[1].encode())

        do_GET = do_PUT = handle_one  # noqa: N815  # the names that http.server wants

        def log_message(self, *args: object) -> None:
            """Polls are not worth a line."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # a client that hung up
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield service
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Ec2Service:
    """IMDSv2 only. `expire` makes every token given so far worthless."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {}
        self.documents: dict[str, str] = {}

    def expire(self) -> None:
        self.tokens.clear()

    def give_notice(self, seconds: float) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        self.documents["/latest/meta-data/spot/instance-action"] = json.dumps({"action": "terminate", "time": at})

    def recommend_rebalance(self) -> None:
        at = json.dumps({"noticeTime": "2020-10-27T08:22:00Z"})
        self.documents["/latest/meta-data/events/recommendations/rebalance"] = at

    def __call__(self, request: Request) -> Reply:
        if request.path == "/latest/api/token":
            ttl = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if request.method != "PUT" or not ttl.isdecimal() or not 1 <= int(ttl) <= 21_600:
                return 400, "bad request", {}
            token = f"token-{len(self.tokens)}-{ttl}-{time.monotonic_ns()}"
            self.tokens[token] = int(ttl)
            return 200, token, {"X-aws-ec2-metadata-token-ttl-seconds": ttl}
        if request.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return 401, "unauthorized", {}
        body = self.documents.get(request.path)
        return (404, "not found", {}) if body is None else (200, body, {})


class GceService:
    def __init__(self) -> None:
        self.is_preempted = False
        self.changed = threading.Condition()

    def preempt(self) -> None:
        with self.changed:
            self.is_preempted = True
            self.changed.notify_all()

    def __call__(self, request: Request) -> Reply:
        if request.headers.get("Metadata-Flavor") != "Google":
            return 403, "forbidden", {}
        if request.path != "/computeMetadata/v1/instance/preempted":
            return 404, "not found", {}
        with self.changed:
            if request.query.get("wait_for_change") == "true":
                known = request.query.get("last_etag", self._etag())
                self.changed.wait_for(lambda: self._etag() != known, float(request.query["timeout_sec"]))
            return 200, "TRUE" if self.is_preempted else "FALSE", {"Metadata-Flavor": "Google", "ETag": self._etag()}

    def _etag(self) -> str:
        return "b2" if self.is_preempted else "a1"


class AzureService:
    def __init__(self, *, vm_name: str | None = "vm_0") -> None:
        self.vm_name = vm_name
        self.events: list[dict[str, Any]] = []

    def add(self, kind: str, *, vm: str, seconds: float | None = 30.0) -> None:
        not_before = "" if seconds is None else formatdate(time.time() + seconds, usegmt=True)
        event = {"EventId": "A123", "EventType": kind, "ResourceType": "VirtualMachine", "Resources": [vm]}
        self.events.append(event | {"EventStatus": "Scheduled", "NotBefore": not_before, "DurationInSeconds": -1})

    def __call__(self, request: Request) -> Reply:
        if request.headers.get("Metadata", "").lower() != "true" or "api-version" not in request.query:
            return 400, "bad request", {}
        if request.path == "/metadata/instance/compute/name":
            return (404, "", {}) if self.vm_name is None else (200, self.vm_name, {})
        assert request.query["api-version"] == "2020-07-01"
        return 200, json.dumps({"DocumentIncarnation": len(self.events), "Events": self.events}), {}
