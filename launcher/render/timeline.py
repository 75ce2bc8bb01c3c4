"""Timelines as one SVG: a lane for each, on one scale of hours and of money.

A band is a machine: its letter and colour are its place, its pattern is what was done. Nothing is said by colour alone,
and all of it is said in words as well: a title for each band, and a description of the whole for who does not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from xml.sax.saxutils import escape, quoteattr

from launcher.core.offers import Capacity
from launcher.core.replays.timeline import Doing, Mark, Stretch, Timeline
from launcher.core.spans import span
from launcher.render.words import Money

WIDTH, LEFT, RIGHT = 960, 150, 130  # pixels
HEAD, FOOT, LINE = 42, 26, 17
BAND, MONEY, GAP = 18, 26, 14
LETTER, WORD = 13, 46  # a narrower band has no room for its letter, a narrower gap none for a word
MOST_LETTERS = 26
# eight colours that people with any colour vision tell apart: Okabe & Ito 2008, https://jfly.uni-koeln.de/color/
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2", "#bbbbbb")
PATTERNS: dict[Doing, str] = {"setup": "stripes", "lost": "crosses", "closing": "dots"}
TICKS = (0.25, 0.5, 1, 2, 3, 6, 12, 24, 48, 96, 168)  # hours
MOST_TICKS = 12
FAR = 2.0  # times as long as the run: a deadline beyond is not drawn
LATE = 1.25  # times the deadline: what is later than that is cut off
_INK, _GREY, _RED = "#1a202c", "#4a5568", "#c53030"

_DEFINITIONS = f"""<defs>
<pattern id="stripes" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="2" height="5" fill="{_INK}" fill-opacity="0.55"/></pattern>
<pattern id="crosses" width="6" height="6" patternUnits="userSpaceOnUse">
<path d="M0 0L6 6M6 0L0 6" stroke="{_RED}" stroke-width="1.4"/></pattern>
<pattern id="dots" width="4" height="4" patternUnits="userSpaceOnUse">
<circle cx="2" cy="2" r="1" fill="{_INK}"/></pattern>
</defs>"""

Where = tuple[str, Capacity]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """`title` stands for the timeline's own; `note` stands behind its end."""

    timeline: Timeline
    note: str = ""
    title: str | None = None

    @property
    def name(self) -> str:
        return self.timeline.title if self.title is None else self.title


