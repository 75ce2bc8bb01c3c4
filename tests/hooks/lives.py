"""Whole lives of a real training process, each forked from a server that has torch loaded, each killed at one call.

A life counts the calls by which it changes its run folder, from whichever thread; at the one that it was given, it
kills itself by SIGKILL: before the call, after it, or, of a write, when half of it is done. A death at any other call
leaves what a death before the next of these leaves; where the power fails, fsync is one of them.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import IO, Any, Literal, get_args

import pytest
import torch

from tests.hooks.storages import Disk, Loss
from tests.hooks.training import Death, Parts, Recipe, undisturbed
from trainer_hooks import Session
from trainer_hooks.checkpoint.store import Store

RECIPE = Recipe(steps=6, every=2)
DEADLINE_SECONDS = 50
SLOTS = 2  # lives at once

Kind = Literal["before", "after", "half"]

_CHANGING = ("open", "write", "ftruncate", "mkdir", "rmdir", "unlink", "remove", "replace", "rename", "link", "symlink")


@dataclass(frozen=True, kw_only=True)
class Life:
    folder: str
    seed: int = 0
    dies_at: int = 0  # the how-manieth call; 0: never
    kind: Kind = "before"
    power_fails: bool = False  # at that call, in the life after a first one; what is left lies in `<folder>.<loss>`


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a life said before it ended."""

    resumed: int | None  # at this step; None: it died before
    committed: tuple[int, ...]  # steps, each said when its commit had returned
    end: str  # fingerprint; empty: it died before
    calls: tuple[str, ...]  # if it lived to its end
    said: str

    @property
    def has_died(self) -> bool:
        return not self.end


class Server:
    """Runs lives, `SLOTS` at once, each in a process of its own."""

    def __init__(self, slots: Sequence[tuple[IO[str], IO[str]]]) -> None:
        self._free: Queue[tuple[IO[str], IO[str]]] = Queue()
        for slot in slots:
            self._free.put(slot)

    def live(self, life: Life) -> Told:
        """Raises: AssertionError: it ended otherwise than by its own end or its own SIGKILL."""
        asked, answers = slot = self._free.get()
        print(json.dumps(asdict(life)), file=asked, flush=True)
        answer = json.loads(answers.readline())
        self._free.put(slot)
        events, said = answer["events"], answer["said"]
        told = {name: [event[name] for event in events if name in event] for name in ("resumed", "committed", "end")}
        end = "".join(told["end"])
        assert answer["status"] == (0 if end else -signal.SIGKILL), f"{life}: {answer['status']}\n{said}"
        calls = next((event["calls"] for event in events if "calls" in event), ())
        resumed = next(iter(told["resumed"]), None)
        return Told(resumed=resumed, committed=tuple(told["committed"]), end=end, calls=tuple(calls), said=said)

    def each(self, function: Callable[[Any], None], arguments: Sequence[Any]) -> None:
        """`function` of each argument, as many at once as there are slots. Raises what the first of them raised."""
        with ThreadPoolExecutor(SLOTS) as pool:
            for _ in pool.map(function, arguments):
                pass


@contextmanager
def a_server() -> Iterator[Server]:
    root = Path(__file__).parent.parent.parent
    pipes = [(os.pipe(), os.pipe()) for _ in range(SLOTS)]  # for requests, for answers
    fds = [fd for request, answer in pipes for fd in (request[0], answer[1])]
    ours = [(os.fdopen(request[1], "w"), os.fdopen(answer[0])) for request, answer in pipes]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCH_")}
    command = [sys.executable, "-m", __name__, *map(str, fds)]
    with subprocess.Popen(command, cwd=root, env=environment, pass_fds=fds, start_new_session=True) as process:
        for fd in fds:
            os.close(fd)
        try:
            yield Server(ours)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            for asked, answer in ours:
                asked.close()
                answer.close()


def main() -> None:
    """`python -m tests.hooks.lives FD FD …`: a process for each pair of descriptors, and one more for each life."""
    torch.set_num_threads(1)
    undisturbed(RECIPE)  # what torch does only the first time is done; this starts no threads
    gc.freeze()
    fds = [int(fd) for fd in sys.argv[1:]]
    for requests, answers in zip(fds[::2], fds[1::2], strict=True):
        if os.fork() == 0:
            for fd in fds:
                if fd not in (requests, answers):
                    os.close(fd)
            _serve(os.fdopen(requests), os.fdopen(answers, "w"))
            os._exit(0)
    for fd in fds:
        os.close(fd)
    for _ in fds[::2]:
        os.wait()


