"""The mesh's own header fields: what a client sends, what a server believes, what an application never sees.

Rules:
  * `x-meshlib-*` is believed of every caller that is served at all: the adapters have refused who has no verified
    SPIFFE id, but where mTLS is disabled;
  * in a response only the mesh says `x-meshlib-*`: what an application relays of another's answer is removed;
  * `x-forwarded-client-cert` and `x-envoy-*` are never passed on: identity comes from the TLS session alone;
  * a name is the same in every spelling: case, `_` for `-` (WSGI makes them one), blanks around it; only
    the canonical spelling of `x-meshlib-*` is kept;
  * a value that is not what it must be, or is there twice, is as if it were absent: garbage is ignored, not an error.
Sources: Envoy `headers_with_underscores_action`, Istio's sanitising of XFCC, RFC 9110 §5.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from ..call import FOREVER
from ..served import Served

if TYPE_CHECKING:
    from ..call import Call, Fields
    from ..identity.spiffe import SpiffeId

DEADLINE_MS = b"x-meshlib-deadline-ms"
ATTEMPT = b"x-meshlib-attempt"
CRITICALITY = b"x-meshlib-criticality"
MIRROR = b"x-meshlib-mirror"
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

_NOTED = frozenset((b"traceparent", b"tracestate", b"content-length"))
_DEADLINE = re.compile(rb"[0-9]{1,10}").fullmatch
_NUMBER = re.compile(rb"[0-9]{1,4}").fullmatch
_LEVEL = re.compile(rb"[0-9A-Za-z_+.-]{1,%d}" % CRITICALITY_CHARS_MAX).fullmatch


class Sifted:
    """A request's fields, gone through once. `fields`: what the application may see, in order, unchanged. `mesh`: the
    mesh's own among them, by name; a name that is there twice has no value. `parents`, `states`: every `traceparent`
    and `tracestate`. `declared`: the content length, 0 where none is said.
    """

    __slots__ = ("declared", "fields", "mesh", "parents", "states")

    def __init__(self) -> None:
        self.fields: Fields = []
        self.mesh: dict[bytes, bytes] = {}
        self.parents: list[str] = []
        self.states: list[str] = []
        self.declared = 0


def sift(headers: Iterable[tuple[bytes, bytes]]) -> Sifted:
    """Take what may not pass out of the fields of a request, and note what the mesh reads. Names as ASGI has them,
    in lower case; what may not pass is found in any spelling.
    """
    sifted = Sifted()
    keep = sifted.fields.append
    for field in headers:
        name, value = field
        if name[:1] in b"xX \t":
            if not _may_stay(name, sifted.mesh, value):
                continue
        elif name in _NOTED:
            text = value.strip(b" \t")
            if name == b"traceparent":
                sifted.parents.append(text.decode("latin-1"))
            elif name == b"tracestate":
                sifted.states.append(text.decode("latin-1"))
            elif value.isdigit() and not sifted.declared:
                sifted.declared = int(value[:20])
        keep(field)
    return sifted


def strip_environ(environ: MutableMapping[str, Any]) -> None:
    """The same for a WSGI environ, in place. Values that were there twice arrive joined by a comma, as garbage."""
    for key in [k for k in environ if k.startswith("HTTP_X")]:
        if _is_foreign(key[5:].lower().replace("_", "-").encode("latin-1", "replace")):
            del environ[key]


def without_own(headers: Iterable[tuple[bytes, bytes]]) -> Fields:
    """An application's response fields without `x-meshlib-*`, in any spelling: those are the mesh's word, not its."""
    return [(n, v) for n, v in headers if n[:1] not in b"xX \t" or not _plain(n).startswith(b"x-meshlib-")]


def read_served(mesh: Mapping[bytes, bytes], peer: SpiffeId | None, now: Callable[[], float]) -> Served:
    """The call being served, from the mesh's own fields of a request: `Sifted.mesh`."""
    served = Served(now, peer=peer)
    if mesh:
        _read(served, mesh, now)
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
    if call.shadow:
        lines += b"x-meshlib-mirror: 1\r\n"
    return lines


def _may_stay(name: bytes, mesh: dict[bytes, bytes], value: bytes) -> bool:
    """Is this field, in whatever spelling, none of ours? Or ours, spelt as we spell it: then it is noted in `mesh`."""
    plain = _plain(name)
    if plain.startswith(b"x-meshlib-"):
        if plain != name.lower():
            return False
        mesh[plain] = b"" if plain in mesh else value.strip(b" \t")
        return True
    return not _is_foreign(plain)


def _is_foreign(plain: bytes) -> bool:
    return plain == b"x-forwarded-client-cert" or plain.startswith(b"x-envoy-")


def _plain(name: bytes) -> bytes:
    return name.strip(b" \t").lower().replace(b"_", b"-")


def _read(served: Served, sent: Mapping[bytes, bytes], now: Callable[[], float]) -> None:
    if _DEADLINE(sent.get(DEADLINE_MS, b"")):
        served.deadline = now() + min(int(sent[DEADLINE_MS]), DEADLINE_MS_MAX) / 1000
    if _NUMBER(sent.get(ATTEMPT, b"")):
        served.attempt = min(max(1, int(sent[ATTEMPT])), ATTEMPT_MAX)
    if _LEVEL(sent.get(CRITICALITY, b"")):
        served.criticality = sent[CRITICALITY].decode("ascii")
    served.mirror = sent.get(MIRROR) == b"1"
