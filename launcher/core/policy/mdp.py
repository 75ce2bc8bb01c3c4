"""The cheapest way through a spot market that comes and goes, before a deadline: a Markov decision process, solved.

A state is (work left p, slack s, market z, machine), in ticks; time to the deadline is p + s. The market is what one
sees of the cheapest spot: `up` by its age or `down` by its age, in the buckets of `EDGES`. Dearer spot stands on rungs
between it and the fallback: had with a chance when asked for, taken at a constant rate. The fallback's price is 1.

    fallback trains     F[p,s,z] = min( 1 + E F[p-1,s,z'],  I[p,s,z],  handover )
    rung trains         R[p,s,z] = min( k + (1-f)·E R[p-1,s,z'] + f·E I[p-1,s,z'],  I[p,s,z],  handover )
    spot trains         S[p,s,b] = k + (1-f)·S[p-1,s,b'] + f·E I[p-1,s,landing]
    nothing runs        B[p,s,z] = min( E I[p,s-1,z'],  m + E F[p,s-m,z'],  start on spot )
                        I = for each rung, the dearest first: where a start there costs less than I, it with its chance
    start on spot       m ticks are billed, or those until it is lost; then S[p,s-m,b']
    handover            both are billed for m ticks, the dearer one trains on but for the pause at the end

Every choice takes at least a tick of p or s, so all states with the same p + s are solved at once, from 0 upwards.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from launcher.core.hazards import Hazards, cumulated

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Values = NDArray[numpy.float32]
    Choices = NDArray[numpy.int8]

EDGES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)  # hours
_HAIR = 1e-5  # ticks of the fallback: of two ways that cost the same, the one that ends earlier is better
_NEVER = 1e6  # ticks of the fallback: what a state costs from which the deadline is lost

Idle = Literal["wait", "fallback", "spot"]
OnMachine = Literal["stay", "leave", "hand_over"]
_IDLE: tuple[Idle, ...] = ("fallback", "spot", "wait")  # of ways that cost the same, the first
_ON_MACHINE: tuple[OnMachine, ...] = ("stay", "leave", "hand_over")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """Dearer spot: its price, the chance that it is to be had when it is asked for, and how often it is taken."""

    price: float
    chance: float
    preemptions_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """What the market offers: `price` is that of the cheapest spot; a change of machine takes `changeover_hours`.

    `lives` and `returns` are hazards of capacity that is there and of outages. `elsewhere` is the chance that another
    place of the same price has capacity when one loses it. `rungs` rise in price. With a handover training stands
    still for `pause_hours`; `None`: there is none. An hour in which nothing runs counts for `wait_price`.
    """

    price: float
    changeover_hours: float
    lives: Hazards
    returns: Hazards
    elsewhere: float = 0.0
    rungs: tuple[Rung, ...] = ()
    pause_hours: float | None = None
    wait_price: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is seen of the cheapest spot: whether it is there, and for how long that has been so."""

    is_up: bool
    age_hours: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """The solution: choices for every state, and what an hour of slack is worth."""

    tick_hours: float
    idle_choices: Choices  # [work ticks, slack ticks, market]
    rungs_asked: Choices  # [rung, work ticks, slack ticks, market]: 1 where a start there is worth it
    stay_choices: Choices  # [machine, work ticks, slack ticks, market]: of each rung, and of the fallback
    idle_costs: Values  # [work ticks, slack ticks], in ticks of the fallback, where an outage has just begun

    def idle(self, *, work_hours: float, slack_hours: float, sight: Sight) -> Idle:
        """What to do where nothing runs, and no rung that `asks` names has capacity."""
        return _IDLE[int(self.idle_choices[self._at(work_hours, slack_hours, sight)])]

    def asks(self, *, work_hours: float, slack_hours: float, sight: Sight) -> tuple[int, ...]:
        """Rungs to be asked for a machine where nothing runs, in this order."""
        asked = self.rungs_asked[(slice(None), *self._at(work_hours, slack_hours, sight))]
        return tuple(rung for rung, is_asked in enumerate(asked) if is_asked)

    def on_rung(self, rung: int, *, work_hours: float, slack_hours: float, sight: Sight) -> OnMachine:
        """What to do while a rung's machine trains; after `leave`, as where nothing runs."""
        return _ON_MACHINE[int(self.stay_choices[(rung, *self._at(work_hours, slack_hours, sight))])]

    def on_fallback(self, *, work_hours: float, slack_hours: float, sight: Sight) -> OnMachine:
        return self.on_rung(-1, work_hours=work_hours, slack_hours=slack_hours, sight=sight)

    def slack_price(self, *, work_hours: float, slack_hours: float) -> float:
        """What an hour of slack is worth during an outage, in units of the fallback's price; at most 1."""
        work, slack = self._ticks(work_hours, slack_hours)
        if slack == 0:
            return 1.0
        less, more = self.idle_costs[work, slack - 1], self.idle_costs[work, slack]
        return float(min(1.0, max(0.0, less - more)))

    def _at(self, work_hours: float, slack_hours: float, sight: Sight) -> tuple[int, int, int]:
        market = bisect_right(EDGES, max(0.0, sight.age_hours)) - 1
        return (*self._ticks(work_hours, slack_hours), market if sight.is_up else len(EDGES) + market)

    def _ticks(self, work_hours: float, slack_hours: float) -> tuple[int, int]:
        """Cautious: work is rounded up, slack down."""
        work, slack = _up(work_hours / self.tick_hours), _down(slack_hours / self.tick_hours)
        return min(work, len(self.idle_costs) - 1), min(slack, self.idle_costs.shape[1] - 1)


