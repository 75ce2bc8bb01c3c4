"""Where a run goes next: `decide(standing, market, now) → Action`, one pure function for all who ask.

The supervisor asks it what to do, the estimate what it would do in a thousand futures, a replay what it would have
done. Two guards stand above every wish for a lower price. Time: a place that may be lost is used only while the
fallback could still finish before the deadline. Money: spot is tried only while the fallback could still finish for
`MAX_COST_RATIO` times what it alone would have cost. Under both, `Guide` weighs price, slack and the market's moods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from launcher.core.market import PAUSE_HOURS, Market, Place, hazards_seen, life_hours
from launcher.core.mdp import Idle, OnMachine, Sight

MOVE_GAIN = 0.02  # a spot machine that works is left for another one only if that is so much cheaper an hour
LOOK_HOURS = 0.5  # between two looks, at the latest, while a machine works that is dearer than need be
WAIT_HOURS = 0.1  # the same while nothing runs
FAR_SHORT = 0.8  # of the money for the rest: no error of the pace would make it enough
_HAIR = 1e-9
_JUST_UP = Sight(is_up=True, age_hours=0.0)


class Seen(NamedTuple):
    """What is known of a place's capacity: since when, and when it is worth asking again if it has none."""

    is_up: bool
    since: float
    again_at: float = -math.inf


class Holding(NamedTuple):
    """The machine that a run has."""

    place: Place
    since: float
    trains: bool  # else it is being set up
    ahead: float = 0.0  # steps that it has done and not saved


class Standing(NamedTuple):
    """A run at one instant; money in USD."""

    steps: float  # that are not done, or not saved
    spent: float
    left: float = math.inf  # of what may be spent
    here: Holding | None = None
    is_joined: bool = False  # a second machine is on its way to take over
    homes: tuple[str | None, ...] = ()  # that have the newest checkpoint; none: there is none
    seen: Mapping[str, Seen] = {}  # by a place's key
    scales: Mapping[str, float] = {}  # of places' hazards, where their machines have taught something
    in_all: float | None = None  # steps of the whole run, where they are not those of the plan


class Launch(NamedTuple):
    place: Place
    why: str


class HandOver(NamedTuple):
    """Start a machine beside the one that works; if it is refused, nothing has changed.

    `overlaps`: the old one computes until the new one is ready; else it ends as soon as the new one is granted.
    """

    place: Place
    why: str
    overlaps: bool


class Leave(NamedTuple):
    """Save, release, and wait."""

    why: str


class Keep(NamedTuple):
    """Go on; nothing is to be decided before `until`, unless something happens."""

    until: float = math.inf


class Wait(NamedTuple):
    until: float
    why: str


Action = Launch | HandOver | Leave | Keep | Wait


class _Look(NamedTuple):
    """Standing and market at one instant, and what every branch asks for."""

    run: Standing
    market: Market
    now: float
    spare: float  # hours until only an immediate fallback meets the deadline; infinite without a fallback
    work: float  # hours of the fallback
    slack: float  # hours, as the guide counts them


def decide(run: Standing, market: Market, now: float) -> Action:
    """What to do now; the same values always give the same action."""
    look = _look(run, market, now)
    here = run.here
    if here is None:
        return _idle(look)
    if run.is_joined:
        return Keep()
    if look.spare < market.reserve_hours + here.place.closing_hours - _HAIR and _may_be_late(look, here):
        return _to_fallback(look, here)
    if not here.trains:
        return Keep()
    if market.fallback is None or market.tier_of.get(here.place.key) == 0:
        return _cheaper_spot(look, here)
    return _off_the_dear(look, here)


def spare_hours(place: Place, steps: float, market: Market, now: float) -> float | None:
    """Until the last moment to begin `steps` there; `None`: they cannot be left to this place.

    Spot may be taken, a reservation may end too early, and one that begins later than that moment comes too late.
    """
    needed = place.finish_hours(steps)
    if place.is_spot or place.closes_at - now < needed or needed == math.inf:
        return None
    spare = min(market.deadline, place.closes_at) - now - needed
    if place.opens_at <= now:
        return spare
    return spare if spare >= place.opens_at - now + market.reserve_hours else None


def affordable(run: Standing, place: Place) -> bool:
    """Whether what is left pays for a start, a step and a save."""
    return run.left > place.useful_hours * place.usd_per_hour + place.arrival_usd


