"""One SVID, one bundle, one peer: what a connection pool needs of them."""

from __future__ import annotations

import time

import pytest

from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import PeerIdentityError, TrustBundle
from meshlib.identity.svid_tls import SvidTls
from meshlib.identity.tls import peer_of, serial_of, server_context
from meshlib.transport.tls_stream import ClientTls

from .certificates import Handshake

ORDERS, CONTROL = (SpiffeId.for_service("shop.example", name) for name in ("orders", "control.meshlib"))
ROOT = CertificateAuthority.create("shop.example", now=time.time())
BUNDLE = TrustBundle("shop.example", ROOT.certificate_pem)


def test_it_shows_its_svid_to_the_expected_peer() -> None:
    """And to nobody else; it never changes, and ends with its leaf."""
    svid, server = (ROOT.issue(spiffe_id, now=time.time()) for spiffe_id in (ORDERS, CONTROL))
    tls: ClientTls = SvidTls(svid, BUNDLE, CONTROL)
    assert (tls.expected, tls.server_name) == (str(CONTROL), "control.meshlib.shop.example")
    assert (tls.generation, tls.not_after(), tls.context() is tls.context()) == (1, svid.not_after, True)
    listener = server_context(server, BUNDLE, optional_client=True)
    joined = Handshake(tls.context(), listener)
    assert (joined.errors, peer_of(joined.server), serial_of(joined.server)) == ({}, ORDERS, svid.serial)
    wrong = Handshake(SvidTls(svid, BUNDLE, ORDERS).context(), listener)
    assert isinstance(wrong.client_error, PeerIdentityError)


def test_only_a_service_can_be_expected() -> None:
    """An id without a DNS name is a sentence at once."""
    with pytest.raises(ValueError, match="no DNS name"):
        SvidTls(ROOT.issue(ORDERS, now=time.time()), BUNDLE, SpiffeId("shop.example", "/edge"))
