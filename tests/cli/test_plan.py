"""From a file to an agreed amount, or to a clear no."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Launch

REPOSITORY = Path(__file__).parents[2]
H100 = str(REPOSITORY / "configs" / "single-h100-spot.yaml")

OWN = """\
own: [{name: box, gpu: CPU, gpus: 1, usd_per_hour: 3600}]
currencies: {EUR: {usd_per_unit: 1.25, as_of: 2026-11-01}}
"""
TRAIN = """\
name: digits
run: echo trained
gpus: {CPU: 1}
providers: [local]
workload: {steps: 3, step_seconds: {CPU: 0.1}, setup_seconds: 0.1}
checkpoint: {save_seconds: 0.1}
"""


@pytest.fixture
def own(folder: Path) -> Path:
    """A train.yaml for this machine at a dollar a second."""
    (folder / "pricing.yaml").write_text(OWN)
    (folder / "train.yaml").write_text(TRAIN)
    return folder


def test_a_dry_run_gives_a_plan_of_real_offers_as_json(launch: Launch) -> None:
    done = launch(H100, "--dry-run", "-o", "json")

    plan = json.loads(done.out)
    assert done.code == 0
    assert plan["schema"] == "launch/plan/v1"
    assert len(plan["ranked"]) + plan["num_dearer"] >= 20
    assert len({entry["placement"]["provider"] for entry in plan["ranked"]}) >= 5
    best = plan["ranked"][0]
    assert set(best["placement"]) >= {"provider", "region", "zone", "instance_type", "gpu", "count", "capacity"}
    assert set(best["cost_usd"]) == set(best["hours"]) == {"p10", "p50", "p90"}
    assert sum(round(100 * float(usd)) for usd in best["parts"].values()) == round(100 * float(best["cost_usd"]["p50"]))
    assert all(entry["reason"] for entry in plan["refused"])
    assert float(best["naive_usd"]) < float(best["cost_usd"]["p50"]) < float(best["high_usd"])
    assert best["restart_hours"] > 0
    assert plan["certainty"]["placement"]["capacity"] == "on_demand"
    assert (plan["priority"], plan["wait_price"], plan["cap_usd"]) == ("normal", 0.0, None)
    assert {a["name"] for a in best["assumptions"]} >= {"step time", "price", "set-up", "save", "preemptions"}


def test_a_plan_leaves_nothing_behind(launch: Launch, folder: Path) -> None:
    launch(H100, "--dry-run")

    assert list(folder.parent.rglob("ledger.db*")) == []
    assert list(folder.iterdir()) == []


def test_the_sentence_says_money_and_time(launch: Launch) -> None:
    done = launch("plan", H100)

    assert re.search(r"This will cost approximately \$[\d,.]+ and take [\d.]+ (hours|minutes)\.", done.out)
    assert "80 % range" in done.out
    assert "Where it goes" in done.out
    assert "Ladder  spot" in done.out


def test_all_shows_every_refusal_with_its_reason(launch: Launch) -> None:
    done = launch("plan", H100, "--all")

    assert "assumed: AWS V100 traces" in done.out
    assert "has 1 GPUs a node; gpus asks for 8" in done.out


def test_money_can_be_shown_in_another_currency_at_its_dated_rate(launch: Launch, own: Path) -> None:
    done = launch("plan", "train.yaml", "--currency", "EUR")

    assert "€2,880.00" in done.out
    assert "EUR at $1.25 of 2026-11-01" in done.out
    assert launch("plan", "train.yaml", "--currency", "CHF").code == 2


def test_nobody_to_ask_means_no_and_names_the_flag(launch: Launch, own: Path) -> None:
    done = launch("train.yaml")

    assert done.code == 3
    assert re.search(r"--approve \d+ agrees", done.err)
    assert launch("status").out.startswith("no runs yet")


def test_an_approved_amount_below_the_high_end_is_refused(launch: Launch, own: Path) -> None:
    done = launch("train.yaml", "--approve", "1")

    assert done.code == 5
    assert "above the $1.00 approved" in done.err


def test_yes_serves_only_small_amounts(launch: Launch, own: Path) -> None:
    done = launch("train.yaml", "--yes")

    assert done.code == 3
    assert "--yes serves below $25.00" in done.err


def test_a_plan_that_names_a_cloud_is_not_sold_as_runnable_without_skypilot(launch: Launch) -> None:
    done = launch(H100, "--approve", "10000")

    assert done.code == 7
    assert 'pip install "spotlaunch[sky]"' in done.err
    assert "--simulate" in done.err


def test_a_cloud_machine_is_not_rented_for_a_folder_that_it_cannot_reach(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.wiring.Wiring.has_skypilot", True)
    monkeypatch.setattr("launcher.wiring.Wiring.check_clouds", lambda _: pytest.fail("somebody's clouds are asked"))

    done = launch(H100, "--approve", "10000")

    assert done.code == 2
    assert "cannot reach run folders on this computer's disk" in done.err
    assert "checkpoint: {uri: s3://bucket/folder}" in done.err


def test_nothing_feasible_says_why(launch: Launch, own: Path) -> None:
    (own / "train.yaml").write_text(TRAIN + "cost: {cap: 0.01 USD}\n")

    done = launch("plan", "train.yaml")

    assert done.code == 7
    assert "cost.cap is $0.01" in done.err


def test_bad_input_is_listed_whole_with_lines_and_the_exit_code(launch: Launch, own: Path) -> None:
    (own / "train.yaml").write_text(TRAIN.replace("steps: 3", "stepss: 3").replace("CPU: 1", "CPU: -1"))

    done = launch("plan", "train.yaml")

    assert done.code == 2
    assert "train.yaml:3" in done.err
    assert "write steps" in done.err
    assert done.err.rstrip().endswith("exit 2")
    assert "Traceback" not in done.err


def test_a_wrong_pricing_file_is_an_input_error_too(launch: Launch, own: Path) -> None:
    (own / "pricing.yaml").write_text("own: [{nam: x}]\n")

    done = launch("plan", "train.yaml")

    assert done.code == 2
    assert "pricing.yaml:1" in done.err


def test_a_saved_plan_is_applied_while_its_price_holds(launch: Launch, own: Path) -> None:
    assert launch("plan", "train.yaml", "--out", "p.json").code == 0
    (own / "pricing.yaml").write_text(OWN.replace("3600", "3700"))
    assert launch("apply", "p.json").code == 3  # asks, since 3 % is no drift

    (own / "pricing.yaml").write_text(OWN.replace("3600", "3900"))
    moved = launch("apply", "p.json", "--approve", "10000")
    (own / "pricing.yaml").write_text(OWN.replace("name: box", "name: other"))
    gone = launch("apply", "p.json", "--approve", "10000")

    assert (moved.code, gone.code) == (8, 8)
    assert "+8%" in moved.err
    assert "nobody offers it any more" in gone.err


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\x00", '{"spec": 3}'])
def test_what_is_no_saved_plan_is_not_applied(launch: Launch, folder: Path, content: str) -> None:
    (folder / "p.json").write_text(content)

    done = launch("apply", "p.json", "--approve", "1")

    assert done.code == 2
    assert "is not a saved plan" in done.err


def test_another_rank_can_be_picked(launch: Launch) -> None:
    assert "▸ 3" in launch("plan", H100, "--pick", "3").out
    assert launch("plan", H100, "--pick", "9999").code == 2


def test_a_folder_that_is_missing_is_found_before_the_money_is_asked_for(launch: Launch, own: Path) -> None:
    (own / "train.yaml").write_text(TRAIN + "workdir: nowhere\n")

    assert "workdir nowhere is no folder" in launch("train.yaml", "--approve", "10000").err


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 160])
def test_a_narrow_terminal_loses_columns_and_never_money(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))

    table = launch("plan", H100).out.partition("  #")[2].partition("Where it goes")[0].splitlines()[1:6]

    assert all(len(line.rstrip()) <= columns for line in table)
    assert all(re.search(r"\$\d+ +\$\d+ – \$\d+", line) for line in table), table


FAR = """\
name: digits
run: echo trained
gpus: {H100: 8}
providers: [gcp]
mode: [on_demand]
workload: {steps: 100, step_seconds: {H100: 10}}
data: {uri: "s3://b/tokens", region: aws/us-east-2, size: 5 TB}
"""


def test_much_egress_wants_a_consent_of_its_own(launch: Launch, folder: Path) -> None:
    (folder / "train.yaml").write_text(FAR)

    shown = launch("plan", "train.yaml")
    refused = launch("train.yaml", "--approve", "10000")
    too_little = launch("plan", "train.yaml", "--accept-egress", "$100")
    accepted = launch("plan", "train.yaml", "--accept-egress", "$500", "-o", "json")

    assert "Data  5 TB at aws/us-east-2, read once (declared), $441.00 a read (aws to another provider" in shown.out
    assert refused.code == 3
    assert "$441.00 of it is egress: --accept-egress 441" in refused.err
    assert launch("status").out.startswith("no runs yet")
    assert too_little.code == 7
    assert "above cost.max_egress_usd $100.00" in too_little.err
    parts = json.loads(accepted.out)["ranked"][0]["parts"]
    assert (parts["egress"], float(parts["requests"]) > 0) == ("441.00", True)


def test_a_saved_plan_takes_the_consent_when_it_is_applied(launch: Launch, folder: Path) -> None:
    (folder / "train.yaml").write_text(FAR)
    launch("plan", "train.yaml", "--out", "p.json")

    refused = launch("apply", "p.json", "--approve", "10000")
    accepted = launch("apply", "p.json", "--approve", "1", "--accept-egress", "441")

    assert "--accept-egress 441 or cost.max_egress_usd agrees" in refused.err
    assert (refused.code, accepted.code) == (3, 5)  # the amount is what is too little now
    assert "is egress" not in accepted.err


def test_an_amount_that_is_none_names_its_flag(launch: Launch, folder: Path) -> None:
    (folder / "train.yaml").write_text(FAR)

    assert "--accept-egress: 'much' is not an amount" in launch("plan", "train.yaml", "--accept-egress", "much").err
