"""The live identity: rotated under open connections, kept through failures, never printed."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import threading
import time
from pathlib import Path

import pytest

from meshlib.identity import dev
from meshlib.identity.ca import LEAF_LIFE_S, CertificateAuthority
from meshlib.identity.credentials import CLIENTS_MAX, Credentials
from meshlib.identity.dev import DevSource, rotate_leaves, rotate_root
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import PeerIdentityError, Svid, TrustBundle, enrolment_of
from meshlib.identity.tls import peer_of

from .certificates import Handshake

ORDERS, STOCK = (SpiffeId.for_service("shop.dev", name) for name in ("orders", "inventory.stock"))


class Issuer:
    """A source in memory: whatever authorities are in `issuing` and `trusted` now, or `failure`."""

    loopback_only = False

    def __init__(self, spiffe_id: SpiffeId, authority: CertificateAuthority) -> None:
        self.id, self.issuing, self.trusted = spiffe_id, authority, [authority]
        self.now, self.life_s, self.dirty = time.time(), LEAF_LIFE_S, True
        self.failure: Exception | None = None

    def fetch(self) -> tuple[Svid, TrustBundle]:
        if self.failure is not None:
            raise self.failure
        self.dirty = False
        bundle = TrustBundle(self.issuing.trust_domain, b"".join(a.certificate_pem for a in self.trusted))
        return self.issuing.issue(self.id, now=self.now, life_s=self.life_s), bundle

    def changed(self) -> bool:
        return self.dirty

    def rotate(self, issuing: CertificateAuthority, *trusted: CertificateAuthority) -> None:
        self.issuing, self.trusted, self.dirty = issuing, [issuing, *trusted], True


def _authority(trust_domain: str = "shop.dev") -> CertificateAuthority:
    return CertificateAuthority.create(trust_domain, now=time.time())


def _serial_of_server(joined: Handshake) -> int:
    shown = joined.client.getpeercert()
    assert shown is not None
    return int(str(shown["serialNumber"]), 16)


class Pair:
    """A client and a server of one trust domain, each with its own source."""

    def __init__(self) -> None:
        self.root = _authority()
        self.sources = Issuer(ORDERS, self.root), Issuer(STOCK, self.root)
        self.orders, self.stock = (Credentials(source, "shop.dev") for source in self.sources)

    def join(self, session: ssl.SSLSession | None = None) -> Handshake:
        return Handshake(self.orders.client(STOCK).context(), self.stock.listener(), session)


def test_what_a_pool_needs() -> None:
    """The attributes of ClientTls, and one context per generation, not per connection."""
    pair = Pair()
    client = pair.orders.client(STOCK)
    assert client is pair.orders.client(STOCK)
    assert (client.expected, client.server_name) == (str(STOCK), "inventory.stock.shop.dev")
    assert (client.generation, client.not_after()) == (1, pair.orders.svid.not_after)
    assert client.context() is client.context()
    assert pair.orders.id == ORDERS


def test_leaf_and_root_rotate_under_an_open_connection() -> None:
    """In-flight bytes go on; the next handshakes show the new leaf and believe the new root, on both sides."""
    pair = Pair()
    opened = pair.join()
    new_root = _authority()
    for source in pair.sources:
        source.rotate(new_root, pair.root)
    assert pair.stock.refresh()  # the server first: for a while the client still has its old leaf and bundle …
    old_client = Handshake(pair.orders.client(STOCK).context(), pair.stock.listener())
    assert isinstance(old_client.client_error, PeerIdentityError)  # … which does not know the new root
    assert pair.orders.refresh()
    assert (pair.orders.generation, pair.orders.client(STOCK).generation) == (2, 2)
    joined = pair.join()
    assert joined.errors == {}
    assert _serial_of_server(joined) == pair.stock.svid.serial != _serial_of_server(opened)
    assert peer_of(joined.server) == ORDERS
    assert opened.send(opened.client, opened.server, b"still here") == b"still here"
    assert opened.send(opened.server, opened.client, b"so am I") == b"so am I"


def test_a_root_that_overlaps_breaks_nobody() -> None:
    """New root believed first, issued from second: in every mixture of old and new the handshake succeeds."""
    pair, new_root = Pair(), _authority()
    client, server = pair.sources
    for source, step in [(s, step) for step in ("believe", "issue") for s in (server, client)]:
        source.rotate(*((pair.root, new_root) if step == "believe" else (new_root, pair.root)))
        assert (pair.stock if source is server else pair.orders).refresh()
        assert pair.join().errors == {}, step


def test_a_dropped_root_is_out_even_for_a_resumed_session() -> None:
    """Once the server has dropped the root of a client's leaf, the session of before does not let that client in."""
    pair, new_root = Pair(), _authority()
    client, server = pair.sources
    for source in (server, client):
        source.rotate(pair.root, new_root)
    assert (pair.stock.refresh(), pair.orders.refresh()) == (True, True)
    before = pair.join()
    assert before.send(before.server, before.client, b"x") == b"x"  # a ticket would come before the first byte
    server.rotate(new_root)
    assert pair.stock.refresh()
    after = pair.join(before.client.session)
    assert not after.server.session_reused
    assert isinstance(after.server_error, PeerIdentityError)
    assert peer_of(after.server) is None


