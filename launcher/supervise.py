"""`python -m launcher.supervise RUN`: the run's detached supervisor process, one per run."""

from __future__ import annotations

import logging
import signal
import sys

from launcher.adapters.settings import load_settings
from launcher.errors import LaunchError
from launcher.wiring import Wiring

LOCK_SECONDS = 3.0  # `launch status` holds the lock for a moment, to see whether anybody does


class _WithFields(logging.Formatter):
    """Appends what a message carries beside its words: `attempt refused run=… reason=…`."""

    _KNOWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in record.__dict__.items() if k not in self._KNOWN)
        return f"{super().format(record)} {fields}".rstrip()


def main(run_id: str) -> int:
    """Bring the run to its end; at once done where another supervisor holds the lock."""
    from filelock import Timeout

    handler = logging.StreamHandler()
    handler.setFormatter(_WithFields("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal it was started from may close
    wiring = Wiring(settings=load_settings().settings)
    try:
        with wiring.lock(run_id).acquire(timeout=LOCK_SECONDS):
            state = wiring.supervisor(run_id).supervise()
    except Timeout:
        logging.info("run %s has a supervisor already", run_id)
        return 0
    except LaunchError as error:
        logging.critical("%s", error)
        return error.exit_code
    logging.info("run %s %s: %s", run_id, state.outcome, state.detail)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
