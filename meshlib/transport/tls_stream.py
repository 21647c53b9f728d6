"""TLS on two memory buffers: bytes off the wire in, plain text out, and back. No I/O; both runtimes use it.

Why not the event loop's TLS: asyncio zero-fills 256 KiB per connection, and neither it nor `ssl.SSLSocket` shows
whether close_notify came, without which the end of a body cannot be told from a cut (RFC 8446 §6.1).

The peer's SPIFFE id is verified by the context, inside the handshake; so no byte of a request can precede it.
A TLS 1.3 server judges our certificate after our handshake is over: its alert arrives at the first read.
"""

from __future__ import annotations

import ssl
import time
from typing import Protocol

from ..errors import IdentityError, MeshError, TransportError

_RECORD = 65536
_OUR_CERTIFICATE = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")


class ClientTls(Protocol):
    """How to be, and whom to expect, at the other end. `identity/` gives it; shared by every connection to `expected`.

    A connection opened under an older generation lives on to its maximum age, but never beyond `not_after`.
    """

    @property
    def expected(self) -> str:
        """The peer's SPIFFE id."""

    @property
    def server_name(self) -> str:
        """The name sent as SNI."""

    @property
    def generation(self) -> int:
        """Grows with every rotation."""

    def context(self) -> ssl.SSLContext:
        """The current context. Its handshake raises ssl.SSLCertVerificationError with `.expected` and `.actual`."""

    def not_after(self) -> float:
        """Unix time at which our own certificate ends."""


def certificate_life(tls: ClientTls | None) -> float:
    """Seconds for which our certificate is still valid; infinity in plain text."""
    return float("inf") if tls is None else tls.not_after() - time.time()


class TlsStream:
    """One TLS connection as client. `up`: the handshake is over. `closed`: the peer said close_notify.

    `broken`: what went wrong after the handshake; the plain text that came before it is still good.
    """

    __slots__ = ("_incoming", "_outgoing", "_tls", "broken", "closed", "up")

    def __init__(self, tls: ClientTls) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.context().wrap_bio(self._incoming, self._outgoing, server_hostname=tls.server_name)
        self.up = self.closed = False
        self.broken: ssl.SSLError | None = None

    def handshake(self, data: bytes | memoryview = b"") -> bytes:
        """One step: what came in, and what to send.

        Raises ssl.SSLError. Then nothing may be sent: a peer that is not who it must be does not see our certificate.
        """
        if data:
            self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        else:
            self.up = True
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        """What to send for `data`, which is not empty."""
        self._tls.write(data)
        return self._outgoing.read()

    def decrypt(self, data: bytes | memoryview = b"") -> list[bytes]:
        """The plain text of what came in; look at `closed`, `broken` and `answer()` afterwards."""
        self._incoming.write(data)
        pieces = []
        try:
            while self._incoming.pending or self._tls.pending():
                piece = self._tls.read(_RECORD)
                if not piece:
                    self.closed = True
                    break
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        except ssl.SSLError as error:
            self.broken = error
        return pieces

    def answer(self) -> bytes:
        """What TLS itself has to say (a key update); usually nothing."""
        return self._outgoing.read() if self._outgoing.pending else b""


def handshake_error(error: ssl.SSLError, tls: ClientTls, address: str) -> MeshError:
    """The error of a handshake that failed on this side, or that the peer refused."""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = getattr(error, "verify_message", "") or "".join(map(str, error.args[-1:]))
        message = f"{address} could not be verified as {tls.expected}: {reason}"
        return IdentityError(message, expected=tls.expected, actual=getattr(error, "actual", None))
    if _refused(error):
        return refused(error, tls, address)
    return TransportError(
        f"{address}: TLS handshake failed: {error.reason or error}", phase="connect", cause="protocol", sent=False
    )


def read_error(error: ssl.SSLError, tls: ClientTls, address: str, *, fresh: bool, reused: bool) -> MeshError:
    """The error of TLS after the handshake. `fresh`: no byte of a reply has ever come on this connection."""
    if fresh and _refused(error):
        refusal = refused(error, tls, address)
        refusal.sent = (
            True  # the request went out before the alert came: the peer's word that it was not read is no proof
        )
        return refusal
    return TransportError(
        f"{address}: TLS failed: {error.reason or error}", phase="read", cause="protocol", reused=reused
    )


def refused(error: ssl.SSLError, tls: ClientTls, address: str) -> IdentityError:
    """The peer sent an alert about our certificate."""
    return IdentityError(
        f"{address} refused our certificate ({error.reason}); it was to be {tls.expected}", expected=tls.expected
    )


def suspect(error: TransportError) -> TransportError:
    """The same error, of a fresh connection that ended before any reply: perhaps an alert that was lost to a reset."""
    message = f"{error} (the first request on this mTLS connection: the peer may have refused our certificate)"
    return TransportError(message, phase=error.phase, cause=error.cause, sent=error.sent, reused=error.reused)


def closed_in_handshake(address: str) -> TransportError:
    """The peer hung up before the handshake was over; no byte of a request can have been sent."""
    message = f"{address}: the connection was closed inside the TLS handshake"
    return TransportError(message, phase="connect", cause="closed", sent=False)


def _refused(error: ssl.SSLError) -> bool:
    reason = error.reason or ""
    return "ALERT" in reason and any(word in reason for word in _OUR_CERTIFICATE)
