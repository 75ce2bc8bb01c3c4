"""This machine: the settings and files that say what holds, the state folder, the ledger."""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from launcher.adapters.object_ledger import is_object_store
from launcher.adapters.settings import Layered, Settings
from launcher.adapters.sql_ledger import SqlLedger
from launcher.core.doctor.checkup import Check, free_space
from launcher.errors import LedgerUnavailable

_PREFIX = "LAUNCH_"
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs")


def settings_checks(layered: Layered, environ: Mapping[str, str]) -> list[Check]:
    """Which of them are not defaults and why, and variables that look like a setting and are none."""
    told = [f"{name} from {origin}" for name, origin in layered.origins.items() if origin != "default"]
    checks = [Check(name="settings", state="ok", found=", ".join(told) or "all are defaults")]
    known = [name.upper() for name in Settings.model_fields]
    for name in sorted(name.removeprefix(_PREFIX) for name in environ if name.startswith(_PREFIX)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near and name not in known:
            found = f"{_PREFIX}{name} is set, is not a setting, and has no effect on the launcher"
            checks.append(Check(name="settings", state="warning", found=found, fix=f"write {_PREFIX}{near[0]}"))
    return checks


def state_folder(settings: Settings) -> list[Check]:
    """It is written to and read from; what is not there yet is not made."""
    folder = next(path for path in (settings.state_folder, *settings.state_folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"spotlaunch")
            file.flush()
            os.fsync(file.fileno())
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        fix = "set state_folder to a folder of yours, or LAUNCH_STATE_FOLDER"
        found = f"{folder} cannot be written: {error.strerror}"
        return [Check(name="state folder", state="failed", found=found, fix=fix)]
    return [free_space(str(settings.state_folder), free_bytes, holds_runs=settings.runs_uri is None)]


def sql_ledger(settings: Settings) -> list[Check]:
    """Read, and written without leaving anything behind. A ledger that does not exist yet is not made."""
    if not settings.has_ledger:
        return [Check(name="ledger", state="ok", found="none yet; the first run makes it")]
    ledger = _Rehearsed(settings.ledger_url)
    runs = len(ledger.run_ids())
    try:
        ledger.rehearse()
    except LedgerUnavailable as error:
        fix = "nothing can be recorded: check the rights of this user, and the disk"
        return [Check(name="ledger", state="failed", found=f"{runs} runs, cannot be written: {error}", fix=fix)]
    if settings.ledger is None and (kind := _file_system(settings.state_folder)).startswith(_NETWORK_FILE_SYSTEMS):
        # "WAL does not work over a network filesystem", sqlite.org/wal.html, read 2026-11-21
        fix = "two machines on it can damage it: state_folder on a local disk, or ledger: postgresql://… or s3://…"
        return [Check(name="ledger", state="warning", found=f"{runs} runs, SQLite on {kind}", fix=fix)]
    return [Check(name="ledger", state="ok", found=f"{runs} runs, readable and writable")]


def is_sql(settings: Settings) -> bool:
    return not is_object_store(settings.ledger_url)


class _TakenBack(Exception):
    """The end of a rehearsal."""


class _Rehearsed(SqlLedger):
    """Writes as the ledger does, and takes it back."""

    def rehearse(self) -> None:
        """Raises: LedgerUnavailable: it cannot be written."""
        from sqlalchemy import insert
        from sqlalchemy.exc import IntegrityError

        row = {"run_id": "launch-doctor", "seq": 1, "at": 0, "kind": "rehearsal", "event": "{}"}
        try:
            with suppress(_TakenBack), self._transaction(writes=True) as connection:
                connection.execute(insert(self._entries), [row])
                raise _TakenBack
        except IntegrityError as error:  # to an append, that is a rival; here it is a rule of the database's
            raise LedgerUnavailable(str(error.orig)) from error


def _file_system(folder: Path) -> str:
    """Of the deepest mount above `folder`, e.g. ext4."""
    import psutil

    mounts = {partition.mountpoint: partition.fstype for partition in psutil.disk_partitions(all=True)}
    return next((mounts[str(path)] for path in (folder, *folder.parents) if str(path) in mounts), "")
