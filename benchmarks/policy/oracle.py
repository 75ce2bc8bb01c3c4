"""What a run would cost at least, with the whole future known: an exact backward recursion over time.

`J[t, s]` is the cost still to come at tick t with s ticks of slack used, so that t - s ticks of work are done:
    running         J[t, s] = price + J[t + 1, s], or anything an idle run may do
    idle            J[t, s] = min(J[t + 1, s + 1], m * price + egress + J'[t + m, s + m] of any machine that is there)
    work is done    J[t, s] = 0 at the deadline, with all slack used; a run that is done before idles until then
An idle run remembers the region of its checkpoint: the one where it last ran.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.policy.terms import Terms
from benchmarks.policy.traces import TICKS_PER_HOUR, Zone

Costs = NDArray[np.float64]
BATCH = 8  # windows at once: numpy's overhead is spread, and the ring still fits into a core's cache


def optima(zones: Sequence[Zone], starts: Sequence[int], terms: Terms) -> list[float]:
    """The least cost of each window, in the unit of the prices."""
    ends = [start + terms.deadline_ticks for start in starts]
    up = np.array([[one.up[a:b] for one in zones] for a, b in zip(starts, ends, strict=True)], dtype=bool)
    batches = [up[first : first + BATCH] for first in range(0, len(up), BATCH)]
    return [float(cost) for batch in batches for cost in _Recursion(batch, terms).run()]


class _Recursion:
    """Machines are the zones' spot, then the fallback of each place: a zone, or all of them if moves cost nothing."""

    def __init__(self, up: NDArray[np.bool_], terms: Terms) -> None:
        self._up = up  # [windows, zones, ticks]
        self._terms = terms
        self._egress = np.array(terms.egress_prices)  # [places, places]
        zones = len(terms.spot_prices_per_hour)
        self._num_places = zones if self._egress.any() else 1
        self._place = np.array([*range(zones), *range(zones)] if self._num_places > 1 else [0] * (zones + 1))
        per_hour = np.array([*terms.spot_prices_per_hour, *[terms.fallback_price_per_hour] * self._num_places])
        self._price = (per_hour / TICKS_PER_HOUR)[None, :, None]  # [1, machines, 1]
        self._slack = terms.deadline_ticks - terms.work_ticks

    def run(self) -> Costs:
        """The cost of each window. Raises: ValueError: there is less slack than a launch takes."""
        if self._slack < self._terms.launch_ticks:
            raise ValueError(f"{self._slack} ticks of slack for a launch of {self._terms.launch_ticks}; give more")
        windows, zones, ticks = self._up.shape
        lasting = np.zeros((windows, zones), dtype=int)  # ticks for which the zone will stay up
        running = self._done(windows, zones + self._num_places)
        waiting, fresh = self._done(windows, self._num_places), self._done(windows, 1)
        ring = deque([running], maxlen=self._terms.launch_ticks)  # from t + 1 on
        for tick in reversed(range(ticks)):
            lasting = np.where(self._up[:, :, tick], lasting + 1, 0)
            launches = self._launches(ring, lasting)
            waiting = np.minimum(_later(waiting), self._moved(launches))
            fresh = np.minimum(_later(fresh), launches.min(axis=1, keepdims=True))
            running = ring[0] + self._price
            running[:, :zones][lasting == 0] = np.inf
            running = np.minimum(running, waiting[:, self._place])
            ring.appendleft(running)
        cost: Costs = fresh[:, 0, 0]
        return cost

    def _done(self, windows: int, states: int) -> Costs:
        """At the deadline: all slack is used, no more and no less."""
        costs = np.full((windows, states, self._slack + 1), np.inf)
        costs[:, :, -1] = 0
        return costs

    def _launches(self, ring: deque[Costs], lasting: NDArray[np.int_]) -> Costs:
        """By place, the cheapest launch there; one that is preempted before it computes is never worth it."""
        (windows, zones), ticks = lasting.shape, self._terms.launch_ticks
        cheapest = np.full((windows, self._num_places, self._slack + 1), np.inf)
        if len(ring) < ticks:
            return cheapest
        after = ring[-1][:, :, ticks:] + ticks * self._price
        after[:, :zones][lasting < ticks] = np.inf
        for place in range(self._num_places):
            cheapest[:, place, : self._slack + 1 - ticks] = after[:, self._place == place].min(axis=1)
        return cheapest

    def _moved(self, launches: Costs) -> Costs:
        """By the place of the checkpoint, the cheapest launch anywhere."""
        if self._num_places == 1:
            return launches
        return np.stack([(launches + egress[None, :, None]).min(axis=1) for egress in self._egress], axis=1)


def _later(costs: Costs) -> Costs:
    """A tick of slack has gone by."""
    moved = np.full_like(costs, np.inf)
    moved[:, :, :-1] = costs[:, :, 1:]
    return moved
