"""GPU types: names and measured ratios."""

from __future__ import annotations

import pytest

from launcher.core.gpus import Gpu, GpuCatalog, Ratio

ROWS = {
    "old": {"bert": 10.0, "resnet": 100.0, "gnmt": 1.0},
    "new": {"bert": 20.0, "resnet": 150.0, "gnmt": 4.0},
    "odd": {"llama": 7.0},
}


def a_catalog() -> GpuCatalog:
    return GpuCatalog(
        gpus=(
            Gpu(name="A100-80GB", aliases=("A100-SXM4-80GB",), relative_throughput="old", bandwidth_gb_per_second=2000),
            Gpu(name="H100", aliases=("H100-SXM",), relative_throughput="new", bandwidth_gb_per_second=3000),
            Gpu(name="H200", bandwidth_gb_per_second=4800),
            Gpu(name="T4", fp16_dense_tflops=65),
            Gpu(name="X1", relative_throughput="odd"),
        ),
        throughput=ROWS,
    )


@pytest.mark.parametrize("name", ["H100", "h100", "h100_sxm", "H100 SXM", "NVIDIA H100-SXM", " h-100 "])
def test_a_type_is_known_by_every_spelling_of_its_names(name: str) -> None:
    assert a_catalog().canonical(name) == "H100"


@pytest.mark.parametrize("name", ["", "nvidia", "H1000", "SXM"])
def test_a_name_that_is_not_a_type_is_not_guessed(name: str) -> None:
    assert a_catalog().canonical(name) is None


def test_a_misspelt_name_brings_up_the_types_that_look_like_it() -> None:
    catalog = a_catalog()

    assert catalog.nearest("H10O")[0] == "H100"
    assert "A100-80GB" in catalog.nearest("A100-80")
    assert catalog.nearest("sofa") == ()


def test_the_ratio_is_the_median_over_workloads_and_names_its_source() -> None:
    ratio = a_catalog().ratio("A100-SXM4-80GB", "h100")  # 2.0, 1.5, 4.0

    assert ratio == Ratio(2.0, "measured on 3 workloads, lambda.ai/gpu-benchmarks")


@pytest.mark.parametrize(("from_", "to"), [("H100", "H200"), ("H200", "H100"), ("H100", "B999"), ("H100", "X1")])
def test_what_was_never_measured_together_has_no_ratio(from_: str, to: str) -> None:
    assert a_catalog().ratio(from_, to) is None


def test_the_bandwidth_ratio_needs_both_bandwidths() -> None:
    catalog = a_catalog()

    ratio = catalog.bandwidth_ratio("H100", "H200")

    assert ratio is not None
    assert ratio.value == pytest.approx(1.6)
    assert catalog.bandwidth_ratio("H100", "T4") is None
    assert catalog.bandwidth_ratio("B999", "H100") is None


def test_a_type_without_bf16_trains_in_fp16() -> None:
    assert Gpu(name="T4", fp16_dense_tflops=65).tensor_tflops == 65
    assert Gpu(name="CPU").tensor_tflops is None


def test_two_types_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="h-100 names both H100 and H101"):
        GpuCatalog(gpus=(Gpu(name="H100"), Gpu(name="H101", aliases=("h-100",))), throughput={})


def test_a_type_cannot_point_at_a_benchmark_row_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no row 'new'"):
        GpuCatalog(gpus=(Gpu(name="H100", relative_throughput="new"),), throughput={})
