"""The registry's bounds and text, and what the filters count."""

from __future__ import annotations

import asyncio
import logging
import re
from types import SimpleNamespace

import pytest

from meshlib.call import Attempt, Call, Reply
from meshlib.endpoint import Endpoint
from meshlib.errors import DeadlineExceeded, IdentityError, MeshError, NoHealthyEndpoint, TransportError
from meshlib.served import Served
from meshlib.stack import Service
from meshlib.telemetry.families import DROPPED, FAMILIES
from meshlib.telemetry.metrics import SERIES_MAX, CallMetrics, Metrics, ServedMetrics, retry_reason

NODE = Endpoint("127.0.0.1", 8080)
SERIES = re.compile(r'[a-z_]+(\{([a-z_]+="([^"\\\n]|\\[\\"n])*",?)*\})? (\S+)')


class Clock:
    """Monotonic seconds that move when told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Stream:
    """A body that is never read here."""

    async def read(self) -> bytes:
        return b""

    async def aclose(self) -> None:
        return None


def value(metrics: Metrics, series: str) -> float | None:
    """The value of a series in the text, or None."""
    for line in metrics.render().splitlines():
        if line.startswith(series + " "):
            return float(line.rpartition(" ")[2])
    return None


def answering(reply: Reply | BaseException, clock: Clock, took: float = 0.0, tries: int = 0) -> Service:
    async def service(call: Call) -> Reply:
        clock.time += took
        call.trail.attempts += [Attempt(n + 1, NODE, ("only one",), 0.0) for n in range(tries)]
        if tries:
            call.trail.attempts[-1].error = IdentityError("the last attempt is retried by nobody")
        if isinstance(reply, BaseException):
            raise reply
        return reply

    return service


def calls(outcome: str, route: str = "-") -> str:
    return f'meshlib_calls_total{{source="web",destination="orders",route="{route}",class="{outcome}"}}'


def test_every_line_is_well_formed() -> None:
    """The text has HELP and TYPE once per family and every other line is a series, whatever is in a label."""
    metrics = Metrics()
    metrics.counter("meshlib_policy_rejected_total", {"resource": 'a"\n\\\ud800'}).add()
    metrics.gauge("meshlib_certificate_expiry_seconds", {}, lambda: -1.5)
    text = metrics.render()
    assert text.endswith("\n")
    text.encode()
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith("# ") and SERIES.fullmatch(line) is None] == []
    for name, family in FAMILIES.items():
        assert lines.count(f"# TYPE {name} {family.kind}") == 1
        assert lines.count(f"# HELP {name} {family.help}") == 1
    assert "meshlib_certificate_expiry_seconds -1.5" in lines


def test_a_series_is_one_cell() -> None:
    """The same name and labels give the same cell, in any order of labels."""
    metrics = Metrics()
    cell = metrics.counter("meshlib_attempts_total", {"destination": "orders", "reason": "first"})
    assert metrics.counter("meshlib_attempts_total", {"reason": "first", "destination": "orders"}) is cell


@pytest.mark.parametrize(
    ("name", "labels"),
    [("meshlib_paths_total", {}), ("meshlib_served_duration_seconds", {}), ("meshlib_attempts_total", {"path": "/x"})],
)
def test_unknown_series_are_refused(name: str, labels: dict[str, str]) -> None:
    """A name, a type or a label that no family has is the programmer's error, said at once."""
    with pytest.raises(ValueError, match=name):
        Metrics().counter(name, labels)


def test_series_bound() -> None:
    """The last series within the bound has a cell of its own; those beyond share `other` and are counted as dropped."""
    metrics, name = Metrics(), "meshlib_policy_rejected_total"
    cells = [metrics.counter(name, {"resource": f"r{n}"}) for n in range(SERIES_MAX)]
    assert len(set(map(id, cells))) == SERIES_MAX
    assert value(metrics, f'{DROPPED}{{family="{name}"}}') is None
    beyond = [metrics.counter(name, {"resource": f"x{n}"}) for n in range(3)]
    assert len(set(map(id, beyond))) == 1
    beyond[0].add(2)
    assert value(metrics, f'{name}{{resource="other"}}') == 2
    assert value(metrics, f'{DROPPED}{{family="{name}"}}') == 3
    assert metrics.counter(name, {"resource": "r7"}) is cells[7]


