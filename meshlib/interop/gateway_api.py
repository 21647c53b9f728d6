"""Gateway, HTTPRoute and GRPCRoute of the Gateway API → the mesh of a mesh.yaml.

The standard's precedence becomes order, because routes here are asked in order: the most specific hostname first, then
an exact path, a pattern, the longest prefix, a method, most headers, most query parameters; then the oldest route, its
namespace and name, and the order of its rules (docs/adr/0023-precedence-becomes-order.md). A rule is split where
another comes between its matches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..config.units import format_duration
from .gateway_api_rule import (
    NAME,
    NOT_FORWARDED,
    ForeignMatch,
    attempts_of,
    filters_of,
    is_pattern,
    matches_of,
    session_of,
)

if TYPE_CHECKING:
    from .foreign import Field, ForeignDocument

ROUTES = ("HTTPRoute", "GRPCRoute")
TIMEOUT_MAX_S = 30.0
"""The built-in ceiling of a call's timeout; a longer one of a source raises it."""
RETRIES_MAX = 3
"""The built-in ceiling of retries; a higher number of a source raises it."""


@dataclass(frozen=True)
class _Entry:
    """One match of one rule for one hostname, on these listeners."""

    key: tuple[Any, ...]
    rule: str
    hostname: str
    listeners: tuple[str, ...]
    match: ForeignMatch
    fields: dict[str, Any]


class _Mesh:
    """What is being made."""

    def __init__(self, documents: Sequence[ForeignDocument]) -> None:
        self.gateways = {(d.namespace, d.own_name): d for d in documents if d.kind == "Gateway"}
        names = Counter(name for _, name in self.gateways)
        self.called = {(ns, name): name if names[name] == 1 else f"{name}-{ns}" for ns, name in self.gateways}
        self.services: dict[str, dict[str, Any]] = {}
        self.entries: dict[str, list[_Entry]] = {}
        self.timeout_s, self.retries = TIMEOUT_MAX_S, RETRIES_MAX
        self.granted = _granted(documents)

    def service(self, name: str, owner: str) -> str:
        """A service that is sent to by this owner."""
        service = self.services.setdefault(name, {})
        if owner != name:
            allowed = service.setdefault("allow_routes_from", [])
            if owner not in allowed:
                allowed.append(owner)
        return name


def mesh_of(documents: Sequence[ForeignDocument]) -> dict[str, Any]:
    """As mesh.yaml has it. Problems are in the documents."""
    mesh = _Mesh(documents)
    for document in documents:
        if document.kind in ROUTES:
            _route(mesh, document)
        elif document.kind not in ("Gateway", "Service", "ReferenceGrant", "GatewayClass"):
            document.note("spec", "dropped", f"a {document.kind or 'document without a kind'} is not converted")
    gateways = {}
    for key, document in mesh.gateways.items():
        name = mesh.called[key]
        routes = _ordered(mesh.entries.get(f"gateway/{name}", ()))
        gateways[name] = {"listeners": _listeners(document), **({"routes": routes} if routes else {})}
    for document in documents:
        if document.kind == "Service":
            mesh.services.setdefault(f"{document.own_name}.{document.namespace}", {})
            document.note("spec", "dropped", "who its endpoints are is said by `endpoints` of the service")
    for owner, entries in mesh.entries.items():
        if not owner.startswith("gateway/"):
            mesh.services.setdefault(owner, {})["routes"] = _ordered(entries)
    limits: dict[str, Any] = {}
    if mesh.timeout_s > TIMEOUT_MAX_S:
        limits["max_timeout"] = format_duration(mesh.timeout_s)
    if mesh.retries > RETRIES_MAX:
        limits["max_retries"] = mesh.retries
    return {
        "version": 1,
        "mesh": "converted",
        **({"defaults": {"limits": limits}} if limits else {}),
        "services": dict(sorted(mesh.services.items())),
        **({"gateways": gateways} if gateways else {}),
    }


def _listeners(gateway: ForeignDocument) -> list[dict[str, Any]]:
    made = []
    for each in gateway.spec["listeners"]:
        kind = each["protocol"].one_of(("HTTP", "HTTPS", "TLS", "TCP", "UDP"), "HTTP")
        if kind not in ("HTTP", "HTTPS"):
            each.note("dropped", f"{kind} is not served by a gateway of this release")
            continue
        listener: dict[str, Any] = {"name": each["name"].text("", NAME), "port": each["port"].whole(1, 65_535, 80)}
        if kind == "HTTPS":
            listener["protocol"] = "https"
            each["tls"].note("dropped", "what ends TLS in front of the gateway has the certificate")
        hostname = each["hostname"].text()
        if hostname:
            if not is_pattern(hostname):
                each["hostname"].error(f"{hostname!r} is no hostname")
            listener["hostname"] = hostname
        made.append(listener)
    return made or [{"name": "http", "port": 80}]


