"""Reservations with and without room, in the forms of the EC2 API reference (DescribeCapacityReservations)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from launcher.adapters import aws_reservations
from launcher.adapters.aws_client import aws_client
from launcher.adapters.aws_reservations import demand_room
from launcher.core.offers import Capacity
from launcher.core.runs.machine import LaunchRequest
from launcher.errors import BackendError, LaunchRefused
from tests.builders import a_placement, an_offer

boto3 = pytest.importorskip("boto3")
stub = pytest.importorskip("botocore.stub")

Answered = Callable[..., None]
KEYS = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}


def a_request(*, nodes: int = 2, capacity: Capacity = Capacity.RESERVED, **offer: Any) -> LaunchRequest:
    placement = a_placement(an_offer(capacity=capacity, reservation="cr-0a1b", **offer), nodes=nodes)
    return LaunchRequest(job="r-001", placement=placement, setup=None, run="x", workdir="/home/me", env={})


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Answered:
    client = aws_client(boto3.Session(**KEYS), "ec2", "us-east-2")

    def answer(*, error: str | None = None, state: str = "active", free: int = 0) -> None:
        stubber = stub.Stubber(client)
        if error:
            stubber.add_client_error("describe_capacity_reservations", error)
        else:
            one = {"CapacityReservationId": "cr-0a1b", "State": state, "AvailableInstanceCount": free}
            asked = {"CapacityReservationIds": ["cr-0a1b"]}
            stubber.add_response("describe_capacity_reservations", {"CapacityReservations": [one]}, asked)
        stubber.activate()
        monkeypatch.setattr(aws_reservations, "aws_client", lambda *_: client)

    return answer


def test_a_reservation_with_room_is_taken(answered: Answered) -> None:
    answered(free=2)

    demand_room(a_request(nodes=2))


@pytest.mark.parametrize(("state", "free"), [("active", 1), ("pending", 8), ("expired", 8)])
def test_machines_that_a_reservation_cannot_take_are_not_rented_on_demand(
    answered: Answered, state: str, free: int
) -> None:
    answered(state=state, free=free)

    with pytest.raises(LaunchRefused, match="cr-0a1b has room for") as refused:
        demand_room(a_request(nodes=2))

    assert refused.value.reason == "no_capacity"


def test_an_unknown_reservation_is_named(answered: Answered) -> None:
    answered(error="InvalidCapacityReservationId.NotFound")

    with pytest.raises(LaunchRefused, match="there is no reservation cr-0a1b"):
        demand_room(a_request())


def test_no_answer_is_no_refusal(answered: Answered) -> None:
    answered(error="RequestLimitExceeded")

    with pytest.raises(BackendError, match="does not say"):
        demand_room(a_request())


def test_without_boto3_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)

    with pytest.raises(BackendError, match="boto3, which is missing"):
        demand_room(a_request())


def test_a_profile_that_nobody_wrote_down_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobodys")

    with pytest.raises(BackendError, match="nobodys"):
        demand_room(a_request())


def test_a_silent_ec2_keeps_a_supervisor_for_less_than_a_minute() -> None:
    config = aws_client(boto3.Session(**KEYS), "ec2", "us-east-2").meta.config

    assert (config.connect_timeout + config.read_timeout) * config.retries["total_max_attempts"] < 60


@pytest.mark.parametrize(
    "request_", [a_request(capacity=Capacity.ON_DEMAND), a_request(provider="gcp")], ids=["on demand", "gcp"]
)
def test_nobody_else_is_asked(answered: Answered, request_: LaunchRequest) -> None:
    answered(error="RequestLimitExceeded")

    demand_room(request_)
