"""Mesh: the one object an application makes. Calls out, handlers in, and the life of both."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from .call_policy import call_policy
from .caller import Callers, needs_grpc
from .engine import Engine
from .errors import ConfigError

if TYPE_CHECKING:
    import grpc
    import grpc.aio
    import httpx

    from .call import Schedule
    from .config import MeshConfig
    from .host import ServerHost
    from .transport.asgi import MeshAsgi
    from .transport.grpc.serving import AioServer, BlockingServer
    from .transport.handlers import Handlers
    from .transport.wsgi import MeshWsgi

F = TypeVar("F", bound=Callable[..., Any])

READY_LOOK_S = 0.02
"""How often `ready` looks."""


class Mesh:
    """One service's place in the mesh.

    `service`: `name` or `name.namespace` (namespace `default`); None: `$MESHLIB_SERVICE`, or a client-only caller named
    `anonymous`, which `strict` peers refuse. `config`: a path, a dict or a MeshConfig; default `$MESHLIB_CONFIG`, then
    `./mesh.yaml`. `overrides`: top-level fields of mesh.yaml that win over the file's (`state_dir="/run/mesh"`).
    `breaker_listeners`: of pybreaker, told of each endpoint's breaker. `breaker_storage`: name → pybreaker storage, in
    which processes share what their breakers know; name is "service/address". See docs/resilience-libraries.md.

    Making one does no I/O. It starts with `async with`, `with`, `run`, an application's lifespan, or its first call;
    ConfigError, with every problem of the file, comes then. One Mesh serves many threads and event loops.
    """

    def __init__(
        self,
        service: str | None = None,
        config: str | os.PathLike[str] | Mapping[str, Any] | MeshConfig | None = None,
        *,
        breaker_listeners: Iterable[Any] = (),
        breaker_storage: Callable[[str], Any] | None = None,
        **overrides: Any,
    ) -> None:
        circuits = None
        if breaker_listeners or breaker_storage is not None:
            from .interop.pybreaker import Circuits

            circuits = Circuits(breaker_listeners, breaker_storage)
        self._engine = Engine(service, config, overrides, circuits)
        self._callers = Callers(self._engine)
        self._host: ServerHost | None = None
        self._handlers: Handlers | None = None

    # Calls out

    def client(self, service: str, **httpx_options: Any) -> httpx.AsyncClient:
        """An httpx.AsyncClient whose calls go to `service` through the mesh.

        Owned by the mesh; without options always the same one. Relative URLs go to the service; an absolute URL must
        name a service of the mesh. Cookies are not kept between calls, unless `cookies=True` makes a client of one's
        own. A number as `timeout` is the total deadline in seconds. `transport, mounts, proxy, verify, cert, http1,
        http2, limits, trust_env` are refused with TypeError. Errors are httpx's and meshlib's at once.
        """
        return self._callers.client(service, httpx_options)

    def sync_client(self, service: str, **httpx_options: Any) -> httpx.Client:
        """The same for threads: an httpx.Client."""
        return self._callers.sync_client(service, httpx_options)

    def transport(self) -> httpx.AsyncBaseTransport:
        """A transport for an httpx.AsyncClient of your own; the host of a URL is the service."""
        return self._callers.transport()

    def sync_transport(self) -> httpx.BaseTransport:
        """A transport for an httpx.Client of your own; the host of a URL is the service."""
        return self._callers.sync_transport()

    def channel(
        self,
        service: str,
        *,
        compression: grpc.Compression | None = None,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    ) -> grpc.aio.Channel:
        """A grpc.aio.Channel whose calls go to `service` through the mesh; stubs take it as grpc's own.

        Errors are grpc's and meshlib's at once. `compression`: of every call that does not say it itself.
        `interceptors`: around every call, the first one outermost; on threads it is grpc.intercept_channel.
        ImportError names the extra `grpc` where that is missing.
        """
        channel: grpc.aio.Channel = self._callers.channel(service, compression, interceptors)
        return channel

    def sync_channel(self, service: str, *, compression: grpc.Compression | None = None) -> grpc.Channel:
        """The same for threads: a grpc.Channel."""
        channel: grpc.Channel = self._callers.sync_channel(service, compression)
        return channel

    def policy(
        self,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        hash_key: str | None = None,
        idempotent: bool | None = None,
        headers: Mapping[str, str] | None = None,
        schedule: Any = None,
    ) -> AbstractContextManager[None]:
        """Policy for the calls made inside the `with` block, never above the ceilings of the central policy (`limits`).

        `timeout`: total seconds. `max_retries`: 0 to 10. `idempotent`: may it be sent twice? `headers` are added.
        `hash_key`: calls with the same text go to the same backend of a route.
        `schedule`: a tenacity wait, a stop, or a tuple (wait, stop); it decides when a failure is tried again, in the
        place of the policy's back-off and within all its limits. ValueError names an argument that is out of range,
        TypeError says what `schedule` takes.
        """
        return call_policy(
            timeout=timeout,
            max_retries=max_retries,
            hash_key=hash_key,
            idempotent=idempotent,
            headers=headers,
            schedule=None if schedule is None else _schedule(schedule),
        )

    def predicate(self, name: str) -> Callable[[F], F]:
        """Register the decorated function as the predicate `name` of routes (`matches: [{predicate: is_beta}]`).

        It gets the request that is routed (`method`, `path`, `host`, `header(name)`, `headers(name)`,
        `query_params(name)`) and returns whether the route may take it. It runs within each call to a service whose
        routes ask for it, so it must be fast and do no I/O. One that raises takes nothing. ValueError: another
        function has that name.
        """

        def register(function: F) -> F:
            self._engine.predicates.register(name, function)
            return function

        return register

    # Handlers in

    def get(self, path: str, **policy: Any) -> Callable[[F], F]:
        """Serve GET (and HEAD) of `path` with the decorated function. See `route`."""
        return self.route(path, methods=["GET"], **policy)

    def post(self, path: str, **policy: Any) -> Callable[[F], F]:
        """Serve POST of `path` with the decorated function. See `route`."""
        return self.route(path, methods=["POST"], **policy)

    def put(self, path: str, **policy: Any) -> Callable[[F], F]:
        """Serve PUT of `path` with the decorated function. See `route`."""
        return self.route(path, methods=["PUT"], **policy)

    def patch(self, path: str, **policy: Any) -> Callable[[F], F]:
        """Serve PATCH of `path` with the decorated function. See `route`."""
        return self.route(path, methods=["PATCH"], **policy)

    def delete(self, path: str, **policy: Any) -> Callable[[F], F]:
        """Serve DELETE of `path` with the decorated function. See `route`."""
        return self.route(path, methods=["DELETE"], **policy)

    def route(self, path: str, *, methods: Iterable[str] = ("GET",), **policy: Any) -> Callable[[F], F]:
        """Serve `path` (`/items/{id}`) with the decorated function, `def` or `async def`.

        Parameters come by name from the path, the query, or the JSON body (an annotation `dict`, `list` or a pydantic
        model); what is returned becomes JSON, text, bytes, 204 for None, or is a Response. `policy`: see `handler`.
        """
        return self._own_handlers().route(path, methods=list(methods), **policy)

    def handler(self, **policy: Any) -> Callable[[F], F]:
        """Policy for a handler of any framework.

        `timeout` (seconds), `idempotent`, `allow` (callers by name; it may only narrow the central policy),
        `max_concurrency`. The handler refuses, with RuntimeError, to run outside a meshed call rather than be silently
        unenforced.
        """
        from .transport.handlers import HandlerPolicy, handler_guard

        return handler_guard(self._own_host(), HandlerPolicy.of(**policy))

    def asgi(self, app: Any) -> MeshAsgi:
        """`app` (FastAPI, Starlette, Django …) behind the server side of the mesh, as an ASGI application."""
        from .transport.asgi import MeshAsgi

        return MeshAsgi(app, self._own_host())

    def wsgi(self, app: Any) -> MeshWsgi:
        """`app` (Flask, Django …) behind the server side of the mesh, as a WSGI application."""
        from .transport.wsgi import MeshWsgi

        return MeshWsgi(app, self._own_host())

    def grpc_server(
        self,
        *,
        host: str | None = None,
        port: int = 0,
        advertise: str | None = None,
        reflection: bool = False,
        **options: Any,
    ) -> AioServer:
        """A grpc.aio.Server that is part of the mesh: mTLS by the policy of this service, registration, drain, health.

        Servicers are added to it as to grpc's own; `mesh.run(server)`, `await mesh.serve(server)`, or its own `start`
        and `stop`. `host`, `port`, `advertise`: as for `serve`. `reflection`: may callers ask what it serves?
        `options`: those of grpc.aio.server; TypeError for one that is none. `grpc.health.v1` is always served. Whether
        it speaks mTLS is decided when it starts. ImportError names the extra `grpc` where that is missing.
        """
        with needs_grpc():
            from .transport.grpc.serving import AioServer
        return AioServer(self._own_host(), host, port, advertise, reflection=reflection, **options)

    def sync_grpc_server(
        self,
        *,
        host: str | None = None,
        port: int = 0,
        advertise: str | None = None,
        reflection: bool = False,
        **options: Any,
    ) -> BlockingServer:
        """The same on threads: a grpc.Server; 40 of them unless `thread_pool` is given."""
        with needs_grpc():
            from .transport.grpc.serving import BlockingServer
        return BlockingServer(self._own_host(), host, port, advertise, reflection=reflection, **options)

    def grpc_interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """The server side of the mesh for a grpc.aio server: `aio.server(interceptors=mesh.grpc_interceptors())`.

        Deadline, trace, metrics, drain and `current()` as for HTTP. The port and its credentials are the server's own;
        where this service is `strict`, a caller whose certificate has no SPIFFE id is refused (UNAUTHENTICATED).
        """
        with needs_grpc():
            from .transport.grpc.server import AioInterceptor
        return [AioInterceptor(self._own_host())]

    def sync_grpc_interceptors(self) -> list[grpc.ServerInterceptor]:
        """The same for a grpc server on threads."""
        with needs_grpc():
            from .transport.grpc.server import BlockingInterceptor
        return [BlockingInterceptor(self._own_host())]

    async def serve(
        self, app: Any = None, host: str | None = None, port: int = 0, advertise: str | None = None
    ) -> None:
        """Serve until a signal, with mTLS, peer identity and drain. `app`: ASGI, WSGI, a server of `grpc_server` or
        `sync_grpc_server`, or None: the decorated handlers.

        `host`: 127.0.0.1 with `identity: {source: dev}`. `port` 0 takes a free one, which the log names. `advertise`:
        the address that others reach it by, where that differs.
        """
        from .transport.serving import MeshServer

        own = self._own_host()
        own.own_server = True
        await own.startup()
        if _is_grpc_server(app):
            await app.at(host, port, advertise).serve()
            return
        await MeshServer(
            self._application(app),
            own,
            bind=own.bind_address(host),
            port=port,
            on_listening=lambda address: own.listens_on(address, advertise=advertise or "", fixed=port != 0),
        ).serve()

    def run(self, app: Any = None, host: str | None = None, port: int = 0, advertise: str | None = None) -> None:
        """`serve`, blocking: the last line of a program. What keeps it from starting is printed; exit code 2."""
        level = os.environ.get("MESHLIB_LOG", "INFO").upper()
        if not isinstance(logging.getLevelName(level), int):
            raise SystemExit(_said(ConfigError(f"MESHLIB_LOG={level}: a level is DEBUG, INFO, WARNING or ERROR")))
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        if (httpx_log := logging.getLogger("httpx")).level == logging.NOTSET:
            httpx_log.setLevel(logging.WARNING)  # a line per call is for those who ask for it
        try:
            asyncio.run(self.serve(app, host, port, advertise))
        except (ConfigError, OSError) as error:
            raise SystemExit(_said(error)) from None

    # Life

    @property
    def config(self) -> MeshConfig:
        """The configuration in force; starts the mesh."""
        self._engine.start()
        return self._engine.config

    def start(self) -> None:
        """Start now. Idempotent. ConfigError lists every problem of the configuration."""
        self._engine.start()

    async def ready(self, timeout: float = 10.0) -> None:
        """Return once identity and policy are there and a server listens; TimeoutError after `timeout` seconds."""
        await asyncio.to_thread(self.start)
        give_up = time.monotonic() + timeout
        while not self._is_ready():
            if time.monotonic() >= give_up:
                raise TimeoutError(f"the mesh is not ready after {timeout} s: {self._why_not_ready()}")
            await asyncio.sleep(READY_LOOK_S)

    def wait_ready(self, timeout: float = 10.0) -> None:
        """`ready`, blocking."""
        self.start()
        give_up = time.monotonic() + timeout
        while not self._is_ready():
            if time.monotonic() >= give_up:
                raise TimeoutError(f"the mesh is not ready after {timeout} s: {self._why_not_ready()}")
            time.sleep(READY_LOOK_S)

    def close(self) -> None:
        """Stop: connections closed, thread ended. Idempotent; a closed Mesh stays closed."""
        if self._host is not None:
            self._host.close()
        self._engine.close()

    async def aclose(self) -> None:
        """The same, waiting for the connections of this event loop."""
        if self._host is not None:
            self._host.close()
        await self._engine.aclose()

    async def __aenter__(self) -> Mesh:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def __enter__(self) -> Mesh:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Mesh {self._engine.given or '(unnamed)'}>"

    def _is_ready(self) -> bool:
        if not (self._engine.started and self._engine.in_force):
            return False
        host = self._host  # `own_server`: it is to listen, though it does not serve yet
        return host is None or not (host.serving or host.own_server) or host.ready()[0]

    def _why_not_ready(self) -> str:
        return self._engine.missing() or "the server does not listen yet"

    def _own_host(self) -> ServerHost:
        if self._host is None:
            from .host import ServerHost

            self._host = ServerHost(self._engine)
        return self._host

    def _own_handlers(self) -> Handlers:
        if self._handlers is None:
            from .transport.handlers import Handlers

            self._handlers = Handlers(self._own_host())
        return self._handlers

    def _application(self, app: Any) -> Any:
        if callable(app):
            return app
        if app is not None:
            raise ConfigError(f"{app!r} cannot be served: pass an ASGI or WSGI application, or a mesh.grpc_server()")
        if self._handlers is None:
            raise ConfigError("there is nothing to serve: decorate a handler (@mesh.get …), or pass an application")
        return self._handlers


def _schedule(given: Any) -> Schedule:
    """Loads tenacity only for objects of its own."""
    parts = given if isinstance(given, tuple) else (given,)
    for part in parts or ((),):
        if not any(kind.__module__.partition(".")[0] == "tenacity" for kind in type(part).__mro__):
            raise TypeError(f"schedule takes a tenacity wait, a tenacity stop, or a tuple (wait, stop), not {given!r}")
    from .interop.tenacity import schedule_of

    return schedule_of(*parts)


def _is_grpc_server(app: Any) -> bool:
    """Is it one of ours? Loads grpc for nobody who has not."""
    module = sys.modules.get("meshlib.transport.grpc.serving")
    return module is not None and isinstance(app, module.MeshGrpcServer)


def _said(error: ConfigError | OSError) -> int:
    sys.stderr.write(f"meshlib: not started:\n{error}\n")
    return 2
