"""The connection, over real TLS: who is let in, how many, and that a lost one is noticed at once."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshlib.control import protocol as module
from meshlib.control.protocol import ControlProtocol
from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import TrustBundle
from meshlib.identity.tls import client_context

from .config_service import TRUST_DOMAIN
from .running import CONTROL, Running, reply_of, request_of

POLL = {"instance": "i1", "wait_s": 60}
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop] | None] = {"asyncio": asyncio.SelectorEventLoop}
try:
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop
except ImportError:
    pass


class Small(ControlProtocol):
    """Small bounds, so that a test waits for a fraction of a second."""

    CONNECTIONS_PER_PEER_MAX = 3
    HANDSHAKE_TIMEOUT_S = 0.3
    HEAD_TIMEOUT_S = 0.5


@pytest.fixture(scope="module", params=LOOPS)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("control")
    with Running(folder, protocol=Small, loop_factory=LOOPS[request.param]) as running:
        yield running


@pytest.fixture(scope="module")
def orders(service: Running) -> ssl.SSLContext:
    return service.member("orders")


def holding(service: Running, context: ssl.SSLContext, instance: str = "i1") -> socket.socket:
    """A connection whose poll is held."""
    connection = service.connect(context)
    _, _, reply = service.request(connection, "POST", "/v1/poll", {"instance": instance})
    have = {}
    for fragment in reply["fragments"]:
        payload = json.loads(fragment["payload"])
        have[payload["resource"]] = [payload["epoch"], payload["n"]]
    connection.sendall(request_of("POST", "/v1/poll", {**POLL, "instance": instance, "have": have}))
    service.until(lambda: _is_held(service, instance))
    return connection


def _is_held(service: Running, instance: str) -> bool:
    process = service.plane.polls.find("orders.default", instance)
    return process is not None and process.future is not None


def refused(connect: Callable[[], socket.socket]) -> bool:
    """Is a connection ended before a byte of HTTP came?"""
    try:
        with connect() as connection:
            connection.sendall(request_of("GET", "/healthz"))
            return not connection.recv(1)
    except (OSError, ssl.SSLError):
        return True


def test_a_member_is_known_by_its_certificate(service: Running, orders: ssl.SSLContext) -> None:
    """Its service and its serial are those of the leaf that it proved to have."""
    with holding(service, orders):
        status = service.operate("GET", "/v1/status?service=orders.default")
    (process,) = status["processes"]
    assert (process["service"], process["instance"]) == ("orders.default", "i1")
    assert int(process["serial"], 16) > 1 << 64


def test_who_has_no_certificate_is_let_in_as_nobody(service: Running) -> None:
    """To enrol, or with the operator's token; as nobody it gets /healthz."""
    nobody = service.pinned(service.token)
    assert service.request(nobody, "GET", "/healthz")[0] == 200
    assert service.request(nobody, "POST", "/v1/poll", POLL)[0] == 401


def test_who_shows_a_bad_certificate_is_not_let_in(service: Running) -> None:
    """Of another authority, or out of date: no byte of HTTP, although none at all would do."""
    _, bundle = service.enrolled("orders")
    stranger = CertificateAuthority.create(TRUST_DOMAIN, now=time.time())
    orders = SpiffeId.for_service(TRUST_DOMAIN, "orders")
    foreign = client_context(stranger.issue(orders, now=time.time()), bundle, CONTROL)
    assert refused(lambda: service.connect(foreign))
    ours = service.plane.authority.read().signer
    past = client_context(ours.issue(orders, now=time.time() - 9000, life_s=60), bundle, CONTROL)
    assert refused(lambda: service.connect(past))


