"""pybreaker's listeners and storages on the circuits of endpoints: `Mesh(breaker_listeners=…, breaker_storage=…)`.

The decisions stay with policy/breaker.py; this file tells of them and lets others be heard. An endpoint has two
breakers there (is it reachable? does it answer well?); to pybreaker they are one circuit, named "service/address":

    closed      both open for traffic
    half-open   a probe is under way, or its outcome is not known
    open        one of them is shut, or the storage says so

Rules. Without listeners and storage none of this exists: nodes and breakers are those of policy/. A listener is called
where the event happens, under the lock of the service (as pybreaker calls it under its own): it must be quick and wait
for nobody. Only events that a listener overrides are told, so that nothing is added to a call that goes well.
A storage is used by a thread of its own (`exchange`), never on a call's path. Changes of ours are written to it, and
while it says open the endpoint is not picked; but an open of our own making ends by our own probe, and one that its
maker has not renewed for `reset_timeout` seconds is not obeyed: its maker is gone. A storage that fails or hangs holds
nothing open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pybreaker

from ..policy.breaker import Breaker, BreakerPolicy
from ..policy.node import Node

if TYPE_CHECKING:
    from ..endpoint import Endpoint
    from ..errors import MeshError
    from ..policy.outlier import OutlierPolicy
    from ..runtime import Rng

logger = logging.getLogger("meshlib")

CLOSED, HALF_OPEN, OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_HALF_OPEN, pybreaker.STATE_OPEN
HOLD_S = 2.0
"""How long one reading of a storage is obeyed, in seconds: four rounds of the thread that reads it."""

_EVENTS = ("before_call", "success", "failure", "state_change")
_WORDS = {"open-for-traffic": CLOSED, "probation": HALF_OPEN, "shut": OPEN}
_RANK = (CLOSED, HALF_OPEN, OPEN).index
_STATES = {
    CLOSED: pybreaker.CircuitClosedState,
    HALF_OPEN: pybreaker.CircuitHalfOpenState,
    OPEN: pybreaker.CircuitOpenState,
}


class ErrorReply(Exception):
    """What `failure` is told of an endpoint that answered, but with an error: `status`."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"the endpoint answered {status}")


class Circuit:
    """The `cb` of a listener: what may be known of one endpoint's circuit. Read-only."""

    __slots__ = ("_node",)

    def __init__(self, node: CircuitNode) -> None:
        self._node = node

    @property
    def name(self) -> str:
        """Canonical service and address, `inventory.default/10.0.0.1:80`."""
        return f"{self._node.service}/{self._node.endpoint.address}"

    @property
    def current_state(self) -> str:
        """One of closed, half-open, open."""
        return self._node.word

    @property
    def fail_counter(self) -> int:
        """Failures in a row, of the breaker that has more of them."""
        return self._node.nearest().failures

    @property
    def fail_max(self) -> int:
        """How many of them shut that breaker."""
        return self._node.nearest().policy.max_failures

    @property
    def reset_timeout(self) -> float:
        """For how many seconds an open that somebody else wrote is obeyed: `base_ejection_time`."""
        return self._node.ejection.policy.base_s

    def __repr__(self) -> str:
        return f"<Circuit {self.name} {self.current_state}>"


