"""Scopes: where plans are bound and connections live. One per event loop, and one for the threads of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from .call import FOREVER, Call, Reply
from .destination import bind
from .errors import IdentityError, UnknownService
from .plan import BackendPlan, ServicePlan
from .runtime.blocking import BlockingRuntime
from .runtime.event_loop import EventLoopRuntime
from .snapshot import Arriving
from .transport.asyncio_http import AsyncHttpTransport
from .transport.blocking_http import BlockingHttpTransport
from .transport.headers import mesh_lines
from .transport.limits import HttpLimits

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .policy.predicate import Predicates
    from .runtime import Runtime
    from .stack import Service
    from .telemetry.metrics import Metrics
    from .telemetry.tracing import Tracing
    from .transport.tls_stream import ClientTls


ARRIVAL_LOOK_S = 0.01
"""How often a first call looks whether its service has arrived, at first: later every tenth of what it has waited."""


class Owner(Protocol):
    """What a scope needs of the engine."""

    service: str
    anonymous: bool
    metrics: Metrics
    tracing: Tracing
    predicates: Predicates

    def plan(self, given: str) -> ServicePlan | UnknownService | Arriving:
        """The plan in force."""

    def patience_s(self) -> float:
        """How long a first call may wait for its service to arrive, in seconds."""

    def unknown(self, given: str) -> UnknownService:
        """Why a service that was waited for has not arrived."""

    def client_tls(self, service: str) -> ClientTls:
        """How to reach a service over mTLS, or IdentityError."""


class _Scope:
    """What both kinds share: bound services by name, bound again when their plan changes."""

    runtime: Runtime
    transport: AsyncHttpTransport | BlockingHttpTransport

    def __init__(self, owner: Owner) -> None:
        self.owner, self.metrics, self.tracing, self.source = owner, owner.metrics, owner.tracing, owner.service
        self.predicates = owner.predicates
        self._bound: dict[str, tuple[ServicePlan, Service]] = {}

    def service(self, given: str) -> Service:
        """The client stack of a service under the policy in force."""
        plan = self.owner.plan(given)
        if not isinstance(plan, ServicePlan):
            return _refuse(plan) if isinstance(plan, UnknownService) else self._arriving(given)
        bound = self._bound.get(plan.service)
        if bound is None or bound[0] is not plan:
            bound = self._bound[plan.service] = (plan, self._bind(plan))
        return bound[1]

    def _arriving(self, given: str) -> Service:
        """The first call to a service waits for it, within its own deadline and `patience_s`."""

        async def wait(call: Call) -> Reply:
            runtime, owner = self.runtime, self.owner
            began = runtime.now()
            give_up = began + min(owner.patience_s(), _deadline_s(call, began))
            while isinstance(owner.plan(given), Arriving):
                if runtime.now() >= give_up:
                    raise owner.unknown(given)
                waited_s = runtime.now() - began
                await runtime.sleep(max(ARRIVAL_LOOK_S, waited_s / 10))
            if call.timeout_s is not None:
                call.timeout_s = max(0.001, call.timeout_s - (runtime.now() - began))
            return await self.service(given)(call)

        return wait

    def _bind(self, plan: ServicePlan) -> Service:
        # In TLS 1.3 the server refuses only after the request was sent, and the refusal is easily lost: say it here.
        return _nameless(plan.service) if self.owner.anonymous and plan.strict else bind(plan, self)

    def leaf(self, backend: BackendPlan, endpoint: Endpoint) -> Service:
        """What sends to one endpoint. The caller's name goes along only where no certificate says it."""
        now, strict = self.runtime.now, backend.strict
        source = "" if strict else self.source
        return self.transport.leaf(
            endpoint,
            backend.pool,
            self.owner.client_tls(backend.service) if strict else None,
            lambda call: mesh_lines(call, now(), source),
            HttpLimits(body_bytes=backend.max_response_body),
        )

    def abandon(self) -> None:
        """Forget every connection without a byte to anybody."""
        self._bound.clear()
        self.transport.abandon()


class LoopScope(_Scope):
    """The connections of one event loop. Used on that loop; `retire` and `close_from_anywhere` from any thread."""

    transport: AsyncHttpTransport

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner)
        self.loop, self.runtime = loop, EventLoopRuntime()
        self.transport = AsyncHttpTransport(limits=HttpLimits(), rng=self.runtime.rng, now=self.runtime.now, loop=loop)

    def retire(self, in_use: Callable[[], Collection[str]]) -> None:
        """Let go of the connections to addresses that are not in use at the moment when the loop comes to it."""
        self._on_loop(lambda: self.transport.retire(in_use()))

    def close_from_anywhere(self) -> None:
        """Close every connection, on the loop; nothing waits for it."""
        self._on_loop(lambda: self.transport.retire(()))

    async def aclose(self) -> None:
        """Close every connection and wait for it."""
        await self.transport.aclose()

    def _on_loop(self, action: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(action)
        except RuntimeError:  # the loop is closed
            self.discard()

    def discard(self) -> None:
        """The loop is closed: close what it left open."""
        self._bound.clear()
        self.transport.discard()


class ThreadScope(_Scope):
    """The connections that the threads of a process share."""

    transport: BlockingHttpTransport

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self.runtime = BlockingRuntime()
        self.transport = BlockingHttpTransport(limits=HttpLimits(), rng=self.runtime.rng, now=self.runtime.now)

    def retire(self, keep: Collection[str]) -> None:
        """Let go of the connections to addresses that are not in `keep`."""
        self.transport.retire(keep)

    def close(self) -> None:
        """Close every connection."""
        self.transport.close()


def _deadline_s(call: Call, now: float) -> float:
    """Seconds that the caller has left, by what it asked and by whom it serves."""
    asked = FOREVER if call.timeout_s is None else call.timeout_s
    served = FOREVER if call.served is None else call.served.deadline - now
    return max(0.0, min(asked, served))


def _nameless(service: str) -> Service:
    async def refuse(call: Call) -> Reply:
        raise IdentityError(
            f"{service!r} is strict: it asks for a certificate, and this process has no name to get one for; "
            "give it one: Mesh('orders'), or MESHLIB_SERVICE"
        )

    return refuse


def _refuse(error: UnknownService) -> Service:
    async def refuse(call: Call) -> Reply:
        raise UnknownService(error.service, suggestions=error.suggestions)

    return refuse
