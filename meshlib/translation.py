"""From what a route says in mesh.yaml to the kernels and filters that do it. Nothing here decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .call import HeaderEdit
from .config.fields import canonical_name
from .grpc_code import HTTP_STATUS, code_of_status
from .pattern import compiled
from .policy.cors import Cors
from .policy.direct_response import DirectResponse
from .policy.fault import FaultPolicy
from .policy.hash_key import HashKey, HashKind
from .policy.header_modifier import HeaderModifier
from .policy.listener import Listener
from .policy.match import Condition, ConditionKind, Match
from .policy.redirect import Redirect
from .policy.session_persistence import SessionPersistence
from .policy.url_rewrite import PathModifier, UrlRewrite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .config import MeshConfig
    from .config import route_actions as written
    from .config.gateways import Gateway
    from .config.matches import Condition as WrittenCondition
    from .config.matches import Match as WrittenMatch
    from .config.routes import Backend as WrittenBackend
    from .config.routes import Route as WrittenRoute


def listeners_of(gateway: Gateway) -> tuple[Listener, ...]:
    """The listeners of a gateway."""
    return tuple(Listener(each.name, each.protocol, each.port, each.hostname or "") for each in gateway.listeners)


def header_modifier(
    request: written.HeaderModifier | None, response: written.HeaderModifier | None
) -> HeaderModifier | None:
    """The filter of what is written for both ways; None where nothing is."""
    if request is None and response is None:
        return None
    return HeaderModifier(_edit(request), _edit(response))


def url_rewrite(of: written.UrlRewrite | None) -> UrlRewrite | None:
    """The filter of what is written."""
    return None if of is None else UrlRewrite(of.hostname, _path_modifier(of.path))


def answer(of: WrittenRoute | WrittenBackend) -> Redirect | DirectResponse | None:
    """The service that answers in the place of an endpoint, where one is written."""
    if of.request_redirect is not None:
        to = of.request_redirect
        return Redirect(to.scheme, to.hostname, _path_modifier(to.path), to.port, to.status_code)
    if of.direct_response is not None:
        return DirectResponse(of.direct_response.status, of.direct_response.body)
    return None


def match(config: MeshConfig, owner: str, of: WrittenMatch) -> Match:
    """What `of` says, for routes of `owner`: names of callers become canonical."""
    path, grpc, namespace = of.path, of.grpc, owner.partition(".")[2] or "default"
    exact, prefix, suffix = (path.exact, path.prefix, None) if path else (None, None, None)
    if grpc is not None:
        if grpc.service is None:
            suffix = f"/{grpc.method}"
        elif grpc.method is None:
            prefix = f"/{grpc.service}"
        else:
            exact = f"/{grpc.service}/{grpc.method}"
    return Match(
        exact=exact,
        prefix=prefix,
        suffix=suffix,
        pattern=compiled(path.regular_expression) if path and path.regular_expression is not None else None,
        methods=None if of.method is None else frozenset(of.method),
        headers=_conditions(of.headers),
        query=_conditions(of.query_params),
        callers=None
        if of.from_ is None
        else frozenset(config.canonical(name, namespace) or canonical_name(name) for name in of.from_),
        predicate=of.predicate or "",
    )


def _conditions(of: Mapping[str, WrittenCondition]) -> tuple[Condition, ...]:
    return tuple(_condition(name, condition) for name, condition in of.items())


def _condition(name: str, of: WrittenCondition) -> Condition:
    if of.present is not None:
        return Condition(name, "present" if of.present else "absent")
    if of.regular_expression is not None:
        return Condition(name, "pattern", pattern=compiled(of.regular_expression))
    kinds: tuple[ConditionKind, ...] = ("exact", "prefix", "suffix", "contains")
    for kind in kinds:
        value = getattr(of, kind)
        if value is not None:
            return Condition(name, kind, value)
    raise AssertionError("a condition has exactly one field")


def hash_key(of: written.HashKey | None, caller: str) -> HashKey | None:
    """What is hashed; `caller`: our own name, for what has no other source."""
    if of is None:
        return None
    kinds: tuple[HashKind, ...] = ("header", "cookie", "query_param")
    for kind in kinds:
        name = getattr(of, kind)
        if name is not None:
            return HashKey(kind, name)
    return HashKey("source", own=caller) if of.source else None


def session_persistence(of: written.SessionPersistence | None) -> SessionPersistence | None:
    """The filter of what is written."""
    if of is None:
        return None
    if of.cookie is not None:
        return SessionPersistence(cookie=of.cookie.name, ttl_s=of.cookie.ttl, path=of.cookie.path)
    return SessionPersistence(header=of.header.name if of.header is not None else "")


def fault_policy(of: written.Fault | None) -> FaultPolicy | None:
    """Delays and failures, as shares; a status says the gRPC code and the other way round."""
    if of is None:
        return None
    delay, abort = of.delay, of.abort
    code, status = (abort.grpc_status, abort.http_status) if abort is not None else (None, None)
    if status is None:
        status = 0 if code is None else HTTP_STATUS[code]
    return FaultPolicy(
        delay_s=0.0 if delay is None else delay.fixed_delay,
        delay_share=0.0 if delay is None else delay.percent,
        status=status,
        code=int(code_of_status(status)) if code is None else code,
        abort_share=0.0 if abort is None else abort.percent,
    )


def cors(of: written.Cors) -> Cors:
    """The filter of what is written."""
    return Cors(
        allow_origins=of.allow_origins,
        allow_methods=of.allow_methods,
        allow_headers=of.allow_headers,
        expose_headers=of.expose_headers,
        allow_credentials=of.allow_credentials,
        max_age_s=int(of.max_age),
    )


def _edit(of: written.HeaderModifier | None) -> HeaderEdit | None:
    if of is None:
        return None
    return HeaderEdit(tuple(of.set.items()), tuple(of.add.items()), frozenset(of.remove))


def _path_modifier(of: written.PathModifier | None) -> PathModifier | None:
    return None if of is None else PathModifier(of.replace_full_path, of.replace_prefix_match)
