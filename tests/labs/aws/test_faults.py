"""What the lab's API refuses, and what its record adds up to; no machine is started here."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.labs.aws.faults import Denial, Faults, Request
from tests.labs.aws.records import Action, Call, bill

START = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = Request("RunInstances", "us-east-2", instance_type="p4d.24xlarge", spot=True, zone="us-east-2a")


@pytest.mark.parametrize(
    ("denial", "is_refused"),
    [
        (Denial(), True),
        (Denial(spot=True), True),
        (Denial(spot=False), False),
        (Denial(region="us-east-2"), True),
        (Denial(region="us-west-2"), False),
        (Denial(spot=True, zone="us-east-2a", instance_type="p4d.24xlarge"), True),
        (Denial(spot=True, zone="us-east-2b", instance_type="p4d.24xlarge"), False),
        (Denial(spot=True, zone="us-east-2a", instance_type="p5.48xlarge"), False),
    ],
)
def test_a_denial_refuses_what_matches_all_of_it(denial: Denial, is_refused: bool) -> None:
    faults = Faults()
    faults.deny(denial)

    assert (faults.refusal(ASKED) is not None) == is_refused


def test_only_starting_machines_can_lack_capacity() -> None:
    faults = Faults()
    faults.deny(Denial())

    assert faults.refusal(Request("TerminateInstances", "us-east-2")) is None


def test_an_outage_counts_the_calls_of_its_action_only() -> None:
    faults = Faults()
    faults.fail(1, "RunInstances")

    others = faults.refusal(Request("DescribeInstances", "us-east-2"))
    refusals = [faults.refusal(ASKED), faults.refusal(ASKED)]

    assert others is None
    assert [refusal.code if refusal else None for refusal in refusals] == ["Unavailable", None]


def test_all_faults_are_forgotten_at_once() -> None:
    faults = Faults()
    faults.deny(Denial())
    faults.fail(9, None)
    faults.slow(2.0, 9, None)

    faults.allow()

    assert faults.refusal(ASKED) is None
    assert faults.delay_seconds(ASKED) == 0.0


@pytest.mark.parametrize("end", ["TerminateInstances", "StopInstances", "SpotInterruption", "Shutdown"])
def test_a_machine_is_billed_until_its_first_end(end: Action) -> None:
    ends = [a_call(end, 60), a_call("TerminateInstances", 90)]

    (billed,) = bill([a_call("RunInstances", 10), *ends])

    assert billed.seconds() == 50.0


def test_what_was_refused_is_not_billed_and_what_runs_is_not_finished() -> None:
    calls = [a_call("RunInstances", 0, error="InsufficientInstanceCapacity"), a_call("RunInstances", 10)]

    (billed,) = bill(calls)

    assert billed.ended_at is None
    assert billed.seconds(START + timedelta(seconds=40)) == 30.0
    with pytest.raises(ValueError, match="running"):
        billed.seconds()


def a_call(action: Action, second: float, *, error: str | None = None) -> Call:
    return Call(
        at=START + timedelta(seconds=second),
        action=action,
        region="us-east-2",
        instances=() if error else ("i-1",),
        instance_type="p4d.24xlarge",
        spot=True,
        zone="us-east-2a",
        error=error,
    )
