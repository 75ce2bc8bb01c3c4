"""The ledger's promises, kept by every ledger."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from subprocess import PIPE
from typing import get_args

import pytest

from launcher.adapters.object_ledger import ObjectLedger, is_object_store
from launcher.adapters.sql_ledger import SqlLedger
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReady,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointReplicated,
    EndRequested,
    Event,
    HandedOver,
    NoticeReceived,
    PriceChanged,
    ProgressReported,
    RunFinished,
    RunReopened,
    RunWaits,
    StopRequested,
    SupervisorHired,
    SupervisorReleased,
    TrainingResumed,
)
from launcher.errors import LedgerConflict
from launcher.ports import Ledger
from tests.builders import RUN, T0, a_placement, a_submit, after
from tests.sim import MemoryLedger

OTHER = "digits-20260105-cd34"
SYSTEM = pytest.mark.system


STORED = ["sqlite", "folder", pytest.param("s3", marks=SYSTEM), pytest.param("postgres", marks=SYSTEM)]
"""Ledgers that processes share; each is opened by its URL."""


def url_of(kind: str, request: pytest.FixtureRequest) -> str:
    """Of a ledger that nobody has opened yet."""
    tmp_path: Path = request.getfixturevalue("tmp_path")
    match kind:
        case "sqlite":
            return f"sqlite:///{tmp_path / 'new' / 'ledger.db'}"
        case "folder":
            return f"file://{tmp_path / 'new' / 'ledger'}"
        case server:
            found: str = request.getfixturevalue(server)
            return found


def opened(url: str) -> Ledger:
    return ObjectLedger(url) if is_object_store(url) else SqlLedger(url)


@pytest.fixture(params=STORED)
def url(request: pytest.FixtureRequest) -> str:
    return url_of(request.param, request)


@pytest.fixture(params=["memory", *STORED])
def reopen(request: pytest.FixtureRequest) -> Callable[[], Ledger]:
    """Open the one ledger of the test, as each process of a team does for itself."""
    if request.param == "memory":
        ledger = MemoryLedger()
        return lambda: ledger
    url = url_of(request.param, request)
    return lambda: opened(url)


@pytest.fixture
def ledger(reopen: Callable[[], Ledger]) -> Ledger:
    return reopen()


def test_an_unknown_run_is_empty(ledger: Ledger) -> None:
    assert ledger.read(RUN) == ()
    assert ledger.run_ids() == ()


def test_what_was_appended_is_read_back_in_order_and_numbered_from_one(reopen: Callable[[], Ledger]) -> None:
    first = reopen().append(RUN, [a_submit(), StopRequested(by="ada")], after_seq=0, at=T0)
    second = reopen().append(RUN, [RunFinished(outcome="cancelled", detail="x")], after_seq=2, at=after(1))

    read = reopen().read(RUN)

    assert read == first + second
    assert [(entry.seq, entry.at) for entry in read] == [(1, T0), (2, T0), (3, after(1))]


def test_reading_begins_behind_the_entry_that_is_named(ledger: Ledger) -> None:
    appended = ledger.append(RUN, [a_submit(), StopRequested(by="ada"), StopRequested(by="bob")], after_seq=0, at=T0)

    assert ledger.read(RUN, after_seq=1) == appended[1:]
    assert ledger.read(RUN, after_seq=3) == ()


EVERY_KIND: list[Event] = [
    a_submit(storage_usd_per_gb_hour=Decimal("0.0000315")),
    SupervisorHired(
        number=1,
        where="aws/us-east-1",
        instance_type=None,
        usd_per_hour=Decimal("0.0832"),
        basis="list",
        closing_seconds=600.5,
        by="ada",
    ),
    SupervisorReleased(number=1, was_there=False, detail="never came"),
    AttemptRequested(attempt=1, placement=a_placement(), why="cheapest", egress_usd_per_read=Decimal("0.10")),
    CheckpointReplicated(attempt=1, name="step-7-a1", bytes=10**12, usd=Decimal("0.0000004")),
    AttemptRefused(attempt=1, reason="no_capacity", detail="none"),
    AttemptStarted(attempt=2, started_at=after(0.000001)),
    AttemptReady(attempt=2),
    HandedOver(attempt=2),
    TrainingResumed(attempt=2, step=7, resumed_from="step-7-a1", lost_steps=3),
    NoticeReceived(attempt=2, source="ec2", seconds_left=119.5),
    CheckpointCommitted(attempt=2, step=9, name="step-9-a2", bytes=10**12, seconds=0.1, segment=3),
    ProgressReported(attempt=2, step=11, segment=4, step_seconds=0.1, metrics={"loss": 0.3}),
    PriceChanged(attempt=2, placement=a_placement(usd_per_hour="6.01")),
    EndRequested(attempt=2, cause="cap", why="nearly spent"),
    AttemptEnded(attempt=2, outcome="stopped", detail="saved", step=12, gone_at=after(5), cause="cap"),
    AttemptReleased(attempt=2),
    StopRequested(by="ada", reason="“enough”"),
    RunWaits(why="no place has capacity"),
    RunFinished(outcome="out_of_budget", detail="spent"),
    RunReopened(approved_usd=Decimal("200.10"), by="ada"),
]


def test_every_kind_of_event_comes_back_as_it_was_to_the_last_digit(reopen: Callable[[], Ledger]) -> None:
    reopen().append(RUN, EVERY_KIND, after_seq=0, at=T0)

    read = [entry.event for entry in reopen().read(RUN)]

    assert {type(event) for event in EVERY_KIND} == set(get_args(Event))
    assert read == EVERY_KIND


def test_an_instant_keeps_its_microseconds(reopen: Callable[[], Ledger]) -> None:
    at = T0 + timedelta(microseconds=123_457)

    reopen().append(RUN, [a_submit()], after_seq=0, at=at)

    assert [entry.at for entry in reopen().read(RUN)] == [at]


@pytest.mark.parametrize("after_seq", [0, 1, 3, 99])
def test_an_append_behind_another_entry_than_the_newest_is_a_conflict(ledger: Ledger, after_seq: int) -> None:
    appended = ledger.append(RUN, [a_submit(), StopRequested(by="ada")], after_seq=0, at=T0)

    with pytest.raises(LedgerConflict):
        ledger.append(RUN, [StopRequested(by="bob")], after_seq=after_seq, at=T0)

    assert ledger.read(RUN) == appended


def test_a_new_run_begins_behind_entry_zero(ledger: Ledger) -> None:
    with pytest.raises(LedgerConflict):
        ledger.append(RUN, [a_submit()], after_seq=1, at=T0)

    assert ledger.run_ids() == ()


def test_nothing_appended_changes_nothing(ledger: Ledger) -> None:
    assert ledger.append(RUN, [], after_seq=0, at=T0) == ()
    assert ledger.run_ids() == ()


def test_time_never_goes_back_within_a_run(ledger: Ledger) -> None:
    ledger.append(RUN, [a_submit()], after_seq=0, at=after(60))

    ledger.append(RUN, [StopRequested(by="ada")], after_seq=1, at=T0)

    assert [entry.at for entry in ledger.read(RUN)] == [after(60), after(60)]


def test_runs_are_numbered_apart_and_listed_oldest_first(ledger: Ledger) -> None:
    ledger.append(OTHER, [a_submit()], after_seq=0, at=T0)
    ledger.append(RUN, [a_submit()], after_seq=0, at=after(1))
    ledger.append(OTHER, [StopRequested(by="ada")], after_seq=1, at=after(2))

    assert ledger.run_ids() == (OTHER, RUN)
    assert [entry.seq for entry in ledger.read(OTHER)] == [1, 2]
    assert [entry.run_id for entry in ledger.read(RUN)] == [RUN]


def test_of_writers_that_race_for_one_place_exactly_one_wins(url: str) -> None:
    """Not in memory: that ledger has one process and one thread."""
    opened(url).append(RUN, [a_submit()], after_seq=0, at=T0)
    start, won, lost = threading.Barrier(6), [], []

    def race(name: str) -> None:
        ledger = opened(url)
        ledger.read(RUN)
        start.wait()
        try:
            ledger.append(RUN, [StopRequested(by=name), StopRequested(by=name)], after_seq=1, at=T0)
            won.append(name)
        except LedgerConflict:
            lost.append(name)

    threads = [threading.Thread(target=race, args=(f"writer {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(won), len(lost)) == (1, 5)
    assert [getattr(entry.event, "by", "") for entry in opened(url).read(RUN)[1:]] == [won[0], won[0]]


RIVAL = """
import sys
from launcher.core.runs.events import StopRequested
from launcher.errors import LedgerConflict
from tests.builders import RUN, T0
from tests.contracts.test_ledger import opened