def _look(run: Standing, market: Market, now: float) -> _Look:
    known = [spare_hours(p, run.steps, market, now) for p in market.firm if affordable(run, p)]
    spare = max((hours for hours in known if hours is not None), default=math.inf)
    slack = max(0.0, spare - market.reserve_hours + market.changeover_hours)
    return _Look(run, market, now, spare, run.steps * market.unit_hours, slack)


def _idle(look: _Look) -> Action:
    """Nothing runs: the cheapest spot, dearer spot, a wait, or the fallback."""
    market, down = look.market, _outage(look)
    if market.fallback is None:
        place = _cheapest(look, 0)
        if place:
            return Launch(place, "cheapest spot")
        return _wait(look, "no place has capacity") if look.spare > market.reserve_hours else _surest(look)
    sight = _sight(look)
    if sight.is_up and _advice(look, sight) == "spot" and (place := _cheapest(look, 0)):
        return Launch(place, "cheapest spot")
    for rung in market.guide.asks(work_hours=look.work, slack_hours=look.slack, sight=down):
        if place := _cheapest(look, rung + 1):
            return Launch(place, "dearer spot is worth more than the wait for cheaper")
    may_wait = look.spare > market.reserve_hours + market.poll_hours + _HAIR
    if may_wait and not market.is_urgent and _advice(look, down) != "fallback":
        return _wait(look, "spot is expected back in time")
    return _surest(look)


def _cheaper_spot(look: _Look, here: Holding) -> Action:
    """On the cheapest tier: stay, unless another place of it is clearly better, the change included."""
    market, place = look.market, here.place
    others = [p for p in market.tiers[0] if p is not place] if market.tiers and market.hands_over else []
    asked = [p for p in others if _asked_again_at(look, p) <= look.now]
    if asked:
        slack_usd = _slack_usd(look)
        most = (1.0 - MOVE_GAIN) * _hourly(look, place, slack_usd, age=_age(look, place, here))
        for usd, _, other in sorted((_beside(look, p, here, slack_usd), p.key, p) for p in asked):
            if usd < most and _may_start(look, other, beside=here):
                return HandOver(other, "spot is so much cheaper there that the change pays", overlaps=True)
    news = min((at for p in others if (at := _asked_again_at(look, p)) > look.now), default=math.inf)
    return Keep(min(news, _guarded_until(look, here)))


def _beside(look: _Look, place: Place, here: Holding, slack_usd: float) -> float:
    """Effective rate there, with what both machines cost until the new one is ready."""
    both = (here.place.usd_per_hour + place.usd_per_hour) * place.setup_hours
    return _hourly(look, place, slack_usd, once_usd=both)


def _asked_again_at(look: _Look, place: Place) -> float:
    """A place that refused is asked for a little saving only when its outage is twice as old as it was."""
    known = look.run.seen.get(place.key)
    if known is None or known.is_up:
        return -math.inf
    return math.inf if look.market.has_feed else 2 * known.again_at - known.since


def _off_the_dear(look: _Look, here: Holding) -> Action:
    """On the fallback, or on dearer spot: cheaper spot beside it, or a wait for it, where that is expected to pay."""
    market, sight = look.market, _sight(look)
    rung = market.tier_of.get(here.place.key, len(market.tiers)) - 1
    if sight.is_up and (choice := _advice_on(look, rung, sight)) != "stay":
        overlaps = choice == "hand_over"
        if (overlaps or _advice(look, sight) == "spot") and (place := _cheapest(look, 0, beside=here)):
            return HandOver(place, "spot is back, and expected to pay for the change", overlaps=overlaps)
    if market.hands_over and (place := _paying(look, here, rung)):
        return HandOver(place, "dearer spot, and still expected to pay for the change", overlaps=True)
    down = _outage(look)
    if not market.is_urgent and _advice_on(look, rung, down) == "leave" and _advice(look, down) == "wait":
        may_wait = look.spare > market.reserve_hours + market.poll_hours + here.place.closing_hours + _HAIR
        if may_wait and _is_within(look, 0.0):
            return Leave("with so much slack, the wait for spot is expected to pay")
    return Keep(min(look.now + LOOK_HOURS, _news_at(look, look.now + LOOK_HOURS), _guarded_until(look, here)))


def _paying(look: _Look, here: Holding, rung: int) -> Place | None:
    """Of the dearer tiers below this one: spot whose saving outweighs the change and a part of the way back."""
    slack_usd, old = _slack_usd(look), _unit_usd(look.market, here.place)
    for tier in range(1, rung + 1):
        for place in look.market.tiers[tier]:
            new, start = _unit_usd(look.market, place), place.setup_hours
            saved = (old - new) * max(0.0, _life(look, place, 0.0) - start)
            cost = (new + slack_usd + 0.5 * old) * start + place.arrival_usd
            if saved > cost + look.market.move_usd(look.run.homes, place) and _may_start(look, place, beside=here):
                return place
    return None


