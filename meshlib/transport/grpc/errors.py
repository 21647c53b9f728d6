"""Our errors as grpc's, for aio and for threads: every leaf here is both, so that either `except` catches it.

    code                    of
    DEADLINE_EXCEEDED       DeadlineExceeded
    UNAVAILABLE             NoHealthyEndpoint, TransportError, IdentityError (as grpc has it), UnknownService
    RESOURCE_EXHAUSTED      Rejected
    PERMISSION_DENIED       PermissionDenied
    INTERNAL                ConfigError, and TransportError that this side made: local, too_large, decode

A code that the server sent is raised as RpcFailed, with its metadata. All of them have `.trail`. `code()`, `details()`
and the metadata are plain methods, as grpc's own errors have them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio import AioRpcError, Metadata

from ...errors import (
    ConfigError,
    DeadlineExceeded,
    IdentityError,
    MeshError,
    NoHealthyEndpoint,
    PermissionDenied,
    Rejected,
    TransportError,
    UnknownService,
    remade,
)
from ...grpc_code import HTTP_STATUS, code_of_status

if TYPE_CHECKING:
    from ...call import Reply, Trail

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
LOCALLY_CANCELLED = "Locally cancelled by application!"
"""grpc's own words."""
DETAILS_CHARS_MAX = 1024
"""Characters of a body that the mesh answered with that become the details of a code; the rest is cut."""


class StatusError(MeshError):
    """A stream of replies that ended in a code which is not OK. `kind`: the class of the status that means it."""

    kind = "5xx"

    def __init__(self, code: int, details: str) -> None:
        self.code, self.sent = code, True
        super().__init__(f"{CODES[code].name}: {details}")
        self.__dict__["kind"] = f"{HTTP_STATUS[code] // 100}xx"


class RpcFailed(AioRpcError, grpc.Call, grpc.Future):  # type: ignore[misc]
    """The error of a call, for both of grpc's worlds: AioRpcError, and grpc.Call and grpc.Future as on threads."""

    trail: Trail | None = None

    def is_active(self) -> bool:
        """It is over."""
        return False

    def time_remaining(self) -> float | None:
        """Of a call that is over: none."""
        return None

    def cancel(self) -> bool:
        """Too late."""
        return False

    def cancelled(self) -> bool:
        """It was not cancelled here."""
        return False

    def running(self) -> bool:
        """It is over."""
        return False

    def done(self) -> bool:
        """It is over."""
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Raises itself."""
        raise self

    def exception(self, timeout: float | None = None) -> Any:
        """Itself."""
        return self

    def traceback(self, timeout: float | None = None) -> Any:
        """Its traceback."""
        return self.__traceback__

    def add_callback(self, callback: Any) -> bool:
        """It is over: False."""
        return False

    def add_done_callback(self, fn: Any) -> None:
        """Called at once."""
        fn(self)

    def __str__(self) -> str:
        return f"{self.code().name}: {self.details()}"


class _Leaf(RpcFailed, MeshError):
    """What all leaves share: made of the MeshError that they are."""

    trail: Trail | None = None

    def __str__(self) -> str:
        return MeshError.__str__(self)

    __reduce__ = MeshError.__reduce__


class GrpcDeadlineExceeded(_Leaf, DeadlineExceeded):  # type: ignore[misc]
    """DeadlineExceeded, as DEADLINE_EXCEEDED."""


class GrpcTransportError(_Leaf, TransportError):  # type: ignore[misc]
    """TransportError, as UNAVAILABLE, or INTERNAL where this side made it."""


class GrpcNoHealthyEndpoint(_Leaf, NoHealthyEndpoint):  # type: ignore[misc]
    """NoHealthyEndpoint, as UNAVAILABLE."""


class GrpcUnknownService(_Leaf, UnknownService):  # type: ignore[misc]
    """UnknownService, as UNAVAILABLE."""


class GrpcRejected(_Leaf, Rejected):  # type: ignore[misc]
    """Rejected, as RESOURCE_EXHAUSTED."""


class GrpcIdentityError(_Leaf, IdentityError):  # type: ignore[misc]
    """IdentityError, as UNAVAILABLE: nothing was sent."""


class GrpcPermissionDenied(_Leaf, PermissionDenied):  # type: ignore[misc]
    """PermissionDenied, as PERMISSION_DENIED."""


class GrpcConfigError(_Leaf, ConfigError):  # type: ignore[misc]
    """ConfigError, as INTERNAL: a library makes no FAILED_PRECONDITION (gRPC, statuscodes.md)."""


_LEAVES: dict[type[MeshError], tuple[type[_Leaf], grpc.StatusCode]] = {
    DeadlineExceeded: (GrpcDeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    TransportError: (GrpcTransportError, grpc.StatusCode.UNAVAILABLE),
    NoHealthyEndpoint: (GrpcNoHealthyEndpoint, grpc.StatusCode.UNAVAILABLE),
    UnknownService: (GrpcUnknownService, grpc.StatusCode.UNAVAILABLE),
    Rejected: (GrpcRejected, grpc.StatusCode.RESOURCE_EXHAUSTED),
    IdentityError: (GrpcIdentityError, grpc.StatusCode.UNAVAILABLE),
    PermissionDenied: (GrpcPermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    ConfigError: (GrpcConfigError, grpc.StatusCode.INTERNAL),
}


def lift(error: MeshError, trail: Trail | None = None) -> MeshError:
    """`error` as the leaf that is also grpc's: same attributes, message, cause and traceback."""
    if error.trail is None:
        error.trail = trail
    if isinstance(error, RpcFailed):
        return error
    found = next((made for kind, made in _LEAVES.items() if isinstance(error, kind)), None)
    if found is None:
        return error
    leaf, code = found
    if isinstance(error, TransportError) and error.cause in ("local", "too_large", "decode"):
        code = grpc.StatusCode.INTERNAL
    lifted = remade(leaf, error.args, error.__dict__)
    said = str(error)
    lifted.__dict__.update(
        _code=code, _details=said, _initial_metadata=Metadata(), _trailing_metadata=Metadata(), _debug_error_string=said
    )
    lifted.__cause__ = error.__cause__
    return lifted.with_traceback(error.__traceback__)


def failed(reply: Reply, trail: Trail) -> RpcFailed:
    """What is raised for a reply that is no message: a code that the server sent, or an answer of the mesh itself."""
    native = getattr(reply, "native", None)
    if isinstance(native, RpcFailed):
        native.trail = trail
        return native
    code = reply.code
    details = _said(reply)[:DETAILS_CHARS_MAX]
    if not code:
        code = int(code_of_status(reply.status))
        if not code:
            code = 13
            details = f"the route answers HTTP {reply.status} itself, which is no message of gRPC"
    trailing = Metadata(
        *((k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in reply.headers if k[:2] == b"x-")
    )
    error = RpcFailed(CODES[code], Metadata(), trailing, details, details)
    error.trail = trail
    return error


def _said(reply: Reply) -> str:
    """The text of an answer of the mesh: the message of its problem, or its body."""
    text = reply.body.decode("utf-8", "replace")
    if reply.header(b"content-type") != b"application/problem+json":
        return text
    return str(json.loads(text)["message"])
