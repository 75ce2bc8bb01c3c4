"""`train.yaml` as a frozen value: what to run, on what, by when, for how much."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from launcher.core.gravity import Found, store_of
from launcher.core.offers import Capacity

_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZES = {"kb": 1e-6, "mb": 1e-3, "gb": 1.0, "tb": 1e3, "pb": 1e6}


def parse_duration(text: object) -> float:
    """Seconds in `90 s`, `15 min`, `36h`, `2d` or `1h 30m`. Raises: ValueError."""
    if isinstance(text, timedelta):
        return text.total_seconds()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)", str(text).strip().lower())
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*([a-z]+)", "", str(text).strip().lower()).strip()
    if not parts or rest or any(unit not in _UNITS for _, unit in parts):
        raise ValueError(f"{text!r} is not a duration; write 90 s, 15 min, 36 h or 2 d")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def parse_size_gb(text: object) -> float:
    """Gigabytes (10⁹ bytes) in `500 GB`, `1.2 TB`, `80 MB`. Raises: ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*([kmgtp]b)", str(text).strip().lower())
    if not match:
        raise ValueError(f"{text!r} is not a size; write 500 GB or 1.2 TB")
    return float(match[1]) * _SIZES[match[2]]


def parse_usd(text: object) -> Decimal:
    """Dollars in `1200`, `$1,200` or `1200 USD`. Raises: ValueError."""
    bare = str(text).strip().removeprefix("$").removesuffix("USD").replace(",", "").strip()
    if not re.fullmatch(r"\d+(\.\d+)?", bare):
        raise ValueError(f"{text!r} is not an amount; write 1200, $1,200 or 1200 USD")
    return Decimal(bare)


def _deadline(value: object) -> datetime | timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, datetime):
        instant = value
    else:
        try:
            instant = datetime.fromisoformat(str(value))
        except ValueError:
            try:
                return timedelta(seconds=parse_duration(value))
            except ValueError:
                raise ValueError(
                    f"{value!r} is neither an instant nor a duration; write 2026-11-22T12:00Z or 36 h"
                ) from None
    if instant.tzinfo is None:
        raise ValueError(f"{value!s} has no time zone; write {instant.isoformat()}Z for UTC")
    return instant.astimezone(UTC)


def _seconds(value: object) -> object:
    return value if isinstance(value, float | int) else parse_duration(value)


def _steps_or_auto(value: int | str) -> int | str:
    if isinstance(value, int) and value < 1:
        raise ValueError(f"is {value}; give 1 or more, or auto")
    return value


def _absolute(path: str) -> str:
    """Of another machine: this one cannot resolve it, and need not have its kind of paths."""
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not absolute; write a folder of the training machine, e.g. /mnt/nvme")
    return path


def _text(*, or_number: bool, example: str) -> WithJsonSchema:
    """For editors: text in the form of `example`, validated here and not there."""
    text = {"type": "string", "examples": [example]}
    return WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, text]} if or_number else text)


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0), _text(or_number=True, example="5 min")]
StepSeconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0), _text(or_number=True, example="2.5 s")]
AbsolutePath = Annotated[str, AfterValidator(_absolute), Field(examples=["/mnt/nvme/checkpoints"])]
EverySteps = Annotated[int | Literal["auto"], AfterValidator(_steps_or_auto)]
Gigabytes = Annotated[
    float,
    BeforeValidator(parse_size_gb),
    Field(ge=0),
    PlainSerializer(lambda gb: f"{gb!r} GB", when_used="json"),
    _text(or_number=False, example="500 GB"),
]
Usd = Annotated[Decimal, BeforeValidator(parse_usd), Field(ge=0), _text(or_number=True, example="1200 USD")]
PositiveUsd = Annotated[Decimal, BeforeValidator(parse_usd), Field(gt=0), _text(or_number=True, example="15 USD")]
Deadline = Annotated[
    datetime | timedelta,
    BeforeValidator(_deadline),
    PlainSerializer(
        lambda v: f"{v.total_seconds():g} s" if isinstance(v, timedelta) else v.isoformat(), when_used="json"
    ),
    _text(or_number=False, example="36 h"),
]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class ModelSize(Model):
    """A transformer's size, for the rule of six: 6 · params · tokens FLOPs a step (Kaplan 2020, arXiv 2001.08361)."""

    params: float = Field(gt=0, description="trainable parameters, e.g. 8e9")
    tokens_per_step: float = Field(gt=0, description="tokens in one global batch")
    mfu: float = Field(default=0.35, gt=0, le=1, description="model FLOPs utilisation, as a fraction")


