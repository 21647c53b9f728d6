"""The caller's side of a mesh: destinations, and the clients and transports made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .plan import ServicePlan
from .transport.httpx_client import MeshAsyncClient, MeshClient
from .transport.httpx_transport import MeshAsyncTransport, MeshTransport

if TYPE_CHECKING:
    from .engine import Engine
    from .stack import Service

GRPC_PARTS = ("grpc", "grpc_health", "grpc_reflection")
DECODED_BYTES_MAX = 100 * 1024 * 1024
"""Limit of a decoded body where the service is not known: what `limits.max_decoded_body` has built in."""
DESTINATIONS_MAX = 4096
"""Names for which a destination is kept: hosts of absolute URLs may be anything."""


class ServiceDestination:
    """One service, as a caller sees it: a stable object; policy and connections are swapped behind it."""

    __slots__ = ("_engine", "name")

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine, self.name = engine, name

    def asyncio(self) -> Service:
        """The client stack for the running event loop; starts the mesh on first use."""
        return self._engine.scope_of_loop().service(self.name)

    def blocking(self) -> Service:
        """The client stack for threads; starts the mesh on first use."""
        return self._engine.scope_of_threads().service(self.name)

    def grpc_asyncio(self) -> Service:
        """The client stack for the running event loop, for gRPC."""
        return self._engine.scope_of_loop().service(self.name, "grpc")

    def grpc_blocking(self) -> Service:
        """The client stack for threads, for gRPC."""
        return self._engine.scope_of_threads().service(self.name, "grpc")

    @property
    def max_decoded_bytes(self) -> int:
        """Limit of a decoded body under the policy in force, in bytes."""
        plan = self._engine.plan(self.name)
        return plan.max_decoded_bytes if isinstance(plan, ServicePlan) else DECODED_BYTES_MAX


class Callers:
    """What a mesh hands out to callers. A client without options is made once per service and kept."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._destinations: dict[str, ServiceDestination] = {}
        self._clients: dict[str, MeshAsyncClient] = {}
        self._sync_clients: dict[str, MeshClient] = {}

    def destination(self, host: str) -> ServiceDestination:
        """The service named `host`; whether there is one is known when it is called."""
        known = self._destinations.get(host)
        if known is None:
            if len(self._destinations) >= DESTINATIONS_MAX:
                del self._destinations[next(iter(self._destinations))]
            known = self._destinations[host] = ServiceDestination(self._engine, host)
        return known

    def client(self, service: str, options: dict[str, Any]) -> MeshAsyncClient:
        """See Mesh.client."""
        if options:
            return MeshAsyncClient(self.destination(service), resolver=self, **options)
        known = self._clients.get(service)
        if known is None or known.is_closed:
            self._engine.expect(service)
            known = self._clients[service] = MeshAsyncClient(self.destination(service), resolver=self)
        return known

    def sync_client(self, service: str, options: dict[str, Any]) -> MeshClient:
        """See Mesh.sync_client."""
        if options:
            return MeshClient(self.destination(service), resolver=self, **options)
        known = self._sync_clients.get(service)
        if known is None or known.is_closed:
            self._engine.expect(service)
            known = self._sync_clients[service] = MeshClient(self.destination(service), resolver=self)
        return known

    def channel(self, service: str, compression: Any, interceptors: Sequence[Any]) -> Any:
        """See Mesh.channel."""
        self._engine.expect(service)
        channels, destination = _grpc_channels(), self.destination(service)
        if not interceptors:
            return channels.AioChannel(destination, compression)
        from .transport.grpc.intercepted import InterceptedChannel

        return InterceptedChannel(destination, compression, interceptors)

    def sync_channel(self, service: str, compression: Any) -> Any:
        """See Mesh.sync_channel."""
        self._engine.expect(service)
        return _grpc_channels().BlockingChannel(self.destination(service), compression)

    def transport(self) -> MeshAsyncTransport:
        """See Mesh.transport."""
        return MeshAsyncTransport(self)

    def sync_transport(self) -> MeshTransport:
        """See Mesh.sync_transport."""
        return MeshTransport(self)


@contextmanager
def needs_grpc() -> Iterator[None]:
    """Around an import of what speaks gRPC: ImportError names the extra where that is missing."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in GRPC_PARTS:
            raise
        raise ImportError("gRPC needs: pip install 'service-meshlib[grpc]'", name="grpc") from None


def _grpc_channels() -> Any:
    """The module, loaded when it is first used."""
    with needs_grpc():
        from .transport.grpc import channel
    return channel
