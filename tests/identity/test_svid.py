"""Leaf rules, chains and bundles: at rest by verify_svid, and live in a handshake."""

from __future__ import annotations

import ssl
import time
from typing import Any

import pytest
from cryptography import x509

from meshlib.errors import MeshError
from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import (
    CHAIN_MAX,
    ROOTS_MAX,
    PeerIdentityError,
    Svid,
    TrustBundle,
    chain_of,
    enrolment_of,
    issuing_root,
    leaf_facts,
    public_key,
    serial_number,
    verify_leaf,
    verify_svid,
)
from meshlib.identity.tls import client_context, server_context

from .certificates import Handshake, Issued, certificate, root, stranger, vectors

WORKLOAD = "spiffe://domain1.test/workload"


def _built(leaf: dict[str, Any], roots: dict[str, Issued]) -> Issued:
    """The certificate that a vector describes, with the chain that its peer sends."""
    issuer = leaf["issuer"]
    if issuer == "int1<-ca1":
        signer = certificate(roots["ca1"], "int1", ca=True, usage=("keyCertSign", "cRLSign"), eku=None)
    elif issuer == "leaf-of-ca1":
        signer = certificate(roots["ca1"], "leaf", uris=("spiffe://domain1.test/other",))
    else:
        signer = roots[issuer]
    issued = certificate(
        signer,
        leaf.get("subject", "SPIRE"),
        uris=tuple(leaf["uri_sans"]),
        ca=leaf["ca"],
        usage=tuple(leaf["key_usage"]),
        eku=tuple(leaf["eku"]) if "eku" in leaf else None,
        san_critical=leaf.get("san_critical", False),
    )
    if not leaf.get("send_intermediate", True):
        issued.intermediates = ()
    return issued


def _bundle(trust_domain: str, names: list[str], roots: dict[str, Issued]) -> TrustBundle | None:
    if not names:
        with pytest.raises(ValueError, match="not one or more PEM certificates"):
            TrustBundle(trust_domain, b"")
        return None
    return TrustBundle(trust_domain, b"".join(roots[name].pem for name in names))


def test_x509svid_vectors_at_rest() -> None:
    """verify_svid accepts exactly the chains that the vectors accept, and gives their id."""
    roots = {name: root(name) for name in ("ca1", "ca2")}
    cases = vectors()["x509svid"]
    assert len(cases) >= 14
    for case in cases:
        chain = _built(case["leaf"], roots).chain
        made = {name: _bundle(name, trusted, roots) for name, trusted in case["bundle"].items()}
        bundles = {name: bundle for name, bundle in made.items() if bundle is not None}
        if case["valid"]:
            assert str(verify_svid(chain, bundles, time.time())) == case["id"], case["name"]
        else:
            with pytest.raises(PeerIdentityError):
                verify_svid(chain, bundles, time.time())


@pytest.mark.parametrize("role", ["client", "server"])
def test_x509svid_vectors_live(role: str) -> None:
    """A real handshake, where OpenSSL checks the chain, decides each vector the same way, in either role."""
    roots = {name: root(name) for name in ("ca1", "ca2")}
    ours = certificate(roots["ca1"], "us", uris=("spiffe://domain1.test/us",))
    us = ours.unchecked_svid(SpiffeId.parse("spiffe://domain1.test/us"))
    for case in vectors()["x509svid"]:
        for trust_domain, trusted in case["bundle"].items():
            bundle = _bundle(trust_domain, trusted, roots)
            if bundle is None:
                continue
            peer = _built(case["leaf"], roots)
            if role == "client":
                them = stranger(ssl.PROTOCOL_TLS_CLIENT, peer, roots["ca1"])
                outcome = Handshake(them, server_context(us, bundle)).server_error
            else:
                them = stranger(ssl.PROTOCOL_TLS_SERVER, peer, roots["ca1"])
                outcome = Handshake(client_context(us, bundle, SpiffeId.parse(WORKLOAD)), them).client_error
            assert (outcome is None) is case["valid"], (case["name"], outcome)
            assert outcome is None or isinstance(outcome, PeerIdentityError), (case["name"], outcome)


def test_a_key_usage_is_required() -> None:
    """X509-SVID §4.3: key usage MUST be set; a leaf without one might sign anything."""
    leaf = certificate(root("ca1"), "x", uris=(WORKLOAD,), usage=None)
    with pytest.raises(PeerIdentityError, match="lacks an extension"):
        verify_leaf(leaf.chain[0], "domain1.test")


