from __future__ import annotations

import itertools
import math

import pytest

from launcher.core.hazards import AVAILABLE, LIFE_HAZARD, SPELL_HAZARD
from launcher.core.policy import guide as module
from launcher.core.policy.guide import MOST_CELLS, TICK_HOURS, Rule, Terms, game, guide, tick_hours
from launcher.core.policy.mdp import Sight, Table

UP, LONG_UP = Sight(is_up=True, age_hours=0.0), Sight(is_up=True, age_hours=20.0)
DOWN, LONG_DOWN = Sight(is_up=False, age_hours=0.0), Sight(is_up=False, age_hours=20.0)


def some_terms(**fields: object) -> Terms:
    plain = {
        "prices": (0.3,),
        "sizes": (1,),
        "changeover_hours": 0.2,
        "pause_hours": 2 / 60,
        "has_feed": True,
    }
    return Terms(**(plain | fields))  # type: ignore[arg-type]  # the fields' own types


def a_rule(**fields: object) -> Rule:
    terms = some_terms(**fields)
    return Rule(changeover_hours=terms.changeover_hours, num_rungs=len(terms.prices) - 1, terms=terms)


@pytest.fixture
def table() -> Table:
    pytest.importorskip("numpy")
    found = guide(some_terms(), work_hours=10.0, slack_hours=8.0)
    assert isinstance(found, Table)
    return found


def test_a_tick_divides_the_changeover_and_is_about_as_long_as_wanted() -> None:
    for changeover in (0.05, 0.1, 0.23, 0.5, 1.0):
        tick = tick_hours(some_terms(changeover_hours=changeover), work_hours=10.0, slack_hours=5.0)

        assert tick is not None
        assert changeover / tick == pytest.approx(round(changeover / tick))
        assert tick <= max(TICK_HOURS * 1.5, changeover)


def test_the_tick_of_a_long_run_is_longer_but_never_longer_than_a_changeover() -> None:
    terms, hours = some_terms(changeover_hours=1.0), [10.0, 60.0, 200.0, 2000.0]

    ticks = [tick_hours(terms, work_hours=each, slack_hours=each / 2) for each in hours]

    assert ticks[:3] == sorted(tick for tick in ticks if tick is not None)
    assert ticks[-1] is None
    for each, tick in zip(hours, ticks, strict=True):
        assert tick is None or 2 * (each / tick + 1) * (each / 2 / tick + 1) <= MOST_CELLS


def test_more_tiers_need_more_cells() -> None:
    hours = {"work_hours": 100.0, "slack_hours": 40.0}
    terms = some_terms(changeover_hours=1.0, prices=(0.2, 0.4, 0.6), sizes=(1, 1, 1))

    few, many = tick_hours(some_terms(changeover_hours=1.0), **hours), tick_hours(terms, **hours)

    assert few is not None
    assert many is not None
    assert few < many


def test_a_short_run_is_guided_by_a_table_and_a_long_one_by_the_rule() -> None:
    pytest.importorskip("numpy")

    assert isinstance(guide(some_terms(), work_hours=10.0, slack_hours=5.0), Table)
    assert isinstance(guide(some_terms(changeover_hours=0.05), work_hours=1000.0, slack_hours=500.0), Rule)


def test_without_numpy_or_spot_there_is_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(guide(some_terms(prices=(), sizes=()), work_hours=10.0, slack_hours=5.0), Rule)

    monkeypatch.setattr(module, "find_spec", lambda name: None)

    assert isinstance(guide(some_terms(), work_hours=10.001, slack_hours=5.0), Rule)


def test_the_same_terms_are_solved_once() -> None:
    one, again = (guide(some_terms(), work_hours=7.0, slack_hours=3.0) for _ in range(2))

    assert one is again
    assert one is not guide(some_terms(has_feed=False), work_hours=7.0, slack_hours=3.0)


def test_a_table_answers_for_more_slack_and_work_than_it_was_solved_for(table: Table) -> None:
    beyond = {"work_hours": 1e4, "slack_hours": 1e6}

    assert table.idle(sight=LONG_UP, **beyond) == "spot"
    assert table.idle(sight=DOWN, **beyond) == "wait"


def test_the_process_follows_the_cheapest_tier_and_asks_the_others_by_their_size() -> None:
    asked = game(some_terms(prices=(0.3, 0.5, 0.8), sizes=(2, 1, 3), wait_price=0.1))

    assert (asked.price, asked.changeover_hours, asked.pause_hours, asked.wait_price) == (0.3, 0.2, 2 / 60, 0.1)
    assert [rung.price for rung in asked.rungs] == [0.5, 0.8]
    assert [rung.chance for rung in asked.rungs] == pytest.approx([AVAILABLE, 1 - (1 - AVAILABLE) ** 3])
    assert asked.elsewhere > 0


def test_a_place_that_is_alone_offers_nothing_elsewhere() -> None:
    assert game(some_terms()).elsewhere == 0.0


def test_without_a_feed_a_machine_is_followed_and_with_one_the_spell() -> None:
    assert game(some_terms()).lives is SPELL_HAZARD
    assert game(some_terms(has_feed=False)).lives is LIFE_HAZARD


