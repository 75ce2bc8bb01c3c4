"""Where a run goes next: `decide(standing, market, now) → Action`, one pure function for all who ask.

The supervisor asks it what to do, the estimate what it would do in a thousand futures, a replay what it would have
done. Two guards stand above every wish for a lower price (`guards.py`): the run is never late as long as the fallback
starts in time, and never much dearer than the fallback alone. Under both, `Guide` weighs price, slack and the market's
moods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from launcher.core.policy.guards import (
    Holding,
    Look,
    Seen,
    Standing,
    guarded_until,
    is_allowed,
    is_due,
    is_free,
    is_paid,
    is_within,
    look_at,
    may_start,
    surest_first,
    wastes,
)
from launcher.core.policy.market import Market, Place, hazards_seen, life_hours
from launcher.core.policy.mdp import Idle, OnMachine, Sight
from launcher.core.spans import span

__all__ = [
    "Action",
    "HandOver",
    "Holding",
    "Keep",
    "Launch",
    "Leave",
    "Seen",
    "Standing",
    "Wait",
    "decide",
]

MOVE_GAIN = 0.02  # a spot machine that works is left for another one only if that is so much cheaper an hour
LOOK_HOURS = 0.5  # between two looks, at the latest, while a machine works that is dearer than need be
WAIT_HOURS = (0.1, 0.5)  # the same while nothing runs: a twentieth of the slack, within these
_HAIR = 1e-9
_JUST_UP = Sight(is_up=True, age_hours=0.0)


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


def decide(run: Standing, market: Market, now: float) -> Action:
    """What to do now; the same values always give the same action."""
    look = look_at(run, market, now)
    here = run.here
    if here is None:
        return _idle(look)
    if why := wastes(look, here):
        return Leave(why)
    if run.is_joined:
        return Keep(guarded_until(look, here))
    if is_due(look, here):
        return _to_fallback(look, here)
    if not here.trains:
        return Keep(guarded_until(look, here))
    if not here.place.is_spot and (place := _cheaper_firm(look, here)):
        return HandOver(place, "capacity that stays is so much cheaper there that the change pays", overlaps=True)
    if market.fallback is None or not market.tiers or market.tier_of.get(here.place.key) == 0:
        return _cheaper_spot(look, here)
    return _off_the_dear(look, here)


def _idle(look: Look) -> Action:
    """Nothing runs: the cheapest spot, dearer spot, a wait, or the fallback."""
    market, down = look.market, _outage(look)
    if market.fallback is None:
        place = _cheapest(look, 0)
        if place:
            return Launch(place, "cheapest spot")
        return _wait(look, "no place has capacity") if look.spare > market.reserve_hours else _surest(look)
    sight = _sight(look)
    wanted = ("spot",) if market.has_feed else ("spot", "wait")  # a machine's age begins with it, whoever waited
    if sight.is_up and _advice(look, sight) in wanted and (place := _cheapest(look, 0)):
        return Launch(place, "cheapest spot")
    rungs = market.guide.asks(work_hours=look.work, slack_hours=look.slack, sight=down)
    for rung in rungs:
        if place := _cheapest(look, rung + 1):
            return Launch(place, "dearer spot is worth more than the wait for cheaper")
    if _may_wait(look, 0.0) and _advice(look, down) != "fallback":
        tiers = [market.tiers[tier] for tier in (0, *(rung + 1 for rung in rungs)) if tier < len(market.tiers)]
        return _wait(look, "spot is expected back in time", [place.key for tier in tiers for place in tier])
    return _surest(look)


def _cheaper_spot(look: Look, here: Holding) -> Action:
    """On the cheapest tier: stay, unless another place of it is clearly better, the change included."""
    market, place, news = look.market, here.place, math.inf
    if market.tiers and market.hands_over:
        slack_usd = _slack_usd(look)
        most = (1.0 - MOVE_GAIN) * _hourly(look, place, slack_usd, age=_age(look, place, here))
        others = (p for p in market.tiers[0] if p is not place and not p.is_scarce)
        cheap = [(p, _asked_again_at(look, p)) for p in others if _unit_usd(market, p) < most]
        asked = [(_beside(look, p, here, slack_usd), p.key, p) for p, at in cheap if at <= look.now]
        for usd, _, other in sorted(asked):
            if usd < most and may_start(look, other, beside=here):
                return HandOver(other, "spot is so much cheaper there that the change pays", overlaps=True)
        news = min((at for _, at in cheap if at > look.now), default=math.inf)
    return Keep(min(news, guarded_until(look, here)))


def _beside(look: Look, place: Place, here: Holding, slack_usd: float) -> float:
    """Effective rate there, with what both machines cost until the new one is ready."""
    both = (here.place.usd_per_hour + place.usd_per_hour) * place.setup_hours
    return _hourly(look, place, slack_usd, once_usd=both)


def _asked_again_at(look: Look, place: Place) -> float:
    """A place that refused is asked for a little saving only when its outage is twice as old as it was."""
    known = look.run.seen.get(place.key)
    if known is None or known.is_up:
        return -math.inf
    return math.inf if look.market.has_feed else 2 * known.again_at - known.since


def _cheaper_firm(look: Look, here: Holding) -> Place | None:
    """From capacity that stays to other such: a reservation has opened, or a price has risen."""
    place, market, steps = here.place, look.market, max(0.0, look.run.steps - here.ahead)
    if not market.hands_over or len(market.firm) < 2 or look.spare < market.reserve_hours:
        return None
    stay = (1.0 - MOVE_GAIN) * steps * place.step_hours * place.usd_per_hour
    for other in surest_first(look):
        both = (other.setup_hours + place.closing_hours) * place.usd_per_hour
        usd = other.usd_to_finish(steps) + both + market.move_usd(look.run.homes, other)
        if other is not place and usd < stay:
            return other
    return None


def _off_the_dear(look: Look, here: Holding) -> Action:
    """On the fallback, or on dearer spot: cheaper spot beside it, or a wait for it, where that is expected to pay."""
    market, sight = look.market, _sight(look)
    rung = market.tier_of.get(here.place.key, len(market.tiers)) - 1
    if sight.is_up and (choice := _advice_on(look, rung, sight)) != "stay":
        overlaps = choice == "hand_over"
        is_wanted = overlaps or _advice(look, sight) == "spot"
        if is_wanted and (place := _cheapest(look, 0, beside=here, overlaps=overlaps)):
            return HandOver(place, "spot is back, and expected to pay for the change", overlaps=overlaps)
    if market.hands_over and (place := _paying(look, here, rung)):
        return HandOver(place, "dearer spot, and still expected to pay for the change", overlaps=True)
    down = _outage(look)
    if _advice_on(look, rung, down) == "leave" and _advice(look, down) == "wait":
        closing_usd = here.place.closing_hours * here.place.usd_per_hour
        is_safe = is_within(look, 0.0, closing_usd) and is_paid(look, closing_usd)
        if is_safe and look.spare < math.inf and _may_wait(look, here.place.closing_hours):
            return Leave("with so much slack, the wait for spot is expected to pay")
    return Keep(min(look.now + LOOK_HOURS, _news_at(look, look.now + LOOK_HOURS), guarded_until(look, here)))


def _paying(look: Look, here: Holding, rung: int) -> Place | None:
    """Of the dearer tiers below this one: spot whose saving outweighs the change and a part of the way back."""
    slack_usd, old = _slack_usd(look), _unit_usd(look.market, here.place)
    for tier in range(1, rung + 1):
        for place in look.market.tiers[tier]:
            new, start = _unit_usd(look.market, place), place.setup_hours
            cost = (new + slack_usd + 0.5 * old) * start + place.arrival_usd
            if (old - new) * (look.needed - start) <= cost or not is_free(look, place):  # no life is longer than that
                continue
            saved = (old - new) * max(0.0, _life(look, place, 0.0) - start)
            if saved > cost + look.market.move_usd(look.run.homes, place) and may_start(look, place, beside=here):
                return place
    return None


def _to_fallback(look: Look, here: Holding) -> Action:
    """The slack is used up: to capacity that stays, while this machine still computes."""
    others = [p for p in surest_first(look) if p is not here.place]
    why = f"only {span(max(0.0, look.spare) * 3600)} of slack are left before the deadline"
    if not others or (look.spare < 0 and not look.market.hands_over):  # late in any case: what one has is not given up
        return Keep(_news_at(look, look.now + LOOK_HOURS))
    return HandOver(others[0], why, overlaps=here.trains) if look.market.hands_over else Leave(why)


def _surest(look: Look) -> Action:
    """Capacity that stays; where none is free, any that is: no machine does worse than every machine."""
    firm = surest_first(look)
    if firm:
        return Launch(firm[0], "no spot that is worth its risk" if look.market.tiers else "capacity that stays")
    is_lost = not 0 <= look.spare < math.inf
    in_need = look.market.hands_over and look.spare < look.market.reserve_hours + look.market.poll_hours
    places = look.market.places if is_lost else [p for p in look.market.spot if p.is_spot]
    free = [p for p in places if (is_free(look, p) if is_lost else may_start(look, p, in_need=in_need))]
    rest = min(free, key=lambda p: (p.is_spot, look.market.hourly_usd(p), p.key), default=None)
    return Launch(rest, "all that has capacity") if rest else _wait(look, "no place has capacity")


def _cheapest(look: Look, tier: int, *, beside: Holding | None = None, overlaps: bool = True) -> Place | None:
    """The place of a tier that may start, with the least effective rate: price, and what ends and moves cost."""
    places = look.market.tiers[tier] if tier < len(look.market.tiers) else ()
    free = [p for p in places if is_free(look, p) and not (beside and (p is beside.place or p.is_scarce))]
    if len(free) > 1:
        slack_usd = _slack_usd(look)
        free.sort(key=lambda p: (p.is_scarce, _hourly(look, p, slack_usd, age=_spell_age(look, p)), p.key))
    return next((p for p in free if is_allowed(look, p, beside=beside, overlaps=overlaps)), None)


def _spell_age(look: Look, place: Place) -> float:
    """Of its spell, where a feed tells it; else nobody knows of any."""
    known = look.run.seen.get(place.key) if look.market.has_feed else None
    return 0.0 if known is None else look.now - known.since


def _hourly(look: Look, place: Place, slack_usd: float, *, age: float = 0.0, once_usd: float = 0.0) -> float:
    """Effective rate: price, and per hour of expected life the next start, the slack it takes, and bytes moved."""
    market, usd = look.market, place.usd_per_hour
    ends = (usd + slack_usd) * place.setup_hours + place.arrival_usd + once_usd + market.move_usd(look.run.homes, place)
    return (usd + ends / _life(look, place, age)) * place.step_hours / market.unit_hours


def _unit_usd(market: Market, place: Place) -> float:
    """Of an hour's work of the fallback."""
    return place.usd_per_hour * place.step_hours / market.unit_hours


