"""Every example can be planned as it lies there, and its request is a SkyPilot task."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.cli.conftest import Launch

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*/train.yaml"))


@pytest.fixture(params=FILES, ids=[file.parent.name for file in FILES])
def example(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An example's train.yaml, from within its folder: where it has a pricing.yaml, that counts."""
    file: Path = request.param
    monkeypatch.chdir(file.parent)
    return file


def test_there_is_one_for_a_cloud_and_one_for_slurm() -> None:
    assert {file.parent.name for file in FILES} >= {"cloud", "slurm"}


def test_an_example_plans_without_asking_anybody(launch: Launch, example: Path) -> None:
    done = launch("plan", "train.yaml", "-o", "json")

    ranked = json.loads(done.out)["ranked"]
    assert (done.code, done.err) == (0, "")
    assert {entry["placement"]["capacity"] for entry in ranked} == set(YAML(typ="safe").load(example)["mode"])
    assert float(ranked[0]["cost_usd"]["p90"]) < 100  # to try an example is no investment


def test_an_examples_request_is_a_task_with_its_command_and_its_bucket(launch: Launch, example: Path) -> None:
    done = launch("plan", "train.yaml", "--show-request")

    spec, task = YAML(typ="safe").load(example), YAML(typ="safe").load(done.out)
    assert set(task) <= {"name", "num_nodes", "resources", "workdir", "file_mounts", "envs", "setup", "run", "config"}
    assert task["resources"]["infra"].startswith(f"{spec['providers'][0]}/")
    assert task["envs"]["LAUNCH_RUN_URI"].startswith(f"{spec['checkpoint']['uri']}/{spec['name']}-")
    assert task["num_nodes"] == spec.get("nodes", 1)
    assert spec["run"].strip().splitlines()[-1] in task["run"]
    assert spec.get("setup", "") in task["setup"]
    assert (Path(task["workdir"]) / re.findall(r"\w+\.py", spec["run"])[0]).exists()


def test_an_example_names_the_schema_for_editors(example: Path) -> None:
    named = re.search(r"\$schema=(\S+)", example.read_text())

    assert named is not None
    assert (example.parent / named[1]).exists()
