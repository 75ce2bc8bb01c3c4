"""A run folder's checkpoints, from outside: the only place where the launcher opens them.

Looking, verifying, removing and moving need no torch; only an export does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from launcher.adapters.fsspec_journal import foreign_errors
from launcher.core.runs.checkpoints import Collected, Exported, Inventory, Keep, Replica, StoredCheckpoint, Verdict
from launcher.errors import BackendError, InputError, LaunchError, Problem
from trainer_hooks.checkpoint.manifest import Chunk, Manifest
from trainer_hooks.checkpoint.reader import CHUNKS, in_parallel
from trainer_hooks.checkpoint.retention import Retention
from trainer_hooks.checkpoint.store import Owner, Store, attempts, whole_tensors
from trainer_hooks.errors import CheckpointsDamaged, Damaged, NotLoadable, Superseded
from trainer_hooks.protocol import parse_checkpoint_name
from trainer_hooks.storage import open_storage

if TYPE_CHECKING:
    import torch

    from trainer_hooks.checkpoint.reader import Reader

_COPYING = (frozenset({"s3", "s3a"}), frozenset({"gs", "gcs"}))  # stores that copy from bucket to bucket by themselves
_COPIES_AT_ONCE = 16  # each is one request, and the store's own work
_ALL = 10**9  # checkpoints that are kept where nobody says how many


class CheckpointFolder:
    """Raises: InputError: nothing can be there. BackendError: the folder did not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._storage = open_storage(uri)
        except (ImportError, ValueError) as error:
            fix = "install the extra for it: spotlaunch[s3], [gcs] or [azure]"
            raise InputError([Problem("L110", f"no library reads {uri}: {error}", "", fix)]) from error

    def inventory(self) -> Inventory:
        """Every checkpoint by its manifest; none of the data is read."""
        with self._translated():
            store = self._store(keep=_ALL)
            found: list[StoredCheckpoint] = []
            seen: set[str] = set()
            for name in reversed(store.names()):
                found.append(_described(store, name, seen))
            sizes = self._storage.sizes(CHUNKS)
        is_known = not any(one.state == "damaged" for one in found)
        left = sum(size for name, size in sizes.items() if name not in seen)
        return Inventory(
            uri=self.uri,
            checkpoints=tuple(reversed(found)),
            stored_bytes=sum(sizes.values()),
            unreferenced_bytes=left if is_known else None,
        )

    def verify(self, *, step: int | None) -> Iterator[Verdict]:
        """All that were committed, or those of one step, the newest first; each is read in whole."""
        with self._translated():
            store = self._store(keep=_ALL)
            names = self._names(store, step)
        for name in names:
            with self._translated():
                verdict = _judged(store, name)
            if verdict is not None:
                yield verdict

    def export(self, target: Path, *, to: Literal["torch", "safetensors", "dcp"], step: int | None) -> Exported:
        """The newest one that verifies, or the one of `step`, in another format.

        Raises: InputError: there is none, the target exists, or a library is missing. LaunchError: none is whole.
        """
        tensors: list[torch.Tensor] = []

        def fetch(reader: Reader) -> list[torch.Tensor]:
            tensors[:] = whole_tensors(reader)
            return tensors

        with self._translated():
            from trainer_hooks.checkpoint.export import export

            store = self._store(keep=_ALL)
            names = self._names(store, step)
            loaded = store.load_newest(fetch=fetch) if step is None else store.load(names[0], fetch=fetch)
            if loaded is None:
                raise self._nothing("no checkpoint was ever committed")
            files = export(loaded.manifest, tensors, target, to=to)
        skipped = tuple(Verdict(name=one.name, bytes=None, why=one.why) for one in loaded.skipped)
        return Exported(name=loaded.name, files=files, skipped=skipped)

    def collect(self, keep: Keep) -> Collected:
        """Remove what need not be kept, as a trainer does after a save; nobody may be training.

        Of those that stay, the newest are read in whole before any other is removed.
        """
        with self._translated():
            store = self._store(keep=keep.newest or _ALL, every_steps=keep.every_steps, best=keep.best)
            before, size = store.names(), self._stored_bytes()
            _verify_newest(store, before, count=keep.newest or 0)
            left = store.prune()
        return Collected(
            kept=left.names,
            removed=tuple(name for name in before if name not in left.names),
            stored_bytes=left.stored_bytes,
            freed_bytes=size - left.stored_bytes,
        )

    def replicate(self, target: CheckpointFolder) -> Replica | None:
        """Bring the newest checkpoint that is whole to another folder; `None`: there is none.

        May be repeated after a death at any point: chunks come first, the manifest last, and what is there already and
        is right stays. Where both are buckets of one store, it copies them itself, no byte passes this machine, and
        what differs from the original in its size or the store's checksum is copied again; else each chunk is hashed
        on its way. Before the manifest, all chunks are looked up.
        """
        with self._translated():
            source = self._store(keep=_ALL)
            for name in source.names():
                manifest = _whole_manifest(source, name)
                if manifest is None:
                    continue
                try:
                    copied = _copied(source, self, target, manifest)
                except Damaged:
                    continue  # an older one has to do
                with target._translated():
                    target._store(keep=_ALL, attempt=manifest.attempt).commit(manifest)
                return Replica(name=name, bytes=manifest.bytes, copied_bytes=copied)
        return None

    def _store(
        self,
        *,
        keep: int,
        every_steps: int | None = None,
        best: tuple[str, Literal["min", "max"], int] | None = None,
        attempt: int = 0,
    ) -> Store:
        """As the newest attempt, or `attempt` where that is newer: who looks from outside starts none."""
        metric, mode, count = best or (None, "min", 1)
        retention = Retention(keep=keep, every_steps=every_steps, best=metric, best_mode=mode, best_keep=count)
        newest = max((*attempts(self._storage), attempt))
        return Store(self._storage, owner=Owner(run_id="", attempt=newest, world_size=1), retention=retention)

    def _names(self, store: Store, step: int | None) -> tuple[str, ...]:
        names = store.names()
        found = tuple(name for name in names if step is None or _step_and_attempt(name)[0] == step)
        if not names:
            raise self._nothing("there are no checkpoints")
        if not found:
            raise self._nothing(f"there is no checkpoint of step {step:,}", "`launch checkpoints ls` lists them")
        return found

    def _nothing(self, what: str, fix: str = "name a run, or the folder of one") -> InputError:
        return InputError([Problem("L127", f"{what} in {self.uri}", fix=fix)])

    def _stored_bytes(self) -> int:
        return sum(self._storage.sizes(CHUNKS).values())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError as error:
            raise InputError([Problem("L128", str(error))]) from error
        except OSError as error:
            raise BackendError(f"run folder {self.uri} did not answer: {error or type(error).__name__}") from error
        except ImportError as error:
            fix = "install spotlaunch[torch], and for safetensors spotlaunch[safetensors]"
            raise InputError([Problem("L129", f"{error.name or error} is not installed here", fix=fix)]) from error
        except Superseded as error:
            raise LaunchError(f"{error}: the run has gone on meanwhile; try again when it has ended") from error
        except (CheckpointsDamaged, Damaged, NotLoadable) as error:
            raise LaunchError(str(error)) from error


