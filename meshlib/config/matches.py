"""What a call must look like for a route to take it."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from .fields import (
    Flag,
    GrpcName,
    HeaderName,
    HttpPath,
    Method,
    Name,
    NotEmpty,
    OneOf,
    QueryName,
    RegularExpression,
    Section,
    ServiceName,
    Text,
)
from .units import quoted


class PathMatch(OneOf):
    """Exactly one of the fields. Matched against the path without its query."""

    exact: HttpPath | None = Field(default=None, description="The whole path.")
    prefix: HttpPath | None = Field(
        default=None, description="Its first segments: /items matches /items/7, not /itemsets."
    )
    regular_expression: RegularExpression | None = Field(default=None, description="RE2, for the whole path.")


class Condition(OneOf):
    """Exactly one of the fields. Of several values of one name, any may pass it."""

    exact: Text | None = Field(default=None, description="The whole value; a plain text means this.")
    prefix: Text | None = Field(default=None, description="How the value begins.")
    suffix: Text | None = Field(default=None, description="How the value ends.")
    contains: Text | None = Field(default=None, description="What the value contains.")
    regular_expression: RegularExpression | None = Field(default=None, description="RE2, for the whole value.")
    present: Flag | None = Field(default=None, description="true: it is there. false: it is not.")


class GrpcMatch(Section):
    """A gRPC method: at least one of the fields."""

    service: GrpcName | None = Field(default=None, description="Full name of the service, such as shop.v1.Inventory.")
    method: GrpcName | None = Field(default=None, description="The method, such as Reserve.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.service is None and self.method is None:
            raise ValueError("must have service or method")
        return self


def _condition(value: Any) -> Any:
    return {"exact": value} if isinstance(value, str) else value


def _distinct(value: Any) -> Any:
    names = Counter(name.lower() for name in value) if isinstance(value, dict) else Counter[str]()
    for name, count in names.most_common(1):
        if count > 1:
            raise ValueError(f"names {quoted(name)} twice; header names are the same in any case of letters")
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


AnyCondition = Annotated[Condition, BeforeValidator(_condition, json_schema_input_type=str | Condition)]
Headers = Annotated[dict[HeaderName, AnyCondition], BeforeValidator(_distinct)]
_MethodList = Annotated[tuple[Method, ...], NotEmpty, Field(json_schema_extra={"minItems": 1})]
Methods = Annotated[_MethodList, BeforeValidator(_listed, json_schema_input_type=Method | _MethodList)]
_SourceList = Annotated[tuple[ServiceName, ...], NotEmpty, Field(json_schema_extra={"minItems": 1})]
Sources = Annotated[_SourceList, BeforeValidator(_listed, json_schema_input_type=ServiceName | _SourceList)]


class Match(Section):
    """All the fields that are written must match."""

    path: PathMatch | None = Field(default=None, description="The path: exact, prefix or regular_expression.")
    method: Methods | None = Field(default=None, description="One method, or a list of which any.")
    headers: Headers = Field(default={}, description="By name, in any case of letters; all must match.")
    query_params: dict[QueryName, AnyCondition] = Field(default={}, description="By name; all must match.")
    grpc: GrpcMatch | None = Field(default=None, description="A gRPC method, in the place of path and method.")
    from_: Sources | None = Field(
        default=None, alias="from", description="The service that calls: one, or a list of which any."
    )
    predicate: Name | None = Field(
        default=None,
        description="A function that the calling process has registered with @mesh.predicate(name); where it has "
        "not, nothing matches.",
    )

    @model_validator(mode="after")
    def _one_path(self) -> Self:
        if self.grpc is not None and (self.path is not None or self.method is not None):
            raise ValueError("has grpc, which says the path and the method; remove path and method")
        return self
