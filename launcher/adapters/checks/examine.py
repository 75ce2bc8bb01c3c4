"""Questions side by side, each in a thread of its own and none beyond its time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from launcher.core.doctor.checkup import Check, wants_credentials
from launcher.errors import InputError, LaunchError

log = logging.getLogger(__name__)

Waiting = Callable[[Sequence[str]], None]
Answers = SimpleQueue[tuple[int, tuple[Check, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`seconds`: that an answer may take. `fix`: where to look if there is none."""

    name: str
    seconds: float
    fix: str = "check the line and try again"
    ask: Callable[[], Sequence[Check]]


def examine(questions: Sequence[Question], *, waiting: Waiting) -> tuple[Check, ...]:
    """Every answer, in the order of the questions; one that is late is a failure.

    `waiting` is told the names of those that are still out, whenever that changes.
    """
    answers: Answers = SimpleQueue()
    found: dict[int, tuple[Check, ...]] = {}
    started = time.monotonic()
    for number, question in enumerate(questions):
        threading.Thread(target=_put, args=(answers, number, question), name=question.name, daemon=True).start()
    while out := [number for number in range(len(questions)) if number not in found]:
        waiting([questions[number].name for number in out])
        next_end = started + min(questions[number].seconds for number in out)
        try:
            number, checks = answers.get(timeout=max(0.0, next_end - time.monotonic()))
            found.setdefault(number, checks)
        except Empty:
            late = [number for number in out if started + questions[number].seconds <= time.monotonic()]
            found |= {number: (_late(questions[number]),) for number in late}
    return tuple(check for number in range(len(questions)) for check in found[number])


def problems(name: str, error: InputError) -> tuple[Check, ...]:
    """What is wrong with an input, each where it stands."""
    return tuple(
        Check(name=name, state="failed", found=f"{p.where}: {p.message}" if p.where else p.message, fix=p.fix)
        for p in error.problems
    )


def _put(answers: Answers, number: int, question: Question) -> None:
    answers.put((number, _asked(question)))


def _asked(question: Question) -> tuple[Check, ...]:
    try:
        return tuple(question.ask())
    except InputError as error:
        return problems(question.name, error)
    except LaunchError as error:
        return (_failed(question, str(error)),)
    except Exception as error:  # the top of a thread, and each system has errors of its own
        log.debug("a check broke", extra={"check": question.name}, exc_info=True)
        return (_failed(question, f"{type(error).__name__}: {error}"),)


def _failed(question: Question, words: str) -> Check:
    line = " ".join(words.split())[:300]
    is_credentials = wants_credentials(line)
    return Check(name=question.name, state="failed", found=line, fix=question.fix, is_credentials=is_credentials)


def _late(question: Question) -> Check:
    found = f"no answer within {question.seconds:g} s"
    return Check(name=question.name, state="failed", found=found, fix=question.fix)
