"""What is said to the config service, and what it answers: the models of every body, strict and bounded.

Rules:
  * a body is one JSON object in UTF-8; a key twice, NaN, a lone surrogate, or nesting that no message has: refused;
  * nothing is coerced, every text, list and mapping has a bound;
  * what processes send may have fields that this release does not know (they are upgraded before the service is, or
    after); what an operator sends may not, because a typo there would be taken for consent.
Sources: RFC 8259 §4 and §8.1; docs/control-api.md; FAULTS F24, F38.
"""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema

from ..config.endpoints import LABEL_CHARS_MAX, LABELS_MAX, parse_address
from ..identity.csr import CSR_BYTES_MAX

BODY_BYTES_MAX = 1024 * 1024
"""Bytes of the body of a poll or a policy; one more is answered 413."""
REGISTER_BYTES_MAX = 64 * 1024
"""The same of a registration: zone and labels at their bounds are about 35,000 characters."""
CSR_BODY_BYTES_MAX = 16 * 1024
"""The same of a request for a certificate, which strangers may send."""
SMALL_BYTES_MAX = 4 * 1024
"""The same of every other operation: a few short fields."""
WANT_MAX = 4096
"""Services that one process may ask for; a poll with more is malformed."""
HAVE_MAX = 16_384
"""Resources that one process may have, transitive ones included; a poll with more is malformed."""
REJECTED_MAX = 1024
"""Rejections told with one poll; a poll with more is malformed."""
WHY_CHARS_MAX = 2000
"""Characters of the reason of a rejection; a longer one is malformed."""
FACTS_MAX = 16
"""Entries of `load` and of `info`; a poll with more is malformed."""
FACT_CHARS_MAX = 256
"""Characters of a key or a text of `load` and `info`; a longer one is malformed."""
WAIT_S_MAX = 60.0
"""The longest that a poll may ask to be held, in seconds."""
USES_MAX = 100_000
"""Uses of one join token; a request for more is malformed."""
TOKEN_TTL_S_MAX = 30 * 86_400.0
"""Life of a join token in seconds; a request for a longer one is malformed."""
INTEGER_MAX = 2**53 - 1
"""The largest whole number of a message: beyond, JSON readers no longer agree what it is (RFC 8259 §6)."""
PROBLEM_CHARS_MAX = 300
"""Characters of what is said about one malformed field; the rest is cut."""
RESERVED_NAMESPACE = "meshlib"
"""The namespace of the config service's own identities: nobody enrols, registers or polls as one of it."""

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SERVICE = rf"^{_LABEL}\.{_LABEL}$"
_ADDRESS = r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
_NUMERIC = re.compile(r"(^|\.)([0-9]+|0x[0-9a-f]*)\.?$")
"""A host whose last label is a number: resolvers read it as an IPv4 address in another spelling (WHATWG URL §3.5)."""
_RESOURCE = rf"^(trust|defaults|(service|endpoints)/{_LABEL}\.{_LABEL})$"

M = TypeVar("M", bound="Message")


class Malformed(ValueError):
    """A body that is not the message it should be; the text is one sentence that says where and why."""


def is_reserved(service: str) -> bool:
    """Is this canonical name one of the config service's own?"""
    return service.endswith(f".{RESERVED_NAMESPACE}")


def _reachable(address: str) -> str:
    """The same address; ValueError where it is one that no other machine could be meant by."""
    host, _ = parse_address(address)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        if _NUMERIC.search(host):
            raise ValueError(f"{address} is a number in disguise: write the address as 10.0.0.1:80") from None
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        raise ValueError(f"{address} is not an address that others can reach")
    return address


def _enrollable(service: str) -> str:
    if is_reserved(service):
        raise ValueError(f"the namespace {RESERVED_NAMESPACE} is the config service's own")
    return service


