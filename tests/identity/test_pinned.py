"""First contact: a server is believed by the hash of its root, inside the handshake, and else gets no byte."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.pinned import PinnedTls
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import PeerIdentityError, TrustBundle
from meshlib.identity.tls import client_context, peer_of, serial_of, server_context
from meshlib.transport.tls_stream import ClientTls, TlsStream, handshake_error

from .certificates import Handshake, Issued, certificate, load, root

TRUST_DOMAIN = "shop.example"
CONTROL, ORDERS = (SpiffeId.for_service(TRUST_DOMAIN, name) for name in ("control.meshlib", "orders"))
NOW = time.time()
ROOT, OTHER = (CertificateAuthority.create(TRUST_DOMAIN, now=NOW) for _ in range(2))


def _bundle(*roots: CertificateAuthority) -> TrustBundle:
    return TrustBundle(TRUST_DOMAIN, b"".join(authority.certificate_pem for authority in roots))


def _server(authority: CertificateAuthority = ROOT, spiffe_id: SpiffeId = CONTROL) -> ssl.SSLContext:
    svid = authority.issue(spiffe_id, now=NOW)
    return server_context(svid, _bundle(OTHER, ROOT), optional_client=True, with_roots=True)


def _bare(*shown: Issued) -> ssl.SSLContext:
    """A server that is not ours: sends the certificates of `shown` as they are, with the key of the first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, Issued(shown[0].certificate, shown[0].key, tuple(other.certificate for other in shown[1:])))
    return context


def _sha256(issued: Issued) -> str:
    return hashlib.sha256(issued.chain[0]).hexdigest()


def test_the_service_of_the_pinned_root() -> None:
    """The handshake succeeds without a certificate of ours, and bytes flow; both sides know who is who."""
    tls: ClientTls = PinnedTls(ROOT.sha256, CONTROL)
    joined = Handshake(tls.context(), _server())
    assert joined.errors == {}
    assert (peer_of(joined.client), peer_of(joined.server), serial_of(joined.server)) == (CONTROL, None, None)
    assert joined.send(joined.client, joined.server, b"token") == b"token"
    assert joined.send(joined.server, joined.client, b"leaf") == b"leaf"
    assert joined.client.selected_alpn_protocol() == "http/1.1"
    assert (tls.expected, tls.server_name) == (str(CONTROL), f"control.meshlib.{TRUST_DOMAIN}")
    assert (tls.generation, tls.not_after(), tls.context() is tls.context()) == (1, float("inf"), True)


MINE, THEIRS = root("mine"), root("theirs")
_LEAF = certificate(MINE, "x", uris=(str(CONTROL),))

