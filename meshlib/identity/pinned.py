"""First contact with the config service: believed by the hash of its root, before there is any bundle.

A join token names the SHA-256 of a root. The service sends [its leaf, that root]; inside the handshake, before a byte
of ours, the client checks that a certificate of the chain has this hash, and that the leaf proves the expected id by
that root alone (`verify_svid`: chain, time, leaf rules). OpenSSL has no root to verify by here, so its own verification
is off; that the peer has the leaf's key, TLS 1.3 proves in any case (RFC 8446 §4.4.3).

Source: kubeadm's `--discovery-token-ca-cert-hash`.
"""

from __future__ import annotations

import hashlib
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

from .spiffe import SpiffeId, dns_name
from .svid import PeerIdentityError, TrustBundle, verify_svid
from .tls import ALPN, IdentityContext

_DER = 2  # _ssl.ENCODING_DER


class PinnedTls:
    """How to reach `expected` by the hash of its root; a `transport.tls_stream.ClientTls`. Shows no certificate.

    `root_sha256`: 64 hex digits, as in the token. ValueError when the id names no service. `wall` gives unix seconds.
    """

    generation = 1

    def __init__(self, root_sha256: str, expected: SpiffeId, *, wall: Callable[[], float] = time.time) -> None:
        self.expected, self.server_name = str(expected), dns_name(expected)
        self._context = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.pin(root_sha256, expected, wall)

    def context(self) -> ssl.SSLContext:
        """The one context. Its handshake raises PeerIdentityError, with `.expected` and `.actual`."""
        return self._context

    def not_after(self) -> float:
        """Infinity: we show no certificate that could end."""
        return float("inf")


class _PinnedContext(IdentityContext):
    def pin(self, root_sha256: str, expected: SpiffeId, wall: Callable[[], float]) -> None:
        self._root_sha256, self._id, self._wall = root_sha256, expected, wall
        self.expected = str(expected)
        self.check_hostname, self.verify_mode = False, ssl.CERT_NONE
        self.minimum_version = ssl.TLSVersion.TLSv1_3
        self.set_alpn_protocols(list(ALPN))

    def identify(self, tls: ssl.SSLObject | ssl.SSLSocket) -> SpiffeId:
        """By the pinned root instead of OpenSSL's."""
        chain = _sent(tls)
        try:
            root = self._pinned(chain)
            bundle = TrustBundle(self._id.trust_domain, ssl.DER_cert_to_PEM_cert(root).encode("ascii"))
            others = [certificate for certificate in chain if certificate != root]
            actual = verify_svid(others, {bundle.trust_domain: bundle}, self._wall())
        except ValueError as error:
            raise PeerIdentityError(f"the peer is not {self.expected}: {error}", expected=self.expected) from error
        if actual != self._id:
            message = f"the peer is {actual}, expected was {self.expected}"
            raise PeerIdentityError(message, expected=self.expected, actual=str(actual))
        return actual

    def _pinned(self, chain: list[bytes]) -> bytes:
        for certificate in chain:
            if hashlib.sha256(certificate).hexdigest() == self._root_sha256:
                return certificate
        raise ValueError("it did not send the root that the join token names; is the token of this mesh, and current?")


def _sent(tls: Any) -> list[bytes]:
    """The certificates that the peer sent, in DER, leaf first."""
    if sys.version_info >= (3, 13):
        return list(tls.get_unverified_chain())
    return [certificate.public_bytes(_DER) for certificate in tls._sslobj.get_unverified_chain() or ()]
