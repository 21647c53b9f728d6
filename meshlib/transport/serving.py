"""Serving: one uvicorn server on one socket, with the mesh's identity, limits and drain.

A shutdown (SIGTERM, SIGINT, or `stop()`):

    draining ──── propagation_s ───▶ stop accepting ──── LINGER_S ───▶ idle ones close ──── grace_s ───▶ closed
    /readyz says 503,                open connections                  in-flight ends                    the lifespan
    every response closes            are served                                                          ends

In `propagation_s` the rest of the mesh learns of it while everything is still accepted, so no caller is refused. An
idle connection may have a request on its way to us, so it is served a little longer than new ones. A second Ctrl-C ends
at once. Sources: Envoy drain, Kubernetes pod termination, FAULTS F16, F33.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn

from ..errors import ConfigError
from .asgi import AsgiApp, Host, MeshAsgi
from .lifespan import PEERS
from .signals import on_signals
from .uvicorn import PeerProtocol
from .wsgi import MeshWsgi, as_asgi, looks_like_wsgi

PROPAGATION_S = 1.0
"""How long the mesh is given to learn that this server drains."""
GRACE_S = 30.0
"""How long requests in flight may take once nothing is accepted any more; Kubernetes' termination grace."""
LINGER_S = 1.0
"""How long connections that are open are still served when no new one is accepted; less where none is open."""
LINGER_STEP_S = 0.02
LAST_WORDS_S = 1.0
"""How long the lifespan may take when a second signal ends everything."""
BACKLOG = 2048

_log = logging.getLogger("meshlib.transport")


class MeshServer:
    """Serves `app` until it is told to stop. `host` None: without a mesh, for the limits and the drain alone.

    `bind` and `port` are used where no `sockets` are given; port 0 takes a free one. `on_listening` is called once with
    the real `host:port`; None: the host's own. `on_tick` is called about every second. Bounds are seconds, ≥ 0. It
    drains after `max_requests`.
    """

    def __init__(
        self,
        app: Any,
        host: Host | None = None,
        *,
        bind: str = "127.0.0.1",
        port: int = 0,
        sockets: Sequence[socket.socket] = (),
        propagation_s: float = PROPAGATION_S,
        grace_s: float = GRACE_S,
        on_listening: Callable[[str], Any] | None = None,
        on_tick: Callable[[], Any] | None = None,
        protocol: type[PeerProtocol] = PeerProtocol,
        max_requests: int | None = None,
    ) -> None:
        self.app = adapt(app, host)
        self.host = host if host is not None else getattr(self.app, "host", None)
        self.bind, self.port, self.sockets = bind, port, list(sockets)
        self.propagation_s, self.grace_s = propagation_s, grace_s
        self.on_listening = on_listening or getattr(self.host, "listens_on", None)
        self.on_tick, self.max_requests = on_tick, max_requests
        self.protocol = protocol
        self.address = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: _Uvicorn | None = None
        self._asked = self._stopping = False

    async def serve(self) -> None:
        """Start, serve, drain, close. Raises what the mesh's start raised, OSError when the port is taken, ConfigError
        when the application's lifespan fails. After `stop()` it ends as soon as it has begun.

        In the main thread SIGTERM and SIGINT drain; elsewhere signals are left alone.
        """
        self._loop = asyncio.get_running_loop()
        if self.host is not None:
            self.host.draining = self.host.in_flight.closed = False
            await self.host.startup()
        if not self.sockets:
            self.sockets = [_listen(self.bind, self.port)]
        server = self._server = _Uvicorn(self._config(), self)
        server.should_exit = self._asked
        try:
            with on_signals(self._signalled), _quiet():
                await self._until_stopped(server)
        except SystemExit:
            said = str(getattr(self.app, "failure", "")).strip().splitlines() or ["its lifespan failed; see the log"]
            raise ConfigError(f"the application did not start: {said[-1]}") from None
        finally:
            for listener in self.sockets:
                listener.close()

    async def _until_stopped(self, server: _Uvicorn) -> None:
        try:
            await server.serve(sockets=self.sockets)
        except asyncio.CancelledError:
            if server.started:
                server.force_exit = True
                await server.shutdown(self.sockets)
            raise

    def run(self) -> None:
        """`serve` on an event loop of its own; returns when it is closed."""
        asyncio.run(self.serve())

    def stop(self, *, force: bool = False) -> None:
        """Begin the shutdown; `force` skips the propagation and what is in flight. From any thread."""
        self._asked = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop, force)

    def _stop(self, force: bool) -> None:
        server = self._server
        if server is None:
            return
        if self.host is not None:
            self.host.draining = True
        if force:
            server.should_exit = server.force_exit = True
        elif not self._stopping:
            self._stopping = True
            asyncio.get_running_loop().call_later(self.propagation_s, setattr, server, "should_exit", True)

    def _signalled(self) -> None:
        self._stop(force=self._stopping)

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self.app,
            http=self.protocol,
            lifespan="on" if isinstance(self.app, MeshAsgi) else "auto",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            reset_contextvars=True,
            timeout_keep_alive=math.ceil(self.protocol.KEEP_ALIVE_S),
            timeout_graceful_shutdown=math.ceil(self.grace_s),
        )


