"""Settings: which layer wins, and where a wrong one stands."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from launcher.adapters.settings import load_settings
from launcher.errors import InputError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_stronger_layer_wins_and_the_origin_is_kept(home: Path) -> None:
    write(home / "system/spotlaunch/launch.toml", "confirm_below = 1\ncurrency = 'EUR'\npoll_seconds = 7\n")
    write(home / "home/spotlaunch/launch.toml", "confirm_below = 2\ncurrency = 'GBP'\n")
    write(home / "project/launch.toml", "confirm_below = 3\n")

    found = load_settings({"LAUNCH_CONFIRM_BELOW": "4"}, folder=home / "project")

    assert found.settings.confirm_below == Decimal(4)
    assert found.settings.currency == "GBP"
    assert found.settings.poll_seconds == 7.0
    assert found.origins["confirm_below"] == "LAUNCH_CONFIRM_BELOW"
    assert found.origins["currency"].endswith("home/spotlaunch/launch.toml")
    assert found.origins["fallback_delay_seconds"] == "default"


def test_a_path_is_meant_from_the_file_that_names_it(home: Path) -> None:
    write(home / "project/launch.toml", "pricing = 'our/pricing.yaml'\n")

    assert load_settings({}, folder=home / "project").settings.pricing == home / "project/our/pricing.yaml"


def test_an_unknown_setting_stands_at_its_line_with_the_nearest_known_one(home: Path) -> None:
    write(home / "project/launch.toml", "\ncurency = 'EUR'\n")

    with pytest.raises(InputError) as caught:
        load_settings({}, folder=home / "project")

    (problem,) = caught.value.problems
    assert problem.where.endswith("launch.toml:2")
    assert problem.fix == "write currency"


@pytest.mark.parametrize("text", ["currency = ", "currency = 'euro'", "poll_seconds = -1", "\xff = 1"])
def test_a_wrong_file_is_an_input_error(home: Path, text: str) -> None:
    write(home / "project/launch.toml", text)

    with pytest.raises(InputError):
        load_settings({}, folder=home / "project")


def test_a_wrong_variable_is_named(home: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_settings({"LAUNCH_CONFIRM_BELOW": "lots"}, folder=home)

    assert caught.value.problems[0].where == "LAUNCH_CONFIRM_BELOW"


def test_variables_of_a_run_are_no_settings(home: Path) -> None:
    load_settings({"LAUNCH_RUN_ID": "x", "LAUNCH_PROTOCOL": "1"}, folder=home)


def test_feeds_are_named_in_a_file_or_with_commas_in_a_variable(home: Path) -> None:
    write(home / "project/launch.toml", "feeds = ['aws', 'azure']\n")

    assert load_settings({}, folder=home).settings.feeds == ()
    assert load_settings({}, folder=home / "project").settings.feeds == ("aws", "azure")
    assert load_settings({"LAUNCH_FEEDS": "gcp, aws"}, folder=home / "project").settings.feeds == ("gcp", "aws")
    with pytest.raises(InputError, match="feeds"):
        load_settings({"LAUNCH_FEEDS": "oracle"}, folder=home)
