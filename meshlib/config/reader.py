"""YAML text → plain data and the place of every key and value.

The rules are those of the YAML 1.2 core schema: `null ~`, `true false`, decimal, `0o` and `0x` integers, decimal
floats; everything else is text (`on`, `no`, `1:30`, `2026-01-01`). A key is always text, as it is written. JSON is
YAML. Refused, each with its place: anchors, aliases, merge keys and tags (what is read is what is written; no
expansion can be larger than the text), duplicate keys, empty values, a second document, more than MAX_BYTES, more
than MAX_NESTING levels, anything that is not UTF-8. PyYAML's parser is used (libyaml where present) below its
constructors, which follow YAML 1.1; nothing is ever constructed from a tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .problems import Finding, Path, Place
from .units import quoted

MAX_BYTES = 1024 * 1024
"""Bytes of one file. A mesh of 500 services takes 100 KiB."""

MAX_NESTING = 64
"""Levels of mappings and lists. The deepest field of the schema has 9."""

MAX_DIGITS = 40
"""Characters of a number: enough for any value of the schema, and conversion stays cheap."""

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULL = re.compile(r"(null|Null|NULL|~|)\Z")
_BOOL = re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")


@dataclass(slots=True)
class Document:
    """`data` is None when the text cannot be read at all; then `findings` says why.

    `keys` and `values` map paths to places. A value that was refused is None in `data`. `whole`: a service that is not
    in it does not exist. `local`: it may name files of this machine.
    """

    file: str
    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    whole: bool = True
    local: bool = True

    def has(self, path: Path) -> bool:
        """Is anything written at `path`?"""
        node = self.data
        for step in path:
            known = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            if step not in known:
                return False
            node = node[step]
        return True

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Of the value (or the key) at `path`, or of the nearest thing around it."""
        first, second = (self.keys, self.values) if key else (self.values, self.keys)
        while path and path not in first and path not in second:
            path, first, second = path[:-1], self.keys, self.values
        return first.get(path) or second.get(path) or Place(self.file, 1, 1)

    def where(self, path: Path) -> str:
        """`file:line` of the field at `path`; just the name where there are no lines."""
        return self.place(path, key=True).where

    def finding(
        self, path: Path, message: str, *, key: bool = False, word: str = "", choices: Iterable[str] = ()
    ) -> Finding:
        """A mistake at `path`: the value's, or the key's."""
        return Finding(self.place(path, key=key), path, message, word, choices)


def read(source: str | bytes, file: str) -> Document:
    """The one document in `source`. Never raises: see `Document.findings`."""
    document = Document(file)
    try:
        text = _text(source, file)
        document.data = _Composer(text, document).compose()
    except _UnreadableError as error:
        document.data = None
        document.findings.append(error.finding)
    return document


class _UnreadableError(Exception):
    def __init__(self, place: Place, message: str) -> None:
        self.finding = Finding(place, (), message)
        super().__init__(message)


def _text(source: str | bytes, file: str) -> str:
    raw = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    if len(raw) > MAX_BYTES:
        raise _UnreadableError(Place(file, 1, 1), f"the file is larger than {MAX_BYTES} bytes; split it")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        raise _UnreadableError(_at_end(before, file), f"byte 0x{raw[error.start]:02x} is not UTF-8") from None
    text = text.removeprefix("\ufeff")
    if bad := _UNPRINTABLE.search(text):
        message = f"character U+{ord(bad.group()):04X} may not stand in a YAML file"
        raise _UnreadableError(_at_end(text[: bad.start()], file), message)
    return text


