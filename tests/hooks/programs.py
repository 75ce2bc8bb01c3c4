"""Trainings as people write them, each a little different, each with a state that a resume could lose."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from tests.hooks.training import Death, NoisyData, _hash
from trainer_hooks import Session

STEPS = 13  # two epochs and a bit


class Program:
    """The plainest one: dropout, shuffling, several parameter groups."""

    workers = 0
    zero_grad: dict[str, Any] = {"set_to_none": True}  # noqa: RUF012  # never changed

    def __init__(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.3), nn.GELU(), nn.Linear(12, 1))
        first, last = self.model[0], self.model[3]
        groups = [{"params": first.parameters(), "lr": 0.03}, {"params": last.parameters(), "weight_decay": 0.0}]
        self.optimizer = self.an_optimizer(groups)
        self.objects: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        self.loader = DataLoader(NoisyData(), batch_size=4, shuffle=True, num_workers=self.workers)

    def an_optimizer(self, groups: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=0.01)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.model(batch).squeeze(1) - batch.mean(1) * random.random()).square().mean()

    def step(self, batch: torch.Tensor, number: int) -> None:
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(**self.zero_grad)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for thing in self.objects.values():
            _hash(digest, thing.state_dict())
        digest.update(repr((random.random(), np.random.rand(), torch.rand(()).item())).encode())
        return digest.hexdigest()


class Workers(Program):
    workers = 2


class InPlaceZero(Program):
    zero_grad = {"set_to_none": False}  # noqa: RUF012  # never changed


class ZeroFirst(Program):
    def step(self, batch: torch.Tensor, number: int) -> None:
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        self.optimizer.step()


class ZeroNowAndThen(Program):
    """Gradients are added to over three steps, each of which uses them."""

    def step(self, batch: torch.Tensor, number: int) -> None:
        if number % 3 == 1:
            self.optimizer.zero_grad()
        self.loss(batch).backward()
        self.optimizer.step()


class Accumulation(Program):
    def step(self, batch: torch.Tensor, number: int) -> None:
        (self.loss(batch) / 3).backward()
        if number % 3 == 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            self.optimizer.step()
            self.optimizer.zero_grad()


class Amp(Program):
    """The scaler's factor grows every few steps, and one step is left out for its overflow."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.scaler = self.objects["scaler"] = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)

    def step(self, batch: torch.Tensor, number: int) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.loss(batch)
        self.scaler.scale(loss * (float("inf") if number == 5 else 1.0)).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class Adversaries(Program):
    """Two optimizers; each loss leaves gradients in the other's parameters, too."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.critic = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
        self.judge = torch.optim.RMSprop(self.critic.parameters(), lr=0.01, momentum=0.5, centered=True)
        self.objects |= {"critic": self.critic, "judge": self.judge}

    def step(self, batch: torch.Tensor, number: int) -> None:
        fake = self.model(torch.rand_like(batch)) * batch
        self.judge.zero_grad()
        (self.critic(fake.detach()).mean() - self.critic(batch).mean()).backward()
        self.judge.step()
        self.optimizer.zero_grad()
        (-self.critic(fake).mean()).backward()
        self.optimizer.step()


class Averaged(Program):
    """A moving average, and buffers that a forward pass changes."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.model.insert(1, nn.BatchNorm1d(12))
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        self.ema = torch.optim.swa_utils.AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.objects["ema"] = self.ema

    def step(self, batch: torch.Tensor, number: int) -> None:
        super().step(batch, number)
        self.ema.update_parameters(self.model)


class Closure(Program):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.objects["optimizer"] = self.lbfgs = torch.optim.LBFGS(
            self.model.parameters(), lr=0.1, max_iter=3, history_size=4
        )

    def step(self, batch: torch.Tensor, number: int) -> None:
        def closure() -> torch.Tensor:
            self.lbfgs.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            return loss

        self.lbfgs.step(closure)


def with_optimizer(make: Callable[[Any], torch.optim.Optimizer]) -> type[Program]:
    class WithOptimizer(Program):
        def an_optimizer(self, groups: Any) -> torch.optim.Optimizer:
            return make(groups)

    return WithOptimizer


def with_scheduler(make: Callable[[torch.optim.Optimizer], Any], *, is_told_the_loss: bool = False) -> type[Program]:
    class WithScheduler(Program):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            self.scheduler = self.objects["scheduler"] = make(self.optimizer)

        def an_optimizer(self, groups: Any) -> torch.optim.Optimizer:
            return torch.optim.SGD(groups, lr=0.05, momentum=0.9)

        def step(self, batch: torch.Tensor, number: int) -> None:
            super().step(batch, number)
            self.scheduler.step(*([batch.mean().item()] if is_told_the_loss else []))

    return WithScheduler


def _sequence(optimizer: torch.optim.Optimizer) -> Any:
    warmup = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=4)
    return lr_scheduler.SequentialLR(
        optimizer, [warmup, lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=3)], milestones=[4]
    )


PROGRAMS: dict[str, type[Program]] = {
    "plain": Program,
    "workers": Workers,
    "zero in place": InPlaceZero,
    "zero first": ZeroFirst,
    "zero now and then": ZeroNowAndThen,
    "accumulation": Accumulation,
    "amp": Amp,
    "adversaries": Adversaries,
    "averaged": Averaged,
    "closure": Closure,
    "fused": with_optimizer(lambda groups: torch.optim.AdamW(groups, lr=0.02, fused=True)),
    "foreach": with_optimizer(lambda groups: torch.optim.AdamW(groups, lr=0.02, foreach=True, amsgrad=True)),
    "fused sgd": with_optimizer(lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9, fused=True)),
    "adagrad": with_optimizer(lambda groups: torch.optim.Adagrad(groups, lr=0.02, lr_decay=0.1)),
    "warm-up, then restarts": with_scheduler(_sequence),
    "one cycle": with_scheduler(lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=40)),
    "cyclic": with_scheduler(lambda one: lr_scheduler.CyclicLR(one, base_lr=0.01, max_lr=0.1, step_size_up=3)),
    "lambda": with_scheduler(lambda one: lr_scheduler.LambdaLR(one, lambda step: 0.9**step)),
    "plateau": with_scheduler(lambda one: lr_scheduler.ReduceLROnPlateau(one, patience=1), is_told_the_loss=True),
}


def undisturbed(name: str) -> str:
    """Without hooks."""
    program, number = PROGRAMS[name](0), 0
    while True:
        for batch in program.loader:
            number += 1
            program.step(batch, number)
            if number == STEPS:
                return program.fingerprint()


def train(name: str, folder: Path, *, every: int, seed: int, die_at: int = 0) -> str:
    """To its end, or to the middle of step `die_at`."""
    program = PROGRAMS[name](seed)
    with Session(run_uri=str(folder), checkpoint_every_steps=every, **program.objects) as session:
        for batch in session(program.loader, steps=STEPS):
            number = session.step + 1
            if number == die_at:
                program.loss(batch).backward()
                raise Death
            program.step(batch, number)
    return program.fingerprint()
