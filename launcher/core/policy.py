"""The one place that decides what happens next to a run: `decide(state, options, now) → Action`.

Two guards stand above every wish for a lower price. Time: spot is used only while the fallback could still
finish before the deadline. Money: a machine is asked to end while the approved amount still pays for one poll,
the last save and the release; nothing is launched that could not do useful work with what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import sha256

from launcher.core.events import AttemptOutcome, EndCause, RunOutcome
from launcher.core.offers import Capacity, Placement
from launcher.core.state import Attempt, RunState, burn_usd_per_hour, egress_usd, spent_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A placement that the run may go to, and what an hour there is good for."""

    placement: Placement
    step_seconds: float
    setup_seconds: float
    save_seconds: float  # of training that one save costs
    durable_seconds: float  # until it is committed: what is waited for at an attempt's end
    preemptions_per_hour: float  # of a fresh machine; 0 for capacity that stays
    egress_usd_per_read: Decimal = Decimal(0)

    @property
    def capacity(self) -> Capacity:
        return self.placement.offer.capacity

    @property
    def effective_usd_per_step(self) -> float:
        """Price of a step, with the expected restarts and data reads of one hour added to that hour."""
        hourly = float(self.placement.usd_per_hour)
        restart = hourly * self.setup_seconds / 3600 + float(self.egress_usd_per_read)
        return (hourly + restart * self.preemptions_per_hour) * self.step_seconds / 3600

    def seconds_to_finish(self, steps: int) -> float:
        return self.setup_seconds + steps * self.step_seconds + self.durable_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Waiting times and limits of the supervisor, in the run's own time."""

    poll_seconds: float = 10.0
    release_seconds: float = 30.0  # from the decision until nothing is billed
    grace_seconds: float = 300.0  # for a step and a save, after a trainer was asked to end
    silence_seconds: float = 600.0  # a trainer that once spoke and is silent for so long is lost
    start_seconds: float = 3600.0  # a granted machine that does not come up, or whose set-up does not end, is lost
    launch_seconds: float = 1200.0  # a launch that shows no machine for so long is refused
    retry_seconds: float = 900.0  # until a place that had no capacity is asked again
    quota_retry_seconds: float = 6 * 3600.0
    fallback_delay_seconds: float = 3600.0  # until fallback capacity runs, at the worst
    max_fruitless_attempts: int = 6  # in a row, ended without a new step


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


def decide(state: RunState, options: Sequence[Option], *, now: datetime, rules: Rules) -> Action:
    """The next action for a run that has not finished; the same values always give the same action."""
    ended = next((a for a in state.attempts if a.is_open and not a.is_live), None)
    if ended:
        return Release(attempt=ended.number)
    wanted = [o for o in options if o.capacity in state.spec.mode]
    live = next((a for a in state.attempts if a.is_live), None)
    if live:
        return _with_machine(state, live, wanted, now, rules)
    return _verdict(state, rules) or _next_machine(state, wanted, now, rules)


def slack_seconds(state: RunState, options: Sequence[Option], now: datetime) -> float:
    """Time that can be wasted before only an immediate fallback meets the deadline.

    Counts from the last commit: what is not committed may be lost. Infinite where there is no fallback.
    """
    steps = state.spec.workload.steps - state.committed_step
    firm = [o.seconds_to_finish(steps) for o in options if o.capacity is not Capacity.SPOT]
    left = (state.submitted.deadline_at - now).total_seconds()
    return left - min(firm) if firm else math.inf


def closing_seconds(rules: Rules, save_seconds: float, step_seconds: float) -> float:
    """What must still be affordable at every look: until the next one, a step, a save, the look that finds it done
    and the release."""
    return rules.poll_seconds + step_seconds + save_seconds + rules.poll_seconds + rules.release_seconds


def changeover_seconds(rules: Rules) -> float:
    """Slack that is gone when the fallback runs: the poll that finds it due, the release, the fallback's start."""
    return rules.poll_seconds + rules.release_seconds + rules.fallback_delay_seconds


def _with_machine(state: RunState, live: Attempt, options: Sequence[Option], now: datetime, rules: Rules) -> Action:
    if live.end_requested_at:
        return _ending(state, live, options, now, rules)
    cause = _end_cause(state, live, options, now, rules)
    if cause is None:
        return Keep() if live.started_at else _unconfirmed(live, now, rules)
    if live.training_at is None:
        detail = f"{cause[1]}; nothing was heard of the training yet"
        return Judge(attempt=live.number, outcome="stopped", detail=detail, cause=cause[0])
    return AskToEnd(attempt=live.number, cause=cause[0], why=cause[1])


