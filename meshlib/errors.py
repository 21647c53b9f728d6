"""The error tree: what went wrong, whether it may be tried again, whether a byte left.

    MeshError                    .kind
    ├─ ConfigError               config            every problem of a file, as file:line:column: field.path: sentence
    ├─ UnknownService            unknown_service   not in the policy
    ├─ NoHealthyEndpoint         no_endpoint       why, for each endpoint
    ├─ Rejected                  rejected          refused here, before a byte was sent: .reason
    ├─ DeadlineExceeded          deadline          .phase: pool | connect | write | read
    ├─ IdentityError             identity          .expected and .actual SPIFFE id; 0 bytes sent
    ├─ TransportError            transport         .phase, .cause
    └─ PermissionDenied          denied            server side, 403

Rules of this file. It is pure: no I/O, no library. A class says *who* is at fault; attributes say *where*.
`retryable` is the sender's own view and never crosses a process (Finagle's ShowMask): what my client may retry
is not what my caller may retry. The adapters in `transport/` raise leaves that are also the exceptions of httpx.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    from .call import Trail

E = TypeVar("E", bound=Exception)

Phase = Literal["pool", "connect", "write", "read"]
Cause = Literal["refused", "reset", "closed", "protocol", "too_large", "decode", "local"]
Reason = Literal["circuit_open", "limit", "rate_limited", "shed", "deadline", "faulted"]


class MeshError(Exception):
    """Base of every error meshlib raises; never raised itself.

    `sent`: may a byte of the request have reached the peer? `retryable`: may this process try again elsewhere,
    whatever the method? `trail`: each attempt of the call, or None where there was none.
    """

    kind: ClassVar[str] = "mesh"
    retryable: bool = False
    sent: bool = False
    trail: Trail | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return remade, (type(self), self.args, self.__dict__)


def remade(kind: type[E], args: tuple[Any, ...], attributes: dict[str, Any]) -> E:
    """An error without its constructor, whose arguments are not kept; `attributes` are the whole of its state."""
    made = kind.__new__(kind, *args)
    made.__dict__.update(attributes)
    return made


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration: `line` and `column` count from 1; 0 means the place is not known."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.path + ': ' if self.path else ''}{self.message}"


class ConfigError(MeshError):
    """A configuration that cannot be used. `problems` has every mistake, in the order of the file.

    `files`: of what it is made, also what is missing; () where that is not known.
    """

    kind = "config"
    files: tuple[Path, ...] = ()

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems: tuple[Problem, ...] = () if isinstance(problems, str) else tuple(problems)
        super().__init__(problems if isinstance(problems, str) else "\n".join(map(str, self.problems)))


class UnknownService(MeshError):
    """The name is not a service of this mesh. `detail`: why, where it is not simply missing from the policy.
    `suggestions`: known names that look like it.
    """

    kind = "unknown_service"

    def __init__(self, service: str, detail: str = "", suggestions: Sequence[str] = ()) -> None:
        self.service, self.detail, self.suggestions = service, detail, tuple(suggestions)
        hint = f" (did you mean {' or '.join(repr(s) for s in suggestions)}?)" if suggestions else ""
        super().__init__(f"service {service!r} {detail or 'is not in the policy of this mesh'}{hint}")


class NoHealthyEndpoint(MeshError):
    """No endpoint may be picked. `why` maps each endpoint's address to the reason it was passed over."""

    kind = "no_endpoint"
    retryable = True

    def __init__(self, service: str, why: dict[str, str]) -> None:
        self.service, self.why = service, why
        reasons = "; ".join(f"{address}: {reason}" for address, reason in why.items()) or "it has no endpoints"
        super().__init__(f"no endpoint of {service!r} can be used: {reasons}")


class Rejected(MeshError):
    """Refused by meshlib itself before a byte was sent. `retry_after_s`: when it may be worth asking again."""

    kind = "rejected"

    def __init__(self, reason: Reason, message: str, *, retry_after_s: float | None = None) -> None:
        self.reason, self.retry_after_s = reason, retry_after_s
        super().__init__(message)


class DeadlineExceeded(MeshError):
    """Time ran out in `phase`. `total`: the whole call's deadline (never retried), not one attempt's."""

    kind = "deadline"

    def __init__(self, message: str, *, phase: Phase, sent: bool, total: bool = False) -> None:
        self.phase, self.sent, self.total = phase, sent, total
        super().__init__(message)


class IdentityError(MeshError):
    """The peer is not who it must be: no byte of the request was sent to it. Or it would not accept who we are: TLS 1.3
    says so only after the request went out, and then `sent` is True.
    """

    kind = "identity"

    def __init__(self, message: str, *, expected: str | None = None, actual: str | None = None) -> None:
        self.expected, self.actual = expected, actual
        super().__init__(message)


class TransportError(MeshError):
    """The bytes did not get through.

    `phase`: connect, write or read. `cause`: refused (no connection), reset, closed (end of stream before the end of
    the message), protocol (not HTTP, or framing that may not be trusted), too_large (a limit of ours), decode (bad
    content encoding), local (the request itself may not be sent). `reused`: on a connection that had served before.
    """

    kind = "transport"

    def __init__(self, message: str, *, phase: Phase, cause: Cause, sent: bool = True, reused: bool = False) -> None:
        self.phase, self.cause, self.sent, self.reused = phase, cause, sent, reused
        self.retryable = not sent and cause != "local"
        super().__init__(message)


class PermissionDenied(MeshError):
    """The server side refused the caller. `rule`: the rule that decided, or '' for the default."""

    kind = "denied"

    def __init__(self, message: str, *, rule: str = "") -> None:
        self.rule = rule
        super().__init__(message)
