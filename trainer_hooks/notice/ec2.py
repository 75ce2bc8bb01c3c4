"""EC2 Spot: two minutes' notice through the instance metadata service, version 2.

Facts: AWS EC2 user guide, "Spot Instance interruption notices" and "rebalance recommendations", read 2025-11.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from trainer_hooks.notice.listener import Heard
from trainer_hooks.notice.metadata import Answer, ask, http_base

ENDPOINT = "http://169.254.169.254"
TOKEN_TTL_SECONDS = 3600
REFRESH_BEFORE_SECONDS = 15.0


class Ec2:
    """`spot/instance-action` is 404 until the notice; the recommendation to rebalance may come before it."""

    name = "ec2"

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        period_seconds: float,
        token_ttl_seconds: int = TOKEN_TTL_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = http_base(environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or ENDPOINT)
        self.period_seconds = period_seconds
        self._token_ttl_seconds = token_ttl_seconds
        self._monotonic = monotonic
        self._token = ""
        self._refresh_at = float("-inf")

    def poll(self) -> Heard | None:
        action = self._get("/latest/meta-data/spot/instance-action")
        if action is not None:
            return Heard(kind="preemption", source=self.name, seconds_left=_seconds_left(action))
        if self._get("/latest/meta-data/events/recommendations/rebalance") is not None:
            return Heard(kind="rebalance", source=self.name)
        return None

    def _get(self, path: str) -> str | None:
        """The document at `path`; `None`: there is none. Raises: OSError."""
        answer = self._ask(path)
        if answer.status == 401:  # the token ran out before its time, or the service was restarted
            self._refresh_at = float("-inf")
            answer = self._ask(path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise OSError(f"{path} answered {answer.status}")
        return answer.body

    def _ask(self, path: str) -> Answer:
        if self._monotonic() >= self._refresh_at:
            self._renew()
        return ask(self._base + path, headers={"X-aws-ec2-metadata-token": self._token})

    def _renew(self) -> None:
        asked_at = self._monotonic()
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(self._token_ttl_seconds)}
        answer = ask(f"{self._base}/latest/api/token", method="PUT", headers=ttl)
        if answer.status != 200:
            raise OSError(f"no metadata token: the service answered {answer.status}")
        self._token = answer.body.strip()
        self._refresh_at = asked_at + max(self._token_ttl_seconds - REFRESH_BEFORE_SECONDS, 0.0)


def _seconds_left(action: str) -> float | None:
    """Of `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`; a notice that cannot be read is one."""
    try:
        at = datetime.fromisoformat(json.loads(action)["time"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):
        return None
    return max(0.0, at.timestamp() - time.time())
