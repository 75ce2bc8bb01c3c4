"""Deaths and races at every port call: a supervisor killed there, or held there while another one goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.sim import Remembering, Sim

When = Literal["before", "after"]
MOST_CALLS = 5_000
CALLS: Mapping[str, frozenset[str]] = {
    "ledger": frozenset({"append", "read"}),
    "backend": frozenset({"launch", "phase", "stop", "names"}),
    "journal": frozenset({"read", "request_stop", "is_ready", "hand_over"}),
    "folders": frozenset({"replicate"}),
    "clock": frozenset({"sleep"}),
}


class Killed(BaseException):
    """SIGKILL: nothing of the supervisor may catch it."""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A port whose calls listed in `CALLS` go through `call(name, effect)`; an effect that happens is not undone."""

    port_name: str
    port: Any
    call: Callable[[str, Callable[[], Any]], Any]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.port, name)
        if name not in CALLS[self.port_name]:
            return method
        return lambda *args, **kwargs: self.call(f"{self.port_name}.{name}", lambda: method(*args, **kwargs))


@dataclass(slots=True)
class Deaths:
    """Kills the caller at the k-th port call (counted from 1, over all restarts), before or after its effect."""

    at: Mapping[int, When]
    made: list[str] = field(default_factory=list)

    def wrap(self, port_name: str, port: object) -> Wrapped:
        return Wrapped(port_name, port, self._call)

    def _call(self, name: str, effect: Callable[[], Any]) -> Any:
        self.made.append(name)
        when = self.at.get(len(self.made))
        if when == "before":
            raise Killed(name)
        try:
            return effect()
        finally:
            if when == "after":
                raise Killed(name)


def supervise_through(sim: Sim, deaths: Deaths, *, down_seconds: float) -> int:
    """Supervise to the end, starting again `down_seconds` after each death; how many deaths there were."""
    for died in range(len(deaths.at) + 1):
        try:
            sim.supervisor(deaths.wrap, kind=Remembering).supervise()
        except Killed:
            sim.clock.sleep(down_seconds)
        else:
            return died
    raise AssertionError("died more often than was asked for")


@dataclass(slots=True)
class Rivals:
    """Supervisors of one run that run one at a time and change places between any two port calls.

    `next_up(holder)` says who makes the next call; a supervisor that is done is passed over.
    """

    next_up: Callable[[int], int]
    num_calls: int = 0
    holder: int = 0
    done: set[int] = field(default_factory=set)
    errors: list[BaseException] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def supervise(self, sim: Sim, *, count: int = 2) -> None:
        threads = [threading.Thread(target=self._live, args=(sim, me, count), daemon=True) for me in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _live(self, sim: Sim, me: int, count: int) -> None:
        def call(_name: str, effect: Callable[[], Any]) -> Any:
            self._pass_on(me, count)
            return effect()

        try:
            self._wait_for(me)
            sim.supervisor(lambda name, port: Wrapped(name, port, call), kind=Remembering).supervise()
        except BaseException as error:
            self.errors.append(error)
        finally:
            with self.changed:
                self.done.add(me)
                self.holder = next((n for n in range(count) if n not in self.done), me)
                self.changed.notify_all()

    def _pass_on(self, me: int, count: int) -> None:
        with self.changed:
            self.num_calls += 1
            assert self.num_calls < MOST_CALLS, "the supervisors do not come to an end"
            wanted = self.next_up(me) % count
            self.holder = me if wanted in self.done else wanted
            self.changed.notify_all()
        self._wait_for(me)

    def _wait_for(self, me: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.holder == me)
