"""mesh.channel: what a stub sees, against real servers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from meshlib import Mesh
from meshlib.errors import DeadlineExceeded, MeshError, NoHealthyEndpoint, TransportError, UnknownService

from .echo import SERVICE, Echo, fails, hangs, mesh_of, serving

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def method(channel: Any, kind: str) -> Any:
    """A multicallable of bytes, as a stub makes it."""
    name = "".join(part.title() for part in kind.split("_"))
    return getattr(channel, kind)(f"/{SERVICE}/{name}", None, None, _registered_method=True)


async def numbers(count: int = 3) -> Any:
    for i in range(count):
        yield b"%d" % i


def test_the_four_kinds(tmp_path: Path) -> None:
    """Each kind gives what the server said; messages of a stream in order; code, details and metadata are there."""
    echo = Echo()

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            channel = mesh.channel("echo")
            assert isinstance(channel, aio.Channel)
            call = method(channel, "unary_unary")(b"x", metadata=(("x-a", "1"),))
            assert await call == b"a:x"
            assert await call == b"a:x", "a call may be awaited twice"
            assert await call.code() is grpc.StatusCode.OK
            assert dict(await call.trailing_metadata())["x-served-by"] == "a"
            assert call.done()
            assert not call.cancelled()
            assert [m async for m in method(channel, "unary_stream")(b"n")] == [b"n0", b"n1", b"n2"]
            assert await method(channel, "stream_unary")(numbers()) == b"012"
            assert [m async for m in method(channel, "stream_stream")(numbers())] == [b"<0>", b"<1>", b"<2>"]

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))
    assert echo.seen[0]["x-a"] == "1"
    assert echo.seen[0]["x-meshlib-attempt"] == "1"
    assert echo.seen[0]["x-meshlib-source"] == "orders.default"
    assert "grpc-previous-rpc-attempts" not in echo.seen[0]
    assert all(0 < (left or 0) <= 10.1 for left in echo.deadlines), "the policy's timeout is grpc's deadline"


def test_reading_and_writing_by_hand(tmp_path: Path) -> None:
    """`write`, `read` and `done_writing` of a stream, headers first or not."""

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            call = method(mesh.channel("echo"), "stream_stream")()
            await call.write(b"1")
            assert await call.read() == b"<1>"
            await call.write(b"2")
            await call.done_writing()
            assert await call.read() == b"<2>"
            assert await call.read() is aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    with serving(Echo()) as (_, (port,)):
        asyncio.run(main(port))


def test_a_code_of_the_server_is_its_error(tmp_path: Path) -> None:
    """With details and trailers, and the trail of the call; not tried again, for a POST is not idempotent."""
    echo = Echo()
    echo.script = [fails(grpc.StatusCode.NOT_FOUND, "no such item", (("x-why", "gone"),)), fails(UNAVAILABLE)]

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            unary = method(mesh.channel("echo"), "unary_unary")
            with pytest.raises(aio.AioRpcError, match="no such item") as caught:
                await unary(b"x")
            error: Any = caught.value
            assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such item")
            assert dict(error.trailing_metadata())["x-why"] == "gone"
            assert error.trail.attempts[0].status == 404
            with pytest.raises(grpc.RpcError) as caught:
                await unary(b"x")
            assert caught.value.code() is UNAVAILABLE
            assert "not declared idempotent" in str(caught.value.trail)  # type: ignore[attr-defined]

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))
    assert len(echo.seen) == 2


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
def test_what_is_idempotent_is_tried_again(kind: str, tmp_path: Path) -> None:
    """On another endpoint, the whole request again, and the server is told which attempt it is (gRFC A6)."""
    first, second = Echo("a"), Echo("b")
    for echo in (first, second):
        echo.script = [fails(UNAVAILABLE)]
    routes = [{"name": "main", "idempotent": True, "retries": {"max_retries": 3}}]

    async def main(ports: list[int]) -> Any:
        async with Mesh("orders", mesh_of(tmp_path, ports, routes=routes)) as mesh:
            multicallable = method(mesh.channel("echo"), kind)
            call = multicallable(numbers() if kind.startswith("stream") else b"x")
            return await call if kind.endswith("unary") else [m async for m in call]

    with serving(first, second) as (_, ports):
        answer = asyncio.run(main(ports))
    if kind.startswith("stream"):
        assert answer == b"012" if kind == "stream_unary" else answer == [b"<0>", b"<1>", b"<2>"]
    attempts = sorted(seen.get("grpc-previous-rpc-attempts", "-") for echo in (first, second) for seen in echo.seen)
    assert attempts == ["-", "1", "2"]


def test_retry_on_takes_codes(tmp_path: Path) -> None:
    """A word for a gRPC code beside what it means in HTTP."""
    echo = Echo()
    echo.script = [fails(grpc.StatusCode.ABORTED), fails(grpc.StatusCode.DATA_LOSS)]
    routes = [{"name": "main", "idempotent": True, "retries": {"retry_on": ["aborted"], "max_retries": 2}}]

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port], routes=routes)) as mesh:
            with pytest.raises(grpc.RpcError) as caught:
                await method(mesh.channel("echo"), "unary_unary")(b"x")
            assert caught.value.code() is grpc.StatusCode.DATA_LOSS

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))
    assert len(echo.seen) == 2


@pytest.mark.parametrize(("pushback", "attempts"), [("5", 2), ("-1", 1), ("soon", 1)])
def test_pushback(pushback: str, attempts: int, tmp_path: Path) -> None:
    """The server says when to try again, or, with what is no number of milliseconds, not to (gRFC A6)."""
    echo = Echo()
    echo.script = [fails(UNAVAILABLE, trailing=(("grpc-retry-pushback-ms", pushback),))]
    routes = [{"name": "main", "idempotent": True}]

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port], routes=routes)) as mesh:
            try:
                await method(mesh.channel("echo"), "unary_unary")(b"x")
            except grpc.RpcError:
                assert attempts == 1

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))
    assert len(echo.seen) == attempts


def test_deadlines(tmp_path: Path) -> None:
    """The caller's own, or the policy's of the moment: both errors at once, and the handler is cancelled."""
    echo = Echo()
    echo.script = [hangs(echo), hangs(echo), hangs(echo)]

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            unary = method(mesh.channel("echo"), "unary_unary")
            with pytest.raises(aio.AioRpcError) as caught:
                await unary(b"x", timeout=0.2)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert isinstance(caught.value, DeadlineExceeded)
            assert await asyncio.to_thread(echo.cancelled.wait, 5)
            with mesh.policy(timeout=0.2), pytest.raises(DeadlineExceeded):
                await unary(b"x")
            stream = method(mesh.channel("echo"), "unary_stream")(b"x", timeout=0.2)
            with pytest.raises(DeadlineExceeded):
                await stream.read()
            assert await stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
def test_cancelling(kind: str, tmp_path: Path) -> None:
    """It reaches the handler, and is an ordinary CancelledError here."""
    echo = Echo()
    echo.script = [hangs(echo)]

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            multicallable = method(mesh.channel("echo"), kind)
            call = multicallable(numbers() if kind.startswith("stream") else b"x")
            waiting = asyncio.ensure_future(call.code())
            assert await asyncio.to_thread(echo.began.wait, 5)
            assert call.cancel()
            assert await waiting is grpc.StatusCode.CANCELLED
            assert call.cancelled()
            assert not call.cancel()
            assert await asyncio.to_thread(echo.cancelled.wait, 5)

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))


def test_calls_that_nobody_awaits_run_all_the_same(tmp_path: Path) -> None:
    """As grpc's own do; callbacks are told."""
    echo = Echo()

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            unary, ended = method(mesh.channel("echo"), "unary_unary"), asyncio.Event()
            calls = [unary(b"%d" % i) for i in range(20)]
            calls[0].add_done_callback(lambda _call: ended.set())
            await asyncio.wait_for(ended.wait(), 5)
            assert await asyncio.gather(*calls) == [b"a:%d" % i for i in range(20)]

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))


