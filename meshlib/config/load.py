"""From files, text or a dict to a `MeshConfig`, or one `ConfigError` with every mistake.

A directory is one mesh in parts: its `*.yaml` files by name, hidden ones left out. `services` are put together from
all of them; `version` may stand in each; any other top-level field in one. Endpoint files are read here too, so that
a configuration is complete, comparable and checked before it is used.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from meshlib.endpoint import Endpoint
from meshlib.errors import ConfigError

from . import references
from .endpoints import EntryList
from .model import MeshConfig
from .problems import DICT, OVERRIDES, Finding, Path, config_error
from .reader import MAX_BYTES, Document, read
from .schema import json_schema as schema_of
from .schema import validate
from .units import quoted

MAX_FILES = 1000
"""Files of a directory. Each may have MAX_BYTES."""


class _Origin(NamedTuple):
    document: Document
    directory: pathlib.Path
    parts: tuple[pathlib.Path, ...]


def load_config(path: str | os.PathLike[str]) -> MeshConfig:
    """The mesh described by a file, or by the `*.yaml` files of a directory. Raises ConfigError."""
    return _build(_origin(pathlib.Path(path)))


def parse_config(text: str, file: str = "<text>") -> MeshConfig:
    """The mesh described by YAML text. `file` names it in messages and gives the folder of relative paths.

    Raises ConfigError.
    """
    return _build(_Origin(_complete(read(text, file)), pathlib.Path(file).absolute().parent, ()))


def config_of(
    value: str | os.PathLike[str] | Mapping[str, Any] | MeshConfig, overrides: Mapping[str, Any] | None = None
) -> MeshConfig:
    """A path is loaded, a dict (as YAML would give it) validated, a MeshConfig returned. Raises ConfigError.

    `overrides` is laid over it before it is checked: mappings field by field, anything else as a whole.
    """
    if isinstance(value, MeshConfig):
        if not overrides:
            return value
        origin = _Origin(value._document, value._directory, value._files)
    elif isinstance(value, (str, os.PathLike)):
        origin = _origin(pathlib.Path(value))
    else:
        origin = _Origin(_from_python(value, DICT), pathlib.Path.cwd(), ())
    if overrides:
        origin = origin._replace(document=_overlaid(origin.document, _from_python(overrides, OVERRIDES)))
    return _build(origin)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of mesh.yaml, with a description for every field."""
    return copy.deepcopy(schema_of(MeshConfig))


def _origin(given: pathlib.Path) -> _Origin:
    try:
        if not given.is_dir():
            return _Origin(_read_part(given), given.absolute().parent, (given,))
        names = sorted(name for name in os.listdir(given) if name.endswith(".yaml") and not name.startswith("."))
    except OSError as error:
        raise _unreadable(given, error) from None
    if not 1 <= len(names) <= MAX_FILES:
        raise ConfigError(f"{given}: a directory of a mesh has from 1 to {MAX_FILES} *.yaml files, not {len(names)}")
    parts = tuple(given / name for name in names)
    return _Origin(_merge([_read_part(part) for part in parts]), given.absolute(), parts)


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
    return Document(
        document.file,
        _laid_over(document.data, over.data) if readable else None,
        {**document.keys, **keys},
        {**document.values, **values},
        [*document.findings, *over.findings],
    )


def _laid_over(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _laid_over(base.get(key), value) for key, value in over.items()}}
    return over


def _read_part(path: pathlib.Path) -> Document:
    try:
        return _complete(read(_bytes(path), str(path)))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: OSError | ValueError) -> ConfigError:
    return ConfigError(f"{path}: cannot be read: {_why(error)}; name a mesh.yaml or a directory of them")


def _why(error: OSError | ValueError) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)


def _bytes(path: pathlib.Path) -> bytes:
    """The content of a regular file. Anything else is refused: a pipe or a device may keep its reader for ever."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe or a device, not a regular file")
        return file.read(MAX_BYTES + 1)


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


def _build(origin: _Origin) -> MeshConfig:
    document, directory, parts = origin
    if document.data is None:
        raise config_error(document.findings)
    config, mistakes = validate(MeshConfig, document)
    files = _endpoint_files(document, directory)
    findings = [*document.findings, *mistakes]
    for file in files.values():
        findings += file.findings
    known = {(finding.place, finding.path) for finding in findings}
    crossed = references.check(document, {at: file.document for at, file in files.items()})
    findings += (finding for finding in crossed if (finding.place, finding.path) not in known)
    if findings or config is None:
        raise config_error(findings)
    config._document, config._directory = document, directory
    config._written = references.written_services(document)
    config._files = tuple(dict.fromkeys([*(part.absolute() for part in parts), *(f.path for f in files.values())]))
    config._endpoints = {name: tuple(_endpoints(config, name, files)) for name in config.services}
    config._version_number = _version_number(document, files)
    return config


class _EndpointFile(NamedTuple):
    path: pathlib.Path
    document: Document
    entries: EntryList | None
    findings: list[Finding]


def _endpoint_files(document: Document, directory: pathlib.Path) -> dict[Path, _EndpointFile]:
    """The endpoint file of each source that has one, by the path of the source; each file is read once."""
    by_name: dict[str, _EndpointFile] = {}
    by_source: dict[Path, _EndpointFile] = {}
    for at, name in references.file_sources(document):
        try:
            if name not in by_name:
                shown = str(pathlib.Path(document.file).parent / name)
                by_name[name] = _endpoint_file(directory / name, shown)
            by_source[at] = by_name[name]
        except (OSError, ValueError) as error:
            message = f"{quoted(name)} cannot be read: {_why(error)}"
            document.findings.append(document.finding((*at, "file"), message))
    return by_source


def _endpoint_file(path: pathlib.Path, shown: str) -> _EndpointFile:
    document = read(_bytes(path), shown)
    if document.findings and document.data is None:
        return _EndpointFile(path.absolute(), document, None, document.findings)
    entries, mistakes = validate(EntryList, document)
    return _EndpointFile(path.absolute(), document, entries, [*document.findings, *mistakes])


def _endpoints(config: MeshConfig, service: str, files: Mapping[Path, _EndpointFile]) -> Iterator[Endpoint]:
    for index, source in enumerate(config.services[service].endpoints):
        file = files.get(("services", config.written(service), "endpoints", index))
        entries = file.entries.root if file and file.entries else source.static or ()
        yield from (entry.endpoint() for entry in entries)


def _version_number(document: Document, files: Mapping[Path, _EndpointFile]) -> int:
    content = [document.data, [[list(at), file.document.data] for at, file in files.items()]]
    return int.from_bytes(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()[:6])
