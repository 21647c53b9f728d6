"""Who decides, what goes on the wire, which spans there are: with an SDK, with only the API, and by the W3C suite."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from meshlib.call import Attempt, Call, Reply, TraceContext
from meshlib.endpoint import Endpoint
from meshlib.errors import MeshError, TransportError
from meshlib.served import Served
from meshlib.stack import Service
from meshlib.telemetry.traceparent import parse_traceparent, parse_tracestate, render
from meshlib.telemetry.tracing import AttemptTrace, CallTrace, ServedTrace, Tracing

VECTORS = Path(__file__).resolve().parents[2] / "../shared/conformance/traceparent.json"
NODE = Endpoint("127.0.0.1", 8080)
PARENT = TraceContext(0xABC, 0xDEF, True, "vendor=1")
UNSAMPLED = TraceContext(0xABC, 0xDEF, False, "vendor=1")


class Spans:
    """A provider that keeps what it is given."""

    def __init__(self, **options: Any) -> None:
        self.kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.kept))

    def __getitem__(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.kept.get_finished_spans() if span.name == name]
        return span

    def names(self) -> list[str]:
        return sorted(span.name for span in self.kept.get_finished_spans())


class Chance(random.Random):
    """Known bits, and a coin whose throws are counted."""

    throws = 0

    def random(self) -> float:
        self.throws += 1
        return super().random()


class Wire:
    """A leaf that keeps the place in the trace of each attempt, and answers."""

    def __init__(self, reply: Reply | BaseException | None = None) -> None:
        self.reply, self.seen = reply or Reply(200, []), []  # type: Reply | BaseException, list[TraceContext | None]

    async def __call__(self, call: Call) -> Reply:
        self.seen.append(call.trace)
        if isinstance(self.reply, BaseException):
            raise self.reply
        return self.reply


def client(tracing: Tracing, leaf: Service) -> Service:
    return partial(CallTrace(tracing, "orders"), service=partial(AttemptTrace(tracing, NODE), service=leaf))


def once(tracing: Tracing, call: Call | None = None, leaf: Wire | None = None) -> TraceContext:
    """One call through the client's filters: where its attempt was in the trace."""
    wire = leaf or Wire()
    asyncio.run(client(tracing, wire)(call or Call("orders", "GET", b"/items/1?token=x")))  # type: ignore[arg-type]
    seen = wire.seen[-1]
    assert seen is not None
    return seen


@pytest.mark.parametrize(("sample", "sampled"), [(0.0, False), (1.0, True)])
def test_the_coin_decides_roots(sample: float, sampled: bool) -> None:
    """A call without a parent is recorded by our own coin: one throw, and no span where it says no."""
    spans, chance = Spans(), Chance(1)
    trace = once(Tracing(sample, chance, spans.provider))
    assert (trace.sampled, chance.throws, bool(spans.names())) == (sampled, 1, sampled)
    assert trace.trace_id
    assert trace.span_id


