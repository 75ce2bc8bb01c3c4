"""What a run will cost and how long it takes, as a distribution over possible futures.

Every place where it could begin is rolled out `NUM_FUTURES` times under the same skies, so that their order does not
depend on luck. The parts shown are those of the future with the median cost, rounded to the cent; the median cost is
their sum.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from statistics import NormalDist, fmean

from launcher.core.estimates.rollout import PARTS, Future, Outlook, roll
from launcher.core.estimates.weather import Drawn, Habits
from launcher.core.estimates.workload import StepTime
from launcher.core.offers import Placement
from launcher.core.policy.market import Market, Place
from launcher.core.prices.options import Option
from launcher.core.unknown import Unknown

NUM_FUTURES = 101  # odd: the median is one of them
NUM_FIRM_FUTURES = 49  # of capacity that stays: only the step time differs, in even quantiles
SEED = 20240416
MOST_ENDLESS = 0.1  # of the futures: else the 90 % quantile is unknown
CENT = Decimal("0.01")
_Z80 = 1.2815515655446004  # the normal quantile at 90 %: ±z holds 80 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """A number that the estimate rests on, and where it comes from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The 10 %, 50 % and 90 % quantiles."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UsdInterval:
    p10: Decimal
    p50: Decimal
    p90: Decimal

    @property
    def width(self) -> Decimal:
        return self.p90 - self.p10


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One place's answer to "how much, and how long?"."""

    placement: Placement
    option: Option
    hours: Interval
    cost_usd: UsdInterval
    high_usd: Decimal  # the high end and what closing takes: a run that may spend it is rarely cut short
    marginal_usd: Decimal  # cash, where a part of the price is paid for anyway
    naive_usd: Decimal  # price × the hours of the steps alone, that nobody is to believe
    parts: Mapping[str, Decimal]
    preemptions: float  # this and the next two: means over futures
    restart_hours: float
    fallback_hours: float
    fallback_usd_per_hour: Decimal | None
    on_time: float | None  # share of futures within the deadline
    assumptions: tuple[Assumption, ...]
    step: StepTime | None = None  # that all of it rests on


def estimate(
    place: Place,
    market: Market,
    outlook: Outlook,
    assumptions: Sequence[Assumption],
    *,
    step: StepTime | None = None,
    history: Mapping[str, Habits] | None = None,
    count: int = NUM_FUTURES,
) -> Estimate | Unknown:
    """The distribution of cost and time of a run that begins at `place` of `market`, and goes on as `decide` says.

    One that begins on capacity that stays is shown as staying there. `history`: what was seen of places lately, by
    their keys. Unknown is what comes to no end in more than one future of ten.
    """
    option = place.option
    count = count if place.is_spot else min(count, NUM_FIRM_FUTURES)
    futures = _futures(place, market, outlook, history or {}, count)
    if len(futures) < count:
        return Unknown(f"it comes to no end in more than {MOST_ENDLESS:.0%} of its futures")
    futures.sort(key=lambda future: (future.hours == math.inf, future.total_usd))
    costs, lengths = [f.total_usd for f in futures], sorted(f.hours for f in futures)
    middle = futures[len(futures) // 2]
    parts = {name: _cents(middle.usd[name]) for name in PARTS}
    total = sum(parts.values(), Decimal(0))
    high = max(total, _cents(_quantile(costs, 0.9)))
    closing = option.placement.usd_per_hour * Decimal(str(outlook.closing_seconds)) / 3600
    fallback = market.fallback
    return Estimate(
        placement=option.placement,
        option=option,
        hours=Interval(p10=_quantile(lengths, 0.1), p50=_quantile(lengths, 0.5), p90=_quantile(lengths, 0.9)),
        cost_usd=UsdInterval(p10=min(total, _cents(_quantile(costs, 0.1))), p50=total, p90=high),
        high_usd=(high + closing).quantize(CENT, ROUND_CEILING),
        marginal_usd=_marginal(parts, option),
        naive_usd=_cents(market.steps * option.step_seconds / 3600 * float(option.placement.usd_per_hour)),
        parts=parts,
        preemptions=fmean(f.preemptions for f in futures),
        restart_hours=fmean(f.restart_hours for f in futures),
        fallback_hours=fmean(f.fallback_hours for f in futures),
        fallback_usd_per_hour=fallback.option.placement.usd_per_hour if fallback else None,
        on_time=None if market.deadline == math.inf else fmean(hours <= market.deadline for hours in lengths),
        assumptions=tuple(assumptions),
        step=step,
    )


def _futures(place: Place, market: Market, outlook: Outlook, history: Mapping[str, Habits], count: int) -> list[Future]:
    """As many, or fewer if too many of them come to no end."""
    spread = math.log(outlook.throughput_factor80) / _Z80
    seen = market if place.is_spot else replace(market, places=(place,))
    futures: list[Future] = []
    endless = 0
    best = next((tier[0].key for tier in market.tiers), place.key)
    # wherever a run begins, that place has the luck of the best one, and that one its own: their order is by price
    swaps = place.key, best
    for seed, z in zip(_seeds(count), _quantiles(count), strict=True):
        sky = Drawn(seed, history, swaps=swaps)
        futures.append(roll(seen, sky, outlook, factor=math.exp(spread * z), first=place))
        endless += futures[-1].hours == math.inf
        if endless > MOST_ENDLESS * count:
            return futures[:-1]
    return futures


@lru_cache(maxsize=4)
def _quantiles(count: int) -> tuple[float, ...]:
    """Throughputs in even quantiles give the interval's ends less noise; in disorder, for they meet other draws."""
    normal = NormalDist()
    zs = [normal.inv_cdf((n + 0.5) / count) for n in range(count)]
    random.Random(SEED).shuffle(zs)  # noqa: S311  # a simulation, not a secret
    return tuple(zs)


@lru_cache(maxsize=4)
def _seeds(count: int) -> tuple[int, ...]:
    source = random.Random(SEED)  # noqa: S311  # a simulation, not a secret
    return tuple(source.getrandbits(32) for _ in range(count))


def _marginal(parts: Mapping[str, Decimal], option: Option) -> Decimal:
    """The parts that are machine time at their marginal price, the others whole."""
    per_hour = option.placement.usd_per_hour
    ratio = option.placement.marginal_usd_per_hour / per_hour if per_hour else Decimal(1)
    elsewhere = sum((parts[name] for name in ("fallback", "storage", "egress", "requests", "supervisor")), Decimal(0))
    machine = sum(parts.values(), Decimal(0)) - elsewhere
    return (machine * ratio + elsewhere).quantize(CENT)


def _cents(usd: float) -> Decimal:
    return Decimal(str(usd)).quantize(CENT)


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
