"""One request to a cloud's metadata service: plain HTTP to a link-local address, never through a proxy."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

TIMEOUT_SECONDS = 2.0  # as aws-node-termination-handler has it; a healthy service answers in milliseconds
_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """Whatever the service said, errors included."""

    status: int
    body: str
    headers: Mapping[str, str]  # names in lower case


def ask(
    url: str, *, headers: Mapping[str, str], method: str = "GET", timeout_seconds: float = TIMEOUT_SECONDS
) -> Answer:
    """Raises: OSError: nobody answered in time, or not in HTTP."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310  # http, see the callers
    try:
        try:
            reply = opener.open(request, timeout=timeout_seconds)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            body = reply.read(_LIMIT_BYTES).decode(errors="replace")
            return Answer(reply.status, body, {name.lower(): value for name, value in reply.headers.items()})
    except http.client.HTTPException as error:
        raise OSError(f"{url} did not answer in HTTP: {error!r}") from error


def http_base(endpoint: str) -> str:
    """`endpoint` without its last slash, given a scheme if it has none. Raises: ValueError: another scheme."""
    base = endpoint.rstrip("/")
    if "://" not in base:
        return f"http://{base}"
    if not base.startswith(("http://", "https://")):
        raise ValueError(f"{endpoint!r} is no metadata service; http://… is wanted")
    return base