def test_the_coin_is_fair() -> None:
    """A share of 10 % records about a tenth of the roots: within 5 σ of 2,000 throws."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    tracing = Tracing(0.1, random.Random(seed))
    sampled = sum(tracing.unrecorded(None) is None for _ in range(2000))
    assert abs(sampled - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_sample_range(sample: float) -> None:
    """A share outside 0 to 1 is refused."""
    with pytest.raises(ValueError, match="sample"):
        Tracing(sample, random.Random(1))


@pytest.mark.parametrize(("parent", "sample"), [(UNSAMPLED, 1.0), (PARENT, 0.0)])
@pytest.mark.parametrize("how", ["served", "header"])
def test_a_parent_decides_children(parent: TraceContext, sample: float, how: str) -> None:
    """Below a parent the coin is not thrown: its decision, its trace and its state are kept, its span id is not."""
    spans, chance = Spans(), Chance(1)
    call = Call("orders", "GET", b"/", served=Served(lambda: 0.0, trace=parent) if how == "served" else None)
    call.trace = parent if how == "header" else None
    trace = once(Tracing(sample, chance, spans.provider), call)
    assert (trace.trace_id, trace.sampled, trace.state) == (parent.trace_id, parent.sampled, "vendor=1")
    assert trace.span_id != parent.span_id
    assert (chance.throws, bool(spans.names())) == (0, parent.sampled)


def test_the_current_span_is_the_parent() -> None:
    """A call made inside a span of the application is its child, and not of a header set by hand."""
    spans = Spans()
    call = Call("orders", "GET", b"/", trace=TraceContext(0x99, 0x98, True))
    with spans.provider.get_tracer("app").start_as_current_span("app") as app:
        trace = once(Tracing(0.0, random.Random(1), spans.provider), call)
    assert trace.trace_id == app.get_span_context().trace_id
    above = spans["GET orders"].parent
    assert above is not None
    assert above.span_id == app.get_span_context().span_id


def test_state_that_opentelemetry_cannot_hold_is_kept() -> None:
    """A tracestate key of W3C level 2, which the OpenTelemetry API refuses, goes through a recorded request."""
    spans, wire = Spans(), Wire()
    tracing = Tracing(0.0, random.Random(1), spans.provider)
    state = "t" * 242 + "@v=1"

    async def app(call: Call) -> None:
        await client(tracing, wire)(Call("orders", "GET", b"/", served=call.served))

    serve(tracing, TraceContext(0xABC, 0xDEF, True, state), app)
    assert spans.names() == ["GET", "GET orders", "attempt 1"]
    assert [trace and trace.state for trace in wire.seen] == [state]


def test_the_served_call_wins_over_a_foreign_current_span() -> None:
    """A span of another trace that is current does not take an outgoing call out of the trace being served."""
    spans = Spans()
    call = Call("orders", "GET", b"/", served=Served(lambda: 0.0, trace=PARENT))
    with spans.provider.get_tracer("app").start_as_current_span("other"):
        trace = once(Tracing(0.0, random.Random(1), spans.provider), call)
    assert trace.trace_id == PARENT.trace_id


def test_call_and_attempts_are_nested_client_spans() -> None:
    """The call is one CLIENT span; each attempt a CLIENT span below it, with endpoint, number and reason."""
    spans, wire = Spans(), Wire(Reply(503, []))
    tracing = Tracing(1.0, random.Random(1), spans.provider)

    async def twice(call: Call) -> Reply:
        attempt: Service = partial(AttemptTrace(tracing, NODE), service=wire)
        call.route = SimpleNamespace(name="main")
        call.trail.attempts.append(Attempt(1, NODE, ("the only one of {}", 1), 0.0))
        await attempt(call)
        wire.reply = Reply(200, [])
        again = call.fork()
        call.trail.attempts.append(Attempt(2, NODE, ("less loaded than {}", "b:1"), 0.0))
        return await attempt(again)

    asyncio.run(CallTrace(tracing, "orders")(Call("orders", "POST", b"/items?token=x"), twice))  # type: ignore[arg-type]
    whole, first, second = spans["POST orders"], spans["attempt 1"], spans["attempt 2"]
    assert {whole.kind, first.kind, second.kind} == {SpanKind.CLIENT}
    assert whole.parent is None
    assert first.parent is not None
    assert second.parent is not None
    assert first.parent.span_id == second.parent.span_id == whole.context.span_id
    assert [trace and trace.span_id for trace in wire.seen] == [first.context.span_id, second.context.span_id]
    assert whole.attributes == {
        "http.request.method": "POST",
        "url.path": "/items",
        "server.address": "orders",
        "http.response.status_code": 200,
    }
    assert second.attributes == {
        "http.request.method": "POST",
        "url.path": "/items",
        "meshlib.route": "main",
        "server.address": "127.0.0.1",
        "server.port": 8080,
        "meshlib.endpoint": "127.0.0.1:8080",
        "http.request.resend_count": 1,
        "meshlib.picked": "less loaded than b:1",
        "http.response.status_code": 200,
    }
    assert (first.attributes or {})["meshlib.picked"] == "the only one of 1"
    assert (first.attributes or {})["error.type"] == "503"
    assert [span.status.status_code for span in (whole, first, second)] == [
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TransportError("cut\r\nx", phase="read", cause="reset"), "transport"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyError("bug"), "internal"),
    ],
)
def test_errors_are_recorded_with_their_kind(error: BaseException, kind: str) -> None:
    """A call that raised has ended spans with the kind of its error, and the error goes on."""
    spans = Spans()
    with pytest.raises(type(error)):
        once(Tracing(1.0, random.Random(1), spans.provider), leaf=Wire(error))
    for name in ("GET orders", "attempt 1"):
        assert (spans[name].attributes or {})["error.type"] == kind
        assert spans[name].status.status_code is StatusCode.ERROR
        assert "\n" not in (spans[name].status.description or "")


@pytest.mark.parametrize("error", [None, TransportError("cut", phase="read", cause="closed")])
def test_a_streamed_reply_ends_its_spans_with_its_body(error: MeshError | None) -> None:
    """Spans of a streamed reply are open until its body is over, and say how it ended."""

    class Stream:
        async def read(self) -> bytes:
            return b""

        async def aclose(self) -> None:
            return None

    spans, reply = Spans(), Reply(200, [], stream=Stream())
    once(Tracing(1.0, random.Random(1), spans.provider), leaf=Wire(reply))
    assert spans.names() == []
    reply.end(error)
    assert spans.names() == ["GET orders", "attempt 1"]
    assert (spans["GET orders"].attributes or {}).get("error.type") == (error and error.kind)


def test_hostile_text_stays_out_of_names() -> None:
    """An unknown method is `HTTP` and `_OTHER`; a path is one line and bounded, its query absent."""
    spans = Spans()
    call = Call("orders", "EV\x1bIL", b"/a\r\n\xff" + b"x" * 5000 + b"?token=secret")
    once(Tracing(1.0, random.Random(1), spans.provider), call)
    attributes = spans["HTTP orders"].attributes or {}
    assert attributes["http.request.method"] == "_OTHER"
    assert str(attributes["url.path"]).startswith("/a\\x0d\\x0aÿxxx")
    assert len(str(attributes["url.path"])) == 1024 + 6
    assert "secret" not in str(dict(attributes))


def test_the_sdk_may_say_no() -> None:
    """A provider whose sampler drops what the coin took: nothing is recorded, and the wire says so too."""
    spans = Spans(sampler=ALWAYS_OFF)
    trace = once(Tracing(1.0, random.Random(1), spans.provider))
    assert not trace.sampled
    assert spans.names() == []


@pytest.mark.parametrize(("name", "sampled"), [("always_on", True), ("always_off", False)])
def test_the_sampler_of_the_environment_decides_roots(
    name: str, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With OTEL_TRACES_SAMPLER the SDK decides roots, and the coin is not thrown."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    spans, chance = Spans(), Chance(1)
    trace = once(Tracing(0.0 if sampled else 1.0, chance, spans.provider))
    assert (trace.sampled, chance.throws, bool(spans.names())) == (sampled, 0, sampled)


@pytest.mark.parametrize("sample", [0.0, 1.0])
def test_with_only_the_api_the_context_is_our_own(sample: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an SDK roots and children go out with valid ids of our own and the coin's decision."""
    tracing = Tracing(sample, random.Random(1), otel.NoOpTracerProvider())
    root = once(tracing)
    assert parse_traceparent([render(root)[13:68].decode()]) is not None
    assert root.sampled is bool(sample)
    child = once(tracing, Call("orders", "GET", b"/", trace=PARENT))
    assert (child.trace_id, child.sampled, child.state) == (PARENT.trace_id, True, "vendor=1")
    assert child.span_id != PARENT.span_id
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    assert once(Tracing(sample, random.Random(1), otel.NoOpTracerProvider())).sampled is bool(sample)


