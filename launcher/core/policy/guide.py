"""What to do where nothing runs and where capacity that stays does: solved as a decision process, or by rule.

The process (`mdp`) is solved where its grid is fine enough: a tick no longer than a change of machine. Beyond that, for
runs of weeks whose machines change within minutes, a rule of a few thresholds does nearly as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Protocol

from launcher.core.hazards import AVAILABLE, LIFE_HAZARD, RETURN_HAZARD, SPELL_HAZARD
from launcher.core.policy.mdp import Game, Idle, OnMachine, Rung, Sight, solve

TICK_HOURS = 0.1
MOST_CELLS = 700_000  # of work, slack and kinds of machines: a table of them is solved in about half a second
MOST_SLACK = 0.4  # of the work: more of it changes no choice
LEAST_SLACK_HOURS = 4.0
RUNG_PREEMPTIONS_PER_HOUR = 0.3  # of a young machine on a dearer tier: it is held until the cheapest is back
ELSEWHERE = 0.3  # the chance that another place of the cheapest tier has capacity when one is lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the guide depends on beside work and slack: prices of the tiers of spot, in units of the fallback's."""

    prices: tuple[float, ...]
    sizes: tuple[int, ...]  # places in each tier
    changeover_hours: float
    pause_hours: float | None  # None: no handover
    has_feed: bool
    wait_price: float = 0.0  # of an hour in which nothing runs


class Guide(Protocol):
    """Advice for a run with so much work, in hours of the fallback, and slack; `sight` is of the cheapest tier."""

    def idle(self, *, work_hours: float, slack_hours: float, sight: Sight) -> Idle: ...

    def asks(self, *, work_hours: float, slack_hours: float, sight: Sight) -> tuple[int, ...]:
        """Dearer tiers to be asked, in this order, where nothing runs; 0 is the second one."""
        ...

    def on_rung(self, rung: int, *, work_hours: float, slack_hours: float, sight: Sight) -> OnMachine: ...

    def on_fallback(self, *, work_hours: float, slack_hours: float, sight: Sight) -> OnMachine: ...

    def slack_price(self, *, work_hours: float, slack_hours: float) -> float:
        """What an hour of slack is worth, in units of the fallback's price."""
        ...


@lru_cache(maxsize=16)
def guide(terms: Terms, *, work_hours: float, slack_hours: float) -> Guide:
    """For any amounts up to these."""
    work = max(0.0, work_hours)
    slack = max(0.0, min(slack_hours, max(MOST_SLACK * work, LEAST_SLACK_HOURS)))
    tick = tick_hours(terms, work_hours=work, slack_hours=slack)
    if not terms.prices or tick is None or find_spec("numpy") is None:
        return Rule(changeover_hours=terms.changeover_hours, num_rungs=max(0, len(terms.prices) - 1), terms=terms)
    return solve(game(terms), work_hours=work, slack_hours=slack, tick_hours=tick)


def tick_hours(terms: Terms, *, work_hours: float, slack_hours: float) -> float | None:
    """A part of the changeover, or all of it; `None`: that would make too many cells."""
    changeover, kinds = terms.changeover_hours, len(terms.prices) + 1
    for parts in range(max(1, round(changeover / TICK_HOURS)), 0, -1):
        tick = changeover / parts
        if kinds * (work_hours / tick + 1) * (slack_hours / tick + 1) <= MOST_CELLS:
            return tick
    return None


def game(terms: Terms) -> Game:
    """The first tier is followed through its spells and outages, the dearer ones are had with a constant chance."""
    rungs = zip(terms.prices[1:], terms.sizes[1:], strict=True)
    return Game(
        price=terms.prices[0],
        changeover_hours=terms.changeover_hours,
        lives=SPELL_HAZARD if terms.has_feed else LIFE_HAZARD,
        returns=RETURN_HAZARD,
        elsewhere=ELSEWHERE if terms.sizes[0] > 1 else 0.0,
        rungs=tuple(
            Rung(price=price, chance=1 - (1 - AVAILABLE) ** size, preemptions_per_hour=RUNG_PREEMPTIONS_PER_HOUR)
            for price, size in rungs
        ),
        pause_hours=terms.pause_hours,
        wait_price=terms.wait_price,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Thresholds of slack S against work p, by the age a of what is seen; d is the changeover.

    Fitted on the 2022 AWS spot availability traces of Wu et al., "Can't Be Late", NSDI 2024: most outages are short,
    and fresh capacity is not to be trusted by who has something to lose.
    """

    changeover_hours: float
    num_rungs: int
    terms: Terms

    def idle(self, *, work_hours: float, slack_hours: float, sight: Sight) -> Idle:
        if sight.is_up:
            return "spot" if slack_hours >= 2 * self.changeover_hours else "fallback"
        share = (0.08 + 0.12 * (1 - math.exp(-sight.age_hours))) * math.sqrt(self.changeover_hours / 0.1)
        return "wait" if slack_hours >= work_hours * share else "fallback"

    def asks(self, *, work_hours: float, slack_hours: float, sight: Sight) -> tuple[int, ...]:
        waits = self.idle(work_hours=work_hours, slack_hours=slack_hours, sight=sight) == "wait"
        return () if waits else tuple(range(self.num_rungs))

    def on_rung(self, rung: int, *, work_hours: float, slack_hours: float, sight: Sight) -> OnMachine:
        return self.on_fallback(work_hours=work_hours, slack_hours=slack_hours, sight=sight)

    def on_fallback(self, *, work_hours: float, slack_hours: float, sight: Sight) -> OnMachine:
        """With enough slack, spot alone will finish."""
        if not sight.is_up:
            return "leave" if slack_hours >= work_hours * (0.12 + 1.4 * self.changeover_hours) else "stay"
        risk = self.changeover_hours * (0.55 * math.exp(-sight.age_hours / 0.6) + 0.05)
        if slack_hours < 2 * self.changeover_hours + work_hours * risk:
            return "stay"
        return "leave" if self.terms.pause_hours is None else "hand_over"

    def slack_price(self, *, work_hours: float, slack_hours: float) -> float:
        return min(1.0, max(0.0, 1.0 - 2.5 * slack_hours / max(work_hours, 1e-9)))
