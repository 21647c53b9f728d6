"""A fragment: one resource of the policy in one version, signed. What a reply of the config service consists of. Pure.

    trust                 roots, revoked enrolments, the generation of leaves
    defaults              `defaults` of mesh.yaml
    service/<name>        a service's own part of mesh.yaml, and the services that its routes name; null: there is none
    endpoints/<name>      who has registered as it; null: there is no such service

Rules. Nothing is believed for its shape: every field is checked, everything that is wrong is a FragmentError with a
sentence. A version is (epoch, n): the epoch is the store's, n grows within it. The text that was signed is kept as it
came, so that it can be written to a disk and verified again. Source: FAULTS F03, F04; docs/control-api.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..endpoint import Endpoint

REPLY_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of a reply of the config service; a longer one is refused unread (F03)."""
ENDPOINTS_MAX = 10_000
"""Endpoints of one service; a fragment with more is rejected."""
NEEDS_MAX = 1_000
"""Services that the routes of one service may name; a fragment with more is rejected."""
TEXT_MAX = 256
"""Characters of a name, zone, label or epoch in a fragment."""
LABELS_MAX = 64
"""Labels of one endpoint."""

TRUST, DEFAULTS = "trust", "defaults"

Version = tuple[str, int]

_RESOURCE = re.compile(r"trust|defaults|(service|endpoints)/[a-z0-9][a-z0-9-]{0,62}\.[a-z0-9][a-z0-9-]{0,62}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")


class FragmentError(ValueError):
    """What came is no reply, no fragment, or none that may be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A fragment as it came: the signed text and its signature. `signer`: the PEM chain of who signed it."""

    payload: str
    signature: str
    signer: str


@dataclass(frozen=True, slots=True)
class Fragment:
    """One resource in one version. `content` is checked: a Trust, a mapping, a ServiceContent, endpoints, or None."""

    resource: str
    version: Version
    mesh: str
    content: Any
    signed: Signed


@dataclass(frozen=True, slots=True)
class Trust:
    """`bundle_pem`: the roots to believe. `revoked`: enrolments not to. A new `generation` asks for a new leaf,
    at a random moment within `spread_s` seconds.
    """

    bundle_pem: str
    generation: int
    spread_s: float
    revoked: frozenset[int]


@dataclass(frozen=True, slots=True)
class ServiceContent:
    """`policy`: plain data as in mesh.yaml, not yet validated. `needs`: canonical services that its routes name."""

    policy: Mapping[str, Any]
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply to a poll. `registered`: the service knows this instance. `reconnect_s`: over how many seconds the return
    of lost connections is to be spread.
    """

    epoch: str
    registered: bool
    reconnect_s: float
    signed: tuple[Signed, ...]


def service_resource(service: str) -> str:
    """The resource of a service's policy."""
    return f"service/{service}"


def endpoints_resource(service: str) -> str:
    """The resource of who has registered as it."""
    return f"endpoints/{service}"


def parse_reply(body: bytes) -> Reply:
    """A poll's reply, or FragmentError."""
    data = _json(body, "the reply")
    fragments = _field(data, "fragments", list)
    signer = _text(data, "signer", 65_536) if fragments else ""
    signed = []
    for item in fragments:
        if not isinstance(item, dict):
            raise FragmentError("a fragment of the reply is no object")
        signed.append(Signed(_text(item, "payload", REPLY_BYTES_MAX), _text(item, "signature", 1024), signer))
    return Reply(
        _text(data, "epoch", TEXT_MAX),
        _field(data, "registered", bool),
        min(max(_number(data, "reconnect_s"), 0.0), 3600.0),
        tuple(signed),
    )


def parse_fragment(signed: Signed) -> Fragment:
    """The fragment in a signed text, whose signature is somebody else's to check; FragmentError."""
    data = _json(signed.payload.encode("utf-8", "surrogatepass"), "a fragment")
    resource = _text(data, "resource", TEXT_MAX)
    if not _RESOURCE.fullmatch(resource):
        raise FragmentError(f"{resource[:80]!r} is no resource")
    n = _field(data, "n", int)
    if n < 1:
        raise FragmentError(f"{resource}: its version is {n}, below 1")
    if "content" not in data:
        raise FragmentError(f"{resource}: it has no content")
    try:
        content = _content(resource, data["content"])
    except FragmentError as error:
        raise FragmentError(f"{resource}: {error}") from None
    return Fragment(resource, (_text(data, "epoch", TEXT_MAX), n), _text(data, "mesh", TEXT_MAX), content, signed)


