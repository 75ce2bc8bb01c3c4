"""What is trained while a checkpoint is written: an MLP of big layers with AdamW, by real steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

LAYERS = 8
ADAPTER_SHARE = 0.01  # of a layer's parameters, in its adapter
ROWS_TIMES_GB = {"cpu": 60, "cuda": 65_536}
"""Rows of a batch times GB of state: a step takes 0.2 to 0.8 s on two cores and about as long on a data centre's GPU,
so that a copy has something to hide behind."""


class Training:
    """Weights and both AdamW moments in float32 make up `state_gb`.

    With `is_adapted` the layers are frozen, and only a low-rank adapter beside each is trained.
    """

    def __init__(self, state_gb: float, *, device: str = "cpu", is_adapted: bool = False) -> None:
        copies = 1 if is_adapted else 3  # frozen weights have no moments
        width = int((state_gb * 1e9 / 4 / copies / LAYERS) ** 0.5)
        layer = _Adapted if is_adapted else torch.nn.Linear
        self.model = torch.nn.Sequential(*(layer(width, width) for _ in range(LAYERS))).to(device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        self.is_cuda = device == "cuda"
        self._batch = torch.randn(max(1, int(ROWS_TIMES_GB[device] / state_gb)), width, device=device)
        self.step()  # AdamW makes its moments now
        frozen = sum(parameter.nbytes for parameter in self.model.parameters() if not parameter.requires_grad)
        self.state_bytes = sum(tensor.nbytes for tensor in self.tensors().values())
        self.changing_bytes = self.state_bytes - frozen

    def step(self) -> float:
        """One step; the seconds for which its update was held up by the optimizer's hooks, whosever they are."""
        hooks_done_at = [0.0]

        def mark(*_: object) -> None:
            self._settle()
            hooks_done_at[0] = time.perf_counter()

        self.model(self._batch).square().mean().backward()
        last_hook = self.optimizer.register_step_pre_hook(mark)  # anew in each step, so that it is the last one
        self._settle()
        began = time.perf_counter()
        self.optimizer.step()
        last_hook.remove()
        self.optimizer.zero_grad()
        self._settle()
        return hooks_done_at[0] - began

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(_flat("", self.state()))

    def _settle(self) -> None:
        if self.is_cuda:  # this stream only: a copy on another one is what a fence may wait for
            torch.cuda.current_stream().synchronize()


class _Adapted(torch.nn.Module):
    """A frozen layer and its low-rank adapter, as in LoRA."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = torch.nn.Linear(inputs, outputs).requires_grad_(False)
        rank = max(1, int(ADAPTER_SHARE * inputs / 2))
        self.adapter = torch.nn.Sequential(
            torch.nn.Linear(inputs, rank, bias=False), torch.nn.Linear(rank, outputs, bias=False)
        )

    def forward(self, batch: torch.Tensor) -> Any:
        return self.base(batch) + self.adapter(batch)


def _flat(path: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{path}/{key}", inner)
