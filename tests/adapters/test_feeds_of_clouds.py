"""Each cloud's feed against answers in the form of its documentation (tests/golden/feeds)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from launcher.adapters.feeds import AwsFeed, AzureFeed, GcpFeed
from launcher.adapters.feeds.https import ask_json
from launcher.adapters.feeds.port import FeedSilent, Question
from launcher.core.prices.feeds import Place, Signal
from tests.adapters.answers import Answers, a_server, recorded
from tests.builders import T0

NOW = T0 + timedelta(hours=1)
EAST: list[Place] = [
    ("aws", "us-east-2", "use2-az2", "p5.48xlarge"),
    ("aws", "us-east-2", "use2-az3", "p5.48xlarge"),
    ("aws", "us-east-2", "use2-az1", "p5.48xlarge"),
]
A2: Place = ("gcp", "us-central1", "us-central1-a", "a2-highgpu-1g")
N1: Place = ("gcp", "us-central1", "us-central1-a", "n1-highmem-8+1xT4")
NC24: Place = ("azure", "eastus", None, "Standard_NC24ads_A100_v4")
NC96: Place = ("azure", "eastus", None, "Standard_NC96ads_A100_v4")


@pytest.fixture
def server() -> Iterator[Answers]:
    with a_server() as answers:
        yield answers


def ec2(region: str = "us-east-2") -> tuple[Any, Any]:
    """botocore's own client, and a stub under it that holds requests and answers to the API's model."""
    import botocore.session
    from botocore.stub import Stubber

    session = botocore.session.Session()
    client = session.create_client("ec2", region_name=region, aws_access_key_id="test", aws_secret_access_key="test")
    return client, Stubber(client)


def ec2_prices() -> dict[str, Any]:
    answer: dict[str, Any] = recorded("ec2_spot_price_history")
    for row in answer["SpotPriceHistory"]:
        row["Timestamp"] = datetime.fromisoformat(row["Timestamp"])
    return answer


ASKED_PRICES = {
    "InstanceTypes": ["p5.48xlarge"],
    "ProductDescriptions": ["Linux/UNIX"],
    "StartTime": NOW,
    "EndTime": NOW,
}


def ask(feed: Any, about: str, places: list[Place]) -> tuple[Signal, ...]:
    (question,) = (question for question in feed.questions(places) if question.about == about)
    found: tuple[Signal, ...] = feed.ask(question, NOW)
    return found


def test_ec2_the_newest_price_of_each_zone_is_in_force() -> None:
    client, stub = ec2()
    stub.add_response("describe_spot_price_history", ec2_prices(), ASKED_PRICES)

    with stub:
        found = ask(AwsFeed(lambda region: client), "price", EAST)

    assert [(signal.place, signal.usd_per_hour, signal.at) for signal in found] == [
        (EAST[0], Decimal("21.403100"), NOW),
        (EAST[1], Decimal("25.981200"), NOW),
    ]


def test_ec2_names_of_zones_are_turned_into_their_ids() -> None:
    answer = ec2_prices()
    for row in answer["SpotPriceHistory"]:
        del row["AvailabilityZoneId"]
    zones = [{"ZoneName": "us-east-2b", "ZoneId": "use2-az2"}, {"ZoneName": "us-east-2c", "ZoneId": "use2-az3"}]
    client, stub = ec2()
    stub.add_response("describe_spot_price_history", answer, ASKED_PRICES)
    stub.add_response("describe_availability_zones", {"AvailabilityZones": zones}, {})

    with stub:
        found = ask(AwsFeed(lambda region: client), "price", EAST)

    assert [signal.place for signal in found] == EAST[:2]


def test_ec2_scores_rank_the_zones_of_all_wanted_types_in_one_request() -> None:
    places = [*EAST, ("aws", "us-east-2", "use2-az3", "p4d.24xlarge")]
    asked = {
        "InstanceTypes": ["p4d.24xlarge", "p5.48xlarge"],
        "TargetCapacity": 1,
        "SingleAvailabilityZone": True,
        "RegionNames": ["us-east-2"],
    }
    client, stub = ec2()
    stub.add_response("get_spot_placement_scores", recorded("ec2_spot_placement_scores"), asked)

    with stub:
        found = ask(AwsFeed(lambda region: client), "placement score", places)

    assert [(signal.place[2:], signal.placement_score) for signal in found] == [
        (("use2-az2", "p5.48xlarge"), 3),
        (("use2-az3", "p5.48xlarge"), 7),
        (("use2-az3", "p4d.24xlarge"), 7),
    ]
    assert found[0].source == "EC2 placement scores for any of 2 types"


def test_ec2_regions_are_asked_one_by_one_and_all_at_once_for_scores() -> None:
    places = [*EAST, ("aws", "eu-west-1", "euw1-az1", "p4d.24xlarge")]

    questions = AwsFeed().questions(places)

    assert [(q.about, q.where, len(q.places)) for q in questions] == [
        ("price", "eu-west-1", 1),
        ("price", "us-east-2", 3),
        ("placement score", "eu-west-1", 4),
    ]
    assert AwsFeed().questions([]) == ()


def test_ec2_that_refuses_is_silent() -> None:
    client, stub = ec2()
    stub.add_client_error("describe_spot_price_history", "UnauthorizedOperation", "You are not authorized", 403)

    with stub, pytest.raises(FeedSilent, match=r"EC2: .*UnauthorizedOperation.*You are not authorized"):
        ask(AwsFeed(lambda region: client), "price", EAST)


@pytest.mark.system
def test_ec2_is_reached_with_the_credentials_of_the_environment(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto knows no prices, and answers one for all; its zones have names and ids of their own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", s3_server)
    ec2()[0].describe_availability_zones()  # its first answer takes seconds

    found = ask(AwsFeed(), "price", EAST)

    assert {signal.place for signal in found} <= set(EAST)
    assert {signal.usd_per_hour for signal in found} == {Decimal("0.00001")}


def test_ec2_without_credentials_is_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    with pytest.raises(FeedSilent, match="EC2: Unable to locate credentials"):
        ask(AwsFeed(), "price", EAST)


def test_gcp_the_newest_day_is_told(server: Answers) -> None:
    server.ready = [recorded("gcp_capacity_history")]
    feed = GcpFeed(lambda: ("secret", "nlp-research"), endpoint=server.url)

    (signal,) = ask(feed, "price", [A2])

    assert (signal.place, signal.usd_per_hour, signal.preempted_share) == (A2, Decimal("1.80249"), 0.214)
    (asked,) = server.asked
    assert asked.path == "/compute/v1/projects/nlp-research/regions/us-central1/advice/capacityHistory"
    assert asked.token == "Bearer secret"
    assert asked.body == {
        "instanceProperties": {"machineType": "a2-highgpu-1g", "scheduling": {"provisioningModel": "SPOT"}},
        "locationPolicy": {"location": "zones/us-central1-a"},
        "types": ["PRICE", "PREEMPTION"],
    }


def test_gcp_n1_machines_with_gpus_are_not_asked_for() -> None:
    assert [(q.about, q.places, q.kept_seconds) for q in GcpFeed().questions([A2, N1])] == [
        ("price", (A2,), 3600),
        ("capacity", (A2,), 600),
    ]


def test_gcp_says_whether_a_request_would_succeed_and_how_long_machines_run(server: Answers) -> None:
    server.ready = [recorded("gcp_capacity")]
    feed = GcpFeed(lambda: ("secret", "nlp-research"), endpoint=server.url)

    (signal,) = ask(feed, "capacity", [A2])

    assert (signal.place, signal.obtainability, signal.uptime_seconds) == (A2, 0.8, 600)
    (asked,) = server.asked
    assert asked.path == "/compute/v1/projects/nlp-research/regions/us-central1/advice/capacity"
    assert asked.body == {
        "distributionPolicy": {"targetShape": "ANY_SINGLE_ZONE", "zones": [{"zone": "zones/us-central1-a"}]},
        "instanceFlexibilityPolicy": {"instanceSelections": {"wanted": {"machineTypes": ["a2-highgpu-1g"]}}},
        "instanceProperties": {"scheduling": {"provisioningModel": "SPOT"}},
        "size": 1,
    }


@pytest.mark.parametrize("answer", [{}, {"recommendations": []}, {"recommendations": [{"scores": {}}]}])
def test_gcp_advice_without_a_recommendation_says_nothing(server: Answers, answer: Any) -> None:
    server.ready = [answer]

    (signal,) = ask(GcpFeed(lambda: ("secret", "nlp"), endpoint=server.url), "capacity", [A2])

    assert (signal.obtainability, signal.uptime_seconds) == (None, None)


@pytest.mark.parametrize("answer", [[], {"recommendations": [{"scores": {"estimatedUptime": "long"}}]}, "x", (404, {})])
def test_gcp_advice_in_another_form_is_silence(server: Answers, answer: Any) -> None:
    server.ready = [answer]

    with pytest.raises(FeedSilent):
        ask(GcpFeed(lambda: ("secret", "nlp"), endpoint=server.url), "capacity", [A2])


@pytest.mark.parametrize("answer", [{}, {"priceHistory": [], "preemptionHistory": []}])
def test_gcp_a_machine_without_a_history_has_no_price(server: Answers, answer: Any) -> None:
    server.ready = [answer]

    (signal,) = ask(GcpFeed(lambda: ("secret", "nlp"), endpoint=server.url), "price", [A2])

    assert (signal.usd_per_hour, signal.preempted_share) == (None, None)


def test_gcp_a_price_in_another_currency_is_none(server: Answers) -> None:
    answer = recorded("gcp_capacity_history")
    answer["priceHistory"][1]["listPrice"]["currencyCode"] = "EUR"
    server.ready = [answer]

    (signal,) = ask(GcpFeed(lambda: ("secret", "nlp"), endpoint=server.url), "price", [A2])

    assert signal.usd_per_hour is None


@pytest.mark.parametrize("answer", [[], {"priceHistory": [{"listPrice": {}}]}, "not JSON", (403, {}), (500, {})])
def test_gcp_anything_else_is_silence(server: Answers, answer: Any) -> None:
    server.ready = [answer]

    with pytest.raises(FeedSilent):
        ask(GcpFeed(lambda: ("secret", "nlp"), endpoint=server.url), "price", [A2])


def test_gcp_a_service_account_of_the_environment_logs_in(
    server: Answers, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    pytest.importorskip("google.auth.transport.requests", reason="google-auth is not installed: spotlaunch[gcs]")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {
        "type": "service_account",
        "project_id": "nlp-research",
        "private_key": pem.decode(),
        "client_email": "launch@nlp-research.iam.gserviceaccount.com",
        "token_uri": f"{server.url}/token",
    }
    (tmp_path / "key.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    token = {"access_token": "from-google", "expires_in": 3600, "token_type": "Bearer"}
    server.ready = [token, recorded("gcp_capacity_history"), recorded("gcp_capacity_history")]
    feed = GcpFeed(endpoint=server.url)

    for _ in range(2):
        assert ask(feed, "price", [A2])[0].usd_per_hour == Decimal("1.80249")

    login, *questions = server.asked
    assert login.path == "/token"
    assert [asked.token for asked in questions] == ["Bearer from-google"] * 2


def azure(server: Answers) -> AzureFeed:
    return AzureFeed(lambda: "secret", price_endpoint=server.url, graph_endpoint=server.url)


def test_azure_prices_of_linux_spot_machines_are_found_on_all_pages(server: Answers) -> None:
    first = recorded("azure_retail_prices_1") | {"NextPageLink": f"{server.url}/api/retail/prices?$skip=1000"}
    server.ready = [first, recorded("azure_retail_prices_2")]

    found = ask(azure(server), "price", [NC24, NC96])

    assert {signal.place: signal.usd_per_hour for signal in found} == {
        NC24: Decimal("1.107942"),
        NC96: Decimal("4.431768"),  # the higher of two
    }
    asked = parse_qs(urlsplit(server.asked[0].path).query)["$filter"]
    assert asked == [
        "serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq 'eastus' "
        "and contains(skuName, 'Spot') "
        "and (armSkuName eq 'Standard_NC24ads_A100_v4' or armSkuName eq 'Standard_NC96ads_A100_v4')"
    ]
    assert [one.token for one in server.asked] == [None, None]


def test_azure_a_next_page_elsewhere_is_not_followed(server: Answers) -> None:
    server.ready = [recorded("azure_retail_prices_1") | {"NextPageLink": "https://elsewhere.example/prices"}]

    with pytest.raises(FeedSilent, match="another host"):
        ask(azure(server), "price", [NC24])


def test_azure_eviction_rates_are_matched_whatever_their_case(server: Answers) -> None:
    server.ready = [recorded("azure_spot_resources_1"), recorded("azure_spot_resources_2")]

    found = ask(azure(server), "eviction rate", [NC24, NC96])

    assert {signal.place: signal.evicted_percent for signal in found} == {NC24: (5, 10), NC96: (20, None)}
    assert [one.token for one in server.asked] == ["Bearer secret"] * 2
    assert "subscriptions" not in server.asked[0].body
    assert server.asked[1].body["options"]["$skipToken"] == "ew0KICAiJGlkIjogIjEi"


def test_azure_an_eviction_rate_in_unknown_words_is_none(server: Answers) -> None:
    row = {"skuName": NC24[3], "location": "eastus", "evictionRate": "rarely"}
    server.ready = [{"data": [row]}]

    assert ask(azure(server), "eviction rate", [NC24]) == ()


@pytest.mark.parametrize("answer", [[], {"Items": [{}], "NextPageLink": None}, {}, "no JSON", (429, {})])
def test_azure_anything_else_is_silence(server: Answers, answer: Any) -> None:
    server.ready = [answer]

    with pytest.raises(FeedSilent):
        ask(azure(server), "price", [NC24])


@pytest.mark.parametrize(
    ("feed", "module", "extra"),
    [
        (AzureFeed(), "azure.identity", "azure"),
        (GcpFeed(), "google.auth", "gcs"),
        (AwsFeed(), "botocore.exceptions", "s3"),
    ],
)
def test_a_feed_whose_library_is_missing_names_the_extra(
    feed: Any, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    place = {"azure": NC24, "gcp": A2, "aws": EAST[0]}[feed.provider]
    question: Question = feed.questions([place])[-1]

    with pytest.raises(FeedSilent, match=rf"spotlaunch\[{extra}\]"):
        feed.ask(question, NOW)


def test_a_token_does_not_follow_a_redirect(server: Answers) -> None:
    server.ready = [(302, {"Location": f"{server.url}/elsewhere"})]

    with pytest.raises(FeedSilent, match="answered 302"):
        ask_json(f"{server.url}/here", token="secret")

    assert [asked.path for asked in server.asked] == ["/here"]


def test_nothing_is_sent_without_encryption() -> None:
    with pytest.raises(FeedSilent, match="without encryption"):
        ask_json("http://prices.azure.com/api", token="secret")


def test_a_server_that_says_nothing_is_left(server: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.adapters.feeds.https.REQUEST_SECONDS", 0.1)
    server.ready = [None]

    with pytest.raises(FeedSilent, match="did not answer: timed out"):
        ask_json(server.url)