def peek(signed: Signed) -> tuple[str, Version] | None:
    """The resource and version that a fragment claims, to name it in a complaint; None where not even that is there."""
    try:
        data = _json(signed.payload.encode("utf-8", "surrogatepass"), "a fragment")
        resource, n = _text(data, "resource", TEXT_MAX), _field(data, "n", int)
        return (resource, (_text(data, "epoch", TEXT_MAX), n)) if _RESOURCE.fullmatch(resource) else None
    except FragmentError:
        return None


def _content(resource: str, content: Any) -> Any:
    if resource == TRUST:
        return _trust(content)
    if resource == DEFAULTS:
        return _object(content, "content")
    if content is None:
        return None
    if resource.startswith("service/"):
        return _service(_object(content, "content"))
    if not isinstance(content, list) or len(content) > ENDPOINTS_MAX:
        raise FragmentError(f"its content is no list of at most {ENDPOINTS_MAX} endpoints")
    endpoints = tuple(_endpoint(_object(item, "an endpoint")) for item in content)
    if len({endpoint.address for endpoint in endpoints}) != len(endpoints):
        raise FragmentError("it has an address twice")
    return endpoints


def _trust(content: Any) -> Trust:
    data = _object(content, "content")
    revoked = _field(data, "revoked", list)
    try:
        enrolments = frozenset(int(_string(one, "an enrolment", 64), 16) for one in revoked)
    except ValueError as error:
        raise FragmentError(f"a revoked enrolment is no hexadecimal number: {error}") from None
    return Trust(
        _text(data, "bundle", 1 << 20),
        _field(data, "generation", int),
        min(max(_number(data, "spread_s"), 0.0), 86_400.0),
        enrolments,
    )


def _service(data: dict[str, Any]) -> ServiceContent:
    needs = _field(data, "needs", list)
    if len(needs) > NEEDS_MAX:
        raise FragmentError(f"its routes name {len(needs)} services, more than {NEEDS_MAX}")
    for name in needs:
        if not isinstance(name, str) or not _RESOURCE.fullmatch(f"service/{name}"):
            raise FragmentError("one of its `needs` is no service")
    return ServiceContent(_object(data.get("policy"), "policy"), tuple(needs))


def _endpoint(data: dict[str, Any]) -> Endpoint:
    address = _ADDRESS.fullmatch(_text(data, "address", 300))
    if address is None or not 1 <= int(address[2]) <= 65_535:
        raise FragmentError(f"{data['address'][:80]!r} is no address")
    state, weight = _text(data, "state", TEXT_MAX), _field(data, "weight", int)
    if state not in ("ready", "absent"):
        raise FragmentError(f"the state of an endpoint is {state[:40]!r}; there are ready and absent")
    if not 1 <= weight <= 128:
        raise FragmentError(f"the weight of an endpoint is {weight}; it is from 1 to 128")
    labels = _object(data.get("labels"), "labels")
    if len(labels) > LABELS_MAX:
        raise FragmentError(f"an endpoint has {len(labels)} labels, more than {LABELS_MAX}")
    for key, value in labels.items():
        _string(key, "a label", TEXT_MAX)
        _string(value, "a label", TEXT_MAX)
    return Endpoint(
        address[1].strip("[]").lower(), int(address[2]), _text(data, "zone", TEXT_MAX), weight, labels,
        absent=state == "absent",
    )  # fmt: skip


def _json(body: bytes, what: str) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FragmentError(f"{what} is no JSON: {str(error)[:200]}") from None
    return _object(data, what)


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FragmentError(f"{what} is no object")
    return value


def _field(data: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = data.get(name)
    if type(value) is not kind:
        raise FragmentError(f"`{name}` is {type(value).__name__}, not {kind.__name__}")
    return value


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise FragmentError(f"`{name}` is no number")
    return float(min(max(value, -1e12), 1e12))


def _text(data: Mapping[str, Any], name: str, at_most: int) -> str:
    return _string(data.get(name), f"`{name}`", at_most)


def _string(value: Any, what: str, at_most: int) -> str:
    if type(value) is not str or len(value) > at_most:
        raise FragmentError(f"{what} is no text of at most {at_most} characters")
    return value
