"""A gRPC service for tests, of the four kinds, without generated code: messages are bytes."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import Any

import grpc
from grpc import aio

SERVICE = "shop.v1.Echo"


class Echo:
    """`seen`: the metadata of each call, in order. `script`: per call, what is raised instead of an answer."""

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.seen: list[dict[str, str]] = []
        self.deadlines: list[float | None] = []
        self.script: list[Any] = []
        self.cancelled = threading.Event()
        self.began = threading.Event()

    async def _begin(self, context: Any) -> None:
        self.seen.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())
        self.began.set()
        step = self.script.pop(0) if self.script else None
        if step is not None:
            await step(context)

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        await self._begin(context)
        context.set_trailing_metadata((("x-served-by", self.name),))
        return self.name.encode() + b":" + request

    async def unary_stream(self, request: bytes, context: Any) -> Any:
        await self._begin(context)
        for i in range(3):
            yield request + b"%d" % i

    async def stream_unary(self, requests: Any, context: Any) -> bytes:
        await self._begin(context)
        return b"".join([message async for message in requests])

    async def stream_stream(self, requests: Any, context: Any) -> Any:
        await self._begin(context)
        async for message in requests:
            yield b"<" + message + b">"

    def handlers(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        make = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.unary_unary),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(self.unary_stream),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(self.stream_unary),
            "StreamStream": grpc.stream_stream_rpc_method_handler(self.stream_stream),
        }
        return grpc.method_handlers_generic_handler(SERVICE, make)


def fails(code: grpc.StatusCode, details: str = "scripted", trailing: tuple[tuple[str, str], ...] = ()) -> Any:
    """A step of a script: this status."""

    async def step(context: Any) -> None:
        await context.abort(code, details, trailing)

    return step


def hangs(echo: Echo) -> Any:
    """A step of a script: no answer until it is cancelled, which `echo.cancelled` then says."""

    async def step(_context: Any) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            echo.cancelled.set()
            raise

    return step


class Serving:
    """grpc.aio servers on a loop in a thread of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.servers: list[aio.Server] = []

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def serve(self, echo: Echo, port: int = 0, credentials: Any = None) -> int:
        """Serve and return the port."""

        async def begin() -> tuple[aio.Server, int]:
            server = aio.server(options=[("grpc.so_reuseport", 0)])
            server.add_generic_rpc_handlers((echo.handlers(),))
            address = f"127.0.0.1:{port}"
            bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
            await server.start()
            return server, bound

        server, bound = self.run(begin())
        self.servers.append(server)
        return int(bound)

    def kill(self, index: int = 0) -> None:
        """Stop a server at once."""
        self.run(self.servers[index].stop(None))

    def close(self) -> None:
        for server in self.servers:
            self.run(server.stop(None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextmanager
def serving(*echoes: Echo) -> Any:
    """(Serving, ports)."""
    server = Serving()
    try:
        yield server, [server.serve(echo) for echo in echoes]
    finally:
        server.close()


def mesh_of(tmp_path: Any, ports: list[int], **service: Any) -> dict[str, Any]:
    """A mesh whose service `echo` is at these ports, in plain text."""
    return {
        "version": 1,
        "mesh": "shop",
        "state_dir": str(tmp_path),
        "services": {
            "echo": {"mtls": "disabled", "endpoints": [{"static": [f"127.0.0.1:{port}" for port in ports]}], **service}
        },
    }
