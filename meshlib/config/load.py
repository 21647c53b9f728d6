"""From files, text or a dict to a `MeshConfig`, or one `ConfigError` with every mistake.

A directory is one mesh in parts: its `*.yaml` files by name, hidden ones left out. `services` are put together from
all of them; `version` may stand in each; any other top-level field in one.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from meshlib.errors import ConfigError

from .bootstrap import BOOTSTRAP
from .build import Origin, build, regular_bytes, why_unreadable
from .model import MeshConfig
from .problems import DICT, OVERRIDES, Finding, Path
from .reader import Document, read
from .schema import json_schema as schema_of
from .units import quoted

MAX_FILES = 1000
"""Files of a directory. Each may have MAX_BYTES."""


def load_config(path: str | os.PathLike[str]) -> MeshConfig:
    """The mesh described by a file, or by the `*.yaml` files of a directory. Raises ConfigError."""
    return build(_origin(pathlib.Path(path)))


def load_bootstrap(path: str | os.PathLike[str]) -> MeshConfig:
    """The mesh that a file or directory describes, but for its policy (`defaults` and `services`), which may be broken.

    So it can be had of most files of which `load_config` can make nothing. Raises ConfigError where it is broken, too.
    """
    given, written = pathlib.Path(path), {}  # type: pathlib.Path, dict[str, Any]
    is_folder, parts = _parts(given)
    for part in parts:
        written |= _read_part(part).data or {}
    place = given / "mesh.yaml" if is_folder else given
    return parse_config(
        json.dumps({name: written[name] for name in ("version", *BOOTSTRAP) if name in written}), str(place)
    )


def parse_config(text: str, file: str = "<text>", *, local: bool = True) -> MeshConfig:
    """The mesh described by YAML text. `file` names it in messages and gives the folder of relative paths.

    `local` False: the text came from elsewhere, and may not name files of this machine. Raises ConfigError.
    """
    document = _complete(read(text, file))
    document.local = local
    return build(Origin(document, pathlib.Path(file).absolute().parent, ()))


def config_of(
    value: str | os.PathLike[str] | Mapping[str, Any] | MeshConfig, overrides: Mapping[str, Any] | None = None
) -> MeshConfig:
    """A path is loaded, a dict (as YAML would give it) validated, a MeshConfig returned. Raises ConfigError.

    `overrides` is laid over it before it is checked: mappings field by field, anything else as a whole.
    """
    if isinstance(value, MeshConfig):
        if not overrides:
            return value
        origin = Origin(value._document, value._directory, value._files)
    elif isinstance(value, (str, os.PathLike)):
        origin = _origin(pathlib.Path(value))
    else:
        origin = Origin(_from_python(value, DICT), pathlib.Path.cwd(), ())
    if overrides:
        origin = origin._replace(document=_overlaid(origin.document, _from_python(overrides, OVERRIDES)))
    return build(origin)


def followed_or_whole(
    source: str | os.PathLike[str] | Mapping[str, Any] | MeshConfig, overrides: Mapping[str, Any] | None = None
) -> tuple[MeshConfig, ConfigError | None]:
    """(`config_of` the same, None); of a file whose policy is broken, and that of a config service is followed anyway,
    its bootstrap, and what is wrong with the policy. Raises ConfigError.
    """
    try:
        return config_of(source, overrides), None
    except ConfigError as error:
        if not isinstance(source, (str, os.PathLike)):
            raise
        try:
            found = config_of(load_bootstrap(source), overrides)
        except ConfigError:
            raise error from None
        if found.control is None or found.control.fallback == "file":
            raise
        return found, error


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of mesh.yaml, with a description for every field."""
    return copy.deepcopy(schema_of(MeshConfig))


def _origin(given: pathlib.Path) -> Origin:
    is_folder, parts = _parts(given)
    if not is_folder:
        return Origin(_read_part(given), given.absolute().parent, parts)
    return Origin(_merge([_read_part(part) for part in parts]), given.absolute(), parts)


def _parts(given: pathlib.Path) -> tuple[bool, tuple[pathlib.Path, ...]]:
    """Is it a directory; and the files of which the mesh is made."""
    try:
        if not given.is_dir():
            return False, (given,)
        names = sorted(name for name in os.listdir(given) if name.endswith(".yaml") and not name.startswith("."))
    except OSError as error:
        raise _unreadable(given, error) from None
    if not 1 <= len(names) <= MAX_FILES:
        raise ConfigError(f"{given}: a directory of a mesh has from 1 to {MAX_FILES} *.yaml files, not {len(names)}")
    return True, tuple(given / name for name in names)


def _from_python(value: Any, name: str) -> Document:
    try:
        # by way of the text: the same rules and bounds as for a file
        return _complete(read(json.dumps(value, ensure_ascii=False, allow_nan=False), name))
    except (TypeError, ValueError, RecursionError) as error:
        message = f"{name}: a configuration is a path, a MeshConfig, or a dict of plain data (text, numbers, lists)"
        raise ConfigError(f"{message}: {error}") from None


def _overlaid(document: Document, over: Document) -> Document:
    inner = {path[:-1] for path in over.values if path}
    values = {path: at for path, at in over.values.items() if path not in inner or path not in document.values}
    keys = {path: at for path, at in over.keys.items() if path in values}
    readable = document.data is not None and over.data is not None
    return dataclasses.replace(
        document,
        data=_laid_over(document.data, over.data) if readable else None,
        keys={**document.keys, **keys},
        values={**document.values, **values},
        findings=[*document.findings, *over.findings],
    )


def _laid_over(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _laid_over(base.get(key), value) for key, value in over.items()}}
    return over


def _read_part(path: pathlib.Path) -> Document:
    try:
        return _complete(read(regular_bytes(path), str(path)))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: OSError | ValueError) -> ConfigError:
    return ConfigError(f"{path}: cannot be read: {why_unreadable(error)}; name a mesh.yaml or a directory of them")


def _complete(document: Document) -> Document:
    if document.data is not None and not isinstance(document.data, dict):
        message = f"the file must be a mapping of fields such as `version: 1`, not {quoted(document.data)}"
        document.findings.append(document.finding((), message))
        document.data = None
    return document


def _merge(parts: list[Document]) -> Document:
    whole = Document(parts[0].file)
    data: dict[str, Any] = {}
    services: dict[str, Any] = {}
    for part in parts:
        whole.findings += part.findings
        for key, value in (part.data or {}).items():
            if key == "services" and isinstance(value, dict):
                whole.findings += _twice(whole, part, ("services",), services, value)
                services.update({name: service for name, service in value.items() if name not in services})
            elif key != "version" or data.get(key, value) != value:
                whole.findings += _twice(whole, part, (), data, [key])
            data.setdefault(key, value)
        for path, place in part.keys.items():
            whole.keys.setdefault(path, place)
        for path, place in part.values.items():
            whole.values.setdefault(path, place)
    readable = all(part.data is not None for part in parts)
    whole.data = ({**data, "services": services} if "services" in data else data) if readable else None
    return whole


def _twice(whole: Document, part: Document, base: Path, before: Mapping[str, Any], now: Iterable[str]) -> list[Finding]:
    return [
        part.finding((*base, name), f"is already in {whole.where((*base, name))}; keep one", key=True)
        for name in now
        if name in before
    ]
