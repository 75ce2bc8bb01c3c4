"""What a run may do: two guards above every wish for a lower price, and what both count with.

Time: a place that may be lost is used only while capacity that stays could still finish before the deadline, if it
starts within its stated delay. Money: spot is tried only while that capacity could still do all the rest within
`MAX_COST_RATIO` times what it alone would have cost, whatever comes of the try. Both count from the last save: what was
done since then may be lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from launcher.core.policy.market import PAUSE_HOURS, Market, Place

FAR_SHORT = 0.8  # of the money for the rest: no error of the pace would make it enough
HAIR = 1e-9  # hours, dollars


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
    leased: frozenset[str] = frozenset()  # places whose lease the run has had: it is renewed at once
    in_all: float | None = None  # steps of the whole run, where they are not those of the plan


class Look(NamedTuple):
    """Standing and market at one instant, and what every branch asks for."""

    run: Standing
    market: Market
    now: float
    most_usd: float  # that the run may cost
    havens: tuple[tuple[float, float], ...]  # places that can do the rest: spare hours, and what the run then costs
    spare: float  # hours until only an immediate fallback meets the deadline; infinite without a fallback
    work: float  # hours of the fallback, as the guide counts them: who leaves a machine saves first
    slack: float  # the same
    needed: float  # of the work, in steps of half an hour: what a machine's life is worth living for


def look_at(run: Standing, market: Market, now: float) -> Look:
    most_usd = (market.most_usd if run.in_all is None else market.most_usd_for(run.in_all)) + HAIR
    opened: list[tuple[float, float]] = []
    later: list[tuple[float, float]] = []
    for place in market.havens:
        hours = spare_hours(place, run.steps, market, now) if affordable(run, place) else None
        if hours is not None:
            way = hours, run.spent + place.usd_to_finish(run.steps)
            (opened if place.opens_at <= now else later).append(way)
    ways = opened + later
    least_usd = min((usd for hours, usd in ways if hours >= market.reserve_hours), default=math.inf)
    spare = max((hours for hours, usd in ways if usd <= most_usd or usd <= least_usd), default=math.inf)
    havens = tuple(opened or later)  # nothing is risked on a price that may come too late
    ahead = min(run.here.ahead, run.steps) * market.unit_hours if run.here else 0.0
    usable = spare + ahead - market.reserve_hours - market.sag_hours + market.changeover_hours
    slack = max(0.0, min(usable, market.deadline - now))
    work = run.steps * market.unit_hours - ahead
    return Look(run, market, now, most_usd, havens, spare, work, slack, max(0.5, round(work * 2) / 2))


def spare_hours(place: Place, steps: float, market: Market, now: float) -> float | None:
    """Until the last moment to begin `steps` there; `None`: they cannot be left to this place.

    Spot may be taken, a reservation may end too early, and one that begins later than that moment comes too late.
    """
    needed = place.finish_hours(steps)
    if place.is_spot or place.ends_at - now < needed or needed == math.inf:
        return None
    spare = min(market.deadline, place.ends_at) - now - needed
    if place.opens_at <= now:
        return spare
    return spare if spare >= place.opens_at - now + market.reserve_hours else None


def affordable(run: Standing, place: Place) -> bool:
    """Whether what is left pays for a start, a step and a save."""
    return run.left > place.useful_hours * place.usd_per_hour + place.arrival_usd


def is_free(look: Look, place: Place) -> bool:
    """Affordable, open for long enough to be of use, and not known to be without capacity; feeds tell of spot."""
    known = look.run.seen.get(place.key)
    if known is not None and not known.is_up:
        is_told = look.market.has_feed and place.is_spot
        if is_told or known.again_at > look.now + HAIR:
            return False
    return affordable(look.run, place) and place.usable_hours(look.now) >= place.useful_hours


def may_start(
    look: Look, place: Place, *, beside: Holding | None = None, overlaps: bool = True, in_need: bool = False
) -> bool:
    """Both guards, and whether it has capacity as far as is known. `in_need`: of the time nothing is left to guard."""
    if not is_free(look, place) or (beside and place is beside.place):
        return False
    return is_allowed(look, place, beside=beside, overlaps=overlaps, in_need=in_need)


def is_allowed(
    look: Look, place: Place, *, beside: Holding | None = None, overlaps: bool = True, in_need: bool = False
) -> bool:
    """Both guards, had it capacity now."""
    market, lost = look.market, place.useful_hours + place.unsaved_hours
    extra = market.try_usd[place.key] + market.move_usd(look.run.homes, place)
    if beside:
        lost += beside.place.closing_hours + (PAUSE_HOURS - place.setup_hours if overlaps else 0.0)
        extra += (place.setup_hours + beside.place.closing_hours) * beside.place.usd_per_hour
    return is_within(look, look.spare - market.reserve_hours if in_need else lost, extra) and is_paid(look, extra)


def is_within(look: Look, lost_hours: float, extra_usd: float) -> bool:
    """Whether some fallback could still do all the rest, in time and for little more than it alone would have cost."""
    hours, usd = look.market.reserve_hours + lost_hours - HAIR, look.most_usd - extra_usd
    return any(spare >= hours and cost <= usd for spare, cost in look.havens) or not look.havens


def is_paid(look: Look, extra_usd: float) -> bool:
    """The run can be finished on the fallback even so; or the money is too short for that in any case."""
    run, rest = look.run, rest_usd(look)
    if look.market.fallback is None:
        return True
    if run.here is None or run.here.place.is_spot:
        return not rest <= run.left < rest + extra_usd
    stay = max(0.0, run.steps - run.here.ahead) * run.here.place.step_hours * run.here.place.usd_per_hour
    return run.left >= rest + extra_usd or run.left < FAR_SHORT * stay


def rest_usd(look: Look) -> float:
    place = look.market.fallback
    return 0.0 if place is None else place.usd_to_finish(look.run.steps)


def is_due(look: Look, here: Holding) -> bool:
    """The guard of the time."""
    return look.spare < look.market.reserve_hours + here.place.closing_hours - HAIR and may_be_late(look, here)


def may_be_late(look: Look, here: Holding) -> bool:
    """Spot may always. Capacity that stays does where the work outlasts it, and the fallback would not be late too."""
    place, market = here.place, look.market
    if place.is_spot:
        return True
    return look.spare >= 0 and _ends_at(look, here) > min(market.deadline, place.ends_at)


def _ends_at(look: Look, here: Holding) -> float:
    """When all is done on capacity that stays, if that is not left."""
    place, steps = here.place, max(0.0, look.run.steps - here.ahead)
    begins_at = look.now if here.trains else max(look.now, here.since + place.setup_hours)
    free = max(0.0, here.since + place.lease_hours - place.closing_hours - begins_at)
    if steps * place.step_hours <= free:
        return begins_at + steps * place.step_hours + place.durable_hours
    return begins_at + free + place.closing_hours + place.finish_hours(steps - free / place.step_hours)


def guarded_until(look: Look, here: Holding) -> float:
    """When either guard may be due at the earliest; saves that are made until then only put it off."""
    market, place = look.market, here.place
    wasted_at = _wasted_at(look, here)
    if look.spare == math.inf or not may_be_late(look, here):
        return wasted_at
    left = look.spare - market.reserve_hours - place.closing_hours
    roomy = left - place.unsaved_hours
    if not here.trains or roomy <= 0:
        return min(wasted_at, look.now + max(left, market.poll_hours, 10 * HAIR))
    lost_per_hour = 1.0 - market.unit_hours / place.step_hours
    return look.now + roomy / lost_per_hour if lost_per_hour > HAIR else math.inf


def wastes(look: Look, here: Holding) -> str | None:
    """Why spot is to be left for its money's sake: it does not get ready, or is dearer than the fallback by now."""
    place = here.place
    if not place.is_spot or look.market.fallback is None or look.spare < 0:
        return None
    if (look.run.steps * place.step_hours - place.closing_hours) * place.usd_per_hour > rest_usd(look):
        return "the fallback is cheaper by now"
    is_wasted = _wasted_at(look, here) <= look.now + 10 * HAIR
    return "it is not ready, and uses up what the fallback leaves" if is_wasted else None


