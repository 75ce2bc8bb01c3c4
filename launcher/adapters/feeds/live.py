"""All feeds as one: asked in parallel, within a budget, and not again while an answer counts.

<folder>/<provider>.json    {question: {"at": …, "signals": […], "silent": … or null}}
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from pydantic import TypeAdapter, ValidationError

from launcher.adapters.feeds.port import Feed, FeedSilent, Question
from launcher.core.offers import Offer
from launcher.core.prices.feeds import Heard, Place, Signal, is_asked_for, place_of, with_signals

BUDGET_SECONDS = 5.0
SILENCE_KEPT_SECONDS = 300.0  # else each plan would wait for a feed that is down
_THREADS = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    at: datetime
    signals: tuple[Signal, ...] = ()
    silent: str | None = None  # why there are none
    kept_seconds: float = SILENCE_KEPT_SECONDS

    def is_fresh(self, now: datetime) -> bool:
        return timedelta() <= now - self.at < timedelta(seconds=self.kept_seconds)


_ANSWERS = TypeAdapter(dict[str, Answer])


class LiveFeeds:
    """`folder` keeps the answers. No call takes longer than the budget, whatever a network or a library does."""

    def __init__(self, feeds: Sequence[Feed], *, folder: Path, budget_seconds: float = BUDGET_SECONDS) -> None:
        self._feeds = feeds
        self._folder = folder
        self._budget_seconds = budget_seconds
        self._lamented: set[str] = set()

    def over(self, offers: Sequence[Offer], now: datetime) -> tuple[Offer, ...]:
        """`offers` with what is heard of their places; an offer of which nothing is heard stays, and says so."""
        return with_signals(offers, self.heard([place_of(offer) for offer in offers if is_asked_for(offer)], now))

    def heard(self, places: Iterable[Place], now: datetime) -> Heard:
        wanted = sorted(set(places), key=str)
        asked = [(feed, question) for feed in self._feeds for question in feed.questions(_of(wanted, feed.provider))]
        answers = self._answers(asked, now)
        silent: dict[Place, tuple[str, ...]] = defaultdict(tuple)
        for (feed, question), answer in zip(asked, answers, strict=True):
            if answer.silent:
                self._lament(feed.provider, answer.silent)
                for place in question.places:
                    silent[place] += (f"no live {question.about}: {answer.silent}",)
        return Heard(signals=tuple(signal for answer in answers for signal in answer.signals), silent=dict(silent))

    def _answers(self, asked: Sequence[tuple[Feed, Question]], now: datetime) -> list[Answer]:
        """In the order of the questions: kept ones, fresh ones, and silence."""
        kept = {feed.provider: self._kept(feed.provider, now) for feed in self._feeds}
        new = [(f, q) for f, q in asked if _key(q) not in kept[f.provider]]
        if new:
            fresh, unheard = _ask_all(new, now, self._budget_seconds)
            late: dict[str, dict[str, Answer]] = defaultdict(dict)
            for feed, question in unheard:
                silence = Answer(at=now, silent=f"no answer within {self._budget_seconds:g} s")
                late[feed.provider][_key(question)] = silence
            for provider in {feed.provider for feed, _ in new}:
                # the rest of many questions is asked the next time; a cloud that answers none is left alone for a while
                self._keep(provider, kept[provider] | (fresh[provider] or late[provider]))
                kept[provider] |= fresh[provider] | late[provider]
        return [kept[feed.provider][_key(question)] for feed, question in asked]

    def _kept(self, provider: str, now: datetime) -> dict[str, Answer]:
        try:
            answers = _ANSWERS.validate_json((self._folder / f"{provider}.json").read_bytes())
        except (OSError, ValidationError):  # nothing was kept, or by another version
            return {}
        return {key: answer for key, answer in answers.items() if answer.is_fresh(now)}

    def _keep(self, provider: str, answers: Mapping[str, Answer]) -> None:
        fresh = self._folder / f".{provider}-{uuid.uuid4().hex}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(_ANSWERS.dump_json(dict(answers)))
            fresh.replace(self._folder / f"{provider}.json")
        except OSError as error:  # then they are asked for again
            log.warning("answers of a feed not kept", extra={"provider": provider, "reason": str(error)})

    def _lament(self, provider: str, reason: str) -> None:
        if provider not in self._lamented:
            self._lamented.add(provider)
            log.warning("feed is silent", extra={"provider": provider, "reason": reason})


def _ask_all(
    asked: Sequence[tuple[Feed, Question]], now: datetime, budget_seconds: float
) -> tuple[dict[str, dict[str, Answer]], list[tuple[Feed, Question]]]:
    """Answers by provider and question, and what had none in time: a thread that hangs is left behind."""
    todo: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[tuple[int, Answer]] = SimpleQueue()
    ends_at = time.monotonic() + budget_seconds
    for number in range(len(asked)):
        todo.put(number)

    def work() -> None:
        while time.monotonic() < ends_at:
            try:
                number = todo.get_nowait()
            except Empty:
                return
            done.put((number, _answer(*asked[number], now)))

    for _ in range(min(_THREADS, len(asked))):
        Thread(target=work, daemon=True).start()
    fresh: dict[str, dict[str, Answer]] = defaultdict(dict)
    unheard = set(range(len(asked)))
    while unheard and (left := ends_at - time.monotonic()) > 0:
        try:
            number, answer = done.get(timeout=left)
        except Empty:
            break
        feed, question = asked[number]
        fresh[feed.provider][_key(question)] = answer
        unheard.remove(number)
    return fresh, [asked[number] for number in sorted(unheard)]


def _answer(feed: Feed, question: Question, now: datetime) -> Answer:
    try:
        return Answer(at=now, signals=feed.ask(question, now), kept_seconds=question.kept_seconds)
    except FeedSilent as error:
        return Answer(at=now, silent=" ".join(str(error).split()))
    except Exception as error:  # the top of a thread: a library's surprise must not cost the plan
        log.exception("feed failed", extra={"provider": feed.provider})
        return Answer(at=now, silent=f"{type(error).__name__}: {error}")


def _of(places: Iterable[Place], provider: str) -> tuple[Place, ...]:
    return tuple(place for place in places if place[0] == provider)


def _key(question: Question) -> str:
    """Another set of places is another question."""
    places = sha256(repr(question.places).encode()).hexdigest()[:12]
    return f"{question.about} {question.where} {places}"
