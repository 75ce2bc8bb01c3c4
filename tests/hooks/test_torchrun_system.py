"""As people start several ranks: torchrun, with the environment that the launcher sets."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.hooks.distributed import on_ranks
from tests.hooks.folders import of_kind
from tests.hooks.ranks_training import Job, Outcome, demand_same_end, train
from trainer_hooks.protocol import Contract, Ended

pytestmark = [pytest.mark.system, pytest.mark.enable_socket]

ROOT = Path(__file__).parent.parent.parent
RANKS = 2


def test_torchrun_under_the_launcher_s_environment(tmp_path: Path) -> None:
    job = Job(steps=12)
    expected = on_ranks(RANKS, train, tmp_path / "whole", job)

    first = _torchrun(tmp_path / "run", replace(job, notice_at=7), attempt=1)
    second = _torchrun(tmp_path / "run", replace(job, seed=1), attempt=2)

    assert [one.ended for one in first] == ["75", "75"]
    assert of_kind(Ended, tmp_path / "run", 1)[0].reason == "preempted"
    assert second[0].resumed_from == f"step-{first[0].step}-a1"
    assert of_kind(Ended, tmp_path / "run", 2)[0].reason == "completed"
    demand_same_end(second, expected)


def _torchrun(folder: Path, job: Job, *, attempt: int) -> list[Outcome]:
    contract = Contract(run_id="run-1", attempt=attempt, run_uri=str(folder), checkpoint_every_steps=job.every)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCH_")}
    environ |= contract.to_environment() | {"GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    script = ["-m", "tests.hooks.ranks_training", str(folder), json.dumps(asdict(job))]
    done = subprocess.run([*torchrun, *script], cwd=ROOT, env=environ, check=False, capture_output=True, text=True)
    found = [folder.with_name(f"outcome-{rank}") for rank in range(RANKS)]
    assert all(path.exists() for path in found), done.stderr
    outcomes: list[Outcome] = [pickle.loads(path.read_bytes()) for path in found]
    assert (done.returncode == 0) == (outcomes[0].ended == "completed"), done.stderr
    for path in found:
        path.unlink()
    return outcomes
