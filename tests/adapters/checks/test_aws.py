"""An AWS account: who it is by moto's STS, its quotas by a server that answers in the form of the Service Quotas API.

GetServiceQuota and GetAWSDefaultServiceQuota, AWS JSON 1.1: docs.aws.amazon.com/servicequotas/2019-06-24/apireference.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from launcher.adapters.checks import aws
from launcher.core.doctor.checkup import Check
from tests import web

pytest.importorskip("boto3")
pytestmark = [pytest.mark.enable_socket, pytest.mark.system]  # on loopback


class Service(web.Handler):
    def reply(self, status: int, content_type: str, text: str) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


class Quotas:
    """`applied` to the account, by code; the others have a default of 0. `refuses`: nobody may look."""

    def __init__(self) -> None:
        self.applied: dict[str, float] = {}
        self.refuses = False
        self.regions: set[str] = set()

    def answer(self, action: str, code: str) -> tuple[int, dict[str, Any]]:
        if self.refuses:
            return 400, {"__type": "AccessDeniedException", "Message": "not authorized"}
        if action == "GetServiceQuota" and code not in self.applied:
            return 400, {"__type": "NoSuchResourceException", "Message": "The request failed"}
        value = self.applied[code] if action == "GetServiceQuota" else 0.0
        return 200, {"Quota": {"ServiceCode": "ec2", "QuotaCode": code, "Value": value, "Unit": "None"}}


@pytest.fixture
def quotas(s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Quotas]:
    told = Quotas()

    class Handler(Service):
        def do_POST(self) -> None:  # noqa: N802  # the name that http.server looks for
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.regions.add(self.headers["Authorization"].split("/")[2])
            status, answer = told.answer(self.headers["X-Amz-Target"].split(".")[1], body["QuotaCode"])
            self.reply(status, "application/x-amz-json-1.1", json.dumps(answer))

    with web.serving(Handler) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_server)
        yield told


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_an_account_says_who_it_is_and_what_it_may_run(quotas: Quotas) -> None:
    quotas.applied = {"L-C4BD4855": 192.0, "L-3819A6DF": 64.0}

    found = by_name(aws.account([], {}))

    assert {name: check.state for name, check in found.items()} == {
        "aws account": "ok",
        "aws spot quota us-east-1": "ok",
    }
    assert "123456789012 as arn:aws:" in found["aws account"].found
    assert found["aws spot quota us-east-1"].found == "vCPUs: P5 192, P4, P3 and P2 0, G and VT 64"


def test_each_region_of_the_run_is_looked_at_for_what_the_run_wants(quotas: Quotas) -> None:
    found = by_name(aws.account(["us-east-2", "eu-west-1"], {"H100": 8}))

    assert quotas.regions == {"us-east-2", "eu-west-1"}
    assert found["aws spot quota eu-west-1"].state == "warning"
    assert "--region eu-west-1 --quota-code L-C4BD4855 --desired-value 192" in found["aws spot quota eu-west-1"].fix


def test_quotas_that_may_not_be_looked_at_are_skipped_and_the_permission_named(quotas: Quotas) -> None:
    quotas.refuses = True

    check = by_name(aws.account([], {}))["aws spot quota us-east-1"]

    assert (check.state, "servicequotas:GetServiceQuota" in check.fix) == ("skipped", True)


def test_without_keys_somebody_has_to_log_in(quotas: Quotas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    (check,) = aws.account([], {})

    assert (check.state, check.is_credentials) == ("failed", True)


def test_keys_that_are_out_of_date_are_a_matter_of_credentials(quotas: Quotas, monkeypatch: pytest.MonkeyPatch) -> None:
    class Expired(Service):
        def do_POST(self) -> None:  # noqa: N802  # the name that http.server looks for
            body = "<ErrorResponse><Error><Type>Sender</Type><Code>ExpiredToken</Code></Error></ErrorResponse>"
            self.reply(403, "text/xml", body)

    with web.serving(Expired) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        (check,) = aws.account([], {})

    assert (check.state, check.is_credentials) == ("failed", True)
    assert "ExpiredToken" in check.found


def test_without_boto3_it_is_skypilots_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)

    (check,) = aws.account([], {})

    assert check.state == "skipped"
