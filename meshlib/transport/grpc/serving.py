"""grpc servers that are part of the mesh: its credentials, its registry, its drain. `Mesh.grpc_server`.

grpc's own server is made when ours starts: only then are identity and policy known. A shutdown:

    draining ──── propagation_s ───▶ GOAWAY, stop accepting ──── grace ───▶ closed
    health says NOT_SERVING,         calls in flight end, then those
    the registry is told             who watch our health

grpc's own `stop(grace)` closes the port at once, under callers that still know it; hence the time of propagation.
Health answers whoever gets through the handshake, also under overload: it does not go through the server stack.
Sources: gRFC A9 (server shutdown), grpc/grpc doc/health-checking.md, FAULTS F16.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ..asgi import Host
from ..serving import GRACE_S, LINGER_S, LINGER_STEP_S, PROPAGATION_S
from ..signals import on_signals
from .server import AioInterceptor, BlockingInterceptor

if TYPE_CHECKING:
    from typing import Self

RPCS_MAX = 10_000
"""Calls, streams included, that an aio server has at once unless `maximum_concurrent_rpcs` says otherwise; one more is
RESOURCE_EXHAUSTED.
"""
WORKERS = 40
"""Threads of a server on threads that is given no `thread_pool`; as many as anyio and Starlette have."""
QUEUE_PER_WORKER = 10
"""Calls that wait for a thread, for each of them; one more is RESOURCE_EXHAUSTED. What has waited beyond its caller's
deadline is not begun.
"""

_log = logging.getLogger("meshlib.transport")


class GrpcHost(Host, Protocol):
    """What a grpc server needs of a mesh beyond `Host`; see host.ServerHost."""

    own_server: bool

    def bind_address(self, host: str | None) -> str: ...
    def pem(self) -> tuple[int, tuple[bytes, bytes, bytes]] | None: ...
    def listens_on(self, address: str, *, advertise: str = "", fixed: bool = False) -> None: ...


class MeshGrpcServer:
    """What both kinds share. `options` are those of `grpc.aio.server` or `grpc.server`.

    `address`: where it listens, '' before it does. `propagation_s`, `grace_s`: of a shutdown by a signal, seconds ≥ 0.
    """

    propagation_s = PROPAGATION_S
    grace_s = GRACE_S

    def __init__(
        self,
        host: GrpcHost,
        bind: str | None = None,
        port: int = 0,
        advertise: str | None = None,
        *,
        reflection: bool = False,
        **options: Any,
    ) -> None:
        inspect.signature(self._make()).bind_partial(**options)  # TypeError here, not at the start
        self.host, self.bind, self.port, self.advertise = host, bind, port, advertise
        self.reflection, self.address = reflection, ""
        self._interceptors: Sequence[Any] = options.pop("interceptors", None) or ()
        self._transport: Sequence[tuple[str, Any]] = options.pop("options", None) or ()
        self._options = options
        self._generic: list[grpc.GenericRpcHandler] = []
        self._registered: dict[str, Any] = {}
        self._names: tuple[str, ...] = ()
        self._real: Any = None
        self._health: Any = None
        self._asked: asyncio.Task[Any] | None = None

    def _make(self) -> Callable[..., Any]:
        raise NotImplementedError

    # What generated code calls

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """As grpc's own; RuntimeError once the server has started."""
        self._not_started()
        self._generic.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """As grpc's own; RuntimeError once the server has started."""
        self._not_started()
        self._registered[service_name] = method_handlers

    def add_insecure_port(self, address: str) -> int:
        """TypeError: the mesh listens, by the policy of this service."""
        raise TypeError(f"the mesh listens: instead of {address!r} say mesh.grpc_server(host=…, port=…)")

    def add_secure_port(self, address: str, server_credentials: Any) -> int:
        """TypeError: the mesh listens, with credentials of its own."""
        return self.add_insecure_port(address)

    # Life

    def at(self, bind: str | None, port: int, advertise: str | None) -> Self:
        """Listen there, where it is said, else as before."""
        self.bind, self.port = bind if bind is not None else self.bind, port or self.port
        self.advertise = advertise or self.advertise
        return self

    async def serve(self) -> None:
        """Start, serve until SIGTERM or SIGINT (in the main thread), drain, close the mesh. A second signal ends at
        once. Raises what the mesh's start raises, and OSError where the port is taken.
        """
        await self._begin()
        try:
            with on_signals(self._signalled):
                await self._ended()
            if self._asked is not None:
                await self._asked
        finally:
            await self._finish(None)
            await self.host.shutdown()

    def _signalled(self) -> None:
        first = self._asked is None
        self._asked = asyncio.get_running_loop().create_task(self._finish(self.grace_s if first else None))

    async def _begin(self) -> None:
        raise NotImplementedError

    async def _ended(self) -> None:
        raise NotImplementedError

    async def _finish(self, grace: float | None) -> None:
        raise NotImplementedError

    def _not_started(self) -> None:
        if self._real is not None:
            raise RuntimeError("the server has started already")

    def _fill(self, server: Any, servicer: Any) -> None:
        """Handlers, health and reflection of a new server."""
        named = [each.service_name() for each in self._generic if isinstance(each, grpc.ServiceRpcHandler)]
        names = sorted({*self._registered, *named})
        server.add_generic_rpc_handlers(tuple(self._generic))
        for name, handlers in self._registered.items():
            server.add_registered_method_handlers(name, handlers)
        self._health = servicer
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        if self.reflection:
            from grpc_reflection.v1alpha import reflection

            reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        self._names = ("", *names)

    def _listen(self, server: Any) -> None:
        """OSError where the port is taken."""
        bind = self.host.bind_address(self.bind)
        address = f"[{bind}]:{self.port}" if ":" in bind else f"{bind}:{self.port}"
        credentials = _credentials(self.host)
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {bind} port {self.port}: {error}") from error
        self.address = address.removesuffix(str(self.port)) + str(port)

    def _listens(self, server: Any) -> None:
        self._real = server
        _log.info("listening on %s", self.address)
        self.host.listens_on(self.address, advertise=self.advertise or "", fixed=self.port != 0)

    def _transport_options(self) -> list[tuple[str, Any]]:
        own = {
            "grpc.so_reuseport": 0,  # else a second server on a taken port gets a share of the calls, unnoticed
            "grpc.max_receive_message_length": self.host.max_request_body,
        }
        return list({**own, **dict(self._transport)}.items())

    def _prepare(self) -> None:
        self._not_started()
        self.host.own_server = True
        self.host.draining = self.host.in_flight.closed = False
        self._asked = None


