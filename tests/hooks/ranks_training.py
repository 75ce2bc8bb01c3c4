"""A small training on several ranks, with what each of them can lose in a resume; also a script for torchrun."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tests.hooks.sharded import whole
from trainer_hooks import Session

SAMPLES = 48


@dataclass(frozen=True, kw_only=True)
class Job:
    kind: str = "ddp"  # or fsdp
    steps: int | None = 20
    epochs: int | None = None
    every: int = 4
    width: int = 16
    accumulate: int = 1
    seed: int = 0  # a resume has another one, which must not matter
    dies_at: int = 0  # every rank, in the middle of that step
    notice_at: int = 0
    hears: int = 1  # the rank that hears the notice


@dataclass(kw_only=True)
class Outcome:
    """Of one rank. `found` and `left` are all tensors of the state, whole, after the restore and at the end."""

    found: dict[str, torch.Tensor] = field(default_factory=dict)
    left: dict[str, torch.Tensor] = field(default_factory=dict)
    numbers: tuple[float, float] = (0.0, 0.0)  # that this rank drew after the restore, and at the end
    samples: list[int] = field(default_factory=list)  # that this rank saw
    step: int = 0
    resumed_from: str | None = None
    ended: str = "completed"  # or by which exception


class Numbers(Dataset[tuple[int, torch.Tensor]]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, torch.full((4,), index / SAMPLES) + torch.rand(4)


class Parts:
    def __init__(self, rank: int, job: Job) -> None:
        torch.manual_seed(job.seed)
        inner = nn.Sequential(nn.Linear(4, job.width), nn.Dropout(0.2), nn.Linear(job.width, 2))
        self.model: Any
        if job.kind == "ddp":
            inner.insert(1, nn.BatchNorm1d(job.width))
            self.model = nn.parallel.DistributedDataParallel(inner)
        else:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            fully_shard(inner[0], mesh=mesh)
            self.model = fully_shard(inner, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.97)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        self.loader = DataLoader(Numbers(), batch_size=2, sampler=DistributedSampler(Numbers(), seed=7))
        torch.manual_seed(100 * job.seed + rank)  # of what each rank draws by itself

    def objects(self) -> dict[str, Any]:
        names = ("model", "optimizer", "scheduler", "scaler")
        return {name: getattr(self, name) for name in names}

    def step(self, batch: torch.Tensor, *, has_to_wait: bool) -> None:
        is_apart = has_to_wait and isinstance(self.model, nn.parallel.DistributedDataParallel)
        with self.model.no_sync() if is_apart else nullcontext():
            self.scaler.scale(self.model(batch).square().mean()).backward()
        if not has_to_wait:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.optimizer.zero_grad()


def train(rank: int, folder: Path, job: Job, *, within: Callable[[Session], None] = lambda session: None) -> Outcome:
    """`within` is called in the middle of every step."""
    parts, outcome = Parts(rank, job), Outcome()
    try:
        with Session(run_uri=str(folder), checkpoint_every_steps=job.every, **parts.objects()) as session:
            outcome.found, outcome.resumed_from = whole(parts.objects()), session.resumed_from
            state = torch.get_rng_state()
            outcome.numbers = (torch.rand(()).item(), 0.0)
            torch.set_rng_state(state)
            for indices, batch in session(parts.loader, steps=job.steps, epochs=job.epochs):
                _disturb(rank, folder, job, session)
                within(session)
                outcome.samples += indices.tolist()
                parts.step(batch, has_to_wait=(session.step + 1) % job.accumulate > 0)
    except SystemExit as end:
        outcome.ended = str(end.code)
    except Exception as error:
        outcome.ended = f"{type(error).__name__}: {error}"
        outcome.step = session.step
        return outcome
    outcome.step, outcome.left = session.step, whole(parts.objects())
    outcome.numbers = (outcome.numbers[0], torch.rand(()).item())
    return outcome


def demand_same_end(found: list[Outcome], expected: list[Outcome]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.ended, one.step) == (other.ended, other.step)
        assert one.numbers[1] == other.numbers[1]
        demand_equal(one.left, other.left)


def demand_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected) != []
    for where, tensor in expected.items():
        assert torch.equal(found[where], tensor), where


def hear_a_notice(session: Session) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    while session._attention._urgent == 0:
        threading.Event().wait(0.01)


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        threading.Event().wait(0.01)


def meet(folder: Path, name: str) -> None:
    """Returns when every rank is here, and no rank has anything more to send to another."""
    dist.barrier()
    (folder / f"{name}-{dist.get_rank()}").touch()
    wait_for(lambda: len([*folder.glob(f"{name}-*")]) == dist.get_world_size())


def _disturb(rank: int, folder: Path, job: Job, session: Session) -> None:
    if session.step + 1 == job.dies_at:
        wait_for(lambda: any(folder.glob("checkpoints/*/manifest.json")))  # else it would be another training
        meet(folder, f"dying-{job.dies_at}")
        os.kill(os.getpid(), signal.SIGKILL)
    if session.step + 1 == job.notice_at and rank == job.hears:
        hear_a_notice(session)


def main() -> None:
    """`torchrun -m tests.hooks.ranks_training FOLDER JOB`: each rank leaves its outcome beside FOLDER."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    folder, job = Path(sys.argv[1]), Job(**json.loads(sys.argv[2]))
    outcome = train(dist.get_rank(), folder, job)
    folder.with_name(f"outcome-{dist.get_rank()}").write_bytes(pickle.dumps(outcome))
    dist.destroy_process_group()
    sys.exit(int(outcome.ended) if outcome.ended.isdecimal() else outcome.ended != "completed")


if __name__ == "__main__":
    importlib.import_module("tests.hooks.ranks_training").main()  # an outcome is pickled by its class's module
