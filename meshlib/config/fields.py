"""The types of single values: how each is written, checked and described.

Every type parses the plain data of the reader and raises ValueError with a sentence. Nothing is coerced: the number 1
is not the text "1", because `version: 1.10` would lose its zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from meshlib.grpc_code import CODE_WORDS
from meshlib.pattern import PATTERN_CHARS_MAX, compiled

from .builtin import BUILT_IN
from .units import (
    DURATION_PATTERN,
    MAX_SIZE,
    SHARE_PATTERN,
    SIZE_PATTERN,
    parse_duration,
    parse_share,
    parse_size,
    quoted,
)

LABEL_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
SERVICE_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$"
OWNER_PATTERN = rf"{SERVICE_PATTERN}|^gateway/{LABEL_PATTERN[1:]}"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
HOSTNAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,31}$"
HOSTNAME_OR_BELOW_PATTERN = HOSTNAME_PATTERN.replace("^", r"^(\*\.)?", 1)
HEADER_VALUE_PATTERN = r"^([!-~\x80-\xff]([\t -~\x80-\xff]{0,4094}[!-~\x80-\xff])?)?$"
QUERY_PATTERN = r"^[^\s&=#]{1,256}$"
GRPC_PATTERN = r"^[A-Za-z_][A-Za-z0-9_.]{0,1023}$"
ORIGIN_PATTERN = (
    r"^(\*|[a-z][a-z0-9+.-]{0,31}://(\*|(\*\.)?[A-Za-z0-9._-]{1,253}|\[[0-9a-fA-F:.]+\])(:([0-9]{1,5}|\*))?)$"
)
HEADER_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$"


class Section(BaseModel):
    """A mapping of mesh.yaml: frozen, and an unknown field is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OneOf(Section):
    """A mapping with exactly one of its fields."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"must have exactly one of {', '.join(type(self).model_fields)}")
        return self


def setting(name: str, text: str) -> Any:
    """An optional field whose built-in value and its source are in the description."""
    written, source = BUILT_IN[name]
    shown = ", ".join(map(str, written)) if isinstance(written, list) else "none" if written is None else written
    return Field(default=None, description=f"{text} Built-in: {shown} ({source}).")


def is_label(text: Any) -> bool:
    """Is it a DNS label in lower case (RFC 1123)?"""
    return isinstance(text, str) and re.fullmatch(LABEL_PATTERN[1:-1], text) is not None


def canonical_name(name: str) -> str:
    """`inventory` → `inventory.default`."""
    return name if "." in name else f"{name}.default"


def _filled(value: Any) -> Any:
    if value in ([], ()):
        raise ValueError("must not be empty")
    return value


NotEmpty = BeforeValidator(_filled)
"""For a list. pydantic's own min_length counts the items that are valid, and so reports a second, false mistake."""


def _positive(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"{quoted(value)} is no time at all: write at least 1ms")
    return seconds


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    hint = "; put it in quotes" if isinstance(value, (int, float)) else ""
    raise ValueError(f"must be text, not {quoted(value)}{hint}")


def _consenting(value: Any) -> str:
    if isinstance(value, str) and value.startswith("gateway/"):
        return "gateway/" + _like(LABEL_PATTERN, _IS_LABEL)(value.removeprefix("gateway/"))
    return _like(SERVICE_PATTERN, _IS_SERVICE)(value)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"must be true or false, not {quoted(value)}")


def _like(pattern: str, sentence: str) -> Callable[[Any], str]:
    exact = re.compile(pattern[1:-1])

    def check(value: Any) -> str:
        if exact.fullmatch(text := _text(value)):
            return text
        raise ValueError(f"{quoted(text)} {sentence}")

    return check


