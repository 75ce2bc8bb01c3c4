"""What comes next for a run: `next_action(state, options, now, rules) → Action`.

Two guards stand above every wish for a lower price. Time: a place that may not last (spot, or a reservation that ends
too early) is used only while the fallback could still finish before the deadline. Money: a machine is asked to end
while the approved amount still pays for one poll, the last save and the release; nothing is launched that could not do
useful work with what is left. Under both, a run on its fallback goes back to spot when that is expected to pay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property

from launcher.core.events import AttemptOutcome, EndCause, RunOutcome
from launcher.core.offers import Capacity
from launcher.core.options import Option, Rules, changeover_seconds, closing_seconds, least_usd, useful_seconds
from launcher.core.spot import Return, blocks, jitter, return_to, worth_waiting
from launcher.core.state import Attempt, RunState, burn_usd_per_hour, egress_usd, spent_usd

_FAR_SHORT = Decimal("0.8")  # of the money for the rest: no error of the pace would make it enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    option: Option
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaunch:
    """The intent is recorded and no machine is there: ask again, the job's name makes it harmless."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskToEnd:
    attempt: int
    cause: EndCause
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Record the end of an attempt that will not end by itself."""

    attempt: int
    outcome: AttemptOutcome
    detail: str
    cause: EndCause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing runs and nothing is billed until then."""

    seconds: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The attempt goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    outcome: RunOutcome
    detail: str


Action = Launch | Relaunch | AskToEnd | Judge | Release | Wait | Keep | Finish


def next_action(state: RunState, options: Sequence[Option], *, now: datetime, rules: Rules) -> Action:
    """The next action for a run that has not finished; the same values always give the same action."""
    ended = next((a for a in state.attempts if a.is_open and not a.is_live), None)
    if ended:
        return Release(attempt=ended.number)
    view = View(state=state, options=options, now=now, rules=rules)
    live = next((a for a in state.attempts if a.is_live), None)
    if live:
        return _with_machine(view, live)
    return _verdict(state, rules) or _next_machine(view)


@dataclass(frozen=True, kw_only=True)
class View:
    """A run at one instant: what is left to do and to spend, and where that could be."""

    state: RunState
    options: Sequence[Option]
    now: datetime
    rules: Rules

    @cached_property
    def wanted(self) -> list[Option]:
        """Of the capacity that the spec names."""
        return [o for o in self.options if o.capacity in self.state.spec.mode]

    @cached_property
    def left_usd(self) -> Decimal:
        return self.state.approved_usd - spent_usd(self.state, self.now)

    @cached_property
    def affordable(self) -> list[Option]:
        return [o for o in self.wanted if self.left_usd > least_usd(o, self.rules)]

    @cached_property
    def free(self) -> list[Option]:
        """What can be paid, is open, and was not found without capacity just now; the best of each capacity first."""
        asked = blocks(self.state, self.rules)
        free = [o for o in self.affordable if asked.get(o.placement.offer.key, self.now) <= self.now]
        return sorted((o for o in free if o.is_open(self.now, self.rules)), key=_rank)

    @cached_property
    def slack_seconds(self) -> float:
        """Time that can be wasted before only an immediate fallback meets the deadline.

        Counts from the last commit: what is not committed may be lost. Infinite where there is no fallback that what
        is left can still start.
        """
        return max((spare for o in self.affordable if (spare := self.spare_seconds(o)) is not None), default=math.inf)

    def spare_seconds(self, option: Option) -> float | None:
        steps, deadline_at = self.steps_from(self.state.committed_step), self.state.submitted.deadline_at
        return option.spare_seconds(steps, deadline_at=deadline_at, now=self.now, rules=self.rules)

    def steps_from(self, step: int) -> int:
        return max(0, self.state.spec.workload.steps - step)

    def here(self, live: Attempt) -> Option | None:
        """Where the attempt is, as it would be found now."""
        return next((o for o in self.wanted if o.placement.offer.key == live.placement.offer.key), None)


def _with_machine(view: View, live: Attempt) -> Action:
    if live.end_requested_at:
        return _ending(view, live)
    cause = _end_cause(view, live)
    if cause is None:
        return Keep() if live.started_at else _unconfirmed(live, view.now, view.rules)
    if live.training_at is None:
        detail = f"{cause[1]}; nothing was heard of the training yet"
        return Judge(attempt=live.number, outcome="stopped", detail=detail, cause=cause[0])
    return AskToEnd(attempt=live.number, cause=cause[0], why=cause[1])


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
    elif view.left_usd <= _ahead_usd(view, live, rules.poll_seconds + rules.release_seconds):
        why = "the approved amount is spent; killed"
    elif live.end_cause == "fallback" and 0 <= view.slack_seconds < changeover_seconds(rules):
        why = "the fallback is due; killed"
    else:
        return Keep()
    return Judge(attempt=live.number, outcome="stopped", detail=why)


