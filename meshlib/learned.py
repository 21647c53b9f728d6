"""What this process has learned, and what outlives a policy version: nodes, budgets, limits, locks, by name.

A new policy asks for them again by service and address and gets the same objects; what it no longer names is let go.
One lock per service guards everything that its calls share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from .policy.budget import RetryBudget
from .policy.limit import Limit
from .policy.node import Node

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .policy.outlier import OutlierPolicy
    from .runtime import Lock

    MakeNode = Callable[[str, Endpoint, OutlierPolicy], Node]


class Learned:
    """One per process and mesh; a forked child begins with a new one. Used under the mesh's own lock."""

    def __init__(self, make_lock: Callable[[], Lock], make_node: MakeNode | None = None) -> None:
        self._make_lock, self._make_node = make_lock, make_node or _node
        self._locks: dict[str, Lock] = {}
        self._nodes: dict[tuple[str, str], Node] = {}
        self._budgets: dict[tuple[str, float, float], RetryBudget] = {}
        self._limits: dict[str, Limit] = {}

    def lock(self, service: str) -> Lock:
        """The lock of a service."""
        found = self._locks.get(service)
        if found is None:
            found = self._locks[service] = self._make_lock()
        return found

    def node(self, service: str, endpoint: Endpoint, outlier: OutlierPolicy) -> Node:
        """The node of an address, under the newest policy."""
        key = (service, endpoint.address)
        known = self._nodes.get(key)
        if known is None:
            known = self._nodes[key] = self._make_node(service, endpoint, outlier)
            return known
        with self.lock(service):
            return known.updated(endpoint, outlier)

    def budget(self, service: str, percent: float, min_per_second: float) -> RetryBudget:
        """The retry budget of a destination; routes with terms of their own have one of their own."""
        terms = (service, percent, min_per_second)
        known = self._budgets.get(terms)
        if known is None:
            known = self._budgets[terms] = RetryBudget(percent, min_per_second)
        return known

    def limit(self, service: str, max_requests: int) -> Limit:
        """The concurrency limit of a destination; what is in flight is kept when the limit changes."""
        known = self._limits.get(service)
        if known is None:
            known = self._limits[service] = Limit(service, max_requests, self.lock(service))
        known.max_requests = max_requests
        return known

    def nodes(self) -> list[tuple[str, Node]]:
        """(service, node) of everything that is in use."""
        return [(service, node) for (service, _), node in self._nodes.items()]

    def retain(self, nodes: Collection[tuple[str, str]], budgets: Collection[tuple[str, float, float]]) -> None:
        """Let go of what no policy names any more; `nodes` has (service, address), `budgets` their terms."""
        for key in [key for key in self._nodes if key not in nodes]:
            del self._nodes[key]
        for terms in [terms for terms in self._budgets if terms not in budgets]:
            del self._budgets[terms]


def _node(service: str, endpoint: Endpoint, outlier: OutlierPolicy) -> Node:
    return Node(endpoint, outlier, service)