def _whole_manifest(store: Store, name: str) -> Manifest | None:
    """`None`: it was never committed, or is damaged."""
    try:
        return store.manifest(name)
    except (Damaged, FileNotFoundError):
        return None


def _copied(store: Store, old: CheckpointFolder, new: CheckpointFolder, manifest: Manifest) -> int:
    """Bytes of its chunks that were not there yet. Raises: Damaged: one of them is not right."""
    if not _is_one_store(old.uri, new.uri):
        return _copied_by_us(store, new, manifest)
    try:
        return _copied_by_store(old.uri, new.uri, manifest)
    except foreign_errors() as error:
        raise OSError(f"{old.uri} could not be copied to {new.uri}: {error or type(error).__name__}") from error


def _is_one_store(old: str, new: str) -> bool:
    schemes = [uri.partition("://")[0] if "://" in uri else "" for uri in (old, new)]
    return any(set(schemes) <= store for store in _COPYING)


def _copied_by_store(old: str, new: str, manifest: Manifest) -> int:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # it ships no types

    files, source = url_to_fs(f"{old}/{CHUNKS}", use_listings_cache=False, skip_instance_cache=True)
    target = str(files._strip_protocol(f"{new}/{CHUNKS}"))
    wanted = {chunk.hash: chunk.bytes for chunk in manifest.chunks}
    there, here = _listed(files, source), _listed(files, target)
    if missing := [name for name, size in wanted.items() if there.get(name, (None, ""))[0] != size]:
        raise Damaged(f"{len(missing):,} chunks below {old} are not there, or of another size")
    absent = [name for name in wanted if here.get(name) != there[name]]

    def copy(name: str) -> None:
        files.cp_file(f"{source}/{name}", f"{target}/{name}")

    in_parallel(copy, absent, threads=_COPIES_AT_ONCE)
    return sum(wanted[name] for name in absent)


