"""Routes: what a call must look like, and where it goes then. The first that matches wins."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from .fields import Duration, Flag, HostnamePattern, Name, NotEmpty, Section, ServiceName, setting, whole
from .matches import Match
from .route_actions import (
    Cors,
    DirectResponse,
    Fault,
    HashKey,
    HeaderModifier,
    Mirrors,
    RequestRedirect,
    SessionPersistence,
    UrlRewrite,
)
from .settings import Retries


class Backend(Section):
    """Where a share of the calls goes: to a service, or to an answer."""

    service: ServiceName | None = Field(
        default=None,
        description="Another service, which must list this one in allow_routes_from. Built-in: this service.",
    )
    subset: Name | None = Field(default=None, description="A subset of that service. Built-in: all its endpoints.")
    weight: Annotated[int, whole(0, 1_000_000)] = Field(default=1, description="Relative share, from 0 (Gateway API).")
    request_headers: HeaderModifier | None = Field(default=None, description="Changes to what this backend gets.")
    response_headers: HeaderModifier | None = Field(default=None, description="Changes to what it answers.")
    request_redirect: RequestRedirect | None = Field(default=None, description="An answer in the place of a service.")
    direct_response: DirectResponse | None = Field(default=None, description="An answer in the place of a service.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        answers = [name for name in ("request_redirect", "direct_response") if getattr(self, name) is not None]
        sends = [
            n for n in ("service", "subset", "request_headers", "response_headers") if getattr(self, n) is not None
        ]
        if len(answers) > 1 or (answers and sends):
            raise ValueError(f"has {', '.join(sends + answers)}; a backend is either a service or one answer")
        return self


class Route(Section):
    """No `matches`: every call. No `backends`: this service."""

    name: Name = Field(description="Unique among its routes; it appears in trails, metrics and explain.")
    hostnames: tuple[HostnamePattern, ...] = Field(
        default=(), max_length=64, description="Any of them is the Host; *.example.com is any below. Built-in: any."
    )
    matches: tuple[Match, ...] = Field(default=(), description="Any of them must match. Built-in: everything does.")
    backends: Annotated[tuple[Backend, ...], NotEmpty] = Field(
        default=(Backend(),),
        description="Where the calls go, by weight. Built-in: this service.",
        json_schema_extra={"minItems": 1},
    )
    request_redirect: RequestRedirect | None = Field(default=None, description="Answer so, instead of backends.")
    direct_response: DirectResponse | None = Field(default=None, description="Answer so, instead of backends.")
    timeout: Duration | None = setting("timeout", "Duration of a whole call, all attempts included.")
    stream_idle_timeout: Duration | None = setting(
        "stream_idle_timeout", "Duration between two pieces of a streamed reply."
    )
    idempotent: Flag | None = setting("idempotent", "May such a call be processed twice without harm?")
    retries: Retries = Field(default=Retries(), description="When and how often a call is tried again.")
    url_rewrite: UrlRewrite | None = Field(default=None, description="Another path or host for the backend.")
    request_headers: HeaderModifier | None = Field(default=None, description="Changes to the request.")
    response_headers: HeaderModifier | None = Field(default=None, description="Changes to the answer.")
    mirror: Mirrors | None = Field(default=None, description="Copies to other backends: one, or a list.")
    fault: Fault | None = Field(default=None, description="Delays and failures on purpose.")
    hash_key: HashKey | None = Field(
        default=None, description="Calls with the same key go to the same backend. Built-in: each is drawn."
    )
    session_persistence: SessionPersistence | None = Field(default=None, description="Calls of one session stay.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        answers = [name for name in ("request_redirect", "direct_response") if getattr(self, name) is not None]
        forwards = ("backends", "url_rewrite", "request_headers", "mirror", "fault", "hash_key", "session_persistence")
        sends = [name for name in forwards if name in self.model_fields_set]
        if len(answers) > 1 or (answers and sends):
            raise ValueError(f"has {', '.join(sends + answers)}; a route either sends calls on or has one answer")
        if self._replaces_prefix() and not (
            self.matches and all(match.path is not None and match.path.prefix is not None for match in self.matches)
        ):
            raise ValueError("has replace_prefix_match, so each of its matches needs a path with a prefix")
        return self

    def _replaces_prefix(self) -> bool:
        rules = [self.url_rewrite, self.request_redirect, *(b.request_redirect for b in self.backends)]
        modifiers = [rule.path for rule in rules if rule is not None and rule.path is not None]
        return any(modifier.replace_prefix_match is not None for modifier in modifiers)


class GatewayRoute(Route):
    """A route of a gateway; its backends name services, which must list gateway/<name> in allow_routes_from."""

    listeners: tuple[Name, ...] = Field(default=(), description="Through which it may be reached. Built-in: all.")
    cors: Cors | None = Field(default=None, description="Which other origins may read the answers.")
