"""`launch` as a function: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.cli import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Launch = Callable[..., Done]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with a state folder and settings of its own."""
    for variable in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("LAUNCH_LEDGER", raising=False)
    monkeypatch.setenv("LAUNCH_CATALOGS", str(tmp_path / "catalogs"))  # not those of whoever runs the tests
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("launcher.wiring.Wiring.has_skypilot", False)  # nor does a test reach a cloud of theirs
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def launch(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Launch:
    def call(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["launch", *arguments])
        capfd.readouterr()
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
        out, err = capfd.readouterr()
        return Done(code=int(code or 0) if isinstance(code, int | None) else 1, out=out, err=err)

    return call
