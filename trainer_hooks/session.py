"""The session: what a training script sees of the hooks.

    session = Session(model=model, optimizer=optimizer, scheduler=scheduler)   # restores what was committed
    for batch in session(loader, steps=18_000):                                # saves, and leaves on a notice
        ...

Every `next()` of that iterator is a safe point: the step before is finished, so counting, saving, notices,
requests of the launcher and the cap are all dealt with there, and the loop's body needs nothing.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn, Self

from trainer_hooks.attention import WHY, Attention, Verdict
from trainer_hooks.beginning import number_attempt, tell_of_resume
from trainer_hooks.checkpoint import rng
from trainer_hooks.checkpoint.objects import stateful
from trainer_hooks.checkpoint.save import Wanted
from trainer_hooks.checkpoint.saver import MAX_FAILURES_IN_ROW
from trainer_hooks.ending import Ending
from trainer_hooks.errors import SavingFailed
from trainer_hooks.handover import take_turn
from trainer_hooks.journal import Journal
from trainer_hooks.keeper import Keeper
from trainer_hooks.loop import (
    Batches,
    Cursor,
    Limits,
    Pace,
    Place,
    calm_workers,
    limits,
    place_of_rank,
    warn_of_persistent_workers,
)
from trainer_hooks.meter import say
from trainer_hooks.notice.listener import Heard
from trainer_hooks.protocol import EXIT_RESCHEDULE, EndReason, Notice, Started
from trainer_hooks.ranks import Agreement, find_ranks, steps_until_agreement
from trainer_hooks.rendezvous import PARTING_SECONDS
from trainer_hooks.reporter import Reporter
from trainer_hooks.schedule import Every
from trainer_hooks.settings import resolve
from trainer_hooks.storage import Storage, open_storage


class Session:
    """One attempt of a training, restored from the newest checkpoint when it is made.

    Keywords name what belongs to the training's state: anything with `state_dict` and `load_state_dict`.
    `step` counts finished steps of all attempts, `resumed_from` is the checkpoint's name or `None`.
    In a process group, make it after `init_process_group`, on every rank alike; rank 0 writes. Where the launcher
    has it relieve another attempt (`LAUNCH_RELIEVES`), making it waits until that one has ended.

    Raises: CheckpointsDamaged: there are checkpoints, and none verifies. CheckpointMismatch: the newest is of
    other objects. ProtocolError: a `LAUNCH_*` variable is malformed. ValueError, TypeError: an argument is.
    SystemExit(75): it was stopped before the other attempt had ended.
    """

    step = 0
    resumed_from: str | None = None

    def __init__(
        self,
        *,
        run_uri: str | None = None,
        checkpoint_every_steps: Every | None = None,
        keep: int | None = None,
        **objects: Any,
    ) -> None:
        self._objects = stateful(objects)
        self._settings = resolve(os.environ, run_uri=run_uri, every=checkpoint_every_steps, keep=keep)
        self._ranks = find_ranks(os.environ)
        storage = open_storage(self._settings.run_uri)
        self._attempt = number_attempt(self._settings, storage, self._ranks)
        self._meter = take_turn(self._settings, storage, self._ranks, attempt=self._attempt)
        journal = Journal(storage if self._ranks.is_first else None, attempt=self._attempt)
        journal.claim()
        self._pace = Pace()
        self._keeper = Keeper(
            self._objects,
            storage,
            journal,
            ranks=self._ranks,
            settings=self._settings,
            attempt=self._attempt,
            slowed_seconds=self._pace.slowed_seconds,
        )
        self._reporter = Reporter(journal, self._meter, saving=self._keeper.progress, is_shown=self._ranks.is_first)
        self._cursor = Cursor()
        self._loops = 0  # calls of `session(…)` so far
        self._loader: Any = None  # the last one that was iterated
        self._batches: Batches | None = None  # of the epoch that is running
        self._resumed_place: Place | None = None  # not yet taken up by a loop
        self._is_running = False  # a loop is: only its next() is a safe point
        self._has_ended = False
        self._restore(journal)
        self._saved_at_step = self.step
        self._agreement = Agreement(self._ranks)
        self._stop_at = self._meter.stop_at(save_seconds=0.0)
        self._attention = self._listen(storage, journal)
        self._ending = Ending(self._end)
        self._ending.watch()

    def __call__(self, loader: Any, *, steps: int | None = None, epochs: int | None = None) -> Iterator[Any]:
        """Batches of `loader` for `steps` steps, or `epochs` epochs, or one pass; those done before are left out.

        Several loops in one script are counted, in the order of these calls; finished ones are skipped.
        Raises, while iterated: SystemExit(75): saved, start me again. SavingFailed, NotLoadable, CheckpointMismatch.
        """
        bounds = limits(steps, epochs)
        index, self._loops = self._loops, self._loops + 1
        return self._loop(loader, index, bounds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._close(value)

    def resume(self) -> int:
        """For a loop without an iterator: how many steps are finished. Sets the random state of that moment again."""
        if self._resumed_place is not None:
            rng.restore(self._resumed_place.now)
        self._pace.rest()
        return self.step

    def after_step(self, step: int) -> None:
        """For a loop without an iterator: `step` steps are finished, so the first call says 1. A safe point.

        Raises: ValueError: that is not more than before. What iterating raises.
        """
        if step <= self.step:
            raise ValueError(
                f"after_step({step}) after {self.step} finished steps; give how many are finished now, "
                f"counted from 1: for step in range(session.resume(), n): …; session.after_step(step + 1)"
            )
        self._count(step)

    def save(self) -> None:
        """Commit a checkpoint: now, or, inside a loop over `session(…)`, begin one at its next safe point.

        One checkpoint is kept per step: a second one of the same step is not written. All ranks call it alike.
        """
        if self._is_running:
            self._attention.ask_for_save()
        else:
            self._save_surely(tries=1)

    def log(self, **values: Any) -> None:
        """Numbers of the newest step (scalar tensors, too) for the launcher's reports; read every 15 s or so."""
        self._reporter.log(values)

    def outcome(self, name: str, value: float) -> None:
        """A result of the training, reported with its end, and kept over preemptions; only finite numbers are."""
        if math.isfinite(number := float(value)):
            self._reporter.outcomes[name] = number

    def close(self) -> None:
        """The training is over (failed, when called on the way of an exception). May be repeated."""
        self._close(sys.exc_info()[1])

    def _close(self, error: BaseException | None) -> None:
        is_clean = error is None or (isinstance(error, SystemExit) and error.code in (None, 0))
        if is_clean and not self._has_ended and self._loops == 0 and self.step > self._saved_at_step:
            self._save_surely()
        self._end("completed" if is_clean else "failed")
        self._attention.release_signals()

    def _loop(self, loader: Any, index: int, bounds: Limits) -> Iterator[Any]:
        if index < self._cursor.loop:
            self._skip(loader, index)
            return
        if not self._cursor.is_inside:
            self._cursor = Cursor(loop=index, is_inside=True, passes=self._cursor.passes)
            self._resumed_place = None  # what came between the loops has been done again
        if self._attention.takes_signals:
            calm_workers(loader)
        left = None if bounds.steps is None else bounds.steps - self._cursor.loop_steps
        self._reporter.open(step=self.step, total_steps=None if left is None else self.step + left)
        self._loader, self._is_running = loader, True
        try:
            self._attend(time.monotonic())
            while not bounds.are_reached(self._cursor):
                yield from self._epoch(loader, bounds)
        finally:  # a `break` ends a loop, too
            passes = self._cursor.passes + (self._cursor.batch > 0)
            self._cursor = Cursor(loop=index + 1, passes=passes)
            self._batches, self._resumed_place, self._is_running = None, None, False
        self._save_surely()
        self._reporter.close(self.step, self._pace.step_seconds)

    def _skip(self, loader: Any, index: int) -> None:
        """A loop that an earlier attempt finished; after the last of them, the random state is as it was then."""
        is_last = index == self._cursor.loop - 1 and not self._cursor.is_inside
        if is_last and self._resumed_place is not None:
            rng.restore(self._resumed_place.now, loader)
            self._loader, self._resumed_place = loader, None

    def _epoch(self, loader: Any, bounds: Limits) -> Iterator[Any]:
        cursor = self._cursor
        warn_of_persistent_workers(loader, cursor, self._resumed_place)
        cursor.open_epoch(loader, world_size=self._ranks.group_size)
        batches = Batches(loader, cursor, self._resumed_place)
        self._batches, self._resumed_place = batches, None
        self._pace.rest()
        for batch in batches:
            yield batch
            # The safe point comes before the fetch of the next batch, which draws random numbers.
            cursor.batch += 1
            cursor.loop_steps += 1
            is_last = bounds.is_last_step(cursor)
            self._count(self.step + 1, is_last=is_last)
            if is_last:
                return
        if cursor.batch == 0 and bounds.steps is not None:
            raise ValueError(f"the loader has no batches; it would never come to {bounds.steps} steps")
        cursor.epoch, cursor.batch, cursor.passes = cursor.epoch + 1, 0, cursor.passes + 1
        self._batches = None

    def _count(self, step: int, *, is_last: bool = False) -> None:
        """A safe point. Where nothing is due, it is a look at the clock and at a flag."""
        now = time.monotonic()
        self.step = step
        self._pace.tick(now, is_saving=self._keeper.is_saving)
        if now >= self._reporter.due_at:
            self._reporter.report(step, self._pace.step_seconds, now)
        if not is_last:  # the loop is complete and saves at its end: a notice need not cut off what follows it
            self._attend(now)
            self._keeper.safe_point()

    def _attend(self, now: float) -> None:
        verdict = self._verdict(now)
        if self._ranks.can_agree:
            to_next, left = self._steps_to_next(), self._attention.seconds_left
            verdict = Verdict(self._agreement.reach(verdict, step=self.step, steps_to_next=to_next, note=left))
        match verdict:
            case Verdict.GO_ON:
                return
            case Verdict.SAVE:
                self._save()
            case Verdict.SUPERSEDED:
                self._yield_to_newer()
            case Verdict.UNSAVED:
                self._keeper.wait()
                self._give_up(self._keeper.failure or "as rank 0 has seen")
            case Verdict.PREEMPTED:
                self._evacuate()
            case Verdict.STOPPED | Verdict.OUT_OF_BUDGET as ending:
                self._leave_saved(ending)

    @property
    def _is_untouched(self) -> bool:
        """Restored, and nothing was done since."""
        return self._resumed_place is not None and self.resumed_from is not None

    def _verdict(self, now: float) -> Verdict:
        urgent = self._attention.take()
        if self._keeper.superseded:
            return Verdict.SUPERSEDED
        if urgent > Verdict.SAVE or not self._ranks.is_first:
            return urgent
        if self._keeper.failure:
            return Verdict.UNSAVED
        if now >= self._stop_at:
            return Verdict.OUT_OF_BUDGET
        return Verdict.SAVE if urgent is Verdict.SAVE or self._is_save_due() else Verdict.GO_ON

    def _is_save_due(self) -> bool:
        return self._keeper.is_due(self.step - self._saved_at_step, step_seconds=self._pace.step_seconds or 0.0)

    def _steps_to_next(self) -> int:
        """Until the ranks agree again: about a second, and not beyond the next save that is due."""
        every, steps = self._settings.every, steps_until_agreement(self._pace.step_seconds)
        return steps if every == "auto" else max(1, min(steps, every - (self.step - self._saved_at_step)))

    def _save(self) -> None:
        """Begin a save. What it costs, and whether it could be written, shows at later safe points."""
        if self._is_untouched or self._keeper.has(self.step):
            return
        self._keeper.wait()
        if not self._ranks.can_agree:
            self._demand_saves()  # several ranks do it together, at their next decision
        self._pace.begin_save()
        self._keeper.begin(self._wanted())
        self._saved()

    def _save_surely(self, *, tries: int = MAX_FAILURES_IN_ROW) -> None:
        """What is not saved now is lost, so a failure is not left to a next time."""
        self._keeper.finish(self._wanted(), tries=tries)
        self._saved()
        if self._keeper.superseded:
            self._yield_to_newer()
        self._demand_saves()

    def _leave_saved(self, ending: Verdict) -> NoReturn:
        """As asked, even if nothing can be saved: whoever stops a run on a full disk must be able to."""
        failure = ""
        if not self._is_untouched:
            self._keeper.finish(self._wanted(), tries=MAX_FAILURES_IN_ROW)
            failure = self._keeper.failure
        if self._keeper.superseded:
            self._yield_to_newer()
        unsaved = f"step {self.step:,} could NOT be saved ({failure}), the last checkpoint is what there is"
        self._leave(f"{WHY[ending]}; {unsaved if failure else f'saved at step {self.step:,}'}", ending.end)

    def _evacuate(self) -> NoReturn:
        why = "nothing was left to save"
        if not self._is_untouched:
            left = self._attention.seconds_left
            why = self._keeper.evacuate(self._wanted(), seconds_left=self._agreement.note if left is None else left)
        if self._keeper.superseded:
            self._yield_to_newer()
        self._leave(f"the machine is being taken; {why}", "preempted")

    def _saved(self) -> None:
        self._saved_at_step = self.step
        costs = self._keeper.costs
        self._stop_at = self._meter.stop_at(costs.durable_seconds if costs else 0.0)
        self._pace.rest()

    def _wanted(self) -> Wanted:
        spent_usd = self._meter.spent_usd(time.monotonic())
        cursor = self._cursor.to_json() | {
            "spent_usd": None if spent_usd is None else str(spent_usd),
            "step_seconds": self._pace.step_seconds,
            "outcomes": dict(self._reporter.outcomes),
        }
        place = (self._resumed_place or self._place()).to_plain()
        return Wanted(step=self.step, cursor=cursor, place=place, metrics=self._reporter.metrics())

    def _yield_to_newer(self) -> NoReturn:
        self._has_ended = True  # and the newer attempt has the word
        self._close_down(has_failed=False)
        self._leave(f"{self._keeper.superseded}; nothing more was saved")

    def _demand_saves(self) -> None:
        if failure := self._keeper.failure:
            self._give_up(failure)

    def _give_up(self, failure: str) -> NoReturn:
        self._end("failed")
        raise SavingFailed(
            f"{MAX_FAILURES_IN_ROW} saves in a row failed, the last at step {self.step:,} ({failure}). Free space "
            f"in {self._settings.run_uri} or make it writable, then start again: the training goes on from the "
            "last checkpoint that was written"
        )

    def _place(self) -> Place:
        return self._batches.place() if self._batches is not None else Place(rng.capture(self._loader), None, None)

    def _restore(self, journal: Journal) -> None:
        loaded = self._keeper.restore()
        if loaded is None:
            journal.append(Started(step=0))
            return
        if self._ranks.is_first:
            tell_of_resume(loaded, self._meter.price)
        self.step, self.resumed_from = loaded.manifest.step, loaded.name
        self._cursor = Cursor.from_json(loaded.manifest.cursor)
        self._reporter.outcomes.update(loaded.manifest.cursor.get("outcomes", {}))
        self._resumed_place = place_of_rank(loaded.places, self._ranks)
        rng.restore(self._resumed_place.now)
        journal.append(Started(step=self.step, resumed_from=loaded.name, lost_steps=loaded.lost_steps))

    def _listen(self, storage: Storage, journal: Journal) -> Attention:
        def on_notice(heard: Heard) -> None:
            left = "" if heard.seconds_left is None else f", {heard.seconds_left:.0f} s left"
            say(f"spotlaunch: preemption notice ({heard.source}{left}); saving at the next step")
            journal.append(Notice(source=heard.source, seconds_left=heard.seconds_left))
            self._keeper.hurry()

        attention = Attention(self._settings, environ=os.environ, on_notice=on_notice)
        attention.start(storage if self._ranks.is_first else None, attempt=self._attempt)
        return attention

    def _leave(self, why: str, reason: EndReason | None = None) -> NoReturn:
        if self._ranks.is_first:
            say(f"spotlaunch: {why}; exit {EXIT_RESCHEDULE}")
        if reason is not None:
            self._end(reason)
        raise SystemExit(EXIT_RESCHEDULE)

    def _close_down(self, *, has_failed: bool) -> None:
        self._keeper.close(has_failed=has_failed)
        self._agreement.close(timeout_seconds=PARTING_SECONDS)
        self._ending.forget()
        self._attention.stop()

    def _end(self, reason: EndReason) -> None:
        """The attempt's last record; the first one counts."""
        if self._has_ended:
            return
        self._has_ended = True
        self._close_down(has_failed=reason == "failed")
        self._reporter.end(reason, self.step, self._pace.step_seconds)
