"""A file that appears: for schedulers that run a hook of their own on a preemption."""

from __future__ import annotations

from pathlib import Path

from trainer_hooks.notice.listener import Heard


class NoticeFile:
    name = "file"

    def __init__(self, path: str, *, period_seconds: float) -> None:
        self._path = Path(path)
        self.period_seconds = period_seconds

    def poll(self) -> Heard | None:
        return Heard(kind="preemption", source=self.name) if self._path.exists() else None
