"""Which places a run can go to, what each would cost, and in which order to climb from spot to certainty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from launcher.core.estimate import Assumption, Estimate, estimate
from launcher.core.gpus import GpuCatalog
from launcher.core.gravity import Egress, Tariffs, egress
from launcher.core.offers import Capacity, Offer, Placement, Refusal
from launcher.core.policy import Option, Rules, closing_seconds
from launcher.core.pricing import LOCAL, Terms, price
from launcher.core.rollout import FRESH_PREEMPTIONS_PER_HOUR, Outlook
from launcher.core.saving import (
    checkpoint_gb,
    durable_seconds,
    save_interval_seconds,
    save_seconds,
    storage_usd_per_gb_month,
)
from launcher.core.spec import RunSpec
from launcher.core.unknown import Unknown
from launcher.core.workload import Measured, StepTime, step_time

SETUP_SECONDS = (
    300.0  # machine, image and environment; a plain SkyPilot launch took 60 to 95 s without installing anything
)
NUM_ELSEWHERE = 8  # spot places among which a future goes on; one of so many nearly always has capacity
WAITS_FOR_SPOT = 4.0  # without a deadline: this many fallback delays on top of twice the work


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """Everything that prices and speeds are known from."""

    offers: tuple[Offer, ...]
    terms: Terms
    tariffs: Tariffs
    catalog: GpuCatalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An option, and where its numbers come from."""

    option: Option
    step: StepTime
    egress: Egress


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
            ranked=(),
            refused=tuple(refused),
            ladder=(),
            deadline_at=now,
            deadline_assumed=spec.deadline is None,
            made_at=now,
        )
    deadline_at = _deadline(spec, candidates, now, rules.fallback_delay_seconds)
    estimates = _estimates(spec, book, measured, candidates, now=now, deadline_at=deadline_at, rules=rules)
    ranked, beyond = _within_limits(spec, estimates)
    by_cost = sorted(ranked, key=_order(book.terms))
    return Plan(
        spec=spec,
        ranked=tuple(by_cost),
        refused=(*refused, *beyond),
        ladder=tuple(_ladder(spec, by_cost, deadline_at, rules)),
        deadline_at=deadline_at,
        deadline_assumed=spec.deadline is None,
        made_at=now,
    )


def survey(spec: RunSpec, book: Book, measured: Measured, *, now: datetime) -> tuple[list[Candidate], list[Refusal]]:
    """Offers of the GPU types asked for, as options or refusals; other types were not asked for and are left out."""
    candidates: list[Candidate] = []
    refused: list[Refusal] = []
    speeds: dict[str, StepTime | Unknown] = {}
    for offer in book.offers:
        if offer.gpu not in spec.gpus:
            continue
        if offer.gpu not in speeds:
            speeds[offer.gpu] = _speed(offer.gpu, spec, book, measured)
        found = _unfit(offer, spec) or _candidate(offer, spec, book, measured, speeds[offer.gpu], now)
        if isinstance(found, Candidate):
            candidates.append(found)
        else:
            refused.append(Refusal(offer=offer, reason=found))
    return candidates, refused


def why_nothing(plan: Plan) -> str:
    """One sentence for a plan without a single feasible place."""
    if not plan.refused and plan.spec.providers == [LOCAL]:
        return "this machine has no price: write under own in pricing.yaml what an hour of it costs"
    if not plan.refused:
        return f"nobody in the price book offers {' or '.join(plan.spec.gpus)}; `launch offers` lists what there is"
    reason, count = Counter(r.reason for r in plan.refused).most_common(1)[0]
    return f"all {len(plan.refused)} offers are refused, {count} of them: {reason} (`launch plan --all` shows each)"


def _unfit(offer: Offer, spec: RunSpec) -> str | None:
    if spec.providers is not None and offer.provider not in spec.providers:
        return f"provider {offer.provider} is not in providers"
    if spec.regions is not None and offer.region not in spec.regions:
        return f"region {offer.region} is not in regions"
    if offer.capacity not in spec.mode:
        return f"{offer.capacity.value} is not in mode"
    if offer.count != spec.gpus[offer.gpu]:
        return f"has {offer.count} GPUs a node; gpus asks for {spec.gpus[offer.gpu]}"
    if offer.available_count is not None and offer.available_count < spec.nodes:
        return f"only {offer.available_count} of {spec.nodes} nodes are reserved"
    return None


def _candidate(
    offer: Offer, spec: RunSpec, book: Book, measured: Measured, speed: StepTime | Unknown, now: datetime
) -> Candidate | str:
    paid = price(offer, book.terms, now=now)
    if isinstance(paid, Refusal):
        return paid.reason
    if isinstance(speed, Unknown):
        return speed.reason
    moved = _egress(offer, spec, book.tariffs)
    if isinstance(moved, Unknown):
        return moved.reason
    limit = spec.data.max_egress_usd if spec.data else None
    reads = spec.data.reads if spec.data else 0.0
    if limit is not None and moved.usd * Decimal(str(max(1.0, reads))) > limit:
        return f"egress of ${moved.usd:,.2f} per read is above data.max_egress_usd ${limit:,.2f}"
    option = Option(
        placement=Placement(offer=offer, nodes=spec.nodes, price=paid),
        step_seconds=speed.seconds,
        setup_seconds=setup_seconds(spec, measured)[0],
        save_seconds=save_seconds(spec, measured)[0],
        durable_seconds=durable_seconds(spec, measured),
        preemptions_per_hour=_hazard(offer),
        egress_usd_per_read=moved.usd,
    )
    return Candidate(option=option, step=speed, egress=moved)


def _speed(gpu: str, spec: RunSpec, book: Book, measured: Measured) -> StepTime | Unknown:
    return step_time(
        gpu,
        workload=spec.workload,
        gpus=spec.gpus,
        nodes=spec.nodes,
        history=measured.history,
        catalog=book.catalog,
    )


