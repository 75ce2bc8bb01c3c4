"""A snapshot is of its safe point, whatever the training does meanwhile; and it holds up nothing but a step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from trainer_hooks.checkpoint import objects as state
from trainer_hooks.checkpoint.fences import Fences
from trainer_hooks.checkpoint.image import EXPOSED, FROZEN, OWNED, image_of
from trainer_hooks.checkpoint.layout import CHUNK_BYTES, parts
from trainer_hooks.checkpoint.memory import Memory
from trainer_hooks.checkpoint.snapshot import Copied, Snapshot
from trainer_hooks.errors import Torn

SIZE = 600  # of a square weight: large enough that a state is several chunks


class Held:
    """A snapshot whose memory is too small for it: the copies go on when the test gives a chunk back."""

    def __init__(self, fences: Fences, objects: dict[str, Any], *, slots: int | None, audit: bool = False) -> None:
        ownership = fences.ownership()
        components = state.capture(objects, spent=fences.spent_gradients())
        self.image = image_of(components, owned=ownership.owned, frozen=ownership.frozen)
        self.memory = Memory()
        sizes = self.image.layout.chunk_bytes
        self.memory.limit(None if slots is None else slots * max(sizes))
        self.snapshot = Snapshot(
            image=self.image, memory=self.memory, chunks=tuple(range(len(sizes))), is_audited=audit
        )
        self.content: dict[int, bytes] = {}
        self.exposed = self.snapshot.copy_exposed()
        self.go_on = threading.Event()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        for copied in chain(self.exposed, self.snapshot.copy_rest()):
            self.go_on.wait()
            self._keep(copied)

    def _keep(self, copied: Copied) -> None:
        copied.wait()
        self.content[copied.chunk] = bytes(copied.slot.view)
        self.memory.give_back(copied.slot)

    def bytes_of(self, number: int) -> bytes:
        self._thread.join()
        stored, sizes = self.image.tensors[number], self.image.layout.chunk_bytes
        spots = parts(stored.pieces[0].spot, stored.bytes, sizes)
        return b"".join(self.content[chunk][start : start + size] for chunk, start, size in spots)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


class Training:
    """A model that takes several chunks, and whatever steps it."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.BatchNorm1d(SIZE), nn.Linear(SIZE, SIZE))
        self.optimizer = make(self.model.parameters())
        self.objects = {"model": self.model, "optimizer": self.optimizer}
        self.held: Held | None = None
        self.fences = Fences(self.objects, lambda: self.held.snapshot.fence() if self.held else None)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        loss = self.model(torch.rand(4, SIZE)).square().mean()
        if scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(self.optimizer)
            scaler.update()
        self.optimizer.zero_grad()
        self.fences.safe_point()

    def state(self) -> list[bytes]:
        found: list[torch.Tensor] = []
        for component in (self.model.state_dict(), self.optimizer.state_dict()["state"]):
            for value in component.values():
                found += value.values() if isinstance(value, dict) else [value]
        return [raw(tensor) for tensor in found]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True),
    "fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "plain": lambda parameters: torch.optim.AdamW(parameters, foreach=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("is_scaled", [False, True])
def test_a_step_waits_until_what_it_changes_is_copied(name: str, is_scaled: bool) -> None:
    training = Training(OPTIMIZERS[name])
    scaler = torch.amp.GradScaler("cpu") if is_scaled else None
    for _ in range(2):
        training.step(scaler)
    expected = training.state()

    training.held = held = Held(training.fences, training.objects, slots=1)
    stepping = threading.Thread(target=training.step, args=(scaler,))
    stepping.start()
    stepping.join(0.3)  # long enough for a step; nothing is expected of it
    has_waited = stepping.is_alive()
    held.go_on.set()
    stepping.join()

    assert has_waited
    assert expected == [held.bytes_of(number) for number in range(len(expected))]
    assert expected != training.state()


def test_forward_and_backward_do_not_wait() -> None:
    training = Training(OPTIMIZERS["sgd"])
    training.step()

    training.held = held = Held(training.fences, training.objects, slots=1)
    training.model(torch.rand(4, SIZE)).sum().backward()

    assert len(held.content) < len(held.image.layout.chunk_bytes)
    held.go_on.set()


def test_what_no_optimizer_owns_is_copied_at_the_safe_point() -> None:
    training = Training(OPTIMIZERS["sgd"])
    training.step()
    training.objects["ema"] = ema = torch.optim.swa_utils.AveragedModel(training.model)
    expected = raw(training.model[1].running_mean), raw(ema.module[0].weight)

    training.held = held = Held(training.fences, training.objects, slots=1)
    training.model(torch.rand(4, SIZE))  # the batch norm moves on
    ema.update_parameters(training.model)
    held.go_on.set()

    found = [held.bytes_of(number) for number in range(len(held.image.tensors))]
    assert all(one in found for one in expected)


def test_groups_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([model[0].weight, *model[1].parameters()], lr=0.1, momentum=0.9)
    other = nn.Linear(3, 3).requires_grad_(False)
    model(torch.rand(2, 4)).sum().backward()
    objects = {"model": model, "optimizer": optimizer, "other": other}
    fences = Fences(objects, lambda: None)
    optimizer.step()

    image = image_of(state.capture(objects, spent=()), owned=fences.ownership().owned, frozen=fences.ownership().frozen)
    groups = [image.layout.chunk_groups[spot.chunk] for spot in image.layout.spots]
    by_name = {
        "weight": groups[0],
        "frozen bias": groups[1],
        "batch norm's mean": groups[4],
        "momentum": groups[7],
        "an object without an optimizer": groups[-4],
    }

    assert by_name == {
        "weight": OWNED,
        "frozen bias": FROZEN,
        "batch norm's mean": EXPOSED,
        "momentum": OWNED,
        "an object without an optimizer": EXPOSED,
    }