def _granted(documents: Iterable[ForeignDocument]) -> set[tuple[str, str]] | None:
    """(namespace of a route, namespace that it may send to) of all grants; None: none is there, and none is needed."""
    grants = [document for document in documents if document.kind == "ReferenceGrant"]
    if not grants:
        return None
    return {
        (source["namespace"].text(), grant.namespace)
        for grant in grants
        for source in grant.spec["from"]
        if source["kind"].text() in ROUTES
    }


def _route(mesh: _Mesh, document: ForeignDocument) -> None:
    spec, grpc = document.spec, document.kind == "GRPCRoute"
    hostnames = []
    for each in spec["hostnames"]:
        hostname = each.text()
        if not is_pattern(hostname):
            each.error(f"{hostname!r} is no hostname")
        hostnames.append(hostname)
    parents = [_attached(mesh, document, parent, hostnames) for parent in spec["parentRefs"]]
    if not parents:
        spec["parentRefs"].note("approximated", "there is none: every gateway of the namespace takes it")
        parents = [
            (f"gateway/{mesh.called[key]}", _listening(gateway, None, None, hostnames))
            for key, gateway in mesh.gateways.items()
        ]
    owners: dict[str, set[str]] = {}
    for attached in parents:
        if attached is not None:
            owners.setdefault(attached[0], set()).update(attached[1])
    rules = list(spec["rules"]) or [spec["default"]]
    for index, rule in enumerate(rules):
        name = f"{document.own_name}-{index}"
        matches = matches_of(rule, grpc)
        for owner, listeners in owners.items():
            fields = _fields(mesh, document, rule, matches, owner)
            gateway = owner.startswith("gateway/")
            if gateway and not listeners:
                spec["parentRefs"].note("dropped", "no listener has its hostnames")
                continue
            for hostname in (hostnames if gateway else ()) or [""]:
                for place, match in enumerate(matches):
                    key = (
                        _hostname_rank(hostname),
                        match.rank,
                        document.created,
                        document.namespace,
                        document.own_name,
                        index,
                        place,
                    )
                    entry = _Entry(key, name, hostname, tuple(sorted(listeners)), match, fields)
                    mesh.entries.setdefault(owner, []).append(entry)
        if not owners:  # it is checked all the same
            _fields(mesh, document, rule, matches, "")


def _attached(
    mesh: _Mesh, document: ForeignDocument, parent: Field, hostnames: list[str]
) -> tuple[str, set[str]] | None:
    """(owner, listeners) of a parent; None: it is none of ours."""
    name, namespace = parent["name"].text(), parent["namespace"].text(document.namespace)
    parent["group"].text()
    section, port = parent["sectionName"].text(), parent["port"].whole(1, 65_535)
    if parent["kind"].text("Gateway") == "Service":
        if port is not None:
            parent["port"].note("approximated", "a service has one set of routes, whatever the port")
        if namespace != document.namespace:
            parent.note("approximated", "for callers of every namespace, not of the route's alone")
        return f"{name}.{namespace}", set()
    gateway = mesh.gateways.get((namespace, name))
    if gateway is None:
        parent.note("dropped", f"there is no Gateway {namespace}/{name}")
        return None
    return f"gateway/{mesh.called[namespace, name]}", _listening(gateway, section, port, hostnames)


def _listening(gateway: ForeignDocument, section: str | None, port: int | None, hostnames: list[str]) -> set[str]:
    """The listeners of a gateway that may have requests for a route."""
    return {
        listener["name"]
        for listener in _listeners(gateway)
        if section in (None, "", listener["name"])
        and port in (None, listener["port"])
        and (not hostnames or any(_meet(listener.get("hostname", ""), hostname) for hostname in hostnames))
    }


def _meet(one: str, other: str) -> bool:
    """Is there a host that both stand for?"""
    if not one or not other or one == other:
        return True
    if one.startswith("*.") and other.startswith("*."):
        return one.endswith(other[1:]) or other.endswith(one[1:])
    if one.startswith("*."):
        return other.endswith(one[1:])
    return other.startswith("*.") and one.endswith(other[1:])


def _hostname_rank(hostname: str) -> tuple[int, int]:
    if not hostname:
        return 2, 0
    return (1 if hostname.startswith("*.") else 0), -len(hostname)


