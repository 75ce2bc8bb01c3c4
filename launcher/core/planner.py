"""Which places a run can go to, what each would cost, and in which order to climb from spot to certainty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from launcher.core.assumptions import assumptions
from launcher.core.estimate import Estimate, estimate
from launcher.core.gpus import GpuCatalog
from launcher.core.gravity import Tariffs
from launcher.core.hazards import fresh_preemptions_per_hour
from launcher.core.offers import SINGLE_HOSTS, Capacity, Offer, Placement, Refusal
from launcher.core.options import Option, Rules, closing_seconds
from launcher.core.pricing import LOCAL, Terms, price
from launcher.core.rollout import Outlook
from launcher.core.saving import (
    checkpoint_gb,
    durable_seconds,
    save_interval_seconds,
    save_seconds,
    storage_usd_per_gb_month,
)
from launcher.core.spec import RunSpec
from launcher.core.supervision import Host
from launcher.core.traffic import Charge, Traffic, cheapest_move, move_charge, traffic_at
from launcher.core.unknown import Unknown
from launcher.core.workload import Measured, StepTime, corrected, setup_seconds, step_time

UNASKED_EGRESS_USD = Decimal(25)  # as much as --yes serves without asking
UNASKED_EGRESS_SHARE = Decimal("0.2")  # of the whole: more of it than that is a decision of its own
NUM_ELSEWHERE = 8  # spot places among which a future goes on; one of so many nearly always has capacity
WAITS_FOR_SPOT = 4.0  # without a deadline: this many fallback delays on top of twice the work


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """Everything that prices and speeds are known from."""

    offers: tuple[Offer, ...]
    terms: Terms
    tariffs: Tariffs
    catalog: GpuCatalog
    host: Callable[[Offer], Host | Unknown | None] = lambda _: None  # the supervisor's own machine for a run there


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An option, and where its numbers come from."""

    option: Option
    step: StepTime
    host: Host | None = None  # of the supervisor, where that is hired


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step of the ladder of capacity, by its best estimate."""

    capacity: Capacity
    estimate: Estimate
    last_switch_at: datetime | None  # the last moment to start here and still meet the deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer to "where, for how much, how long?" at one moment."""

    spec: RunSpec
    measured: Measured  # what earlier runs showed
    ranked: tuple[Estimate, ...]
    refused: tuple[Refusal, ...]
    ladder: tuple[Rung, ...]
    deadline_at: datetime
    deadline_assumed: bool
    made_at: datetime

    @property
    def best(self) -> Estimate:
        return self.ranked[0]


def plan(spec: RunSpec, book: Book, measured: Measured, *, now: datetime, rules: Rules) -> Plan:
    """Every offer of `book`, either ranked by what the run would cost there or refused with a reason."""
    candidates, refused = survey(spec, book, measured, now=now)
    if not candidates:
        return Plan(
            spec=spec,
            measured=measured,
            ranked=(),
            refused=tuple(refused),
            ladder=(),
            deadline_at=now,
            deadline_assumed=spec.deadline is None,
            made_at=now,
        )
    deadline_at = _deadline(spec, candidates, now, rules.fallback_delay_seconds)
    found = _estimates(spec, book, measured, candidates, now=now, deadline_at=deadline_at, rules=rules)
    ranked, beyond = _within_limits(spec, found, now)
    by_cost = sorted(ranked, key=_order(book.terms))
    return Plan(
        spec=spec,
        measured=measured,
        ranked=tuple(by_cost),
        refused=(*refused, *beyond),
        ladder=tuple(_ladder(spec, by_cost, deadline_at, rules)),
        deadline_at=deadline_at,
        deadline_assumed=spec.deadline is None,
        made_at=now,
    )


def survey(
    spec: RunSpec, book: Book, measured: Measured, *, now: datetime, lying: Sequence[str] = ()
) -> tuple[list[Candidate], list[Refusal]]:
    """Offers of the GPU types asked for, as options or refusals; other types were not asked for and are left out.

    `lying`: homes where the run's newest checkpoint is, from which it would be moved; the newest copy first.
    """
    candidates: list[Candidate] = []
    refused: list[Refusal] = []
    speeds: dict[str, StepTime | Unknown] = {}
    for offer in book.offers:
        if offer.gpu not in spec.gpus:
            continue
        if offer.gpu not in speeds:
            speeds[offer.gpu] = _speed(offer.gpu, spec, book, measured)
        if unwished := _unwished(offer, spec):
            refused.append(Refusal(offer=offer, reason=unwished, is_wish=True))
            continue
        found = _unfit(offer, spec) or _candidate(offer, spec, book, measured, speeds[offer.gpu], now)
        if isinstance(found, Candidate) and lying:
            found = _moved(found, spec, book, measured, lying)
        if isinstance(found, Candidate):
            candidates.append(found)
        else:
            refused.append(Refusal(offer=offer, reason=found))
    return candidates, refused


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


