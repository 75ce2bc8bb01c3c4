"""A small training with every kind of state that a resume can lose; also a script, to be killed from outside."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trainer_hooks import Session

BATCHES_PER_EPOCH = 6


class Death(BaseException):
    """What nobody catches, short of a signal."""


class NoisyData(Dataset[torch.Tensor]):
    """Draws from every global generator, wherever it is loaded."""

    def __len__(self) -> int:
        return 4 * BATCHES_PER_EPOCH

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = random.random() + float(np.random.rand()) + torch.rand(()).item()
        return torch.full((8,), index / 10.0) + noise


@dataclass(frozen=True, kw_only=True)
class Recipe:
    optimizer: str = "adamw"
    workers: int = 0
    accumulate: int = 1
    steps: int | None = 20
    epochs: int | None = None
    own_generator: bool = False
    every: int = 3


class Parts:
    def __init__(self, recipe: Recipe, *, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1))
        first, last = self.model[0], self.model[3]
        groups = [{"params": [first.weight, *self.model[1].parameters()], "lr": 0.02}, {"params": last.parameters()}]
        groups.append({"params": [first.bias], "weight_decay": 0.0})
        if recipe.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.05, total_steps=1000)
        self.ema = torch.optim.swa_utils.AveragedModel(self.model)
        generator = torch.Generator().manual_seed(seed) if recipe.own_generator else None
        self.loader = DataLoader(
            NoisyData(), batch_size=4, shuffle=True, num_workers=recipe.workers, generator=generator, drop_last=True
        )

    def objects(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "ema": self.ema}

    def step(self, batch: torch.Tensor, *, number: int, accumulate: int) -> None:
        loss = (self.model(batch).squeeze(1) - batch.sum(1) * random.random()).square().mean()
        loss.backward()
        if number % accumulate == 0:
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.ema.update_parameters(self.model)

    def fingerprint(self) -> str:
        """Of every bit that training has changed."""
        digest = hashlib.sha256()
        for thing in (self.model.state_dict(), self.ema.state_dict(), self.optimizer.state_dict()):
            _hash(digest, thing)
        digest.update(repr((random.random(), np.random.rand(), torch.rand(()).item())).encode())
        return digest.hexdigest()


def _hash(digest: Any, thing: Any) -> None:
    if isinstance(thing, torch.Tensor):
        digest.update(thing.detach().contiguous().numpy().tobytes())
    elif isinstance(thing, dict):
        for key, value in thing.items():
            digest.update(repr(key).encode())
            _hash(digest, value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            _hash(digest, value)
    else:
        digest.update(repr(thing).encode())


def train(folder: Path, recipe: Recipe, *, die_at: int | None = None, seed: int = 0, **settings: Any) -> str:
    """Train to the end, or to the middle of step `die_at`; a resume has another seed, which must not matter."""
    parts = Parts(recipe, seed=seed)
    settings = {"checkpoint_every_steps": recipe.every, "run_uri": str(folder)} | settings
    with Session(**settings, **parts.objects()) as session:
        for batch in session(parts.loader, steps=recipe.steps, epochs=recipe.epochs):
            number = session.step + 1
            if number == die_at:
                raise Death
            parts.step(batch, number=number, accumulate=recipe.accumulate)
        return parts.fingerprint()


def undisturbed(recipe: Recipe) -> str:
    """The same training without hooks: what they must not change, either."""
    parts = Parts(recipe, seed=0)
    number = 0
    for _ in range(recipe.epochs or 1000):
        for batch in parts.loader:
            number += 1
            parts.step(batch, number=number, accumulate=recipe.accumulate)
            if number == recipe.steps:
                return parts.fingerprint()
    return parts.fingerprint()


def main() -> None:
    """`python -m tests.hooks.training FOLDER RECIPE [die-at]`: prints a fingerprint; kills itself in step `die-at`."""
    torch.set_num_threads(1)
    folder, recipe = Path(sys.argv[1]), Recipe(**json.loads(sys.argv[2]))
    die_at = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    pause_seconds = float(os.environ.get("PAUSE", "0"))
    parts = Parts(recipe, seed=int(os.environ.get("SEED", "0")))
    session = Session(run_uri=str(folder), checkpoint_every_steps=recipe.every, **parts.objects())
    for batch in session(parts.loader, steps=recipe.steps, epochs=recipe.epochs):
        number = session.step + 1
        print("step", number, flush=True)
        if number == die_at:
            while not any(folder.glob("checkpoints/*/manifest.json")):  # without one it would be another training
                threading.Event().wait(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        parts.step(batch, number=number, accumulate=recipe.accumulate)
        threading.Event().wait(pause_seconds)
    print("fingerprint", parts.fingerprint(), flush=True)


if __name__ == "__main__":
    main()
