"""Attempts as SkyPilot clusters: one plain cluster per attempt, named after its job, never used again.

SkyPilot's API server holds what is known; this side remembers nothing that it could not ask again. A launch takes
a minute or more, so it is begun, and looked at on every turn until it has ended.

SkyPilot's own word is not enough in three places. Its job status stays RUNNING for a trainer that died with its
machine, so a machine that does not answer is `unreachable`, and the trainer's journal decides. It forgets a cluster
that is gone, so its history is asked. It keeps no exit codes, so they stand in the last line of the output.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from launcher.adapters import skypilot_client as client
from launcher.adapters import skypilot_clusters as clusters
from launcher.adapters.skypilot_task import EXIT_MARK, Site, server_config, skypilot_task
from launcher.core.runs.machine import LaunchRequest, Phase
from launcher.core.runs.state import attempt_of
from launcher.errors import BackendError, LaunchRefused
from launcher.ports import Clock

log = logging.getLogger(__name__)

PROVISION_SECONDS = 120  # in a queue (Slurm, Kubernetes) until a place counts as full
HISTORY_DAYS = 30
_ABSENT = Phase(kind="absent")
_EXIT = re.compile(rf"{re.escape(EXIT_MARK)} (\d+)")
_LOOKS = 3  # at a cluster that seems broken, before it counts as unreachable
_LOOK_SECONDS = 2.0
_OUTPUT_SECONDS = 10.0  # until the rest of the output of a job that has ended is here


class SkyPilotBackend:
    """`folder` takes what the attempts print. `site` says what this machine adds to a request, `demand_room` refuses
    one that the provider could not meet at the price that was agreed to."""

    def __init__(
        self,
        folder: Path,
        *,
        site: Callable[[LaunchRequest], Site],
        clock: Clock,
        demand_room: Callable[[LaunchRequest], None],
        provision_seconds: int = PROVISION_SECONDS,
    ) -> None:
        self._path = folder.absolute()
        self._site = site
        self._clock = clock
        self._demand_room = demand_room
        self._provision_seconds = provision_seconds
        self._started: dict[str, datetime] = {}
        self._followers: dict[str, threading.Thread] = {}

    def output_path(self, job: str) -> Path:
        """What set-up and the command print; kept after the release."""
        return self._path / job / "output.log"

    def launch(self, request: LaunchRequest) -> None:
        if self._released(request.job).exists():
            raise LaunchRefused("unavailable", f"{request.job} was released; a new attempt needs a new number")
        begun = clusters.newest_launch(request.job)
        if begun is not None:
            clusters.demand_granted(begun)
            return
        if self._has_job(request.job):  # an API server that was restarted has forgotten the request
            return
        self._demand_room(request)
        site = self._site(request)
        config = server_config(request, site, provision_seconds=self._provision_seconds)
        clusters.launch(skypilot_task(request, site), name=request.job, config=config)

    def phase(self, job: str) -> Phase:
        begun = clusters.newest_launch(job)
        if begun is not None and begun.status != "SUCCEEDED":
            return _ABSENT  # under way, or refused: the next `launch` says so
        cluster = clusters.find(job)
        if cluster is None:
            return self._gone(job)
        if not cluster["cluster_ever_up"]:  # an API server that was restarted dropped the launch halfway
            return _ABSENT
        try:
            return self._of_job(job, self._first_job(job))
        except BackendError:
            raise
        except Exception as error:
            return self._doubtful(job, error)

    def stop(self, job: str) -> None:
        released = self._released(job)
        released.parent.mkdir(parents=True, exist_ok=True)
        released.touch()
        clusters.call_off(job)
        if clusters.find(job) is None:
            return
        self._keep_output(job)
        clusters.release(job)

    def names(self, run_id: str) -> tuple[str, ...]:
        ours = re.compile(re.escape(run_id) + r"-\d+")
        known = {str(each["name"]) for each in client.ask("status")}
        begun = {str(each.cluster_name) for each in client.requests() if each.name.endswith("launch")}
        return tuple(sorted((job for job in known | begun if ours.fullmatch(job)), key=attempt_of))

    def _released(self, job: str) -> Path:
        """There once a release was asked for: what is gone then is gone on purpose."""
        return self._path / job / "released"

    def _has_job(self, job: str) -> bool:
        try:
            return clusters.find(job) is not None and self._first_job(job) is not None
        except BackendError:
            raise
        except Exception as error:  # a cluster that came up halfway: the launch goes on with it
            log.info("nothing runs there yet", extra={"job": job, "reason": str(error)})
            return False

    def _first_job(self, job: str) -> Any | None:
        """One that was submitted twice has run once: the first time."""
        return min(client.ask("queue", job, all_users=True), key=lambda each: each.job_id, default=None)

    def _of_job(self, job: str, run: Any | None) -> Phase:
        started_at = self._started_at(job)
        if run is None or run.status.value in ("INIT", "PENDING", "SETTING_UP"):
            self._follow(job)
            return Phase(kind="starting", started_at=started_at)
        if run.status.value == "RUNNING":
            self._follow(job)
            return Phase(kind="running", started_at=started_at)
        if run.status.value == "SUCCEEDED":
            return Phase(kind="exited", exit_code=0, started_at=started_at)
        # a machine that is being taken away fails its job first; the provider knows better
        cluster = clusters.find(job, fresh=True)
        if cluster is None:
            return self._gone(job)
        if cluster["nodes"] > 1 and cluster["status"].value != "UP":  # one of them is gone, so the rest failed
            return Phase(kind="gone", started_at=started_at)
        if run.status.value == "FAILED_DRIVER":  # SkyPilot's own part died; the trainer may be saving
            return Phase(kind="unreachable", started_at=started_at)
        code = 1 if run.status.value == "FAILED_SETUP" else self._exit_code(job)
        return Phase(kind="exited", exit_code=code, started_at=started_at)

    def _doubtful(self, job: str, error: Exception) -> Phase:
        """The machine did not answer. What the provider says counts, and an odd answer only if it is repeated."""
        log.info("the machine did not answer", extra={"job": job, "reason": str(error)[:200]})
        for look in range(_LOOKS):
            if look:
                self._clock.sleep(_LOOK_SECONDS)
            cluster = clusters.find(job, fresh=True)
            if cluster is None:
                return self._gone(job)
            if cluster["status"].value == "UP":
                break
        return Phase(kind="unreachable", started_at=self._started_at(job))

    def _gone(self, job: str) -> Phase:
        """Absent if SkyPilot never had it up, else gone since SkyPilot saw that."""
        row = None if self._released(job).exists() else self._history(job)
        if row is None or not row["usage_intervals"]:
            return _ABSENT
        start, end = row["usage_intervals"][0][0], row["usage_intervals"][-1][1]
        return Phase(kind="gone", started_at=_instant(start), gone_at=None if end is None else _instant(end))

    def _history(self, job: str) -> Any | None:
        rows = (row for row in client.ask("cost_report", HISTORY_DAYS) if row["name"] == job)
        return max(rows, key=lambda row: row["launched_at"] or 0, default=None)

    def _started_at(self, job: str) -> datetime | None:
        """Since when it is billed: SkyPilot asked the provider a moment before, and never later."""
        if job not in self._started:
            row = self._history(job)
            if row is None or not row["usage_intervals"]:
                return None
            self._started[job] = _instant(row["usage_intervals"][0][0])
        return self._started[job]

    def _exit_code(self, job: str) -> int | None:
        """The worst that any node ended with; `None` where they were killed before they could say it."""
        self._keep_output(job)
        try:
            codes = [int(code) for code in _EXIT.findall(self.output_path(job).read_text(errors="replace"))]
        except OSError:
            return None
        return max(codes, default=None)

    def _follow(self, job: str) -> threading.Thread:
        """Copy the output as it comes, until it ends: a machine that is taken away takes its own copy along."""
        follower = self._followers.get(job)
        if follower is None or not follower.is_alive():
            target = partial(self._copy_output, job, client.sky().tail_logs)
            follower = threading.Thread(target=target, name=f"output of {job}", daemon=True)
            self._followers[job] = follower
            follower.start()
        return follower

    def _keep_output(self, job: str) -> None:
        """All of it, unless the machine does not answer any more."""
        known = self._followers.get(job)
        (known or self._follow(job)).join(_OUTPUT_SECONDS)

    def _copy_output(self, job: str, tail_logs: Callable[..., object]) -> None:
        path = self.output_path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("w", buffering=1) as file:
                tail_logs(job, None, True, output_stream=file)
        except Exception as error:
            log.info("the output ended early", extra={"job": job, "reason": str(error)[:200]})


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
