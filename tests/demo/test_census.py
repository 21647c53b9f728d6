"""What /metrics says, read and added up."""

from __future__ import annotations

import math

from meshlib.demo.census import Census, parse, total
from meshlib.telemetry.metrics import Metrics
from meshlib.transport.admin import AdminServer


class Member:
    """A process that has an admin port."""

    address = ""

    def __init__(self, service: str, admin: str, run: int = 1) -> None:
        self.name = self.service = service
        self.admin, self.run = admin, run


def test_what_metrics_renders_is_read_back() -> None:
    """Labels with every escape, numbers, NaN; buckets and comments are left out."""
    metrics = Metrics()
    odd = 'a "quoted" one, {braced}'
    metrics.counter("meshlib_served_total", {"source": odd, "route": "-", "class": "2xx"}).add()
    metrics.gauge("meshlib_certificate_expiry_seconds", {}, lambda: math.nan)
    metrics.gauge("meshlib_policy_version", {"resource": "mesh.yaml"}, lambda: 2**48 - 1)
    metrics.histogram("meshlib_served_duration_seconds", {"source": "-", "route": "-"})
    samples = parse(metrics.render())
    assert total(samples, "meshlib_served_total") == 1
    assert total(samples, "meshlib_policy_version") == 2**48 - 1
    assert math.isnan(total(samples, "meshlib_certificate_expiry_seconds"))
    assert total(samples, "meshlib_no_such") == 0
    assert not [family for family in samples if family.endswith("_bucket")]


def test_a_process_that_has_ended_still_counts() -> None:
    """Each start of a process is counted by its own last scrape: nothing is lost, nothing twice."""
    census = Census()
    for run, calls in ((1, 3), (2, 4)):
        metrics = Metrics()
        metrics.counter("meshlib_served_total", {"source": "shopper.default", "route": "-", "class": "2xx"}).add(calls)
        for reason in ("first", "retry_reset"):
            metrics.counter("meshlib_attempts_total", {"destination": "orders.default", "reason": reason}).add(calls)
        admin = AdminServer("127.0.0.1:0", live=lambda: True, ready=lambda: (True, ""), metrics=metrics.render)
        try:
            census.scrape(Member("storefront", admin.address, run))
            census.scrape(Member("storefront", admin.address, run))
        finally:
            admin.close()
    assert census.edges() == {("shopper", "storefront"): 7}
    assert census.retries() == census.retries("storefront") == 7
    assert census.retries("orders") == 0
