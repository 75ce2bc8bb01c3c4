"""What a plan shows beside its numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from launcher.adapters.snapshot_prices import load_catalog, load_tariffs
from launcher.core.estimates.estimate import Estimate
from launcher.core.estimates.planner import Certainty, Plan, highest_usd, plan
from launcher.core.estimates.survey import Book
from launcher.core.estimates.workload import Measured
from launcher.core.offers import Capacity, Offer
from launcher.core.prices.options import Rules
from launcher.core.prices.pricing import Terms
from launcher.render.plan import listing, plan_json, show_plan
from launcher.render.words import Money
from tests.builders import T0, a_spec, an_offer


def planned(*offers: Offer, **spec: Any) -> Plan:
    book = Book(offers=offers, terms=Terms(), tariffs=load_tariffs(), catalog=load_catalog())
    return plan(a_spec(**spec), book, Measured(), now=T0, rules=Rules())


def firm(**fields: Any) -> Offer:
    return an_offer(capacity=Capacity.ON_DEMAND, list_usd_per_hour=Decimal(20), **fields)


def said(made: Plan, chosen: Estimate | None = None) -> dict[str, str]:
    """The sentences under the table, by their first word."""
    out = StringIO()
    console = Console(file=out, width=400)
    show_plan(console, made, chosen or made.best, Terms(), Money(), all_offers=False)
    lines = [line.strip() for line in out.getvalue().splitlines()]
    return {head: tail for head, _, tail in (line.partition("  ") for line in lines) if tail}


def test_a_plan_says_what_spot_risks_and_what_certainty_costs() -> None:
    made = planned(an_offer(), firm(), deadline="9 h")

    told = said(made)

    assert told["Spot risk"].startswith(f"{made.best.preemptions:.1f} preemptions, ")
    assert " of restarts, " in told["Spot risk"]
    assert " on the fallback; " in told["Spot risk"]
    assert told["Certainty"].startswith("+$")
    assert told["Certainty"].endswith(" in the worst tenth, on capacity that stays (aws a)")
    assert "price × hours alone: $16.70" in told["Where it goes"]
    assert "Certainty" not in said(made, made.ladder[-1].estimate)


@pytest.mark.parametrize(
    ("more_usd", "sooner_hours", "words"),
    [
        (Decimal(212), 3.0, "+$212 to finish 3.0 hours earlier"),
        (Decimal(-4), 0.5, "−$4.00 to finish 30 minutes earlier"),
        (Decimal(5), -2.0, "+$5.00 to finish 2.0 hours later"),
        (Decimal(5), 0.001, "+$5.00 to finish at the same time"),
    ],
)
def test_certainty_may_be_cheaper_or_later(
    more_usd: Decimal, sooner_hours: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(an_offer(), firm(), deadline="9 h")
    sure = made.certainty(made.best)
    assert sure is not None
    other = replace(sure, more_usd=more_usd, sooner_hours=sooner_hours)

    def certainty(plan: Plan, chosen: Estimate) -> Certainty:
        return other

    monkeypatch.setattr(Plan, "certainty", certainty)

    assert said(made)["Certainty"].startswith(words)


def test_a_deadline_has_a_chance_and_ends_that_are_told_in_the_clock() -> None:
    made = planned(an_offer(), firm(), deadline="9 h")

    hours = made.best.hours
    early, middle, late = (f"{T0 + timedelta(hours=each):%a %d %b %H:%M}" for each in (hours.p10, hours.p50, hours.p90))
    assert said(made)["Deadline"] == (
        f"Mon 05 Jan 21:00 UTC: {made.best.on_time:.0%} on time; ends about {middle}, 80 % between {early} and {late}"
    )


def test_an_assumed_deadline_says_that_it_is_and_what_waiting_counts_for() -> None:
    made = planned(an_offer(), firm())

    told = said(made)["Deadline"]

    assert told.startswith(f"none given, {made.deadline_at:%a %d %b %H:%M} UTC is assumed, and")
    assert "and that an hour of waiting counts for 10% of one on the fallback" in told


def test_urgency_is_said_in_words() -> None:
    assert "never waits for a lower price" in said(planned(an_offer(), firm(), priority="urgent"))["Priority"]
    assert "Priority" not in said(planned(an_offer(), firm()))


def test_a_plan_says_what_it_will_never_cost() -> None:
    made = planned(an_offer(), firm(), deadline="9 h")
    capped = planned(an_offer(), firm(), deadline="9 h", cost={"cap": "40"})

    assert f"the fallback could still end it below ${made.chase_usd}" in said(made)["Limit"]
    assert said(capped)["Limit"].startswith(f"${highest_usd(capped.spec, capped.best)}.00 are asked for, and it ends")
    assert "fallback" not in said(planned(firm(), deadline="9 h"))["Limit"]


def test_spot_without_anything_behind_it_says_so() -> None:
    assert "no capacity that stays to fall back on" in said(planned(an_offer()))["Spot risk"]


def test_the_json_has_the_same_numbers() -> None:
    made = planned(an_offer(), firm(), deadline="9 h", priority="urgent", cost={"cap": "90"})

    told = json.loads(json.dumps(plan_json(made), allow_nan=False))

    best, sure = made.best, made.certainty(made.best)
    assert sure is not None
    assert (told["priority"], told["wait_price"], told["cap_usd"]) == ("urgent", 0.0, "90")
    assert told["chase_usd"] == f"{made.chase_usd}"
    assert told["certainty"]["more_usd"] == f"{sure.more_usd}"
    assert told["certainty"]["sooner_hours_p90"] == round(sure.sooner_hours_p90, 4)
    entry = told["ranked"][0]
    assert entry["naive_usd"] == f"{best.naive_usd}" == "16.67"
    assert entry["high_usd"] == f"{best.high_usd}"
    assert entry["restart_hours"] == round(best.restart_hours, 4)
    assert entry["fallback_hours"] == round(best.fallback_hours, 4)
    assert plan_json(planned(an_offer(), firm()))["wait_price"] == 0.1
    assert plan_json(planned(firm()))["certainty"] is None


def test_a_listing_says_how_far_it_is_and_nothing_is_shown_where_none_is() -> None:
    silent, told = StringIO(), StringIO()

    with listing(Console(file=silent, force_terminal=True)):
        pass
    with listing(Console(file=told, force_terminal=True)) as progress:
        progress("s3://b/x", 1234.0, 34_000)

    assert silent.getvalue() == ""
    assert "listing s3://b/x: 1.23 TB in 34,000 objects" in told.getvalue()
