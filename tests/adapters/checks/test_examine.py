"""Questions run side by side, keep their order, and none keeps the others waiting beyond its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from launcher.adapters.checks.examine import Question, examine
from launcher.core.doctor.checkup import Check
from launcher.errors import BackendError, InputError, Problem


def silent(names: Sequence[str]) -> None:
    """Nobody looks."""


def a_question(name: str, ask: Callable[[], Sequence[Check]] | None = None, *, seconds: float = 30.0) -> Question:
    return Question(name=name, seconds=seconds, ask=ask or (lambda: [an_answer(name)]))


def an_answer(name: str) -> Check:
    return Check(name=name, state="ok", found="fine")


def test_answers_come_in_the_order_of_the_questions_however_they_arrive() -> None:
    second_is_done = threading.Event()

    def first() -> list[Check]:
        assert second_is_done.wait(30)
        return [an_answer("1"), an_answer("1b")]

    def second() -> list[Check]:
        second_is_done.set()
        return [an_answer("2")]

    checks = examine([a_question("1", first), a_question("2", second)], waiting=silent)

    assert [check.name for check in checks] == ["1", "1b", "2"]


def test_who_does_not_answer_in_time_has_failed_and_the_others_are_heard() -> None:
    never = threading.Event()

    def stuck() -> list[Check]:
        never.wait(60)
        return []

    before = time.monotonic()
    checks = examine([a_question("stuck", stuck, seconds=0.2), a_question("quick")], waiting=silent)
    never.set()

    assert time.monotonic() - before < 30
    assert [(check.name, check.state) for check in checks] == [("stuck", "failed"), ("quick", "ok")]
    assert checks[0].found == "no answer within 0.2 s"
    assert checks[0].fix


def test_errors_become_failed_checks_with_what_they_say() -> None:
    def wrong_file() -> list[Check]:
        raise InputError(
            [Problem("L1", "is wrong", "pricing.yaml:3", "write it right"), Problem("L2", "is odd", "pricing.yaml:4")]
        )

    def no_server() -> list[Check]:
        raise BackendError("the token has expired")

    def surprise() -> list[Check]:
        raise ZeroDivisionError("of  the\nlibrary's")

    questions = [a_question("file", wrong_file), a_question("server", no_server), a_question("library", surprise)]
    checks = examine(questions, waiting=silent)

    assert [(check.name, check.state, check.found) for check in checks] == [
        ("file", "failed", "pricing.yaml:3: is wrong"),
        ("file", "failed", "pricing.yaml:4: is odd"),
        ("server", "failed", "the token has expired"),
        ("library", "failed", "ZeroDivisionError: of the library's"),
    ]
    assert checks[0].fix == "write it right"
    assert [check.fix for check in checks if not check.fix] == [""]  # only where the problem itself has none
    assert [check.is_credentials for check in checks] == [False, False, True, False]


def test_it_is_told_who_is_still_awaited() -> None:
    told: list[Sequence[str]] = []

    examine([a_question("a"), a_question("b")], waiting=told.append)

    assert told[0] == ["a", "b"]
    assert len(told[-1]) == 1
