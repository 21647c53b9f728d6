"""Metadata: what a caller may send, and what the mesh adds to an attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...call import Call
    from .call import Metadata

PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"
"""Sent with every attempt but the first (gRFC A6)."""
_FIRST = ("x-meshlib-attempt", "1")
_TRACE = ("traceparent", "tracestate")


def caller_metadata(given: Any, lines: bytes) -> Metadata:
    """What the caller gave, without what is the mesh's own, and with the header lines of `mesh.policy`."""
    pairs = [(key.lower(), value) for key, value in given or ()]
    kept = [pair for pair in pairs if not pair[0].startswith(("x-meshlib-", "grpc-")) and pair[0] not in _TRACE]
    for line in lines.decode("latin-1").splitlines():
        name, _, value = line.partition(": ")
        kept.append((name.lower(), value))
    return tuple(kept)


def mesh_metadata(call: Call, source: str) -> Metadata:
    """What the mesh adds to one attempt; the deadline is the real call's. `source`: this caller's name, given only
    where mTLS is disabled.
    """
    found: list[tuple[str, str | bytes]] = [_FIRST]
    if call.number > 1:
        found = [("x-meshlib-attempt", str(call.number)), (PREVIOUS_ATTEMPTS, str(call.number - 1))]
    trace = call.trace
    if trace is not None:
        found.append(("traceparent", f"00-{trace.trace_id:032x}-{trace.span_id:016x}-{trace.sampled:02x}"))
        if trace.state:
            found.append(("tracestate", trace.state))
    if source:
        found.append(("x-meshlib-source", source))
    if call.shadow:
        found.append(("x-meshlib-mirror", "1"))
    return tuple(found)
