"""A small training under the hooks that notes the instant at which each step is finished, for whoever looks on.

A note is an empty object in `STEPS_URI`, named as `benchmarks.recovery.steps` reads it. `RUN_URI` is where a training
without a launcher saves; under the launcher its own run folder counts.
"""

from __future__ import annotations

import os
import secrets
import time

import torch
from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # has no types
from torch.utils.data import DataLoader, TensorDataset

from trainer_hooks import Session

STEPS = int(os.environ["STEPS"])
PAUSE_SECONDS = float(os.environ["PAUSE_SECONDS"])

torch.set_num_threads(1)
torch.manual_seed(7)
files, folder = url_to_fs(os.environ["STEPS_URI"])
files.makedirs(folder, exist_ok=True)
machine = secrets.token_hex(4)
inputs = torch.randn(96, 16)
loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

session = Session(model=model, optimizer=optimizer, run_uri=os.environ.get("RUN_URI"))
for x, y in session(loader, steps=STEPS):
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(PAUSE_SECONDS)
    files.pipe_file(f"{folder}/{session.step + 1}-{time.time_ns()}-{machine}", b"")