def test_rotation_over_real_sockets(tmp_path: Path) -> None:
    """With the dev source: an open connection outlives leaf and root, new ones get the new leaf without a restart."""
    state = tmp_path / "state"
    orders, stock = (
        Credentials(DevSource(state, "shop.dev", name), "shop.dev") for name in ("orders", "inventory.stock")
    )

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(str(peer_of(writer.get_extra_info("ssl_object"))).encode() + b" " + data)
        writer.close()

    async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> tuple[bytes, int]:
        reader, writer = streams
        writer.write(b"hello")
        shown = writer.get_extra_info("ssl_object").getpeercert()
        return await reader.read(100), int(shown["serialNumber"], 16)

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=stock.listener())
        port = server.sockets[0].getsockname()[1]

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            tls = orders.client(STOCK)
            return await asyncio.open_connection("127.0.0.1", port, ssl=tls.context(), server_hostname=tls.server_name)

        async with server:
            opened = [await connect()]
            first = await ask(opened[0])
            assert first == (f"{ORDERS} hello".encode(), stock.svid.serial)
            for rotate in (rotate_leaves, rotate_root, rotate_root):
                rotate(state)
                assert (stock.refresh(), orders.refresh()) == (True, True)
                opened.append(await connect())
                assert await ask(opened[-1]) == (f"{ORDERS} hello".encode(), stock.svid.serial)
                assert await ask(opened[0]) == first
            for _, writer in opened:
                writer.close()
                await writer.wait_closed()

    asyncio.run(main())
    assert (orders.generation, stock.generation) == (4, 4)
    assert (orders.refresh(), stock.refresh()) == (False, False)


def test_a_failing_source_keeps_the_old_identity(caplog: pytest.LogCaptureFixture) -> None:
    """The contexts stay, the error is reported, one line is logged however often it fails; success clears it."""
    pair = Pair()
    source, context = pair.sources[0], pair.orders.client(STOCK).context()
    source.dirty, source.failure = True, OSError("the disk is gone")
    for _ in range(5):
        assert not pair.orders.refresh()
    assert pair.orders.renewal_error is source.failure
    assert (pair.orders.generation, pair.orders.client(STOCK).context() is context) == (1, True)
    assert [(r.name, r.levelname) for r in caplog.records] == [("meshlib.identity", "WARNING")]
    assert "the disk is gone" in caplog.text
    assert pair.join().errors == {}
    source.failure = None
    assert pair.orders.refresh()
    assert pair.orders.renewal_error is None


def test_a_failure_late_in_the_life_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Past 80 % of the life the line is logged again, as ERROR; `expires_in_s` goes below 0 at the end."""
    source, now = Issuer(ORDERS, _authority()), time.time()
    clock = [now]
    credentials = Credentials(source, "shop.dev", wall=lambda: clock[0])
    source.dirty, source.failure = True, OSError("gone")
    life_s = credentials.svid.not_after - credentials.svid.not_before
    for share in (0.5, 0.79, 0.81, 0.9):
        clock[0] = credentials.svid.not_before + share * life_s
        credentials.refresh()
    assert [r.levelname for r in caplog.records] == ["WARNING", "ERROR"]
    clock[0] = credentials.svid.not_after + 1
    assert credentials.expires_in_s() == -1


def test_a_source_that_gives_what_may_not_be_used() -> None:
    """Expired, of a root that its own bundle lacks, somebody else's, or another trust domain's: the old one stays."""
    pair = Pair()
    source, credentials = pair.sources[0], pair.orders
    other = _authority()

    def expired() -> None:
        source.now -= 2 * LEAF_LIFE_S

    def unvouched() -> None:
        source.issuing, source.trusted = other, [pair.root]

    def somebody() -> None:
        source.id = STOCK

    def elsewhere() -> None:
        bank = _authority("bank.dev")
        source.id, source.issuing, source.trusted = SpiffeId.for_service("bank.dev", "orders"), bank, [bank]

    for spoil in (expired, unvouched, somebody, elsewhere):
        source.id, source.issuing, source.trusted, source.now = ORDERS, pair.root, [pair.root], time.time()
        spoil()
        source.dirty = True
        assert not credentials.refresh(), spoil.__name__
        assert isinstance(credentials.renewal_error, ValueError), spoil.__name__
        assert (credentials.generation, credentials.id) == (1, ORDERS)


def test_without_an_identity_nothing_starts() -> None:
    """The constructor raises what is wrong: the source's own error, or that the SVID may not be used."""
    source = Issuer(ORDERS, _authority())
    with pytest.raises(ValueError, match=r"not bank\.dev"):
        Credentials(source, "bank.dev")
    source.failure = OSError("no source")
    with pytest.raises(OSError, match="no source"):
        Credentials(source, "shop.dev")


def test_a_peer_of_another_trust_domain_cannot_be_expected() -> None:
    """There are no roots for it: a sentence at once, not a failing handshake later."""
    with pytest.raises(ValueError, match="the only one this process trusts"):
        Pair().orders.client(SpiffeId.for_service("bank.dev", "vault"))


