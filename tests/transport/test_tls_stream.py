"""TLS on two buffers, against a server on two buffers: no socket, every split of the bytes."""

from __future__ import annotations

import ssl

import pytest
from raw_server import Authority, TestTls

from meshlib.errors import IdentityError, TransportError
from meshlib.transport.tls_stream import TlsStream, certificate_life, handshake_error, read_error

BACKEND = "spiffe://test/ns/default/sa/backend"


class Pair:
    """A client stream and a server, back to back. `step`: bytes handed over at a time."""

    def __init__(self, authority: Authority, expected: str = BACKEND, step: int = 1 << 20) -> None:
        self.tls = TestTls(authority.context("spiffe://test/ns/default/sa/me", ssl.PROTOCOL_TLS_CLIENT), expected)
        self.client, self._step = TlsStream(self.tls), step
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = authority.context(BACKEND, ssl.PROTOCOL_TLS_SERVER)
        self.server = context.wrap_bio(self._in, self._out, server_side=True)

    def handshake(self) -> None:
        self._in.write(self.client.handshake())
        self._serve()
        data = self._out.read()
        for at in range(0, len(data), self._step):
            assert not self.client.up
            self._in.write(self.client.handshake(data[at : at + self._step]))
        self._serve()

    def _serve(self) -> None:
        try:
            self.server.do_handshake()
        except ssl.SSLWantReadError:
            pass

    def to_server(self, data: bytes) -> bytes:
        self._in.write(self.client.encrypt(data))
        got = b""
        while self._in.pending or self.server.pending():
            got += self.server.read(65536)
        return got

    def to_client(self, data: bytes, *, end: bool = False) -> list[bytes]:
        if data:
            self.server.write(data)
        if end:
            with pytest.raises(ssl.SSLWantReadError):
                self.server.unwrap()
        wire = self._out.read()
        pieces = []
        for at in range(0, len(wire), self._step):
            pieces += self.client.decrypt(wire[at : at + self._step])
        return pieces


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.mark.parametrize("step", [1, 100, 1 << 20])
def test_bytes_both_ways_however_they_are_split(authority: Authority, step: int) -> None:
    """Handshake, request, reply of several records, close_notify; one byte at a time too."""
    pair = Pair(authority, step=step)
    pair.handshake()
    assert pair.client.up
    assert pair.to_server(b"q" * 100_000) == b"q" * 100_000
    assert b"".join(pair.to_client(b"r" * 40_000)) == b"r" * 40_000
    assert not pair.client.closed
    assert pair.to_client(b"last", end=True) == [b"last"]
    assert pair.client.closed
    assert pair.client.broken is None


def test_a_wrong_peer_fails_the_handshake_with_both_ids(authority: Authority) -> None:
    """Verified inside the handshake, before the client's certificate or a byte of the request can leave."""
    pair = Pair(authority, expected="spiffe://test/ns/default/sa/other")
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        pair.handshake()
    error = handshake_error(caught.value, pair.tls, "a:1")
    assert isinstance(error, IdentityError)
    assert (error.expected, error.actual) == ("spiffe://test/ns/default/sa/other", BACKEND)
    assert BACKEND in str(error)
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.do_handshake()  # it never got our Finished


def test_what_came_before_a_broken_record_is_still_good(authority: Authority) -> None:
    """Rubbish on the wire: the plain text before it is delivered, then `broken` says what happened."""
    pair = Pair(authority)
    pair.handshake()
    pair.server.write(b"good")
    wire = pair._out.read()
    assert pair.client.decrypt(wire + b"\x17\x03\x03\x00\x20" + b"x" * 32) == [b"good"]
    assert pair.client.broken is not None
    error = read_error(pair.client.broken, pair.tls, "a:1", fresh=True, reused=False)
    assert isinstance(error, TransportError)
    assert error.cause == "protocol"


def test_only_an_alert_about_our_certificate_is_an_identity_error() -> None:
    """And only on a connection that has never answered."""
    tls = TestTls(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), BACKEND)
    for reason, fresh, kind in (
        ("TLSV1_ALERT_UNKNOWN_CA", True, IdentityError),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", True, IdentityError),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True, IdentityError),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", False, TransportError),
        ("TLSV1_ALERT_INTERNAL_ERROR", True, TransportError),
    ):
        alert = ssl.SSLError(1, reason)
        alert.reason = reason
        error = read_error(alert, tls, "a:1", fresh=fresh, reused=not fresh)
        assert type(error) is kind
        assert error.sent  # the request had gone out: a POST must not be sent again on the word of an alert
        assert not handshake_error(alert, tls, "a:1").sent


def test_life_of_our_certificate() -> None:
    """Seconds until its end; without TLS there is none."""
    assert certificate_life(None) == float("inf")
    assert 3590 < certificate_life(TestTls(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), BACKEND)) <= 3600