def test_a_lost_connection_ends_its_poll_at_once(service: Running, orders: ssl.SSLContext) -> None:
    """Closed or reset: the process is known to be gone in the next step, and its lease runs."""
    for lose in (socket.socket.close, _reset):
        connection = holding(service, orders)
        began = time.monotonic()
        lose(connection)
        service.until(lambda: not _is_held(service, "i1"))
        process = service.within(lambda: service.plane.polls.find("orders.default", "i1"))
        service.until(lambda process=process: process.ended_at < float("inf"))
        assert time.monotonic() - began < 1.0


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_a_request_behind_a_held_poll_ends_the_connection(service: Running, orders: ssl.SSLContext) -> None:
    """It would hide that the client is gone: nothing is pipelined here."""
    with holding(service, orders) as connection:
        connection.sendall(request_of("GET", "/healthz"))
        assert connection.recv(1) == b""
    service.until(lambda: not _is_held(service, "i1"))


def test_two_requests_at_once_are_refused(service: Running, orders: ssl.SSLContext) -> None:
    """Sent in one piece, neither is begun."""
    with service.connect(orders) as connection:
        connection.sendall(request_of("POST", "/v1/poll", {**POLL, "instance": "twice"}) * 2)
        assert reply_of(connection)[0] == 400
    assert service.within(lambda: service.plane.polls.find("orders.default", "twice")) is None


def test_strangers_of_one_address_are_limited_and_members_are_not(service: Running, orders: ssl.SSLContext) -> None:
    """Beyond the bound one without a certificate takes the place of the oldest; so whoever holds all of them keeps
    nobody out: not a member, not the operator. Members are not counted so.
    """
    nobody = service.pinned(service.token)
    with service.connect(None) as oldest, service.connect(nobody), service.connect(nobody) as third:
        service.until(lambda: sum(_strangers(service).values()) == 3)
        with service.connect(nobody) as fourth:
            assert service.request(fourth, "GET", "/healthz")[0] == 200
            assert oldest.recv(1) == b""
        assert service.request(third, "GET", "/healthz")[0] == 200
    with service.connect(None), service.connect(None), service.connect(None):
        assert service.operate("GET", "/v1/services")["services"]
        with service.connect(orders) as member:
            assert service.request(member, "GET", "/healthz")[0] == 200
    members: list[socket.socket] = []
    for _ in range(10):
        service.until(lambda: sum(_strangers(service).values()) < 3)
        members.append(service.connect(orders))
        assert service.request(members[-1], "GET", "/healthz")[0] == 200
    for member in members:
        member.close()
    service.until(lambda: not sum(_strangers(service).values()))


def test_who_is_being_answered_is_not_cut_off_for_another(service: Running) -> None:
    """Where all strangers of an address wait for their answers, one more is refused; these get theirs."""
    writer, nobody = service.plane.writer, service.pinned(service.token)
    gate = threading.Event()
    bearer = service.token.bearer
    blocked = service.within(lambda: asyncio.ensure_future(writer.run(gate.wait)))
    asking = [service.connect(nobody) for _ in range(3)]
    try:
        for connection in asking:
            connection.sendall(request_of("GET", "/v1/tokens", None, bearer))
        service.until(lambda: writer._waiting == 4)
        assert refused(lambda: service.connect(nobody))
    finally:
        gate.set()
    for connection in asking:
        assert reply_of(connection)[0] == 200
        connection.close()
    assert service.until(blocked.done)
    service.until(lambda: not sum(_strangers(service).values()))


def test_a_stranger_is_let_go_once_it_is_answered_and_the_operator_stays(service: Running) -> None:
    """Nobody without a certificate or the operator's token keeps a connection by asking."""
    nobody = service.pinned(service.token)
    with service.connect(nobody) as connection:
        assert service.request(connection, "GET", "/healthz")[1]["connection"] == "close"
        assert connection.recv(1) == b""
    with service.connect(nobody) as connection:
        for _ in range(2):
            assert service.request(connection, "GET", "/v1/ca", None, service.token.bearer)[0] == 200


