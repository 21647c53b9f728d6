"""What would happen to a call: the routing and the policy of production, asked without making it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .config import MeshConfig, config_of
from .config.effective import Effective, effective
from .destination import routes_of
from .errors import UnknownService
from .policy.retry import IDEMPOTENT_METHODS
from .policy.route import Backend, first_match

HeaderValues = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of `explain`. `status`: None when the call is forwarded, 404 when no route takes it."""

    service: str
    status: int | None
    route: str | None
    where: str
    backends: tuple[Backend, ...]
    request: Mapping[str, Any]
    idempotent: bool
    policy: Effective

    def to_dict(self) -> dict[str, Any]:
        """As plain data: see DESIGN of `meshlib.explain`. Times in seconds."""
        weights = sum(backend.weight for backend in self.backends)
        retries = self.policy.retries
        return {
            "service": self.service,
            "status": self.status,
            "matched": None if self.route is None else {"route": self.route, "rule": self.route, "where": self.where},
            "backends": [
                {"service": b.service, "subset": b.subset or None, "weight": b.weight, "share": b.weight / weights}
                for b in self.backends
            ],
            "request": dict(self.request),
            "redirect": None,
            "mirrors": [],
            "authorization": {"allowed": True, "rule": None, "reason": "authorization is not enforced by this release"},
            "timeout_s": self.policy.timeout_s,
            "retries": {
                "max_retries": min(retries.max_retries, self.policy.limits.max_retries),
                "retry_on": sorted(map(str, retries.retry_on)),
                "per_try_timeout_s": retries.per_try_timeout_s,
                "idempotent": self.idempotent,
            },
            "load_balancer": self.policy.load_balancer,
            "mtls": self.policy.mtls,
            "provenance": dict(self.policy.provenance),
        }

    def __str__(self) -> str:
        lines = [f"{self.request['method']} {self.request['path']} to {self.service}"]
        if self.route is None:
            lines.append("  no route takes it: 404")
            return "\n".join(lines)
        lines.append(f"  route      {self.route}" + (f" ({self.where})" if self.where else ""))
        for backend in self.to_dict()["backends"]:
            subset = f", subset {backend['subset']}" if backend["subset"] else ""
            lines.append(f"  backend    {backend['service']}{subset}: {backend['share']:.2%}")
        again = "may be sent twice" if self.idempotent else "is sent once unless provably unprocessed"
        retries = self.to_dict()["retries"]
        lines.append(f"  timeout    {self.policy.timeout_s:g} s")
        lines.append(f"  retries    {retries['max_retries']} on {', '.join(retries['retry_on'])}; it {again}")
        lines += [f"  {field:34} {level}" for field, level in self.policy.provenance.items()]
        return "\n".join(lines)


def explain(
    config: str | os.PathLike[str] | Mapping[str, Any] | MeshConfig,
    service: str,
    *,
    method: str = "GET",
    path: str = "/",
    headers: HeaderValues | None = None,
    host: str | None = None,
    source: str | None = None,
) -> Explanation:
    """What would happen to this call to `service`. Header values: text, or a list of texts.

    `path` may have a query. `source`: the caller's name; its namespace is where a bare `service` is looked for first.
    Raises ConfigError, and UnknownService where the policy has no such service.
    """
    mesh = config_of(config)
    namespace = source.partition(".")[2] if source and "." in source else "default"
    canonical = mesh.canonical(service, namespace)
    if canonical is None:
        close = difflib.get_close_matches(service, [n.removesuffix(".default") for n in mesh.names()], 3, 0.6)
        raise UnknownService(service, suggestions=close)
    sent = _values(headers or {})
    verb = method.upper()
    routes = routes_of(mesh, canonical)
    index = first_match(routes, verb, path.partition("?")[0], lambda name: sent.get(name.lower(), ()))
    written = bool(mesh.services[canonical].routes)
    policy = effective(mesh, canonical, index if written else None)
    route = None if index is None else routes[index]
    declared = policy.idempotent
    return Explanation(
        canonical,
        404 if route is None else None,
        None if route is None else route.name,
        mesh.place(("services", mesh.written(canonical), "routes", index)) if written and index is not None else "",
        () if route is None else route.backends,
        {
            "method": verb,
            "path": path,
            "host": host or service,
            "headers": {name: ",".join(values) for name, values in sent.items()},
        },
        verb in IDEMPOTENT_METHODS if declared is None else declared,
        policy,
    )


def _values(headers: HeaderValues) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, given in headers.items():
        values.setdefault(name.lower(), []).extend([given] if isinstance(given, str) else given)
    return values
