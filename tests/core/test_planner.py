"""Ranking, refusing, and the ladder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.adapters.snapshot_prices import SnapshotPrices, load_catalog, load_tariffs
from launcher.core.estimates.planner import LONGER_CHASE, NUM_SPOT, Plan, plan, unaccepted_egress_usd, why_nothing
from launcher.core.estimates.survey import Book, survey
from launcher.core.estimates.weather import Habits
from launcher.core.estimates.workload import Correction, History, Measured
from launcher.core.offers import Capacity, Offer
from launcher.core.policy.market import NUM_FIRM
from launcher.core.prices.options import Rules
from launcher.core.prices.pricing import Terms
from tests.builders import T0, a_spec, after, an_offer

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def a_book(*offers: Offer, terms: Terms | None = None) -> Book:
    return Book(offers=offers, terms=terms or Terms(), tariffs=load_tariffs(), catalog=load_catalog())


def planned(
    *offers: Offer, now: datetime = T0, measured: Measured | None = None, terms: Terms | None = None, **spec: Any
) -> Plan:
    return plan(a_spec(**spec), a_book(*offers, terms=terms), measured or Measured(), now=now, rules=Rules())


def on_demand(**fields: Any) -> Offer:
    return an_offer(capacity=Capacity.ON_DEMAND, list_usd_per_hour=Decimal(20), **fields)


def reasons(made: Plan) -> list[str]:
    return [r.reason for r in made.refused]


def test_the_cheapest_place_comes_first() -> None:
    made = planned(an_offer(zone="dear", list_usd_per_hour=Decimal(9)), an_offer(zone="cheap"), on_demand())

    assert [e.placement.offer.zone for e in made.ranked] == ["cheap", "dear", "a"]


def test_egress_can_make_the_lower_price_the_dearer_place() -> None:
    near, far = an_offer(zone="near"), an_offer(zone="far", region="us-west-2", list_usd_per_hour=Decimal(5))
    data = {"uri": "s3://b/x", "region": "aws/us-east-2", "size": "5 TB"}

    assert planned(near, far).best.placement.offer.zone == "far"
    assert planned(near, far, data=data).best.placement.offer.zone == "near"


@pytest.mark.parametrize(
    ("offer", "spec", "reason"),
    [
        (an_offer(), {"providers": ["gcp"]}, "provider aws is not in providers"),
        (an_offer(), {"regions": ["eu-west-1"]}, "region us-east-2 is not in regions"),
        (an_offer(), {"mode": ["on_demand"]}, "spot is not in mode"),
        (an_offer(count=4), {}, "has 4 GPUs a node; gpus asks for 8"),
        (an_offer(available_count=1), {"nodes": 2}, "only 1 of 2 nodes are there"),
        (an_offer(provider="vast"), {"nodes": 2}, "vast rents single machines; nodes asks for 2 together"),
        (an_offer(list_usd_per_hour=None), {}, "unknown"),
        (an_offer(list_usd_per_hour=Decimal(0)), {}, "0"),
        (an_offer(on_demand_usd_per_hour=Decimal(5)), {}, "on-demand"),
        (an_offer(), {"cost": {"cap": 1}}, "cost.cap is $1.00"),
        (an_offer(), {"deadline": "1 h"}, "the deadline is earlier"),
        (
            an_offer(region="us-west-2"),
            {"data": {"uri": "s3://b", "region": "aws/us-east-2", "size": "5 TB", "max_egress_usd": 10}},
            "above data.max_egress_usd $10.00",
        ),
        (
            an_offer(),
            {"data": {"uri": "x://b", "region": "nowhere/one", "size": "5 TB"}},
            "no egress tariff is known for nowhere",
        ),
        (an_offer(), {"workload": {"steps": 10}}, "unknown: give one number"),
    ],
)
def test_a_refused_offer_says_why(offer: Offer, spec: dict[str, Any], reason: str) -> None:
    made = planned(offer, **spec)

    assert made.ranked == ()
    assert reason in reasons(made)[0]
    assert reason in why_nothing(made)


def test_types_that_were_not_asked_for_are_neither_ranked_nor_refused() -> None:
    made = planned(an_offer(gpu="L4", count=1))

    assert (made.ranked, made.refused) == ((), ())
    assert "nobody in the price book offers H100" in why_nothing(made)


def test_the_ladder_names_the_last_moment_to_switch() -> None:
    made = planned(an_offer(), on_demand(), deadline="10 h")

    spot, firm = made.ladder
    work = timedelta(seconds=firm.estimate.option.seconds_to_finish(1000))
    assert (spot.capacity, spot.last_switch_at) == (Capacity.SPOT, None)
    assert firm.last_switch_at == T0 + timedelta(hours=10) - work - timedelta(seconds=Rules().fallback_delay_seconds)


def test_without_a_deadline_one_is_assumed_and_said_so() -> None:
    made = planned(an_offer())

    assert made.deadline_assumed
    assert made.deadline_at > T0 + timedelta(seconds=2 * 1000 * 10)


def test_the_users_own_runs_are_the_first_source() -> None:
    ran = Measured(history=(History(gpu="H100", num_gpus=8, step_seconds=(20.0,)),), num_runs=1, setup_seconds=33.0)

    best = planned(an_offer(), measured=ran).best

    assert best.option.step_seconds == 20.0
    assert best.option.setup_seconds == 33.0
    assert "1 earlier run" in best.assumptions[0].source


def test_an_alternative_type_is_estimated_by_measured_throughput() -> None:
    made = planned(
        an_offer(),
        an_offer(zone="old", gpu="A100-80GB", list_usd_per_hour=Decimal(1)),
        gpus={"H100": 8, "A100-80GB": 8},
    )

    old = next(e for e in made.ranked if e.placement.offer.gpu == "A100-80GB")
    assert old.option.step_seconds == pytest.approx(10 * 1.93, rel=0.02)


def test_reserved_capacity_can_be_ranked_by_what_it_costs_in_cash() -> None:
    book = tuple(o for o in SnapshotPrices().offers(NOW) if o.instance_type == "p5.48xlarge")
    held = {
        "id": "cr-1",
        "provider": "aws",
        "region": "us-east-2",
        "instance_type": "p5.48xlarge",
        "count": 2,
        "usd_per_hour": 22,
        "until": "2027-12-31",
    }
    from launcher.core.prices.inventory import reserved_offers

    def best(rank_by: str) -> Capacity:
        terms = Terms.model_validate({"reserved": [held], "rank_reserved_by": rank_by})
        offers = (*book, *reserved_offers(terms, book, catalog=load_catalog(), today=NOW.date()))
        return planned(*offers, now=NOW, terms=terms).best.placement.offer.capacity

    assert best("amortised") is Capacity.SPOT
    assert best("marginal") is Capacity.RESERVED


@settings(max_examples=6, deadline=None)
@given(caps=st.tuples(st.integers(1, 200), st.integers(1, 200)), deadline=st.sampled_from([None, 4, 40]))
def test_a_bigger_budget_never_makes_the_best_plan_worse(caps: tuple[int, int], deadline: int | None) -> None:
    offers = [an_offer(zone=str(n), list_usd_per_hour=Decimal(4 + 3 * n)) for n in range(4)] + [on_demand()]
    limit = {} if deadline is None else {"deadline": f"{deadline} h"}

    small, big = (planned(*offers, cost={"cap": cap}, **limit) for cap in sorted(caps))

    if small.ranked:
        assert big.ranked
        assert big.best.cost_usd.p50 <= small.best.cost_usd.p50


def test_of_the_embedded_book_the_best_real_places_are_worked_out_and_the_others_counted() -> None:
    made = plan(a_spec(gpus={"H100": 8}), a_book(*SnapshotPrices().offers(NOW)), Measured(), now=NOW, rules=Rules())

    spot = [e for e in made.ranked if e.placement.offer.capacity is Capacity.SPOT]
    assert (len(spot), len(made.ranked) - len(spot)) == (NUM_SPOT, NUM_FIRM)
    assert made.num_dearer >= 9
    assert len({e.placement.offer.provider for e in made.ranked}) >= 5
    assert all(r.reason for r in made.refused)


def test_the_pace_of_a_gpu_type_is_known_though_all_its_places_are_among_the_dearer_ones() -> None:
    cheap = [an_offer(zone=str(n), list_usd_per_hour=Decimal(4)) for n in range(NUM_SPOT + 1)]
    dear = an_offer(zone="x", gpu="A100-80GB", list_usd_per_hour=Decimal(9))
    speeds = {"H100": 10.0, "A100-80GB": 20.0}

    made = planned(
        *cheap, dear, on_demand(), gpus={"H100": 8, "A100-80GB": 8}, workload={"steps": 1000, "step_seconds": speeds}
    )

    assert "A100-80GB" not in {e.placement.offer.gpu for e in made.ranked}
    assert made.step_seconds == speeds


def test_every_offer_is_ranked_refused_or_counted() -> None:
    offers = [an_offer(zone=str(n), list_usd_per_hour=Decimal(4 + n)) for n in range(40)]

    made = planned(*offers, on_demand(), on_demand(region="us-west-2", count=4), providers=["aws"])

    assert len(made.ranked) + len(made.refused) + made.num_dearer == 42


def test_spot_that_no_luck_can_tell_apart_is_ordered_by_its_price() -> None:
    offers = [an_offer(zone=str(n), list_usd_per_hour=Decimal(6) + Decimal(n) / 20) for n in range(8)]

    made = planned(*offers, on_demand(), deadline="5 h")

    zones = [e.placement.offer.zone for e in made.ranked if e.placement.offer.capacity is Capacity.SPOT]
    assert zones == [str(n) for n in range(NUM_SPOT)]


def test_the_price_of_certainty_is_the_cheapest_capacity_that_stays_beside_the_chosen_one() -> None:
    made = planned(an_offer(), on_demand(), on_demand(region="us-west-2"), deadline="9 h")

    sure = made.certainty(made.best)

    assert sure is not None
    assert sure.estimate.placement.offer.capacity is Capacity.ON_DEMAND
    assert sure.more_usd == sure.estimate.cost_usd.p50 - made.best.cost_usd.p50 > 0
    assert sure.sooner_hours == made.best.hours.p50 - sure.estimate.hours.p50
    assert sure.sooner_hours_p90 > sure.sooner_hours
    assert made.certainty(sure.estimate) is None
    assert planned(an_offer()).certainty(made.best) is None


def test_spot_is_chased_for_little_more_than_the_fallback_alone_would_cost() -> None:
    made = planned(an_offer(), on_demand(), deadline="9 h")

    firm = made.ladder[-1].estimate.option
    alone = float(firm.placement.usd_per_hour) * firm.seconds_to_finish(1000) / 3600
    assert made.chase_usd is not None
    assert float(made.chase_usd) == pytest.approx(1.05 * alone, abs=0.01)
    assert planned(an_offer()).chase_usd is None
    assert planned(on_demand()).chase_usd is None


def test_an_urgent_run_waits_for_nothing() -> None:
    offers = an_offer(preemptions_per_hour=1.0), on_demand()

    normal, urgent = (planned(*offers, steps=3000, deadline="40 h", priority=p).best for p in ("normal", "urgent"))

    assert urgent.hours.p90 < normal.hours.p90
    assert urgent.cost_usd.p50 > normal.cost_usd.p50


def test_a_place_where_it_would_never_end_is_refused() -> None:
    made = planned(an_offer(preemptions_per_hour=40.0), steps=3000)

    assert made.ranked == ()
    assert reasons(made) == ["it comes to no end in more than 10% of its futures"]


def test_the_naive_price_is_that_of_the_steps_alone() -> None:
    made = planned(an_offer(), on_demand(), deadline="30 h")

    assert made.best.naive_usd == Decimal("16.67")  # 1,000 steps of 10 s at $6


DATA = {"uri": "s3://b/x", "region": "aws/us-east-2", "size": "5 TB"}  # $100 to us-west-2


def test_the_parts_name_egress_and_requests_and_the_assumptions_their_source() -> None:
    far = an_offer(region="us-west-2", preemptions_per_hour=0.0)

    best = planned(far, data=DATA, checkpoint={"uri": "s3://c/x", "region": "aws/us-west-2", "size": "100 GB"}).best

    assert best.parts["egress"] == Decimal("100.00")
    assert best.parts["requests"] > Decimal("0.23")  # 596,047 GETs and some saves of 5,962 PUTs
    said = {a.name: (a.value, a.source) for a in best.assumptions}
    assert said["data"] == ("5 TB at aws/us-east-2, read once", "declared")
    assert said["egress"] == ("$100.00 a read", "aws us-east-2 to us-west-2, $0.02 per GB")
    assert said["requests"] == ("$0.2384 a read", "aws's price list")
    assert said["NAT gateway"][0] == "none"
    assert said["checkpoint traffic"][0].endswith("to s3://c/x")


def test_the_interval_between_saves_and_what_it_follows_from_are_among_the_assumptions() -> None:
    saved = {"snapshot": "blocking", "save_seconds": "2 s"}

    free, limited = (planned(an_offer(), checkpoint=saved | more).best for more in ({}, {"max_loss": "$0.01"}))

    said, told = ({a.name: (a.value, a.source) for a in made.assumptions} for made in (free, limited))
    assert said["save interval"][1].startswith("auto: Daly's optimum for 0.086 interruptions per hour")
    assert told["save"][0].endswith("an interruption may cost $0.04, more than checkpoint.max_loss")
    assert "cannot be kept" in told["save interval"][1]


@pytest.mark.parametrize(
    "limit", [{"data": DATA | {"max_egress_usd": 99}}, {"cost": {"max_egress_usd": 99}, "data": DATA}]
)
def test_the_lowest_limit_refuses_a_place_and_names_itself(limit: dict[str, Any]) -> None:
    made = planned(an_offer(), an_offer(zone="far", region="us-west-2"), **limit)

    assert [e.placement.offer.zone for e in made.ranked] == ["a"]
    assert "egress of $100.00 per read is above" in reasons(made)[0]
    assert "max_egress_usd $99.00" in reasons(made)[0]


def test_a_limit_is_for_all_machines_of_a_run_and_for_its_checkpoints() -> None:
    """One read is within it; the reads of the machines that follow after preemptions are not."""
    far = an_offer(region="us-west-2")

    made = planned(far, steps=6000, data=DATA | {"max_egress_usd": 150})
    saved = planned(
        on_demand(region="us-west-2"),
        checkpoint={"uri": "s3://c/x", "region": "aws/us-east-2", "size": "500 GB"},
        cost={"max_egress_usd": 5},
    )

    assert "its egress is about $" in reasons(made)[0]
    assert "in all, above data.max_egress_usd $150.00" in reasons(made)[0]
    assert "in all, above cost.max_egress_usd $5.00" in reasons(saved)[0]


def test_egress_beyond_a_fifth_of_the_run_is_a_decision_of_its_own() -> None:
    """The run costs about $17 of machines, or about $500."""
    far = an_offer(region="us-west-2", preemptions_per_hour=0.0)
    small, large = planned(far, data=DATA), planned(far, steps=300_000, data=DATA)
    named = planned(far, data=DATA | {"max_egress_usd": 100})
    near = planned(an_offer(), data=DATA)

    assert unaccepted_egress_usd(small.spec, small.best) == Decimal("100.00")
    assert unaccepted_egress_usd(large.spec, large.best) is None
    assert unaccepted_egress_usd(named.spec, named.best) is None
    assert unaccepted_egress_usd(near.spec, near.best) is None


def test_an_accepted_egress_goes_before_what_the_file_says() -> None:
    far = an_offer(region="us-west-2", preemptions_per_hour=0.0)
    spec = a_spec(data=DATA | {"max_egress_usd": 1}, cost={"max_egress_usd": 1}).accepting_egress(Decimal(100))

    made = plan(spec, a_book(far), Measured(), now=T0, rules=Rules())

    assert made.best.parts["egress"] == Decimal("100.00")


def test_of_a_bucket_too_large_to_list_only_places_beside_it_are_ranked() -> None:
    found = {"region": "aws/us-east-2", "gb": 1200, "is_complete": False, "num_objects": 9, "basis": "l", "at": T0}

    made = planned(an_offer(), an_offer(zone="far", region="us-west-2"), data={"uri": "s3://b/x", "found": found})

    assert [e.placement.offer.zone for e in made.ranked] == ["a"]
    assert "at least 1.2 TB" in reasons(made)[0]
    said = {a.name: a.value for a in made.best.assumptions}
    assert said["data"] == "at least 1.2 TB at aws/us-east-2, read once"


def test_a_bucket_beside_each_gpu_makes_the_cheap_place_far_away_worth_it() -> None:
    near, far = an_offer(zone="near"), an_offer(zone="far", region="us-west-2", list_usd_per_hour=Decimal("5.5"))
    one = {"uri": "s3://c/x", "region": "aws/us-east-2", "size": "500 GB", "every_steps": 50}
    beside = one | {"buckets": {"aws/us-west-2": "s3://west/x"}}

    assert planned(near, far, checkpoint=one).best.placement.offer.zone == "near"
    assert planned(near, far, checkpoint=beside).best.placement.offer.zone == "far"


def test_where_a_checkpoint_lies_makes_going_elsewhere_dearer() -> None:
    buckets = {"aws/us-east-2": "s3://east/x", "aws/us-west-2": "s3://west/x"}
    spec = a_spec(checkpoint={"size": "500 GB", "buckets": buckets})
    book = a_book(an_offer(), an_offer(region="us-west-2"))

    def moves(*lying: str) -> list[Decimal]:
        found, _ = survey(spec, book, Measured(), now=T0, lying=lying)
        return [round(candidate.option.move_usd, 1) for candidate in found]

    assert moves() == [0, 0]
    assert moves("s3://east/x") == [0, Decimal("10.2")]
    assert moves("s3://east/x", "s3://west/x") == [0, 0]


def test_a_move_weighs_more_where_machines_live_shorter() -> None:
    buckets = {"aws/us-east-2": "s3://east/x", "aws/us-west-2": "s3://west/x"}
    spec = a_spec(checkpoint={"size": "500 GB", "buckets": buckets})

    def rate(hazard: float, *lying: str) -> float:
        book = a_book(an_offer(region="us-west-2", preemptions_per_hour=hazard))
        found, _ = survey(spec, book, Measured(), now=T0, lying=lying)
        return found[0].option.effective_usd_per_step

    assert rate(0.5, "s3://east/x") - rate(0.5) == pytest.approx(0.5 * 10.15 * 10 / 3600, rel=0.01)
    assert rate(0.1, "s3://east/x") - rate(0.1) == pytest.approx(0.1 * 10.15 * 10 / 3600, rel=0.01)


def test_a_reservation_that_opens_later_is_no_plan_and_may_be_the_fallback() -> None:
    opens_at = after(3600)
    later = an_offer(zone="b", capacity=Capacity.RESERVED, reservation="cr-1", available_count=1, opens_at=opens_at)
    made = planned(an_offer(zone="a"), later, steps=360, deadline="30 h")

    assert [e.placement.offer.zone for e in made.ranked] == ["a"]
    assert [(r.offer.zone, r.reason) for r in made.refused] == [("b", "it begins on 2026-01-05 13:00 UTC")]
    assert made.ranked[0].on_time == 1.0


def test_a_reservation_that_closes_before_the_run_would_end_is_no_plan() -> None:
    short = an_offer(zone="b", capacity=Capacity.RESERVED, reservation="cr-1", closes_at=after(1800))

    made = planned(an_offer(zone="a"), short, steps=360)

    assert [r.reason for r in made.refused] == ["it closes on 2026-01-05 12:30 UTC, before the run would end"]


def test_what_finished_runs_taught_is_in_the_estimate_and_says_so() -> None:
    taught = Measured(corrections={"declared": Correction(shift=1.5, width=4.0, num_runs=7, team="nlp")})

    raw, later = (planned(on_demand(), measured=m).best for m in (Measured(), taught))

    assert float(later.cost_usd.p50 / raw.cost_usd.p50) == pytest.approx(1.5, rel=0.05)
    assert later.cost_usd.p90 / later.cost_usd.p50 > raw.cost_usd.p90 / raw.cost_usd.p50
    (told,) = (a for a in later.assumptions if a.name == "step time")
    assert told.value == f"15 s, cost beside the market 80 % within ×/÷ {1.05**4:.2f}"
    assert told.source.endswith("; recalibrated by 7 runs of team nlp: +50.0 %, range × 4.0")


def test_what_another_source_learnt_changes_no_digit() -> None:
    others = Measured(corrections={"catalogue": Correction(shift=1.5, width=4.0, num_runs=7, team="nlp")})

    raw, beside = (planned(an_offer(), on_demand(), measured=m) for m in (Measured(), others))

    assert raw.ranked == beside.ranked


def test_what_runs_saw_of_a_place_enters_its_estimate_and_is_said() -> None:
    rough = Habits(is_up=False, age_hours=2.0, lost=(9, 2.0), found=(1, 3.0))
    places = [an_offer(zone="a"), on_demand()]
    key = places[0].key

    unseen, seen = (planned(*places, measured=m) for m in (Measured(), Measured(places={key: rough})))

    before, after_it = (next(e for e in made.ranked if e.placement.offer.key == key) for made in (unseen, seen))
    assert after_it.cost_usd.p50 > before.cost_usd.p50
    (said,) = (a.source for a in after_it.assumptions if a.name == "preemptions")
    assert said.endswith("; in runs of the last 14 days 9, where 2.0 were to be expected")


def test_where_the_guard_of_the_money_is_dear_the_plan_says_what_a_longer_chase_would_cost() -> None:
    rare = {"checkpoint": {"every_steps": 400}, "workload": {"steps": 5000, "step_seconds": {"H100": 10.0}}}
    places = [an_offer(list_usd_per_hour=Decimal(12)), on_demand()]

    made = planned(*places, deadline="60 h", **rare)
    bold = planned(*places, deadline="60 h", cost={"max_chase": LONGER_CHASE}, **rare)

    assert made.longer_chase is not None
    assert made.longer_chase.cost_usd == bold.best.cost_usd
    assert made.longer_chase.cost_usd.p90 < made.best.cost_usd.p90
    assert bold.longer_chase is None
