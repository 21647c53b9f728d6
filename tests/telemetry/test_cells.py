"""Cells: exact sums, one lock that survives a fork, and text by the exposition format."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from meshlib.telemetry.cells import (
    BUCKETS_S,
    LABEL_CHARS_MAX,
    LOCK,
    Counter,
    Histogram,
    label_text,
    number,
    record,
)


def lock_is_free_elsewhere() -> bool:
    """Could another thread take the lock now?"""
    free: list[bool] = []

    def attempt() -> None:
        free.append(LOCK.acquire(blocking=False))
        if free[0]:
            LOCK.release()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return free[0]


class Probe(float):
    """An amount that looks at the lock in the middle of the addition."""

    seen: bool | None = None

    def __radd__(self, other: Any) -> float:
        type(self).seen = lock_is_free_elsewhere()
        return float(other) + 1


@pytest.mark.parametrize("change", [lambda p: Counter().add(p), lambda p: Histogram().observe(p)])
def test_no_thread_comes_between(change: Any) -> None:
    """While a cell changes, no other thread can change it; afterwards any can."""
    Probe.seen = None
    change(Probe(1.0))
    assert Probe.seen is False
    assert lock_is_free_elsewhere()


def test_finalizers_do_not_deadlock() -> None:
    """A cell can be changed by a finalizer that runs on a thread which is changing a cell."""
    counter = Counter()
    with LOCK:
        counter.add()
    assert counter.value == 1


def test_fork_leaves_the_lock_free_on_both_sides() -> None:
    """Neither the child nor the parent of a fork finds the lock held."""
    child = os.fork()
    if not child:
        os._exit(0 if lock_is_free_elsewhere() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lock_is_free_elsewhere()


def test_record_counts_all() -> None:
    """One call of `record` is one observation and one on each counter."""
    histogram, one, two = Histogram(), Counter(), Counter()
    record(0.3, histogram, one, two)
    assert (one.value, two.value, sum(histogram.counts), histogram.total) == (1, 1, 1, 0.3)


def test_histogram_lines() -> None:
    """Buckets are cumulative, their bounds inclusive, and +Inf equals the count."""
    histogram = Histogram()
    for seconds in (0.001, 0.0011, 10.0, 11.0):
        histogram.observe(seconds)
    lines = list(histogram.lines("d", 'a="b"'))
    assert lines[0] == 'd_bucket{a="b",le="0.001"} 1'
    assert lines[1] == 'd_bucket{a="b",le="0.0025"} 2'
    assert lines[len(BUCKETS_S) - 1] == 'd_bucket{a="b",le="10"} 3'
    assert lines[len(BUCKETS_S) :] == ['d_bucket{a="b",le="+Inf"} 4', 'd_sum{a="b"} 21.0021', 'd_count{a="b"} 4']
    assert next(iter(Histogram().lines("d", ""))) == 'd_bucket{le="0.001"} 0'


def test_label_escapes() -> None:
    """Backslash, quote and line feed are escaped, lone surrogates made writable, long values cut."""
    assert label_text({"a": 'x\\y"z\n', "b": "é"}) == 'a="x\\\\y\\"z\\n",b="é"'
    assert label_text({"a": "\ud800"}) == 'a="\\\\ud800"'
    assert label_text({"a": "x" * LABEL_CHARS_MAX}) == f'a="{"x" * LABEL_CHARS_MAX}"'
    assert label_text({"a": "x" * (LABEL_CHARS_MAX + 1)}) == f'a="{"x" * LABEL_CHARS_MAX}"'


def test_numbers() -> None:
    """Numbers are spelled as the format wants them."""
    spelled = [number(value) for value in (3.0, 0.25, float("inf"), float("-inf"), float("nan"), 1e300)]
    assert spelled[:5] == ["3", "0.25", "+Inf", "-Inf", "NaN"]
    assert float(spelled[5]) == 1e300
