"""The W3C headers, by the Trace Context vectors and at each bound."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from meshlib.call import TraceContext
from meshlib.telemetry.traceparent import (
    TRACEPARENT_CHARS_MAX,
    TRACESTATE_CHARS_MAX,
    TRACESTATE_INPUT_CHARS_MAX,
    TRACESTATE_MEMBERS_MAX,
    parse_traceparent,
    parse_tracestate,
    render,
)

VECTORS = Path(__file__).resolve().parents[2] / "../shared/conformance/traceparent.json"
TRACE, SPAN = "12345678901234567890123456789012", "1234567890123456"
VALID = f"00-{TRACE}-{SPAN}-01"


def vectors(key: str) -> list[Any]:
    if not VECTORS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no vectors at {VECTORS}"))]
    return json.loads(VECTORS.read_text())[key]


@pytest.mark.parametrize("entry", vectors("traceparent_parse"), ids=lambda e: e and e["traceparent"])
def test_parse_vectors(entry: dict[str, Any]) -> None:
    """Exactly the headers that the W3C suite calls valid are believed."""
    assert (parse_traceparent([entry["traceparent"]]) is not None) is entry["valid"]


def test_fields() -> None:
    """Ids are read as numbers, and of the flags only `sampled` counts."""
    trace = parse_traceparent([VALID])
    assert trace is not None
    assert (f"{trace.trace_id:032x}", f"{trace.span_id:016x}", trace.sampled, trace.state) == (TRACE, SPAN, True, "")
    unsampled = parse_traceparent([f"00-{TRACE}-{SPAN}-fe"])
    assert unsampled is not None
    assert not unsampled.sampled


@pytest.mark.parametrize(
    "values",
    [
        [],
        [VALID, VALID],
        [f"{VALID},{VALID}"],
        [VALID.replace(TRACE, "0" * 32)],
        [f"00-{'A' * 32}-{SPAN}-01"],
        [f"00-{'٣' * 32}-{SPAN}-01"],
        [VALID + "\n"],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"01-{TRACE}-{SPAN}-01-a\nb"],
        [""],
    ],
)
def test_not_believed(values: list[str]) -> None:
    """None, two, two in one line, zero ids, capitals, foreign digits and line ends are no traceparent."""
    assert parse_traceparent(values) is None


def test_traceparent_bound() -> None:
    """A future version may be as long as the bound, and not longer."""
    longest = f"01-{TRACE}-{SPAN}-01-".ljust(TRACEPARENT_CHARS_MAX, "x")
    assert parse_traceparent([longest]) is not None
    assert parse_traceparent([longest + "x"]) is None


def test_state_members() -> None:
    """Lines are joined in order, empty members dropped, spaces around members trimmed, the first of two keys kept."""
    assert parse_tracestate([" a=1 ,, b= 2", "", "a=3,t1@v=x"]) == "a=1,b= 2,t1@v=x"


@pytest.mark.parametrize("member", ["A=1", "a=", "a", "=1", "a=b=c", "a=\x7f", "a=é", "@a=1", "-a=1", "a=1\r\nx: y"])
def test_one_bad_member_discards_all(member: str) -> None:
    """A list with one malformed member is not passed on at all."""
    assert parse_tracestate(["good=1", member]) == ""


def test_member_bound() -> None:
    """32 members are passed on; with a 33rd nothing is."""
    members = [f"k{n}=1" for n in range(TRACESTATE_MEMBERS_MAX)]
    assert parse_tracestate([",".join(members)]).count("=") == TRACESTATE_MEMBERS_MAX
    assert parse_tracestate([",".join([*members, "one=more"])]) == ""


def test_key_and_value_bounds() -> None:
    """Keys of 256 characters, wherever they have an @, and values of 256 are the longest."""
    for key in ("k" * 256, "t" * 241 + "@" + "v" * 14, "t" * 242 + "@v"):
        assert parse_tracestate([f"{key}=1"]) == f"{key}=1"
    for key in ("k" * 257, "t@" + "v" * 255):
        assert parse_tracestate([f"{key}=1"]) == ""
    assert parse_tracestate(["a=" + "x" * 256]) == "a=" + "x" * 256
    assert parse_tracestate(["a=" + "x" * 257]) == ""


def test_input_bound() -> None:
    """A header beyond the input bound is discarded unread, even if it were empty members only."""
    assert parse_tracestate(["a=1".ljust(TRACESTATE_INPUT_CHARS_MAX, ",")]) == "a=1"
    assert parse_tracestate(["a=1".ljust(TRACESTATE_INPUT_CHARS_MAX + 1, ",")]) == ""


def test_truncation() -> None:
    """Above 512 characters members over 128 go first, then those at the end; no member is cut."""
    large, small = "large=" + "x" * 200, [f"k{n:02}=" + "y" * 30 for n in range(12)]
    assert parse_tracestate([",".join([large, *small])]) == ",".join(small)
    many = [f"k{n:02}=" + "y" * 30 for n in range(20)]
    kept = parse_tracestate([",".join(many)])
    assert kept == ",".join(many[:14])
    assert TRACESTATE_CHARS_MAX - 35 < len(kept) <= TRACESTATE_CHARS_MAX
    exact = ["a=" + "x" * 98] * 1 + [f"{c}=" + "x" * 100 for c in "bcde"]
    assert len(",".join(exact)) == TRACESTATE_CHARS_MAX
    assert parse_tracestate([",".join(exact)]) == ",".join(exact)


def test_render_is_read_back() -> None:
    """What is sent is what was meant, for any ids; an empty state sends no header."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(200):
        sent = TraceContext(rng.getrandbits(128) or 1, rng.getrandbits(64) or 1, rng.random() < 0.5, "a=1,b=2")
        first, second, end = render(sent).split(b"\r\n")
        assert (second, end) == (b"tracestate: a=1,b=2", b"")
        read = parse_traceparent([first.removeprefix(b"traceparent: ").decode()])
        assert read is not None
        assert (read.trace_id, read.span_id, read.sampled) == (sent.trace_id, sent.span_id, sent.sampled)
    assert (
        render(TraceContext(1, 2, False)) == b"traceparent: 00-" + b"1".zfill(32) + b"-" + b"2".zfill(16) + b"-00\r\n"
    )
