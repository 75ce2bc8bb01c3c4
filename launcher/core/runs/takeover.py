"""What a supervisor writes down first where another one, on another machine, was before it.

Each machine's SkyPilot knows only what it has launched itself. Of what the predecessor launched, the ledger and the
trainers' journals are left: a trainer that speaks is watched and asked to end through its run folder like any other;
a launch that was under way is given up, for nobody can see what came of it, and asking for the same attempt twice
might run it twice. One that waits to take over says nothing either: it is told to end in its run folder.
"""

from __future__ import annotations

from launcher.core.runs.events import AttemptEnded, Event, SupervisorReleased
from launcher.core.runs.state import RunState

UNSEEN = "another supervisor took over; whether its machine is gone is not known here"
UNDER_WAY = "its launch was under way at a supervisor that is gone"
UNHEARD = "it waited to take over, and its machine cannot be seen from here"


def takeover(state: RunState, *, number: int | None, is_elsewhere: bool) -> tuple[Event, ...]:
    """`number`: of this supervisor's own machine, if one was hired. `is_elsewhere`: the last one lived on another."""
    if state.is_finished:
        return ()
    left = [h for h in state.hired if h.until is None and h.number != number]
    events: list[Event] = [SupervisorReleased(number=h.number, was_there=True, detail=UNSEEN) for h in left]
    if is_elsewhere:
        unseen = [a for a in state.attempts if a.is_live and (a.started_at is None or a.is_incoming)]
        whys = [UNHEARD if a.started_at else UNDER_WAY for a in unseen]
        events += [AttemptEnded(attempt=a.number, outcome="lost", detail=w) for a, w in zip(unseen, whys, strict=True)]
    return tuple(events)
