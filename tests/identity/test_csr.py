"""Certificate requests: a key and the proof that the asker has it; everything else in them is nothing."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshlib.identity.ca import LEAF_LIFE_S, CertificateAuthority
from meshlib.identity.csr import CSR_BYTES_MAX, checked_csr, make_csr
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, leaf_facts

NOW = 1_800_000_000.0
ORDERS = SpiffeId.for_service("shop.example", "orders")
SIGNER = "spiffe://shop.example/ns/meshlib/sa/signer"

RSA_512 = b"""-----BEGIN CERTIFICATE REQUEST-----
MIHFMHECAQAwDDEKMAgGA1UEAwwBeDBcMA0GCSqGSIb3DQEBAQUAA0sAMEgCQQDA
deUhuUmkKDcYwChpemEQZhPxyJt/9e6U6j0GPtQFdKXoKeiiDEeBASrvUjRKC3Ct
u+WLxUcE0Ds3twNticDfAgMBAAGgADANBgkqhkiG9w0BAQsFAANBAAeBb1EIcGlT
i3FYzqwIItaOn6JtB/gMkaimNBjb9mzAaQl/To1U7J1Fe/MuNbq34F2kXFz8u0mu
70RSUhRDitE=
-----END CERTIFICATE REQUEST-----
"""
"""By `openssl req -newkey rsa:512`: the cryptography library makes no such key."""


_SHA256 = hashes.SHA256()


def _request(key: Any, *extensions: x509.ExtensionType, digest: hashes.SHA256 | None = _SHA256) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer.meshlib")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, digest).public_bytes(Encoding.PEM)


def _pem(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"


def _der(pem: bytes) -> bytes:
    return base64.b64decode(b"".join(pem.splitlines()[1:-1]))


def test_what_we_make_is_what_we_take() -> None:
    """The key that was made is the one in the request; another key has another hash, the same key the same."""
    csr, key = make_csr(ORDERS)
    checked = checked_csr(csr)
    assert len(csr) < CSR_BYTES_MAX / 8
    authority = CertificateAuthority.create("shop.example", now=NOW)
    svid = Svid.load(authority.sign(checked.public_key, ORDERS, now=NOW), key)
    assert (svid.id, svid.not_after) == (ORDERS, NOW + LEAF_LIFE_S)
    assert checked_csr(csr).key_sha256 == checked.key_sha256 != checked_csr(make_csr(ORDERS)[0]).key_sha256
    assert len(checked.key_sha256) == 64


def test_the_other_curve_that_is_taken() -> None:
    """P-384: for keys in hardware that have no other."""
    key = ec.generate_private_key(ec.SECP384R1())
    assert checked_csr(_request(key)).public_key == key.public_key()


def test_nothing_of_a_request_gets_into_a_leaf() -> None:
    """Another id, a CA flag, a usage and a purpose, whatever is asked for: the leaf is the one that it always is."""
    asked = [
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SIGNER), x509.DNSName("*.shop.example")]),
        x509.BasicConstraints(ca=True, path_length=9),
        x509.KeyUsage(True, True, True, True, True, True, True, False, False),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
    ]
    authority = CertificateAuthority.create("shop.example", now=NOW)
    key = checked_csr(_request(ec.generate_private_key(ec.SECP256R1()), *asked)).public_key
    pem = authority.sign(key, ORDERS, now=NOW)
    usual = x509.load_pem_x509_certificate(authority.issue(ORDERS, now=NOW).certificate_pem)
    leaf = x509.load_pem_x509_certificate(pem)
    assert leaf_facts(pem).id == ORDERS
    assert leaf.subject == usual.subject
    same = [extension for extension in usual.extensions if extension.oid != x509.SubjectKeyIdentifier.oid]
    assert [extension for extension in leaf.extensions if extension.oid != x509.SubjectKeyIdentifier.oid] == same


WRONG_KEYS: dict[str, Callable[[], bytes]] = {
    "RSA 512": lambda: RSA_512,
    "RSA 1024": lambda: _request(rsa.generate_private_key(65537, 1024)),
    "RSA 2048": lambda: _request(rsa.generate_private_key(65537, 2048)),
    "Ed25519": lambda: _request(ed25519.Ed25519PrivateKey.generate(), digest=None),
    "P-521": lambda: _request(ec.generate_private_key(ec.SECP521R1())),
    "P-224": lambda: _request(ec.generate_private_key(ec.SECP224R1())),
    "secp256k1": lambda: _request(ec.generate_private_key(ec.SECP256K1())),
}


@pytest.mark.parametrize("kind", WRONG_KEYS)
def test_a_key_of_another_kind_is_refused(kind: str) -> None:
    """With a sentence that says which are taken."""
    with pytest.raises(ValueError, match="P-256 or P-384"):
        checked_csr(WRONG_KEYS[kind]())


def test_a_request_must_be_signed_by_its_own_key() -> None:
    """A key that somebody saw in a certificate is not a key that he has."""
    der = bytearray(_der(make_csr(ORDERS)[0]))
    der[-1] ^= 1
    with pytest.raises(ValueError, match="not signed by its own key"):
        checked_csr(_pem(bytes(der)))
    ours, theirs = (_der(make_csr(ORDERS)[0]) for _ in range(2))
    place = ours.index(b"\x03\x42\x00\x04") + 4  # the point of a P-256 key
    with pytest.raises(ValueError, match="not signed by its own key"):
        checked_csr(_pem(ours[:place] + theirs[place : place + 64] + ours[place + 64 :]))


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "garbage": b"\xff\x00garbage",
    "no request": CertificateAuthority.create("shop.example", now=NOW).certificate_pem,
    "a private key": make_csr(ORDERS)[1],
    "an empty block": _pem(b""),
    "cut": make_csr(ORDERS)[0][:200],
    "more after it": _pem(_der(make_csr(ORDERS)[0]) + b"more"),
    "nested": _pem(b"\x30\x80" * 2000),
    "a length that lies": _pem(b"\x30\x84\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_request_is_a_sentence(what: str) -> None:
    """Whatever comes: a ValueError, never another error."""
    with pytest.raises(ValueError, match="certificate request"):
        checked_csr(HOSTILE[what])


def test_the_bound_of_a_request() -> None:
    """8 KiB are read, one more byte is not; a megabyte costs nothing."""
    csr, _ = make_csr(ORDERS)
    checked_csr(csr + b"\n" * (CSR_BYTES_MAX - len(csr)))
    for size in (CSR_BYTES_MAX + 1, 1 << 20):
        with pytest.raises(ValueError, match=f"at most {CSR_BYTES_MAX} bytes, this one has {size}"):
            checked_csr(csr + b"\n" * (size - len(csr)))


def test_a_thousand_broken_requests() -> None:
    """Each with some bytes changed: what is not refused is signed by its own key, on a curve that is taken."""
    rng, (csr, _) = random.Random(3), make_csr(ORDERS)
    good, taken = _der(csr), 0
    for _ in range(1000):
        der = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            der[rng.randrange(len(der))] = rng.getrandbits(8)
        try:
            checked_csr(_pem(bytes(der)))
        except ValueError:
            continue
        taken += der != good
    assert taken == 0
