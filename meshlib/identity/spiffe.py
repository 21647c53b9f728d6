"""SPIFFE ids: what is one, which service it names, who matches. Pure.

    spiffe://<trust domain>/<path>          spiffe://shop.example/ns/stock/sa/inventory  =  inventory.stock

Rules: the scheme is `spiffe`; a trust domain is lower-case letters, digits, dots, dashes and underscores, at most 255
bytes; a path is segments of letters, digits, dots, dashes and underscores, none empty, `.` or `..`; the whole is at
most 2048 bytes. There is no port, user, query, fragment or percent-encoding. Nothing is normalised: an id in another
spelling is refused, so two texts are the same identity exactly when they are equal
(docs/adr/0005-contested-spiffe-ids.md).

Source: SPIFFE-ID standard §2; the form of the path is Istio's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

ID_BYTES_MAX = 2048
"""The longest id (SPIFFE-ID §2.3: this much MUST be supported, more SHOULD NOT be made)."""

TRUST_DOMAIN_BYTES_MAX = 255
"""The longest trust domain (SPIFFE-ID §2.3)."""

DNS_NAME_BYTES_MAX = 253
"""The longest DNS name in text (RFC 1035 §2.3.4)."""

_SCHEME = "spiffe://"
_NOT_IN_TRUST_DOMAIN = re.compile(r"[^a-z0-9._-]")
_NOT_IN_PATH = re.compile(r"[^A-Za-z0-9._/-]")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """One workload, or with an empty `path` a whole trust domain. Equal ids are the same identity, unequal ones never.

    Raises ValueError when the parts do not make an id, so every instance is valid.
    """

    trust_domain: str
    path: str = ""

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        _check_path(self.path)
        if (size := len(str(self))) > ID_BYTES_MAX:
            raise ValueError(f"a SPIFFE id has at most {ID_BYTES_MAX} bytes, this one has {size}")

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """The id written as `text`, or ValueError with a sentence that says what is wrong and where."""
        if not text:
            raise ValueError("a SPIFFE id cannot be empty")
        if not text.startswith(_SCHEME):
            raise ValueError(f"a SPIFFE id starts with {_SCHEME!r} in lower case, not {_shown(text)}")
        trust_domain, slash, path = text[len(_SCHEME) :].partition("/")
        return cls(trust_domain, slash + path)

    @classmethod
    def for_service(cls, trust_domain: str, service: str) -> SpiffeId:
        """The id of `service`, written `name` or `name.namespace` (DNS labels; namespace `default`), or ValueError."""
        name, _, namespace = service.partition(".")
        namespace = namespace if "." in service else _DEFAULT_NAMESPACE
        if not (_LABEL.fullmatch(name) and _LABEL.fullmatch(namespace)):
            raise ValueError(f"service {_shown(service)} is not 'name' or 'name.namespace' made of DNS labels")
        return cls(trust_domain, f"/ns/{namespace}/sa/{name}")

    @property
    def service(self) -> str | None:
        """`name.namespace`, the inverse of `for_service`; None when the path has another form."""
        match self.path.split("/"):
            case ["", "ns", namespace, "sa", name] if _LABEL.fullmatch(name) and _LABEL.fullmatch(namespace):
                return f"{name}.{namespace}"
        return None

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


def dns_name(spiffe_id: SpiffeId) -> str:
    """`<service>.<namespace>.<trust domain>`: the DNS SAN and server name of a service's id.

    gRPC matches only DNS names. ValueError when the id names no service, or the trust domain is no DNS name.
    """
    service = spiffe_id.service
    if service is None:
        raise ValueError(f"{spiffe_id} has no DNS name: its path is not /ns/<namespace>/sa/<service>")
    name = f"{service}.{spiffe_id.trust_domain}"
    if len(name) > DNS_NAME_BYTES_MAX or not all(map(_LABEL.fullmatch, name.split("."))):
        raise ValueError(f"{spiffe_id} has no DNS name: {_shown(name)} is not made of DNS labels within 253 bytes")
    return name


def check_trust_domain(text: str) -> None:
    """ValueError with a sentence unless `text` is a trust domain."""
    if not text:
        raise ValueError("the trust domain of a SPIFFE id is missing")
    if len(text) > TRUST_DOMAIN_BYTES_MAX:
        raise ValueError(f"a trust domain has at most {TRUST_DOMAIN_BYTES_MAX} bytes, this one has {len(text)}")
    if wrong := _NOT_IN_TRUST_DOMAIN.search(text):
        raise ValueError(
            f"trust domain {_shown(text)} has {wrong[0]!r}; only a-z, 0-9, '.', '-' and '_' are allowed, in lower case"
        )


def _check_path(path: str) -> None:
    if not path:
        return
    if wrong := _NOT_IN_PATH.search(path):
        raise ValueError(
            f"SPIFFE path {_shown(path)} has {wrong[0]!r}; only letters, digits, '.', '-', '_' are allowed"
        )
    if not path.startswith("/"):
        raise ValueError(f"SPIFFE path {_shown(path)} does not start with '/'")
    for segment in path[1:].split("/"):
        if segment in ("", ".", ".."):
            raise ValueError(f"SPIFFE path {_shown(path)} has the segment {segment!r}; none may be empty, '.' or '..'")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


Matcher = Callable[[SpiffeId | None], bool]
"""Is this verified id one of those that are meant? None, no verified id, never is."""


def matches_any() -> Matcher:
    """Every verified id."""
    return lambda actual: actual is not None


def matches_id(expected: SpiffeId) -> Matcher:
    """Exactly `expected`."""
    return lambda actual: actual == expected


def matches_one_of(*expected: SpiffeId) -> Matcher:
    """One of `expected`; with none, nobody."""
    allowed = frozenset(expected)
    return lambda actual: actual in allowed


def matches_member_of(trust_domain: str) -> Matcher:
    """Every id of `trust_domain`."""
    return lambda actual: actual is not None and actual.trust_domain == trust_domain
