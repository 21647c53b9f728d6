"""A match: what a request must look like. All that is set must hold.

A path prefix is segment-aware: `/items` takes `/items` and `/items/7`, not `/itemsize` (Gateway API `PathPrefix`).
Paths are compared as they are sent, without the query. Of several values of one name, any may pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..pattern import Pattern
    from .request import Request

ConditionKind = Literal["exact", "prefix", "suffix", "contains", "pattern", "present", "absent"]


@dataclass(frozen=True, slots=True)
class Condition:
    """The test of one header field (`name` in lower case) or query parameter. `pattern`: of the kind of that name."""

    name: str
    kind: ConditionKind
    value: str = ""
    pattern: Pattern | None = None

    def takes(self, values: Sequence[str]) -> bool:
        """Do the values pass?"""
        if self.kind == "present":
            return bool(values)
        if self.kind == "absent":
            return not values
        wanted = self.value
        if self.kind == "exact":
            return wanted in values
        if self.kind == "prefix":
            return any(value.startswith(wanted) for value in values)
        if self.kind == "suffix":
            return any(value.endswith(wanted) for value in values)
        if self.kind == "contains":
            return any(wanted in value for value in values)
        return self.pattern is not None and any(self.pattern.takes(value) for value in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """`exact` and `prefix` start with a slash; `methods` are upper case; `suffix` is a gRPC method in any service.

    `callers`: canonical names, None for any. `predicate`: a name, '' for none.
    """

    exact: str | None = None
    prefix: str | None = None
    pattern: Pattern | None = None
    suffix: str | None = None
    methods: frozenset[str] | None = None
    headers: tuple[Condition, ...] = ()
    query: tuple[Condition, ...] = ()
    callers: frozenset[str] | None = None
    predicate: str = ""

    def takes(self, request: Request) -> bool:
        """Does a request pass, whoever made it?"""
        if self.methods is not None and request.method not in self.methods:
            return False
        if self.exact is not None and request.path != self.exact:
            return False
        if self.prefix is not None and self.prefix.rstrip("/") not in request.stems:
            return False
        if self.suffix is not None and not request.path.endswith(self.suffix):
            return False
        if self.pattern is not None and not self.pattern.takes(request.path):
            return False
        return (
            all(condition.takes(request.headers(condition.name)) for condition in self.headers)
            and all(condition.takes(request.query_params(condition.name)) for condition in self.query)
            and (not self.predicate or request.predicates.holds(self.predicate, request))
        )


def host_takes(hostname: str, host: str) -> bool:
    """Does `hostname` take a host? One that begins with `*.` takes every name below, not the name itself."""
    return host.endswith(hostname[1:]) and len(host) >= len(hostname) if hostname.startswith("*.") else host == hostname