def test_failures_on_the_way(tmp_path: Path) -> None:
    """No endpoint, a refused connection and an unknown name: UNAVAILABLE, and the mesh's own errors."""

    async def main() -> None:
        async with Mesh("orders", mesh_of(tmp_path, [1])) as mesh:
            unary = method(mesh.channel("echo"), "unary_unary")
            with pytest.raises(aio.AioRpcError) as caught:
                await unary(b"x")
            assert caught.value.code() is UNAVAILABLE
            assert isinstance(caught.value, (TransportError, NoHealthyEndpoint))
            assert caught.value.sent is False
            with pytest.raises(UnknownService) as unknown:
                await method(mesh.channel("nobody"), "unary_unary")(b"x")
            assert isinstance(unknown.value, grpc.RpcError)

    asyncio.run(main())


def test_a_server_killed_in_the_middle_of_a_call(tmp_path: Path) -> None:
    """A stream that breaks is UNAVAILABLE and a TransportError, or what the stopping server said; nothing is sent twice."""
    echo = Echo()

    async def main(server: Any, port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            call = method(mesh.channel("echo"), "stream_stream")()
            await call.write(b"1")
            assert await call.read() == b"<1>"
            await asyncio.to_thread(server.kill)
            with pytest.raises(grpc.RpcError) as caught:
                await call.read()
            assert caught.value.code() in (UNAVAILABLE, grpc.StatusCode.CANCELLED)

    with serving(echo) as (server, (port,)):
        asyncio.run(main(server, port))
    assert len(echo.seen) == 1


def test_a_service_that_speaks_something_else(tmp_path: Path) -> None:
    """`protocol` refuses the other client, before a byte is sent, and says which to use."""

    async def main() -> None:
        async with Mesh("orders", mesh_of(tmp_path, [1], protocol="http")) as mesh:
            with pytest.raises(MeshError, match=r"speaks http .* use mesh.client"):
                await method(mesh.channel("echo"), "unary_unary")(b"x")
        async with Mesh("orders", mesh_of(tmp_path, [1], protocol="grpc")) as mesh:
            with pytest.raises(MeshError, match=r"speaks grpc .* use mesh.channel"):
                await mesh.client("echo").get("/")

    asyncio.run(main())


def test_a_channel_is_closed_by_itself_alone(tmp_path: Path) -> None:
    """A closed channel takes no call; another one of the same service does. Running calls are cancelled."""
    echo = Echo()
    echo.script = [hangs(echo)]

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            channel, other = mesh.channel("echo"), mesh.channel("echo")
            running = method(channel, "unary_unary")(b"x")
            assert await asyncio.to_thread(echo.began.wait, 5) or True
            await channel.close()
            with pytest.raises(asyncio.CancelledError):
                await running
            with pytest.raises(aio.UsageError):
                method(channel, "unary_unary")(b"x")
            assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
            echo.script.clear()
            await other.channel_ready()
            assert await method(other, "unary_unary")(b"x") == b"a:x"

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))


