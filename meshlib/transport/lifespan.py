"""The lifespan of a meshed application: the mesh starts before it and stops after it.

A strict mesh does not start under a server that hides the client's certificate: it would have to refuse every request,
or believe a header. The server is asked, never guessed: our own say so in the lifespan's state, and uvicorn's carries
the protocol class it was given. Sources: ASGI lifespan 2.0, uvicorn's `LifespanOn`.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from .headers import HOST

if TYPE_CHECKING:
    from .asgi import MeshAsgi, Message, Receive, Scope, Send

PEERS = "meshlib.peers"
"""Key of the lifespan state: this server puts the peer of each connection into the scope."""
NO_PEERS = (
    "mtls is strict, but this server does not tell who the client is, so meshlib does not start. "
    "Use mesh.run(app), or `uvicorn --http meshlib.transport.uvicorn:PeerProtocol`, "
    "or `gunicorn -k meshlib.transport.gunicorn.PeerWorker`"
)
_log = logging.getLogger("meshlib.transport")


class Lifespan:
    """The application's lifespan inside the mesh's. Speaks for an application that has none, or has ended its own while
    the server goes on.
    """

    def __init__(self, mesh_app: MeshAsgi, scope: Scope, receive: Receive, send: Send) -> None:
        self.mesh_app, self.host, self.scope = mesh_app, mesh_app.host, scope
        self._receive, self._send = receive, send
        self.answered = self.replayed = self.serving = self.told = self.ended = False

    async def run(self) -> None:
        await self._receive()
        if not await self._start():
            return
        try:
            await self._application()
        finally:
            await self._stop()

    async def _application(self) -> None:
        last: Message = {"type": "lifespan.shutdown.complete"}
        try:
            await self.mesh_app.app(self.scope, self.receive, self.send)
        except Exception as error:
            if self.answered and not self.serving:
                raise
            if self.serving:
                _log.error("the application's lifespan ended with an error", exc_info=error)
                last = {"type": "lifespan.shutdown.failed", "message": repr(error)}
            else:
                _log.debug("the application has no lifespan: %r", error)
        if not self.answered:
            await self.send({"type": "lifespan.startup.complete"})
        if self.serving:
            if not self.told:
                await self._receive()
            await self.send(last)

    async def receive(self) -> Message:
        """The application's view: startup first, although it was taken already; then what the server says."""
        if not self.replayed:
            self.replayed = True
            return {"type": "lifespan.startup"}
        message = await self._receive()
        self.told = True
        return message

    async def send(self, message: Message) -> None:
        if not message["type"].startswith("lifespan."):
            raise RuntimeError(f"{message['type']} is no answer to a lifespan")
        self.answered = True
        self.serving = message["type"] == "lifespan.startup.complete"
        if message["type"] == "lifespan.startup.failed":
            self.mesh_app.failure = message.get("message", "")
        if not self.serving:
            await self._stop()
        await self._send(message)
        if self.serving and not self.told and PEERS not in self.scope["state"]:
            self.host.listens_on(_address(self._receive))

    async def _start(self) -> bool:
        state = self.scope.setdefault("state", {})
        try:
            await self.mesh_app.started()
            if self.host.strict and not _gives_peers(state, self._receive):
                await self._stop()
                raise RuntimeError(NO_PEERS)
        except Exception as error:
            _log.debug("the mesh did not start", exc_info=error)
            self.mesh_app.failure = str(error)
            await self._send({"type": "lifespan.startup.failed", "message": str(error)})
            return False
        state[HOST] = self.host
        return True

    async def _stop(self) -> None:
        if not self.ended:
            self.ended = True
            await self.host.shutdown()


def _address(receive: Receive) -> str:
    """Where uvicorn was told to listen, '' where another server runs, or it was not told. Our own servers say it
    themselves, once they do.
    """
    config = getattr(getattr(receive, "__self__", None), "config", None)
    host, port = getattr(config, "host", ""), getattr(config, "port", 0)
    if not port or getattr(config, "uds", None) or getattr(config, "fd", None) is not None:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _gives_peers(state: MutableMapping[str, Any], receive: Receive) -> bool:
    """Does this server put peers into the scope? Our own says so; of uvicorn we ask the protocol class it was given."""
    config = getattr(getattr(receive, "__self__", None), "config", None)
    protocol = getattr(config, "http_protocol_class", None)
    return PEERS in state or bool(getattr(protocol, "gives_peers", False))
