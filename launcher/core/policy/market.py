"""A run's places as its policy reads them: in hours and floats, worked out once for all decisions.

Instants are hours since the submit. Work is counted in steps; where it must be compared between places of different
speed, in hours of the fallback.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache
from heapq import nsmallest

from launcher.core.hazards import FRESH_PREEMPTIONS_PER_HOUR, LIFE_HAZARD, SPELL_HAZARD, Hazards, cumulated, lived_hours
from launcher.core.offers import Capacity
from launcher.core.policy.guide import Guide, Terms, guide
from launcher.core.prices.options import Option, Rules, changeover_seconds, closing_seconds
from launcher.core.spec import MAX_COST_RATIO, RunSpec

WAIT_PRICE = 0.1  # of an hour of the fallback, that an hour of waiting counts for where nobody has given a deadline
PAUSE_HOURS = 2 / 60  # of training, between the last step on the old machine and the first one on the new
SAME_PRICE_RATIO = 1.1  # dearer spot than that is another tier
WORTHWHILE_RATIO = 0.97  # of the fallback's price: dearer spot is not worth its preemptions
MAX_TIERS = 4
NUM_SPOT, NUM_FIRM = 24, 6  # places that are looked at, the best of each; one of so many nearly always has capacity
_SURVEYED = 4  # times as many, among which every region finds a place
_LOOKS = 2  # of the supervisor: until a machine beside the first is seen to be ready, and the first to have ended
_DAY_HOURS = 24.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """An option, and what follows from its fields."""

    option: Option
    key: str
    domain: str  # what fails together: provider and region
    is_spot: bool
    usd_per_hour: float  # of machines, and of what saves cost beside them
    step_hours: float  # with its share of the saves
    interval_hours: float  # of training between two saves
    setup_hours: float
    durable_hours: float  # of a last save
    closing_hours: float  # kept back for one, and for the release behind it
    arrival_usd: float  # of a start, beside the machine; a checkpoint's way there comes on top
    home: str | None  # where checkpoints lie
    scale: float  # of its hazards, against those of the traces, as stated
    obtainability: float | None = None  # chance that it has capacity when the run begins, as stated
    is_scarce: bool = False  # it hardly has capacity, as stated: asked last
    opens_at: float
    closes_at: float
    lease_hours: float

    def finish_hours(self, steps: float) -> float:
        """Set-up, steps with their saves, and a last one; a close and another set-up for each further start."""
        hours = self.setup_hours + steps * self.step_hours + self.durable_hours
        return hours if self.lease_hours == math.inf else hours + (self._starts(steps) - 1) * self.useful_hours

    def _starts(self, steps: float) -> float:
        """As many as the lease demands: before it is over, each ends with a close."""
        if self.lease_hours == math.inf:
            return 1
        work, free = steps * self.step_hours, self.lease_hours - self.useful_hours
        return max(1, math.ceil(work / free)) if free > 0 else math.inf

    @property
    def ends_at(self) -> float:
        """When an attempt is asked to end, lest the place closes over it."""
        return self.closes_at - self.closing_hours

    def usd_to_finish(self, steps: float) -> float:
        hours = self.finish_hours(steps)
        if hours == math.inf:
            return hours
        return hours * self.usd_per_hour + self._starts(steps) * self.arrival_usd

    def usable_hours(self, now: float) -> float:
        """How long an attempt could last that begins now; 0: it is closed, or not open yet."""
        return 0.0 if now < self.opens_at else max(0.0, min(self.lease_hours, self.closes_at - now))

    @cached_property
    def unsaved_hours(self) -> float:
        """Of training, that are lost with the machine at the worst."""
        return self.interval_hours + self.durable_hours if self.interval_hours < math.inf else 0.0

    @cached_property
    def useful_hours(self) -> float:
        """A start, a step, a save and the release: below that a launch only burns money and time."""
        return self.setup_hours + self.closing_hours


@dataclass(frozen=True, kw_only=True, eq=False)
class Market:
    """Where a run may go, until when, and what a change of place takes.

    `moves`: dollars for the newest checkpoint from one home to another; those within a home cost nothing.
    """

    places: tuple[Place, ...]
    steps: int  # of the whole run
    deadline: float
    reserve_hours: float  # of slack, gone when the fallback runs: the look that finds it due, the release, its start
    poll_hours: float
    is_urgent: bool = False  # never wait for a lower price
    wait_price: float = 0.0  # of an hour in which nothing runs, in units of the fallback's
    max_cost_ratio: float = MAX_COST_RATIO
    has_feed: bool = False  # the sights of all places are known without asking
    hands_over: bool = True  # the old machine computes until the new one is ready
    spot_first: bool = True  # the run's ladder has spot below its fallback
    moves: Mapping[tuple[str | None, str | None], float] = field(default_factory=dict)

    @cached_property
    def firm(self) -> tuple[Place, ...]:
        """Capacity that stays, the cheapest for the whole run first."""
        return _best(
            [p for p in self.places if not p.is_spot], NUM_FIRM, usd=lambda place: place.usd_to_finish(self.steps)
        )

    @cached_property
    def fallback(self) -> Place | None:
        """The cheapest that can do the whole run, before the deadline if there is one that can."""
        ends = [(p, max(0.0, p.opens_at) + p.finish_hours(self.steps)) for p in self.firm]
        able = [(p, at) for p, at in ends if at <= p.ends_at and at < math.inf]
        in_time = (p for p, at in able if at + self.reserve_hours <= self.deadline)
        return next(in_time, able[0][0] if able else None)

    @cached_property
    def havens(self) -> tuple[Place, ...]:
        """Of these, the ones that are not beaten by another one in everything: what the guards count with."""
        beaten = {b.key for b in self.firm for a in self.firm if a is not b and _beats(a, b)}
        return tuple(place for place in self.firm if place.key not in beaten)

    @cached_property
    def tiers(self) -> tuple[tuple[Place, ...], ...]:
        """Places that may be lost, by price: the cheapest and those as cheap, then dearer ones below the fallback."""
        fleeting = [p for p in self.places if p is not self.fallback and (p.is_spot or p.closes_at < math.inf)]
        if not self.spot_first:
            fleeting = [p for p in fleeting if not p.is_spot]
        if self.fallback is None:
            return (_best(fleeting, NUM_SPOT, usd=self.hourly_usd),) if fleeting else ()
        limit = WORTHWHILE_RATIO * self.fallback.usd_per_hour
        tiers: list[list[Place]] = []
        for place in _best([p for p in fleeting if self.hourly_usd(p) < limit], NUM_SPOT, usd=self.hourly_usd):
            is_dearer = not tiers or self.hourly_usd(place) > SAME_PRICE_RATIO * self.hourly_usd(tiers[-1][0])
            if is_dearer and len(tiers) < MAX_TIERS:
                tiers.append([])
            tiers[-1].append(place)
        return tuple(tuple(tier) for tier in tiers)

    @cached_property
    def tier_of(self) -> Mapping[str, int]:
        return {place.key: number for number, tier in enumerate(self.tiers) for place in tier}

    @cached_property
    def spot(self) -> tuple[Place, ...]:
        return tuple(place for tier in self.tiers for place in tier)

    @cached_property
    def openings(self) -> tuple[float, ...]:
        return tuple(place.opens_at for place in self.firm if place.opens_at > 0)

    @cached_property
    def unit_hours(self) -> float:
        """For a step: of the fallback, or where there is none of the first place."""
        return (self.fallback or self.places[0]).step_hours

    @cached_property
    def changeover_hours(self) -> float:
        """Of the cheapest spot: without training, or beside the old machine."""
        base = self.tiers[0] if self.tiers else self.places
        return max(1 / 60, sum(p.setup_hours for p in base) / len(base))

    @cached_property
    def sag_hours(self) -> float:
        """Of slack, that the cheapest spot takes for a while: what is not saved yet, and what closing takes."""
        return max((p.unsaved_hours + p.closing_hours for p in self.tiers[0]), default=0.0) if self.tiers else 0.0

    @cached_property
    def guide(self) -> Guide:
        """What to do when, worked out for all amounts of work and slack that the run may come to."""
        fallback_usd = self.fallback.usd_per_hour if self.fallback else math.inf
        terms = Terms(
            prices=tuple(_rounded(self._mean_usd(tier) / fallback_usd) for tier in self.tiers),
            sizes=tuple(len(tier) for tier in self.tiers),
            changeover_hours=_rounded(self.changeover_hours),
            pause_hours=PAUSE_HOURS if self.hands_over else None,
            wait_price=self.wait_price,
            has_feed=self.has_feed,
        )
        work_hours = self.steps * self.unit_hours
        return guide(terms, work_hours=work_hours, slack_hours=self.deadline - work_hours)

    @cached_property
    def most_usd(self) -> float:
        return self.most_usd_for(self.steps)

    @cached_property
    def _one_try_usd(self) -> float:
        return max((self.try_usd[place.key] for place in self.tiers[0]), default=0.0) if self.tiers else 0.0

    def most_usd_for(self, steps: float) -> float:
        """That the guard of the money allows for so many steps: what the fallback alone would take, and a little more.

        Of a short run that little would not pay for a single try: then it is one try on the cheapest tier.
        """
        place = self.fallback
        if place is None:
            return math.inf
        alone = place.usd_to_finish(steps)
        return alone + max((self.max_cost_ratio - 1.0) * alone, self._one_try_usd)

    @cached_property
    def try_usd(self) -> Mapping[str, float]:
        """By key: what a start may cost in vain. Set-up, steps that are lost before they are saved, and a way back."""
        back = self.fallback.usd_per_hour if self.hands_over and self.fallback else 0.0  # that waits for this one's end
        return {p.key: _vain_hours(p) * p.usd_per_hour + p.arrival_usd + p.closing_hours * back for p in self.places}

    def hourly_usd(self, place: Place) -> float:
        """An hour's work of the fallback there, with starts as often as machines live a day at most."""
        return self._hourly_usd(place, start_usd=place.setup_hours * place.usd_per_hour + place.arrival_usd)

    def _hourly_usd(self, place: Place, *, start_usd: float) -> float:
        life = life_hours(LIFE_HAZARD, place.scale, _DAY_HOURS)
        return (place.usd_per_hour + start_usd / life) * place.step_hours / self.unit_hours

    def move_usd(self, homes: Sequence[str | None], place: Place) -> float:
        """For the newest checkpoint to a place's home; `homes` have it, the newest copy last."""
        return self.moves.get((homes[-1], place.home), 0.0) if homes and place.home not in homes else 0.0

    def _mean_usd(self, tier: Sequence[Place]) -> float:
        """Without set-ups, for the guide counts them itself."""
        return sum(self._hourly_usd(place, start_usd=place.arrival_usd) for place in tier) / len(tier)