def test_a_service_has_half_of_all_connections(service: Running, orders: ssl.SSLContext) -> None:
    """One more of it is closed; members of another service come all the same; one that ends makes room."""
    listening, inventory = service.plane.listening, service.member("inventory")
    service.until(lambda: not listening.members)
    before, listening.connections_max = listening.connections_max, 4
    try:
        ours = [service.connect(orders) for _ in range(2)]
        for connection in ours:
            assert service.request(connection, "GET", "/healthz")[0] == 200
        assert refused(lambda: service.connect(orders))
        with service.connect(inventory) as other:
            assert service.request(other, "GET", "/healthz")[0] == 200
        ours.pop().close()
        service.until(lambda: sum(listening.members.values()) == 1)
        with service.connect(orders) as again:
            assert service.request(again, "GET", "/healthz")[0] == 200
        ours.pop().close()
    finally:
        listening.connections_max = before
    service.until(lambda: not listening.members)


def test_what_is_not_read_is_bounded(service: Running, orders: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound of all connections the one that has not read for the longest is cut off; a reader that keeps no
    pace by which it had its reply in time is cut off too.
    """
    monkeypatch.setattr(module, "UNSENT_BYTES_MAX", 21_400_000)
    monkeypatch.setattr(Small, "WRITE_STRETCH_S", 0.2)
    monkeypatch.setattr(service.plane, "poll", lambda member, asked: (_Nothing(), b"x" * 16_000_000))
    monkeypatch.setattr(service.plane, "polled", lambda process: None)
    listening = service.plane.listening
    first = service.connect(orders)
    first.sendall(request_of("POST", "/v1/poll", POLL))
    service.until(lambda: len(listening.unread) == 1)
    assert 0 < listening.unread_bytes <= 16_100_000
    service.until(lambda: not listening.unread)
    first.close()
    monkeypatch.setattr(Small, "WRITE_STRETCH_S", 60.0)
    first = service.connect(orders)
    first.sendall(request_of("POST", "/v1/poll", POLL))
    service.until(lambda: len(listening.unread) == 1)
    slowest = service.within(lambda: next(iter(listening.unread)))
    assert slowest.WRITE_BYTES_PER_S_MIN >= listening.unread[slowest] / module.REPLY_S_MAX > 100
    second = service.connect(orders)
    second.sendall(request_of("POST", "/v1/poll", POLL))
    service.until(lambda: listening.unread and slowest not in listening.unread)
    monkeypatch.undo()
    assert _read(second) > 16_000_000
    assert _read(first) < 16_000_000
    first.close()
    second.close()
    service.until(lambda: not listening.unread)
    assert listening.unread_bytes == 0


def test_who_asks_without_reading_is_refused(
    service: Running, orders: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second large answer is not put behind one that waits."""
    asked: list[str] = []

    def poll(_member: object, poll: Any) -> Any:
        asked.append(poll.instance)
        return _Nothing(), b"x" * 16_000_000

    monkeypatch.setattr(service.plane, "poll", poll)
    monkeypatch.setattr(service.plane, "polled", lambda process: None)
    with service.connect(orders) as connection:
        for instance in ("first", "second"):
            connection.sendall(request_of("POST", "/v1/poll", {**POLL, "instance": instance}))
            service.until(lambda: service.plane.listening.unread)
        assert _read(connection) < 17_000_000
    assert asked == ["first"]
    service.until(lambda: not service.plane.listening.unread)


def _read(connection: socket.socket) -> int:
    """Bytes that come until nothing more does."""
    connection.settimeout(1.0)
    size = 0
    try:
        while piece := connection.recv(1 << 20):
            size += len(piece)
    except OSError:
        pass
    return size


class _Nothing:
    """A process that is not polling."""


def test_a_name_that_is_no_text_is_no_news(service: Running, capfd: pytest.CaptureFixture[str]) -> None:
    """A handshake for a server name of bytes that are no ASCII: refused or not, nothing is printed."""
    hello, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    tls = context.wrap_bio(hello, out, server_hostname="badname.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    said = out.read().replace(b"badname.example", b"\xff\xfe\xfdname.example")
    with service.connect(None) as connection:
        connection.sendall(said)
        assert connection.recv(1)
    assert capfd.readouterr().err == ""


def _strangers(service: Running) -> dict[str, int]:
    state = service.server._server.server_state  # type: ignore[union-attr]
    return dict(ControlProtocol._open.get(state, {}))


def test_all_connections_together_are_limited(service: Running, orders: ssl.SSLContext) -> None:
    """At the bound even a member is closed at once, unless there is a stranger whose place it can take."""
    listening = service.plane.listening
    service.until(lambda: not listening.strangers)
    before, listening.connections_max = listening.connections_max, 0
    try:
        assert refused(lambda: service.connect(orders))
    finally:
        listening.connections_max = before


def test_a_handshake_that_does_not_come_is_ended(service: Running) -> None:
    """Silence, plain HTTP, garbage: closed without a byte of HTTP, within the time for a handshake."""
    for said in (b"", request_of("GET", "/healthz"), b"\x16\x03\x01" + b"\xff" * 600):
        with service.connect(None) as connection:
            connection.sendall(said)
            got = b""
            try:
                while piece := connection.recv(4096):
                    got += piece
            except OSError:
                pass
            assert b"HTTP" not in got


def test_new_handshakes_get_the_new_leaf_and_open_connections_go_on(service: Running, orders: ssl.SSLContext) -> None:
    """A rotation changes what the next connection is shown; a poll that is held stays."""
    with holding(service, orders) as connection:
        before = connection.getpeercert(binary_form=True)  # type: ignore[attr-defined]
        service.operate("POST", "/v1/ca/rotate", {})
        assert [one["payload"].startswith('{"epoch"') for one in reply_of(connection)[2]["fragments"]] == [True]
        with service.connect(orders) as fresh:
            assert fresh.getpeercert(binary_form=True) != before  # type: ignore[attr-defined]


def test_a_revoked_certificate_opens_nothing(service: Running) -> None:
    """Its open connection is closed at once, a held poll is ended with 403, and no new handshake succeeds."""
    svid, bundle = service.enrolled("orders")
    context = client_context(svid, TrustBundle(TRUST_DOMAIN, bundle.pem), CONTROL)
    with service.connect(context) as connection:
        assert service.request(connection, "POST", "/v1/poll", {"instance": "r1"})[0] == 200
        with holding(service, context, "r2") as held:
            service.operate("POST", "/v1/ca/revoke", {"serial": f"{svid.serial:x}"})
            status, fields, _ = reply_of(held)
            assert (status, fields["connection"], held.recv(1)) == (403, "close", b"")
            assert connection.recv(1) == b""
    assert refused(lambda: service.connect(context))


def test_a_certificate_that_has_ended_or_lost_its_root_opens_nothing(service: Running) -> None:
    """Not even on a connection that was made when it was one: 401, and the connection ends."""
    svid, bundle = service.enrolled("orders")
    context = client_context(svid, TrustBundle(TRUST_DOMAIN, bundle.pem), CONTROL)
    gate = service.plane.gate
    with service.connect(context) as ending, service.connect(context) as idle, service.connect(context) as dropped:
        for connection in (ending, idle, dropped):
            assert service.request(connection, "POST", "/v1/poll", {"instance": "e1"})[0] == 200
        wall, issuers = gate._wall, gate.issuers
        try:
            gate._wall = lambda: svid.not_after
            status, fields, problem = service.request(ending, "POST", "/v1/renew", {"csr": "x"})
            assert (status, fields["connection"], "connect anew" in problem["message"]) == (401, "close", True)
            gate._wall = wall
            service.within(lambda: gate.trust(gate.revoked, frozenset({b"another"})))
            assert (idle.recv(1), dropped.recv(1)) == (b"", b"")
        finally:
            gate._wall = wall
            service.within(lambda: gate.trust(gate.revoked, issuers))