class CircuitNode(Node):
    """A node whose breakers are told of. `word`: the circuit's state, as was last told; `own`: without the storage's.

    `held_until`: the storage says open, and is believed until then; 0.0 where it does not. `opened_at`: what we wrote
    with our own last open. `unwritten`: `own` has changed since it was written.
    """

    __slots__ = (
        "circuit", "circuits", "failing", "held_until", "opened_at", "own", "service", "storage", "unwritten", "word",
    )  # fmt: skip
    reach: _Told
    ejection: _Told

    def __init__(self, service: str, endpoint: Endpoint, outlier: OutlierPolicy, circuits: Circuits) -> None:
        super().__init__(endpoint, outlier, service)
        self.service, self.circuits, self.circuit = service, circuits, Circuit(self)
        self.reach, self.ejection = _Told(self.reach.policy, self), _Told(self.ejection.policy, self)
        self.word = self.own = CLOSED
        self.failing = self.unwritten = False
        self.held_until = 0.0
        self.opened_at: datetime | None = None
        self.storage: pybreaker.CircuitBreakerStorage | None = None

    def nearest(self) -> Breaker:
        """The breaker with more failures in a row."""
        return max(self.reach, self.ejection, key=lambda breaker: breaker.failures)

    def unreachable(
        self,
        now: float,
        rng: Rng,
        probe: int,
        *,
        proof: bool,
        trouble: str = "cannot be connected to",
        cause: MeshError | None = None,
    ) -> None:
        """See Node."""
        self.failing = True
        super().unreachable(now, rng, probe, proof=proof, trouble=trouble)
        self._failed(cause)

    def erred(self, now: float, rng: Rng, probe: int, *, may_eject: bool, cause: MeshError | int | None = None) -> bool:
        """See Node."""
        self.failing = True
        ejected = super().erred(now, rng, probe, may_eject=may_eject)
        self._failed(cause)
        return ejected

    def _failed(self, cause: MeshError | int | None) -> None:
        """As pybreaker has it: counted, then `failure`, then `state_change`."""
        self.failing = False
        self.circuits.tell("failure", self.circuit, cause if isinstance(cause, Exception) else ErrorReply(cause or 0))
        self.moved()

    def moved(self) -> None:
        """A breaker or the storage's word may have changed: tell it, and let a change of our own be written."""
        if self.failing:
            return
        own = max(self.reach.told, self.ejection.told, key=_RANK)
        if own != self.own:
            self.own, self.unwritten = own, True
        word = OPEN if self.held_until else own
        if word != self.word:
            old, self.word = self.word, word
            made = [_STATES[state](self.circuit, None) for state in (old, word)]
            self.circuits.tell("state_change", self.circuit, *made)


class _Told(Breaker):
    """A breaker that tells its node. `told`: the last word."""

    __slots__ = ("node", "told")

    def __init__(self, policy: BreakerPolicy, node: CircuitNode) -> None:
        super().__init__(policy)
        self.node, self.told = node, CLOSED

    def changed(self, state: str) -> None:
        self.told = _WORDS[state]
        self.node.moved()


class _TellsBeforeCall(CircuitNode):
    """For listeners that override `before_call`."""

    __slots__ = ()

    def begin(self, now: float) -> int:
        probe = super().begin(now)
        self.circuits.tell("before_call", self.circuit, attempt)
        return probe


class _TellsSuccess(CircuitNode):
    """For listeners that override `success`."""

    __slots__ = ()

    def succeeded(self, latency_s: float, now: float, probe: int) -> None:
        super().succeeded(latency_s, now, probe)
        self.circuits.tell("success", self.circuit)


class _Held(CircuitNode):
    """Where there is a storage: what it says open may not be picked."""

    __slots__ = ()

    def admits(self, now: float) -> bool:
        return now >= self.held_until and super().admits(now)

    def last_resort(self, now: float) -> bool:
        return now >= self.held_until and super().last_resort(now)

    def why_not(self, now: float) -> str:
        if now < self.held_until:
            return f"held open by breaker_storage, which says open for {self.circuit.name!r}"
        return super().why_not(now)

    def state(self, now: float) -> str:
        return "ejected" if now < self.held_until else super().state(now)


def attempt() -> None:
    """Stands where pybreaker gives `before_call` the guarded function: a mesh guards attempts, which are none."""


