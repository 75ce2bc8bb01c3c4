"""Requests to SkyPilot, word by word, and what their scripts do when a real shell runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from launcher.adapters.skypilot_task import EXIT_MARK, Site, server_config, skypilot_task
from launcher.core.gravity import STORES
from launcher.core.offers import Capacity
from launcher.core.prices.pricing import Pool
from launcher.core.runs.machine import LaunchRequest
from tests.builders import a_placement, an_offer

GOLDEN = Path(__file__).parents[1] / "golden" / "skypilot"
LIBRARIES = {"aws": "s3fs", "gcp": "gcsfs", "azure": "adlfs"}
JOB = "llama-sft-20260105-ab12-003"


def a_request(
    *, nodes: int = 1, paid_seconds: float | None = 7200.0, run: str = "torchrun train.py", **offer: Any
) -> LaunchRequest:
    return LaunchRequest(
        job=JOB,
        placement=a_placement(an_offer(**offer), nodes=nodes),
        setup="pip install -r requirements.txt",
        run=run,
        workdir="/home/me/llama",
        env={"LAUNCH_RUN_URI": "s3://ckpts/llama-sft-20260105-ab12", "LAUNCH_ATTEMPT": "3", "EPOCHS": "2"},
        tags={"team": "NLP", "Cost Center": "4711"},
        paid_seconds=paid_seconds,
    )


def a_pool(**fields: Any) -> Pool:
    plain = {"name": "gpu", "capacity": "on_demand", "gpu": "H100", "gpus": 8, "nodes": 4, "usd_per_gpu_hour": 3}
    return Pool.model_validate(plain | fields)


SLURM = {"provider": "slurm", "region": "lab", "zone": "gpu", "instance_type": "H100:8", "notice_seconds": 30.0}
KUBERNETES = {"provider": "kubernetes", "region": "gke-prod", "zone": "burst", "instance_type": "H100:8"}
REQUESTS: dict[str, tuple[LaunchRequest, Site]] = {
    "aws-spot": (a_request(zone="use2-az1"), Site(hooks="/hooks", zones={"use2-az1": "us-east-2c"})),
    "aws-unknown-zone": (a_request(zone="use2-az9", paid_seconds=None), Site(hooks="/hooks")),
    "aws-reservation": (
        a_request(zone="us-east-2a", capacity=Capacity.RESERVED, reservation="cr-0a1b"),
        Site(hooks="/hooks", config={"aws": {"specific_reservations": ["cr-0a1b"]}}),
    ),
    "gcp-attached": (
        a_request(provider="gcp", region="us-central1", zone="us-central1-a", instance_type="n1-highmem-8+1xT4",
                  gpu="T4", count=1),
        Site(hooks="/hooks"),
    ),
    "azure-two-nodes": (
        a_request(provider="azure", region="eastus", zone=None, instance_type="Standard_ND96isr_H100_v5", nodes=2),
        Site(hooks="/hooks"),
    ),
    "slurm": (
        a_request(**SLURM, nodes=2),
        Site(
            hooks="/hooks",
            pool=a_pool(cpus_per_gpu=12, memory_gb_per_gpu=100, time_limit="1 h", account="nlp", qos="low"),
        ),
    ),
    "kubernetes": (
        a_request(**KUBERNETES, capacity=Capacity.ON_DEMAND),
        Site(hooks="/hooks", pool=a_pool(labels={"pool": "burst"})),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_worded_exactly_so(name: str) -> None:
    request, site = REQUESTS[name]

    found = {
        "task": skypilot_task(request, site),
        "beside it": server_config(request, site, provision_seconds=120),
    }

    assert found == YAML(typ="safe").load(GOLDEN / f"{name}.yaml")


@pytest.mark.parametrize("name", REQUESTS)
def test_skypilot_takes_it_for_a_task(name: str) -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not installed: pip install spotlaunch[sky]")
    jsonschema = pytest.importorskip("jsonschema")
    request, site = REQUESTS[name]

    jsonschema.validate(skypilot_task(request, site), schemas.get_task_schema())
    jsonschema.validate(server_config(request, site, provision_seconds=120), schemas.get_config_schema())


Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def started(tmp_path: Path) -> Started:
    """What a machine does with a task's script: `bash`, with a home of its own."""

    def start(script: str, **environ: str) -> subprocess.Popen[str]:
        env = {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "SKYPILOT_NUM_NODES": "1"}
        env |= {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"} | environ
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(["bash", "-c", script], env=env, text=True, cwd=tmp_path, **pipes)  # type: ignore[call-overload,no-any-return]

    return start


def run_script(run: str, **fields: Any) -> str:
    return str(skypilot_task(a_request(run=run, **fields), Site(hooks="/hooks"))["run"])


@pytest.mark.system
def test_torchrun_is_told_of_the_nodes(started: Started) -> None:
    output, _ = started(
        run_script('echo "$PET_NNODES $PET_NODE_RANK $PET_NPROC_PER_NODE $PET_MASTER_ADDR ${PYTHONPATH}"'),
        SKYPILOT_NUM_NODES="2",
        SKYPILOT_NODE_RANK="1",
        SKYPILOT_NUM_GPUS_PER_NODE="4",
    ).communicate(timeout=30)

    assert output.splitlines()[0].startswith("2 1 4 10.0.0.1 ")
    assert output.splitlines()[0].endswith("/.spotlaunch/hooks")


@pytest.mark.system
@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_commands_exit_code_is_kept_and_said(started: Started, code: int) -> None:
    process = started(run_script(f"true\nexit {code}"))

    output, _ = process.communicate(timeout=30)

    assert process.returncode == code
    assert output.splitlines()[-1] == f"{EXIT_MARK} {code} (node 0)"


@pytest.mark.system
def test_an_attempt_runs_once_on_a_machine(started: Started) -> None:
    script = run_script("echo trained")
    first, _ = started(script).communicate(timeout=30)
    second = started(script)

    output, _ = second.communicate(timeout=30)

    assert "trained" in first
    assert "trained" not in output
    assert second.returncode == 73


@pytest.mark.system
def test_the_money_ends_a_command_that_nobody_watches(started: Started) -> None:
    process = started(run_script("echo began; sleep 60; echo never", paid_seconds=1.2))

    output, _ = process.communicate(timeout=30)

    assert process.returncode == 124
    assert "began" in output
    assert "never" not in output


SAVING = """\
import os, signal, sys, time
def save(*_):
    time.sleep(0.3)
    os.write(1, b"saved\\n")
    os._exit(75)
signal.signal(signal.SIGTERM, save)
print("training", flush=True)
time.sleep(60)
"""


@pytest.mark.system
def test_a_sigterm_reaches_a_trainer_behind_a_script_and_its_save_is_waited_for(
    started: Started, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(SAVING)
    process = started(run_script("python train.py\necho trained to the end"))
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"

    step = int((tmp_path / ".spotlaunch/pid-0").read_text())  # what Slurm signals, and the hook of a Kubernetes pod
    os.kill(step, signal.SIGTERM)
    output, _ = process.communicate(timeout=30)

    assert output.splitlines() == ["saved", f"{EXIT_MARK} 75 (node 0)"]
    assert process.returncode == 75


@pytest.mark.parametrize("scheme", STORES)
def test_for_every_store_its_library_is_installed(scheme: str) -> None:
    request = replace(a_request(), env={"LAUNCH_RUN_URI": f"{scheme}://ckpts/llama"})

    setup = str(skypilot_task(request, Site(hooks="/hooks"))["setup"])

    assert f"fsspec, psutil, xxhash, {LIBRARIES[STORES[scheme]]}'" in setup


@pytest.mark.system
def test_packages_of_the_hooks_are_installed_only_where_they_are_missing(started: Started, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    python = programs / "python"
    python.write_text('#!/bin/sh\necho "python $*" | cut -c1-70 >> "$HOME/asked"\ncase "$1" in -c) exit 1;; esac\n')
    python.chmod(0o755)
    request = a_request()
    setup = str(skypilot_task(request, Site(hooks="/hooks"))["setup"]).partition("\n")[2]  # without the user's own line

    output, _ = started(setup, PATH=f"{programs}:/usr/bin:/bin").communicate(timeout=30)
    present, _ = started(setup).communicate(timeout=30)

    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].startswith("python -c import fsspec, psutil, xxhash, s3fs")
    assert asked[1].startswith("python -m pip --quiet --retries 2 --timeout 20 install fsspec")
    assert output + present == ""
