"""What is shown is what was spent: no price, no dollars; no jump of a clock, no jump of a bill."""

from __future__ import annotations

import math
import sys
import time
from decimal import Decimal

import pytest

from trainer_hooks import meter
from trainer_hooks.meter import Meter, PlainLines, Price, open_display, process_started
from trainer_hooks.protocol import CAP_SECONDS


def a_meter(price: str | None, *, spent: str = "0", cap: str | None = None) -> Meter:
    usd = None if price is None else Decimal(price)
    cap_usd = None if cap is None else Decimal(cap)
    return Meter(Price(usd_per_hour=usd, spent_usd=Decimal(spent), cap_usd=cap_usd), started=100.0)


def test_the_line_is_step_price_of_a_step_and_sum() -> None:
    line = a_meter("60.80", spent="400").line(9412, step_seconds=2.528, now=100 + 3600 * 0.653125)

    assert line == "step 9,412 · $0.0427/step · $439.71 so far"


@pytest.mark.parametrize(
    ("price", "step_seconds", "expected"),
    [
        ("3600", 12.5, "$12.50/step"),
        ("0.01", 0.001, "$0.00000000278/step"),
        ("0", 1.0, "$0.00/step"),
        ("3600", 4321, "$4,321.00/step"),
    ],
)
def test_a_step_is_shown_to_three_digits(price: str, step_seconds: float, expected: str) -> None:
    assert expected in a_meter(price).line(1, step_seconds=step_seconds, now=100)


def test_without_a_price_no_dollar_is_shown() -> None:
    assert a_meter(None, spent="5").line(1200, step_seconds=0.5, now=200) == "step 1,200 · 2 steps/s"
    assert a_meter(None).line(0, step_seconds=None, now=200) == "step 0"
    assert a_meter(None).spent_usd(200) is None


def test_a_price_of_zero_is_a_price() -> None:
    assert a_meter("0", spent="5").line(1, step_seconds=None, now=200) == "step 1 · $5.00 so far"


def test_the_cap_leaves_room_for_the_save_and_the_exit() -> None:
    stop_at = a_meter("36", spent="1", cap="10").stop_at(save_seconds=20)

    assert stop_at == pytest.approx(100 + 900 - 20 - CAP_SECONDS)


def test_without_a_cap_or_a_price_it_never_stops() -> None:
    assert a_meter("36").stop_at(1) == math.inf
    assert a_meter(None, spent="99", cap="10").stop_at(1) == math.inf
    assert a_meter("0", spent="9", cap="10").stop_at(1) == math.inf
    assert a_meter("0", spent="10", cap="10").stop_at(1) == -math.inf


def test_the_clock_began_when_the_process_did() -> None:
    started = process_started()

    assert started < time.monotonic()
    assert abs(process_started() - started) < 0.5, "it does not move"


def test_a_system_without_proc_counts_from_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter.Path, "read_text", lambda *args, **kwargs: "nonsense")
    before = time.monotonic()

    assert process_started() >= before


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display = open_display(step=0, total_steps=3)
    display.show("step 1", step=1)
    display.close()

    assert isinstance(display, PlainLines)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "step 1\n")


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    display = open_display(step=2, total_steps=10)
    display.show("step 5 · $1.00 so far", step=5)
    display.close()

    shown = capsys.readouterr().err
    assert "5/10" in shown
    assert "$1.00 so far" in shown
