"""What is kept of the leaf by which a peer was verified: a handshake is a moment, a connection may be open for days.

Whoever goes on serving a connection asks again whether its leaf has ended, was revoked, or hangs on a root that is no
longer believed. Source: RFC 5280 §4.2.1.1 (the authority key identifier is the subject key identifier of the issuer).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cryptography import x509

from .tls import peer_of


class PeerLeaf(NamedTuple):
    """`serial`; `not_after`: unix seconds; `issuer`: the key identifier of the root that signed it, b"" where the leaf
    does not say.
    """

    serial: int
    not_after: float
    issuer: bytes


def leaf_of(tls: Any) -> PeerLeaf | None:
    """The leaf that the peer of `tls` (an SSL object of our contexts) was verified by; None where `peer_of` is None."""
    if peer_of(tls) is None:
        return None
    leaf = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True))
    try:
        said = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except (x509.ExtensionNotFound, ValueError):
        said = None
    return PeerLeaf(leaf.serial_number, leaf.not_valid_after_utc.timestamp(), said or b"")