def _unconfirmed(live: Attempt, now: datetime, rules: Rules) -> Action:
    if now - live.requested_at >= timedelta(seconds=rules.launch_seconds):
        return Judge(attempt=live.number, outcome="lost", detail="the launch showed no machine in time")
    return Relaunch(attempt=live.number)


def _ending(state: RunState, live: Attempt, options: Sequence[Option], now: datetime, rules: Rules) -> Action:
    """A save is waited for while time and money last; a deadline that is lost already hurries nobody."""
    assert live.end_requested_at is not None
    if now - live.end_requested_at >= timedelta(seconds=rules.grace_seconds):
        why = "did not end when asked; killed after the grace time"
    elif _left_usd(state, now) <= _ahead_usd(state, live, rules.poll_seconds + rules.release_seconds, now):
        why = "the approved amount is spent; killed"
    elif live.end_cause == "fallback" and 0 <= _slack(state, options, now, rules) < changeover_seconds(rules):
        why = "the fallback is due; killed"
    else:
        return Keep()
    return Judge(attempt=live.number, outcome="stopped", detail=why)


def _end_cause(
    state: RunState, live: Attempt, options: Sequence[Option], now: datetime, rules: Rules
) -> tuple[EndCause, str] | None:
    if state.stop_requested_at:
        return "stop_requested", f"{state.stopped_by or 'somebody'} asked the run to stop"
    closing = closing_seconds(rules, state.submitted.pace.closing_save_seconds, live.step_seconds or 0.0)
    if _left_usd(state, now) <= _ahead_usd(state, live, closing, now):
        return "cap", f"the approved ${state.approved_usd:,.2f} is nearly spent"
    if live.placement.offer.capacity is Capacity.SPOT:
        slack = _slack(state, options, now, rules)
        if slack < changeover_seconds(rules) + closing:
            return "fallback", f"only {max(0.0, slack) / 3600:.1f} h of slack are left before the deadline"
    return None


def _slack(state: RunState, options: Sequence[Option], now: datetime, rules: Rules) -> float:
    """Slack against the fallbacks that what is left can still start."""
    return slack_seconds(state, _affordable(state, options, now, rules), now)


def _affordable(state: RunState, options: Sequence[Option], now: datetime, rules: Rules) -> list[Option]:
    left = _left_usd(state, now)
    return [o for o in options if left > _least_usd(o, rules)]


def _left_usd(state: RunState, now: datetime) -> Decimal:
    return state.approved_usd - spent_usd(state, now)


def _ahead_usd(state: RunState, live: Attempt, seconds: float, now: datetime) -> Decimal:
    """What `seconds` more cost, with the data read since the trainer was last heard of."""
    machine = burn_usd_per_hour(state) * Decimal(str(seconds)) / 3600
    pace = live.step_seconds or state.submitted.pace.step_seconds.get(live.placement.offer.gpu)
    if live.heard_at is None or not pace:
        return machine
    unheard = (now - live.heard_at).total_seconds() + seconds
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


def _next_machine(state: RunState, options: Sequence[Option], now: datetime, rules: Rules) -> Action:
    if not options:
        return Wait(seconds=rules.retry_seconds, why="no offer fits any more; asking again later")
    affordable = _affordable(state, options, now, rules)
    if not affordable:
        return Finish(outcome="out_of_budget", detail="what is left would not pay for a start and a save")
    idle = slack_seconds(state, affordable, now) - changeover_seconds(rules)
    pause = _backoff_seconds(state, now)
    if pause > 0 and idle > 0:
        return Wait(seconds=max(rules.poll_seconds, min(pause, idle)), why="the last attempt was lost; backing off")
    blocked = {key: until for key, until in _blocks(state, rules).items() if until > now}
    free = [o for o in affordable if o.placement.offer.key not in blocked]
    action = _climb(state, affordable, free, now, rules)
    if action:
        return action
    until_free = (min(blocked.values()) - now).total_seconds()
    return Wait(
        seconds=max(rules.poll_seconds, min(until_free, idle if idle > 0 else math.inf)),
        why=f"none of {len(affordable)} places has capacity",
    )


