"""The decision process against a plain recursion over every state, and what must hold of any solution."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.hazards import RETURN_HAZARD, Hazards
from launcher.core.policy.mdp import EDGES, Game, Rung, Sight, solve

pytest.importorskip("numpy")

LIVES: Hazards = ((0.2, 1.6), (1.0, 0.9), (4.0, 0.3), (math.inf, 0.1))
TICK = 0.1
NEVER = 1e6
UP, DOWN = Sight(is_up=True, age_hours=0.0), Sight(is_up=False, age_hours=0.0)


def a_game(**fields: object) -> Game:
    plain = {"price": 0.3, "changeover_hours": 0.2, "lives": LIVES, "returns": RETURN_HAZARD}
    return Game(**(plain | fields))  # type: ignore[arg-type]  # the fields' own types


def rate(hazards: Hazards, bucket: int) -> float:
    """Of the bucket as a whole, by summing over it."""
    begin = EDGES[bucket]
    end = EDGES[bucket + 1] if bucket + 1 < len(EDGES) else begin + 1.0
    points = [begin + (end - begin) * (n + 0.5) / 1000 for n in range(1000)]
    return sum(next(h for until, h in hazards if age < until) for age in points) / 1000


def the_least(game: Game, *, work: int, slack: int) -> float:
    """Cost of an idle run that has just seen an outage begin, by trying everything."""
    changeover, top = round(game.changeover_hours / TICK), len(EDGES) - 1
    ageing = [min(1.0, TICK / (EDGES[n + 1] - EDGES[n])) if n < top else 0.0 for n in range(top + 1)]
    lost = [1 - math.exp(-rate(game.lives, n) * TICK) for n in range(top + 1)]
    found = [1 - math.exp(-rate(game.returns, n) * TICK) for n in range(top + 1)]

    def older(bucket: int) -> list[tuple[float, int]]:
        return [(1 - ageing[bucket], bucket)] + ([(ageing[bucket], bucket + 1)] if ageing[bucket] else [])

    def seen_next(is_up: bool, bucket: int) -> list[tuple[float, bool, int]]:
        changes = lost[bucket] if is_up else found[bucket]
        stays = [((1 - changes) * chance, is_up, then) for chance, then in older(bucket)]
        if not is_up:
            return [*stays, (changes, True, 0)]
        return [*stays, (changes * game.elsewhere, True, 0), (changes * (1 - game.elsewhere), False, 0)]

    @cache
    def idle(work: int, slack: int, is_up: bool, bucket: int) -> float:
        if slack < 0:
            return NEVER
        if work <= 0:
            return 0.0
        ways = [wait(work, slack, is_up, bucket), warm_fallback(work, slack, changeover, is_up, bucket)]
        if is_up:
            ways.append(warm_spot(work, slack, changeover, bucket))
        least = min(ways)
        for rung in reversed(game.rungs):
            start = warm_rung(rung, work, slack, is_up, bucket)
            if start < least:
                least = rung.chance * start + (1 - rung.chance) * least
        return least

    def in_ticks(ticks: int, is_up: bool, bucket: int) -> dict[tuple[bool, int], float]:
        seen = {(is_up, bucket): 1.0}
        for _ in range(ticks):
            then: dict[tuple[bool, int], float] = {}
            for state, chance in seen.items():
                for p, *following in seen_next(*state):
                    then[tuple(following)] = then.get(tuple(following), 0.0) + p * chance  # type: ignore[index]  # two
            seen = then
        return seen

    @cache
    def warm_rung(rung: Rung, work: int, slack: int, is_up: bool, bucket: int) -> float:
        if slack < changeover:
            return NEVER
        alive = math.exp(-rung.preemptions_per_hour * TICK * changeover)
        return rung.price * changeover + sum(
            p * (alive * on_rung(rung, work, slack - changeover, *z) + (1 - alive) * idle(work, slack - changeover, *z))
            for z, p in in_ticks(changeover, is_up, bucket).items()
        )

    @cache
    def on_rung(rung: Rung, work: int, slack: int, is_up: bool, bucket: int) -> float:
        if work <= 0:
            return 0.0
        alive = math.exp(-rung.preemptions_per_hour * TICK)
        stay = rung.price + sum(
            p * (alive * on_rung(rung, work - 1, slack, *z) + (1 - alive) * idle(work - 1, slack, *z))
            for p, *z in seen_next(is_up, bucket)
        )
        return min(stay, idle(work, slack, is_up, bucket))

    def wait(work: int, slack: int, is_up: bool, bucket: int) -> float:
        if slack == 0:
            return NEVER
        return sum(p * idle(work, slack - 1, *then) for p, *then in seen_next(is_up, bucket))

    @cache
    def warm_fallback(work: int, slack: int, ticks: int, is_up: bool, bucket: int) -> float:
        if ticks == 0:
            return fallback(work, slack, is_up, bucket)
        if slack == 0:
            return NEVER
        return 1 + sum(p * warm_fallback(work, slack - 1, ticks - 1, *then) for p, *then in seen_next(is_up, bucket))

    @cache
    def fallback(work: int, slack: int, is_up: bool, bucket: int) -> float:
        if work <= 0:
            return 0.0
        stay = 1 + sum(p * fallback(work - 1, slack, *then) for p, *then in seen_next(is_up, bucket))
        return min(stay, idle(work, slack, is_up, bucket))

    def landed(work: int, slack: int) -> float:
        return game.elsewhere * idle(work, slack, True, 0) + (1 - game.elsewhere) * idle(work, slack, False, 0)

    @cache
    def warm_spot(work: int, slack: int, ticks: int, bucket: int) -> float:
        if ticks == 0:
            return spot(work, slack, bucket)
        if slack == 0:
            return NEVER
        lives = sum(p * warm_spot(work, slack - 1, ticks - 1, then) for p, then in older(bucket))
        return game.price + (1 - lost[bucket]) * lives + lost[bucket] * landed(work, slack - 1)

    @cache
    def spot(work: int, slack: int, bucket: int) -> float:
        if work <= 0:
            return 0.0
        lives = sum(p * spot(work - 1, slack, then) for p, then in older(bucket))
        return game.price + (1 - lost[bucket]) * lives + lost[bucket] * landed(work - 1, slack)

    return idle(work, slack, False, 0)


RUNGS = (
    Rung(price=0.4, chance=0.7, preemptions_per_hour=0.4),
    Rung(price=0.8, chance=0.9, preemptions_per_hour=0.05),
)


@pytest.mark.parametrize("rungs", [(), RUNGS])
@pytest.mark.parametrize("elsewhere", [0.0, 0.6])
@pytest.mark.parametrize("changeover_hours", [0.1, 0.3])
def test_it_costs_what_trying_everything_costs(
    elsewhere: float, changeover_hours: float, rungs: tuple[Rung, ...]
) -> None:
    game = a_game(elsewhere=elsewhere, changeover_hours=changeover_hours, rungs=rungs)

    table = solve(game, work_hours=2.0, slack_hours=1.2, tick_hours=TICK)

    for work, slack in ((20, 12), (20, 5), (7, 12), (3, 4)):
        assert table.idle_costs[work, slack] == pytest.approx(the_least(game, work=work, slack=slack), rel=1e-4)


games = st.builds(
    a_game,
    price=st.floats(0.05, 1.2),
    changeover_hours=st.sampled_from([0.1, 0.2, 0.5]),
    elsewhere=st.floats(0.0, 0.9),
    pause_hours=st.sampled_from([None, 0.1]),
    rungs=st.sampled_from([(), RUNGS]),
)


@given(games)
@settings(max_examples=15, deadline=None)
def test_more_slack_never_costs_more_and_more_work_never_less(game: Game) -> None:
    costs = solve(game, work_hours=3.0, slack_hours=3.0, tick_hours=TICK).idle_costs

    assert (costs[:, 1:] <= costs[:, :-1] + 1e-4).all()
    assert (costs[1:] >= costs[:-1] - 1e-4).all()


@given(games)
@settings(max_examples=15, deadline=None)
def test_where_a_start_still_fits_the_deadline_is_kept_for_no_more_than_the_fallback_alone(game: Game) -> None:
    changeover = round(game.changeover_hours / TICK)
    costs = solve(game, work_hours=3.0, slack_hours=3.0, tick_hours=TICK).idle_costs

    alone = changeover + 30
    assert costs[30, changeover] == pytest.approx(alone, rel=1e-5)
    assert (costs[30, changeover:] <= alone + 1e-3).all()
    assert (costs[30, :changeover] > 1000).all()


def test_spot_as_dear_as_the_fallback_is_never_taken() -> None:
    table = solve(a_game(price=1.01), work_hours=5.0, slack_hours=5.0, tick_hours=TICK)

    assert (table.idle_choices[1:, 2:, :] != 1).all()


def test_spot_that_stays_is_taken_at_once_and_costs_its_price() -> None:
    table = solve(
        a_game(lives=((math.inf, 0.0),), returns=((math.inf, 1e9),)), work_hours=5, slack_hours=1, tick_hours=TICK
    )

    assert table.idle(work_hours=5, slack_hours=1, sight=UP) == "spot"
    assert table.idle_costs[50, 10] == pytest.approx(0.3 * (50 + 2), rel=1e-3)


def test_a_young_outage_is_waited_out_and_an_old_one_is_not() -> None:
    table = solve(a_game(), work_hours=10.0, slack_hours=3.0, tick_hours=TICK)

    choices = [
        table.idle(work_hours=10, slack_hours=1.5, sight=Sight(is_up=False, age_hours=age)) for age in (0.0, 5.0)
    ]

    assert choices == ["wait", "fallback"]


def test_a_handover_is_worth_it_where_a_changeover_is_long_against_the_slack() -> None:
    tight = {"work_hours": 20.0, "slack_hours": 0.7}
    plain, over = (
        solve(a_game(changeover_hours=0.5, pause_hours=pause), work_hours=20, slack_hours=1.3, tick_hours=TICK)
        for pause in (None, 0.1)
    )
    settled = Sight(is_up=True, age_hours=5.0)

    assert plain.on_fallback(**tight, sight=settled) == "stay"
    assert over.on_fallback(**tight, sight=settled) == "hand_over"
    assert over.idle_costs[200, 13] < plain.idle_costs[200, 13]


def test_an_hour_of_slack_is_worth_more_the_less_there_is() -> None:
    table = solve(a_game(), work_hours=20.0, slack_hours=8.0, tick_hours=TICK)

    prices = [table.slack_price(work_hours=20, slack_hours=slack) for slack in (0.0, 0.6, 2.0, 8.0)]

    assert prices == sorted(prices, reverse=True)
    assert prices[0] == 1.0
    assert 0 <= prices[-1] < 0.5


def test_dearer_spot_is_left_alone_while_there_is_time_and_asked_before_the_fallback_is_due() -> None:
    table = solve(a_game(rungs=RUNGS), work_hours=10.0, slack_hours=6.0, tick_hours=TICK)

    def asked(slack_hours: float) -> tuple[int, ...]:
        return table.asks(work_hours=10, slack_hours=slack_hours, sight=Sight(is_up=False, age_hours=0.5))

    assert asked(6.0) == ()
    assert asked(2.0) == (0,)
    assert asked(0.6) == (0, 1)
    assert asked(0.1) == ()  # too late for anything but the fallback
    assert table.on_rung(1, work_hours=10, slack_hours=6, sight=UP) == "leave"


def test_what_lies_beyond_the_table_is_answered_from_its_edge() -> None:
    table = solve(a_game(), work_hours=2.0, slack_hours=1.0, tick_hours=TICK)

    assert table.idle(work_hours=99, slack_hours=-5, sight=DOWN) == "fallback"
    assert table.idle(work_hours=1, slack_hours=99, sight=UP) == "spot"
