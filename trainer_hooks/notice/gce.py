"""GCE Spot: `instance/preempted` turns TRUE, 30 seconds or more before the power is cut.

A request may wait for the change, so the notice is heard at once by one idle connection.
Facts: cloud.google.com/compute/docs/metadata/querying-metadata and …/instances/preemptible, read 2025-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from trainer_hooks.notice.listener import Heard
from trainer_hooks.notice.metadata import TIMEOUT_SECONDS, ask, http_base

HOST = "metadata.google.internal"
WAIT_SECONDS = 60


class Gce:
    name = "gce"

    def __init__(self, environ: Mapping[str, str], *, period_seconds: float, wait_seconds: int = WAIT_SECONDS) -> None:
        base = http_base(environ.get("GCE_METADATA_HOST") or HOST)
        self._url = f"{base}/computeMetadata/v1/instance/preempted"
        self.period_seconds = period_seconds
        self._wait_seconds = wait_seconds
        self._etag: str | None = None  # of the last answer; without one, do not wait: it may have changed already

    def poll(self) -> Heard | None:
        query, patience = "", TIMEOUT_SECONDS
        if self._etag is not None:
            query = f"?wait_for_change=true&last_etag={quote(self._etag)}&timeout_sec={self._wait_seconds}"
            patience = self._wait_seconds + 5.0
        etag, self._etag = self._etag, None
        answer = ask(self._url + query, headers={"Metadata-Flavor": "Google"}, timeout_seconds=patience)
        if answer.status != 200:
            raise OSError(f"instance/preempted answered {answer.status}")
        self._etag = answer.headers.get("etag", etag)
        is_preempted = answer.body.strip().upper() == "TRUE"
        return Heard(kind="preemption", source=self.name) if is_preempted else None
