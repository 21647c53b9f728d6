"""What finding a route costs: one of 10,000 against one of 10. Target: at most 3 times as much (issue 4)."""

from __future__ import annotations

import gc
import statistics
import sys
import time

from meshlib.policy.match import Condition, Match
from meshlib.policy.predicate import Predicates
from meshlib.policy.request import Request
from meshlib.policy.route import Backend, Route
from meshlib.policy.route_table import RouteTable

ROUNDS, LOOKUPS, TARGET = 15, 2_000, 3.0
PREDICATES = Predicates(lambda _sentence: None)


def table(routes: int) -> RouteTable:
    """Routes as a gateway has them: hosts, prefixes, exact paths, a header now and then; the last takes everything."""
    made = []
    for i in range(routes - 1):
        path = {"exact": f"/team{i % 97}/service{i}/health"} if i % 4 == 3 else {"prefix": f"/team{i % 97}/service{i}"}
        headers = (Condition("x-version", "exact", str(i % 3)),) if i % 5 == 4 else ()
        made.append(_route(f"r{i}", (f"host{i % 11}.example",) if i % 2 else (), Match(**path, headers=headers)))
    return RouteTable([*made, _route("rest", (), Match())], "edge.default")


def _route(name: str, hostnames: tuple[str, ...], match: Match) -> Route:
    return Route(
        name=name,
        matches=(match,),
        backends=(Backend(service="svc"),),
        idempotent=None,
        timeout_s=1.0,
        stream_idle_timeout_s=30.0,
        hostnames=hostnames,
    )


def asked(routes: int) -> list[tuple[str, dict[str, list[str]]]]:
    """Targets and headers that take routes from all over the table, and some that only the last takes."""
    found = []
    for k in range(50):
        i = k * max(1, routes // 50) % routes
        host = f"host{i % 11}.example"
        found.append((f"/team{i % 97}/service{i}/health?x=1", {"host": [host], "x-version": [str(i % 3)]}))
    return [*found, *[("/nothing/here", {"host": ["other.example"]})] * 10]


def cpu_us(of: RouteTable, requests: list[tuple[str, dict[str, list[str]]]]) -> float:
    """Microseconds of CPU per lookup."""
    empty: list[str] = []
    began = time.process_time()
    for n in range(LOOKUPS):
        target, fields = requests[n % len(requests)]
        of.find(Request("GET", target, lambda name, fields=fields: fields.get(name, empty), PREDICATES))  # type: ignore[misc]
    return (time.process_time() - began) / LOOKUPS * 1e6


def main() -> int:
    """Print the medians and their ratio; 1 where the target is missed."""
    few, many = (table(10), asked(10)), (table(10_000), asked(10_000))
    gc.collect()
    gc.freeze()
    small, large = [], []
    for _ in range(ROUNDS):
        small.append(cpu_us(*few))
        large.append(cpu_us(*many))
    ratio = statistics.median(b / a for a, b in zip(small, large, strict=True))
    print(
        f"a lookup in 10 routes {statistics.median(small):.2f} µs, in 10,000 {statistics.median(large):.2f} µs: "
        f"{ratio:.2f} × (at most {TARGET:g}), medians of {ROUNDS} rounds"
    )
    return 0 if ratio <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