class Circuits:
    """Makes the nodes of a mesh and tells of them. TypeError where it is given what pybreaker does not take.

    `listeners`: CircuitBreakerListener objects. `storage`: name → CircuitBreakerStorage, called once per circuit, on
    the thread of the storages.
    """

    def __init__(
        self, listeners: Iterable[Any], storage: Callable[[str], pybreaker.CircuitBreakerStorage] | None = None
    ) -> None:
        listeners = tuple(listeners) if isinstance(listeners, Iterable) else (listeners,)
        for listener in listeners:
            if not isinstance(listener, pybreaker.CircuitBreakerListener):
                raise TypeError(f"breaker_listeners takes pybreaker.CircuitBreakerListener objects, not {listener!r}")
        if storage is not None and not callable(storage):
            raise TypeError(f"breaker_storage takes a callable, name → pybreaker storage, not {storage!r}")
        self._storage, self._logged = storage, set[str]()
        self._told = {event: tuple(it for it in listeners if _overrides(it, event)) for event in _EVENTS}
        extras = [
            kind
            for kind, wanted in (
                (_Held, storage is not None),
                (_TellsBeforeCall, self._told["before_call"]),
                (_TellsSuccess, self._told["success"]),
            )
            if wanted
        ]
        self._kind: type[CircuitNode] = type("CircuitNode", (*extras, CircuitNode), {"__slots__": ()})

    @property
    def stored(self) -> bool:
        """Is there anything to exchange?"""
        return self._storage is not None

    def node(self, service: str, endpoint: Endpoint, outlier: OutlierPolicy) -> Node:
        """A new node; see Learned."""
        return self._kind(service, endpoint, outlier, self)

    def tell(self, event: str, *arguments: Any) -> None:
        """Tell every listener that overrides `event`. One that raises changes nothing."""
        for listener in self._told[event]:
            try:
                getattr(listener, event)(*arguments)
            except Exception:
                self._log_once(f"the breaker listener {type(listener).__name__}")

    def exchange(
        self,
        nodes: Iterable[tuple[str, Node]],
        lock_of: Callable[[str], AbstractContextManager[Any]],
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """One round: write what changed here, read what holds. `nodes` as Learned has them, with the locks."""
        for service, node in nodes:
            if not isinstance(node, CircuitNode):
                continue
            try:
                storage = self._storage_of(node)
                _write(node, storage, wall)
                held = _holds(node, storage, wall)
            except Exception:
                self._log_once("the breaker storage")
                held = False
            was_held, node.held_until = node.held_until > 0.0, now() + HOLD_S if held else 0.0
            if held is not was_held:
                with lock_of(service):
                    node.moved()

    def _storage_of(self, node: CircuitNode) -> pybreaker.CircuitBreakerStorage:
        if node.storage is None:
            made = self._storage(node.circuit.name) if self._storage is not None else None
            if not isinstance(made, pybreaker.CircuitBreakerStorage):
                raise TypeError(f"breaker_storage must return a pybreaker.CircuitBreakerStorage, not {made!r}")
            node.storage = made
        return node.storage

    def _log_once(self, who: str) -> None:
        if who not in self._logged:
            self._logged.add(who)
            logger.exception("%s failed; breakers go on without it, and this is said once", who)


def _write(node: CircuitNode, storage: pybreaker.CircuitBreakerStorage, wall: Callable[[], datetime]) -> None:
    if not node.unwritten:
        return
    node.unwritten = False  # first: a change from here on is for the next round
    try:
        own = node.own
        if own == OPEN:
            node.opened_at = wall().replace(microsecond=0)  # what Redis keeps of it
            storage.opened_at = node.opened_at
        storage.state = own
    except BaseException:
        node.unwritten = True
        raise


def _holds(node: CircuitNode, storage: pybreaker.CircuitBreakerStorage, wall: Callable[[], datetime]) -> bool:
    """Does somebody else hold it open? Without `opened_at` it was opened by hand, and stays so until it is closed."""
    if storage.state != OPEN:
        return False
    opened_at = storage.opened_at
    if opened_at is None:
        return True
    return opened_at != node.opened_at and (wall() - opened_at).total_seconds() < node.circuit.reset_timeout


def _overrides(listener: Any, event: str) -> bool:
    return getattr(getattr(listener, event), "__func__", None) is not getattr(pybreaker.CircuitBreakerListener, event)
