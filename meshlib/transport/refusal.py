"""Answers made by the mesh, not by the application: an error of our tree as a status, a header and a problem document.

| error | status |
| Rejected: deadline, DeadlineExceeded | 504 |
| PermissionDenied, and a caller without the identity it must have | 403 |
| Rejected: rate_limited | 429, Retry-After |
| Rejected: anything else, NoHealthyEndpoint | 503, Retry-After where it is known |
| a request body over the limit | 413 |
| any other error of a call that the application itself made | 502 |

`x-meshlib-refused` is only on what was refused before the application's work began: a caller may take it as "not
processed". An error that comes out of the application's own outgoing calls has a trail or sent a byte; it gets the
status and the document, not the header (Finagle's ShowMask: what I may retry is not what my caller may retry).
Source: RFC 9457, DESIGN "names on the wire".
"""

from __future__ import annotations

import json
import math
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import DeadlineExceeded, MeshError, NoHealthyEndpoint, PermissionDenied, Rejected, TransportError

MESSAGE_CHARS_MAX = 2000
PROBLEM = b"application/problem+json"


class Answering(Protocol):
    """The exchange being served. `error`: what a guard refused with; it outranks a framework's own 500."""

    error: MeshError | None


EXCHANGE: ContextVar[Answering | None] = ContextVar("meshlib.exchange", default=None)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A complete answer. `headers` have lower-case names and the content length."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def text_headers(self) -> list[tuple[str, str]]:
        """The same as text, for WSGI and Starlette."""
        return [(name.decode("ascii"), value.decode("ascii")) for name, value in self.headers]


def refuse(
    status: int,
    kind: str,
    message: str,
    *,
    rule: str = "",
    retry_after_s: float | None = None,
    refused: bool = True,
    **more: Any,
) -> Refusal:
    """The document `{"error": kind, "message", "rule", **more}`. `refused`: say that the work was not begun."""
    document = {"error": kind, "message": message[:MESSAGE_CHARS_MAX], "rule": rule, **more}
    body = json.dumps(document).encode("ascii")
    headers = [(b"content-type", PROBLEM), (b"content-length", b"%d" % len(body))]
    if refused:
        headers.append((b"x-meshlib-refused", kind.encode("ascii")))
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    return Refusal(status, tuple(headers), body)


def refusal_of(error: MeshError, *, begun: bool = False) -> Refusal:
    """The answer to a call that ended in `error`. `begun`: it is known that the application had begun."""
    begun = begun or error.sent or error.trail is not None
    rejected = error if isinstance(error, Rejected) else None
    return refuse(
        _status(error),
        error.kind,
        str(error),
        rule=error.rule if isinstance(error, PermissionDenied) else "",
        retry_after_s=None if rejected is None else rejected.retry_after_s,
        refused=not begun,
        **({} if rejected is None else {"reason": rejected.reason}),
    )


def _status(error: MeshError) -> int:
    if isinstance(error, Rejected):
        return {"deadline": 504, "rate_limited": 429}.get(error.reason, 503)
    if isinstance(error, DeadlineExceeded):
        return 504
    if isinstance(error, PermissionDenied):
        return 403
    if isinstance(error, NoHealthyEndpoint):
        return 503
    if isinstance(error, TransportError) and error.cause == "too_large" and error.phase == "read" and not error.sent:
        return 413
    return 502
