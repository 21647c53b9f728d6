"""X.509-SVIDs and trust bundles: what a workload proves its SPIFFE id with, and whom it believes.

A leaf is somebody's identity only if: it has exactly one URI SAN, a SPIFFE id with a path; it is no CA; its key usage
has digitalSignature and neither keyCertSign nor cRLSign; an extended key usage, where there is one, names both server
and client; the roots of *its own* trust domain vouch for it; its enrolment is not among those that were revoked. On a
live connection OpenSSL checks chain and time during the handshake and `verify_leaf` checks the rest; `verify_svid`
checks all of it at rest, before an SVID is put to use.

A serial is an enrolment and a number: `enrolment << 96 | random`. All leaves that came from one use of a join token, by
however many renewals, have the enrolment in common, so one entry of a list revokes them all, those to come included.

Source: SPIFFE X509-SVID §2, §4, §5; RFC 5280 §4.2.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from .spiffe import SpiffeId, check_trust_domain

ROOTS_MAX = 16
"""Roots in one trust bundle: an overlap has two; more than a few means that none is ever dropped."""

CHAIN_MAX = 8
"""Certificates of one SVID, the leaf included."""


ENROLMENT_BITS = 63
"""Bits of an enrolment, which is never 0."""

SERIAL_BITS = 96
"""Random bits of a serial, below its enrolment: 159 in all, the most that 20 octets with a sign hold (RFC 5280)."""


def enrolment_of(serial: int) -> int:
    """The enrolment that a leaf with this serial belongs to."""
    return serial >> SERIAL_BITS


class PeerIdentityError(ssl.SSLCertVerificationError):
    """The peer did not prove to be who it must be. Raised inside the handshake, before any byte of ours.

    `expected`: the id, or what ids, would have been right. `actual`: the id that was *proved*, or None: what a
    certificate merely claims, before its chain and time are verified, is nobody's identity.
    """

    reason = "PEER_IDENTITY"
    library = "MESHLIB"
    verify_code = 50  # X509_V_ERR_APPLICATION_VERIFICATION

    def __init__(self, message: str, *, expected: str, actual: str | None = None) -> None:
        super().__init__(ssl.SSLErrorNumber.SSL_ERROR_SSL, message)
        self.verify_message = message
        self.expected, self.actual = expected, actual


@dataclass(frozen=True, slots=True)
class Svid:
    """A workload's certificate chain (leaf first) and its unencrypted private key. Times are unix seconds.

    Made by `load`, which checks. Neither certificate nor key is in the repr.
    """

    certificate_pem: bytes = field(repr=False)
    private_key_pem: bytes = field(repr=False)
    id: SpiffeId
    serial: int
    not_before: float
    not_after: float

    @classmethod
    def load(cls, certificate_pem: bytes, private_key_pem: bytes) -> Svid:
        """The SVID in these PEMs; ValueError when leaf, chain or key will not do."""
        chain = _certificates(certificate_pem, "an SVID", CHAIN_MAX)
        leaf = chain[0]
        try:
            key = load_pem_private_key(private_key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"the private key of the SVID is not an unencrypted PEM key ({type(error).__name__})"
            ) from None
        if key.public_key().public_bytes(*_SPKI) != leaf.public_key().public_bytes(*_SPKI):
            raise ValueError("the private key does not belong to the first certificate of the SVID")
        facts = _facts(leaf)
        return cls(certificate_pem, private_key_pem, facts.id, facts.serial, facts.not_before, facts.not_after)

    def chain(self) -> list[bytes]:
        """The chain in DER, leaf first."""
        return chain_of(self.certificate_pem)


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The 1 to 16 root certificates that speak for `trust_domain`, in PEM. ValueError where one is no CA.

    `revoked`: enrolments whose leaves are refused although a root vouches for them.
    """

    trust_domain: str
    pem: bytes = field(repr=False)
    revoked: frozenset[int] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        for root in self.roots():
            if not _is_ca(root):
                raise ValueError(
                    f"a root of trust domain {self.trust_domain} is not a CA: {root.subject.rfc4514_string()}"
                )

    def roots(self) -> list[x509.Certificate]:
        """The certificates, in the order of the PEM."""
        return _certificates(self.pem, f"the trust bundle of {self.trust_domain}", ROOTS_MAX)

    def key_identifiers(self) -> frozenset[bytes]:
        """Of the keys of its roots: what a leaf names as the key that signed it. ValueError for a root without one."""
        kind = x509.SubjectKeyIdentifier
        try:
            return frozenset(root.extensions.get_extension_for_class(kind).value.digest for root in self.roots())
        except x509.ExtensionNotFound as error:
            raise ValueError(f"a root of trust domain {self.trust_domain} has no key identifier") from error


@dataclass(frozen=True, slots=True)
class LeafFacts:
    """What a leaf says of itself; nothing of it is proved. Times are unix seconds."""

    id: SpiffeId
    serial: int
    not_before: float
    not_after: float


def leaf_facts(pem: bytes) -> LeafFacts:
    """The facts of the first certificate in `pem`, which keeps the leaf rules; else ValueError."""
    return _facts(_certificates(pem, "a chain", CHAIN_MAX)[0])


def serial_number(der: bytes) -> int:
    """The serial of a certificate, or ValueError."""
    return _parsed(der).serial_number


