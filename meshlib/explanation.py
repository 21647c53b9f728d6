"""What would happen to a call: the routing and the policy of production, asked without making it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from .call import Call, HeaderEdit, Reply
from .compilation import routes_of
from .config import MeshConfig, config_of
from .config.effective import Effective, effective
from .config.model import GATEWAY
from .errors import UnknownService
from .policy.listener import Listener, listener_of
from .policy.predicate import Predicates
from .policy.request import Request, bare_host
from .policy.retry import IDEMPOTENT_METHODS
from .policy.route import Backend, Route
from .policy.route_table import Found, RouteTable
from .runtime.blocking import drive
from .translation import answer, header_modifier, listeners_of, url_rewrite

if TYPE_CHECKING:
    from .config.routes import Backend as WrittenBackend
    from .config.routes import Route as WrittenRoute

ANY_HOST = "localhost"
"""The host of a request at a gateway that names none."""

HeaderValues = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer of `explain`. `status`: None when the call is forwarded, else that of the mesh's own answer: 404 when
    no route takes it, a redirect's, a direct response's.

    `request`: method, path, host and headers as the backend gets them; what only one of several backends changes is
    not in it. `redirect`: location, scheme, hostname, port, path, status_code of a redirect. `mirrors`: where copies
    go. `response_headers`: what is done to the answer's.
    """

    service: str
    status: int | None
    route: str | None
    where: str
    backends: tuple[Backend, ...]
    request: Mapping[str, Any]
    idempotent: bool
    policy: Effective
    redirect: Mapping[str, Any] | None = None
    mirrors: tuple[Mapping[str, Any], ...] = ()
    response_headers: HeaderEdit = field(default_factory=HeaderEdit)

    def to_dict(self) -> dict[str, Any]:
        """As plain data: see DESIGN of `meshlib.explain`. Times in seconds."""
        weights = sum(backend.weight for backend in self.backends)
        retries = self.policy.retries
        return {
            "service": self.service,
            "status": self.status,
            "matched": None if self.route is None else {"route": self.route, "rule": self.route, "where": self.where},
            "backends": [
                {
                    "service": backend.service or None,
                    "subset": backend.subset or None,
                    "weight": backend.weight,
                    "share": backend.weight / weights,
                    **({"answer": backend.answer} if backend.answer else {}),
                }
                for backend in self.backends
            ],
            "request": dict(self.request),
            "redirect": None if self.redirect is None else dict(self.redirect),
            "mirrors": [dict(mirror) for mirror in self.mirrors],
            "response_headers": {
                "set": dict(self.response_headers.set),
                "add": dict(self.response_headers.add),
                "remove": sorted(self.response_headers.remove),
            },
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
        if self.redirect is not None:
            lines.append(f"  redirect   {self.status} to {self.redirect['location']}")
        for backend in self.to_dict()["backends"]:
            subset = f", subset {backend['subset']}" if backend["subset"] else ""
            name = backend["service"] or f"the mesh itself ({backend['answer']})"
            lines.append(f"  backend    {name}{subset}: {backend['share']:.2%}")
        lines += [f"  mirror     {m['service']}: {m['percent']:.2%}" for m in self.mirrors]
        again = "may be sent twice" if self.idempotent else "is sent once unless provably unprocessed"
        retries = self.to_dict()["retries"]
        lines.append(f"  timeout    {self.policy.timeout_s:g} s")
        lines.append(f"  retries    {retries['max_retries']} on {', '.join(retries['retry_on'])}; it {again}")
        lines += [f"  {field:34} {level}" for field, level in self.policy.provenance.items()]
        return "\n".join(lines)


def explain(
    config: str | os.PathLike[str] | Mapping[str, Any] | MeshConfig,
    service: str | None = None,
    *,
    method: str = "GET",
    path: str = "/",
    headers: HeaderValues | None = None,
    host: str | None = None,
    source: str | None = None,
    gateway: str | None = None,
    port: int | None = None,
) -> Explanation:
    """What would happen to this call to `service`, or, without one, to this request at a gateway.

    Header values: text, or a list of texts. `path` may have a query. `source`: the caller's name; its namespace is
    where a bare `service` is looked for first, and `from` of a route is about it; without it a bare name that one
    namespace alone has means that one. `gateway`: its name; without it the first, in the order of the file, that takes
    the request. `port`: the listener's; else that of `host` where a listener has it, else any. A predicate is not run:
    it takes nothing. Raises ConfigError, and UnknownService where the policy has no such service or gateway.
    """
    mesh = config_of(config)
    asked = _Asked(method.upper(), path, headers or {}, source or "anonymous", port)
    if service is not None:
        return _answer(mesh, _service(mesh, service, source), asked, host or service)
    answers = [_answer(mesh, owner, asked, host or ANY_HOST) for owner in _gateways(mesh, gateway)]
    return next((answer for answer in answers if answer.route is not None), answers[0])


class _Asked(NamedTuple):
    method: str
    path: str
    headers: HeaderValues
    caller: str
    port: int | None


def _answer(mesh: MeshConfig, owner: str, asked: _Asked, host: str) -> Explanation:
    call = Call(owner, asked.method, asked.path.encode("latin-1"), _lines({**asked.headers, "host": host}))
    listener: Listener | None = None
    if owner.startswith(GATEWAY):
        listeners = listeners_of(mesh.gateways[owner.removeprefix(GATEWAY)])
        listener = listener_of(listeners, bare_host(host), asked.port or _port_in(host, listeners))
        call.listener = listener
        if listener is None:
            return _explained(mesh, owner, call, None, None)
    routes, caller = routes_of(mesh, owner), asked.caller
    request = Request(
        call.method,
        asked.path,
        call.header,
        Predicates(lambda _sentence: None),
        service=owner,
        listener=listener.name if listener else "",
    )
    table = RouteTable(routes, caller if "." in caller else mesh.canonical(caller) or f"{caller}.default")
    found = table.find(request)
    return _explained(mesh, owner, call, found, None if found is None else routes[found.route])


def _port_in(host: str, listeners: Sequence[Listener]) -> int | None:
    """The port of a Host where a listener has it: then it says which of them was asked."""
    digits = host.rpartition(":")[2]
    return next((listener.port for listener in listeners if str(listener.port) == digits), None)


def _explained(mesh: MeshConfig, owner: str, call: Call, found: Found | None, route: Route | None) -> Explanation:
    holder = mesh.owner(owner)
    index = found.route if found is not None and holder is not None and holder.routes else None
    policy = effective(mesh, owner, index)
    declared = policy.idempotent
    status: int | None = None if route is not None else 404
    redirect: dict[str, Any] | None = None
    mirrors: tuple[dict[str, Any], ...] = ()
    edit = HeaderEdit()
    if found is not None and route is not None and index is not None and holder is not None:
        written = holder.routes[index]
        call.matched_prefix = found.prefix
        edit = _forwarded(call, written)
        reply = _answered(call, written)
        if reply is not None:
            status, redirect = reply.status, _redirect(reply)
        mirrors = tuple(
            {
                "service": mirror.service or owner,
                "subset": mirror.subset,
                "percent": mirror.percent,
                "diff": mirror.diff,
            }
            for mirror in written.mirror or ()
        )
    sent: dict[str, list[str]] = {}
    for line in call.lines.decode("latin-1").splitlines():
        name, _, value = line.partition(": ")
        sent.setdefault(name.lower(), []).append(value)
    sent_to = sent.pop("host", [""])[0]
    return Explanation(
        owner,
        status,
        None if route is None else route.name,
        "" if index is None else mesh.place((*mesh.path_of(owner), "routes", index)),
        () if route is None else route.backends,
        {
            "method": call.method,
            "path": call.target.decode("latin-1"),
            "host": sent_to,
            "headers": {name: ",".join(values) for name, values in sent.items()},
        },
        call.method in IDEMPOTENT_METHODS if declared is None else declared,
        policy,
        redirect,
        mirrors,
        edit,
    )


def _forwarded(call: Call, route: WrittenRoute) -> HeaderEdit:
    """Change the call as its route does; what the route does to the answer's headers."""
    edits = [header_modifier(route.request_headers, route.response_headers)]
    if len(route.backends) == 1:
        only = route.backends[0]
        edits.append(header_modifier(only.request_headers, only.response_headers))
    rewrite = url_rewrite(route.url_rewrite)
    if rewrite is not None:
        rewrite.rewrite(call)
    answers = HeaderEdit()
    for modifier in edits:
        if modifier is not None and modifier.request is not None:
            call.edit_headers(modifier.request)
        if modifier is not None and modifier.response is not None:
            answers = HeaderEdit(
                (*answers.set, *modifier.response.set),
                (*answers.add, *modifier.response.add),
                answers.remove | modifier.response.remove,
            )
    return answers


def _answered(call: Call, route: WrittenRoute) -> Reply | None:
    """The answer of the mesh itself, where it is the only one there is."""
    only: WrittenRoute | WrittenBackend = route
    if len(route.backends) == 1 and answer(route) is None:
        only = route.backends[0]
    service = answer(only)
    return None if service is None else drive(service(call))


def _redirect(reply: Reply) -> dict[str, Any] | None:
    location = reply.header(b"location")
    if location is None:
        return None
    text = location.decode("latin-1")
    parts = urlsplit(text)
    return {
        "location": text,
        "scheme": parts.scheme,
        "hostname": parts.hostname or "",
        "port": parts.port,
        "path": parts.path,
        "status_code": reply.status,
    }


def _service(mesh: MeshConfig, service: str, source: str | None) -> str:
    canonical = mesh.canonical(service, (source or "").partition(".")[2] or "default")
    if canonical is not None:
        return canonical
    alike = [name for name in mesh.names() if name.partition(".")[0] == service] if source is None else []
    if len(alike) == 1:
        return alike[0]
    close = difflib.get_close_matches(service, [n.removesuffix(".default") for n in mesh.names()], 3, 0.6)
    raise UnknownService(service, suggestions=close)


def _gateways(mesh: MeshConfig, name: str | None) -> list[str]:
    if name is None and mesh.gateways:
        return [GATEWAY + each for each in mesh.gateways]
    if name is None or name not in mesh.gateways:
        has = f"it has {', '.join(sorted(mesh.gateways))}" if mesh.gateways else "it has no gateways"
        raise UnknownService(GATEWAY + (name or "…"), f"is not in the policy of this mesh: {has}")
    return [GATEWAY + name]


def _lines(headers: HeaderValues) -> bytes:
    fields = ((name, [given] if isinstance(given, str) else given) for name, given in headers.items())
    return "".join(f"{name}: {value}\r\n" for name, values in fields for value in values).encode("latin-1")
