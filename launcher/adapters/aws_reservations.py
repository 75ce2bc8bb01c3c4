"""Whether an EC2 capacity reservation has room. SkyPilot silently starts on demand what one cannot take, at its price.

EC2 API reference, DescribeCapacityReservations: `AvailableInstanceCount` is what is left, in state `active`.
"""

from __future__ import annotations

from launcher.adapters.aws_client import aws_client
from launcher.core.offers import Capacity
from launcher.core.runs.machine import LaunchRequest
from launcher.errors import BackendError, LaunchRefused


def demand_room(request: LaunchRequest) -> None:
    """Raises: LaunchRefused: the reservation cannot take all nodes. BackendError: EC2 gave no answer."""
    offer, nodes = request.placement.offer, request.placement.nodes
    if offer.provider != "aws" or offer.capacity is not Capacity.RESERVED or offer.reservation is None:
        return
    free = _free(offer.region, offer.reservation)
    if free < nodes:
        raise LaunchRefused("no_capacity", f"{offer.reservation} has room for {free} of {nodes} machines now")


def _free(region: str, reservation: str) -> int:
    try:
        import boto3  # type: ignore[import-untyped]  # SkyPilot's own way to EC2; it ships no types, nor does botocore
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # see above
    except ImportError as error:  # nothing else here needs it where SkyPilot's API server is another machine
        fix = 'pip install "skypilot[aws]"'
        raise BackendError(
            f"EC2 is asked whether {reservation} has room through boto3, which is missing: {fix}"
        ) from error
    try:
        client = aws_client(boto3.Session(), "ec2", region)
        found = client.describe_capacity_reservations(CapacityReservationIds=[reservation])["CapacityReservations"]
    except ClientError as error:
        if "NotFound" in error.response["Error"]["Code"]:
            raise LaunchRefused("unavailable", f"there is no reservation {reservation}: {error}") from error
        raise BackendError(f"EC2 does not say whether {reservation} has room: {error}") from error
    except BotoCoreError as error:
        raise BackendError(f"EC2 does not say whether {reservation} has room: {error}") from error
    return sum(int(one["AvailableInstanceCount"]) for one in found if one["State"] == "active")
