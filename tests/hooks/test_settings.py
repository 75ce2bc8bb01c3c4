"""What a session works with, from a launcher, from variables set by hand, from its arguments, or from nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_hooks.protocol import Best, Committed, Contract, ProtocolError, decode, encode
from trainer_hooks.schedule import Stakes
from trainer_hooks.settings import Settings, resolve

NOW = datetime(2026, 11, 21, 4, tzinfo=UTC)
LAUNCHED = Contract(run_id="demo-1", attempt=3, run_uri="s3://bucket/demo-1")


def settings(environ: dict[str, str] | None = None, **arguments: Any) -> Settings:
    return resolve(environ or {}, **{"run_uri": None, "every": None, "keep": None} | arguments)


def test_without_anybody_saying_anything_there_are_defaults() -> None:
    found = settings()

    assert (found.every, found.keep, found.keep_every_steps, found.keep_best) == ("auto", 2, None, None)
    assert (found.snapshot, found.audit, found.local, found.attempt) == ("overlap", False, None, None)


def test_a_launcher_from_before_a_setting_leaves_it_at_its_default() -> None:
    old = {"LAUNCH_PROTOCOL": "1", "LAUNCH_RUN_ID": "demo-1", "LAUNCH_ATTEMPT": "3", "LAUNCH_RUN_URI": "s3://b/demo-1"}

    found = settings(old)

    assert (found.run_id, found.attempt, found.run_uri) == ("demo-1", 3, "s3://b/demo-1")
    assert (found.every, found.keep, found.snapshot, found.audit, found.local) == ("auto", 2, "overlap", False, None)


def test_every_setting_passes_from_the_launcher_to_the_session() -> None:
    contract = replace(
        LAUNCHED,
        checkpoint_every_steps=50,
        checkpoint_keep=3,
        checkpoint_keep_every_steps=1000,
        checkpoint_keep_best=Best(metric="val/loss", mode="max", count=2),
        checkpoint_snapshot="lazy",
        checkpoint_audit=True,
        checkpoint_local="/mnt/nvme",
    )

    found = settings(contract.to_environment())

    assert (found.every, found.keep, found.keep_every_steps) == (50, 3, 1000)
    assert found.keep_best == Best(metric="val/loss", mode="max", count=2)
    assert (found.snapshot, found.audit) == ("lazy", True)
    assert found.local is not None
    assert found.local.startswith("/mnt/nvme/demo-1-")


def test_a_contract_survives_the_environment() -> None:
    contract = replace(LAUNCHED, checkpoint_keep_best=Best(metric="loss"), checkpoint_local="/mnt/nvme")

    assert Contract.from_environment(contract.to_environment()) == contract


def test_what_an_interruption_costs_and_how_often_it_comes_reaches_the_schedule() -> None:
    contract = replace(
        LAUNCHED,
        price_usd_per_hour=Decimal(180),
        interruptions_per_hour=0.25,
        checkpoint_max_loss_usd=Decimal("7.50"),
    )

    found = settings(contract.to_environment()).stakes

    assert Contract.from_environment(contract.to_environment()) == contract
    assert found == Stakes(seconds_between_interruptions=4 * 3600.0, max_loss_seconds=150.0)


def test_without_a_word_of_interruptions_there_are_three_hours_between_them_and_no_limit() -> None:
    for environ in ({}, replace(LAUNCHED, price_usd_per_hour=Decimal(9)).to_environment()):
        assert settings(environ).stakes == Stakes(seconds_between_interruptions=3 * 3600.0, max_loss_seconds=math.inf)


def test_a_machine_that_never_fails_or_costs_nothing_has_no_limits() -> None:
    free = replace(
        LAUNCHED,
        price_usd_per_hour=Decimal(0),
        interruptions_per_hour=0.0,
        checkpoint_max_loss_usd=Decimal(1),
    )

    found = settings(free.to_environment()).stakes

    assert found == Stakes(seconds_between_interruptions=math.inf, max_loss_seconds=math.inf)


def test_a_limit_of_money_without_a_price_is_not_silently_ignored() -> None:
    with pytest.raises(ProtocolError, match="MAX_LOSS_USD is 15, but only a launcher says what an hour costs"):
        settings({"LAUNCH_CHECKPOINT_MAX_LOSS_USD": "15"})


@pytest.mark.parametrize("rate", ["-0.1", "nan", "inf", "often"])
def test_a_malformed_rate_of_interruptions_is_named(rate: str) -> None:
    with pytest.raises(ProtocolError, match="LAUNCH_INTERRUPTIONS_PER_HOUR"):
        settings(LAUNCHED.to_environment() | {"LAUNCH_INTERRUPTIONS_PER_HOUR": rate})


def test_the_variables_work_by_hand_without_a_launcher() -> None:
    found = settings(
        {
            "LAUNCH_CHECKPOINT_EVERY_STEPS": "7",
            "LAUNCH_CHECKPOINT_KEEP": "4",
            "LAUNCH_CHECKPOINT_KEEP_BEST": "accuracy:max",
            "LAUNCH_CHECKPOINT_SNAPSHOT": "blocking",
            "LAUNCH_CHECKPOINT_AUDIT": "true",
        }
    )

    assert (found.every, found.keep, found.snapshot, found.audit) == (7, 4, "blocking", True)
    assert found.keep_best == Best(metric="accuracy", mode="max", count=1)
    assert found.attempt is None


def test_what_the_script_says_holds_over_the_environment() -> None:
    environ = {"LAUNCH_CHECKPOINT_EVERY_STEPS": "7", "LAUNCH_CHECKPOINT_KEEP": "4"}

    found = settings(environ, every=9, keep=5)

    assert (found.every, found.keep) == (9, 5)


def test_but_where_the_run_lies_is_the_launchers_word() -> None:
    assert settings(LAUNCHED.to_environment(), run_uri="./mine").run_uri == "s3://bucket/demo-1"
    assert settings(run_uri="./mine").run_uri == "./mine"


def test_two_runs_of_one_name_do_not_share_a_folder_on_the_local_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ, found = {"LAUNCH_CHECKPOINT_LOCAL": "/mnt/nvme"}, []

    for project in ("one", "two", "one"):
        (tmp_path / project).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / project)
        found.append(settings(environ).local)

    assert found[0] == found[2] != found[1]
    assert settings(environ, run_uri="s3://b/run/").local == settings(environ, run_uri="s3://b/run").local


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SNAPSHOT", "sometimes"),
        ("AUDIT", "perhaps"),
        ("LOCAL", "nvme/here"),
        ("LOCAL", ""),
        ("KEEP", "many"),
        ("KEEP_EVERY_STEPS", "0"),
        ("KEEP_BEST", ""),
        ("KEEP_BEST", ":max"),
        ("KEEP_BEST", "loss:lowest"),
        ("KEEP_BEST", "loss:min:0"),
        ("EVERY_STEPS", "often"),
        ("MAX_LOSS_USD", "0"),
        ("MAX_LOSS_USD", "-3"),
        ("MAX_LOSS_USD", "NaN"),
        ("MAX_LOSS_USD", "little"),
    ],
)
def test_a_malformed_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(ProtocolError, match=f"LAUNCH_CHECKPOINT_{name}"):
        settings({f"LAUNCH_CHECKPOINT_{name}": value})


@pytest.mark.parametrize(
    ("environ", "arguments"),
    [({"LAUNCH_CHECKPOINT_KEEP": "1"}, {}), ({}, {"keep": 1}), ({"LAUNCH_CHECKPOINT_EVERY_STEPS": "0"}, {})],
)
def test_one_checkpoint_or_no_interval_is_refused(environ: dict[str, str], arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give"):
        settings(environ, **arguments)


@given(
    metric=st.text(st.characters(codec="utf-8", exclude_characters=":\n"), min_size=1),
    mode=st.sampled_from(["min", "max"]),
    count=st.integers(1, 999_999),
)
def test_the_best_to_keep_is_read_as_it_was_written(metric: str, mode: Any, count: int) -> None:
    best = Best(metric=metric, mode=mode, count=count)

    assert Best.parse(str(best)) == best


def test_a_commit_says_all_that_it_cost() -> None:
    record = Committed(
        step=160,
        name="step-160-a2",
        bytes=1000,
        seconds=0.001,
        lost_seconds=0.01,
        durable_seconds=0.3,
        written_bytes=10,
        stored_bytes=3000,
        kept=3,
        local_only=True,
    )

    assert decode(encode(record, at=NOW)) == (NOW, record)


def test_the_line_of_a_commit_is_readable_for_ever() -> None:
    line = (
        '{"v":1,"at":"2026-11-21T04:00:00+00:00","kind":"committed","step":160,"name":"step-160-a2","bytes":1000,'
        '"seconds":0.001,"lost_seconds":0.01,"durable_seconds":0.3,"written_bytes":10,"stored_bytes":3000,"kept":3,'
        '"local_only":true}'
    )

    decoded = decode(line)

    assert decoded is not None
    assert isinstance(decoded[1], Committed)
    assert (decoded[1].lost_seconds, decoded[1].durable_seconds, decoded[1].written_bytes) == (0.01, 0.3, 10)
    assert (decoded[1].stored_bytes, decoded[1].kept, decoded[1].local_only) == (3000, 3, True)
    assert encode(decoded[1], at=decoded[0]) == line


def test_what_a_commit_does_not_know_is_not_in_its_line() -> None:
    line = json.loads(encode(Committed(step=1, name="step-1-a1", bytes=1, seconds=0.1), at=NOW))

    assert set(line) == {"v", "at", "kind", "step", "name", "bytes", "seconds"}


def test_a_commit_of_nothing_new_is_not_a_commit_of_unknown_size() -> None:
    line = encode(Committed(step=1, name="step-1-a1", bytes=1, seconds=0.1, written_bytes=0, lost_seconds=0.0), at=NOW)

    decoded = decode(line)

    assert decoded is not None
    assert isinstance(decoded[1], Committed)
    assert (decoded[1].written_bytes, decoded[1].lost_seconds, decoded[1].stored_bytes) == (0, 0.0, None)