class AioServer(MeshGrpcServer, aio.Server):
    """A grpc.aio.Server of the mesh; see `Mesh.grpc_server`."""

    def _make(self) -> Callable[..., Any]:
        return aio.server

    async def start(self) -> None:
        """Start the mesh where it has not started, listen, and register."""
        self._prepare()
        await self.host.startup()
        options = {"maximum_concurrent_rpcs": RPCS_MAX, **self._options}
        interceptors = [AioInterceptor(self.host), *self._interceptors]
        server = aio.server(interceptors=interceptors, options=self._transport_options(), **options)
        self._fill(server, health.aio.HealthServicer())
        self._listen(server)
        await server.start()
        for name in self._names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._listens(server)

    async def stop(self, grace: float | None) -> None:
        """Drain: tell the mesh, wait `propagation_s`, then give the calls in flight `grace` seconds. None or 0: end
        them now. Idempotent; a shorter grace than before counts.
        """
        server = self._real
        if server is None:
            return
        self.host.draining = True
        await self._health.enter_graceful_shutdown()
        if grace:
            await asyncio.sleep(self.propagation_s)
            ending = asyncio.ensure_future(server.stop(grace))
            await asyncio.wait({ending}, timeout=LINGER_S)
            for _ in range(round(grace / LINGER_STEP_S)):
                if ending.done() or not self.host.in_flight.count:
                    break
                await asyncio.sleep(LINGER_STEP_S)
        await server.stop(None)
        self.host.in_flight.closed = True
        self._real = None

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        """As grpc's own: True when `timeout` seconds passed before it has stopped."""
        server = self._real
        return False if server is None else bool(await server.wait_for_termination(timeout))

    async def _begin(self) -> None:
        await self.start()

    async def _ended(self) -> None:
        await self.wait_for_termination()

    async def _finish(self, grace: float | None) -> None:
        await self.stop(grace)


class BlockingServer(MeshGrpcServer, grpc.Server):
    """A grpc.Server of the mesh; see `Mesh.sync_grpc_server`."""

    def _make(self) -> Callable[..., Any]:
        return grpc.server

    def start(self) -> None:
        """Start the mesh where it has not started, listen, and register."""
        self._prepare()
        self.host.start()
        options = dict(self._options)
        pool = options.pop("thread_pool", None) or ThreadPoolExecutor(WORKERS, "meshlib-grpc")
        options.setdefault("maximum_concurrent_rpcs", WORKERS * (1 + QUEUE_PER_WORKER))
        interceptors = [BlockingInterceptor(self.host), *self._interceptors]
        server = grpc.server(pool, interceptors=interceptors, options=self._transport_options(), **options)
        self._fill(server, health.HealthServicer(experimental_non_blocking=True, experimental_thread_pool=pool))
        self._listen(server)
        server.start()
        for name in self._names:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._listens(server)

    def stop(self, grace: float | None) -> threading.Event:
        """As `AioServer.stop`; returns at once with what is set when it has ended."""
        ended = threading.Event()
        threading.Thread(target=self._drain, args=(grace, ended), name="meshlib-grpc-drain", daemon=True).start()
        return ended

    def _drain(self, grace: float | None, ended: threading.Event) -> None:
        server = self._real
        if server is not None:
            self.host.draining = True
            self._health.enter_graceful_shutdown()
            if grace:
                time.sleep(self.propagation_s)
                ending = server.stop(grace)
                ending.wait(LINGER_S)
                for _ in range(round(grace / LINGER_STEP_S)):
                    if ending.is_set() or not self.host.in_flight.count:
                        break
                    time.sleep(LINGER_STEP_S)
            server.stop(None).wait()
            self.host.in_flight.closed = True
            self._real = None
        ended.set()

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """As grpc's own: True when `timeout` seconds passed before it has stopped."""
        server = self._real
        return False if server is None else bool(server.wait_for_termination(timeout))

    async def _begin(self) -> None:
        await asyncio.to_thread(self.start)

    async def _ended(self) -> None:
        await asyncio.to_thread(self.wait_for_termination)

    async def _finish(self, grace: float | None) -> None:
        await asyncio.to_thread(self.stop(grace).wait)


def _credentials(host: GrpcHost) -> grpc.ServerCredentials | None:
    """What each handshake shows and believes is of the generation that is live then; None where mTLS is disabled."""
    found = host.pem()
    if found is None:
        return None
    shown, first = found[0], _configuration(found[1])

    def fetch() -> Any:
        nonlocal shown
        live = host.pem()
        if live is None or live[0] == shown:
            return None
        shown = live[0]
        return _configuration(live[1])

    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=True)


def _configuration(pem: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    chain, key, roots = pem
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)
