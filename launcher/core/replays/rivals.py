"""Policies to compare with, each of `decide`'s own signature: what others do, or would do, with the same places.

They ask for places as the launcher does, the cheapest first, and one that refused not before its pause is over. The
guard of the time is the launcher's own, so that a comparison is one of prices and not of lateness: it is `decide`
itself, shown nothing but capacity that stays. The guard of the money is not theirs: no published policy has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from launcher.core.policy.decision import LOOK_HOURS, Action, HandOver, Keep, Launch, Standing, Wait, decide
from launcher.core.policy.diary import Decide
from launcher.core.policy.guards import HAIR, is_free, look_at
from launcher.core.policy.market import Market, Place

OURS = "spotlaunch"
LEAD_CHANGEOVERS = 2.0  # ahead of the line, before the fallback is left ("Can't Be Late", NSDI 2024: hysteresis 2d)
_DUE_CHANGEOVERS = 2.0  # of slack: with less, the fallback until the end (the same)
_WAIT_HOURS = 0.5  # between two looks, where no place says when to ask again


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    name: str
    about: str
    decide: Decide
    needs_spot: bool = True
    needs_fallback: bool = True  # capacity that stays, for all of the work

    def fits(self, market: Market) -> bool:
        has_spot = any(place.is_spot for place in market.spot)
        return (has_spot or not self.needs_spot) and (market.fallback is not None or not self.needs_fallback)


def on_demand(run: Standing, market: Market, now: float) -> Action:
    """Capacity that stays, from the first hour to the last."""
    return decide(run, _without_spot(market), now)


def never_wait(run: Standing, market: Market, now: float) -> Action:
    """Spot, and where none can be had the fallback at once, until the end."""
    place = _spot(run, market, now) if run.here is None else None
    return Launch(place, "spot can be had") if place else on_demand(run, market, now)


def greedy(run: Standing, market: Market, now: float) -> Action:
    """Spot, else a wait; the fallback when the time is up, until the end."""
    left = _left(run, market, now)
    if run.here is not None or left <= HAIR:
        return on_demand(run, market, now)
    place = _spot(run, market, now)
    return Launch(place, "spot can be had") if place else _wait(run, market, now, left, "greedy: spot or nothing")


def uniform_progress(run: Standing, market: Market, now: float) -> Action:
    """Never behind the straight line from no work at the submit to all of it at the deadline.

    Idle: spot, else the fallback if it is behind. On the fallback: spot if it is ahead by two changeovers, else stay.
    Wu et al., "Can't Be Late", NSDI 2024. The line ends where the guard of the time wants its reserve.
    """
    here, left = run.here, _left(run, market, now)
    if run.is_joined or left <= HAIR or (here and (here.place.is_spot or not here.trains)):
        return on_demand(run, market, now)
    if here:
        place = _spot(run, market, now) if _lead(run, market, now, LEAD_CHANGEOVERS) >= 0 else None
        if place:
            return HandOver(place, "ahead of the line by two changeovers: back to spot", overlaps=False)
        stay = on_demand(run, market, now)
        return Keep(min(stay.until, now + LOOK_HOURS)) if isinstance(stay, Keep) else stay
    if place := _spot(run, market, now):
        return Launch(place, "spot can be had")
    lead = _lead(run, market, now)
    if lead >= 0:
        return _wait(run, market, now, min(left, lead), "ahead of the line")
    action = on_demand(run, market, now)
    return action._replace(why="behind the line") if isinstance(action, Launch) else action


def spot_only(run: Standing, market: Market, now: float) -> Action:
    """Spot or a wait, however late it becomes."""
    if run.here is not None:
        return Keep()
    place = _spot(run, market, now, is_guarded=False)
    return Launch(place, "spot can be had") if place else _wait(run, market, now, math.inf, "no spot can be had")


_KNOWN = (
    Policy(name=OURS, about="what `launch` does", decide=decide, needs_spot=False, needs_fallback=False),
    Policy(name="on-demand", about="capacity that stays, from the first hour on", decide=on_demand, needs_spot=False),
    Policy(name="never-wait", about="spot, else the fallback at once and until the end", decide=never_wait),
    Policy(name="greedy", about="spot or a wait, the fallback when the time is up", decide=greedy),
    Policy(name="uniform-progress", about="never behind the straight line (NSDI 2024)", decide=uniform_progress),
    Policy(name="spot-only", about="spot or a wait, however late", decide=spot_only, needs_fallback=False),
)
POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in _KNOWN}


@lru_cache(maxsize=8)
def _without_spot(market: Market) -> Market:
    """Nothing in it may be lost: on a spot machine, `decide` sees no more there than when to leave it."""
    firm = (place for place in market.firm if place is market.fallback or place.closes_at == math.inf)
    return replace(market, places=tuple(firm))


def _left(run: Standing, market: Market, now: float) -> float:
    """Hours until a run without spot must be on the fallback."""
    return look_at(run, market, now).spare - market.reserve_hours - _DUE_CHANGEOVERS * market.changeover_hours


def _lead(run: Standing, market: Market, now: float, changeovers: float = 0.0) -> float:
    """Hours until the line reaches what is done by then; negative behind it."""
    in_all = run.in_all or market.steps
    done = in_all - run.steps + (run.here.ahead if run.here else 0.0)
    line_hours = max(HAIR, market.deadline - market.reserve_hours)
    return done / in_all * line_hours - now - changeovers * market.changeover_hours


def _spot(run: Standing, market: Market, now: float, *, is_guarded: bool = True) -> Place | None:
    """The cheapest that may be asked, if the time bears a start that comes to nothing."""
    look = look_at(run, market, now)
    room = look.spare - market.reserve_hours if is_guarded else math.inf
    free = (p for p in market.spot if p.is_spot and room >= p.useful_hours and is_free(look, p))
    return min(free, key=lambda p: (market.hourly_usd(p), p.key), default=None)


def _wait(run: Standing, market: Market, now: float, most_hours: float, why: str) -> Wait:
    """Until a place may be asked again."""
    again = [known.again_at for known in run.seen.values() if not known.is_up and known.again_at > now + HAIR]
    until = min(now + most_hours, min(again, default=now + _WAIT_HOURS))
    return Wait(max(until, now + market.poll_hours, now + 10 * HAIR), why)
