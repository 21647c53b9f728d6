"""Scopes: where plans are bound and connections live. One per event loop, and one for the threads of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal, Protocol

from .call import FOREVER, Call, Reply
from .destination import bind
from .errors import IdentityError, MeshError, TransportError, UnknownService
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
    from .transport.grpc.scope import GrpcScope
    from .transport.tls_stream import ClientTls


Protocols = Literal["http", "grpc"]

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

    def unknown(self, given: str) -> MeshError:
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
        self._bound: dict[tuple[str, Protocols], tuple[ServicePlan, Service]] = {}
        self._grpc: GrpcScope | None = None

    def service(self, given: str, protocol: Protocols = "http") -> Service:
        """The client stack of a service under the policy in force."""
        plan = self.owner.plan(given)
        if not isinstance(plan, ServicePlan):
            return _refuse(plan) if isinstance(plan, UnknownService) else self._arriving(given, protocol)
        bound = self._bound.get((plan.service, protocol))
        if bound is None or bound[0] is not plan:
            bound = self._bound[plan.service, protocol] = (plan, self._bind(plan, protocol))
        return bound[1]

    def _arriving(self, given: str, protocol: Protocols) -> Service:
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
            return await self.service(given, protocol)(call)

        return wait

    def _bind(self, plan: ServicePlan, protocol: Protocols) -> Service:
        if plan.protocol not in (None, protocol):
            return _other_protocol(plan.service, plan.protocol or "", protocol)
        # In TLS 1.3 the server refuses only after the request was sent, and the refusal is easily lost: say it here.
        if self.owner.anonymous and plan.strict:
            return _nameless(plan.service)
        return bind(plan, self if protocol == "http" else self.grpc)

    @property
    def grpc(self) -> GrpcScope:
        """Where plans are bound for gRPC; made when it is first asked for."""
        if self._grpc is None:
            self._grpc = self._make_grpc()
        return self._grpc

    def _make_grpc(self) -> GrpcScope:
        raise NotImplementedError

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
        if self._grpc is not None:
            self._grpc.connections.abandon()


class LoopScope(_Scope):
    """The connections of one event loop. Used on that loop; `retire` and `close_from_anywhere` from any thread."""

    transport: AsyncHttpTransport

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(owner)
        self.loop, self.runtime = loop, EventLoopRuntime()
        self.transport = AsyncHttpTransport(limits=HttpLimits(), rng=self.runtime.rng, now=self.runtime.now, loop=loop)

    def retire(self, in_use: Callable[[], Collection[str]]) -> None:
        """Let go of the connections to addresses that are not in use at the moment when the loop comes to it."""
        self._on_loop(lambda: self._retire(in_use()))

    def _retire(self, keep: Collection[str]) -> None:
        self.transport.retire(keep)
        if self._grpc is not None:
            self._grpc.connections.retire(keep)

    def _make_grpc(self) -> GrpcScope:
        from .transport.grpc.scope import aio_scope

        return aio_scope(self, self.loop)

    def close_from_anywhere(self) -> None:
        """Close every connection, on the loop; nothing waits for it."""
        self._on_loop(lambda: self._retire(()))

    async def aclose(self) -> None:
        """Close every connection and wait for it."""
        await self.transport.aclose()
        if self._grpc is not None:
            await self._grpc.aclose()

    def _on_loop(self, action: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(action)
        except RuntimeError:  # the loop is closed
            self.discard()

    def discard(self) -> None:
        """The loop is closed: close what it left open."""
        self._bound.clear()
        self.transport.discard()
        if self._grpc is not None:
            self._grpc.connections.forget()


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
        if self._grpc is not None:
            self._grpc.connections.retire(keep)

    def _make_grpc(self) -> GrpcScope:
        from .transport.grpc.scope import blocking_scope

        return blocking_scope(self)

    def close(self) -> None:
        """Close every connection."""
        self.transport.close()
        if self._grpc is not None:
            self._grpc.connections.retire(())


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


def _other_protocol(service: str, speaks: str, asked: str) -> Service:
    async def refuse(call: Call) -> Reply:
        use = "mesh.channel" if speaks == "grpc" else "mesh.client"
        raise TransportError(
            f"{service!r} speaks {speaks} (`protocol` in mesh.yaml), and this is a call by {asked}; use {use}",
            phase="connect",
            cause="local",
            sent=False,
        )

    return refuse


def _refuse(error: UnknownService) -> Service:
    async def refuse(call: Call) -> Reply:
        raise UnknownService(error.service, error.detail, error.suggestions)

    return refuse