def _wasted_at(look: Look, here: Holding) -> float:
    """When a machine that is still not ready would have used up what the fallback leaves."""
    place, hours = here.place, look.market.reserve_hours + here.place.closing_hours - HAIR
    if here.trains or not place.is_spot or not look.havens or place.usd_per_hour <= 0 or look.spare < 0:
        return math.inf
    costs = [cost for spare, cost in look.havens if spare >= hours] or [cost for _, cost in look.havens]
    return look.now + (look.most_usd - min(costs)) / place.usd_per_hour - place.closing_hours


def surest_first(look: Look) -> list[Place]:
    """Firm places to be asked now: those surely in time, the cheapest first; without any, the soonest first.

    A dearer one than the money allows is none of them while a cheaper one, that refused, is surely in time.
    """
    found: list[tuple[float, bool, float, str, Place]] = []
    for place in look.market.firm:
        spare = spare_hours(place, look.run.steps, look.market, look.now)
        if spare is not None:
            usd = place.usd_to_finish(look.run.steps) + look.market.move_usd(look.run.homes, place)
            late = max(0.0, _due_hours(look, place) - spare - HAIR)
            is_over = not look.market.is_urgent and look.run.spent + usd > look.most_usd
            found.append((late, is_over, usd, place.key, place))
    ways = sorted(found, key=lambda way: way[:4])
    return [way[-1] for way in ways if (way[:2] == ways[0][:2] or ways[0][0] > 0) and is_free(look, way[-1])]


def _due_hours(look: Look, place: Place) -> float:
    """Until its capacity is there at the latest: who was refused lately is owed it so much sooner."""
    known, needed = look.run.seen.get(place.key), look.market.reserve_hours - look.market.poll_hours
    if place.key in look.run.leased and (known is None or known.is_up):
        return 0.0
    if known is None or known.is_up or look.now > known.again_at + needed:
        return needed
    return max(needed - (look.now - known.since), known.again_at - look.now)
