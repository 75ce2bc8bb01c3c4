"""What findings amount to: thresholds, exit codes, and which clouds are held against a user."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from launcher.core.doctor.checkup import (
    SPOT_QUOTAS,
    Check,
    CloudState,
    State,
    catalogue,
    clock,
    clouds,
    exit_code,
    free_space,
    skypilot_version,
    spot_quotas,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
AWS_OFF = CloudState(name="AWS", is_enabled=False, reason="AWS credentials are not set.", commands=("aws configure",))
NO_SOCAT = CloudState(name="Kubernetes", is_enabled=False, reason="`socat` is required and it is not installed.")
GCP_ON = CloudState(name="GCP", is_enabled=True)


def a_check(state: State, *, is_credentials: bool = False) -> Check:
    return Check(name="it", state=state, found="so", is_credentials=is_credentials)


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ([], 0),
        ([a_check("ok"), a_check("warning"), a_check("skipped")], 0),
        ([a_check("ok"), a_check("failed", is_credentials=True)], 4),
        ([a_check("failed", is_credentials=True), a_check("failed")], 1),
        ([a_check("failed"), a_check("warning")], 1),
    ],
)
def test_only_missing_credentials_have_an_exit_code_of_their_own(checks: list[Check], code: int) -> None:
    assert exit_code(checks) == code


@pytest.mark.parametrize(
    ("offset_seconds", "state"),
    [(0.2, "ok"), (-5.5, "ok"), (5.6, "warning"), (-60.0, "warning"), (60.6, "failed"), (-3600.0, "failed")],
)
def test_a_clock_is_judged_by_what_is_sure_of_its_error(offset_seconds: float, state: State) -> None:
    check = clock(offset_seconds, within_seconds=0.5, server="bucket")

    assert check.state == state
    assert bool(check.fix) == (state != "ok")
    assert ("ahead of" in check.found) == (offset_seconds > 0)


def test_a_slow_line_makes_no_wrong_clock() -> None:
    assert clock(9.0, within_seconds=4.5, server="bucket").state == "ok"


def test_little_space_is_a_warning_only_where_checkpoints_go_there() -> None:
    assert free_space("/s", 3_000_000_000, holds_runs=True).state == "warning"
    assert free_space("/s", 3_000_000_000, holds_runs=False).state == "ok"
    assert free_space("/s", 1_000_000, holds_runs=False).state == "failed"


def test_old_prices_are_said_with_their_age_and_how_to_renew_them() -> None:
    old = catalogue("aws", NOW - timedelta(hours=80), now=NOW)

    assert (old.state, old.found) == ("warning", "catalogue of 2026-11-18 04:00 UTC, 80 h old")
    assert "launch offers --refresh" in old.fix
    assert catalogue("aws", NOW - timedelta(hours=7), now=NOW).state == "ok"
    assert catalogue("aws", None, now=NOW).state == "warning"


@pytest.mark.parametrize(
    ("version", "state"),
    [("0.14.1", "ok"), ("0.14.3", "ok"), ("0.14.0", "failed"), ("0.13.9", "failed"), ("0.15.0", "warning")],
)
def test_a_skypilot_older_than_what_is_known_is_refused_and_a_newer_one_is_doubted(version: str, state: State) -> None:
    assert skypilot_version(version).state == state


def test_a_cloud_that_the_user_names_must_work_and_the_others_need_not() -> None:
    found = by_name(clouds([AWS_OFF, GCP_ON, NO_SOCAT], wanted={"aws"}))

    assert {name: check.state for name, check in found.items()} == {
        "aws": "failed",
        "gcp": "ok",
        "other clouds": "skipped",
    }
    assert found["aws"].fix == "aws configure"
    assert found["aws"].is_credentials


def test_what_is_missing_beside_credentials_is_not_called_so() -> None:
    (check,) = clouds([NO_SOCAT], wanted={"kubernetes"})

    assert (check.state, check.is_credentials) == ("failed", False)


def test_nobody_is_blamed_for_clouds_that_they_never_named_unless_there_is_none() -> None:
    (check,) = clouds([AWS_OFF, NO_SOCAT], wanted=())

    assert (check.name, check.state, check.is_credentials) == ("clouds", "failed", True)
    assert "failed" not in {each.state for each in clouds([AWS_OFF, GCP_ON], wanted=())}


def test_a_warning_of_skypilots_about_a_cloud_that_works_is_passed_on() -> None:
    (check,) = clouds([CloudState(name="Slurm", is_enabled=True, warning="home is not shared")], wanted=())

    assert (check.state, check.fix) == ("warning", "home is not shared")


def test_a_quota_is_short_by_what_the_run_wants() -> None:
    vcpus = {"L-C4BD4855": 96.0, "L-7212CCBC": 0.0, "L-3819A6DF": 64.0}

    check = spot_quotas("us-east-2", vcpus, {"H100": 8})

    assert check.state == "warning"
    assert "8 H100 take 192" in check.fix
    assert "--quota-code L-C4BD4855 --desired-value 192" in check.fix
    assert check.found == "vCPUs: P5 96, P4, P3 and P2 0, G and VT 64"
    assert spot_quotas("us-east-2", vcpus, {"H100": 4}).state == "ok"
    assert spot_quotas("us-east-2", vcpus, {"L4": 8}).state == "ok"


def test_without_a_run_a_quota_is_worth_a_word_only_where_there_is_none_at_all() -> None:
    nothing = {quota.code: 0.0 for quota in SPOT_QUOTAS}

    assert spot_quotas("us-east-2", nothing, {}).state == "warning"
    assert spot_quotas("us-east-2", nothing | {"L-3819A6DF": 8.0}, {}).state == "ok"


def test_every_gpu_of_a_quota_is_one_that_offers_name() -> None:
    from launcher.adapters.snapshot_prices import load_catalog

    catalog = load_catalog()

    assert [gpu for quota in SPOT_QUOTAS for gpu in quota.vcpus_per_gpu if catalog.canonical(gpu) != gpu] == []
