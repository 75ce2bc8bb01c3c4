"""The checkpoints of a run: committed so that a reader sees a whole one or none, verified before they are used.

chunks/<hash>                                       put once, for any number of checkpoints
checkpoints/step-<N>-a<attempt>/manifest.json       put last, and only if there is none: the commit
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer_hooks.checkpoint import manifest as manifests
from trainer_hooks.checkpoint.chunks import Chunks
from trainer_hooks.checkpoint.manifest import Chunk, Manifest
from trainer_hooks.checkpoint.reader import WRONG_OBJECT, Reader, retried
from trainer_hooks.checkpoint.retention import Candidate, Retention, kept
from trainer_hooks.errors import CheckpointsDamaged, Damaged, Superseded
from trainer_hooks.protocol import CHECKPOINTS, MANIFEST, checkpoint_name, parse_checkpoint_name

if TYPE_CHECKING:
    from trainer_hooks.storage import Storage

Fetch = Callable[[Reader], Sequence[Any]]
"""Reads what this process wants of each tensor, in the order of the manifest; `None` where that is nothing."""


def whole_tensors(reader: Reader) -> list[Any]:
    numbers = range(len(reader.manifest.tensors))
    found = reader.read(numbers)
    return [found[number] for number in numbers]


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
    """A verified checkpoint, in memory, applied to nothing yet. `places` are what each rank had of its own."""

    name: str
    manifest: Manifest
    components: Mapping[str, Any]
    places: Sequence[Any]
    skipped: Sequence[Skipped] = ()

    @property
    def lost_steps(self) -> int:
        return max((max(0, one.step - self.manifest.step) for one in self.skipped), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """`stored_bytes` of all chunks in the run folder: what is paid for."""

    names: tuple[str, ...]  # the newest first
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """What pruning needs of a manifest."""

    candidate: Candidate
    hashes: frozenset[str]


class Store:
    """The checkpoints in one run folder. Every method raises OSError where the storage fails."""

    def __init__(self, storage: Storage, *, owner: Owner, retention: Retention) -> None:
        self.owner = owner
        self.parallel = storage.parallel  # how many chunks at once pay off
        self._storage = storage
        self._retention = retention
        self._chunks = Chunks(storage)
        self._entries: dict[str, _Entry] = {}
        self._verified: set[str] = set()  # committed or verified by this process
        self._damaged: set[str] = set()
        self._turn = threading.Lock()  # a commit and a prune each see the folder as the other left it

    def load_newest(self, *, fetch: Fetch = whole_tensors) -> Loaded | None:
        """The newest checkpoint that verifies: of the highest attempt, of its highest step.

        `None` only if nothing was ever committed. Raises: as `load_newest_of`.
        """
        found = load_newest_of([self], fetch=fetch)
        return None if found is None else found[1]

    def load(
        self, name: str, *, skipped: Sequence[Skipped] = (), fetch: Fetch = whole_tensors, is_first: bool = True
    ) -> Loaded:
        """Read one checkpoint and verify it; where not `is_first`, only the chunks that this process needs of it.

        Raises: Damaged. FileNotFoundError: it was never committed.
        """
        manifest = self.manifest(name)
        with self._judged(name, manifest) as reader:
            tensors = fetch(reader)
            if is_first:
                reader.verify()
                self._verified.add(name)
            components, places = _decoded(manifest, tensors)
        return Loaded(name=name, manifest=manifest, components=components, places=places, skipped=tuple(skipped))

    def verify(self, name: str) -> Manifest:
        """Hash every chunk of a checkpoint, in little memory.

        Raises: Damaged. FileNotFoundError: it was never committed.
        """
        manifest = self.manifest(name)
        with self._judged(name, manifest) as reader:
            reader.verify()
            self._verified.add(name)
        return manifest

    def manifest(self, name: str) -> Manifest:
        """What a checkpoint says of itself; its chunks were not looked at.

        Raises: Damaged. FileNotFoundError: it was never committed.
        """
        path = f"{CHECKPOINTS}/{name}/{MANIFEST}"
        try:
            raw = retried(lambda: self._storage.read(path, limit_bytes=manifests.LIMIT_BYTES))
            manifest = manifests.decode(raw, name=name)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in WRONG_OBJECT:
                raise
            self._damaged.add(name)
            raise Damaged(f"{path} is not what was written: {error.strerror or error}") from error
        except Damaged:
            self._damaged.add(name)
            raise
        self._entries[name] = _entry(name, manifest)
        return manifest

    def names(self) -> tuple[str, ...]:
        """Of all checkpoints, the newest first; what was begun and never committed among them."""
        return tuple(name for _, _, name in self.all())

    def all(self) -> list[tuple[int, int, str]]:
        """The same with what they are called after: `(attempt, step, name)`."""
        return sorted(_checkpoints(self._storage), reverse=True)

    def knows(self, chunk_hash: str) -> bool:
        """Whether this chunk need not be written. If so, it stays until the next commit."""
        return self._chunks.knows(chunk_hash)

    def read_chunk(self, chunk: Chunk) -> memoryview:
        """Raises: Damaged: it is not what was written."""
        return self._chunks.read(chunk)

    def put_chunk(self, chunk_hash: str, data: memoryview) -> int:
        """Bytes written, 0 where the chunk is known; it stays until the next commit. From any thread."""
        return self._chunks.put(chunk_hash, data)

    def commit(self, manifest: Manifest) -> None:
        """The checkpoint exists when this returns, and not before.

        Raises: Superseded: a newer attempt exists, or another process has the same number. NotLoadable: see `encode`.
        OSError: a chunk is missing, or the storage fails: then it may exist, whole, or not.
        """
        if manifest.attempt > self.owner.attempt:  # an older one's may be brought here from another store
            raise ValueError(f"the manifest is of attempt {manifest.attempt}, this is attempt {self.owner.attempt}")
        name = checkpoint_name(manifest.step, manifest.attempt)
        raw = manifests.encode(manifest)
        with self._turn:
            self._chunks.settle(manifest.chunks)
            self.fence()
            if name in self._damaged:
                self._discard(name)
            self._put_manifest(name, manifest, raw)
            self._entries[name] = _entry(name, manifest)
            self._verified.add(name)
            self._chunks.landed(self._entries[name].hashes)

    def has(self, step: int) -> bool:
        """Whether this process committed (or verified) the checkpoint that this attempt would write at `step`."""
        return checkpoint_name(step, self.owner.attempt) in self._verified

    def abandon(self) -> None:
        """The save that was going on came to nothing: what it wrote may be removed."""
        self._chunks.abandon()

    def committed_elsewhere(self, manifest_hashes: Iterable[str]) -> None:
        """Rank 0 committed a save that this rank's chunks are part of; from now on it may remove all others.

        Every rank but the first calls it after every commit: what it knew besides is not to be relied upon.
        """
        hashes = set(manifest_hashes)
        self._chunks.forget_but(hashes)
        self._chunks.landed(hashes)

    def fence(self) -> None:
        """Raises: Superseded: an attempt with a higher number has written here, so the run is no longer ours."""
        for newer in attempts(self._storage):
            if newer > self.owner.attempt:
                raise Superseded(f"attempt {newer} of this run exists, this is attempt {self.owner.attempt}")

    def prune(self, *, beside: Collection[str] = ()) -> Kept:
        """Remove the checkpoints that need not be kept, then the chunks that no other refers to.

        May be repeated after a crash at any point: each manifest goes before its chunks, and what has none is no
        checkpoint. Only verified checkpoints count as kept; as long as there are fewer than `keep` of them, none is
        removed, nor are those `beside` at any time. Other processes must not be writing: what they have in flight is
        not known here.

        Raises: Superseded: a newer attempt exists; what is here is not ours to remove.
        """
        with self._turn:
            self.fence()
            there = self._surveyed()
            keep = self._kept(there) | set(beside)
            for name in there:
                if name not in keep:
                    self._discard(name)
            names = tuple(name for name in there if name in keep)
            referenced = self._referenced(names)
            stored = self._chunks.stored_bytes() if referenced is None else self._chunks.remove_but(referenced)
            return Kept(names=names, stored_bytes=stored)

    @contextmanager
    def _judged(self, name: str, manifest: Manifest) -> Iterator[Reader]:
        """A reader; if it raises Damaged, so is the checkpoint."""
        self._verified.discard(name)
        try:
            self._chunks.demand_none_wrong(manifest.chunks)
            yield Reader(self._storage, manifest, on_chunk=self._chunks.heard)
            self._damaged.discard(name)
        except Damaged:
            self._damaged.add(name)
            self._verified.discard(name)
            raise

    def _put_manifest(self, name: str, manifest: Manifest, raw: bytes) -> None:
        path = f"{CHECKPOINTS}/{name}/{MANIFEST}"
        try:
            self._storage.put(path, raw, exclusive=True)
        except FileExistsError as error:
            if not self._is_there(name, manifest):
                raise Superseded(f"another process of attempt {self.owner.attempt} has written {name}") from error
            self._storage.sync(f"{CHECKPOINTS}/{name}")
            self._storage.sync(CHECKPOINTS)

    def _is_there(self, name: str, manifest: Manifest) -> bool:
        """Whether an earlier try of this commit succeeded, though its answer was a failure."""
        try:
            return self.manifest(name).certificate == manifest.certificate
        except (Damaged, FileNotFoundError):
            return False

    def _surveyed(self) -> tuple[str, ...]:
        """All that may be pruned, the newest first; their manifests were read once. Links and leftovers, too."""
        names = tuple(name for attempt, _, name in self.all() if attempt <= self.owner.attempt)
        for name in names:
            if name not in self._entries and name not in self._damaged:
                with suppress(Damaged, FileNotFoundError):
                    self.manifest(name)
        return names

    def _kept(self, names: Sequence[str]) -> set[str]:
        """An older attempt's may be kept unverified, beside the verified ones and never in place of them."""
        verified = [self._entries[name].candidate for name in names if name in self._verified]
        if len(verified) < self._retention.keep:
            return {name for name in names if name in self._entries or name in self._damaged}
        intact = [self._entries[name].candidate for name in names if name in self._entries.keys() - self._damaged]
        return kept(verified, self._retention) | kept(intact, self._retention)

    def _referenced(self, names: Sequence[str]) -> set[str] | None:
        """Hashes in all manifests that are left; `None` if one of them cannot be told."""
        if any(name not in self._entries for name in names):
            return None
        found = {chunk_hash for name in names for chunk_hash in self._entries[name].hashes}
        for stranger in set(self._storage.names(CHECKPOINTS)) - set(names):
            found |= self._hashes_of_stranger(stranger)
        return found

    def _hashes_of_stranger(self, name: str) -> set[str]:
        """Who copied or renamed a checkpoint's folder wants to keep it."""
        path = f"{CHECKPOINTS}/{name}/{MANIFEST}"
        try:
            raw = retried(lambda: self._storage.read(path, limit_bytes=manifests.LIMIT_BYTES))
        except OSError as error:
            if error.errno not in WRONG_OBJECT:
                raise
            return set()
        return {found.decode() for found in re.findall(rb'"([0-9a-f]{32})"', raw)}

    def _discard(self, name: str) -> None:
        try:
            self._storage.delete(f"{CHECKPOINTS}/{name}/{MANIFEST}")
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link is removed as such; what it leads to is not ours
                raise
        self._entries.pop(name, None)
        self._verified.discard(name)
        self._damaged.discard(name)
        self._storage.delete(f"{CHECKPOINTS}/{name}")


