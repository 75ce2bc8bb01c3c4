"""To move a run that works, and lose nothing: a second machine is set up beside the first, which trains on until then.

    launch beside it → ready → the trainer saves and ends → hand over → the trainer's machine is released

A place that refuses, or a second machine that is lost, costs no step. Two machines are paid for meanwhile, so one is
asked for only where what is left bears both, and given up as soon as it does not. What moves a run: the deadline, when
the slack is used up, from a place that may not last; and the price, back to spot.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from decimal import Decimal

from launcher.core.offers import Capacity
from launcher.core.policy import decision, guards
from launcher.core.policy.actions import AskToEnd, Judge, Keep, Launch, Wait
from launcher.core.policy.spot import blocks
from launcher.core.policy.standing import market, standing
from launcher.core.policy.view import View
from launcher.core.prices.options import Option, Rules, changeover_seconds, closing_seconds
from launcher.core.runs.state import Attempt
from launcher.core.spans import span


def first(view: View) -> Launch | Wait:
    """A machine for a run that has none, or a wait for one."""
    now, places = view.hours, market(view)
    run = standing(view, places)
    if not view.state.attempts and (agreed := _agreed(view, guards.look_at(run, places, now))):
        return agreed
    action = decision.decide(run, places, now)
    if isinstance(action, decision.Wait):
        seconds = (action.until - now) * 3600
        return Wait(seconds=max(view.rules.poll_seconds, seconds), why=action.why)
    assert isinstance(action, decision.Launch)  # there is nothing to keep, to leave or to take over from
    return Launch(option=action.place.option, why=_sentence(view, action.place.option, action.why))


def _agreed(view: View, look: guards.Look) -> Launch | None:
    """The run's first attempt goes where its user was told that it begins, unless a guard bars that by now."""
    key = view.state.submitted.begins_at
    place = next((p for p in look.market.places if p.key == key), None)
    if place is None or not (guards.may_start(look, place) if place.is_spot else guards.is_free(look, place)):
        return None
    return Launch(option=place.option, why=_sentence(view, place.option, "as planned"))


def move(view: View, live: Attempt) -> Launch | AskToEnd | Judge | Keep:
    """Whether `live`, with nothing beside it, stays, is left, or gets a machine beside it."""
    if not view.affordable:
        return Keep()
    places, vain = market(view), _in_vain(view)
    barred = frozenset(
        place.key
        for place in places.places
        if vain.get(place.key, view.now) > view.now or not _pays_for_both(view, live, place.option)
    )
    action = decision.decide(standing(view, places, barred=barred), places, view.hours)
    trains = live.training_at is not None
    if isinstance(action, decision.HandOver) and trains:  # who never spoke could not take over from anybody either
        option, why = action.place.option, _sentence(view, action.place.option, action.why)
        return Launch(option=option, why=why, relieves=live.number, overlaps=action.overlaps)
    if isinstance(action, decision.Leave) and trains:
        return AskToEnd(attempt=live.number, cause="waits", why=action.why)
    if isinstance(action, decision.Leave):
        return Judge(attempt=live.number, outcome="stopped", detail=action.why, cause="waits")
    return Keep()


def _sentence(view: View, option: Option, why: str) -> str:
    """The decision's reason, its place and price, and what time is left."""
    slack = view.slack_seconds
    time = "" if math.isinf(slack) else f", {span(max(0.0, slack))} of slack"
    return f"{why}: {option.placement.offer.where} at ${option.placement.usd_per_hour:,.2f}/h{time}"


def given_up(view: View, trainer: Attempt, incoming: Attempt) -> Judge | None:
    """Whether the second machine is not to be had any more; what trains goes on."""
    rules = view.rules
    if view.left_usd <= _until_alone_usd(view, trainer, incoming):
        why = "what is left pays for one machine, not for two"
        return Judge(attempt=incoming.number, outcome="stopped", detail=why, cause="cap")
    is_spot, asked = incoming.placement.offer.capacity is Capacity.SPOT, trainer.end_requested_at
    if is_spot and not asked and view.slack_seconds < changeover_seconds(rules) + view.closing_seconds(trainer):
        why = "the slack does not bear a move to spot any more"
        return Judge(attempt=incoming.number, outcome="stopped", detail=why, cause="fallback")
    waited = view.now - (incoming.started_at or view.now)
    if incoming.ready_at is None and waited >= timedelta(seconds=rules.start_seconds):
        why = f"not ready {waited.total_seconds() / 60:.0f} min after it was granted"
        return Judge(attempt=incoming.number, outcome="lost", detail=why)
    return None


