"""One possible future of a run: lives of spot machines, what each preemption costs, and where it goes on.

A life is drawn from hazards by age. At a preemption the steps since the last committed save are lost (or half a step,
where the notice leaves time to save), and the run goes on at the cheapest place that happens to have capacity, waits
where none has, and moves to the fallback while that can still meet the deadline.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from launcher.core.gravity import HOURS_PER_MONTH
from launcher.core.hazards import AVAILABLE, FRESH_PREEMPTIONS_PER_HOUR, LIFE_HAZARD, RETURN_HAZARD, age_at
from launcher.core.offers import Capacity
from launcher.core.options import Option
from launcher.core.supervision import AROUND_SECONDS
from launcher.core.traffic import Charge

PARTS = (
    *("steps", "lost", "restarts", "setup", "saves", "idle", "fallback"),
    *("storage", "egress", "requests", "supervisor"),
)

_MAX_PREEMPTIONS = 1000  # a run that is taken so often is not worth a closer look
_NOTICE_MARGIN_SECONDS = 10.0  # from a notice until the trainer knows of it, and for its last word


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a future depends on beyond the place where it begins."""

    steps: int
    throughput_factor80: float  # the step time is within [t / f, t · f] in 80 of 100 cases
    idle_seconds: float  # billed after an attempt's end, until it is released
    closing_seconds: float  # what the supervisor keeps back to save and release in time
    elsewhere: tuple[Option, ...]  # other spot places, cheapest first
    hours_to_deadline: float | None
    fallback: Option | None
    fallback_delay_hours: float
    reads: float  # of the data
    checkpoint_gb: float
    kept: int
    storage_usd_per_gb_month: Decimal
    moves: Mapping[tuple[str | None, str | None], Charge] = field(default_factory=dict)  # of a checkpoint, by homes
    supervisor_usd_per_hour: Decimal = Decimal(0)  # of a machine that is hired for it


@dataclass(slots=True)
class Future:
    """What happened, by dollars and hours."""

    usd: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    hours: float = 0.0
    done: float = 0.0  # share of the steps
    preemptions: int = 0

    @property
    def total_usd(self) -> float:
        return sum(self.usd.values())

    def spend(self, part: str, hours: float, usd_per_hour: float) -> None:
        """Billed time."""
        self.usd[part] += hours * usd_per_hour
        self.hours += hours

    def pay(self, charge: Charge, times: float = 1.0) -> None:
        """Bytes that were moved; the time that it took is part of what was done meanwhile."""
        self.usd["egress"] += times * float(charge.egress_usd)
        self.usd["requests"] += times * float(charge.requests_usd)


def roll(option: Option, outlook: Outlook, *, factor: float, seed: int) -> Future:
    """The future that begins at `option` with step times off by `factor`; the same values give the same future."""
    luck = random.Random(seed)  # noqa: S311  # a simulation, not a secret
    future = Future()
    place = option
    while future.done < 1.0 and future.preemptions < _MAX_PREEMPTIONS:
        if _slack_hours(future, place, outlook, factor) < place.setup_seconds / 3600 + outlook.fallback_delay_hours:
            _fall_back(future, place, outlook, factor)
        elif _attempt(future, place, outlook, factor, luck):
            place = _move(future, place, outlook, factor, luck)
    months = future.hours / HOURS_PER_MONTH
    future.usd["storage"] += outlook.checkpoint_gb * outlook.kept * months * float(outlook.storage_usd_per_gb_month)
    future.usd["supervisor"] += (future.hours + AROUND_SECONDS / 3600) * float(outlook.supervisor_usd_per_hour)
    return future


def _attempt(future: Future, place: Option, outlook: Outlook, factor: float, luck: random.Random) -> bool:
    """Live at `place` until the work is done or the machine is taken; whether it was taken."""
    price = float(place.placement.usd_per_hour)
    step_hours, save_hours = place.step_seconds * factor / 3600, place.save_seconds / 3600
    last_hours = place.durable_seconds / 3600  # the last save is waited for
    interval_hours = max(place.interval_seconds / 3600, step_hours)
    per_work = 1.0 + save_hours / interval_hours
    setup, work = place.setup_seconds / 3600, (1.0 - future.done) * outlook.steps * step_hours
    life = _life_hours(place, luck)
    is_taken = life < setup + work * per_work + last_hours
    worked = min(work, max(0.0, life - setup) / per_work)
    lost = min(worked, _lost_hours(place, interval_hours, step_hours, luck)) if is_taken else 0.0
    share = (worked - lost) / (outlook.steps * step_hours)
    future.spend("restarts" if future.preemptions else "setup", min(life, setup), price)
    future.spend("steps", worked - lost, price)
    future.spend("lost", lost, price)
    future.spend("saves", worked * (per_work - 1.0) + (0.0 if is_taken else last_hours), price)
    future.spend("idle", outlook.idle_seconds / 3600, price)
    _pay_traffic(future, place, outlook, share, saves=worked / interval_hours + (not is_taken))
    future.preemptions += is_taken
    future.done = future.done + share if is_taken else 1.0
    return is_taken


