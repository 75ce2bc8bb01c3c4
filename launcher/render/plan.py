"""A plan as the sentence, the ranked table, and where each dollar goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.core.estimates.estimate import Estimate
from launcher.core.estimates.planner import LONGER_CHASE, Certainty, Plan, highest_usd
from launcher.core.estimates.rollout import PARTS
from launcher.core.offers import Capacity, Offer
from launcher.core.policy.market import WAIT_PRICE
from launcher.core.prices.pricing import Terms, cash, credit_usd
from launcher.core.prices.traffic import size
from launcher.core.spans import span
from launcher.render.tables import Column, Row, table
from launcher.render.words import Money, clock_time, rough_span, simulated

NUM_SHOWN = 5
SCHEMA = "launch/plan/v1"


def show_plan(console: Console, plan: Plan, chosen: Estimate, terms: Terms, money: Money, *, all_offers: bool) -> None:
    """Print everything that a person needs before agreeing."""
    label = simulated(chosen.placement.offer.simulated)
    cost, hours = chosen.cost_usd, chosen.hours
    line = f"This will cost approximately {money.about(cost.p50)}{label} and take {rough_span(hours.p50)}."
    console.print(f"\n [bold]{line}[/]")
    console.print(
        f" 80 % range  {money.about(cost.p10)} – {money.about(cost.p90)} · "
        f"{rough_span(hours.p10)} – {rough_span(hours.p90)}        basis: {_basis(chosen)}\n"
    )
    console.print(_table(console, plan, chosen, money, plan.ranked if all_offers else plan.ranked[:NUM_SHOWN]))
    naive = f"price × hours alone: {money.about(chosen.naive_usd)}"
    console.print(f" Where it goes{label}  {_parts(chosen, money)} ({naive})")
    for sentence in _sentences(plan, chosen, terms, money):
        console.print(f" {sentence}")
    if all_offers:
        show_details(console, chosen)
    _refusals(console, plan, all_offers=all_offers)


@contextmanager
def listing(console: Console) -> Iterator[Callable[[str, float, int], None]]:
    """A line that says how far the listing of a bucket is; nothing is shown where none is listed."""
    status = console.status("")

    def progress(uri: str, gb: float, num_objects: int) -> None:
        status.update(f"listing {uri}: {size(gb)} in {num_objects:,} objects")
        status.start()

    try:
        yield progress
    finally:
        status.stop()


def show_details(console: Console, chosen: Estimate) -> None:
    """Every number that the estimate rests on, and where it comes from."""
    columns = (Column("assumption"), Column("value", folds=True), Column("source", folds=True))
    console.print(table(console, columns, [((a.name, a.value, a.source), "") for a in chosen.assumptions]))


def plan_json(plan: Plan) -> dict[str, Any]:
    """`launch/plan/v1`: money as decimal strings in US dollars, instants in RFC 3339."""
    return {
        "schema": SCHEMA,
        "name": plan.spec.name,
        "currency": "USD",
        "made_at": plan.made_at.isoformat(),
        "deadline_at": plan.deadline_at.isoformat(),
        "deadline_assumed": plan.deadline_assumed,
        "priority": plan.spec.priority,
        "wait_price": WAIT_PRICE if plan.deadline_assumed else 0.0,
        "chase_usd": None if plan.chase_usd is None else _usd(plan.chase_usd),
        "longer_chase": plan.longer_chase and {"max_chase": LONGER_CHASE, **_entry(plan.longer_chase)},
        "cap_usd": None if plan.spec.cost.cap is None else _usd(plan.spec.cost.cap),
        "certainty": _certainty_entry(plan),
        "num_dearer": plan.num_dearer,
        "ranked": [_entry(estimate) for estimate in plan.ranked],
        "refused": [{"placement": _offer(r.offer, plan.spec.nodes), "reason": r.reason} for r in plan.refused],
        "ladder": [
            {
                "capacity": rung.capacity.value,
                "placement": _offer(rung.estimate.placement.offer, plan.spec.nodes),
                "last_switch_at": rung.last_switch_at.isoformat() if rung.last_switch_at else None,
            }
            for rung in plan.ladder
        ],
    }


def _basis(chosen: Estimate) -> str:
    return next((a.source for a in chosen.assumptions if a.name == "step time"), "declared")


def _table(console: Console, plan: Plan, chosen: Estimate, money: Money, shown: Sequence[Estimate]) -> Table:
    unit = money.sign.strip()
    columns = (
        Column("#", "right"),
        Column("where"),
        Column("mode", drop=3),
        Column(f"{plan.spec.nodes} × node", drop=5),
        Column(f"{unit}/GPU-h", "right", drop=4),
        Column(f"{unit}/h", "right", drop=2),
        Column("total", "right"),
        Column("80 % range", "right"),
        Column("takes", "right", drop=1),
        Column("note", drop=6, folds=True),
    )
    numbered = [(n, e) for n, e in enumerate(plan.ranked, start=1) if e in shown or e is chosen]
    return table(console, columns, [_row(n, e, money, is_chosen=e is chosen) for n, e in numbered])


def _row(number: int, found: Estimate, money: Money, *, is_chosen: bool) -> Row:
    offer, cost = found.placement.offer, found.cost_usd
    cells = (
        f"{'▸' if is_chosen else ' '} {number}",
        offer.where,
        offer.capacity.value.replace("_", "-"),
        f"{offer.count}×{offer.gpu}",
        money.exact(found.placement.usd_per_gpu_hour),
        money.exact(found.placement.usd_per_hour),
        money.about(cost.p50),
        f"{money.about(cost.p10)} – {money.about(cost.p90)}",
        span(found.hours.p50 * 3600),
        _note(found, money),
    )
    return cells, "bold" if is_chosen else ""


def _note(found: Estimate, money: Money) -> str:
    notes = []
    if found.placement.offer.simulated:
        notes.append("simulated")
    if found.placement.marginal_usd_per_hour != found.placement.usd_per_hour:
        notes.append(f"marginal cash {money.about(found.marginal_usd)}")
    if found.parts["egress"] > 0:
        notes.append(f"{money.about(found.parts['egress'])} of it is egress")
    return " · ".join(notes)


def _parts(chosen: Estimate, money: Money) -> str:
    shown = sorted(((name, chosen.parts[name]) for name in PARTS), key=lambda part: -part[1])
    return " · ".join(f"{name} {money.exact(usd)}" for name, usd in shown if usd or name in ("steps", "egress"))


def _sentences(plan: Plan, chosen: Estimate, terms: Terms, money: Money) -> Iterable[str]:
    offer = chosen.placement.offer
    if offer.capacity is Capacity.SPOT:
        yield f"Spot risk  {_risk(chosen)}; {_assumed(chosen, 'save')}"
    if (sure := plan.certainty(chosen)) is not None:
        yield f"Certainty  {_certain(sure, money)}"
    if plan.spec.data is not None and plan.spec.data.gb is not None:
        whole = "" if plan.spec.data.is_whole else "; its listing was not finished, data.size would say how much it is"
        yield f"Data  {_assumed(chosen, 'data')}, {_assumed(chosen, 'egress')}{whole}"
    if plan.spec.checkpoint.buckets and chosen.option.traffic.home:
        yield f"Checkpoints  beside the GPUs, in {chosen.option.traffic.home}"
    on_demand = chosen.placement.on_demand_usd_per_hour
    if on_demand and on_demand > chosen.placement.usd_per_hour:
        saving = 1 - chosen.placement.usd_per_hour / on_demand
        yield f"Price  {_assumed(chosen, 'price')} as of {offer.as_of}, {saving:.0%} below on-demand"
    else:
        yield f"Price  {_assumed(chosen, 'price')} as of {offer.as_of}"
    credit = credit_usd(terms, offer.provider, plan.made_at.date())
    if credit:
        left = money.exact(cash(chosen.cost_usd.p50, credit))
        yield f"Credits  {money.exact(credit)} with {offer.provider}: {left} of it is cash"
    yield f"Limit  {_limit(plan, chosen, money)}"
    if plan.longer_chase is not None and chosen is plan.best:
        usd = plan.longer_chase.cost_usd
        range80 = f"80 % {money.about(usd.p10)} – {money.about(usd.p90)}"
        yield f"Advice  cost.max_chase: {LONGER_CHASE} would make it {money.about(usd.p50)}, {range80}"
    yield f"Ladder  {_ladder(plan, money)}"
    yield f"Deadline  {_deadline(plan, chosen)}"
    if plan.spec.priority == "urgent":
        yield "Priority  urgent: never waits for a lower price, takes the cheapest capacity there is"
    if money.note:
        yield f"Currency  {money.note}"


def _risk(chosen: Estimate) -> str:
    """Means over futures; the range holds the bad ones."""
    restarts = f"{chosen.preemptions:.1f} preemptions, {_hours(chosen.restart_hours)} of restarts"
    if chosen.fallback_usd_per_hour is None:
        return f"{restarts}, no capacity that stays to fall back on"
    return f"{restarts}, {_hours(chosen.fallback_hours)} on the fallback"


def _hours(hours: float) -> str:
    return "0 h" if hours < 1 / 60 else span(hours * 3600)


def _certain(sure: Certainty, money: Money) -> str:
    """What capacity that stays would cost more, and spare."""
    where = f"on capacity that stays ({sure.estimate.placement.offer.where})"
    usd = f"+{money.about(sure.more_usd)}" if sure.more_usd >= 0 else f"−{money.about(-sure.more_usd)}"
    ends = f"{_apart(sure.sooner_hours)}, {_apart(sure.sooner_hours_p90)} in the worst tenth"
    return f"{usd} to finish {ends}, {where}"


def _apart(sooner_hours: float) -> str:
    if abs(sooner_hours) < 1 / 60:
        return "at the same time"
    return f"{rough_span(abs(sooner_hours))} {'earlier' if sooner_hours > 0 else 'later'}"


def _limit(plan: Plan, chosen: Estimate, money: Money) -> str:
    """What it may cost at the very most, and what a chase for spot may make of it."""
    most = money.exact(highest_usd(plan.spec, chosen))
    ends = f"{most} are asked for, and it ends before it has cost more than is approved"
    if plan.chase_usd is None or chosen.placement.offer.capacity is not Capacity.SPOT:
        return ends
    return f"{ends}; spot only while the fallback could still end it below {money.exact(plan.chase_usd)}"


def _deadline(plan: Plan, chosen: Estimate) -> str:
    by = clock_time(plan.deadline_at)
    when = _ends(plan, chosen)
    if plan.deadline_assumed:
        return (
            f"none given, {by} is assumed, and that an hour of waiting counts for {WAIT_PRICE:.0%} of one on the "
            f"fallback; {when}"
        )
    certainty = "" if chosen.on_time is None else f": {chosen.on_time:.0%} on time"
    return f"{by}{certainty}; {when}"


def _ends(plan: Plan, chosen: Estimate) -> str:
    early, middle, late = (
        clock_time(plan.made_at + timedelta(hours=hours)).removesuffix(" UTC")
        for hours in (chosen.hours.p10, chosen.hours.p50, chosen.hours.p90)
    )
    return f"ends about {middle}, 80 % between {early} and {late}"


def _assumed(chosen: Estimate, name: str) -> str:
    return next((f"{a.value} ({a.source})" for a in chosen.assumptions if a.name == name), "")


def _ladder(plan: Plan, money: Money) -> str:
    rungs = []
    for rung in plan.ladder:
        name = rung.capacity.value.replace("_", "-")
        latest = f", at the latest {clock_time(rung.last_switch_at)}" if rung.last_switch_at else ""
        usd = money.exact(rung.estimate.placement.usd_per_hour)
        rungs.append(f"{name} {rung.estimate.placement.offer.where} {usd}/h{latest}")
    return " → ".join(rungs)


def _refusals(console: Console, plan: Plan, *, all_offers: bool) -> None:
    hidden = max(0, len(plan.ranked) - NUM_SHOWN)
    if plan.num_dearer:
        console.print(f" [dim]{plan.num_dearer:,} dearer places were not worked out[/]")
    if not all_offers:
        if hidden or plan.refused:
            console.print(f" [dim]{hidden} more places, {len(plan.refused)} refused: --all shows them with reasons[/]")
        return
    columns = (Column("refused"), Column("mode", drop=2), Column("node", drop=3), Column("$/h", "right", drop=1))
    rows = [
        (
            (
                refusal.offer.where,
                refusal.offer.capacity.value,
                f"{refusal.offer.count}×{refusal.offer.gpu}",
                "unknown" if refusal.offer.list_usd_per_hour is None else f"{refusal.offer.list_usd_per_hour:,.2f}",
                refusal.reason,
            ),
            "",
        )
        for refusal in plan.refused
    ]
    console.print(table(console, (*columns, Column("why", folds=True)), rows))


def _certainty_entry(plan: Plan) -> dict[str, Any] | None:
    """Beside the first of `ranked`."""
    sure = plan.certainty(plan.best) if plan.ranked else None
    if sure is None:
        return None
    return {
        "placement": _offer(sure.estimate.placement.offer, plan.spec.nodes),
        "more_usd": _usd(sure.more_usd),
        "sooner_hours": round(sure.sooner_hours, 4),
        "sooner_hours_p90": round(sure.sooner_hours_p90, 4),
    }


def _entry(found: Estimate) -> dict[str, Any]:
    cost, hours = found.cost_usd, found.hours
    return {
        "placement": _offer(found.placement.offer, found.placement.nodes)
        | {
            "usd_per_hour": _usd(found.placement.usd_per_hour),
            "usd_per_gpu_hour": _usd(found.placement.usd_per_gpu_hour),
            "price_basis": found.placement.price.basis,
        },
        "cost_usd": {"p10": _usd(cost.p10), "p50": _usd(cost.p50), "p90": _usd(cost.p90)},
        "high_usd": _usd(found.high_usd),
        "marginal_usd": _usd(found.marginal_usd),
        "naive_usd": _usd(found.naive_usd),
        "hours": {"p10": round(hours.p10, 4), "p50": round(hours.p50, 4), "p90": round(hours.p90, 4)},
        "parts": {name: _usd(usd) for name, usd in found.parts.items()},
        "preemptions": round(found.preemptions, 3),
        "restart_hours": round(found.restart_hours, 4),
        "fallback_hours": round(found.fallback_hours, 4),
        "on_time": None if found.on_time is None else round(found.on_time, 4),
        "assumptions": [{"name": a.name, "value": a.value, "source": a.source} for a in found.assumptions],
    }


def _offer(offer: Offer, nodes: int) -> dict[str, Any]:
    return {
        "provider": offer.provider,
        "region": offer.region,
        "zone": offer.zone,
        "instance_type": offer.instance_type,
        "gpu": offer.gpu,
        "count": offer.count,
        "nodes": nodes,
        "capacity": offer.capacity.value,
        "list_usd_per_hour": None if offer.list_usd_per_hour is None else _usd(offer.list_usd_per_hour),
        "as_of": offer.as_of.isoformat(),
        "source": offer.source,
        "simulated": offer.simulated,
    }


def _usd(value: Decimal) -> str:
    return f"{value:f}"
