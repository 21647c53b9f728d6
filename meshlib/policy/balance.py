"""Load balancing: which of the nodes takes this attempt. The hinge between the two halves of the client stack.

`peak_ewma` and `least_request` compare two nodes drawn at random (power of two choices: Mitzenmacher 2001, Finagle,
Envoy choice_count 2). Where weights differ, a weight is drawn first and the two among its nodes, so that a weight is a
share whatever the loads (Finagle's traffic distributor). `round_robin` starts anywhere, so that clients do not march
together. Nodes that may not be picked are passed over; a retry prefers endpoints that the call has not tried (Envoy
`previous_hosts`); when none is left the error says why for each. A call of a session goes to the session's endpoint
while that may be picked and the call has not tried it. Nodes of a later priority are drawn from only while none of an
earlier one is left (RFC 2782).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ..call import Attempt, Call, Reply
from ..errors import DeadlineExceeded, IdentityError, MeshError, NoHealthyEndpoint, TransportError
from .load import FAILURE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime import Lock, Rng
    from ..stack import Service
    from .node import Node
    from .outlier import OutlierPolicy

BalancerName = Literal["peak_ewma", "least_request", "round_robin", "random"]
ALIKE = 1.5
"""Loads within this factor are alike, and fewer in flight decides: else noise would send everything to one of two
equals (docs/adr/0011-alike-loads.md)."""
STALL_S = 0.1
"""A deadline that is noticed this much too late says that our own loop or thread stood still, not the endpoint."""
_NOTHING: Mapping[str, str] = MappingProxyType({})
_ONLY = ("the only endpoint left to pick",)
_ALONE = ("drawn by weight, no other endpoint has this one's",)
_SESSION = ("its session's endpoint",)


class Cluster:
    """The nodes of one subset of a service, how to choose among them, and how an attempt's end is learned from.

    Every method runs under `lock`. `full_attempt_s`: an attempt that timed out sooner than this was cut short by the
    caller, and says nothing about the endpoint; so was a connect that was given less than `connect_timeout_s`.
    `why_empty`: by source, why it has no endpoints.
    """

    def __init__(
        self,
        service: str,
        nodes: Sequence[Node],
        policy: BalancerName,
        outlier: OutlierPolicy,
        lock: Lock,
        connect_timeout_s: float = 1.0,
        why_empty: Mapping[str, str] = _NOTHING,
    ) -> None:
        self.why_empty = why_empty
        self.connect_timeout_s = connect_timeout_s
        self.service, self.nodes, self.policy, self.outlier, self.lock = service, tuple(nodes), policy, outlier, lock
        self._priorities = len({node.endpoint.priority for node in self.nodes}) > 1
        weights = [node.endpoint.weight for node in self.nodes]
        self._cumulative = tuple(accumulate(weights)) if len(set(weights)) > 1 else ()
        self._by_key = {node.key: node for node in self.nodes}
        self._turn = -1
        self._credit = [0] * len(self.nodes)
        self._choose: Callable[[Sequence[Node], float, Rng], tuple[Node, tuple[Any, ...]]] = {
            "peak_ewma": self._peak_ewma,
            "least_request": self._least_request,
            "round_robin": self._round_robin,
            "random": self._random,
        }[policy]

    def pick(
        self, now: float, rng: Rng, tried: Sequence[Attempt] = (), preferred: str = ""
    ) -> tuple[Node, tuple[Any, ...]]:
        """A node and why, as (format, parts …). NoHealthyEndpoint when there is none. `preferred`: a node's key."""
        if preferred:
            kept = self._by_key.get(preferred)
            if kept is not None and kept.admits(now) and all(attempt.key != preferred for attempt in tried):
                return kept, _SESSION
        if not tried and not self._priorities:
            known = self.nodes
            picked = self._choose(known, now, rng) if len(known) > 1 else (known[0], _ONLY) if known else None
            if picked is not None and picked[0].admits(now):
                return picked
        nodes = self._eligible(now, tried)
        return self._choose(nodes, now, rng) if len(nodes) > 1 else (nodes[0], _ONLY)

    def _eligible(self, now: float, tried: Sequence[Attempt]) -> list[Node]:
        eligible = [node for node in self.nodes if node.admits(now)]
        if not eligible:  # better one that answers badly than none: what else is there cannot be connected to
            eligible = [node for node in self.nodes if node.last_resort(now)]
        if not eligible:
            why = {n.endpoint.address: n.why_not(now) for n in self.nodes} or dict(self.why_empty)
            raise NoHealthyEndpoint(self.service, why)
        seen = {attempt.endpoint.address for attempt in tried}
        eligible = [node for node in eligible if node.endpoint.address not in seen] or eligible
        if self._priorities:
            first = min(node.endpoint.priority for node in eligible)
            eligible = [node for node in eligible if node.endpoint.priority == first]
        return eligible

    # The four ways to choose. Each gets at least two nodes.

    def _peak_ewma(self, nodes: Sequence[Node], now: float, rng: Rng) -> tuple[Node, tuple[Any, ...]]:
        a, b = self._draw_two(nodes, rng)
        if a is b:
            return a, _ALONE
        x, y = a.load(now), b.load(now)
        alike = x < y * ALIKE and y < x * ALIKE
        if (b.inflight < a.inflight) if alike else (y < x):
            a, b, x, y = b, a, y, x
        return a, ("peak_ewma: load {:.3g} against {:.3g} of {}", x, y, b.endpoint.address)

    def _least_request(self, nodes: Sequence[Node], now: float, rng: Rng) -> tuple[Node, tuple[Any, ...]]:
        a, b = self._draw_two(nodes, rng)
        if a is b:
            return a, _ALONE
        if b.inflight < a.inflight:
            a, b = b, a
        return a, ("least_request: {} in flight against {} of {}", a.inflight, b.inflight, b.endpoint.address)

    def _random(self, nodes: Sequence[Node], now: float, rng: Rng) -> tuple[Node, tuple[Any, ...]]:
        return nodes[self._draw(nodes, rng)], ("random, one of {}", len(nodes))

    def _round_robin(self, nodes: Sequence[Node], now: float, rng: Rng) -> tuple[Node, tuple[Any, ...]]:
        if self._turn < 0:
            self._turn = int(rng.random() * len(self.nodes))
        if self._cumulative:
            return self._smooth_weighted(nodes)
        allowed = None if nodes is self.nodes else set(map(id, nodes))
        for _ in self.nodes:  # the turn of a node that is passed over goes to the next, and is not made up for
            self._turn = (self._turn + 1) % len(self.nodes)
            if allowed is None or id(self.nodes[self._turn]) in allowed:
                break
        return self.nodes[self._turn], ("round_robin, turn of {} of {}", self._turn + 1, len(self.nodes))

    def _smooth_weighted(self, nodes: Sequence[Node]) -> tuple[Node, tuple[Any, ...]]:
        """Nginx's smooth weighted round robin: shares by weight, never a burst to one node."""
        allowed, best = set(map(id, nodes)), -1
        total = 0
        for i, node in enumerate(self.nodes):
            if id(node) in allowed:
                total += node.endpoint.weight
                self._credit[i] += node.endpoint.weight
                if best < 0 or self._credit[i] > self._credit[best]:
                    best = i
        self._credit[best] -= total
        return self.nodes[best], ("round_robin by weight {} of {}", self.nodes[best].endpoint.weight, total)

    def _draw(self, nodes: Sequence[Node], rng: Rng) -> int:
        if not self._cumulative:
            return int(rng.random() * len(nodes))
        table = self._cumulative if nodes is self.nodes else tuple(accumulate(n.endpoint.weight for n in nodes))
        return bisect_right(table, rng.random() * table[-1])

    def _draw_two(self, nodes: Sequence[Node], rng: Rng) -> tuple[Node, Node]:
        """Two different nodes of one weight; the same one twice where no other has its weight."""
        if self._cumulative:
            weight = nodes[self._draw(nodes, rng)].endpoint.weight
            nodes = [node for node in nodes if node.endpoint.weight == weight]
            if len(nodes) == 1:
                return nodes[0], nodes[0]
        n = len(nodes)
        i, j = int(rng.random() * n), int(rng.random() * (n - 1))
        return nodes[i], nodes[j + (j >= i)]

    # What is learned from the end of an attempt.

    def answered(self, node: Node, status: int, latency_s: float, now: float, rng: Rng, probe: int) -> None:
        """A reply's head arrived; the body's end is told by `released`."""
        if status < 500:
            node.succeeded(latency_s, now, probe)
        else:
            self._erred(node, status, latency_s, now, rng, probe)

    def failed(
        self, node: Node, error: MeshError, latency_s: float, full_attempt_s: float, now: float, rng: Rng, probe: int
    ) -> None:
        """An attempt ended without a reply."""
        node.inflight -= 1
        if isinstance(error, IdentityError):
            node.unreachable(now, rng, probe, proof=True, trouble=f"identity: {error}", cause=error)
        elif isinstance(error, TransportError) and error.cause not in ("local", "too_large", "decode"):
            if error.phase == "connect":
                node.unreachable(now, rng, probe, proof=error.cause == "refused", cause=error)
            else:
                self._erred(node, error, latency_s, now, rng, probe)
        elif isinstance(error, DeadlineExceeded) and error.phase == "connect":
            if latency_s >= 0.9 * min(self.connect_timeout_s, full_attempt_s):
                node.unreachable(now, rng, probe, proof=False, cause=error)
            else:
                node.abandoned(probe)
        elif isinstance(error, DeadlineExceeded) and error.phase in ("read", "write"):
            if latency_s >= 0.9 * full_attempt_s:
                self._erred(node, error, latency_s, now, rng, probe)
            else:
                node.ewma.observe(max(latency_s, node.ewma.get_at(now)), now)  # it takes at least this long
                node.abandoned(probe)
        else:
            node.abandoned(probe)

    def abandoned(self, node: Node, probe: int) -> None:
        """An attempt was cancelled: that says nothing about the endpoint."""
        node.inflight -= 1
        node.abandoned(probe)

    def released(self, node: Node) -> None:
        """A reply's body has ended."""
        node.inflight -= 1

    def _erred(self, node: Node, cause: MeshError | int, latency_s: float, now: float, rng: Rng, probe: int) -> None:
        node.ewma.observe(max(latency_s, FAILURE_S), now)
        ejected = sum(1 for n in self.nodes if n.ejection.until)  # on probation too: its probe may fail
        others = any(n is not node and not n.ejection.until and not n.reach.until for n in self.nodes)
        may_eject = others and self.outlier.may_eject(ejected, len(self.nodes))
        node.erred(now, rng, probe, may_eject=may_eject, cause=cause)


