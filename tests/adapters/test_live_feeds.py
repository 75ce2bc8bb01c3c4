"""All feeds as one: the budget, what is kept, and what silence does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from launcher.adapters.feeds import LiveFeeds, open_feeds
from launcher.adapters.feeds.port import FeedSilent, Question
from launcher.core.prices.feeds import Place, Signal
from tests.builders import T0, after, an_offer

A, B = an_offer(zone="a"), an_offer(zone="b")


@dataclass
class FakeFeed:
    """A question a zone. Zones in `silent` refuse, in `broken` surprise, in `hangs` never answer."""

    provider: str = "aws"
    price: Decimal = Decimal(4)
    silent: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    hangs: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def questions(self, places: Sequence[Place]) -> tuple[Question, ...]:
        return tuple(Question(about="price", where=str(place[2]), places=(place,)) for place in places)

    def ask(self, question: Question, now: datetime) -> tuple[Signal, ...]:
        self.asked.append(question.where)
        if question.where in self.hangs:
            self.released.wait(60)
        if question.where in self.silent:
            raise FeedSilent("EC2: \n not today")
        if question.where in self.broken:
            raise RuntimeError("a library's surprise")
        return tuple(Signal(place=p, at=now, source="EC2", usd_per_hour=self.price) for p in question.places)


@pytest.fixture
def feed() -> Iterator[FakeFeed]:
    feed = FakeFeed()
    yield feed
    feed.released.set()


def live(feed: FakeFeed, folder: Path, *, budget_seconds: float = 5.0) -> LiveFeeds:
    return LiveFeeds([feed], folder=folder / "feeds", budget_seconds=budget_seconds)


def prices(feeds: LiveFeeds, at: datetime = T0) -> list[Decimal | None]:
    return [offer.list_usd_per_hour for offer in feeds.over([A, B], at)]


def test_nothing_is_asked_where_no_feed_is_named(tmp_path: Path) -> None:
    assert open_feeds((), tmp_path) is None


def test_every_named_cloud_has_its_feed(tmp_path: Path) -> None:
    assert open_feeds(("aws", "gcp", "azure"), tmp_path) is not None


def test_answers_are_kept_for_an_hour_and_across_processes(feed: FakeFeed, tmp_path: Path) -> None:
    assert prices(live(feed, tmp_path)) == [4, 4]
    feed.price = Decimal("4.000000001")

    assert prices(live(feed, tmp_path), after(3599)) == [4, 4]
    assert prices(live(feed, tmp_path), after(3600)) == [Decimal("4.000000001")] * 2

    assert sorted(feed.asked) == ["a", "a", "b", "b"]


def test_the_instant_shown_is_the_one_of_the_answer_and_not_of_the_look(feed: FakeFeed, tmp_path: Path) -> None:
    live(feed, tmp_path).over([A], T0)

    (offer,) = live(feed, tmp_path).over([A], after(1800))

    assert offer.source == "EC2 of 12:00 UTC"


def test_other_places_are_another_question(feed: FakeFeed, tmp_path: Path) -> None:
    live(feed, tmp_path).over([A], T0)
    live(feed, tmp_path).over([A, B], T0)

    assert feed.asked == ["a", "b"]


def test_one_silent_question_takes_nothing_from_the_others(feed: FakeFeed, tmp_path: Path) -> None:
    feed.silent, feed.broken = {"a"}, {"b"}
    c = an_offer(zone="c")

    found = live(feed, tmp_path).over([A, B, c], T0)

    assert [offer.list_usd_per_hour for offer in found] == [6, 6, 4]
    assert [offer.source for offer in found] == [
        "tests; no live price: EC2: not today",
        "tests; no live price: RuntimeError: a library's surprise",
        "EC2 of 12:00 UTC",
    ]


def test_silence_is_kept_for_five_minutes_so_that_not_each_plan_waits(feed: FakeFeed, tmp_path: Path) -> None:
    feed.silent = {"a", "b"}
    assert prices(live(feed, tmp_path)) == [6, 6]
    feed.silent = set()

    assert prices(live(feed, tmp_path), after(299)) == [6, 6]
    assert prices(live(feed, tmp_path), after(300)) == [4, 4]


def test_silence_is_logged_once(feed: FakeFeed, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    feed.silent = {"a", "b"}
    feeds = live(feed, tmp_path)

    with caplog.at_level(logging.WARNING):
        for minutes in (0, 10, 20):
            feeds.over([A, B], T0 + timedelta(minutes=minutes))

    assert [record.message for record in caplog.records] == ["feed is silent"]


def test_a_feed_that_hangs_costs_the_budget_and_no_more(feed: FakeFeed, tmp_path: Path) -> None:
    feed.hangs = {"a"}
    began = time.monotonic()

    found = live(feed, tmp_path, budget_seconds=0.2).over([A, B], T0)

    assert time.monotonic() - began < 2
    assert [offer.list_usd_per_hour for offer in found] == [6, 4]
    assert found[0].source == "tests; no live price: no answer within 0.2 s"


def test_what_was_not_answered_in_time_is_asked_the_next_time(feed: FakeFeed, tmp_path: Path) -> None:
    feed.hangs = {"a"}
    live(feed, tmp_path, budget_seconds=0.2).over([A, B], T0)
    feed.hangs = set()

    assert prices(live(feed, tmp_path)) == [4, 4]
    assert sorted(feed.asked) == ["a", "a", "b"]


def test_a_cloud_that_answers_nothing_in_time_is_left_alone_for_a_while(feed: FakeFeed, tmp_path: Path) -> None:
    feed.hangs = {"a", "b"}
    live(feed, tmp_path, budget_seconds=0.2).over([A, B], T0)
    feed.hangs = set()

    assert prices(live(feed, tmp_path), after(299)) == [6, 6]
    assert prices(live(feed, tmp_path), after(300)) == [4, 4]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"price a": {"at": "yesterday"}}', None])
def test_what_was_kept_and_cannot_be_read_is_asked_for_again(
    feed: FakeFeed, tmp_path: Path, content: bytes | None
) -> None:
    (tmp_path / "feeds").mkdir()
    if content is None:
        (tmp_path / "feeds" / "aws.json").mkdir()
    else:
        (tmp_path / "feeds" / "aws.json").write_bytes(content)

    assert prices(live(feed, tmp_path)) == [4, 4]


def test_other_providers_and_other_capacity_are_not_asked_for(feed: FakeFeed, tmp_path: Path) -> None:
    offers = (an_offer(provider="gcp"), an_offer(simulated=True))

    assert live(feed, tmp_path).over(offers, T0) == offers
    assert feed.asked == []
