"""The peer is verified inside the handshake: a wrong one gets no byte of the application, in either direction."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import PeerIdentityError, Svid, TrustBundle, enrolment_of
from meshlib.identity.tls import IdentityContext, _key_file, client_context, peer_of, serial_of, server_context

from .certificates import HOUR_S, Handshake, Issued, certificate, load, root, stranger

TRUST_DOMAIN = "shop.dev"
ORDERS = SpiffeId.for_service(TRUST_DOMAIN, "orders")
STOCK = SpiffeId.for_service(TRUST_DOMAIN, "inventory.stock")


@dataclass
class World:
    """One trust domain, `us` in it, and another CA that nobody trusts."""

    ca: Issued
    other_ca: Issued
    bundle: TrustBundle
    us: Svid

    def leaf(self, spiffe_id: SpiffeId) -> Issued:
        return certificate(self.ca, "leaf", uris=(str(spiffe_id),))

    def client(self) -> ssl.SSLContext:
        return client_context(self.us, self.bundle, STOCK)

    def server(self) -> ssl.SSLContext:
        return server_context(self.us, self.bundle)


@pytest.fixture(scope="module")
def world() -> World:
    ca = root("ca")
    us = certificate(ca, "us", uris=(str(ORDERS),)).unchecked_svid(ORDERS)
    return World(ca, root("other"), ca.bundle(TRUST_DOMAIN), us)


Make = Callable[[World], Issued]
_STOCK = (str(STOCK),)

# Why a peer is wrong, what it shows, and the id that it has proved: None where chain, time or leaf rules fail.
EITHER_WAY_WRONG: dict[str, tuple[Make, str | None]] = {
    "expired": (lambda w: certificate(w.ca, "x", uris=_STOCK, ends_s=-1.0), None),
    "not yet valid": (lambda w: certificate(w.ca, "x", uris=_STOCK, begins_s=HOUR_S, ends_s=2 * HOUR_S), None),
    "wrong CA": (lambda w: certificate(w.other_ca, "x", uris=_STOCK), None),
    "two URI SANs": (lambda w: certificate(w.ca, "x", uris=(str(STOCK), str(ORDERS))), None),
    "no URI SAN": (lambda w: certificate(w.ca, "x"), None),
    "a CA certificate as leaf": (lambda w: certificate(w.ca, "x", uris=_STOCK, ca=True), None),
    "not by RFC 5280": (lambda w: certificate(w.ca, "x", uris=_STOCK, key_identifiers=False), None),
    "another trust domain": (
        lambda w: certificate(w.ca, "x", uris=("spiffe://bank.dev/ns/a/sa/b",)),
        "spiffe://bank.dev/ns/a/sa/b",
    ),
}
WRONG_SERVERS: dict[str, tuple[Make, str | None]] = {
    **EITHER_WAY_WRONG,
    "wrong id": (lambda w: w.leaf(ORDERS), str(ORDERS)),
}


class RecordingServer:
    """A blocking TLS server for one connection that keeps every application byte it gets."""

    def __init__(self, context: ssl.SSLContext, *, handshake: bool = True) -> None:
        self.got, self.peer, self.error = b"", None, None  # type: bytes, SpiffeId | None, Exception | None
        self._context, self._handshake = context, handshake
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        plain, _ = self._listener.accept()
        plain.settimeout(10)
        try:
            with self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=self._handshake) as tls:
                self.got = tls.recv(1000)
                self.peer = peer_of(tls)
                tls.sendall(b"secret")
        except (OSError, ValueError) as error:
            self.error = error
            plain.close()

    def join(self) -> None:
        self._thread.join(10)
        self._listener.close()


def _say(context: ssl.SSLContext, address: tuple[str, int], *, handshake: bool = True) -> tuple[bytes, SpiffeId | None]:
    """Connect, say hello, and give what came back and the peer that was verified."""
    with (
        socket.create_connection(address, timeout=10) as plain,
        context.wrap_socket(plain, do_handshake_on_connect=handshake) as tls,
    ):
        tls.sendall(b"hello")
        return tls.recv(1000), peer_of(tls)


async def _say_on_a_loop(context: ssl.SSLContext, address: tuple[str, int]) -> tuple[bytes, SpiffeId | None]:
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname="")
    try:
        writer.write(b"hello")
        return await reader.read(1000), peer_of(writer.get_extra_info("ssl_object"))
    finally:
        writer.close()
        with suppress(OSError):  # what ended the connection is the reader's to report
            await writer.wait_closed()


CLIENTS = {
    "blocking": _say,
    "blocking, handshake left to the first write": lambda context, address: _say(context, address, handshake=False),
    "asyncio": lambda context, address: asyncio.run(_say_on_a_loop(context, address)),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_right_peer(world: World, client: str) -> None:
    """Bytes flow, each side knows who the other is, over TLS 1.3."""
    server = RecordingServer(server_context(world.leaf(STOCK).unchecked_svid(STOCK), world.bundle))
    assert CLIENTS[client](world.client(), server.address) == (b"secret", STOCK)
    server.join()
    assert (server.got, server.peer, server.error) == (b"hello", ORDERS, None)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("why", WRONG_SERVERS)
def test_a_wrong_server_gets_no_byte(world: World, why: str, client: str) -> None:
    """The client's error names the id it expected and the one that was proved; the server has read nothing."""
    make, actual = WRONG_SERVERS[why]
    server = RecordingServer(stranger(ssl.PROTOCOL_TLS_SERVER, make(world), world.ca))
    with pytest.raises(PeerIdentityError) as caught:
        CLIENTS[client](world.client(), server.address)
    server.join()
    assert server.got == b""
    assert (caught.value.expected, caught.value.actual) == (str(STOCK), actual)


