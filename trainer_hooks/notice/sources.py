"""Which sources an attempt listens to."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer_hooks.notice.azure import Azure
from trainer_hooks.notice.ec2 import Ec2
from trainer_hooks.notice.file import NoticeFile
from trainer_hooks.notice.gce import Gce
from trainer_hooks.notice.listener import Source, period_seconds
from trainer_hooks.notice.signals import Signals

log = logging.getLogger(__name__)

_VENDOR = Path("/sys/class/dmi/id/sys_vendor")
_CLOUDS = {"Amazon EC2": "ec2", "Google": "gce", "Microsoft Corporation": "azure"}


def open_sources(names: Sequence[str], *, notice_seconds: float | None, environ: Mapping[str, str]) -> list[Source]:
    """A source for each name; one that cannot be had is logged and left out: a notice is a help, not a need."""
    found: list[Source] = []
    for name in dict.fromkeys(names):
        try:
            found.append(_open(name, period_seconds(notice_seconds), environ))
        except ValueError as error:
            log.warning("notice source left out", extra={"source": name, "error": str(error)})
    return found


def default_names() -> tuple[str, ...]:
    """Signals, and the metadata service of the cloud whose firmware this machine has."""
    try:
        vendor = _VENDOR.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ("signal",)
    return (_CLOUDS[vendor], "signal") if vendor in _CLOUDS else ("signal",)


def _open(name: str, period: float, environ: Mapping[str, str]) -> Source:
    match name:
        case "ec2":
            return Ec2(environ, period_seconds=period)
        case "gce":
            return Gce(environ, period_seconds=period)
        case "azure":
            return Azure(environ, period_seconds=period)
        case "signal":
            return Signals()
        case "file":
            path = environ.get("LAUNCH_NOTICE_FILE")
            if not path:
                raise ValueError("LAUNCH_NOTICE_FILE is missing; give it the path to watch")
            return NoticeFile(path, period_seconds=period)
        case _:
            raise ValueError("unknown; ec2, gce, azure, signal and file are known")
