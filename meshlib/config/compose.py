"""From a policy that came in parts to a `MeshConfig`: what this process reads once, with what the config service says.

Rules of this file. The parts are plain data as JSON gives it, not text: nothing is read as YAML a second time, and the
same models and the same references judge it. It is a part of the mesh: a service may consent to routes of services
that this process does not know. It has no lines: a problem is `source: field.path: sentence`. It may not name files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .bootstrap import BOOTSTRAP
from .build import Origin, build
from .model import MeshConfig
from .problems import Path, Place
from .reader import MAX_DIGITS, MAX_NESTING, Document

_KEPT = {"version", *BOOTSTRAP}


def compose(
    bootstrap: MeshConfig, source: str, defaults: Mapping[str, Any], services: Mapping[str, Mapping[str, Any]]
) -> MeshConfig:
    """The bootstrap fields of `bootstrap` with this policy: raw mappings, as `MeshConfig.raw_policy` gives them.

    `services`: by canonical name; one that does not exist is left out. `source` names the policy in messages, such as
    the URL it came from. `files` and `directory` are those of `bootstrap`. The `registry` sources are empty until
    `MeshConfig.with_registered`. Nothing given is kept or changed. Raises ConfigError with every problem by its path.
    """
    document = _bootstrap(bootstrap._document, Place(source, 0, 0))
    document.data["defaults"] = _plain(document, ("defaults",), defaults)
    document.data["services"] = _plain(document, ("services",), services)
    return build(Origin(document, bootstrap.directory, bootstrap.files))


def _bootstrap(of: Document, policy: Place) -> Document:
    """A document that has the bootstrap fields; what will be its policy is at one place."""
    at: dict[Path, Place] = {("defaults",): policy, ("services",): policy}
    return Document(
        policy.file,
        {name: value for name, value in (of.data or {}).items() if name in _KEPT},
        {**{path: place for path, place in of.keys.items() if path[0] in _KEPT}, **at},
        {**{path: place for path, place in of.values.items() if not path or path[0] in _KEPT}, **at},
        whole=False,
        local=False,
    )


def _plain(document: Document, path: Path, value: Any) -> Any:
    """A copy, with None and a finding for what could not stand in a file."""
    if isinstance(value, str):
        return value if _is_text(value) else _refuse(document, path, "is no text: it has half of a surrogate pair")
    if isinstance(value, Mapping | list | tuple):
        return _container(document, path, value)
    if isinstance(value, int | float):
        return value if abs(value) < 10**MAX_DIGITS else _refuse(document, path, "is too large a number")
    return _refuse(document, path, "is empty; give it a value or leave it out" if value is None else "is no plain data")


def _container(document: Document, path: Path, value: Mapping[Any, Any] | Sequence[Any]) -> Any:
    if len(path) >= MAX_NESTING:
        return _refuse(document, path, f"is nested deeper than {MAX_NESTING} levels")
    if not isinstance(value, Mapping):
        return [_plain(document, (*path, index), item) for index, item in enumerate(value)]
    copy: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(key, str) and _is_text(key):
            copy[key] = _plain(document, (*path, key), item)
        else:
            _refuse(document, path, "has a key that is not text")
    return copy


def _is_text(value: str) -> bool:
    return value.isascii() or not re.search("[\ud800-\udfff]", value)


def _refuse(document: Document, path: Path, message: str) -> Any:
    document.findings.append(document.finding(path, message))
    return None
