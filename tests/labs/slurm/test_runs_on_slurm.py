"""`launch train.yaml` on a real Slurm through a real SkyPilot: preempted, resumed elsewhere, and billed."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.client import billed_seconds
from tests.labs.marks import marks
from tests.labs.slurm import SlurmLab, config, obstacle
from tests.labs.user import User
from tests.trainers import RANKS_TRAINER, TRAINER, undisturbed

STEPS = 200
PRICING = config.pricing(spot="nodes: 2, notice: 20 s", reserved="nodes: 2")
# Slack for a start on spot, but not for a second one: `setup_seconds` is gone once the first has begun.
TRAIN = """\
name: digits
run: {run}
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

pytestmark = marks(obstacle(), timeout_seconds=900)


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


def write(user: User, *, run: str = "python trainer.py", more: str = "") -> None:
    fields: dict[str, Any] = {"run": run, "runs": user.folder / "runs", "bin": Path(sys.executable).parent}
    fields |= {"steps": STEPS, "pause": 0.3, "deadline": "840 s"}
    (user.folder / "train.yaml").write_text(TRAIN.format(**fields) + more)


def attempts(run: dict[str, Any]) -> list[tuple[str, str]]:
    return [(a["capacity"], a["outcome"]) for a in run["attempts"]]


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

    assert attempts(run) == [
        ("spot", "preempted"),
        ("reserved", "completed"),
    ]
    assert run["outcome"] == "succeeded"
    assert user.final_loss(run_id) == undisturbed(str(TRAINER), steps=STEPS, folder=tmp_path)
    assert lab.jobs() == []
    bill_is_what_slurm_says(lab, run)


def bill_is_what_slurm_says(lab: SlurmLab, run: dict[str, Any]) -> None:
    """To the cent of what the segments cost, and each segment what Slurm has allocated, from our side of both ends."""
    priced = [Decimal(str(billed_seconds(a))) / 3600 * Decimal(a["usd_per_hour"]) for a in run["attempts"]]
    assert abs(sum(priced) - Decimal(run["spent_usd"])) < Decimal("0.01")
    assert sum(map(Decimal, run["by_cause_usd"].values())) == Decimal(run["spent_usd"])
    for attempt in run["attempts"]:
        job = f"{run['run_id']}-{attempt['attempt']:03d}"
        (allocated,) = [one for one in lab.independent_bill() if one.name.startswith(job)]
        seconds = (allocated.end_at - allocated.start_at).total_seconds()
        assert seconds - 2 <= billed_seconds(attempt) <= seconds + 30  # Slurm counts whole seconds


def test_two_nodes_save_together_and_go_on_together_elsewhere(lab: SlurmLab, user: User, tmp_path: Path) -> None:
    shutil.copy(RANKS_TRAINER, user.folder / "trainer.py")
    write(user, run="torchrun --nproc-per-node 1 trainer.py", more="nodes: 2\n")
    run_id = user.submit()
    user.until(run_id, lambda run: run["checkpoint"] is not None and run["checkpoint"]["step"] >= 10)

    lab.preempt(("node2",))
    user.until(run_id, lambda run: run["attempts"][0]["outcome"])
    lab.give_back()
    run = user.finished(run_id)

    alone = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RANKS_TRAINER))
    assert attempts(run) == [
        ("spot", "preempted"),
        ("reserved", "completed"),
    ]
    assert run["attempts"][1]["first_step"] >= 10
    assert user.final_loss(run_id) == undisturbed(*alone, steps=STEPS, folder=tmp_path)
    bill_is_what_slurm_says(lab, run)