def test_mirrors_and_faults_are_counted_by_what_became_of_them() -> None:
    """Bound once with who, whom and which route; the word of each event is the last label."""
    metrics = Metrics()
    mirrored, faults = metrics.mirrored("web", "orders", "main"), metrics.faults_injected("web", "orders", "main")
    for outcome in ("sent", "sent", "dropped"):
        mirrored(outcome)
    metrics.mirrored("web", "orders", "main")("sent")
    faults("delay")
    of = 'source="web",destination="orders",route="main"'
    assert value(metrics, f'meshlib_mirrored_total{{{of},outcome="sent"}}') == 3
    assert value(metrics, f'meshlib_mirrored_total{{{of},outcome="dropped"}}') == 1
    assert value(metrics, f'meshlib_faults_injected_total{{{of},kind="delay"}}') == 1
    assert value(metrics, f'meshlib_faults_injected_total{{{of},kind="abort"}}') is None


def test_gauges_are_read_replaced_and_removed() -> None:
    """A gauge shows what its newest reader says at the scrape, and is gone when that reader is taken out."""
    metrics, series = Metrics(), 'meshlib_policy_version{resource="orders"}'
    first = metrics.gauge("meshlib_policy_version", {"resource": "orders"}, lambda: 1)
    second = metrics.gauge("meshlib_policy_version", {"resource": "orders"}, lambda: 2)
    first()
    assert value(metrics, series) == 2
    second()
    assert value(metrics, series) is None


def test_gauge_bound() -> None:
    """A gauge beyond the bound is not shown; one that is taken out makes room."""
    metrics, name = Metrics(), "meshlib_policy_version"
    out = [metrics.gauge(name, {"resource": f"r{n}"}, lambda: 1) for n in range(SERIES_MAX)]
    metrics.gauge(name, {"resource": "late"}, lambda: 1)()
    metrics.gauge(name, {"resource": "late"}, lambda: 1)
    assert value(metrics, f'{name}{{resource="late"}}') is None
    assert value(metrics, f'{DROPPED}{{family="{name}"}}') == 2
    out[0]()
    metrics.gauge(name, {"resource": "late"}, lambda: 1)
    assert value(metrics, f'{name}{{resource="late"}}') == 1


def test_a_broken_gauge_costs_nobody_the_scrape(caplog: pytest.LogCaptureFixture) -> None:
    """A reader that raises is shown as NaN and named in the log; the rest is there."""
    metrics = Metrics()
    metrics.gauge("meshlib_certificate_expiry_seconds", {}, lambda: 1 / 0)
    metrics.gauge("meshlib_policy_version", {"resource": "r"}, lambda: 7)
    with caplog.at_level(logging.WARNING, "meshlib.telemetry"):
        text = metrics.render()
    assert "meshlib_certificate_expiry_seconds NaN" in text
    assert 'meshlib_policy_version{resource="r"} 7' in text
    assert "meshlib_certificate_expiry_seconds" in caplog.text


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "2xx"), (304, "3xx"), (404, "4xx"), (503, "5xx"), (999, "other")]
)
def test_replies_are_counted_by_class_and_timed(status: int, outcome: str) -> None:
    """A reply is one call of its class, with the time that passed."""
    metrics, clock = Metrics(), Clock()
    measure = CallMetrics(metrics, "web", "orders", clock)
    asyncio.run(measure(Call("orders", "GET", b"/secret/path"), answering(Reply(status, []), clock, took=0.25)))
    duration = 'meshlib_call_duration_seconds_sum{source="web",destination="orders",route="-"}'
    assert (value(metrics, calls(outcome)), value(metrics, duration)) == (1, 0.25)
    assert "secret" not in metrics.render()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NoHealthyEndpoint("orders", {}), "no_endpoint"),
        (TransportError("x", phase="read", cause="reset"), "transport"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (KeyError("bug"), "internal"),
    ],
)
def test_errors_are_counted_by_kind(error: BaseException, outcome: str) -> None:
    """An error is counted by its kind, a cancellation as `cancelled`, a bug as `internal`; all are passed on."""
    metrics, clock = Metrics(), Clock()
    call = Call("orders", "GET", b"/")
    call.route = SimpleNamespace(name="main")
    with pytest.raises(type(error)):
        CallMetrics(metrics, "web", "orders", clock)(call, answering(error, clock)).send(None)
    assert value(metrics, calls(outcome, "main")) == 1


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "2xx"), (TransportError("cut", phase="read", cause="closed"), "transport")]
)
def test_a_streamed_reply_ends_with_its_body(error: MeshError | None, outcome: str) -> None:
    """Nothing is counted at the head; the body's end decides class and time."""
    metrics, clock = Metrics(), Clock()
    reply = Reply(200, [], stream=Stream())
    asyncio.run(CallMetrics(metrics, "web", "orders", clock)(Call("orders", "GET", b"/"), answering(reply, clock)))
    assert "meshlib_calls_total{" not in metrics.render()
    clock.time += 4
    reply.end(error)
    reply.end(None)
    duration = 'meshlib_call_duration_seconds_sum{source="web",destination="orders",route="-"}'
    assert (value(metrics, calls(outcome)), value(metrics, duration)) == (1, 4)


