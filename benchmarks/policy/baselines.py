"""Policies to compare with. Of a zone they know what the simulator lets them see, or what it answers when asked.

Greedy and Uniform Progress: "Can't Be Late", NSDI 2024, and the semantics of its code (`rc_cr_threshold`). In several
zones they ask all of them, by price and from the last one on.
"""

from __future__ import annotations

import math

from benchmarks.policy.simulator import FOREVER, Decision, Mode, View
from benchmarks.policy.terms import Sights, Terms
from benchmarks.policy.traces import TICKS_PER_HOUR

STAY_ON_SPOT = Decision(Mode.SPOT, hold_ticks=FOREVER)
STAY_ON_FALLBACK = Decision(Mode.FALLBACK, hold_ticks=FOREVER)
FALLBACK_FOR_NOW = Decision(Mode.FALLBACK)
WAIT_FOR_NOW = Decision(Mode.IDLE)


class OnDemand:
    """The fallback, from the first tick to the last."""

    def __init__(self, terms: Terms) -> None:
        pass

    def decide(self, view: View) -> Decision:
        return STAY_ON_FALLBACK


class Greedy:
    """Spot if it is up, else wait until only the fallback is left."""

    def __init__(self, terms: Terms) -> None:
        self._launch_ticks = terms.launch_ticks
        self._order = _Order(terms)

    def decide(self, view: View) -> Decision:
        zones = self._order.zones(view)
        if view.mode is Mode.SPOT:
            return STAY_ON_SPOT
        spare_ticks = view.slack_ticks - 2 * self._launch_ticks
        if view.mode is Mode.FALLBACK or spare_ticks < 0:
            return STAY_ON_FALLBACK
        if zones:
            return Decision(Mode.SPOT, zones, refused=Mode.IDLE)
        return Decision(Mode.IDLE, hold_ticks=spare_ticks + 1)


class UniformProgress:
    """Never behind the straight line from no work to all; back to spot only when ahead of it by two launches."""

    lead_launches: float | None = 2.0

    def __init__(self, terms: Terms) -> None:
        self._launch_ticks, self._work_ticks = terms.launch_ticks, terms.work_ticks
        self._work_per_tick = terms.work_ticks / terms.deadline_ticks
        self._order = _Order(terms)

    def decide(self, view: View) -> Decision:
        zones = self._order.zones(view)
        if view.mode is Mode.SPOT:
            return STAY_ON_SPOT
        spare_ticks = view.slack_ticks - 2 * self._launch_ticks
        if spare_ticks <= 0:
            return STAY_ON_FALLBACK
        if view.mode is Mode.FALLBACK:
            return self._leave(zones, view)
        lead_ticks = self._lead(view, launches=0) / self._work_per_tick
        if zones:
            return Decision(Mode.SPOT, zones, refused=Mode.FALLBACK if lead_ticks < 0 else Mode.IDLE)
        hold_ticks = max(1, min(spare_ticks, int(lead_ticks)))
        return FALLBACK_FOR_NOW if lead_ticks < 0 else Decision(Mode.IDLE, hold_ticks=hold_ticks)

    def _leave(self, zones: tuple[int, ...], view: View) -> Decision:
        if not zones:
            return STAY_ON_FALLBACK
        if self.lead_launches is not None and self._lead(view, launches=self.lead_launches) < 0:
            return FALLBACK_FOR_NOW
        return Decision(Mode.SPOT, zones)

    def _lead(self, view: View, *, launches: float) -> float:
        due_ticks = (view.tick + launches * self._launch_ticks) * self._work_per_tick
        return self._work_ticks - view.work_ticks - due_ticks


class UniformProgressWithoutHysteresis(UniformProgress):
    """Back to spot whenever it is up."""

    lead_launches = None


class Rule:
    """For one zone: fresh capacity is not trusted, most outages are short; constants from hazards of 2022."""

    def __init__(self, terms: Terms) -> None:
        self._launch_ticks = terms.launch_ticks
        self._launch_hours = terms.launch_ticks / TICKS_PER_HOUR

    def decide(self, view: View) -> Decision:
        if view.mode is Mode.SPOT:
            return STAY_ON_SPOT
        if view.mode is Mode.FALLBACK and view.warm_up_ticks:
            return FALLBACK_FOR_NOW
        sight = view.sights[0]
        age_hours = (view.tick - sight.since_tick) / TICKS_PER_HOUR
        return self._when_up(view, age_hours) if sight.up else self._when_down(view, age_hours)

    def _when_up(self, view: View, age_hours: float) -> Decision:
        needed_ticks = 2.0 * self._launch_ticks
        if view.mode is Mode.FALLBACK:
            preemptions_per_hour = 0.55 * math.exp(-age_hours / 0.6) + 0.05
            needed_ticks += view.work_ticks * self._launch_hours * preemptions_per_hour
        return Decision(Mode.SPOT, (0,)) if view.slack_ticks >= needed_ticks else FALLBACK_FOR_NOW

    def _when_down(self, view: View, age_hours: float) -> Decision:
        if view.mode is Mode.IDLE:
            share = (0.08 + 0.12 * (1 - math.exp(-age_hours))) * math.sqrt(self._launch_hours / 0.1)
            return WAIT_FOR_NOW if view.slack_ticks >= view.work_ticks * share else FALLBACK_FOR_NOW
        share = 0.12 + 1.4 * self._launch_hours  # with that much slack, spot alone will finish
        if view.slack_ticks >= view.work_ticks * share:
            return WAIT_FOR_NOW
        return Decision(Mode.FALLBACK, hold_ticks=max(1, int(view.work_ticks - view.slack_ticks / share)))


class _Order:
    """The zones to ask: all of them, or those known to be up; the cheapest first, and of these the last one first."""

    def __init__(self, terms: Terms) -> None:
        self._prices = terms.spot_prices_per_hour
        self._are_known = terms.sights is Sights.KNOWN
        self._last = 0

    def zones(self, view: View) -> tuple[int, ...]:
        if view.zone is not None:
            self._last = view.zone
            return ()
        num_zones = len(self._prices)
        around = [(self._last + step) % num_zones for step in range(num_zones)]
        asked = [index for index in around if not self._are_known or view.sights[index].up]
        return tuple(sorted(asked, key=self._prices.__getitem__))
