"""The other libraries; what they need beyond torch is in benchmarks/requirements.txt."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save, save

from benchmarks.checkpoint.methods import Blocking, Method, Pending
from benchmarks.checkpoint.training import Training


class TorchSave(Blocking):
    name = "torch.save"

    def write(self, folder: Path) -> None:
        torch.save(self.training.state(), folder / "state.pt")


class Safetensors(Blocking):
    name = "safetensors"
    needs = ("safetensors",)

    def write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file(self.training.tensors(), folder / "state.safetensors")
        groups = self.training.optimizer.state_dict()["param_groups"]
        (folder / "groups.json").write_text(json.dumps(groups))


class DcpSave(Blocking):
    name = "DCP save"
    fsyncs = True

    def write(self, folder: Path) -> None:
        save(self.training.state(), checkpoint_id=folder, no_dist=True)


class DcpAsync(Method):
    """`async_save`. `is_cached`: one stager for all saves; `is_overlapped`: it copies while the next step runs."""

    fsyncs = True

    def __init__(self, name: str, *, in_process: bool, is_cached: bool = False, is_overlapped: bool = False) -> None:
        self.name = name
        self._in_process = in_process
        self._has_stager = is_cached or is_overlapped
        self._is_overlapped = is_overlapped

    def open(self, training: Training, folder: Path) -> None:
        super().open(training, folder)
        self._staged: Future[None] | None = None
        self._stager = self._new_stager() if self._has_stager else None
        self._fence = training.optimizer.register_step_pre_hook(self._wait_until_staged)  # the user's duty
        if self._in_process:
            os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # where the saving process looks for its peers
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]  # re-exported unlisted

    def save(self) -> Pending:
        pending, folder = Pending(), self.fresh_folder()
        response = async_save(
            self.training.state(),
            checkpoint_id=folder,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS if self._in_process else AsyncCheckpointerType.THREAD,
            async_stager=self._stager,
            no_dist=not self._in_process,
        )
        if isinstance(response, AsyncSaveResponse):
            self._staged = response.staging_completion
            response = response.upload_completion
        response.add_done_callback(lambda upload: pending.settle(upload.result, folder))
        return pending

    def close(self) -> None:
        self._fence.remove()
        if self._stager is not None:
            self._stager.close()
            self._stager = None
        if self._in_process:
            dist.destroy_process_group()

    def _wait_until_staged(self, *_: object) -> None:
        if self._staged is not None:
            self._staged.result()
            self._staged = None

    def _new_stager(self) -> DefaultStager:
        options = StagingOptions(
            use_pinned_memory=self.training.is_cuda,
            use_shared_memory=self._in_process,
            use_async_staging=self._is_overlapped,
            use_non_blocking_copy=self.training.is_cuda,
        )
        return DefaultStager(options)


class LightningAsync(Method):
    """The plug-in, called as Lightning's strategy calls it."""

    name = "Lightning AsyncCheckpointIO"
    needs = ("lightning",)

    def open(self, training: Training, folder: Path) -> None:
        from lightning.pytorch.plugins.io import (  # type: ignore[import-not-found,unused-ignore]  # a peer, not needed
            AsyncCheckpointIO,
            TorchCheckpointIO,
        )

        super().open(training, folder)
        plain = TorchCheckpointIO()
        write = plain.save_checkpoint

        def save_checkpoint(checkpoint: dict[str, Any], path: Path, storage_options: Any = None) -> None:
            self._pending.settle(lambda: write(checkpoint, path, storage_options), path.parent)

        plain.save_checkpoint = save_checkpoint  # on its thread: the only place that knows when it is done
        self._plugin = AsyncCheckpointIO(plain)

    def save(self) -> Pending:
        self._pending, state = Pending(), self.training.state()
        checkpoint = {"state_dict": state["model"], "optimizer_states": [state["optimizer"]]}
        self._plugin.save_checkpoint(checkpoint, self.fresh_folder() / "last.ckpt", storage_options=None)
        return self._pending

    def close(self) -> None:
        self._plugin.teardown()


class Torchsnapshot(Method):
    name = "torchsnapshot async_take"
    needs = ("torchsnapshot",)

    def save(self) -> Pending:
        from torchsnapshot import Snapshot  # type: ignore[import-not-found,unused-ignore]  # a peer, not needed

        pending, folder = Pending(), self.fresh_folder()
        objects = {"model": self.training.model, "optimizer": self.training.optimizer}
        snapshot = Snapshot.async_take(str(folder), objects)
        threading.Thread(target=pending.settle, args=(snapshot.wait, folder)).start()
        return pending


def peers() -> list[Method]:
    return [
        TorchSave(),
        Safetensors(),
        DcpSave(),
        DcpAsync("DCP async, thread, default", in_process=False),
        DcpAsync("DCP async, thread, cached stager", in_process=False, is_cached=True),
        DcpAsync("DCP async, thread, zero-overhead", in_process=False, is_overlapped=True),
        DcpAsync("DCP async, process, cached stager", in_process=True, is_cached=True),
        DcpAsync("DCP async, process, zero-overhead", in_process=True, is_overlapped=True),
        LightningAsync(),
        Torchsnapshot(),
    ]