@pytest.mark.parametrize("handshake", [True, False], ids=["handshake at accept", "handshake left to the first read"])
@pytest.mark.parametrize("why", [*EITHER_WAY_WRONG, "no certificate"])
def test_a_wrong_client_is_not_served(world: World, why: str, handshake: bool) -> None:
    """It may send what it likes: the application reads nothing of it, and it gets nothing back."""
    shown = None if why == "no certificate" else EITHER_WAY_WRONG[why][0](world)
    server = RecordingServer(world.server(), handshake=handshake)
    answer = b""
    try:
        answer, _ = _say(stranger(ssl.PROTOCOL_TLS_CLIENT, shown, world.ca), server.address)
    except OSError:
        pass  # a refused client of TLS 1.3 sees an alert, a reset or the end of the stream: all of them are right
    server.join()
    assert (answer, server.got, server.peer) == (b"", b"", None)
    if why == "no certificate":
        assert isinstance(server.error, ssl.SSLError)
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(server.error)
    else:
        assert isinstance(server.error, PeerIdentityError)
        assert (server.error.actual, server.error.expected) == (EITHER_WAY_WRONG[why][1], f"spiffe://{TRUST_DOMAIN}/*")


def test_a_wrong_client_never_reaches_an_asyncio_application(world: World) -> None:
    """The connection callback of an event loop's server is not even called."""

    async def main() -> tuple[list[object], bytes]:
        served: list[object] = []
        server = await asyncio.start_server(lambda *streams: served.append(streams), "127.0.0.1", 0, ssl=world.server())
        bad = stranger(ssl.PROTOCOL_TLS_CLIENT, certificate(world.ca, "x", uris=(str(STOCK), str(ORDERS))), world.ca)
        async with server:
            try:
                answer, _ = await _say_on_a_loop(bad, server.sockets[0].getsockname())
            except OSError:
                answer = b""
        return served, answer

    assert asyncio.run(main()) == ([], b"")


def test_older_tls_is_refused(world: World) -> None:
    """TLS 1.2 is not spoken, by neither side."""
    old = stranger(ssl.PROTOCOL_TLS_CLIENT, world.leaf(STOCK), world.ca)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    assert "UNSUPPORTED_PROTOCOL" in str(Handshake(old, world.server()).server_error)
    old = stranger(ssl.PROTOCOL_TLS_SERVER, world.leaf(STOCK), world.ca)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    assert Handshake(world.client(), old).client_error is not None


def test_a_failed_check_stays_failed(world: World) -> None:
    """Whoever ignores the error of the handshake and goes on gets it again, not an unverified connection."""
    joined = Handshake(world.client(), stranger(ssl.PROTOCOL_TLS_SERVER, world.leaf(ORDERS), world.ca))
    assert isinstance(joined.client_error, PeerIdentityError)
    for go_on in (lambda: joined.client.write(b"x"), lambda: joined.client.read(1)):
        with pytest.raises(PeerIdentityError):
            go_on()
    assert peer_of(joined.client) is None


