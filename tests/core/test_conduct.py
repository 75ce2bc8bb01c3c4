"""What is decided in which state: a run's life goes through these tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from launcher.core.offers import Capacity
from launcher.core.policy.conduct import (
    Action,
    AskToEnd,
    Finish,
    HandOver,
    Judge,
    Keep,
    Launch,
    Relaunch,
    Release,
    View,
    Wait,
    next_action,
)
from launcher.core.prices.options import Option, Rules, changeover_seconds, closing_seconds
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReady,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointReplicated,
    EndRequested,
    Event,
    HandedOver,
    ProgressReported,
    RunReopened,
    StopRequested,
    TrainingResumed,
)
from launcher.core.spec import RunSpec
from tests.builders import a_placement, a_spec, a_state, a_submit, after, an_offer, an_option, reading

RULES = Rules()
PACE = {"save_seconds": 0.0, "durable_seconds": 5.0, "interval_seconds": 600.0}  # saves run beside the training
SPOT_A = an_option(a_placement(an_offer(zone="a"), usd_per_hour="6"), **PACE)
SPOT_B = an_option(a_placement(an_offer(zone="b"), usd_per_hour="7"), **PACE)
RESERVED = an_option(a_placement(an_offer(zone="a", capacity=Capacity.RESERVED), usd_per_hour="14"), **PACE)
ON_DEMAND = an_option(a_placement(an_offer(zone="a", capacity=Capacity.ON_DEMAND), usd_per_hour="20"), **PACE)
EVERYWHERE = (ON_DEMAND, SPOT_B, SPOT_A, RESERVED)
WORK_SECONDS = 60 + 1000 * 10 + 5  # set-up, steps and a save of the default run, anywhere
CLOSING_SECONDS = closing_seconds(RULES, 5, 0)


def asked(option: Option = SPOT_A, *, attempt: int = 1, **fields: Any) -> AttemptRequested:
    return AttemptRequested(attempt=attempt, placement=option.placement, why="cheapest", **fields)


def a_life(outcome: str, *, attempt: int = 1, option: Option = SPOT_A, **fields: Any) -> list[Event]:
    """An attempt from its request to its release."""
    end = {"attempt": attempt, "outcome": outcome, "detail": outcome} | fields
    return [
        asked(option, attempt=attempt),
        AttemptStarted(attempt=attempt, started_at=after(0)),
        AttemptEnded.model_validate(end),
        AttemptReleased(attempt=attempt),
    ]


def a_refusal(reason: str, *, attempt: int = 1, option: Option = SPOT_A) -> list[Event]:
    refused = {"attempt": attempt, "reason": reason, "detail": "none"}
    return [asked(option, attempt=attempt), AttemptRefused.model_validate(refused)]


def training(option: Option = SPOT_A, **fields: Any) -> list[Event]:
    """An attempt that is at work since second 0."""
    return [asked(option, **fields), AttemptStarted(attempt=1, started_at=after(0)), TrainingResumed(attempt=1, step=0)]


def decided(
    *events: Event, at: float = 300, options: Sequence[Option] = EVERYWHERE, rules: Rules = RULES, **submit: Any
) -> Action:
    spec: RunSpec = submit.pop("spec", a_spec())
    state = a_state(a_submit(spec, **submit), *events, every_seconds=1)
    return next_action(state, options, now=after(at), rules=rules)


def a_deadline(slack: float, *, at: float = 300) -> dict[str, Any]:
    """A deadline that leaves `slack` seconds at second `at` if nothing is committed."""
    return {"deadline_at": after(at + WORK_SECONDS + slack)}


def test_a_new_run_goes_to_the_cheapest_spot() -> None:
    action = decided()

    assert isinstance(action, Launch)
    assert action.option == SPOT_A


@pytest.mark.parametrize("option", [SPOT_B, ON_DEMAND], ids=["spot", "firm"])
def test_a_new_run_begins_where_its_user_was_told(option: Option) -> None:
    action = decided(begins_at=option.placement.offer.key)

    assert isinstance(action, Launch)
    assert (action.option, action.why[:10]) == (option, "as planned")


def test_only_the_first_attempt_goes_where_the_plan_begins() -> None:
    action = decided(*a_refusal("no_capacity", option=SPOT_B), begins_at=SPOT_B.placement.offer.key)

    assert isinstance(action, Launch)
    assert action.option == SPOT_A


def test_a_plan_whose_place_is_gone_or_barred_by_the_deadline_begins_elsewhere() -> None:
    gone = decided(begins_at="aws/mars/-/p5.48xlarge/spot")
    late = decided(begins_at=SPOT_B.placement.offer.key, **a_deadline(changeover_seconds(RULES)))

    assert [a.option for a in (gone, late) if isinstance(a, Launch)] == [SPOT_A, RESERVED]


def test_restarts_and_reads_count_in_the_price_of_a_step() -> None:
    busy = replace(SPOT_A, preemptions_per_hour=2.0, setup_seconds=600.0)
    remote = replace(SPOT_A, preemptions_per_hour=2.0, traffic=reading(Decimal(5)))

    for dearer in (busy, remote):
        action = decided(options=[dearer, SPOT_B])
        assert isinstance(action, Launch)
        assert action.option == SPOT_B


def test_a_slow_machine_is_dear() -> None:
    action = decided(options=[replace(SPOT_A, step_seconds=13.0), SPOT_B])

    assert isinstance(action, Launch)
    assert action.option == SPOT_B


def test_only_capacity_that_the_spec_names_is_used() -> None:
    action = decided(spec=a_spec(mode=["on_demand"]))

    assert isinstance(action, Launch)
    assert action.option == ON_DEMAND


def test_a_spot_run_without_a_fallback_in_its_mode_is_not_ended_for_one() -> None:
    assert decided(*training(), spec=a_spec(mode=["spot"]), **a_deadline(-100)) == Keep()


def test_a_fallback_that_cannot_be_paid_ends_nothing() -> None:
    """Otherwise spot is ended for it, found to be all that can be paid, and launched again, and so on."""
    poor = {"approved_usd": "1.00"}

    assert decided(*training(), options=[SPOT_A, ON_DEMAND], **a_deadline(100), **poor) == Keep()


TWO_LOOKS = 2 * RULES.poll_seconds
WITHOUT_WAITING = replace(RULES, fallback_delay_seconds=600)


@pytest.mark.parametrize(("spare", "option"), [(3600, SPOT_A), (-1, RESERVED)], ids=["enough", "too little"])
def test_spot_is_launched_only_while_it_leaves_time_for_the_fallback(spare: float, option: Option) -> None:
    useful = 60 + closing_seconds(WITHOUT_WAITING, 5, 10)
    slack = changeover_seconds(WITHOUT_WAITING) + TWO_LOOKS + useful + spare

    action = decided(rules=WITHOUT_WAITING, **a_deadline(slack))

    assert isinstance(action, Launch)
    assert action.option == option


@pytest.mark.parametrize(("spare", "moves"), [(1, False), (-1, True)])
def test_the_fallback_is_set_up_beside_spot_while_it_and_a_save_still_fit(spare: float, moves: bool) -> None:
    slack = changeover_seconds(RULES) + closing_seconds(RULES, 5, 10) + TWO_LOOKS + spare

    action = decided(*training(), **a_deadline(slack))

    assert isinstance(action, Launch) == moves
    assert not moves or (action.option, action.relieves) == (RESERVED, 1)  # type: ignore[union-attr]


UNHEARD = training()[:-1]
BARELY = {"approved_usd": "12.00"}  # 5 minutes of spot are spent; two machines for an hour would be $26


@pytest.mark.parametrize(("spare", "ends"), [(1, False), (-1, True)])
def test_spot_is_asked_to_end_first_where_two_machines_cannot_be_paid(spare: float, ends: bool) -> None:
    slack = changeover_seconds(RULES) + closing_seconds(RULES, 5, 10) + TWO_LOOKS + spare

    action = decided(*training(), options=[SPOT_A, ON_DEMAND], **BARELY, **a_deadline(slack))

    assert isinstance(action, AskToEnd) == ends
    assert not ends or action.cause == "fallback"  # type: ignore[union-attr]


def test_a_script_without_hooks_is_ended_first() -> None:
    """Nobody would know when it has saved."""
    action = decided(*UNHEARD, **a_deadline(100))

    assert isinstance(action, Judge)
    assert (action.outcome, action.cause) == ("stopped", "fallback")


def test_a_commit_gives_slack() -> None:
    commit = CheckpointCommitted(attempt=1, step=500, name="step-500-a1", bytes=1, seconds=5, segment=2)

    assert decided(*training(), commit, **a_deadline(0)) == Keep()


@pytest.mark.parametrize("option", [RESERVED, ON_DEMAND])
def test_capacity_that_stays_is_not_ended_for_the_deadline(option: Option) -> None:
    assert decided(*training(option), **a_deadline(-1000)) == Keep()


ENDING = EndRequested(attempt=1, cause="fallback", why="slack")


@pytest.mark.parametrize(("spare", "killed"), [(1, False), (-1, True)])
def test_a_save_is_not_waited_for_when_the_fallback_is_due(spare: float, killed: bool) -> None:
    action = decided(*training(), ENDING, at=10, **a_deadline(changeover_seconds(RULES) + spare, at=10))

    assert isinstance(action, Judge) == killed


def test_a_save_is_waited_for_when_the_deadline_is_lost_anyway() -> None:
    assert decided(*training(), ENDING, at=10, **a_deadline(-5000, at=10)) == Keep()


def test_a_launch_that_hangs_is_given_up_when_the_fallback_is_due() -> None:
    action = decided(asked(), at=300, **a_deadline(changeover_seconds(RULES)))

    assert isinstance(action, Judge)
    assert (action.outcome, action.cause) == ("stopped", "fallback")


def test_back_off_ends_when_the_fallback_is_due() -> None:
    idle = decided(*a_life("lost"), at=5, **a_deadline(changeover_seconds(RULES) + 12, at=5))
    due = decided(*a_life("lost"), at=5, **a_deadline(changeover_seconds(RULES) - 1, at=5))

    assert isinstance(idle, Wait)
    assert idle.seconds == pytest.approx(12)
    assert isinstance(due, Launch)
    assert due.option == RESERVED


def test_a_wait_for_spot_ends_before_the_fallback_is_due() -> None:
    short = a_spec(workload={"steps": 1000, "step_seconds": {"H100": 10.0}})
    least = 100 + 60 + 1000 * 10 + 5 + changeover_seconds(RULES) + TWO_LOOKS

    def action(spare: float) -> Action:
        due = after(least + spare)
        return decided(*a_refusal("no_capacity"), options=[SPOT_A, ON_DEMAND], at=100, spec=short, deadline_at=due)

    actions = {spare: action(spare) for spare in (10, 200, 1000, 3000, 9000)}
    waits = {spare: found.seconds for spare, found in actions.items() if isinstance(found, Wait)}
    assert waits
    assert all(seconds <= spare for spare, seconds in waits.items())
    assert all(isinstance(found, Launch) for spare, found in actions.items() if spare not in waits)
    assert 10 not in waits


@pytest.mark.parametrize(("slack_hours", "waits"), [(30, True), (5, False)])
def test_a_young_outage_is_waited_out_while_slack_is_plenty(slack_hours: float, waits: bool) -> None:
    long = a_spec(steps=100_000)  # 278 hours: slack under 9 is little
    deadline_at = after(100 + 60 + 100_000 * 10 + 5 + slack_hours * 3600)
    lost = a_refusal("no_capacity") + a_refusal("no_capacity", attempt=2, option=SPOT_B)

    action = decided(*lost, at=100, spec=long, deadline_at=deadline_at, approved_usd="10000")

    assert isinstance(action, Wait) == waits


def test_a_place_that_refused_is_left_for_a_while_and_asked_again() -> None:
    soon = decided(*a_refusal("no_capacity"), at=300)
    later = decided(*a_refusal("no_capacity"), at=300 + 1.2 * RULES.retry_seconds)

    assert isinstance(soon, Launch)
    assert isinstance(later, Launch)
    assert (soon.option, later.option) == (SPOT_B, SPOT_A)


def test_a_quota_is_asked_again_only_after_hours() -> None:
    action = decided(*a_refusal("quota"), at=0.7 * RULES.quota_retry_seconds)

    assert isinstance(action, Launch)
    assert action.option == SPOT_B


@pytest.mark.parametrize("outcome", ["preempted", "lost"])
def test_a_place_that_took_a_machine_is_left_for_a_while(outcome: str) -> None:
    action = decided(*a_life(outcome), at=300)

    assert isinstance(action, Launch)
    assert action.option == SPOT_B


def test_an_intent_without_a_machine_is_launched_again() -> None:
    assert decided(asked()) == Relaunch(attempt=1)


def test_a_launch_that_shows_no_machine_is_given_up() -> None:
    action = decided(asked(), at=1 + RULES.launch_seconds)

    assert isinstance(action, Judge)
    assert action.outcome == "lost"


@pytest.mark.parametrize(
    "events", [[asked()], [asked(), AttemptStarted(attempt=1, started_at=after(0))]], ids=["no machine", "no training"]
)
def test_a_stop_before_the_training_has_begun_saves_nothing(events: list[Event]) -> None:
    action = decided(*events, StopRequested(by="ada"))

    assert isinstance(action, Judge)
    assert (action.outcome, action.cause) == ("stopped", "stop_requested")


def test_a_stop_asks_the_training_to_end() -> None:
    action = decided(*training(), StopRequested(by="ada"))

    assert isinstance(action, AskToEnd)
    assert action.cause == "stop_requested"


@pytest.mark.parametrize(("waited", "killed"), [(299, False), (300, True)])
def test_a_training_has_the_grace_time_to_end(waited: float, killed: bool) -> None:
    action = decided(*training(), EndRequested(attempt=1, cause="stop_requested", why="ada"), at=4 + waited)

    assert isinstance(action, Judge) == killed


@pytest.mark.parametrize("outcome", ["completed", "preempted", "failed", "lost", "stopped"])
def test_an_ended_attempt_is_released_before_anything_else(outcome: str) -> None:
    assert decided(*a_life(outcome)[:-1], StopRequested(by="ada")) == Release(attempt=1)


FINISHES: dict[str, tuple[list[Event], str]] = {
    "completed": (a_life("completed", step=1000), "succeeded"),
    "completed before the stop": ([*a_life("completed", step=1000), StopRequested(by="ada")], "succeeded"),
    "failed": (a_life("failed"), "failed"),
    "rejected": (a_refusal("rejected"), "failed"),
    "stopped": ([*a_life("stopped"), StopRequested(by="ada")], "cancelled"),
    "stopped by the trainer itself": (a_life("stopped", cause="stop_requested"), "cancelled"),
    "at the cap": (a_life("stopped", cause="cap"), "out_of_budget"),
    "stop before anything": ([StopRequested(by="ada")], "cancelled"),
}


@pytest.mark.parametrize(("events", "outcome"), FINISHES.values(), ids=FINISHES.keys())
def test_a_run_ends_as_its_last_attempt_did(events: list[Event], outcome: str) -> None:
    action = decided(*events)

    assert isinstance(action, Finish)
    assert action.outcome == outcome


@pytest.mark.parametrize("events", [a_life("failed"), a_life("stopped", cause="cap"), a_refusal("rejected")])
def test_a_reopened_run_is_not_ended_by_what_was_before(events: list[Event]) -> None:
    action = decided(*events, RunReopened(approved_usd=Decimal(500), by="ada"), at=10_000)

    assert isinstance(action, Launch)


def lost_attempts(count: int, *, saved: bool = False) -> list[Event]:
    events: list[Event] = []
    for n in range(1, count + 1):
        life = a_life("lost", attempt=n)
        if saved:
            life.insert(2, CheckpointCommitted(attempt=n, step=n, name=f"step-{n}-a{n}", bytes=1, seconds=5, segment=2))
        events += life
    return events


def test_attempts_in_a_row_that_saved_nothing_end_the_run() -> None:
    enough = RULES.max_fruitless_attempts

    assert isinstance(decided(*lost_attempts(enough), at=10**5), Finish)
    assert not isinstance(decided(*lost_attempts(enough - 1), at=10**5), Finish)
    assert not isinstance(decided(*lost_attempts(enough, saved=True), at=10**5), Finish)


def test_a_refusal_in_between_does_not_make_attempts_fruitful() -> None:
    events = lost_attempts(5)
    events += [*a_refusal("no_capacity", attempt=6), *a_life("lost", attempt=7)]

    assert isinstance(decided(*events, at=10**5), Finish)


def test_a_preemption_makes_nobody_guilty() -> None:
    events: list[Event] = []
    for n in range(1, 12):
        events += a_life("preempted", attempt=n)

    assert isinstance(decided(*events, at=10**5), Launch)


def test_back_off_doubles_and_differs_between_runs_but_not_between_looks() -> None:
    pauses = []
    for count in range(1, 5):
        action = decided(*lost_attempts(count), at=4 * count)
        assert action == decided(*lost_attempts(count), at=4 * count)
        assert isinstance(action, Wait)
        pauses.append(action.seconds)
    state = a_state(a_submit(), *lost_attempts(4), every_seconds=1)
    other = next_action(replace(state, run_id="whisper-20260105-cd34"), EVERYWHERE, now=after(16), rules=RULES)

    for pause, plain in zip(pauses, (30, 60, 120, 240), strict=True):
        assert 0.8 * plain <= pause <= 1.2 * plain
    assert isinstance(other, Wait)
    assert other.seconds != pauses[-1]


def spent_to(left_usd: float, *, usd_per_hour: float = 6.0, approved: float = 10.0) -> float:
    """The second at which a machine that runs since second 0 has left `left_usd` of the approved amount."""
    return (approved - left_usd) / usd_per_hour * 3600


@pytest.mark.parametrize(("spare", "asked_to_end"), [(0.001, False), (-0.001, True)])
def test_a_training_is_asked_to_end_while_its_last_save_can_be_paid(spare: float, asked_to_end: bool) -> None:
    at = spent_to(6.0 * CLOSING_SECONDS / 3600 + spare)

    action = decided(*training(), at=at, approved_usd="10")

    assert isinstance(action, AskToEnd) == asked_to_end
    assert not asked_to_end or action.cause == "cap"  # type: ignore[union-attr]


@pytest.mark.parametrize(("spare", "killed"), [(0.001, False), (-0.001, True)])
def test_a_save_is_not_waited_for_when_the_next_look_cannot_be_paid(spare: float, killed: bool) -> None:
    at = spent_to(6.0 * (RULES.poll_seconds + RULES.release_seconds) / 3600 + spare)
    rules = replace(RULES, grace_seconds=10**6)

    action = decided(
        *training(), EndRequested(attempt=1, cause="cap", why="spent"), at=at, approved_usd="10", rules=rules
    )

    assert isinstance(action, Judge) == killed


def test_data_read_since_the_last_report_is_paid_for_too() -> None:
    """$200 of egress in 10,000 s: what the 5 minutes since the report have read is not in the bill yet."""
    far = a_spec(data={"uri": "s3://data", "region": "aws/eu-west-1", "size": "500 GB", "reads": 4})
    heard = ProgressReported(attempt=1, step=0, segment=2)
    events = [*training(egress_usd_per_read=Decimal(50)), heard]

    assert decided(*events, at=290, spec=far, approved_usd="9") == Keep()
    assert isinstance(decided(*events, at=290, spec=far, approved_usd="6"), AskToEnd)


def test_nothing_is_launched_that_could_not_do_useful_work() -> None:
    useful_usd = 6.0 * (60 + closing_seconds(RULES, 5, 10)) / 3600

    enough = decided(options=[SPOT_A], approved_usd=f"{useful_usd + 0.001:.4f}")
    less = decided(options=[SPOT_A], approved_usd=f"{useful_usd - 0.001:.4f}")

    assert isinstance(enough, Launch)
    assert isinstance(less, Finish)
    assert less.outcome == "out_of_budget"


def test_reading_the_data_must_be_affordable_too() -> None:
    action = decided(options=[replace(SPOT_A, traffic=reading(Decimal(200))), SPOT_B])

    assert isinstance(action, Launch)
    assert action.option == SPOT_B


def test_a_market_without_offers_is_asked_again_later() -> None:
    action = decided(options=[])

    assert isinstance(action, Wait)
    assert action.seconds == RULES.retry_seconds


def test_slack_counts_from_the_last_commit_to_the_fastest_fallback() -> None:
    commit = CheckpointCommitted(attempt=1, step=400, name="step-400-a1", bytes=1, seconds=5, segment=2)
    fast = replace(ON_DEMAND, step_seconds=5.0)
    state = a_state(a_submit(deadline_at=after(10_000)), *training(), commit)

    def slack(*options: Option, at: float = 1000) -> float:
        return View(state=state, options=options, now=after(at), rules=RULES).slack_seconds

    assert slack(SPOT_A, ON_DEMAND, fast) == 9000 - (60 + 600 * 5 + 5)
    assert slack(SPOT_A) == float("inf")
    assert slack(ON_DEMAND, at=1000 + 3 * 3600) < 0


def closing(at: float, **fields: Any) -> Option:
    """Reserved capacity that closes at second `at`."""
    offer = an_offer(zone="a", capacity=Capacity.RESERVED, closes_at=after(at), **fields)
    return an_option(a_placement(offer, usd_per_hour="14"))


@pytest.mark.parametrize(("spare", "leaves"), [(1, False), (-1, True)])
@pytest.mark.parametrize("lease", [False, True], ids=["of a reservation", "of a lease"])
def test_a_place_is_left_while_a_save_still_fits_before_its_end(spare: float, leaves: bool, lease: bool) -> None:
    end = 300 + CLOSING_SECONDS + spare
    offer = an_offer(zone="a", capacity=Capacity.RESERVED, lease_seconds=end)
    place = an_option(a_placement(offer)) if lease else closing(end)

    action = decided(*training(place), options=[place, ON_DEMAND])

    assert isinstance(action, AskToEnd) == leaves
    assert not leaves or action.cause == "place_closes"  # type: ignore[union-attr]


def test_a_reservation_is_used_while_there_is_time_for_useful_work() -> None:
    useful = 60 + closing_seconds(RULES, 5, 10)

    for option, expected in ((closing(300 + useful), closing(300 + useful)), (closing(300 + useful - 1), ON_DEMAND)):
        action = decided(options=[option, ON_DEMAND])
        assert isinstance(action, Launch)
        assert action.option == expected


def opening(at: float, **fields: Any) -> Option:
    offer = an_offer(zone="a", capacity=Capacity.RESERVED, opens_at=after(at), **fields)
    return an_option(a_placement(offer, usd_per_hour="14"))


def test_a_reservation_that_begins_later_is_waited_for_and_not_launched() -> None:
    before = decided(options=[opening(1000)], at=300)
    there = decided(options=[opening(1000)], at=1000)

    assert isinstance(before, Wait)
    assert before.seconds == pytest.approx(700)
    assert isinstance(there, Launch)


def slack_of(*options: Option, at: float = 300, deadline: float) -> float:
    state = a_state(a_submit(deadline_at=after(deadline)), every_seconds=1)
    return View(state=state, options=options, now=after(at), rules=RULES).slack_seconds


def test_saves_between_the_steps_are_inside_the_slack() -> None:
    blocking = replace(ON_DEMAND, save_seconds=60.0, interval_seconds=600.0)

    assert slack_of(ON_DEMAND, deadline=9e5) - slack_of(blocking, deadline=9e5) == 1000  # a tenth of 10,000 s


def test_only_a_place_where_the_rest_can_be_done_is_a_fallback() -> None:
    """Reservations that end too early or begin too late, and leases shorter than a start, keep no deadline."""
    far = 300 + WORK_SECONDS + 90_000
    leased = an_option(a_placement(an_offer(capacity=Capacity.RESERVED, lease_seconds=60)))

    assert slack_of(closing(300 + WORK_SECONDS + 50), deadline=far) == 50
    assert slack_of(closing(300 + WORK_SECONDS - 1), deadline=far) == float("inf")
    assert slack_of(closing(300 + WORK_SECONDS - 1), ON_DEMAND, deadline=far) == 90_000
    assert slack_of(opening(300 + 90_000 - changeover_seconds(RULES)), deadline=far) == 90_000
    assert slack_of(opening(300 + 90_001 - changeover_seconds(RULES)), deadline=far) == float("inf")
    assert slack_of(opening(1000, closes_at=after(1000 + WORK_SECONDS - 1)), deadline=far) == float("inf")
    assert slack_of(leased, deadline=far) == float("inf")


def test_a_lease_shorter_than_the_work_costs_a_start_and_a_save_each_time() -> None:
    leased = an_option(a_placement(an_offer(capacity=Capacity.RESERVED, lease_seconds=3665)))

    assert leased.seconds_to_finish(720) == 7200 + 2 * 65
    assert leased.seconds_to_finish(721) == 7210 + 3 * 65


def test_a_reservation_that_ends_too_early_is_left_in_time_as_spot_is() -> None:
    early = closing(20_000)
    long = {"spec": a_spec(steps=5000), "options": [early, ON_DEMAND]}
    enough = 60 + 5000 * 10 + 5 + changeover_seconds(RULES) + closing_seconds(RULES, 5, 10) + TWO_LOOKS

    assert decided(*training(early), deadline_at=after(300 + enough + 1), **long) == Keep()
    action = decided(*training(early), deadline_at=after(300 + enough - 1), **long)
    assert isinstance(action, Launch)
    assert (action.option, action.relieves) == (ON_DEMAND, 1)


def test_a_fallback_that_would_be_late_is_passed_over_for_one_that_is_not() -> None:
    slow = replace(RESERVED, step_seconds=20.0)

    action = decided(options=[SPOT_A, slow, ON_DEMAND], **a_deadline(100))

    assert isinstance(action, Launch)
    assert action.option == ON_DEMAND


NO_FALLBACK = a_refusal("no_capacity", option=ON_DEMAND)


def test_free_spot_is_used_while_the_fallback_has_no_capacity() -> None:
    action = decided(*NO_FALLBACK, options=[SPOT_A, ON_DEMAND], **a_deadline(0))

    assert isinstance(action, Launch)
    assert action.option == SPOT_A


def spot_after(refusals: list[Event]) -> list[Event]:
    number = len(refusals) // 2 + 1
    start = AttemptStarted(attempt=number, started_at=after(0))
    return [*refusals, asked(SPOT_A, attempt=number), start, TrainingResumed(attempt=number, step=0)]


@pytest.mark.parametrize("refusals", [1, 2, 3])
def test_spot_is_ended_for_a_fallback_only_when_that_may_have_capacity_again(refusals: int) -> None:
    """Asking costs the spot machine: each refusal in a row is believed twice as long as the one before."""
    none = [event for n in range(1, refusals + 1) for event in a_refusal("no_capacity", attempt=n, option=ON_DEMAND)]
    pause = RULES.retry_seconds * 2 ** (refusals - 1)

    def action(at: float) -> Action:
        poor = {"approved_usd": f"{6 * at / 3600 + 11.5:.2f}"}
        return decided(*spot_after(none), at=at, options=[SPOT_A, ON_DEMAND], **poor, **a_deadline(100, at=at))

    assert action(0.8 * pause - 10) == Keep()
    assert isinstance(action(1.2 * pause + 10), AskToEnd)


@pytest.mark.parametrize("refusals", [1, 2, 3])
def test_a_fallback_that_refused_is_asked_again_beside_spot_that_works(refusals: int) -> None:
    """That costs nothing, so every refusal is believed for as long as the first."""
    none = [event for n in range(1, refusals + 1) for event in a_refusal("no_capacity", attempt=n, option=ON_DEMAND)]

    def action(at: float) -> Action:
        return decided(*spot_after(none), at=at, options=[SPOT_A, ON_DEMAND], **a_deadline(100, at=at))

    assert action(0.8 * RULES.retry_seconds - 10) == Keep()
    assert isinstance(action(1.2 * RULES.retry_seconds + 10), Launch)


def beside(*more: Event, option: Option = ON_DEMAND, there: Option = SPOT_A, **fields: Any) -> list[Event]:
    """One trains, and `there` another one was asked for beside it, with `more` of it."""
    return [*training(option), asked(there, attempt=2, relieves=1, **fields), *more]


THERE = AttemptStarted(attempt=2, started_at=after(4))
READY = AttemptReady(attempt=2)
ASKED_TO_END = EndRequested(attempt=1, cause="handed_over", why="attempt 2")


def test_a_second_machine_that_was_asked_for_is_asked_for_again() -> None:
    assert decided(*beside()) == Relaunch(attempt=2)
    given_up = decided(*beside(), at=4 + RULES.launch_seconds)
    assert isinstance(given_up, Judge)
    assert (given_up.attempt, given_up.outcome) == (2, "lost")


def test_the_trainer_goes_on_until_the_other_one_is_ready() -> None:
    assert decided(*beside(THERE)) == Keep()
    action = decided(*beside(THERE, READY))

    assert isinstance(action, AskToEnd)
    assert (action.attempt, action.cause) == (1, "handed_over")


def test_a_second_machine_that_does_not_overlap_is_waited_for_only_until_it_is_there() -> None:
    assert isinstance(decided(*beside(overlaps=False)), Relaunch)
    assert isinstance(decided(*beside(THERE, overlaps=False)), AskToEnd)


ENDED_WELL = AttemptEnded(attempt=1, outcome="stopped", detail="saved", has_exited=True)


@pytest.mark.parametrize("cause", ["handed_over", "preempted"])
def test_the_other_one_takes_over_before_the_old_one_is_released(cause: str) -> None:
    end = ENDED_WELL if cause == "handed_over" else ENDED_WELL.model_copy(update={"outcome": "preempted"})
    over = HandedOver(attempt=2)

    assert decided(*beside(THERE, READY, ASKED_TO_END, end)) == HandOver(attempt=2)
    assert decided(*beside(THERE, end)) == HandOver(attempt=2)
    assert decided(*beside(THERE, READY, end, over)) == Release(attempt=1)
    assert decided(*beside(THERE, READY, end, over, AttemptReleased(attempt=1))) == Keep()


def test_a_trainer_that_was_killed_is_released_before_the_other_one_takes_over() -> None:
    """Its process may be alive until then, and two would train."""
    killed = AttemptEnded(attempt=1, outcome="stopped", detail="killed")

    assert decided(*beside(THERE, READY, ASKED_TO_END, killed)) == Release(attempt=1)
    released = AttemptReleased(attempt=1)
    assert decided(*beside(THERE, READY, ASKED_TO_END, killed, released)) == HandOver(attempt=2)


LAST_CALL = 2 * RULES.poll_seconds + RULES.release_seconds
GONE_BY: dict[str, tuple[list[Event], Option, Option, float]] = {
    "a fallback that waits has its set-up behind it": ([THERE, READY], SPOT_A, ON_DEMAND, LAST_CALL - 60),
    "one that is being set up has its start behind it": ([THERE], SPOT_A, ON_DEMAND, LAST_CALL),
    "one that was asked for has nothing behind it": ([], SPOT_A, ON_DEMAND, changeover_seconds(RULES)),
    "spot may come to nothing": (
        [THERE, READY], ON_DEMAND, SPOT_A, changeover_seconds(RULES) + RULES.poll_seconds + RULES.release_seconds
    ),
}  # fmt: skip


@pytest.mark.parametrize(("more", "here", "there", "gone_by"), GONE_BY.values(), ids=GONE_BY.keys())
def test_a_trainer_that_does_not_end_is_killed_in_time_for_the_other_one(
    more: list[Event], here: Option, there: Option, gone_by: float
) -> None:
    events = beside(*more, ASKED_TO_END, option=here, there=there)

    def action(slack: float) -> Action:
        return decided(*events, options=[SPOT_A, ON_DEMAND], at=20, **a_deadline(slack, at=20))

    assert action(gone_by + 1) == Keep()
    killed = action(gone_by - 1)
    assert isinstance(killed, Judge)
    assert killed.attempt == 1


def test_a_second_machine_that_was_lost_makes_no_attempt_fruitless() -> None:
    events = lost_attempts(4)
    events += [asked(ON_DEMAND, attempt=5), THERE.model_copy(update={"attempt": 5}), asked(attempt=6, relieves=5)]
    events += [AttemptEnded(attempt=6, outcome="lost", detail=""), AttemptReleased(attempt=6)]
    events += [AttemptEnded(attempt=5, outcome="lost", detail=""), AttemptReleased(attempt=5)]

    assert not isinstance(decided(*events, at=10**5), Finish)


@pytest.mark.parametrize(
    "more", [[AttemptEnded(attempt=2, outcome="failed", detail="exit code 1")], []], ids=["lost", "refused"]
)
def test_a_second_machine_that_comes_to_nothing_is_no_end_of_the_run(more: list[Event]) -> None:
    gone = [THERE, *more, AttemptReleased(attempt=2)] if more else [a_refusal("rejected", attempt=2)[1]]

    assert decided(*beside(*gone), options=[SPOT_A, ON_DEMAND], spec=a_spec(priority="urgent")) == Keep()
    after_it = decided(*beside(*gone, AttemptEnded(attempt=1, outcome="preempted", detail="")))
    assert after_it == Release(attempt=1)


def test_a_second_machine_is_not_asked_for_again_at_once_where_one_came_to_nothing() -> None:
    """And twice as late each time: its set-up costs as much as any."""
    lost = [THERE, AttemptEnded(attempt=2, outcome="failed", detail="exit code 1"), AttemptReleased(attempt=2)]
    again = [asked(attempt=3, relieves=1), *(replace_attempt(event, 3) for event in lost)]

    long: dict[str, Any] = {"spec": a_spec(steps=20_000, priority="urgent"), "deadline_at": after(500_000)}

    def waits(*events: Event) -> float:
        two: dict[str, Any] = {"options": [SPOT_A, ON_DEMAND], "approved_usd": "9999", **long}
        return next(s for s in range(60, 7200, 60) if isinstance(decided(*beside(*events), at=s, **two), Launch))

    assert RULES.retry_seconds <= waits(*lost) < 1.1 * RULES.retry_seconds
    assert 2 * RULES.retry_seconds <= waits(*lost, *again) < 2.1 * RULES.retry_seconds


def replace_attempt(event: Event, number: int) -> Event:
    return event.model_copy(update={"attempt": number})


OVER: dict[str, tuple[list[Event], dict[str, Any]]] = {
    "the run is stopped": ([THERE, StopRequested(by="ada")], {}),
    "the training is complete": ([THERE, AttemptEnded(attempt=1, outcome="completed", detail="", step=1000)], {}),
    "the training failed": ([THERE, AttemptEnded(attempt=1, outcome="failed", detail="exit code 1")], {}),
    "the money is short": ([THERE], {"approved_usd": "2.80"}),
    "the slack is gone": ([THERE], a_deadline(changeover_seconds(RULES))),
    "it is never ready": ([THERE], {"at": 5 + RULES.start_seconds, "approved_usd": "9999"}),
}


@pytest.mark.parametrize(("events", "terms"), OVER.values(), ids=OVER.keys())
def test_the_second_machine_is_the_first_to_go_when(events: list[Event], terms: dict[str, Any]) -> None:
    action = decided(*beside(*events), **terms)

    assert isinstance(action, Judge)
    assert action.attempt == 2


def test_a_second_machine_is_asked_for_only_where_what_is_left_pays_for_both_until_it_trains() -> None:
    closing = closing_seconds(RULES, 5, 10)
    pair = RULES.poll_seconds + 2 * RULES.release_seconds
    first = 6 * (RULES.fallback_delay_seconds + 60 + pair + CLOSING_SECONDS)
    second = 20 * (RULES.fallback_delay_seconds + 60 + pair + closing)
    needed = (6 * 300 + first + second) / 3600

    def action(spare_usd: float) -> Action:
        money = {"approved_usd": f"{needed + spare_usd:.4f}"}
        return decided(*training(), options=[SPOT_A, ON_DEMAND], **money, **a_deadline(changeover_seconds(RULES)))

    assert isinstance(action(0.001), Launch)
    assert isinstance(action(-0.001), AskToEnd)


def test_a_launch_is_waited_for_from_when_its_checkpoint_was_there() -> None:
    """Bringing a terabyte along takes longer than a machine."""
    rules = Rules(launch_seconds=1200)
    intent = AttemptRequested(attempt=1, placement=a_placement(), why="test")
    bare, brought = (
        a_state(intent, *events, every_seconds=3000.0)
        for events in ((), (CheckpointReplicated(attempt=1, name="step-1-a1", bytes=10**12),))
    )

    assert isinstance(next_action(bare, [an_option()], now=after(3000 + 1300), rules=rules), Judge)
    assert isinstance(next_action(brought, [an_option()], now=after(6000 + 1100), rules=rules), Relaunch)
    assert isinstance(next_action(brought, [an_option()], now=after(6000 + 1300), rules=rules), Judge)
