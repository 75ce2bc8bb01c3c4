"""Markets and skies for tests of futures: a test names only what matters to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from launcher.core.estimates.rollout import Outlook
from launcher.core.offers import Capacity, Placement
from launcher.core.policy.market import Market, Place, market_of
from launcher.core.prices.options import Option, Rules
from tests import builders
from tests.builders import T0, a_placement, a_spec, an_offer

LADDER = (Capacity.SPOT, Capacity.RESERVED, Capacity.ON_DEMAND)


def an_outlook(**fields: Any) -> Outlook:
    plain: dict[str, Any] = {
        "throughput_factor80": 1.0,
        "idle_seconds": 25.0,
        "closing_seconds": 55.0,
        "retry_seconds": 900.0,
        "reads": 0.0,
        "checkpoint_gb": 0.0,
        "kept": 2,
        "storage_usd_per_gb_month": Decimal(0),
    }
    return Outlook(**plain | fields)


def an_option(placement: Placement | None = None, **fields: Any) -> Option:
    """Saved every ten minutes."""
    return builders.an_option(placement, **{"interval_seconds": 600.0} | fields)


def spot(zone: str = "a", *, usd_per_hour: str = "6", notice_seconds: float = 120.0, **fields: Any) -> Option:
    return an_option(
        a_placement(an_offer(zone=zone, notice_seconds=notice_seconds), usd_per_hour=usd_per_hour), **fields
    )


def on_demand(*, usd_per_hour: str = "20", **fields: Any) -> Option:
    return an_option(a_placement(an_offer(capacity=Capacity.ON_DEMAND), usd_per_hour=usd_per_hour), **fields)


def a_market(
    *options: Option,
    steps: int = 1000,
    hours: float = 100.0,
    rules: Rules | None = None,
    moves: Mapping[tuple[str | None, str | None], float] | None = None,
) -> Market:
    """`hours` until the deadline."""
    return market_of(
        options,
        a_spec(steps=steps, mode=list(LADDER)),
        since=T0,
        deadline_at=T0 + timedelta(hours=hours),
        deadline_assumed=False,
        rules=rules or Rules(),
        moves=moves,
    )


def place_in(market: Market, option: Option) -> Place:
    return next(place for place in market.places if place.option is option)


class Always:
    """Capacity that never goes away."""

    def spell(self, place: Place, now: float) -> tuple[bool, float]:
        return True, math.inf


class Told:
    """By zone: the hours at which capacity changes; each has some in the beginning."""

    def __init__(self, **changes: Sequence[float]) -> None:
        self._changes = changes

    def spell(self, place: Place, now: float) -> tuple[bool, float]:
        changes = self._changes[str(place.option.placement.offer.zone)]
        past = [at for at in changes if at <= now]
        return len(past) % 2 == 0, next((at for at in changes if at > now), math.inf)
