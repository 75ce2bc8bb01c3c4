"""A checkpoint in the formats of others, as a folder that is there whole or not at all.

    torch         <component>.pt             `torch.load` gives what state_dict() returned
    safetensors   <component>.safetensors    tensors under their paths; all else as JSON in the metadata, key "state",
                                             in the words of docs/checkpoint-format.md, with the path of each tensor
    dcp           .metadata, *.distcp        `torch.distributed.checkpoint.load` reads it, on any number of ranks

Of these, only safetensors is free of pickles.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer_hooks.checkpoint import tree
from trainer_hooks.checkpoint.manifest import Manifest
from trainer_hooks.errors import Damaged, NotLoadable

if TYPE_CHECKING:
    import torch

Format = Literal["torch", "safetensors", "dcp"]


def export(manifest: Manifest, tensors: Sequence[torch.Tensor], target: Path, *, to: Format) -> tuple[str, ...]:
    """Write a checkpoint, whose `tensors` were read and verified, to the new folder `target`; names of the files.

    Raises: FileExistsError: there is something already. NotLoadable: the format cannot hold this state.
    Damaged: its state is not what a session writes. ImportError: the format's library is not installed. OSError.
    """
    write: Mapping[Format, Callable[[Manifest, Sequence[torch.Tensor], Path], None]] = {
        "torch": _to_torch,
        "safetensors": _to_safetensors,
        "dcp": _to_dcp,
    }
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists; name a folder that does not")
    for name in manifest.state:
        if not name.isidentifier():  # it was a keyword argument, and becomes a file's name
            raise Damaged(f"one of its components is called {name[:80]!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    unfinished.mkdir()
    try:
        write[to](manifest, tensors, unfinished)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return tuple(sorted(path.name for path in target.iterdir()))


def _to_torch(manifest: Manifest, tensors: Sequence[torch.Tensor], folder: Path) -> None:
    import torch

    for name, plain in manifest.state.items():
        torch.save(tree.decode(plain, tensors), folder / f"{name}.pt")


def _to_dcp(manifest: Manifest, tensors: Sequence[torch.Tensor], folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {name: tree.decode(plain, tensors) for name, plain in manifest.state.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as no_dist says
        save(state, checkpoint_id=folder, no_dist=True)


def _to_safetensors(manifest: Manifest, tensors: Sequence[torch.Tensor], folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    for name, plain in manifest.state.items():
        names, aliases = _names(plain)
        metadata = {
            "format": "pt",
            "state": json.dumps(_named(plain, names)),
            "aliases": json.dumps(aliases),
            "step": str(manifest.step),
            "run_id": manifest.run_id,
        }
        held = {held_as: tensors[number].contiguous() for number, held_as in names.items()}
        try:
            save_file(held, folder / f"{name}.safetensors", metadata=metadata)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error}"
            raise NotLoadable(f"safetensors cannot hold the state of {name} ({why}); export it to torch") from error


def _names(plain: Any) -> tuple[dict[int, str], dict[str, str]]:
    """Of each tensor by its number; and of tied ones, which the format holds once, their other names."""
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    taken: set[str] = set()
    for path, number in tree.walk(plain):
        if number in names:
            aliases[path] = names[number]
            continue
        names[number] = f"{path}~{number}" if path in taken else path  # keys 1 and "1" read alike
        taken.add(names[number])
    return names, aliases


def _named(plain: Any, names: Mapping[int, str]) -> Any:
    """With names where the manifest has numbers."""
    if isinstance(plain, list):
        return [_named(one, names) for one in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.get("$") == "tensor":
        return {"$": "tensor", "name": names[plain["i"]]}
    return {key: _named(one, names) for key, one in plain.items()}
