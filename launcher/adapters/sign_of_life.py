"""A supervisor's sign of life in the run folder, for everybody who reaches that, and not only for its own machine.

control/supervisor    {"place": …, "by": …, "since": …, "at": …, "has_ended": …}    replaced every half minute
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime

from launcher.adapters.fsspec_journal import FsspecJournal
from launcher.core.prices.supervision import BEAT_SECONDS, Sign
from launcher.errors import BackendError

log = logging.getLogger(__name__)

_NAME = "control/supervisor"


def read_sign(folder: FsspecJournal) -> Sign | None:
    """The newest sign of any supervisor, however old. Raises: BackendError: the folder did not answer."""
    found = folder.get(_NAME)
    if found is None:
        return None
    try:
        return Sign(
            place=str(found["place"]),
            by=str(found["by"]),
            since=datetime.fromisoformat(found["since"]),
            at=datetime.fromisoformat(found["at"]),
            has_ended=found["has_ended"] is True,
        )
    except (KeyError, TypeError, ValueError):
        return None


@contextmanager
def giving_signs(folder: FsspecJournal, sign: Sign, *, now: Callable[[], datetime]) -> Iterator[None]:
    """Say again and again that the supervisor lives, and at last that it has ended.

    The turns of a supervisor may take minutes, so this has a thread of its own. A store that does not answer stops
    nobody: the sign grows stale meanwhile.
    """
    ending = threading.Event()
    first = _give(folder, sign, may_complain=True)
    beat = threading.Thread(target=_beat, args=(folder, sign, now, ending, first), name="sign of life", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ending.set()
        beat.join(BEAT_SECONDS)
        _give(folder, replace(sign, at=now(), has_ended=True), may_complain=True)


def _beat(
    folder: FsspecJournal, sign: Sign, now: Callable[[], datetime], ending: threading.Event, is_well: bool
) -> None:
    while not ending.wait(BEAT_SECONDS):
        is_well = _give(folder, replace(sign, at=now()), may_complain=is_well)


def _give(folder: FsspecJournal, sign: Sign, *, may_complain: bool) -> bool:
    try:
        content = asdict(sign) | {"since": sign.since.isoformat(), "at": sign.at.isoformat()}
        folder.put(_NAME, content)
    except BackendError as error:
        if may_complain:
            log.warning("nobody else can see that this supervisor lives", extra={"reason": str(error)})
        return False
    return True