def _at_end(before: str, file: str) -> Place:
    return Place(file, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


class _Composer:
    """Builds plain data from parser events, by descent: the depth is bounded by MAX_NESTING."""

    def __init__(self, text: str, document: Document) -> None:
        self.text, self.document = text, document
        self.events: Iterator[Any] = iter(())

    def compose(self) -> Any:
        import yaml

        self.yaml = yaml
        try:
            self.events = iter(yaml.parse(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
            return self._document()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Place(self.document.file, mark.line + 1, mark.column + 1) if mark else self.document.place(())
            raise _UnreadableError(place, f"not YAML: {self._worded(error, mark)}") from None
        except yaml.YAMLError as error:
            raise _UnreadableError(self.document.place(()), f"not YAML: {error}".replace("\n", " ")) from None

    def _worded(self, error: Any, mark: Any) -> str:
        lines = self.text.split("\n")
        line = lines[mark.line] if mark and mark.line < len(lines) else ""
        if "\t" in line[: len(line) - len(line.lstrip())] or (mark and line[mark.column : mark.column + 1] == "\t"):
            return "a tab may not indent or begin a value; use spaces"
        context = f", {error.context} from line {error.context_mark.line + 1}" if error.context_mark else ""
        return f"{error.problem}{context}".replace("\n", " ")

    def _document(self) -> Any:
        next(self.events)  # the start of the stream
        if isinstance(next(self.events), self.yaml.StreamEndEvent):
            raise _UnreadableError(self.document.place(()), "the file is empty")
        data = self._node(next(self.events), ())
        next(self.events)  # the end of the document
        event = next(self.events)
        if not isinstance(event, self.yaml.StreamEndEvent):
            raise _UnreadableError(self._place(event), "a second document begins here; a file has one")
        return data

    def _node(self, event: Any, path: Path) -> Any:
        self.document.values.setdefault(path, self._place(event))
        if isinstance(event, self.yaml.AliasEvent):
            return self._refuse(event, path, f"*{str(event.anchor)[:60]} is an alias; write the value out")
        if event.anchor is not None:
            self._refuse(event, path, f"&{event.anchor[:60]} is an anchor; write the value out where it is needed")
        if event.tag is not None:
            self._refuse(event, path, f"the tag {event.tag[:60]} is not allowed; write plain data")
        if isinstance(event, self.yaml.ScalarEvent):
            return self._scalar(event, path) if event.tag is None else None
        if len(path) >= MAX_NESTING:
            raise _UnreadableError(self._place(event), f"nested deeper than {MAX_NESTING} levels")
        return self._sequence(path) if isinstance(event, self.yaml.SequenceStartEvent) else self._mapping(path)

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), self.yaml.SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self.events), self.yaml.MappingEndEvent):
            key = self._key(event, path)
            at = (*path, "<<" if key is None else key)
            value = self._node(next(self.events), at)
            if key in found:
                first = self.document.keys[at]
                self._refuse(event, at, f"the key is already on line {first.line}; keys are unique")
            elif key is not None:
                found[key] = value
                self.document.keys[at] = self._place(event)
        return found

    def _key(self, event: Any, path: Path) -> str | None:
        """The key as it is written; None where what it leads to is not read."""
        if not isinstance(event, self.yaml.ScalarEvent):
            self._refuse(event, path, "a key must be plain text")
            self._node(event, (*path, "?"))
            return None
        if event.anchor is not None or event.tag is not None:
            self._refuse(event, (*path, event.value), "a key may not have an anchor or a tag")
        if event.value == "<<" and event.implicit[0]:
            self._refuse(event, (*path, "<<"), "merge keys are not allowed; write the fields out")
            return None
        return str(event.value)

    def _scalar(self, event: Any, path: Path) -> Any:
        text: str = event.value
        if not event.implicit[0]:
            return text
        if _NULL.match(text):
            return self._refuse(event, path, "is empty; give it a value or remove the line")
        if _BOOL.match(text):
            return text.lower() == "true"
        if not _FLOAT.match(text) and not _INT.match(text):
            return text
        if len(text) > MAX_DIGITS:
            return self._refuse(event, path, f"{quoted(text)} is too long for a number; put it in quotes if it is text")
        if _INT.match(text):
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def _refuse(self, event: Any, path: Path, message: str) -> None:
        self.document.findings.append(Finding(self._place(event), path, message))

    def _place(self, event: Any) -> Place:
        return Place(self.document.file, event.start_mark.line + 1, event.start_mark.column + 1)
