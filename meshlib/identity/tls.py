"""TLS contexts that verify the peer's SPIFFE id inside the handshake.

TLS 1.3 only, a certificate from both sides, VERIFY_X509_STRICT, no host names: who the peer is decides its URI SAN.
OpenSSL verifies chain and time; the moment it is done, and before a byte of the application is sent or read,
`verify_leaf` and the context's matcher decide. An object whose peer is not verified handshakes on its first read or
write, so a server that skips `do_handshake` (gunicorn does) gets the check all the same. Servers give no session
tickets: a resumed session would outlive a dropped root.

A server may let clients in that show no certificate (`optional_client`); one that shows a certificate must be a valid
member all the same. Such a server must have been made so itself: OpenSSL takes this mode from the context that the
connection began with, not from one that an SNI callback puts in its place.

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
from .svid import PeerIdentityError, Svid, TrustBundle, issuing_root, serial_number, verify_leaf

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
    context.accept(bundle.trust_domain, matches_id(expected), str(expected), revoked=bundle.revoked)
    return _equip(context, bundle, svid, with_roots=False)


def server_context(
    svid: Svid, bundle: TrustBundle, *, optional_client: bool = False, with_roots: bool = False
) -> ssl.SSLContext:
    """A context whose handshakes succeed only with clients of the bundle's trust domain that are not revoked.

    `optional_client`: and with those that show no certificate; `peer_of` is then None. `with_roots`: send the root that
    issued the leaf, too, for clients that know only its hash (`pinned`); ValueError when the bundle lacks it.
    """
    context = IdentityContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL if optional_client else ssl.CERT_REQUIRED
    context.num_tickets = 0
    expected = f"spiffe://{bundle.trust_domain}/*"
    context.accept(
        bundle.trust_domain,
        matches_member_of(bundle.trust_domain),
        expected,
        revoked=bundle.revoked,
        anonymous=optional_client,
    )
    return _equip(context, bundle, svid, with_roots=with_roots)


def peer_of(tls: object) -> SpiffeId | None:
    """The id that was verified in the handshake of `tls` (an SSL object or socket of our contexts), or None."""
    return tls.peer if isinstance(tls, (_IdentityObject, _IdentitySocket)) else None


def serial_of(tls: object) -> int | None:
    """The serial of the leaf by which the peer was verified, or None where `peer_of` is None."""
    if not isinstance(tls, (_IdentityObject, _IdentitySocket)) or tls.peer is None:
        return None
    return serial_number(tls.getpeercert(binary_form=True) or b"")


class _IdentityObject(ssl.SSLObject):
    """What event loops drive."""

    peer: SpiffeId | None = None
    verified = False  # and so is an anonymous client of a server that lets it in: its peer stays None

    def do_handshake(self) -> None:
        with _typed(self):
            super().do_handshake()
        self.peer, self.verified = _identify(self), True

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> Any:  # noqa: A002 - the name of the base
        if not self.verified:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: ReadableBuffer) -> int:
        if not self.verified:
            self.do_handshake()
        return super().write(data)


class _IdentitySocket(ssl.SSLSocket):
    """What blocking clients and servers drive: `recv` ends in `read`, `sendall` in `send`."""

    peer: SpiffeId | None = None
    verified = False  # and so is an anonymous client of a server that lets it in: its peer stays None

    def do_handshake(self, block: bool = False) -> None:
        with _typed(self):
            super().do_handshake(block)
        self.peer, self.verified = _identify(self), True

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> Any:  # noqa: A002 - the name of the base
        if not self.verified:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: ReadableBuffer) -> int:
        if not self.verified:
            self.do_handshake()
        return super().write(data)

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        if not self.verified:
            self.do_handshake()
        return super().send(data, flags)


class IdentityContext(ssl.SSLContext):
    """An SSLContext that knows whom it accepts. Fails closed: until `accept` has been called, nobody."""

    sslobject_class = _IdentityObject
    sslsocket_class = _IdentitySocket
    trust_domain = ""
    expected = "nobody: the context was not told whom to accept"
    anonymous = False
    revoked: frozenset[int] = frozenset()
    _matches: Matcher = staticmethod(lambda _: False)

    def accept(
        self,
        trust_domain: str,
        matches: Matcher,
        expected: str,
        *,
        revoked: frozenset[int] = frozenset(),
        anonymous: bool = False,
    ) -> None:
        """From now on accept ids of `trust_domain` that match; `expected` says in words, or as an id, who that is.

        Not by a leaf whose enrolment is one of `revoked`. `anonymous`: and accept a peer that shows no certificate.
        """
        self.trust_domain, self._matches, self.expected = trust_domain, matches, expected
        self.revoked, self.anonymous = revoked, anonymous

    def identify(self, tls: ssl.SSLObject | ssl.SSLSocket) -> SpiffeId | None:
        """Who is at the other end of `tls`, whose chain and time OpenSSL has verified, or PeerIdentityError.

        None: nobody that could be named, and that is accepted.
        """
        der = tls.getpeercert(binary_form=True)
        if der is None and self.anonymous:
            return None
        try:
            actual = verify_leaf(der or b"", self.trust_domain, self.revoked)
        except PeerIdentityError as error:
            error.expected = self.expected
            raise
        if not self._matches(actual):
            message = f"the peer is {actual}, expected was {self.expected}"
            raise PeerIdentityError(message, expected=self.expected, actual=str(actual))
        return actual


def _identify(tls: ssl.SSLObject | ssl.SSLSocket) -> SpiffeId | None:
    """Asked of the object's current context: an SNI callback may have put another in the place of the listener's."""
    context = tls.context
    if not isinstance(context, IdentityContext):
        raise PeerIdentityError("the TLS context was replaced by one that cannot verify a SPIFFE id", expected="nobody")
    return context.identify(tls)


@contextmanager
def _typed(tls: ssl.SSLObject | ssl.SSLSocket) -> Iterator[None]:
    """Give OpenSSL's refusal (chain, time, purpose) our type: who was expected; who came is not proved."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        expected = getattr(tls.context, "expected", "nobody")
        message = f"the peer did not prove to be {expected}: {error.verify_message}"
        raise PeerIdentityError(message, expected=expected) from error


def _equip(context: IdentityContext, bundle: TrustBundle, svid: Svid | None, *, with_roots: bool) -> IdentityContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=bundle.pem.decode("ascii"))
    context.set_alpn_protocols(list(ALPN))
    if svid is not None:
        root = b"\n" + issuing_root(svid, bundle) if with_roots else b""
        with _key_file(svid.private_key_pem + b"\n" + svid.certificate_pem + root) as path:
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
