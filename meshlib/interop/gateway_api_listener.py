"""Gateways of the Gateway API: their listeners, and which routes may be attached to them.

What a listener does not allow is not attached: a route of another namespace (where nothing is said, only the gateway's
own is allowed), of another kind, or for no host of the listener.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .gateway_api_rule import NAME, is_pattern

if TYPE_CHECKING:
    from .foreign import Field, ForeignDocument

Labels = Mapping[str, str]
SERVED = ("HTTP", "HTTPS")
UNCHECKED = "client certificates are not checked by this release's gateway, and the check must not be left out"
OWN_LABEL = "kubernetes.io/metadata.name"
"""The label that every namespace has: its name."""


def labels_of_namespaces(documents: Iterable[ForeignDocument]) -> dict[str, Labels]:
    """The labels of the namespaces that are among the documents."""
    found: dict[str, Labels] = {}
    for document in documents:
        if document.kind == "Namespace":
            labels = (document.value.get("metadata") or {}).get("labels")
            found[document.own_name] = labels if isinstance(labels, Mapping) else {}
    return found


@dataclass(frozen=True, slots=True)
class ForeignListener:
    """`written`: as mesh.yaml has it. `allowed`: its allowedRoutes."""

    written: dict[str, Any]
    allowed: Field

    def hosts(self, hostnames: list[str]) -> bool:
        """May it have a request for one of these hostnames? None of them: for any host."""
        own = self.written.get("hostname", "")
        return not hostnames or any(_meet(own, hostname) for hostname in hostnames)

    def allows(self, route: ForeignDocument, own: str, labels: Mapping[str, Labels]) -> bool:
        """Does it allow this route? `own`: the namespace of its gateway."""
        kinds = [each["kind"].text() for each in self.allowed["kinds"] if each["group"].text() is not None]
        if kinds and route.kind not in kinds:
            return False
        source = self.allowed["namespaces"]["from"].one_of(("Same", "All", "Selector", "None"), "Same")
        selector = self.allowed["namespaces"]["selector"]
        if source == "Selector":
            known = {**labels.get(route.namespace, {}), OWN_LABEL: route.namespace}
            return bool(selector) and _selects(selector, known)
        return source == "All" or (source == "Same" and route.namespace == own)


def listeners_of_gateway(gateway: ForeignDocument) -> list[ForeignListener]:
    """Those that are served here."""
    made: list[ForeignListener] = []
    frontend = gateway.spec["tls"]["frontend"]
    if frontend:
        frontend.error(UNCHECKED)
    for each in gateway.spec["listeners"]:
        kind = each["protocol"].text("HTTP", r"[A-Za-z0-9./-]{1,255}")
        name = each["name"].text("", rf"{NAME}(\.{NAME})*")
        port = each["port"].whole(1, 65_535)
        if not name or port is None:
            each.error("name and port must be there")
        if any(known.written["name"] == name for known in made):
            each["name"].error(f"{name!r} is there twice")
        if each["tls"]["frontendValidation"]:
            each["tls"]["frontendValidation"].error(UNCHECKED)
        if kind not in SERVED:
            each.note("dropped", f"{kind} is not served by a gateway of this release")
            continue
        written: dict[str, Any] = {"name": name.replace(".", "-"), "port": port}
        if kind == "HTTPS":
            written["protocol"] = "https"
            each["tls"].note("dropped", "what ends TLS in front of the gateway has the certificate")
        hostname = each["hostname"].text()
        if hostname:
            if not is_pattern(hostname):
                each["hostname"].error(f"{hostname!r} is no hostname")
            written["hostname"] = hostname
        made.append(ForeignListener(written, each["allowedRoutes"]))
    return made


def _selects(selector: Field, labels: Labels) -> bool:
    """Does a label selector of Kubernetes hold? One that cannot be read does not."""
    wanted = selector["matchLabels"].value or {}
    selector.of.asked(selector["matchLabels"].path)
    if not isinstance(wanted, Mapping) or any(labels.get(name) != value for name, value in wanted.items()):
        return False
    return all(_holds(each, labels) for each in selector["matchExpressions"])


def _holds(of: Field, labels: Labels) -> bool:
    key, values = of["key"].text(), [each.text() for each in of["values"]]
    operator = of["operator"].one_of(("In", "NotIn", "Exists", "DoesNotExist"), "In")
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[operator]


def _meet(one: str, other: str) -> bool:
    """Is there a host that both hostnames stand for?"""
    if not one or not other or one == other:
        return True
    if one.startswith("*.") and other.startswith("*."):
        return one.endswith(other[1:]) or other.endswith(one[1:])
    if one.startswith("*."):
        return other.endswith(one[1:])
    return other.startswith("*.") and one.endswith(other[1:])
