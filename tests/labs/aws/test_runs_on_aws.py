"""`launch train.yaml` against an EC2 API through a real SkyPilot: places that are full, preempted, dear, and killed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.client import billed_seconds
from tests.labs.aws.lab import AwsLab, obstacle
from tests.labs.marks import marks
from tests.labs.user import User
from tests.trainers import RANKS_TRAINER, TRAINER, undisturbed

STEPS = 200
TRAIN = """\
name: digits
run: {run}
env: {{STEPS: {steps}, PAUSE_SECONDS: {pause}, PATH: "{bin}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
gpus: {{A100: 8}}
providers: [aws]
regions: [us-east-2, us-west-2]
mode: [spot, on_demand]
deadline: {deadline}
workload: {{steps: {steps}, step_seconds: {{A100: {pause}}}, setup_seconds: 200}}
checkpoint: {{uri: s3://runs/ckpts, every_steps: 5, save_seconds: 0.1, size: 1 MB}}
tags: {{team: nlp, cost_center: "4711"}}
"""

pytestmark = marks(obstacle(), timeout_seconds=1200)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsLab]:
    with AwsLab(tmp_path_factory.mktemp("e", numbered=True) / "lab") as lab:
        make = "import boto3; boto3.client('s3').create_bucket(Bucket='runs')"
        lab.run([sys.executable, "-c", make], check=True)
        yield lab


@pytest.fixture
def user(lab: AwsLab, request: pytest.FixtureRequest) -> Iterator[User]:
    home = lab.folder / "users" / re.sub(r"\W+", "-", request.node.name)[:40]
    folder = home / "project"
    folder.mkdir(parents=True)
    shutil.copy(TRAINER, folder / "trainer.py")
    environ = {"LAUNCH_FALLBACK_DELAY_SECONDS": "120"}
    yield User(place=lab, folder=folder, state=home / "state", environ=environ)
    lab.allow()


def write(
    user: User, *, run: str = "python trainer.py", steps: int = STEPS, deadline: str = "60 min", more: str = ""
) -> None:
    fields: dict[str, Any] = {"run": run, "steps": steps, "pause": 0.3, "deadline": deadline}
    (user.folder / "train.yaml").write_text(TRAIN.format(**fields, bin=Path(sys.executable).parent) + more)


def attempts(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(a["zone"], a["capacity"], "refused" if a["refused"] else a["outcome"]) for a in run["attempts"]]


def test_a_full_zone_is_passed_over_and_a_preempted_training_goes_on_elsewhere(
    lab: AwsLab, user: User, tmp_path: Path
) -> None:
    write(user)
    lab.deny(spot=True, zone="us-east-2a")  # the cheapest

    run_id = user.submit()
    user.until(run_id, lambda run: run["checkpoint"] is not None and run["checkpoint"]["step"] >= 10)
    (machine,) = lab.instances(state="running")
    tags = machine.tags
    lab.preempt(machine.id, notice_seconds=8)
    run = user.finished(run_id)

    assert (machine.zone, machine.spot) == ("us-east-2b", True)
    assert (tags["team"], tags["cost_center"], tags["spotlaunch-run"]) == ("nlp", "4711", run_id)
    assert [outcome for *_, outcome in attempts(run)] == ["refused", "preempted", "completed"]
    assert user.final_loss(run_id) == undisturbed(str(TRAINER), steps=STEPS, folder=tmp_path)
    assert sum(map(Decimal, run["by_cause_usd"].values())) == Decimal(run["spent_usd"])
    assert lab.instances(state="running") == []


def test_without_any_spot_it_is_done_in_time_on_demand_though_supervisor_and_api_server_are_killed(
    lab: AwsLab, user: User, tmp_path: Path
) -> None:
    write(user, deadline="700 s")  # slack for a minute of refusals, then on demand is due
    lab.deny(spot=True)

    run_id = user.submit()
    user.until(run_id, lambda run: run["attempts"] and run["attempts"][-1]["capacity"] == "on_demand")
    killed = [*lab.processes("launcher.supervise"), *lab.processes("sky.server.server")]
    for process in killed:
        process.kill()
    user.launch("resume", run_id, "--detach")
    run = user.finished(run_id)

    assert len(killed) >= 2
    assert {outcome for _, capacity, outcome in attempts(run) if capacity == "spot"} == {"refused"}
    assert attempts(run)[-1][1:] == ("on_demand", "completed")
    assert run["finished_at"] <= run["deadline_at"]
    assert user.final_loss(run_id) == undisturbed(str(TRAINER), steps=STEPS, folder=tmp_path)
    machines = [one for one in lab.instances() if one.tags.get("spotlaunch-run") == run_id]
    assert {one.spot for one in machines} == {False}
    assert len(machines) <= 2  # the launch that was cut off may have got one, which was ended
    assert lab.instances(state="running") == []


def test_the_bill_is_what_ec2_says_of_the_machines(lab: AwsLab, user: User) -> None:
    write(user, steps=40)

    run_id = user.submit()
    run = user.finished(run_id)

    (attempt,) = run["attempts"]
    (machine,) = [one for one in lab.instances() if one.tags.get("spotlaunch-run") == run_id]
    (billed,) = [one for one in lab.independent_bill() if one.id == machine.id]
    seconds = billed.seconds()
    assert seconds <= billed_seconds(attempt) <= seconds + 30.0  # from our request to EC2's answer, at both ends
    least, most = (Decimal(attempt["usd_per_hour"]) * Decimal(each) / 3600 for each in (seconds, seconds + 30.0))
    assert round(least, 2) <= Decimal(run["spent_usd"]) <= round(most, 2)


def test_one_of_two_machines_killed_without_a_word_moves_both(lab: AwsLab, user: User, tmp_path: Path) -> None:
    shutil.copy(RANKS_TRAINER, user.folder / "trainer.py")
    write(user, run="torchrun --nproc-per-node 1 trainer.py", more="nodes: 2\n")
    run_id = user.submit()
    user.until(run_id, lambda run: run["checkpoint"] is not None and run["checkpoint"]["step"] >= 10)

    lab.preempt(lab.instances(state="running")[-1].id, notice_seconds=0)
    run = user.finished(run_id)

    alone = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RANKS_TRAINER))
    assert [outcome for *_, outcome in attempts(run)] == ["preempted", "completed"]
    assert attempts(run)[0][0] != attempts(run)[1][0]
    assert run["attempts"][1]["first_step"] >= 10
    assert user.final_loss(run_id) == undisturbed(*alone, steps=STEPS, folder=tmp_path)
    assert lab.instances(state="running") == []
