"""A replay as a person and as a program reads it."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any
from xml.etree import ElementTree

from rich.console import Console

from launcher.core.replays.hindsight import actual_of
from launcher.core.replays.replay import Question, Replay, of_spec
from launcher.render.replay import replay_json, replay_svg, show_replay
from launcher.render.words import Money
from tests.builders import after
from tests.core.futures import a_market, spot
from tests.core.test_replay import MARKET, a_prospect, a_trace
from tests.core.test_timeline import a_preempted_run

EUR = Money(currency="EUR", usd_per_unit=Decimal(2), rate_as_of=date(2026, 11, 1))


def a_replay(**fields: Any) -> Replay:
    return of_spec(Question(count=9), a_prospect(**fields))


def with_actual() -> Replay:
    return replace(a_replay(), actual=actual_of(a_preempted_run(), after(9999)))


def shown(found: Replay, money: Money | None = None, *, explain: bool = False, width: int = 160) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    show_replay(console, found, money or Money(), explain=explain)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    return text.splitlines()


def row(lines: list[str], name: str) -> str:
    return next(line for line in lines if line.removeprefix("▸").strip().startswith(f"{name} "))


def test_the_table_has_a_row_for_each_policy_and_marks_the_best() -> None:
    found = a_replay()

    lines = shown(found)

    for outcome in found.outcomes:
        line = row(lines, outcome.policy.name)
        assert Money().about(outcome.cost_usd.mean) in line
        assert f"{outcome.late:.0%}" in line
        assert line.startswith("▸") is (outcome is found.best)
    firm, ours = found.outcomes[1].cost_usd.mean, found.outcomes[0].cost_usd.mean
    assert f"{100 * (firm / ours - 1):+.1f} %" in row(lines, "on-demand")


def test_it_says_what_it_rests_on() -> None:
    lines = "\n".join(shown(a_replay(deadline_assumed=True, simulated=True)))

    assert "digits (simulated)  9 futures, the same for each policy" in lines
    assert "Weather  drawn from hazards by age, seed 20240416" in lines
    assert "Deadline  30 h 00 m after the submit, assumed: none was given" in lines


def test_money_is_in_the_users_currency_at_its_dated_rate() -> None:
    found = a_replay()

    lines = shown(found, EUR)

    assert EUR.about(found.outcomes[0].cost_usd.mean) in row(lines, "spotlaunch")
    assert "$" not in "".join(line for line in lines if "Currency" not in line)
    assert any("EUR at $2 of 2026-11-01" in line for line in lines)


def test_a_policy_that_comes_to_no_end_has_no_time_and_no_number_in_json() -> None:
    found = of_spec(Question(trace=a_trace(a=(False, (300.0,)))), a_prospect())

    (only,) = (p for p in replay_json(found)["policies"] if p["policy"] == "spot-only")

    assert "no end" in row(shown(found), "spot-only")
    assert only["hours"] == {"mean": None, "p10": None, "p90": None}
    assert only["late"] == 1.0


def test_a_run_stands_above_with_what_it_really_cost() -> None:
    found = with_actual()
    assert found.actual

    lines = shown(found)

    line = row(lines, "as it was")
    assert f"${found.actual.cost_usd:,.2f}" in line
    assert lines.index(line) < lines.index(row(lines, "spotlaunch"))
    going = replace(found, actual=replace(found.actual, is_finished=False))
    assert "%" not in row(shown(going), "as it was, so far")


def test_each_decision_is_explained_on_request() -> None:
    found = with_actual()
    assert found.actual

    lines = shown(found, explain=True)

    told = "\n".join(lines[lines.index(" as it was") :])
    assert all(d.why in told for d in (*found.actual.decisions, *found.outcomes[0].decisions))
    assert " spotlaunch, in the future of its median cost" in lines
    assert " as it was" not in shown(found)


def test_a_narrow_terminal_keeps_the_money() -> None:
    found = a_replay()

    lines = shown(found, width=60)

    assert all(len(line) <= 60 for line in lines if "policy" not in line and ":" not in line)
    assert Money().about(found.outcomes[0].cost_usd.mean) in row(lines, "spotlaunch")


def test_a_program_reads_the_same() -> None:
    found = with_actual()
    assert found.actual

    read = replay_json(found)

    assert (read["schema"], read["currency"], read["num_futures"]) == ("launch/replay/v1", "USD", 9)
    assert read["best"] == found.best.policy.name
    assert [p["policy"] for p in read["policies"]] == [o.policy.name for o in found.outcomes]
    first = read["policies"][0]
    assert first["cost_usd"] == {k: str(getattr(found.outcomes[0].cost_usd, k)) for k in ("mean", "p10", "p90")}
    assert first["cost_ratio"] is None
    assert first["shown"]["stretches"][0].keys() >= {"place", "capacity", "doing", "since_hours", "until_hours"}
    assert first["shown"]["decisions"][0]["why"]
    assert read["actual"]["cost_usd"] == f"{found.actual.cost_usd:.2f}"


def test_the_picture_has_a_lane_for_each_and_what_happened_first() -> None:
    found = with_actual()

    picture = ElementTree.fromstring(replay_svg(found, Money()))  # our own

    said = ["".join(each.itertext()) for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    names = ["as it was", *(o.policy.name for o in found.outcomes)]
    assert [words for words in said if words in names] == names


def test_one_future_has_no_tenths() -> None:
    lines = shown(of_spec(Question(trace=a_trace()), a_prospect(market=a_market(spot("a"), *_firm()))))

    assert not any("80 %" in line for line in lines)
    assert "no" in row(lines, "spotlaunch").split()


def _firm() -> tuple[Any, ...]:
    return tuple(place.option for place in MARKET.places if not place.is_spot)
