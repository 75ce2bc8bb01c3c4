"""What a run will cost and how long it takes, as a distribution over possible futures.

Every place is rolled out `NUM_FUTURES` times with the same draws, so that their order does not depend on luck. The
parts shown are those of the future with the median cost, rounded to the cent; the median cost is their sum.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from statistics import NormalDist

from launcher.core.offers import Placement
from launcher.core.options import Option
from launcher.core.rollout import PARTS, Future, Outlook, roll
from launcher.core.workload import StepTime

NUM_FUTURES = 201  # odd: the median is one of them
SEED = 20240416
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One place's answer to "how much, and how long?"."""

    placement: Placement
    option: Option
    hours: Interval
    cost_usd: UsdInterval
    high_usd: Decimal  # the high end and what closing takes: a run that may spend it is rarely cut short
    marginal_usd: Decimal  # cash, where a part of the price is paid for anyway
    parts: Mapping[str, Decimal]
    preemptions: float
    fallback_hours: float  # on the fallback, the mean over futures
    fallback_usd_per_hour: Decimal | None
    on_time: float | None  # share of futures within the deadline
    assumptions: tuple[Assumption, ...]
    step: StepTime | None = None  # that all of it rests on


def estimate(
    option: Option, outlook: Outlook, assumptions: Sequence[Assumption], *, step: StepTime | None = None
) -> Estimate:
    """The distribution of cost and time of a run that begins at `option`."""
    futures = sorted(_futures(option, outlook), key=lambda future: future.total_usd)
    costs, lengths = [f.total_usd for f in futures], sorted(f.hours for f in futures)
    middle = futures[len(futures) // 2]
    parts = {name: _cents(middle.usd[name]) for name in PARTS}
    total = sum(parts.values(), Decimal(0))
    high = max(total, _cents(_quantile(costs, 0.9)))
    closing = option.placement.usd_per_hour * Decimal(str(outlook.closing_seconds)) / 3600
    deadline = outlook.hours_to_deadline
    fallback_usd_per_hour = outlook.fallback.placement.usd_per_hour if outlook.fallback else None
    return Estimate(
        placement=option.placement,
        option=option,
        hours=Interval(p10=_quantile(lengths, 0.1), p50=_quantile(lengths, 0.5), p90=_quantile(lengths, 0.9)),
        cost_usd=UsdInterval(p10=min(total, _cents(_quantile(costs, 0.1))), p50=total, p90=high),
        high_usd=(high + closing).quantize(CENT, ROUND_CEILING),
        marginal_usd=_marginal(parts, option),
        parts=parts,
        preemptions=sum(f.preemptions for f in futures) / len(futures),
        fallback_hours=_fallback_hours(futures, fallback_usd_per_hour),
        fallback_usd_per_hour=fallback_usd_per_hour,
        on_time=None if deadline is None else sum(h <= deadline for h in lengths) / len(lengths),
        assumptions=tuple(assumptions),
        step=step,
    )


def _futures(option: Option, outlook: Outlook) -> list[Future]:
    spread = math.log(outlook.throughput_factor80) / _Z80
    return [roll(option, outlook, factor=math.exp(spread * z), seed=seed) for z, seed in _draws(NUM_FUTURES)]


@lru_cache(maxsize=4)
def _draws(count: int) -> tuple[tuple[float, int], ...]:
    """A throughput and a seed for each future. Throughputs in even quantiles give the interval's ends less noise."""
    source = random.Random(SEED)  # noqa: S311  # a simulation, not a secret
    normal = NormalDist()
    zs = [normal.inv_cdf((n + 0.5) / count) for n in range(count)]
    source.shuffle(zs)
    return tuple((z, source.getrandbits(32)) for z in zs)


def _fallback_hours(futures: Sequence[Future], usd_per_hour: Decimal | None) -> float:
    usd = sum(future.usd["fallback"] for future in futures) / len(futures)
    return usd / float(usd_per_hour) if usd_per_hour else 0.0


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
