"""Runs under `decide` in worlds made to break its two guards: never late, and never much dearer than the fallback.

    python -m benchmarks policy fuzz [--cases 500000] [--processes 2] [--seed N] [--tell CASE]

A case is drawn from its number alone. What is claimed of each:

    time     where the fallback alone would have met the deadline: the last save is durable then, whatever spot does,
             if capacity that stays keeps its promise, and what may be spent is the money's bound and two closings more
    money    spent ≤ `Market.most_usd`, 1.05 · the fallback alone for all but short runs; where the fallback keeps one
             waiting, or nobody may wait, or prices change, the dearest capacity that stays at the dearest prices is
             what counts, and a close: a deadline is met with that if need be. A second machine that hangs costs until
             it is given up
    left     what may be spent is overspent by the closing of the run's machines at most
    sense    it ends, no `until` lies in the past, nobody is asked twice at a look; told again it is the same story
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import lru_cache
from itertools import starmap
from multiprocessing import get_context
from typing import Literal, NamedTuple

from benchmarks.policy.natures import Case, Habit, Nature
from benchmarks.policy.world import World
from launcher.core.offers import Capacity, Offer, Placement, Price
from launcher.core.policy.guide import Rule, Terms
from launcher.core.policy.market import PAUSE_HOURS, Market, Place
from launcher.core.prices.options import Option

CASES_A_MARKET = 500  # that share a market, and so the solution of its guide
CASES_A_TASK = 5_000
SHOWN = 10  # breaks of each claim, the worst first
HAIR = 1e-5  # hours, dollars
SPOT_NATURES = tuple(n for n in Nature if n not in (Nature.DELAYING, Nature.LATE))
FIRM_NATURES = (Nature.STEADY, Nature.DELAYING, Nature.LATE)

Claim = Literal["time", "money", "left", "sense"]


class Break(NamedTuple):
    """A claim that did not hold."""

    case: int
    claim: Claim
    over: float  # hours, or dollars, more than the bound
    told: str


class Tally(NamedTuple):
    made: Counter[Claim]  # how often each claim could be made
    breaks: list[Break]
    seconds: float  # of a core


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks policy fuzz")
    parser.add_argument("--cases", type=int, default=500_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="the first case; the others follow")
    parser.add_argument("--tell", type=int, metavar="CASE", help="only tell the story of one")
    asked = parser.parse_args(options)
    if asked.tell is not None:
        tell(asked.tell)
    else:
        if report(first=asked.seed, count=asked.cases, processes=asked.processes):
            raise SystemExit(1)


def fuzz(*, first: int, count: int, processes: int) -> Tally:
    """All cases from the first one on."""
    ends = range(first, first + count, CASES_A_TASK)
    tasks = [(begin, min(begin + CASES_A_TASK, first + count)) for begin in ends]
    if processes == 1:
        return _sum(starmap(_tally, tasks))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return _sum(pool.map(_tally, *zip(*tasks, strict=True)))


def report(*, first: int, count: int, processes: int) -> int:
    """How many claims were broken."""
    made, breaks, seconds = fuzz(first=first, count=count, processes=processes)
    claims = ", ".join(f"{claim} {times:,}" for claim, times in sorted(made.items()))
    print(f"{count:,} cases from {first:,} on, {count / seconds:,.0f} a second of a core")
    print(f"claims made: {claims}; broken: {len(breaks):,}")
    for claim in sorted(made):
        worst = sorted((one for one in breaks if one.claim == claim), key=lambda one: -one.over)
        for one in worst[:SHOWN]:
            print(f"  {claim}: case {one.case}: {one.told}")
        if len(worst) > SHOWN:
            print(f"  {claim}: and {len(worst) - SHOWN:,} more")
    return len(breaks)


def tell(number: int) -> None:
    """The whole story of a case: its places, what was decided, and how the claims fared."""
    case = a_case(number)
    market, looks = case.market, case.poll_hours or "at events"
    print(
        f"deadline {market.deadline:.4f} h, reserve {market.reserve_hours:.4f} h, looks {looks}, left ${case.left:.2f}"
    )
    for place in market.places:
        hours = f"a step {place.step_hours:.4f} h, set-up {place.setup_hours:.4f} h, saves {place.interval_hours:.4f} h"
        print(f"{place.key}: ${place.usd_per_hour:.2f}/h, {hours} apart, {case.habits[place.key]}")
    print(*World(case, is_told=True).story().log, sep="\n")
    claims, breaks = check(number)
    print(f"claims: {', '.join(claims)}; broken: {', '.join(f'{one.claim}: {one.told}' for one in breaks) or 'none'}")


def check(number: int) -> tuple[list[Claim], list[Break]]:
    """The claims that are made of a case, and those that do not hold."""
    case = a_case(number)
    story = World(case).story()
    over: dict[Claim, float] = {
        "sense": 0.0 if story.end in ("finished", "broke", "unfinished") else math.inf,
        "left": story.spent - story.closing_usd - case.left,
    }
    if number % 50 == 0 and World(case).story() != story:
        over["sense"] = math.inf
    if is_feasible(case):
        most = most_usd(case)
        over["money"] = story.spent - story.closing_usd - most
        if case.left >= most + kept_usd(case):
            over["time"] = story.ended_at - case.market.deadline
    told = f"{story.end} at {story.ended_at:.4f} h"
    breaks = [
        Break(number, claim, by, f"{told}, {by:.4f} {'h' if claim == 'time' else 'USD'} over")
        for claim, by in over.items()
        if by > HAIR
    ]
    return list(over), breaks


def is_feasible(case: Case) -> bool:
    """Whether the fallback alone would have met the deadline, with the reserve to spare."""
    market, place = case.market, case.market.fallback
    if place is None or place.opens_at > 0:
        return False
    spare = min(market.deadline, place.ends_at) - place.finish_hours(market.steps)
    return spare >= market.reserve_hours + market.poll_hours


def most_usd(case: Case) -> float:
    """By the fallback alone, or the dearest that may have to stand in for it."""
    is_steady = all(case.habits[p.key].nature is Nature.STEADY for p in case.market.firm)
    if is_steady and not case.market_later and not case.market.is_urgent:
        return case.market.most_usd + hung_usd(case)
    bounds, markets = [], (case.market, case.market_later or case.market)
    for market in markets:
        costs = [cost for p in market.firm if (cost := p.usd_to_finish(market.steps)) < math.inf]
        alone = market.fallback.usd_to_finish(market.steps) if market.fallback else 0.0
        bounds.append(market.most_usd + market.max_cost_ratio * (max(costs) - alone))
    return max(bounds) + hung_usd(case) + max(p.closing_hours * p.usd_per_hour for p in markets[-1].places)


def hung_usd(case: Case) -> float:
    """Of a second machine that never gets ready beside a first that works: decisions do not see it."""
    if not case.market.hands_over or all(habit.nature is not Nature.HANGING for habit in case.habits.values()):
        return 0.0
    markets = (case.market, case.market_later or case.market)
    hung = [p for m in markets for p in m.places if case.habits[p.key].nature is Nature.HANGING]
    return case.give_up_hours * max(p.usd_per_hour for p in hung)


def kept_usd(case: Case) -> float:
    """What is kept back for the end of a machine, and of one beside it."""
    markets = [case.market, *([case.market_later] if case.market_later else [])]
    return 2 * max(place.closing_hours * place.usd_per_hour for market in markets for place in market.places)


def _tally(first: int, end: int) -> Tally:
    began = time.process_time()
    made: Counter[Claim] = Counter()
    breaks: list[Break] = []
    for number in range(first, end):
        claims, broken = check(number)
        made.update(claims)
        breaks += broken
    return Tally(made, breaks, time.process_time() - began)


def _sum(tallies: Iterator[Tally]) -> Tally:
    made: Counter[Claim] = Counter()
    breaks: list[Break] = []
    seconds = 0.0
    for tally in tallies:
        made.update(tally.made)
        breaks += tally.breaks
        seconds += tally.seconds
    return Tally(made, breaks, seconds)


def a_case(number: int) -> Case:
    """The same one for the same number."""
    market, market_later, times = _markets(number // CASES_A_MARKET)
    rng = random.Random(number)
    draw = rng.random
    deadline = market.deadline
    changes = draw() < 0.2
    return Case(
        market=market,
        habits={p.key: _a_habit(rng, p, deadline) for p in market.places},
        poll_hours=market.poll_hours if draw() < 0.5 else None,
        asks_on=draw() < 0.5,
        release_hours=times.release_hours,
        delay_hours=times.delay_hours,
        retry_hours=rng.choice((0.1, 0.25)),
        give_up_hours=rng.choice((0.2, 0.5, 1.0)),
        left=math.inf if draw() < 0.6 or not 0 < market.most_usd < math.inf else (0.3 + 1.5 * draw()) * market.most_usd,
        market_later=market_later if changes else None,
        later_at=draw() * deadline if changes else math.inf,
    )


class _Times(NamedTuple):
    step_hours: float
    release_hours: float
    delay_hours: float


def _a_habit(rng: random.Random, place: Place, deadline: float) -> Habit:
    draw = rng.random
    if not place.is_spot:
        return Habit(FIRM_NATURES[int(draw() * len(FIRM_NATURES))])
    nature = SPOT_NATURES[int(draw() * len(SPOT_NATURES))]
    match nature:
        case Nature.FLAPPING:
            return Habit(nature, hours=0.05 * 100 ** draw(), share=0.1 + 0.8 * draw(), phase=10 * draw())
        case Nature.ENDING:
            return Habit(nature, hours=draw() * deadline)
        case Nature.AT_START:
            return Habit(nature, hours=(int(draw() * 3) - 1) * place.step_hours)
        case _:
            return Habit(nature)


@lru_cache(maxsize=4)
def _markets(number: int) -> tuple[Market, Market, _Times]:
    """A market, and the same one at other prices."""
    rng = random.Random(f"market {number}")
    draw = rng.random
    poll, step = rng.choice((0.05, 0.1, 0.2)), 0.002 * 10 ** draw()
    times = _Times(step_hours=step, release_hours=0.01, delay_hours=rng.choice((0.0, 0.2, 0.5, 1.0)))
    plain = _a_place(rng, times, poll)
    steps = math.ceil((1.0 + 5.0 * draw() ** 2) / step)
    places = [*_spot(rng, plain), *_firm(rng, plain, steps)] or [plain]
    alone = min((p.finish_hours(steps) for p in places if not p.is_spot), default=2 * steps * step)
    reserve = poll + times.release_hours + times.delay_hours
    slack = rng.choice((0.0, 0.1 * draw(), 0.5 * draw(), 1.5 * draw()))
    market = Market(
        places=tuple(places),
        steps=steps,
        deadline=alone + reserve + poll + slack * steps * step + 1e-6,
        reserve_hours=reserve,
        poll_hours=poll,
        is_urgent=draw() < 0.15,
        has_feed=draw() < 0.4,
        hands_over=draw() < 0.6,
        spot_first=draw() < 0.9,
        moves={("h0", "h1"): 0.05, ("h1", "h0"): 0.05},
    )
    factor, which = rng.choice((3.0, 3.0, 1 / 3)), rng.choice(("s", "od", "s0", ""))
    later = replace(market, places=tuple(_priced(p, factor) if p.key.startswith(which) else p for p in places))
    if number % 3 == 0:
        for each in (market, later):
            vars(each)["guide"] = _rule(each)
    return market, later, times


def _rule(market: Market) -> Rule:
    """As where numpy is absent."""
    pause = PAUSE_HOURS if market.hands_over else None
    terms = Terms(
        prices=(), sizes=(), changeover_hours=market.changeover_hours, pause_hours=pause, has_feed=market.has_feed
    )
    return Rule(changeover_hours=market.changeover_hours, num_rungs=max(0, len(market.tiers) - 1), terms=terms)


def _a_place(rng: random.Random, times: _Times, poll: float) -> Place:
    """On demand; the others are like it but for what they name."""
    draw = rng.random
    durable = 0.002 + 0.05 * draw() ** 2
    return Place(
        option=_OPTION,
        key="od",
        domain="r0",
        is_spot=False,
        usd_per_hour=10.0,
        step_hours=times.step_hours,
        interval_hours=0.05 + 0.5 * draw() ** 2,
        setup_hours=0.03 + 0.4 * draw() ** 2,
        durable_hours=durable,
        closing_hours=poll + times.step_hours + durable + poll + times.release_hours,
        arrival_usd=rng.choice((0.0, 0.1)),
        home="h0",
        scale=0.0,
        opens_at=0.0,
        closes_at=math.inf,
        lease_hours=math.inf,
    )


def _spot(rng: random.Random, plain: Place) -> list[Place]:
    draw = rng.random
    cheapest = plain.usd_per_hour * (0.1 + 0.8 * draw())
    return [
        replace(
            plain,
            key=f"s{number}",
            domain=rng.choice(("r0", "r1")),
            is_spot=True,
            usd_per_hour=cheapest * rng.choice((1.0, 1.05, 1.3, 2.0)),
            step_hours=plain.step_hours * rng.choice((1.0, 1.0, 1.0, 0.6, 1.5)),
            setup_hours=plain.setup_hours * rng.choice((1.0, 1.0, 0.5, 2.0)),
            home=rng.choice(("h0", "h1")),
            scale=rng.choice((0.3, 1.0, 3.0)),
        )
        for number in range(rng.choice((0, 1, 1, 2, 3, 5)))
    ]


def _firm(rng: random.Random, plain: Place, steps: int) -> list[Place]:
    """On demand; at times of another kind too, and capacity that is reserved for a while."""
    draw = rng.random
    if draw() < 0.03:
        return []
    found = [plain]
    if draw() < 0.3:
        price, pace = 10.0 * (0.5 + 1.5 * draw()), plain.step_hours * (0.6 + 0.8 * draw())
        found.append(replace(plain, key="od2", domain="r1", usd_per_hour=price, step_hours=pace, home="h1"))
    if draw() < 0.25:
        work = steps * plain.step_hours
        opens_at = rng.choice((0.0, 0.0, draw() * work))
        closes_at = rng.choice((math.inf, opens_at + work * 2 * draw()))
        lease = rng.choice((math.inf, work * (0.3 + draw())))
        price = rng.choice((0.0, 3.0, 9.0))
        found.append(
            replace(plain, key="held", usd_per_hour=price, opens_at=opens_at, closes_at=closes_at, lease_hours=lease)
        )
    return found


def _priced(place: Place, factor: float) -> Place:
    return replace(place, usd_per_hour=place.usd_per_hour * factor)


def _an_option() -> Option:
    """Decisions ask places, not options; all have the same one."""
    offer = Offer(
        provider="adversary",
        region="-",
        zone=None,
        instance_type="-",
        gpu="-",
        count=1,
        capacity=Capacity.ON_DEMAND,
        list_usd_per_hour=Decimal(10),
        as_of=date(2026, 1, 5),
        source="adversary",
    )
    usd = Decimal(10)
    price = Price(list_usd_per_hour=usd, usd_per_hour=usd, marginal_usd_per_hour=usd, basis="adversary")
    return Option(
        placement=Placement(offer=offer, nodes=1, price=price),
        step_seconds=1.0,
        setup_seconds=1.0,
        save_seconds=1.0,
        durable_seconds=1.0,
        preemptions_per_hour=0.0,
    )


_OPTION = _an_option()
