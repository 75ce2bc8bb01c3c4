"""Events as they are stored: nothing is lost on the way, and newer fields are let pass."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from pydantic import ValidationError

from launcher.core.offers import Capacity
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptRequested,
    CheckpointCommitted,
    RunSubmitted,
    StopRequested,
    from_json,
    to_json,
)
from tests.builders import a_placement, a_submit, an_offer
from tests.finished import a_promise


def test_money_keeps_every_digit() -> None:
    event = a_submit(approved_usd="847.10", storage_usd_per_gb_hour=Decimal("0.00003150684931506849315068493"))

    assert from_json(to_json(event)) == event


def test_a_placement_comes_back_whole() -> None:
    offer = an_offer(capacity=Capacity.RESERVED, reservation="cr-0a1b", list_usd_per_hour=None, zone=None)
    event = AttemptRequested(attempt=3, placement=a_placement(offer, usd_per_hour="60.80", nodes=4), why="cheapest")

    back = from_json(to_json(event))

    assert back == event
    assert isinstance(back, AttemptRequested)
    assert back.placement.usd_per_hour == Decimal("243.20")
    assert back.placement.offer.list_usd_per_hour is None


def test_fields_of_a_newer_launcher_are_let_pass() -> None:
    newer = json.dumps(json.loads(to_json(StopRequested(by="ada"))) | {"ticket": 12})

    assert from_json(newer) == StopRequested(by="ada")


def test_a_commit_of_an_older_launcher_says_nothing_of_what_is_stored() -> None:
    old = '{"kind":"checkpoint_committed","attempt":1,"step":9,"name":"step-9-a1","bytes":7,"seconds":0.5,"segment":2}'

    event = from_json(old)

    assert isinstance(event, CheckpointCommitted)
    assert (event.stored_bytes, event.kept, event.lost_seconds, event.local_only) == (None, None, None, False)


def test_a_submit_of_an_older_launcher_waits_for_the_last_save_as_long_as_for_any() -> None:
    old = json.loads(to_json(a_submit()))
    del old["pace"]["durable_seconds"], old["storage_basis"], old["storage_assumed"]

    event = from_json(json.dumps(old))

    assert isinstance(event, RunSubmitted)
    assert event.pace.closing_save_seconds == event.pace.save_seconds == 5


def test_a_promise_of_an_older_launcher_does_not_say_what_it_rests_on() -> None:
    old = json.loads(to_json(a_submit(promise=a_promise())))
    del old["promise"]["step"], old["promise"]["expected"]

    event = from_json(json.dumps(old))

    assert isinstance(event, RunSubmitted)
    assert (event.promise.step, event.promise.expected) == (None, None)


def test_a_promise_comes_back_whole() -> None:
    event = a_submit(promise=a_promise())

    assert from_json(to_json(event)) == event


def test_a_source_of_step_times_that_a_newer_launcher_knows_is_let_pass() -> None:
    newer = json.loads(to_json(a_submit(promise=a_promise())))
    newer["promise"]["step"]["source"] = "probe"

    assert isinstance(from_json(json.dumps(newer)), RunSubmitted)


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValidationError):
        from_json('{"kind":"run_teleported"}')


def test_an_attempt_of_an_older_launcher_relieves_nobody_and_may_not_have_ended_when_judged() -> None:
    asked = json.loads(to_json(AttemptRequested(attempt=2, placement=a_placement(), why="cheapest", relieves=1)))
    ended = json.loads(to_json(AttemptEnded(attempt=2, outcome="preempted", detail="gone", has_exited=True)))
    del asked["relieves"], asked["overlaps"], ended["has_exited"]

    request, end = from_json(json.dumps(asked)), from_json(json.dumps(ended))

    assert isinstance(request, AttemptRequested)
    assert isinstance(end, AttemptEnded)
    assert (request.relieves, request.overlaps, end.has_exited) == (None, True, False)