def whole(low: int, high: int) -> Any:
    """The annotation of a whole number from `low` to `high`, both included."""

    def check(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError(f"must be a whole number from {low} to {high}, not {quoted(value)}")

    return BeforeValidator(check, json_schema_input_type=Annotated[int, Field(ge=low, le=high)])


def number(low: float, high: float) -> Any:
    """The annotation of a number from `low` to `high`, both included."""

    def check(value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        raise ValueError(f"must be a number from {low:g} to {high:g}, not {quoted(value)}")

    return BeforeValidator(check, json_schema_input_type=Annotated[float, Field(ge=low, le=high)])


def _retry_condition(value: Any) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599:
        return value
    if isinstance(value, str) and value in (*RETRY_CONDITIONS, *CODE_WORDS):
        return value
    words = ", ".join(RETRY_CONDITIONS)
    raise ValueError(
        f"{quoted(value)} is not a reason to retry: use {words}, a status from 400 to 599, or a gRPC code such as "
        "unavailable"
    )


def _http_path(value: Any) -> str:
    text = _text(value)
    if not re.fullmatch(r"/[^?#\s]{0,1023}", text) or re.search(r"//|/\.\.?(/|$)|%2[fF]", text):
        raise ValueError(
            f"{quoted(text)} is not a path to match: it begins with / and has no //, /./, /../, %2F, query or fragment"
        )
    return text


def _regular_expression(value: Any) -> str:
    text = _text(value)
    compiled(text)
    return text


def _editable(value: Any) -> str:
    name = _like(HEADER_PATTERN, _IS_HEADER)(value).lower()
    if name == "host":
        raise ValueError("host is not changed here; use url_rewrite: {hostname: …}")
    if name in _FRAMING or name.startswith("x-meshlib-"):
        raise ValueError(f"{quoted(name)} is the transport's own; a route may not change it")
    return name


RETRY_CONDITIONS = ("connect_failure", "reset", "gateway_error", "5xx")
_FRAMING = frozenset(
    ("connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)  # what frames or ends a message (RFC 9110 §7.6.1)

_METHOD_PATTERN = r"^[A-Z][A-Z-]{0,31}$"
_IS_LABEL = "is not a name: up to 63 lower-case letters, digits and hyphens, such as orders"
_IS_SERVICE = "is not a service name: write name or name.namespace in lower-case letters, digits and hyphens"
_IS_DOMAIN = "is not a trust domain: lower-case letters, digits, dots, hyphens and underscores, such as shop.dev"
_IS_NAME = "is not a name: up to 63 letters, digits, dots, hyphens and underscores, such as v1"
_IS_HEADER = "is not a header name (RFC 9110 token)"
_IS_HOST = "is not a host: lower-case letters, digits, dots and hyphens, such as shop.example"
_IS_VALUE = "is not a header value: printable, without space at its ends, at most 4096 characters"
_IS_QUERY = "is not the name of a query parameter: up to 256 characters without space, &, = and #"
_IS_GRPC = "is not a name of gRPC: letters, digits, underscores and dots, such as shop.v1.Inventory"
_IS_ORIGIN = "is not an origin: write scheme://host, such as https://shop.example or https://*.shop.example, or *"
_IS_METHOD = "is not a method: write it in capitals, such as GET"


def _string(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


Duration = Annotated[float, BeforeValidator(_positive), _string(DURATION_PATTERN)]
Share = Annotated[float, BeforeValidator(parse_share), _string(SHARE_PATTERN)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": SIZE_PATTERN}, {"type": "integer", "minimum": 1, "maximum": MAX_SIZE}]}
    ),
]
Text = Annotated[str, BeforeValidator(_text)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Label = Annotated[str, BeforeValidator(_like(LABEL_PATTERN, _IS_LABEL)), _string(LABEL_PATTERN)]
Name = Annotated[str, BeforeValidator(_like(NAME_PATTERN, _IS_NAME)), _string(NAME_PATTERN)]
ServiceName = Annotated[str, BeforeValidator(_like(SERVICE_PATTERN, _IS_SERVICE)), _string(SERVICE_PATTERN)]
RouteOwner = Annotated[str, BeforeValidator(_consenting), _string(OWNER_PATTERN)]
CanonicalName = Annotated[ServiceName, AfterValidator(canonical_name)]
TrustDomain = Annotated[str, BeforeValidator(_like(r"^[a-z0-9._-]{1,255}$", _IS_DOMAIN)), _string(r"^[a-z0-9._-]+$")]
HeaderName = Annotated[
    str,
    BeforeValidator(_like(HEADER_PATTERN, _IS_HEADER)),
    AfterValidator(str.lower),
    _string(HEADER_PATTERN),
]
EditableHeader = Annotated[str, BeforeValidator(_editable), _string(HEADER_PATTERN)]
HeaderValue = Annotated[str, BeforeValidator(_like(HEADER_VALUE_PATTERN, _IS_VALUE)), _string(HEADER_VALUE_PATTERN)]
Token = Annotated[str, BeforeValidator(_like(HEADER_PATTERN, _IS_HEADER)), _string(HEADER_PATTERN)]
CookieName = Token
QueryName = Annotated[str, BeforeValidator(_like(QUERY_PATTERN, _IS_QUERY)), _string(QUERY_PATTERN)]
GrpcName = Annotated[str, BeforeValidator(_like(GRPC_PATTERN, _IS_GRPC)), _string(GRPC_PATTERN)]
Origin = Annotated[str, BeforeValidator(_like(ORIGIN_PATTERN, _IS_ORIGIN)), _string(ORIGIN_PATTERN)]
Hostname = Annotated[str, BeforeValidator(_like(HOSTNAME_PATTERN, _IS_HOST)), _string(HOSTNAME_PATTERN)]
HostnamePattern = Annotated[
    str,
    BeforeValidator(_like(HOSTNAME_OR_BELOW_PATTERN, _IS_HOST + " or *.shop.example")),
    _string(HOSTNAME_OR_BELOW_PATTERN),
]
RegularExpression = Annotated[
    str,
    BeforeValidator(_regular_expression),
    WithJsonSchema({"type": "string", "maxLength": PATTERN_CHARS_MAX}),
]
Port = Annotated[int, whole(1, 65_535)]
Method = Annotated[str, BeforeValidator(_like(_METHOD_PATTERN, _IS_METHOD)), _string(_METHOD_PATTERN)]
HttpPath = Annotated[str, BeforeValidator(_http_path), _string(r"^/[^?#\s]*$")]
RetryCondition = Annotated[
    str | int,
    BeforeValidator(_retry_condition),
    WithJsonSchema(
        {"anyOf": [{"enum": [*RETRY_CONDITIONS, *CODE_WORDS]}, {"type": "integer", "minimum": 400, "maximum": 599}]}
    ),
]
