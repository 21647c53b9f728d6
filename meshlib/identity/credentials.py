"""Who this process is, at this moment: its SVID and trust bundle, and the TLS contexts made of them.

A source is asked again on every `refresh`; what it gives is verified against its own bundle, then one reference is
swapped. Contexts are built once per generation. Established connections keep theirs; the next handshake, on either
side, uses the new leaf *and* the new roots. A source that fails costs nothing but a log line until the leaf ends.

Source: SPIRE's agent (the last good SVID stays), Envoy's SDS (contexts are swapped, not edited).
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from .spiffe import SpiffeId, dns_name
from .svid import Svid, TrustBundle, verify_svid
from .tls import client_context, server_context

logger = logging.getLogger("meshlib.identity")

CLIENTS_MAX = 1024
"""Expected ids whose `ClientTls` is kept; beyond, the oldest is forgotten here and made again when asked for."""

ALARM_AT = 0.8
"""The share of a leaf's life after which a failing renewal is an ERROR, no longer a WARNING."""


class Source(Protocol):
    """Where SVIDs come from. Both methods may block on a disk or a socket, within a bound of theirs.

    `loopback_only`: its identities are worth nothing beyond this machine, so no server may show one to another.
    """

    loopback_only: bool

    def fetch(self) -> tuple[Svid, TrustBundle]:
        """A current SVID and bundle, perhaps the last SVID with other roots; any exception: there is none now."""

    def changed(self) -> bool:
        """Is it worth fetching? Cheap: asked every second or so. True until a fetch has succeeded."""


@dataclass(frozen=True, slots=True)
class _Generation:
    number: int
    svid: Svid
    bundle: TrustBundle
    server: ssl.SSLContext


