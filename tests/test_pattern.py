"""Regular expressions of a policy: the whole value, in linear time, within bounds."""

import builtins

import pytest

from meshlib import pattern
from meshlib.pattern import compiled


def test_a_pattern_takes_the_whole_value() -> None:
    """Not a part of it; the text is kept, and equal texts are equal patterns."""
    digits = compiled("/items/[0-9]+")
    assert digits.takes("/items/7")
    assert not digits.takes("/items/7/parts")
    assert not digits.takes("/v1/items/7")
    assert digits == compiled("/items/[0-9]+")
    assert len({digits, compiled("/items/[0-9]+")}) == 1


@pytest.mark.parametrize("evil", ["(a+)+$", "(a|a)*b", "(.*a){20}", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_what_takes_others_for_ever_is_linear(evil: str) -> None:
    """Inputs on which a backtracking engine would not end within this test's life (F37)."""
    assert not compiled(evil).takes("a" * 10_000 + "!")


@pytest.mark.parametrize("text", ["(", "(?<=a)b", r"(a)\1", "[z-a]", "(((a{100}){100}){100})"])
def test_what_cannot_be_compiled_says_why(text: str) -> None:
    """Bad syntax, what RE2 leaves out, and programs that are too large."""
    with pytest.raises(ValueError, match="is not a regular expression of RE2: "):
        compiled(text)


def test_bounds() -> None:
    """A pattern and a value at their bounds, and one past them."""
    assert compiled("a" * pattern.PATTERN_CHARS_MAX)
    with pytest.raises(ValueError, match="1025 characters; a regular expression has at most 1024"):
        compiled("a" * (pattern.PATTERN_CHARS_MAX + 1))
    anything = compiled(".*")
    assert anything.takes("x" * pattern.VALUE_CHARS_MAX)
    assert not anything.takes("x" * (pattern.VALUE_CHARS_MAX + 1))


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy with a regular expression is refused where it cannot be enforced."""
    real = builtins.__import__

    def absent(name: str, *arguments: object) -> object:
        if name == "re2":
            raise ImportError(name)
        return real(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"service-meshlib\[regex\]"):
        compiled("only-in-this-test.*")
