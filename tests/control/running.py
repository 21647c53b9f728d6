"""A config service that listens, on a thread of this process, and how processes and the operator reach it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshlib.control.protocol import ControlProtocol
from meshlib.control.server import ControlServer, Settings, serve
from meshlib.identity.csr import make_csr
from meshlib.identity.join_token import JoinToken
from meshlib.identity.pinned import PinnedTls
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, TrustBundle
from meshlib.identity.tls import client_context

from .config_service import MESH, TRUST_DOMAIN

CONTROL = SpiffeId.for_service(TRUST_DOMAIN, "control.meshlib")
WITHIN_S = 10.0


class Running:
    """`with Running(folder) as service:` listening on a free port, stopped and joined at the end."""

    def __init__(
        self,
        folder: Path,
        mesh: str | None = MESH,
        *,
        protocol: type[ControlProtocol] = ControlProtocol,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        self.file, self.state = folder / "mesh.yaml", folder / "state"
        if mesh is not None:
            self.file.write_text(mesh)
        self._protocol, self._loop_factory = protocol, loop_factory
        self._listening = threading.Event()
        self.server: ControlServer | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        settings = Settings(self.file, "127.0.0.1:0", self.state)
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(serve(settings, protocol=self._protocol, on_listening=self._listens))
        except BaseException as error:
            self.error = error
        finally:
            self._listening.set()

    def _listens(self, server: ControlServer) -> None:
        self.server = server
        self._listening.set()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._listening.wait(WITHIN_S)
        if self.error is not None:
            raise self.error
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    @property
    def port(self) -> int:
        assert self.server is not None
        return int(self.server.address.rpartition(":")[2])

    @property
    def plane(self) -> Any:
        assert self.server is not None
        return self.server.plane

    def within(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, done on the service's own loop."""
        done: list[Any] = []
        ready = threading.Event()

        def do() -> None:
            done.append(work())
            ready.set()

        self.plane._loop.call_soon_threadsafe(do)
        assert ready.wait(WITHIN_S)
        return done[0]

    def until(self, holds: Callable[[], Any]) -> Any:
        """What `holds` gives on the service's loop, as soon as that is true."""
        for _ in range(round(WITHIN_S / 0.01)):
            if found := self.within(holds):
                return found
            threading.Event().wait(0.01)
        raise AssertionError("it never was so")

    # The operator

    @property
    def token(self) -> JoinToken:
        return JoinToken.parse((self.state / "control" / "operator-token").read_text())

    def operate(self, method: str, path: str, document: Any = None, **headers: str) -> Any:
        """What the operator is told; AssertionError for anything but 200."""
        status, _, told = self.request(self.pinned(self.token), method, path, document, self.token.bearer, **headers)
        assert status == 200, told
        return told

    def pinned(self, token: JoinToken) -> ssl.SSLContext:
        return PinnedTls(token.root_sha256, CONTROL).context()

    # Processes

    def enrolled(self, service: str) -> tuple[Svid, TrustBundle]:
        """A certificate for `service`, by a join token."""
        made = JoinToken.parse(self.operate("POST", "/v1/tokens", {"service": f"{service}.default"})["token"])
        csr, key = make_csr(SpiffeId.for_service(TRUST_DOMAIN, service))
        status, _, issued = self.request(self.pinned(made), "POST", "/v1/enrol", {"csr": csr.decode()}, made.bearer)
        assert status == 200, issued
        return Svid.load(issued["chain"].encode(), key), TrustBundle(TRUST_DOMAIN, issued["bundle"].encode())

    def member(self, service: str) -> ssl.SSLContext:
        """The TLS context of a process of `service`."""
        svid, bundle = self.enrolled(service)
        return client_context(svid, bundle, CONTROL)

    def connect(self, context: ssl.SSLContext | None) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN_S)
        if context is None:
            return plain
        return context.wrap_socket(plain, server_hostname=f"control.meshlib.{TRUST_DOMAIN}")

    def request(
        self, over: ssl.SSLContext | socket.socket, method: str, path: str, document: Any = None, bearer: str = "",
        **headers: str,
    ) -> tuple[int, dict[str, str], Any]:  # fmt: skip
        """Status, fields and document of one exchange, on a new connection or one that is kept."""
        connection = over if isinstance(over, socket.socket) else self.connect(over)
        try:
            connection.sendall(request_of(method, path, document, bearer, **headers))
            return reply_of(connection)
        finally:
            if connection is not over:
                connection.close()


def request_of(method: str, path: str, document: Any = None, bearer: str = "", **headers: str) -> bytes:
    body = b"" if document is None else json.dumps(document).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: control", f"content-length: {len(body)}"]
    lines += [f"authorization: Bearer {bearer}"] if bearer else []
    lines += ["content-type: application/json"] if document is not None else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply_of(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    body = reply.read()
    fields = {name.lower(): value for name, value in reply.getheaders()}
    is_json = "json" in fields.get("content-type", "")
    return reply.status, fields, json.loads(body) if is_json else body
