"""What all labs have in common: a folder of their own, their life as a block of code, and commands that run inside."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Lab(ABC):
    """The lab of one folder. `up` twice is harmless, `down` cleans up after a killed `up`, labs do not meet."""

    def __init__(self, folder: Path, *, marker: str) -> None:
        self.folder = folder.resolve()
        self._marker = self.folder / marker  # only a folder that bears it is ever deleted
        self._seed = zlib.crc32(str(self.folder).encode())
        self.user_id = f"{self._seed:08x}"  # SkyPilot's; the end of the names that it gives

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.down()

    @abstractmethod
    def up(self) -> None:
        """Raises: RuntimeError: the machine cannot (the reason), or the folder is somebody else's."""

    @abstractmethod
    def down(self) -> None:
        """Kill everything inside, and remove the folder."""

    @abstractmethod
    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of a user inside, with `extra`."""

    @abstractmethod
    def command(self, *argv: str, cwd: Path | None = None) -> list[str]:
        """What runs `argv` inside. Each lab says which signals reach `argv`."""

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` inside, with its `options` and those of `command`; captures text unless told otherwise."""
        command = self.command(*argv, **_where(options))
        if not {"stdout", "stderr", "capture_output"} & set(options):
            options["capture_output"] = True
        return subprocess.run(command, check=check, env=self.environment(env), text=True, **options)

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """`subprocess.Popen` inside, of text, with its `options` and those of `command`."""
        command = self.command(*argv, **_where(options))
        return subprocess.Popen(command, env=self.environment(env), text=True, **options)

    def _check_folder(self) -> None:
        """Raises: RuntimeError: it is somebody else's."""
        if self.folder.exists() and any(self.folder.iterdir()) and not self._marker.exists():
            raise RuntimeError(f"{self.folder} is neither empty nor a lab; give another folder")

    def _remove_folder(self) -> None:
        if self._marker.exists():
            shutil.rmtree(self.folder)


def _where(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `command`, taken out of `options`."""
    return {name: options.pop(name) for name in ("host", "cwd") if name in options}
