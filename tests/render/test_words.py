"""How numbers are written."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from launcher.core.spans import span
from launcher.errors import InputError, LaunchError, Problem
from launcher.render.words import Money, failure, rough_span, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [("847.3", "847"), ("12.345", "12.30"), ("4183", "4,180"), ("0.0512", "0.05"), ("161280", "161,000"), ("0", "0")],
)
def test_an_estimate_has_three_digits_that_count(value: str, text: str) -> None:
    assert significant(Decimal(value)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 m 00 s"),
        (3599.6, "1 h 00 m"),
        (50_720, "14 h 05 m"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_span_has_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0.005, "18 seconds"), (0.5, "30 minutes"), (1.52, "1.5 hours"), (14.2, "14 hours"), (80, "3.3 days")],
)
def test_an_estimated_span_is_rough(hours: float, text: str) -> None:
    assert rough_span(hours) == text


def test_money_is_shown_to_the_cent_or_about_and_in_another_currency_with_its_date() -> None:
    euro = Money(currency="EUR", usd_per_unit=Decimal("1.25"), rate_as_of=date(2026, 11, 1))

    assert euro.exact(Decimal(1000)) == "€800.00"
    assert euro.about(Decimal(1000)) == "€800"
    assert euro.note == "EUR at $1.25 of 2026-11-01"
    assert Money().exact(Decimal("-3.456")) == "−$3.46"
    assert Money().about(Decimal("0.001")) == "< $0.01"
    assert Money().fine(Decimal("0.04271")) == "$0.0427"


def test_an_error_has_one_shape() -> None:
    text = failure(InputError([Problem("L102", "gpuz is not a known key", "train.yaml:3", "write gpus")]))

    assert text == "error[L102]: gpuz is not a known key  train.yaml:3\n  fix: write gpus\n  exit 2"
    assert failure(LaunchError("no")) == "error: no\n  exit 1"
