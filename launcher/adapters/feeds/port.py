"""What a feed is: questions that can be asked apart, each of which takes one or a few requests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from launcher.core.prices.feeds import Place, Signal

REQUEST_SECONDS = 4.0  # for one answer: a plan waits for no feed longer than a few seconds


class FeedSilent(Exception):
    """A feed gave no answer; the message says why, as a half-sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`about`: what is unknown without an answer. `where`: a region or zone, as its requests name it."""

    about: str
    where: str
    places: tuple[Place, ...]
    kept_seconds: float = 3600.0  # that an answer counts for

    @property
    def types(self) -> list[str]:
        return sorted({instance_type for *_, instance_type in self.places})


def by_region(about: str, places: Sequence[Place]) -> list[Question]:
    """A question for each region."""
    of: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        of[place[1]].append(place)
    return [Question(about=about, where=region, places=tuple(of[region])) for region in sorted(of)]


class Feed(Protocol):
    provider: str

    def questions(self, places: Sequence[Place]) -> tuple[Question, ...]:
        """What to ask, to hear of all `places`, which are of this provider."""
        ...

    def ask(self, question: Question, now: datetime) -> tuple[Signal, ...]:
        """Called in several threads at once. Raises: FeedSilent."""
        ...