class Balance:
    """Pick a node and run the endpoint half of the stack on it; tell the cluster how it went.

    The innermost service of the destination half. `services` has the bound endpoint half of every node.
    """

    __slots__ = ("cluster", "full_attempt_s", "lock", "now", "rng", "services")

    def __init__(
        self,
        cluster: Cluster,
        services: dict[Node, Service],
        full_attempt_s: float,
        now: Callable[[], float],
        rng: Rng,
    ) -> None:
        self.cluster, self.services, self.full_attempt_s = cluster, services, full_attempt_s
        self.lock, self.now, self.rng = cluster.lock, now, rng

    async def __call__(self, call: Call) -> Reply:
        cluster, lock = self.cluster, self.lock
        attempts = call.trail.attempts
        with lock:
            started = self.now()
            node, picked = cluster.pick(started, self.rng, attempts, call.preferred)
            probe = node.begin(started)
        attempt = Attempt(call.number, node.endpoint, picked, started, node.key)
        attempts.append(attempt)
        try:
            reply = await self.services[node](call)
        except MeshError as error:
            attempt.ended = ended = self.now()
            attempt.error = error
            with lock:
                if isinstance(error, DeadlineExceeded) and ended - call.attempt_deadline > STALL_S:
                    late_ms = (ended - call.attempt_deadline) * 1e3
                    call.trail.notes.append(f"this process stalled: it saw the deadline {late_ms:.0f} ms late")
                    cluster.abandoned(node, probe)
                else:
                    cluster.failed(node, error, ended - started, self.full_attempt_s, ended, self.rng, probe)
            raise
        except BaseException:
            attempt.ended = self.now()
            with lock:
                cluster.abandoned(node, probe)
            raise
        attempt.ended = ended = self.now()
        attempt.status = reply.status
        with lock:
            cluster.answered(node, reply.status, ended - started, ended, self.rng, probe)
            if reply.stream is None:
                node.inflight -= 1
                return reply
        reply.at_end(lambda _error: self._released(node))
        return reply

    def _released(self, node: Node) -> None:
        with self.lock:
            self.cluster.released(node)
