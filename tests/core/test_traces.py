"""Which record speaks of which place, and from which hours it can be played."""

from __future__ import annotations

import math

import pytest

from launcher.core.replays.traces import Trace, records_for, starts_within
from tests.core.futures import a_market, on_demand, spot

MARKET = a_market(spot("a"), spot("b"), on_demand())


def a_trace(*names: str, hours: float = 100.0) -> Trace:
    """Records that differ in their first change."""
    return Trace(name="t.csv", records={name: (True, (float(n), hours)) for n, name in enumerate(names)}, hours=hours)


def zones(trace: Trace) -> dict[str, int]:
    found = records_for(trace, MARKET.places)
    return {key.split("/")[2]: int(changes[0]) for key, (_, changes) in found.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a"], {"a": 0}),
        (["us-east-2"], {"a": 0, "b": 0}),
        (["aws/*"], {"a": 0, "b": 0}),
        (["*", "us-east-2", "b", "aws/us-east-2/a/p5.48xlarge/spot"], {"a": 3, "b": 2}),
        (["aws/*/b/*", "*"], {"a": 1, "b": 0}),
        (["gcp/*", "c"], {}),
    ],
)
def test_the_closest_name_counts_and_only_for_spot(names: list[str], expected: dict[str, int]) -> None:
    assert zones(a_trace(*names)) == expected


def test_starts_leave_a_whole_window_of_the_record() -> None:
    assert starts_within(a_trace("a"), window_hours=40, count=4) == [0, 20, 40, 60]


@pytest.mark.parametrize(("hours", "count"), [(100.0, 1), (40.0, 5), (30.0, 5), (math.inf, 5)])
def test_without_room_there_is_only_the_beginning(hours: float, count: int) -> None:
    assert starts_within(a_trace("a", hours=hours), window_hours=40, count=count) == [0.0]
