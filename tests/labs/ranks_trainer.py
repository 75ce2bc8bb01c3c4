"""A sharded training (FSDP2) of one process a node, under the hooks. Rank 0 prints its last loss in full."""

from __future__ import annotations

import os
import time

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from trainer_hooks import Session

STEPS = int(os.environ["STEPS"])
PAUSE_SECONDS = float(os.environ.get("PAUSE_SECONDS", "0"))

torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(7)
inputs = torch.randn(96, 16)
data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
loader = DataLoader(data, batch_size=8, sampler=DistributedSampler(data, shuffle=True))
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 1))
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

session = Session(model=model, optimizer=optimizer)
loss = torch.tensor(float("nan"))
for x, y in session(loader, steps=STEPS):
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    session.log(loss=loss)
    time.sleep(PAUSE_SECONDS)
session.close()
if dist.get_rank() == 0:
    print("final loss", loss.item().hex(), flush=True)
dist.destroy_process_group()
