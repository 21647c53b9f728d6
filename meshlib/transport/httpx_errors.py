"""Our errors as httpx's: every leaf here is both, so that an `except` clause written for either catches it.

What is decided (the first rule that fits):

    UnknownService, NoHealthyEndpoint, IdentityError            ConnectError         no byte was sent
    Rejected: circuit_open, rate_limited, shed, faulted         ConnectError         no byte was sent
    Rejected: limit                                             PoolTimeout          no room here, as in a full pool
    Rejected: deadline                                          ConnectTimeout       time was up before a byte was sent
    DeadlineExceeded                                            {Connect,Pool,Read,Write}Timeout, by phase
    TransportError: cause local                                 LocalProtocolError   the request may not be sent
                    cause decode                                DecodingError
                    phase pool or connect                       ConnectError
                    phase write, and read with reset or refused WriteError, ReadError
                    cause closed, protocol, too_large           RemoteProtocolError
    ConfigError, PermissionDenied                               themselves: not the failure of a request

Clients that retry on their own take ConnectError, ConnectTimeout and PoolTimeout as "not sent"; here that is true.
Source: the tree of `httpx/_exceptions.py` and what httpcore raises (`httpx/_transports/default.py`).
"""

from __future__ import annotations

import httpx

from ..call import Trail
from ..errors import (
    Cause,
    DeadlineExceeded,
    IdentityError,
    MeshError,
    NoHealthyEndpoint,
    Phase,
    Reason,
    Rejected,
    TransportError,
    UnknownService,
    remade,
)


def lift(error: MeshError, request: httpx.Request | None, trail: Trail | None = None) -> MeshError:
    """`error` as the leaf that is also httpx's: same attributes, message, cause and traceback, `.request` set.

    Raise it `from error.__cause__`. `trail` is for an error that has none of its own yet. An error that is a leaf
    already is returned with its `request` set; a ConfigError or PermissionDenied is returned as it is.
    """
    if error.trail is None and trail is not None:
        error.trail = trail
    leaf = leaf_class(error)
    if leaf is None:
        return error
    lifted = error if isinstance(error, _Leaf) else remade(leaf, error.args, error.__dict__)
    lifted.__dict__["_request"] = request
    if lifted is not error:
        lifted.__cause__ = error.__cause__
    return lifted.with_traceback(error.__traceback__)


def leaf_class(error: MeshError) -> type[MeshError] | None:
    """The leaf for `error`, or None where httpx has no word for it."""
    if isinstance(error, _Leaf):
        return type(error)
    if isinstance(error, Rejected):
        return _REJECTED[error.reason]
    if isinstance(error, DeadlineExceeded):
        return _DEADLINE[error.phase]
    if isinstance(error, TransportError):
        return _CAUSE.get(error.cause) or _PHASE.get(error.phase) or _READ[error.cause]
    return next((leaf for kind, leaf in _UNSENT.items() if isinstance(error, kind)), None)


class _Leaf(MeshError):
    """What all leaves share: they are rebuilt as our errors are, also where httpx's constructor wants a request."""

    __reduce__ = MeshError.__reduce__


class HttpxUnknownService(_Leaf, UnknownService, httpx.ConnectError):
    """UnknownService, as httpx.ConnectError."""


class HttpxNoHealthyEndpoint(_Leaf, NoHealthyEndpoint, httpx.ConnectError):
    """NoHealthyEndpoint, as httpx.ConnectError."""


class HttpxIdentityError(_Leaf, IdentityError, httpx.ConnectError):
    """IdentityError, as httpx.ConnectError."""


class HttpxRejected(_Leaf, Rejected, httpx.ConnectError):
    """Rejected by breaker, rate limit, load shedding or fault, as httpx.ConnectError."""


class HttpxRejectedLimit(_Leaf, Rejected, httpx.PoolTimeout):
    """Rejected because too much is in flight, as httpx.PoolTimeout."""


class HttpxRejectedDeadline(_Leaf, Rejected, httpx.ConnectTimeout):
    """Rejected because no time was left, as httpx.ConnectTimeout."""


class HttpxConnectTimeout(_Leaf, DeadlineExceeded, httpx.ConnectTimeout):
    """DeadlineExceeded while connecting, as httpx.ConnectTimeout."""


class HttpxPoolTimeout(_Leaf, DeadlineExceeded, httpx.PoolTimeout):
    """DeadlineExceeded while waiting for a connection, as httpx.PoolTimeout."""


class HttpxReadTimeout(_Leaf, DeadlineExceeded, httpx.ReadTimeout):
    """DeadlineExceeded while reading, as httpx.ReadTimeout."""


class HttpxWriteTimeout(_Leaf, DeadlineExceeded, httpx.WriteTimeout):
    """DeadlineExceeded while writing, as httpx.WriteTimeout."""


class HttpxConnectError(_Leaf, TransportError, httpx.ConnectError):
    """TransportError while connecting, as httpx.ConnectError."""


class HttpxWriteError(_Leaf, TransportError, httpx.WriteError):
    """TransportError while writing, as httpx.WriteError."""


class HttpxReadError(_Leaf, TransportError, httpx.ReadError):
    """TransportError: the connection was reset while reading, as httpx.ReadError."""


class HttpxRemoteProtocolError(_Leaf, TransportError, httpx.RemoteProtocolError):
    """TransportError: the peer's bytes are not a message to be trusted, as httpx.RemoteProtocolError."""


class HttpxLocalProtocolError(_Leaf, TransportError, httpx.LocalProtocolError):
    """TransportError: the request itself may not be sent, as httpx.LocalProtocolError."""


class HttpxDecodingError(_Leaf, TransportError, httpx.DecodingError):
    """TransportError: the body's content encoding is broken or a bomb, as httpx.DecodingError."""


_UNSENT: dict[type[MeshError], type[MeshError]] = {
    UnknownService: HttpxUnknownService,
    NoHealthyEndpoint: HttpxNoHealthyEndpoint,
    IdentityError: HttpxIdentityError,
}
_REJECTED: dict[Reason, type[MeshError]] = {
    "circuit_open": HttpxRejected,
    "rate_limited": HttpxRejected,
    "shed": HttpxRejected,
    "faulted": HttpxRejected,
    "limit": HttpxRejectedLimit,
    "deadline": HttpxRejectedDeadline,
}
_DEADLINE: dict[Phase, type[MeshError]] = {
    "pool": HttpxPoolTimeout,
    "connect": HttpxConnectTimeout,
    "write": HttpxWriteTimeout,
    "read": HttpxReadTimeout,
}
_CAUSE: dict[Cause, type[MeshError]] = {"local": HttpxLocalProtocolError, "decode": HttpxDecodingError}
_PHASE: dict[Phase, type[MeshError]] = {
    "pool": HttpxConnectError,
    "connect": HttpxConnectError,
    "write": HttpxWriteError,
}
_READ: dict[Cause, type[MeshError]] = {
    "refused": HttpxReadError,
    "reset": HttpxReadError,
    "closed": HttpxRemoteProtocolError,
    "protocol": HttpxRemoteProtocolError,
    "too_large": HttpxRemoteProtocolError,
}