def _move(future: Future, place: Option, outlook: Outlook, factor: float, luck: random.Random) -> Option:
    """The cheapest other place that has capacity; where none has, a wait until the first of all has some again."""
    for other in outlook.elsewhere:
        if other is not place and luck.random() < AVAILABLE:
            _pay_move(future, place, other, outlook)
            return other
    patience = max(0.0, _slack_hours(future, place, outlook, factor) - outlook.fallback_delay_hours)
    mass = luck.expovariate(1.0) / (1 + len(outlook.elsewhere))
    future.hours += min(age_at(RETURN_HAZARD, mass), patience)  # the fallback starts before it would be too late
    return place


def _fall_back(future: Future, place: Option, outlook: Outlook, factor: float) -> None:
    fallback, rest = outlook.fallback, 1.0 - future.done
    assert fallback is not None
    _pay_move(future, place, fallback, outlook)
    work_seconds = outlook.steps * rest * fallback.step_seconds * factor
    around_seconds = fallback.setup_seconds + fallback.durable_seconds
    seconds = around_seconds + work_seconds * (1.0 + fallback.saving_share)
    hours = (seconds + outlook.idle_seconds) / 3600
    future.spend("fallback", hours, float(fallback.placement.usd_per_hour))
    _pay_traffic(future, fallback, outlook, rest, saves=work_seconds / fallback.interval_seconds + 1.0)
    future.done = 1.0


def _pay_traffic(future: Future, place: Option, outlook: Outlook, share: float, *, saves: float) -> None:
    """Of one machine that did `share` of the work: its reads, its saves, and the restore that it began with."""
    reads = _reads(outlook, share)
    future.usd["egress"] += reads * float(place.egress_usd_per_read)
    future.usd["requests"] += reads * float(place.traffic.read.requests_usd)
    future.pay(place.traffic.save, saves)
    if future.done > 0:
        future.pay(place.traffic.restore)


def _pay_move(future: Future, place: Option, other: Option, outlook: Outlook) -> None:
    move = outlook.moves.get((place.traffic.home, other.traffic.home))
    if move is not None and future.done > 0:  # else there is no checkpoint yet
        future.pay(move)


def _slack_hours(future: Future, place: Option, outlook: Outlook, factor: float) -> float:
    """Time to the deadline beyond what the fallback would need for the work that is left."""
    fallback = outlook.fallback
    if outlook.hours_to_deadline is None or fallback is None or place.capacity is not Capacity.SPOT:
        return math.inf
    rest = fallback.seconds_to_finish(round(outlook.steps * (1.0 - future.done))) * factor / 3600
    return outlook.hours_to_deadline - future.hours - rest


def _reads(outlook: Outlook, share: float) -> float:
    """Once per machine where the data is cached, else by the share of the work done there."""
    return outlook.reads if outlook.reads <= 1 else outlook.reads * share


def _life_hours(place: Option, luck: random.Random) -> float:
    if place.preemptions_per_hour <= 0:
        return math.inf
    scale = place.preemptions_per_hour / FRESH_PREEMPTIONS_PER_HOUR
    return age_at(LIFE_HAZARD, luck.expovariate(1.0) / scale)


def _lost_hours(place: Option, interval_hours: float, step_hours: float, luck: random.Random) -> float:
    """Half a step where the notice leaves time to finish the step and save, else up to a whole interval.

    Of a save that is still being written, the steps before it are lost as well.
    """
    being_written = max(0.0, place.durable_seconds - place.save_seconds) / 3600
    since_save = luck.random() * interval_hours + being_written
    needed = step_hours * 3600 + place.durable_seconds + _NOTICE_MARGIN_SECONDS
    return 0.5 * step_hours if place.placement.offer.notice_seconds >= needed else since_save
