"""The generated parts of mesh-yaml.md: every field of the JSON Schema, and the words that are refused.

Types and ranges are read from the schema, built-in values and their sources from its descriptions, examples from the
file under "Every field, once" of the page itself, which a test reads with meshlib.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from meshlib.config import json_schema
from meshlib.config.bootstrap import _URL_SCHEMA, BOOTSTRAP
from meshlib.config.builtin import BUILT_IN, CEILINGS
from meshlib.config.endpoints import ADDRESS_SCHEMA
from meshlib.config.fields import HEADER_PATTERN, LABEL_PATTERN, NAME_PATTERN, SERVICE_PATTERN
from meshlib.config.routes import Backend
from meshlib.config.schema import NOT_ENFORCED, NOT_ENFORCED_VALUES
from meshlib.config.units import DURATION_PATTERN, SHARE_PATTERN, SIZE_PATTERN

PAGE = Path(__file__).resolve().parent / "mesh-yaml.md"

_WORDS = {
    DURATION_PATTERN: "duration",
    SHARE_PATTERN: "share",
    SIZE_PATTERN: "size",
    LABEL_PATTERN: "name, lower case",
    NAME_PATTERN: "name",
    SERVICE_PATTERN: "service",
    HEADER_PATTERN: "header name",
    str(ADDRESS_SCHEMA["pattern"]): "host:port",
    str(_URL_SCHEMA["pattern"]): "URL",
}
_SHARED = {"services.NAME": ("Settings", "defaults"), "gateways.NAME.routes[]": ("Route", "services.NAME.routes[]")}
"""Mappings that have the fields of another one too: its name in the schema, and where it stands first."""
_DEFAULTS = {"weight": str(Backend.model_fields["weight"].default)}
"""Built-in values that the descriptions do not have."""
_DESCRIPTION = re.compile(r"(?P<text>.*?)(?: Built-in: (?P<value>.*?)(?: \((?P<source>.*)\))?\.)?", re.DOTALL)


def example_file() -> str:
    """The mesh.yaml of the page that has every field once."""
    after = PAGE.read_text(encoding="utf-8").partition("## Every field, once")[2]
    return after.partition("```yaml\n")[2].partition("```")[0]


def fields(bootstrap: bool) -> str:
    """A table for each mapping of the file: of the bootstrap part, or of the policy part."""
    schema = json_schema()
    example = yaml.safe_load(example_file())
    sections = list(_sections(schema))
    shared = {path: set(schema["$defs"][of]["properties"]) for path, (of, _) in _SHARED.items()}
    lines = []
    for paths, node, description in sections:
        if not node["properties"]:
            continue
        top = paths[0].partition(".")[0]
        if paths[0] and (top in BOOTSTRAP) != bootstrap:
            continue
        names = [
            name
            for name in node["properties"]
            if (paths[0] or (name in BOOTSTRAP or name == "version") == bootstrap)
            and name not in shared.get(paths[0], ())
        ]
        lines += _table(paths, node, names, description, example, schema)
    return "\n".join(lines)


def _sections(schema: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any], str]]:
    """(paths, node, description) of every mapping with fields of its own, each once, from the top down."""
    found: dict[str, tuple[list[str], dict[str, Any], str]] = {}
    queue = [("", {**schema, "description": "The whole file."}, "")]
    while queue:
        path, node, name = queue.pop(0)
        key = name or path
        if key in found:
            found[key][0].append(path)
        else:
            found[key] = ([path], node, node.get("description", ""))
        for field, child in node.get("properties", {}).items():
            inner = f"{path}.{field}".lstrip(".")
            for at, below, definition in _mappings(child, inner, schema):
                queue.append((at, below, definition))
    return iter(found.values())


def _mappings(node: dict[str, Any], path: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        yield path, schema["$defs"][name], name
    for choice in node.get("anyOf", ()):
        yield from _mappings(choice, path, schema)
    if "items" in node:
        yield from _mappings(node["items"], f"{path}[]", schema)
    for child in node.get("patternProperties", {}).values():
        yield from _mappings(child, f"{path}.NAME", schema)


def _table(
    paths: list[str], node: dict[str, Any], names: list[str], description: str, example: Any, schema: dict[str, Any]
) -> list[str]:
    shown = [f"`{path}`" for path in paths]
    title = shown[0] if paths[0] else "The top level"
    also = f" The same in {', '.join(shown[1:])}." if len(shown) > 1 else ""
    same = f" It has every field of `{_SHARED[paths[0]][1]}` too, and these:" if paths[0] in _SHARED else ""
    lines = [f"### {title}", "", f"{description}{also}{same}", ""]
    lines += ["| field | type and range | built-in | example | |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        given = _example(example, [f"{path}.{name}".strip(".") for path in paths])
        cells = [f"`{name}`", _type(node["properties"][name], schema), *_said(node, name, schema)]
        cells.insert(3, f"`{given}`" if given else "below")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _said(node: dict[str, Any], name: str, schema: dict[str, Any]) -> tuple[str, str]:
    """The built-in value with its source, and what the field is."""
    child = node["properties"][name]
    described = child if "description" in child else schema["$defs"][child["$ref"].rpartition("/")[2]]
    match = _DESCRIPTION.fullmatch(described["description"])
    assert match is not None
    value = "required" if name in node.get("required", ()) else match["value"] or _DEFAULTS.get(name, "–")
    source = f" ({match['source']})" if match["source"] else ""
    return f"{value}{source}".replace("<", "&lt;"), match["text"].replace("<", "&lt;")


def _type(node: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in node or node.get("properties"):
        return "mapping"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type(choice, schema) for choice in node["anyOf"]))
    if "enum" in node or "const" in node:
        return ", ".join(f"`{word}`" for word in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        return f"list of {_type(node['items'], schema)}"
    if node.get("type") == "object":
        inner = [*node.get("patternProperties", {}).values(), node.get("additionalProperties")]
        return f"mapping of names to {_type(inner[0], schema)}"
    if node.get("type") == "integer":
        low, high = node["minimum"], node["maximum"]
        return "bytes" if high > 10**12 else f"{low} to {high}"
    if node.get("type") == "number":
        return f"number, {node['minimum']:g} to {node['maximum']:g}"
    return {"boolean": "true or false", "string": _WORDS.get(node.get("pattern", ""), "text")}[node["type"]]


def _example(example: Any, paths: list[str]) -> str:
    """The value at the first of `paths` that the example file has, on one line; '' for one with fields of its own."""
    candidates = next((found for path in paths if (found := _at([example], path))), None)
    if candidates is None:
        raise ValueError(f"mesh-yaml.md: the file under 'Every field, once' has no {paths[0]}")
    text = yaml.safe_dump(candidates[0], default_flow_style=True, width=1000, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("...").strip()
    return text if len(text) <= 48 else ""


def _at(candidates: list[Any], path: str) -> list[Any]:
    steps = [step for part in path.split(".") for step in re.split(r"(?=\[\])", part) if step]
    for step in steps:
        if step == "[]":
            candidates = [item for node in candidates if isinstance(node, list) for item in node]
        elif step == "NAME":
            candidates = [item for node in candidates if isinstance(node, dict) for item in node.values()]
        else:
            candidates = [node[step] for node in candidates if isinstance(node, dict) and step in node]
    return candidates


def bootstrap_fields() -> str:
    """What each process reads once."""
    return fields(bootstrap=True)


def policy_fields() -> str:
    """What is in force for calls, and follows an edit."""
    return fields(bootstrap=False)


def ceilings() -> str:
    """What may not be above what."""
    lines = ["| value | its ceiling | built-in value | built-in ceiling |", "| --- | --- | --- | --- |"]
    for value, ceiling in CEILINGS:
        written = ["none" if BUILT_IN[name].written is None else BUILT_IN[name].written for name in (value, ceiling)]
        lines.append(f"| `{value}` | `{ceiling}` | {written[0]} | {written[1]} |")
    return "\n".join(lines)


def not_enforced() -> str:
    """The words of the contract that this release refuses."""
    words = ", ".join(f"`{word}`" for word in sorted(NOT_ENFORCED))
    values = [
        f"`{field}: {value}`" for field, refused in sorted(NOT_ENFORCED_VALUES.items()) for value in sorted(refused)
    ]
    return f"Fields: {words}.\n\nValues: {', '.join(values)}."


PARTS = {
    "bootstrap-fields": bootstrap_fields,
    "policy-fields": policy_fields,
    "ceilings": ceilings,
    "not-enforced": not_enforced,
}
