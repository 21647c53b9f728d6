"""What our certificate authority issues, and what it refuses."""

from __future__ import annotations

import pytest
from cryptography import x509

from meshlib.identity.ca import BACKDATE_S, LEAF_LIFE_S, ROOT_LIFE_S, CertificateAuthority
from meshlib.identity.spiffe import SpiffeId

NOW = 1_800_000_000.0
STOCK = SpiffeId.for_service("shop.dev", "inventory.stock")


def test_a_leaf_has_one_uri_and_one_dns_name() -> None:
    """The URI SAN is the id; the DNS SAN is for gRPC, which matches nothing else."""
    svid = CertificateAuthority.create("shop.dev", now=NOW).issue(STOCK, now=NOW)
    leaf = x509.load_pem_x509_certificate(svid.certificate_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [(type(name), name.value) for name in names] == [
        (x509.UniformResourceIdentifier, "spiffe://shop.dev/ns/stock/sa/inventory"),
        (x509.DNSName, "inventory.stock.shop.dev"),
    ]
    assert svid.id == STOCK


def test_lives() -> None:
    """A leaf lives 24 h, a root a year, both backdated by a minute; no leaf outlives its root."""
    authority = CertificateAuthority.create("shop.dev", now=NOW)
    assert authority.not_after == NOW + ROOT_LIFE_S
    svid = authority.issue(STOCK, now=NOW)
    assert (svid.not_before, svid.not_after) == (NOW - BACKDATE_S, NOW + LEAF_LIFE_S)
    assert authority.issue(STOCK, now=authority.not_after - 10).not_after == authority.not_after


def test_a_root_cannot_have_intermediates() -> None:
    """Path length 0, and the extensions that VERIFY_X509_STRICT asks for."""
    certificate = x509.load_pem_x509_certificate(CertificateAuthority.create("shop.dev", now=NOW).certificate_pem)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert certificate.extensions.get_extension_for_class(x509.KeyUsage).critical
    certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


def test_it_issues_for_services_of_its_own_trust_domain_only() -> None:
    """Another trust domain, or an id that names no service, is refused with a sentence."""
    authority = CertificateAuthority.create("shop.dev", now=NOW)
    with pytest.raises(ValueError, match=r"trust domain shop\.dev does not issue"):
        authority.issue(SpiffeId.for_service("bank.dev", "vault"), now=NOW)
    with pytest.raises(ValueError, match="no DNS name"):
        authority.issue(SpiffeId("shop.dev", "/edge"), now=NOW)


def test_load_is_the_inverse_of_create() -> None:
    """PEMs give the same authority back; a key of another, or no CA of ours, is refused."""
    one, other = (CertificateAuthority.create("shop.dev", now=NOW) for _ in range(2))
    loaded = CertificateAuthority.load(one.certificate_pem, one.private_key_pem)
    assert (loaded.trust_domain, loaded.certificate_pem) == ("shop.dev", one.certificate_pem)
    with pytest.raises(ValueError, match="does not belong"):
        CertificateAuthority.load(one.certificate_pem, other.private_key_pem)
    with pytest.raises(ValueError, match="with its key"):
        CertificateAuthority.load(one.certificate_pem, b"nonsense")
    assert "PRIVATE" not in repr(one)