def test_routes_decide_for_grpc_too(tmp_path: Path) -> None:
    """By method and by metadata; an answer of the mesh is a code; headers are changed both ways."""
    echo = Echo()
    routes = [
        {"name": "closed", "matches": [{"grpc": {"service": SERVICE, "method": "StreamUnary"}}], "direct_response": {"status": 403, "body": "closed"}},
        {
            "name": "beta",
            "matches": [{"headers": {"x-beta": "1"}}],
            "request_headers": {"set": {"x-a": "2"}, "remove": ["x-beta"]},
        },
        {"name": "faulty", "matches": [{"grpc": {"method": "UnaryStream"}}], "fault": {"abort": {"grpc_status": 8}}},
        {"name": "only", "matches": [{"grpc": {"service": SERVICE, "method": "UnaryUnary"}}]},
    ]  # fmt: skip

    async def main(port: int) -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port], routes=routes)) as mesh:
            channel = mesh.channel("echo")
            codes = []
            for kind, request in (("stream_unary", numbers()), ("unary_stream", b"x"), ("stream_stream", numbers())):
                call = method(channel, kind)(request)
                codes.append((await call.code(), await call.details()))
            assert [code for code, _ in codes] == [
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.UNIMPLEMENTED,
            ]
            assert codes[0][1] == "closed"
            assert "no route of echo takes" in codes[2][1]
            call = method(channel, "unary_unary")(b"x", metadata=(("x-beta", "1"),))
            assert await call == b"a:x"

    with serving(echo) as (_, (port,)):
        asyncio.run(main(port))
    assert echo.seen[0]["x-a"] == "2"
    assert "x-beta" not in echo.seen[0]