def _end_cause(view: View, live: Attempt) -> tuple[EndCause, str] | None:
    state, rules = view.state, view.rules
    if state.stop_requested_at:
        return "stop_requested", f"{state.stopped_by or 'somebody'} asked the run to stop"
    closing = closing_seconds(rules, state.submitted.pace.closing_save_seconds, live.step_seconds or 0.0)
    if view.left_usd <= _ahead_usd(view, live, closing):
        return "cap", f"the approved ${state.approved_usd:,.2f} is nearly spent"
    closes_at = _closes_at(live)
    if closes_at is not None and closes_at - view.now < timedelta(seconds=closing):
        return "place_closes", f"{live.placement.offer.where} closes on {closes_at:%Y-%m-%d %H:%M} UTC"
    slack = view.slack_seconds
    if slack < changeover_seconds(rules) + closing and _may_end_late(view, live) and _has_fallback(view, live):
        return "fallback", f"only {max(0.0, slack) / 3600:.1f} h of slack are left before the deadline"
    return _back_to_spot(view, live)


def _closes_at(live: Attempt) -> datetime | None:
    """When the place ends the attempt by itself: at its own end, or at that of the lease."""
    offer = live.placement.offer
    if offer.lease_seconds is None:
        return offer.closes_at
    leased_until = (live.started_at or live.requested_at) + timedelta(seconds=offer.lease_seconds)
    return min(leased_until, offer.closes_at or leased_until)


def _may_end_late(view: View, live: Attempt) -> bool:
    """Spot may always. Capacity that stays does where the work outlasts it, and the fallback would not be late too."""
    offer, deadline_at, here = live.placement.offer, view.state.submitted.deadline_at, view.here(live)
    if offer.capacity is Capacity.SPOT:
        return True
    pace = live.step_seconds or (here.step_seconds if here else 0.0)
    saving_share = here.saving_share if here else 0.0
    work_seconds = view.steps_from(max(live.step, view.state.committed_step)) * pace * (1.0 + saving_share)
    ends_at = view.now + timedelta(seconds=work_seconds + view.state.submitted.pace.closing_save_seconds)
    return view.slack_seconds >= 0 and ends_at > min(deadline_at, offer.closes_at or deadline_at)


def _has_fallback(view: View, live: Attempt) -> bool:
    """A place to which the rest can be left, and that may have capacity: each refusal is believed twice as long."""
    asked = blocks(view.state, view.rules, doubling=True)
    return any(
        view.spare_seconds(o) is not None and o.is_open(view.now, view.rules)
        for o in view.affordable
        if (key := o.placement.offer.key) != live.placement.offer.key and asked.get(key, view.now) <= view.now
    )


def _back_to_spot(view: View, live: Attempt) -> tuple[EndCause, str] | None:
    """From the fallback, where the ladder has spot below it: if the slack bears the move and it is expected to pay."""
    here, mode, rules = view.here(live), view.state.spec.mode, view.rules
    if here is None or live.training_at is None or Capacity.SPOT not in mode[: mode.index(here.capacity)]:
        return None
    steps = view.steps_from(max(live.step, view.state.committed_step))
    closing = closing_seconds(rules, here.durable_seconds, here.step_seconds)
    # twice: the slack at which spot is left for is not the one at which it is left again
    spot = [o for o in view.free if o.capacity is Capacity.SPOT]
    near = [
        o for o in spot if view.slack_seconds >= changeover_seconds(rules) + 2 * (closing + useful_seconds(o, rules))
    ]
    ways = [return_to(view.state, here, o, steps=steps, now=view.now, rules=rules) for o in near]
    paying = [way for way in ways if way.is_worth_it(view.now) and _is_paid(view, way, steps)]
    best = max(paying, key=lambda way: way.expected_usd, default=None)
    if best is None:
        return None
    offer, price = best.there.placement.offer, best.there.placement.usd_per_hour
    return "back_to_spot", f"{offer.where} at ${price:,.2f}/h of spot is expected to save ${best.expected_usd:,.2f}"


