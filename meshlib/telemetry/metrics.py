"""The numbers of `/metrics`: the registry that binds and renders them, and the filters that count calls.

Rules.
  * The families are the ones of `families.py`: no path, method or header is ever a label.
  * A family has at most `SERIES_MAX` series; what comes later is counted on one series whose labels are all `other`,
    and `meshlib_metric_series_dropped_total` says how often that happened. A gauge beyond the bound is not shown.
  * A call is over when its body is. Cancelled is a class of its own: it says nothing about the peer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from ..call import Attempt, Call, Reply
from ..errors import DeadlineExceeded, MeshError, TransportError
from ..stack import Service
from .cells import LOCK, Counter, Histogram, braced, label_text, number, record
from .families import DROPPED, FAMILIES

SERIES_MAX = 1000
"""Series per family. 1,000 histograms are about 1.3 MiB of text per scrape."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of `Metrics.render`."""

_LOG = logging.getLogger("meshlib.telemetry")
_OTHER = "other"


Cell = Counter | Histogram
CellT = TypeVar("CellT", Counter, Histogram)


class Metrics:
    """The metrics of one mesh. Any thread may bind, count and render."""

    def __init__(self) -> None:
        self._cells: dict[str, dict[tuple[str, ...], Cell]] = {name: {} for name in FAMILIES}
        self._gauges: dict[str, dict[tuple[str, ...], Callable[[], float]]] = {name: {} for name in FAMILIES}

    def counter(self, name: str, labels: Mapping[str, str]) -> Counter:
        """The counter of this series, the same one each time. ValueError: not a counter of `FAMILIES` or its labels."""
        return self._bind(name, _values(name, "counter", labels), Counter)

    def histogram(self, name: str, labels: Mapping[str, str]) -> Histogram:
        """The histogram of this series, the same one each time; ValueError as for `counter`."""
        return self._bind(name, _values(name, "histogram", labels), Histogram)

    def mirrored(self, source: str, destination: str, route: str) -> Callable[[str], None]:
        """Counts a call drawn for a mirror, by its outcome (policy/mirror.py). `destination`: where the copy goes."""
        return self._counting("meshlib_mirrored_total", source, destination, route, "outcome")

    def faults_injected(self, source: str, destination: str, route: str) -> Callable[[str], None]:
        """Counts an injected fault, by its kind (policy/fault.py)."""
        return self._counting("meshlib_faults_injected_total", source, destination, route, "kind")

    def gauge(self, name: str, labels: Mapping[str, str], read: Callable[[], float]) -> Callable[[], None]:
        """Show what `read()` says at each scrape, in place of any earlier `read` of this series.

        Returns a function that takes the series out again. ValueError as for `counter`.
        """
        values, gauges = _values(name, "gauge", labels), self._gauges[name]
        with LOCK:
            if values in gauges or len(gauges) < SERIES_MAX:
                gauges[values] = read
                return partial(self._remove, name, values, read)
        self._dropped(name)
        return lambda: None

    def render(self) -> str:
        """The text of `/metrics`, as `CONTENT_TYPE`."""
        with LOCK:
            cells = {name: list(series.items()) for name, series in self._cells.items()}
            gauges = {name: list(series.items()) for name, series in self._gauges.items()}
        lines = []
        for name, family in FAMILIES.items():
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
            for values, cell in cells[name]:
                lines += cell.lines(name, label_text(dict(zip(family.labels, values, strict=True))))
            for values, read in gauges[name]:
                labels = label_text(dict(zip(family.labels, values, strict=True)))
                lines.append(f"{name}{braced(labels)} {number(_read(name, read))}")
        return "\n".join(lines) + "\n"

    def _counting(self, name: str, source: str, destination: str, route: str, last: str) -> Callable[[str], None]:
        """Binds a series when it is first counted on: there are a handful, most of which stay empty."""
        labels = {"source": source, "destination": destination, "route": route}
        cells: dict[str, Counter] = {}

        def count(value: str) -> None:
            cell = cells.get(value)
            if cell is None:
                cell = cells[value] = self.counter(name, {**labels, last: value})
            cell.add()

        return count

    def _bind(self, name: str, values: tuple[str, ...], make: Callable[[], CellT]) -> CellT:
        series = self._cells[name]
        with LOCK:
            cell = series.get(values)
            if cell is None and len(series) < SERIES_MAX:
                cell = series[values] = make()
            if cell is not None:
                return cell  # type: ignore[return-value]  # a family has cells of one kind only
            other = series.setdefault((_OTHER,) * len(values), make())
        self._dropped(name)
        return other  # type: ignore[return-value]

    def _dropped(self, name: str) -> None:
        self.counter(DROPPED, {"family": name}).add()

    def _remove(self, name: str, values: tuple[str, ...], read: Callable[[], float]) -> None:
        with LOCK:
            if self._gauges[name].get(values) is read:
                del self._gauges[name][values]


