"""What clouds say of their spot capacity right now, laid over the price book.

A price that is in force replaces an older listed one. A rate of preemptions is taken only from who states one per hour:

    Azure   chance P of an eviction within the next hour, by size and region, in steps of 5 % (Microsoft Learn, "Use
            Azure Spot Virtual Machines"): λ = −ln(1 − P) per hour, P the middle of its step, of "20+" the lower end
    GCP     how long most machines will run before a preemption: 1, 10 or 60 minutes at least (Compute Engine docs,
            "View the availability of Spot VMs"). Half of them outlive the mean of that and the next longer one; of 60
            minutes nothing follows that the traces do not say as well. The share of the Spot VMs stopped in a day that
            were preempted says nothing per hour while nobody knows how long they ran; it is only shown
    AWS     the Spot Instance Advisor's share of a month is of all instances, most of them short: it would promise
            years to machines that traces see die within hours, and is not asked for

Whether a request would succeed now is said by GCP's obtainability, of which 0.3 and less is unlikely (same page), and
by AWS's placement score, which ranks zones against each other. Who is unlikely is asked last (`Offer.is_scarce`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import cache

from launcher.core.hazards import FRESH_PREEMPTIONS_PER_HOUR, LIFE_HAZARD, cumulated, lived_hours
from launcher.core.offers import Capacity, Offer
from launcher.core.spans import span

Place = tuple[str, str, str | None, str]
"""Provider, region, zone (None: the whole region), instance type."""

UNLIKELY = 0.3  # obtainability
UPTIMES_SECONDS = (60.0, 600.0, 3600.0)  # that GCP tells apart

EvictedPercent = tuple[int, int | None]
"""Of machines within an hour: from, to (None: no upper end is stated)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What one source says of one place at one instant; `None`: nothing of that."""

    place: Place
    at: datetime
    source: str
    usd_per_hour: Decimal | None = None  # of the whole instance, in force at `at`
    evicted_percent: EvictedPercent | None = None
    preempted_share: float | None = None  # of the machines that stopped
    placement_score: int | None = None  # 1 to 10: how likely a request succeeds
    obtainability: float | None = None  # 0 to 1: the same
    uptime_seconds: float | None = None  # that most machines run before a preemption, at least
    is_scarce: bool = False  # a request would hardly succeed, as far as this says


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The answers of all feeds, and of whom nothing was heard: by place, half-sentences why."""

    signals: tuple[Signal, ...]
    silent: Mapping[Place, tuple[str, ...]]


def with_signals(offers: Iterable[Offer], heard: Heard) -> tuple[Offer, ...]:
    """Spot offers as of now, as far as anything was heard of their places; the others as they are."""
    known: dict[Place, list[Signal]] = defaultdict(list)
    best_score = max((signal.placement_score or 0 for signal in heard.signals), default=0)
    for signal in heard.signals:
        known[signal.place].append(replace(signal, is_scarce=_is_scarce(signal, best_score)))
    return tuple(_updated(offer, known, heard.silent) if is_asked_for(offer) else offer for offer in offers)


def is_asked_for(offer: Offer) -> bool:
    return offer.capacity is Capacity.SPOT and not offer.simulated


def place_of(offer: Offer) -> Place:
    return offer.provider, offer.region, offer.zone, offer.instance_type


@cache
def fresh_preemptions_per_hour(evicted: EvictedPercent) -> float:
    """The hazard of a fresh machine, in a law by age under which machines live 1/λ hours on average."""
    low, high = evicted
    chance = (low if high is None else (low + high) / 2) / 100
    mean_hours = -1 / math.log1p(-chance)
    least, most = 1e-6, 1e6  # times the hazards of the traces
    for _ in range(100):
        scale = math.sqrt(least * most)
        too_long = lived_hours(LIFE_HAZARD, scale, math.inf) > mean_hours
        least, most = (scale, most) if too_long else (least, scale)
    return FRESH_PREEMPTIONS_PER_HOUR * math.sqrt(least * most)


def _updated(offer: Offer, known: Mapping[Place, list[Signal]], silent: Mapping[Place, tuple[str, ...]]) -> Offer:
    place = place_of(offer)
    wide = (*place[:2], None, place[3])
    for signal in [*known.get(place, ()), *(known.get(wide, ()) if wide != place else ())]:
        offer = _with(offer, signal)
    missing = silent.get(place, silent.get(wide, ()))
    return replace(offer, source="; ".join([offer.source, *missing])) if missing else offer


def _with(offer: Offer, signal: Signal) -> Offer:
    said, source = list(_said(signal)), f"{signal.source} of {signal.at:%H:%M} UTC"
    price, rate = signal.usd_per_hour, signal.evicted_percent
    if price is not None and price > 0 and signal.at.date() >= offer.as_of:
        words = ", ".join([source, *said])
        offer = replace(offer, list_usd_per_hour=price, as_of=signal.at.date(), source=words)
    elif said:
        offer = replace(offer, source=f"{offer.source}; {', '.join(said)} ({source})")
    if rate is not None:
        offer = replace(offer, preemptions_per_hour=fresh_preemptions_per_hour(rate))
    elif signal.uptime_seconds is not None:
        offer = replace(offer, preemptions_per_hour=_preemptions_per_hour(signal.uptime_seconds))
    if signal.obtainability is not None:
        offer = replace(offer, obtainability=signal.obtainability)
    return replace(offer, is_scarce=True) if signal.is_scarce else offer


def _is_scarce(signal: Signal, best_score: int) -> bool:
    if signal.obtainability is not None:
        return signal.obtainability <= UNLIKELY
    return signal.placement_score is not None and 2 * signal.placement_score <= best_score


@cache
def _preemptions_per_hour(uptime_seconds: float) -> float | None:
    """Of a fresh machine, of which half live as long as the geometric mean of this uptime and the next longer one."""
    longer = next((seconds for seconds in UPTIMES_SECONDS if seconds > uptime_seconds), None)
    if longer is None:
        return None
    hours = math.sqrt(max(1.0, uptime_seconds) * longer) / 3600
    return FRESH_PREEMPTIONS_PER_HOUR * math.log(2) / cumulated(LIFE_HAZARD, hours)


def _said(signal: Signal) -> Iterable[str]:
    if signal.evicted_percent is not None:
        low, high = signal.evicted_percent
        yield f"{low} % or more evicted an hour" if high is None else f"{low} to {high} % evicted an hour"
    if signal.preempted_share is not None:
        yield f"{signal.preempted_share:.0%} of the machines that stopped in a day were preempted"
    if signal.placement_score is not None:
        yield f"placement score {signal.placement_score} of 10"
    if signal.obtainability is not None:
        yield f"a request succeeds with a chance of {signal.obtainability:.0%}"
    if signal.uptime_seconds is not None:
        yield f"most machines run for {span(signal.uptime_seconds)} or longer"