def test_a_context_that_was_told_nothing_accepts_nobody(world: World) -> None:
    """Fail closed: a bare IdentityContext refuses a peer that any other would take."""
    context = IdentityContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=world.ca.pem.decode())
    unasking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(unasking, world.leaf(STOCK))
    error = Handshake(context, unasking).client_error
    assert isinstance(error, PeerIdentityError)
    assert "not of trust domain" in str(error)


def test_alpn_is_http_1_1(world: World) -> None:
    """Both sides offer http/1.1 and nothing else."""
    joined = Handshake(world.client(), server_context(world.leaf(STOCK).unchecked_svid(STOCK), world.bundle))
    assert joined.errors == {}
    assert (joined.client.selected_alpn_protocol(), joined.client.version()) == ("http/1.1", "TLSv1.3")


def test_no_session_can_be_resumed(world: World) -> None:
    """A server gives no ticket: a resumed session would not look at the roots again."""
    client = world.client()
    server = server_context(world.leaf(STOCK).unchecked_svid(STOCK), world.bundle)
    first = Handshake(client, server)
    assert first.send(first.server, first.client, b"x") == b"x"  # tickets would come before the first byte
    session = first.client.session
    assert session is None or not session.has_ticket
    second = Handshake(client, server, session)
    assert (second.errors, second.client.session_reused) == ({}, False)


def test_peer_of_anything_else_is_none() -> None:
    """A plaintext connection, or one of somebody else's context, has no verified peer."""
    assert peer_of(None) is None
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname = False
    assert peer_of(plain.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())) is None


def test_a_key_touches_no_disk(world: World) -> None:
    """Where the system has files in memory the key is in one, for the time of loading only."""
    if not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memfd")
    with _key_file(b"key") as path:
        assert "memfd" in os.readlink(path)
        assert Path(path).read_bytes() == b"key"
    assert not Path(path).exists()


def test_without_memfd_the_key_is_private_and_gone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallback is a 0600 file that does not outlive the loading."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with _key_file(b"key") as path:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert Path(path).parent == tmp_path
    world.server()
    assert list(tmp_path.iterdir()) == []


def _members(world: World) -> tuple[Issued, Svid, Svid]:
    """A leaf for a client as a certificate, and a client's and a server's SVID, of the world's CA."""
    client = world.leaf(ORDERS)
    return client, client.unchecked_svid(ORDERS), world.leaf(STOCK).unchecked_svid(STOCK)


def test_a_revoked_client_is_refused_in_the_handshake(world: World) -> None:
    """By its serial, with the id that it proved; another leaf of the same id is let in."""
    client, revoked, stock = _members(world)
    bundle = TrustBundle(TRUST_DOMAIN, world.bundle.pem, frozenset([enrolment_of(revoked.serial), 7]))
    for optional in (False, True):
        server = server_context(stock, bundle, optional_client=optional)
        joined = Handshake(client_context(revoked, world.bundle, STOCK), server)
        assert isinstance(joined.server_error, PeerIdentityError)
        assert f"{client.certificate.serial_number:x} of {ORDERS} has been revoked" in str(joined.server_error)
        assert joined.server_error.actual == str(ORDERS)
        assert (peer_of(joined.server), serial_of(joined.server)) == (None, None)
        with pytest.raises(PeerIdentityError):
            joined.server.read(1)
        assert Handshake(world.client(), server).errors == {}


def test_a_revoked_server_gets_no_byte(world: World) -> None:
    """The client refuses it before anything is sent."""
    _, orders, stock = _members(world)
    bundle = TrustBundle(TRUST_DOMAIN, world.bundle.pem, frozenset([enrolment_of(stock.serial)]))
    joined = Handshake(client_context(orders, bundle, STOCK), server_context(stock, world.bundle))
    assert isinstance(joined.client_error, PeerIdentityError)
    assert (joined.client_error.expected, joined.client_error.actual) == (str(STOCK), str(STOCK))
    with pytest.raises(PeerIdentityError):
        joined.client.write(b"hello")


class Counting:
    """How often the C object under an SSL object is asked to handshake."""

    def __init__(self, tls: ssl.SSLObject, monkeypatch: pytest.MonkeyPatch) -> None:
        self.handshakes = 0
        real = type(tls).do_handshake

        def counted(given: ssl.SSLObject) -> None:
            self.handshakes += given is tls
            real(given)

        monkeypatch.setattr(type(tls), "do_handshake", counted)


