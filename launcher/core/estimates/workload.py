"""How long a training step takes on a GPU type, and how well that is known.

In this order, the first that there is; the user is always told which:

    source                                                     80 % factor
    the user's earlier runs on this placement                  their spread, at least 1.03
    declared in the spec                                       1.05
    either, of another type, by measured relative throughput   1.30
    either, of another type, by memory bandwidth               1.45
    6·params·tokens FLOPs at the model's utilisation           3

Between numbers of GPUs time is taken to scale linearly (measured on 1 to 8 H100: 0.95 to 0.99 of that, a small
model 0.76). Peak FLOPS are never used to scale: they are wrong by 54 % on average. What finished runs showed of a
source's error corrects both of its numbers (`calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, stdev
from typing import Literal

from launcher.core.estimates.weather import Habits
from launcher.core.gpus import GpuCatalog, Ratio
from launcher.core.spec import ModelSize, RunSpec, Workload
from launcher.core.unknown import Unknown

# Machine to machine, same GPU type: coefficient of variation 0.004 to 0.02, one workload 0.04
# (39 H100 SXM in Lambda's public benchmark); a factor 1.03 is a CV of 2.3 %, 1.05 one of 4 %.
LEAST_FACTOR80 = 1.03
MACHINE_CV = 0.04
DECLARED_FACTOR80 = 1.05
# The same benchmark, 14 GPU types × 7 workloads, 1,274 pairs of types: the median ratio of the other workloads has
# a mean error of 18 % and 80 % of cases within 0.77 to 1.31; memory bandwidth 27 % and 0.69 to 1.46.
MEASURED_FACTOR80 = 1.30
BANDWIDTH_FACTOR80 = 1.45
# Utilisation, published: Llama 3 38 to 43 %, PaLM 46 %, GPT-3 21 %, MT-NLG 30 %; eager PyTorch 3 to 15 %.
FLOPS_FACTOR80 = 3.0
# Student's t, 90 % quantile, for 1, 2, 3 … degrees of freedom; the normal 1.28 from 10 on is 7 % too narrow at worst.
_T90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383)
_Z90 = 1.282
_RatioOf = Callable[[GpuCatalog, str, str], Ratio | None]
SETUP_SECONDS = 300.0  # machine, image, environment; a SkyPilot launch took 60 to 95 s without installing anything


StepSource = Literal["history", "declared", "catalogue", "bandwidth", "flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What finished runs showed of a source: step times were `shift` × what it said, ln factor80 `width` × as wide."""

    shift: float
    width: float
    num_runs: int
    team: str | None  # None: of all teams

    @property
    def words(self) -> str:
        """`recalibrated by 7 runs of team nlp: +6.0 %, range × 1.3`."""
        whose = f" of team {self.team}" if self.team else ""
        shift = f"{100 * (self.shift - 1):+.1f} %".replace("-", "−")
        return f"recalibrated by {self.num_runs} runs{whose}: {shift}, range × {self.width:.1f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """With 80 % probability a step takes `seconds / factor80` to `seconds · factor80`."""

    seconds: float
    factor80: float
    source: str
    kind: StepSource
    correction: Correction | None = None  # that is in the numbers already


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Step times that earlier runs of the same workload had on `num_gpus` of one type, one sample a run."""

    gpu: str
    num_gpus: int
    step_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What earlier runs of the same workload showed; `None` where they showed nothing."""

    history: tuple[History, ...] = ()
    setup_seconds: float | None = None
    save_seconds: float | None = None  # of training that one save costs
    durable_seconds: float | None = None  # until it is committed
    checkpoint_gb: float | None = None
    num_runs: int = 0
    corrections: Mapping[StepSource, Correction] = field(default_factory=dict)
    places: Mapping[str, Habits] = field(default_factory=dict)  # of spot, by key, as all runs saw them lately


@dataclass(frozen=True, slots=True, kw_only=True)
class _Anchor:
    """A step time that is known somewhere."""

    gpu: str
    num_gpus: int
    seconds: float
    factor80: float
    what: str
    kind: StepSource


def step_time(
    gpu: str,
    *,
    workload: Workload,
    gpus: Mapping[str, int],
    nodes: int,
    history: Sequence[History],
    catalog: GpuCatalog,
) -> StepTime | Unknown:
    """Seconds a step takes on the placement that `gpus` (GPUs per node, by type) and `nodes` ask for of type `gpu`."""
    name = catalog.canonical(gpu) or gpu
    per_node = {catalog.canonical(key) or key: count for key, count in gpus.items()}
    if name not in per_node:
        return Unknown(f"gpus does not say how many {name} a node has")
    num_gpus = per_node[name] * nodes
    runs = list(_runs(history, catalog))
    declared = list(_declared(workload, per_node, nodes, per_node[name], catalog))
    here = (*runs, *declared)
    for anchor in here:
        if (anchor.gpu, anchor.num_gpus) == (name, num_gpus):
            return StepTime(seconds=anchor.seconds, factor80=anchor.factor80, source=anchor.what, kind=anchor.kind)
    scaled = _scaled(name, num_gpus, here, catalog)
    if scaled is not None:
        return scaled
    if workload.model is not None:
        return _from_flops(name, num_gpus, workload.model, catalog)
    return Unknown("unknown: give one number (workload.step_seconds) or run a probe")


def corrected(step: StepTime, correction: Correction | None) -> StepTime:
    """`step` as later runs bear it out; said in its source, so that nobody takes it for the source's own number."""
    if correction is None:
        return step
    factor80 = max(LEAST_FACTOR80, step.factor80**correction.width)
    applied = replace(correction, width=math.log(factor80) / math.log(step.factor80))
    return replace(
        step,
        seconds=step.seconds * correction.shift,
        factor80=factor80,
        source=f"{step.source}; {applied.words}",
        correction=applied,
    )


