"""Mesh.grpc_server and Mesh.sync_grpc_server: credentials, health, reflection, drain, and what they refuse."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import meshlib
from meshlib import ConfigError, Mesh
from meshlib.transport.grpc.serving import MeshGrpcServer

from .echo import SERVICE
from .test_aio_channel import method
from .test_secure_channel import renew
from .test_server import Handlers, aio_handlers, blocking_handlers, generic

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ASKED = health_pb2.HealthCheckRequest(service=SERVICE)
both = pytest.mark.parametrize("kind", ["aio", "threads"])


def document(tmp_path: Path, port: int = 1, mtls: str = "strict") -> dict[str, Any]:
    echo = {"mtls": mtls, "endpoints": [{"static": [f"127.0.0.1:{port}"]}]}
    return {
        "version": 1,
        "mesh": "shop",
        "trust_domain": "shop.dev",
        "state_dir": str(tmp_path),
        "services": {"echo": echo},
    }


class Served:
    """A server of one kind, started, on a loop of its own where it needs one. `stop` drains it as a signal does."""

    def __init__(self, kind: str, mesh: Mesh, handlers: Any, **options: Any) -> None:
        self.mesh, self.kind = mesh, kind
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        make = mesh.grpc_server if kind == "aio" else mesh.sync_grpc_server
        self.server: Any = make(**options)
        self.server.propagation_s = 0.0
        self.server.add_generic_rpc_handlers((handlers,))
        if kind == "aio":
            self.run(self.server.start())
        else:
            self.server.start()
        self.port = int(self.server.address.rpartition(":")[2])

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def stop(self, grace: float | None) -> Any:
        """Begin; what is called to wait for the end."""
        if self.kind == "aio":
            future = asyncio.run_coroutine_threadsafe(self.server.stop(grace), self.loop)
            return lambda: future.result(20)
        ended = self.server.stop(grace)
        return lambda: ended.wait(20)

    def close(self) -> None:
        self.stop(None)()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextmanager
def served(kind: str, tmp_path: Path, handlers: Any = None, mtls: str = "strict", **options: Any) -> Iterator[Served]:
    """A served `echo`; by default with the handlers of test_server."""
    if handlers is None:
        handlers = (aio_handlers if kind == "aio" else blocking_handlers)(Handlers())
    with Mesh("echo", document(tmp_path, mtls=mtls)) as mesh:
        server = Served(kind, mesh, handlers, **options)
        try:
            yield server
        finally:
            server.close()


def peers(kind: str, seen: list[Any]) -> Any:
    """A unary handler that notes who called."""

    def note(request: bytes) -> bytes:
        current = meshlib.current()
        assert current is not None
        seen.append(str(current.peer))
        return request

    async def aio_unary(request: bytes, _context: Any) -> bytes:
        return note(request)

    def unary(request: bytes, _context: Any) -> bytes:
        return note(request)

    made = grpc.unary_unary_rpc_method_handler(aio_unary if kind == "aio" else unary)
    return grpc.method_handlers_generic_handler(SERVICE, {"UnaryUnary": made})


@both
def test_callers_are_known_by_their_certificates(kind: str, tmp_path: Path) -> None:
    """Over mTLS, by policy and nothing else: a caller of the mesh is known; one without a certificate, or without TLS,
    does not get through the handshake.
    """
    seen: list[Any] = []
    with served(kind, tmp_path, peers(kind, seen)) as server:
        with Mesh("orders", document(tmp_path, server.port)) as mesh:
            assert method(mesh.sync_channel("echo"), "unary_unary")(b"x") == b"x"
        credentials = server.mesh._engine.credentials
        assert credentials is not None
        strangers = [
            grpc.insecure_channel(server.server.address),
            grpc.secure_channel(
                server.server.address,
                grpc.ssl_channel_credentials(credentials.bundle.pem),
                [("grpc.ssl_target_name_override", "echo.default.shop.dev")],
            ),
        ]
        for channel in strangers:
            with channel, pytest.raises(grpc.RpcError) as caught:
                method(channel, "unary_unary")(b"x", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert seen == ["spiffe://shop.dev/ns/default/sa/orders"]


@both
def test_a_new_certificate_is_shown_in_the_next_handshake(kind: str, tmp_path: Path) -> None:
    """Connections that are open stay; a stream in the middle of it all ends well."""
    with served(kind, tmp_path) as server:
        shown: list[tuple[bytes, bytes, bytes]] = []
        pem = server.server.host.pem

        def noted() -> Any:
            found = pem()
            shown.append(found)
            return found

        server.server.host.pem = noted
        with Mesh("orders", document(tmp_path, server.port)) as mesh:
            go_on = threading.Event()

            def requests() -> Iterator[bytes]:
                yield b"1"
                go_on.wait(20)
                yield b"2"

            stream = method(mesh.sync_channel("echo"), "stream_stream")(requests())
            assert next(stream) == b"1"
            renew(server.mesh)
            with Mesh("stock", document(tmp_path, server.port)) as other:
                assert method(other.sync_channel("echo"), "unary_unary")(b"x") == b"u:x"
            go_on.set()
            assert list(stream) == [b"2"]
        assert [generation for generation, _ in shown] == [1, 2]


@both
def test_health_and_reflection(kind: str, tmp_path: Path) -> None:
    """`grpc.health.v1` knows each service; reflection, where it is asked for, names them."""
    with (
        served(kind, tmp_path, reflection=True) as server,
        Mesh("orders", document(tmp_path, server.port)) as mesh,
    ):
        channel = mesh.sync_channel("echo")
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(ASKED).status == SERVING
        assert stub.Check(health_pb2.HealthCheckRequest()).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="none.such"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
        names = {each.name for each in answer.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@both
def test_health_is_answered_without_an_identity_where_the_port_has_no_tls(kind: str, tmp_path: Path) -> None:
    """A probe has no certificate; it learns nothing but health."""
    with (
        served(kind, tmp_path, mtls="disabled") as server,
        grpc.insecure_channel(server.server.address) as channel,
    ):
        assert health_pb2_grpc.HealthStub(channel).Check(ASKED).status == SERVING
        assert method(channel, "unary_unary")(b"x") == b"u:x"
        with pytest.raises(grpc.RpcError) as caught:
            list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([])))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@both
def test_a_drain_waits_for_calls_and_not_for_watchers(kind: str, tmp_path: Path) -> None:
    """Those who watch are told; the call in flight ends well; then the server ends though somebody still watches."""
    began, go_on = threading.Event(), threading.Event()

    async def aio_unary(request: bytes, _context: Any) -> bytes:
        began.set()
        await asyncio.to_thread(go_on.wait, 20)
        return request

    def unary(request: bytes, _context: Any) -> bytes:
        began.set()
        go_on.wait(20)
        return request

    handlers = grpc.method_handlers_generic_handler(
        SERVICE, {"UnaryUnary": grpc.unary_unary_rpc_method_handler(aio_unary if kind == "aio" else unary)}
    )
    with (
        served(kind, tmp_path, handlers) as server,
        Mesh("orders", document(tmp_path, server.port)) as mesh,
    ):
        channel = mesh.sync_channel("echo")
        watched = health_pb2_grpc.HealthStub(channel).Watch(ASKED)
        assert next(watched).status == SERVING
        running = method(channel, "unary_unary").future(b"x")
        assert began.wait(20)
        wait = server.stop(20.0)
        assert next(watched).status == NOT_SERVING
        assert server.server.host.draining
        go_on.set()
        assert running.result(20) == b"x"
        wait()
        with pytest.raises(grpc.RpcError):
            next(watched)
        assert server.server.host.in_flight.closed


@both
def test_a_drain_ends_with_its_grace(kind: str, tmp_path: Path) -> None:
    """A call that does not end is ended."""
    began = threading.Event()

    async def aio_unary(_request: bytes, _context: Any) -> bytes:
        began.set()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    def unary(_request: bytes, context: Any) -> bytes:
        over = threading.Event()
        context.add_callback(over.set)
        began.set()
        over.wait(20)
        return b""

    handlers = grpc.method_handlers_generic_handler(
        SERVICE, {"UnaryUnary": grpc.unary_unary_rpc_method_handler(aio_unary if kind == "aio" else unary)}
    )
    with (
        served(kind, tmp_path, handlers) as server,
        Mesh("orders", document(tmp_path, server.port)) as mesh,
        mesh.policy(max_retries=0),
    ):
        running = method(mesh.sync_channel("echo"), "unary_unary").future(b"x")
        assert began.wait(20)
        server.stop(0.1)()
        assert running.exception(20) is not None


@both
def test_it_starts_again_after_a_stop(kind: str, tmp_path: Path) -> None:
    """The same server object, the same handlers."""
    with served(kind, tmp_path, mtls="disabled") as server:
        server.stop(None)()
        if kind == "aio":
            server.run(server.server.start())
        else:
            server.server.start()
        with grpc.insecure_channel(server.server.address) as channel:
            assert method(channel, "unary_unary")(b"x") == b"u:x"


@both
def test_what_it_refuses(kind: str, tmp_path: Path) -> None:
    """A port of one's own, an option that grpc has not, handlers too late, a second start."""
    with served(kind, tmp_path, mtls="disabled") as server:
        ours: MeshGrpcServer = server.server
        with pytest.raises(TypeError, match="the mesh listens"):
            ours.add_insecure_port("127.0.0.1:1")
        with pytest.raises(TypeError, match="the mesh listens"):
            ours.add_secure_port("127.0.0.1:1", None)
        with pytest.raises(TypeError, match="colour"):
            (server.mesh.grpc_server if kind == "aio" else server.mesh.sync_grpc_server)(colour="red")
        nothing: Any = generic(None, None, None, None)
        with pytest.raises(RuntimeError, match="started already"):
            ours.add_generic_rpc_handlers((nothing,))
        with pytest.raises(RuntimeError, match="started already"):
            server.run(server.server.start()) if kind == "aio" else server.server.start()


@both
def test_where_it_cannot_listen(kind: str, tmp_path: Path) -> None:
    """A taken port is an error, not a share of another server's calls; `dev` stays within the machine."""

    def start(**where: Any) -> None:
        with Mesh("echo", document(tmp_path)) as mesh:
            if kind == "aio":
                asyncio.run(aio_start(mesh, where))
            else:
                mesh.sync_grpc_server(**where).start()

    async def aio_start(mesh: Mesh, where: dict[str, Any]) -> None:
        await mesh.grpc_server(**where).start()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {taken.getsockname()[1]}"):
            start(port=taken.getsockname()[1])
    with pytest.raises(ConfigError, match="loopback"):
        start(host="0.0.0.0")
