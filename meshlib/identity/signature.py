"""Signed fragments: what the config service says, so that neither a relay nor a disk can say something else.

ECDSA with SHA-256 over `meshlib fragment v1`, a zero byte and the payload, in base64 of DER. The prefix keeps a
signature for a fragment from being one for anything else. The verifier believes a key because its certificate leads to
a root of the trust bundle and has the id that is expected; the service's signer has one of its own (`signer.meshlib`).

Source: RFC 6979's family of algorithms (FIPS 186-5), as for the certificates; prefix as in RFC 8446 §4.4.3.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from .spiffe import SpiffeId
from .svid import PeerIdentityError, Svid, TrustBundle, chain_of, public_key, verify_svid

SIGNATURE_CHARS_MAX = 256
"""The longest signature, in base64; a longer one is refused unread. One by a P-384 key has at most 140."""

_PREFIX = b"meshlib fragment v1\0"
_ALGORITHM = ec.ECDSA(hashes.SHA256())


class Signer:
    """Signs with the key of `svid`. `chain_pem`: what a verifier needs of it. ValueError unless it is an EC key."""

    def __init__(self, svid: Svid) -> None:
        key = load_pem_private_key(svid.private_key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("fragments are signed with an EC key, and this SVID has another")
        self._key, self.chain_pem = key, svid.certificate_pem

    def sign(self, payload: bytes) -> str:
        """The signature of `payload`, in base64. Not the same twice: ECDSA draws a number."""
        return base64.b64encode(self._key.sign(_PREFIX + payload, _ALGORITHM)).decode("ascii")


class Verifier:
    """Says which payloads `expected` has signed; made by `of`, which checks the signer's certificate."""

    def __init__(self, key: ec.EllipticCurvePublicKey, signer: SpiffeId) -> None:
        self._key, self.signer = key, signer

    @classmethod
    def of(cls, chain_pem: bytes, bundle: TrustBundle, expected: SpiffeId, now: float) -> Verifier:
        """The verifier of whoever has the chain `chain_pem` (leaf first), believed by `bundle` at unix time `now`.

        PeerIdentityError when the chain proves another id or none; ValueError when it is no chain, or not an EC key's.
        """
        chain = chain_of(chain_pem)
        signer = verify_svid(chain, {bundle.trust_domain: bundle}, now)
        if signer != expected:
            message = f"fragments are signed by {signer}, expected was {expected}"
            raise PeerIdentityError(message, expected=str(expected), actual=str(signer))
        key = public_key(chain[0])
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("fragments are signed with an EC key, and this signer has another")
        return cls(key, signer)

    def verify(self, payload: bytes, signature: str) -> None:
        """ValueError unless `signature` is the signer's, of this very payload."""
        try:
            if len(signature) > SIGNATURE_CHARS_MAX:
                raise ValueError("too long")
            self._key.verify(base64.b64decode(signature, validate=True), _PREFIX + payload, _ALGORITHM)
        except (ValueError, binascii.Error, InvalidSignature):
            raise ValueError(f"the signature of the fragment is not one of {self.signer}") from None
