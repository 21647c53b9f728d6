"""F13: leaves and roots are replaced while calls go on over old and new connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from meshlib import Mesh
from meshlib.identity.credentials import Credentials
from meshlib.identity.dev import DevSource, rotate_leaves, rotate_root
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import PeerIdentityError
from process.load import Figures, load
from process.replicas import Process, World, until

CHURN = {"connection_pool": {"max_age": "300ms"}}
"""So that new handshakes happen all the time."""


def shown(world: World, server: Process) -> tuple[int, bytes]:
    """The serial number and issuer key of the certificate that a server shows to a new connection."""
    credentials = Credentials(DevSource(world.folder / ".meshlib", "test.dev", "probe"), "test.dev")
    context = credentials.client(SpiffeId.for_service("test.dev", "backend")).context()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="backend.default.test.dev") as tls,
    ):
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    certificate = x509.load_der_x509_certificate(der)
    issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    return certificate.serial_number, issuer or b""


def shows_another(world: World, server: Process, serial: int) -> bool:
    """Has the server a leaf that is another one, and is believed? Without propagation its old root may be gone first."""
    try:
        return shown(world, server)[0] != serial
    except PeerIdentityError:
        return False


async def rotated(
    world: World, servers: list[Process], rotate: Callable[[], object], rounds: int, rps: float
) -> tuple[Figures, list[float]]:
    """Rotate `rounds` times under load; the figures, and how long each took to be shown by every server."""
    took = []
    async with Mesh("caller", world.config) as mesh:
        client = mesh.client("backend")
        async with load(lambda n: client.request("POST" if n % 2 else "GET", f"/orders/{n}"), rps) as running:
            await asyncio.sleep(0.5)
            for _ in range(rounds):
                before = await asyncio.to_thread(_all_shown, world, servers)
                began = time.monotonic()
                await asyncio.to_thread(rotate)
                await asyncio.to_thread(
                    until,
                    lambda before=before: not _serials(_all_shown(world, servers)) & _serials(before),
                    "new leaves everywhere",
                )
                took.append(time.monotonic() - began)
                await asyncio.sleep(0.7)
    return running.figures, took


def _all_shown(world: World, servers: list[Process]) -> list[tuple[int, bytes]]:
    return [shown(world, server) for server in servers]


def _serials(shown: list[tuple[int, bytes]]) -> set[int]:
    return {serial for serial, _ in shown}


def test_new_leaves_cost_no_call(tmp_path: Path) -> None:
    """rotate_leaves, twice, under load with short-lived connections: 0 failed, new serial numbers on every server."""
    with World(tmp_path, {"backend": CHURN}) as world:
        servers = world.serve("backend", 3)
        state = tmp_path / ".meshlib"
        figures, took = asyncio.run(rotated(world, servers, lambda: rotate_leaves(state), 2, rps=80))
        print(f"leaves rotated: {figures}; shown everywhere after {', '.join(f'{s:.2f} s' for s in took)}")
        assert figures.failures == []
        assert sorted(map(int, world.executed())) == sorted(set(map(int, world.executed())))


def test_a_new_root_costs_no_call(tmp_path: Path) -> None:
    """rotate_root under load with short-lived connections: 0 failed, and at the end all leaves are the new root's."""
    with World(tmp_path, {"backend": CHURN}) as world:
        servers = world.serve("backend", 3)
        before = {issuer for _, issuer in _all_shown(world, servers)}
        state = tmp_path / ".meshlib"
        figures, took = asyncio.run(rotated(world, servers, lambda: rotate_root(state), 1, rps=80))
        print(f"root rotated: {figures}; shown everywhere after {', '.join(f'{s:.2f} s' for s in took)}")
        assert figures.failures == []
        assert figures.retried == 0
        after = {issuer for _, issuer in _all_shown(world, servers)}
        assert len(after) == 1
        assert not after & before


def test_who_holds_a_session_of_a_dropped_root_is_refused(tmp_path: Path) -> None:
    """No tickets: a TLS session of before cannot be resumed, so a dropped root is dropped at the next connection."""
    with World(tmp_path, {"backend": {}}) as world:
        (server,) = world.serve("backend")
        old = Credentials(DevSource(tmp_path / ".meshlib", "test.dev", "caller"), "test.dev")
        context = old.client(SpiffeId.for_service("test.dev", "backend")).context()
        with _secured(server, context) as tls:
            tls.sendall(b"GET /who HTTP/1.1\r\nhost: b\r\n\r\n")
            assert tls.recv(100).startswith(b"HTTP/1.1 200")
            session = tls.session
        for _ in range(2):  # the first keeps the old root beside the new one
            serial = shown(world, server)[0]
            rotate_root(tmp_path / ".meshlib", propagation_s=0)
            until(lambda serial=serial: shows_another(world, server, serial), "the server shows a new leaf")
        answer = b""
        try:
            with _secured(server, context, session) as tls:
                tls.sendall(b"GET /who HTTP/1.1\r\nhost: b\r\n\r\n")
                answer = tls.recv(100)
        except (ssl.SSLError, OSError):
            pass  # refused, in the handshake or at the first read
        assert answer == b""


def _secured(server: Process, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    return context.wrap_socket(plain, server_hostname="backend.default.test.dev", session=session)