Canonical = Annotated[str, StringConstraints(pattern=_SERVICE, max_length=127)]
Resource = Annotated[str, StringConstraints(pattern=_RESOURCE, max_length=140)]
InstanceId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Epoch = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Version = tuple[Epoch, Annotated[int, Field(ge=0, le=INTEGER_MAX)]]
Fact = Annotated[str, StringConstraints(max_length=FACT_CHARS_MAX)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Csr = Annotated[str, StringConstraints(min_length=1, max_length=CSR_BYTES_MAX)]
Address = Annotated[
    str,
    StringConstraints(max_length=300),
    AfterValidator(_reachable),
    WithJsonSchema({"type": "string", "maxLength": 300, "pattern": _ADDRESS, "description": "host:port"}),
]
Label = Annotated[str, StringConstraints(max_length=LABEL_CHARS_MAX)]
Labels = Annotated[
    dict[Annotated[str, StringConstraints(min_length=1, max_length=LABEL_CHARS_MAX)], Label],
    Field(max_length=LABELS_MAX),
]


class Message(BaseModel):
    """A body."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class OperatorMessage(Message):
    """A body that a person's tool sends: a field that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Enrol(Message):
    """`csr`: PEM; of it, only the key is used. `service`: who this process is to be, canonical; a token of another is
    refused, and not used up. `instance`: who it is among those of its service.
    """

    csr: Csr
    service: Annotated[str, StringConstraints(max_length=253)] | None = None
    instance: InstanceId | None = None


class Renew(Message):
    """`csr`: PEM; the identity is that of the certificate with which it is sent."""

    csr: Csr


class Issued(Message):
    """`chain`: the new leaf, PEM. `bundle`: the roots to believe, PEM."""

    chain: str
    bundle: str
    generation: int


class Rejection(Message):
    """A version of a resource that the process cannot use, and why."""

    version: Version
    why: Annotated[str, StringConstraints(max_length=WHY_CHARS_MAX)]


class Poll(Message):
    """`want`: services it calls. `have`: what it has. `serving`: it believes that it is registered. `wait_s`: seconds
    to be held where nothing is new.
    """

    instance: InstanceId
    want: Annotated[list[Canonical], Field(max_length=WANT_MAX)] = []
    have: Annotated[dict[Resource, Version], Field(max_length=HAVE_MAX)] = {}
    rejected: Annotated[dict[Resource, Rejection], Field(max_length=REJECTED_MAX)] = {}
    load: Annotated[dict[Fact, Finite], Field(max_length=FACTS_MAX)] = {}
    info: Annotated[dict[Fact, Fact], Field(max_length=FACTS_MAX)] = {}
    wait_s: Annotated[float, Field(ge=0, le=WAIT_S_MAX, allow_inf_nan=False)] = 0.0
    serving: bool = False


class Signed(Message):
    """A fragment: the JSON text that was signed, and the signature in base64."""

    payload: str
    signature: str


class PollReply(Message):
    """`signer`: the PEM chain that verifies the fragments. `registered`: this instance is known. `reconnect_s`: over
    how many seconds a lost connection's return is to be spread.
    """

    epoch: str
    registered: bool
    reconnect_s: float
    signer: str
    fragments: list[Signed]


class Register(Message):
    """The process serves at `address`; its service is that of its certificate."""

    instance: InstanceId
    address: Address
    zone: Label = ""
    weight: Annotated[int, Field(ge=1, le=128)] = 1
    labels: Labels = {}


class Lease(Message):
    """The registration ends so many seconds after the last poll has ended."""

    lease_s: float


class InstanceOnly(Message):
    """Which process of the service it is about."""

    instance: InstanceId


class Done(Message):
    """It is done."""


class NewToken(OperatorMessage):
    """A join token for `service`: it admits `uses` processes within `ttl_s` seconds."""

    service: Annotated[Canonical, AfterValidator(_enrollable)]
    uses: Annotated[int, Field(ge=1, le=USES_MAX)] = 1
    ttl_s: Annotated[float, Field(ge=1, le=TOKEN_TTL_S_MAX, allow_inf_nan=False)] = 600.0


class CreatedToken(Message):
    """`token` is shown this once; only its hash is kept. `expires`: unix seconds."""

    id: str
    token: str
    service: str
    uses: int
    expires: float


class PutPolicy(OperatorMessage):
    """`document`: a whole mesh.yaml as text."""

    document: Annotated[str, StringConstraints(min_length=1, max_length=BODY_BYTES_MAX)]


class Published(Message):
    """The policy is in force as version `n`."""

    n: int


class Rotate(OperatorMessage):
    """`root`: replace the root too, not only the leaves. `force`: although processes that slept through the last
    rotation are then believed by nobody any more, and believe nobody.
    """

    root: bool = False
    force: bool = False


class Generation(Message):
    """The generation of leaves that every process is asked to have."""

    generation: int


class Revoke(OperatorMessage):
    """`serial`: of a leaf, in hexadecimal. With it all are revoked that came from the same use of a token."""

    serial: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{1,40}$")]


class Revoked(Message):
    """The serial that was named, and those of the same enrolment that are in use."""

    serials: list[str]


class FileProblem(Message):
    """A mistake in a policy; `line` and `column` from 1, 0 where there is none."""

    file: str
    line: int
    column: int
    path: str
    message: str


class Token(Message):
    """A join token without its secret. `used`: how many of its `uses` are gone. `expires`: unix seconds."""

    id: str
    service: str
    uses: int
    used: int
    expires: float


class Tokens(Message):
    """Those that may still be used, by end of life."""

    tokens: list[Token]


class PolicyInForce(Message):
    """`document`: its text, as it was written."""

    n: int
    source: str
    document: str


class PolicyEntry(Message):
    """A policy that was in force. `at`: unix seconds."""

    n: int
    at: float
    source: str


class PolicyHistory(Message):
    """The newest first."""

    policies: list[PolicyEntry]


class Root(Message):
    """`role`: signer, coming (believed, not yet signing) or previous (believed, no longer signing)."""

    role: str
    sha256: str
    not_after: float


class Ca(Message):
    """`revoked`: enrolments, which serials begin with, whose leaves are no longer believed."""

    generation: int
    rotating: bool
    roots: list[Root]
    revoked: list[str]


class Endpoint(Message):
    """An instance. `state`: ready, absent or draining. `lease_s`: seconds until that ends; null: a poll is open."""

    instance: str
    address: str
    zone: str
    weight: int
    labels: dict[str, str]
    state: str
    lease_s: float | None


class Service(Message):
    """`policy`: it is in the policy. `n`: the version of its policy. `instances`: of which `shown` lists the first."""

    name: str
    policy: bool
    n: int
    instances: int
    shown: list[Endpoint]


class Services(Message):
    """`more`: there are more than are shown; ask with `service`, or with `after` the last name."""

    services: list[Service]
    more: bool


class ProcessStatus(Message):
    """The resources that it follows: `applied`, `behind` (not had yet), `ignored` (it cannot use them, and why); of
    many the first 500. `seen_s`: seconds since its last poll ended; null: it is open.
    """

    service: str
    instance: str
    serial: str
    registered: bool
    applied: list[str]
    behind: list[str]
    ignored: dict[str, str]
    load: dict[str, float]
    info: dict[str, str]
    seen_s: float | None


class Status(Message):
    """`edits_kept_out`: edits of the watched file that did not validate; `problems`: those of the last one.
    `more`: there are more processes; ask with `service`, or with `after` the last `service/instance`.
    """

    mesh: str
    epoch: str
    policy: PolicyEntry
    edits_kept_out: int
    problems: list[FileProblem]
    processes: list[ProcessStatus]
    polling: int
    more: bool


class Problem(Message):
    """RFC 9457's document, in the mesh's words. `problems`: where a policy was refused for what is in it."""

    error: str
    message: str
    rule: str
    problems: list[FileProblem] = []


def parse(model: type[M], body: bytes) -> M:
    """The message in a body, or Malformed."""
    try:
        text = body.decode("utf-8")
        json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        return model.model_validate_json(text)
    except ValidationError as error:
        raise Malformed(_sentence(error)) from None
    except UnicodeDecodeError as error:
        raise Malformed(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None
    except ValueError as error:
        raise Malformed(f"the body is not JSON: {str(error)[:PROBLEM_CHARS_MAX]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One pass: what a stranger sends is looked at here before anything else bounds it."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"the key {key[:40]!r} is there twice")
        seen.add(key)
    raise AssertionError("unreachable")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _sentence(error: ValidationError) -> str:
    """The first mistake, and how many more there are. What was sent is not repeated: it may be a secret."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(step)[:60] for step in first["loc"][:6]) or "the body"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}: {first['msg'][:PROBLEM_CHARS_MAX]}{more}"
