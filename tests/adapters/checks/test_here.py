"""Settings, state folder and ledger: looked at without leaving a trace."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from launcher.adapters.checks.here import settings_checks, sql_ledger, state_folder
from launcher.adapters.settings import Layered, Settings, load_settings
from launcher.adapters.sql_ledger import SqlLedger
from launcher.core.doctor.checkup import Check
from launcher.errors import LedgerUnavailable
from tests.builders import a_submit, after
from tests.postgres import a_postgres


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_folder=tmp_path / "state", catalogs=tmp_path / "catalogs")


def with_a_run(settings: Settings) -> Path:
    """A ledger with one run in it, nobody's connection open."""
    ledger = SqlLedger(settings.ledger_url)
    ledger.append("llm-20260501-ab12", [a_submit()], after_seq=0, at=after(0))
    ledger._engine.dispose()
    return settings.state_folder / "ledger.db"


def entries(path: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT * FROM entries").fetchall()


def one(checks: list[Check]) -> Check:
    (check,) = checks
    return check


def test_it_is_said_where_a_setting_comes_from_that_is_no_default(tmp_path: Path) -> None:
    layered = load_settings({"LAUNCH_CURRENCY": "EUR", "LAUNCH_LEDGER": "postgresql://me:secret@db/x"}, folder=tmp_path)

    check = settings_checks(layered, {})[0]

    assert "currency from LAUNCH_CURRENCY" in check.found
    assert "secret" not in check.found


def test_a_variable_that_was_meant_to_be_a_setting_is_pointed_out(settings: Settings) -> None:
    layered = Layered(settings=settings, origins={})
    trainers = {"LAUNCH_RUN_ID": "r", "LAUNCH_CHECKPOINT_KEEP": "3", "LAUNCH_NOTICE": "ec2"}

    checks = settings_checks(layered, trainers | {"LAUNCH_LEDGR": "x", "LAUNCH_CURRENCY": "EUR"})

    assert [(check.state, check.fix) for check in checks] == [("ok", ""), ("warning", "write LAUNCH_LEDGER")]


def test_a_state_folder_is_tried_and_nothing_is_left_in_it(settings: Settings) -> None:
    settings.state_folder.mkdir()

    assert one(state_folder(settings)).state == "ok"
    assert list(settings.state_folder.iterdir()) == []


def test_a_state_folder_that_is_not_there_yet_is_not_made(settings: Settings) -> None:
    assert one(state_folder(settings)).state == "ok"
    assert not settings.state_folder.exists()


def test_a_state_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    check = one(state_folder(Settings(state_folder=tmp_path / "file" / "state", catalogs=tmp_path)))

    assert check.state == "failed"
    assert "state_folder" in check.fix


def test_a_ledger_is_written_and_nothing_is_left_in_it(settings: Settings) -> None:
    path = with_a_run(settings)
    before = entries(path)

    assert one(sql_ledger(settings)).found == "1 runs, readable and writable"
    assert entries(path) == before


def test_a_ledger_that_is_not_there_yet_is_not_made(settings: Settings) -> None:
    assert one(sql_ledger(settings)).state == "ok"
    assert not settings.state_folder.exists()


def test_a_ledger_that_takes_no_entry_is_found_out(settings: Settings) -> None:
    path = with_a_run(settings)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TRIGGER shut BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'shut'); END")

    check = one(sql_ledger(settings))

    assert (check.state, check.found.startswith("1 runs, cannot be written")) == ("failed", True)


def test_a_ledger_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    settings = Settings(state_folder=tmp_path, catalogs=tmp_path, ledger="sqlite:////proc/none/ledger.db")

    with pytest.raises(LedgerUnavailable):
        sql_ledger(settings)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_ledger_that_may_only_be_read_is_found_out(settings: Settings) -> None:
    with_a_run(settings).chmod(0o400)

    assert one(sql_ledger(settings)).state == "failed"


@pytest.mark.system
@pytest.mark.enable_socket
def test_a_team_ledger_that_may_only_be_read_is_found_out(tmp_path: Path) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    with a_postgres() as url:
        settings = Settings(state_folder=tmp_path, catalogs=tmp_path, ledger=url)
        ledger = SqlLedger(settings.ledger_url)
        ledger.append("llm-20260501-ab12", [a_submit()], after_seq=0, at=after(0))
        assert one(sql_ledger(settings)).found == "1 runs, readable and writable"
        assert len(ledger.run_ids()) == 1

        with ledger._engine.begin() as connection:
            connection.execute(sqlalchemy.text("ALTER DATABASE postgres SET default_transaction_read_only = on"))
        check = one(sql_ledger(settings))
        ledger._engine.dispose()

    assert (check.state, check.found.startswith("1 runs, cannot be written")) == ("failed", True)
