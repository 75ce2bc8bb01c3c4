"""A small real training under the hooks: dropout, shuffling, AdamW, a schedule. Prints its last loss in full."""

from __future__ import annotations

import os
import time

import torch
from torch.utils.data import DataLoader, TensorDataset

from trainer_hooks import Session

STEPS = int(os.environ.get("STEPS", "60"))
PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "0"))

torch.set_num_threads(1)
torch.manual_seed(7)
inputs = torch.randn(96, 16)
loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

session = Session(model=model, optimizer=optimizer, scheduler=scheduler)
loss = torch.tensor(float("nan"))
for x, y in session(loader, steps=STEPS):
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    session.log(loss=loss)
    time.sleep(PAUSE_SECONDS)
print("final loss", loss.item().hex(), flush=True)
