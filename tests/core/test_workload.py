"""Step times: which source counts, and how far it is believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.adapters.snapshot_prices import load_catalog
from launcher.core.estimates.workload import Correction, History, StepTime, corrected, step_time
from launcher.core.spec import Workload
from launcher.core.unknown import Unknown

EIGHT_EACH = {"H100": 8, "A100-80GB": 8}


def a_history(gpu: str, num_gpus: int, *step_seconds: float) -> History:
    return History(gpu=gpu, num_gpus=num_gpus, step_seconds=step_seconds)


def on(
    gpu: str,
    *,
    gpus: dict[str, int] | None = None,
    nodes: int = 1,
    history: Sequence[History] = (),
    **workload: Any,
) -> StepTime:
    spec = Workload(steps=1000, **workload)
    found = step_time(gpu, workload=spec, gpus=gpus or EIGHT_EACH, nodes=nodes, history=history, catalog=load_catalog())
    assert isinstance(found, StepTime), found
    return found


def test_earlier_runs_on_the_placement_come_before_what_was_declared() -> None:
    found = on("H100", history=[a_history("H100", 8, 1.9, 2.0, 2.1)], step_seconds={"H100": 9.0})

    assert found.seconds == 2.0
    assert found.source == "3 earlier runs on 8×H100"


def test_a_declared_time_comes_before_earlier_runs_elsewhere() -> None:
    found = on("H100", history=[a_history("H100", 16, 1.0), a_history("A100", 8, 1.0)], step_seconds={"H100": 3.0})

    assert (found.seconds, found.factor80) == (3.0, 1.05)
    assert found.source == "declared: workload.step_seconds, 8×H100"


def test_a_type_is_recognised_by_its_aliases() -> None:
    found = on("H100", gpus={"h100-sxm": 8}, step_seconds={"NVIDIA H100": 3.0})

    assert found.seconds == 3.0


def test_equal_runs_still_differ_by_the_machine() -> None:
    found = on("H100", history=[a_history("H100", 8, *[2.0] * 20)])

    assert found.factor80 == 1.03


def test_one_run_says_nothing_of_its_spread_but_machines_differ_by_four_percent() -> None:
    found = on("H100", history=[a_history("H100", 8, 2.0)])

    assert found.factor80 == pytest.approx(math.exp(1.282 * 0.04))


def test_runs_that_spread_widen_the_interval() -> None:
    # log(1.1) apart on either side of 2: s = log 1.1, three runs: t = 1.886, √(1 + 1/3)
    found = on("H100", history=[a_history("H100", 8, 2.0 / 1.1, 2.0, 2.2)])

    assert found.factor80 == pytest.approx(math.exp(1.886 * math.log(1.1) * math.sqrt(4 / 3)))


def test_the_interval_of_earlier_runs_covers_eighty_percent_of_the_next_ones() -> None:
    random, hits, trials = Random(7), 0, 2000

    for _ in range(trials):
        *past, following = (random.lognormvariate(0.7, 0.15) for _ in range(5))
        found = on("H100", history=[a_history("H100", 8, *past)])
        hits += found.seconds / found.factor80 <= following <= found.seconds * found.factor80

    assert 0.77 <= hits / trials <= 0.83


def test_another_type_is_scaled_by_the_measured_ratio() -> None:
    found = on("H100", step_seconds={"A100-80GB": 1.932})

    assert found.seconds == pytest.approx(1.0)  # the median of the benchmark's seven ratios is 1.932
    assert found.factor80 == 1.30
    assert "declared: workload.step_seconds, 8×A100-80GB" in found.source
    assert "measured on 7 workloads" in found.source


def test_earlier_runs_of_another_type_are_scaled_too() -> None:
    found = on("A100-80GB", history=[a_history("H100", 8, 1.0, 1.0)])

    assert found.seconds == pytest.approx(1.932)
    assert found.source.startswith("2 earlier runs on 8×H100; one A100-80GB = 0.52 × H100")


def test_the_peak_rate_is_never_what_scales() -> None:
    found = on("H100", step_seconds={"A100-80GB": 1.0})

    assert 1 / found.seconds < 2.1  # peak bf16 rates differ by 3.17


def test_a_type_outside_the_benchmark_is_scaled_by_memory_bandwidth() -> None:
    found = on("H200", gpus={"H200": 8, "H100": 8}, step_seconds={"H100": 4.8})

    assert found.seconds == pytest.approx(3.35)
    assert found.factor80 == 1.45
    assert "memory bandwidth" in found.source


def test_a_measured_ratio_comes_before_a_bandwidth_ratio_that_is_closer() -> None:
    declared = {"A100-80GB": 1.0, "H200": 1.0}

    found = on("H100", gpus=EIGHT_EACH | {"H200": 8}, step_seconds=declared)

    assert "measured" in found.source
    assert found.factor80 == 1.30


def test_of_two_measured_types_the_one_closer_in_speed_counts() -> None:
    found = on("H100", gpus=EIGHT_EACH | {"V100": 8}, step_seconds={"V100": 50.0, "A100-80GB": 1.932})

    assert found.seconds == pytest.approx(1.0)


def test_the_number_of_gpus_is_scaled_linearly_and_said_so() -> None:
    found = on("H100", gpus={"H100": 4, "A100-80GB": 8}, nodes=2, step_seconds={"A100-80GB": 1.932})

    assert found.seconds == pytest.approx(2.0)
    assert found.source.endswith("linear in the number of GPUs (16 → 8)")


def test_earlier_runs_on_more_gpus_of_the_type_are_scaled_with_the_wider_interval() -> None:
    found = on("H100", history=[a_history("H100", 16, 1.0, 1.0)])

    assert (found.seconds, found.factor80) == (2.0, 1.30)


def test_runs_that_spread_widely_are_not_believed_more_once_scaled() -> None:
    found = on("H100", history=[a_history("H100", 16, 1.0, 2.0)])

    assert found.factor80 > 1.30


def test_a_declared_type_that_gpus_does_not_ask_for_has_as_many_gpus() -> None:
    found = on("H100", gpus={"H100": 8}, nodes=2, step_seconds={"A100-80GB": 1.932})

    assert found.seconds == pytest.approx(1.0)


def test_without_any_measured_time_the_flops_of_the_model_count_with_a_factor_of_three() -> None:
    model = {"params": 8e9, "tokens_per_step": 1e6, "mfu": 0.4}

    found = on("H100", nodes=2, model=model)

    assert found.seconds == pytest.approx(6 * 8e9 * 1e6 / (989e12 * 16 * 0.4))
    assert found.factor80 == 3.0
    assert "not measured" in found.source


def test_a_type_without_bf16_is_rated_in_fp16() -> None:
    found = on("T4", gpus={"T4": 1}, model={"params": 1e8, "tokens_per_step": 1e5, "mfu": 0.5})

    assert found.seconds == pytest.approx(6 * 1e8 * 1e5 / (65e12 * 0.5))


def test_flops_are_not_used_where_any_time_was_measured() -> None:
    found = on("H200", gpus={"H200": 8}, step_seconds={"H100": 1.0}, model={"params": 1e9, "tokens_per_step": 1e6})

    assert found.factor80 == 1.45


@pytest.mark.parametrize(
    ("gpu", "workload", "reason"),
    [
        ("H100", {}, "unknown: give one number (workload.step_seconds) or run a probe"),
        ("CPU", {"step_seconds": {"H100": 1.0}}, "unknown: give one number (workload.step_seconds) or run a probe"),
        (
            "CPU",
            {"model": {"params": 1e9, "tokens_per_step": 1e6}},
            "unknown: no bf16 or fp16 rate of CPU is known; give one number (workload.step_seconds)",
        ),
        ("L4", {"step_seconds": {"H100": 1.0}}, "gpus does not say how many L4 a node has"),
    ],
)
def test_what_nobody_knows_is_a_reason_not_a_number(gpu: str, workload: dict[str, Any], reason: str) -> None:
    spec = Workload(steps=1, **workload)

    found = step_time(gpu, workload=spec, gpus={"H100": 8, "CPU": 1}, nodes=1, history=[], catalog=load_catalog())

    assert found == Unknown(reason)


def test_history_without_samples_is_no_history() -> None:
    found = on("H100", history=[a_history("H100", 8)], step_seconds={"H100": 3.0})

    assert found.seconds == 3.0


@given(st.floats(0.01, 1000), st.sampled_from(["A100-80GB", "A100-40GB", "B200", "V100-16GB", "GH200"]))
def test_scaling_there_and_back_is_exact(seconds: float, other: str) -> None:
    gpus = {"H100": 8, other: 8}

    there = on(other, gpus=gpus, step_seconds={"H100": seconds}).seconds
    back = on("H100", gpus=gpus, step_seconds={other: there}).seconds

    # seven workloads have one in the middle, so the median of the reciprocals is the reciprocal of the median
    assert back == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        ({"history": [a_history("H100", 8, 2.0)]}, "history"),
        ({"step_seconds": {"H100": 2.0}}, "declared"),
        ({"step_seconds": {"A100-80GB": 2.0}}, "catalogue"),
        ({"step_seconds": {"T4": 2.0}}, "bandwidth"),
        ({"model": {"params": 7e9, "tokens_per_step": 1e6}}, "flops"),
    ],
)
def test_a_machine_reads_where_the_step_time_comes_from(known: dict[str, Any], kind: str) -> None:
    assert on("H100", **known).kind == kind


def test_a_correction_moves_both_numbers_and_names_itself() -> None:
    step = on("H100", step_seconds={"H100": 2.0})

    found = corrected(step, Correction(shift=1.06, width=3.0, num_runs=7, team="nlp"))

    assert found.seconds == pytest.approx(2.12)
    assert found.factor80 == pytest.approx(1.05**3)
    assert found.source == f"{step.source}; recalibrated by 7 runs of team nlp: +6.0 %, range × 3.0"


def test_no_correction_leaves_the_step_time_alone() -> None:
    step = on("H100", step_seconds={"H100": 2.0})

    assert corrected(step, None) is step


def test_no_number_of_runs_makes_a_range_narrower_than_machines_differ() -> None:
    found = corrected(on("H100", step_seconds={"H100": 2.0}), Correction(shift=1.0, width=0.1, num_runs=90, team=None))

    assert found.factor80 == 1.03
    assert found.correction is not None
    assert 1.05**found.correction.width == pytest.approx(1.03)  # what is said is what was done