class _Uvicorn(uvicorn.Server):
    """uvicorn's server without its signals, telling `owner` what happens."""

    def __init__(self, config: uvicorn.Config, owner: MeshServer) -> None:
        super().__init__(config)
        self.owner = owner

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state[PEERS] = True
        await super().startup(sockets)
        owner = self.owner
        owner.address = _address(owner.sockets[0])
        _log.info("listening on %s", owner.address)
        if owner.on_listening is not None:
            owner.on_listening(owner.address)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0 and self.owner.on_tick is not None:
            self.owner.on_tick()
        most = self.owner.max_requests
        if most is not None and self.server_state.total_requests >= most:
            self.owner._stop(force=False)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        await self._linger(sockets or ())
        host = self.owner.host
        if host is None:
            await super().shutdown(sockets)
        else:
            grace = asyncio.get_running_loop().call_later(self.owner.grace_s, setattr, host.in_flight, "closed", True)
            await super().shutdown(sockets)
            grace.cancel()
            host.in_flight.closed = True
        if self.force_exit:
            tasks = list(self.server_state.tasks)
            for task in tasks:
                task.cancel()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    asyncio.gather(*tasks, self.lifespan.shutdown(), return_exceptions=True), LAST_WORDS_S
                )

    async def _linger(self, sockets: Sequence[socket.socket]) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets:
            listener.close()
        for _ in range(round(LINGER_S / LINGER_STEP_S)):
            if not self.server_state.connections or self.force_exit:
                break
            await asyncio.sleep(LINGER_STEP_S)


def adapt(app: Any, host: Host | None) -> AsgiApp:
    """Whatever an application is (ASGI, WSGI, `mesh.asgi`, `mesh.wsgi`), as the ASGI application to serve."""
    if isinstance(app, MeshAsgi):
        return app
    if isinstance(app, MeshWsgi):
        return MeshAsgi(as_asgi(app.app, sys.maxsize), app.host)
    asgi: AsgiApp = app
    if looks_like_wsgi(app):
        asgi = as_asgi(app) if host is None else as_asgi(app, sys.maxsize)
    return asgi if host is None else MeshAsgi(asgi, host)


async def serve(app: Any, host: Host, *, bind: str = "127.0.0.1", port: int = 0, **options: Any) -> None:
    """Serve until a signal, then drain; `options` are MeshServer's."""
    await MeshServer(app, host, bind=bind, port=port, **options).serve()


def run(app: Any, host: Host, *, bind: str = "127.0.0.1", port: int = 0, **options: Any) -> None:
    """`serve`, blocking."""
    MeshServer(app, host, bind=bind, port=port, **options).run()


def _listen(bind: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bind, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {bind} port {port}: {error.strerror}") from error
    return listener


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    if not isinstance(name, tuple):
        return str(name)
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hush: uvicorn's own start and stop lines are not for our users; its warnings and errors are."""
    log = logging.getLogger("uvicorn.error")
    before = log.level
    log.setLevel(max(logging.WARNING, log.level))
    try:
        yield
    finally:
        log.setLevel(before)
