"""What a route does with a call beside sending it on: changes, answers, copies, faults, stickiness."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .fields import (
    CookieName,
    Duration,
    EditableHeader,
    Flag,
    HeaderName,
    HeaderValue,
    Hostname,
    HttpPath,
    Method,
    Name,
    NotEmpty,
    OneOf,
    Origin,
    Port,
    QueryName,
    Section,
    ServiceName,
    Share,
    Text,
    Token,
    whole,
)

DIRECT_BODY_MAX = 4096
"""Bytes of the body of a direct response (Envoy)."""
MIRRORS_MAX = 4
"""Mirrors of one route: each is a whole call more."""
HEADER_EDITS_MAX = 64
"""Header fields that one modifier may set, add or remove, of each kind."""


class HeaderModifier(Section):
    """Applied in this order: remove, set, add."""

    set: dict[EditableHeader, HeaderValue] = Field(
        default={}, description="In the place of every field of that name.", max_length=HEADER_EDITS_MAX
    )
    add: dict[EditableHeader, HeaderValue] = Field(
        default={}, description="Beside what there is.", max_length=HEADER_EDITS_MAX
    )
    remove: tuple[EditableHeader, ...] = Field(
        default=(), description="Every field of that name.", max_length=HEADER_EDITS_MAX
    )


class PathModifier(OneOf):
    """Exactly one of the fields. The query stays."""

    replace_full_path: HttpPath | None = Field(default=None, description="The whole path.")
    replace_prefix_match: HttpPath | None = Field(
        default=None, description="What the route's prefix matched; every match needs a path prefix."
    )


class UrlRewrite(Section):
    """What the backend sees in the place of what was asked for."""

    hostname: Hostname | None = Field(default=None, description="The Host header. HTTP only.")
    path: PathModifier | None = Field(default=None, description="The path.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.hostname is None and self.path is None:
            raise ValueError("must have hostname or path")
        return self


def _redirect_status(value: Any) -> Any:
    if type(value) is int and value in (301, 302, 303, 307, 308):
        return value
    raise ValueError("must be 301, 302, 303, 307 or 308")


class RequestRedirect(Section):
    """An answer that sends the caller elsewhere; what is not written is as in the request."""

    scheme: Literal["http", "https"] | None = Field(default=None, description="http or https.")
    hostname: Hostname | None = Field(default=None, description="The host.")
    path: PathModifier | None = Field(default=None, description="The path.")
    port: Port | None = Field(
        default=None, description="The port. Built-in: that of the scheme where one is written, else the listener's."
    )
    status_code: Annotated[
        int, BeforeValidator(_redirect_status), Field(json_schema_extra={"enum": [301, 302, 303, 307, 308]})
    ] = Field(default=302, description="301, 302, 303, 307 or 308. Built-in: 302 (Gateway API).")


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value.encode()) > DIRECT_BODY_MAX:
        raise ValueError(f"has {len(value.encode())} bytes; at most {DIRECT_BODY_MAX} are possible")
    return value


class DirectResponse(Section):
    """An answer that no backend is asked for."""

    status: Annotated[int, whole(200, 599)] = Field(description="From 200 to 599.")
    body: Annotated[Text, BeforeValidator(_short)] = Field(default="", description="Text, at most 4096 bytes.")


class Mirror(Section):
    """A copy of a share of the calls, whose answers nobody waits for."""

    service: ServiceName | None = Field(default=None, description="As in backends. Built-in: this service.")
    subset: Name | None = Field(default=None, description="A subset of that service. Built-in: all its endpoints.")
    percent: Share = Field(default=1.0, description="Share of the calls. Built-in: 100%.")
    diff: Flag = Field(default=False, description="Compare status and body with the answer that the caller got.")


def _mirrors(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


_MirrorList = Annotated[tuple[Mirror, ...], NotEmpty, Field(max_length=MIRRORS_MAX, json_schema_extra={"minItems": 1})]
Mirrors = Annotated[_MirrorList, BeforeValidator(_mirrors, json_schema_input_type=Mirror | _MirrorList)]


class Delay(Section):
    """Wait before the attempt, within its deadline."""

    fixed_delay: Duration = Field(description="Duration.")
    percent: Share = Field(default=1.0, description="Share of the attempts. Built-in: 100%.")


class Abort(Section):
    """Answer in the place of the endpoint: exactly one of the statuses."""

    http_status: Annotated[int, whole(200, 599)] | None = Field(default=None, description="From 200 to 599.")
    grpc_status: Annotated[int, whole(1, 16)] | None = Field(default=None, description="A gRPC code, from 1 to 16.")
    percent: Share = Field(default=1.0, description="Share of the attempts. Built-in: 100%.")

    @model_validator(mode="after")
    def _one_status(self) -> Self:
        if (self.http_status is None) == (self.grpc_status is None):
            raise ValueError("must have exactly one of http_status, grpc_status")
        return self


class Fault(Section):
    """Failures made on purpose, per attempt, so that retries and timeouts are seen at work."""

    delay: Delay | None = Field(default=None, description="Wait first.")
    abort: Abort | None = Field(default=None, description="Do not send it.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.delay is None and self.abort is None:
            raise ValueError("must have delay or abort")
        return self


class SessionCookie(Section):
    """The cookie that names the endpoint."""

    name: CookieName = Field(description="Its name.")
    ttl: Duration | None = Field(default=None, description="How long it lives. Built-in: as long as the browser runs.")
    path: HttpPath = Field(default="/", description="Its path. Built-in: /.")


class SessionHeader(Section):
    """The header that names the endpoint, in the answer and in the next request."""

    name: EditableHeader = Field(description="Its name.")


class SessionPersistence(OneOf):
    """Calls of one session go to one endpoint while it can be used: exactly one of the fields."""

    cookie: SessionCookie | None = Field(default=None, description="By a cookie.")
    header: SessionHeader | None = Field(default=None, description="By a header.")


class HashKey(OneOf):
    """What of a call decides where it goes: exactly one of the fields."""

    header: HeaderName | None = Field(default=None, description="Value of a header.")
    cookie: CookieName | None = Field(default=None, description="Value of a cookie.")
    query_param: QueryName | None = Field(default=None, description="Value of a query parameter.")
    source: Flag | None = Field(default=None, description="true: who called this process, or else its own name.")


class Cors(Section):
    """Which pages of other origins may read the answers (Fetch standard)."""

    allow_origins: tuple[Origin, ...] = Field(
        default=(), max_length=64, description="Such as https://shop.example, https://*.shop.example, or *."
    )
    allow_methods: tuple[Method | Literal["*"], ...] = Field(default=(), max_length=9, description="Methods, or *.")
    allow_headers: tuple[Token, ...] = Field(default=(), max_length=64, description="Request headers, or *.")
    expose_headers: tuple[Token, ...] = Field(default=(), max_length=64, description="Response headers, or *.")
    allow_credentials: Flag = Field(default=False, description="May cookies go along? Built-in: false.")
    max_age: Duration = Field(default=5.0, description="How long a preflight is kept. Built-in: 5s (Fetch).")
