"""A replay as a table, as sentences, as JSON and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from rich.console import Console

from launcher.core.replays.replay import Actual, Decision, Outcome, Replay, Spread
from launcher.core.replays.timeline import Timeline
from launcher.core.spans import span
from launcher.render.tables import Column, Row, table
from launcher.render.timeline import Lane, lanes_svg
from launcher.render.words import Money, simulated

SCHEMA = "launch/replay/v1"
AS_IT_WAS = "as it was"


def show_replay(console: Console, found: Replay, money: Money, *, explain: bool) -> None:
    label = simulated(found.simulated)
    futures = "1 future" if found.num_futures == 1 else f"{found.num_futures} futures, the same for each policy"
    console.print(f"\n [bold]{found.name}[/]{label}  {futures}", highlight=False)
    for sentence in _basis(found, money):
        console.print(f" {sentence}", highlight=False)
    console.print()
    rows = [_row(outcome, found, money) for outcome in found.outcomes]
    console.print(table(console, _columns(found), [*_actual_rows(found, money), *rows]))
    tenths = "" if found.num_futures == 1 else " · 80 %: from the 10th to the 90th percentile"
    console.print(f" ▸ the cheapest of those that are late least often{tenths}", highlight=False)
    for outcome in found.outcomes:
        console.print(f" [dim]{outcome.policy.name}: {outcome.policy.about}[/]", highlight=False)
    if explain:
        _explain(console, found)


def replay_json(found: Replay) -> dict[str, Any]:
    """`launch/replay/v1`: money as decimal strings in US dollars; hours are `null` where a policy comes to no end."""
    return {
        "schema": SCHEMA,
        "name": found.name,
        "currency": "USD",
        "simulated": found.simulated,
        "num_futures": found.num_futures,
        "weather": found.weather,
        "prices": found.prices,
        "deadline_hours": _hours_json(found.deadline_hours),
        "deadline_assumed": found.deadline_assumed,
        "notes": list(found.notes),
        "best": found.best.policy.name,
        "policies": [_outcome_json(outcome, found) for outcome in found.outcomes],
        "actual": found.actual and _actual_json(found.actual),
    }


def replay_svg(found: Replay, money: Money) -> str:
    """A lane for each policy, all of them in the same future; of a run, what became of it above them."""
    lanes = [Lane(timeline=outcome.timeline, note=_end_words(outcome.timeline)) for outcome in found.outcomes]
    if found.actual:
        name = AS_IT_WAS if found.actual.is_finished else f"{AS_IT_WAS}, so far"
        lanes.insert(0, Lane(timeline=found.actual.timeline, note=_end_words(found.actual.timeline), title=name))
    title = f"{found.name}{simulated(found.simulated)}: weather {found.weather}"
    return lanes_svg(lanes, money, title=title)


def _basis(found: Replay, money: Money) -> Iterator[str]:
    yield f"Weather  {found.weather}"
    yield f"Prices  {found.prices}"
    if found.deadline_hours < math.inf:
        assumed = ", assumed: none was given" if found.deadline_assumed else ""
        yield f"Deadline  {span(found.deadline_hours * 3600)} after the submit{assumed}"
    for note in found.notes:
        yield f"Note  {note}"
    if money.note:
        yield f"Currency  {money.note}"


def _columns(found: Replay) -> tuple[Column, ...]:
    one = found.num_futures == 1
    return (
        Column(""),
        Column("policy"),
        Column("cost" if one else "mean cost", "right"),
        *(() if one else (Column("80 %", "right", drop=2),)),
        Column(f"vs {found.outcomes[0].policy.name}", "right", drop=1),
        Column("takes" if one else "mean time", "right"),
        *(() if one else (Column("80 %", "right", drop=3),)),
        Column("preemptions", "right", drop=4),
        Column("on-demand", "right", drop=5),
        Column("late", "right"),
    )


def _row(outcome: Outcome, found: Replay, money: Money) -> Row:
    cost, hours, is_best = outcome.cost_usd, outcome.hours, outcome is found.best
    one = found.num_futures == 1
    cells = (
        "▸" if is_best else "",
        outcome.policy.name,
        money.about(cost.mean),
        *(() if one else (f"{money.about(cost.p10)} – {money.about(cost.p90)}",)),
        _ratio_words(_ratio(outcome, found)),
        _span(hours.mean),
        *(() if one else (f"{_span(hours.p10)} – {_span(hours.p90)}",)),
        f"{outcome.preemptions:.0f}" if one else f"{outcome.preemptions:.1f}",
        _span(outcome.fallback_hours),
        ("yes" if outcome.late else "no") if one else f"{outcome.late:.0%}",
    )
    return cells, "bold" if is_best else ""


def _actual_rows(found: Replay, money: Money) -> list[Row]:
    actual = found.actual
    if actual is None:
        return []
    blank = () if found.num_futures == 1 else ("",)
    ours = found.outcomes[0].cost_usd.mean
    ratio = float(actual.cost_usd / ours - 1) if ours and actual.is_finished else None
    cells = (
        "",
        AS_IT_WAS if actual.is_finished else f"{AS_IT_WAS}, so far",
        money.exact(actual.cost_usd),
        *blank,
        _ratio_words(ratio),
        _span(actual.hours),
        *blank,
        str(actual.preemptions),
        _span(actual.fallback_hours),
        "yes" if actual.is_late else "no",
    )
    return [(cells, "")]


def _explain(console: Console, found: Replay) -> None:
    told = [(o.policy.name, o.decisions) for o in found.outcomes[:1]]
    if found.actual:
        told.insert(0, (AS_IT_WAS, found.actual.decisions))
    columns = (Column("at", "right"), Column("decision"), Column("where"), Column("why", folds=True))
    for name, decisions in told:
        which = "" if name == AS_IT_WAS or found.num_futures == 1 else ", in the future of its median cost"
        console.print(f"\n [bold]{name}[/]{which}", highlight=False)
        console.print(table(console, columns, [_decision_row(decision) for decision in decisions]))


def _decision_row(decision: Decision) -> Row:
    return (span(decision.at_hours * 3600), decision.what, decision.where, decision.why), ""


def _ratio(outcome: Outcome, found: Replay) -> float | None:
    ours = found.outcomes[0]
    if outcome is ours or not ours.cost_usd.mean:
        return None
    return float(outcome.cost_usd.mean / ours.cost_usd.mean - 1)


def _ratio_words(ratio: float | None) -> str:
    return "–" if ratio is None else f"{100 * ratio:+.1f} %".replace("-", "−")


def _span(hours: float) -> str:
    return "no end" if math.isinf(hours) else span(hours * 3600)


def _end_words(timeline: Timeline) -> str:
    taken = sum(mark.kind == "preempted" for mark in timeline.marks)
    times = "1 preemption" if taken == 1 else f"{taken} preemptions"
    late = ", late" if timeline.end_hours > timeline.deadline_hours else ""
    return f"{span(timeline.end_hours * 3600)}, {times}{late}"


def _outcome_json(outcome: Outcome, found: Replay) -> dict[str, Any]:
    cost, ratio = outcome.cost_usd, _ratio(outcome, found)
    return {
        "policy": outcome.policy.name,
        "about": outcome.policy.about,
        "cost_usd": {"mean": _usd(cost.mean), "p10": _usd(cost.p10), "p90": _usd(cost.p90)},
        "cost_ratio": None if ratio is None else round(1 + ratio, 4),
        "hours": _spread_json(outcome.hours),
        "preemptions": round(outcome.preemptions, 3),
        "on_demand_hours": round(outcome.fallback_hours, 4),
        "late": round(outcome.late, 4),
        "shown": _timeline_json(outcome.timeline, outcome.decisions),
    }


def _actual_json(actual: Actual) -> dict[str, Any]:
    return {
        "is_finished": actual.is_finished,
        "is_late": actual.is_late,
        "cost_usd": _usd(actual.cost_usd),
        "hours": round(actual.hours, 4),
        "preemptions": actual.preemptions,
        "on_demand_hours": round(actual.fallback_hours, 4),
        "shown": _timeline_json(actual.timeline, actual.decisions),
    }


def _timeline_json(timeline: Timeline, decisions: tuple[Decision, ...]) -> dict[str, Any]:
    """The future of the picture; hours since the submit."""
    return {
        "cost_usd": _usd(timeline.total_usd),
        "hours": round(timeline.end_hours, 4),
        "stretches": [
            {
                "machine": s.machine,
                "place": s.place,
                "capacity": s.capacity.value,
                "doing": s.doing,
                "since_hours": round(s.begin_hours, 4),
                "until_hours": round(s.end_hours, 4),
            }
            for s in timeline.stretches
        ],
        "marks": [{"place": m.place, "kind": m.kind, "at_hours": round(m.at_hours, 4)} for m in timeline.marks],
        "decisions": [
            {"at_hours": round(d.at_hours, 4), "what": d.what, "where": d.where or None, "why": d.why}
            for d in decisions
        ],
    }


def _spread_json(spread: Spread) -> dict[str, float | None]:
    return {name: _hours_json(getattr(spread, name)) for name in ("mean", "p10", "p90")}


def _hours_json(hours: float) -> float | None:
    return None if math.isinf(hours) else round(hours, 4)


def _usd(value: Decimal) -> str:
    return f"{value.quantize(Decimal('0.01')):f}"
