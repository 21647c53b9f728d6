"""The server side of the mesh around grpc servers: aio and threads, against real clients."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc import aio

import meshlib
from meshlib import Mesh
from meshlib.errors import DeadlineExceeded, NoHealthyEndpoint
from meshlib.transport.grpc.server import _peer as peer_of_context

from .echo import SERVICE
from .test_aio_channel import method


class Handlers:
    """`seen`: what `meshlib.current()` said in each handler. `raises`: what the next one raises."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.raises: list[Any] = []

    def note(self, context: Any) -> None:
        served = meshlib.current()
        assert served is not None
        self.seen.append((served.attempt, served.remaining_s, served.peer))
        if self.raises:
            error = self.raises.pop()
            if isinstance(error, grpc.StatusCode):
                self.code = error
                raise _Abort
            raise error


class _Abort(Exception):
    pass


def aio_handlers(handlers: Handlers) -> Any:
    async def noted(context: Any) -> None:
        try:
            handlers.note(context)
        except _Abort:
            await context.abort(handlers.code, "as asked")

    async def unary_unary(request: bytes, context: Any) -> bytes:
        await noted(context)
        return b"u:" + request

    async def unary_stream(request: bytes, context: Any) -> Any:
        await noted(context)
        for i in range(3):
            yield request + b"%d" % i

    async def stream_unary(requests: Any, context: Any) -> bytes:
        await noted(context)
        return b"".join([message async for message in requests])

    async def stream_stream(requests: Any, context: Any) -> Any:
        await noted(context)
        async for message in requests:
            yield message

    return generic(unary_unary, unary_stream, stream_unary, stream_stream)


def blocking_handlers(handlers: Handlers) -> Any:
    def noted(context: Any) -> None:
        try:
            handlers.note(context)
        except _Abort:
            context.abort(handlers.code, "as asked")

    def unary_unary(request: bytes, context: Any) -> bytes:
        noted(context)
        return b"u:" + request

    def unary_stream(request: bytes, context: Any) -> Any:
        noted(context)
        for i in range(3):
            yield request + b"%d" % i

    def stream_unary(requests: Any, context: Any) -> bytes:
        noted(context)
        return b"".join(requests)

    def stream_stream(requests: Any, context: Any) -> Any:
        noted(context)
        yield from requests

    return generic(unary_unary, unary_stream, stream_unary, stream_stream)


def generic(unary_unary: Any, unary_stream: Any, stream_unary: Any, stream_stream: Any) -> Any:
    made = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(unary_stream),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(stream_unary),
        "StreamStream": grpc.stream_stream_rpc_method_handler(stream_stream),
    }
    return grpc.method_handlers_generic_handler(SERVICE, made)


def document(tmp_path: Path, port: int = 1, mtls: str = "disabled") -> dict[str, Any]:
    echo = {"mtls": mtls, "endpoints": [{"static": [f"127.0.0.1:{port}"]}]}
    return {"version": 1, "mesh": "shop", "state_dir": str(tmp_path), "services": {"echo": echo}}