class Credentials:
    """The live identity of this process. Thread-safe; `wall` gives unix seconds.

    Constructing fetches once and raises what the source raises, or ValueError for an SVID that may not be used:
    without an identity there is nothing to start with. `renewal_error` is the last failure of `refresh`, or None.
    `anonymous`: believe the roots, but show no certificate: strict servers refuse such a client, as they must.
    """

    def __init__(
        self, source: Source, trust_domain: str, *, anonymous: bool = False, wall: Callable[[], float] = time.time
    ) -> None:
        self.trust_domain, self.renewal_error = trust_domain, None  # type: str, Exception | None
        self._anonymous = anonymous
        self._source, self._wall = source, wall
        self._refreshing, self._building, self._swapping = Lock(), Lock(), Lock()
        self._clients: dict[SpiffeId, ClientTls] = {}
        self._logged = ""
        svid, bundle = source.fetch()
        self._live = self._made(1, svid, bundle)
        self._listener = server_context(svid, bundle)
        self._listener.sni_callback = self._point

    @property
    def id(self) -> SpiffeId:
        """Our own id: the same for the life of this object."""
        return self._live.svid.id

    @property
    def svid(self) -> Svid:
        """The SVID that new handshakes show."""
        return self._live.svid

    @property
    def bundle(self) -> TrustBundle:
        """The roots that new handshakes believe."""
        return self._live.bundle

    @property
    def generation(self) -> int:
        """From 1, one more with each swap; of this process only."""
        return self._live.number

    @property
    def loopback_only(self) -> bool:
        """May this identity be used on the loopback interface only, whatever address a server is bound to?"""
        return self._source.loopback_only

    def expires_in_s(self) -> float:
        """Seconds until our leaf ends; below 0 once it has, and then no handshake succeeds."""
        return self._live.svid.not_after - self._wall()

    def client(self, expected: SpiffeId) -> ClientTls:
        """How to reach `expected`, cached. ValueError when it is of another trust domain or names no service."""
        if expected.trust_domain != self.trust_domain:
            raise ValueError(f"{expected} is not of trust domain {self.trust_domain}, the only one this process trusts")
        with self._building:
            known = self._clients.get(expected)
            if known is None:
                known = self._clients[expected] = ClientTls(self, expected)
                if len(self._clients) > CLIENTS_MAX:
                    del self._clients[next(iter(self._clients))]
        return known

    def listener(self) -> ssl.SSLContext:
        """The one server context, for any number of sockets: each handshake gets the current leaf and roots."""
        return self._listener

    def pem(self) -> tuple[bytes, bytes, bytes]:
        """Our chain, our key and the roots that speak for the peers, all of one generation."""
        live = self._live
        return live.svid.certificate_pem, live.svid.private_key_pem, live.bundle.pem

    def refresh(self) -> bool:
        """Ask the source; True when a new generation is live. Never raises for a failing source; may block on it.

        A failure keeps the old generation, is in `renewal_error`, and logs one line, at ERROR from 80 % of the leaf's
        life on. Call it every second or so, off the event loop; how often a failing source is asked is the caller's.
        """
        with self._refreshing:
            try:
                if not self._source.changed():
                    return False
                svid, bundle = self._source.fetch()
                with self._swapping:
                    self._live = self._made(self._live.number + 1, svid, bundle)
            except Exception as error:  # a source is anybody's code, and no failure of it may end a running process
                self._failed(error)
                return False
            self.renewal_error, self._logged = None, ""
            return True

    def adopt(self, bundle: TrustBundle) -> bool:
        """Believe other roots from now on, with the leaf that we have; no I/O, about 2 ms. False: it is no leaf of
        theirs, and what was believed before stays until `refresh` brings another.
        """
        with self._swapping:
            live = self._live
            if bundle == live.bundle:
                return True
            try:
                self._live = self._made(live.number + 1, live.svid, bundle)
            except (ValueError, OSError):
                return False
            return True

    def build(self, expected: SpiffeId) -> tuple[int, ssl.SSLContext]:
        """A client context of the live generation, and that generation's number."""
        live = self._live
        return live.number, client_context(None if self._anonymous else live.svid, live.bundle, expected)

    def _made(self, number: int, svid: Svid, bundle: TrustBundle) -> _Generation:
        if bundle.trust_domain != self.trust_domain:
            raise ValueError(f"the bundle is of trust domain {bundle.trust_domain}, not {self.trust_domain}")
        proved = verify_svid(svid.chain(), {bundle.trust_domain: bundle}, self._wall())
        if number > 1 and proved != self.id:
            raise ValueError(f"the new SVID is {proved}; this process is {self.id}")
        return _Generation(number, svid, bundle, server_context(svid, bundle))

    def _failed(self, error: Exception) -> None:
        self.renewal_error = error
        svid, left = self.svid, self.expires_in_s()
        level = logging.ERROR if left <= (1 - ALARM_AT) * (svid.not_after - svid.not_before) else logging.WARNING
        line = f"{logging.getLevelName(level)} {type(error).__name__}"
        if line != self._logged:
            self._logged = line
            logger.log(level, "the identity %s could not be renewed, %.0f s before it ends: %s", svid.id, left, error)

    def _point(self, tls: ssl.SSLObject, _server_name: str | None, _listener: ssl.SSLContext) -> None:
        tls.context = self._live.server


class ClientTls:
    """How to reach one peer: what a connection pool needs. `expected`: the peer's SPIFFE id, as text.

    `server_name`: the DNS name sent as SNI, also a SAN of the peer's certificate.
    """

    __slots__ = ("_built", "_credentials", "_expected", "_lock", "expected", "server_name")

    def __init__(self, credentials: Credentials, expected: SpiffeId) -> None:
        self._credentials, self._expected, self._lock = credentials, expected, Lock()
        self.expected, self.server_name = str(expected), dns_name(expected)
        self._built: tuple[int, ssl.SSLContext] | None = None

    @property
    def generation(self) -> int:
        """Grows with every rotation. A connection of an older generation works until its own certificates end."""
        return self._credentials.generation

    def context(self) -> ssl.SSLContext:
        """The current context: built once per generation, about 2 ms, then returned as it is."""
        with self._lock:
            if self._built is None or self._built[0] != self._credentials.generation:
                self._built = self._credentials.build(self._expected)
            return self._built[1]

    def pem(self) -> tuple[bytes, bytes, bytes]:
        """Our chain, our key and the roots that speak for the peers."""
        return self._credentials.pem()

    def not_after(self) -> float:
        """Unix time when our own leaf ends: no connection may be used beyond."""
        return self._credentials.svid.not_after