class _Timed:
    """What the two filters share: the outcome and the time of a call, known when its body is over."""

    __slots__ = ("_metrics", "_now")

    def __init__(self, metrics: Metrics, now: Callable[[], float]) -> None:
        self._metrics, self._now = metrics, now

    async def __call__(self, call: Call, service: Service) -> Reply:
        began = self._now()
        try:
            reply = await service(call)
        except BaseException as error:
            self._over(call, began, error_class(error))
            raise
        outcome = _CLASSES.get(reply.status // 100, _OTHER)
        if reply.stream is None:
            self._over(call, began, outcome)
        else:
            reply.at_end(partial(self._streamed, call, began, outcome))
        return reply

    def _streamed(self, call: Call, began: float, answered: str, error: MeshError | None) -> None:
        self._over(call, began, answered if error is None else error.kind)

    def _over(self, call: Call, began: float, outcome: str) -> None:
        raise NotImplementedError


class CallMetrics(_Timed):
    """Client filter, outermost but for the trace: counts each call, its attempts, and times it to the end of its body.

    `now`: monotonic seconds. `source`, `destination`: service names. Cells are bound once per (route, class), which
    the policy bounds. Attempts are read from the trail when the call is over, so retries need not count.
    """

    __slots__ = ("_cells", "_destination", "_first", "_source")

    def __init__(self, metrics: Metrics, source: str, destination: str, now: Callable[[], float]) -> None:
        super().__init__(metrics, now)
        self._source, self._destination = source, destination
        self._cells: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._first = metrics.counter("meshlib_attempts_total", self._for("first"))

    def _over(self, call: Call, began: float, outcome: str) -> None:
        route = "-" if call.route is None else call.route.name
        cells = self._cells.get((route, outcome)) or self._bind(route, outcome)
        attempts = call.trail.attempts
        if not attempts:
            record(self._now() - began, cells[1], cells[0])
            return
        record(self._now() - began, cells[1], cells[0], self._first)
        for failed in attempts[:-1]:
            self._metrics.counter("meshlib_attempts_total", self._for(retry_reason(failed))).add()

    def _bind(self, route: str, outcome: str) -> tuple[Counter, Histogram]:
        labels = {"source": self._source, "destination": self._destination, "route": route}
        cells = self._cells[route, outcome] = (
            self._metrics.counter("meshlib_calls_total", {**labels, "class": outcome}),
            self._metrics.histogram("meshlib_call_duration_seconds", labels),
        )
        return cells

    def _for(self, reason: str) -> dict[str, str]:
        return {"destination": self._destination, "reason": reason}


class ServedMetrics(_Timed):
    """Server filter: counts and times each request served, by its verified caller. `now`: monotonic seconds.

    `source` is the caller's service name, or `-` where it has no verified identity. Callers come and go, so at most
    `SERIES_MAX` cells are kept here; beyond that the registry is asked each time, and answers with `other`.
    """

    __slots__ = ("_cells",)

    def __init__(self, metrics: Metrics, now: Callable[[], float]) -> None:
        super().__init__(metrics, now)
        self._cells: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def _over(self, call: Call, began: float, outcome: str) -> None:
        peer = None if call.served is None else call.served.peer
        source = "-" if peer is None else peer.service or _OTHER
        route = "-" if call.route is None else call.route.name
        cells = self._cells.get((source, route, outcome)) or self._bind(source, route, outcome)
        record(self._now() - began, cells[1], cells[0])

    def _bind(self, source: str, route: str, outcome: str) -> tuple[Counter, Histogram]:
        labels = {"source": source, "route": route}
        cells = (
            self._metrics.counter("meshlib_served_total", {**labels, "class": outcome}),
            self._metrics.histogram("meshlib_served_duration_seconds", labels),
        )
        if len(self._cells) < SERIES_MAX:
            self._cells[source, route, outcome] = cells
        return cells


def error_class(error: BaseException) -> str:
    """The kind of a mesh error; `cancelled` for what is no `Exception`; `internal` for an exception of the program."""
    if isinstance(error, MeshError):
        return error.kind
    return "internal" if isinstance(error, Exception) else "cancelled"


def retry_reason(failed: Attempt) -> str:
    """What the attempt after `failed` was made for: `retry_status`, `retry_connect_failure`, `retry_reset`,
    `retry_timeout`, or `retry_` and the kind of another error.
    """
    match failed.error:
        case None:
            return "retry_status"
        case TransportError(phase=phase):
            return "retry_connect_failure" if phase == "connect" else "retry_reset"
        case DeadlineExceeded():
            return "retry_timeout"
        case error:
            return f"retry_{error.kind}"


_CLASSES = {hundreds: f"{hundreds}xx" for hundreds in range(1, 6)}


def _values(name: str, kind: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    """The label values in the order of the family, or ValueError."""
    family = FAMILIES.get(name)
    if family is None or family.kind != kind:
        raise ValueError(f"{name!r} is not a {kind} of meshlib; FAMILIES has {', '.join(FAMILIES)}")
    if set(labels) != set(family.labels):
        raise ValueError(f"{name} has the labels {family.labels}, not {tuple(labels)}")
    return tuple(labels[label] for label in family.labels)


def _read(name: str, read: Callable[[], float]) -> float:
    """A gauge that cannot be read must not cost the others their scrape."""
    try:
        return float(read())
    except Exception as error:
        _LOG.warning("the gauge %s could not be read, so it is shown as NaN: %r", name, error)
        return float("nan")