def _to_fallback(look: _Look, here: Holding) -> Action:
    """The slack is used up: to capacity that stays, while this machine still computes."""
    others = [p for p in _surest_first(look) if p is not here.place]
    hours = max(0.0, look.spare)
    why = f"only {hours:.1f} h of slack are left before the deadline"
    if not others:
        return Keep(_news_at(look, look.now + LOOK_HOURS))
    return HandOver(others[0], why, overlaps=True) if here.trains and look.market.hands_over else Leave(why)


def _surest(look: _Look) -> Action:
    """Capacity that stays; where none is free, any that is: no machine does worse than every machine."""
    firm = _surest_first(look)
    if firm:
        return Launch(firm[0], "no spot that is worth its risk" if look.market.tiers else "capacity that stays")
    free = (p for p in look.market.places if _is_free(look, p))
    rest = min(free, key=lambda p: (p.is_spot, look.market.hourly_usd(p), p.key), default=None)
    return Launch(rest, "all that has capacity") if rest else _wait(look, "no place has capacity")


def _surest_first(look: _Look) -> list[Place]:
    """Firm places that can be had now: those in time, the cheapest first; then the late ones, the soonest first."""
    found: list[tuple[float, float, str, Place]] = []
    for place in look.market.firm:
        spare = spare_hours(place, look.run.steps, look.market, look.now)
        if spare is not None and _is_free(look, place):
            usd = place.finish_hours(look.run.steps) * place.usd_per_hour + place.arrival_usd
            usd += look.market.move_usd(look.run.homes, place)
            found.append((max(0.0, -spare), usd, place.key, place))
    return [place for *_, place in sorted(found, key=lambda entry: entry[:3])]


def _cheapest(look: _Look, tier: int, *, beside: Holding | None = None) -> Place | None:
    """The free place of a tier with the least effective rate: price, and what ends and moves cost, per hour of life."""
    places = look.market.tiers[tier] if tier < len(look.market.tiers) else ()
    free = [p for p in places if _may_start(look, p, beside=beside)]
    if len(free) < 2:
        return free[0] if free else None
    slack_usd = _slack_usd(look)
    age = 0.0

    def rate(place: Place) -> tuple[float, str]:
        known = look.run.seen.get(place.key) if look.market.has_feed else None
        since = age if known is None else look.now - known.since
        return _hourly(look, place, slack_usd, age=since), place.key

    return min(free, key=rate)


def _may_start(look: _Look, place: Place, *, beside: Holding | None) -> bool:
    """Both guards, and whether it has capacity as far as is known."""
    if not _is_free(look, place) or (beside and place is beside.place):
        return False
    market = look.market
    lost = place.useful_hours if beside is None else 2 * place.closing_hours + PAUSE_HOURS
    if look.spare < market.reserve_hours + lost - _HAIR:
        return False
    extra = place.useful_hours * place.usd_per_hour + place.arrival_usd + market.move_usd(look.run.homes, place)
    if beside:
        extra += (place.setup_hours + beside.place.closing_hours) * beside.place.usd_per_hour
    return _is_within(look, extra) and (beside is None or _is_paid(look, extra))


def _is_within(look: _Look, extra_usd: float) -> bool:
    """Whether the fallback could still do all the rest for little more than it alone would have cost."""
    market, in_all = look.market, look.run.in_all
    most = market.most_usd if in_all is None else market.most_usd_for(in_all)
    return look.run.spent + extra_usd + _rest_usd(look) <= most + _HAIR


def _is_paid(look: _Look, extra_usd: float) -> bool:
    """The run can be finished on the fallback even so; or the money is far too short for that in any case."""
    rest = _rest_usd(look)
    return look.run.left >= rest + extra_usd or look.run.left < FAR_SHORT * rest


def _rest_usd(look: _Look) -> float:
    place = look.market.fallback
    return 0.0 if place is None else place.finish_hours(look.run.steps) * place.usd_per_hour + place.arrival_usd


def _is_free(look: _Look, place: Place) -> bool:
    """Affordable, open for long enough to be of use, and not known to be without capacity."""
    known = look.run.seen.get(place.key)
    if known is not None and not known.is_up and (look.market.has_feed or known.again_at > look.now + _HAIR):
        return False
    return affordable(look.run, place) and place.usable_hours(look.now) >= place.useful_hours


