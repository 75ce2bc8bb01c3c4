"""How long spot machines live and spot outages last: hazards by age, as a step function.

Pooled from the AWS availability traces that Wu et al. published with "Can't Be Late" (NSDI 2024): a zone's spells of
capacity and of outages from those of 2022-10 (K80, V100), a machine's life from those of 2023-02 (V100). All fall with
age: what has lived long lives on, and what has been gone for long stays away. A machine is launched somewhere in a
spell, more often in a long one: it lives longer than a spell that has just begun.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from launcher.core.offers import Capacity, Offer

Hazards = tuple[tuple[float, float], ...]
"""(until this age in hours, events per hour)"""

LIFE_HAZARD: Hazards = (  # preemptions of a machine, by its own age
    (0.2, 0.32),
    (0.5, 0.25),
    (1.0, 0.21),
    (2.0, 0.15),
    (4.0, 0.10),
    (8.0, 0.08),
    (16.0, 0.05),
    (math.inf, 0.03),
)
SPELL_HAZARD: Hazards = (  # capacity that goes away, by the time since it came
    (0.2, 1.60),
    (0.5, 1.38),
    (1.0, 0.78),
    (2.0, 0.49),
    (4.0, 0.29),
    (8.0, 0.19),
    (16.0, 0.13),
    (math.inf, 0.07),
)
RETURN_HAZARD: Hazards = (  # capacity that comes back, by the outage's age
    (0.2, 2.34),
    (0.5, 1.36),
    (1.0, 0.89),
    (2.0, 0.51),
    (4.0, 0.30),
    (8.0, 0.22),
    (math.inf, 0.05),
)
FRESH_PREEMPTIONS_PER_HOUR = LIFE_HAZARD[0][1]
AVAILABLE = 0.64  # of the time a zone has capacity: mean of the nine zones of the same traces


def fresh_preemptions_per_hour(offer: Offer) -> float:
    """Of a machine that has just begun: as stated, or as measured on the traces; 0 for capacity that stays."""
    if offer.capacity is not Capacity.SPOT:
        return 0.0
    return FRESH_PREEMPTIONS_PER_HOUR if offer.preemptions_per_hour is None else offer.preemptions_per_hour


def cumulated(hazards: Hazards, age_hours: float) -> float:
    """Events to be expected until that age."""
    return sum(hazard * (min(until, age_hours) - since) for since, until, hazard in _steps(hazards, age_hours))


def hazard_at(hazards: Hazards, age_hours: float) -> float:
    return next(hazard for until, hazard in hazards if age_hours < until)


def age_at(hazards: Hazards, mass: float) -> float:
    """The age in hours at which the cumulated hazard reaches `mass`."""
    age = 0.0
    for until, hazard in hazards:
        if mass <= (until - age) * hazard:
            return age + mass / hazard
        mass -= (until - age) * hazard
        age = until
    return age


def lived_hours(hazards: Hazards, scale: float, most_hours: float) -> float:
    """The mean of a life that `scale` times the hazards may end, counted up to `most_hours`.

    The integral of the survival exp(−scale · cumulated hazard).
    """
    if scale <= 0:
        return most_hours
    total, survival = 0.0, 1.0
    for since, until, hazard in _steps(hazards, most_hours):
        span, rate = min(until, most_hours) - since, scale * hazard
        total += survival * -math.expm1(-rate * span) / rate
        survival *= math.exp(-rate * span)
    return total


def _steps(hazards: Iterable[tuple[float, float]], most_hours: float) -> Iterator[tuple[float, float, float]]:
    """(since, until, hazard) of the steps that begin before `most_hours`."""
    since = 0.0
    for until, hazard in hazards:
        if since >= most_hours:
            return
        yield since, until, hazard
        since = until
