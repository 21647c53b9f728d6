"""Durations, shares and sizes: what they mean, and the sentence for what they cannot mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshlib.config.units import (
    MAX_SIZE,
    format_duration,
    parse_duration,
    parse_share,
    parse_size,
    quoted,
)

VECTORS = Path(__file__).resolve().parents[2] / "../shared/conformance/misc.json"


@pytest.mark.skipif(not VECTORS.exists(), reason="the shared conformance vectors are not here")
def test_gep_2257_vectors() -> None:
    """Gateway API's own vectors: same value, same canonical text, same refusals."""
    cases = json.loads(VECTORS.read_text())["durations_gep2257"]
    assert len(cases) >= 17
    for case in cases:
        if case["valid"]:
            assert round(parse_duration(case["in"]) * 1000) == case["ms"], case
            assert format_duration(parse_duration(case["in"])) == case["canonical"], case
        else:
            with pytest.raises(ValueError, match="is not a duration"):
                parse_duration(case["in"])


@pytest.mark.parametrize("bad", ["", "1", "5 s", "1S", "123456s", "1s\n", "1h1h1h1h1h", 5, 1.5, None, True, "٣s"])
def test_bad_durations(bad: object) -> None:
    """The sentence shows what was given and an example of what is allowed."""
    with pytest.raises(ValueError) as caught:
        parse_duration(bad)
    assert str(caught.value).startswith(quoted(bad) + " is not a duration: write")
    assert "250ms" in str(caught.value)


def test_format_duration_bounds() -> None:
    """Canonical text has whole milliseconds and ends below 100000 hours."""
    assert format_duration(0.0004) == "0s"
    assert format_duration(0.0254) == "25ms"
    assert format_duration(99_999 * 3600) == "99999h"
    for bad in (-0.001, 100_000 * 3600, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="cannot be written as a duration"):
            format_duration(bad)


@pytest.mark.parametrize(("text", "share"), [("0%", 0.0), ("10%", 0.1), ("0.01%", 0.0001), ("100%", 1.0)])
def test_shares(text: str, share: float) -> None:
    """A percentage is a fraction."""
    assert parse_share(text) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("bad", ["100.1%", "101%", "-1%", "10", ".5%", "1.1234567%", "10 %", 0.1, 10, None])
def test_bad_shares(bad: object) -> None:
    """Nothing but a percentage from 0% to 100% is a share."""
    with pytest.raises(ValueError, match="is not a share: write a percentage from 0% to 100%"):
        parse_share(bad)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1MiB", 2**20),
        ("64KiB", 65_536),
        ("10MB", 10**7),
        ("1kB", 1000),
        ("2GiB", 2**31),
        ("7B", 7),
        ("9", 9),
        (4096, 4096),
    ],
)
def test_sizes(written: object, size: int) -> None:
    """KiB is 1024 bytes, kB is 1000; a plain number is bytes."""
    assert parse_size(written) == size


@pytest.mark.parametrize("bad", ["", "1 MiB", "1mib", "1.5MiB", "0", 0, -1, True, 1.0, MAX_SIZE + 1, "999999999999GiB"])
def test_bad_sizes(bad: object) -> None:
    """Nothing else is a size, and none is larger than MAX_SIZE."""
    with pytest.raises(ValueError, match="is not a size: write a number of bytes above 0"):
        parse_size(bad)
    assert parse_size(MAX_SIZE) == MAX_SIZE


def test_quoted_is_one_short_line() -> None:
    """Whatever is in the file, a message stays one readable line."""
    assert quoted("a\nb\x1b") == "'a\\nb\\x1b'"
    assert len(quoted("x" * 1000)) == 62
    values: list[object] = [True, None, {}, [], 1.1]
    assert [quoted(value) for value in values] == ["true", "nothing", "a mapping", "a list", "1.1"]
