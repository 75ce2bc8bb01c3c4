"""init, schema, offers, config, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Launch

LAUNCH = Path(sys.executable).with_name("launch")
H100 = str(Path(__file__).parents[2] / "configs" / "single-h100-spot.yaml")
HEAVY = ("torch", "sky", "fsspec", "s3fs", "pynvml", "rich", "sqlalchemy", "pydantic", "ruamel", "numpy", "asyncio")


def test_init_writes_a_file_that_plans_and_never_overwrites(launch: Launch, folder: Path) -> None:
    assert launch("init").code == 0
    assert launch("plan", "train.yaml").code == 0
    assert (folder / "train.schema.json").exists()
    assert (folder / "train.yaml").read_text().startswith("# yaml-language-server: $schema=train.schema.json")

    (folder / "train.yaml").write_text("mine")

    assert launch("init").code == 2
    assert (folder / "train.yaml").read_text() == "mine"


def test_the_schema_is_json(launch: Launch) -> None:
    assert json.loads(launch("schema").out)["title"] == "spotlaunch train.yaml"


def test_offers_are_listed_by_type_with_refusals(launch: Launch) -> None:
    listed = json.loads(launch("offers", "a100-80g", "-o", "json").out)["offers"]

    assert {offer["gpu"] for offer in listed} == {"A100-80GB"}
    assert any(offer["refused"] for offer in listed)
    assert all((offer["usd_per_hour"] is None) == bool(offer["refused"]) for offer in listed)
    assert "refused:" in launch("offers", "A100-80GB").out
    assert "write" in launch("offers", "H10").err


def test_config_shows_where_a_value_comes_from(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_CONFIRM_BELOW", "7")

    assert "confirm_below = 7    # LAUNCH_CONFIRM_BELOW" in launch("config", "show", "--origin").out


def test_a_word_that_is_no_command_and_no_file_is_a_usage_error(launch: Launch) -> None:
    assert launch("statsu").code == 2
    assert launch("nothing.yaml").code == 2
    assert "no such file" in launch("nothing.yaml").err


def test_an_unknown_run_has_its_own_exit_code(launch: Launch) -> None:
    for command in ("status", "logs", "stop", "resume"):
        done = launch(command, "nobody")
        assert (command, done.code) == (command, 102)


def test_stop_wants_a_run_or_all(launch: Launch) -> None:
    assert launch("stop").code == 2
    assert launch("stop", "--all").code == 0


def loaded_by(*arguments: str) -> set[str]:
    """Heavy packages that a fresh interpreter imports on the way, as `-X importtime` lists them."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert listed & {"launcher", "trainer_hooks"}
    return listed & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    assert loaded_by(str(LAUNCH), "--help") == set()


def test_status_loads_neither_torch_nor_a_file_system_nor_yaml(folder: Path) -> None:
    assert loaded_by(str(LAUNCH), "status") <= {"sqlalchemy", "rich", "pydantic", "asyncio"}


def test_a_plan_loads_neither_torch_nor_a_file_system(folder: Path) -> None:
    assert loaded_by(str(LAUNCH), "plan", H100) <= {"sqlalchemy", "rich", "pydantic", "asyncio", "ruamel", "numpy"}


def test_the_hooks_load_torch_only_when_they_are_used() -> None:
    assert loaded_by("-c", "import trainer_hooks, trainer_hooks.protocol") == set()
