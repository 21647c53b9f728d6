"""What glibc is told: harmless wherever this runs."""

from __future__ import annotations

import sys

import pytest

from meshlib.control.memory import _glibc, give_back, keep_large_blocks_apart


def test_it_can_be_told_anywhere(monkeypatch: pytest.MonkeyPatch):
    """With glibc, with another libc that has no such call, and on another system: nothing is raised."""
    keep_large_blocks_apart()
    give_back()
    assert _glibc("no_such_call_in_any_libc") is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _glibc("malloc_trim") is None
    give_back()
