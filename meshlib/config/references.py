"""What one part of the file says about another: names, consent, ceilings, weights, addresses.

It reads the plain data, not the models, so that these mistakes are found in the same pass as those of the schema. A
part that cannot be read is the schema's finding: here it is passed over, and nothing is concluded from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from .builtin import BUILT_IN_TREE, CEILINGS
from .endpoints import is_loopback, parse_address
from .fields import canonical_name, is_label
from .model import GATEWAY, resolve
from .problems import Finding, Path, path_text
from .reader import Document
from .units import parse_duration, quoted


class Level(NamedTuple):
    """One level of precedence: where it stands (None: built-in) and what is written there."""

    path: Path | None
    data: dict[str, Any]


def check(document: Document, files: Mapping[Path, Document]) -> Iterator[Finding]:
    """Every such mistake. `files`: the endpoint file that was read for the source at each path."""
    data = _mapping(document.data)
    yield from _identity(document, data)
    defaults = Level(("defaults",), _mapping(data.get("defaults")))
    levels = [Level(None, BUILT_IN_TREE), defaults]
    yield from _ceilings(document, levels)
    services = {key: _mapping(value) for key, value in _mapping(data.get("services")).items()}
    known: dict[str, str] = {}
    for key in services:
        if key != known.setdefault(canonical_name(key), key):
            where = document.where(("services", known[canonical_name(key)]))
            message = f"is the same service as {known[canonical_name(key)]!r} ({where}); keep one"
            yield document.finding(("services", key), message, key=True)
    gateways = {key: _mapping(value) for key, value in _mapping(data.get("gateways")).items() if isinstance(key, str)}
    mesh = _Mesh(document, services, known, {}, gateways)
    dev = _is_dev(data)
    for key, service in services.items():
        level = Level(("services", key), service)
        yield from _ceilings(document, [*levels, level])
        if document.whole:
            yield from _consents(mesh, key)
        yield from _registries(document, key, service, control="control" in data)
        strict = service.get("mtls", defaults.data.get("mtls", "strict")) == "strict"
        yield from _addresses(document, files, key, service, loopback_only=dev and strict)
        yield from _routes(mesh, key, [*levels, level])
    for name, gateway in mesh.gateways.items():
        level = Level(("gateways", name), gateway)
        yield from _listeners(document, level)
        yield from _routes(mesh, GATEWAY + name, [*levels, level])


def written_services(document: Document) -> dict[str, str]:
    """Canonical name → the key as it is written."""
    return {canonical_name(key): key for key in _mapping(_mapping(document.data).get("services"))}


def file_sources(document: Document) -> Iterator[tuple[Path, str]]:
    """(path of the source, file as written) of every endpoint source that is a file."""
    for key, service in _mapping(_mapping(document.data).get("services")).items():
        for index, source in enumerate(_sequence(_mapping(service).get("endpoints"))):
            file = _mapping(source).get("file")
            if isinstance(file, str):
                yield ("services", key, "endpoints", index), file


class _Mesh(NamedTuple):
    document: Document
    services: dict[str, dict[str, Any]]
    known: dict[str, str]
    consents: dict[str, set[str | None]]
    gateways: dict[str, dict[str, Any]]

    def find(self, name: Any, caller: str) -> str | None:
        """The key of the service that `name` means to the owner `caller`; None where there is none."""
        found = resolve(self.known, name, _namespace(caller)) if isinstance(name, str) else None
        return None if found is None else self.known[found]

    def unknown(self, path: Path, name: str) -> Finding:
        message = f"{quoted(name)} is not a service of this {'file' if self.document.whole else 'policy'}"
        return self.document.finding(path, message, word=name, choices=self.services)


def _is_dev(data: dict[str, Any]) -> bool:
    return "control" not in data and _mapping(data.get("identity")).get("source", "dev") == "dev"


def _identity(document: Document, data: dict[str, Any]) -> Iterator[Finding]:
    source = _mapping(data.get("identity")).get("source")
    if source == "dev" and "control" in data:
        where = document.where(("control",))
        message = f"must be control, because the file has `control` ({where}); remove the one or the other"
        yield document.finding(("identity", "source"), message)
    elif source == "control" and "control" not in data:
        message = "is control, but the file has no `control`; add control: {urls: ['https://host:port']}, or write dev"
        yield document.finding(("identity", "source"), message)
    written = data.get("trust_domain")
    if _is_dev(data) and isinstance(written, str) and not written.endswith(".dev"):
        mesh = data["mesh"] if is_label(data.get("mesh")) else "<mesh>"
        message = f"{quoted(written)} must end in .dev, because identity.source is dev: write {mesh}.dev or remove it"
        yield document.finding(("trust_domain",), message)


def _registries(document: Document, key: str, service: dict[str, Any], *, control: bool) -> Iterator[Finding]:
    first: Path | None = None
    for index, source in enumerate(_sequence(service.get("endpoints"))):
        path: Path = ("services", key, "endpoints", index, "registry")
        if "registry" not in _mapping(source):
            continue
        if first is not None:
            message = f"is already a source of {key!r} ({document.where(first)}); keep one"
            yield document.finding(path, message, key=True)
        elif not control:
            message = "needs the config service; add control: {urls: ['https://host:port']}, or use static"
            yield document.finding(path, message, key=True)
        first = first or path


def _ceilings(document: Document, levels: list[Level]) -> Iterator[Finding]:
    """Values written at the last level that pass their ceiling."""
    last = levels[-1]
    for name, ceiling in CEILINGS:
        raw, value = _written(last, name)
        if value is None or last.path is None:
            continue
        for level in reversed(levels):
            limit_raw, limit = _written(level, ceiling)
            if limit_raw is not None:
                break
        if limit is not None and value > limit:
            where = "built-in" if level.path is None else document.where((*level.path, *ceiling.split(".")))
            message = f"{raw} is above {ceiling}, which is {limit_raw} ({where}); lower the one or raise the other"
            yield document.finding((*last.path, *name.split(".")), message)


def _written(level: Level, name: str) -> tuple[Any, float | None]:
    """As written (None: not written), and as a number (None: not readable)."""
    node: Any = level.data
    for word in name.split("."):
        node = _mapping(node).get(word)
    if isinstance(node, str):
        return node, _or_none(parse_duration, node)
    return node, float(node) if type(node) is int else None


def _consents(mesh: _Mesh, key: str) -> Iterator[Finding]:
    for index, name in enumerate(_sequence(mesh.services[key].get("allow_routes_from"))):
        path: Path = ("services", key, "allow_routes_from", index)
        if not isinstance(name, str):
            continue
        if name.startswith(GATEWAY):
            if name.removeprefix(GATEWAY) not in mesh.gateways:
                known = [GATEWAY + gateway for gateway in mesh.gateways]
                yield mesh.document.finding(
                    path, f"{quoted(name)} is not a gateway of this file", word=name, choices=known
                )
        elif mesh.find(name, key) is None:
            yield mesh.unknown(path, name)


def _listeners(document: Document, gateway: Level) -> Iterator[Finding]:
    names: dict[Any, Path] = {}
    places: dict[Any, Path] = {}
    for index, listener in enumerate(map(_mapping, _sequence(gateway.data.get("listeners")))):
        path: Path = (*(gateway.path or ()), "listeners", index)
        name, place = listener.get("name"), (listener.get("port"), listener.get("hostname"))
        if isinstance(name, str) and names.setdefault(name, path) != path:
            where = document.where((*names[name], "name"))
            yield document.finding((*path, "name"), f"{quoted(name)} is already the name of a listener ({where})")
        if all(isinstance(part, (str, int, type(None))) for part in place) and places.setdefault(place, path) != path:
            where = document.where(places[place])
            yield document.finding(path, f"has the port and the hostname of another listener ({where})")
    for index, route in enumerate(map(_mapping, _sequence(gateway.data.get("routes")))):
        for position, name in enumerate(_sequence(route.get("listeners"))):
            if isinstance(name, str) and name not in names:
                at: Path = (*(gateway.path or ()), "routes", index, "listeners", position)
                message = f"{quoted(name)} is not a listener of this gateway"
                yield document.finding(at, message, word=name, choices=[known for known in names if known])


def _routes(mesh: _Mesh, key: str, levels: list[Level]) -> Iterator[Finding]:
    """`key`: the owner as it is written, a service or gateway/<name>; `levels`: down to it."""
    names: dict[str, Path] = {}
    owner = levels[-1]
    for index, route in enumerate(map(_mapping, _sequence(owner.data.get("routes")))):
        path: Path = (*(owner.path or ()), "routes", index)
        yield from _ceilings(mesh.document, [*levels, Level(path, route)])
        name = route.get("name")
        if isinstance(name, str) and names.setdefault(name, path) != path:
            where = mesh.document.where((*names[name], "name"))
            yield mesh.document.finding((*path, "name"), f"{quoted(name)} is already the name of a route ({where})")
        backends = _sequence(route.get("backends"))
        weights = [_mapping(backend).get("weight") for backend in backends]
        if weights and all(type(weight) is int and weight == 0 for weight in weights):
            message = "every weight is 0, so no call has anywhere to go; give one backend a weight"
            yield mesh.document.finding((*path, "backends"), message, key=True)
        for place, backend in enumerate(map(_mapping, backends)):
            yield from _backend(mesh, key, (*path, "backends", place), backend)
        mirrors = route.get("mirror")
        if isinstance(mirrors, dict):
            yield from _backend(mesh, key, (*path, "mirror"), mirrors)
        for place, mirror in enumerate(map(_mapping, _sequence(mirrors))):
            yield from _backend(mesh, key, (*path, "mirror", place), mirror)
        if key.startswith(GATEWAY) and not backends and not {"request_redirect", "direct_response"} & route.keys():
            message = "has no backends; a gateway has no endpoints of its own: write backends: [{service: …}]"
            yield mesh.document.finding(path, message)


def _backend(mesh: _Mesh, key: str, path: Path, backend: dict[str, Any]) -> Iterator[Finding]:
    if {"request_redirect", "direct_response"} & backend.keys():
        return
    if key.startswith(GATEWAY) and "service" not in backend:
        yield mesh.document.finding(path, "has no service; a gateway has no endpoints of its own: write service: …")
        return
    name = backend.get("service", key)
    target = mesh.find(name, key)
    if target is None:
        if isinstance(name, str) and "service" in backend:
            yield mesh.unknown((*path, "service"), name)
        return
    if target != key:
        yield from _consent(mesh, key, target, (*path, "service"))
    subset, subsets = backend.get("subset"), mesh.services[target].get("subsets", {})
    if isinstance(subset, str) and isinstance(subsets, dict) and subset not in subsets:
        has = ", ".join(quoted(name) for name in islice(subsets, 5)) or "none"
        message = f"service {target!r} has no subset {quoted(subset)}; it has {has}"
        yield mesh.document.finding((*path, "subset"), message, word=subset, choices=subsets)


def _consent(mesh: _Mesh, key: str, target: str, path: Path) -> Iterator[Finding]:
    allowed = mesh.services[target].get("allow_routes_from", [])
    if target not in mesh.consents:
        mesh.consents[target] = {
            name if isinstance(name, str) and name.startswith(GATEWAY) else mesh.find(name, target)
            for name in _sequence(allowed)
        }
    if isinstance(allowed, list) and key not in mesh.consents[target]:
        at: Path = ("services", target, "allow_routes_from")
        where = mesh.document.where(at)
        message = f"{target!r} does not allow routes of {key!r}; add {key!r} to {path_text(at)} ({where})"
        yield mesh.document.finding(path, message)


def _addresses(
    document: Document, files: Mapping[Path, Document], key: str, service: dict[str, Any], *, loopback_only: bool
) -> Iterator[Finding]:
    seen: dict[tuple[str, int], str] = {}
    for origin, path, written in _entries(document, files, key, service):
        address = _or_none(parse_address, written)
        if address is None:
            continue
        if address in seen:
            message = f"{quoted(written)} is already an endpoint of {key!r} ({seen[address]})"
            yield origin.finding(path, message)
        seen.setdefault(address, origin.where(path))
        if loopback_only and not is_loopback(address[0]):
            message = (
                f"{quoted(written)} is not on this machine: identity.source dev is for 127.0.0.1 only; "
                "use such an address, or mtls: disabled"
            )
            yield origin.finding(path, message)


def _entries(
    document: Document, files: Mapping[Path, Document], key: str, service: dict[str, Any]
) -> Iterator[tuple[Document, Path, Any]]:
    """(document, path of the address, address as written) of every entry of every source."""
    for index, source in enumerate(map(_mapping, _sequence(service.get("endpoints")))):
        base: Path = ("services", key, "endpoints", index)
        origin, start = (files[base], ()) if base in files else (document, (*base, "static"))
        entries = origin.data if base in files else source.get("static")
        for place, entry in enumerate(_sequence(entries)):
            if isinstance(entry, dict):
                yield origin, (*start, place, "address"), entry.get("address")
            else:
                yield origin, (*start, place), entry


def _namespace(key: str) -> str:
    """Of an owner: a gateway's names are those of the namespace default."""
    return "default" if key.startswith(GATEWAY) else canonical_name(key).partition(".")[2]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _or_none(parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except ValueError:
        return None
