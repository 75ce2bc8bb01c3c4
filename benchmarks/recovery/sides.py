"""Who recovers: `launch train.yaml`, and SkyPilot's managed jobs with one of their strategies. Both run trainer.py."""

from __future__ import annotations

import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.recovery import managed_jobs
from benchmarks.recovery.scenes import PROVISION_SECONDS, Scene
from launcher.adapters.sql_ledger import SqlLedger
from launcher.core.prices.options import Rules
from tests.labs.user import User

STEPS, PAUSE_SECONDS, EVERY_STEPS = 800, 0.3, 5
PROJECT = Path(__file__).parents[2]
TRAINER = Path(__file__).with_name("trainer.py")
BIN = Path(sys.executable).parent
SEARCH = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PATIENCE_SECONDS = 120.0
OUR_PHASES = {
    "notice_received": "notice heard",
    "attempt_ended": "verdict",
    "attempt_released": "released",
    "attempt_requested": "next place asked",
    "attempt_started": "granted",
    "training_resumed": "training",
}
PEER_PHASES = {"RECOVERING": "recovering", "RUNNING": "running"}
# Spot is started on if the plan is made within `PLAN_SECONDS`, and a training preempted later goes to the fallback at
# once: the deadline leaves set-up and training as declared, what a start on spot has to leave (551 s with a poll of
# 10 s and a fallback that is there in 60 s), and those seconds. Steps take longer than declared, so slack shrinks.
DECLARED_STEP_SECONDS, PLAN_SECONDS = 0.05, 120
DEADLINE_SECONDS = 400 + int(STEPS * DECLARED_STEP_SECONDS) + 551 + PLAN_SECONDS
TRAIN = """\
name: digits
run: python trainer.py
setup: export PATH={bin}:$PATH
env: {{STEPS: {steps}, PAUSE_SECONDS: {pause}, STEPS_URI: "{notes}", PATH: "{search}"}}
gpus: {{{gpu}: {count}}}
providers: [{provider}]
mode: [{mode}]
deadline: {deadline} s
workload: {{steps: {steps}, step_seconds: {{{gpu}: {declared}}}, setup_seconds: 400}}
checkpoint: {{uri: "{runs}", every_steps: {every}, save_seconds: 0.1, size: 1 MB}}
"""
TASK = """\
name: digits
resources:
  accelerators: {gpu}:{count}
  job_recovery: {{strategy: {strategy}}}
  ordered:
{places}envs: {{STEPS: {steps}, PAUSE_SECONDS: {pause}, STEPS_URI: "{notes}", RUN_URI: "{runs}",
       LAUNCH_CHECKPOINT_EVERY_STEPS: {every}, PYTHONPATH: "{project}"}}
run: exec {bin}/python {trainer}
"""


class Side(Protocol):
    """One training of one side. `is_ready`: its machine may be taken now.

    `phases` are asked for after its end: instants by what was reached since a given one.
    """

    name: str

    def start(self) -> None: ...
    def is_ready(self) -> bool: ...
    def phases(self, since: float) -> dict[str, float]: ...
    def end(self) -> None: ...


class Ours:
    """With the settings of a fresh installation, but for a queue's patience and the fallback's delay."""

    name = "spotlaunch"

    def __init__(self, scene: Scene, name: str, *, poll_seconds: float = Rules().poll_seconds) -> None:
        self._scene, self._name = scene, name
        home = scene.folder(name)
        environ = {
            "LAUNCH_POLL_SECONDS": str(poll_seconds),
            "LAUNCH_PROVISION_SECONDS": str(PROVISION_SECONDS),
            "LAUNCH_FALLBACK_DELAY_SECONDS": "60",
        }
        self._user = User(place=scene.lab, folder=home / "project", state=home / "state", environ=environ)
        self._run_id, self._hurried_at = "", math.inf

    def start(self) -> None:
        folder = self._user.folder
        folder.mkdir(parents=True)
        shutil.copy(TRAINER, folder)
        if self._scene.pricing:
            (folder / "pricing.yaml").write_text(self._scene.pricing)
        (folder / "train.yaml").write_text(TRAIN.format(**_fields(self._scene, self._name)))
        self._scene.hand_over(folder)
        self._hurried_at = time.monotonic() + PLAN_SECONDS + STEPS * DECLARED_STEP_SECONDS
        self._run_id = self._user.submit()

    def is_ready(self) -> bool:
        return time.monotonic() >= self._hurried_at

    def phases(self, since: float) -> dict[str, float]:
        ledger = SqlLedger(f"sqlite:///{self._user.state}/ledger.db")
        entries = ledger.read(self._run_id)
        return _first_after(since, [(entry.at.timestamp(), OUR_PHASES.get(entry.event.kind)) for entry in entries])

    def end(self) -> None:
        self._user.launch("stop", self._run_id)
        self._user.finished(self._run_id)


class ManagedJob:
    """`sky jobs launch`, the controller beside the API server, first spot and then what is `ordered` after it."""

    def __init__(self, scene: Scene, name: str, *, strategy: str) -> None:
        self.name = f"managed job, {strategy}"
        self._scene, self._name, self._strategy = scene, name, strategy
        self._job = 0

    def start(self) -> None:
        folder = self._scene.folder(self._name)
        folder.mkdir(parents=True)
        places = "".join(f"    - {dict(place)}\n" for place in self._scene.places)
        fields = _fields(self._scene, self._name) | {"places": places, "strategy": self._strategy}
        (folder / "task.yaml").write_text(TASK.format(**fields))
        self._scene.hand_over(folder)
        done = self._sky("jobs", "launch", "--yes", "--detach-run", str(folder / "task.yaml"))
        self._job = int(re.findall(r"Job(?: submitted,)? ID: (\d+)", done)[-1])

    def is_ready(self) -> bool:
        return True

    def phases(self, since: float) -> dict[str, float]:
        events = managed_jobs.events(self._scene.home, self._job)
        return _first_after(since, [(at.timestamp(), PEER_PHASES.get(status)) for at, status in events])

    def end(self) -> None:
        self._sky("jobs", "cancel", "--yes", str(self._job))
        ended = {"CANCELLED", "SUCCEEDED", "FAILED"}
        until(lambda: ended & {status for _, status in managed_jobs.events(self._scene.home, self._job)})

    def _sky(self, *arguments: str) -> str:
        done = self._scene.lab.run(["sky", *arguments])
        if done.returncode:
            raise RuntimeError(f"sky {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return str(done.stdout)


def until(
    is_true: Callable[[], object], *, patience_seconds: float = PATIENCE_SECONDS, look_seconds: float = 1.0
) -> None:
    """Raises: TimeoutError."""
    end = time.monotonic() + patience_seconds
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {patience_seconds:.0f} s")
        time.sleep(look_seconds)


def _first_after(since: float, events: Sequence[tuple[float, str | None]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for at, phase in events:
        if phase is not None and at > since:
            found.setdefault(phase, at)
    return found


def _fields(scene: Scene, name: str) -> dict[str, object]:
    gpu, count = scene.gpus
    return {
        "gpu": gpu,
        "count": count,
        "provider": scene.provider,
        "mode": ", ".join(scene.mode),
        "steps": STEPS,
        "pause": PAUSE_SECONDS,
        "declared": DECLARED_STEP_SECONDS,
        "deadline": DEADLINE_SECONDS,
        "every": EVERY_STEPS,
        "notes": scene.uri(f"{name}-notes"),
        "runs": scene.uri(f"{name}-runs"),
        "bin": BIN,
        "search": SEARCH,
        "project": PROJECT,
        "trainer": TRAINER,
    }
