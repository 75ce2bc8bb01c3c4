"""EC2: the spot price in force in each zone, and how likely a spot request succeeds there.

Credentials are those that botocore finds: environment, profile, SSO, instance role. They need
`ec2:DescribeSpotPriceHistory`, `ec2:GetSpotPlacementScores`, and for old endpoints `ec2:DescribeAvailabilityZones`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal, InvalidOperation
from threading import Lock
from typing import Any

from launcher.adapters.feeds.port import REQUEST_SECONDS, FeedSilent, Question, by_region
from launcher.core.prices.feeds import Place, Signal

_PRICES, _SCORES = "price", "placement score"
_MOST_REGIONS = 10  # that one request for scores may name; without names, all are meant


class AwsFeed:
    """`client` gives botocore's client of EC2 in a region."""

    provider = "aws"

    def __init__(self, client: Callable[[str], Any] | None = None) -> None:
        self._client = client or _Clients()

    def questions(self, places: Sequence[Place]) -> tuple[Question, ...]:
        """Prices one region at a time, and scores all at once: EC2 rates what stands in one request together.

        A score for one or two types is low by rule, and only some new combinations a day are allowed
        (EC2 user guide, "Spot placement score"): it ranks zones for all wanted types, and promises nothing.
        """
        prices = by_region(_PRICES, places)
        return (*prices, Question(about=_SCORES, where=prices[0].where, places=tuple(places))) if places else ()

    def ask(self, question: Question, now: datetime) -> tuple[Signal, ...]:
        with _translated():
            client = self._client(question.where)
            if question.about == _PRICES:
                return tuple(_prices(client, question, now))
            return tuple(_scores(client, question, now))


def _prices(client: Any, question: Question, now: datetime) -> Iterator[Signal]:
    """A price is given with the instant it last changed; the newest one up to `now` is in force."""
    pages = client.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=question.types, ProductDescriptions=["Linux/UNIX"], StartTime=now, EndTime=now
    )
    rows = [row for page in pages for row in page["SpotPriceHistory"]]
    zone_ids = _zone_ids(client) if any("AvailabilityZoneId" not in row for row in rows) else {}
    newest: dict[Place, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["Timestamp"]):
        zone = row.get("AvailabilityZoneId") or zone_ids.get(row["AvailabilityZone"])
        newest["aws", question.where, zone, row["InstanceType"]] = row
    for place in question.places:
        if place in newest:
            price = Decimal(newest[place]["SpotPrice"])
            yield Signal(place=place, at=now, source="EC2 spot price history", usd_per_hour=price)


def _zone_ids(client: Any) -> Mapping[str, str]:
    """A zone's name means another place in each account; its id does not."""
    zones = client.describe_availability_zones()["AvailabilityZones"]
    return {zone["ZoneName"]: zone["ZoneId"] for zone in zones}


def _scores(client: Any, question: Question, now: datetime) -> Iterable[Signal]:
    regions = sorted({region for _, region, _, _ in question.places})
    named = {"RegionNames": regions} if len(regions) <= _MOST_REGIONS else {}
    answer = client.get_spot_placement_scores(
        InstanceTypes=question.types, TargetCapacity=1, SingleAvailabilityZone=True, **named
    )
    scores = {row["AvailabilityZoneId"]: row["Score"] for row in answer["SpotPlacementScores"]}
    source = f"EC2 placement scores for any of {len(question.types)} types"
    return [
        Signal(place=place, at=now, source=source, placement_score=scores[place[2]])
        for place in question.places
        if place[2] in scores
    ]


class _Clients:
    """One session: making clients is not safe in threads, using them is."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._session: Any = None

    def __call__(self, region: str) -> Any:
        import botocore.session  # type: ignore[import-untyped]  # it ships no types
        from botocore.config import Config  # type: ignore[import-untyped]  # it ships no types

        patience = Config(
            connect_timeout=REQUEST_SECONDS, read_timeout=REQUEST_SECONDS, retries={"total_max_attempts": 1}
        )
        with self._lock:
            self._session = self._session or botocore.session.Session()
            return self._session.create_client("ec2", region_name=region, config=patience)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise FeedSilent("botocore is not installed: pip install spotlaunch[s3]") from error
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise FeedSilent(f"EC2: {error}") from error
    except (KeyError, TypeError, InvalidOperation) as error:
        raise FeedSilent(f"EC2 answered something unknown: {error!r}") from error
