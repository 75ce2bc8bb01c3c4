"""What saving is expected to cost before it was measured, and after."""

from __future__ import annotations

from decimal import Decimal

import pytest

from launcher.adapters.snapshot_prices import load_tariffs
from launcher.core.saving import durable_seconds, save_interval_seconds, save_seconds, storage_usd_per_gb_month
from launcher.core.workload import Measured
from tests.builders import a_spec, an_offer, an_option
from tests.local_lab import an_own_offer


def test_a_number_of_steps_sets_the_interval() -> None:
    assert save_interval_seconds(a_spec(checkpoint={"every_steps": 50}), an_option()) == 500.0


@pytest.mark.parametrize("lost", [0.0, 0.001, 0.1, 1.0, 45.0, 600.0])
@pytest.mark.parametrize("durable", [0.0, 2.0, 60.0, 900.0, 3000.0])
def test_the_estimate_takes_the_interval_that_the_hooks_will_choose(lost: float, durable: float) -> None:
    from trainer_hooks.schedule import interval_seconds

    found = save_interval_seconds(a_spec(), an_option(save_seconds=lost, durable_seconds=durable))

    assert found == pytest.approx(interval_seconds(lost, durable))


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
