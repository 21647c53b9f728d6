"""A connection to the config service: TLS in C where there is uvloop, strangers counted, a lost one noticed at once.

Rules beyond PeerProtocol's:
  * an address is limited in connections that have not shown a certificate of the mesh; members are limited in all,
    because ten thousand of them may come through one address;
  * a request that comes while another is answered is refused: a poll may be held for a minute, and what is behind it
    would hide that the connection is gone;
  * a connection that ends ends the poll that it holds, in the same step.

asyncio's own TLS keeps a buffer of 256 KiB per connection in use, uvloop's touches a page of it (FAULTS F29).
Source: uvloop `SSLProtocol`, which has the constructor of CPython's `asyncio.sslproto`.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto
from typing import Any, Protocol

from ..identity.svid import Svid, TrustBundle
from ..identity.tls import peer_of, serial_of, server_context
from ..transport.headers import HOST
from ..transport.uvicorn import PeerProtocol
from .messages import BODY_BYTES_MAX

CONNECTION = "meshlib.connection"
"""Key of `scope["state"]`: the Connection a request came on."""

CONNECTIONS_MAX = 20_000
"""Connections in all, fewer where the process may not open as many files; one more is closed at once."""
STRANGERS_PER_ADDRESS_MAX = 256
"""Connections of one address in their handshake or without a certificate; one more is closed at once."""


class Ends(Protocol):
    """What a connection takes down with it."""

    def lost(self) -> None:
        """The connection is gone."""


class Connection:
    """What requests know of their connection. `serial`: of the verified leaf, or None. `held`: ends with it."""

    __slots__ = ("gone", "held", "serial")

    def __init__(self, serial: int | None) -> None:
        self.serial, self.gone = serial, False
        self.held: Ends | None = None

    def hold(self, what: Ends) -> None:
        """When the connection is lost, so is `what`; now, where it is lost already."""
        if self.gone:
            what.lost()
        else:
            self.held = what

    def lost(self) -> None:
        """The connection is gone."""
        self.gone, held, self.held = True, self.held, None
        if held is not None:
            held.lost()


class Listening:
    """What the protocol asks of who serves (`meshlib.host`). One TLS context for the life of the listener, which points
    each new handshake to the one in use.

    `plaintext`: none; for tests and measurements alone.
    """

    loopback_only = False
    max_request_body = BODY_BYTES_MAX

    def __init__(self, connections_max: int = CONNECTIONS_MAX, *, plaintext: bool = False) -> None:
        self.connections_max, self._plaintext = connections_max, plaintext
        self._first: ssl.SSLContext | None = None
        self._live: ssl.SSLContext | None = None

    def listener(self) -> ssl.SSLContext | None:
        """The TLS context of new connections."""
        return self._first

    def prepared(self, svid: Svid, bundle: TrustBundle) -> ssl.SSLContext | None:
        """A context with this leaf and these roots, about 2 ms of work: clients without a certificate are let in."""
        return None if self._plaintext else server_context(svid, bundle, optional_client=True, with_roots=True)

    def use(self, context: ssl.SSLContext | None) -> None:
        """From now on new handshakes get this one."""
        self._live = context
        if self._first is None and context is not None:
            self._first = context
            context.sni_callback = self._point

    def _point(self, tls: ssl.SSLObject, _server_name: str | None, _listener: ssl.SSLContext) -> None:
        if self._live is not None:
            tls.context = self._live


class ControlProtocol(PeerProtocol):
    """One connection."""

    CONNECTIONS_PER_PEER_MAX = STRANGERS_PER_ADDRESS_MAX

    connection: Connection | None = None

    def _admit(self, transport: asyncio.Transport) -> bool:
        host: Listening = self.app_state[HOST]
        return len(self.connections) < host.connections_max and super()._admit(transport)

    def _opened(self, transport: asyncio.Transport, ssl_object: Any) -> None:
        self.connection = Connection(serial_of(ssl_object))
        self.app_state = {**self.app_state, CONNECTION: self.connection}
        super()._opened(transport, ssl_object)
        if peer_of(ssl_object) is not None:
            self._release()
            self.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.connection is not None:
            self.connection.lost()

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._fail(400)
        super().on_message_begin()

    def _secure(self, context: ssl.SSLContext) -> None:
        """As PeerProtocol, with the TLS of the running loop."""
        done = self.loop.create_future()
        done.add_done_callback(self._secured)
        times: Any = {"ssl_handshake_timeout": self.HANDSHAKE_TIMEOUT_S, "ssl_shutdown_timeout": self.TLS_CLOSE_S}
        tls = _tls_of(self.loop)(self.loop, self, context, done, server_side=True, **times)
        self.transport.set_protocol(tls)
        tls.connection_made(self.transport)


def _tls_of(loop: asyncio.AbstractEventLoop) -> Any:
    if type(loop).__module__.startswith("uvloop"):
        import uvloop

        return getattr(uvloop.loop, "SSLProtocol", sslproto.SSLProtocol)
    return sslproto.SSLProtocol
