"""What comes next for a run: `next_action(state, options, now, rules) → Action`.

Two guards stand above every wish for a lower price. Time: a place that may not last (spot, or a reservation that ends
too early) is used only while the fallback could still finish before the deadline. Money: a machine is asked to end
while the approved amount still pays for one poll, the last save and the release; nothing is launched that could not do
useful work with what is left. A training that works is moved by a second machine beside it (`changeover.py`): there
are never more than these two, and one of them waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from launcher.core.policy.actions import (
    Action,
    AskToEnd,
    Finish,
    HandOver,
    Judge,
    Keep,
    Launch,
    Relaunch,
    Release,
    Wait,
)
from launcher.core.policy.changeover import (
    first,
    given_up,
    gone_by_seconds,
    head_start_seconds,
    is_due,
    move,
    must_end_first,
)
from launcher.core.policy.spot import jitter
from launcher.core.policy.view import View
from launcher.core.prices.options import Option, Rules, changeover_seconds
from launcher.core.runs.events import EndCause
from launcher.core.runs.state import Attempt, RunState
from launcher.core.spans import span

__all__ = [
    "Action",
    "AskToEnd",
    "Finish",
    "HandOver",
    "Judge",
    "Keep",
    "Launch",
    "Relaunch",
    "Release",
    "View",
    "Wait",
    "next_action",
]


def next_action(state: RunState, options: Sequence[Option], *, now: datetime, rules: Rules) -> Action:
    """The next action for a run that has not finished; the same values always give the same action."""
    view = View(state=state, options=options, now=now, rules=rules)
    trainer, incoming = state.trainer, state.incoming
    if incoming and (end := _without_use(view, trainer, incoming)):
        return end
    unreleased = [a for a in state.attempts if a.is_open and not a.is_live]
    if incoming and trainer is None and all(a.has_exited for a in unreleased):  # the release can wait, it cannot
        return HandOver(attempt=incoming.number)
    if unreleased:
        return Release(attempt=unreleased[0].number)
    if trainer:
        return _with_machine(view, trainer)
    return _verdict(state, rules) or _next_machine(view)


def _without_use(view: View, trainer: Attempt | None, incoming: Attempt) -> Judge | None:
    """The second machine goes first when the run ends, or what is left does not pay for both."""
    state = view.state
    if state.stop_requested_at:
        why = f"{state.stopped_by or 'somebody'} asked the run to stop"
        return Judge(attempt=incoming.number, outcome="stopped", detail=why, cause="stop_requested")
    if trainer:
        return given_up(view, trainer, incoming)
    finish = _verdict(state, view.rules)
    if finish is None:
        return None
    return Judge(attempt=incoming.number, outcome="stopped", detail=f"not needed any more: {finish.detail}")


def _with_machine(view: View, live: Attempt) -> Action:
    if live.end_requested_at:
        return _ending(view, live)
    cause = _end_cause(view, live)
    if cause and live.training_at is None:
        detail = f"{cause[1]}; nothing was heard of the training yet"
        return Judge(attempt=live.number, outcome="stopped", detail=detail, cause=cause[0])
    if cause:
        return AskToEnd(attempt=live.number, cause=cause[0], why=cause[1])
    if live.started_at is None:
        return _unconfirmed(live, view.now, view.rules)
    incoming = view.state.incoming
    return _beside(view, live, incoming) if incoming else move(view, live)


def _beside(view: View, live: Attempt, incoming: Attempt) -> Action:
    if incoming.started_at is None:
        return _unconfirmed(incoming, view.now, view.rules)
    if incoming.overlaps and incoming.ready_at is None:
        return Keep()
    why = f"attempt {incoming.number} at {incoming.placement.offer.where} takes over"
    return AskToEnd(attempt=live.number, cause="handed_over", why=why)


def _unconfirmed(live: Attempt, now: datetime, rules: Rules) -> Action:
    """Bringing a checkpoint along may take longer than any launch: that counts from when it was there."""
    if now - (live.replicated_at or live.requested_at) >= timedelta(seconds=rules.launch_seconds):
        return Judge(attempt=live.number, outcome="lost", detail="the launch showed no machine in time")
    return Relaunch(attempt=live.number)


def _ending(view: View, live: Attempt) -> Action:
    """A save is waited for while time and money last; a deadline that is lost already hurries nobody."""
    assert live.end_requested_at is not None
    rules = view.rules
    if view.now - live.end_requested_at >= timedelta(seconds=rules.grace_seconds):
        why = "did not end when asked; killed after the grace time"
    elif view.left_usd <= view.ahead_usd(live, rules.poll_seconds + rules.release_seconds):
        why = "the approved amount is spent; killed"
    elif live.end_cause in ("fallback", "handed_over") and (
        -head_start_seconds(view) <= view.slack_seconds < gone_by_seconds(view)
    ):
        why = "the fallback is due; killed"
    else:
        return Keep()
    return Judge(attempt=live.number, outcome="stopped", detail=why)


def _end_cause(view: View, live: Attempt) -> tuple[EndCause, str] | None:
    state = view.state
    if state.stop_requested_at:
        return "stop_requested", f"{state.stopped_by or 'somebody'} asked the run to stop"
    closing = view.closing_seconds(live)
    if view.left_usd <= view.ahead_usd(live, closing):
        return "cap", f"the approved ${state.approved_usd:,.2f} is nearly spent"
    closes_at = _closes_at(live)
    if closes_at is not None and closes_at - view.now < timedelta(seconds=closing):
        return "place_closes", f"{live.placement.offer.where} closes on {closes_at:%Y-%m-%d %H:%M} UTC"
    if state.incoming is None and is_due(view) and must_end_first(view, live):
        return "fallback", f"only {span(max(0.0, view.slack_seconds))} of slack are left before the deadline"
    return None


def _closes_at(live: Attempt) -> datetime | None:
    """When the place ends the attempt by itself: at its own end, or at that of the lease."""
    offer = live.placement.offer
    if offer.lease_seconds is None:
        return offer.closes_at
    leased_until = (live.started_at or live.requested_at) + timedelta(seconds=offer.lease_seconds)
    return min(leased_until, offer.closes_at or leased_until)


def _verdict(state: RunState, rules: Rules) -> Finish | None:
    """How the run ends, if its attempts since the submit (or the reopening) end it."""
    last = next((a for a in reversed(state.attempts[state.reopened_after :]) if not a.is_incoming), None)
    if last and last.outcome == "completed":
        return Finish(outcome="succeeded", detail=f"step {last.step:,} reached" if last.training_at else last.detail)
    if state.stop_requested_at:
        return Finish(outcome="cancelled", detail=f"stopped by {state.stopped_by}")
    if last is None:
        return None
    if last.outcome == "failed":
        return Finish(outcome="failed", detail=last.detail)
    if last.refused.startswith("rejected"):
        return Finish(outcome="failed", detail=last.refused)
    if last.outcome == "stopped" and last.end_cause == "stop_requested":
        return Finish(outcome="cancelled", detail=last.detail)
    if last.end_cause == "cap":
        return Finish(outcome="out_of_budget", detail=f"${state.approved_usd:,.2f} approved; more resumes the run")
    if _fruitless(state) >= rules.max_fruitless_attempts:
        return Finish(outcome="failed", detail=f"{rules.max_fruitless_attempts} attempts in a row saved no new step")
    return None


def _fruitless(state: RunState) -> int:
    """Attempts in a row, newest first, that were lost and saved no new step; a preemption is nobody's fault."""
    count = 0
    for attempt in reversed(state.attempts[state.reopened_after :]):
        if attempt.refused_at or attempt.is_incoming:
            continue
        if attempt.outcome != "lost" or (attempt.committed_step or 0) > attempt.first_step:
            break
        count += 1
    return count


def _next_machine(view: View) -> Action:
    rules = view.rules
    if not view.wanted:
        return Wait(seconds=rules.retry_seconds, why="no offer fits any more; asking again later")
    if not view.affordable:
        return Finish(outcome="out_of_budget", detail="what is left would not pay for a start and a save")
    idle = view.slack_seconds - changeover_seconds(rules)
    pause = _backoff_seconds(view.state, view.now)
    if pause > 0 and idle > 0:
        return Wait(seconds=max(rules.poll_seconds, min(pause, idle)), why="the last attempt was lost; backing off")
    return first(view)


def _backoff_seconds(state: RunState, now: datetime) -> float:
    """30 s, 1 min, 2 min … up to 15 min after attempts that were lost without a step."""
    fruitless = _fruitless(state)
    last = state.attempt
    if not fruitless or last is None or last.released_at is None:
        return 0.0
    seconds = min(900.0, 30.0 * 2.0 ** (fruitless - 1)) * jitter(state, last.number)
    return seconds - (now - last.released_at).total_seconds()
