"""The status codes of gRPC, by number and by name, and the HTTP status that means the same.

One engine decides about both protocols, so a gRPC code has an HTTP status for everything that was said in terms of
statuses: `retry_on: [503]`, outlier detection, metrics. Sources: grpc `statuscodes.md`; the mapping is that of
`google/rpc/code.proto`; the way back, for what the mesh answers itself, is that of `http-grpc-status-mapping.md` where
it has one that loses nothing.
"""

from __future__ import annotations

from enum import IntEnum


class GrpcCode(IntEnum):
    """A gRPC status code; `retry_on` names it in lower case."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: tuple[int, ...] = (
    200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401,
)  # fmt: skip
"""By code: the HTTP status that means the same (google/rpc/code.proto)."""

CODE_WORDS: dict[str, int] = {code.name.lower(): code.value for code in GrpcCode if code is not GrpcCode.OK}
"""What `retry_on` takes beside its own words, and the code that is meant."""

_OF_STATUS = {
    400: GrpcCode.INTERNAL,
    401: GrpcCode.UNAUTHENTICATED,
    403: GrpcCode.PERMISSION_DENIED,
    404: GrpcCode.UNIMPLEMENTED,
    408: GrpcCode.DEADLINE_EXCEEDED,
    409: GrpcCode.ABORTED,
    429: GrpcCode.RESOURCE_EXHAUSTED,
    499: GrpcCode.CANCELLED,
    500: GrpcCode.INTERNAL,
    501: GrpcCode.UNIMPLEMENTED,
    502: GrpcCode.UNAVAILABLE,
    503: GrpcCode.UNAVAILABLE,
    504: GrpcCode.DEADLINE_EXCEEDED,
}


_OF_HTTP = {
    400: GrpcCode.INTERNAL,
    401: GrpcCode.UNAUTHENTICATED,
    403: GrpcCode.PERMISSION_DENIED,
    404: GrpcCode.UNIMPLEMENTED,
    429: GrpcCode.UNAVAILABLE,
    431: GrpcCode.INTERNAL,
    502: GrpcCode.UNAVAILABLE,
    503: GrpcCode.UNAVAILABLE,
    504: GrpcCode.UNAVAILABLE,
}


def code_of_http(status: int) -> GrpcCode:
    """The code of an answer that is no gRPC: it has an HTTP status and no grpc-status (http-grpc-status-mapping.md)."""
    return _OF_HTTP.get(status, GrpcCode.UNKNOWN)


def code_of_status(status: int) -> GrpcCode:
    """The code of a reply that the mesh made itself as an HTTP status: OK below 300, UNKNOWN where nothing fits."""
    return GrpcCode.OK if 200 <= status < 300 else _OF_STATUS.get(status, GrpcCode.UNKNOWN)
