"""Where plans are bound for gRPC: the channels of one event loop, or of the threads of a process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, cast

from .connections import Connections, make_aio, make_blocking
from .errors import LOCALLY_CANCELLED
from .leaf import AioLeaf, BlockingLeaf

if TYPE_CHECKING:
    from ...endpoint import Endpoint
    from ...plan import BackendPlan
    from ...scopes import LoopScope, ThreadScope
    from ...stack import Service
    from .connections import PemTls


class GrpcScope:
    """A destination.Scope whose leaves speak gRPC; all else is that of the scope that it belongs to."""

    def __init__(
        self, scope: LoopScope | ThreadScope, connections: Connections, leaf: type[AioLeaf | BlockingLeaf]
    ) -> None:
        self.runtime, self.tracing, self.metrics = scope.runtime, scope.tracing, scope.metrics
        self.predicates, self.source, self._owner = scope.predicates, scope.source, scope.owner
        self.connections, self._leaf = connections, leaf

    def leaf(self, backend: BackendPlan, endpoint: Endpoint) -> Service:
        """What sends to one endpoint. The caller's name goes along only where no certificate says it."""
        tls = cast("PemTls", self._owner.client_tls(backend.service)) if backend.strict else None
        source = "" if backend.strict else self.source
        return self._leaf(self.connections, endpoint, tls, self.runtime.now, source, backend.max_response_body)

    async def aclose(self) -> None:
        """Close every channel of the running loop, and wait for it."""
        for connection in self.connections.forget():
            for call in tuple(connection.running):
                call.cancel(LOCALLY_CANCELLED)
            await connection.channel.close()


def aio_scope(scope: LoopScope, loop: asyncio.AbstractEventLoop) -> GrpcScope:
    """The channels of an event loop."""
    closing: set[asyncio.Task[Any]] = set()

    def close(channel: Any) -> None:
        def begin() -> None:
            task = loop.create_task(channel.close())
            closing.add(task)
            task.add_done_callback(closing.discard)

        with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
            loop.call_soon_threadsafe(begin)

    return GrpcScope(scope, Connections(make_aio, close), AioLeaf)


def blocking_scope(scope: ThreadScope) -> GrpcScope:
    """The channels that threads share."""
    return GrpcScope(scope, Connections(make_blocking, _close_elsewhere), BlockingLeaf)


def _close_elsewhere(channel: Any) -> None:
    """In a thread of its own: the last call of a channel may end on grpc's thread, for which a close would wait."""
    threading.Thread(target=channel.close, name="meshlib-grpc-close", daemon=True).start()
