"""A supervisor on a hired machine: where, for how much, and who takes over from whom."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from launcher.core.estimates.estimate import estimate
from launcher.core.policy.conduct import AskToEnd, Judge, next_action
from launcher.core.prices.options import Rules
from launcher.core.prices.supervision import Host, Machine, Sign, cheapest, host_beside, supervisor_name
from launcher.core.runs.events import (
    AttemptEnded,
    AttemptReleased,
    AttemptRequested,
    AttemptStarted,
    RunFinished,
    RunReopened,
    SupervisorHired,
    SupervisorReleased,
)
from launcher.core.runs.report import bill, forecast
from launcher.core.runs.state import burn_usd_per_hour, job_name, spent_usd, supervisor_usd
from launcher.core.runs.takeover import takeover
from launcher.core.unknown import Unknown
from tests.builders import RUN, a_placement, a_state, a_submit, after, an_offer, an_option
from tests.core.futures import a_market, an_outlook, on_demand

SMALL = Machine(instance_type="m6i.large", usd_per_hour=Decimal("0.096"), source="SkyPilot catalogue of 2026-01-05")
MACHINES = {("aws", "us-east-2"): SMALL}


def hired(number: int = 1, **fields: Any) -> SupervisorHired:
    plain: dict[str, Any] = {
        "where": "aws/us-east-2",
        "instance_type": "m6i.large",
        "usd_per_hour": Decimal(60),  # a dollar a minute
        "basis": "declared",
        "closing_seconds": 120.0,
        "by": "ada",
    }
    return SupervisorHired(number=number, **plain | fields)


def host(offer: Any = None, *, infra: str | None = None, declared: str | None = None) -> Host | Unknown:
    usd = None if declared is None else Decimal(declared)
    return host_beside(offer or an_offer(), infra=infra, declared_usd_per_hour=usd, machines=MACHINES)


def test_it_lives_beside_the_gpus_in_the_cheapest_small_machine() -> None:
    assert host() == Host(
        infra="aws/us-east-2", instance_type="m6i.large", usd_per_hour=Decimal("0.096"), basis=SMALL.source
    )


def test_a_named_place_and_a_declared_price_go_first() -> None:
    assert host(infra="slurm/lab/cpu", declared="0") == Host(
        infra="slurm/lab/cpu", instance_type=None, usd_per_hour=Decimal(0), basis="declared"
    )
    assert host(declared="0.05") == replace(host(), usd_per_hour=Decimal("0.05"), basis="declared")  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("offer", "infra", "said"),
    [
        (an_offer(region="eu-west-9"), None, "supervisor_usd_per_hour in launch.toml"),
        (an_offer(), "slurm/lab/cpu", "the price of a supervisor's machine at slurm/lab/cpu"),
        (an_offer(provider="slurm", region="lab"), None, 'supervisor_infra = "slurm/lab/cpu"'),
        (an_offer(provider="kubernetes", region="prod"), None, 'supervisor_infra = "kubernetes/prod"'),
        (an_offer(provider="local"), "aws/us-east-2", "--supervise here"),
    ],
)
def test_a_place_without_a_known_price_is_refused_with_what_to_write(offer: Any, infra: str | None, said: str) -> None:
    found = host(offer, infra=infra)

    assert isinstance(found, Unknown)
    assert said in found.reason


def test_the_cheapest_of_each_region_is_found() -> None:
    rows = [("aws", "a", "m6i.large", Decimal(2)), ("aws", "a", "c6i.large", Decimal(1)), ("aws", "b", "x", Decimal(3))]

    found = cheapest(iter(rows), source="list")

    assert {place: machine.instance_type for place, machine in found.items()} == {
        ("aws", "a"): "c6i.large",
        ("aws", "b"): "x",
    }


def test_its_cluster_is_never_taken_for_an_attempt() -> None:
    jobs = re.compile(re.escape(RUN) + r"-\d+")

    assert jobs.fullmatch(job_name(RUN, 1))
    assert not jobs.fullmatch(supervisor_name(RUN))


def test_a_hired_machine_is_paid_from_its_request_until_it_has_ended_itself() -> None:
    state = a_state(hired())  # at minute 1

    assert supervisor_usd(state, after(600)) == 9 + 2  # what closing takes is owed from the beginning
    assert spent_usd(state, after(600)) == 11
    assert burn_usd_per_hour(state) == 60


def test_the_runs_end_changes_nothing_of_what_is_owed() -> None:
    finished = a_state(hired(), RunFinished(outcome="succeeded", detail=""))  # at minute 2

    assert supervisor_usd(finished, after(120)) == supervisor_usd(a_state(hired()), after(120)) == 3
    assert supervisor_usd(finished, after(99_999)) == 3
    assert burn_usd_per_hour(finished) == 0


def test_a_reopened_run_does_not_pay_for_the_time_between() -> None:
    done = RunFinished(outcome="failed", detail="")
    state = a_state(hired(), done, RunReopened(approved_usd=Decimal(500), by="ada"), hired(2))  # at minute 4

    assert supervisor_usd(state, after(300)) == 3 + 1 + 2


def test_a_machine_that_was_refused_costs_nothing_and_a_lost_one_until_it_was_missed() -> None:
    refused = SupervisorReleased(number=1, was_there=False, detail="no capacity")
    lost = SupervisorReleased(number=1, was_there=True, detail="no sign of life")

    assert supervisor_usd(a_state(hired(), refused), after(9999)) == 0
    assert supervisor_usd(a_state(hired(), lost), after(9999)) == 1


def test_the_bill_shows_it_as_a_part_of_its_own_and_adds_up() -> None:
    request = AttemptRequested(attempt=1, placement=a_placement(usd_per_hour="6"), why="test")
    state = a_state(hired(), request, AttemptStarted(attempt=1, started_at=after(180)))

    found = bill(state, after(780))

    assert found.by_cause["supervisor"] == 12 + 2
    assert sum(found.by_cause.values()) == found.total_usd == 14 + 1


def test_nothing_is_forecast_while_only_the_supervisor_is_paid() -> None:
    request = AttemptRequested(attempt=1, placement=a_placement(usd_per_hour="6"), why="test")

    assert forecast(a_state(hired(), request), after(600)).total_usd is None


def test_the_cap_counts_it() -> None:
    request = AttemptRequested(attempt=1, placement=a_placement(usd_per_hour="6"), why="test")
    started = AttemptStarted(attempt=1, started_at=after(120))
    option, rules = an_option(a_placement(usd_per_hour="6")), Rules()
    alone = a_state(a_submit(approved_usd="20"), request, started)
    watched = a_state(a_submit(approved_usd="20"), request, started, hired())

    decisions = [next_action(state, [option], now=after(1110), rules=rules) for state in (alone, watched)]

    assert [isinstance(decision, AskToEnd | Judge) for decision in decisions] == [False, True]


def test_the_estimate_has_it_as_a_part_of_its_own() -> None:
    market = a_market(on_demand())
    outlook = an_outlook(throughput_factor80=1.1)

    alone = estimate(market.firm[0], market, outlook, ())
    watched = estimate(market.firm[0], market, replace(outlook, supervisor_usd_per_hour=Decimal("0.6")), ())

    assert alone.parts["supervisor"] == 0
    assert watched.parts["supervisor"] == round(Decimal(str(alone.hours.p50 + 1 / 12)) * Decimal("0.6"), 2)
    assert watched.cost_usd.p50 == alone.cost_usd.p50 + watched.parts["supervisor"]
    assert watched.marginal_usd == alone.marginal_usd + watched.parts["supervisor"]


def test_a_sign_of_life_grows_stale_and_an_end_is_none() -> None:
    sign = Sign(place="a", by="ada", since=after(0), at=after(0))

    assert sign.is_fresh(after(140))
    assert not sign.is_fresh(after(160))
    assert not replace(sign, has_ended=True).is_fresh(after(1))


def test_who_takes_over_ends_the_others_bill_and_gives_up_what_it_cannot_see() -> None:
    request = AttemptRequested(attempt=1, placement=a_placement(), why="test")
    state = a_state(hired(), request)

    events = takeover(state, number=None, is_elsewhere=True)

    assert [type(event) for event in events] == [SupervisorReleased, AttemptEnded]
    assert takeover(state, number=1, is_elsewhere=False) == ()  # the same machine, started again


def test_who_takes_over_does_not_wait_for_an_attempt_that_nobody_hears() -> None:
    """The trainer speaks through its journal; what waits beside it writes none."""
    first, second = (
        AttemptRequested(attempt=n, placement=a_placement(), why="test", relieves=r) for n, r in ((1, None), (2, 1))
    )
    starts = [AttemptStarted(attempt=n, started_at=after(60)) for n in (1, 2)]
    state = a_state(first, starts[0], second, starts[1])

    (end,) = takeover(state, number=None, is_elsewhere=True)

    assert isinstance(end, AttemptEnded)
    assert (end.attempt, end.outcome) == (2, "lost")
    assert takeover(state, number=1, is_elsewhere=False) == ()


def test_who_takes_over_leaves_a_running_attempt_alone() -> None:
    request = AttemptRequested(attempt=1, placement=a_placement(), why="test")
    running = a_state(request, AttemptStarted(attempt=1, started_at=after(120)))
    ended = AttemptEnded(attempt=1, outcome="completed", detail="")
    over = a_state(hired(), request, ended, AttemptReleased(attempt=1), RunFinished(outcome="succeeded", detail=""))

    assert takeover(running, number=None, is_elsewhere=True) == ()
    assert takeover(over, number=None, is_elsewhere=True) == ()