def test_the_call_gets_its_place_back() -> None:
    """After an attempt, also one that failed, the call is where it was: the next attempt is a sibling."""
    tracing = Tracing(1.0, random.Random(1), Spans().provider)
    for leaf in (Wire(), Wire(TransportError("x", phase="connect", cause="refused", sent=False))):
        call = Call("orders", "GET", b"/", trace=PARENT)
        with ExitStack() as stack:
            if isinstance(leaf.reply, BaseException):
                stack.enter_context(pytest.raises(TransportError))
            asyncio.run(AttemptTrace(tracing, NODE)(call, leaf))  # type: ignore[arg-type]
        assert call.trace is PARENT


def serve(tracing: Tracing, incoming: TraceContext | None, app: Callable[[Call], Any]) -> Served:
    """One request through the server's filter; `app` runs as the application."""
    served = Served(lambda: 0.0)

    async def leaf(call: Call) -> Reply:
        made = app(call)
        if asyncio.iscoroutine(made):
            await made
        return Reply(500, [])

    asyncio.run(ServedTrace(tracing)(Call("shop", "GET", b"/a?b", served=served, trace=incoming), leaf))
    return served


def test_served_span_is_current_for_the_application() -> None:
    """A sampled caller gets a SERVER span below its own; the application's spans nest in it, calls out in theirs."""
    spans, wire = Spans(), Wire()
    tracing = Tracing(0.0, random.Random(1), spans.provider)

    async def app(call: Call) -> None:
        with spans.provider.get_tracer("app").start_as_current_span("work"):
            await client(tracing, wire)(Call("orders", "GET", b"/", served=call.served))

    served = serve(tracing, PARENT, app)
    server, work, out = spans["GET"], spans["work"], spans["GET orders"]
    assert server.kind is SpanKind.SERVER
    assert server.parent is not None
    assert (server.parent.span_id, server.parent.is_remote) == (PARENT.span_id, True)
    assert work.parent == server.context
    assert out.parent is not None
    assert (out.parent.span_id, out.parent.is_remote) == (work.context.span_id, False)
    assert served.trace is not None
    assert (served.trace.span_id, served.trace.state) == (server.context.span_id, "vendor=1")
    assert (server.attributes or {})["error.type"] == "500"
    assert not otel.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("incoming", [None, UNSAMPLED])