def lanes_svg(lanes: Sequence[Lane], money: Money, *, title: str) -> str:
    """One below the other. Raises: ValueError: there is none."""
    if not lanes:
        raise ValueError("a picture needs a lane")
    scale = _Scale(
        hours=max(1e-9, *(_hours(lane.timeline) for lane in lanes)),
        most_usd=max(lane.timeline.total_usd for lane in lanes) or Decimal("0.01"),
        letters=_letters(lanes),
        money=money,
    )
    parts, top = [_text(8, 20, title, weight="bold")], HEAD
    for lane in lanes:
        block = _Block(lane, scale, top)
        parts += block.parts()
        top += block.height
    parts += _axis(scale.hours, top)
    legend = list(_legend(scale, top + FOOT))
    height = top + FOOT + LINE * len(legend)
    about = "\n".join(_sentence(lane, scale) for lane in lanes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" aria-labelledby="title desc">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape(about)}</desc>\n{_DEFINITIONS}\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join([*parts, *legend]) + "\n</svg>\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    hours: float
    most_usd: Decimal
    letters: dict[Where, str]
    money: Money

    def x(self, at_hours: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(at_hours, self.hours) / self.hours

    def colour(self, where: Where) -> str:
        return COLOURS[[*self.letters].index(where) % len(COLOURS)]


def _hours(timeline: Timeline) -> float:
    """With the deadline, unless that is far away; and not far beyond it."""
    is_near = timeline.deadline_hours <= FAR * timeline.end_hours
    return min(max(timeline.end_hours, timeline.deadline_hours if is_near else 0.0), LATE * timeline.deadline_hours)


def _letters(lanes: Sequence[Lane]) -> dict[Where, str]:
    """A, B, C … in the order in which the lanes come to them."""
    places = dict.fromkeys((s.place, s.capacity) for lane in lanes for s in lane.timeline.stretches)
    return {where: chr(ord("A") + n) if n < MOST_LETTERS else f"#{n + 1}" for n, where in enumerate(places)}


class _Block:
    """One lane, drawn from `top` downwards: bands, a second row where two machines run, and the money below."""

    def __init__(self, lane: Lane, scale: _Scale, top: int) -> None:
        self._timeline, self._name, self._note, self._scale, self._top = lane.timeline, lane.name, lane.note, scale, top
        self._rows = _rows(lane.timeline)
        self._money_at = top + BAND * (1 + max(self._rows.values(), default=0)) + 4
        self.height = self._money_at - top + MONEY + GAP

    def parts(self) -> list[str]:
        base = self._top + BAND - 5
        words = [_text(LEFT - 8, base, self._name, anchor="end", weight="bold")]
        x = WIDTH - RIGHT + 8
        total = self._scale.money.exact(self._timeline.total_usd)
        words += [_text(x, base, total, weight="bold"), *_folded(self._note, x, base)]
        if self._timeline.end_hours > self._scale.hours:
            words.append(_text(WIDTH - RIGHT - 2, base, "goes on →", anchor="end", colour=_GREY))
        bands = [self._stretch(s) for s in self._timeline.stretches if s.begin_hours < self._scale.hours]
        return [*words, *self._waits(), *bands, *self._marks(), *self._spend()]

    def _waits(self) -> Iterator[str]:
        y = self._top + BAND / 2
        for begin, end in self._timeline.waits:
            x, until = self._scale.x(begin), self._scale.x(end)
            what = f"<title>no machine for {span(3600 * (end - begin))}, from {begin:.2f} h on</title>"
            line = f'x1="{x:.1f}" y1="{y}" x2="{until:.1f}" y2="{y}" stroke="{_GREY}" stroke-dasharray="1 3"'
            yield f"<line {line}>{what}</line>"
            if until - x > WORD:
                yield _text((x + until) / 2, y - 3, "waits", anchor="middle", colour=_GREY)

    def _stretch(self, stretch: Stretch) -> str:
        begin, end = self._scale.x(stretch.begin_hours), self._scale.x(stretch.end_hours)
        y, width = self._top + BAND * self._rows[stretch.machine], max(0.5, end - begin)
        where = (stretch.place, stretch.capacity)
        box = f'x="{begin:.1f}" y="{y}" width="{width:.1f}" height="{BAND - 1}"'
        edge = "" if stretch.capacity is Capacity.SPOT else f' stroke="{_INK}" stroke-width="2"'
        parts = [f'<rect {box} fill="{self._scale.colour(where)}"{edge}><title>{_words(stretch)}</title></rect>']
        if stretch.doing in PATTERNS:
            parts.append(f'<rect {box} fill="url(#{PATTERNS[stretch.doing]})" pointer-events="none"/>')
        elif width >= LETTER:
            parts.append(_text(begin + width / 2, y + BAND - 5, self._scale.letters[where], anchor="middle"))
        return "".join(parts)

    def _marks(self) -> Iterator[str]:
        for mark in self._timeline.marks:
            if mark.machine is None or mark.at_hours > self._scale.hours:
                continue  # a refusal costs nothing but its wait, and there may be hundreds
            x, y = self._scale.x(mark.at_hours), self._top + BAND * self._rows.get(mark.machine, 0)
            sign, colour = ("✕", _RED) if mark.kind == "preempted" else ("⇄", _INK)
            what = f"<title>{escape(_mark_words(mark))}</title>"
            place = f'x="{x:.1f}" y="{y + BAND - 5}" text-anchor="middle" font-weight="bold"'
            yield f'<circle cx="{x:.1f}" cy="{y + BAND / 2}" r="6.5" fill="white"/>'
            yield f'<text {place} fill="{colour}">{sign}{what}</text>'

    def _spend(self) -> Iterator[str]:
        scale, base = self._scale, self._money_at + MONEY
        points = [(scale.x(at), base - float(usd / scale.most_usd) * (MONEY - 2)) for at, usd in self._timeline.spend]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        what = f"<title>spent: {scale.money.exact(self._timeline.total_usd)} at the end</title>"
        yield f'<polyline points="{path}" fill="none" stroke="{_INK}" stroke-width="1.2">{what}</polyline>'
        yield f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" stroke="#cbd5e0"/>'
        yield _text(LEFT - 8, base, "spent", anchor="end", colour=_GREY)
        if self._timeline.deadline_hours <= scale.hours:
            x = scale.x(self._timeline.deadline_hours)
            line = f'x1="{x:.1f}" y1="{self._top - 4}" x2="{x:.1f}" y2="{base}" stroke="{_RED}" stroke-dasharray="4 3"'
            yield f"<line {line}><title>deadline at {self._timeline.deadline_hours:.2f} h</title></line>"


def _rows(timeline: Timeline) -> dict[int, int]:
    """0, or 1 for a machine that begins while another one runs in row 0."""
    lives: dict[int, tuple[float, float]] = {}
    for s in timeline.stretches:
        begin, end = lives.get(s.machine, (s.begin_hours, s.end_hours))
        lives[s.machine] = min(begin, s.begin_hours), max(end, s.end_hours)
    rows: dict[int, int] = {}
    free_at = [-1.0, -1.0]
    for machine, (begin, end) in sorted(lives.items(), key=lambda life: life[1]):
        row = 0 if free_at[0] <= begin + 1e-6 else 1
        rows[machine], free_at[row] = row, end
    return rows


def _sentence(lane: Lane, scale: _Scale) -> str:
    """The lane in words: its machines one after the other, and what they came to."""
    lives: dict[int, list[Stretch]] = {}
    for stretch in lane.timeline.stretches:
        lives.setdefault(stretch.machine, []).append(stretch)
    ends = {mark.machine: f", {mark.kind}" for mark in lane.timeline.marks if mark.machine is not None}
    parts = [
        f"{lives[n][0].place} {_capacity(lives[n][0])} {lives[n][0].begin_hours:.1f}–{lives[n][-1].end_hours:.1f} h"
        f"{ends.get(n, '')}"
        for n in lives
    ]
    total = scale.money.exact(lane.timeline.total_usd)
    return f"{lane.name}: {total}, {lane.note or span(3600 * lane.timeline.end_hours)}. {'; '.join(parts)}."


def _words(stretch: Stretch) -> str:
    hours = stretch.end_hours - stretch.begin_hours
    words = (
        f"{stretch.doing}, {_capacity(stretch)}, {hours:.2f} h at {stretch.place} from {stretch.begin_hours:.2f} h on"
    )
    return escape(words)


def _capacity(stretch: Stretch) -> str:
    return stretch.capacity.value.replace("_", "-")


def _mark_words(mark: Mark) -> str:
    return f"{mark.kind} at {mark.at_hours:.2f} h: {mark.place}"


def _folded(note: str, x: float, base: float) -> Iterator[str]:
    """A line for each clause, at the right of the lane."""
    for number, clause in enumerate(filter(None, note.split(", ")), start=1):
        yield _text(x, base + 14 * number, clause, colour=_GREY)


def _axis(hours: float, top: int) -> Iterator[str]:
    step = next((tick for tick in TICKS if hours / tick <= MOST_TICKS), TICKS[-1])
    for number in range(int(hours / step) + 1):
        x = LEFT + (WIDTH - LEFT - RIGHT) * number * step / hours
        yield _text(x, top + 8, f"{number * step:g} h", anchor="middle")


def _legend(scale: _Scale, top: int) -> Iterator[str]:
    signs = (
        "✕ preempted · ⇄ handed over · plain: training · stripes: set-up · crosses: lost, done again · dots: closing"
    )
    yield _text(8, top + LINE - 5, f"{signs} · framed: not spot · dashed: deadline", colour=_GREY)
    for number, (where, letter) in enumerate(scale.letters.items(), start=1):
        place, capacity = where
        y = top + LINE * number
        words = _text(30, y + LINE - 5, f"{letter}  {place}, {capacity.value.replace('_', '-')}")
        yield f'<rect x="8" y="{y + 2}" width="16" height="12" fill="{scale.colour(where)}"/>{words}'


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal", colour: str = _INK) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor={quoteattr(anchor)} font-weight={quoteattr(weight)}'
    return f'<text {place} fill="{colour}">{escape(words)}</text>'
