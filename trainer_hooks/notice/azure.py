"""Azure Spot: a scheduled event of type Preempt, at least 30 seconds before the eviction.

Facts: learn.microsoft.com/azure/virtual-machines/linux/scheduled-events, read 2025-11.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from trainer_hooks.notice.listener import Heard
from trainer_hooks.notice.metadata import TIMEOUT_SECONDS, ask, http_base

ENDPOINT = "http://169.254.169.254"
ACTIVATION_SECONDS = 125.0  # the first call switches the service on, which may take two minutes
MAX_PERIOD_SECONDS = 1.0  # of 30 seconds' notice
_HEADERS = {"Metadata": "true"}


class Azure:
    name = "azure"

    def __init__(self, environ: Mapping[str, str], *, period_seconds: float) -> None:
        self._base = http_base(environ.get("LAUNCH_AZURE_METADATA_ENDPOINT") or ENDPOINT)
        self.period_seconds = min(period_seconds, MAX_PERIOD_SECONDS)
        self._is_active = False
        self._vm_name: str | None = None

    def poll(self) -> Heard | None:
        url = f"{self._base}/metadata/scheduledevents?api-version=2020-07-01"
        answer = ask(url, headers=_HEADERS, timeout_seconds=TIMEOUT_SECONDS if self._is_active else ACTIVATION_SECONDS)
        if answer.status != 200:
            raise OSError(f"scheduledevents answered {answer.status}")
        self._is_active = True
        preempts = [event for event in json.loads(answer.body)["Events"] if event.get("EventType") == "Preempt"]
        ours = next((event for event in preempts if self._is_ours(event)), None)
        if ours is None:
            return None
        return Heard(kind="preemption", source=self.name, seconds_left=_seconds_left(ours.get("NotBefore")))

    def _is_ours(self, event: Mapping[str, Any]) -> bool:
        """Neighbours of a scale set are announced, too. Who does not know his name takes every event for his."""
        if self._vm_name is None:
            self._find_name()
        return self._vm_name is None or self._vm_name in event.get("Resources", ())

    def _find_name(self) -> None:
        url = f"{self._base}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        with suppress(OSError):
            answer = ask(url, headers=_HEADERS)
            if answer.status == 200 and answer.body.strip():
                self._vm_name = answer.body.strip()


def _seconds_left(not_before: object) -> float | None:
    """Of `Mon, 11 Apr 2022 22:26:58 GMT`; empty once the event has started."""
    try:
        return max(0.0, parsedate_to_datetime(str(not_before)).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
