"""A connection to the config service: TLS in C where there is uvloop, strangers counted, a lost one noticed at once.

Rules beyond PeerProtocol's:
  * who has not shown a certificate of the mesh is a stranger: an address has so many, and one more takes the place of
    the oldest that is not being answered, so that whoever holds them all keeps nobody out;
  * members are limited by service, not by address, because ten thousand of them may come through one: no service takes
    more than half of all connections;
  * what the certificate was is kept (`Connection`): whether it still is one is asked with every request (who.py);
  * a request that comes while another is answered is refused: a poll may be held for a minute, and what is behind it
    would hide that the connection is gone;
  * a connection that ends ends the poll that it holds, in the same step;
  * who does not read its answer must keep a pace by which it has all of it within `REPLY_S_MAX`, and what is unread in
    all connections has a bound: beyond, the one that has not read for the longest is cut off.

asyncio's own TLS keeps a buffer of 256 KiB per connection in use, uvloop's touches a page of it (FAULTS F29).
Source: uvloop `SSLProtocol`, which has the constructor of CPython's `asyncio.sslproto`.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from asyncio import sslproto
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol

from ..identity.peer_leaf import leaf_of
from ..identity.svid import Svid, TrustBundle
from ..identity.tls import peer_of, server_context
from ..transport.headers import HOST
from ..transport.uvicorn import PeerProtocol
from .messages import BODY_BYTES_MAX

CONNECTION = "meshlib.connection"
"""Key of `scope["state"]`: the Connection a request came on."""

CONNECTIONS_MAX = 20_000
"""Connections in all, fewer where the process may not open as many files; one more takes a stranger's place, or is
closed at once."""
SERVICE_SHARE = 1 / 2
"""Of all connections, those that the members of one service may have; one more is closed after its handshake."""
STRANGERS_PER_ADDRESS_MAX = 256
"""Connections of one address in their handshake or without a certificate; one more takes the place of the oldest."""
LOOKED_AT_MAX = 512
"""Strangers that are looked at for one whose place can be taken; where all of these are being answered, none is."""
REPLY_S_MAX = 60.0
"""Within so many seconds a reply must have been read, at an even pace."""
UNSENT_BYTES_MIN = 64 * 1024
"""An answer of which no more than this is unread is not counted."""
UNSENT_BYTES_MAX = 256 * 1024 * 1024
"""Bytes of replies in all connections that were not read yet; beyond, the one that has waited longest is cut off."""


class Ends(Protocol):
    """What a connection takes down with it."""

    def lost(self) -> None:
        """The connection is gone."""


class Connection:
    """What requests know of their connection. `held`: ends with it.

    `serial`, `not_after` (unix seconds) and `issuer` (its root's key identifier): of the verified leaf; serial None: it
    showed none; issuer None: there is no TLS, in tests and measurements. `is_operators`: the operator's token came on
    it. `end`: lets it end once what is under way is answered.
    """

    __slots__ = ("__weakref__", "end", "ended", "gone", "held", "is_operators", "issuer", "not_after", "serial")

    def __init__(
        self,
        serial: int | None,
        not_after: float = math.inf,
        issuer: bytes | None = None,
        end: Callable[[], Any] = lambda: None,
    ) -> None:
        self.serial, self.not_after, self.issuer, self.end = serial, not_after, issuer, end
        self.is_operators = self.ended = self.gone = False
        self.held: Ends | None = None

    @property
    def keep(self) -> bool:
        """Does it stay open after an answer? A stranger's does not, nor one whose certificate is none any more."""
        return not self.ended and (self.serial is not None or self.is_operators)

    def hold(self, what: Ends) -> None:
        """When the connection is lost, so is `what`; now, where it is lost already."""
        if self.gone:
            what.lost()
        else:
            self.held = what

    def lost(self) -> None:
        """The connection is gone."""
        self.gone, held, self.held = True, self.held, None
        self.end = lambda: None
        if held is not None:
            held.lost()


class Listening:
    """What the protocol asks of who serves (`meshlib.host`), and what all connections share: who is a stranger, how
    many of each service there are, and who does not read. New handshakes get the TLS context in use.

    `plaintext`: none; for tests and measurements alone.
    """

    loopback_only = False
    max_request_body = BODY_BYTES_MAX

    def __init__(self, connections_max: int = CONNECTIONS_MAX, *, plaintext: bool = False) -> None:
        self.connections_max, self._plaintext = connections_max, plaintext
        self._live: ssl.SSLContext | None = None
        self.strangers: dict[ControlProtocol, str] = {}
        self.by_address: dict[str, dict[ControlProtocol, None]] = {}
        self.members: Counter[str] = Counter()
        self.unread: dict[ControlProtocol, int] = {}
        self.unread_bytes = 0

    def listener(self) -> ssl.SSLContext | None:
        """The TLS context of a new connection. No SNI callback: CPython prints a traceback for a name that it cannot
        decode, as often as a stranger likes.
        """
        return self._live

    def prepared(self, svid: Svid, bundle: TrustBundle) -> ssl.SSLContext | None:
        """A context with this leaf and these roots, about 2 ms of work: clients without a certificate are let in."""
        return None if self._plaintext else server_context(svid, bundle, optional_client=True, with_roots=True)

    def use(self, context: ssl.SSLContext | None) -> None:
        """From now on new connections get this one."""
        self._live = context

    # Strangers

    def came(self, stranger: ControlProtocol, address: str) -> None:
        """One more of this address."""
        self.strangers[stranger] = address
        self.by_address.setdefault(address, {})[stranger] = None

    def known(self, stranger: ControlProtocol) -> None:
        """It is gone, or no stranger any more."""
        address = self.strangers.pop(stranger, None)
        if address is not None:
            self.by_address[address].pop(stranger, None)
            if not self.by_address[address]:
                del self.by_address[address]

    def room(self, connections: int, address: str, per_address_max: int) -> bool:
        """Is there room for one more, perhaps because another stranger is cut off for it?"""
        if connections >= self.connections_max and not _cut_off_one(self.strangers):
            return False
        ours = self.by_address.get(address, {})
        return len(ours) < per_address_max or _cut_off_one(ours)

    # Answers that are not read

    def waits(self, reader: ControlProtocol, unsent: int) -> None:
        """So much of its answer is not read yet; 0: nothing that counts."""
        self.unread_bytes += unsent - self.unread.get(reader, 0)
        if unsent:
            self.unread[reader] = unsent  # in the order in which they began to wait
        else:
            self.unread.pop(reader, None)
        if self.unread_bytes > UNSENT_BYTES_MAX:
            self._cut_off_slowest()

    def _cut_off_slowest(self) -> None:
        """Count anew what is unread now, and cut off who has waited longest, until there is some room again."""
        counted = {reader: unsent for reader in self.unread if (unsent := reader.unsent()) > UNSENT_BYTES_MIN}
        total = sum(counted.values())
        if total > UNSENT_BYTES_MAX:
            for reader in list(counted):
                if total <= UNSENT_BYTES_MAX * 3 / 4:
                    break
                total -= counted.pop(reader)
                reader.cut_off_soon()
        self.unread, self.unread_bytes = counted, total


def _cut_off_one(strangers: Iterable[ControlProtocol]) -> bool:
    """Cut off the oldest of them that is not being answered; False: each of those looked at is."""
    for stranger in islice(strangers, LOOKED_AT_MAX):
        if not stranger.is_being_answered():
            stranger.cut_off()
            return True
    return False


class ControlProtocol(PeerProtocol):
    """One connection."""

    CONNECTIONS_PER_PEER_MAX = STRANGERS_PER_ADDRESS_MAX

    connection: Connection | None = None
    _service = ""

    @property
    def _listening(self) -> Listening:
        host: Listening = self.app_state[HOST]
        return host

    def _admit(self, transport: asyncio.Transport) -> bool:
        name = transport.get_extra_info("peername")
        address = str(name[0]) if isinstance(name, tuple) else "unix"
        if not self._listening.room(len(self.connections), address, self.CONNECTIONS_PER_PEER_MAX):
            return False
        if not super()._admit(transport):
            return False
        self._listening.came(self, address)
        return True

    def _release(self) -> None:
        self._listening.known(self)
        super()._release()

    def _opened(self, transport: asyncio.Transport, ssl_object: Any) -> None:
        peer, leaf = peer_of(ssl_object), leaf_of(ssl_object)
        self.connection = Connection(None) if leaf is None else Connection(*leaf, self.shutdown)
        self.app_state = {**self.app_state, CONNECTION: self.connection}
        super()._opened(transport, ssl_object)
        if peer is not None:
            self._release()
            self.connections.add(self)
            self._count(str(peer))

    def _count(self, service: str) -> None:
        """Count it with those of its service; closed, where these are too many."""
        members = self._listening.members
        if members[service] >= max(1, int(self._listening.connections_max * SERVICE_SHARE)):
            self.cut_off_soon()
            return
        members[service] += 1
        self._service = service

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._listening.waits(self, 0)
        if self._service:
            members, service, self._service = self._listening.members, self._service, ""
            members[service] -= 1
            if not members[service]:
                del members[service]
        if self.connection is not None:
            self.connection.lost()

    def is_being_answered(self) -> bool:
        """Has its request arrived, and not been answered?"""
        return self._phase == "idle" and self.cycle is not None and not self.cycle.response_complete

    def cut_off(self) -> None:
        """End it without a word, and give its place away now."""
        self._release()
        self._socket.abort()

    def cut_off_soon(self) -> None:
        """End it without a word, in a step of its own."""
        self.loop.call_soon(self._socket.abort)

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._fail(400)
        if self in self._listening.unread and self._to_send():
            self._fail(400)  # its last answer has not arrived, so it asks without reading
        super().on_message_begin()

    # An answer that is not read. It is written at once, and TLS hides from us that it waits in the socket's buffer.

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reading()

    def pause_writing(self) -> None:
        """As PeerProtocol."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """As PeerProtocol."""
        super().resume_writing()
        self._watch_reading()

    def _watch_reading(self) -> None:
        """From now on what is unsent must be read at a pace by which it is read in time."""
        self._unsent = self._to_send()
        if self._unsent <= UNSENT_BYTES_MIN:
            self._listening.waits(self, 0)
            return
        self._stop_write_timer()
        self.WRITE_BYTES_PER_S_MIN = max(type(self).WRITE_BYTES_PER_S_MIN, math.ceil(self._unsent / REPLY_S_MAX))
        self._write_timer = self.loop.call_later(self.WRITE_STRETCH_S, self._write_stretch)
        self._listening.waits(self, self._unsent)

    def _write_stretch(self) -> None:
        if self.unsent():
            super()._write_stretch()
            self._listening.waits(self, self._unsent)
        else:
            self._stop_write_timer()
            self._listening.waits(self, 0)

    def unsent(self) -> int:
        """Bytes that it was sent and has not read."""
        return self._to_send()

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
