"""What attempts print, in the run folder: for those who are not on the supervisor's machine, and when that is gone.

output/<attempt>/<segment>.log    pieces in order; objects are only ever added, each half a minute if there is news
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launcher.adapters.fsspec_journal import foreign_errors, open_folder
from launcher.errors import BackendError, LaunchError

log = logging.getLogger(__name__)

SHIP_SECONDS = 30.0
_MOST_BYTES = 8 << 20  # of one piece
_PIECE = re.compile(r"(\d{8,})\.log")


class SharedOutput:
    """One run folder's output. Raises: InputError: no installed library reads such a URI."""

    def __init__(self, run_uri: str) -> None:
        self._files, self._path = open_folder(run_uri)

    def read(self, attempt: int, *, after_piece: int) -> tuple[bytes, int]:
        """What lies behind that piece, and the number of the last one. Raises: BackendError."""
        folder = self._folder(attempt)
        try:
            pieces = [number for number, _ in self._pieces(attempt) if number > after_piece]
            text = b"".join(self._files.cat_file(f"{folder}/{number:08d}.log") for number in pieces)
        except foreign_errors() as error:
            raise BackendError(f"the output in {self._path} cannot be read: {error}") from error
        return text, max(pieces, default=after_piece)

    def add(self, attempt: int, path: Path) -> None:
        """Bring over what a file has more than all pieces have. Raises: `foreign_errors`."""
        pieces = self._pieces(attempt)
        known = sum(size for _, size in pieces)
        while path.exists() and path.stat().st_size > known:
            with path.open("rb") as file:
                file.seek(known)
                chunk = file.read(_MOST_BYTES)
            number = max((each for each, _ in pieces), default=0) + 1
            self._files.makedirs(self._folder(attempt), exist_ok=True)
            self._files.pipe_file(f"{self._folder(attempt)}/{number:08d}.log", chunk)
            pieces.append((number, len(chunk)))
            known += len(chunk)

    def _pieces(self, attempt: int) -> list[tuple[int, int]]:
        """Number and size, in order."""
        try:
            found = self._files.ls(self._folder(attempt), detail=True)
        except FileNotFoundError:
            return []
        named = ((_PIECE.fullmatch(each["name"].rpartition("/")[2]), each["size"]) for each in found)
        return sorted((int(match[1]), int(size or 0)) for match, size in named if match)

    def _folder(self, attempt: int) -> str:
        return f"{self._path}/output/{attempt:03d}"


@contextmanager
def sharing_output(run_uri: str, paths: Callable[[], Mapping[int, Path]]) -> Iterator[None]:
    """Bring the files of `paths` (by attempt) to the run folder every half minute, and once more at the end."""
    ending = threading.Event()
    shared = SharedOutput(run_uri)
    done: set[int] = set()  # never the last two: one may print its last words when its successor is recorded already

    def ship() -> None:
        odd: tuple[type[BaseException], ...] = (LaunchError, *foreign_errors())
        try:
            known = paths()
            for attempt in sorted(set(known) - done):
                shared.add(attempt, known[attempt])
            done.update(sorted(known)[:-2])
        except odd as error:  # the training goes on without it; the next try may succeed
            log.info("the output is not shared now", extra={"reason": str(error)[:200]})

    def keep_shipping() -> None:
        while not ending.wait(SHIP_SECONDS):
            ship()

    thread = threading.Thread(target=keep_shipping, name="output to the run folder", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(SHIP_SECONDS)
        ship()