class Workload(Model):
    """How much there is to do, and how fast one step is where it was measured."""

    steps: int = Field(gt=0, description="optimizer steps of the whole training")
    step_seconds: dict[str, StepSeconds] = Field(
        default_factory=dict,
        description="seconds a step takes, by GPU type, on the placement that `gpus` and `nodes` ask for",
    )
    model: ModelSize | None = Field(default=None, description="used only where no measured step time is known")
    setup_seconds: Seconds | None = Field(default=None, description="from a granted machine to the first step")


class Data(Model):
    """Where the training data lies, and how much of it is read."""

    uri: str = Field(description="s3://…, gs://…, az://… or a path")
    region: str | None = Field(
        default=None, description="provider/region of the bucket, e.g. aws/us-east-2; default: the bucket is asked"
    )
    size: Gigabytes | None = Field(default=None, description="e.g. 500 GB; default: the bucket is listed")
    reads: float = Field(default=1.0, gt=0, description="how often it is read in whole: 1 if cached, else the epochs")
    nat: list[str] = Field(
        default_factory=list,
        description="providers where machines reach buckets through a NAT gateway, which bills each GB; default: none",
    )
    max_egress_usd: Usd | None = Field(default=None, description="refuse places where the run's egress costs more")
    found: SkipJsonSchema[Found | None] = Field(default=None, description="the bucket's own answer; filled in")

    @model_validator(mode="after")
    def _measurable(self) -> Data:
        """Moving an unknown amount from an unknown place has an unknown price."""
        is_far = "://" in self.uri and not self.uri.startswith("file:") and store_of(self.uri) is None
        missing = " and ".join(name for name in ("region", "size") if getattr(self, name) is None)
        if is_far and missing:
            raise ValueError(
                f"{missing} missing: nobody here can ask {self.uri.partition('://')[0]}:// for it, and without it the "
                "egress has no price; e.g. region: aws/us-east-2, size: 500 GB"
            )
        return self

    @property
    def source(self) -> str | None:
        """`provider/region`, as declared or as the bucket said."""
        return self.region or (self.found.region if self.found else None)

    @property
    def gb(self) -> float | None:
        return self.size if self.size is not None else (self.found.gb if self.found else None)

    @property
    def is_whole(self) -> bool:
        """Whether `gb` is all of it, and not what a listing had found when its time was up."""
        return self.size is not None or self.found is None or self.found.is_complete


class KeepBest(Model):
    """Checkpoints that are kept for what the training had reached, beside the newest."""

    # the trainer is told metric:mode:count in one variable
    metric: str = Field(pattern=r"^[^:\x00-\x1f]+$", description="a name that the script logs, e.g. loss")
    mode: Literal["min", "max"] = Field(default="min", description="whether less or more of it is better")
    count: int = Field(default=1, gt=0, lt=1_000_000, description="how many")


class Checkpoint(Model):
    """Where and how often the training is saved."""

    uri: str | None = Field(
        default=None,
        description="folder under which run folders are made, from this file's folder; default: the state folder",
    )
    region: str | None = Field(
        default=None, description="provider/region of the bucket of `uri`; default: the bucket is asked"
    )
    buckets: dict[str, str] = Field(
        default_factory=dict,
        description="folders beside the GPUs instead, by provider/region or provider, e.g. "
        "{aws/us-east-1: s3://ckpts-use1/runs, gcp: gs://ckpts/runs}; a move takes the newest checkpoint along",
    )
    regions: SkipJsonSchema[dict[str, str]] = Field(
        default_factory=dict, description="what each bucket said of its region; filled in"
    )
    every_steps: EverySteps = Field(default="auto", description="a number of steps, or auto")
    keep: int = Field(
        default=2, ge=2, description="committed checkpoints kept; at least 2, so that damage can fall back"
    )
    keep_every_steps: int | None = Field(
        default=None, gt=0, description="beside those, the first checkpoint at or after each multiple of it"
    )
    keep_best: KeepBest | None = Field(default=None, description="and the best by a metric that the script logs")
    snapshot: Literal["overlap", "lazy", "blocking"] = Field(
        default="overlap",
        description="overlap copies while the training goes on; lazy needs less memory; blocking stands still",
    )
    audit: bool = Field(default=False, description="hash what is saved a second time, to find a torn snapshot")
    local: AbsolutePath | None = Field(
        default=None, description="folder on the training machine's fast disk, written before `uri`"
    )
    local_survives: bool = Field(
        default=False, description="the next attempt finds what lies in `local`, e.g. on a Slurm node's own disk"
    )
    size: Gigabytes | None = Field(default=None, description="of one checkpoint; about 14 bytes a parameter with Adam")
    save_seconds: Seconds | None = Field(default=None, description="of training that one save costs")
    max_loss: PositiveUsd | None = Field(
        default=None,
        description="dollars of machine time that an interruption may cost at most, e.g. 15 USD",
    )

    @model_validator(mode="after")
    def _buckets_are_buckets(self) -> Checkpoint:
        for place, uri in self.buckets.items():
            if "://" not in uri:
                raise ValueError(f"buckets: {place} is {uri!r}; write a bucket, e.g. s3://ckpts/runs")
        return self


