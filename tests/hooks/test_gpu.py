"""What only a GPU can show: copies beside the training, on a stream of their own, into memory that the GPU reaches.

`python -m pytest -m gpu tests/hooks/test_gpu.py` wherever CUDA is found; skipped elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from tests.hooks.states import a_store
from tests.hooks.training import Death
from trainer_hooks import Session
from trainer_hooks.checkpoint.memory import Slot, _pin
from trainer_hooks.protocol import SnapshotMode
from trainer_hooks.storage import LocalStorage

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")]

ROOT = Path(__file__).parent.parent.parent
SIDE = 4096  # of a square weight: 64 MiB, which take longer to leave the GPU than a step takes to change them
STEPS = 9

needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices are here")


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("LAUNCH_")]:
        monkeypatch.delenv(name)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, so it stays
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Large:
    """Several chunks on each device, changed by a fused step, and a moving average that changes beside it."""

    def __init__(self, *devices: str) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleList(nn.Linear(SIDE, SIDE, bias=False, device=device) for device in devices)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        self.objects: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "average": self.average}

    def step(self) -> None:
        for layer in self.model:
            layer(torch.ones(1, SIDE, device=layer.weight.device)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.model)

    def clones(self) -> dict[str, torch.Tensor]:
        """Queued on the training's own streams, so they are of this very moment."""
        found = {f"model/{name}": value.clone() for name, value in self.model.state_dict().items()}
        found |= {f"average/{name}": value.clone() for name, value in self.average.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{number}.{name}": value.clone() for name, value in state.items()}
        return found


def flat(components: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = {f"{part}/{name}": value for part in ("model", "average") for name, value in components[part].items()}
    for number, state in components["optimizer"]["state"].items():
        found |= {f"optimizer/{number}.{name}": value for name, value in state.items()}
    return found


def assert_each_checkpoint_is_of_its_step(training: Large, folder: Path) -> None:
    expected: dict[int, dict[str, torch.Tensor]] = {}
    with Session(run_uri=str(folder), checkpoint_every_steps=1, keep=9, **training.objects) as session:
        for _ in session(range(5)):
            expected[session.step] = {name: value.cpu() for name, value in training.clones().items()}
            training.step()  # at once: the copies of the step before are still under way
    store = a_store(LocalStorage(folder))
    for step in range(1, 5):
        found = flat(dict(store.load(f"step-{step}-a1").components))
        assert expected[step].keys() == found.keys()
        torn = [name for name, value in found.items() if not torch.equal(expected[step][name], value)]
        assert not torn, f"step {step}"


@pytest.mark.parametrize("mode", get_args(SnapshotMode))
def test_a_snapshot_is_of_its_safe_point_though_the_next_step_begins_at_once(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_SNAPSHOT", mode)

    assert_each_checkpoint_is_of_its_step(Large("cuda"), tmp_path)


def test_a_training_on_a_stream_of_its_own_is_copied_right(tmp_path: Path) -> None:
    training = Large("cuda")

    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]  # torch
        assert_each_checkpoint_is_of_its_step(training, tmp_path)


def test_the_audit_is_content_with_a_training_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_CHECKPOINT_AUDIT", "1")

    assert_each_checkpoint_is_of_its_step(Large("cuda"), tmp_path)


@needs_two
def test_each_of_two_devices_is_copied_at_its_safe_point(tmp_path: Path) -> None:
    assert_each_checkpoint_is_of_its_step(Large("cuda:0", "cuda:1"), tmp_path)


# --- memory ---


def test_a_slot_is_pinned_until_it_is_closed() -> None:
    slot = Slot(1 << 20, is_pinned=True)
    was_pinned = slot.is_pinned, slot.tensor().is_pinned()

    slot.close()

    assert was_pinned == (True, True)
    assert not slot.tensor().is_pinned()


def test_memory_that_cannot_be_pinned_fails_no_kernel_of_the_training() -> None:
    slot = Slot(1 << 20, is_pinned=True)

    assert not _pin(slot.address, slot.bytes), "it is already"

    assert torch.ones(3, device="cuda").sum().item() == 3.0
    slot.close()


def test_sessions_one_after_the_other_pin_their_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        training = Large("cuda")
        with Session(run_uri=str(tmp_path / str(number)), checkpoint_every_steps=1, **training.objects) as session:
            for _ in session(range(2)):
                training.step()

    assert "could not be pinned" not in caplog.text


ON_THE_SECOND = """
import sys, torch
from trainer_hooks import Session
torch.cuda.set_device(1)
model = torch.nn.Linear(2048, 2048, device="cuda")
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
with Session(run_uri=sys.argv[1], checkpoint_every_steps=1, model=model, optimizer=optimizer) as session:
    for _ in session(range(3)):
        model(torch.ones(1, 2048, device="cuda")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
assert torch._C._cuda_hasPrimaryContext(1)
assert not torch._C._cuda_hasPrimaryContext(0), "a thread of ours took memory of the first GPU"
"""


@needs_two
def test_threads_take_no_memory_of_a_gpu_that_the_training_does_not_use(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", ON_THE_SECOND, str(tmp_path)], cwd=ROOT, check=True)


# --- exact resume ---


class Small:
    """Dropout on the GPU draws from its own random numbers; a scaler whose factor grows, and one overflow."""

    def __init__(self, seed: int, *, is_sharded: bool = False) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, 1)).cuda()
        if is_sharded:
            fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02, fused=True)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.05, total_steps=40)
        self.scaler = torch.amp.GradScaler("cuda", init_scale=64.0, growth_interval=3)
        self.loader = DataLoader(torch.arange(160.0).reshape(20, 8) / 160, batch_size=4, shuffle=True)
        self.objects: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        if not is_sharded:
            self.objects["scaler"] = self.scaler

    def step(self, batch: torch.Tensor, number: int) -> None:
        batch = batch.cuda()
        with torch.autocast("cuda", dtype=torch.float16, enabled="scaler" in self.objects):
            loss = (self.model(batch).squeeze(1) - batch.sum(1) - torch.rand((), device="cuda")).square().mean()
        if "scaler" in self.objects:
            self.scaler.scale(loss * (float("inf") if number == 4 else 1.0)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()
        if number != 4:
            self.scheduler.step()

    def result(self) -> list[torch.Tensor]:
        whole = [getattr(value, "full_tensor", lambda value=value: value)() for value in self.model.parameters()]
        return [value.detach().cpu() for value in whole] + [torch.rand(3, device="cuda").cpu(), torch.rand(3)]


def train(folder: Path, *, seed: int, die_at: int = 0, is_sharded: bool = False) -> list[torch.Tensor]:
    training = Small(seed, is_sharded=is_sharded)
    with Session(run_uri=str(folder), checkpoint_every_steps=2, **training.objects) as session:
        for batch in session(training.loader, steps=STEPS):
            if session.step + 1 == die_at:
                raise Death
            training.step(batch, session.step + 1)
        return training.result()


def undisturbed(*, is_sharded: bool = False) -> list[torch.Tensor]:
    training, number = Small(0, is_sharded=is_sharded), 0
    while True:
        for batch in training.loader:
            number += 1
            training.step(batch, number)
            if number == STEPS:
                return training.result()


@pytest.mark.parametrize("die_at", range(3, STEPS + 1))
def test_mixed_precision_killed_in_any_step_ends_bit_equal(die_at: int, tmp_path: Path) -> None:
    expected = undisturbed()

    with pytest.raises(Death):
        train(tmp_path, seed=0, die_at=die_at)

    assert all(map(torch.equal, expected, train(tmp_path, seed=9)))


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda:0"))
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("nccl")
def test_a_sharded_model_under_nccl_ends_bit_equal(tmp_path: Path) -> None:
    expected = undisturbed(is_sharded=True)

    with pytest.raises(Death):
        train(tmp_path / "run", seed=0, die_at=6, is_sharded=True)

    assert all(map(torch.equal, expected, train(tmp_path / "run", seed=9, is_sharded=True)))


def test_what_a_gpu_saved_goes_on_without_one(tmp_path: Path) -> None:
    with pytest.raises(Death):
        train(tmp_path, seed=0, die_at=6)
    expected = a_store(LocalStorage(tmp_path)).load("step-4-a1").components["model"]
    training = Small(9)
    training.model.cpu()
    objects = training.objects | {"scaler": torch.amp.GradScaler("cpu")}

    Session(run_uri=str(tmp_path), **objects).close()

    assert all(torch.equal(expected[name], value) for name, value in training.model.state_dict().items())
