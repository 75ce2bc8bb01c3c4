"""An AWS account: whose it is, and how many vCPUs of spot GPU machines it may run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.adapters.aws_client import aws_client
from launcher.core.doctor.checkup import SPOT_QUOTAS, Check, spot_quotas

_NOT_LET_IN = {
    "InvalidClientTokenId",
    "ExpiredToken",
    "SignatureDoesNotMatch",
    "AccessDenied",
    "UnrecognizedClientException",
}


def account(regions: Sequence[str], gpus: Mapping[str, int]) -> list[Check]:
    """In `regions`, or the session's own; of `gpus`, the number that a run wants of each type."""
    try:
        import boto3  # type: ignore[import-untyped]  # it ships no types, nor does botocore
    except ImportError:
        found = "boto3 is not installed; whether the account may be used is SkyPilot's to say"
        return [Check(name="aws account", state="skipped", found=found, fix='pip install "skypilot[aws]"')]
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # see above

    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            fix = "`aws configure`, or `aws sso login`"
            found = "no credentials on this machine"
            return [Check(name="aws account", state="failed", found=found, fix=fix, is_credentials=True)]
        who = aws_client(session, "sts", None).get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        is_credentials = _code(error) in _NOT_LET_IN or "Credential" in type(error).__name__
        fix = "`aws sts get-caller-identity` must answer; `aws configure` or `aws sso login` sets it up"
        return [Check(name="aws account", state="failed", found=str(error), fix=fix, is_credentials=is_credentials)]
    places = regions or [session.region_name or "us-east-1"]
    return [
        Check(name="aws account", state="ok", found=f"{who['Account']} as {who['Arn']}"),
        *(_quotas(session, region, gpus) for region in places),
    ]


def _quotas(session: Any, region: str, gpus: Mapping[str, int]) -> Check:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = aws_client(session, "service-quotas", region)
        vcpus = {quota.code: _quota(client, quota.code) for quota in SPOT_QUOTAS}
    except (BotoCoreError, ClientError) as error:
        name, fix = f"aws spot quota {region}", "allow servicequotas:GetServiceQuota to have it looked up"
        return Check(name=name, state="skipped", found=str(error)[:200], fix=fix)
    return spot_quotas(region, vcpus, gpus)


def _quota(client: Any, code: str) -> float:
    """The account's own, or the default where none was ever applied."""
    from botocore.exceptions import ClientError

    try:
        answer = client.get_service_quota(ServiceCode="ec2", QuotaCode=code)
    except ClientError as error:
        if _code(error) != "NoSuchResourceException":
            raise
        answer = client.get_aws_default_service_quota(ServiceCode="ec2", QuotaCode=code)
    return float(answer["Quota"]["Value"])


def _code(error: Exception) -> str:
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))
