"""A web server on this machine that gives prepared answers, and notes what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import web

_RECORDED = Path(__file__).parents[1] / "golden" / "feeds"


def recorded(name: str) -> Any:
    return json.loads((_RECORDED / f"{name}.json").read_text())


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    path: str
    token: str | None
    body: Any


@dataclass
class Answers:
    """`ready` are given in order; an answer is (status, body), or text that is no JSON, or None: none at all."""

    url: str = ""
    ready: list[Any] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def a_server() -> Iterator[Answers]:
    answers = Answers()

    class Handler(_Handler):
        prepared = answers

    with web.serving(Handler) as answers.url:
        try:
            yield answers
        finally:
            answers.released.set()


class _Handler(web.Handler):
    prepared: Answers

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = json.loads(body) if self.headers.get("Content-Type") == "application/json" else body
        self.prepared.asked.append(Asked(self.command, self.path, self.headers.get("Authorization"), content))
        match self.prepared.ready.pop(0):
            case None:
                self.prepared.released.wait(60)
                self.close_connection = True
            case str(text):
                self._reply(200, text)
            case (int(status), headers):
                self._reply(status, "{}", headers)
            case content:
                self._reply(200, json.dumps(content))

    do_GET = do_POST = _answer  # noqa: N815  # the names that http.server looks for

    def _reply(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())