def _is_paid(view: View, way: Return, steps: int) -> bool:
    """The run can be finished here even after a failed try; or the money is far too short for that in any case."""
    here = way.here
    closing = closing_seconds(view.rules, here.durable_seconds, here.step_seconds)
    stay_usd = here.placement.usd_per_hour * Decimal(str(steps * here.step_seconds + closing)) / 3600
    return view.left_usd >= stay_usd + way.risked_usd or view.left_usd < _FAR_SHORT * stay_usd


def _ahead_usd(view: View, live: Attempt, seconds: float) -> Decimal:
    """What `seconds` more cost, with the data read since the trainer was last heard of and a last save's way home."""
    state = view.state
    save_gb = state.checkpoint.bytes / 1e9 if state.checkpoint else state.submitted.pace.checkpoint_gb
    saved = live.save_usd_per_gb * Decimal(str(save_gb))
    machine = burn_usd_per_hour(state) * Decimal(str(seconds)) / 3600 + saved
    pace = live.step_seconds or state.submitted.pace.step_seconds.get(live.placement.offer.gpu)
    if live.heard_at is None or not pace:
        return machine
    unheard = (view.now - live.heard_at).total_seconds() + seconds
    then = replace(live, step=live.step + math.ceil(unheard / pace))
    return machine + egress_usd(state, then) - egress_usd(state, live)


def _verdict(state: RunState, rules: Rules) -> Finish | None:
    """How the run ends, if its attempts since the submit (or the reopening) end it."""
    last = state.attempts[-1] if state.next_attempt - 1 > state.reopened_after else None
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
        if attempt.refused_at:
            continue
        if attempt.outcome != "lost" or (attempt.committed_step or 0) > attempt.first_step:
            break
        count += 1
    return count


def _next_machine(view: View) -> Action:
    rules, slack = view.rules, view.slack_seconds
    if not view.wanted:
        return Wait(seconds=rules.retry_seconds, why="no offer fits any more; asking again later")
    if not view.affordable:
        return Finish(outcome="out_of_budget", detail="what is left would not pay for a start and a save")
    idle = slack - changeover_seconds(rules)
    pause = _backoff_seconds(view.state, view.now)
    if pause > 0 and idle > 0:
        return Wait(seconds=max(rules.poll_seconds, min(pause, idle)), why="the last attempt was lost; backing off")
    option = _climb(view)
    if option:
        return Launch(option=option, why=_why(option, slack))
    opens = [o.placement.offer.opens_at for o in view.affordable]
    news = [at for at in (*blocks(view.state, rules).values(), *opens) if at is not None and at > view.now]
    until_news = (min(news) - view.now).total_seconds() if news else rules.retry_seconds
    return Wait(
        seconds=max(rules.poll_seconds, min(until_news, idle if idle > 0 else math.inf)),
        why=f"none of {len(view.affordable)} places has capacity",
    )


def _climb(view: View) -> Option | None:
    """The best free option on the lowest rung of the ladder that the deadline still allows.

    Where that leaves none, any that is free, certain ones first: no machine does worse than every machine.
    """
    slack, rules, mode = view.slack_seconds, view.rules, view.state.spec.mode
    needed = changeover_seconds(rules) + max(useful_seconds(o, rules) for o in view.affordable)
    for rung in mode:
        candidates = [o for o in view.free if o.capacity is rung and (slack >= needed or _is_in_time(view, o))]
        if candidates:
            return candidates[0]
        if rung is Capacity.SPOT and slack >= needed and worth_waiting(view.state, view.affordable, slack, view.now):
            return None
    return min(view.free, key=lambda o: (view.spare_seconds(o) is None, mode.index(o.capacity)), default=None)


def _is_in_time(view: View, option: Option) -> bool:
    spare = view.spare_seconds(option)
    return spare is not None and spare >= 0


def _rank(option: Option) -> tuple[float, str]:
    return option.effective_usd_per_step, option.placement.offer.key


def _why(option: Option, slack: float) -> str:
    offer = option.placement.offer
    time = "" if math.isinf(slack) else f", {slack / 3600:.1f} h of slack"
    name = {"spot": "cheapest free spot", "reserved": "reserved capacity", "on_demand": "on demand"}[
        offer.capacity.value
    ]
    return f"{name} at ${option.placement.usd_per_hour:,.2f}/h{time}"


def _backoff_seconds(state: RunState, now: datetime) -> float:
    """30 s, 1 min, 2 min … up to 15 min after attempts that were lost without a step."""
    fruitless = _fruitless(state)
    last = state.attempt
    if not fruitless or last is None or last.released_at is None:
        return 0.0
    seconds = min(900.0, 30.0 * 2.0 ** (fruitless - 1)) * jitter(state, last.number)
    return seconds - (now - last.released_at).total_seconds()
