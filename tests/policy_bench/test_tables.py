from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import policy
from benchmarks.policy import tables
from benchmarks.policy.baselines import OnDemand
from benchmarks.policy.cells import Contender, measure
from benchmarks.policy.guards import Guard
from benchmarks.policy.tables import H100_ZONES, table
from benchmarks.policy.terms import Sights, Terms, list_prices
from benchmarks.policy.traces import FILE, zone
from tests.policy_bench.markets import a_zone


def a_trace(seed: int, *, hours: int, **prices: float) -> dict[str, object]:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 40) for _ in range(hours)]  # looks every 10 minutes; about 20 a state
    return {"gap": 600, "rle": [[n % 2, length] for n, length in enumerate(lengths)], **prices}


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    zones = ["us-east-1a", "us-east-1c", "us-east-1d", "us-east-1f", "us-east-2a"]
    zones += ["us-east-2b", "us-west-2a", "us-west-2b", "us-west-2c"]
    found = {f"1-node/aws-02-15-2023/{name}_v100_1": a_trace(n, hours=200) for n, name in enumerate(zones)}
    found |= {f"1-node/aws-10-26-2022/{name}_k80_1": a_trace(n, hours=60) for n, name in enumerate(zones[:2])}
    for n, name in enumerate(H100_ZONES):
        found[f"16-node/gcp-10-03-2025/{name}_h100_16"] = a_trace(n, hours=60, spot=15.0 + n)
    (tmp_path / FILE).write_text(json.dumps(found))
    return tmp_path


@pytest.fixture
def one_cell_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SLACKS", (0.05,))
    monkeypatch.setattr(tables, "LAUNCH_MINUTES", (6,))
    monkeypatch.setattr(tables, "RATIOS", (1.05,))


@pytest.mark.usefixtures("one_cell_each")
@pytest.mark.parametrize(
    ("name", "rows", "policies"), [("single", 1 + 1, 7), ("sets", 3, 7), ("regions", 4 + 4, 7), ("h100", 1, 7)]
)
def test_each_table_has_its_rows_and_nobody_in_it_is_late(
    name: str, rows: int, policies: int, traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.main([name, "--traces", str(traces), "--sample", "1", "--processes", "1"])

    said = capsys.readouterr().out.splitlines()
    headers = sum(line.startswith("| ---") for line in said)
    late = next(line for line in said if line.startswith("late: "))
    assert sum(line.startswith("| ") for line in said) - 2 * headers == rows
    assert [one[-2:] for one in late.split(",")] == [" 0"] * policies


@pytest.mark.parametrize(("name", "cells"), [("single", 12), ("sets", 36), ("regions", 48), ("h100", 5)])
def test_a_table_has_a_cell_for_each_case(name: str, cells: int) -> None:
    asked = table(name)

    assert cells == len({cell.labels for cell in asked.cells})
    assert {len(cell.labels) for cell in asked.cells} == ({1} if name == "h100" else {3})


def test_a_sample_is_spread_over_all_zones(tmp_path: Path) -> None:
    always = {f"x/aws-02-15-2023/z{n}": {"gap": 120, "rle": [[n % 2, 5000]]} for n in range(9)}
    (tmp_path / FILE).write_text(json.dumps(always))

    (result,) = measure(table("single").cells[:1], {}, folder=tmp_path, sample=9, processes=1)

    is_cheaper = [best < 0.9 * alone for best, alone in zip(result.optima, result.on_demand, strict=True)]
    assert is_cheaper == [False, True, False, True, False, True, False, True, False]


class Subscriber(OnDemand):
    def __init__(self, terms: Terms) -> None:
        super().__init__(terms)
        assert terms.sights is Sights.FEED


def test_a_policy_is_told_how_it_learns_of_zones(traces: Path) -> None:
    chosen = {"subscriber": Contender(Subscriber, Sights.FEED)}

    (result,) = measure(table("h100").cells[:1], chosen, folder=traces, sample=1, processes=1)

    assert result.ratio("subscriber") > 1


def test_processes_change_nothing(traces: Path) -> None:
    cells = table("h100").cells[:2]
    chosen = {"UP": Contender(Guard(policy.BASELINES["UP"], None), Sights.ATTEMPTS)}

    alone, together = (measure(cells, chosen, folder=traces, sample=2, processes=processes) for processes in (1, 2))

    assert alone == together


def test_moves_between_continents_cost_more_than_within_one() -> None:
    names = ("us-west1-a", "us-west1-b", "us-east4-a", "asia-south2-b")
    zones = [zone(name, [True], spot_price_per_hour=9.0) for name in names]

    terms = list_prices(zones, deadline_hours=10, ratio=2, launch_minutes=12, on_demand_usd_per_hour=80)

    assert terms.egress_prices[0] == (0.0, 0.0, 1.0, 6.0)
    assert (terms.work_ticks, terms.deadline_ticks, terms.launch_ticks) == (150, 300, 6)


def test_zones_without_prices_are_refused_where_prices_matter() -> None:
    with pytest.raises(ValueError, match="1 of 1 zones have no price"):
        list_prices([a_zone("1")], deadline_hours=10, ratio=2, launch_minutes=12, on_demand_usd_per_hour=80)
