"""The request for a supervisor's machine, word by word; what its script does; what travels along."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from launcher.adapters.skypilot_cpus import FAMILIES, small_machines
from launcher.adapters.skypilot_supervisor import (
    MAX_FAILURES,
    Errand,
    configuration,
    demand_hired,
    dismiss,
    requirements,
    supervisor_task,
)
from launcher.core.prices.supervision import Host, supervisor_name
from launcher.errors import BackendError, InputError, LaunchRefused
from tests.adapters.api_server import BEGAN, ApiServer, an_api_server
from tests.builders import RUN

GOLDEN = Path(__file__).parents[1] / "golden" / "skypilot"
AWS = Host(infra="aws/us-east-2", instance_type="m6i.large", usd_per_hour=Decimal("0.096"), basis="list")
SLURM = Host(infra="slurm/lab/cpu", instance_type=None, usd_per_hour=Decimal(0), basis="declared")


def an_errand(**fields: Any) -> Errand:
    plain: dict[str, Any] = {
        "run_id": "llama-sft-20260105-ab12",
        "number": 1,
        "host": AWS,
        "workdir": "/home/me/llama",
        "packages": {"launcher": "/site/launcher", "trainer_hooks": "/site/trainer_hooks"},
        "files": {"pricing.yaml": "/home/me/llama/pricing.yaml"},
        "settings": {"LAUNCH_POLL_SECONDS": "5.0"},
        "secrets": {"LAUNCH_LEDGER": "postgresql://ada:secret@db/runs"},
        "environ": {"SKYPILOT_USER_ID": "cafe0001"},
        "requirements": ("filelock>=3.15", "s3fs>=2024.12", "skypilot[aws]==0.14.1"),
        "tags": {"team": "NLP", "spotlaunch-run": "llama-sft-20260105-ab12"},
    }
    return Errand(**plain | fields)


ERRANDS = {
    "supervisor-aws": an_errand(minutes=900),
    "supervisor-slurm": an_errand(
        host=SLURM,
        number=2,
        minutes=900,
        prelude="module load python/3.11",
        files={"home/.slurm/config": "/tmp/config"},
    ),
}


@pytest.mark.parametrize("name", ERRANDS)
def test_its_machine_is_asked_for_in_exactly_these_words(name: str) -> None:
    assert supervisor_task(ERRANDS[name]) == YAML(typ="safe").load(GOLDEN / f"{name}.yaml")


@pytest.mark.parametrize("name", ERRANDS)
def test_skypilot_takes_it_for_a_task(name: str) -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not installed: pip install spotlaunch[sky]")
    jsonschema = pytest.importorskip("jsonschema")

    jsonschema.validate(supervisor_task(ERRANDS[name]), schemas.get_task_schema())


def run_with(tmp_path: Path, python: str, errand: Errand | None = None) -> tuple[int, list[str]]:
    """The exit code of its script on a machine whose python is `python`, and how that was called each time."""
    home = tmp_path / "home"
    base = home / ".spotlaunch"
    (base / "home/.slurm").mkdir(parents=True)
    (home / ".aws").mkdir()
    (tmp_path / "bin").mkdir()
    programs = {"python": f'echo "$HOME $*" >> {tmp_path}/calls\n{python}', "sleep": "true", "scancel": "echo $1"}
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (base / "python").write_text(f"{tmp_path}/bin/python\n")
    env = {"HOME": str(home), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    script = supervisor_task(errand or an_errand())["run"]
    done = subprocess.run(
        ["bash", "-c", script], check=False, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    return done.returncode, [*(tmp_path / "calls").read_text().splitlines(), *done.stdout.splitlines()]


def test_the_supervisor_is_told_where_things_lie_on_its_machine(tmp_path: Path) -> None:
    code, (call,) = run_with(tmp_path, "exit 0")

    base = tmp_path / "home/.spotlaunch"
    run = "-m launcher.supervise llama-sft-20260105-ab12"
    assert code == 0
    assert call == f"{base}/home {run} --workdir {tmp_path} --hired 1 --pricing {base}/pricing.yaml"


def test_a_supervisor_that_is_killed_is_started_again(tmp_path: Path) -> None:
    code, calls = run_with(tmp_path, f'[ "$(wc -l < {tmp_path}/calls)" -ge 9 ] || kill -9 $$')

    assert (code, len(calls)) == (0, 9)


def test_one_that_says_what_is_wrong_is_tried_again_a_few_times(tmp_path: Path) -> None:
    code, calls = run_with(tmp_path, "exit 2")

    assert (code, len(calls)) == (2, MAX_FAILURES)


def test_it_has_the_machines_credentials_but_not_its_skypilot(tmp_path: Path) -> None:
    (tmp_path / "home/.sky").mkdir(parents=True)

    run_with(tmp_path, "exit 0")

    own = tmp_path / "home/.spotlaunch/home"
    assert (own / ".aws").readlink() == tmp_path / "home/.aws"
    assert not (own / ".sky").exists()


def test_on_slurm_it_ends_its_allocation_and_leaves_no_key_behind(tmp_path: Path) -> None:
    _, said = run_with(tmp_path, "exit 0", replace(ERRANDS["supervisor-slurm"], prelude=None))

    assert said[-1] == "77"
    assert not (tmp_path / "home/.spotlaunch/home/.slurm").exists()


def test_slurms_keys_travel_along_and_its_list_of_clusters_names_them_there(tmp_path: Path) -> None:
    (tmp_path / ".slurm").mkdir()
    text = f"Host lab\n    HostName 10.0.0.1\n    IdentityFile ~/.ssh/lab\nHost b\n  IdentityFile {tmp_path}/k\n"
    (tmp_path / ".slurm/config").write_text(text)

    files = configuration({"slurm", "aws"}, home=tmp_path, folder=tmp_path / "out")

    config = Path(files.pop("home/.slurm/config")).read_text()
    assert sorted(files.values()) == sorted([f"{tmp_path}/.ssh/lab", f"{tmp_path}/k"])
    assert all(f"IdentityFile ~/{name.removeprefix('home/')}\n" in config for name in files)
    assert config.startswith("Host lab\n    HostName 10.0.0.1\n")


def test_nothing_of_clusters_that_the_run_does_not_use_travels(tmp_path: Path) -> None:
    (tmp_path / ".slurm").mkdir()
    (tmp_path / ".slurm/config").write_text("Host lab\n")

    assert configuration({"aws"}, home=tmp_path, folder=tmp_path / "out") == {}


def test_it_installs_what_the_distribution_names_and_this_very_skypilot() -> None:
    found = requirements({"s3"}, {"slurm", "aws"})

    names = [each.partition(">")[0] for each in found]
    assert {"filelock", "pydantic", "s3fs", "sqlalchemy"} <= set(names)
    assert not {"gcsfs", "torch", "pytest", "psycopg[binary]"} & set(names)
    assert found[-1] == f"skypilot[aws,slurm]=={importlib.metadata.version('skypilot')}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    return an_api_server(monkeypatch)


def test_its_machine_is_ended_with_a_launch_that_is_under_way(server: ApiServer) -> None:
    server.has_up(supervisor_name(RUN))
    server.began("RUNNING", name=supervisor_name(RUN))

    assert dismiss(RUN)
    assert (server.clusters, server.cancelled) == ({}, ["r1"])


def test_a_machine_that_skypilot_does_not_know_here_is_not_ended(server: ApiServer) -> None:
    assert not dismiss(RUN)


def test_a_release_that_left_its_machine_is_not_believed(server: ApiServer) -> None:
    server.has_up(supervisor_name(RUN))
    server.keeps_machines = True

    with pytest.raises(BackendError, match="is still there"):
        dismiss(RUN)


class ResourcesUnavailableError(Exception):
    """As SkyPilot calls it."""


def test_the_newest_launch_says_whether_its_machine_is_granted(server: ApiServer) -> None:
    server.outcomes["r1"] = ResourcesUnavailableError("none left")

    demand_hired(RUN)
    server.began("FAILED", name=supervisor_name(RUN))
    with pytest.raises(LaunchRefused, match="none left"):
        demand_hired(RUN)
    server.began("RUNNING", name=supervisor_name(RUN), request_id="r2", at=BEGAN + 60)
    demand_hired(RUN)


COLUMNS = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region"


def a_catalogue(folder: Path, *rows: str) -> Path:
    (folder / "aws").mkdir()
    (folder / "aws/vms.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    return folder


def test_only_machines_that_are_large_enough_and_steady_are_priced(tmp_path: Path) -> None:
    folder = a_catalogue(
        tmp_path,
        "t3a.medium,,,2,4,0.04,0.01,us-east-2",  # bills bursts on top
        "c6i.medium,,,1,2,0.05,0.01,us-east-2",
        "c6i.large,,,2,4,0.085,0.03,us-east-2",
        "m6i.large,,,2,8,0.096,0.03,us-east-2",
        "m6g.large,,,2,8,0.01,0.01,us-east-2",  # not x86
        "c6i.large,,,2,4,,0.03,us-west-2",
        "p5.48xlarge,H100,8,192,2048,0.01,0.01,us-west-2",
    )

    (place, machine), *more = small_machines(folder).items()

    assert (place, machine.instance_type, machine.usd_per_hour, more) == (
        ("aws", "us-east-2"),
        "c6i.large",
        Decimal("0.085"),
        [],
    )


def test_a_broken_catalogue_is_said_to_be_one(tmp_path: Path) -> None:
    folder = a_catalogue(tmp_path, "c6i.large,,,2,4,cheap,0.03,us-east-2")

    with pytest.raises(InputError, match="is no catalogue"):
        small_machines(folder)


def test_the_families_are_those_that_skypilot_takes_itself() -> None:
    """So that one which SkyPilot drops or adds is noticed; of Google's only those with ordinary disks are taken."""
    why = "SkyPilot is not installed: pip install spotlaunch[sky]"
    aws, azure, gcp = (
        pytest.importorskip(f"sky.catalog.{name}_catalog", reason=why) for name in ("aws", "azure", "gcp")
    )
    sizes = {"Ds_v5": "Standard_D2s_v5", "Es_v5": "Standard_E2s_v5", "Fs_v2": "Standard_F2s_v2"}

    assert all(FAMILIES["aws"].fullmatch(f"{family}.large") for family in aws._DEFAULT_INSTANCE_FAMILY)
    assert all(FAMILIES["azure"].fullmatch(sizes[family]) for family in azure._DEFAULT_INSTANCE_FAMILY)
    n2 = {family for family in gcp._DEFAULT_INSTANCE_FAMILY if FAMILIES["gcp"].fullmatch(f"{family}-2")}
    assert n2 == {"n2-standard", "n2-highmem", "n2-highcpu"}
