from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import policy
from benchmarks.policy.traces import FILE, VARIABLE, NoTraces, read_sets, starts, traces_folder
from tests.policy_bench.markets import a_zone


def test_a_tick_has_the_value_that_held_at_its_start(tmp_path: Path) -> None:
    trace = {"gap": 195, "rle": [[1, 2], [0, 1], [1, 1]]}  # up until 390 s, down until 585 s, up until 780 s
    (tmp_path / FILE).write_text(json.dumps({"availability/1-node/a-set/us-east-1a_v100_1": trace}))

    zone = read_sets(tmp_path)["a-set"][0]

    assert list(zone.up) == [True, True, True, True, False, True]  # ticks start at 0, 120, …, 600 s


def test_a_state_lasts_from_its_first_tick_to_the_next_change() -> None:
    zone = a_zone("110001")

    assert list(zone.since) == [0, 0, 2, 2, 2, 5]
    assert list(zone.until) == [2, 2, 5, 5, 5, 6]


@pytest.mark.parametrize(
    ("name", "region"), [("us-east-1a_v100_1", "us-east-1"), ("europe-west1-c_h100_16", "europe-west1")]
)
def test_a_zone_lies_in_its_region(name: str, region: str) -> None:
    assert region == a_zone("1", name).region


def test_zones_come_by_set_with_their_prices(tmp_path: Path) -> None:
    traces = {"x/one/us-a": {"gap": 120, "rle": [[1, 1]]}, "x/two/us-b": {"gap": 120, "rle": [[0, 1]], "spot": 9.5}}
    (tmp_path / FILE).write_text(json.dumps(traces))

    sets = read_sets(tmp_path)

    assert {name: [(zone.name, zone.spot_price_per_hour) for zone in zones] for name, zones in sets.items()} == {
        "one": [("us-a", None)],
        "two": [("us-b", 9.5)],
    }


def test_windows_start_at_even_distances_and_fit() -> None:
    zones = [a_zone("1" * 100), a_zone("1" * 75)]

    assert list(starts(zones, every_hours=1, window_ticks=15, from_hour=1)) == [30, 60]
    assert list(starts(zones, every_hours=1, window_ticks=16, from_hour=1)) == [30]


def test_without_traces_the_benchmark_says_in_one_line_how_to_name_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    policy.main(["single"])

    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("skipped")
    assert VARIABLE in said


def test_a_folder_without_traces_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(NoTraces, match=tmp_path.name):
        traces_folder(tmp_path)


def test_the_folder_asked_for_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    (tmp_path / FILE).write_text("{}")

    assert tmp_path == traces_folder(tmp_path)
