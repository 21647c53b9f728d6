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
from itertools import count
from typing import TYPE_CHECKING, Any

from ..config.builtin import BUILT_IN
from ..config.units import format_duration, parse_duration
from .gateway_api_listener import labels_of_namespaces, listeners_of_gateway
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

CEILING_RETRIES: int = BUILT_IN["limits.max_retries"].written
GROUP = "gateway.networking.k8s.io"
ROUTES = ("HTTPRoute", "GRPCRoute")
PROTECTING = ("Policy", "Authentication")
"""How the kinds end that protect something, such as AuthorizationPolicy."""
RULES_MAX = 16
"""Rules of a route; more are refused, as the standard does."""
MATCHES_MAX = 128
"""Matches of all rules of a route; more are refused, as the standard does."""
CEILING_S = parse_duration(BUILT_IN["limits.max_timeout"].written)
"""The built-in ceiling of a call's timeout; a longer one of a source raises it."""


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
        self.listeners = {key: listeners_of_gateway(gateway) for key, gateway in self.gateways.items()}
        self.labels = labels_of_namespaces(documents)
        self.granted = _granted(documents)
        self.services: dict[str, dict[str, Any]] = {}
        self.entries: dict[str, list[_Entry]] = {}
        self.timeout_s, self.retries = CEILING_S, CEILING_RETRIES

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
        elif document.kind == "Service":
            mesh.services.setdefault(f"{document.own_name}.{document.namespace}", {})
            document.note("spec", "dropped", "who its endpoints are is said by `endpoints` of the service")
        elif document.kind.endswith(PROTECTING):
            document.error("kind", "is not enforced by this release, and must not be left out")
        elif document.kind not in ("Gateway", "ReferenceGrant"):
            document.note("spec", "dropped", f"a {document.kind or 'document without a kind'} is not converted")
    gateways = {}
    for key, listeners in mesh.listeners.items():
        name = mesh.called[key]
        routes = _ordered(mesh.entries.get(f"gateway/{name}", ()))
        if listeners:
            written = [listener.written for listener in listeners]
            gateways[name] = {"listeners": written, **({"routes": routes} if routes else {})}
    for owner, entries in mesh.entries.items():
        if not owner.startswith("gateway/"):
            mesh.services.setdefault(owner, {})["routes"] = _ordered(entries)
    limits: dict[str, Any] = {}
    if mesh.timeout_s > CEILING_S:
        limits["max_timeout"] = format_duration(mesh.timeout_s)
    if mesh.retries > CEILING_RETRIES:
        limits["max_retries"] = mesh.retries
    return {
        "version": 1,
        "mesh": "converted",
        **({"defaults": {"limits": limits}} if limits else {}),
        "services": dict(sorted(mesh.services.items())),
        **({"gateways": gateways} if gateways else {}),
    }


def _granted(documents: Iterable[ForeignDocument]) -> set[tuple[str, str, str, str]]:
    """(kind and namespace of a route, namespace and name of a service that it may send to); '' is every name."""
    return {
        (source["kind"].text(), source["namespace"].text(), grant.namespace, target["name"].text())
        for grant in documents
        if grant.kind == "ReferenceGrant"
        for source in grant.spec["from"]
        if source["group"].text() == GROUP
        for target in grant.spec["to"]
        if target["kind"].text() == "Service" and not target["group"].text()
    }


def _route(mesh: _Mesh, document: ForeignDocument) -> None:
    spec, grpc = document.spec, document.kind == "GRPCRoute"
    hostnames = []
    for each in spec["hostnames"]:
        hostname = each.text()
        if not is_pattern(hostname):
            each.error(f"{hostname!r} is no hostname")
        hostnames.append(hostname)
    owners = _owners(mesh, document, hostnames)
    rules = list(spec["rules"]) or [spec["default"]]
    matched = [matches_of(rule, grpc) for rule in rules]
    _check_bounds(spec, rules, sum(map(len, matched)))
    for index, (rule, matches) in enumerate(zip(rules, matched, strict=True)):
        if not owners:  # it is checked all the same
            _fields(mesh, document, rule, matches, "")
        for owner, listeners in owners.items():
            fields = _fields(mesh, document, rule, matches, owner)
            for hostname in (hostnames if listeners else ()) or [""]:
                for place, match in enumerate(matches):
                    age = document.created, document.namespace, document.own_name, index, place
                    key = (_hostname_rank(hostname), match.rank, *age)
                    name = f"{document.own_name}-{index}"
                    entry = _Entry(key, name, hostname, tuple(sorted(listeners)), match, fields)
                    mesh.entries.setdefault(owner, []).append(entry)


