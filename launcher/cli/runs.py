"""status, attach, logs, stop, resume: runs that exist."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.common import (
    CurrencyOption,
    Output,
    OutputOption,
    PlainOption,
    SuperviseOption,
    console,
    money,
    print_json,
    wiring,
)

if TYPE_CHECKING:
    from datetime import datetime

    from launcher.cli.printed import Printed
    from launcher.core.prices.supervision import Sign
    from launcher.core.runs.journal import TrainerStepped
    from launcher.core.runs.state import RunState
    from launcher.render.live import LiveView
    from launcher.render.words import Money
    from launcher.wiring import Wiring

RunArgument = Annotated[str, typer.Argument(help="a run's id, or the beginning of one", show_default=False)]
LOOK_SECONDS = 0.5
SHARED_LOOK_SECONDS = 2.0  # where each look asks a bucket or a database elsewhere
SIGN_SECONDS = 5.0  # between two looks for a sign of life in the run folder
ORPHAN_SECONDS = 10.0  # without a supervisor, until the person is told


def register(app: typer.Typer) -> None:
    app.command("status", help="All runs, or one in full.")(status)
    app.command("attach", help="Follow a run and what it prints, from any machine that shares its ledger.")(attach)
    app.command("logs", help="What the training printed.")(logs)
    app.command("stop", help="Save, then stop a run and release its machines.")(stop)
    app.command("resume", help="Supervise a run again, or reopen one that ended, and follow it.")(resume)


def status(
    run: Annotated[str | None, typer.Argument(help="a run's id, or the beginning of one", show_default=False)] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="follow until the run ends")] = False,
    currency: CurrencyOption = None,
    plain: PlainOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    from launcher import supervision
    from launcher.render import status as render

    wired = wiring()
    shown = money(currency, wired)
    if run is None and watch:
        run = _only_unfinished(wired)
    if run is None:
        rows = [_row(wired, s, None if s.is_finished else supervision.sign(wired, s)) for s in wired.states()]
        if output is Output.JSON:
            return print_json(render.runs_json(rows))
        return render.show_runs(console(plain=plain), rows, shown)
    state = wired.state(full_id(wired, run))
    sign = supervision.sign(wired, state)
    _, now, supervised = _row(wired, state, sign)
    if output is Output.JSON:
        return print_json(render.run_json(state, now, supervised=supervised, sign=sign))
    render.show_run(console(plain=plain), state, now, shown, supervised=supervised, sign=sign)
    if watch and not state.is_finished:
        raise typer.Exit(follow(wired, state.run_id, shown, plain=plain, after_seq=state.seq))
    return None


def attach(run: RunArgument, *, currency: CurrencyOption = None, plain: PlainOption = False) -> None:
    from launcher import supervision
    from launcher.cli.printed import Printed
    from launcher.render import status as render

    wired = wiring()
    shown = money(currency, wired)
    state = wired.state(full_id(wired, run))
    sign = supervision.sign(wired, state)
    _, now, supervised = _row(wired, state, sign)
    render.show_run(console(plain=plain), state, now, shown, supervised=supervised, sign=sign)
    printed = Printed(wired)
    raise typer.Exit(follow(wired, state.run_id, shown, plain=plain, after_seq=state.seq, printed=printed))


def logs(
    run: RunArgument,
    *,
    following: Annotated[bool, typer.Option("--follow", "-f", help="go on until the run ends")] = False,
    attempt: Annotated[int | None, typer.Option("--attempt", "-a", min=1, help="default: all of them")] = None,
) -> None:
    from launcher.adapters.system_clock import SystemClock
    from launcher.cli.printed import Printed

    wired = wiring()
    state = wired.state(full_id(wired, run))
    printed = Printed(wired, attempt)
    while True:
        _to_stdout(printed.news(state))
        if following and state.is_finished:
            return _to_stdout(printed.rest(state))
        if not following:
            return None
        SystemClock().sleep(_look_seconds(wired))
        state = wired.state(state.run_id)


def stop(
    run: Annotated[str | None, typer.Argument(help="a run's id, or the beginning of one", show_default=False)] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="every run that has not ended")] = False,
) -> None:
    from launcher import api, supervision
    from launcher.errors import InputError, Problem

    wired = wiring()
    if (run is None) != every:
        raise InputError([Problem("L123", "say which run to stop", fix="launch stop RUN, or launch stop --all")])
    states = wired.states() if run is None else (wired.state(full_id(wired, run)),)
    talk = console(stderr=True)
    for state in states:
        if state.is_finished:
            if run is not None:
                talk.print(f" {state.run_id} has ended already: {state.outcome}")
            continue
        api.request_stop(wired, state.run_id)
        if not supervision.is_supervised_elsewhere(wired, state):
            supervision.start(wired, state.run_id)  # where the run lost its own, this one stops it
        talk.print(f" {state.run_id} saves and stops; `launch resume {state.run_id} --approve USD` would go on")


def resume(
    run: RunArgument,
    *,
    approve: Annotated[
        str | None, typer.Option("--approve", metavar="USD", help="for the whole run, what is spent already included")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="do not follow")] = False,
    supervise: SuperviseOption = None,
    currency: CurrencyOption = None,
    plain: PlainOption = False,
) -> None:
    from launcher import api, supervision
    from launcher.cli.plans import parse_amount
    from launcher.errors import NotConfirmed

    wired = wiring(supervise)
    state = wired.state(full_id(wired, run))
    talk = console(stderr=True, plain=plain)
    if wired.settings.supervise == "remote":
        wired.outpost.demand(state.spec)
    if state.outcome == "succeeded":
        talk.print(f" {state.run_id} has succeeded; there is nothing to resume")
        return
    if state.is_finished:
        amount = parse_amount(approve)
        if amount is None:
            raise NotConfirmed(f"{state.run_id} ended ({state.outcome}); --approve USD says up to where it may go on")
        api.reopen(wired, state.run_id, approved_usd=amount)
    if supervision.is_supervised(wired, state, supervision.sign(wired, state)):
        talk.print(f" {state.run_id} has its supervisor")
    else:
        api.supervise(wired, state.run_id, telling=lambda what: talk.print(f" {what}"))
    if detach:
        talk.print(f" {state.run_id} goes on")
        return
    raise typer.Exit(follow(wired, state.run_id, money(currency, wired), plain=plain))


def follow(
    wired: Wiring,
    run_id: str,
    shown: Money,
    *,
    plain: bool,
    after_seq: int = 0,
    quiet: bool = False,
    printed: Printed | None = None,
) -> int:
    """Show a run until it ends; the exit code says how. Ctrl-C only stops the showing. `quiet`: nothing to stdout."""
    from launcher.render.live import LiveView
    from launcher.render.status import final_line

    talk = console(stderr=True, plain=plain)
    try:
        with LiveView(talk, shown) as view:
            state = _watch(wired, run_id, view, after_seq, printed)
    except KeyboardInterrupt:
        talk.print(f"\n the run goes on without this window: launch status {run_id} · launch stop {run_id}")
        return 130
    console(stderr=quiet, plain=plain).print(f" {final_line(state, shown)}", highlight=False, soft_wrap=True)
    return 0 if state.outcome == "succeeded" else 100


def _watch(wired: Wiring, run_id: str, view: LiveView, after_seq: int, printed: Printed | None) -> RunState:
    from launcher.adapters.system_clock import SystemClock
    from launcher.core.runs.state import fold

    clock, state = SystemClock(), None
    began, orphan = clock.now(), _Orphan(wired, clock.now())
    while state is None or not state.is_finished:
        for entry in wired.ledger.read(run_id, after_seq=state.seq if state else 0):
            state = fold(state, [entry])
            if state and entry.seq > after_seq:
                view.news(entry, state)
        if state is None:
            state = wired.state(run_id)
        now = clock.now()
        view.progress(state, _newest_step(wired, state), wired.run_clock(state).now(), (now - began).total_seconds())
        if printed:
            view.output(printed.news(state))
        if not state.is_finished:
            orphan.look(state, now)
            clock.sleep(_look_seconds(wired))
    if printed:
        view.output(printed.rest(state))
    return state


class _Orphan:
    """Notices that nobody supervises the run any more."""

    def __init__(self, wired: Wiring, now: datetime) -> None:
        self._wired = wired
        self._seen_at = now
        self._asked_at = now

    def look(self, state: RunState, now: datetime) -> None:
        """Raises: RunFailed: that has been so for a while."""
        from launcher import supervision
        from launcher.errors import RunFailed

        if supervision.is_supervised_here(self._wired, state.run_id):
            self._seen_at = now
        elif (now - self._asked_at).total_seconds() >= SIGN_SECONDS:
            self._asked_at = now
            self._seen_at = now if supervision.is_supervised_elsewhere(self._wired, state) else self._seen_at
        if (now - self._seen_at).total_seconds() > ORPHAN_SECONDS:
            log = supervision.log_path(self._wired, state.run_id)
            why = "its hired machine is silent" if state.hired else f"{log} says why"
            raise RunFailed(f"nobody supervises {state.run_id}: {why}; `launch resume {state.run_id}`")


def _look_seconds(wired: Wiring) -> float:
    return SHARED_LOOK_SECONDS if wired.settings.has_shared_ledger else LOOK_SECONDS


def _newest_step(wired: Wiring, state: RunState) -> TrainerStepped | None:
    """Fresher than the ledger, which hears of steps only every few minutes."""
    from launcher.core.runs.journal import TrainerStepped
    from launcher.core.runs.state import run_uri_of
    from launcher.errors import BackendError

    live = next((a for a in state.attempts if a.is_live and a.training_at), None)
    if live is None:
        return None
    try:
        journal = wired.journal(state, run_uri_of(state, live.number))
        lines = journal.read(live.number, after_segment=max(0, live.segment - 1))
    except BackendError:
        return None
    return next((line for line in reversed(lines) if isinstance(line, TrainerStepped)), None)


def _row(wired: Wiring, state: RunState, heard: Sign | None) -> tuple[RunState, datetime, bool]:
    """The run, its own time, and whether it is supervised."""
    from launcher import supervision

    supervised = not state.is_finished and supervision.is_supervised(wired, state, heard)
    return state, wired.run_clock(state).now(), supervised


def _only_unfinished(wired: Wiring) -> str:
    """Raises: InputError: none is running, or several are."""
    from launcher.errors import InputError, Problem

    running = [state.run_id for state in wired.states() if not state.is_finished]
    if len(running) == 1:
        return running[0]
    what = "no run is" if not running else f"{len(running)} runs are"
    raise InputError([Problem("L126", f"{what} under way", fix="launch status RUN --watch")])


def full_id(wired: Wiring, start: str) -> str:
    """Raises: NoSuchRun: none begins so. InputError: several do."""
    from launcher.errors import InputError, NoSuchRun, Problem

    known = wired.ledger.run_ids()
    if start in known:
        return start
    matching = [run_id for run_id in known if run_id.startswith(start)]
    if not matching:
        raise NoSuchRun(f"no run {start} in the ledger; `launch status` lists them")
    if len(matching) > 1:
        raise InputError([Problem("L124", f"{start} fits {len(matching)} runs", fix=f"write {matching[-1]}, say")])
    return matching[0]


def _to_stdout(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.flush()