def _up(ticks: float) -> int:
    return max(0, math.ceil(ticks - 1e-9))


def _down(ticks: float) -> int:
    return max(0, math.floor(ticks + 1e-9))


def solve(game: Game, *, work_hours: float, slack_hours: float, tick_hours: float) -> Table:
    """For every amount of work up to `work_hours`, and of slack up to `slack_hours`."""
    import numpy as np

    market = _market(game, tick_hours)
    num_work, num_slack = _up(work_hours / tick_hours), _down(slack_hours / tick_hours)
    shape, num_rungs = (num_work + 1, num_slack + 1), len(game.rungs)
    idle_choices = np.zeros((*shape, 2 * len(EDGES)), np.int8)
    rungs_asked = np.zeros((num_rungs, *idle_choices.shape), np.int8)
    stay_choices = np.zeros((num_rungs + 1, *idle_choices.shape), np.int8)
    idle_costs = np.zeros(shape, np.float32)
    slack = np.arange(num_slack + 1)
    past: deque[_Front] = deque([_at_the_deadline(num_slack, num_rungs)], maxlen=market.changeover + 1)
    for left in range(1, num_work + num_slack + 1):
        work = left - slack
        front = _solved(market, past, is_done=work <= 0)
        past.append(front)
        known = slack[(work >= 0) & (work <= num_work)]
        idle_choices[left - known, known] = front.idle_choices[known]
        rungs_asked[:, left - known, known] = front.rungs_asked[:, known]
        stay_choices[:, left - known, known] = front.stay_choices[:, known]
        idle_costs[left - known, known] = front.idle[known, len(EDGES)]
    return Table(
        tick_hours=tick_hours,
        idle_choices=idle_choices,
        rungs_asked=rungs_asked,
        stay_choices=stay_choices,
        idle_costs=idle_costs,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Market:
    """A tick of the market, as matrices over its states (of columns, so that values are multiplied from the left)."""

    price: float
    wait_price: float
    changeover: int
    pause: int | None
    rungs: tuple[Rung, ...]
    prices: Values  # [machine, 1, 1]: of each rung, and of the fallback
    survives: Values  # [machine, 1, 1]: a tick
    moves: Values  # [2·buckets, 2·buckets]: as somebody sees it who has no machine there
    moves_of_changeover: Values
    survivors: Values  # [j, buckets, buckets]: of spot, alive j ticks later, by its bucket then
    deaths: Values  # [j, buckets]: in the tick after j others
    landing: Values  # [2·buckets]: what one sees when spot is lost


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Front:
    """All states with as many ticks to the deadline: costs and choices."""

    idle: Values  # [slack, 2·buckets]
    machines: Values  # [machine, slack, 2·buckets]: each rung, and the fallback
    spot: Values  # [slack, buckets]
    idle_choices: Choices
    rungs_asked: Choices
    stay_choices: Choices


def _at_the_deadline(num_slack: int, num_rungs: int) -> _Front:
    import numpy as np

    def costs(*shape: int) -> Values:
        found = np.full(shape, _NEVER, np.float32)
        found[..., 0, :] = 0.0  # no work, no slack
        return found

    size = (num_slack + 1, 2 * len(EDGES))
    return _Front(
        idle=costs(*size),
        machines=costs(num_rungs + 1, *size),
        spot=costs(num_slack + 1, len(EDGES)),
        idle_choices=np.zeros(size, np.int8),
        rungs_asked=np.zeros((num_rungs, *size), np.int8),
        stay_choices=np.zeros((num_rungs + 1, *size), np.int8),
    )


def _solved(market: _Market, past: deque[_Front], *, is_done: NDArray[numpy.bool_]) -> _Front:
    import numpy as np

    before, done = past[-1], is_done[:, None]
    wait = market.wait_price + _later(before.idle @ market.moves, 1)
    if len(past) >= market.changeover:
        starts, spot_start = _start(market, past), _only_up(_start_on_spot(market, past))
    else:
        starts, spot_start = np.full_like(before.machines, _NEVER), np.full_like(before.idle, _NEVER)
    least, idle_choices = _least(starts[-1], spot_start, wait)
    idle, asked = _ask_rungs(market, least, starts)
    if market.pause and len(past) >= market.changeover:
        over = _only_up(_handover(market, past))
    else:
        over = np.full_like(before.machines, _NEVER)
    machines, stays = _least(_train(market, before), np.broadcast_to(idle, over.shape), over)
    spot = market.price + before.spot @ market.survivors[1] + np.outer(before.idle @ market.landing, market.deaths[0])
    return _Front(
        idle=np.where(done, 0.0, idle).astype(np.float32),
        machines=np.where(done, 0.0, machines).astype(np.float32),
        spot=np.where(done, 0.0, spot).astype(np.float32),
        idle_choices=idle_choices,
        rungs_asked=asked,
        stay_choices=stays,
    )


def _least(first: Values, second: Values, third: Values) -> tuple[Values, Choices]:
    """The least of three, and which it is; of equal ones, the first."""
    import numpy as np

    least = np.minimum(first, second)
    choices: Choices = (second < first).astype(np.int8)
    choices[third < least] = 2
    return np.minimum(least, third), choices


def _ask_rungs(market: _Market, idle: Values, starts: Values) -> tuple[Values, Choices]:
    """What nothing running costs when rungs may be asked first, and where each is worth it."""
    import numpy as np

    asked = np.zeros((len(market.rungs), *idle.shape), np.int8)
    for number, rung in reversed(list(enumerate(market.rungs))):
        asked[number] = starts[number] < idle - _HAIR
        with_it = rung.chance * starts[number] + (1.0 - rung.chance) * idle
        idle = np.where(asked[number], with_it, idle)
    return idle, asked


def _train(market: _Market, before: _Front) -> Values:
    """[machine, slack, 2·buckets]: a tick on each machine; a rung is taken at its end, or stays."""
    stays, taken = before.machines @ market.moves, before.idle @ market.moves
    return market.prices + market.survives * stays + (1.0 - market.survives) * taken


def _start(market: _Market, past: deque[_Front]) -> Values:
    """A rung that is taken meanwhile is billed to the end of the changeover: a hair dearer than it would be."""
    count, then = market.changeover, past[-market.changeover]
    survives = market.survives**count
    ready, taken = then.machines @ market.moves_of_changeover, then.idle @ market.moves_of_changeover
    return _later(market.prices * count + survives * ready + (1.0 - survives) * taken, count)


def _start_on_spot(market: _Market, past: deque[_Front]) -> Values:
    """[slack, buckets]: it is billed until it is lost, and trains if it outlives the changeover."""
    count = market.changeover
    lost = sum(_later(_outer(past[-1 - j].idle @ market.landing, market.deaths[j]), j + 1) for j in range(count))
    billed = market.price * market.survivors[:count].sum(axis=(0, 1))
    return lost + billed + _later(past[-count].spot @ market.survivors[count], count)  # type: ignore[no-any-return]  # numpy's sum


def _handover(market: _Market, past: deque[_Front]) -> Values:
    """[machine, slack, buckets]: it trains until spot is ready, and goes on if spot is lost before.

    That a rung may itself be taken in these ticks is left out.
    """
    assert market.pause is not None
    count = market.changeover
    lost = sum(_outer(past[-1 - j].machines @ market.landing, market.deaths[j]) for j in range(count))
    billed = (market.prices + market.price) * market.survivors[:count].sum(axis=(0, 1))
    return lost + billed + _later(past[-count].spot @ market.survivors[count], market.pause)  # type: ignore[no-any-return]  # numpy's sum


def _outer(costs: Values, chances: Values) -> Values:
    return costs[..., None] * chances


def _later(costs: Values, ticks: int) -> Values:
    """[…, slack, market]: of states that have `ticks` less slack; without them the deadline is lost."""
    import numpy as np

    found = np.full_like(costs, _NEVER)
    found[..., ticks:, :] = costs[..., : max(0, costs.shape[-2] - ticks), :]
    return found


def _only_up(costs: Values) -> Values:
    """By all states of the market; while spot is down it cannot be had."""
    import numpy as np

    return np.concatenate([costs, np.full_like(costs, _NEVER)], axis=-1)


def _market(game: Game, tick_hours: float) -> _Market:
    import numpy as np

    num, changeover = len(EDGES), max(1, round(game.changeover_hours / tick_hours))
    lost, older = _per_tick(game.lives, tick_hours)
    found, later = _per_tick(game.returns, tick_hours)
    ages = _ageing(older)
    survives = ages * (1.0 - lost)[None, :]
    landing = np.zeros(2 * num)
    landing[0], landing[num] = game.elsewhere, 1.0 - game.elsewhere
    moves = np.zeros((2 * num, 2 * num))
    moves[:num, :num] = survives
    moves[:, :num] += np.outer(landing, lost)
    moves[num:, num:] = _ageing(later) * (1.0 - found)[None, :]
    moves[0, num:] += found
    alive = [np.linalg.matrix_power(survives, j) for j in range(changeover + 1)]
    return _Market(
        price=game.price,
        wait_price=game.wait_price + _HAIR,
        changeover=changeover,
        pause=None if game.pause_hours is None else min(changeover, max(1, round(game.pause_hours / tick_hours))),
        rungs=game.rungs,
        prices=_column([*(rung.price for rung in game.rungs), 1.0]),
        survives=_column([*(math.exp(-rung.preemptions_per_hour * tick_hours) for rung in game.rungs), 1.0]),
        moves=moves.astype(np.float32),
        moves_of_changeover=np.linalg.matrix_power(moves, changeover).astype(np.float32),
        survivors=np.array(alive, np.float32),
        deaths=np.array([lost @ each for each in alive[:changeover]], np.float32),
        landing=landing.astype(np.float32),
    )


def _column(values: Sequence[float]) -> Values:
    """By machine."""
    import numpy as np

    return np.array(values, np.float32)[:, None, None]


def _per_tick(hazards: Hazards, tick_hours: float) -> tuple[NDArray[numpy.float64], NDArray[numpy.float64]]:
    """By bucket: the chance of the event in a tick, and of ageing into the next bucket."""
    import numpy as np

    spans = zip(EDGES, (*EDGES[1:], EDGES[-1] + 1.0), strict=True)
    rates = np.array([(cumulated(hazards, end) - cumulated(hazards, begin)) / (end - begin) for begin, end in spans])
    ageing = np.minimum(1.0, tick_hours / np.diff(EDGES))
    return -np.expm1(-rates * tick_hours), np.append(ageing, 0.0)


def _ageing(chances: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """[to, from]"""
    import numpy as np

    return np.diag(1.0 - chances) + np.diag(chances[:-1], k=-1)
