"""One future: what is billed, what is lost, and that the policy's own decisions are followed."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.estimates.rollout import ASK_HOURS, PARTS, Future, roll
from launcher.core.estimates.weather import Drawn, Weather
from launcher.core.offers import Capacity
from launcher.core.policy.decision import Action, HandOver, Keep, Launch, Leave, Standing, Wait
from launcher.core.policy.diary import Diary
from launcher.core.policy.market import Market
from launcher.core.prices.options import Option
from launcher.core.prices.traffic import Charge, Traffic
from tests.builders import a_placement, after, an_offer
from tests.core.futures import Always, Told, a_market, an_option, an_outlook, on_demand, place_in, spot

MACHINE_PARTS = ("steps", "lost", "restarts", "setup", "saves", "idle", "fallback")
NO_NOTICE = {"notice_seconds": 0.0}


def rolled(market: Market, sky: Weather, *, first: Option | None = None, **outlook: object) -> tuple[Future, Diary]:
    diary = Diary()
    place = place_in(market, first) if first else None
    return roll(market, sky, an_outlook(**outlook), first=place, diary=diary), diary


def machines_usd(future: Future) -> float:
    return sum(future.usd[part] for part in MACHINE_PARTS)


def test_where_capacity_never_goes_away_a_run_is_set_up_trains_saves_and_ends() -> None:
    """1,000 steps of 10 s with 16.7 saves of 5 s between them, a minute before and a save and 25 s behind."""
    alone = spot(setup_seconds=60.0)

    future, diary = rolled(a_market(alone), Always())

    training, saves = 10_000 / 3600, 5 * 10_000 / 600 / 3600
    assert future.hours == pytest.approx(training + saves + (60 + 5 + 25) / 3600)
    assert future.usd["setup"] == pytest.approx(6 * 60 / 3600)
    assert future.usd["steps"] == pytest.approx(6 * training)
    assert future.usd["saves"] == pytest.approx(6 * (saves + 5 / 3600))
    assert machines_usd(future) == pytest.approx(6 * future.hours)
    assert future.preemptions == future.restart_hours == future.fallback_hours == len(diary.refusals) == 0


CHANGES = st.lists(st.floats(0.02, 3.0), max_size=12).map(
    lambda spans: [sum(spans[: n + 1]) for n in range(len(spans))]
)


@settings(max_examples=150)
@given(
    a=CHANGES,
    b=CHANGES,
    hours=st.sampled_from([2.0, 7.0, 9.0, 30.0]),
    notice=st.sampled_from([0.0, 120.0]),
    hands_over=st.booleans(),
)
def test_every_billed_hour_is_in_a_part_and_every_step_is_trained_once_or_lost(
    a: list[float], b: list[float], hours: float, notice: float, hands_over: bool
) -> None:
    market = a_market(
        spot("a", notice_seconds=notice),
        spot("b", usd_per_hour="8", notice_seconds=notice),
        on_demand(usd_per_hour="20"),
        steps=2000,
        hours=hours,
    )

    future, diary = rolled(replace(market, hands_over=hands_over), Told(a=a, b=b))

    assert future.hours < math.inf
    assert set(future.usd) == set(PARTS)
    assert min(future.usd.values()) >= -1e-9
    billed = sum((stay.until - stay.since) * stay.place.usd_per_hour for stay in diary.stays)
    assert machines_usd(future) == pytest.approx(billed, rel=1e-6)
    steps = sum(
        (stay.until - stay.closing_hours - stay.ready_at - stay.lost_hours) / stay.place.step_hours
        for stay in diary.stays
        if stay.ready_at < stay.until
    )
    assert steps == pytest.approx(2000, rel=0.02)  # a pause of a handover trains nothing
    assert future.preemptions == sum(stay.ending == "preempted" for stay in diary.stays)


def test_a_wait_costs_time_and_nothing_else() -> None:
    alone = spot(setup_seconds=60.0)
    undisturbed, _ = rolled(a_market(alone), Always())

    future, diary = rolled(a_market(alone), Told(a=[0.0, 2.0]))

    assert diary.stays[0].since >= 2.0
    assert future.hours - diary.stays[0].since == pytest.approx(undisturbed.hours)
    assert future.total_usd == pytest.approx(undisturbed.total_usd)


def test_a_refused_ask_takes_a_minute_and_the_next_place_is_asked_then() -> None:
    cheap, dear = spot("a"), spot("b", usd_per_hour="6.3")

    _, diary = rolled(a_market(cheap, dear, on_demand()), Told(a=[0.0, 50.0], b=[]))

    assert next((at, place.option) for at, place in diary.refusals) == (0.0, cheap)
    assert diary.stays[0].place.option is dear
    assert diary.stays[0].since == pytest.approx(ASK_HOURS)


def test_a_place_that_granted_a_machine_since_has_a_new_outage_when_it_is_taken() -> None:
    """Down for two days, and later for an hour: that is asked about by quarters of an hour, not by tenths of days."""
    alone = spot()

    _, diary = rolled(a_market(alone, steps=3000, hours=1000), Told(a=[0.0, 48.0, 56.0, 57.0]))

    taken, regained = diary.stays
    assert taken.until == pytest.approx(56.0, abs=0.01)
    assert 57.0 <= regained.since < 57.3


def test_without_a_notice_the_steps_since_the_last_save_are_done_again() -> None:
    """Taken an hour after the first step, behind five saves with ten minutes of training and five seconds each."""
    alone = spot(setup_seconds=0.0, save_seconds=5.0, **NO_NOTICE)

    future, _ = rolled(a_market(alone), Told(a=[1.0, 1.01]))

    unsaved = 3600 - 5 * 605
    assert future.usd["lost"] == pytest.approx(6 * unsaved / 3600 / (1 + 5 / 600), rel=1e-3)
    assert future.preemptions == 1
    assert future.restart_hours == 0.0


def test_a_save_that_is_still_being_written_when_the_machine_is_taken_saves_nothing() -> None:
    at_once, late = (spot(save_seconds=1.0, durable_seconds=seconds, **NO_NOTICE) for seconds in (1.0, 500.0))

    lost = [rolled(a_market(option), Told(a=[1.05, 1.06]))[0].usd["lost"] for option in (at_once, late)]

    assert lost[1] == pytest.approx(lost[0] + 6 * 600 / 3600, rel=0.05)


def test_a_notice_that_is_long_enough_costs_half_a_step() -> None:
    told, untold = (spot(interval_seconds=3600.0, notice_seconds=seconds) for seconds in (120.0, 0.0))

    lost = [rolled(a_market(option), Told(a=[0.9, 1.0]))[0].usd["lost"] for option in (told, untold)]

    assert lost[0] == pytest.approx(0.5 * 10 / 3600 * 6)
    assert lost[1] > 50 * lost[0]


def test_the_guard_of_the_time_counts_what_is_not_saved() -> None:
    asked: list[Standing] = []

    def watch(run: Standing, market: Market, now: float) -> Action:
        asked.append(run)
        if run.here is None:
            return Launch(market.places[0], "first")
        return Keep(now + 0.4)

    roll(a_market(spot(setup_seconds=0.0, interval_seconds=1e9)), Always(), an_outlook(), decide=watch)

    (second, third) = asked[1:3]
    assert second.here is not None
    assert third.here is not None
    assert third.steps == second.steps == 1000
    assert third.here.ahead == pytest.approx(0.4 * 3600 / 10)


def test_a_run_that_leaves_pays_for_its_closing_and_waits_for_nothing() -> None:
    def restless(run: Standing, market: Market, now: float) -> Action:
        if run.here is not None:
            return Leave("") if now < 1 else Keep()
        return Launch(market.places[0], "") if now == 0 or now > 2 else Wait(now + 0.5, "")

    diary = Diary()
    future = roll(a_market(spot()), Always(), an_outlook(), decide=restless, diary=diary)

    left, finished = diary.stays
    assert (left.ending, finished.ending) == ("left", "finished")
    assert left.closing_hours == pytest.approx((5 + 25) / 3600)
    assert future.usd["lost"] == future.preemptions == 0
    assert future.restart_hours == pytest.approx(60 / 3600)


def test_a_tight_deadline_is_met_on_the_fallback_and_a_loose_one_does_without() -> None:
    options = (spot(), on_demand())
    gone = Told(a=[1.0, 9.0])

    tight, loose = (rolled(a_market(*options, steps=2000, hours=hours), gone)[0] for hours in (7.5, 100.0))

    assert tight.hours <= 7.5
    assert tight.usd["fallback"] > 0
    assert tight.fallback_hours * 20 == pytest.approx(tight.usd["fallback"], rel=0.01)
    assert loose.fallback_hours == loose.usd["fallback"] == 0
    assert loose.hours > 9


def test_a_reservation_that_closes_is_left_with_all_that_was_done() -> None:
    offer = an_offer(zone="b", capacity=Capacity.RESERVED, reservation="cr-1", closes_at=after(3600))
    short = an_option(a_placement(offer, usd_per_hour="2"))

    future, diary = rolled(a_market(short, on_demand(), steps=2000), Always())

    assert diary.stays[0].place.option is short
    assert diary.stays[0].until <= 1.0 + 1 / 60
    assert future.preemptions == future.usd["lost"] == 0


def test_a_run_that_never_ends_takes_for_ever_and_has_cost_what_it_has() -> None:
    alone = spot()

    future, _ = rolled(
        a_market(alone),
        Told(a=[1.0]),
        checkpoint_gb=10.0,
        storage_usd_per_gb_month=Decimal(1),
    )

    assert future.hours == math.inf
    assert 0 < future.total_usd < math.inf
    assert future.usd["steps"] + future.usd["lost"] == pytest.approx(6 * (1 - 60 / 3600) / (1 + 5 / 600), rel=0.01)


def test_months_on_the_fallback_come_to_an_end() -> None:
    """A look every half an hour."""
    option = on_demand(step_seconds=3600.0)

    future, _ = rolled(
        a_market(option, spot(usd_per_hour="19.9", step_seconds=3600.0), steps=4000, hours=4100), Always()
    )

    assert future.hours == pytest.approx(4000, rel=0.02)


def test_steps_that_take_longer_make_a_run_longer_by_as_much() -> None:
    market = a_market(spot(setup_seconds=0.0, save_seconds=0.0, durable_seconds=0.0))

    usual, slow = (roll(market, Always(), an_outlook(idle_seconds=0.0), factor=factor) for factor in (1.0, 1.25))

    assert slow.hours == pytest.approx(1.25 * usual.hours)
    assert slow.total_usd == pytest.approx(1.25 * usual.total_usd)


def test_a_move_is_paid_once_and_a_restore_at_each_start_but_the_first() -> None:
    def at(home: str, zone: str, usd_per_hour: str) -> Option:
        traffic = Traffic(home=home, restore=Charge(egress_usd=Decimal(3)))
        return spot(zone, usd_per_hour=usd_per_hour, traffic=traffic)

    moves = {("s3://a", "s3://b"): 40.0, ("s3://b", "s3://a"): 7.0}
    market = a_market(at("s3://a", "a", "6"), at("s3://b", "b", "7"), steps=2000, moves=moves)

    future, diary = rolled(market, Told(a=[1.0, 50.0], b=[]))

    assert [stay.place.option.placement.offer.zone for stay in diary.stays] == ["a", "b"]
    assert future.usd["egress"] == pytest.approx(40 + 3)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_the_same_sky_is_the_same_future(seed: int) -> None:
    market = a_market(spot("a"), spot("b"), on_demand(), steps=5000, hours=20)

    assert roll(market, Drawn(seed), an_outlook()) == roll(market, Drawn(seed), an_outlook())


def test_a_handover_bills_both_machines_and_loses_two_minutes() -> None:
    market = a_market(spot(setup_seconds=600.0), on_demand())
    cheap, firm = market.places

    def hop(run: Standing, market: Market, now: float) -> Action:
        if run.here is None:
            return Launch(firm, "")
        return HandOver(cheap, "", overlaps=True) if run.here.place is firm and now > 1 else Keep(now + 1.1)

    alone, diary = roll(a_market(on_demand()), Always(), an_outlook()), Diary()
    future = roll(market, Always(), an_outlook(), decide=hop, diary=diary)

    old, new = diary.stays
    assert (old.ending, new.ending) == ("handed over", "finished")
    assert old.until - new.since == pytest.approx((600 + 5 + 25) / 3600)
    assert future.restart_hours == pytest.approx((600 + 120) / 3600)
    assert future.hours == pytest.approx(alone.hours + 120 / 3600)
    assert future.usd["lost"] == 0


def test_a_handover_that_is_refused_or_lost_changes_nothing_but_the_bill() -> None:
    market = a_market(spot(setup_seconds=600.0), on_demand())
    cheap, firm = market.places

    def hop(run: Standing, market: Market, now: float) -> Action:
        if run.here is None:
            return Launch(firm, "")
        return HandOver(cheap, "", overlaps=True) if cheap.key not in run.seen and now > 1 else Keep(now + 1.1)

    ways = {name: roll(market, sky, an_outlook(), decide=hop) for name, sky in {
        "refused": Told(a=[0.0]), "lost": Told(a=[1.2]),
    }.items()}  # fmt: skip
    alone = roll(a_market(on_demand()), Always(), an_outlook())

    assert ways["refused"].hours == ways["lost"].hours == pytest.approx(alone.hours)
    assert ways["refused"].total_usd == pytest.approx(alone.total_usd)
    assert 0 < ways["lost"].total_usd - alone.total_usd < 6 * 600 / 3600


@pytest.mark.parametrize(("zones", "slack"), [(1, 0.15), (3, 0.05)])
def test_a_deadline_that_moves_by_a_second_moves_the_mean_cost_by_less_than_a_hundredth(
    zones: int, slack: float
) -> None:
    places = [spot(f"z{n}", usd_per_hour=str(6 + n * 0.05), setup_seconds=720.0) for n in range(zones)]

    def mean_usd(seconds: float) -> float:
        market = a_market(*places, on_demand(), steps=17_280, hours=48 * (1 + slack) + seconds / 3600)
        return fmean(roll(market, Drawn(seed), an_outlook()).total_usd for seed in range(60))

    sooner, as_it_is, later = (mean_usd(seconds) for seconds in (-1, 0, 1))

    assert sooner == pytest.approx(as_it_is, rel=0.01)
    assert later == pytest.approx(as_it_is, rel=0.01)
