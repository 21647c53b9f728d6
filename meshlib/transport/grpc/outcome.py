"""What ended an attempt: a code that the server sent, which is a reply, or a failure of the way there.

grpc says UNAVAILABLE for both. A server's status says "Error received from peer" in its debug string; what the core
makes itself says what happened to the connection (grpc 1.66 to 1.85; the tests hold it to that). What says neither is a
server's status: that is tried again only where the policy says so.
"""

from __future__ import annotations

import re
from typing import Any

from grpc.aio import Metadata

from ...errors import DeadlineExceeded, IdentityError, MeshError, TransportError
from ...grpc_code import GrpcCode, code_of_http
from .call import GrpcReply, fields_of
from .errors import CODES, RpcFailed

_NOT_CONNECTED = re.compile(
    r"failed to connect|connection refused|connect failed|no route to host|network is unreachable|"
    r"name resolution|DNS resolution|empty address list",
    re.IGNORECASE,
)
_LOCAL = re.compile(
    _NOT_CONNECTED.pattern + r"|socket|connection|recvmsg|sendmsg|broken pipe|goaway|keepalive|transport|ping|"
    r"handshake|endpoint|stream removed|shutdown|closed|reset",
    re.IGNORECASE,
)
_HANDSHAKE = re.compile(r"handshake|CERTIFICATE|peer name|SSL_ERROR|hostname verification", re.IGNORECASE)

_NOT_SEEN = re.compile(r"Stream removed \((GOAWAY received|RST_STREAM \(Received RST_STREAM with error code 7\))").match
"""The stream was refused, or is not among those that the server says it has seen (RFC 9113 §6.8, §8.7)."""
_HTTP_STATUS = re.compile(r"Received http2 header with status: ([0-9]{3})\Z").match


class Ending:
    """How a real call ended, read from grpc once. `code`: a number; `debug`: grpc's own account."""

    __slots__ = ("code", "debug", "details", "initial", "trailing")

    def __init__(self, code: int, details: str | None, debug: str | None, initial: Any, trailing: Any) -> None:
        self.code, self.details, self.debug = code, details or "", debug or ""
        self.initial, self.trailing = initial or (), trailing or ()


def outcome(ending: Ending, *, total: bool, late: bool, expected: str | None, messages: bool) -> GrpcReply | MeshError:
    """The reply that `ending` is, or the error.

    `late`: our own deadline has passed, of the whole call where `total`. `expected`: the peer's SPIFFE id, None without
    mTLS. `messages`: had a message or headers been received?
    """
    from_peer = "from peer" in ending.debug or bool(ending.trailing)
    if ending.code == GrpcCode.DEADLINE_EXCEEDED and late:
        what = "the deadline" if total else "the time of this attempt"
        return DeadlineExceeded(f"{what} passed before the answer came", phase="read", sent=True, total=total)
    if ending.code == GrpcCode.UNAVAILABLE and not from_peer and _LOCAL.search(ending.details):
        return _broken(ending, expected, messages)
    if ending.code == GrpcCode.UNKNOWN and (no_grpc := _HTTP_STATUS(ending.details)):
        ending.code = code_of_http(int(no_grpc[1]))
    if ending.code == GrpcCode.CANCELLED and not ending.trailing and not messages:
        # A stopping server ends calls so that its handlers have not seen (grpc/grpc#41785).
        return TransportError(
            "the server is stopping, and has not begun the call", phase="read", cause="closed", sent=False
        )
    return reply_of(ending)


def reply_of(ending: Ending) -> GrpcReply:
    """A reply without a message. Headers: of a reply that is all trailers, those (gRFC A6: nothing was committed)."""
    error = RpcFailed(
        CODES[ending.code], _metadata(ending.initial), _metadata(ending.trailing), ending.details, ending.debug
    )
    reply = GrpcReply(ending.code, native=error, details=ending.details)
    reply.headers = fields_of(ending.initial) + fields_of(ending.trailing)
    reply.trailers = fields_of(ending.trailing)
    return reply


def _broken(ending: Ending, expected: str | None, messages: bool) -> MeshError:
    said = ending.details or ending.debug
    if expected is not None and _HANDSHAKE.search(said):
        return IdentityError(f"the peer is not {expected}, or does not accept who we are: {said}", expected=expected)
    if _NOT_CONNECTED.search(said) and not messages:
        return TransportError(f"cannot connect: {said}", phase="connect", cause="refused", sent=False)
    if _NOT_SEEN(said) and not messages:
        return TransportError(f"the server refused the stream: {said}", phase="read", cause="reset", sent=False)
    return TransportError(f"the connection broke: {said}", phase="read", cause="reset", sent=True)


def _metadata(pairs: Any) -> Metadata:
    return pairs if isinstance(pairs, Metadata) else Metadata(*((key, value) for key, value in pairs))
