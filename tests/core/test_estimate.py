"""The distribution of cost and time: its parts, its seeds, its order."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.estimate import estimate
from launcher.core.hazards import LIFE_HAZARD
from launcher.core.offers import Capacity, Placement
from launcher.core.options import Option
from launcher.core.rollout import PARTS, Outlook, _life_hours
from launcher.core.traffic import Charge, Traffic
from tests import builders
from tests.builders import a_placement, an_offer, reading


def an_outlook(**fields: object) -> Outlook:
    plain: dict[str, object] = {
        "steps": 1000,
        "throughput_factor80": 1.05,
        "idle_seconds": 25.0,
        "closing_seconds": 55.0,
        "elsewhere": (),
        "hours_to_deadline": None,
        "fallback": None,
        "fallback_delay_hours": 1.0,
        "reads": 0.0,
        "checkpoint_gb": 0.0,
        "kept": 2,
        "storage_usd_per_gb_month": Decimal(0),
    }
    return Outlook(**plain | fields)  # type: ignore[arg-type]


def an_option(placement: Placement | None = None, **fields: object) -> Option:
    """Saved every ten minutes."""
    return builders.an_option(placement, **{"interval_seconds": 600.0} | fields)


def on_demand(**fields: object) -> Option:
    placement = a_placement(an_offer(capacity=Capacity.ON_DEMAND), usd_per_hour=str(fields.pop("usd_per_hour", "20")))
    return an_option(placement, **fields)


def test_32_nodes_at_30_dollars_for_a_week_cost_161280_dollars() -> None:
    placement = a_placement(an_offer(capacity=Capacity.ON_DEMAND), usd_per_hour="30", nodes=32)
    week = an_option(placement, step_seconds=3600.0, setup_seconds=0.0, save_seconds=0.0)

    found = estimate(week, an_outlook(steps=168, throughput_factor80=1.0, idle_seconds=0.0), [])

    assert found.cost_usd.p10 == found.cost_usd.p50 == found.cost_usd.p90 == Decimal("161280.00")
    assert found.parts["steps"] == Decimal("161280.00")
    assert found.hours.p50 == pytest.approx(168)


def test_a_save_that_is_still_being_written_when_the_machine_is_taken_saves_nothing() -> None:
    spot = a_placement(an_offer(notice_seconds=0.0))
    at_once, late = (an_option(spot, save_seconds=1.0, durable_seconds=seconds) for seconds in (1.0, 500.0))
    outlook = an_outlook(steps=20_000)

    lost = [estimate(option, outlook, []).parts["lost"] for option in (at_once, late)]

    assert lost[1] > lost[0] > 0


def test_the_last_save_is_waited_for() -> None:
    beside = on_demand(usd_per_hour="36", save_seconds=0.0, durable_seconds=100.0)

    assert estimate(beside, an_outlook(steps=1000), []).parts["saves"] == Decimal("1.00")


def test_a_save_costs_what_it_blocks_and_not_what_it_is_written_for() -> None:
    """A hundred saves between the steps, and the last one."""
    beside = on_demand(usd_per_hour="36", save_seconds=1.0, durable_seconds=50.0, interval_seconds=100.0)

    found = estimate(beside, an_outlook(steps=1000, throughput_factor80=1.0), [])

    assert found.parts["saves"] == Decimal("1.00") + Decimal("0.50")


def test_100_tb_read_at_9_cents_are_9000_dollars_of_egress() -> None:
    far = an_option(on_demand().placement, traffic=reading(Decimal(9000)))

    assert estimate(far, an_outlook(reads=1.0), []).parts["egress"] == Decimal("9000.00")


@given(
    steps=st.integers(1, 5000),
    price=st.decimals("0.05", "400", places=4),
    hazard=st.floats(0, 3),
    gb=st.floats(0, 2000),
    egress=st.decimals(0, 300, places=2),
    deadline=st.none() | st.floats(0.5, 40),
)
def test_the_parts_add_up_to_the_median_to_the_cent(
    steps: int, price: Decimal, hazard: float, gb: float, egress: Decimal, deadline: float | None
) -> None:
    spot = an_option(a_placement(usd_per_hour=str(price)), preemptions_per_hour=hazard, traffic=reading(egress))
    outlook = an_outlook(
        steps=steps,
        reads=1.0,
        checkpoint_gb=gb,
        storage_usd_per_gb_month=Decimal("0.023"),
        hours_to_deadline=deadline,
        fallback=on_demand(),
    )

    found = estimate(spot, outlook, [])

    assert sum(found.parts.values()) == found.cost_usd.p50
    assert set(found.parts) == set(PARTS)
    assert found.cost_usd.p10 <= found.cost_usd.p50 <= found.cost_usd.p90 <= found.high_usd
    assert found.hours.p10 <= found.hours.p50 <= found.hours.p90
    assert min(found.parts.values()) >= 0


def test_the_same_question_gets_the_same_answer() -> None:
    spot = an_option(preemptions_per_hour=0.5)

    assert estimate(spot, an_outlook(), []) == estimate(spot, an_outlook(), [])


def test_capacity_that_stays_has_no_preemptions_and_a_range_as_wide_as_the_throughput_error() -> None:
    found = estimate(on_demand(setup_seconds=0.0, save_seconds=0.0), an_outlook(throughput_factor80=1.3), [])

    assert found.preemptions == 0
    assert found.parts["lost"] == found.parts["restarts"] == found.parts["fallback"] == 0
    assert float(found.cost_usd.p90 / found.cost_usd.p50) == pytest.approx(1.3, rel=0.03)
    assert float(found.cost_usd.p50 / found.cost_usd.p10) == pytest.approx(1.3, rel=0.03)


def test_more_preemptions_cost_more_and_take_longer() -> None:
    calm, stormy = (
        estimate(an_option(preemptions_per_hour=hazard), an_outlook(steps=5000), []) for hazard in (0.05, 1.0)
    )

    assert stormy.preemptions > calm.preemptions
    assert stormy.cost_usd.p50 > calm.cost_usd.p50
    assert stormy.hours.p50 > calm.hours.p50


def test_a_notice_that_is_long_enough_saves_the_steps_since_the_last_save() -> None:
    told, untold = (
        an_option(a_placement(an_offer(notice_seconds=seconds)), preemptions_per_hour=1.0, interval_seconds=3600.0)
        for seconds in (120.0, 0.0)
    )
    long_between_saves = an_outlook(steps=5000)

    lost = [estimate(option, long_between_saves, []).parts["lost"] for option in (told, untold)]

    assert lost[0] < lost[1]


def test_a_tight_deadline_is_met_on_the_fallback_and_a_loose_one_needs_it_less() -> None:
    spot = an_option(preemptions_per_hour=1.0)
    work_hours = 5000 * 10 / 3600

    def with_slack(hours: float) -> object:
        return estimate(spot, an_outlook(steps=5000, hours_to_deadline=work_hours + hours, fallback=on_demand()), [])

    tight, loose = with_slack(2.0), with_slack(100.0)

    assert tight.parts["fallback"] > loose.parts["fallback"] == 0  # type: ignore[attr-defined]
    assert tight.on_time > 0.75  # type: ignore[attr-defined]
    assert tight.cost_usd.p50 > loose.cost_usd.p50  # type: ignore[attr-defined]


def test_many_places_shorten_the_wait_for_capacity() -> None:
    spot = an_option(preemptions_per_hour=1.0)

    others = tuple(an_option(preemptions_per_hour=1.0) for _ in range(8))

    alone, among_many = (estimate(spot, an_outlook(steps=5000, elsewhere=e), []) for e in ((), others))

    assert among_many.hours.p50 < alone.hours.p50


def test_going_on_at_a_dearer_place_is_in_the_estimate() -> None:
    spot = an_option(preemptions_per_hour=1.0)
    same, dearer = (
        (an_option(a_placement(an_offer(zone="b"), usd_per_hour=usd), preemptions_per_hour=1.0),) for usd in ("6", "18")
    )

    cheap, dear = (estimate(spot, an_outlook(steps=5000, elsewhere=e), []) for e in (same, dearer))

    assert dear.cost_usd.p50 > Decimal("1.2") * cheap.cost_usd.p50


def test_marginal_cash_leaves_out_what_is_paid_for_anyway() -> None:
    placement = a_placement(an_offer(capacity=Capacity.RESERVED), usd_per_hour="22")
    committed = replace(placement, price=replace(placement.price, marginal_usd_per_hour=Decimal(0)))

    found = estimate(an_option(committed, traffic=reading(Decimal(5))), an_outlook(reads=1.0), [])

    assert found.cost_usd.p50 > Decimal(60)
    assert Decimal("4.90") <= found.marginal_usd <= Decimal("5.10")


def test_lives_are_drawn_by_the_hazard_of_their_age() -> None:
    option = an_option(preemptions_per_hour=LIFE_HAZARD[0][1])
    luck = random.Random(5)
    lives = [_life_hours(option, luck) for _ in range(20_000)]

    for (begin, _), (end, hazard) in pairwise(((0.0, 0.0), *LIFE_HAZARD[:5])):
        survived = sum(life > begin for life in lives)
        died = survived - sum(life > end for life in lives)
        assert died / survived == pytest.approx(1 - math.exp(-hazard * (end - begin)), abs=0.02)


def test_saves_are_paid_for_by_their_number_and_a_start_from_one_by_its_restore() -> None:
    """1,000 steps of 10 s with a save every 600 s of training, and the last one."""
    traffic = Traffic(
        home="s3://b",
        save=Charge(egress_usd=Decimal(2), requests_usd=Decimal("0.5")),
        restore=Charge(egress_usd=Decimal(3)),
    )
    firm = replace(on_demand(save_seconds=0.0), traffic=traffic)

    found = estimate(firm, an_outlook(throughput_factor80=1.0), [])

    saves = Decimal(10_000) / 600 + 1
    assert found.parts["egress"] == (2 * saves).quantize(Decimal("0.01"))
    assert found.parts["requests"] == (saves / 2).quantize(Decimal("0.01"))


def test_a_preempted_run_pays_for_its_restores_and_moves() -> None:
    def a_place(home: str, **fields: object) -> Option:
        return an_option(traffic=Traffic(home=home, **fields), preemptions_per_hour=1.0)  # type: ignore[arg-type]

    plain, elsewhere = a_place("s3://a"), a_place("s3://b")
    restored = a_place("s3://a", restore=Charge(egress_usd=Decimal(100)))
    moves = {("s3://a", "s3://b"): Charge(egress_usd=Decimal(100)), ("s3://b", "s3://a"): Charge()}

    def egress(option: Option, **fields: object) -> Decimal:
        return estimate(option, an_outlook(steps=5000, **fields), []).parts["egress"]

    assert egress(plain) == 0
    assert egress(restored) >= 100
    assert egress(plain, elsewhere=(elsewhere,)) == 0
    assert egress(plain, elsewhere=(elsewhere,), moves=moves) >= 100


def test_the_first_machine_restores_and_moves_nothing() -> None:
    traffic = Traffic(home="s3://a", restore=Charge(egress_usd=Decimal(100)))
    moves = {("s3://a", None): Charge(egress_usd=Decimal(100))}
    outlook = an_outlook(fallback=on_demand(), hours_to_deadline=1.0, moves=moves)  # at once, to the fallback

    found = estimate(an_option(traffic=traffic), outlook, [])

    assert found.parts["fallback"] > 0
    assert found.parts["egress"] == 0