def test_the_application_inherits_an_unsampled_decision(incoming: TraceContext | None) -> None:
    """Below a request that is not sampled the application's own spans are in its trace and are not recorded."""
    spans, seen = Spans(), []

    def app(call: Call) -> None:
        with spans.provider.get_tracer("app").start_as_current_span("work") as work:
            seen.append(work.get_span_context())

    served = serve(Tracing(0.0, random.Random(1), spans.provider), incoming, app)
    assert spans.names() == []
    assert served.trace is not None
    assert (seen[0].trace_id, seen[0].trace_flags.sampled) == (served.trace.trace_id, False)
    assert incoming is None or served.trace.trace_id == incoming.trace_id


def test_only_the_api_on_the_server() -> None:
    """Without an SDK the application still sees a valid current span, at the server's own place."""
    seen: list[otel.SpanContext] = []
    tracing = Tracing(1.0, random.Random(1), otel.NoOpTracerProvider())
    served = serve(tracing, PARENT, lambda call: seen.append(otel.get_current_span().get_span_context()))
    assert served.trace is not None
    assert (seen[0].trace_id, seen[0].span_id) == (PARENT.trace_id, served.trace.span_id)
    assert served.trace.span_id != PARENT.span_id
    assert seen[0].trace_flags.sampled


def test_a_failing_application_leaves_nothing_current() -> None:
    """An error of the application ends the span, detaches it, and goes on."""
    spans = Spans()

    def app(call: Call) -> None:
        raise KeyError("bug")

    async def run() -> None:
        tracing = Tracing(1.0, random.Random(1), spans.provider)
        with pytest.raises(KeyError):
            await ServedTrace(tracing)(Call("shop", "GET", b"/"), lambda call: app(call))  # type: ignore[arg-type,func-returns-value]
        assert not otel.get_current_span().get_span_context().is_valid

    asyncio.run(run())
    assert (spans["GET"].attributes or {})["error.type"] == "internal"


