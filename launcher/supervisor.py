"""The loop that brings a run to its end: read, observe, decide, record, act.

Nothing is kept between two turns, so a restart is no special case. Intent is recorded before its effect
(`AttemptRequested` → launch, `HandedOver` → go), a verdict before its release (`AttemptEnded` → stop →
`AttemptReleased`). What is said to a trainer is said again at every look until it is seen to have heard it.
Three defences keep two supervisors apart, each of which works alone: the lock around `supervise`, the sweep of
jobs that the ledger does not count as live, and the attempt number that fences checkpoint folders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from launcher.core.policy.actions import (
    Action,
    AskToEnd,
    Finish,
    HandOver,
    Judge,
    Keep,
    Launch,
    Relaunch,
    Release,
    Wait,
)
from launcher.core.policy.conduct import next_action
from launcher.core.prices.options import Option, Rules
from launcher.core.runs.checkpoints import Replica
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptRefused,
    AttemptReleased,
    AttemptRequested,
    CheckpointReplicated,
    EndRequested,
    Event,
    HandedOver,
    PriceChanged,
    RunFinished,
    RunWaits,
)
from launcher.core.runs.observe import Patience, has_fled, observe
from launcher.core.runs.state import Attempt, RunState, attempt_of, fold, job_name, run_uri_of, spent_usd
from launcher.errors import BackendError, InputError, LaunchRefused, LedgerConflict, LedgerUnavailable, NoSuchRun
from launcher.ports import Backend, Clock, Journal, LaunchRequest, Ledger, Phase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervisor:
    """One run's captain.

    `journal` opens a run folder, `replicate` brings the newest checkpoint of one to another, `run_uri` is the folder
    beside an option's machines. `options` prices the run's places now; `request` words an attempt for the backend.
    """

    run_id: str
    ledger: Ledger
    backend: Backend
    journal: Callable[[str], Journal]
    replicate: Callable[[str, str], Replica | None]
    run_uri: Callable[[RunState, Option], str]
    clock: Clock
    rules: Rules
    options: Callable[[RunState, datetime], Sequence[Option]]
    request: Callable[[RunState, Attempt], LaunchRequest]

    def supervise(self) -> RunState:
        """Take turns until the run is finished and nothing of it is left running.

        Raises: NoSuchRun: the ledger does not know it.
        """
        sweeping = True
        while True:
            try:
                seconds = self.turn(sweeping=sweeping)
                sweeping = False
            except (BackendError, LedgerUnavailable, InputError) as error:  # a file may be mended while the run lives
                log.warning("this turn is taken again", extra={"run": self.run_id, "reason": str(error)})
                seconds = self.rules.poll_seconds
            if seconds is None:
                return self._state()
            self.clock.sleep(seconds)

    def turn(self, *, sweeping: bool = False) -> float | None:
        """One look at the world and at most one decision; seconds until the next, `None` when all is done.

        Raises: BackendError, LedgerUnavailable, InputError: nothing was decided; take the same turn again.
        """
        state = self._state()
        try:
            if sweeping or state.is_finished:
                self._sweep()
            if state.is_finished:
                return None
            return self._act(self._observe(state))  # together: with news at every look nothing else would be decided
        except LedgerConflict:
            log.warning("another writer was first", extra={"run": self.run_id})
            return self.turn(sweeping=True)

    def _state(self) -> RunState:
        state = fold(None, self.ledger.read(self.run_id))
        if state is None:
            raise NoSuchRun(f"no run {self.run_id} in the ledger; `launch status` lists them")
        return state

    def _record(self, state: RunState, *events: Event) -> RunState:
        """The state behind `events`; not read again, so that a rival's entries meet the next append as a conflict."""
        at = max(self.clock.now(), state.at)  # a clock set back never turns a bill back
        after = fold(state, self.ledger.append(self.run_id, events, after_seq=state.seq, at=at))
        assert after is not None
        return after

    def _observe(self, state: RunState) -> RunState:
        """Record what is new of the live attempts, the one that trains first; the state behind it."""
        events = [event for a in (state.trainer, state.incoming) if a for event in self._news(state, a)]
        return self._record(state, *events) if events else state

    def _news(self, state: RunState, live: Attempt) -> Sequence[Event]:
        journal = self.journal(run_uri_of(state, live.number))
        known = max(0, live.segment - 1)
        lines = () if live.is_incoming else journal.read(live.number, after_segment=known)
        if live.started_at is not None and has_fled(lines):  # asking its machine takes seconds that a successor needs
            phase = Phase(kind="unreachable", started_at=live.started_at)
        else:
            phase = self.backend.phase(job_name(self.run_id, live.number))
            if phase.kind == "absent" and live.started_at is not None:  # launched from elsewhere: its trainer may live
                phase = Phase(kind="unreachable", started_at=live.started_at)
            if not live.is_incoming:  # else it writes nothing before its turn
                lines = journal.read(live.number, after_segment=known)  # before the end that is seen now
        is_expected = live.is_incoming and live.ready_at is None and phase.kind != "absent"
        is_ready = is_expected and journal.is_ready(live.number)
        patience = Patience(
            silence_seconds=self.rules.silence_seconds,
            start_seconds=self.rules.start_seconds,
            cut_off_seconds=self.rules.cut_off_seconds,
        )
        now = max(self.clock.now(), state.at)
        return observe(live, phase, lines, now=now, patience=patience, is_ready=is_ready)

    def _at_price(self, state: RunState, options: Sequence[Option]) -> RunState:
        """The state behind a change of what machines cost, those included that are not released yet."""
        now = {o.placement.offer.key: o.placement for o in options}
        billed = [a for a in state.attempts if a.is_open and a.started_at and a.gone_at is None]
        priced = [(a, now.get(a.placement.offer.key, a.placement)) for a in billed]
        changed = [(a, current) for a, current in priced if current.usd_per_hour != a.placement.usd_per_hour]
        events = [PriceChanged(attempt=a.number, placement=current) for a, current in changed]
        return self._record(state, *events) if events else state

    def _act(self, state: RunState) -> float:
        options = self.options(state, max(self.clock.now(), state.at))
        state = self._at_price(state, options)
        action: Action = next_action(state, options, now=max(self.clock.now(), state.at), rules=self.rules)
        match action:
            case Launch():
                self._launch(state, action)
            case Relaunch():
                self._grant(state, state.attempts[action.attempt - 1])
                return self.rules.poll_seconds
            case HandOver():
                self._hand_over(state, state.attempts[action.attempt - 1])
            case AskToEnd():
                event = EndRequested(attempt=action.attempt, cause=action.cause, why=action.why)
                self._record(state, event)
                self.journal(run_uri_of(state, action.attempt)).request_stop(action.attempt)
            case Judge():
                self._judge(state, action)
            case Release():
                self._release(state, state.attempts[action.attempt - 1])
            case Finish():
                self._record(state, RunFinished(outcome=action.outcome, detail=action.detail))
            case Wait():
                if state.pause is None or state.pause.why != action.why:
                    self._record(state, RunWaits(why=action.why))
                return min(action.seconds, 6 * self.rules.poll_seconds)  # a stop is heard within a minute
            case Keep():
                self._ask_again(state)
                return self.rules.poll_seconds
        return 0.0

    def _launch(self, state: RunState, action: Launch) -> None:
        option = action.option
        intent = AttemptRequested(
            attempt=state.next_attempt,
            placement=option.placement,
            why=action.why,
            egress_usd_per_read=option.egress_usd_per_read + option.traffic.read.requests_usd,
            run_uri=self.run_uri(state, option),
            save_usd_per_gb=option.traffic.save_usd_per_gb,
            restore_usd_per_gb=option.traffic.restore_usd_per_gb,
            move_from=option.move_from,
            move_usd_per_gb=option.move_usd_per_gb,
            relieves=action.relieves,
            overlaps=action.overlaps,
        )
        state = self._record(state, intent)
        self._grant(state, state.attempts[-1])

    def _grant(self, state: RunState, attempt: Attempt) -> None:
        state = self._bring_checkpoint(state, attempt)
        try:
            self.backend.launch(self.request(state, attempt))
        except LaunchRefused as refusal:
            self._record(state, AttemptRefused(attempt=attempt.number, reason=refusal.reason, detail=refusal.detail))
            self.backend.stop(job_name(self.run_id, attempt.number))  # a rival's launch may be under way still
        else:
            self._sweep()  # a rival may have closed the attempt while this launch was under way

    def _bring_checkpoint(self, state: RunState, attempt: Attempt, *, again: bool = False) -> RunState:
        """The newest checkpoint lies beside the machine before the machine is paid for.

        Where that one is damaged an older one was brought, once; what the other one saved since comes at the handover.
        """
        here, newest = run_uri_of(state, attempt.number), state.checkpoint
        has_it = newest is None or here in newest.run_uris
        if newest is None or has_it or (attempt.replicated_at is not None and not again):
            return state
        priced = f"{attempt.move_from}/{self.run_id}"  # the copy whose way was priced
        source = priced if priced in newest.run_uris else newest.run_uris[-1]
        replica = self.replicate(source, here)
        if replica is None:
            log.warning("nothing whole to go on from", extra={"run": self.run_id, "folder": source})
            return state
        event = CheckpointReplicated(attempt=attempt.number, name=replica.name, bytes=replica.copied_bytes)
        return self._record(state, event)

    def _judge(self, state: RunState, action: Judge) -> None:
        event = AttemptEnded(attempt=action.attempt, outcome=action.outcome, detail=action.detail, cause=action.cause)
        self._record(state, event)

    def _hand_over(self, state: RunState, attempt: Attempt) -> None:
        """The ledger first: a supervisor that was overtaken gives nobody the go."""
        state = self._bring_checkpoint(state, attempt, again=True)
        self._give_go(self._record(state, HandedOver(attempt=attempt.number)), attempt)

    def _give_go(self, state: RunState, attempt: Attempt) -> None:
        spent = spent_usd(state, max(self.clock.now(), state.at))
        self.journal(run_uri_of(state, attempt.number)).hand_over(attempt.number, spent_usd=spent)

    def _release(self, state: RunState, attempt: Attempt) -> None:
        """What only waited is told to end as well: its machine may be one that this backend cannot see."""
        self.backend.stop(job_name(self.run_id, attempt.number))
        if attempt.is_incoming:
            self.journal(run_uri_of(state, attempt.number)).request_stop(attempt.number)
        self._record(state, AttemptReleased(attempt=attempt.number))

    def _ask_again(self, state: RunState) -> None:
        """A supervisor that died between the record and the word left the trainer unasked, or waiting."""
        live = state.trainer
        if live and live.end_requested_at:
            self.journal(run_uri_of(state, live.number)).request_stop(live.number)
        if live and live.handed_over_at and live.training_at is None:
            self._give_go(state, live)

    def _sweep(self) -> None:
        """Stop every job of the run that the ledger does not count as open.

        Jobs are listed first: the intent of each is then in the ledger that is read behind them.
        """
        jobs = self.backend.names(self.run_id)
        open_jobs = {a.number for a in self._state().attempts if a.is_open}
        for job in jobs:
            if attempt_of(job) not in open_jobs:
                log.warning("stopping a job that nobody counts", extra={"job": job})
                self.backend.stop(job)