def serve(kind: str, tmp_path: Path, handlers: Handlers, talk: Any, mtls: str = "disabled") -> Any:
    """What `talk(port, mesh)` gives, run in a thread, with the server of this kind."""
    mesh = Mesh("echo", document(tmp_path, mtls=mtls))

    async def main() -> Any:
        async with mesh:
            server = aio.server(interceptors=mesh.grpc_interceptors())
            server.add_generic_rpc_handlers((aio_handlers(handlers),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                return await asyncio.to_thread(talk, port, mesh)
            finally:
                await server.stop(None)

    if kind == "aio":
        return asyncio.run(main())
    with mesh:
        server = grpc.server(ThreadPoolExecutor(4), interceptors=mesh.sync_grpc_interceptors())
        server.add_generic_rpc_handlers((blocking_handlers(handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            return talk(port, mesh)
        finally:
            server.stop(None).wait()


both = pytest.mark.parametrize("kind", ["aio", "threads"])


@both
def test_the_four_kinds(kind: str, tmp_path: Path) -> None:
    """Handlers of each kind run behind the stack, and know their deadline and which attempt this is."""
    handlers = Handlers()

    def talk(port: int, _mesh: Mesh) -> None:
        with Mesh("orders", document(tmp_path, port)) as caller:
            channel = caller.sync_channel("echo")
            assert method(channel, "unary_unary")(b"x", timeout=5) == b"u:x"
            assert list(method(channel, "unary_stream")(b"n")) == [b"n0", b"n1", b"n2"]
            assert method(channel, "stream_unary")(iter([b"1", b"2"])) == b"12"
            assert list(method(channel, "stream_stream")(iter([b"1", b"2"]))) == [b"1", b"2"]

    serve(kind, tmp_path, handlers, talk)
    assert [attempt for attempt, _, _ in handlers.seen] == [1, 1, 1, 1]
    assert handlers.seen[0][1] <= 5.1
    assert all(peer is None for _, _, peer in handlers.seen)


@both
def test_what_a_handler_ends_with(kind: str, tmp_path: Path) -> None:
    """An abort is its code; an error of a call below is its own code, and not to be tried again; a bug is UNKNOWN."""
    handlers = Handlers()
    handlers.raises = [
        RuntimeError("a bug"),
        DeadlineExceeded("below", phase="read", sent=True),
        NoHealthyEndpoint("stock", {}),
        grpc.StatusCode.NOT_FOUND,
    ]

    def talk(port: int, mesh: Mesh) -> list[Any]:
        found = []
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(4):
                with pytest.raises(grpc.RpcError) as caught:
                    method(channel, "unary_unary")(b"x")
                found.append(caught.value.code())
        metrics = mesh._engine.metrics.render()
        assert 'class="4xx"' in metrics
        assert "meshlib_served_total" in metrics
        return found

    assert serve(kind, tmp_path, handlers, talk) == [
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
    ]


@both
def test_attempts_are_known_as_grpc_says_them(kind: str, tmp_path: Path) -> None:
    """`grpc-previous-rpc-attempts` of a caller that is no mesh."""
    handlers = Handlers()

    def talk(port: int, _mesh: Mesh) -> None:
        options = [("grpc.enable_retries", 0)]  # else the client's core says it itself
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            method(channel, "unary_unary")(b"x", metadata=(("grpc-previous-rpc-attempts", "2"),))

    serve(kind, tmp_path, handlers, talk)
    assert handlers.seen[0][0] == 3


@both
def test_strict_serves_nobody_without_an_identity(kind: str, tmp_path: Path) -> None:
    """UNAUTHENTICATED, before the handler runs."""
    handlers = Handlers()

    def talk(port: int, _mesh: Mesh) -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
            method(channel, "unary_unary")(b"x")
        return caught.value.code()

    assert serve(kind, tmp_path, handlers, talk, mtls="strict") is grpc.StatusCode.UNAUTHENTICATED
    assert handlers.seen == []


def test_a_handler_that_is_not_async_is_refused_by_an_aio_server(tmp_path: Path) -> None:
    """Its refusals would be lost: the caller gets an error, and the handler does not run."""
    ran = []

    def unary_unary(request: bytes, _context: Any) -> bytes:
        ran.append(request)
        return request

    mesh = Mesh("echo", document(tmp_path))

    async def main() -> grpc.StatusCode:
        async with mesh:
            server = aio.server(interceptors=mesh.grpc_interceptors())
            made = {"UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, made),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.RpcError) as caught:
                    await channel.unary_unary(f"/{SERVICE}/UnaryUnary")(b"x", timeout=5)
            await server.stop(None)
            return caught.value.code()

    assert asyncio.run(main()) not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert ran == []


@pytest.mark.parametrize(
    ("uri", "peer"),
    [
        (b"spiffe://shop.dev/ns/default/sa/orders", "spiffe://shop.dev/ns/default/sa/orders"),
        (b"spiffe://other.dev/ns/default/sa/orders", None),
        (b"nonsense", None),
    ],
)
def test_a_peer_is_one_of_this_mesh(uri: bytes, peer: str | None) -> None:
    """An id of another trust domain is nobody's, whatever roots the credentials of a server have."""
    context = SimpleNamespace(auth_context=lambda: {"peer_spiffe_id": [uri]})
    found = peer_of_context(context, "shop.dev")
    assert (None if found is None else str(found)) == peer
