"""Which places a run can go to, what each would cost, and in which order to climb from spot to certainty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal

from launcher.core.estimates.assumptions import assumptions
from launcher.core.estimates.estimate import CENT, Estimate, estimate
from launcher.core.estimates.rollout import Outlook
from launcher.core.estimates.saving import (
    checkpoint_gb,
    storage_usd_per_gb_month,
)
from launcher.core.estimates.survey import Book, Candidate, limit_in_words, survey
from launcher.core.estimates.workload import Measured
from launcher.core.offers import Capacity, Offer, Refusal
from launcher.core.policy.market import Market, Place, market_of
from launcher.core.prices.options import Option, Rules, closing_seconds
from launcher.core.prices.pricing import LOCAL, Terms
from launcher.core.prices.traffic import Charge, move_charge
from launcher.core.spec import RunSpec
from launcher.core.unknown import Unknown

UNASKED_EGRESS_USD = Decimal(25)  # as much as --yes serves without asking
UNASKED_EGRESS_SHARE = Decimal("0.2")  # of the whole: more of it than that is a decision of its own
NUM_SPOT = 5  # spot places whose estimates are worked out
NOISE = Decimal("0.25")  # of a range: medians of a hundred futures differ by as much by luck alone
LONGER_CHASE = 1.3  # times the fallback alone, where the spec's guard of the money costs more than it saves
WORTH_SAYING = Decimal("0.9")  # of the high end of the range: less of it for a longer chase is said
WAITS_FOR_SPOT = 4.0  # without a deadline: this many fallback delays on top of twice the work


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step of the ladder of capacity, by its best estimate."""

    capacity: Capacity
    estimate: Estimate
    last_switch_at: datetime | None  # the last moment to start here and still meet the deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Certainty:
    """The cheapest place with capacity that stays, beside a chosen one that may be lost, and what it adds."""

    estimate: Estimate
    more_usd: Decimal  # p50; below 0 it is cheaper
    sooner_hours: float  # p50; below 0 it is later
    sooner_hours_p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer to "where, for how much, how long?" at one moment."""

    spec: RunSpec
    measured: Measured  # what earlier runs showed
    ranked: tuple[Estimate, ...]
    refused: tuple[Refusal, ...]
    num_dearer: int  # places that fit, and would cost more than those in `ranked` and `refused`
    step_seconds: Mapping[str, float]  # by GPU type, of all places that fit
    ladder: tuple[Rung, ...]
    deadline_at: datetime
    deadline_assumed: bool
    chase_usd: Decimal | None  # that spot is tried for at the most: a little more than the fallback alone would cost
    longer_chase: Estimate | None  # of the best place under `LONGER_CHASE`, where its high end is much lower
    made_at: datetime

    @property
    def best(self) -> Estimate:
        return self.ranked[0]

    def certainty(self, chosen: Estimate) -> Certainty | None:
        """`None`: the chosen one is certain already, or nothing is."""
        firm = [found for found in self.ranked if found.placement.offer.capacity is not Capacity.SPOT]
        if chosen.placement.offer.capacity is not Capacity.SPOT or not firm:
            return None
        sure = min(firm, key=lambda found: (found.cost_usd.p50, found.placement.offer.key))
        return Certainty(
            estimate=sure,
            more_usd=sure.cost_usd.p50 - chosen.cost_usd.p50,
            sooner_hours=chosen.hours.p50 - sure.hours.p50,
            sooner_hours_p90=chosen.hours.p90 - sure.hours.p90,
        )


def plan(spec: RunSpec, book: Book, measured: Measured, *, now: datetime, rules: Rules) -> Plan:
    """Every offer of `book`, either ranked by what the run would cost there or refused with a reason."""
    candidates, refused = survey(spec, book, measured, now=now)
    if not candidates:
        return Plan(
            spec=spec,
            measured=measured,
            ranked=(),
            refused=tuple(refused),
            num_dearer=0,
            step_seconds={},
            ladder=(),
            deadline_at=now,
            deadline_assumed=spec.deadline is None,
            chase_usd=None,
            longer_chase=None,
            made_at=now,
        )
    deadline_at = deadline(spec, candidates, now, rules.fallback_delay_seconds)
    market = market_for(spec, book, measured, candidates, now=now, deadline_at=deadline_at, rules=rules)
    closed = _closed(spec, candidates, now)
    begun = [c for c in candidates if c.option.placement.offer.key not in closed] if closed else candidates
    found = _estimates(spec, book, measured, begun, market, rules)
    ranked, beyond = _within_limits(spec, found)
    by_cost = _ordered(ranked, book.terms)
    return Plan(
        spec=spec,
        measured=measured,
        ranked=tuple(by_cost),
        refused=(*refused, *closed.values(), *beyond),
        num_dearer=len(begun) - len(found),
        step_seconds={c.option.placement.offer.gpu: c.option.step_seconds for c in candidates},
        ladder=tuple(_ladder(spec, by_cost, deadline_at, rules)),
        deadline_at=deadline_at,
        deadline_assumed=spec.deadline is None,
        chase_usd=_chase_usd(market),
        longer_chase=_longer_chase(spec, book, measured, begun, market, rules, by_cost),
        made_at=now,
    )


def market_for(
    spec: RunSpec,
    book: Book,
    measured: Measured,
    candidates: Sequence[Candidate],
    *,
    now: datetime,
    deadline_at: datetime,
    rules: Rules,
) -> Market:
    """The places of a run that begins now, with what lies between them."""
    return market_of(
        [candidate.option for candidate in candidates],
        spec,
        since=now,
        deadline_at=deadline_at,
        deadline_assumed=spec.deadline is None,
        rules=rules,
        moves=_moves(spec, book, measured, candidates),
    )


def highest_usd(spec: RunSpec, chosen: Estimate) -> Decimal:
    """What the user is asked to agree to: the high end of the range, or the spec's own cap where that is lower.

    Rounded up, to the dollar from $10 on and to the cent below.
    """
    if spec.cost.cap is not None and spec.cost.cap < chosen.high_usd:
        return spec.cost.cap
    return chosen.high_usd.quantize(Decimal(1) if chosen.high_usd >= 10 else CENT, ROUND_CEILING)


def unaccepted_egress_usd(spec: RunSpec, chosen: Estimate) -> Decimal | None:
    """Egress so large that an approval of the total does not cover it, unless the user has named a limit."""
    usd = chosen.parts["egress"]
    is_large = usd > max(UNASKED_EGRESS_USD, UNASKED_EGRESS_SHARE * chosen.cost_usd.p50)
    return usd if is_large and spec.egress_limit is None else None


def why_nothing(plan: Plan) -> str:
    """One sentence for a plan without a single feasible place."""
    if not plan.refused and plan.spec.providers == [LOCAL]:
        return "this machine has no price: write under own in pricing.yaml what an hour of it costs"
    if not plan.refused:
        return f"nobody in the price book offers {' or '.join(plan.spec.gpus)}; `launch offers` lists what there is"
    reasons = Counter(r.reason for r in plan.refused)
    met = Counter(r.reason for r in plan.refused if not r.is_wish)
    reason, count = (met or reasons).most_common(1)[0]
    return f"all {len(plan.refused)} offers are refused, {count} of them: {reason} (`launch plan --all` shows each)"


def deadline(spec: RunSpec, candidates: Sequence[Candidate], now: datetime, fallback_delay_seconds: float) -> datetime:
    """The one asked for; else late enough to wait for spot, and still an end to the waiting."""
    if isinstance(spec.deadline, datetime):
        return spec.deadline
    if isinstance(spec.deadline, timedelta):
        return now + spec.deadline
    fastest = min(c.option.seconds_to_finish(spec.workload.steps) * c.step.factor80 for c in candidates)
    return now + timedelta(seconds=2.0 * fastest + WAITS_FOR_SPOT * fallback_delay_seconds)


def _estimates(
    spec: RunSpec, book: Book, measured: Measured, candidates: Sequence[Candidate], market: Market, rules: Rules
) -> list[tuple[Offer, Estimate | Unknown]]:
    """Of the places where the run would best begin."""
    known = {candidate.option.placement.offer.key: candidate for candidate in candidates}
    spot = sorted((p for p in market.places if p.is_spot), key=lambda p: (market.hourly_usd(p), p.key))
    found = []
    for place in (*spot[:NUM_SPOT], *market.firm):
        candidate = known.get(place.key)
        if candidate is not None:
            one = _estimate(spec, book, measured, candidate, place, market, rules)
            found.append((place.option.placement.offer, one))
    return found


def _estimate(
    spec: RunSpec, book: Book, measured: Measured, candidate: Candidate, place: Place, market: Market, rules: Rules
) -> Estimate | Unknown:
    basis = assumptions(
        spec,
        measured,
        candidate.option,
        step=candidate.step,
        interval_seconds=candidate.option.interval_seconds,
        tariffs=book.tariffs,
        host=candidate.host,
    )
    outlook = outlook_for(spec, book, measured, candidate, rules)
    return estimate(place, market, outlook, basis, step=candidate.step, history=measured.places)


def _longer_chase(
    spec: RunSpec,
    book: Book,
    measured: Measured,
    candidates: Sequence[Candidate],
    market: Market,
    rules: Rules,
    ranked: Sequence[Estimate],
) -> Estimate | None:
    """Only asked for where one future of ten or more ends up about as dear as the fallback alone."""
    best, fallback = (ranked[0] if ranked else None), market.fallback
    if best is None or fallback is None or best.option.capacity is not Capacity.SPOT:
        return None
    alone = Decimal(str(fallback.usd_to_finish(market.steps)))
    if market.max_cost_ratio >= LONGER_CHASE or best.cost_usd.p90 < WORTH_SAYING * alone:
        return None
    candidate = next(c for c in candidates if c.option is best.option)
    place = next(p for p in market.places if p.option is best.option)
    bolder = replace(market, max_cost_ratio=LONGER_CHASE)
    found = _estimate(spec, book, measured, candidate, place, bolder, rules)
    return found if isinstance(found, Estimate) and found.high_usd < WORTH_SAYING * best.high_usd else None


def outlook_for(spec: RunSpec, book: Book, measured: Measured, candidate: Candidate, rules: Rules) -> Outlook:
    """What a run that begins there costs beyond its machines."""
    option = candidate.option
    return Outlook(
        throughput_factor80=candidate.step.factor80,
        idle_seconds=rules.poll_seconds + rules.release_seconds / 2,
        closing_seconds=closing_seconds(rules, option.durable_seconds, option.step_seconds),
        retry_seconds=rules.retry_seconds,
        reads=spec.data.reads if spec.data else 0.0,
        checkpoint_gb=checkpoint_gb(spec, measured)[0],
        kept=spec.checkpoint.keep,
        storage_usd_per_gb_month=_storage_usd(book, option),
        supervisor_usd_per_hour=candidate.host.usd_per_hour if candidate.host else Decimal(0),
    )


def _moves(
    spec: RunSpec, book: Book, measured: Measured, candidates: Sequence[Candidate]
) -> Mapping[tuple[str | None, str | None], float]:
    """USD for a checkpoint from one home to another; one without a known tariff is refused before it is planned for."""
    homes = dict.fromkeys(candidate.option.traffic.home for candidate in candidates)
    gb, _ = checkpoint_gb(spec, measured)
    pairs = ((old, new) for old in homes for new in homes if old != new)
    found = {(old, new): move_charge(spec, book.tariffs, from_home=old, to_home=new, gb=gb) for old, new in pairs}
    return {pair: float(charge.usd) for pair, charge in found.items() if isinstance(charge, Charge)}


def _chase_usd(market: Market) -> Decimal | None:
    """`None`: there is nothing to chase, or nothing to fall back on."""
    if not market.tiers or market.fallback is None:
        return None
    return Decimal(str(market.most_usd)).quantize(CENT)


def _storage_usd(book: Book, option: Option) -> Decimal:
    return storage_usd_per_gb_month(option.placement.offer, book.tariffs, uri=option.traffic.home)[0]


def _within_limits(
    spec: RunSpec, estimates: Iterable[tuple[Offer, Estimate | Unknown]]
) -> tuple[list[Estimate], list[Refusal]]:
    ranked: list[Estimate] = []
    refused: list[Refusal] = []
    for offer, found in estimates:
        if isinstance(found, Unknown):
            refused.append(Refusal(offer=offer, reason=found.reason))
        elif reason := _beyond(spec, found):
            refused.append(Refusal(offer=offer, reason=reason))
        else:
            ranked.append(found)
    return ranked, refused


def _closed(spec: RunSpec, candidates: Iterable[Candidate], now: datetime) -> Mapping[str, Refusal]:
    """By key: a reservation is no place to begin before it opens, nor to finish behind its end."""
    reasons = ((c.option.placement.offer, _why_closed(spec, c.option, now)) for c in candidates)
    return {offer.key: Refusal(offer=offer, reason=reason) for offer, reason in reasons if reason}


def _why_closed(spec: RunSpec, option: Option, now: datetime) -> str | None:
    offer = option.placement.offer
    if offer.opens_at is not None and offer.opens_at > now:
        return f"it begins on {offer.opens_at:%Y-%m-%d %H:%M} UTC"
    if offer.closes_at is not None and offer.usable_seconds(now) < option.seconds_to_finish(spec.workload.steps):
        return f"it closes on {offer.closes_at:%Y-%m-%d %H:%M} UTC, before the run would end"
    return None


def _beyond(spec: RunSpec, found: Estimate) -> str | None:
    if spec.deadline is not None and found.on_time is not None and found.on_time < 0.5:
        return f"takes about {found.hours.p50:.1f} h; the deadline is earlier in most cases"
    if spec.egress_limit is not None and found.parts["egress"] > spec.egress_limit[1]:
        return f"its egress is about ${found.parts['egress']:,.2f} in all, above {limit_in_words(spec)}"
    if spec.cost.cap is not None and found.cost_usd.p50 > spec.cost.cap:
        return f"costs about ${found.cost_usd.p50:,.2f}; cost.cap is ${spec.cost.cap:,.2f}"
    return None


def _ordered(found: Sequence[Estimate], terms: Terms) -> list[Estimate]:
    """By cost; spot that no luck can tell from the cheapest spot by its own price and starts."""

    def usd(one: Estimate) -> Decimal:
        return one.marginal_usd if terms.rank_reserved_by == "marginal" else one.cost_usd.p50

    best = min((one for one in found if one.option.capacity is Capacity.SPOT), key=usd, default=None)
    least, alike = (usd(best), usd(best) + NOISE * best.cost_usd.width) if best else (Decimal(0), Decimal(0))

    def key(one: Estimate) -> tuple[Decimal, float, str]:
        if one.option.capacity is Capacity.SPOT and usd(one) <= alike:
            return least, one.option.effective_usd_per_step, one.placement.offer.key
        return usd(one), one.hours.p50, one.placement.offer.key

    return sorted(found, key=key)


def _ladder(spec: RunSpec, ranked: Sequence[Estimate], deadline_at: datetime, rules: Rules) -> Iterable[Rung]:
    for capacity in spec.mode:
        best = next((e for e in ranked if e.placement.offer.capacity is capacity), None)
        if best is None:
            continue
        needed = best.option.seconds_to_finish(spec.workload.steps) + rules.fallback_delay_seconds
        switch = None if capacity is Capacity.SPOT else deadline_at - timedelta(seconds=needed)
        yield Rung(capacity=capacity, estimate=best, last_switch_at=switch)