def test_served_span_names_the_caller_and_the_route() -> None:
    """The server's span is named by method and route, and carries the verified caller."""
    spans = Spans()
    served = Served(lambda: 0.0, peer="spiffe://shop.example/ns/default/sa/web")  # type: ignore[arg-type]
    call = Call("shop", "GET", b"/", served=served, trace=PARENT)
    call.route = SimpleNamespace(name="main")
    asyncio.run(ServedTrace(Tracing(0.0, random.Random(1), spans.provider))(call, Wire()))  # type: ignore[arg-type]
    assert (spans["GET main"].attributes or {})["meshlib.peer"] == "spiffe://shop.example/ns/default/sa/web"


def propagation() -> list[Any]:
    if not VECTORS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no vectors at {VECTORS}"))]
    return json.loads(VECTORS.read_text())["propagation"]


@pytest.mark.parametrize("mode", ["unsampled", "sdk", "api"])
@pytest.mark.parametrize("entry", propagation(), ids=lambda e: e and e["id"])
def test_propagation_vectors(entry: dict[str, Any], mode: str) -> None:
    """The W3C suite, strict cases too: what a service sends on while it handles a request, recorded or not."""
    provider = Spans().provider if mode == "sdk" else otel.NoOpTracerProvider()
    tracing = Tracing(0.0 if mode == "unsampled" else 1.0, random.Random(1), provider)
    wire = Wire()

    async def app(call: Call) -> None:
        for _ in range(entry["expect"].get("distinct_parent_ids", 1)):
            await client(tracing, wire)(Call("orders", "GET", b"/", served=call.served))

    received: dict[str, list[str]] = {"traceparent": [], "tracestate": []}
    for name, value in entry["incoming"]:
        received.setdefault(name.lower(), []).append(value)
    incoming = parse_traceparent(received["traceparent"])
    if incoming is not None:
        incoming.state = parse_tracestate(received["tracestate"])
    serve(tracing, incoming, app)
    check(entry["expect"], [render(trace) for trace in wire.seen if trace is not None])


def check(expect: dict[str, Any], sent: list[bytes]) -> None:
    """Each expectation of a vector, on the header lines that were sent; an unknown one is a failure."""
    heads = [dict(line.split(": ", 1) for line in lines.decode().split("\r\n") if line) for lines in sent]
    parents = [parse_traceparent([head["traceparent"]]) for head in heads]
    assert parents
    assert None not in parents
    traces = {head["traceparent"].split("-")[1] for head in heads}
    spans = {head["traceparent"].split("-")[2] for head in heads}
    state = heads[0].get("tracestate")
    listed = (state or "").split(",")
    keys = dict(member.split("=", 1) for member in listed if member)
    known = {
        "outgoing_traceparent_valid": lambda want: want is True,
        "trace_id": lambda want: traces == {want},
        "parent_id_not": lambda want: want not in spans,
        "trace_id_not": lambda want: not traces & set(want),
        "tracestate_discarded": lambda want: (state is None) is want,
        "empty_tracestate_not_forwarded": lambda want: (state is None) is want,
        "tracestate_lacks": lambda want: not set(want) & set(keys),
        "tracestate_has": lambda want: want.items() <= keys.items(),
        "tracestate_contains": lambda want: set(want) <= set(listed),
        "tracestate_contains_any": lambda want: bool(set(want) & set(listed)),
        "tracestate_order": lambda want: all(listed.index(a) < listed.index(b) for a, b in want),
        "distinct_trace_ids": lambda want: len(traces) == want,
        "distinct_parent_ids": lambda want: len(spans) == want,
    }
    assert [name for name, want in expect.items() if not known[name](want)] == []