def _unwished(offer: Offer, spec: RunSpec) -> str | None:
    if spec.providers is not None and offer.provider not in spec.providers:
        return f"provider {offer.provider} is not in providers"
    if spec.regions is not None and offer.region not in spec.regions:
        return f"region {offer.region} is not in regions"
    if offer.capacity not in spec.mode:
        return f"{offer.capacity.value} is not in mode"
    return None


def _unfit(offer: Offer, spec: RunSpec) -> str | None:
    if offer.count != spec.gpus[offer.gpu]:
        return f"has {offer.count} GPUs a node; gpus asks for {spec.gpus[offer.gpu]}"
    if offer.provider in SINGLE_HOSTS and spec.nodes > 1:
        return f"{offer.provider} rents single machines; nodes asks for {spec.nodes} together"
    if offer.available_count is not None and offer.available_count < spec.nodes:
        return f"only {offer.available_count} of {spec.nodes} nodes are there"
    return None


def _candidate(
    offer: Offer, spec: RunSpec, book: Book, measured: Measured, speed: StepTime | Unknown, now: datetime
) -> Candidate | str:
    paid = price(offer, book.terms, now=max(now, offer.opens_at or now))  # a later one may be the fallback
    if isinstance(paid, Refusal):
        return paid.reason
    if isinstance(speed, Unknown):
        return speed.reason
    host = book.host(offer)
    if isinstance(host, Unknown):
        return host.reason
    traffic = traffic_at(spec, offer, book.tariffs, checkpoint_gb(spec, measured)[0])
    if isinstance(traffic, Unknown):
        return traffic.reason
    if spec.egress_limit is not None and _least_egress_usd(spec, traffic) > spec.egress_limit[1]:
        return f"egress of ${traffic.read.egress_usd:,.2f} per read is above {_limit(spec)}"
    option = Option(
        placement=Placement(offer=offer, nodes=spec.nodes, price=paid),
        step_seconds=speed.seconds,
        setup_seconds=setup_seconds(spec, measured)[0],
        save_seconds=save_seconds(spec, measured)[0],
        durable_seconds=durable_seconds(spec, measured),
        preemptions_per_hour=fresh_preemptions_per_hour(offer),
    )
    interval = save_interval_seconds(spec, option)
    hourly = traffic.save.usd * 3600 / Decimal(str(max(1.0, interval)))
    option = replace(option, interval_seconds=interval, traffic=replace(traffic, saves_usd_per_hour=hourly))
    return Candidate(option=option, step=speed, host=host)


def _moved(found: Candidate, spec: RunSpec, book: Book, measured: Measured, lying: Sequence[str]) -> Candidate | str:
    gb, _ = checkpoint_gb(spec, measured)
    move = cheapest_move(spec, book.tariffs, lying, found.option.traffic.home, gb)
    if isinstance(move, Unknown):
        return move.reason
    home, charge = move
    return replace(found, option=replace(found.option, move_from=home, move_usd=charge.usd))


def _least_egress_usd(spec: RunSpec, traffic: Traffic) -> Decimal:
    """Of a machine that lives until the end."""
    return traffic.read.egress_usd * Decimal(str(max(1.0, spec.data.reads if spec.data else 0.0)))


def _limit(spec: RunSpec) -> str:
    name, usd = spec.egress_limit or ("", Decimal(0))
    return f"{name} ${usd:,.2f}"


def _speed(gpu: str, spec: RunSpec, book: Book, measured: Measured) -> StepTime | Unknown:
    known = step_time(
        gpu,
        workload=spec.workload,
        gpus=spec.gpus,
        nodes=spec.nodes,
        history=measured.history,
        catalog=book.catalog,
    )
    return known if isinstance(known, Unknown) else corrected(known, measured.corrections.get(known.kind))


def _deadline(spec: RunSpec, candidates: Sequence[Candidate], now: datetime, fallback_delay_seconds: float) -> datetime:
    """The one asked for; else late enough to wait for spot, and still an end to the waiting."""
    if isinstance(spec.deadline, datetime):
        return spec.deadline
    if isinstance(spec.deadline, timedelta):
        return now + spec.deadline
    fastest = min(c.option.seconds_to_finish(spec.workload.steps) * c.step.factor80 for c in candidates)
    return now + timedelta(seconds=2.0 * fastest + WAITS_FOR_SPOT * fallback_delay_seconds)