def _serve(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(there, 2)
            _live(Life(**json.loads(line)), there)
        os.close(there)
        with os.fdopen(here) as pipe:
            said = pipe.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        events = [json.loads(one) for one in said if one.startswith("{")]
        rest = "\n".join(one for one in said if not one.startswith("{"))
        print(json.dumps({"status": status, "events": events, "said": rest}), file=answers, flush=True)


def _live(life: Life, pipe: int) -> None:
    """In the forked process; it never returns."""
    signal.alarm(DEADLINE_SECONDS)
    code = 1
    try:
        folder = Path(life.folder)
        os.fsync = lambda fd: None  # which a SIGKILL does not ask for; a lost power is `Disk`'s to play
        if life.power_fails:
            disk = Disk(folder, pytest.MonkeyPatch())
            with suppress(Death):
                _train(folder, seed=0, tell=lambda **event: "committed" in event and _tell(pipe, event), die_at=5)
            calls = _Calls(folder, life, lambda: _lose_power(disk, folder))
        else:
            calls = _Calls(folder, life, lambda: None)
        end = _train(folder, seed=life.seed, tell=lambda **event: _tell(pipe, event))
        _tell(pipe, {"end": end, "calls": calls.seen})
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _tell(pipe: int, event: dict[str, Any]) -> None:
    os.write(pipe, f"{json.dumps(event)}\n".encode())


def _train(folder: Path, *, seed: int, tell: Callable[..., object], die_at: int = 0) -> str:
    parts = Parts(RECIPE, seed=seed)
    real_commit = Store.commit

    def commit(store: Store, manifest: Any) -> None:
        real_commit(store, manifest)
        tell(committed=manifest.step)

    Store.commit = commit  # type: ignore[method-assign]  # the last thing that it does is to say so
    try:
        with Session(run_uri=str(folder), checkpoint_every_steps=RECIPE.every, **parts.objects()) as session:
            tell(resumed=session.step)
            for batch in session(parts.loader, steps=RECIPE.steps):
                if session.step + 1 == die_at:
                    raise Death
                parts.step(batch, number=session.step + 1, accumulate=RECIPE.accumulate)
    finally:
        Store.commit = real_commit  # type: ignore[method-assign]
    return parts.fingerprint()


def _lose_power(disk: Disk, folder: Path) -> None:
    with disk._lock:  # no other thread changes anything any more
        for loss in get_args(Loss):
            disk.left_by(loss, left_by(folder, loss))
        os.kill(os.getpid(), signal.SIGKILL)


def left_by(folder: Path, loss: Loss) -> Path:
    return folder.with_name(f"{folder.name}.{loss.replace(' ', '-')}")


class _Calls:
    """Stands between the process and its file system, from now on."""

    def __init__(self, folder: Path, life: Life, at_death: Callable[[], None]) -> None:
        self.seen: list[str] = []
        self._root = str(folder)
        self._life = life
        self._at_death = at_death
        self._fds: set[int] = set()
        self._lock = threading.Lock()
        for name in (*_CHANGING, "fsync") if life.power_fails else _CHANGING:
            setattr(os, name, self._watch(name, getattr(os, name)))

    def _watch(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._is_ours(first) or (name == "open" and not args[0] & os.O_CREAT):
                return real(first, *args, **kwargs)
            dies = self._is_the_one(f"{name} {first}")
            if dies and self._life.kind == "half" and name == "write":
                real(first, memoryview(args[0])[: len(args[0]) // 2])
            if dies and self._life.kind != "after":
                self._die()
            result = real(first, *args, **kwargs)
            if name == "open":
                self._fds.add(result)
            if dies:
                self._die()
            return result

        return call

    def _is_ours(self, first: Any) -> bool:
        """Requests of a launcher are looked for by the clock, so looking for them does not count."""
        if isinstance(first, int):
            return first in self._fds
        return (path := str(first)).startswith(self._root) and "/control" not in path

    def _is_the_one(self, what: str) -> bool:
        with self._lock:
            self.seen.append(what.replace(self._root, ""))
            return len(self.seen) == self._life.dies_at

    def _die(self) -> None:
        self._at_death()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
