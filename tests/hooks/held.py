"""A storage whose writes wait until a test lets them go, and trainings on it: nothing here depends on a clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from tests.hooks.storages import _Passing
from tests.hooks.training import Parts, Recipe
from trainer_hooks import Session
from trainer_hooks.storage import Buffer, LocalStorage, Storage


class Held(_Passing):
    """While it holds, puts of chunks and manifests wait; `knocked` is set once one does. `seen` are all of them."""

    parallel = 1  # so that what waits is the first of several

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._is_open = threading.Event()
        self._is_open.set()
        self.knocked = threading.Event()
        self.seen: list[str] = []
        self.deleted: list[str] = []

    def hold(self) -> None:
        self.knocked.clear()
        self._is_open.clear()

    def let_go(self) -> None:
        self._is_open.set()

    def put(self, path: str, data: Buffer, *, exclusive: bool = False) -> None:
        if path.startswith(("chunks/", "checkpoints/")):
            self.seen.append(path)
            if not self._is_open.is_set():
                self.knocked.set()
                assert self._is_open.wait(20), f"nobody let {path} go"
        self.storage.put(path, data, exclusive=exclusive)

    def remove(self, folder: str, names: Collection[str]) -> None:
        self.deleted += [f"{folder}/{name}" for name in names]
        self.storage.remove(folder, names)

    def delete(self, path: str) -> None:
        self.deleted.append(path)
        self.storage.delete(path)


def install(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Storage], Storage]) -> None:
    """Sessions have their run folder in `wrap(LocalStorage(…))`."""
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: wrap(LocalStorage(Path(uri))))


def held(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Held:
    storage = Held(LocalStorage(folder))
    monkeypatch.setattr("trainer_hooks.session.open_storage", lambda uri: storage)
    return storage


def train(
    folder: Path, recipe: Recipe, *, act: Callable[[Session], None] = lambda session: None, seed: int = 0
) -> tuple[Session, str]:
    """To the end, with `act` in every step, before its safe point; the session and the fingerprint."""
    parts = Parts(recipe, seed=seed)
    session = Session(run_uri=str(folder), checkpoint_every_steps=recipe.every, **parts.objects())
    with session:
        for batch in session(parts.loader, steps=recipe.steps):
            parts.step(batch, number=session.step + 1, accumulate=recipe.accumulate)
            act(session)
        return session, parts.fingerprint()
