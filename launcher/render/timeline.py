"""Timelines as one SVG: a lane for each place, what the run did there by colour, and the money as a line above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from xml.sax.saxutils import escape, quoteattr

from launcher.core.timeline import Doing, Stretch, Timeline
from launcher.render.words import Money, span

WIDTH, LEFT, RIGHT = 960, 190, 70  # pixels
LANE, GAP, MONEY, HEAD, FOOT = 18, 4, 70, 34, 30
BESIDE = 2  # a mark stands behind its instant, so that the stretch that ends there does not hide it
COLOURS: dict[Doing, str] = {"setup": "#9aa5b1", "training": "#2f855a", "lost": "#c53030", "closing": "#d69e2e"}
TICKS = (0.25, 0.5, 1, 2, 3, 6, 12, 24, 48, 96, 168)  # hours
MOST_TICKS = 12
FAR = 2.0  # times as long as the run


def timelines_svg(timelines: Sequence[Timeline], money: Money) -> str:
    """One below the other, on the same scale of hours and of money. Raises: ValueError: there is none."""
    if not timelines:
        raise ValueError("a picture needs a timeline")
    hours = max(1e-9, *map(_hours, timelines))
    most = max(max(usd for _, usd in t.spend) for t in timelines) or Decimal("0.01")
    height = sum(map(_height, timelines)) + FOOT
    parts = [_legend(height)]
    top = 0
    for timeline in timelines:
        parts += _Block(timeline, hours=hours, most_usd=most, top=top, money=money).parts()
        top += _height(timeline)
    body = "\n".join([*parts, *_axis(hours, top)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )


def _hours(timeline: Timeline) -> float:
    """With the deadline, unless that is far away."""
    is_near = timeline.deadline_hours <= FAR * timeline.end_hours
    return max(timeline.end_hours, timeline.deadline_hours) if is_near else timeline.end_hours


def _height(timeline: Timeline) -> int:
    return HEAD + MONEY + len(timeline.places) * (LANE + GAP) + GAP


def _x(at_hours: float, hours: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(at_hours, hours) / hours


class _Block:
    """One timeline, drawn from `top` downwards."""

    def __init__(self, timeline: Timeline, *, hours: float, most_usd: Decimal, top: int, money: Money) -> None:
        self._timeline, self._hours, self._most_usd, self._money = timeline, hours, most_usd, money
        self._top, self._lanes_at = top, top + HEAD + MONEY + GAP
        self._lanes = {place: self._lanes_at + n * (LANE + GAP) for n, place in enumerate(timeline.places)}

    def parts(self) -> list[str]:
        return [*self._heading(), *self._spend(), *self._places(), *self._deadline()]

    def _heading(self) -> Iterator[str]:
        spent = self._money.exact(self._timeline.spend[-1][1])
        took = span(self._timeline.end_hours * 3600)
        yield _text(LEFT, self._top + 18, f"{self._timeline.title} · {spent} · {took}", weight="bold")

    def _spend(self) -> Iterator[str]:
        base = self._top + HEAD + MONEY
        points = [
            (_x(at, self._hours), base - float(usd / self._most_usd) * (MONEY - 8)) for at, usd in self._timeline.spend
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{path}" fill="none" stroke="#2b6cb0" stroke-width="1.5"/>'
        yield _text(LEFT - 8, base, self._money.exact(Decimal(0)), anchor="end")
        yield _text(LEFT - 8, base - MONEY + 14, self._money.exact(self._most_usd), anchor="end")

    def _places(self) -> Iterator[str]:
        for place, y in self._lanes.items():
            yield _text(LEFT - 8, y + LANE - 5, place, anchor="end")
            yield f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - RIGHT}" height="{LANE}" fill="#f1f3f5"/>'
        yield from (self._stretch(stretch) for stretch in self._timeline.stretches)
        for mark in self._timeline.marks:
            x, y = _x(mark.at_hours, self._hours) + BESIDE, self._lanes[mark.place]
            colour, sign = ("#c53030", "✕") if mark.kind == "preempted" else ("#4a5568", "∅")
            what = f"<title>{mark.kind} at {mark.at_hours:.2f} h</title>"
            yield f'<text x="{x:.1f}" y="{y + LANE - 4}" fill="{colour}">{sign}{what}</text>'

    def _stretch(self, stretch: Stretch) -> str:
        begin, end = _x(stretch.begin_hours, self._hours), _x(stretch.end_hours, self._hours)
        hours = stretch.end_hours - stretch.begin_hours
        what = escape(f"{stretch.doing}, {stretch.capacity.value.replace('_', ' ')}, {hours:.2f} h at {stretch.place}")
        edge = "" if stretch.capacity.value == "spot" else ' stroke="#1a202c" stroke-width="1.5"'
        return (
            f'<rect x="{begin:.1f}" y="{self._lanes[stretch.place]}" width="{max(0.5, end - begin):.1f}" '
            f'height="{LANE}" fill="{COLOURS[stretch.doing]}"{edge}><title>{what}</title></rect>'
        )

    def _deadline(self) -> Iterator[str]:
        if self._timeline.deadline_hours > self._hours:
            return
        x, bottom = _x(self._timeline.deadline_hours, self._hours), self._lanes_at + len(self._lanes) * (LANE + GAP)
        yield (
            f'<line x1="{x:.1f}" y1="{self._top + HEAD}" x2="{x:.1f}" y2="{bottom}" stroke="#c53030" '
            f'stroke-dasharray="4 3"><title>deadline</title></line>'
        )


def _axis(hours: float, top: int) -> Iterator[str]:
    step = next((tick for tick in TICKS if hours / tick <= MOST_TICKS), TICKS[-1])
    for number in range(int(hours / step) + 1):
        yield _text(_x(number * step, hours), top + 12, f"{number * step:g} h", anchor="middle")


def _legend(height: int) -> str:
    words = [f'<tspan fill="{colour}">■</tspan> {doing}' for doing, colour in COLOURS.items()]
    words += ['<tspan fill="#c53030">✕</tspan> preempted', "∅ refused", "framed: not spot", "blue: spent"]
    return f'<text x="{LEFT}" y="{height - 4}" fill="#4a5568">{" · ".join(words)}</text>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor={quoteattr(anchor)} font-weight={quoteattr(weight)}'
    return f'<text {place} fill="#1a202c">{escape(words)}</text>'