def market_of(
    options: Iterable[Option],
    spec: RunSpec,
    *,
    since: datetime,
    deadline_at: datetime,
    deadline_assumed: bool,
    rules: Rules,
    moves: Mapping[tuple[str | None, str | None], float] | None = None,
) -> Market:
    """Of the capacity that `spec` names; of many options those with the best effective rates."""
    mode = spec.mode
    wanted = [o for o in options if o.capacity in mode]
    spot, firm = ([o for o in wanted if (o.capacity is Capacity.SPOT) == is_spot] for is_spot in (True, False))
    kept = [*_cheapest(spot, _SURVEYED * NUM_SPOT), *_cheapest(firm, _SURVEYED * NUM_FIRM)]
    market = Market(
        places=tuple(place_of(option, rules, since) for option in kept),
        steps=spec.workload.steps,
        deadline=_hours(deadline_at, since),
        reserve_hours=(changeover_seconds(rules) + _LOOKS * rules.poll_seconds) / 3600,
        poll_hours=rules.poll_seconds / 3600,
        is_urgent=spec.priority == "urgent",
        wait_price=WAIT_PRICE if deadline_assumed else 0.0,
        max_cost_ratio=spec.cost.max_chase,
        moves=moves or {},
    )
    first_firm = market.fallback.option.capacity if market.fallback else None
    is_last = Capacity.SPOT in mode and first_firm is not None and mode.index(Capacity.SPOT) > mode.index(first_firm)
    return replace(market, spot_first=False) if is_last else market


