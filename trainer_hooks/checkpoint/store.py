"""Checkpoints of a run: written so that a reader sees a whole one or none, verified before they are used.

checkpoints/step-<N>-a<attempt>/<component>.pt     hashed while written
checkpoints/step-<N>-a<attempt>/manifest.json      written last: the commit
"""

from __future__ import annotations

import errno
import hashlib
import io
import pickle
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from trainer_hooks.checkpoint import manifest as manifests
from trainer_hooks.checkpoint.manifest import File, Manifest
from trainer_hooks.errors import CheckpointsDamaged, Damaged, NotLoadable, Superseded
from trainer_hooks.protocol import CHECKPOINTS, MANIFEST, checkpoint_name, parse_checkpoint_name
from trainer_hooks.storage import Storage, Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who writes: `attempt` also decides who may (see `Store.fence`)."""

    run_id: str
    attempt: int
    world_size: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A damaged checkpoint that was newer than the one that is used."""

    name: str
    step: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A verified checkpoint, in memory, applied to nothing yet."""

    name: str
    manifest: Manifest
    components: Mapping[str, Any]
    skipped: Sequence[Skipped] = ()

    @property
    def lost_steps(self) -> int:
        return max((max(0, one.step - self.manifest.step) for one in self.skipped), default=0)


class Store:
    """The checkpoints in one run folder. Every method raises OSError where the storage fails."""

    def __init__(self, storage: Storage, *, owner: Owner, keep: int) -> None:
        self._storage = storage
        self._owner = owner
        self._keep = keep
        self._verified: set[str] = set()  # committed or verified by this process
        self._proven: set[str] = set()  # components that were read back once

    def load_newest(self) -> Loaded | None:
        """The newest checkpoint that verifies: of the highest attempt, of its highest step.

        `None` only if nothing was ever committed. Raises: CheckpointsDamaged: something was, and none verifies.
        """
        skipped: list[Skipped] = []
        for _, step, name in self._candidates():
            try:
                loaded = self.load(name, skipped=skipped)
            except (Damaged, OSError) as error:
                skipped.append(Skipped(name, step, str(error)))
                continue
            return loaded
        if skipped:
            found = "; ".join(f"{one.name}: {one.why}" for one in skipped)
            raise CheckpointsDamaged(
                f"no checkpoint in {CHECKPOINTS}/ verifies ({found}). Restore one of them from a backup, "
                f"or delete the folder {CHECKPOINTS}/ to start over"
            )
        return None

    def load(self, name: str, *, skipped: Sequence[Skipped] = ()) -> Loaded:
        """Read and verify one checkpoint. Raises: Damaged."""
        folder = f"{CHECKPOINTS}/{name}"
        raw = self._storage.read(f"{folder}/{MANIFEST}", limit_bytes=manifests.LIMIT_BYTES)
        manifest = manifests.decode(raw, name=name)
        components = {
            file.removesuffix(".pt"): _parse(self._read(f"{folder}/{file}", entry), file)
            for file, entry in manifest.files.items()
        }
        self._verified.add(name)
        return Loaded(name=name, manifest=manifest, components=components, skipped=tuple(skipped))

    def commit(self, step: int, components: Mapping[str, Any], *, cursor: Mapping[str, Any]) -> Manifest:
        """Write a checkpoint; it exists when this returns. On any failure nothing of it is left, if possible.

        Raises: Superseded: a newer attempt exists. NotLoadable: a component cannot be read back.
        """
        name = checkpoint_name(step, self._owner.attempt)
        try:
            self._discard(name)  # left by a process that had this attempt's number, or failed to verify
            files = {f"{part}.pt": self._write(name, part, state) for part, state in components.items()}
            manifest = self._manifest(step, cursor=cursor, files=files)
            self.fence()
            with self._storage.create(f"{CHECKPOINTS}/{name}/{MANIFEST}") as writer:
                writer.write(manifests.encode(manifest))
        except Exception:
            with suppress(OSError):
                self._discard(name)
            raise
        self._verified.add(name)
        return manifest

    def has(self, step: int) -> bool:
        """Whether this process committed (or loaded) the checkpoint that this attempt would write at `step`."""
        return checkpoint_name(step, self._owner.attempt) in self._verified

    def fence(self) -> None:
        """Raises: Superseded: an attempt with a higher number has written here, so the run is no longer ours."""
        for newer in attempts(self._storage):
            if newer > self._owner.attempt:
                raise Superseded(f"attempt {newer} of this run exists, this is attempt {self._owner.attempt}")

    def prune(self) -> None:
        """Keep the newest `keep` verified checkpoints; may be repeated after a crash at any point.

        Others go once that many are kept, the manifest of each before its data: what is half deleted is no
        checkpoint. Attempts newer than ours are not ours to touch.
        """
        ours = [one for one in self._all() if one[0] <= self._owner.attempt]
        kept = [name for _, _, name in ours if name in self._verified][: self._keep]
        for _, _, name in ours:
            may_be_needed = len(kept) < self._keep and name not in self._verified and self._is_committed(name)
            if name not in kept and not may_be_needed:
                self._discard(name)

    def _all(self) -> list[tuple[int, int, str]]:
        """`(attempt, step, name)`, the newest first."""
        return sorted(_checkpoints(self._storage), reverse=True)

    def _candidates(self) -> Iterator[tuple[int, int, str]]:
        return (one for one in self._all() if self._is_committed(one[2]))

    def _is_committed(self, name: str) -> bool:
        try:
            return MANIFEST in self._storage.names(f"{CHECKPOINTS}/{name}")
        except OSError:
            return True  # unreadable: whoever loads it will say why

    def _discard(self, name: str) -> None:
        try:
            self._storage.delete(f"{CHECKPOINTS}/{name}/{MANIFEST}")
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link is removed as such; what it leads to is not ours
                raise
        self._verified.discard(name)
        self._storage.delete(f"{CHECKPOINTS}/{name}")

    def _write(self, name: str, part: str, state: Any) -> File:
        import torch

        path = f"{CHECKPOINTS}/{name}/{part}.pt"
        with self._storage.create(path) as target:
            writer = _HashingWriter(target)
            try:
                torch.save(state, writer)  # type: ignore[arg-type]  # it needs no more than `write`
            except (AttributeError, TypeError, pickle.PicklingError) as error:
                raise NotLoadable(_not_loadable(part, error)) from error
            writer.finish()
        file = File(bytes=writer.bytes, sha256=writer.sha256())
        if part not in self._proven:
            self._prove(path, part, file)
        return file

    def _prove(self, path: str, part: str, file: File) -> None:
        """Read a component back, once: the user learns now what the resume could not load."""
        import torch

        try:
            raw = self._read(path, file)
        except Damaged as error:
            raise OSError(f"{path} was read back differently: {error}") from error
        try:
            torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises what it likes
            raise NotLoadable(_not_loadable(part, error)) from error
        self._proven.add(part)

    def _read(self, path: str, file: File) -> bytes:
        """The bytes that were hashed are the bytes that are returned: nothing is read twice."""
        raw = self._storage.read(path, limit_bytes=file.bytes)
        if len(raw) != file.bytes:
            raise Damaged(f"{path} has {len(raw):,} bytes, {file.bytes:,} were written")
        if hashlib.sha256(raw).hexdigest() != file.sha256:
            raise Damaged(f"{path} is not what was written: its hash differs")
        return raw

    def _manifest(self, step: int, *, cursor: Mapping[str, Any], files: Mapping[str, File]) -> Manifest:
        import torch

        return Manifest(
            step=step,
            attempt=self._owner.attempt,
            run_id=self._owner.run_id,
            created_at=datetime.fromtimestamp(time.time(), UTC),
            torch=torch.__version__,
            world_size=self._owner.world_size,
            cursor=cursor,
            files=files,
        )


def attempts(storage: Storage) -> set[int]:
    """Numbers of the attempts that have written to this run folder."""
    journals = {int(name) for name in storage.names("journal") if re.fullmatch(r"\d{1,9}", name)}
    return journals | {attempt for attempt, _, _ in _checkpoints(storage)}


class _HashingWriter:
    """Hashes and counts what it passes on.

    A failure is kept until `finish`: raised inside `torch.save` it would come out as another error.
    """

    def __init__(self, target: Writer) -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self._error: BaseException | None = None
        self.bytes = 0

    def write(self, data: Any) -> int:
        size = len(data)
        if self._error is None:
            try:
                self._hash.update(data)
                self._target.write(data)
                self.bytes += size
            except BaseException as error:  # a signal handler may raise anything, anywhere
                self._error = error
        return size

    def flush(self) -> None:
        """The storage flushes at its end."""

    def finish(self) -> None:
        if self._error is not None:
            raise self._error

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _checkpoints(storage: Storage) -> Iterator[tuple[int, int, str]]:
    for name in storage.names(CHECKPOINTS):
        parsed = parse_checkpoint_name(name)
        if parsed:
            yield parsed[1], parsed[0], name


def _parse(raw: bytes, file: str) -> Any:
    import torch

    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # the hash fits, so somebody else wrote it: it may raise anything
        raise Damaged(f"{file} is no component's state ({type(error).__name__})") from error


def _not_loadable(part: str, error: Exception) -> str:
    blocked = re.search(r"GLOBAL (\S+)", str(error))
    found = f"it holds a {blocked[1]}" if blocked else f"{type(error).__name__}: {error}"
    return (
        f"the state of {part} cannot be read back without running code from the file: {found}. "
        f"Let {part}.state_dict() return tensors, numbers, strings, lists and dicts only "
        "(for a scheduler or an own class: int(…), float(…), .tolist() instead of numpy values)"
    )