def _listed(files: Any, folder: str) -> dict[str, tuple[int, str]]:
    """Size and checksum of each object; a copy has the original's, unless its bucket encrypts with a key of its own."""
    try:
        entries = files.ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    names = ((str(entry["name"]).rpartition("/")[2], entry) for entry in entries)
    return {name: (int(entry["size"]), str(entry.get("ETag") or entry.get("md5Hash"))) for name, entry in names}


def _copied_by_us(store: Store, new: CheckpointFolder, manifest: Manifest) -> int:
    chunks = {chunk.hash: chunk for chunk in manifest.chunks}.values()
    target, sizes = new._store(keep=_ALL, attempt=manifest.attempt), new._storage.sizes(CHUNKS)
    copied: list[int] = []

    def bring(chunk: Chunk) -> None:
        if sizes.get(chunk.hash) == chunk.bytes and _is_right(target, chunk):
            return
        copied.append(target.put_chunk(chunk.hash, store.read_chunk(chunk)))

    in_parallel(bring, chunks, threads=min(store.parallel, target.parallel))
    return sum(copied)


def _is_right(store: Store, chunk: Chunk) -> bool:
    try:
        store.read_chunk(chunk)
    except Damaged:
        return False
    return True


def _described(store: Store, name: str, seen: set[str]) -> StoredCheckpoint:
    """`seen`: hashes of what older checkpoints hold; those of this one are added."""
    step, attempt = _step_and_attempt(name)
    try:
        manifest = store.manifest(name)
    except FileNotFoundError:
        return StoredCheckpoint(name=name, step=step, attempt=attempt, state="unfinished")
    except Damaged as error:
        return StoredCheckpoint(name=name, step=step, attempt=attempt, state="damaged", why=str(error))
    chunks = {chunk.hash: chunk.bytes for chunk in manifest.chunks}
    added = sum(size for chunk_hash, size in chunks.items() if chunk_hash not in seen)
    seen.update(chunks)
    return StoredCheckpoint(
        name=name,
        step=step,
        attempt=attempt,
        state="readable",
        created_at=manifest.created_at,
        bytes=manifest.bytes,
        added_bytes=added,
        world_size=manifest.world_size,
        metrics=dict(manifest.metrics),
    )


def _judged(store: Store, name: str) -> Verdict | None:
    """`None`: it was never committed."""
    try:
        return Verdict(name=name, bytes=store.verify(name).bytes)
    except FileNotFoundError:
        return None
    except Damaged as error:
        return Verdict(name=name, bytes=None, why=str(error))


def _verify_newest(store: Store, names: tuple[str, ...], *, count: int) -> None:
    """So many that are whole, as only those count as kept."""
    whole = 0
    for name in names:
        if whole >= count:
            return
        verdict = _judged(store, name)
        whole += verdict is not None and not verdict.why


def _step_and_attempt(name: str) -> tuple[int, int]:
    parsed = parse_checkpoint_name(name)
    assert parsed is not None  # the store lists no others
    return parsed