def is_due(view: View) -> bool:
    """Whether the rest must go to the fallback now, lest the deadline be missed."""
    if not view.affordable:
        return False
    places = market(view)
    run = standing(view, places)
    return run.here is not None and guards.is_due(guards.look_at(run, places, view.hours), run.here)


def must_end_first(view: View, live: Attempt) -> bool:
    """Where a fallback may have capacity, and no second machine can be had beside the first.

    The first has no hooks, or what is left does not pay for both. Asking costs that machine, so each refusal is
    believed twice as long.
    """
    asked = blocks(view.state, view.rules, doubling=True)
    places = _fallbacks(view, live)
    if not any(asked.get(o.placement.offer.key, view.now) <= view.now for o in places):
        return False
    return live.training_at is None or not any(_pays_for_both(view, live, o) for o in places)


def gone_by_seconds(view: View) -> float:
    """Slack at which a trainer that was asked to end must be gone; what waits has its set-up behind it."""
    incoming, rules = view.state.incoming, view.rules
    if incoming is None or incoming.started_at is None:
        return changeover_seconds(rules)
    if incoming.placement.offer.capacity is Capacity.SPOT:  # it may come to nothing, and be released as well
        return changeover_seconds(rules) + rules.poll_seconds + rules.release_seconds
    return 2 * rules.poll_seconds + rules.release_seconds - head_start_seconds(view)


def head_start_seconds(view: View) -> float:
    """What a fallback that waits already has behind it, of what the slack counts with."""
    incoming = view.state.incoming
    if incoming is None or incoming.ready_at is None or incoming.placement.offer.capacity is Capacity.SPOT:
        return 0.0
    here = view.here(incoming)
    return here.setup_seconds if here else view.state.submitted.pace.setup_seconds


def _fallbacks(view: View, live: Attempt) -> list[Option]:
    """Other places to which the rest can be left."""
    places = [o for o in view.affordable if _key(o) != live.placement.offer.key and o.is_open(view.now, view.rules)]
    return [o for o in places if view.spare_seconds(o) is not None]


def _in_vain(view: View) -> dict[str, datetime]:
    """Places whose second machines came to nothing, and when to ask again; twice as late each time."""
    rules = view.rules
    known: dict[str, tuple[int, datetime]] = {}
    for attempt in view.state.attempts:
        key = attempt.placement.offer.key
        if attempt.handed_over_at:
            known.pop(key, None)
        elif attempt.is_incoming and attempt.ended_at:
            known[key] = (known[key][0] + 1 if key in known else 0, attempt.ended_at)
    return {key: at + timedelta(seconds=_pause_seconds(rules, times)) for key, (times, at) in known.items()}


def _pause_seconds(rules: Rules, times: int) -> float:
    return max(rules.retry_seconds, min(rules.retry_seconds * 2.0**times, rules.quota_retry_seconds))


def _pays_for_both(view: View, live: Attempt, option: Option) -> bool:
    """What is left pays for the two until the second one trains, and for the end of either."""
    rules, price = view.rules, option.placement.usd_per_hour
    delay = 0.0 if option.capacity is Capacity.SPOT else rules.fallback_delay_seconds
    beside = delay + option.setup_seconds + _pair_seconds(rules)
    closing = closing_seconds(rules, option.durable_seconds, option.step_seconds)
    alone = view.ahead_usd(live, beside + view.closing_seconds(live))
    second = price * Decimal(str(beside + closing)) / 3600 + option.arrival_usd + option.traffic.save.usd
    return view.left_usd > alone + second + option.move_usd  # the checkpoint is brought twice


def _until_alone_usd(view: View, trainer: Attempt, incoming: Attempt) -> Decimal:
    """What must be left at a look that keeps both: for the release of one, and for the other's end."""
    alone = view.ahead_usd(trainer, _pair_seconds(view.rules) + view.closing_seconds(trainer))
    second = incoming.placement.usd_per_hour * Decimal(str(_pair_seconds(view.rules))) / 3600
    reading = incoming.egress_usd_per_read if incoming.started_at is None else Decimal(0)
    return alone + second + reading + (incoming.move_usd_per_gb + incoming.restore_usd_per_gb) * view.saved_gb


def _pair_seconds(rules: Rules) -> float:
    """Both may be billed for so long before the next look can end one; releases follow one another."""
    return rules.poll_seconds + 2 * rules.release_seconds


def _key(option: Option) -> str:
    return option.placement.offer.key