MAX_COST_RATIO = 1.05  # of a run that tries spot, to the fallback alone


class Cost(Model):
    """Limits of money."""

    cap: Usd | None = Field(
        default=None, description="the run is saved and stopped before it spends more, e.g. 1200 USD"
    )
    max_egress_usd: Usd | None = Field(
        default=None, description="refuse places where the run's egress costs more, with or without `data`"
    )
    max_chase: float = Field(
        default=MAX_COST_RATIO,
        ge=1.0,
        description="how dear trying spot may make the run at the worst, to the fallback alone; one try is always made",
    )


class Market(Model):
    """A simulated spot market to run against, on this machine. Every amount it leads to is labelled simulated."""

    file: str | None = Field(default=None, description="places, prices and availability over time; see configs/")
    seed: int | None = Field(default=None, description="no file: offers of the price book, with drawn availability")
    time_scale: float = Field(default=60.0, gt=0, description="market seconds that pass in one second here")

    @model_validator(mode="after")
    def _one_source(self) -> Market:
        if (self.file is None) == (self.seed is None):
            raise ValueError("market wants exactly one of file and seed")
        return self


class RunSpec(Model):
    """One training run, as its user wrote it down."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9-]{0,39}$", description="lower case, digits and dashes; names the workload"
    )
    run: str = Field(min_length=1, description="the training command, run by bash in `workdir`")
    setup: str | None = Field(default=None, description="run before it, once per machine")
    workdir: str = Field(default=".", description="folder of the training script, relative to this file")
    env: dict[str, str] = Field(default_factory=dict, description="environment of both commands")
    gpus: dict[str, Annotated[int, Field(gt=0)]] = Field(
        min_length=1, description="alternatives: GPUs per node by type, e.g. {H100: 8, A100-80GB: 8}"
    )
    nodes: int = Field(default=1, gt=0, description="machines")
    providers: list[str] | None = Field(default=None, description="only these; default: all")
    regions: list[str] | None = Field(default=None, description="only these; default: all")
    mode: list[Capacity] = Field(
        default=[Capacity.SPOT, Capacity.RESERVED, Capacity.ON_DEMAND],
        min_length=1,
        description="ladder of capacity, cheapest first; the last entries are the fallback",
    )
    workload: Workload
    data: Data | None = None
    checkpoint: Checkpoint = Checkpoint()
    deadline: Deadline | None = Field(
        default=None, description="an instant with time zone, or a duration from the submit"
    )
    priority: Literal["normal", "urgent"] = Field(
        default="normal", description="urgent: never wait for a lower price, take the cheapest capacity there is"
    )
    cost: Cost = Cost()
    tags: dict[str, str] = Field(default_factory=dict, description="team: nlp, …")
    market: Market | None = None

    def accepting_egress(self, usd: Decimal) -> RunSpec:
        """With that much egress agreed to, whatever was written before."""
        data = self.data and self.data.model_copy(update={"max_egress_usd": None})
        cost = self.cost.model_copy(update={"max_egress_usd": usd})
        return self.model_copy(update={"data": data, "cost": cost})

    @property
    def egress_limit(self) -> tuple[str, Decimal] | None:
        """The lowest of those that are set, and its name."""
        limits = {"cost.max_egress_usd": self.cost.max_egress_usd}
        if self.data:
            limits["data.max_egress_usd"] = self.data.max_egress_usd
        given = [(name, usd) for name, usd in limits.items() if usd is not None]
        return min(given, key=lambda limit: limit[1], default=None)

    @model_validator(mode="before")
    @classmethod
    def _plain_env(cls, value: Any) -> Any:
        """`env: {EPOCHS: 3}` is a number in YAML and a string in an environment."""
        if isinstance(value, dict):
            for key in ("env", "tags"):
                if isinstance(value.get(key), dict):
                    plain = {k: str(v) if isinstance(v, int | float) else v for k, v in value[key].items()}
                    value = value | {key: plain}
        return value
