"""The picture: well-formed, to scale, and complete without its colours."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from xml.etree import ElementTree

import pytest

from launcher.core.replays.timeline import Timeline, timeline_of
from launcher.render.timeline import COLOURS, LEFT, RIGHT, WIDTH, Lane, lanes_svg
from launcher.render.words import Money
from tests.builders import a_state, a_submit, after
from tests.core.test_timeline import HANDED_OVER, a_preempted_run

SVG = "{http://www.w3.org/2000/svg}"


def a_timeline() -> Timeline:
    return timeline_of(a_preempted_run(), after(9999))


def a_handover() -> Timeline:
    return timeline_of(a_state(a_submit(), *HANDED_OVER, every_seconds=60), after(900))


def drawn(*timelines: Timeline, note: str = "", money: Money | None = None) -> ElementTree.Element:
    lanes = [Lane(timeline=timeline, note=note) for timeline in timelines]
    return ElementTree.fromstring(lanes_svg(lanes, money or Money(), title="a replay"))  # our own


def texts(picture: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in picture.iter(f"{SVG}text")]


def titles(picture: ElementTree.Element) -> list[str]:
    return [title.text or "" for title in picture.iter(f"{SVG}title")]


def bands(picture: ElementTree.Element) -> list[ElementTree.Element]:
    """Boxes with a title: the legend's have none."""
    return [box for box in picture.iter(f"{SVG}rect") if box.find(f"{SVG}title") is not None]


def test_every_stretch_is_a_band_inside_the_picture_and_to_scale() -> None:
    boxes = bands(drawn(a_timeline()))

    assert len(boxes) == 6
    for box in boxes:
        x, width = float(box.get("x", "")), float(box.get("width", ""))
        assert LEFT <= x <= x + width <= WIDTH - RIGHT + 0.6
    widths = [float(box.get("width", "")) for box in boxes]
    assert widths[0] / widths[1] == pytest.approx(360 / 120, rel=0.05)


def test_without_colour_a_place_has_its_letter_and_what_is_done_its_pattern() -> None:
    picture = drawn(a_timeline())

    said = texts(picture)
    assert {"A", "B"} <= set(said)
    assert {"A  aws a, spot", "B  aws b, spot"} <= set(said)
    patterns = {box.get("fill") for box in picture.iter(f"{SVG}rect")} & {
        "url(#stripes)",
        "url(#crosses)",
        "url(#dots)",
    }
    assert len(patterns) == 3
    assert {pattern.get("id") for pattern in picture.iter(f"{SVG}pattern")} == {"stripes", "crosses", "dots"}
    assert len({box.get("fill") for box in bands(picture)} & set(COLOURS)) == 2


def test_who_does_not_see_it_reads_it() -> None:
    picture = drawn(a_timeline(), note="30 m 00 s, 1 preemption")

    assert picture.get("role") == "img"
    assert picture.get("aria-labelledby") == "title desc"
    (about,) = picture.iter(f"{SVG}desc")
    total = f"${a_timeline().total_usd:,.2f}"
    assert about.text == (
        f"digits-20260105-ab12: {total}, 30 m 00 s, 1 preemption. "
        "aws a spot 0.1–0.2 h, preempted; aws b spot 0.3–0.5 h."
    )
    assert "lost, spot, 0.05 h at aws a from 0.20 h on" in titles(picture)
    assert "preempted at 0.25 h: aws a" in titles(picture)
    assert "no machine for 4 m 00 s, from 0.00 h on" in titles(picture)


def test_the_money_of_a_lane_stands_at_its_end_and_is_in_the_users_currency() -> None:
    timeline = a_timeline()

    said = texts(drawn(timeline, money=Money(currency="EUR", usd_per_unit=Decimal("1.25"))))

    assert f"€{timeline.total_usd / Decimal('1.25'):,.2f}" in said
    assert not [words for words in said if "$" in words]


def test_two_machines_at_a_time_are_two_rows_and_the_handover_is_marked() -> None:
    picture = drawn(a_handover())

    rows = {box.get("y") for box in bands(picture)}
    assert len(rows) == 2
    assert "handed over at 0.12 h: aws a" in titles(picture)
    assert [words[0] for words in texts(picture) if words[0] in "✕⇄" and "at" in words] == ["⇄"]


def test_several_are_drawn_on_one_scale() -> None:
    short = a_timeline()
    long = replace(short, title="long", end_hours=4 * short.end_hours, spend=((0.0, Decimal(0)), (2.0, Decimal(99))))

    first, second = drawn(short, long).iter(f"{SVG}polyline")

    ends = [line.get("points", "").split()[-1].split(",") for line in (first, second)]
    assert float(ends[0][0]) == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) / 4, abs=1)
    base = [float(line.get("points", "").split()[0].split(",")[1]) for line in (first, second)]
    rises = [base[n] - float(ends[n][1]) for n in (0, 1)]
    assert rises[0] / rises[1] == pytest.approx(float(short.total_usd) / 99, abs=0.01)


def test_what_is_far_behind_the_deadline_is_cut_off_and_says_so() -> None:
    late = replace(a_timeline(), deadline_hours=0.25)

    picture = drawn(late)

    assert "goes on →" in texts(picture)
    assert all(float(box.get("x", "")) < WIDTH - RIGHT for box in bands(picture))
    assert "goes on →" not in texts(drawn(a_timeline()))


def test_what_a_user_named_cannot_break_the_picture() -> None:
    odd = replace(a_timeline(), title='<script>"&')

    assert any(text.startswith('<script>"&') for text in texts(drawn(odd)))


def test_a_near_deadline_is_drawn_and_a_far_one_would_only_take_room() -> None:
    near, far = (replace(a_timeline(), deadline_hours=hours) for hours in (0.75, 100.0))

    assert "deadline at 0.75 h" in titles(drawn(near))
    assert not [title for title in titles(drawn(far)) if title.startswith("deadline")]


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a lane"):
        lanes_svg([], Money(), title="")
