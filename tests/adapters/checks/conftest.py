"""An S3 server, and programs of other systems that answer as they were recorded."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hooks.conftest import s3, s3_line, s3_server

__all__ = ["s3", "s3_line", "s3_server"]

Program = Callable[[str, str], Path]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """`program("ssh", script)` puts a shell script of that name on the PATH; returned is where its arguments go."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def make(name: str, script: str) -> Path:
        asked = folder / f"{name}.asked"
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "$@" >> "{asked}"\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return asked

    return make
