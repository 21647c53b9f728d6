"""Peak EWMA: believes a slow answer at once, a fast one slowly; reading changes nothing."""

from __future__ import annotations

from math import e

import pytest

from meshlib.policy.load import DECAY_S, PeakEwma


def test_a_peak_is_believed_at_once():
    """A latency above the average becomes the average."""
    load = PeakEwma()
    load.observe(0.1, 1.0)
    load.observe(0.5, 1.1)
    assert load.get_at(1.1) == 0.5


def test_a_fast_answer_is_believed_slowly():
    """One time constant later a faster answer has moved the average by 1 - 1/e of the way."""
    load = PeakEwma()
    load.observe(1.0, 0.0)
    load.observe(0.0, DECAY_S)
    assert load.get_at(DECAY_S) == pytest.approx(1 / e)


def test_it_decays_while_nothing_is_observed():
    """An endpoint that is not asked becomes worth asking again."""
    load = PeakEwma()
    load.observe(1.0, 0.0)
    assert load.get_at(2 * DECAY_S) == pytest.approx(e**-2)


def test_reading_changes_nothing():
    """Reading the future and then the present gives what the present alone gives (tower's mutates on read)."""
    load = PeakEwma()
    load.observe(1.0, 0.0)
    load.get_at(1e9)
    assert load.get_at(0.0) == 1.0


def test_it_stays_finite_for_ever():
    """A year of silence underflows to zero, it does not raise."""
    load = PeakEwma()
    load.observe(1.0, 0.0)
    assert load.get_at(3.2e7) == 0.0
