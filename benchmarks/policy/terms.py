"""What a run is to do by when, and what machines cost: known to every policy, to the oracle and to the simulator.

Time is counted in ticks. Prices are floats per hour: dollars, or where traces have none, on-demand is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from benchmarks.policy.traces import TICKS_PER_HOUR, Zone

CHECKPOINT_GB = 50.0
# GCP within North America, Europe or Asia; between them what its premium tier takes (list prices read 2026-09)
SAME_CONTINENT_USD_PER_GB, OTHER_CONTINENT_USD_PER_GB = 0.02, 0.12


class Sights(Enum):
    """How a policy learns of the zones that it is not in."""

    KNOWN = "known"  # at each tick
    FEED = "feed"  # every 10 minutes, and by asking
    ATTEMPTS = "attempts"  # only by asking


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A launch takes `launch_ticks`, billed and without progress; it is the fallback's, too."""

    work_ticks: int
    deadline_ticks: int
    launch_ticks: int
    fallback_price_per_hour: float
    spot_prices_per_hour: tuple[float, ...]  # [zones]
    regions: tuple[str, ...]  # [zones]
    egress_prices: tuple[tuple[float, ...], ...]  # [zones, zones], of a checkpoint from one to the other
    sights: Sights = Sights.KNOWN

    @property
    def on_demand_cost(self) -> float:
        """Of on-demand from the first tick to the last."""
        return (self.work_ticks + self.launch_ticks) * self.fallback_price_per_hour / TICKS_PER_HOUR


def equal_prices(
    zones: Sequence[Zone], *, work_hours: float, slack: float, launch_minutes: float, spot_ratio: float
) -> Terms:
    """`slack` is a part of the work; on-demand costs 1 an hour, spot `spot_ratio` in every zone; moves are free."""
    return Terms(
        work_ticks=round(work_hours * TICKS_PER_HOUR),
        deadline_ticks=round(work_hours * (1 + slack) * TICKS_PER_HOUR),
        launch_ticks=round(launch_minutes / 60 * TICKS_PER_HOUR),
        fallback_price_per_hour=1.0,
        spot_prices_per_hour=(spot_ratio,) * len(zones),
        regions=tuple(one.region for one in zones),
        egress_prices=((0.0,) * len(zones),) * len(zones),
    )


def list_prices(
    zones: Sequence[Zone], *, deadline_hours: float, ratio: float, launch_minutes: float, on_demand_usd_per_hour: float
) -> Terms:
    """`ratio` is of the deadline to the work; spot costs what the trace says, a move what GCP takes for the checkpoint.

    Raises: ValueError: a zone has no price.
    """
    prices = [one.spot_price_per_hour for one in zones if one.spot_price_per_hour is not None]
    if len(prices) < len(zones):
        raise ValueError(f"{len(zones) - len(prices)} of {len(zones)} zones have no price; take a set with prices")
    deadline_ticks = round(deadline_hours * TICKS_PER_HOUR)
    return Terms(
        work_ticks=round(deadline_ticks / ratio),
        deadline_ticks=deadline_ticks,
        launch_ticks=round(launch_minutes / 60 * TICKS_PER_HOUR),
        fallback_price_per_hour=on_demand_usd_per_hour,
        spot_prices_per_hour=tuple(prices),
        regions=tuple(one.region for one in zones),
        egress_prices=tuple(tuple(_egress_usd(a.region, b.region) for b in zones) for a in zones),
    )


def _egress_usd(source: str, target: str) -> float:
    if source == target:
        return 0.0
    is_same_continent = source.partition("-")[0] == target.partition("-")[0]
    return CHECKPOINT_GB * (SAME_CONTINENT_USD_PER_GB if is_same_continent else OTHER_CONTINENT_USD_PER_GB)
