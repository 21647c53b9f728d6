"""The arithmetic behind the promises."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from meshlib.demo.outage import FOLLOWED_S, NOTICED_S, SLACK_S, Outage
from meshlib.demo.scenes import Step
from meshlib.demo.stage import IN_FORCE_S, milliseconds, sigmas_off


def test_a_split_is_measured_in_sigmas() -> None:
    """400 draws at 10 %: σ is 6, so 58 is 3 σ off. A share of 0 or 1 has no σ: it is exact, or infinitely off."""
    assert sigmas_off(58, 400, 0.1) == pytest.approx(3)
    assert sigmas_off(40, 400, 0.1) == 0
    assert sigmas_off(400, 400, 1.0) == sigmas_off(0, 400, 0.0) == 0
    assert sigmas_off(399, 400, 1.0) == sigmas_off(1, 400, 0.0) == float("inf")


@pytest.mark.parametrize(
    ("step", "held"),
    [
        (Step(10, IN_FORCE_S, 400, 58), True),
        (Step(10, IN_FORCE_S, 400, 59), False),
        (Step(10, IN_FORCE_S + 0.001, 400, 40), False),
        (Step(100, 0.1, 400, 399), False),
        (Step(0, 0.1, 0, 0), False),
        (Step(50, float("inf"), 400, 200), False),
    ],
)
def test_a_step_holds_when_it_was_in_force_in_time_and_kept(step: Step, held: bool) -> None:
    """At the bound it holds, beyond it does not; without a call there is nothing that held."""
    assert step.held is held


def test_figures_are_json_whatever_was_measured() -> None:
    """A wait that was given up is null, not a word that no parser takes."""
    text = json.dumps(Step(100, float("inf"), 4, 3).figures(), allow_nan=False)
    assert json.loads(text)["in_force_ms"] is None
    assert milliseconds(0.2134) == 213


def test_an_outage_holds_when_it_was_shown_and_is_over_in_time() -> None:
    """At each bound it holds, beyond it does not; a wait that was given up is null in its figures."""
    outage = Outage(0, NOTICED_S, away_s=3.0, stale_s=3.0 - SLACK_S, back=0.0, in_force_s=FOLLOWED_S)
    assert outage.held
    assert not replace(outage, noticed_s=NOTICED_S + 0.001).held
    assert not replace(outage, stale_s=2.7).held
    lost = replace(outage, in_force_s=float("inf"))
    assert not lost.held
    assert "not in force" in lost.followed
    assert json.loads(json.dumps(lost.figures(), allow_nan=False))["in_force_ms"] is None