def public_key(der: bytes) -> CertificatePublicKeyTypes:
    """The key of a certificate, or ValueError."""
    try:
        return _parsed(der).public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError(f"the key of the certificate is of no known kind: {error}") from None


def chain_of(pem: bytes) -> list[bytes]:
    """The 1 to 8 certificates in `pem`, in DER, in their order; else ValueError."""
    return [certificate.public_bytes(Encoding.DER) for certificate in _certificates(pem, "a chain", CHAIN_MAX)]


def issuing_root(svid: Svid, bundle: TrustBundle) -> bytes:
    """The root of `bundle` that signed the last certificate of the SVID's chain, in PEM; ValueError where none did."""
    last = _parsed(svid.chain()[-1])
    for root in bundle.roots():
        try:
            last.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return root.public_bytes(Encoding.PEM)
    raise ValueError(f"no root of trust domain {bundle.trust_domain} has issued the certificate of {svid.id}")


def verify_leaf(der: bytes, trust_domain: str, revoked: frozenset[int] = frozenset()) -> SpiffeId:
    """The id that a leaf proves, whose chain and time are already verified against the roots of `trust_domain`.

    PeerIdentityError, with `.expected` and `.actual`, when a leaf rule is broken, it is of another trust domain, or its
    enrolment is one of `revoked`.
    """
    expected = f"spiffe://{trust_domain}/*"
    try:
        leaf = _parsed(der)
        actual = _leaf_id(leaf)
    except ValueError as error:
        raise PeerIdentityError(f"the peer's certificate is no identity: {error}", expected=expected) from error
    if actual.trust_domain != trust_domain:
        message = f"the peer is {actual}, which is not of trust domain {trust_domain}"
        raise PeerIdentityError(message, expected=expected, actual=str(actual))
    if enrolment_of(leaf.serial_number) in revoked:
        raise PeerIdentityError(_revoked(leaf, actual), expected=expected, actual=str(actual))
    return actual


def verify_svid(chain: Sequence[bytes], bundles: Mapping[str, TrustBundle], now: float) -> SpiffeId:
    """The id that `chain` (DER, leaf first) proves at unix time `now`, by the bundle of its own trust domain alone.

    PeerIdentityError when a leaf rule is broken, there is no such bundle, no path leads to one of its roots, or the
    bundle says that its enrolment is revoked.
    """
    expected = (
        " or ".join(f"spiffe://{trust_domain}/*" for trust_domain in bundles) or "nobody: there is no trust bundle"
    )
    try:
        if not 1 <= len(chain) <= CHAIN_MAX:
            raise ValueError(f"a chain has 1 to {CHAIN_MAX} certificates, this one has {len(chain)}")
        leaf, *intermediates = map(_parsed, chain)
        claimed = _leaf_id(leaf)
        if claimed.trust_domain not in bundles:
            raise ValueError(f"there is no trust bundle for the trust domain of {claimed}")
        at = dt.datetime.fromtimestamp(now, dt.UTC)
        policy = PolicyBuilder().store(Store(bundles[claimed.trust_domain].roots())).time(at)
        policy.build_client_verifier().verify(leaf, intermediates)
        if enrolment_of(leaf.serial_number) in bundles[claimed.trust_domain].revoked:
            raise ValueError(_revoked(leaf, claimed))
    except (ValueError, VerificationError) as error:
        raise PeerIdentityError(f"the certificate is no identity: {error}", expected=expected) from error
    return claimed


_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
_MALFORMED = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def _parsed(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise ValueError(f"it is not a certificate: {error}") from error


def _revoked(leaf: x509.Certificate, spiffe_id: SpiffeId) -> str:
    return f"certificate {leaf.serial_number:x} of {spiffe_id} has been revoked"


def _facts(leaf: x509.Certificate) -> LeafFacts:
    begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    return LeafFacts(_leaf_id(leaf), leaf.serial_number, begins, ends)


def _leaf_id(leaf: x509.Certificate) -> SpiffeId:
    """The id in a leaf that keeps the leaf rules, or ValueError."""
    try:
        extensions = leaf.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise ValueError(f"the leaf certificate lacks an extension that an SVID must have: {error}") from None
    except _MALFORMED as error:
        raise ValueError(f"the leaf certificate cannot be read: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"the leaf certificate has {len(uris)} URI SANs; an SVID has exactly one")
    spiffe_id = SpiffeId.parse(uris[0])
    if not spiffe_id.path:
        raise ValueError(f"{spiffe_id} is a whole trust domain; the id of a leaf has a path")
    _check_usage(leaf, usage)
    return spiffe_id


def _check_usage(leaf: x509.Certificate, usage: x509.KeyUsage) -> None:
    if _is_ca(leaf):
        raise ValueError("the leaf certificate is a CA")
    if not usage.digital_signature:
        raise ValueError("the key usage of the leaf certificate lacks digitalSignature")
    if usage.key_cert_sign or usage.crl_sign:
        raise ValueError("the key usage of the leaf certificate has keyCertSign or cRLSign, which only a CA has")
    try:
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(purposes):
        raise ValueError("the extended key usage of the leaf certificate lacks serverAuth or clientAuth")


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _certificates(pem: bytes, what: str, at_most: int) -> list[x509.Certificate]:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ValueError(f"{what} is not one or more PEM certificates: {error}") from None
    if len(certificates) > at_most:
        raise ValueError(f"{what} has {len(certificates)} certificates; at most {at_most} are allowed")
    return certificates
