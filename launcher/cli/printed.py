"""What a run's attempts print, from this machine or from the run folder, each byte once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.adapters.shared_output import SharedOutput
    from launcher.core.runs.state import RunState
    from launcher.wiring import Wiring


REST_SECONDS = 60.0  # not an expectation, but an end


class Printed:
    """Of one run; of one attempt, where that is named."""

    def __init__(self, wired: Wiring, attempt: int | None = None) -> None:
        self._wired = wired
        self._attempt = attempt
        self._sent: dict[Path, int] = {}
        self._pieces: dict[int, int] = {}
        self._shared: SharedOutput | None = None

    def news(self, state: RunState) -> bytes:
        """What came since the last call; empty too while the run folder does not answer."""
        from launcher import engines, supervision
        from launcher.errors import BackendError

        if self._shared is None and not supervision.is_supervised_here(self._wired, state.run_id):
            self._shared = supervision.shared_output(self._wired, state)
        if self._shared is None:
            known = engines.output_paths(self._wired, state)
            return b"".join(self._from_file(known[number]) for number in known if self._attempt in (None, number))
        wanted = [a.number for a in state.attempts if self._attempt in (None, a.number)]
        try:
            return b"".join(self._from_folder(self._shared, number) for number in wanted)
        except BackendError:
            return b""

    def rest(self, state: RunState) -> bytes:
        """The last news of a run that has ended: a supervisor elsewhere brings them over before it leaves."""
        from launcher import supervision
        from launcher.adapters.system_clock import SystemClock

        clock = SystemClock()
        until = clock.now() + timedelta(seconds=REST_SECONDS)
        while supervision.is_supervised_elsewhere(self._wired, state) and clock.now() < until:
            clock.sleep(1.0)
        return self.news(state)

    def _from_file(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(self._sent.get(path, 0))
                text = file.read()
        except FileNotFoundError:
            return b""
        self._sent[path] = self._sent.get(path, 0) + len(text)
        return text

    def _from_folder(self, shared: SharedOutput, attempt: int) -> bytes:
        text, self._pieces[attempt] = shared.read(attempt, after_piece=self._pieces.get(attempt, 0))
        return text
