"""Routes of a service: what a call must look like, and where it goes then. The first that matches wins."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from .fields import (
    Duration,
    Flag,
    HeaderName,
    HttpPath,
    Method,
    Name,
    NotEmpty,
    OneOf,
    Section,
    ServiceName,
    Text,
    setting,
    whole,
)
from .settings import Retries
from .units import quoted


class PathMatch(OneOf):
    """Exactly one of the fields. Matched against the path without its query."""

    exact: HttpPath | None = Field(default=None, description="The whole path.")
    prefix: HttpPath | None = Field(
        default=None, description="Its first segments: /items matches /items/7, not /itemsets."
    )


class HeaderCondition(OneOf):
    """Exactly one of the fields."""

    exact: Text | None = Field(default=None, description="The whole value; a plain text means this.")
    prefix: Text | None = Field(default=None, description="How the value begins.")
    suffix: Text | None = Field(default=None, description="How the value ends.")
    contains: Text | None = Field(default=None, description="What the value contains.")
    present: Flag | None = Field(default=None, description="true: the header is there. false: it is not.")


def _condition(value: Any) -> Any:
    return {"exact": value} if isinstance(value, str) else value


def _distinct(value: Any) -> Any:
    names = Counter(name.lower() for name in value) if isinstance(value, dict) else Counter[str]()
    for name, count in names.most_common(1):
        if count > 1:
            raise ValueError(f"names {quoted(name)} twice; header names are the same in any case of letters")
    return value


def _methods(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


HeaderMatch = Annotated[HeaderCondition, BeforeValidator(_condition, json_schema_input_type=str | HeaderCondition)]
Headers = Annotated[dict[HeaderName, HeaderMatch], BeforeValidator(_distinct)]
_MethodList = Annotated[tuple[Method, ...], NotEmpty, Field(json_schema_extra={"minItems": 1})]
Methods = Annotated[_MethodList, BeforeValidator(_methods, json_schema_input_type=Method | _MethodList)]


class Match(Section):
    """All the fields that are written must match."""

    path: PathMatch | None = Field(default=None, description="The path: exact or prefix.")
    method: Methods | None = Field(default=None, description="One method, or a list of which any.")
    headers: Headers = Field(default={}, description="By name, in any case of letters; all must match.")


class Backend(Section):
    """Where a share of the calls goes."""

    service: ServiceName | None = Field(
        default=None,
        description="Another service, which must list this one in allow_routes_from. Built-in: this service.",
    )
    subset: Name | None = Field(default=None, description="A subset of that service. Built-in: all its endpoints.")
    weight: Annotated[int, whole(0, 1_000_000)] = Field(default=1, description="Relative share, from 0 (Gateway API).")


class Route(Section):
    """No `matches`: every call. No `backends`: this service."""

    name: Name = Field(description="Unique in its service; it appears in trails, metrics and explain.")
    matches: tuple[Match, ...] = Field(default=(), description="Any of them must match. Built-in: everything does.")
    backends: Annotated[tuple[Backend, ...], NotEmpty] = Field(
        default=(Backend(),),
        description="Where the calls go, by weight. Built-in: this service.",
        json_schema_extra={"minItems": 1},
    )
    timeout: Duration | None = setting("timeout", "Duration of a whole call, all attempts included.")
    stream_idle_timeout: Duration | None = setting(
        "stream_idle_timeout", "Duration between two pieces of a streamed reply."
    )
    idempotent: Flag | None = setting("idempotent", "May such a call be processed twice without harm?")
    retries: Retries = Field(default=Retries(), description="When and how often a call is tried again.")
