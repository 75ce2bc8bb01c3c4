"""EC2's Query API, asked over the lab's socket: a test has no way into the lab's network, and needs none."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

PATIENCE_SECONDS = 60.0
_SIGNED = "AWS4-HMAC-SHA256 Credential=LAB/20250101/{region}/ec2/aws4_request, SignedHeaders=host, Signature=none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One entry of DescribeInstances."""

    id: str
    instance_type: str
    spot: bool
    region: str
    zone: str
    state: str
    launched_at: datetime
    tags: Mapping[str, str]
    private_ip: str | None
    public_ip: str | None

    @classmethod
    def from_xml(cls, entry: Mapping[str, Any]) -> Self:
        zone = entry["placement"]["availabilityZone"]
        return cls(
            id=entry["instanceId"],
            instance_type=entry["instanceType"],
            spot=entry.get("instanceLifecycle") == "spot",
            region=zone[:-1],
            zone=zone,
            state=entry["instanceState"]["name"],
            launched_at=datetime.fromisoformat(entry["launchTime"]),
            tags={tag["key"]: tag["value"] or "" for tag in _items(entry.get("tagSet"))},
            private_ip=entry.get("privateIpAddress"),
            public_ip=entry.get("ipAddress"),
        )


def describe_instances(path: Path, region: str) -> list[Instance]:
    said = _ec2(path, region, "DescribeInstances")
    reservations = _items(said["DescribeInstancesResponse"]["reservationSet"])
    return [Instance.from_xml(entry) for held in reservations for entry in _items(held["instancesSet"])]


def terminate_instances(path: Path, region: str, *instances: str) -> None:
    _ec2(path, region, "TerminateInstances", **{f"InstanceId.{n}": name for n, name in enumerate(instances, 1)})


def ask(path: Path, order: str, **arguments: Any) -> Any:
    """The lab's own orders (api.py). Raises: OSError: no lab answers there."""
    body = _post(path, f"/lab/{order}", json.dumps(arguments), {"Content-Type": "application/json"})
    return json.loads(body)


def _ec2(path: Path, region: str, action: str, **parameters: str) -> Any:
    import xmltodict  # type: ignore[import-untyped]  # has no types; moto needs it

    form = urlencode({"Action": action, "Version": "2016-11-15", **parameters})
    headers = {
        "Authorization": _SIGNED.format(region=region),
        "Content-Type": "application/x-www-form-urlencoded",
        "Host": f"ec2.{region}.amazonaws.com",
    }
    return xmltodict.parse(_post(path, "/", form, headers))


def _items(listing: Any) -> Iterator[Any]:
    """xmltodict gives one thing for one entry, a list for more, and None for none."""
    found = (listing or {}).get("item") or []
    yield from found if isinstance(found, list) else [found]


def _post(path: Path, target: str, body: str, headers: Mapping[str, str]) -> bytes:
    connection = _UnixConnection(path)
    try:
        connection.request("POST", target, body, dict(headers))
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{target}: {answer.status} {content.decode(errors='replace')}")
    return content


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("lab", timeout=PATIENCE_SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))