@pytest.mark.parametrize("has_feed", [True, False])
@pytest.mark.parametrize("changeover_hours", [0.1, 0.3])
def test_table_and_rule_agree_where_there_is_nothing_to_weigh(changeover_hours: float, has_feed: bool) -> None:
    pytest.importorskip("numpy")
    terms = some_terms(changeover_hours=changeover_hours, has_feed=has_feed)
    guides = (guide(terms, work_hours=10.0, slack_hours=10.0), a_rule(changeover_hours=changeover_hours))

    for each in guides:
        broke, rich = {"work_hours": 10.0, "slack_hours": 0.0}, {"work_hours": 10.0, "slack_hours": 10.0}
        assert each.idle(sight=LONG_UP, **broke) == "fallback"
        assert each.idle(sight=DOWN, **broke) == "fallback"
        assert each.on_fallback(sight=LONG_UP, **broke) == "stay"
        assert each.on_fallback(sight=DOWN, **broke) == "stay"
        assert each.slack_price(**broke) == 1.0
        assert each.idle(sight=LONG_UP, **rich) == "spot"
        assert each.idle(sight=DOWN, **rich) == "wait"
        assert each.on_fallback(sight=LONG_UP, **rich) != "stay"
        assert each.slack_price(**rich) < 0.4


def test_spot_is_left_alone_where_it_is_hardly_cheaper(table: Table) -> None:
    dear = guide(some_terms(prices=(0.96,)), work_hours=10.0, slack_hours=1.0)

    assert dear.on_fallback(work_hours=5.0, slack_hours=0.5, sight=UP) == "stay"
    assert table.on_fallback(work_hours=5.0, slack_hours=0.5, sight=LONG_UP) != "stay"


@pytest.mark.parametrize(("slack_hours", "advice"), [(0.4, "spot"), (0.399, "fallback")])
def test_by_the_rule_spot_that_is_up_is_taken_with_slack_for_two_changeovers(slack_hours: float, advice: str) -> None:
    assert a_rule().idle(work_hours=10.0, slack_hours=slack_hours, sight=UP) == advice


def test_by_the_rule_the_wait_is_for_young_outages_and_for_much_slack() -> None:
    rule = a_rule(changeover_hours=0.1)

    answers = [
        rule.idle(work_hours=10.0, slack_hours=slack, sight=sight)
        for slack, sight in itertools.product((0.79, 0.81, 1.99, 2.01), (DOWN, LONG_DOWN))
    ]

    wait, leave = "wait", "fallback"
    assert answers == [leave, leave, wait, leave, wait, leave, wait, wait]


def test_by_the_rule_fresh_capacity_is_not_trusted_by_who_has_something_to_lose() -> None:
    rule = a_rule()
    needed = {age: 2 * 0.2 + 10.0 * 0.2 * (0.55 * math.exp(-age / 0.6) + 0.05) for age in (0.0, 3.0)}

    for age, slack in needed.items():
        sight = Sight(is_up=True, age_hours=age)
        assert rule.on_fallback(work_hours=10.0, slack_hours=slack - 0.01, sight=sight) == "stay"
        assert rule.on_fallback(work_hours=10.0, slack_hours=slack + 0.01, sight=sight) == "hand_over"
    assert needed[3.0] < needed[0.0]


def test_without_a_handover_the_rule_leaves_instead() -> None:
    assert a_rule(pause_hours=None).on_fallback(work_hours=10.0, slack_hours=9.0, sight=LONG_UP) == "leave"


def test_by_the_rule_the_fallback_is_left_for_nothing_where_spot_alone_will_finish() -> None:
    rule, enough = a_rule(), 10.0 * (0.12 + 1.4 * 0.2)

    assert rule.on_fallback(work_hours=10.0, slack_hours=enough - 0.01, sight=DOWN) == "stay"
    assert rule.on_fallback(work_hours=10.0, slack_hours=enough + 0.01, sight=DOWN) == "leave"


def test_by_the_rule_dearer_tiers_are_asked_where_it_would_not_wait() -> None:
    rule = a_rule(prices=(0.3, 0.5, 0.8), sizes=(1, 1, 1))

    assert rule.asks(work_hours=10.0, slack_hours=9.0, sight=DOWN) == ()
    assert rule.asks(work_hours=10.0, slack_hours=0.5, sight=DOWN) == (0, 1)


def test_an_hour_of_slack_is_worth_an_hour_of_the_fallback_where_there_is_none_and_less_where_there_is_much(
    table: Table,
) -> None:
    for each in (table, a_rule()):
        prices = [each.slack_price(work_hours=8.0, slack_hours=slack / 10) for slack in range(60)]

        assert prices[0] == 1.0
        assert all(0.0 <= price <= 1.0 for price in prices)
        assert prices[-1] < 0.4
        assert sum(prices[:20]) > sum(prices[20:40]) > sum(prices[40:]) - 1e-9


def test_by_the_rule_slack_for_two_fifths_of_the_work_is_worth_nothing_more() -> None:
    prices = [a_rule().slack_price(work_hours=10.0, slack_hours=slack) for slack in (0.0, 2.0, 4.0, 9.0)]

    assert prices == [1.0, 0.5, 0.0, 0.0]
