"""Signed fragments: only what the expected signer has signed is believed, and only for what it was signed."""

from __future__ import annotations

import base64
import random
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from meshlib.identity.ca import LEAF_LIFE_S, CertificateAuthority
from meshlib.identity.signature import SIGNATURE_CHARS_MAX, Signer, Verifier
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import PeerIdentityError, Svid, TrustBundle, enrolment_of

NOW = 1_800_000_000.0
SIGNER, ORDERS = (SpiffeId.for_service("shop.example", name) for name in ("signer.meshlib", "orders"))
ROOT = CertificateAuthority.create("shop.example", now=NOW)
BUNDLE = TrustBundle("shop.example", ROOT.certificate_pem)
SVID = ROOT.issue(SIGNER, now=NOW)
PAYLOAD = '{"resource":"service/orders","n":1,"content":"ü"}'.encode()


def _verifier(svid: Svid = SVID, bundle: TrustBundle = BUNDLE, now: float = NOW) -> Verifier:
    return Verifier.of(svid.certificate_pem, bundle, SIGNER, now)


def test_what_was_signed_is_verified() -> None:
    """The chain that the signer gives is all that a verifier needs; an empty payload is one, too."""
    signer = Signer(SVID)
    verifier = Verifier.of(signer.chain_pem, BUNDLE, SIGNER, NOW)
    for payload in (PAYLOAD, b"", b"x" * (1 << 20)):
        verifier.verify(payload, signer.sign(payload))
    assert len(signer.sign(PAYLOAD)) < SIGNATURE_CHARS_MAX / 2


def test_another_payload_is_not_what_was_signed() -> None:
    """Not one bit."""
    signature = Signer(SVID).sign(PAYLOAD)
    for payload in (PAYLOAD + b" ", PAYLOAD[:-1], b"", bytes([PAYLOAD[0] ^ 1]) + PAYLOAD[1:]):
        with pytest.raises(ValueError, match="signature of the fragment"):
            _verifier().verify(payload, signature)


def test_broken_signatures_are_refused() -> None:
    """Bad base64, no DER, cut, long, another's, or some of it changed: ValueError, never another error."""
    good = Signer(SVID).sign(PAYLOAD)
    other = Signer(ROOT.issue(SIGNER, now=NOW)).sign(PAYLOAD)
    zero = base64.b64encode(b"\x30\x06\x02\x01\x00\x02\x01\x00").decode()
    broken = [
        "",
        "=",
        "ü",
        "not base64!",
        good[:-4],
        good + "AAAA",
        good + "\n",
        other,
        zero,
        "A" * 300,
        good * 100_000,
    ]
    rng, der = random.Random(5), base64.b64decode(good)
    for _ in range(200):
        changed = bytearray(der)
        changed[rng.randrange(len(der))] ^= 1 << rng.randrange(8)
        broken.append(base64.b64encode(changed).decode())
    verifier, taken = _verifier(), []
    for signature in broken:
        try:
            verifier.verify(PAYLOAD, signature)
        except ValueError:
            continue
        taken.append(signature)
    assert taken == []


def test_a_signature_for_something_else_is_none_for_a_fragment() -> None:
    """The same key over the same bytes without the prefix, as in a handshake or a certificate."""
    key = load_pem_private_key(SVID.private_key_pem, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    bare = base64.b64encode(key.sign(PAYLOAD, ec.ECDSA(hashes.SHA256()))).decode()
    with pytest.raises(ValueError, match="signature of the fragment"):
        _verifier().verify(PAYLOAD, bare)


def test_only_the_expected_signer_is_believed() -> None:
    """Any other workload of the mesh has a valid certificate, and may not say what the policy is."""
    with pytest.raises(PeerIdentityError) as caught:
        _verifier(ROOT.issue(ORDERS, now=NOW))
    assert (caught.value.expected, caught.value.actual) == (str(SIGNER), str(ORDERS))


def test_the_chain_is_verified() -> None:
    """Of another root, ended, not begun, or revoked: no verifier. Not a chain, or too long a one: no verifier."""
    other = CertificateAuthority.create("shop.example", now=NOW)
    revoked = TrustBundle("shop.example", ROOT.certificate_pem, frozenset([enrolment_of(SVID.serial)]))
    for make in (
        lambda: _verifier(other.issue(SIGNER, now=NOW)),
        lambda: _verifier(now=NOW + LEAF_LIFE_S + 1),
        lambda: _verifier(now=NOW - 61),
        lambda: _verifier(bundle=revoked),
        lambda: Verifier.of(ROOT.certificate_pem, BUNDLE, SIGNER, NOW),
    ):
        with pytest.raises(PeerIdentityError):
            make()
    for chain in (b"", b"garbage", SVID.private_key_pem, SVID.certificate_pem * 9):
        with pytest.raises(ValueError, match="a chain"):
            Verifier.of(chain, BUNDLE, SIGNER, NOW)


def test_a_rotated_root_believes_the_signer_of_before() -> None:
    """As long as the bundle has the root that issued its certificate, whichever signs now."""
    new = CertificateAuthority.create("shop.example", now=NOW)
    both = TrustBundle("shop.example", new.certificate_pem + ROOT.certificate_pem)
    _verifier(bundle=both).verify(PAYLOAD, Signer(SVID).sign(PAYLOAD))


def test_the_key_is_an_ec_key() -> None:
    """On either side: a sentence, not an attribute error at the first fragment."""
    key: Any = rsa.generate_private_key(65537, 2048)
    svid = Svid.load(
        ROOT.sign(key.public_key(), SIGNER, now=NOW),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    for make in (lambda: Signer(svid), lambda: _verifier(svid)):
        with pytest.raises(ValueError, match="EC key"):
            make()


def test_nothing_secret_is_shown() -> None:
    """The chain has no key, and the repr has nothing."""
    signer = Signer(SVID)
    assert b"PRIVATE" not in signer.chain_pem
    assert "PRIVATE" not in repr(signer) + repr(vars(signer))
