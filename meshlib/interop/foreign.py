"""Documents of another system, asked field by field; what was asked, what was wrong, and what nobody asked is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError

DOCUMENT_BYTES_MAX = 10 * 2**20
"""A larger file or text is refused."""
LIST_MAX = 1024
"""Entries of one list of a document; a longer one is refused."""

Outcome = Literal["kept", "approximated", "dropped"]


class ForeignDocument:
    """One object. `problems`: (document, field path, sentence)."""

    def __init__(self, value: Mapping[str, Any], where: str = "") -> None:
        self.value, self.where = value, where
        self.problems: list[tuple[str, str, str]] = []
        self._asked: set[str] = set()
        self._notes: dict[str, tuple[Outcome, str]] = {}
        metadata = value.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        self.kind = str(value.get("kind", ""))
        self.namespace = str(metadata.get("namespace") or "default")
        self.own_name = str(metadata.get("name", ""))
        self.created = str(metadata.get("creationTimestamp") or "9999")
        self.name = f"{self.kind} {self.namespace}/{self.own_name}" + (f" ({where})" if where else "")

    @property
    def spec(self) -> Field:
        """What it wants."""
        return Field(self, "spec", self.value.get("spec") or {})

    def error(self, path: str, message: str) -> None:
        """It cannot be used."""
        if (problem := (self.name, path, message)) not in self.problems:  # a rule is read for each of its owners
            self.problems.append(problem)

    def note(self, path: str, outcome: Outcome, why: str) -> None:
        """What became of a field, and of all below."""
        self._notes.setdefault(path, (outcome, why))

    def asked(self, path: str) -> None:
        """A field was looked at."""
        self._asked.add(path)

    def outcomes(self) -> Iterator[tuple[str, Outcome, str]]:
        """(field, outcome, why) of every value of `spec`."""
        for path in _leaves("spec", self.value.get("spec") or {}):
            noted = next((self._notes[above] for above in _above(path) if above in self._notes), None)
            if noted is not None:
                yield path, *noted
            elif path in self._asked:
                yield path, "kept", ""
            else:
                yield path, "dropped", "this release does not know it"


class Field:
    """A value at a path of a document; `value` None: it is not there."""

    __slots__ = ("of", "path", "value")

    def __init__(self, of: ForeignDocument, path: str, value: Any) -> None:
        self.of, self.path, self.value = of, path, value

    def __getitem__(self, name: str) -> Field:
        if self.value is not None and not isinstance(self.value, Mapping):
            self.error("must be a mapping")
            return Field(self.of, f"{self.path}.{name}", None)
        return Field(self.of, f"{self.path}.{name}", (self.value or {}).get(name))

    def __iter__(self) -> Iterator[Field]:
        if self.value is None:
            return
        if not isinstance(self.value, list) or len(self.value) > LIST_MAX:
            self.error(f"must be a list of at most {LIST_MAX}")
            return
        for index, value in enumerate(self.value):
            yield Field(self.of, f"{self.path}[{index}]", value)

    def __bool__(self) -> bool:
        return self.value is not None

    def error(self, message: str) -> None:
        """It cannot be used."""
        self.of.error(self.path, message)

    def note(self, outcome: Outcome, why: str) -> None:
        """What became of it, and of all below."""
        self.of.note(self.path, outcome, why)

    def text(self, default: str = "", pattern: str = r"(?s).*", most: int = 4096) -> str:
        """The text; an error where it is none, or is not like `pattern`, which is for the whole of it."""
        self.of.asked(self.path)
        if self.value is None:
            return default
        if not isinstance(self.value, str) or len(self.value) > most or not re.fullmatch(pattern, self.value):
            self.error(f"{str(self.value)[:80]!r} is not possible here")
            return default
        return self.value

    def one_of(self, values: tuple[str, ...], default: str = "") -> str:
        """One of these texts."""
        self.of.asked(self.path)
        if self.value is None:
            return default
        if self.value not in values:
            self.error(f"{str(self.value)[:80]!r} is none of {', '.join(values)}")
            return default or values[0]
        return str(self.value)

    def whole(self, lowest: int, highest: int, default: int | None = None) -> int | None:
        """A whole number within bounds."""
        self.of.asked(self.path)
        if self.value is None:
            return default
        if type(self.value) is not int or not lowest <= self.value <= highest:
            self.error(f"must be a whole number from {lowest} to {highest}, not {str(self.value)[:80]}")
            return default
        return self.value


def read_documents(given: str | os.PathLike[str] | Mapping[str, Any]) -> list[ForeignDocument]:
    """Of a path, of YAML text (what has a colon or a line's end), or a mapping. A `List` is its items."""
    if isinstance(given, Mapping):
        values, where = [given], ""
    elif isinstance(given, str) and ("\n" in given or ":" in given):
        values, where = _parse(given, "text"), ""
    else:
        path = Path(given)
        try:
            if path.stat().st_size > DOCUMENT_BYTES_MAX:
                raise ConfigError(f"{path}: has more than {DOCUMENT_BYTES_MAX} bytes")
            values, where = _parse(path.read_text("utf-8"), str(path)), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
    items = [item for value in values for item in (value["items"] if isinstance(value.get("items"), list) else [value])]
    return [ForeignDocument(item, where) for item in items if isinstance(item, Mapping)]


def _parse(text: str, name: str) -> list[Mapping[str, Any]]:
    import yaml

    if len(text) > DOCUMENT_BYTES_MAX:
        raise ConfigError(f"{name}: has more than {DOCUMENT_BYTES_MAX} characters")
    try:
        values = list(yaml.load_all(text, Loader=_loader()))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
        raise ConfigError(f"{place}: {getattr(error, 'problem', None) or 'is no YAML'}") from error
    for value in values:
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{name}: a document is no mapping")
    return [value for value in values if value is not None]


def _loader() -> Any:
    """Dates stay text, and there are no aliases, so that a small text cannot be a large document."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.MarkedYAMLError(problem="an alias is not possible here", problem_mark=mark)
            return super().compose_node(parent, index)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def _leaves(path: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _leaves(f"{path}.{name}", below)
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _leaves(f"{path}[{index}]", below)
    else:
        yield path


def _above(path: str) -> Iterator[str]:
    """The path and each one that it is below."""
    while path:
        yield path
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