@pytest.mark.parametrize("clearing", ["to none", "in place", "never", "first"])
def test_gradients_are_left_out_only_if_the_script_clears_them(clearing: str) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objects = {"model": model, "optimizer": optimizer}
    fences = Fences(objects, lambda: None)
    kept = []
    for _ in range(4):
        if clearing == "first":
            optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        if clearing in ("to none", "in place"):
            optimizer.zero_grad(set_to_none=clearing == "to none")
        kept.append(state.GRADIENTS in state.capture(objects, spent=fences.spent_gradients()))
        fences.safe_point()

    expected = {"to none": [False] * 4, "in place": [True] * 4, "never": [True] * 4, "first": [True] + [False] * 3}
    assert kept == expected[clearing]


def test_gradients_of_an_accumulation_are_kept_where_the_script_clears_after_steps() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    objects = {"model": model, "optimizer": optimizer}
    fences = Fences(objects, lambda: None)
    kept = []
    for number in range(1, 9):
        if number % 2:
            optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        if number % 2 == 0:
            optimizer.step()
        kept.append(state.GRADIENTS in state.capture(objects, spent=fences.spent_gradients()))
        fences.safe_point()

    assert kept[4:] == [True, False, True, False]


def test_the_audit_finds_who_changes_a_state_before_the_step() -> None:
    training = Training(OPTIMIZERS["sgd"])
    training.step()

    held = Held(training.fences, training.objects, slots=1, audit=True)
    training.model[2].weight.data.add_(1)
    held.go_on.set()
    held.snapshot.fence()

    with pytest.raises(Torn, match=r"model/2\.weight changed"):
        held.snapshot.demand_whole()


def test_the_audit_is_content_with_a_training_that_keeps_to_the_rules() -> None:
    training = Training(OPTIMIZERS["fused"])
    training.step()

    training.held = held = Held(training.fences, training.objects, slots=None, audit=True)
    held.go_on.set()
    training.step()

    held.snapshot.demand_whole()


def test_a_copy_that_fails_holds_up_no_step() -> None:
    training = Training(OPTIMIZERS["sgd"])
    training.step()
    ownership = training.fences.ownership()
    image = image_of(state.capture(training.objects, spent=()), owned=ownership.owned, frozen=frozenset())

    class Exhausted(Memory):
        def take(self, size_bytes: int, *, waits: bool = True) -> Any:
            if waits:
                raise MemoryError
            return super().take(size_bytes, waits=waits)

    snapshot = Snapshot(image=image, memory=Exhausted(), chunks=tuple(range(len(image.copies))))
    snapshot.copy_exposed()
    with pytest.raises(MemoryError):
        list(snapshot.copy_rest())

    snapshot.fence()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(8, 3, 5, 7).to(memory_format=torch.channels_last),
        torch.rand(40, 30).t(),
        torch.rand(40, 30)[::2, ::3],
        torch.rand(1).expand(5, 3),
        torch.rand(5, 4, dtype=torch.complex64).conj(),
        torch.rand(4, 4).bfloat16(),
        torch.tensor(True),
        torch.empty(0, 3),
        torch.arange(300, dtype=torch.int16)[7:],
        torch.rand(6, 6).to(torch.float8_e4m3fn),
    ],
    ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}",
)
def test_bytes_are_those_of_the_tensor_in_the_order_that_the_manifest_says(tensor: torch.Tensor) -> None:
    held = Held(Fences({}, lambda: None), {"thing": _Holder(tensor)}, slots=None)
    held.go_on.set()
    stored = held.image.tensors[0]
    content = held.bytes_of(0)

    flat = torch.frombuffer(bytearray(content or bytes(16)), dtype=tensor.dtype)
    strides = stored.strides or torch.empty(stored.shape).stride()
    again = flat.as_strided(stored.shape, strides)

    assert stored.shape == tuple(tensor.shape)
    plain = tensor.resolve_conj().contiguous()
    assert raw(plain) == raw(again)


class _Holder:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"tensor": self._tensor}

    def load_state_dict(self, state: Any) -> None: ...


# --- memory ---


def test_memory_that_was_given_back_is_taken_again() -> None:
    memory = Memory()
    first = memory.take(4096)
    address = first.address
    memory.give_back(first)

    assert memory.take(4096).address == address
    assert memory.take(4096).address != address


def test_a_limit_holds_up_who_waits_and_nobody_else() -> None:
    memory = Memory()
    memory.limit(8192)
    slots = [memory.take(4096) for _ in range(2)]
    taken = threading.Event()
    waiting = threading.Thread(target=lambda: (memory.take(4096), taken.set()), daemon=True)
    waiting.start()

    memory.take(4096, waits=False)
    assert not taken.wait(0.1)
    memory.give_back(slots[0])
    memory.give_back(slots[1])

    assert taken.wait(30)


def test_a_slot_larger_than_the_limit_is_had_alone() -> None:
    memory = Memory()
    memory.limit(4096)

    assert memory.take(CHUNK_BYTES).bytes == CHUNK_BYTES


def test_memory_is_page_aligned() -> None:
    assert Memory().take(4096).address % 4096 == 0
