"""mesh.channel with client interceptors of grpc.aio: a plain one of each kind, and OpenTelemetry's, unmodified."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from opentelemetry.instrumentation.grpc import aio_client_interceptors
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshlib import Mesh

from .echo import Echo, fails, mesh_of, serving
from .test_aio_channel import method

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


async def ask(channel: Any, kind: str) -> list[bytes]:
    """One call; its answers."""

    async def messages() -> Any:
        for number in (b"1", b"2"):
            yield number

    call = method(channel, kind)(messages() if kind.startswith("stream") else b"x", timeout=5)
    if kind.endswith("unary"):
        return [await call]
    return [message async for message in call]


class Marks(aio.UnaryUnaryClientInterceptor):
    """Adds to the metadata, and tells its name."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.order.append(self.name)
        metadata = aio.Metadata(*(details.metadata or ()), (f"x-{self.name}", "1"))
        changed = aio.ClientCallDetails(details.method, details.timeout, metadata, details.credentials, None)
        return await continuation(changed, request)


class Elsewhere(aio.UnaryUnaryClientInterceptor):
    """Calls another method than was asked for."""

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        changed = aio.ClientCallDetails("/shop.v1.Echo/Other", details.timeout, None, None, None)
        return await continuation(changed, request)


@pytest.mark.parametrize("kind", KINDS)
def test_opentelemetrys_interceptors(tmp_path: Path, kind: str) -> None:
    """A span per call, of all four kinds, and the answers are the same."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def main() -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            traced = mesh.channel("echo", interceptors=aio_client_interceptors(tracer_provider=provider))
            assert await ask(traced, kind) == await ask(mesh.channel("echo"), kind)

    with serving(Echo()) as (_, (port,)):
        asyncio.run(main())
    assert len(exporter.get_finished_spans()) == 1


def test_interceptors_see_the_call_and_its_failure(tmp_path: Path) -> None:
    """The first is outermost; what they add is sent; a status and its details come back; closed is closed."""
    echo, order = Echo(), []  # type: Echo, list[str]

    async def main() -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            channel = mesh.channel("echo", interceptors=[Marks("a", order), Marks("b", order)])
            unary = method(channel, "unary_unary")
            assert await unary(b"x") == b"a:x"
            echo.script = [fails(grpc.StatusCode.NOT_FOUND, "not here")]
            with pytest.raises(aio.AioRpcError) as caught:
                await unary(b"x")
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "not here")
            call = unary(b"y")
            assert await call.code() is grpc.StatusCode.OK
            assert dict(await call.trailing_metadata())["x-served-by"] == "a"
            await channel.close()
            with pytest.raises(aio.UsageError):
                unary(b"x")

    with serving(echo) as (_, (port,)):
        asyncio.run(main())
    assert order == ["a", "b"] * 3
    assert (echo.seen[0]["x-a"], echo.seen[0]["x-b"]) == ("1", "1")


def test_another_method_is_refused(tmp_path: Path) -> None:
    """Nobody has said how its messages are serialised."""

    async def main() -> None:
        async with Mesh("orders", mesh_of(tmp_path, [1])) as mesh:
            with pytest.raises(aio.UsageError, match="Echo/Other"):
                await method(mesh.channel("echo", interceptors=[Elsewhere()]), "unary_unary")(b"x")

    asyncio.run(main())
