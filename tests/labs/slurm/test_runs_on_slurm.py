"""`launch train.yaml` on a real Slurm through a real SkyPilot: preempted, resumed elsewhere, and billed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.labs.slurm import SlurmLab, obstacle
from tests.labs.user import User

TRAINER = Path(__file__).parents[2] / "system" / "trainer.py"
STEPS = 120
PRICING = """\
clusters:
  - name: lab
    provider: slurm
    pools:
      - {name: spot, capacity: spot, gpu: H100, gpus: 4, nodes: 2, usd_per_gpu_hour: 1.50, notice: 20 s}
      - {name: reserved, capacity: reserved, gpu: H100, gpus: 4, nodes: 2, usd_per_gpu_hour: 4.00}
"""
# Slack for a start on spot, but not for a second one: `setup_seconds` is gone once the first has begun.
TRAIN = """\
name: digits
run: python trainer.py
setup: export PATH={bin}:$PATH
env: {{STEPS: {steps}, PAUSE_SECONDS: {pause}, PATH: "{bin}:/usr/bin:/bin"}}
gpus: {{H100: 2}}
providers: [slurm]
mode: [spot, reserved]
deadline: {deadline}
workload: {{steps: {steps}, step_seconds: {{H100: {pause}}}, setup_seconds: 300}}
checkpoint: {{uri: {runs}, every_steps: 5, save_seconds: 0.1, size: 1 MB}}
tags: {{team: nlp}}
"""

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("labs"),
    pytest.mark.skipif(obstacle() is not None, reason=str(obstacle())),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    with SlurmLab(tmp_path_factory.mktemp("s", numbered=True) / "lab", grace_seconds=20) as lab:
        yield lab
        lab.run(["sky", "api", "stop"])


@pytest.fixture
def user(lab: SlurmLab, request: pytest.FixtureRequest) -> User:
    home = lab.folder / "shared" / re.sub(r"\W+", "-", request.node.name)[:40]
    folder = home / "project"
    folder.mkdir(parents=True)
    shutil.copy(TRAINER, folder / "trainer.py")
    (folder / "pricing.yaml").write_text(PRICING)
    for path in (home, folder):
        os.chown(path, lab.account.uid, lab.account.uid)
    environ = {"LAUNCH_PROVISION_SECONDS": "20", "LAUNCH_FALLBACK_DELAY_SECONDS": "60"}
    return User(place=lab, folder=folder, state=home / "state", environ=environ)


def write(user: User, *, steps: int = STEPS, pause: float = 0.3, deadline: str = "815 s", more: str = "") -> None:
    fields: dict[str, Any] = {"steps": steps, "pause": pause, "deadline": deadline, "bin": Path(sys.executable).parent}
    (user.folder / "train.yaml").write_text(TRAIN.format(runs=user.folder / "runs", **fields) + more)


def undisturbed(steps: int, folder: Path) -> str:
    environ = os.environ | {"STEPS": str(steps)}
    done = subprocess.run(
        [sys.executable, TRAINER], cwd=folder, env=environ, capture_output=True, text=True, check=True
    )
    return re.findall(r"final loss (\S+)", done.stdout)[-1]


def test_a_preempted_training_saves_and_ends_on_reserved_nodes_at_the_undisturbed_loss(
    lab: SlurmLab, user: User, tmp_path: Path
) -> None:
    write(user)
    run_id = user.submit()
    user.until(run_id, lambda run: run["checkpoint"] is not None and run["checkpoint"]["step"] >= 10)

    lab.preempt()
    user.until(run_id, lambda run: run["attempts"][0]["outcome"])
    lab.give_back()
    run = user.finished(run_id)

    assert [(a["capacity"], a["outcome"]) for a in run["attempts"]] == [
        ("spot", "preempted"),
        ("reserved", "completed"),
    ]
    assert run["outcome"] == "succeeded"
    assert user.final_loss(run_id) == undisturbed(STEPS, tmp_path)
    assert sum(map(Decimal, run["by_cause_usd"].values())) == Decimal(run["spent_usd"])
    assert lab.jobs() == []