@pytest.mark.parametrize(
    "uri",
    ["https://domain1.test/workload", "spiffe://Domain1.test/workload", "spiffe://domain1.test/a//b"],
)
def test_a_uri_that_is_no_spiffe_id(uri: str) -> None:
    """A URI SAN that does not parse is nobody, with the parser's sentence."""
    leaf = certificate(root("ca1"), "x", uris=(uri,))
    with pytest.raises(PeerIdentityError, match=r"SPIFFE|trust domain") as caught:
        verify_leaf(leaf.chain[0], "domain1.test")
    assert caught.value.actual is None


def test_garbage_is_no_certificate() -> None:
    """Whatever bytes come, the error is ours."""
    for der in (b"", b"\x30\x00", b"\x00" * 100):
        with pytest.raises(PeerIdentityError, match="not a certificate"):
            verify_leaf(der, "domain1.test")
    with pytest.raises(PeerIdentityError, match="1 to 8"):
        verify_svid([], {}, 0.0)


def test_time_at_rest() -> None:
    """A leaf is valid between its two times only."""
    authority = CertificateAuthority.create("shop.dev", now=1_000_000.0)
    bundle = {"shop.dev": TrustBundle("shop.dev", authority.certificate_pem)}
    svid = authority.issue(SpiffeId.for_service("shop.dev", "a"), now=1_000_000.0, life_s=100)
    assert verify_svid(svid.chain(), bundle, 1_000_050.0) == svid.id
    for wrong in (1_000_000.0 - 61, 1_000_101.0):
        with pytest.raises(PeerIdentityError):
            verify_svid(svid.chain(), bundle, wrong)


def test_the_error_is_an_ssl_error_with_both_ids() -> None:
    """Event loops and httpx treat it as a failed verification; it is no MeshError until a transport makes it one."""
    error = PeerIdentityError("a sentence", expected="spiffe://a.dev/x", actual="spiffe://a.dev/y")
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert not isinstance(error, MeshError)
    assert (error.expected, error.actual, error.verify_message) == (
        "spiffe://a.dev/x",
        "spiffe://a.dev/y",
        "a sentence",
    )
    assert "a sentence" in str(error)


def test_load_checks_the_key() -> None:
    """The key must be a key and belong to the leaf."""
    ca = root("ca1")
    one, other = (certificate(ca, "x", uris=(WORKLOAD,)) for _ in range(2))
    loaded = Svid.load(one.pem, one.key_pem)
    assert (str(loaded.id), loaded.serial) == (WORKLOAD, one.certificate.serial_number)
    assert loaded.not_before < time.time() < loaded.not_after
    with pytest.raises(ValueError, match="does not belong"):
        Svid.load(one.pem, other.key_pem)
    with pytest.raises(ValueError, match="not an unencrypted PEM key"):
        Svid.load(one.pem, b"nonsense")
    with pytest.raises(ValueError, match="not one or more PEM"):
        Svid.load(b"nonsense", one.key_pem)


def test_bounds_of_chain_and_bundle() -> None:
    """A chain of 8 and a bundle of 16 are read, one more is refused."""
    ca = root("ca1")
    leaf = certificate(ca, "x", uris=(WORKLOAD,))
    Svid.load(leaf.pem * CHAIN_MAX, leaf.key_pem)
    with pytest.raises(ValueError, match="at most 8"):
        Svid.load(leaf.pem * (CHAIN_MAX + 1), leaf.key_pem)
    with pytest.raises(PeerIdentityError, match="1 to 8"):
        verify_svid(leaf.chain * (CHAIN_MAX + 1), {"domain1.test": ca.bundle("domain1.test")}, time.time())
    assert len(TrustBundle("domain1.test", ca.pem * ROOTS_MAX).roots()) == ROOTS_MAX
    with pytest.raises(ValueError, match="at most 16"):
        TrustBundle("domain1.test", ca.pem * (ROOTS_MAX + 1))


def test_a_root_must_be_a_ca() -> None:
    """A leaf in a bundle would let a workload speak for the trust domain."""
    with pytest.raises(ValueError, match="not a CA"):
        certificate(root("ca1"), "x", uris=(WORKLOAD,)).bundle("domain1.test")


