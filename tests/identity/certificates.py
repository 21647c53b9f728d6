"""Certificates that meshlib's own CA would never issue, and handshakes without a network.

The words for key usages are those of the x509svid vectors."""

from __future__ import annotations

import datetime as dt
import json
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, TrustBundle
from meshlib.identity.tls import _key_file

HOUR_S = 3600.0
_PURPOSES = {"serverAuth": ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH}
_USAGES = (
    "digitalSignature", "contentCommitment", "keyEncipherment", "dataEncipherment", "keyAgreement",
    "keyCertSign", "cRLSign", "encipherOnly", "decipherOnly",
)  # fmt: skip


def vectors() -> dict[str, Any]:
    """The SPIFFE vectors, or a visible skip where they are not at hand."""
    path = Path(__file__).resolve().parents[2] / "../shared/conformance/spiffe_ids.json"
    if not path.exists():
        pytest.skip(f"the vectors {path.name} are not beside the project")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@dataclass
class Issued:
    """A certificate, its key, and what must be sent along to reach the root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    intermediates: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        return b"".join(c.public_bytes(Encoding.PEM) for c in (self.certificate, *self.intermediates))

    @property
    def chain(self) -> list[bytes]:
        return [c.public_bytes(Encoding.DER) for c in (self.certificate, *self.intermediates)]

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def unchecked_svid(self, spiffe_id: SpiffeId) -> Svid:
        """As if it were an SVID: what a peer that breaks the rules would use."""
        return Svid(self.pem, self.key_pem, spiffe_id, self.certificate.serial_number, 0.0, 0.0)

    def bundle(self, trust_domain: str) -> TrustBundle:
        return TrustBundle(trust_domain, self.pem)


def certificate(
    issuer: Issued | None,
    name: str | None,
    *,
    uris: tuple[str, ...] = (),
    ca: bool = False,
    usage: tuple[str, ...] | None = ("digitalSignature",),
    eku: tuple[str, ...] | None = ("serverAuth", "clientAuth"),
    begins_s: float = -HOUR_S,
    ends_s: float = HOUR_S,
    san_critical: bool = False,
    key_identifiers: bool = True,
) -> Issued:
    """A certificate signed by `issuer` (None: by itself) whose life is given in seconds from now."""
    key, now = ec.generate_private_key(ec.SECP256R1()), time.time()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(now + begins_s, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(now + ends_s, dt.UTC))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
    )
    if key_identifiers:
        ours, theirs = key.public_key(), signer.public_key()
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(ours), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(theirs), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.KeyUsage(*(word in usage for word in _USAGES)), critical=True)
    if eku is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([_PURPOSES[word] for word in eku]), critical=False)
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=san_critical)
    sent = (
        (issuer.certificate, *issuer.intermediates)
        if issuer and issuer.certificate.issuer != issuer.certificate.subject
        else ()
    )
    return Issued(builder.sign(signer, hashes.SHA256()), key, sent)


def root(name: str) -> Issued:
    """A self-signed CA."""
    return certificate(None, name, ca=True, usage=("keyCertSign", "cRLSign"), eku=None)


def stranger(protocol: int, shown: Issued | None, trusted: Issued) -> ssl.SSLContext:
    """A peer that is not meshlib: shows `shown` or nothing, looks for a chain to `trusted` only."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=trusted.pem.decode())
    if shown is not None:
        load(context, shown)
    return context


def load(context: ssl.SSLContext, shown: Issued) -> None:
    """Give `context` a certificate and key, through the door that meshlib uses."""
    with _key_file(shown.key_pem + shown.pem) as path:
        context.load_cert_chain(path)


class Handshake:
    """A client and a server joined by memory, each driven until it is done or failed."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(down, up, session=session)
        self.server = server.wrap_bio(up, down, server_side=True)
        self.errors: dict[ssl.SSLObject, Exception] = {}
        done: set[ssl.SSLObject] = set()
        for _ in range(6):  # a TLS 1.3 handshake is over after three
            for side in {self.client, self.server} - done - self.errors.keys():
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:
                    self.errors[side] = error

    @property
    def client_error(self) -> Exception | None:
        return self.errors.get(self.client)

    @property
    def server_error(self) -> Exception | None:
        return self.errors.get(self.server)

    def send(self, sender: ssl.SSLObject, receiver: ssl.SSLObject, data: bytes) -> bytes:
        """What of `data` arrives."""
        sender.write(data)
        return bytes(receiver.read(len(data)))