def load_newest_of(stores: Sequence[Store], *, fetch: Fetch) -> tuple[int, Loaded] | None:
    """The newest checkpoint that verifies, wherever it lies, and the number of its store: the first that has it.

    Raises: CheckpointsDamaged: there are some, and none verifies. OSError: the newest one cannot be read, but may be
    another time; an older one would lose its steps for good.
    """
    skipped: list[Skipped] = []
    lying = sorted((attempt, step, -n, name) for n, store in enumerate(stores) for attempt, step, name in store.all())
    while lying:
        _, step, negative, name = lying.pop()
        try:
            return -negative, stores[-negative].load(name, skipped=skipped, fetch=fetch)
        except FileNotFoundError:
            continue
        except Damaged as error:
            skipped.append(Skipped(name, step, str(error)))
        except OSError as error:
            if lying and lying[-1][3] == name:
                continue  # the next store has it, too
            raise OSError(
                error.errno,
                f"checkpoint {name} cannot be read ({error.strerror or error}); start again later, or, if it "
                f"stays so, delete {CHECKPOINTS}/{name} to go on from an older one",
            ) from error
    if skipped:
        why = "; ".join(f"{one.name}: {one.why}" for one in skipped)
        raise CheckpointsDamaged(
            f"no checkpoint in {CHECKPOINTS}/ verifies ({why}). Restore one of them from a backup, "
            f"or delete the folder {CHECKPOINTS}/ to start over"
        )
    return None


def attempts(storage: Storage) -> set[int]:
    """Numbers of the attempts that have written to this run folder."""
    journals = {int(name) for name in storage.names("journal") if re.fullmatch(r"\d{1,9}", name)}
    return journals | {attempt for attempt, _, _ in _checkpoints(storage)}


def _checkpoints(storage: Storage) -> Iterator[tuple[int, int, str]]:
    for name in storage.names(CHECKPOINTS):
        parsed = parse_checkpoint_name(name)
        if parsed:
            yield parsed[1], parsed[0], name


def _entry(name: str, manifest: Manifest) -> _Entry:
    candidate = Candidate(name=name, step=manifest.step, attempt=manifest.attempt, metrics=manifest.metrics)
    return _Entry(candidate, frozenset(chunk.hash for chunk in manifest.chunks))


def _decoded(manifest: Manifest, tensors: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
    from trainer_hooks.checkpoint import tree

    components = {name: tree.decode(plain, tensors) for name, plain in manifest.state.items()}
    return components, [tree.decode(plain, tensors) for plain in manifest.ranks]
