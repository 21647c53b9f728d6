"""What our certificate authority issues, and what it refuses."""

from __future__ import annotations

import hashlib
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from meshlib.identity.ca import BACKDATE_S, LEAF_LIFE_S, ROOT_LIFE_S, CertificateAuthority, new_enrolment
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import ENROLMENT_BITS, TrustBundle, enrolment_of, leaf_facts, verify_svid

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


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_a_key_that_somebody_else_made(curve: ec.EllipticCurve) -> None:
    """The leaf has that key, its own serial, and the same rules as any other; it verifies."""
    authority, key = CertificateAuthority.create("shop.dev", now=NOW), ec.generate_private_key(curve).public_key()
    pem, again = (authority.sign(key, STOCK, now=NOW, life_s=100) for _ in range(2))
    facts = leaf_facts(pem)
    assert (facts.id, facts.not_before, facts.not_after) == (STOCK, NOW - BACKDATE_S, NOW + 100)
    assert facts.serial != leaf_facts(again).serial
    assert x509.load_pem_x509_certificate(pem).public_key() == key
    bundle = TrustBundle("shop.dev", authority.certificate_pem)
    assert verify_svid([ssl.PEM_cert_to_DER_cert(pem.decode())], {"shop.dev": bundle}, NOW) == STOCK
    with pytest.raises(ValueError, match="does not issue"):
        authority.sign(key, SpiffeId.for_service("bank.dev", "vault"), now=NOW)


@pytest.mark.parametrize("enrolment", [1, (1 << ENROLMENT_BITS) - 1])
def test_a_serial_carries_its_enrolment(enrolment: int) -> None:
    """The same for all leaves of one; beside it enough chance, and in all at most 20 octets, as RFC 5280 wants it."""
    authority = CertificateAuthority.create("shop.dev", now=NOW)
    one, other = (authority.issue(STOCK, now=NOW, enrolment=enrolment) for _ in range(2))
    assert enrolment_of(one.serial) == enrolment_of(other.serial) == enrolment
    assert one.serial != other.serial
    assert one.serial.bit_length() < 160


def test_an_enrolment_is_drawn_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never 0, which would be nobody's; another each time."""
    authority = CertificateAuthority.create("shop.dev", now=NOW)
    assert len({enrolment_of(authority.issue(STOCK, now=NOW).serial) for _ in range(20)}) == 20
    for drawn, expected in ((0, 1), ((1 << ENROLMENT_BITS) - 2, (1 << ENROLMENT_BITS) - 1)):
        monkeypatch.setattr("meshlib.identity.ca.secrets.randbelow", lambda below, drawn=drawn: min(drawn, below - 1))
        assert new_enrolment() == expected


def test_the_hash_of_a_root() -> None:
    """Of its DER, in hex: what `openssl x509 -fingerprint -sha256` shows, and a join token has."""
    authority = CertificateAuthority.create("shop.dev", now=NOW)
    der = ssl.PEM_cert_to_DER_cert(authority.certificate_pem.decode())
    assert authority.sha256 == hashlib.sha256(der).hexdigest()


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
