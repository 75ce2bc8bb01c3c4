"""This machine's clock beside that of a real HTTP server, which may be wrong by any amount."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from launcher.adapters.checks.clock import clock
from launcher.core.doctor.checkup import Check, State
from tests.web import Handler, serving

pytestmark = pytest.mark.enable_socket  # on loopback


class Server:
    """Answers `status` to everybody, at a time of its own."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0
        self.status = 403
        self.date: str | None = None
        self.url = ""
        self.seen: list[str] = []


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Clock(Handler):
        def do_HEAD(self) -> None:  # noqa: N802  # the name that http.server looks for
            told.seen.append(self.path)
            self.send_response_only(told.status)
            date = formatdate(time.time() + told.ahead_seconds, usegmt=True) if told.date is None else told.date
            if date:
                self.send_header("Date", date)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

    with serving(Clock) as url:
        told.url = f"{url}/"
        yield told


def one(url: str) -> Check:
    (check,) = clock(url)
    return check


@pytest.mark.parametrize(
    ("ahead_seconds", "state", "word"),
    [(0, "ok", ""), (30, "warning", "behind"), (-30, "warning", "ahead of"), (3600, "failed", "behind")],
)
def test_a_wrong_clock_is_found_by_the_date_of_any_answer(
    server: Server, ahead_seconds: float, state: State, word: str
) -> None:
    server.ahead_seconds = ahead_seconds

    check = one(server.url)

    assert check.state == state
    assert word in check.found


@pytest.mark.parametrize("status", [200, 301, 307, 400, 503])
def test_it_is_the_server_itself_that_is_asked_whatever_it_answers(server: Server, status: int) -> None:
    server.status, server.ahead_seconds = status, 600

    assert one(server.url).state == "failed"
    assert server.seen == ["/"]


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_a_server_that_does_not_tell_its_time_is_no_reason_to_doubt_ours(server: Server, date: str) -> None:
    server.date = date

    assert one(server.url).state == "skipped"


def test_a_server_that_is_not_there_is_no_reason_to_doubt_ours(server: Server) -> None:
    check = one("http://127.0.0.1:9/")

    assert check.state == "skipped"
    assert "127.0.0.1 does not tell its time" in check.found
