"""Make before break: an attempt that relieves another one waits beside it, and goes on from what that one saved last.

    control/ready-<attempt>    {"attempt": 4}            by the hooks: set up, and waiting
    control/go-<attempt>       {"spent_usd": "12.34"}    by the launcher: the other one has ended, the turn is ours

Before the go nothing else is written: a claim (`Journal.claim`) would fence the attempt that still trains. Nothing is
read but the go and a stop: the other's last checkpoint is not there yet. There is nothing to save either, so nobody
listens for notices: a machine that is taken while it waits just dies, and so does a process that gets a SIGTERM.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

from trainer_hooks import control
from trainer_hooks.attention import WHY, Verdict
from trainer_hooks.meter import Meter, process_started, say
from trainer_hooks.protocol import CONTROL_STOP, EXIT_RESCHEDULE, control_go, control_ready
from trainer_hooks.ranks import Ranks
from trainer_hooks.rendezvous import PARTING_SECONDS, Post, open_post
from trainer_hooks.settings import Settings
from trainer_hooks.storage import Storage

log = logging.getLogger(__name__)

_WORD = "word"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What ends the wait."""

    verdict: Verdict  # GO_ON: the turn is ours
    spent_usd: Decimal | None = None  # by the run until the go; None: the go does not say
    since: float = 0.0  # of `time.monotonic`: there was no go yet, so costs are counted from here

    def encode(self) -> bytes:
        spent = None if self.spent_usd is None else str(self.spent_usd)
        return json.dumps({"verdict": self.verdict, "spent_usd": spent}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Word:
        return cls(verdict=Verdict(json.loads(data)["verdict"]), spent_usd=_spent_usd(data), since=time.monotonic())


def take_turn(settings: Settings, storage: Storage, ranks: Ranks, *, attempt: int) -> Meter:
    """Returns when this attempt may claim the run folder, with what counts its costs; at once if it relieves nobody.

    All ranks call it alike; without a process group each process waits by itself.

    Raises: SystemExit(75): it was stopped, or came to the cap. ConnectionError: rank 0 is gone.
    """
    meter = Meter(settings.price, started=process_started())
    if settings.relieves is None:
        return meter
    word = _agreed(Watch(storage, meter, attempt=attempt, relieves=settings.relieves, speaks=ranks.is_first), ranks)
    if word.verdict is not Verdict.GO_ON:
        if ranks.is_first:
            why = f"{WHY[word.verdict]} before attempt {settings.relieves} had handed over"
            say(f"spotlaunch: {why}; exit {EXIT_RESCHEDULE}")
        raise SystemExit(EXIT_RESCHEDULE)
    if word.spent_usd is None:
        return meter
    return Meter(replace(settings.price, spent_usd=word.spent_usd), started=word.since)


class Watch:
    """Of the run folder, until there is a word. `speaks`: the one process that says that it waits.

    A run folder that does not answer is asked again; only the cap ends that. `since` begins with the process: a go
    that is there already came before it, or while it was set up.
    """

    def __init__(self, storage: Storage, meter: Meter, *, attempt: int, relieves: int, speaks: bool) -> None:
        self._storage = storage
        self._attempt = attempt
        self._relieves = relieves
        self._speaks = speaks
        self._since = meter.started
        self._stop_at = meter.stop_at(save_seconds=0.0)
        self._is_announced = False
        self._has_complained = False

    def word(self) -> Word:
        while (word := self._look(time.monotonic())) is None:
            time.sleep(control.period_seconds(self._storage))
        return word

    def _look(self, now: float) -> Word | None:
        try:
            word = self._ask(now)
        except OSError as error:
            word = None
            self._complain(error)
        return Word(verdict=Verdict.OUT_OF_BUDGET) if word is None and now >= self._stop_at else word

    def _ask(self, now: float) -> Word | None:
        """Two requests, and the first time one more to say that it waits."""
        go = control.content(self._storage, control_go(self._attempt))
        if go is not None:
            if self._is_announced:
                say(f"spotlaunch: taking over from attempt {self._relieves}")
            return Word(verdict=Verdict.GO_ON, spent_usd=_spent_usd(go), since=self._since)
        self._since = now
        if self._speaks and not self._is_announced:
            self._announce()
        stop = control.content(self._storage, CONTROL_STOP)
        is_stopped = stop is not None and control.is_for(stop, self._attempt)
        return Word(verdict=Verdict.STOPPED) if is_stopped else None

    def _announce(self) -> None:
        self._storage.put(control_ready(self._attempt), json.dumps({"attempt": self._attempt}).encode())
        self._is_announced = True
        say(f"spotlaunch: waiting for attempt {self._relieves} to hand over")

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning("the run folder does not answer; still waiting to take over", extra={"error": str(error)})


def _agreed(watch: Watch, ranks: Ranks) -> Word:
    """The same on every rank. Only the first looks; it tells the others through their store.

    The wait may last an hour, and NCCL gives a collective ten minutes.
    """
    post = open_post(ranks)
    if post is None:
        return watch.word()
    if not ranks.is_first:
        return _hear(post)
    word = watch.word()
    post.publish(_WORD, word.encode())
    post.drain(PARTING_SECONDS)
    return word


def _hear(post: Post) -> Word:
    while (data := post.take(_WORD)) is None:
        time.sleep(control.LOCAL_PERIOD_SECONDS)
    return Word.decode(data)


def _spent_usd(go: bytes) -> Decimal | None:
    """What it says was spent; `None` where it says nothing, or nothing that is an amount."""
    try:
        usd = Decimal(str(json.loads(go)["spent_usd"]))
    except (KeyError, TypeError, ValueError, InvalidOperation, RecursionError):
        return None
    return usd if usd.is_finite() and usd >= 0 else None
