"""Time: the machine's, or a market's that runs faster.

Within a process `now` follows the monotonic clock, so that a corrected or jumping wall clock neither
lengthens a bill nor turns it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class SystemClock:
    """`now = epoch + (wall − epoch) · scale`; at scale 1 that is the wall clock, whatever the epoch.

    A wall clock that was set back since `not_before` was written down is taken to stand there now.
    """

    def __init__(
        self,
        *,
        epoch: datetime | None = None,
        scale: float = 1.0,
        not_before: datetime | None = None,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._started = monotonic()
        self._wall_at_start = datetime.fromtimestamp(wall(), UTC)
        self.epoch = epoch or self._wall_at_start
        self.scale = scale
        if not_before is not None:
            self._wall_at_start = max(self._wall_at_start, self.to_wall(not_before))

    def now(self) -> datetime:
        return self.from_wall(self._wall_at_start + timedelta(seconds=self._monotonic() - self._started))

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds / self.scale))

    def from_wall(self, wall: datetime) -> datetime:
        """This clock's reading when the wall clock shows `wall`."""
        return self.epoch + (wall - self.epoch) * self.scale

    def to_wall(self, at: datetime) -> datetime:
        """What the wall clock shows when this clock reads `at`."""
        return self.epoch + (at - self.epoch) / self.scale