def _life(look: Look, place: Place, age: float) -> float:
    """Hours that a machine there is expected to live, of those that the work needs; ages in steps, for the cache."""
    scale, at = look.run.scales.get(place.key, place.scale), 0.0
    if age > 0:
        at = round(age, 1) if age < 2 else float(round(age))
    life = _life_hours(look.market.has_feed, round(scale, 2), look.needed, at)
    return max(1e-3, min(life, place.usable_hours(look.now))) if place.closes_at < math.inf else life


@lru_cache(maxsize=1 << 16)
def _life_hours(has_feed: bool, scale: float, most_hours: float, age: float) -> float:
    """Asked for so often that to hash the hazards each time would be most of it."""
    return life_hours(hazards_seen(has_feed=has_feed), scale, most_hours, age)


def _age(look: Look, place: Place, here: Holding) -> float:
    """Of the machine, or of the spell where a feed tells it."""
    known = look.run.seen.get(place.key) if look.market.has_feed else None
    return look.now - (known.since if known else here.since)


def _slack_usd(look: Look) -> float:
    """What an hour of slack is worth."""
    place = look.market.fallback
    if place is None:
        return 0.0
    return look.market.guide.slack_price(work_hours=look.work, slack_hours=look.slack) * place.usd_per_hour


def _sight(look: Look) -> Sight:
    """Of the cheapest tier. Without a feed a place that may be asked counts as just come up, for nobody knows more."""
    market, seen = look.market, look.run.seen
    base = market.tiers[0] if market.tiers else ()
    if not market.has_feed:
        return _JUST_UP if any(is_free(look, p) for p in base) else _outage(look)
    ups = [look.now - known.since for p in base if (known := seen.get(p.key)) and known.is_up]
    return Sight(is_up=True, age_hours=max(ups)) if ups else _outage(look)


