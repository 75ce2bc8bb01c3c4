"""Two guards around any policy: what it decides is done only if the run still ends in time and within its budget.

With S ticks of slack and a launch of m ticks, each step must leave S >= m, a launch of the fallback: going on with a
warm spot machine takes nothing, waiting and warming up take a tick each, an overlap takes the pause of one tick.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.policy.simulator import Decision, MakePolicy, Mode, Policy, View
from benchmarks.policy.terms import Terms
from benchmarks.policy.traces import TICKS_PER_HOUR

TO_FALLBACK = Decision(Mode.FALLBACK)


class Guarded:
    """`cap` bounds the cost, as a multiple of on-demand alone; without one there is only the guard of the time."""

    def __init__(self, policy: Policy, terms: Terms, *, cap: float | None) -> None:
        self._policy, self._launch_ticks = policy, terms.launch_ticks
        self._fallback_price = terms.fallback_price_per_hour / TICKS_PER_HOUR
        self._spot_prices = [price / TICKS_PER_HOUR for price in terms.spot_prices_per_hour]
        self._egress_prices = terms.egress_prices
        self._budget = float("inf") if cap is None else cap * terms.on_demand_cost

    def decide(self, view: View) -> Decision:
        wanted = self._policy.decide(view)
        if wanted.mode is Mode.SPOT and wanted.zones:
            return self._ask(wanted, view)
        if wanted.mode is Mode.IDLE:
            return self._wait(wanted, view)
        if wanted.mode is Mode.SPOT and not self._may_keep(view):
            return TO_FALLBACK
        return wanted

    def _ask(self, wanted: Decision, view: View) -> Decision:
        """Spot only where it can be paid; if all zones refuse, what may be done without them."""
        zones = tuple(index for index in wanted.zones if self._may_launch(index, wanted, view))
        otherwise = self._otherwise(wanted, view)
        if not zones:
            return otherwise
        return wanted._replace(zones=zones, refused=otherwise.mode, hold_ticks=otherwise.hold_ticks)

    def _otherwise(self, wanted: Decision, view: View) -> Decision:
        match wanted.refused or view.mode:
            case Mode.IDLE:
                return self._wait(Decision(Mode.IDLE, hold_ticks=wanted.hold_ticks), view)
            case Mode.SPOT if self._may_keep(view):
                return Decision(Mode.SPOT, hold_ticks=wanted.hold_ticks)
            case Mode.SPOT | Mode.FALLBACK:
                return TO_FALLBACK._replace(hold_ticks=wanted.hold_ticks)

    def _wait(self, wanted: Decision, view: View) -> Decision:
        spare_ticks = view.slack_ticks - self._launch_ticks
        is_affordable = view.mode is Mode.IDLE or self._is_within_budget(view)
        if spare_ticks < 1 or not is_affordable:
            return TO_FALLBACK
        return wanted._replace(hold_ticks=min(wanted.hold_ticks, spare_ticks))

    def _may_keep(self, view: View) -> bool:
        return view.slack_ticks - (view.warm_up_ticks > 0) >= self._launch_ticks

    def _may_launch(self, index: int, wanted: Decision, view: View) -> bool:
        if view.zone == index:
            return self._may_keep(view)
        is_overlap = wanted.overlap and view.mode is not Mode.IDLE and not view.warm_up_ticks
        taken_ticks = 1 if is_overlap else self._launch_ticks
        egress_price = 0.0 if view.place is None else self._egress_prices[view.place][index]
        extra = self._launch_ticks * self._spot_prices[index] + egress_price + is_overlap * self._fallback_price
        return view.slack_ticks - taken_ticks >= self._launch_ticks and self._is_within_budget(view, extra)

    def _is_within_budget(self, view: View, extra: float = 0.0) -> bool:
        """That the fallback may still do all the rest."""
        rest_ticks = self._launch_ticks + view.work_ticks
        return view.spent + extra + rest_ticks * self._fallback_price <= self._budget


@dataclass(frozen=True, slots=True)
class Guard:
    """Makes policies with the guards around them."""

    make: MakePolicy
    cap: float | None

    def __call__(self, terms: Terms) -> Policy:
        return Guarded(self.make(terms), terms, cap=self.cap)