def _fields(
    mesh: _Mesh, document: ForeignDocument, rule: Field, matches: list[ForeignMatch], owner: str
) -> dict[str, Any]:
    """The fields of the routes that a rule becomes, but for name, hostnames, listeners and matches."""
    rule["name"].text()
    filters = filters_of(rule, matches, backend=False)
    mirrors = filters.pop("mirror", [])
    if not owner.startswith("gateway/") and filters.pop("cors", None) is not None:
        rule["filters"].note("dropped", "CORS is of a gateway's routes")
    backends = [_backend(mesh, document, each, matches, owner) for each in rule["backendRefs"]]
    attempts = attempts_of(rule)
    session = session_of(rule)
    if "request_redirect" in filters and backends:
        rule["filters"].error("RequestRedirect must not be used together with backendRefs")
    if filters.pop("unknown", False):
        return {"direct_response": NOT_FORWARDED}
    if "request_redirect" in filters:
        return {name: value for name, value in filters.items() if name not in ("request_headers", "url_rewrite")}
    if not any(backend["weight"] and "direct_response" not in backend for backend in backends):
        return {"direct_response": NOT_FORWARDED, **{k: filters[k] for k in ("cors",) if k in filters}}
    fields = {**filters, **session, "backends": backends}
    copies = [(_target(mesh, document, backend, owner), percent) for backend, percent in mirrors]
    if copies := [(service, percent) for service, percent in copies if service]:
        fields["mirror"] = [{"service": service, "percent": percent} for service, percent in copies]
    return {**fields, **_within_limits(mesh, attempts)}


def _within_limits(mesh: _Mesh, attempts: dict[str, Any]) -> dict[str, Any]:
    """Timeouts and retries as they are; the ceilings of the mesh are raised to them. 0 is as long as is possible."""
    made = dict(attempts)
    at_least, timeout = made.pop("at_least", 0.0), made.pop("timeout", None)
    retries = made.get("retries", {}).get("max_retries", 1)
    mesh.retries = max(mesh.retries, retries)
    if timeout == 0.0 or (timeout is None and at_least):
        timeout = max(TIMEOUT_MAX_S, at_least * (retries + 1))
    if timeout is not None:
        mesh.timeout_s = max(mesh.timeout_s, timeout)
        made["timeout"] = format_duration(timeout)
    return made


def _backend(
    mesh: _Mesh, document: ForeignDocument, of: Field, matches: list[ForeignMatch], owner: str
) -> dict[str, Any]:
    weight = of["weight"].whole(0, 1_000_000, 1)
    filters = filters_of(of, matches, backend=True)
    service = _target(mesh, document, of, owner)
    if "request_redirect" in filters:
        return {"request_redirect": filters["request_redirect"], "weight": weight}
    if service is None or filters.pop("unknown", False):
        return {"direct_response": NOT_FORWARDED, "weight": weight}
    return {"service": service, "weight": weight, **filters}


def _target(mesh: _Mesh, document: ForeignDocument, of: Field, owner: str) -> str | None:
    """The service that a reference means; None: one that cannot be used."""
    kind = of["kind"].text("Service", r"[a-zA-Z]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
    group = of["group"].text("", r"|[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
    name, namespace = of["name"].text("", r"[a-zA-Z0-9]([-a-zA-Z0-9.]{0,251}[a-zA-Z0-9])?"), document.namespace
    namespace = of["namespace"].text(namespace, NAME)
    if of["port"]:
        of["port"].whole(1, 65_535)
        of["port"].note("approximated", "the port is that of the endpoints")
    if kind != "Service" or group:
        of.note("dropped", f"a {kind} is no service: its share is answered with 500")
        return None
    abroad = namespace != document.namespace and mesh.granted is not None
    if abroad and (document.namespace, namespace) not in (mesh.granted or ()):
        of.note("dropped", "no ReferenceGrant allows it: its share is answered with 500")
        return None
    return mesh.service(f"{name.lower()}.{namespace}", owner) if owner else f"{name}.{namespace}"


def _ordered(entries: Iterable[_Entry]) -> list[dict[str, Any]]:
    """Routes in the order of the standard's precedence; neighbours of one rule are one route."""
    groups: list[list[_Entry]] = []
    for entry in sorted(entries, key=lambda each: each.key):
        before = groups[-1][-1] if groups else None
        same = before is not None and replace(before, key=(), match=entry.match) == replace(entry, key=())
        groups[-1].append(entry) if same else groups.append([entry])
    counted: Counter[str] = Counter()
    routes = []
    for group in groups:
        first = group[0]
        counted[first.rule] += 1
        number = counted[first.rule]
        route: dict[str, Any] = {"name": first.rule if number == 1 else f"{first.rule}-{number}"}
        if first.hostname:
            route["hostnames"] = [first.hostname]
        if first.listeners:
            route["listeners"] = list(first.listeners)
        matches = [entry.match.written for entry in group]
        if all(matches):
            route["matches"] = matches
        routes.append({**route, **first.fields})
    return routes
