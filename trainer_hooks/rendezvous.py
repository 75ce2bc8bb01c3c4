"""Messages between the ranks, without collectives: they meet in the store that their process group was made with.

It is a small table of keys that one process serves to all.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from trainer_hooks.ranks import Ranks

PAUSE_SECONDS = (0.0002, 0.01)
"""Between two looks into the store, the first and the longest: a blocking wait would keep other threads out of it."""

PARTING_SECONDS = 5.0
"""That rank 0 stays for the others to read what it said last: it serves the store through which they talk."""

VALUE_BYTES = 4 << 20
"""Under one key: a TCPStore refuses messages over 8 MiB (torch 2.13, TCPStoreLibUvBackend.cpp)."""


class Post:
    """Messages through a store. What is published is read once by each other rank, and the last one deletes it.

    Thread-safe, as its calls are short: none blocks until something is there.
    """

    def __init__(self, store: Any, *, readers: int, server: Any) -> None:
        self._store = store  # torch's own annotations want str where bytes are right, too
        self._server = server  # a clone of it does not keep it alive
        self._readers = readers
        self._published: deque[str] = deque(maxlen=8)  # what came before them was read, or never will be

    def publish(self, key: str, data: bytes) -> None:
        self.write(key, data)
        self._published.append(key)

    def take(self, key: str) -> bytes | None:
        """What was published under `key`, or `None` so far; a rank takes it once."""
        data = self.read(key)
        if data is not None:
            with suppress(ConnectionError):  # rank 0 may leave, and the store with it, once all have read
                if self.count(f"{key}/read", 1) >= self._readers:
                    self._delete(key)
        return data

    def wait(self, key: str, *, timeout_seconds: float) -> bytes | None:
        for _ in looks(timeout_seconds):
            data = self.take(key)
            if data is not None:
                return data
        return None

    def drain(self, timeout_seconds: float) -> None:
        """Returns when all that this rank published was read by all, or when the time is over."""
        for _ in looks(timeout_seconds):
            while self._published and not self.has([self._published[0]]):
                self._published.popleft()
            if not self._published:
                return

    def write(self, key: str, data: bytes) -> None:
        """The key itself comes last: what it leads to is there."""
        pieces = [data[at : at + VALUE_BYTES] for at in range(0, len(data), VALUE_BYTES)] or [b""]
        with _reaching():
            for number, piece in enumerate(pieces[1:], start=1):
                self._store.set(f"{key}/{number}", piece)
            self._store.set(key, b"%d:" % len(pieces) + pieces[0])

    def read(self, key: str) -> bytes | None:
        if not self.has([key]):
            return None
        with _reaching():
            head: bytes = self._store.get(key)
            count, _, first = head.partition(b":")
            return first + b"".join(self._store.get(f"{key}/{number}") for number in range(1, int(count)))

    def fetch(self, key: str) -> bytes:
        """Read what is there, and delete it."""
        data = self.read(key)
        assert data is not None
        self._delete(key)
        return data

    def has(self, keys: list[str]) -> bool:
        with _reaching():
            return not keys or self._store.check(keys)

    def count(self, key: str, more: int) -> int:
        with _reaching():
            return int(self._store.add(key, more))

    def _delete(self, key: str) -> None:
        with _reaching():
            count = int(self._store.get(key).partition(b":")[0])
            for name in (*(f"{key}/{number}" for number in range(1, count)), f"{key}/read", key):
                self._store.delete_key(name)


def open_post(ranks: Ranks) -> Post | None:
    """In keys of its own: several sessions may share a store. Raises: ConnectionError."""
    if not ranks.can_agree:
        return None
    import torch.distributed as dist

    served = store = _shared_store(ranks)
    name = ranks.broadcast(uuid.uuid4().hex)
    with _reaching():
        if hasattr(store, "clone"):  # a connection of its own, where torch is new enough
            store = store.clone()
        own = dist.PrefixStore(f"spotlaunch/{name}", store)  # type: ignore[attr-defined]  # exported all the same
    return Post(own, readers=ranks.world_size - 1, server=served)


def _shared_store(ranks: Ranks) -> Store:
    """The store that the process group was made with, or one more.

    torch gives it out under a private name only; the public alternative is a second server with an address and a
    port of its own, which a firewall between the machines may not let through.
    """
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    get_default_store = getattr(distributed_c10d, "_get_default_store", None)
    store: Store | None = get_default_store() if get_default_store is not None else None
    if store is not None:
        return store
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    connect = dist.TCPStore  # type: ignore[attr-defined]  # exported all the same
    served: Any = connect(host, 0, is_master=True, wait_for_workers=False) if ranks.is_first else None
    host, port = ranks.broadcast((host, served.port if served is not None else 0))
    return served or connect(host, port, is_master=False, wait_for_workers=False)


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's DistStoreError is one, and so is what its sockets raise
        raise ConnectionError(f"the ranks' rendezvous store does not answer, is rank 0 gone? ({error})") from error


def looks(timeout_seconds: float) -> Iterator[None]:
    """One turn for every look into the store; at least one, and none after the time is over."""
    until = time.monotonic() + timeout_seconds
    pause, longest = PAUSE_SECONDS
    yield
    while time.monotonic() < until:
        time.sleep(pause)
        pause = min(pause * 1.5, longest)
        yield