# Why a server is wrong, what it is, what the client pins, the id that is proved.
WRONG: dict[str, tuple[Callable[[], ssl.SSLContext], str, str | None]] = {
    "another root": (lambda: _server(OTHER), ROOT.sha256, None),
    "the hash of no root": (_server, "0" * 64, None),
    "an empty hash": (_server, "", None),
    "another service": (lambda: _server(ROOT, ORDERS), ROOT.sha256, str(ORDERS)),
    "the root is not sent": (lambda: _bare(_LEAF), _sha256(MINE), None),
    "the root is sent, the leaf is of another": (
        lambda: _bare(certificate(THEIRS, "x", uris=(str(CONTROL),)), MINE),
        _sha256(MINE),
        None,
    ),
    "another leaf of the root is sent along": (
        lambda: _bare(certificate(THEIRS, "x", uris=(str(CONTROL),)), _LEAF, MINE),
        _sha256(MINE),
        None,
    ),
    "a leaf is pinned": (lambda: _bare(_LEAF, MINE), _sha256(_LEAF), None),
    "an expired leaf": (
        lambda: _bare(certificate(MINE, "x", uris=(str(CONTROL),), begins_s=-60, ends_s=-1), MINE),
        _sha256(MINE),
        None,
    ),
    "two ids": (
        lambda: _bare(certificate(MINE, "x", uris=(str(CONTROL), str(ORDERS))), MINE),
        _sha256(MINE),
        None,
    ),
    "another trust domain": (
        lambda: _bare(certificate(MINE, "x", uris=("spiffe://bank.example/ns/meshlib/sa/control",)), MINE),
        _sha256(MINE),
        None,
    ),
    "the root itself": (lambda: _bare(MINE), _sha256(MINE), None),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_wrong_server_gets_no_byte(why: str) -> None:
    """By the transport's own stream: the error names who was expected, and nothing at all leaves after the hello."""
    make, pinned, actual = WRONG[why]
    tls = PinnedTls(pinned, CONTROL)
    stream, incoming, outgoing = TlsStream(tls), ssl.MemoryBIO(), ssl.MemoryBIO()
    server = make().wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(stream.handshake())
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    with pytest.raises(PeerIdentityError) as caught:
        stream.handshake(outgoing.read())
    assert (caught.value.expected, caught.value.actual) == (str(CONTROL), actual)
    assert str(CONTROL) in str(handshake_error(caught.value, tls, "127.0.0.1:7443"))
    with pytest.raises(PeerIdentityError):
        stream.encrypt(b"Bearer id.secret")
    with pytest.raises(ssl.SSLWantReadError):
        server.read(1)


@pytest.mark.parametrize("pinned", [ROOT.sha256, OTHER.sha256], ids=["right", "wrong"])
@pytest.mark.parametrize("client", ["blocking", "asyncio"])
def test_over_sockets(client: str, pinned: str) -> None:
    """Blocking or on an event loop, 0 bytes of the application reach a wrong server, all of them a right one."""
    ours, theirs = socket.socketpair()
    got: list[bytes] = []

    def serve() -> None:
        try:
            with _server().wrap_socket(theirs, server_side=True) as tls:
                got.append(tls.recv(100))
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    say = _say if client == "blocking" else lambda *given: asyncio.run(_say_on_a_loop(*given))
    if pinned == ROOT.sha256:
        say(PinnedTls(pinned, CONTROL).context(), ours)
    else:
        with pytest.raises(PeerIdentityError):
            say(PinnedTls(pinned, CONTROL).context(), ours)
    thread.join(10)
    assert b"".join(got) == (b"token" if pinned == ROOT.sha256 else b"")


def _say(context: ssl.SSLContext, plain: socket.socket) -> None:
    with plain, context.wrap_socket(plain) as tls:
        tls.sendall(b"token")


async def _say_on_a_loop(context: ssl.SSLContext, plain: socket.socket) -> None:
    _, writer = await asyncio.open_connection(sock=plain, ssl=context, server_hostname="")
    writer.write(b"token")
    writer.close()
    with suppress(OSError):  # how the other end hangs up is its own affair
        await writer.wait_closed()


def test_the_clock_is_an_argument() -> None:
    """A leaf that has ended by our clock is refused, one that began by it is not."""
    for late, good in ((0.0, True), (25 * 3600.0, False), (-3600.0, False)):
        joined = Handshake(PinnedTls(ROOT.sha256, CONTROL, wall=lambda late=late: NOW + late).context(), _server())
        assert (joined.client_error is None) is good


def test_only_a_service_can_be_expected() -> None:
    """An id without a DNS name is a sentence at once."""
    with pytest.raises(ValueError, match="no DNS name"):
        PinnedTls(ROOT.sha256, SpiffeId(TRUST_DOMAIN, "/edge"))


def test_once_enrolled_the_bundle_does_it() -> None:
    """The same listener serves a member, by its certificate and the usual verification."""
    svid = ROOT.issue(ORDERS, now=NOW)
    joined = Handshake(client_context(svid, _bundle(ROOT), CONTROL), _server())
    assert joined.errors == {}
    assert (peer_of(joined.server), serial_of(joined.server)) == (ORDERS, svid.serial)
