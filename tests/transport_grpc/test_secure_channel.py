"""Channels over mTLS: who is at the other end, and certificates that change under running calls."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from opentelemetry.instrumentation.grpc import client_interceptor
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshlib import Mesh
from meshlib.errors import IdentityError
from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.spiffe import SpiffeId

from .echo import Echo, mesh_of, serving
from .test_aio_channel import method


def strict(tmp_path: Path, port: int) -> dict[str, Any]:
    return {**mesh_of(tmp_path, [port], mtls="strict"), "trust_domain": "shop.dev"}


def server_credentials(mesh: Mesh, service: str) -> Any:
    """Of a server that is `service`, in the mesh's own trust domain, and asks for certificates."""
    credentials = mesh._engine.credentials
    assert credentials is not None
    other = Mesh(service, mesh._engine.source_of_config)
    with other:
        theirs = other._engine.credentials
        assert theirs is not None
        svid, roots = theirs.svid, theirs.bundle.pem
    pair = (svid.private_key_pem, svid.certificate_pem)
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=True)


@pytest.mark.parametrize("kind", ["aio", "threads"])
def test_the_peer_must_be_who_is_called(kind: str, tmp_path: Path) -> None:
    """A server that is `echo` answers; one that is another service of the mesh gets nothing, and the error says it."""
    right, wrong = Echo(), Echo()
    with serving() as (server, _):
        with Mesh("orders", strict(tmp_path, 1)) as mesh:
            mesh._engine.start()
            ports = [server.serve(right, 0, server_credentials(mesh, "echo"))]
            ports.append(server.serve(wrong, 0, server_credentials(mesh, "stock")))

        async def main(port: int) -> bytes:
            async with Mesh("orders", strict(tmp_path, port)) as mesh:
                if kind == "aio":
                    answer: bytes = await method(mesh.channel("echo"), "unary_unary")(b"x")
                    return answer
                return await asyncio.to_thread(method(mesh.sync_channel("echo"), "unary_unary"), b"x")

        assert asyncio.run(main(ports[0])) == b"a:x"
        with pytest.raises(IdentityError) as caught:
            asyncio.run(main(ports[1]))
    assert isinstance(caught.value, grpc.RpcError)
    assert caught.value.expected == "spiffe://shop.dev/ns/default/sa/echo"
    assert not wrong.seen


@pytest.mark.parametrize("kind", ["aio", "threads"])
def test_a_certificate_that_is_renewed_in_the_middle_of_calls(kind: str, tmp_path: Path) -> None:
    """A stream lives on; new calls go over a new channel; the old one is closed with its last call."""
    echo = Echo()
    with serving() as (server, _):
        with Mesh("orders", strict(tmp_path, 1)) as mesh:
            mesh._engine.start()
            port = server.serve(echo, 0, server_credentials(mesh, "echo"))

        async def aio_main() -> None:
            async with Mesh("orders", strict(tmp_path, port)) as mesh:
                channel = mesh.channel("echo")
                stream = method(channel, "stream_stream")()
                await stream.write(b"1")
                assert await stream.read() == b"<1>"
                scope = mesh._engine.scope_of_loop()
                (before,) = scope.grpc.connections._open.values()
                renew(mesh)
                assert await method(channel, "unary_unary")(b"x") == b"a:x"
                (after,) = scope.grpc.connections._open.values()
                assert after is not before
                await stream.write(b"2")
                assert await stream.read() == b"<2>"
                await stream.done_writing()
                assert await stream.code() is grpc.StatusCode.OK

        def main() -> None:
            with Mesh("orders", strict(tmp_path, port)) as mesh:
                channel = mesh.sync_channel("echo")
                stream = method(channel, "stream_stream")(iter([b"1", b"2"]))
                assert next(stream) == b"<1>"
                scope = mesh._engine.scope_of_threads()
                (before,) = scope.grpc.connections._open.values()
                renew(mesh)
                assert method(channel, "unary_unary")(b"x") == b"a:x"
                (after,) = scope.grpc.connections._open.values()
                assert after is not before
                assert list(stream) == [b"<2>"]

        asyncio.run(aio_main()) if kind == "aio" else main()


def renew(mesh: Mesh) -> None:
    """A new SVID, as at two thirds of the old one's life."""
    credentials = mesh._engine.credentials
    assert credentials is not None
    generation = credentials.generation
    credentials._live = credentials._made(generation + 1, credentials.svid, credentials.bundle)
    assert credentials.generation == generation + 1


def test_the_certificate_authority_of_others_is_not_believed(tmp_path: Path) -> None:
    """The right name from another root: refused in the handshake, nothing is sent."""
    other = CertificateAuthority.create("shop.dev", now=time.time())
    svid = other.issue(SpiffeId.for_service("shop.dev", "echo"), now=time.time())
    echo = Echo()
    with serving() as (server, _):
        pair = (svid.private_key_pem, svid.certificate_pem)
        port = server.serve(echo, 0, grpc.ssl_server_credentials([pair]))
        with Mesh("orders", strict(tmp_path, port)) as mesh, pytest.raises(IdentityError):
            method(mesh.sync_channel("echo"), "unary_unary")(b"x")
    assert not echo.seen


def test_health_clients_and_instrumentation_take_a_channel_as_grpcs_own(tmp_path: Path) -> None:
    """grpc.health.v1's generated stub, and OpenTelemetry's interceptor for threads, unmodified."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    request = health_pb2.HealthCheckRequest(service="")
    server = grpc.server(ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            channel = mesh.sync_channel("echo")
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING
            watched = stub.Watch(request)
            assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
            watched.cancel()
            traced = intercept_channel(channel, client_interceptor(tracer_provider=provider))
            assert health_pb2_grpc.HealthStub(traced).Check(request).status == health_pb2.HealthCheckResponse.SERVING

        async def main() -> None:
            async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
                stub = health_pb2_grpc.HealthStub(mesh.channel("echo"))
                assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
                watched = stub.Watch(request)
                assert (await watched.read()).status == health_pb2.HealthCheckResponse.SERVING
                watched.cancel()

        asyncio.run(main())
    finally:
        server.stop(None).wait()
    assert [span.name for span in exporter.get_finished_spans()] == ["/grpc.health.v1.Health/Check"]