def _check_bounds(spec: Field, rules: list[Field], matches: int) -> None:
    """Those of the standard."""
    names = [rule["name"].text() for rule in rules]
    if len(rules) > RULES_MAX:
        spec["rules"].error(f"has {len(rules)} rules; at most {RULES_MAX} are possible")
    if matches > MATCHES_MAX:
        spec["rules"].error(f"have {matches} matches together; at most {MATCHES_MAX} are possible")
    for name, times in Counter(names).items():
        if name and times > 1:
            spec["rules"].error(f"two are named {name!r}")


def _owners(mesh: _Mesh, document: ForeignDocument, hostnames: list[str]) -> dict[str, set[str]]:
    """Whose routes its rules become, on which listeners (a service has none). Without a parent it is nobody's."""
    owners: dict[str, set[str]] = {}
    seen = set()
    for parent in document.spec["parentRefs"]:
        name, namespace = parent["name"].text(), parent["namespace"].text(document.namespace)
        kind, _group = parent["kind"].text("Gateway"), parent["group"].text()
        section, port = parent["sectionName"].text(), parent["port"].whole(1, 65_535)
        if (kind, namespace, name, section, port) in seen:
            parent.error("is there twice")
        seen.add((kind, namespace, name, section, port))
        if kind == "Service":
            if port is not None:
                parent["port"].note("approximated", "a service has one set of routes, whatever the port")
            if namespace != document.namespace:
                parent.note("approximated", "for callers of every namespace, not of the route's alone")
            owners.setdefault(f"{name}.{namespace}", set())
            continue
        listeners = [
            listener.written["name"]
            for listener in mesh.listeners.get((namespace, name), ())
            if section in ("", listener.written["name"])
            and port in (None, listener.written["port"])
            and listener.hosts(hostnames)
            and listener.allows(document, namespace, mesh.labels)
        ]
        if listeners:
            owners.setdefault(f"gateway/{mesh.called[namespace, name]}", set()).update(listeners)
        else:
            parent.note("dropped", f"no listener of a Gateway {namespace}/{name} takes it")
    if not seen:
        document.spec["parentRefs"].note("dropped", "a route without a parent is attached to nothing")
    return owners


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
    for backend in backends:
        rewrite = backend.pop("url_rewrite", None)
        if rewrite and (len(backends) > 1 or "url_rewrite" in filters):
            rule["backendRefs"].error("a URLRewrite of one of several backends cannot be kept, and is no small thing")
        elif rewrite:
            filters["url_rewrite"] = rewrite
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
        timeout = max(CEILING_S, at_least * (retries + 1))
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
    """The service that a reference means; None: one that cannot be used. In another namespace it needs a grant, unless
    it is the parent itself.
    """
    kind = of["kind"].text("Service", r"[a-zA-Z]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
    group = of["group"].text("", r"|[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
    name, namespace = of["name"].text("", r"[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?"), document.namespace
    namespace = of["namespace"].text(namespace, NAME)
    if of["port"]:
        of["port"].whole(1, 65_535)
        of["port"].note("approximated", "the port is that of the endpoints")
    if kind != "Service" or group:
        of.note("dropped", f"a {kind} is no service: its share is answered with 500")
        return None
    service = f"{name.lower()}.{namespace}"
    asked = document.kind, document.namespace, namespace
    granted = {(*asked, ""), (*asked, name)} & mesh.granted
    if namespace != document.namespace and service != owner and not granted:
        of.note("dropped", "no ReferenceGrant allows it: its share is answered with 500")
        return None
    return mesh.service(service, owner) if owner else service


def _ordered(entries: Iterable[_Entry]) -> list[dict[str, Any]]:
    """Routes in the order of the standard's precedence; neighbours of one rule are one route."""
    groups: list[list[_Entry]] = []
    for entry in sorted(entries, key=lambda each: each.key):
        before = groups[-1][-1] if groups else None
        same = before is not None and replace(before, key=(), match=entry.match) == replace(entry, key=())
        groups[-1].append(entry) if same else groups.append([entry])
    names: set[str] = set()
    routes = []
    for group in groups:
        first = group[0]
        name = next(each for n in count(1) if (each := f"{first.rule}-{n}" if n > 1 else first.rule) not in names)
        names.add(name)
        route: dict[str, Any] = {"name": name}
        if first.hostname:
            route["hostnames"] = [first.hostname]
        if first.listeners:
            route["listeners"] = list(first.listeners)
        matches = [entry.match.written for entry in group]
        if all(matches):
            route["matches"] = matches
        routes.append({**route, **first.fields})
    return routes
