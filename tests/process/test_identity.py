"""F12, F39: who is not who they must be gets no byte of a request, and no byte of an answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from meshlib import IdentityError, Mesh
from meshlib.identity.credentials import Credentials
from meshlib.identity.dev import DevSource
from process.replicas import World

ORDERS = "spiffe://test.dev/ns/default/sa/orders"
INVENTORY = "spiffe://test.dev/ns/default/sa/inventory"
SECRET = "a-secret-that-only-inventory-may-see"
REQUEST = b"GET /who HTTP/1.1\r\nhost: backend\r\nconnection: close\r\n\r\n"


class Sniffer:
    """A TLS server with a valid certificate of `service`; keeps every byte of plain text it is sent."""

    def __init__(self, state_dir: Path, service: str) -> None:
        self._context = Credentials(DevSource(state_dir, "test.dev", service), "test.dev").listener()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.received, self.connections, self.handshakes = b"", 0, 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            accepted.settimeout(5)
            try:
                with self._context.wrap_socket(accepted, server_side=True) as tls:
                    self.handshakes += 1
                    while piece := tls.recv(65536):
                        self.received += piece
                        tls.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            except OSError:
                accepted.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@contextmanager
def sniffing(world: World, service: str) -> Iterator[Sniffer]:
    sniffer = Sniffer(world.folder / ".meshlib", service)
    try:
        yield sniffer
    finally:
        sniffer.close()


def test_a_server_with_another_identity_gets_no_byte(tmp_path: Path) -> None:
    """The route to inventory leads to a process that is orders: 0 bytes, a typed error that names both, for both clients."""
    with (
        World(tmp_path, {"inventory": {"retries": {"max_retries": 2}}}) as world,
        sniffing(world, "orders") as sniffer,
    ):
        world.endpoints("inventory", [f"127.0.0.1:{sniffer.port}"])
        errors: list[Exception] = []

        async def call() -> None:
            async with Mesh("caller", world.config) as mesh:
                with pytest.raises(IdentityError) as caught:
                    await mesh.client("inventory").post("/items", headers={"x-secret": SECRET}, content=SECRET)
                errors.append(caught.value)

        asyncio.run(call())
        with Mesh("caller", world.config) as mesh, pytest.raises(IdentityError) as caught:
            mesh.sync_client("inventory").get(f"/{SECRET}")
        errors.append(caught.value)

        for error in errors:
            assert isinstance(error, IdentityError)
            assert isinstance(error, httpx.ConnectError)
            assert (error.expected, error.actual, error.sent) == (INVENTORY, ORDERS, False)
            assert error.request.url.host == "inventory"
        assert sniffer.connections >= 2
        assert sniffer.received == b""


def test_the_sniffer_would_see_a_request(tmp_path: Path) -> None:
    """The control of the test above: the same server under its own name gets every byte."""
    with World(tmp_path, {"orders": {}}) as world, sniffing(world, "orders") as sniffer:
        world.endpoints("orders", [f"127.0.0.1:{sniffer.port}"])
        with Mesh("caller", world.config) as mesh:
            assert mesh.sync_client("orders").get(f"/{SECRET}").status_code == 200
        assert SECRET.encode() in sniffer.received


def test_a_replica_with_another_identity_costs_no_call(tmp_path: Path) -> None:
    """One wrong endpoint beside a right one (F39): every call is answered by the right one, POST included; 0 bytes leak."""
    with World(tmp_path, {"backend": {}}) as world, sniffing(world, "orders") as sniffer:
        (right,) = world.serve("backend")
        world.endpoints("backend", [right.address, f"127.0.0.1:{sniffer.port}"])

        async def call() -> None:
            async with Mesh("caller", world.config) as mesh:
                client = mesh.client("backend")
                answers = [await client.post(f"/orders/{number}") for number in range(50)]
            assert [answer.status_code for answer in answers] == [200] * 50
            assert world.executed() == [str(number) for number in range(50)]

        asyncio.run(call())
        assert sniffer.connections >= 1
        assert sniffer.received == b""


def test_who_shows_no_certificate_gets_nothing(tmp_path: Path) -> None:
    """Raw TLS without a certificate, plaintext, and Mesh(None): no answer, nothing executed, the server stays well."""
    with World(tmp_path, {"backend": {}}) as world:
        (server,) = world.serve("backend")
        request = REQUEST.replace(b"GET /who", b"POST /orders/7")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        assert b"HTTP" not in _talk(server.port, request, None)
        assert b"HTTP" not in _talk(server.port, request, context)
        with Mesh(None, world.config) as mesh, pytest.raises(httpx.HTTPError) as caught:
            mesh.sync_client("backend").post("/orders/8")
        assert isinstance(caught.value, IdentityError)
        assert isinstance(caught.value, httpx.ConnectError)
        assert world.executed() == []

        with Mesh("caller", world.config) as mesh:
            assert mesh.sync_client("backend").post("/orders/9").status_code == 200
        assert world.executed() == ["9"]
        assert "Traceback" not in server.log()


def test_anonymous_over_asyncio_is_refused_alike(tmp_path: Path) -> None:
    """Mesh(None) with the asyncio client: IdentityError, nothing executed."""
    with World(tmp_path, {"backend": {}}) as world:
        world.serve("backend")

        async def call() -> None:
            async with Mesh(None, world.config) as mesh:
                with pytest.raises(IdentityError):
                    await mesh.client("backend").post("/orders/8")

        asyncio.run(call())
        assert world.executed() == []


def _talk(port: int, request: bytes, context: ssl.SSLContext | None) -> bytes:
    """What comes back for `request`, in plaintext or over TLS without a certificate."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            connection = plain if context is None else context.wrap_socket(plain, server_hostname="backend")
            with connection:
                connection.sendall(request)
                while piece := connection.recv(65536):
                    received += piece
    except (ConnectionError, ssl.SSLError):
        pass  # a refusal is an alert or a reset; what matters is what was received before it
    return received
