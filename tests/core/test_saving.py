"""What saving is expected to cost before it was measured, and after."""

from __future__ import annotations

from decimal import Decimal

import pytest

from launcher.adapters.attempt_env import attempt_environment
from launcher.adapters.snapshot_prices import load_tariffs
from launcher.core.estimates.daly import expected_hours
from launcher.core.estimates.saving import (
    durable_seconds,
    interruptions_per_hour,
    interval_basis,
    save_interval_seconds,
    save_seconds,
    storage_usd_per_gb_month,
    unkept_loss_usd,
)
from launcher.core.estimates.workload import Measured
from launcher.core.offers import Capacity, Placement
from launcher.core.prices.options import Option
from launcher.core.spec import RunSpec
from tests.builders import a_placement, a_spec, an_offer, an_option
from tests.local_lab import an_own_offer
from trainer_hooks.schedule import SaveCost, Stakes, is_due
from trainer_hooks.settings import resolve


def test_a_number_of_steps_sets_the_interval() -> None:
    assert save_interval_seconds(a_spec(checkpoint={"every_steps": 50}), an_option()) == 500.0


@pytest.mark.parametrize("lost", [0.0, 0.001, 0.1, 1.0, 45.0, 600.0])
@pytest.mark.parametrize("durable", [0.0, 2.0, 60.0, 900.0, 3000.0])
@pytest.mark.parametrize("fresh", [None, 0.01, 5.0])
@pytest.mark.parametrize("max_loss", [None, "$5", "$500"])
def test_the_estimate_takes_the_interval_that_the_hooks_will_choose(
    lost: float, durable: float, fresh: float | None, max_loss: str | None
) -> None:
    placement = a_placement(an_offer(preemptions_per_hour=fresh), nodes=4)
    spec = a_spec(checkpoint={"max_loss": max_loss})
    cost = SaveCost(lost_seconds=lost, durable_seconds=durable, safe_seconds=durable)

    found = save_interval_seconds(spec, an_option(placement, save_seconds=lost, durable_seconds=durable))

    def is_due_after(seconds: float) -> bool:
        return is_due("auto", steps=round(seconds / 0.01), step_seconds=0.01, cost=cost, stakes=_told(spec, placement))

    assert is_due_after(found + 0.02)
    assert not is_due_after(found - 0.02)


@pytest.mark.parametrize("save", [0.02, 0.5, 5.0, 30.0])
@pytest.mark.parametrize("fresh", [0.1, 0.32, 1.0, 3.0])
@pytest.mark.parametrize("behind", [0.0, 20.0])
def test_auto_costs_at_most_one_percent_more_than_the_best_interval(save: float, fresh: float, behind: float) -> None:
    option = _spot(fresh, save_seconds=save, durable_seconds=save + behind)

    chosen = _expected_hours(option, save_interval_seconds(a_spec(), option))

    assert chosen <= 1.01 * min(_expected_hours(option, 2.0 * 1.05**n) for n in range(200))


def test_a_save_that_hides_behind_the_training_is_made_as_often_as_what_it_blocks_allows() -> None:
    """Both are durable after a minute; one of them blocks for half a second of it."""
    beside, blocking = (_spot(0.32, save_seconds=lost, durable_seconds=60.0) for lost in (0.5, 60.0))

    seconds = [save_interval_seconds(a_spec(), option) for option in (beside, blocking)]

    assert seconds[1] / seconds[0] == pytest.approx((60 / 0.5) ** 0.5, rel=0.05)


def test_a_place_that_is_taken_more_often_is_saved_more_often() -> None:
    rare, usual, often = (save_interval_seconds(a_spec(), _spot(fresh, save_seconds=1.0)) for fresh in (0.05, None, 3))

    assert rare > 2 * usual > 4 * often


