"""The metadata services of EC2, GCE and Azure as a pretend machine sees them, on one loopback port.

Answers follow the providers' documentation, errors included; what they do not have is a 404.

    EC2    /latest/…             docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    GCE    /computeMetadata/v1/… cloud.google.com/compute/docs/metadata/querying-metadata
    Azure  /metadata/…           learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

import json
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"  # noqa: S105  # a header's name
_MAX_TTL_SECONDS = 21_600
_MAX_BODY_BYTES = 65_536
_GCE = "/computeMetadata/v1/instance/"
_AZURE = "/metadata/scheduledevents"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What the provider has said so far."""

    action_at: datetime | None = None  # EC2: terminated then
    rebalance_at: datetime | None = None  # EC2: recommended then
    preempted: bool = False  # GCE
    event: dict[str, Any] | None = None  # Azure
    incarnation: int = 0  # Azure: counts changes of its events


class MetadataService:
    """Serves from a thread of its own until `close`. Every announcement may be made from any thread."""

    def __init__(self, *, vm_name: str, is_spot: bool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.vm_name = vm_name
        self.life_cycle = "spot" if is_spot else "on-demand"
        self.monotonic = monotonic
        self.expedited = threading.Event()
        """Azure: the machine was given back before its time."""
        self._announced = Announced()
        self._changed = threading.Condition()
        self._tokens: dict[str, float] = {}  # token → expiry
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def host(self) -> str:
        """`address:port`."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def announced(self) -> Announced:
        return self._announced

    def environment(self) -> dict[str, str]:
        """Variables that lead a trainer, and the providers' own libraries, to this service."""
        return {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{self.host}",
            "GCE_METADATA_HOST": self.host,
            "LAUNCH_AZURE_METADATA_ENDPOINT": f"http://{self.host}",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def announce_ec2(self, at: datetime) -> None:
        """The instance will be terminated at `at`."""
        self._announce(action_at=at)

    def recommend_rebalance(self, at: datetime) -> None:
        """EC2's early sign, given at `at`; it names no end."""
        self._announce(rebalance_at=at)

    def announce_gce(self) -> None:
        self._announce(preempted=True)

    def announce_azure(self, at: datetime) -> None:
        """The virtual machine will be evicted not before `at`."""
        event = {
            "EventId": str(uuid.uuid4()).upper(),
            "EventType": "Preempt",
            "ResourceType": "VirtualMachine",
            "Resources": [self.vm_name],
            "EventStatus": "Scheduled",
            "NotBefore": format_datetime(at.astimezone(UTC).replace(microsecond=0), usegmt=True),
            "Description": "",
            "EventSource": "Platform",
            "DurationInSeconds": -1,
        }
        self._announce(event=event, incarnation=self._announced.incarnation + 1)

    def start_event(self, event_id: str) -> bool:
        """Azure: the guest agrees to be evicted at once; false for an event that is not there."""
        event = self._announced.event
        if event is None or event["EventId"] != event_id:
            return False
        started = event | {"EventStatus": "Started", "NotBefore": ""}
        self._announce(event=started, incarnation=self._announced.incarnation + 1)
        self.expedited.set()
        return True

    def new_token(self, ttl_seconds: int) -> str:
        token = secrets.token_urlsafe(40)
        with self._changed:
            self._tokens[token] = self.monotonic() + ttl_seconds
        return token

    def accepts(self, token: str | None) -> bool:
        with self._changed:
            return token is not None and self._tokens.get(token, 0.0) > self.monotonic()

    def wait_for(self, is_news: Callable[[Announced], bool], timeout_seconds: float | None) -> None:
        """Return when something announced is news, or after the time-out."""
        with self._changed:
            self._changed.wait_for(lambda: is_news(self._announced), timeout_seconds)

    def _announce(self, **changes: Any) -> None:
        with self._changed:
            self._announced = replace(self._announced, **changes)
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


_NOT_FOUND = _Answer(404, "404 - Not Found")


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a long poll must not keep a machine alive
    request_queue_size = 64

    def __init__(self, service: MetadataService) -> None:
        self.service = service
        super().__init__(("127.0.0.1", 0), _Handler)

    def server_bind(self) -> None:
        """Without the base class's look-up of this computer's name, which can take seconds."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "metadata"
    wbufsize = -1  # an answer is one packet: its second half would wait for the first one's acknowledgement
    server: _Server

    def do_GET(self) -> None:
        path, query = self._target()
        if path.startswith("/latest/"):
            self._send(_ec2(self.server.service, path, self.headers.get(_TOKEN_HEADER)))
        elif path.startswith("/computeMetadata/"):
            self._send(_gce(self.server.service, path, query, self.headers.get("Metadata-Flavor")))
        elif path == _AZURE:
            self._send(_azure_refusal(query, self.headers.get("Metadata")) or _azure_events(self.server.service))
        else:
            self._send(_NOT_FOUND)

    def do_PUT(self) -> None:
        self._body()
        is_token = self._target()[0] == "/latest/api/token"
        self._send(_ec2_token(self.server.service, self.headers.get(_TTL_HEADER)) if is_token else _NOT_FOUND)

    def do_POST(self) -> None:
        path, query = self._target()
        body = self._body()
        if path != _AZURE:
            self._send(_NOT_FOUND)
        else:
            self._send(_azure_refusal(query, self.headers.get("Metadata")) or _azure_start(self.server.service, body))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Thousands of polls are not worth a line each."""

    def _body(self) -> bytes:
        return self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _MAX_BODY_BYTES))

    def _target(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        return parts.path.rstrip("/"), {name: values[-1] for name, values in parse_qs(parts.query).items()}

    def _send(self, answer: _Answer) -> None:
        content = answer.body.encode()
        self.send_response(answer.status)
        for name, value in (*answer.headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _ec2_token(service: MetadataService, ttl: str | None) -> _Answer:
    if ttl is None or not ttl.isdecimal() or not 1 <= int(ttl) <= _MAX_TTL_SECONDS:
        return _Answer(400, "400 - Bad Request")
    return _Answer(200, service.new_token(int(ttl)), ((_TTL_HEADER, ttl),))


def _ec2(service: MetadataService, path: str, token: str | None) -> _Answer:
    """IMDSv2 only, as instances launched today have it."""
    if not service.accepts(token):
        return _Answer(401, "401 - Unauthorized")
    said = service.announced
    match path.removeprefix("/latest/meta-data/"):
        case "spot/instance-action" if said.action_at:
            return _Answer(200, json.dumps({"action": "terminate", "time": _rfc3339(said.action_at)}))
        case "spot/termination-time" if said.action_at:
            return _Answer(200, _rfc3339(said.action_at))
        case "events/recommendations/rebalance" if said.rebalance_at:
            return _Answer(200, json.dumps({"noticeTime": _rfc3339(said.rebalance_at)}))
        case "events/maintenance/scheduled":
            return _Answer(200, "[]")
        case "instance-life-cycle":
            return _Answer(200, service.life_cycle)
        case "autoscaling/target-lifecycle-state":
            return _Answer(200, "Terminated" if said.action_at else "InService")
        case "instance-id":
            return _Answer(200, service.vm_name)
        case _:
            return _NOT_FOUND


def _gce(service: MetadataService, path: str, query: dict[str, str], flavor: str | None) -> _Answer:
    if flavor != "Google":
        return _Answer(403, "Missing Metadata-Flavor:Google header.")
    values: dict[str, Callable[[Announced], str]] = {
        _GCE + "preempted": lambda said: "TRUE" if said.preempted else "FALSE",
        _GCE + "maintenance-event": lambda said: "NONE",
    }
    value = values.get(path)
    if value is None:
        return _Answer(404, "404 - Not Found", (("Metadata-Flavor", "Google"),))
    if query.get("wait_for_change", "").lower() == "true":
        known = query.get("last_etag") or _etag(value(service.announced))
        timeout = query.get("timeout_sec", "")
        seconds = min(float(timeout), threading.TIMEOUT_MAX) if timeout.isdecimal() else None
        service.wait_for(lambda said: _etag(value(said)) != known, seconds)
    body = value(service.announced)
    return _Answer(200, body, (("Metadata-Flavor", "Google"), ("ETag", _etag(body)), ("Content-Type", "text/plain")))


def _etag(value: str) -> str:
    return f"{uuid.uuid5(uuid.NAMESPACE_OID, value).int % 2**64:016x}"


def _azure_refusal(query: dict[str, str], header: str | None) -> _Answer | None:
    if (header or "").lower() != "true":
        return _Answer(400, json.dumps({"error": "Bad request. Required metadata header not specified"}))
    if "api-version" not in query:
        return _Answer(400, json.dumps({"error": "Bad request. api-version is missing"}))
    return None


def _azure_events(service: MetadataService) -> _Answer:
    said = service.announced
    events = [said.event] if said.event else []
    body = json.dumps({"DocumentIncarnation": said.incarnation, "Events": events})
    return _Answer(200, body, (("Content-Type", "application/json"),))


def _azure_start(service: MetadataService, body: bytes) -> _Answer:
    try:
        wanted = [str(request["EventId"]) for request in json.loads(body)["StartRequests"]]
    except (KeyError, TypeError, ValueError):
        return _Answer(400, json.dumps({"error": "Bad request. StartRequests is malformed"}))
    known = [service.start_event(event_id) for event_id in wanted]
    return _Answer(200) if known and all(known) else _Answer(400, json.dumps({"error": "Bad request. No such event"}))


def _rfc3339(at: datetime) -> str:
    """Whole seconds, rounded down: a promise of time is never too long."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