def t90(degrees_of_freedom: int) -> float:
    """Student's t, 90 % quantile: ±t holds 80 %."""
    return _T90[degrees_of_freedom - 1] if degrees_of_freedom <= len(_T90) else _Z90


def setup_seconds(spec: RunSpec, measured: Measured) -> tuple[float, str]:
    """From a granted machine to the first step, and where the number comes from."""
    if measured.setup_seconds is not None:
        return measured.setup_seconds, f"measured in {measured.num_runs} earlier runs"
    if spec.workload.setup_seconds is not None:
        return spec.workload.setup_seconds, "declared"
    return SETUP_SECONDS, "assumed"


def _runs(history: Iterable[History], catalog: GpuCatalog) -> Iterator[_Anchor]:
    for past in history:
        if not past.step_seconds:
            continue
        name, runs = catalog.canonical(past.gpu) or past.gpu, len(past.step_seconds)
        yield _Anchor(
            gpu=name,
            num_gpus=past.num_gpus,
            seconds=median(past.step_seconds),
            factor80=_spread80(past.step_seconds),
            what=f"{runs} earlier run{'' if runs == 1 else 's'} on {past.num_gpus}×{name}",
            kind="history",
        )


def _spread80(step_seconds: Sequence[float]) -> float:
    """Half-width, as a factor, of the 80 % prediction interval for the next run: log-normal, Student's t."""
    runs = len(step_seconds)
    if runs < 2:
        return math.exp(_Z90 * MACHINE_CV)
    spread = stdev(math.log(seconds) for seconds in step_seconds)
    return max(LEAST_FACTOR80, math.exp(t90(runs - 1) * spread * math.sqrt(1 + 1 / runs)))


def _declared(
    workload: Workload, per_node: Mapping[str, int], nodes: int, default: int, catalog: GpuCatalog
) -> Iterator[_Anchor]:
    """A type that `gpus` does not ask for is taken to be meant with as many GPUs as the type in question."""
    for key, seconds in workload.step_seconds.items():
        name = catalog.canonical(key) or key
        num_gpus = per_node.get(name, default) * nodes
        yield _Anchor(
            gpu=name,
            num_gpus=num_gpus,
            seconds=seconds,
            factor80=DECLARED_FACTOR80,
            what=f"declared: workload.step_seconds, {num_gpus}×{name}",
            kind="declared",
        )


def _scaled(name: str, num_gpus: int, anchors: Sequence[_Anchor], catalog: GpuCatalog) -> StepTime | None:
    """From the anchor whose GPU is closest in speed: errors of a ratio grow with the ratio."""
    ways: tuple[tuple[StepSource, float, _RatioOf], ...] = (
        ("catalogue", MEASURED_FACTOR80, _measured),
        ("bandwidth", BANDWIDTH_FACTOR80, GpuCatalog.bandwidth_ratio),
    )
    for kind, factor80, ratio_of in ways:
        found = [(anchor, ratio) for anchor in anchors if (ratio := ratio_of(catalog, anchor.gpu, name))]
        if not found:
            continue
        # earlier runs come before declared numbers in `anchors`, and `min` takes the first of equals
        anchor, ratio = min(found, key=lambda pair: abs(math.log(pair[1].value)))
        speedup = ratio.value * num_gpus / anchor.num_gpus
        count = (
            "" if num_gpus == anchor.num_gpus else f", linear in the number of GPUs ({anchor.num_gpus} → {num_gpus})"
        )
        return StepTime(
            seconds=anchor.seconds / speedup,
            factor80=max(factor80, anchor.factor80),
            source=f"{anchor.what}; one {name} = {ratio.value:.2f} × {anchor.gpu} ({ratio.source}){count}",
            kind=kind,
        )
    return None


def _measured(catalog: GpuCatalog, from_: str, to: str) -> Ratio | None:
    return Ratio(1.0, "the same type") if from_ == to else catalog.ratio(from_, to)


def _from_flops(name: str, num_gpus: int, model: ModelSize, catalog: GpuCatalog) -> StepTime | Unknown:
    known = catalog.gpu(name)
    if known is None or known.tensor_tflops is None:
        return Unknown(f"unknown: no bf16 or fp16 rate of {name} is known; give one number (workload.step_seconds)")
    flops_per_second = known.tensor_tflops * 1e12 * num_gpus * model.mfu
    seconds = 6 * model.params * model.tokens_per_step / flops_per_second
    source = (
        f"6 × {model.params:g} parameters × {model.tokens_per_step:g} tokens at {model.mfu:.0%} "
        f"of {known.tensor_tflops:g} TFLOPS × {num_gpus}×{name}; not measured"
    )
    return StepTime(seconds=seconds, factor80=FLOPS_FACTOR80, source=source, kind="flops")
