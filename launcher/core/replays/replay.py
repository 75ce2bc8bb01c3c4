"""What a run would have cost under other policies: the same futures for each of them.

All begin at the submit without a step done. A future is a weather and how far the promised step time is off; that of
the picture and of the sentences is the one in which the first policy comes to its median cost.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist, fmean

from launcher.core.estimates.rollout import Future, Outlook, roll
from launcher.core.estimates.weather import Drawn, Record, Recorded, Weather
from launcher.core.policy.decision import Action, HandOver, Keep, Launch, Leave, Wait
from launcher.core.policy.diary import Diary
from launcher.core.policy.market import Market
from launcher.core.replays.prospect import Prospect
from launcher.core.replays.rivals import OURS, POLICIES, Policy
from launcher.core.replays.timeline import CENT, Timeline, timeline_of_future
from launcher.core.replays.traces import Trace, records_for, starts_within
from launcher.errors import InputError, Problem

NUM_FUTURES = 101  # odd: the median is one of them
SEED = 20240416
_MOST_NAMED = 4  # places in a sentence
_Z80 = 1.2815515655446004  # the normal quantile at 90 %: ±z holds 80 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Sky:
    """Of one future. Nobody reads a weather backwards, so each policy gets its own, the same one."""

    weather: Callable[[], Weather]
    factor: float = 1.0  # of the true step time to the promised one


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`names` of policies to be played beside ours; none: all that the market allows."""

    names: tuple[str, ...] = ()
    count: int = NUM_FUTURES  # of futures, where their weather is drawn
    seed: int = SEED
    trace: Trace | None = None
    starts: int = 1  # from which the trace is played


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Infinite where futures come to no end."""

    mean: float
    p10: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UsdSpread:
    mean: Decimal
    p10: Decimal
    p90: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was done, where, and why; `at_hours` since the submit."""

    at_hours: float
    what: str
    where: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One policy over all futures; of one of them its timeline and decisions."""

    policy: Policy
    cost_usd: UsdSpread
    hours: Spread
    preemptions: float  # this and the next one: means
    fallback_hours: float
    late: float  # share of futures
    timeline: Timeline
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """What has become of a run: as far as it has come, if it has not ended."""

    is_finished: bool
    is_late: bool
    cost_usd: Decimal
    hours: float
    preemptions: int
    fallback_hours: float
    timeline: Timeline
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Policies side by side; the first one is what the others are compared with."""

    name: str
    outcomes: tuple[Outcome, ...]
    num_futures: int
    weather: str  # where it comes from
    prices: str
    deadline_hours: float
    deadline_assumed: bool
    simulated: bool
    notes: tuple[str, ...] = ()
    actual: Actual | None = None

    @property
    def best(self) -> Outcome:
        """The cheapest of those that are late least often."""
        return min(self.outcomes, key=lambda found: (found.late, found.cost_usd.mean))


def of_spec(question: Question, prospect: Prospect) -> Replay:
    """Of a run that is only a plan."""
    factor80 = prospect.outlook.throughput_factor80
    return answer(
        question,
        prospect,
        skies=drawn_skies(question.count, seed=question.seed, throughput_factor80=factor80),
        weather=f"drawn from hazards by age, seed {question.seed}",
        prices="of now, as in its plan",
    )


def answer(
    question: Question,
    prospect: Prospect,
    *,
    skies: Sequence[Sky],
    weather: str,
    prices: str,
    actual: Actual | None = None,
) -> Replay:
    """`skies`, as `weather` describes them, count where the question brings no trace.

    Raises: InputError: a policy is not known or cannot be played here, or the trace speaks of other places.
    """
    market, trace = prospect.market, question.trace
    notes: tuple[str, ...] = ()
    policies = _policies(question.names, market)
    if trace is not None:
        records = _records(trace, market)
        starts = starts_within(trace, window_hours=market.deadline, count=question.starts)
        skies, weather = recorded_skies(records, starts=starts), _recorded_words(trace, starts)
        notes = tuple(_gaps(trace, records, market, starts, question.starts))
    return Replay(
        name=prospect.name,
        outcomes=replay(market, prospect.outlook, skies, policies),
        num_futures=len(skies),
        weather=weather,
        prices=prices,
        deadline_hours=market.deadline,
        deadline_assumed=prospect.deadline_assumed,
        simulated=prospect.simulated,
        notes=notes,
        actual=actual,
    )


