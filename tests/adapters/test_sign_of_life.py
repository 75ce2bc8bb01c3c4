"""What a supervisor leaves in the run folder for those who are elsewhere: its sign of life, and the output."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from launcher.adapters import shared_output, sign_of_life
from launcher.adapters.fsspec_journal import FsspecJournal
from launcher.adapters.shared_output import SharedOutput, sharing_output
from launcher.adapters.sign_of_life import giving_signs, read_sign
from launcher.adapters.system_clock import SystemClock
from launcher.core.prices.supervision import Sign
from launcher.errors import BackendError


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "file" else f"memory://{tmp_path}/run"


def folder(uri: str) -> FsspecJournal:
    return FsspecJournal(uri, clock=SystemClock())


def a_sign() -> Sign:
    now = SystemClock().now()
    return Sign(place="node1:/state", by="hired machine 1 (node1)", since=now, at=now)


def test_nobody_has_given_a_sign_in_a_new_folder(uri: str) -> None:
    assert read_sign(folder(uri)) is None


def test_a_sign_can_be_read_by_others_and_its_end_too(uri: str) -> None:
    sign = a_sign()

    with giving_signs(folder(uri), sign, now=SystemClock().now):
        during = read_sign(folder(uri))
    behind = read_sign(folder(uri))

    assert during == sign
    assert behind is not None
    assert behind.has_ended
    assert (behind.place, behind.since) == (sign.place, sign.since)


def test_it_is_given_again_and_again(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_of_life, "BEAT_SECONDS", 0.01)
    sign, clock = a_sign(), SystemClock()

    with giving_signs(folder(uri), sign, now=clock.now):
        while (read := read_sign(folder(uri))) is None or read.at == sign.at:
            clock.sleep(0.01)

    assert read.at > sign.at
    assert read.since == sign.since


def test_what_is_no_sign_is_none(uri: str) -> None:
    folder(uri).put("control/supervisor", {"place": "a"})

    assert read_sign(folder(uri)) is None


def test_a_folder_that_does_not_answer_stops_no_supervisor(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where a folder should be")
    silent = folder(str(tmp_path / "run"))

    with giving_signs(silent, a_sign(), now=SystemClock().now):
        pass

    with pytest.raises(BackendError):
        read_sign(silent)


def test_output_is_brought_over_piece_by_piece_and_read_once(uri: str, tmp_path: Path) -> None:
    path, shared = tmp_path / "output.log", SharedOutput(uri)
    path.write_text("step 1\n")
    shared.add(1, path)
    path.write_text("step 1\nstep 2\n")
    SharedOutput(uri).add(1, path)  # a supervisor that was started again
    shared.add(1, path)

    first, piece = SharedOutput(uri).read(1, after_piece=0)
    again = SharedOutput(uri).read(1, after_piece=piece)

    assert (first, piece) == (b"step 1\nstep 2\n", 2)
    assert again == (b"", 2)


def test_a_long_output_comes_over_whole(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_output, "_MOST_BYTES", 10)
    (tmp_path / "output.log").write_bytes(b"0123456789abcdefghijK")

    SharedOutput(uri).add(3, tmp_path / "output.log")

    assert SharedOutput(uri).read(3, after_piece=0) == (b"0123456789abcdefghijK", 3)


def test_the_last_words_are_brought_over_at_the_end(uri: str, tmp_path: Path) -> None:
    path = tmp_path / "output.log"

    with sharing_output(uri, lambda: {1: path}):
        path.write_text("final loss 0.1\n")

    assert SharedOutput(uri).read(1, after_piece=0) == (b"final loss 0.1\n", 1)


def test_an_attempt_may_print_its_last_words_beside_its_successor(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_output, "SHIP_SECONDS", 0.01)
    paths = {1: tmp_path / "1.log", 2: tmp_path / "2.log"}
    looks = itertools.count(1)
    shipped = threading.Event()

    def known() -> dict[int, Path]:
        match next(looks):
            case 2:  # both have been brought over as far as they were
                paths[1].write_text("saved\n")
            case 3:
                shipped.set()
        return paths

    with sharing_output(uri, known):
        assert shipped.wait(30)
        assert SharedOutput(uri).read(1, after_piece=0) == (b"saved\n", 1)