SHOP = CertificateAuthority.create("shop.dev", now=1_000_000.0)
SHOP_BUNDLE = TrustBundle("shop.dev", SHOP.certificate_pem)
ORDERS = SpiffeId.for_service("shop.dev", "orders")


def test_a_revoked_leaf_is_nobody() -> None:
    """At rest and on a live connection, with all of its enrolment; another of the same id is still somebody."""
    named, other = (SHOP.issue(ORDERS, now=1_000_000.0) for _ in range(2))
    one = SHOP.issue(ORDERS, now=1_000_000.0, enrolment=enrolment_of(named.serial))
    revoked = TrustBundle("shop.dev", SHOP.certificate_pem, frozenset([enrolment_of(named.serial)]))
    said = f"certificate {one.serial:x} of {ORDERS} has been revoked"
    with pytest.raises(PeerIdentityError, match=said):
        verify_svid(one.chain(), {"shop.dev": revoked}, 1_000_000.0)
    with pytest.raises(PeerIdentityError, match=said) as caught:
        verify_leaf(one.chain()[0], "shop.dev", revoked.revoked)
    assert (caught.value.expected, caught.value.actual) == ("spiffe://shop.dev/*", str(ORDERS))
    assert verify_svid(other.chain(), {"shop.dev": revoked}, 1_000_000.0) == ORDERS
    assert verify_leaf(other.chain()[0], "shop.dev", revoked.revoked) == ORDERS
    assert verify_svid(one.chain(), {"shop.dev": SHOP_BUNDLE}, 1_000_000.0) == ORDERS


def test_a_bundle_knows_its_roots_by_their_keys() -> None:
    """As the leaves name them; a root that has no identifier cannot be named."""
    leaf = x509.load_pem_x509_certificate(SHOP.issue(ORDERS, now=1_000_000.0).certificate_pem)
    said = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert SHOP_BUNDLE.key_identifiers() == {said}
    bare = certificate(None, "root", ca=True, usage=("keyCertSign",), eku=None, key_identifiers=False)
    with pytest.raises(ValueError, match="no key identifier"):
        bare.bundle("shop.dev").key_identifiers()


def test_bundles_that_differ_in_what_is_revoked_differ() -> None:
    """So that a process notices; by default nothing is, and none of it is in a repr."""
    assert SHOP_BUNDLE.revoked == frozenset()
    assert TrustBundle("shop.dev", SHOP.certificate_pem, frozenset([1])) != SHOP_BUNDLE
    assert "revoked" not in repr(SHOP_BUNDLE)


def test_facts_of_a_leaf() -> None:
    """Of the first certificate of a chain; what keeps no leaf rules has none."""
    svid = SHOP.issue(ORDERS, now=1_000_000.0, life_s=100)
    for pem in (svid.certificate_pem, svid.certificate_pem + SHOP.certificate_pem):
        facts = leaf_facts(pem)
        assert (facts.id, facts.serial) == (ORDERS, svid.serial)
        assert (facts.not_before, facts.not_after) == (svid.not_before, svid.not_after) == (999_940.0, 1_000_100.0)
    for pem in (b"", b"garbage", SHOP.certificate_pem, svid.private_key_pem):
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            leaf_facts(pem)


def test_the_root_that_issued() -> None:
    """Of several the one; where none did, or only its name is the same, a sentence."""
    svid = SHOP.issue(ORDERS, now=1_000_000.0)
    others = [CertificateAuthority.create("shop.dev", now=1_000_000.0) for _ in range(2)]
    first, last = (other.certificate_pem for other in others)
    assert issuing_root(svid, TrustBundle("shop.dev", first + SHOP.certificate_pem + last)) == SHOP.certificate_pem
    with pytest.raises(ValueError, match=f"no root of trust domain shop.dev has issued the certificate of {ORDERS}"):
        issuing_root(svid, TrustBundle("shop.dev", first + last))


def test_parts_of_what_is_no_certificate() -> None:
    """A sentence for whatever a peer may have sent."""
    for look in (serial_number, public_key, chain_of):
        for garbage in (b"", b"\x30\x80", b"garbage"):
            with pytest.raises(ValueError, match="certificate"):
                look(garbage)
    svid = SHOP.issue(ORDERS, now=1_000_000.0)
    assert serial_number(svid.chain()[0]) == svid.serial
    assert chain_of(svid.certificate_pem) == svid.chain()
