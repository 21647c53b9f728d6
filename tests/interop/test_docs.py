"""The page about resilience libraries: its examples run and print what it says."""

from __future__ import annotations

import doctest
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "resilience-libraries.md"


def test_the_examples_of_the_page_run():
    """Both of them, in one namespace as a reader would type them."""
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert (failed, tried >= 12) == (0, True)
