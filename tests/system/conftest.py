"""Real processes: `launch` as a user starts it, in a folder of its own, on this machine at a declared price."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests import trainers
from tests.client import Client, Run
from tests.trainers import TRAINER

LAUNCH = Path(sys.executable).with_name("launch")
PATIENCE_SECONDS = 90.0  # not an expectation: only an end for a test that would hang

PRICING = "own: [{name: box, gpu: CPU, gpus: 1, usd_per_hour: 36}]\n"
TRAIN = """\
name: digits
run: {python} trainer.py
gpus: {{CPU: 1}}
env: {{STEPS: {steps}, PAUSE_SECONDS: {pause}}}
workload: {{steps: {steps}, step_seconds: {{CPU: {step_seconds}}}, setup_seconds: 3}}
checkpoint: {{every_steps: {every}, save_seconds: 0.1, size: 1 MB}}
{more}
"""


@dataclass(frozen=True)
class Lab(Client):
    """A user's folder and everything that belongs to it."""

    folder: Path
    environ: dict[str, str]
    patience_seconds = PATIENCE_SECONDS
    look_seconds = 0.2

    def write(self, *, steps: int = 150, pause: float = 0.05, every: int = 5, more: str = "providers: [local]") -> None:
        text = TRAIN.format(
            python=sys.executable, steps=steps, pause=pause, every=every, step_seconds=pause + 0.01, more=more
        )
        (self.folder / "train.yaml").write_text(text)

    def _launched(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LAUNCH, *arguments],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    def told(self, run_id: str, run: Run) -> str:
        log = "\n".join(p.read_text()[-3000:] for p in self.state.glob("logs/*"))
        return f"still {json.dumps(run, indent=1)}\n{log}\n{self.output(run_id)}"

    def finished(self, run_id: str) -> Run:
        """The run's last state, once its supervisor is gone: it gives the lock back a moment before it ends."""
        run = super().finished(run_id)
        psutil.wait_procs(self.supervisors(run_id), timeout=PATIENCE_SECONDS)
        return run

    @property
    def state(self) -> Path:
        return Path(self.environ["LAUNCH_STATE_FOLDER"])

    def checkpoints(self, run_id: str) -> list[Path]:
        """Committed ones, by step."""
        found = (self.state / "runs" / run_id / "checkpoints").glob("step-*/manifest.json")
        return sorted((m.parent for m in found), key=lambda p: int(p.name.split("-")[1]))

    def processes(self, run_id: str, *, of: str = "") -> list[psutil.Process]:
        """Everything alive that works for this run: trainers, machines, supervisors."""
        return [p for p in psutil.process_iter() if _belongs(p, run_id) and of in " ".join(_command(p))]

    def trainers(self, run_id: str) -> list[psutil.Process]:
        return [p for p in self.processes(run_id, of="trainer.py") if "bash" not in _command(p)[0]]

    def supervisors(self, run_id: str) -> list[psutil.Process]:
        return self.processes(run_id, of="launcher.supervise")

    def kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)


def _belongs(process: psutil.Process, run_id: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return any(run_id in word for word in process.cmdline()) or process.environ().get("LAUNCH_RUN_ID") == run_id
    except psutil.Error:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(TRAINER, folder / "trainer.py")
    (folder / "pricing.yaml").write_text(PRICING)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCH_")} | {
        "LAUNCH_STATE_FOLDER": str(tmp_path / "state"),
        "LAUNCH_CATALOGS": str(tmp_path / "catalogs"),
        "LAUNCH_POLL_SECONDS": "0.5",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PYTHONUNBUFFERED": "1",
    }
    made = Lab(folder=folder, environ=environ)
    made.write()
    yield made
    for run in made.runs():
        made.kill(made.supervisors(run["run_id"]))
        made.kill(made.processes(run["run_id"]))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], str]:
    """The last loss of a training of so many steps that nobody disturbed, without any launcher."""
    known: dict[int, str] = {}

    def loss(steps: int) -> str:
        if steps not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            known[steps] = trainers.undisturbed(
                str(TRAINER), steps=steps, folder=folder, timeout_seconds=PATIENCE_SECONDS
            )
        return known[steps]

    return loss


@pytest.fixture
def luck(request: pytest.FixtureRequest) -> random.Random:
    """Moments drawn anew for every test and the same in every run of the suite."""
    return random.Random(request.node.name)
