"""Small markets, drawn at random or written out, and terms for them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.policy.terms import Sights, Terms
from benchmarks.policy.traces import TICKS_PER_HOUR, Zone, zone


def a_zone(up: str, name: str = "r1a") -> Zone:
    """`up` has a digit for each tick."""
    return zone(name, [digit == "1" for digit in up])


def some_terms(
    zones: Sequence[Zone],
    *,
    work: int,
    slack: int,
    launch: int,
    spot_prices: Sequence[float] = (),
    egress: float = 0.0,
    sights: Sights = Sights.KNOWN,
) -> Terms:
    """Prices are per tick, on-demand costs 1; `egress` is between any two regions."""
    prices = spot_prices or [0.3] * len(zones)
    return Terms(
        work_ticks=work,
        deadline_ticks=work + slack,
        launch_ticks=launch,
        fallback_price_per_hour=TICKS_PER_HOUR,
        spot_prices_per_hour=tuple(price * TICKS_PER_HOUR for price in prices),
        regions=tuple(one.region for one in zones),
        egress_prices=tuple(tuple(egress * (a.region != b.region) for b in zones) for a in zones),
        sights=sights,
    )


def a_random_zone(rng: random.Random, ticks: int, name: str = "r1a") -> Zone:
    """It changes its state at any tick with one probability for all."""
    change = rng.uniform(0.02, 0.5)
    state, up = rng.random() < 0.5, []
    for _ in range(ticks):
        state ^= rng.random() < change
        up.append(state)
    return zone(name, up)
