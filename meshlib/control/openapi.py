"""The operations of the API: one table, by which requests find who answers them, and the OpenAPI document of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from .. import __version__
from . import messages as m
from .who import Role

POLL = "/v1/poll"
"""The path that nearly all requests are for; it is answered by itself."""

_NAMED = re.compile(r"\{([a-z]+)\}")
_REFERENCES = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Operation:
    """`does`: name of the method of `Api` that answers, and the operation's id. `errors`: statuses beside those that
    every operation of its kind has. `query`: names of its query parameters. `bytes_max`: of its body.
    """

    method: str
    path: str
    does: str
    role: Role
    summary: str
    reply: type[m.Message] | None
    body: type[m.Message] | None = None
    errors: tuple[int, ...] = ()
    query: tuple[str, ...] = ()
    bytes_max: int = m.SMALL_BYTES_MAX


OPERATIONS = (
    Operation("GET", "/healthz", "health", "anyone", "Does it answer?", None),
    Operation(
        "POST", "/v1/enrol", "enrol", "newcomer", "A certificate for a join token", m.Issued, m.Enrol, (403,),
        bytes_max=m.CSR_BODY_BYTES_MAX,
    ),
    Operation(
        "POST", "/v1/renew", "renew", "member", "A certificate for one that is valid", m.Issued, m.Renew,
        bytes_max=m.CSR_BODY_BYTES_MAX,
    ),
    Operation(
        "POST", POLL, "poll", "member", "What is new, as soon as anything is", m.PollReply, m.Poll,
        bytes_max=m.BODY_BYTES_MAX,
    ),
    Operation(
        "POST", "/v1/register", "register", "member", "Serve as the caller's service", m.Lease, m.Register,
        bytes_max=m.REGISTER_BYTES_MAX,
    ),
    Operation("POST", "/v1/drain", "drain", "member", "Take no new calls", m.Done, m.InstanceOnly, (404,)),
    Operation("POST", "/v1/deregister", "deregister", "member", "Be gone", m.Done, m.InstanceOnly, (404,)),
    Operation(
        "GET", "/v1/services", "services", "operator", "Services and their instances", m.Services,
        errors=(400,), query=("service", "after"),
    ),
    Operation(
        "GET", "/v1/status", "status", "operator", "Processes, and what they have applied", m.Status,
        errors=(400,), query=("service", "after"),
    ),
    Operation("GET", "/v1/policy", "policy", "operator", "The policy in force; ETag: its version", m.PolicyInForce),
    Operation("GET", "/v1/policy/history", "history", "operator", "The policies that were in force", m.PolicyHistory),
    Operation(
        "GET", "/v1/policy/history/{n}", "past_policy", "operator", "One of these; ETag: its version", m.PolicyInForce,
        errors=(404,),
    ),
    Operation(
        "PUT", "/v1/policy", "put_policy", "operator", "Another policy; If-Match: the version it replaces, or *",
        m.Published, m.PutPolicy, (409, 412, 428), bytes_max=m.BODY_BYTES_MAX,
    ),
    Operation("GET", "/v1/tokens", "tokens", "operator", "Join tokens that may still be used", m.Tokens),
    Operation("POST", "/v1/tokens", "create_token", "operator", "A join token", m.CreatedToken, m.NewToken),
    Operation("DELETE", "/v1/tokens/{id}", "remove_token", "operator", "Revoke a join token", m.Done, errors=(404,)),
    Operation("GET", "/v1/ca", "ca", "operator", "The roots, and what is revoked", m.Ca),
    Operation(
        "POST", "/v1/ca/rotate", "rotate", "operator", "New leaves, or a new root", m.Generation, m.Rotate, (409,)
    ),
    Operation("POST", "/v1/ca/revoke", "revoke", "operator", "Revoke a leaf", m.Revoked, m.Revoke),
    Operation("GET", "/openapi.json", "openapi", "member or operator", "The API's description", None),
)  # fmt: skip
"""Everything that is answered; what is not here is 404, or 405."""

_SECURITY: dict[Role, list[dict[str, list[str]]]] = {
    "anyone": [],
    "member": [{"certificate": []}],
    "operator": [{"operator": []}],
    "member or operator": [{"certificate": []}, {"operator": []}],
    "newcomer": [{"join": []}],
}
_SCHEMES = {
    "certificate": {"type": "mutualTLS", "description": "a certificate of the mesh: the service is its"},
    "operator": {"type": "http", "scheme": "bearer", "description": "id.secret of the operator's token"},
    "join": {"type": "http", "scheme": "bearer", "description": "id.secret of a join token"},
}
_SAYS = {
    400: "malformed",
    401: "no credentials, or none that are valid",
    403: "not the caller's to do",
    404: "there is none",
    405: "another method is for this path",
    409: "it may not be so, now",
    412: "If-Match names a version that is in force no more",
    413: "the body is too large",
    415: "the body is not application/json",
    428: "If-Match is missing",
    429: "too many requests of this certificate or service, or wrong tokens of this address; see Retry-After",
    500: "a mistake of the config service's own; see its log",
    503: "not now; see Retry-After",
}


_ABOUT = """\
A request that is not well-formed HTTP/1.1 is answered by the connection, as text/plain, before it is anybody's: 400, \
408, 413, 414, 431, 501 or 505, and the connection ends."""
_ETAG = {"ETag": {"description": "the version, for If-Match", "schema": {"type": "string", "pattern": '^"[0-9]+"$'}}}
_RETRY_AFTER = {"Retry-After": {"description": "in so many seconds", "schema": {"type": "integer", "minimum": 1}}}
_ETAGGED = {"policy", "past_policy", "put_policy"}
_PATTERNS = {
    "id": "^[0-9a-f]{12}$",
    "n": "^[0-9]{1,16}$",
    "If-Match": r'^(\*|"[0-9]{1,16}")$',
}  # fmt: skip


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of all operations."""
    used = {model for operation in OPERATIONS for model in (operation.body, operation.reply) if model is not None}
    models = sorted(used | {m.Problem}, key=lambda model: model.__name__)
    names, schemas = models_json_schema([(model, _mode(model)) for model in models], ref_template=_REFERENCES)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "meshlib config service",
            "version": __version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": _SCHEMES},
    }


def _mode(model: type[m.Message]) -> Any:
    """What is answered has every field; of what is sent some may be left out."""
    return "validation" if any(model is operation.body for operation in OPERATIONS) else "serialization"


def _described(operation: Operation, names: Any) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.does,
        "summary": operation.summary,
        "security": _SECURITY[operation.role],
        "responses": _responses(operation, names),
    }
    parameters = [_parameter(name, "query", required=False) for name in operation.query]
    parameters += [_parameter(name, "path", required=True) for name in _NAMED.findall(operation.path)]
    if operation.does == "put_policy":
        parameters.append(_parameter("If-Match", "header", required=True))
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        schema = names[operation.body, _mode(operation.body)]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _parameter(name: str, place: str, *, required: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": 256}
    if name in _PATTERNS:
        schema = {"type": "string", "pattern": _PATTERNS[name]}
    return {"name": name, "in": place, "required": required, "schema": schema}


def _responses(operation: Operation, names: Any) -> dict[str, Any]:
    if operation.reply is not None:
        content: dict[str, Any] = {"application/json": {"schema": names[operation.reply, _mode(operation.reply)]}}
    elif operation.does == "health":
        content = {"text/plain": {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": {"type": "object"}}}
    problem = {"application/problem+json": {"schema": names[m.Problem, _mode(m.Problem)]}}
    done: dict[str, Any] = {"description": "done", "content": content}
    if operation.does in _ETAGGED:
        done["headers"] = _ETAG
    responses = {"200": done}
    for status in statuses(operation):
        responses[str(status)] = {"description": _SAYS[status], "content": dict(problem)}
        if status in (429, 503):
            responses[str(status)]["headers"] = _RETRY_AFTER
    text = {"text/plain": {"schema": {"type": "string"}}}
    malformed = responses.setdefault("400", {"description": _SAYS[400], "content": {}})
    malformed["content"].update(text)
    return responses


def statuses(operation: Operation) -> Sequence[int]:
    """The errors that an operation may be answered with by a problem document, in order."""
    found = {*operation.errors, 405}
    if operation.role != "anyone":
        found |= {401, 403, 429, 500, 503}
    if operation.body is not None:
        found |= {400, 413, 415}
    return sorted(found)
