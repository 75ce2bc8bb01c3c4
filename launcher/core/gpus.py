"""GPU types: one name for each, their figures, and how fast one trains compared with another.

Speed is never scaled by peak FLOPS: on Lambda's public benchmark (14 types, 7 workloads, 1,274 pairs of types, fp16)
that is wrong by 54 % on average, memory bandwidth by 27 %, the median measured ratio of other workloads by 18 %.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median

CPU = "CPU"  # a machine without GPU
_MAKERS = (
    "nvidia",
    "amd",
    "tesla",
    "geforce",
    "instinct",
    "quadro",
)  # device names begin with them, price lists do not


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One type, figures per GPU; `None` is unknown."""

    name: str
    aliases: tuple[str, ...] = ()
    memory_gb: float | None = None
    bandwidth_gb_per_second: float | None = None
    bf16_dense_tflops: float | None = None
    fp16_dense_tflops: float | None = None
    relative_throughput: str | None = None  # its row in the benchmark
    source: str = ""

    @property
    def tensor_tflops(self) -> float | None:
        """Dense, in the 16-bit format that one trains in on this type: bf16, or fp16 before Ampere."""
        return self.bf16_dense_tflops or self.fp16_dense_tflops


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast one GPU of the second type is."""

    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class GpuCatalog:
    """All known types. `throughput`: benchmark row → workload → training throughput, in one unit per workload."""

    gpus: tuple[Gpu, ...]
    throughput: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        """Raises: ValueError: two types share a name, or a type points at a benchmark row that is not there."""
        owners: dict[str, str] = {}
        for gpu in self.gpus:
            if gpu.relative_throughput is not None and gpu.relative_throughput not in self.throughput:
                raise ValueError(f"{gpu.name}: no row {gpu.relative_throughput!r} in the benchmark")
            for spelling in (gpu.name, *gpu.aliases):
                owner = owners.setdefault(_bare(spelling), gpu.name)
                if owner != gpu.name:
                    raise ValueError(f"{spelling} names both {owner} and {gpu.name}")

    def canonical(self, name: str) -> str | None:
        """The one name of the type that `name` means; case, spaces, dashes and the maker's name do not matter."""
        return self._names.get(_bare(name))

    def nearest(self, name: str) -> tuple[str, ...]:
        """Up to three known types whose name or alias looks like `name`, best first."""
        close = difflib.get_close_matches(_bare(name), self._names, n=6, cutoff=0.5)
        return tuple(dict.fromkeys(self._names[spelling] for spelling in close))[:3]

    def gpu(self, name: str) -> Gpu | None:
        """The type that `name` means."""
        canonical = self.canonical(name)
        return None if canonical is None else self._by_name[canonical]

    def ratio(self, from_: str, to: str) -> Ratio | None:
        """Measured training speed of one `to` against one `from_`: the median over workloads; `None`: not measured.

        Source: Lambda's public GPU benchmark. In 80 % of cases a workload is within a factor 1.30 of it.
        """
        rows = [self._measured(name) for name in (from_, to)]
        if rows[0] is None or rows[1] is None:
            return None
        shared = sorted(rows[0].keys() & rows[1].keys())
        if not shared:
            return None
        value = median(rows[1][workload] / rows[0][workload] for workload in shared)
        return Ratio(value, f"measured on {len(shared)} workloads, lambda.ai/gpu-benchmarks")

    def bandwidth_ratio(self, from_: str, to: str) -> Ratio | None:
        """Memory bandwidth of one `to` against one `from_`; `None`: not known.

        In 80 % of cases training speed is within a factor 1.45 of it.
        """
        first, second = self.gpu(from_), self.gpu(to)
        if first is None or second is None:
            return None
        if not first.bandwidth_gb_per_second or not second.bandwidth_gb_per_second:
            return None
        value = second.bandwidth_gb_per_second / first.bandwidth_gb_per_second
        return Ratio(value, "memory bandwidth, no benchmark has both types")

    def _measured(self, name: str) -> Mapping[str, float] | None:
        gpu = self.gpu(name)
        if gpu is None or gpu.relative_throughput is None:
            return None
        return self.throughput[gpu.relative_throughput]

    @cached_property
    def _by_name(self) -> dict[str, Gpu]:
        return {gpu.name: gpu for gpu in self.gpus}

    @cached_property
    def _names(self) -> dict[str, str]:
        return {_bare(spelling): gpu.name for gpu in self.gpus for spelling in (gpu.name, *gpu.aliases)}


def _bare(name: str) -> str:
    """`NVIDIA H100 80GB-HBM3` → `h10080gbhbm3`."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    while len(words) > 1 and words[0] in _MAKERS:
        words = words[1:]
    return "".join(words)
