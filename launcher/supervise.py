"""`python -m launcher.supervise RUN`: the run's detached supervisor process, one per run.

On a machine that was hired for it, `--workdir` and `--pricing` say where lies what the ledger knows by its path on the
submitter's, and `--hired` which of the run's hired machines this is.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from socket import gethostname

from launcher import engines, supervision
from launcher.adapters.settings import load_settings
from launcher.adapters.system_clock import SystemClock
from launcher.core.runs.state import RunState
from launcher.core.runs.takeover import takeover
from launcher.errors import LaunchError, LedgerConflict
from launcher.wiring import Moved, Wiring

LOCK_SECONDS = 3.0  # `launch status` holds the lock for a moment, to see whether anybody does


class _WithFields(logging.Formatter):
    """Appends what a message carries beside its words: `attempt refused run=… reason=…`."""

    _KNOWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in record.__dict__.items() if k not in self._KNOWN)
        return f"{super().format(record)} {fields}".rstrip()


def main(run_id: str, *, moved: Moved | None = None, hired: int | None = None) -> int:
    """Bring the run to its end; at once done where another supervisor is at work."""
    from filelock import Timeout

    handler = logging.StreamHandler()
    handler.setFormatter(_WithFields("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal it was started from may close
    settings = load_settings().settings.model_copy(update={"supervise": "here"})  # wherever that is
    wiring = Wiring(settings=settings, moved=moved)
    try:
        if moved:  # a new SkyPilot uses no cloud that it has not checked itself
            logging.info("clouds that can be used from here: %s", ", ".join(wiring.check_clouds().enabled) or "none")
        with supervision.lock(wiring, run_id).acquire(timeout=LOCK_SECONDS):
            state = _begin(wiring, run_id, hired)
            if state is None:
                return 0
            by = f"hired machine {hired}" if hired else "its submitter's machine"
            with supervision.showing(wiring, state, by=f"{by} ({gethostname()})"):
                state = engines.supervisor(wiring, run_id).supervise()
    except Timeout:
        logging.info("run %s has a supervisor already", run_id)
        return 0
    except LaunchError as error:
        logging.critical("%s", error)
        return error.exit_code
    logging.info("run %s %s: %s", run_id, state.outcome, state.detail)
    return 0


def _begin(wiring: Wiring, run_id: str, hired: int | None) -> RunState | None:
    """The run, taken over from a supervisor elsewhere if there was one; `None`: that one lives."""
    while True:
        state = wiring.state(run_id)
        last = supervision.sign_from_elsewhere(wiring, state)
        if last is not None and last.is_fresh(SystemClock().now()):
            logging.info("run %s has a supervisor already: %s, seen at %s", run_id, last.by, last.at)
            return None
        events = takeover(state, number=hired, is_elsewhere=last is not None)
        try:
            wiring.ledger.append(run_id, events, after_seq=state.seq, at=wiring.run_clock(state).now())
        except LedgerConflict:
            continue
        return state


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.supervise", description="Supervise a run.")
    parser.add_argument("run_id")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--pricing", type=Path)
    parser.add_argument("--hired", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    told = _arguments()
    place = None if told.workdir is None else Moved(workdir=told.workdir, pricing=told.pricing)
    sys.exit(main(told.run_id, moved=place, hired=told.hired))
