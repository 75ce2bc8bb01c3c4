"""The picture: well-formed, with every stretch inside its lane and all texts escaped."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from xml.etree import ElementTree

import pytest

from launcher.core.timeline import Timeline, timeline_of
from launcher.render.timeline import COLOURS, LEFT, RIGHT, WIDTH, timelines_svg
from launcher.render.words import Money
from tests.builders import after
from tests.core.test_timeline import a_preempted_run

SVG = "{http://www.w3.org/2000/svg}"


def a_timeline() -> Timeline:
    return timeline_of(a_preempted_run(), after(9999))


def drawn(*timelines: Timeline) -> ElementTree.Element:
    return ElementTree.fromstring(timelines_svg(timelines, Money()))  # our own


def texts(picture: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in picture.iter(f"{SVG}text")]


def test_every_stretch_is_a_box_of_its_colour_inside_the_picture() -> None:
    picture = drawn(a_timeline())

    boxes = [box for box in picture.iter(f"{SVG}rect") if box.get("fill") in COLOURS.values()]
    assert len(boxes) == 6
    for box in boxes:
        x, width = float(box.get("x", "")), float(box.get("width", ""))
        assert LEFT <= x <= x + width <= WIDTH - RIGHT + 0.6


def test_hours_are_to_scale() -> None:
    picture = drawn(a_timeline())

    boxes = [box for box in picture.iter(f"{SVG}rect") if box.get("fill") in COLOURS.values()]
    widths = [float(box.get("width", "")) for box in boxes]
    assert widths[0] / widths[1] == pytest.approx(360 / 120, rel=0.05)


def test_the_heading_says_what_it_cost_and_the_line_ends_there() -> None:
    timeline = a_timeline()

    said = texts(drawn(timeline))

    assert f"{timeline.title} · ${timeline.spend[-1][1]:,.2f} · 30 m 00 s" in said


def test_several_are_drawn_on_one_scale() -> None:
    short = a_timeline()
    long = replace(short, title="long", end_hours=4 * short.end_hours, spend=((0.0, Decimal(0)), (2.0, Decimal(99))))

    picture = drawn(short, long)

    assert len(list(picture.iter(f"{SVG}polyline"))) == 2
    first = next(iter(picture.iter(f"{SVG}polyline"))).get("points", "").split()
    ends_at = float(first[-1].split(",")[0])
    assert ends_at == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) / 4, abs=1)
    assert "$99.00" in texts(picture)


def test_what_a_user_named_cannot_break_the_picture() -> None:
    odd = replace(a_timeline(), title='<script>"&')

    assert any(text.startswith('<script>"&') for text in texts(drawn(odd)))


def test_a_near_deadline_is_drawn_and_a_far_one_would_only_take_room() -> None:
    near, far = (replace(a_timeline(), deadline_hours=hours) for hours in (0.75, 100.0))

    assert len(list(drawn(near).iter(f"{SVG}line"))) == 1
    assert list(drawn(far).iter(f"{SVG}line")) == []


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a timeline"):
        timelines_svg([], Money())
