"""Where a call is in its trace, and the OpenTelemetry spans of the calls that are sampled.

Rules.
  * Sampling comes first. A root is decided by our own coin; a child by its parent (W3C parent-based). Where
    `OTEL_TRACES_SAMPLER` is set, the SDK's sampler decides roots instead. What is not sampled costs a fresh span id
    and no OpenTelemetry object: an unsampled SDK span costs more than the rest of the stack.
  * The parent of a call is, in this order: the call being served (its own server span, or the application's span that
    is current below it), the current OpenTelemetry span, the `traceparent` that the application set itself.
  * A call is a CLIENT span and so is each attempt: semantic conventions want one CLIENT span per request that is sent
    ("HTTP request retries and redirects", with `http.request.resend_count`), and INTERNAL would hide the attempt from
    every view of who called whom. The call's span is the one above, which has the time between attempts.
  * A span ends when the reply's body does.
  * Without an SDK no span is recorded, but what is sent on is still a valid context with ids of our own.

Why a coin: docs/adr/0006-own-counters-and-coin.md.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from ..call import Call, Reply, TraceContext
from ..endpoint import Endpoint
from ..errors import MeshError
from ..stack import Service
from .metrics import error_class
from .one_line import one_line
from .semconv import attempt_attributes, caller_attributes, endpoint_attributes, request_attributes, span_name

CLIENT_FAILED_FROM, SERVER_FAILED_FROM = 400, 500
"""From this status on a span is an error: a 404 is the caller's, not the server's."""
DESCRIPTION_CHARS_MAX = 512


class Chance(Protocol):
    """The part of `random.Random` that tracing uses."""

    def random(self) -> float:
        """A float in [0, 1)."""

    def getrandbits(self, k: int, /) -> int:
        """`k` random bits."""


class Tracing:
    """What the trace filters of one mesh share. `sample`: the share of roots to record, 0 to 1.

    `provider`: where spans go; None: the process's provider, also one that the application sets later. Reads
    `OTEL_TRACES_SAMPLER` once, here. ValueError: `sample` is out of range.
    """

    __slots__ = ("rng", "sample", "sampler_set", "tracer")

    def __init__(self, sample: float, rng: Chance, provider: otel.TracerProvider | None = None) -> None:
        if not 0 <= sample <= 1:
            raise ValueError(f"sample must be from 0 to 1, not {sample}")
        self.sample, self.rng = sample, rng
        self.sampler_set = bool(os.environ.get("OTEL_TRACES_SAMPLER"))
        self.tracer = otel.get_tracer("meshlib", tracer_provider=provider)

    def unrecorded(self, parent: TraceContext | None) -> TraceContext | None:
        """The next place in the trace when the answer is not to sample; None: sample."""
        if parent is None:
            if self.sampler_set or self.rng.random() < self.sample:
                return None
            return TraceContext(self.trace_id(), self.span_id(), False)
        if parent.sampled:
            return None
        return TraceContext(parent.trace_id, self.span_id(), False, parent.state)

    def start(self, name: str, kind: SpanKind, parent: TraceContext | None) -> tuple[Span, TraceContext]:
        """A span below `parent`, or a root, and its place in the trace; the SDK's sampler may still say no."""
        above = otel.INVALID_SPAN if parent is None else _span_at(parent, remote=kind is SpanKind.SERVER)
        span = self.tracer.start_span(name, otel.set_span_in_context(above), kind)
        made = span.get_span_context()
        if made.is_valid and (parent is None or made.span_id != parent.span_id):
            kept = parent is not None and made.trace_state is above.get_span_context().trace_state
            state = parent.state if parent is not None and kept else made.trace_state.to_header()
            return span, TraceContext(made.trace_id, made.span_id, made.trace_flags.sampled, state)
        if parent is not None:
            return span, TraceContext(parent.trace_id, self.span_id(), parent.sampled, parent.state)
        sampled = not self.sampler_set or self.rng.random() < self.sample
        return span, TraceContext(self.trace_id(), self.span_id(), sampled)

    def trace_id(self) -> int:
        """128 random bits, not all zero."""
        return self.rng.getrandbits(128) or 1

    def span_id(self) -> int:
        """64 random bits, not all zero."""
        return self.rng.getrandbits(64) or 1