def test_an_optional_client_may_show_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is nobody, reads and writes without another handshake; one that shows a certificate is who it says."""
    _, orders, stock = _members(world)
    server = server_context(stock, world.bundle, optional_client=True)
    joined = Handshake(client_context(None, world.bundle, STOCK), server)
    assert (joined.errors, peer_of(joined.server), serial_of(joined.server)) == ({}, None, None)
    counting = Counting(joined.server, monkeypatch)
    for _ in range(3):
        assert joined.send(joined.client, joined.server, b"hello") == b"hello"
        assert joined.send(joined.server, joined.client, b"secret") == b"secret"
    assert counting.handshakes == 0
    known = Handshake(client_context(orders, world.bundle, STOCK), server)
    assert (known.errors, peer_of(known.server), serial_of(known.server)) == ({}, ORDERS, orders.serial)
    assert serial_of(known.client) == stock.serial


@pytest.mark.parametrize("why", EITHER_WAY_WRONG)
def test_an_optional_client_may_not_show_something_wrong(world: World, why: str) -> None:
    """No certificate is one thing; a bad one is another, whoever it claims to be."""
    shown = EITHER_WAY_WRONG[why][0](world)
    server = server_context(world.leaf(STOCK).unchecked_svid(STOCK), world.bundle, optional_client=True)
    joined = Handshake(stranger(ssl.PROTOCOL_TLS_CLIENT, shown, world.ca), server)
    assert isinstance(joined.server_error, PeerIdentityError)
    with pytest.raises(ssl.SSLError):  # OpenSSL's refusal cannot be repeated, only ours
        joined.server.read(1)
    assert peer_of(joined.server) is None


@pytest.mark.parametrize("handshake", [True, False], ids=["handshake at accept", "handshake left to the first read"])
def test_an_anonymous_client_over_sockets(world: World, handshake: bool) -> None:
    """A blocking server reads what it says, and names nobody."""
    context = server_context(world.leaf(STOCK).unchecked_svid(STOCK), world.bundle, optional_client=True)
    server = RecordingServer(context, handshake=handshake)
    assert _say(client_context(None, world.bundle, STOCK), server.address) == (b"secret", STOCK)
    server.join()
    assert (server.got, server.peer, server.error) == (b"hello", None, None)


@pytest.mark.parametrize("listener_is_optional", [True, False])
def test_the_stricter_of_listener_and_current_context_decides(world: World, listener_is_optional: bool) -> None:
    """An SNI callback that changes the mode lets nobody in whom one of the two contexts would not."""
    _, _, stock = _members(world)
    contexts = [server_context(stock, world.bundle, optional_client=optional) for optional in (True, False)]
    listener, current = contexts if listener_is_optional else contexts[::-1]
    listener.sni_callback = lambda tls, _name, _listener: setattr(tls, "context", current)
    joined = Handshake(client_context(None, world.bundle, STOCK), listener)
    assert isinstance(joined.server_error, ssl.SSLError)
    with pytest.raises(ssl.SSLError):
        joined.server.read(1)


def test_a_current_context_that_is_optional_too(world: World) -> None:
    """As the config service rotates its leaf: both optional, anonymous clients come in and see the new leaf."""
    _, _, stock = _members(world)
    fresh = world.leaf(STOCK).unchecked_svid(STOCK)
    listener, current = (
        server_context(svid, world.bundle, optional_client=True, with_roots=True) for svid in (stock, fresh)
    )
    listener.sni_callback = lambda tls, _name, _listener: setattr(tls, "context", current)
    joined = Handshake(client_context(None, world.bundle, STOCK), listener)
    assert (joined.errors, serial_of(joined.client)) == ({}, fresh.serial)
    assert joined.send(joined.client, joined.server, b"hello") == b"hello"


def test_the_root_is_sent_where_it_is_asked_for(world: World) -> None:
    """Of several that are believed the one that issued the leaf, and no other; none that did: a sentence."""
    _, orders, stock = _members(world)
    both = TrustBundle(TRUST_DOMAIN, world.other_ca.pem + world.ca.pem)
    joined = Handshake(client_context(orders, both, STOCK), server_context(stock, both, with_roots=True))
    assert joined.errors == {}
    sent = [c.public_bytes(2) for c in joined.client._sslobj.get_unverified_chain()]  # type: ignore[attr-defined]
    assert sent == [*stock.chain(), world.ca.chain[0]]
    with pytest.raises(ValueError, match="no root of trust domain"):
        server_context(stock, world.other_ca.bundle(TRUST_DOMAIN), with_roots=True)