def _cheapest(options: Sequence[Option], count: int) -> list[Option]:
    return nsmallest(count, options, key=lambda o: (o.effective_usd_per_step, o.placement.offer.key))


def place_of(option: Option, rules: Rules, since: datetime) -> Place:
    """`option` at instants counted from `since`."""
    offer, price = option.placement.offer, option.placement
    is_sunk = offer.capacity is Capacity.RESERVED and rules.rank_reserved_by == "marginal"
    machine = price.marginal_usd_per_hour if is_sunk else price.usd_per_hour
    closing = closing_seconds(rules, option.durable_seconds, option.step_seconds)
    return Place(
        option=option,
        key=offer.key,
        domain=f"{offer.provider}/{offer.region}",
        is_spot=offer.capacity is Capacity.SPOT,
        usd_per_hour=float(machine + option.traffic.saves_usd_per_hour),
        step_hours=option.step_seconds * (1.0 + option.saving_share) / 3600,
        interval_hours=option.interval_seconds * (1.0 + option.saving_share) / 3600,
        setup_hours=option.setup_seconds / 3600,
        durable_hours=option.durable_seconds / 3600,
        closing_hours=closing / 3600,
        arrival_usd=float(option.arrival_usd - option.move_usd),
        home=option.traffic.home,
        scale=option.preemptions_per_hour / FRESH_PREEMPTIONS_PER_HOUR,
        obtainability=offer.obtainability,
        is_scarce=offer.is_scarce,
        opens_at=_hours(offer.opens_at, since) if offer.opens_at else 0.0,
        closes_at=_hours(offer.closes_at, since) if offer.closes_at else math.inf,
        lease_hours=math.inf if offer.lease_seconds is None else offer.lease_seconds / 3600,
    )