def test_attempts_are_counted_from_the_trail() -> None:
    """Each attempt is counted once, for the failure before it; a call refused before its first has none."""
    metrics, clock = Metrics(), Clock()
    measure = CallMetrics(metrics, "web", "orders", clock)
    first, retried = (f'meshlib_attempts_total{{destination="orders",reason="{r}"}}' for r in ("first", "retry_status"))
    asyncio.run(measure(Call("orders", "GET", b"/"), answering(Reply(200, []), clock, tries=3)))
    assert (value(metrics, first), value(metrics, retried)) == (1, 2)
    asyncio.run(measure(Call("orders", "GET", b"/"), answering(Reply(200, []), clock, tries=0)))
    assert (value(metrics, first), value(metrics, retried)) == (1, 2)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "retry_status"),
        (TransportError("x", phase="connect", cause="refused"), "retry_connect_failure"),
        (TransportError("x", phase="read", cause="reset"), "retry_reset"),
        (DeadlineExceeded("x", phase="read", sent=True), "retry_timeout"),
        (IdentityError("x"), "retry_identity"),
    ],
)
def test_retry_reasons(error: MeshError | None, reason: str) -> None:
    """The reason of a retry is how the attempt before it failed."""
    attempt = Attempt(1, NODE, ("only one",), 0.0)
    attempt.error = error
    assert retry_reason(attempt) == reason


def test_served_by_verified_caller() -> None:
    """A request is counted for its caller's service, or `-` where it has no identity."""
    metrics, clock = Metrics(), Clock()
    measure = ServedMetrics(metrics, clock)
    for peer in (None, SimpleNamespace(service="web.default"), SimpleNamespace(service=None)):
        call = Call("orders", "GET", b"/", served=Served(clock, peer=peer))  # type: ignore[arg-type]
        asyncio.run(measure(call, answering(Reply(200, []), clock, took=2)))
    for source in ("-", "web.default", "other"):
        assert value(metrics, f'meshlib_served_total{{source="{source}",route="-",class="2xx"}}') == 1
        assert value(metrics, f'meshlib_served_duration_seconds_sum{{source="{source}",route="-"}}') == 2


def test_served_callers_are_bounded() -> None:
    """Any number of callers makes at most the bounded number of series, and every request is still counted."""
    metrics, clock = Metrics(), Clock()
    measure = ServedMetrics(metrics, clock)
    service = answering(Reply(200, []), clock)

    async def serve() -> None:
        for n in range(SERIES_MAX + 5):
            peer = SimpleNamespace(service=f"s{n}")
            await measure(Call("orders", "GET", b"/", served=Served(clock, peer=peer)), service)  # type: ignore[arg-type]

    asyncio.run(serve())
    counted = [line for line in metrics.render().splitlines() if line.startswith("meshlib_served_total{")]
    assert len(counted) == SERIES_MAX + 1
    assert len(measure._cells) == SERIES_MAX
    assert counted[-1] == 'meshlib_served_total{source="other",route="other",class="other"} 5'
