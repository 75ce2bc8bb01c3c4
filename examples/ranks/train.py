"""A sharded training (FSDP2) under the hooks; runs on CPUs, too. Kill it, start it again, also with other ranks:

    torchrun --standalone --nproc-per-node 2 examples/ranks/train.py
    torchrun --standalone --nproc-per-node 1 examples/ranks/train.py    # goes on from the same checkpoint

Every rank saves its own shards, and the checkpoint is of all of them or of none.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from trainer_hooks import Session

STEPS = int(os.environ.get("STEPS", "200"))


def main() -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_num_threads(1)

    inputs = torch.randn(1024, 32)
    data = TensorDataset(inputs, inputs.sin().sum(1, keepdim=True))
    loader = DataLoader(data, batch_size=16, sampler=DistributedSampler(data, shuffle=True))
    model = torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.GELU(), torch.nn.Linear(256, 1)).to(device)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    session = Session(model=model, optimizer=optimizer)  # after init_process_group, on every rank
    loss = torch.tensor(float("nan"))
    for x, y in session(loader, steps=STEPS):
        loss = torch.nn.functional.mse_loss(model(x.to(device)), y.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        session.log(loss=loss)
    if dist.get_rank() == 0:
        print(f"step {session.step}: loss {loss.item():.4f}")
    session.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
