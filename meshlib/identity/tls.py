"""TLS contexts that verify the peer's SPIFFE id inside the handshake.

TLS 1.3 only, a certificate from both sides, VERIFY_X509_STRICT, no host names: who the peer is decides its URI SAN.
OpenSSL verifies chain and time; the moment it is done, and before a byte of the application is sent or read,
`verify_leaf` and the context's matcher decide. An object whose peer is not verified handshakes on its first read or
write, so a server that skips `do_handshake` (gunicorn does) gets the check all the same. Servers give no session
tickets: a resumed session would outlive a dropped root.

Any library that takes an `ssl.SSLContext` gets the check: the hooks are the documented `sslobject_class` (asyncio,
uvloop, anyio) and `sslsocket_class` (blocking clients). Source: CPython `ssl`; RFC 8446 §2.2, §4.6.1.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .spiffe import Matcher, SpiffeId, matches_id, matches_member_of
from .svid import PeerIdentityError, Svid, TrustBundle, verify_leaf

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

ALPN = ("http/1.1",)
"""The protocols spoken under TLS. HTTP/2 is gRPC's, which brings its own TLS."""


def client_context(svid: Svid | None, bundle: TrustBundle, expected: SpiffeId) -> ssl.SSLContext:
    """A context whose handshakes succeed only with the peer `expected`. About 2 ms: not one per connection.

    `svid` None: show no certificate, as an anonymous caller; a strict server refuses that.
    """
    context = IdentityContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.accept(bundle.trust_domain, matches_id(expected), str(expected))
    return _equip(context, svid, bundle)


def server_context(svid: Svid, bundle: TrustBundle) -> ssl.SSLContext:
    """A context whose handshakes succeed only with clients of the bundle's trust domain, none without certificate."""
    context = IdentityContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.accept(bundle.trust_domain, matches_member_of(bundle.trust_domain), f"spiffe://{bundle.trust_domain}/*")
    return _equip(context, svid, bundle)


def peer_of(tls: object) -> SpiffeId | None:
    """The id that was verified in the handshake of `tls` (an SSL object or socket of our contexts), or None."""
    return tls.peer if isinstance(tls, (_IdentityObject, _IdentitySocket)) else None


class _IdentityObject(ssl.SSLObject):
    """What event loops drive."""

    peer: SpiffeId | None = None

    def do_handshake(self) -> None:
        with _typed(self):
            super().do_handshake()
        self.peer = _identify(self)

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> Any:  # noqa: A002 - the name of the base
        if self.peer is None:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: ReadableBuffer) -> int:
        if self.peer is None:
            self.do_handshake()
        return super().write(data)


class _IdentitySocket(ssl.SSLSocket):
    """What blocking clients and servers drive: `recv` ends in `read`, `sendall` in `send`."""

    peer: SpiffeId | None = None

    def do_handshake(self, block: bool = False) -> None:
        with _typed(self):
            super().do_handshake(block)
        self.peer = _identify(self)

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> Any:  # noqa: A002 - the name of the base
        if self.peer is None:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: ReadableBuffer) -> int:
        if self.peer is None:
            self.do_handshake()
        return super().write(data)

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        if self.peer is None:
            self.do_handshake()
        return super().send(data, flags)


class IdentityContext(ssl.SSLContext):
    """An SSLContext that knows whom it accepts. Fails closed: until `accept` has been called, nobody."""

    sslobject_class = _IdentityObject
    sslsocket_class = _IdentitySocket
    trust_domain = ""
    expected = "nobody: the context was not told whom to accept"
    _matches: Matcher = staticmethod(lambda _: False)

    def accept(self, trust_domain: str, matches: Matcher, expected: str) -> None:
        """From now on accept ids of `trust_domain` that match; `expected` says in words, or as an id, who that is."""
        self.trust_domain, self._matches, self.expected = trust_domain, matches, expected

    def identify(self, der: bytes | None) -> SpiffeId:
        """The id of a verified leaf, or PeerIdentityError."""
        try:
            actual = verify_leaf(der or b"", self.trust_domain)
        except PeerIdentityError as error:
            error.expected = self.expected
            raise
        if not self._matches(actual):
            message = f"the peer is {actual}, expected was {self.expected}"
            raise PeerIdentityError(message, expected=self.expected, actual=str(actual))
        return actual


def _identify(tls: ssl.SSLObject | ssl.SSLSocket) -> SpiffeId:
    """Asked of the object's current context: an SNI callback may have put another in the place of the listener's."""
    context = tls.context
    if not isinstance(context, IdentityContext):
        raise PeerIdentityError("the TLS context was replaced by one that cannot verify a SPIFFE id", expected="nobody")
    return context.identify(tls.getpeercert(binary_form=True))


@contextmanager
def _typed(tls: ssl.SSLObject | ssl.SSLSocket) -> Iterator[None]:
    """Give OpenSSL's refusal (chain, time, purpose) our type: who was expected; who came is not proved."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        expected = getattr(tls.context, "expected", "nobody")
        message = f"the peer did not prove to be {expected}: {error.verify_message}"
        raise PeerIdentityError(message, expected=expected) from error


def _equip(context: IdentityContext, svid: Svid | None, bundle: TrustBundle) -> IdentityContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=bundle.pem.decode("ascii"))
    context.set_alpn_protocols(list(ALPN))
    if svid is not None:
        with _key_file(svid.private_key_pem + b"\n" + svid.certificate_pem) as path:
            context.load_cert_chain(path)
    return context


@contextmanager
def _key_file(pem: bytes) -> Iterator[str]:
    """A path under which OpenSSL can read `pem`: in memory where the system can, else a 0600 file for a moment."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        fd = os.memfd_create("meshlib-svid", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(pem)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.NamedTemporaryFile(prefix="meshlib-") as file:
            file.write(pem)
            file.flush()
            yield file.name