url, name = sys.argv[1:]
ledger, won = opened(url), 0
print("ready", flush=True)
sys.stdin.readline()
while won < 10:
    seen = len(ledger.read(RUN))
    try:
        ledger.append(RUN, [StopRequested(by=name), StopRequested(by=name, reason=str(won))], after_seq=seen, at=T0)
        won += 1
    except LedgerConflict:
        pass
"""


@pytest.mark.system
def test_rival_processes_that_open_a_new_ledger_at_once_lose_and_mix_nothing(url: str) -> None:
    names = ["ada", "bob", "eve"]
    command = [sys.executable, "-c", RIVAL, url]
    rivals = [subprocess.Popen([*command, name], stdin=PIPE, stdout=PIPE, text=True) for name in names]
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"

    for rival in rivals:
        rival.communicate("go\n")

    assert [rival.returncode for rival in rivals] == [0, 0, 0]
    events = [(entry.seq, getattr(entry.event, "by", ""), entry.event) for entry in opened(url).read(RUN)]
    assert [seq for seq, _, _ in events] == list(range(1, 61))
    assert [first[1] for first in events[::2]] == [second[1] for second in events[1::2]]  # each append in one piece
    reasons = {name: [event.reason for _, by, event in events[1::2] if by == name] for name in names}  # type: ignore[union-attr]  # only such were appended
    assert reasons == {name: [str(n) for n in range(10)] for name in names}