@lru_cache(maxsize=4096)
def life_hours(hazards: Hazards, scale: float, most_hours: float, age_hours: float = 0.0) -> float:
    """The mean of what is left of a life at an age, counted up to `most_hours`; never nothing."""
    if age_hours <= 0:
        return max(1e-3, lived_hours(hazards, scale, most_hours))
    until = age_hours + most_hours
    gone = lived_hours(hazards, scale, until) - lived_hours(hazards, scale, age_hours)
    return max(1e-3, gone / math.exp(-scale * cumulated(hazards, age_hours)))


def hazards_seen(*, has_feed: bool) -> Hazards:
    """By the age that is known: of the spell, where a feed tells it, else of one's own machine."""
    return SPELL_HAZARD if has_feed else LIFE_HAZARD


def _vain_hours(place: Place) -> float:
    return place.useful_hours + place.unsaved_hours


def _beats(one: Place, other: Place) -> bool:
    """Never dearer, slower or shut before; of two that are alike, the first by key."""
    dear = [
        (p.usd_per_hour, p.arrival_usd, p.step_hours, p.setup_hours, p.durable_hours, p.opens_at) for p in (one, other)
    ]
    lasting = [(p.closes_at, p.lease_hours) for p in (one, other)]
    pairs = [*zip(*dear, strict=True), *((b, a) for a, b in zip(*lasting, strict=True))]
    return all(a <= b for a, b in pairs) and (any(a < b for a, b in pairs) or one.key < other.key)


def _best(places: Iterable[Place], count: int, *, usd: Callable[[Place], float]) -> tuple[Place, ...]:
    """The cheapest, in order; but one of each domain before a second one of any, for they fail together."""
    chosen: list[tuple[int, float, str, Place]] = []
    seen: Counter[str] = Counter()
    for dollars, key, place in sorted(((usd(p), p.key, p) for p in places), key=lambda entry: entry[:2]):
        chosen.append((seen[place.domain], dollars, key, place))
        seen[place.domain] += 1
    spread = sorted(chosen, key=lambda entry: entry[:3])[:count]
    return tuple(place for *_, place in sorted(spread, key=lambda entry: entry[1:3]))


def _rounded(value: float) -> float:
    """To three digits: a price that moves by less changes no decision."""
    return float(f"{value:.3g}")


def _hours(at: datetime, since: datetime) -> float:
    return (at - since).total_seconds() / 3600
