"""`launch doctor`: one line for each check, its fix on the next, and an exit code that a script can act on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.checks.conftest import Program, program
from tests.adapters.checks.test_slurm import RECORDED
from tests.cli.conftest import Launch

__all__ = ["program"]  # the fixture

TRAIN = """\
name: llm
run: python train.py
gpus: {H100: 8}
providers: [local]
workload: {steps: 1000, step_seconds: {H100: 1.5}}
checkpoint: {uri: runs}
"""
PRICING = """\
clusters:
  - name: lab
    provider: slurm
    pools:
      - {name: spot, capacity: spot, gpu: H100, gpus: 4, nodes: 2, usd_per_gpu_hour: 1.50}
      - {name: burst, capacity: on_demand, gpu: H100, gpus: 4, nodes: 2, usd_per_gpu_hour: 4.00}
"""


@pytest.fixture(autouse=True)
def _without_skypilot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if it were not installed: an API server is another test's business. And a home without a Slurm cluster."""
    monkeypatch.setitem(sys.modules, "sky", None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def checked(launch: Launch, *arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and the checks by name."""
    done = launch("doctor", *arguments, "-o", "json")
    found = json.loads(done.out)
    assert (found["schema"], found["exit_code"]) == ("launch/doctor/v1", done.code)
    assert sum(found["counts"].values()) == len(found["checks"])
    by_name: dict[str, list[dict[str, Any]]] = {}
    for check in found["checks"]:
        by_name.setdefault(check["name"], []).append(check)
    return done.code, by_name


def test_a_machine_of_ones_own_needs_nothing_and_is_left_as_it_was(launch: Launch, folder: Path) -> None:
    before = sorted(folder.parent.rglob("*"))

    done = launch("doctor")

    assert done.code == 0, done.out
    assert " ok       state folder" in done.out
    assert " skipped  SkyPilot" in done.out
    assert "          fix: pip install" in done.out
    assert sorted(folder.parent.rglob("*")) == before


def test_files_are_read_and_what_they_name_is_tried(launch: Launch, folder: Path) -> None:
    (folder / "train.yaml").write_text(TRAIN)
    (folder / "runs").mkdir()

    code, checks = checked(launch, "train.yaml")

    assert (code, checks["train.yaml"][0]["state"]) == (0, "ok")
    assert checks["SkyPilot"][0]["state"] == "skipped"  # nothing but this machine is asked for
    (runs,) = (checks[name][0] for name in checks if name.startswith("folder "))
    assert runs["state"] == "ok"
    assert list((folder / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "arguments"),
    [
        ({"pricing.yaml": "discounts: [{provider: aws, percent: 12}]"}, []),
        ({"train.yaml": TRAIN.replace("local", "aws")}, ["train.yaml"]),
        ({"../state/clouds.json": '{"checked_at": "2026-11-21T12:00:00Z", "enabled": ["aws"]}'}, []),
        ({}, ["--cloud", "AWS"]),
    ],
)
def test_a_cloud_is_asked_only_where_something_names_it(
    launch: Launch, folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], arguments: list[str]
) -> None:
    monkeypatch.setenv("LAUNCH_STATE_FOLDER", str(folder.parent / "state"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody: the clock's server is far away
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert "aws account" not in checked(launch)[1]

    (folder.parent / "state").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    code, checks = checked(launch, *arguments)

    assert (code, checks["SkyPilot"][0]["state"]) == (1, "failed")
    assert checks["aws account"][0]["state"] == "skipped"


def test_every_problem_of_the_files_stands_at_its_line(launch: Launch, folder: Path) -> None:
    (folder / "train.yaml").write_text(TRAIN.replace("H100: 8", "H1000: 8"))
    (folder / "pricing.yaml").write_text("clusters: 3\nown: [{name: a}]\n")

    code, checks = checked(launch, "train.yaml")

    assert code == 1
    assert "train.yaml:3" in checks["train.yaml"][0]["found"]
    assert "pricing.yaml:1" in checks["pricing.yaml"][0]["found"]
    assert len(checks["pricing.yaml"]) > 1
    assert "prices" not in checks


def test_settings_that_cannot_be_read_are_the_only_finding(launch: Launch, folder: Path) -> None:
    (folder / "launch.toml").write_text("curency = 'EUR'\n")

    code, checks = checked(launch)

    assert (code, list(checks)) == (1, ["settings"])
    assert "launch.toml:1" in checks["settings"][0]["found"]
    assert checks["settings"][0]["fix"] == "write currency"


def test_the_clusters_of_pricing_yaml_are_asked(launch: Launch, folder: Path, program: Program) -> None:
    (folder / "pricing.yaml").write_text(PRICING)
    program("ssh", f"cat {RECORDED}")

    code, checks = checked(launch)

    assert code == 1
    assert checks["slurm lab"][0]["state"] == "ok"
    assert checks["slurm lab/spot"][0]["state"] == "ok"
    assert checks["slurm lab/burst"][0]["found"] == "no such partition"
    assert checks["SkyPilot"][0]["state"] == "failed"  # a cluster is reached through it


def test_nothing_but_missing_credentials_exits_with_4(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("s3fs")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LAUNCH_RUNS_URI", "s3://team/runs")

    code, checks = checked(launch)

    assert code == 4, checks
    assert checks["bucket s3://team/runs"][0]["is_credentials"]
    assert checks["clock"][0]["state"] == "skipped"


def test_the_table_counts_what_it_shows(launch: Launch, folder: Path) -> None:
    (folder / "pricing.yaml").write_text("discounts: 1\n")

    done = launch("doctor")

    assert done.code == 1
    assert done.out.splitlines()[-1].strip() == "3 ok, 1 failed, 2 skipped"
