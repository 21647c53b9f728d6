"""Certificate requests: the proof that whoever asks for a certificate has its private key. Nothing more.

Subject, names and extensions of a request are not looked at: every field of the leaf is the authority's (SPIRE's rule).
So a request has only a size, a key of a curve that we use, and a signature by it.

Source: RFC 2986; the curves are those that the trust chain is verified with.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from .spiffe import SpiffeId

CSR_BYTES_MAX = 8 * 1024
"""The longest request, in PEM; a longer one is refused unread. One with an EC key has about 500 bytes."""

_CURVES = (ec.SECP256R1, ec.SECP384R1)


@dataclass(frozen=True, slots=True)
class Csr:
    """A request that was checked. `key_sha256`: of the key's SubjectPublicKeyInfo, in hex: the same key, the same."""

    public_key: ec.EllipticCurvePublicKey
    key_sha256: str


def make_csr(spiffe_id: SpiffeId) -> tuple[bytes, bytes]:
    """A request and its new P-256 key, both PEM, the key unencrypted. The id is for whoever reads the request."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "meshlib")])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), key_pem


def checked_csr(pem: bytes) -> Csr:
    """What may be signed of the request in `pem`; ValueError with a sentence for anything else, however hostile."""
    if len(pem) > CSR_BYTES_MAX:
        raise ValueError(f"a certificate request has at most {CSR_BYTES_MAX} bytes, this one has {len(pem)}")
    try:
        request = x509.load_pem_x509_csr(pem)
        key, signed = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(f"the certificate request cannot be read ({type(error).__name__})") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise ValueError("the key of a certificate request is an EC key on P-256 or P-384; make a new one")
    if not signed:
        raise ValueError("the certificate request is not signed by its own key")
    return Csr(key, hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest())