def _may_be_late(look: _Look, here: Holding) -> bool:
    """Spot may always. Capacity that stays does where the work outlasts it, and the fallback would not be late too."""
    place, market = here.place, look.market
    if place.is_spot:
        return True
    ends_at = look.now + max(0.0, look.run.steps - here.ahead) * place.step_hours + place.durable_hours
    return look.spare >= 0 and ends_at > min(market.deadline, place.closes_at)


def _hourly(look: _Look, place: Place, slack_usd: float, *, age: float = 0.0, once_usd: float = 0.0) -> float:
    """Effective rate: price, and per hour of expected life the next start, the slack it takes, and bytes moved."""
    market, usd = look.market, place.usd_per_hour
    ends = (usd + slack_usd) * place.setup_hours + place.arrival_usd + once_usd + market.move_usd(look.run.homes, place)
    return (usd + ends / _life(look, place, age)) * place.step_hours / market.unit_hours


def _unit_usd(market: Market, place: Place) -> float:
    return place.usd_per_hour * place.step_hours / market.unit_hours


def _life(look: _Look, place: Place, age: float) -> float:
    """Hours that a machine there is expected to live, of those that the work needs; ages in steps, for the cache."""
    needed = max(0.5, round(look.work * 2) / 2)
    scale = look.run.scales.get(place.key, place.scale)
    hazards = hazards_seen(has_feed=look.market.has_feed)
    life = life_hours(hazards, round(scale, 2), needed, round(age, 1) if age < 2 else float(round(age)))
    return min(life, place.usable_hours(look.now)) if place.closes_at < math.inf else life


def _age(look: _Look, place: Place, here: Holding) -> float:
    """Of the machine, or of the spell where a feed tells it."""
    known = look.run.seen.get(place.key) if look.market.has_feed else None
    return look.now - (known.since if known else here.since)


def _slack_usd(look: _Look) -> float:
    """What an hour of slack is worth."""
    place = look.market.fallback
    if place is None:
        return 0.0
    return look.market.guide.slack_price(work_hours=look.work, slack_hours=look.slack) * place.usd_per_hour


def _sight(look: _Look) -> Sight:
    """Of the cheapest tier. Without a feed a place that may be asked counts as just come up, for nobody knows more."""
    market, seen = look.market, look.run.seen
    base = market.tiers[0] if market.tiers else ()
    if not market.has_feed:
        return _JUST_UP if any(_is_free(look, p) for p in base) else _outage(look)
    ups = [look.now - known.since for p in base if (known := seen.get(p.key)) and known.is_up]
    return Sight(is_up=True, age_hours=max(ups)) if ups else _outage(look)


def _outage(look: _Look) -> Sight:
    """Of the cheapest tier: since the last of its places went down."""
    base = look.market.tiers[0] if look.market.tiers else ()
    downs = [look.now - known.since for p in base if (known := look.run.seen.get(p.key)) and not known.is_up]
    return Sight(is_up=False, age_hours=min(downs, default=0.0))


def _advice(look: _Look, sight: Sight) -> Idle:
    return look.market.guide.idle(work_hours=look.work, slack_hours=look.slack, sight=sight)


def _advice_on(look: _Look, rung: int, sight: Sight) -> OnMachine:
    guide = look.market.guide
    if rung >= len(look.market.tiers) - 1:
        return guide.on_fallback(work_hours=look.work, slack_hours=look.slack, sight=sight)
    return guide.on_rung(rung, work_hours=look.work, slack_hours=look.slack, sight=sight)


def _wait(look: _Look, why: str) -> Wait:
    due = look.now + look.spare - look.market.reserve_hours
    until = _news_at(look, look.now + WAIT_HOURS)
    return Wait(max(look.now + look.market.poll_hours, min(until, due) if due > look.now + _HAIR else until), why)


def _news_at(look: _Look, latest: float) -> float:
    """When a place may be asked again or opens, if that is earlier."""
    known = (look.run.seen.get(p.key) for p in look.market.places)
    asks = [one.again_at for one in known if one and not one.is_up]
    return min(
        (at for at in (*asks, *(p.opens_at for p in look.market.firm)) if look.now < at < latest), default=latest
    )


def _guarded_until(look: _Look, here: Holding) -> float:
    """When slack runs out on a machine that is slower than the fallback."""
    lost_per_hour = 1.0 - look.market.unit_hours / here.place.step_hours
    if lost_per_hour <= _HAIR or look.spare == math.inf:
        return math.inf
    left = look.spare - look.market.reserve_hours - here.place.closing_hours
    return look.now + max(0.0, left) / lost_per_hour
