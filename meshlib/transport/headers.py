"""The mesh's own header fields: what a client sends, what a server believes, what an application never sees.

Rules:
  * `x-meshlib-*` is believed only from a trusted peer: one with a verified SPIFFE id, or anyone where mTLS is disabled;
  * `x-forwarded-client-cert` and `x-envoy-*` are never passed on: identity comes from the TLS session alone;
  * a name is the same in every spelling: case, `_` for `-` (WSGI makes them one), blanks around it; from a trusted peer
    only the canonical spelling of `x-meshlib-*` is kept;
  * a value that is not what it must be, or is there twice, is as if it were absent: garbage is ignored, not an error.
Sources: Envoy `headers_with_underscores_action`, Istio's sanitising of XFCC, RFC 9110 §5.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from ..call import FOREVER
from ..served import Served

if TYPE_CHECKING:
    from ..call import Call, Fields
    from ..identity.spiffe import SpiffeId

DEADLINE_MS = b"x-meshlib-deadline-ms"
ATTEMPT = b"x-meshlib-attempt"
CRITICALITY = b"x-meshlib-criticality"
SOURCE = b"x-meshlib-source"
NO_RETRY = b"x-meshlib-no-retry"
REFUSED = b"x-meshlib-refused"

PEER = "meshlib.peer"
"""Key of `scope["state"]` and of the WSGI environ: the peer's SpiffeId, or None."""
HOST = "meshlib.host"
"""Key of the lifespan state: the mesh that serves, for the protocol class to find its TLS context."""

DEADLINE_MS_MAX = 86_400_000
"""One day: a longer deadline is as good as a day."""
ATTEMPT_MAX = 1000
CRITICALITY_CHARS_MAX = 32

_DEADLINE = re.compile(rb"[0-9]{1,10}").fullmatch
_NUMBER = re.compile(rb"[0-9]{1,4}").fullmatch
_LEVEL = re.compile(rb"[0-9A-Za-z_+.-]{1,%d}" % CRITICALITY_CHARS_MAX).fullmatch


def strip(headers: Iterable[tuple[bytes, bytes]], *, trusted: bool) -> Fields:
    """The fields an application may see, in order, unchanged. `trusted`: may the mesh's own stay?"""
    return [(n, v) for n, v in headers if n[:1] not in b"xX \t" or _may_stay(n, trusted)]


def strip_environ(environ: MutableMapping[str, Any], *, trusted: bool) -> None:
    """The same for a WSGI environ, in place. Values that were there twice arrive joined by a comma, as garbage."""
    for key in [k for k in environ if k.startswith("HTTP_X")]:
        if not _may_stay(key[5:].lower().replace("_", "-").encode("latin-1", "replace"), trusted):
            del environ[key]


def read_served(
    headers: Iterable[tuple[bytes, bytes]], peer: SpiffeId | None, now: Callable[[], float], *, trusted: bool
) -> Served:
    """The call being served, from the fields of a request that went through `strip`."""
    served = Served(now, peer=peer)
    if not trusted:
        return served
    sent: dict[bytes, bytes] = {}
    for name, value in headers:
        if name[:10] in (b"x-meshlib-", b"X-Meshlib-"):
            key = name.lower()
            sent[key] = b"" if key in sent else value.strip(b" \t")
    if sent:
        _read(served, sent, now)
    return served


def mesh_lines(call: Call, now: float, source: str = "") -> bytes:
    """The header lines a client adds to one attempt, each ended by CRLF.

    `now`: monotonic seconds. `source`: this caller's name, given only where mTLS is disabled. The deadline sent is the
    attempt's, in whole milliseconds, never below 0: work nobody waits for any more need not be begun.
    """
    deadline = min(call.deadline, call.attempt_deadline)
    trace = call.trace
    if trace is not None and deadline < FOREVER:
        lines = b"x-meshlib-deadline-ms: %d\r\nx-meshlib-attempt: %d\r\ntraceparent: 00-%032x-%016x-%02x\r\n" % (
            max(0, (deadline - now) * 1000), call.number, trace.trace_id, trace.span_id, trace.sampled,
        )  # fmt: skip
    else:
        lines = b"x-meshlib-attempt: %d\r\n" % call.number
        if deadline < FOREVER:
            lines += b"x-meshlib-deadline-ms: %d\r\n" % max(0, (deadline - now) * 1000)
        if trace is not None:
            lines += b"traceparent: 00-%032x-%016x-%02x\r\n" % (trace.trace_id, trace.span_id, trace.sampled)
    if trace is not None and trace.state:
        lines += b"tracestate: %b\r\n" % trace.state.encode("ascii")
    if source:
        lines += b"x-meshlib-source: %b\r\n" % source.encode("ascii")
    return lines


def _may_stay(name: bytes, trusted: bool) -> bool:
    """Is this field, in whatever spelling, none of ours? Or ours, spelt as we spell it, from a trusted peer?"""
    plain = name.strip(b" \t").lower().replace(b"_", b"-")
    if plain.startswith(b"x-meshlib-"):
        return trusted and plain == name.lower()
    return not (plain == b"x-forwarded-client-cert" or plain.startswith(b"x-envoy-"))


def _read(served: Served, sent: dict[bytes, bytes], now: Callable[[], float]) -> None:
    if _DEADLINE(sent.get(DEADLINE_MS, b"")):
        served.deadline = now() + min(int(sent[DEADLINE_MS]), DEADLINE_MS_MAX) / 1000
    if _NUMBER(sent.get(ATTEMPT, b"")):
        served.attempt = min(max(1, int(sent[ATTEMPT])), ATTEMPT_MAX)
    if _LEVEL(sent.get(CRITICALITY, b"")):
        served.criticality = sent[CRITICALITY].decode("ascii")