def test_the_clients_that_are_kept_have_a_bound() -> None:
    """1024 expected ids are kept; one more forgets the oldest, which still works for whoever holds it."""
    pair = Pair()
    oldest = pair.orders.client(STOCK)
    for number in range(CLIENTS_MAX - 1):
        pair.orders.client(SpiffeId.for_service("shop.dev", f"s{number}"))
    assert pair.orders.client(STOCK) is oldest
    pair.orders.client(SpiffeId.for_service("shop.dev", "one-more"))
    assert pair.orders.client(STOCK) is not oldest
    assert Handshake(oldest.context(), pair.stock.listener()).errors == {}


def test_threads_that_race_build_one_context() -> None:
    """However many threads ask at once, a generation's context is built once."""
    client, start, seen = Pair().orders.client(STOCK), threading.Barrier(8), []

    def ask() -> None:
        start.wait(10)
        seen.append(client.context())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(seen) == 8
    assert len(set(map(id, seen))) == 1


def test_the_source_says_how_far_its_identity_goes(tmp_path: Path) -> None:
    """That of `dev` is for the loopback interface, whatever address a server is bound to; another need not be."""
    local = Credentials(DevSource(tmp_path / "state", "shop.dev", "orders"), "shop.dev")
    assert (local.loopback_only, Pair().orders.loopback_only) == (True, False)


def test_no_key_is_ever_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither logs nor reprs nor errors have a line of a private key, on good paths and bad."""
    dev._warn.cache_clear()
    source = DevSource(tmp_path / "state", "shop.dev", "orders")
    with caplog.at_level(logging.DEBUG):
        credentials = Credentials(source, "shop.dev")
        state = tmp_path / "state/dev-ca/authority.json"
        keys = credentials.svid.private_key_pem, json.loads(state.read_bytes())["signer"]["key"].encode()
        shown = [credentials, credentials.svid, credentials.bundle, credentials.client(STOCK), source]
        shown += [credentials.listener(), credentials._live]
        rotate_leaves(tmp_path / "state")
        kept = json.loads(state.read_bytes())
        kept["signer"]["key"] = keys[0].decode()  # a key, but not the root's
        state.write_text(json.dumps(kept))
        assert not credentials.refresh()
    text = caplog.text + "".join(map(repr, shown)) + repr(credentials.renewal_error)
    secrets = [line for key in keys for line in key.decode().splitlines()[1:3]]  # the rest is the public half
    assert len(secrets) == 4
    assert caplog.records
    assert not [line for line in (*secrets, "PRIVATE KEY") if line in text]


def test_other_roots_with_the_same_leaf() -> None:
    """A source may give the last SVID again: another generation, whose handshakes believe the new roots."""
    pair, new_root = Pair(), _authority()
    before = pair.stock.svid
    pair.sources[1].rotate(pair.root, new_root)
    fetch = pair.sources[1].fetch
    pair.sources[1].fetch = lambda: (before, fetch()[1])  # type: ignore[method-assign]
    assert pair.stock.refresh()
    assert (pair.stock.svid, pair.stock.generation) == (before, 2)
    pair.sources[0].rotate(new_root, pair.root)
    assert pair.orders.refresh()
    assert pair.join().errors == {}


def test_a_revoked_peer_is_out_at_the_next_handshake() -> None:
    """On both sides; the connection that is open stays."""
    pair = Pair()
    opened = pair.join()
    client, server = (source.fetch for source in pair.sources)
    orders, stock = pair.orders.svid, pair.stock.svid

    def without(given: tuple[Svid, TrustBundle], held: Svid, revoked: Svid) -> tuple[Svid, TrustBundle]:
        return held, TrustBundle("shop.dev", given[1].pem, frozenset([enrolment_of(revoked.serial)]))

    pair.sources[1].fetch = lambda: without(server(), stock, orders)  # type: ignore[method-assign]
    pair.sources[1].dirty = True
    assert pair.stock.refresh()
    refused = pair.join()
    assert isinstance(refused.server_error, PeerIdentityError)
    assert refused.server_error.actual == str(ORDERS)
    assert opened.send(opened.client, opened.server, b"still here") == b"still here"
    pair.sources[0].fetch = lambda: without(client(), orders, stock)  # type: ignore[method-assign]
    pair.sources[0].dirty = True
    assert pair.orders.refresh()
    assert isinstance(pair.join().client_error, PeerIdentityError)


def test_our_own_leaf_revoked_is_not_put_to_use() -> None:
    """A source that gives one has none."""
    pair = Pair()
    fetch, held = pair.sources[0].fetch, pair.orders.svid
    revoked = TrustBundle("shop.dev", fetch()[1].pem, frozenset([enrolment_of(held.serial)]))
    pair.sources[0].fetch = lambda: (held, revoked)  # type: ignore[method-assign]
    pair.sources[0].dirty = True
    assert not pair.orders.refresh()
    assert "has been revoked" in str(pair.orders.renewal_error)
