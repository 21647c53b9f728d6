"""`meshlib_endpoint_state`: one gauge per node in use and state that it may be in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from .policy.node import STATES

if TYPE_CHECKING:
    from .policy.node import Node
    from .telemetry.metrics import Metrics


class NodeGauges:
    """`now`: the clock that calls run on, in monotonic seconds. Used under the mesh's own lock."""

    def __init__(self, metrics: Metrics, now: Callable[[], float]) -> None:
        self._metrics, self._now = metrics, now
        self._shown: dict[tuple[str, str], list[Callable[[], None]]] = {}

    def show(self, in_use: Iterable[tuple[str, Node]]) -> None:
        """Show these (service, node), and no others from now on."""
        nodes = {(service, node.endpoint.address): node for service, node in in_use}
        for key in [key for key in self._shown if key not in nodes]:
            for remove in self._shown.pop(key):
                remove()
        for key, node in nodes.items():
            if key not in self._shown:
                self._shown[key] = [
                    self._metrics.gauge(
                        "meshlib_endpoint_state",
                        {"destination": key[0], "endpoint": key[1], "state": state},
                        partial(self._is_in, node, state),
                    )
                    for state in STATES
                ]

    def _is_in(self, node: Node, state: str) -> float:
        return float(node.state(self._now()) == state)
