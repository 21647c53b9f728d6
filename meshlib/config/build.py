"""From a document to a `MeshConfig`, or one `ConfigError` with every mistake of the schema and of the references.

Endpoint files are read here, so that a configuration is complete, comparable and checked before it is used.
"""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from meshlib.endpoint import Endpoint
from meshlib.errors import ConfigError

from . import references
from .endpoints import EntryList, Source
from .model import MeshConfig, number_of
from .problems import Finding, Path, config_error
from .reader import MAX_BYTES, Document, read
from .schema import validate
from .sources import assembled, part_of
from .units import quoted


class Origin(NamedTuple):
    """What a configuration is made of: `parts` are the files that the document was read from."""

    document: Document
    directory: pathlib.Path
    parts: tuple[pathlib.Path, ...]


def build(origin: Origin) -> MeshConfig:
    """The configuration that the document describes. Raises ConfigError."""
    try:
        return _built(origin)
    except ConfigError as error:
        named = (origin.directory / name for _, name in references.file_sources(origin.document))
        error.files = tuple(dict.fromkeys([*(part.absolute() for part in origin.parts), *named]))
        raise


def _built(origin: Origin) -> MeshConfig:
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
    config._file_entries = {at: file.document.data for at, file in files.items()}
    for name in config.services:
        _place_endpoints(config, name, files)
    config._policy_number = config._version_number = number_of(
        [document.data, [[list(at), file.document.data] for at, file in files.items()]]
    )
    return config


def regular_bytes(path: pathlib.Path) -> bytes:
    """The content of a regular file, up to one byte beyond MAX_BYTES. Raises OSError and ValueError.

    Anything else is refused: a pipe or a device may keep its reader for ever.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe or a device, not a regular file")
        return file.read(MAX_BYTES + 1)


def why_unreadable(error: OSError | ValueError) -> str:
    """What an error of `regular_bytes` says, without the path."""
    return str((isinstance(error, OSError) and error.strerror) or error)


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
        if not document.local:
            message = "this policy is not a file of this machine, and names none; write its content under static"
            document.findings.append(document.finding((*at, "file"), message, key=True))
            continue
        try:
            if name not in by_name:
                shown = str(pathlib.Path(document.file).parent / name)
                by_name[name] = _endpoint_file(directory / name, shown)
            by_source[at] = by_name[name]
        except (OSError, ValueError) as error:
            message = f"{quoted(name)} cannot be read: {why_unreadable(error)}"
            document.findings.append(document.finding((*at, "file"), message))
    return by_source


def _endpoint_file(path: pathlib.Path, shown: str) -> _EndpointFile:
    document = read(regular_bytes(path), shown)
    if document.findings and document.data is None:
        return _EndpointFile(path.absolute(), document, None, document.findings)
    entries, mistakes = validate(EntryList, document)
    return _EndpointFile(path.absolute(), document, entries, [*document.findings, *mistakes])


def _place_endpoints(config: MeshConfig, name: str, files: Mapping[Path, _EndpointFile]) -> None:
    sources = config.services[name].endpoints
    base: Path = ("services", config.written(name), "endpoints")
    parts = [part_of(source, tuple(_endpoints(source, files.get((*base, at))))) for at, source in enumerate(sources)]
    config._endpoints[name] = assembled(parts, (), {})
    if not all(isinstance(part, tuple) for part in parts):
        config._parts[name] = tuple(parts)


def _endpoints(source: Source, file: _EndpointFile | None) -> Iterator[Endpoint]:
    entries = file.entries.root if file and file.entries else source.static or ()
    return (entry.endpoint() for entry in entries)
