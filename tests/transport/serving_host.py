"""A stand-in for Mesh on the server side, and a real server around it on a thread: what the server tests share."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from typing import Any

from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import TrustBundle
from meshlib.identity.tls import client_context, server_context
from meshlib.stack import Service, Stack
from meshlib.transport.admission import CONCURRENCY, DEADLINE, DRAIN, InFlight
from meshlib.transport.serving import MeshServer
from meshlib.transport.uvicorn import PeerProtocol

TRUST_DOMAIN = "shop.example"
AUTHORITY = CertificateAuthority.create(TRUST_DOMAIN, now=time.time())
BUNDLE = TrustBundle(TRUST_DOMAIN, AUTHORITY.certificate_pem)
ORDERS = SpiffeId.for_service(TRUST_DOMAIN, "orders")


def identity_of(service: str) -> Any:
    return AUTHORITY.issue(SpiffeId.for_service(TRUST_DOMAIN, service), now=time.time())


SERVER_SVID = identity_of("orders")


class FakeHost:
    """The server side of a mesh; `tls`: None is mTLS disabled, else "strict"."""

    def __init__(
        self, tls: str | None = None, max_request_body: int = 1000, max_concurrency: int | None = None
    ) -> None:
        self.name, self.strict, self.draining = "orders.default", tls == "strict", False
        self.trust_domain = "shop.dev"
        self.loopback_only = False
        self.max_request_body, self.max_concurrency = max_request_body, max_concurrency
        self.now = time.monotonic
        self.in_flight = InFlight()
        self.events: list[str] = []
        self.calls: list[Any] = []
        self.addresses: list[str] = []
        self._listener = server_context(SERVER_SVID, BUNDLE) if tls else None

    def server_service(self, leaf: Service) -> Service:
        bound = Stack("server", (DRAIN, DEADLINE, CONCURRENCY)).bind(self, leaf)

        async def recorded(call: Any) -> Any:
            self.calls.append(call)
            return await bound(call)

        return recorded

    def listener(self) -> ssl.SSLContext | None:
        return self._listener

    def start(self) -> None:
        self.events.append("start")

    def listens_on(self, address: str) -> None:
        self.addresses.append(address)

    async def startup(self) -> None:
        if "mesh started" not in self.events:
            self.events.append("mesh started")

    async def shutdown(self) -> None:
        self.events.append("mesh stopped")


class Running:
    """`with Running(app, host) as server:` a MeshServer on a thread; `server.port`, stopped and joined at the end."""

    loop_factory: Any = None

    def __init__(self, app: Any, host: Any = None, protocol: type[PeerProtocol] = PeerProtocol, **options: Any) -> None:
        self._listening = threading.Event()
        options = {"propagation_s": 0.0, "grace_s": 2.0, **options}
        self.server = MeshServer(app, host, protocol=protocol, on_listening=lambda _: self._listening.set(), **options)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self.loop_factory) as runner:
                runner.run(self.server.serve())
        except BaseException as error:
            self.error = error
            self._listening.set()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._listening.wait(10)
        if self.error is not None:
            raise self.error
        return self

    def __exit__(self, *_exc: object) -> None:
        self.server.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def port(self) -> int:
        return int(self.server.address.rpartition(":")[2])

    def connect(self, caller: str | None = None) -> socket.socket:
        """A connection, with the certificate of `caller`, or in plaintext."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        if caller is None:
            return plain
        return client_context(identity_of(caller), BUNDLE, ORDERS).wrap_socket(plain, server_hostname="orders")

    def talk(self, request: bytes, caller: str | None = None) -> bytes:
        """Send `request`, read until the server closes (5 s at most)."""
        with self.connect(caller) as connection:
            connection.sendall(request)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except (ConnectionError, ssl.SSLError):
        pass  # a refusal may be a reset or an alert; what matters is what was received before
    return received


def get(path: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    """A request that asks for the connection to be closed."""
    head = [f"{method} {path} HTTP/1.1", "Host: orders", "Connection: close", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def parts(response: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, fields by lower-case name, body as sent."""
    head, _, body = response.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), fields, body
