"""The pretend metadata services, asked in raw HTTP as a trainer would."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from launcher.adapters.local_metadata import MetadataService

pytestmark = pytest.mark.enable_socket  # on loopback

AT = datetime(2026, 5, 1, 12, 2, 3, 987_000, tzinfo=UTC)
GCE = {"Metadata-Flavor": "Google"}
AZURE = {"Metadata": "true"}
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
ACTION = "/latest/meta-data/spot/instance-action"


class Asker:
    """A service, and somebody with raw HTTP."""

    def __init__(self, service: MetadataService) -> None:
        self.service = service
        self.passed_seconds = 0.0

    def ask(
        self, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: str | None = None
    ) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection(self.service.host, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), dict(answer.getheaders())
        finally:
            connection.close()

    def token(self, ttl: str | None = "60") -> tuple[int, str, dict[str, str]]:
        headers = {} if ttl is None else {"X-aws-ec2-metadata-token-ttl-seconds": ttl}
        return self.ask("/latest/api/token", headers, "PUT")

    def ec2(self, path: str) -> tuple[int, str]:
        status, body, _ = self.ask(f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self.token()[1]})
        return status, body

    def events(self) -> dict[str, Any]:
        status, body, _ = self.ask(EVENTS, AZURE)
        assert status == 200
        answer: dict[str, Any] = json.loads(body)
        return answer

    def start(self, event_id: str) -> int:
        return self.ask(EVENTS, AZURE, "POST", json.dumps({"StartRequests": [{"EventId": event_id}]}))[0]


@pytest.fixture
def asker() -> Iterator[Asker]:
    asker: Asker
    with MetadataService(vm_name="vm-1", is_spot=True, monotonic=lambda: asker.passed_seconds) as service:
        asker = Asker(service)
        yield asker


@pytest.mark.parametrize("ttl", ["1", "21600"])
def test_ec2_gives_a_token_and_echoes_its_life(asker: Asker, ttl: str) -> None:
    status, token, headers = asker.token(ttl)

    assert status == 200
    assert len(token) > 40
    assert headers["X-aws-ec2-metadata-token-ttl-seconds"] == ttl


@pytest.mark.parametrize("ttl", [None, "0", "21601", "-1", "soon"])
def test_ec2_gives_no_token_for_a_life_it_does_not_know(asker: Asker, ttl: str | None) -> None:
    assert asker.token(ttl)[0] == 400


@pytest.mark.parametrize("headers", [{}, {"X-aws-ec2-metadata-token": "forged"}])
def test_ec2_answers_nobody_without_a_token(asker: Asker, headers: dict[str, str]) -> None:
    assert asker.ask(ACTION, headers)[0] == 401


def test_an_ec2_token_dies_of_age(asker: Asker) -> None:
    headers = {"X-aws-ec2-metadata-token": asker.token("60")[1]}

    asker.passed_seconds = 59.9
    assert asker.ask("/latest/meta-data/instance-life-cycle", headers)[0] == 200
    asker.passed_seconds = 60.0
    assert asker.ask("/latest/meta-data/instance-life-cycle", headers)[0] == 401


@pytest.mark.parametrize(
    "path", ["spot/instance-action", "spot/termination-time", "events/recommendations/rebalance", "no-such-thing"]
)
def test_ec2_has_no_notice_until_there_is_one(asker: Asker, path: str) -> None:
    assert asker.ec2(path)[0] == 404


def test_ec2_announces_the_end_in_whole_seconds_never_later_than_it_comes(asker: Asker) -> None:
    asker.service.announce_ec2(AT)

    status, body = asker.ec2("spot/instance-action")
    assert (status, json.loads(body)) == (200, {"action": "terminate", "time": "2026-05-01T12:02:03Z"})
    assert asker.ec2("spot/termination-time") == (200, "2026-05-01T12:02:03Z")
    assert asker.ec2("events/recommendations/rebalance")[0] == 404


def test_ec2_recommends_without_announcing(asker: Asker) -> None:
    asker.service.recommend_rebalance(AT)

    status, body = asker.ec2("events/recommendations/rebalance")
    assert (status, json.loads(body)) == (200, {"noticeTime": "2026-05-01T12:02:03Z"})
    assert asker.ec2("spot/instance-action")[0] == 404


def test_ec2_tells_what_the_instance_is(asker: Asker) -> None:
    assert asker.ec2("instance-life-cycle") == (200, "spot")
    assert asker.ec2("autoscaling/target-lifecycle-state") == (200, "InService")
    assert asker.ec2("events/maintenance/scheduled") == (200, "[]")
    with MetadataService(vm_name="vm-2", is_spot=False) as service:
        assert Asker(service).ec2("instance-life-cycle") == (200, "on-demand")


def test_an_instance_role_is_not_there(asker: Asker) -> None:
    assert asker.ec2("iam/security-credentials/")[0] == 404


@pytest.mark.parametrize("headers", [{}, {"Metadata-Flavor": "Other"}])
def test_gce_refuses_whoever_does_not_name_the_flavor(asker: Asker, headers: dict[str, str]) -> None:
    assert asker.ask(PREEMPTED, headers)[0] == 403


def test_gce_tells_with_an_etag_that_changes_with_the_value(asker: Asker) -> None:
    before = asker.ask(PREEMPTED, GCE)
    asker.service.announce_gce()
    after = asker.ask(PREEMPTED, GCE)

    assert (before[:2], after[:2]) == ((200, "FALSE"), (200, "TRUE"))
    assert before[2]["ETag"] != after[2]["ETag"]
    assert after[2]["Metadata-Flavor"] == "Google"
    assert asker.ask("/computeMetadata/v1/instance/maintenance-event", GCE)[:2] == (200, "NONE")
    assert asker.ask("/computeMetadata/v1/instance/no-such-thing", GCE)[0] == 404


def test_a_gce_long_poll_returns_with_the_change(asker: Asker) -> None:
    etag = asker.ask(PREEMPTED, GCE)[2]["ETag"]
    answers: list[tuple[int, str, dict[str, str]]] = []
    query = f"?wait_for_change=true&last_etag={etag}&timeout_sec=600"
    poll = threading.Thread(target=lambda: answers.append(asker.ask(PREEMPTED + query, GCE)))
    poll.start()

    asker.service.announce_gce()

    poll.join(30)
    assert [answer[:2] for answer in answers] == [(200, "TRUE")]


def test_a_gce_long_poll_is_not_woken_by_another_value(asker: Asker) -> None:
    etag = asker.ask(PREEMPTED, GCE)[2]["ETag"]
    asker.service.announce_ec2(AT)

    answer = asker.ask(f"{PREEMPTED}?wait_for_change=true&last_etag={etag}&timeout_sec=0", GCE)

    assert answer[:2] == (200, "FALSE")


def test_a_gce_long_poll_with_an_old_etag_returns_at_once(asker: Asker) -> None:
    etag = asker.ask(PREEMPTED, GCE)[2]["ETag"]
    asker.service.announce_gce()

    assert asker.ask(f"{PREEMPTED}?wait_for_change=true&last_etag={etag}", GCE)[1] == "TRUE"
    assert asker.ask(f"{PREEMPTED}?wait_for_change=true&last_etag=0", GCE)[1] == "TRUE"


@pytest.mark.parametrize(
    ("path", "headers"), [(EVENTS, {}), (EVENTS, {"Metadata": "no"}), ("/metadata/scheduledevents", AZURE)]
)
def test_azure_refuses_an_incomplete_question(asker: Asker, path: str, headers: dict[str, str]) -> None:
    assert asker.ask(path, headers)[0] == 400


def test_azure_schedules_an_eviction_of_this_machine(asker: Asker) -> None:
    assert asker.events() == {"DocumentIncarnation": 0, "Events": []}

    asker.service.announce_azure(AT)

    document = asker.events()
    (event,) = document["Events"]
    assert document["DocumentIncarnation"] == 1
    assert event["NotBefore"] == "Fri, 01 May 2026 12:02:03 GMT"
    assert (event["EventType"], event["EventStatus"], event["Resources"]) == ("Preempt", "Scheduled", ["vm-1"])
    assert (event["ResourceType"], event["EventSource"]) == ("VirtualMachine", "Platform")


def test_azure_starts_an_eviction_the_guest_agrees_to(asker: Asker) -> None:
    asker.service.announce_azure(AT)
    event_id = asker.events()["Events"][0]["EventId"]

    assert asker.start(event_id) == 200

    assert asker.service.expedited.is_set()
    document = asker.events()
    assert document["DocumentIncarnation"] == 2
    assert document["Events"][0]["EventStatus"] == "Started"


def test_azure_does_not_start_what_it_never_announced(asker: Asker) -> None:
    asker.service.announce_azure(AT)

    assert asker.start("another") == 400
    assert asker.ask(EVENTS, AZURE, "POST", "{]")[0] == 400
    assert asker.ask(EVENTS, AZURE, "POST", json.dumps({"StartRequests": []}))[0] == 400
    assert not asker.service.expedited.is_set()


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_what_nobody_serves_is_not_found(asker: Asker, method: str) -> None:
    assert asker.ask("/", {}, method)[0] == 404


def test_the_variables_lead_to_the_service(asker: Asker) -> None:
    environment = asker.service.environment()

    assert environment["GCE_METADATA_HOST"] == asker.service.host
    assert environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == f"http://{asker.service.host}"
    assert environment["LAUNCH_AZURE_METADATA_ENDPOINT"] == f"http://{asker.service.host}"
