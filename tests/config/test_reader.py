"""YAML 1.2 core rules, places, and everything that is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from meshlib.config.reader import MAX_BYTES, MAX_DIGITS, MAX_NESTING, Document, read


def said(document: Document) -> list[str]:
    return [f"{f.place.line}:{f.place.column}: {f.message}" for f in document.findings]


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both parsers of PyYAML: with libyaml, and the one in Python where libyaml is absent."""
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    return str(request.param)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"), ("1:30", "1:30"), ("=", "="),
        ("2026-01-01", "2026-01-01"), ("1_000", "1_000"), ("0b1", "0b1"), ("tRUE", "tRUE"), ("'1'", "1"), ('"~"', "~"),
        ("true", True), ("False", False), ("12", 12), ("-3", -3), ("+3", 3), ("010", 10), ("0o17", 15), ("0x1F", 31),
        ("1.10", 1.1), (".5", 0.5), ("1e3", 1000.0), ("-.INF", -math.inf), (".inf", math.inf), ("12e", "12e"), ("|-\n  on", "on"),
    ],
)  # fmt: skip
def test_core_schema(text: str, value: Any, parser: str) -> None:
    """Scalars are what YAML 1.2 says, not 1.1: no `on`, no sexagesimal, no dates, no octal 010."""
    document = read(f"a: {text}\n", "f")
    assert document.findings == []
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)


def test_nan() -> None:
    """`.nan` is a float, for whoever refuses it later."""
    assert math.isnan(read("a: .NaN", "f").data["a"])


def test_keys_are_text() -> None:
    """A key is text as it is written, whatever it looks like."""
    assert read("1: a\non: b\n1.10: c\n'~': d\n", "f").data == {"1": "a", "on": "b", "1.10": "c", "~": "d"}


def test_places(parser: str) -> None:
    """Keys and values have their own line and column, from 1; in flow style too; a missing path has its parent's."""
    document = read('a:\n  b: [x, {c: 1}]\n"d":\n  - e\n', "f")
    assert document.data == {"a": {"b": ["x", {"c": 1}]}, "d": ["e"]}
    assert document.place(("a", "b"), key=True)[1:] == (2, 3)
    assert document.place(("a", "b"))[1:] == (2, 6)
    assert document.place(("a", "b", 1, "c"))[1:] == (2, 14)
    assert document.place(("a", "b", 1, "c"), key=True)[1:] == (2, 11)
    assert document.place(("d", 0))[1:] == (4, 5)
    assert document.place(("a", "x", "y"))[1:] == (1, 1)
    assert document.where(("a", "b", 0)) == "f:2"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("a: 1\nb: 2\na: 3\n", ["3:1: the key is already on line 1; keys are unique"]),
        ("a: &x 1\nb: *x\n", ["1:4: &x is an anchor; write the value out where it is needed", "2:4: *x is an alias; write the value out"]),
        ("a:\n  <<: {b: 1}\n", ["2:3: merge keys are not allowed; write the fields out"]),
        ("a: !!str 1\n", ["1:4: the tag tag:yaml.org,2002:str is not allowed; write plain data"]),
        ("a: ! x\n", ["1:4: the tag ! is not allowed; write plain data"]),
        ("&k a: 1\n", ["1:1: a key may not have an anchor or a tag"]),
        ("? [a]\n: 1\n", ["1:3: a key must be plain text"]),
        ("*x : 1\n", ["1:1: a key must be plain text", "1:1: *x is an alias; write the value out"]),
        ("a:\nb: ~\n", ["1:3: is empty; give it a value or remove the line", "2:4: is empty; give it a value or remove the line"]),
        ("a: 1\n---\nb: 1\n", ["2:1: a second document begins here; a file has one"]),
        ("", ["1:1: the file is empty"]),
        ("# only this\n", ["1:1: the file is empty"]),
        ("a: 1\nb: x\x07\n", ["2:5: character U+0007 may not stand in a YAML file"]),
        ("a: 1\n\tb: 2\n", ["2:1: not YAML: a tab may not indent or begin a value; use spaces"]),
        (f"a: {'1' * (MAX_DIGITS + 1)}", [f"1:4: '{'1' * (MAX_DIGITS + 1)}' is too long for a number; put it in quotes if it is text"]),
    ],
)  # fmt: skip
def test_refused(text: str, sentences: list[str], parser: str) -> None:
    """Each refusal has its place and says what to do; several come in one pass."""
    assert said(read(text, "f")) == sentences


@pytest.mark.parametrize(
    ("text", "line", "contains"),
    [
        ("a: [1\nb: 2\n", 2, "from line 1"),
        ("a: b: c\n", 1, "mapping values are not allowed"),
        ("a: 'x\n", 2, "quoted scalar"),
        ("a: @x\n", 1, "cannot start any token"),
        ("%YAML 3.0\n---\na: 1\n", 1, "not YAML"),
        ('a: "\\ud800"\n', 1, "not YAML"),
    ],
)
def test_syntax(text: str, line: int, contains: str) -> None:
    """What is not YAML is one finding with the parser's words, on its line."""
    (finding,) = read(text, "f").findings
    assert finding.place.line == line
    assert finding.message.startswith("not YAML: ")
    assert contains in finding.message


def test_not_utf8() -> None:
    """Bytes that are not UTF-8 are named, with their line; UTF-16 and lone surrogates too."""
    assert said(read(b"a: 1\nb: \xff\n", "f")) == ["2:4: byte 0xff is not UTF-8"]
    assert said(read("a: 1".encode("utf-16"), "f")) == ["1:1: byte 0xff is not UTF-8"]
    assert said(read("a: \ud800", "f")) == ["1:4: byte 0xed is not UTF-8"]
    assert read(b"\xef\xbb\xbfa: 1", "f").data == {"a": 1}


def test_size_at_the_bound() -> None:
    """MAX_BYTES is read, one byte more is refused."""
    head = "a: 1 # "
    fits = head + "x" * (MAX_BYTES - len(head))
    assert read(fits, "f").data == {"a": 1}
    assert said(read(fits + "x", "f")) == [f"1:1: the file is larger than {MAX_BYTES} bytes; split it"]


def test_nesting_at_the_bound() -> None:
    """MAX_NESTING levels are read, one more is refused; a million cost nothing."""
    assert read("[" * MAX_NESTING + "]" * MAX_NESTING, "f").findings == []
    for depth in (MAX_NESTING + 1, 500_000):
        deep = read("[" * depth, "f")
        assert said(deep) == [f"1:{MAX_NESTING + 1}: nested deeper than {MAX_NESTING} levels"]
        assert deep.data is None


def test_alias_bomb() -> None:
    """A billion laughs is refused at each anchor; nothing is expanded."""
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert len(read(bomb, "f").findings) == 9 + 16
