"""On the public traces, where a machine has them: what was published, and what this simulator made of a sample."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest

from benchmarks.policy import contenders
from benchmarks.policy.cells import Result, measure
from benchmarks.policy.tables import table
from benchmarks.policy.traces import NoTraces, traces_folder


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return traces_folder(None)
    except NoTraces as absent:
        pytest.skip(str(absent))


def a_result(folder: Path, name: str, *labels: str, sample: int) -> Result:
    asked = table(name)
    cells = [cell for cell in asked.cells if cell.labels[-len(labels) :] == labels]
    (result,) = measure(cells, contenders(asked.sights, cap=None), folder=folder, sample=sample, processes=1)
    return result


def test_six_zones_of_h100_cost_what_was_published(folder: Path) -> None:
    result = a_result(folder, "h100", "1.05", sample=50)

    assert mean(result.optima) == pytest.approx(841, rel=0.005)
    assert result.ratio("UP") == pytest.approx(1.286, abs=0.005)


# of 90 windows; all 765 have 0.564, 0.771, 0.672, 0.627, 0.602 and 0.551, 0.691, 0.624, 0.598, 0.597
@pytest.mark.parametrize(
    ("labels", "costs"),
    [(("5%", "6"), (0.568, 0.779, 0.676, 0.633, 0.607)), (("15%", "12"), (0.560, 0.700, 0.631, 0.605, 0.603))],
)
def test_one_zone_of_v100_costs_what_it_did(labels: tuple[str, str], costs: tuple[float, ...], folder: Path) -> None:
    result = a_result(folder, "single", *labels, sample=90)

    found = [mean(result.optima), *(result.cost(name) for name in result.outcomes if name != "on demand")]
    assert [cost / mean(result.on_demand) for cost in found] == pytest.approx(costs, abs=0.001)