def _climb(
    state: RunState, affordable: Sequence[Option], free: Sequence[Option], now: datetime, rules: Rules
) -> Action | None:
    """The best free option on the lowest rung of the ladder that the deadline still allows."""
    slack = slack_seconds(state, affordable, now)
    waits_for_spot = False
    for rung in state.spec.mode:
        candidates = sorted((o for o in free if o.capacity is rung), key=_rank)
        if rung is Capacity.SPOT:
            needed = changeover_seconds(rules) + max(_useful_seconds(o, rules) for o in affordable)
            if candidates and slack >= needed:
                return Launch(option=candidates[0], why=_why(candidates[0], slack))
            waits_for_spot = slack >= needed and _worth_waiting(state, affordable, slack, now, rules)
        elif candidates and not waits_for_spot:
            return Launch(option=candidates[0], why=_why(candidates[0], slack))
    return None


def _rank(option: Option) -> tuple[float, str]:
    return option.effective_usd_per_step, option.placement.offer.key


def _why(option: Option, slack: float) -> str:
    offer = option.placement.offer
    time = "" if math.isinf(slack) else f", {slack / 3600:.1f} h of slack"
    name = {"spot": "cheapest free spot", "reserved": "reserved capacity", "on_demand": "on demand"}[
        offer.capacity.value
    ]
    return f"{name} at ${option.placement.usd_per_hour:,.2f}/h{time}"


def _worth_waiting(state: RunState, affordable: Sequence[Option], slack: float, now: datetime, rules: Rules) -> bool:
    """Most outages are short: wait while the slack is large against the work left and the outage young.

    The threshold S ≥ p·(0.08 + 0.12·(1 − e^−a))·√(d / 0.1 h) (p hours of work, a outage's age, d changeover) was
    fitted on the 2022 AWS spot availability traces of Wu et al., "Can't Be Late", NSDI 2024.
    """
    spot = [o for o in affordable if o.capacity is Capacity.SPOT]
    if not spot:
        return False
    steps = state.spec.workload.steps - state.committed_step
    work_hours = min(o.step_seconds for o in spot) * steps / 3600
    changeover_hours = max(min(o.setup_seconds for o in spot), 60.0) / 3600
    since = min(_blocked_since(state, rules, now), default=now)
    age_hours = (now - since).total_seconds() / 3600
    threshold = work_hours * (0.08 + 0.12 * (1 - math.exp(-age_hours))) * math.sqrt(changeover_hours / 0.1)
    return slack >= max(threshold * 3600, changeover_seconds(rules))


def _useful_seconds(option: Option, rules: Rules) -> float:
    """A start, one step, one save and the release: below that a launch only burns money and time."""
    return option.setup_seconds + closing_seconds(rules, option.durable_seconds, option.step_seconds)


def _least_usd(option: Option, rules: Rules) -> Decimal:
    seconds = Decimal(str(_useful_seconds(option, rules)))
    return option.placement.usd_per_hour * seconds / 3600 + option.egress_usd_per_read


def _blocks(state: RunState, rules: Rules) -> dict[str, datetime]:
    """Places that refused or were taken away lately, and when to ask again."""
    blocks: dict[str, datetime] = {}
    for attempt in state.attempts:
        is_taken = attempt.outcome in ("preempted", "lost") and attempt.placement.offer.capacity is Capacity.SPOT
        known = attempt.refused_at or (attempt.ended_at if is_taken else None)
        if known:
            quota = attempt.refused.startswith("quota")
            seconds = (rules.quota_retry_seconds if quota else rules.retry_seconds) * _jitter(state, attempt.number)
            blocks[attempt.placement.offer.key] = known + timedelta(seconds=seconds)
    return blocks


def _blocked_since(state: RunState, rules: Rules, now: datetime) -> list[datetime]:
    """When each spot place that is blocked now was found without capacity."""
    blocks = _blocks(state, rules)
    return [
        a.refused_at or a.ended_at or now
        for a in state.attempts
        if a.placement.offer.capacity is Capacity.SPOT
        and blocks.get(a.placement.offer.key, now) > now
        and (a.refused_at or a.ended_at)
    ]


def _backoff_seconds(state: RunState, now: datetime) -> float:
    """30 s, 1 min, 2 min … up to 15 min after attempts that were lost without a step."""
    fruitless = _fruitless(state)
    last = state.attempt
    if not fruitless or last is None or last.released_at is None:
        return 0.0
    seconds = min(900.0, 30.0 * 2.0 ** (fruitless - 1)) * _jitter(state, last.number)
    return seconds - (now - last.released_at).total_seconds()


def _jitter(state: RunState, attempt: int) -> float:
    """0.8 … 1.2, from the run's id: a hundred runs that lost one zone do not come back in the same second."""
    digest = sha256(f"{state.run_id}-{attempt}".encode()).digest()
    return 0.8 + 0.4 * float(digest[0]) / 255
