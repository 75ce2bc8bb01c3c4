"""What a trainer is told in its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest

from launcher.adapters.attempt_env import attempt_environment
from launcher.core.estimates.saving import interruptions_per_hour
from launcher.core.offers import Capacity, Placement
from launcher.core.spec import RunSpec
from tests.local_lab import an_own_offer, placed
from trainer_hooks.protocol import Best, Contract
from trainer_hooks.settings import resolve


def environment(
    placement: Placement, checkpoint: Mapping[str, object] = MappingProxyType({}), **changes: Any
) -> dict[str, str]:
    spec = RunSpec.model_validate(
        {
            "name": "demo",
            "run": "python train.py",
            "gpus": {"H100": 8},
            "workload": {"steps": 100},
            "env": {"EPOCHS": 3, "LAUNCH_ATTEMPT": 99},
            "checkpoint": {"every_steps": 50, "keep": 3} | checkpoint,
        }
    )
    usual: dict[str, Any] = {
        "run_id": "demo-20260501-ab12",
        "attempt": 2,
        "run_uri": "s3://bucket/runs/demo-20260501-ab12",
        "spent_usd": Decimal("3.21"),
        "cap_usd": Decimal(1118),
        "time_scale": 1.0,
    }
    return attempt_environment(spec, placement=placement, **usual | changes)


def on_aws(nodes: int = 1) -> Placement:
    offer = replace(
        an_own_offer(), provider="aws", region="us-east-2", list_usd_per_hour=Decimal("11.25"), notice_seconds=120.0
    )
    return placed(offer, nodes)


def test_the_whole_environment() -> None:
    assert environment(on_aws(nodes=4)) == {
        "EPOCHS": "3",
        "LAUNCH_PROTOCOL": "1",
        "LAUNCH_RUN_ID": "demo-20260501-ab12",
        "LAUNCH_ATTEMPT": "2",
        "LAUNCH_RUN_URI": "s3://bucket/runs/demo-20260501-ab12",
        "LAUNCH_CHECKPOINT_EVERY_STEPS": "50",
        "LAUNCH_CHECKPOINT_KEEP": "3",
        "LAUNCH_CHECKPOINT_SNAPSHOT": "overlap",
        "LAUNCH_CHECKPOINT_AUDIT": "0",
        "LAUNCH_CHECKPOINT_LOCAL_SURVIVES": "0",
        "LAUNCH_NOTICE": "ec2,signal",
        "LAUNCH_NOTICE_SECONDS": "120.0",
        "LAUNCH_PRICE_USD_PER_HOUR": "45.000",
        "LAUNCH_INTERRUPTIONS_PER_HOUR": "0.005555555555555556",
        "LAUNCH_SPENT_USD": "3.21",
        "LAUNCH_CAP_USD": "1118.000",
        "LAUNCH_JOB": "demo-20260501-ab12-002",
    }


def test_a_trainer_in_a_fast_market_pays_faster_and_is_warned_shorter() -> None:
    contract = Contract.from_environment(environment(on_aws(), time_scale=60.0))

    assert contract is not None
    assert contract.price_usd_per_hour == Decimal(675)
    assert contract.interruptions_per_hour == pytest.approx(60 / 720)
    assert contract.notice_seconds == 2.0
    assert contract.cap_usd == Decimal(1118) + Decimal("11.25") * 59 * 15 / 3600


def test_how_checkpoints_are_made_and_kept_reaches_the_session() -> None:
    told = environment(
        on_aws(),
        checkpoint={
            "every_steps": "auto",
            "keep": 4,
            "keep_every_steps": 1000,
            "keep_best": {"metric": "accuracy", "mode": "max", "count": 2},
            "snapshot": "lazy",
            "audit": True,
            "local": "/mnt/nvme",
        },
    )

    found = resolve(told, run_uri=None, every=None, keep=None)

    assert (found.every, found.keep, found.keep_every_steps) == ("auto", 4, 1000)
    assert found.keep_best == Best(metric="accuracy", mode="max", count=2)
    assert (found.snapshot, found.audit) == ("lazy", True)
    assert (found.local or "").startswith("/mnt/nvme/demo-20260501-ab12-")


def test_how_often_the_machine_is_taken_and_what_may_be_lost_reach_the_session() -> None:
    spot = placed(
        replace(on_aws().offer, capacity=Capacity.SPOT, preemptions_per_hour=1.0),
        nodes=2,
    )

    found = resolve(environment(spot, {"max_loss": "$15"}), run_uri=None, every=None, keep=None).stakes

    assert found.max_loss_seconds == pytest.approx(15 / 22.5 * 3600)
    assert found.seconds_between_interruptions == pytest.approx(3600 / interruptions_per_hour(spot))


@pytest.mark.parametrize("time_scale", [1.0, 60.0])
def test_an_attempt_that_relieves_another_one_is_told_which(time_scale: float) -> None:
    told = environment(on_aws(), relieves=1, time_scale=time_scale)

    assert told["LAUNCH_RELIEVES"] == "1"
    assert resolve(told, run_uri=None, every=None, keep=None).relieves == 1


def test_an_attempt_that_relieves_nobody_waits_for_nobody() -> None:
    assert "LAUNCH_RELIEVES" not in environment(on_aws())
    assert resolve(environment(on_aws()), run_uri=None, every=None, keep=None).relieves is None


def test_without_a_cap_none_is_told() -> None:
    assert "LAUNCH_CAP_USD" not in environment(on_aws(), cap_usd=None)


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("aws", "ec2,signal"),
        ("gcp", "gce,signal"),
        ("azure", "azure,signal"),
        ("lambda", "signal"),
        ("local", "signal"),
    ],
)
def test_a_trainer_listens_where_its_provider_speaks(provider: str, expected: str) -> None:
    placement = placed(replace(an_own_offer(), provider=provider))

    assert environment(placement)["LAUNCH_NOTICE"] == expected