class CallTrace:
    """Client filter, outermost: puts the call in its trace (`call.trace`) and records it when it is sampled."""

    __slots__ = ("_service", "_tracing")

    def __init__(self, tracing: Tracing, service: str) -> None:
        self._tracing, self._service = tracing, service

    async def __call__(self, call: Call, service: Service) -> Reply:
        parent = _parent_of(call)
        call.trace = self._tracing.unrecorded(parent)
        if call.trace is not None:
            return await service(call)
        span, call.trace = self._tracing.start(span_name(call, self._service), SpanKind.CLIENT, parent)
        if span.is_recording():
            span.set_attributes(request_attributes(call) | {"server.address": self._service})
        return await _recorded(span, call, service, CLIENT_FAILED_FROM)


class AttemptTrace:
    """Client filter, once per node: a span per attempt of a sampled call; its place is what goes on the wire.

    An attempt that is not sampled goes out with the span id of its call. The call's own place is put back at the end:
    the next attempt is forked from the same call, and is a sibling of this one.
    """

    __slots__ = ("_attributes", "_tracing")

    def __init__(self, tracing: Tracing, endpoint: Endpoint) -> None:
        self._tracing = tracing
        self._attributes = endpoint_attributes(endpoint)

    async def __call__(self, call: Call, service: Service) -> Reply:
        parent = call.trace
        if parent is None or not parent.sampled:
            return await service(call)
        span, call.trace = self._tracing.start(f"attempt {call.number}", SpanKind.CLIENT, parent)
        try:
            if span.is_recording():
                span.set_attributes(request_attributes(call) | self._attributes | attempt_attributes(call))
            return await _recorded(span, call, service, CLIENT_FAILED_FROM)
        finally:
            call.trace = parent


class ServedTrace:
    """Server filter: continues the caller's trace (`call.trace`, None where it has none that is trusted).

    `call.served.trace` becomes the server's own place. It is the current OpenTelemetry span while the application
    runs, recorded or not, so that the application's own spans are below it and inherit the decision.
    """

    __slots__ = ("_tracing",)

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def __call__(self, call: Call, service: Service) -> Reply:
        parent = call.trace
        here = self._tracing.unrecorded(parent)
        if here is not None:
            span: Span = _Unrecorded(here)
        else:
            name = span_name(call, "" if call.route is None else call.route.name)
            span, here = self._tracing.start(name, SpanKind.SERVER, parent)
            if span.is_recording():
                span.set_attributes(request_attributes(call) | caller_attributes(call))
            elif span.get_span_context().span_id != here.span_id:
                span = _Unrecorded(here)
        call.trace = here
        if call.served is not None:
            call.served.trace = here
        token = otel_context.attach(otel.set_span_in_context(span))
        try:
            return await (_recorded(span, call, service, SERVER_FAILED_FROM) if span.is_recording() else service(call))
        finally:
            otel_context.detach(token)


class _Unrecorded(NonRecordingSpan):
    """A place in the trace as a span that records nothing; its SpanContext is made when somebody asks, mostly never."""

    def __init__(self, trace: TraceContext) -> None:
        self._trace = trace

    def get_span_context(self) -> SpanContext:
        return _span_at(self._trace, remote=False).get_span_context()

    def __repr__(self) -> str:
        return f"NonRecordingSpan({self.get_span_context()!r})"


def _parent_of(call: Call) -> TraceContext | None:
    served: TraceContext | None = None if call.served is None else call.served.trace
    if served is not None and not served.sampled:
        return served
    context = otel_context.get_current()
    span = otel.get_current_span(context) if context else otel.INVALID_SPAN
    if span is otel.INVALID_SPAN or not (current := span.get_span_context()).is_valid:
        return served or call.trace
    if served is not None and current.trace_id != served.trace_id:
        return served
    state = current.trace_state.to_header() or ("" if served is None else served.state)
    return TraceContext(current.trace_id, current.span_id, current.trace_flags.sampled, state)


def _span_at(trace: TraceContext, *, remote: bool) -> NonRecordingSpan:
    flags = TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([trace.state]) if trace.state else None
    return NonRecordingSpan(SpanContext(trace.trace_id, trace.span_id, remote, flags, state))


async def _recorded(span: Span, call: Call, service: Service, failed_from: int) -> Reply:
    """Run `service` under `span`, which ends with its reply's body or an error. A status from `failed_from` is one."""
    try:
        reply = await service(call)
    except BaseException as error:
        _fail(span, error_class(error), str(error))
        span.end()
        raise
    if span.is_recording():
        span.set_attribute("http.response.status_code", reply.status)
        if reply.status >= failed_from:
            _fail(span, str(reply.status), "")
    reply.at_end(partial(_end, span))
    return reply


def _end(span: Span, error: MeshError | None) -> None:
    if error is not None:
        _fail(span, error.kind, str(error))
    span.end()


def _fail(span: Span, kind: str, description: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, one_line(description[:DESCRIPTION_CHARS_MAX]) or None)