def replay(market: Market, outlook: Outlook, skies: Sequence[Sky], policies: Sequence[Policy]) -> tuple[Outcome, ...]:
    """Every policy under every sky. Raises: ValueError: no sky, or no policy."""
    if not skies or not policies:
        raise ValueError("a replay needs a sky and a policy")
    found = [[_future(market, outlook, sky, policy) for sky in skies] for policy in policies]
    by_cost = sorted(range(len(skies)), key=lambda n: found[0][n].total_usd)
    shown = skies[by_cost[len(skies) // 2]]
    return tuple(
        _outcome(market, outlook, policy, futures, shown) for policy, futures in zip(policies, found, strict=True)
    )


def drawn_skies(count: int, *, seed: int, throughput_factor80: float) -> list[Sky]:
    """From hazards by age. Step times are off in even quantiles, which meet the weathers in disorder."""
    source = random.Random(seed)  # noqa: S311  # a simulation, not a secret
    factors = _factors(count, throughput_factor80)
    source.shuffle(factors)
    return [Sky(weather=_drawn(source.getrandbits(32)), factor=factor) for factor in factors]


def recorded_skies(records: Mapping[str, Record], *, starts: Sequence[float]) -> list[Sky]:
    """As the record says from each start on, at the promised step time."""
    return [Sky(weather=_recorded(records, since)) for since in starts]


def explained(diary: Diary) -> tuple[Decision, ...]:
    """Decisions as sentences. Waits, with what was asked in vain between them, are one."""
    refused = {(at, place.key) for at, place in diary.refusals}
    found: list[Decision] = []
    vain: list[tuple[float, Action]] = []
    for at, action in diary.decisions:
        is_refused = isinstance(action, Launch | HandOver) and (at, action.place.key) in refused
        if is_refused or isinstance(action, Wait):
            vain.append((at, action))
            continue
        found += [*_in_vain(vain), _said(at, action)]
        vain = []
    return (*found, *_in_vain(vain))


def _in_vain(decisions: Sequence[tuple[float, Action]]) -> list[Decision]:
    if not decisions:
        return []
    asked = [action.place for _, action in decisions if isinstance(action, Launch | HandOver)]
    waits = [action.why for _, action in decisions if isinstance(action, Wait)]
    places = list(dict.fromkeys(place.option.placement.offer.where for place in asked))
    why = waits[-1] if waits else _said(*decisions[-1]).why
    return [
        Decision(
            at_hours=decisions[0][0],
            what="wait" if waits else "ask",
            where=", ".join(places),
            why=f"{why}; refused {len(asked)} ×" if asked else why,
        )
    ]


def _said(at: float, action: Action) -> Decision:
    match action:
        case Launch(place=place, why=why):
            return Decision(at_hours=at, what="launch", where=place.option.placement.offer.where, why=why)
        case HandOver(place=place, why=why, overlaps=overlaps):
            what = "hand over, with overlap" if overlaps else "hand over"
            return Decision(at_hours=at, what=what, where=place.option.placement.offer.where, why=why)
        case Leave(why=why):
            return Decision(at_hours=at, what="release", where="", why=why)
        case Wait(why=why):
            return Decision(at_hours=at, what="wait", where="", why=why)
        case Keep():
            return Decision(at_hours=at, what="go on", where="", why="")


def _policies(names: Sequence[str], market: Market) -> list[Policy]:
    """Ours is always among them, and the first."""
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        known = ", ".join(POLICIES)
        raise InputError([Problem("L161", f"no policy {unknown[0]}", "--policy", f"write one of {known}")])
    unfit = [name for name in names if not POLICIES[name].fits(market)]
    if unfit:
        lacks = "spot" if market.fallback else "on_demand, or a reservation that lasts"
        message = f"{unfit[0]} cannot be played where no place is {lacks}"
        raise InputError([Problem("L162", message, "--policy", "leave it out, or name that capacity in mode")])
    return [p for p in POLICIES.values() if p.fits(market) and (not names or p.name in names or p.name == OURS)]


def _records(trace: Trace, market: Market) -> dict[str, Record]:
    records = records_for(trace, market.spot)
    if not records:
        spot = [place.key for place in market.spot if place.is_spot]
        fix = f"name a key, a zone, a region or a pattern, e.g. {spot[0]}" if spot else "write spot in mode"
        found = ", ".join([*trace.records][:3])
        raise InputError([Problem("L163", f"speaks of {found}, which is no spot place of the plan", trace.name, fix)])
    return records


def _recorded_words(trace: Trace, starts: Sequence[float]) -> str:
    if len(starts) == 1:
        return f"as recorded in {trace.name}, from its first hour on"
    return f"as recorded in {trace.name}, from {len(starts)} starts {starts[1]:.1f} h apart"


def _gaps(
    trace: Trace, records: Mapping[str, Record], market: Market, starts: Sequence[float], asked: int
) -> Iterator[str]:
    silent = [p.option.placement.offer.where for p in market.spot if p.is_spot and p.key not in records]
    if silent:
        named = ", ".join(silent[:_MOST_NAMED]) + (" …" if len(silent) > _MOST_NAMED else "")
        yield f"the record is silent on {len(silent)} spot places, which never have capacity here: {named}"
    if trace.hours < market.deadline:
        yield f"the record has {trace.hours:g} h, the deadline is at {market.deadline:g} h: then it begins again"
    if len(starts) < asked:
        yield f"one start instead of {asked}: no other leaves {market.deadline:g} h of the record"


def _future(market: Market, outlook: Outlook, sky: Sky, policy: Policy, diary: Diary | None = None) -> Future:
    return roll(market, sky.weather(), outlook, factor=sky.factor, decide=policy.decide, diary=diary)


def _outcome(market: Market, outlook: Outlook, policy: Policy, futures: Sequence[Future], shown: Sky) -> Outcome:
    costs, lengths = sorted(f.total_usd for f in futures), sorted(f.hours for f in futures)
    diary = Diary()
    again = _future(market, outlook, shown, policy, diary)
    title = policy.name
    return Outcome(
        policy=policy,
        cost_usd=UsdSpread(
            mean=_cents(fmean(costs)), p10=_cents(_quantile(costs, 0.1)), p90=_cents(_quantile(costs, 0.9))
        ),
        hours=Spread(mean=fmean(lengths), p10=_quantile(lengths, 0.1), p90=_quantile(lengths, 0.9)),
        preemptions=fmean(f.preemptions for f in futures),
        fallback_hours=fmean(f.fallback_hours for f in futures),
        late=fmean(f.hours > market.deadline for f in futures),
        timeline=timeline_of_future(title, again, diary, deadline_hours=market.deadline),
        decisions=explained(diary),
    )


def _factors(count: int, factor80: float) -> list[float]:
    spread, normal = math.log(factor80) / _Z80, NormalDist()
    return [math.exp(spread * normal.inv_cdf((n + 0.5) / count)) for n in range(count)]


def _drawn(seed: int) -> Callable[[], Weather]:
    return lambda: Drawn(seed)


def _recorded(records: Mapping[str, Record], since: float) -> Callable[[], Weather]:
    return lambda: Recorded(records, since=since)


def _cents(usd: float) -> Decimal:
    return Decimal(str(usd)).quantize(CENT)


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