def _egress(offer: Offer, spec: RunSpec, tariffs: Tariffs) -> Egress | Unknown:
    if spec.data is None or spec.data.size is None or spec.data.region is None:
        return Egress(usd=Decimal(0), basis="no data to move")
    return egress(tariffs, source=spec.data.region, provider=offer.provider, region=offer.region, gb=spec.data.size)


def _hazard(offer: Offer) -> float:
    if offer.capacity is not Capacity.SPOT:
        return 0.0
    return FRESH_PREEMPTIONS_PER_HOUR if offer.preemptions_per_hour is None else offer.preemptions_per_hour


def setup_seconds(spec: RunSpec, measured: Measured) -> tuple[float, str]:
    """From a granted machine to the first step, and where the number comes from."""
    if measured.setup_seconds is not None:
        return measured.setup_seconds, f"measured in {measured.num_runs} earlier runs"
    if spec.workload.setup_seconds is not None:
        return spec.workload.setup_seconds, "declared"
    return SETUP_SECONDS, "assumed"


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
    fallback = _fallback(spec, candidates)
    spot = [c.option for c in candidates if c.option.capacity is Capacity.SPOT]
    cheapest = sorted(spot, key=lambda o: (o.effective_usd_per_step, o.placement.offer.key))[:NUM_ELSEWHERE]
    found = []
    for candidate in candidates:
        outlook = Outlook(
            steps=spec.workload.steps,
            throughput_factor80=candidate.step.factor80,
            interval_seconds=save_interval_seconds(spec, candidate.option),
            idle_seconds=rules.poll_seconds + rules.release_seconds / 2,
            closing_seconds=closing_seconds(rules, candidate.option.durable_seconds, candidate.option.step_seconds),
            elsewhere=tuple(o for o in cheapest if o is not candidate.option),
            hours_to_deadline=(deadline_at - now).total_seconds() / 3600,
            fallback=fallback,
            fallback_delay_hours=rules.fallback_delay_seconds / 3600,
            reads=spec.data.reads if spec.data else 0.0,
            checkpoint_gb=checkpoint_gb(spec, measured)[0],
            kept=spec.checkpoint.keep,
            storage_usd_per_gb_month=_storage(spec, book, candidate)[0],
        )
        found.append(estimate(candidate.option, outlook, _assumptions(spec, book, measured, candidate, outlook)))
    return found


def _storage(spec: RunSpec, book: Book, candidate: Candidate) -> tuple[Decimal, str]:
    offer = candidate.option.placement.offer
    price, source, _ = storage_usd_per_gb_month(offer, book.tariffs, uri=spec.checkpoint.uri)
    return price, source


def _fallback(spec: RunSpec, candidates: Iterable[Candidate]) -> Option | None:
    """The firm place where doing all of the work would cost least, data and all."""
    reads = Decimal(str(max(1.0, spec.data.reads))) if spec.data else Decimal(0)

    def usd(option: Option) -> Decimal:
        seconds = Decimal(str(option.seconds_to_finish(spec.workload.steps)))
        return option.placement.usd_per_hour * seconds / 3600 + option.egress_usd_per_read * reads

    firm = (c.option for c in candidates if c.option.capacity is not Capacity.SPOT)
    return min(firm, key=usd, default=None)


def _assumptions(
    spec: RunSpec, book: Book, measured: Measured, candidate: Candidate, outlook: Outlook
) -> list[Assumption]:
    offer = candidate.option.placement.offer
    setup, setup_source = setup_seconds(spec, measured)
    save, save_source = save_seconds(spec, measured)
    storage, storage_source = _storage(spec, book, candidate)
    listed = [
        Assumption(
            name="step time",
            value=f"{candidate.step.seconds:.4g} s, 80 % within ×/÷ {candidate.step.factor80:.2f}",
            source=candidate.step.source,
        ),
        Assumption(name="price", value=f"${offer_price(candidate)}/h", source=candidate.option.placement.price.basis),
        Assumption(name="set-up", value=f"{setup:.0f} s a start", source=setup_source),
        Assumption(
            name="save",
            value=f"{save:.3g} s for a save every {outlook.interval_seconds / 60:.1f} min",
            source=save_source,
        ),
        Assumption(name="storage", value=f"${storage} per GB and month", source=storage_source),
        Assumption(name="egress", value=f"${candidate.egress.usd:,.2f} a read", source=candidate.egress.basis),
    ]
    if offer.capacity is Capacity.SPOT:
        known = offer.preemptions_per_hour is not None
        listed.append(
            Assumption(
                name="preemptions",
                value=f"{candidate.option.preemptions_per_hour:.2g} per hour of a fresh machine, fewer of an old one",
                source="stated by the offer" if known else "assumed: AWS V100 traces of 2023-02 (Wu et al., NSDI 2024)",
            )
        )
    return listed


def offer_price(candidate: Candidate) -> Decimal:
    return candidate.option.placement.usd_per_hour.quantize(Decimal("0.01"))


def _within_limits(spec: RunSpec, estimates: Iterable[Estimate]) -> tuple[list[Estimate], list[Refusal]]:
    ranked: list[Estimate] = []
    refused: list[Refusal] = []
    for found in estimates:
        reason = _beyond(spec, found)
        if reason:
            refused.append(Refusal(offer=found.placement.offer, reason=reason))
        else:
            ranked.append(found)
    return ranked, refused


def _beyond(spec: RunSpec, found: Estimate) -> str | None:
    if spec.deadline is not None and found.on_time is not None and found.on_time < 0.5:
        return f"takes about {found.hours.p50:.1f} h; the deadline is earlier in most cases"
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
