"""A certificate authority for one trust domain: makes its root and issues SVIDs.

Keys are P-256. A root signs leaves only (path length 0). A leaf has exactly one URI SAN, its SPIFFE id, and one DNS SAN
for gRPC, which matches nothing else. All pass OpenSSL's VERIFY_X509_STRICT: subject and authority key identifiers,
critical basic constraints and key usage. Every field of a leaf but the key is decided here, none by who asks.

Source: SPIFFE X509-SVID §3, §4; RFC 5280; the backdating is SPIRE's practice, longer because laptops' clocks drift.
"""

from __future__ import annotations

import datetime as dt
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .spiffe import SpiffeId, dns_name
from .svid import ENROLMENT_BITS, SERIAL_BITS, Svid

LEAF_LIFE_S = 24 * 3600.0
"""Life of a leaf: 24 h (SPIRE's and Linkerd's order of magnitude)."""

ROOT_LIFE_S = 365 * 24 * 3600.0
"""Life of a root: one year."""

BACKDATE_S = 60.0
"""A certificate is valid this long before it was issued, so that a peer whose clock is behind accepts it at once."""

_NAME_MAX = 64  # ub-common-name, RFC 5280 appendix A


def new_enrolment() -> int:
    """An enrolment that nobody has, by chance: 1 to 2^63 - 1."""
    return 1 + secrets.randbelow((1 << ENROLMENT_BITS) - 1)


class CertificateAuthority:
    """The root certificate of `trust_domain` with its key. Made by `create` or `load`; times are unix seconds."""

    __slots__ = ("_certificate", "_key", "trust_domain")

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, trust_domain: str) -> None:
        self._certificate, self._key, self.trust_domain = certificate, key, trust_domain

    @classmethod
    def create(cls, trust_domain: str, *, now: float, life_s: float = ROOT_LIFE_S) -> CertificateAuthority:
        """A new root and key, valid from `now` - 60 s for `life_s` seconds. ValueError for a bad trust domain."""
        key, serial = ec.generate_private_key(ec.SECP256R1()), x509.random_serial_number()
        name = _name(f"meshlib root {serial:x}")
        builder = _certificate(key.public_key(), serial, now, now + life_s, key.public_key())
        builder = builder.subject_name(name).issuer_name(name)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        uri = x509.UniformResourceIdentifier(str(SpiffeId(trust_domain)))
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key, trust_domain)

    @classmethod
    def load(cls, certificate_pem: bytes, private_key_pem: bytes) -> CertificateAuthority:
        """The authority in these PEMs (key unencrypted), or ValueError when they are not a root of ours and its key."""
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        try:
            key = load_pem_private_key(private_key_pem, password=None)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        except (ValueError, TypeError, x509.ExtensionNotFound) as error:
            raise ValueError(f"not a CA certificate of a trust domain with its key ({type(error).__name__})") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("the private key does not belong to the CA certificate")
        return cls(certificate, key, SpiffeId.parse(uri).trust_domain)

    def issue(
        self, spiffe_id: SpiffeId, *, now: float, life_s: float = LEAF_LIFE_S, enrolment: int | None = None
    ) -> Svid:
        """A new key and leaf for `spiffe_id`; all else as `sign`."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf_pem = self.sign(key.public_key(), spiffe_id, now=now, life_s=life_s, enrolment=enrolment)
        return Svid.load(leaf_pem, _key_pem(key))

    def sign(
        self,
        public_key: ec.EllipticCurvePublicKey,
        spiffe_id: SpiffeId,
        *,
        now: float,
        life_s: float = LEAF_LIFE_S,
        enrolment: int | None = None,
    ) -> bytes:
        """A leaf (PEM) that says `public_key` is `spiffe_id`, for `life_s` seconds but never beyond the root's end.

        `enrolment`: what its serial begins with; None draws one. ValueError when the id is of another trust domain or
        names no service.
        """
        if spiffe_id.trust_domain != self.trust_domain:
            raise ValueError(f"the CA of trust domain {self.trust_domain} does not issue {spiffe_id}")
        ends = min(now + life_s, self.not_after)
        serial = (enrolment or new_enrolment()) << SERIAL_BITS | secrets.randbits(SERIAL_BITS)
        builder = _certificate(public_key, serial, now, ends, self._key.public_key())
        builder = builder.subject_name(_name("workload")).issuer_name(self._certificate.subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage("digital_signature"), critical=True)
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        names = [x509.UniformResourceIdentifier(str(spiffe_id)), x509.DNSName(dns_name(spiffe_id))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def sha256(self) -> str:
        """The hash of the root certificate's DER, in hex: what a join token pins."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def private_key_pem(self) -> bytes:
        """The root's key, unencrypted PKCS #8. Whoever has it is everybody."""
        return _key_pem(self._key)

    @property
    def not_before(self) -> float:
        """When the root begins, in unix seconds: 60 s before it was made, in whole seconds rounded down."""
        return self._certificate.not_valid_before_utc.timestamp()

    @property
    def not_after(self) -> float:
        """When the root ends, in unix seconds."""
        return self._certificate.not_valid_after_utc.timestamp()


def _certificate(
    subject: ec.EllipticCurvePublicKey, serial: int, now: float, ends: float, issuer: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(subject)
        .serial_number(serial)
        .not_valid_before(dt.datetime.fromtimestamp(now - BACKDATE_S, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(ends, dt.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "meshlib")
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_NAME_MAX])])


def _usage(*granted: str) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digital_signature" in granted,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign="key_cert_sign" in granted,
        crl_sign="crl_sign" in granted,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
