"""The launcher's own `decide`, shown what the simulator shows, and asked tick by tick."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal

from benchmarks.policy.simulator import FOREVER, Decision, Mode, View
from benchmarks.policy.terms import Sights, Terms
from benchmarks.policy.traces import TICKS_PER_HOUR
from launcher.core.hazards import FRESH_PREEMPTIONS_PER_HOUR, LIFE_HAZARD, cumulated
from launcher.core.offers import Capacity, Offer, Placement, Price
from launcher.core.policy.decision import Action, HandOver, Holding, Keep, Launch, Leave, Seen, Standing, Wait, decide
from launcher.core.policy.market import Market, Place, place_of
from launcher.core.policy.spot import learned_scale, pause_hours
from launcher.core.prices.options import Option, Rules
from launcher.core.prices.traffic import Traffic

STEPS_PER_TICK = 1000  # the guards keep a step back: here it is next to nothing
RETRY_HOURS = 0.25
RULES = Rules(poll_seconds=0.0, release_seconds=0.0, fallback_delay_seconds=0.0)  # the simulator's fallback is at once
EPOCH = datetime(2023, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Subject:
    """Makes policies. `hands_over`: a new machine may start while the old one computes."""

    hands_over: bool = True

    def __call__(self, terms: Terms) -> Spotlaunch:
        return Spotlaunch(terms, hands_over=self.hands_over)


class Spotlaunch:
    def __init__(self, terms: Terms, *, hands_over: bool) -> None:
        self._terms = terms
        self._zones = [_place(terms, zone) for zone in range(len(terms.regions))]
        self._fallback = _place(terms, None)
        self._zone_of = {place.key: zone for zone, place in enumerate(self._zones)}
        self._market = replace(_market(terms, self._zones, self._fallback), hands_over=hands_over)
        self._since: dict[int | None, int] = {}  # of the machine there is
        self._taken: dict[int, int] = defaultdict(int)
        self._lived: dict[int, float] = defaultdict(float)  # events to be expected in the hours that were lived
        self._last: int | None = None

    @property
    def market(self) -> Market:
        return self._market

    def decide(self, view: View) -> Decision:
        """The zones in the order in which they would be asked, one refusal after the other."""
        self._learn(view)
        seen, now = self._seen(view), view.tick / TICKS_PER_HOUR
        zones: list[int] = []
        overlaps: bool | None = None
        while True:
            action = decide(self._standing(view, seen), self._market, now)
            asked = self._asked(action)
            if asked is None or (zones and isinstance(action, HandOver) and action.overlaps is not overlaps):
                return self._decision(view, action, tuple(zones), overlaps=bool(overlaps), now=now)
            overlaps = isinstance(action, HandOver) and action.overlaps
            zones.append(asked)
            known = seen.get(self._zones[asked].key)
            since = known.since if known and not known.is_up else now
            again_at = now + pause_hours(RETRY_HOURS, now - since)
            seen = {**seen, self._zones[asked].key: Seen(is_up=False, since=since, again_at=again_at)}

    def _asked(self, action: Action) -> int | None:
        return self._zone_of.get(action.place.key) if isinstance(action, Launch | HandOver) else None

    def _decision(self, view: View, action: Action, zones: tuple[int, ...], *, overlaps: bool, now: float) -> Decision:
        mode, hold = view.mode, 1
        match action:
            case Keep(until=until) | Wait(until=until):
                hold = FOREVER if until == math.inf else max(1, math.floor((until - now) * TICKS_PER_HOUR + 1e-6))
            case Leave():
                mode = Mode.IDLE
            case Launch() | HandOver() if self._asked(action) is None:
                mode = Mode.FALLBACK
            case _:  # the next tick will ask on
                pass
        if zones:
            return Decision(Mode.SPOT, zones, refused=mode, overlap=overlaps, hold_ticks=hold)
        return Decision(mode, hold_ticks=hold)

    def _standing(self, view: View, seen: Mapping[str, Seen]) -> Standing:
        place = None if view.mode is Mode.IDLE else self._fallback if view.zone is None else self._zones[view.zone]
        here = None
        if place is not None:
            since = self._since.get(view.zone, view.tick) / TICKS_PER_HOUR
            here = Holding(place, since=since, trains=not view.warm_up_ticks)
        return Standing(
            steps=view.work_ticks * STEPS_PER_TICK,
            spent=view.spent,
            here=here,
            is_joined=view.incoming is not None,
            homes=() if view.place is None else (self._zones[view.place].home,),
            seen=seen,
            scales={self._zones[zone].key: self._scale(zone) for zone in self._lived},
        )

    def _seen(self, view: View) -> dict[str, Seen]:
        seen = {}
        for place, sight in zip(self._zones, view.sights, strict=True):
            if sight.up is not None:
                since, seen_at = sight.since_tick / TICKS_PER_HOUR, sight.seen_tick / TICKS_PER_HOUR
                seen[place.key] = Seen(sight.up, since, seen_at + pause_hours(RETRY_HOURS, seen_at - since))
        return seen

    def _learn(self, view: View) -> None:
        """Of the lives of its own machines; a feed shows more than they could teach."""
        zone, last = view.zone, self._last
        if zone == last or self._terms.sights is not Sights.ATTEMPTS:
            self._since.setdefault(zone, view.tick)
            self._last = zone
            return
        if last is not None:
            self._lived[last] += cumulated(LIFE_HAZARD, (view.tick - self._since[last]) / TICKS_PER_HOUR)
            self._taken[last] += view.sights[last].up is False
        self._since = {zone: view.tick}
        self._last = zone

    def _scale(self, zone: int) -> float:
        return learned_scale(1.0, taken=self._taken[zone], expected=self._lived[zone])


def _market(terms: Terms, zones: list[Place], fallback: Place) -> Market:
    pairs = ((a, b) for a in range(len(zones)) for b in range(len(zones)) if a != b)
    return Market(
        places=(*zones, fallback),
        steps=terms.work_ticks * STEPS_PER_TICK,
        deadline=terms.deadline_ticks / TICKS_PER_HOUR,
        reserve_hours=0.0,
        poll_hours=0.0,
        has_feed=terms.sights is not Sights.ATTEMPTS,
        moves={(zones[a].home, zones[b].home): terms.egress_prices[a][b] for a, b in pairs},
    )


def _place(terms: Terms, zone: int | None) -> Place:
    """`None`: the fallback, which is wherever the checkpoint lies."""
    usd = Decimal(str(terms.fallback_price_per_hour if zone is None else terms.spot_prices_per_hour[zone]))
    offer = Offer(
        provider="trace",
        region="-" if zone is None else terms.regions[zone],
        zone=None if zone is None else str(zone),
        instance_type="traced",
        gpu="traced",
        count=1,
        capacity=Capacity.ON_DEMAND if zone is None else Capacity.SPOT,
        list_usd_per_hour=usd,
        as_of=date(2023, 1, 1),
        source="trace",
    )
    price = Price(list_usd_per_hour=usd, usd_per_hour=usd, marginal_usd_per_hour=usd, basis="trace")
    option = Option(
        placement=Placement(offer=offer, nodes=1, price=price),
        step_seconds=3600 / TICKS_PER_HOUR / STEPS_PER_TICK,
        setup_seconds=terms.launch_ticks * 3600 / TICKS_PER_HOUR,
        save_seconds=0.0,
        durable_seconds=0.0,
        preemptions_per_hour=0.0 if zone is None else FRESH_PREEMPTIONS_PER_HOUR,
        traffic=Traffic(home="fallback" if zone is None else f"zone {zone}"),
    )
    return place_of(option, RULES, EPOCH)
