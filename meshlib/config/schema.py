"""Plain data against the models: every mistake as a sentence, and the JSON Schema of the same models.

Words of the contract that this release does not enforce are named as such: a policy that is silently not in force is
worse than none. Any other unknown word gets the nearest field of its own mapping.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .problems import Finding, Path
from .reader import Document
from .units import quoted

M = TypeVar("M", bound=BaseModel)

NOT_ENFORCED = frozenset((
    "authorization", "consul", "egress", "etcd", "health_check", "host", "kubernetes", "ports", "rate_limits", "xds",
))  # fmt: skip
"""Fields of the contract that are not enforced by this release, wherever they stand."""

NOT_ENFORCED_VALUES = {
    "mtls": {"permissive"},
    "policy": {"ring_hash", "maglev"},
    "source": {"files", "spiffe"},
}
"""Values of the contract that are not enforced by this release, by field."""

_MUST_BE = {
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "dict_type": "a mapping",
    "tuple_type": "a list",
}


def validate(model: type[M], document: Document) -> tuple[M | None, list[Finding]]:
    """The model made of the document's data, or None and every mistake.

    A place where the reader found something already is not reported again.
    """
    try:
        return model.model_validate(document.data), []
    except ValidationError as error:
        known = {(finding.place, finding.path) for finding in document.findings}
        found = (_finding(detail, model, document) for detail in error.errors(include_url=False))
        return None, [finding for finding in found if (finding.place, finding.path) not in known]


@cache
def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a model, as the file is written; a null is never allowed."""
    schema: dict[str, Any] = _tidy(model.model_json_schema(mode="validation"))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _tidy(node: Any) -> Any:
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    # pydantic's defaults are parsed values, not text that a file could hold; the descriptions have them
    clean = {name: _tidy(value) for name, value in node.items() if name not in ("title", "default")}
    if "patternProperties" in clean:
        clean["additionalProperties"] = False
    choices = [choice for choice in clean.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del clean["anyOf"]
        return {**choices[0], **clean}
    return {**clean, "anyOf": choices} if choices else clean


def _finding(detail: Any, model: type[BaseModel], document: Document) -> Finding:
    path, kind, given = detail["loc"], detail["type"], detail["input"]
    if path and path[-1] == "[key]":
        return document.finding(path[:-1], str(detail["ctx"]["error"]), key=True)
    if kind == "missing":
        return document.finding(path, "is required", key=True)
    if kind == "extra_forbidden":
        return _unknown_field(path, model, document)
    # what a validator wrapped around a short form ("host:port") is not in the file
    while not document.has(path):
        path = path[:-1]
    if kind == "literal_error":
        return _unknown_word(path, str(given), detail["ctx"]["expected"], document)
    if kind in _MUST_BE:
        return document.finding(path, f"must be {_MUST_BE[kind]}, not {quoted(given)}")
    return document.finding(path, str(detail["ctx"]["error"]) if kind == "value_error" else detail["msg"])


def _unknown_field(path: Path, model: type[BaseModel], document: Document) -> Finding:
    word = str(path[-1])
    if word in NOT_ENFORCED:
        message = f"`{word}` is not enforced by this release of meshlib; remove it"
        return document.finding(path, message, key=True)
    return document.finding(path, "unknown field", key=True, word=word, choices=_fields_at(model, path[:-1]))


def _unknown_word(path: Path, word: str, expected: str, document: Document) -> Finding:
    allowed = tuple(re.findall(r"'([^']*)'", expected))
    if word in NOT_ENFORCED_VALUES.get(str(path[-1]), ()):
        message = f"`{word}` is not enforced by this release of meshlib; use {' or '.join(allowed)}"
        return document.finding(path, message)
    return document.finding(path, f"{quoted(word)} is not one of {', '.join(allowed)}", word=word, choices=allowed)


def _fields_at(model: type[BaseModel], path: Path) -> tuple[str, ...]:
    schema = json_schema(model)
    nodes = [schema]
    for step in path:
        nodes = [child for node in nodes for child in _children(node, step, schema)]
    return tuple(name for node in nodes for at in _resolved(node, schema) for name in at.get("properties", ()))


def _children(node: dict[str, Any], step: str | int, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for at in _resolved(node, schema):
        if isinstance(step, int):
            yield at.get("items", {})
        elif step in at.get("properties", {}):
            yield at["properties"][step]
        else:
            yield from at.get("patternProperties", {}).values()


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    yield node
    for choice in node.get("anyOf", ()):
        yield from _resolved(choice, schema)
