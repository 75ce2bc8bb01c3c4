"""`launch train.yaml --supervise remote` on a real Slurm: the laptop is closed, and somebody else looks at the run."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tests.labs.marks import marks
from tests.labs.slurm import SlurmLab, config, obstacle
from tests.labs.user import User
from tests.trainers import TRAINER

BIN = Path(sys.executable).parent
STEPS, PAUSE = 250, 0.3
USD_PER_HOUR = "0.12"
PRICING = config.pricing(spot="nodes: 2, notice: 20 s")
TRAIN = f"""\
name: digits
run: python trainer.py
setup: export PATH={BIN}:$PATH
env: {{STEPS: {STEPS}, PAUSE_SECONDS: {PAUSE}, PATH: "{BIN}:/usr/bin:/bin"}}
gpus: {{H100: 2}}
providers: [slurm]
workload: {{steps: {STEPS}, step_seconds: {{H100: {PAUSE}}}, setup_seconds: 120}}
checkpoint: {{uri: %s, every_steps: 5, save_seconds: 0.1, size: 1 MB}}
"""

pytestmark = marks(obstacle(), timeout_seconds=900)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    with SlurmLab(tmp_path_factory.mktemp("s", numbered=True) / "lab", grace_seconds=20) as lab:
        yield lab


@pytest.fixture
def ada(lab: SlurmLab) -> User:
    """Her ledger and run folders lie where the nodes see them; the rest is on her laptop."""
    folder, shared = lab.folder / "client/project", lab.folder / "shared"
    folder.mkdir(parents=True)
    shutil.copy(TRAINER, folder / "trainer.py")
    (folder / "pricing.yaml").write_text(PRICING)
    (folder / "train.yaml").write_text(TRAIN % (shared / "runs"))
    os.chown(folder, lab.account.uid, lab.account.uid)
    offline = {name: lab.environment()[name] for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS")}
    environ = {
        "LAUNCH_LEDGER": f"file://{shared}/ledger",
        "LAUNCH_PROVISION_SECONDS": "20",
        "LAUNCH_SUPERVISOR_INFRA": "slurm/lab/reserved",
        "LAUNCH_SUPERVISOR_USD_PER_HOUR": USD_PER_HOUR,
        "LAUNCH_SUPERVISOR_SETUP": f"export PATH={BIN}:$PATH " + " ".join(f"{k}={v}" for k, v in offline.items()),
    }
    return User(place=lab, folder=folder, state=lab.folder / "client/state", environ=environ)


@pytest.fixture
def ben(lab: SlurmLab, ada: User) -> User:
    """A colleague with another HOME, who shares nothing with her but the ledger."""
    home = lab.folder / "shared/ben"
    home.mkdir()
    os.chown(home, lab.account.uid, lab.account.uid)
    environ = {"HOME": str(home), "LAUNCH_LEDGER": ada.environ["LAUNCH_LEDGER"]}
    return User(place=lab, folder=home, state=home / "state", environ=environ)


def close_the_laptop(lab: SlurmLab) -> None:
    """Kill whatever lives under her HOME: SkyPilot's API server there, and all that the launcher may have left."""
    mark = f"HOME={lab.client_home}".encode()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


def nothing_is_left(lab: SlurmLab) -> bool:
    """The supervisor's allocation ends a moment after the run."""
    end = time.monotonic() + 60
    while lab.jobs() and time.monotonic() < end:
        time.sleep(1)
    return not lab.jobs()


def test_a_run_goes_on_without_its_submitters_machine_and_anybody_can_attach(
    lab: SlurmLab, ada: User, ben: User
) -> None:
    run_id = ada.submit("--supervise", "remote")
    close_the_laptop(lab)

    seen = ben.launch("attach", run_id, "--plain")

    run = ben.run(run_id)
    assert run["outcome"] == "succeeded", ben.told(run_id, run)
    assert [a["outcome"] for a in run["attempts"]] == ["completed"]
    assert "hired machine 1" in seen.stdout
    assert "final loss" in seen.stdout
    (hired,) = run["hired"]
    assert hired["where"] == "slurm/lab/reserved"
    assert Decimal(run["by_cause_usd"]["supervisor"]) > 0
    assert sum(map(Decimal, run["by_cause_usd"].values())) == Decimal(run["spent_usd"])
    assert nothing_is_left(lab)
    (machine,) = (job for job in lab.independent_bill() if job.name.startswith(f"{run_id}-supervisor"))
    assert machine.partition == "reserved"
    told = datetime.fromisoformat(hired["until"]) - datetime.fromisoformat(hired["since"])
    assert machine.end_at is not None
    assert machine.seconds(machine.end_at) <= told.total_seconds()