def test_machines_that_stay_break_and_more_of_them_break_more_often() -> None:
    firm = an_offer(capacity=Capacity.ON_DEMAND)

    one, many = (interruptions_per_hour(a_placement(firm, nodes=nodes)) for nodes in (1, 16))

    assert one == pytest.approx(1 / 720)
    assert many == pytest.approx(16 / 720)
    assert save_interval_seconds(a_spec(), an_option(a_placement(firm), save_seconds=0.1)) == pytest.approx(720, 0.01)
    assert save_interval_seconds(a_spec(), an_option(a_placement(firm), save_seconds=5.0)) == 1800.0


def test_a_spot_machine_is_taken_less_often_than_when_it_was_fresh_and_breaks_besides() -> None:
    found = {fresh: interruptions_per_hour(a_placement(an_offer(preemptions_per_hour=fresh))) for fresh in (0, 0.32, 5)}

    assert found[0] == pytest.approx(1 / 720)
    assert found[0.32] - found[0] == pytest.approx(0.085, abs=0.001)  # 0.32 while fresh, 0.03 from 16 h on
    assert 0.085 < found[5] - found[0] < 5
    assert interruptions_per_hour(a_placement(an_offer())) == found[0.32], "nobody knows: as in the traces"


def test_the_interval_is_no_longer_than_what_max_loss_pays_for() -> None:
    """$15 at 4 × $45 an hour are 300 s, of which 20 pass until a save is durable."""
    option = _spot(0.32, nodes=4, save_seconds=1.0, durable_seconds=20.0)
    spec = a_spec(checkpoint={"max_loss": "$15"})

    assert save_interval_seconds(spec, option) == pytest.approx(280.0)
    value, basis = interval_basis(spec, option)
    assert value == "4.67 min"
    assert basis.startswith("checkpoint.max_loss $15.00; without it 4.")
    assert basis.endswith("% less machine time")


def test_max_loss_holds_over_a_number_of_steps_too() -> None:
    spec = a_spec(checkpoint={"max_loss": "$15", "every_steps": 50})
    option = _spot(0.32, nodes=4, save_seconds=1.0, durable_seconds=20.0)

    assert save_interval_seconds(spec, option) == pytest.approx(280.0)  # 50 steps are 500 s
    assert save_interval_seconds(spec.model_copy(update={"checkpoint": a_spec().checkpoint}), option) > 280.0


def test_a_max_loss_that_is_never_reached_changes_nothing() -> None:
    option = _spot(0.32, save_seconds=1.0, durable_seconds=20.0)
    spec = a_spec(checkpoint={"max_loss": "$5000"})

    assert save_interval_seconds(spec, option) == save_interval_seconds(a_spec(), option)
    assert interval_basis(spec, option)[1].endswith("within checkpoint.max_loss $5,000.00")


def test_a_max_loss_that_cannot_be_kept_says_what_is_the_least() -> None:
    """Writing for 400 s takes half of the time at most: 800 s and the 400 behind them, at $180 an hour."""
    option = _spot(0.32, nodes=4, save_seconds=1.0, durable_seconds=400.0)
    spec = a_spec(checkpoint={"max_loss": "$15"})

    value, basis = interval_basis(spec, option)

    assert unkept_loss_usd(spec, option) == Decimal(60)
    assert unkept_loss_usd(a_spec(checkpoint={"max_loss": "$60"}), option) is None
    assert value == "13.3 min; an interruption may cost $60.00"
    assert basis == "checkpoint.max_loss $15.00 cannot be kept: steps and saves take too long for it"


def test_the_interval_says_what_it_follows_from() -> None:
    declared, auto = (interval_basis(a_spec(checkpoint={"every_steps": n}), _spot(0.32)) for n in (1200, "auto"))

    assert declared == ("200 min", "declared: every 1,200 steps")
    assert auto[1] == "auto: Daly's optimum for 0.086 interruptions per hour (mean of a machine's first day)"


