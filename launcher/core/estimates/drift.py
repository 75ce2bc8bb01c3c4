"""Why a finished run came to something else than its promise: causes in words, with the dollars that each explains.

cost − p50 = Σ causes + other
step time    Σ steps kept · (measured − promised seconds) · price
price        Σ steps kept · (promised seconds · price − those of the promised place), on the fallback as its own
the rest     dollars of the bill − those of the promised parts
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from launcher.core.offers import Capacity
from launcher.core.runs.events import Expected
from launcher.core.runs.report import CENT, bill
from launcher.core.runs.state import Attempt, RunState, billed, hours, machine_usd

LEAST_SHARE = Decimal("0.01")  # of the p50; what explains less is counted among "other"
# a part of the bill, and the promised parts that it is measured against
_PARTS: Mapping[str, tuple[str, ...]] = {
    "set-up": ("setup",),
    "saves": ("saves",),
    "idle time": ("idle",),
    "egress": ("egress", "requests"),
    "storage": ("storage",),
    "supervisor": ("supervisor",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """`usd` of the difference to the p50; `None`: how many cannot be told."""

    name: str
    words: str
    usd: Decimal | None


def drift(state: RunState) -> tuple[Cause, ...]:
    """What explains the difference, largest first; "other" is what nothing explains, and the dollars add up to it."""
    now = state.finished_at or state.at
    promised = state.submitted.promise.cost_usd.p50
    difference = bill(state, now).total_usd - promised
    least = max(CENT, promised * LEAST_SHARE)
    found = [c for c in _causes(state) if c.usd is None or abs(c.usd) >= least]
    other = difference - sum((c.usd for c in found if c.usd is not None), Decimal(0))
    found.sort(key=lambda c: -abs(c.usd or Decimal(0)))
    return (*found, Cause(name="other", words="other", usd=other)) if other else tuple(found)


def _causes(state: RunState) -> Iterator[Cause]:
    yield from _step_time(state)
    expected = state.submitted.promise.expected
    if expected is None:
        yield from _unexpected(state)
        return
    spent = bill(state, state.finished_at or state.at).by_cause
    parts = expected.parts_usd
    yield _interruptions(state, expected, spent)
    yield from _prices(state, expected)
    for name, promised in _PARTS.items():
        usd = spent[promised[0]] - sum((parts.get(part, Decimal(0)) for part in promised), Decimal(0))
        yield Cause(name=name, words=name, usd=usd)


def _step_time(state: RunState) -> Iterator[Cause]:
    """Measured against promised, each on its own GPU type."""
    rows = [(a, steps, p) for a, steps in _kept(state) if a.step_seconds and (p := _promised_seconds(state, a))]
    promised = sum(steps * p for _, steps, p in rows)
    if promised:
        measured = sum(steps * (a.step_seconds or 0.0) for a, steps, _ in rows)
        seconds = ((steps * ((a.step_seconds or 0.0) - p), a) for a, steps, p in rows)
        usd = sum((_usd(s, _usd_per_hour(a)) for s, a in seconds), Decimal(0))
        yield Cause(name="step time", words=f"step time {_percent(measured / promised)}", usd=_cents(usd))


def _unexpected(state: RunState) -> Iterator[Cause]:
    """An older launcher did not record what it expected."""
    if count := _preemptions(state):
        words = f"{count} preemption{'' if count == 1 else 's'}, expected number not recorded"
        yield Cause(name="preemptions", words=words, usd=None)


def _interruptions(state: RunState, expected: Expected, spent: Mapping[str, Decimal]) -> Cause:
    """Steps that were done again, and new starts."""
    count, parts = _preemptions(state), expected.parts_usd
    broken = sum(a.outcome in ("failed", "lost") for a in state.attempts)
    words = f"{_more(count - expected.preemptions)} preemptions than expected ({count}, not {expected.preemptions:.1f})"
    words += f" and {broken} other failure{'' if broken == 1 else 's'}" if broken else ""
    words += f", restarts of {_hours(_restart_hours(state))} instead of {_hours(expected.restart_hours)}"
    promised = sum((parts.get(part, Decimal(0)) for part in ("lost", "restarts")), Decimal(0))
    return Cause(name="preemptions", words=words, usd=spent["lost"] + spent["restarts"] - promised)


def _prices(state: RunState, expected: Expected) -> Iterator[Cause]:
    """What steps cost beyond those of the promised place, at the promised pace of the types that were used."""
    step = state.submitted.promise.step
    if step is None:
        return
    each = _usd(step.seconds, expected.usd_per_hour)
    rows = [
        (a, _usd(steps * seconds, _usd_per_hour(a)), steps * each)
        for a, steps in _kept(state)
        if (seconds := _promised_seconds(state, a))
    ]
    left = [a.number for a in _fallbacks(state)]
    if promised := sum(usd for a, _, usd in rows if a.number not in left):
        paid = sum(usd for a, usd, _ in rows if a.number not in left)
        yield Cause(name="price", words=f"price {_percent(float(paid / promised))}", usd=_cents(paid - promised))
    premium = (expected.fallback_usd_per_hour or expected.usd_per_hour) - expected.usd_per_hour
    beyond = sum(usd - own for a, usd, own in rows if a.number in left)
    spans = (a.billed_until - a.started_at for a in _fallbacks(state) if a.billed_until and a.started_at)
    words = f"{_hours(_in_hours(spans))} on the fallback instead of {_hours(expected.fallback_hours)}"
    usd = _cents(beyond - Decimal(str(expected.fallback_hours)) * premium)
    yield Cause(name="fallback", words=words, usd=usd)


def _fallbacks(state: RunState) -> Sequence[Attempt]:
    """Attempts on capacity that stays, of a run that began on spot."""
    if not state.attempts or state.attempts[0].placement.offer.capacity is not Capacity.SPOT:
        return ()
    return [a for a in state.attempts if a.started_at and a.placement.offer.capacity is not Capacity.SPOT]


def _kept(state: RunState) -> Sequence[tuple[Attempt, int]]:
    """Attempts with the steps that were built upon."""
    trained = [a for a in state.attempts if a.training_at and a.started_at]
    ends = [*(a.first_step for a in trained[1:]), *(a.step for a in trained[-1:])]
    return [(a, max(0, end - a.first_step)) for a, end in zip(trained, ends, strict=True)]


def _promised_seconds(state: RunState, attempt: Attempt) -> float | None:
    return state.submitted.pace.step_seconds.get(attempt.placement.offer.gpu)


def _usd_per_hour(attempt: Attempt) -> Decimal:
    """The mean of what was billed."""
    ended_at = attempt.billed_until or attempt.requested_at
    span = sum((hours(until - since) for since, until, _ in billed(attempt, ended_at)), Decimal(0))
    return machine_usd(attempt, ended_at) / span if span else attempt.placement.usd_per_hour


def _usd(seconds: float, usd_per_hour: Decimal) -> Decimal:
    return usd_per_hour * Decimal(str(seconds)) / 3600


def _preemptions(state: RunState) -> int:
    return sum(a.outcome == "preempted" for a in state.attempts)


def _restart_hours(state: RunState) -> float:
    """Of every machine but the first, until its training went on."""
    started = [a for a in state.attempts if a.started_at][1:]
    spans = ((a.training_at or a.ended_at or a.started_at, a.started_at) for a in started)
    return _in_hours(until - since for until, since in spans if until and since)


def _in_hours(spans: Iterable[timedelta]) -> float:
    return float(sum((hours(span) for span in spans), Decimal(0)))


def _cents(usd: Decimal | int) -> Decimal:
    return Decimal(usd).quantize(CENT)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "−")


def _more(count: float) -> str:
    return f"{abs(count):.1f} {'more' if count > 0 else 'fewer'}"


def _hours(count: float) -> str:
    return f"{count:.1f} h" if count >= 1 else f"{count * 60:.0f} min"