def _outage(look: Look) -> Sight:
    """Of the cheapest tier: since the last of its places went down."""
    base = look.market.tiers[0] if look.market.tiers else ()
    downs = [look.now - known.since for p in base if (known := look.run.seen.get(p.key)) and not known.is_up]
    return Sight(is_up=False, age_hours=min(downs, default=0.0))


def _advice(look: Look, sight: Sight) -> Idle:
    return look.market.guide.idle(work_hours=look.work, slack_hours=look.slack, sight=sight)


def _advice_on(look: Look, rung: int, sight: Sight) -> OnMachine:
    guide = look.market.guide
    if rung >= len(look.market.tiers) - 1:
        return guide.on_fallback(work_hours=look.work, slack_hours=look.slack, sight=sight)
    return guide.on_rung(rung, work_hours=look.work, slack_hours=look.slack, sight=sight)


def _may_wait(look: Look, closing_hours: float) -> bool:
    """Whether there is time for it, and spot that could still be started behind it."""
    market = look.market
    if market.is_urgent or look.spare <= market.reserve_hours + market.poll_hours + closing_hours + _HAIR:
        return False
    return any(p.usable_hours(look.now) >= p.useful_hours and is_allowed(look, p) for p in market.spot)


def _wait(look: Look, why: str, keys: Iterable[str] | None = None) -> Wait:
    """`keys` of places that are waited for; else any."""
    due = look.now + look.spare - look.market.reserve_hours
    until = _news_at(look, look.now + min(WAIT_HOURS[1], max(WAIT_HOURS[0], look.slack / 20)), keys)
    return Wait(max(look.now + look.market.poll_hours, min(until, due) if due > look.now + _HAIR else until), why)


def _news_at(look: Look, latest: float, keys: Iterable[str] | None = None) -> float:
    """When a place may be asked again or opens, if that is earlier."""
    seen = look.run.seen
    for key in seen if keys is None else keys:
        one = seen.get(key)
        if one and not one.is_up and look.now < one.again_at < latest:
            latest = one.again_at
    return min((at for at in look.market.openings if look.now < at < latest), default=latest)
