"""The connection, over real TLS: who is let in, how many, and that a lost one is noticed at once."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator

import pytest

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
    """Beyond the bound one without a certificate is closed before its handshake; members come all the same."""
    nobody = service.pinned(service.token)
    with service.connect(nobody), service.connect(nobody), service.connect(None):
        assert refused(lambda: service.connect(nobody))
        assert refused(lambda: service.connect(orders))
    members: list[socket.socket] = []
    for _ in range(10):
        service.until(lambda: sum(_strangers(service).values()) < 3)
        members.append(service.connect(orders))
        assert service.request(members[-1], "GET", "/healthz")[0] == 200
    for member in members:
        member.close()
    service.until(lambda: not sum(_strangers(service).values()))


def _strangers(service: Running) -> dict[str, int]:
    state = service.server._server.server_state  # type: ignore[union-attr]
    return dict(ControlProtocol._open.get(state, {}))


def test_all_connections_together_are_limited(service: Running, orders: ssl.SSLContext) -> None:
    """At the bound even a member is closed at once."""
    listening = service.plane.listening
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
    """Its open connection is answered 403, and no new handshake succeeds."""
    svid, bundle = service.enrolled("orders")
    context = client_context(svid, TrustBundle(TRUST_DOMAIN, bundle.pem), CONTROL)
    with service.connect(context) as connection:
        assert service.request(connection, "POST", "/v1/poll", {"instance": "r1"})[0] == 200
        service.operate("POST", "/v1/ca/revoke", {"serial": f"{svid.serial:x}"})
        assert service.request(connection, "POST", "/v1/poll", {"instance": "r1"})[0] == 403
    assert refused(lambda: service.connect(context))