def test_an_interval_at_a_bound_is_not_called_the_optimum_only() -> None:
    firm = an_option(a_placement(an_offer(capacity=Capacity.ON_DEMAND)), save_seconds=5.0)

    value, basis = interval_basis(a_spec(), firm)

    assert value == "30 min"
    assert "0.0014 interruptions per hour (a node breaks once in 30 days, assumed), within its bounds" in basis


def _spot(fresh: float | None, *, nodes: int = 1, **saves: float) -> Option:
    return an_option(a_placement(an_offer(preemptions_per_hour=fresh), usd_per_hour="45", nodes=nodes), **saves)


def _told(spec: RunSpec, placement: Placement) -> Stakes:
    """What the trainer makes of what the launcher tells it."""
    told = attempt_environment(
        spec,
        run_id="digits-20260105-ab12",
        attempt=1,
        run_uri="s3://bucket/runs/digits-20260105-ab12",
        placement=placement,
        spent_usd=Decimal(0),
        cap_usd=None,
        time_scale=1.0,
    )
    return resolve(told, run_uri=None, every=None, keep=None).stakes


def _expected_hours(option: Option, interval_seconds: float) -> float:
    return expected_hours(
        1.0,
        interval_hours=interval_seconds / 3600,
        save_hours=option.save_seconds / 3600,
        restart_hours=(option.setup_seconds + option.durable_seconds - option.save_seconds) / 3600,
        failures_per_hour=interruptions_per_hour(option.placement),
    )


def test_a_snapshot_beside_the_training_costs_less_of_it_than_one_that_stands_still() -> None:
    beside, still = (a_spec(checkpoint={"size": "10 GB", "snapshot": mode}) for mode in ("overlap", "blocking"))

    assert save_seconds(beside, Measured())[0] == pytest.approx(0.5)
    assert save_seconds(still, Measured())[0] == pytest.approx(20.0)
    assert durable_seconds(beside, Measured()) == durable_seconds(still, Measured()) == pytest.approx(20.0)


def test_what_earlier_runs_showed_counts_before_what_was_declared() -> None:
    spec = a_spec(checkpoint={"size": "10 GB", "save_seconds": 3})

    assert save_seconds(spec, Measured())[0] == 3.0
    assert save_seconds(spec, Measured(save_seconds=0.2, num_runs=2))[0] == 0.2
    assert durable_seconds(spec, Measured(save_seconds=0.2, durable_seconds=7.0, num_runs=2)) == 7.0


def test_earlier_runs_that_do_not_say_when_a_save_was_durable_stood_still_until_then() -> None:
    assert durable_seconds(a_spec(checkpoint={"size": "10 GB"}), Measured(save_seconds=4.0, num_runs=1)) == 4.0


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (None, Decimal("0.023")),  # beside the GPU, which is at aws
        ("/shared/runs", Decimal("0.023")),
        ("s3://bucket/runs", Decimal("0.023")),
        ("gs://bucket/runs", Decimal("0.02")),
    ],
)
def test_checkpoints_are_paid_for_where_they_lie(uri: str | None, expected: Decimal) -> None:
    found, _, is_assumed = storage_usd_per_gb_month(an_offer(provider="aws"), load_tariffs(), uri=uri)

    assert (found, is_assumed) == (expected, False)


def test_the_users_own_disk_is_free_but_a_bucket_beside_it_is_not() -> None:
    own = an_own_offer()

    assert storage_usd_per_gb_month(own, load_tariffs(), uri="/home/ada/runs")[0] == 0
    assert storage_usd_per_gb_month(own, load_tariffs(), uri="s3://bucket/runs")[0] == Decimal("0.023")


def test_a_price_that_nobody_knows_is_said_to_be_assumed() -> None:
    found, source, is_assumed = storage_usd_per_gb_month(an_offer(provider="lambda"), load_tariffs(), uri=None)

    assert is_assumed
    assert "unknown" in source
    assert found == max(load_tariffs().storage_usd_per_gb_month.values(), default=found)