def _estimates(
    spec: RunSpec,
    book: Book,
    measured: Measured,
    candidates: Sequence[Candidate],
    *,
    now: datetime,
    deadline_at: datetime,
    rules: Rules,
) -> list[Estimate]:
    fallback = _fallback(spec, candidates, deadline_at=deadline_at, now=now, rules=rules)
    spot = [c.option for c in candidates if c.option.capacity is Capacity.SPOT]
    cheapest = sorted(spot, key=lambda o: (o.effective_usd_per_step, o.placement.offer.key))[:NUM_ELSEWHERE]
    moves = _moves(spec, book, measured, candidates)
    found = []
    for candidate in candidates:
        outlook = Outlook(
            steps=spec.workload.steps,
            throughput_factor80=candidate.step.factor80,
            idle_seconds=rules.poll_seconds + rules.release_seconds / 2,
            closing_seconds=closing_seconds(rules, candidate.option.durable_seconds, candidate.option.step_seconds),
            elsewhere=tuple(o for o in cheapest if o is not candidate.option),
            hours_to_deadline=(deadline_at - now).total_seconds() / 3600,
            fallback=fallback,
            fallback_delay_hours=rules.fallback_delay_seconds / 3600,
            reads=spec.data.reads if spec.data else 0.0,
            checkpoint_gb=checkpoint_gb(spec, measured)[0],
            kept=spec.checkpoint.keep,
            storage_usd_per_gb_month=_storage_usd(book, candidate.option),
            moves=moves,
            supervisor_usd_per_hour=candidate.host.usd_per_hour if candidate.host else Decimal(0),
        )
        basis = assumptions(
            spec,
            measured,
            candidate.option,
            step=candidate.step,
            interval_seconds=candidate.option.interval_seconds,
            tariffs=book.tariffs,
            host=candidate.host,
        )
        found.append(estimate(candidate.option, outlook, basis, step=candidate.step))
    return found


def _moves(
    spec: RunSpec, book: Book, measured: Measured, candidates: Sequence[Candidate]
) -> Mapping[tuple[str | None, str | None], Charge]:
    """Of a checkpoint from any home to any other; one without a known tariff is refused before it is planned for."""
    homes = dict.fromkeys(candidate.option.traffic.home for candidate in candidates)
    gb, _ = checkpoint_gb(spec, measured)
    pairs = ((old, new) for old in homes for new in homes if old != new)
    found = {(old, new): move_charge(spec, book.tariffs, from_home=old, to_home=new, gb=gb) for old, new in pairs}
    return {pair: charge for pair, charge in found.items() if isinstance(charge, Charge)}


def _storage_usd(book: Book, option: Option) -> Decimal:
    return storage_usd_per_gb_month(option.placement.offer, book.tariffs, uri=option.traffic.home)[0]


def _fallback(
    spec: RunSpec, candidates: Iterable[Candidate], *, deadline_at: datetime, now: datetime, rules: Rules
) -> Option | None:
    """The firm place where doing all of the work would cost least, data and all, among those it can be left to."""
    reads = Decimal(str(max(1.0, spec.data.reads))) if spec.data else Decimal(0)

    def usd(option: Option) -> Decimal:
        seconds = Decimal(str(option.seconds_to_finish(spec.workload.steps)))
        hourly = option.placement.usd_per_hour + option.traffic.saves_usd_per_hour
        return hourly * seconds / 3600 + option.egress_usd_per_read * reads

    steps, options = spec.workload.steps, [c.option for c in candidates]
    firm = (o for o in options if o.spare_seconds(steps, deadline_at=deadline_at, now=now, rules=rules) is not None)
    return min(firm, key=usd, default=None)


def _within_limits(spec: RunSpec, estimates: Iterable[Estimate], now: datetime) -> tuple[list[Estimate], list[Refusal]]:
    ranked: list[Estimate] = []
    refused: list[Refusal] = []
    for found in estimates:
        reason = _closed(spec, found.option, now) or _beyond(spec, found)
        if reason:
            refused.append(Refusal(offer=found.placement.offer, reason=reason))
        else:
            ranked.append(found)
    return ranked, refused


def _closed(spec: RunSpec, option: Option, now: datetime) -> str | None:
    """A reservation is no place to begin before it opens, nor to finish behind its end; a fallback it may still be."""
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
        return f"its egress is about ${found.parts['egress']:,.2f} in all, above {_limit(spec)}"
    if spec.cost.cap is not None and found.cost_usd.p50 > spec.cost.cap:
        return f"costs about ${found.cost_usd.p50:,.2f}; cost.cap is ${spec.cost.cap:,.2f}"
    return None


def _order(terms: Terms) -> Callable[[Estimate], tuple[Decimal, float, str]]:
    def key(found: Estimate) -> tuple[Decimal, float, str]:
        usd = found.marginal_usd if terms.rank_reserved_by == "marginal" else found.cost_usd.p50
        return usd, found.hours.p50, found.placement.offer.key

    return key


def _ladder(spec: RunSpec, ranked: Sequence[Estimate], deadline_at: datetime, rules: Rules) -> Iterable[Rung]:
    for capacity in spec.mode:
        best = next((e for e in ranked if e.placement.offer.capacity is capacity), None)
        if best is None:
            continue
        needed = best.option.seconds_to_finish(spec.workload.steps) + rules.fallback_delay_seconds
        switch = None if capacity is Capacity.SPOT else deadline_at - timedelta(seconds=needed)
        yield Rung(capacity=capacity, estimate=best, last_switch_at=switch)
