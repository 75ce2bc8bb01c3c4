"""EC2's instance metadata service, version 2, at 169.254.169.254: who asks is known by his address.

docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html and
…/spot-instance-termination-notices.html, read 2025-11-21. Written apart from the launcher's own pretend service,
so that the hooks meet a second reading of the documents.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

ADDRESS = "169.254.169.254"
MAX_TTL_SECONDS = 21_600
ROLE = "lab-role"
StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Metadata:
    """A WSGI application. `instance_at` finds moto's instance behind a private address."""

    def __init__(self, instance_at: Callable[[str], Any]) -> None:
        self.ends: dict[str, datetime] = {}
        """Announced interruptions, by instance."""
        self._instance_at = instance_at
        self._tokens: dict[str, tuple[str, float]] = {}  # token → address it was given to, expiry

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        status, body = self._answer(environ)
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body.encode())))])
        return [body.encode()]

    def _answer(self, environ: dict[str, Any]) -> tuple[str, str]:
        address, path = environ["REMOTE_ADDR"], environ["PATH_INFO"].rstrip("/")
        instance = self._instance_at(address)
        if instance is None:
            return "404 Not Found", ""
        if environ["REQUEST_METHOD"] == "PUT" and path == "/latest/api/token":
            return self._token(address, environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS", ""))
        owner, expiry = self._tokens.get(environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN", ""), ("", 0.0))
        if owner != address or expiry < time.monotonic():
            return "401 Unauthorized", ""
        said = self._facts(instance).get(path.removeprefix("/latest/"))
        return ("404 Not Found", "") if said is None else ("200 OK", said)

    def _token(self, address: str, ttl: str) -> tuple[str, str]:
        if not ttl.isdecimal() or not 1 <= int(ttl) <= MAX_TTL_SECONDS:
            return "400 Bad Request", ""
        token = secrets.token_urlsafe(40)
        self._tokens[token] = (address, time.monotonic() + int(ttl))
        return "200 OK", token

    def _facts(self, instance: Any) -> dict[str, str]:
        zone = instance.availability_zone
        facts = {
            "meta-data/instance-id": instance.id,
            "meta-data/instance-type": instance.instance_type,
            "meta-data/instance-life-cycle": instance.lifecycle or "on-demand",
            "meta-data/local-ipv4": instance.private_ip,
            "meta-data/public-ipv4": instance.public_ip or "",
            "meta-data/placement/availability-zone": zone,
            "meta-data/placement/region": zone[:-1],
            "meta-data/iam/security-credentials": ROLE,
            f"meta-data/iam/security-credentials/{ROLE}": _credentials(),
            "dynamic/instance-identity/document": json.dumps(
                {"instanceId": instance.id, "instanceType": instance.instance_type, "region": zone[:-1]}
            ),
        }
        if end := self.ends.get(instance.id):
            stamp = _rfc3339(end)
            facts["meta-data/spot/instance-action"] = json.dumps({"action": "terminate", "time": stamp})
            facts["meta-data/spot/termination-time"] = stamp
        return facts


def _credentials() -> str:
    now = datetime.now(UTC)
    return json.dumps(
        {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": _rfc3339(now),
            "Expiration": _rfc3339(now + timedelta(hours=6)),
            "AccessKeyId": "LABHOST",
            "SecretAccessKey": "lab",
            "Token": "lab",
        }
    )


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
