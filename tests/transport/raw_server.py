"""Servers made of raw sockets on 127.0.0.1: they see every byte of the client and answer with any byte they like."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshlib.call import Call

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def call(target: bytes = b"/", *, method: str = "GET", seconds: float = 5.0, **options: object) -> Call:
    """A call whose attempt may take `seconds`; its total deadline is a minute later unless `total` is true."""
    total = options.pop("total", False)
    lines = options.pop("lines", b"host: s\r\n")
    made = Call("s", method, target, lines, **options)  # type: ignore[arg-type]
    made.attempt_deadline = time.monotonic() + seconds
    made.deadline = made.attempt_deadline + (0 if total else 60)
    return made


class Peer:
    """One accepted connection, on a thread of its own."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock, self.number = sock, number
        self._pending, self.seen = bytearray(), bytearray()

    def request(self) -> bytes | None:
        """The next request, head and declared or chunked body; None at the end."""
        while b"\r\n\r\n" not in self._pending:
            if not self.more():
                return None
        at = self._pending.index(b"\r\n\r\n") + 4
        head = bytes(self._pending[:at]).lower()
        if b"transfer-encoding: chunked" in head:
            while not self._pending.endswith(b"0\r\n\r\n"):
                if not self.more():
                    return None
            at = len(self._pending)
        elif b"content-length: " in head:
            at += int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(self._pending) < at:
            if not self.more():
                return None
        whole = bytes(self._pending[:at])
        del self._pending[:at]
        return whole

    def more(self) -> bool:
        """Receive once; False at the end."""
        data = self.sock.recv(65536)
        self._pending += data
        self.seen += data
        return bool(data)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close so that the client gets RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class RawServer:
    """Runs `serve(peer)` for each connection; `peers` in the order of accepting. `context`: speak TLS."""

    def __init__(self, serve: Callable[[Peer], None], context: ssl.SSLContext | None = None) -> None:
        self._serve, self._context = serve, context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(sock, len(self.peers))
            self.peers.append(peer)
            thread = threading.Thread(target=self._run, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, peer: Peer) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._context is not None:
                peer.sock = secure = self._context.wrap_socket(
                    peer.sock, server_side=True, suppress_ragged_eofs=False, do_handshake_on_connect=False
                )
                try:
                    secure.do_handshake()
                except ssl.SSLError:
                    socket.socket.shutdown(secure, socket.SHUT_WR)
                    while socket.socket.recv(secure, 65536):  # closing with unread bytes would reset away the alert
                        pass
                    raise
            self._serve(peer)
        peer.sock.close()

    def __enter__(self) -> RawServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()


def answering(*answers: bytes) -> Callable[[Peer], None]:
    """Answer the requests of each connection in turn, for ever."""

    def serve(peer: Peer) -> None:
        number = 0
        while peer.request() is not None:
            peer.send(answers[number % len(answers)])
            number += 1

    return serve


def mute(peer: Peer) -> None:
    """Read every request and answer none."""
    while peer.request() is not None:
        pass


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- certificates


class Authority:
    """A CA for one test: P-256, SPIFFE URI SAN leaves."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, 0), True)
        builder = builder.add_extension(_usage(ca=True), True)
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )

    def context(self, spiffe_id: str | None, side: int, trust: Authority | None = None) -> ssl.SSLContext:
        """A TLS 1.3 context that requires the peer's certificate; with `spiffe_id`, it has one of its own."""
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=(trust or self).pem)
        if spiffe_id is not None:
            self._load(context, spiffe_id)
        return context

    def _load(self, context: ssl.SSLContext, spiffe_id: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]), key)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), False)
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(_usage(ca=False), True)
            .add_extension(x509.ExtendedKeyUsage(usages), False)
            .sign(self._key, hashes.SHA256())
        )
        plain = serialization.NoEncryption()
        memory = os.memfd_create("leaf")
        try:
            os.write(memory, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
            os.write(memory, certificate.public_bytes(serialization.Encoding.PEM))
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)


class WrongPeer(ssl.SSLCertVerificationError):
    """What a verifying context raises inside the handshake."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"the peer is {actual}")
        self.expected, self.actual = expected, actual


class TestTls:
    """A ClientTls over a context that checks the id inside the handshake."""

    __test__ = False
    generation = 1
    server_name = "backend.default.test"

    def __init__(self, context: ssl.SSLContext, expected: str, life_s: float = 3600.0) -> None:
        self.expected, self._context, self._ends = expected, context, time.time() + life_s
        context.sslobject_class = _verifying(expected)

    def context(self) -> ssl.SSLContext:
        return self._context

    def not_after(self) -> float:
        return self._ends


def _verifying(expected: str) -> type[ssl.SSLObject]:
    class Verifying(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            names = [value for kind, value in (self.getpeercert() or {}).get("subjectAltName", ()) if kind == "URI"]
            if names != [expected]:
                raise WrongPeer(expected, ", ".join(names))

    return Verifying


@contextlib.contextmanager
def quiet_descriptors(slack: int = 0) -> Iterator[None]:
    """The number of open descriptors is the same afterwards."""
    before = descriptors()
    yield
    assert descriptors() <= before + slack
