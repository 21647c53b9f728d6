"""mesh.sync_channel: what a stub sees on threads, against real servers."""

from __future__ import annotations

import gc
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshlib import Mesh
from meshlib.errors import DeadlineExceeded, MeshError, UnknownService

from .echo import Echo, fails, hangs, mesh_of, serving
from .test_aio_channel import UNAVAILABLE, method


def numbers(count: int = 3) -> Any:
    return iter([b"%d" % i for i in range(count)])


def test_the_four_kinds(tmp_path: Path) -> None:
    """Called, with the call object, and as a future; streams are iterators that are calls."""
    echo = Echo()
    with serving(echo) as (_, (port,)), Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
        channel = mesh.sync_channel("echo")
        assert isinstance(channel, grpc.Channel)
        grpc.channel_ready_future(channel).result(5)
        unary = method(channel, "unary_unary")
        assert unary(b"x", None, (("x-a", "1"),)) == b"a:x"
        answer, call = unary.with_call(b"y")
        assert (answer, call.code()) == (b"a:y", grpc.StatusCode.OK)
        assert dict(call.trailing_metadata())["x-served-by"] == "a"
        future = unary.future(b"z")
        assert isinstance(future, grpc.Future)
        assert future.result(5) == b"a:z"
        assert (future.done(), future.code(), future.exception()) == (True, grpc.StatusCode.OK, None)
        stream = method(channel, "unary_stream")(b"n")
        assert list(stream) == [b"n0", b"n1", b"n2"]
        assert stream.code() is grpc.StatusCode.OK
        assert method(channel, "stream_unary")(numbers()) == b"012"
        assert list(method(channel, "stream_stream")(numbers())) == [b"<0>", b"<1>", b"<2>"]
    assert echo.seen[0]["x-a"] == "1"


def test_a_conversation(tmp_path: Path) -> None:
    """The requests of a stream may depend on its answers: the call is on its way before anything is read."""
    with serving(Echo()) as (_, (port,)), Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
        asked: queue.Queue[bytes | None] = queue.Queue()
        answers = method(mesh.sync_channel("echo"), "stream_stream")(iter(asked.get, None))
        for message in (b"1", b"2"):
            asked.put(message)
            assert next(answers) == b"<" + message + b">"
        asked.put(None)
        with pytest.raises(StopIteration):
            next(answers)


def test_an_attempt_does_not_wait_for_a_message_that_another_one_waits_for(tmp_path: Path) -> None:
    """A caller who waits for an answer before it says more: the next attempt is sent what was said."""
    echo, more = Echo(), queue.SimpleQueue[bytes | None]()
    routes = [{"name": "main", "idempotent": True, "retries": {"max_retries": 1}}]

    async def fails_after_a_message(context: Any) -> None:
        await context.read()
        await fails(UNAVAILABLE)(context)

    echo.script = [fails_after_a_message]
    with serving(echo) as (_, (port,)), Mesh("orders", mesh_of(tmp_path, [port], routes=routes)) as mesh:
        stream = method(mesh.sync_channel("echo"), "stream_stream")(iter(more.get, None), 5)
        more.put(b"1")
        assert next(stream) == b"<1>"
        more.put(None)
        assert list(stream) == []
    assert len(echo.seen) == 2


@pytest.mark.parametrize("kind", ["unary_unary", "future", "unary_stream", "stream_unary", "stream_stream"])
def test_what_is_idempotent_is_tried_again(kind: str, tmp_path: Path) -> None:
    """The whole request again, and the server is told which attempt it is (gRFC A6)."""
    first, second = Echo("a"), Echo("b")
    for echo in (first, second):
        echo.script = [fails(UNAVAILABLE)]
    routes = [{"name": "main", "idempotent": True, "retries": {"max_retries": 3}}]
    with (
        serving(first, second) as (_, ports),
        Mesh("orders", mesh_of(tmp_path, ports, routes=routes)) as mesh,
    ):
        channel = mesh.sync_channel("echo")
        if kind == "future":
            assert method(channel, "unary_unary").future(b"x").result(10)[1:] == b":x"
        else:
            answer = method(channel, kind)(numbers() if kind.startswith("stream") else b"x")
            assert (answer if kind.endswith("unary") else list(answer)) is not None
    attempts = sorted(seen.get("grpc-previous-rpc-attempts", "-") for echo in (first, second) for seen in echo.seen)
    assert attempts == ["-", "1", "2"]


def test_errors(tmp_path: Path) -> None:
    """A code of the server, a deadline and an unknown name: grpc's errors and the mesh's at once, with the trail."""
    echo = Echo()
    echo.script = [fails(grpc.StatusCode.NOT_FOUND, "no such item"), hangs(echo), fails(UNAVAILABLE), hangs(echo)]
    with serving(echo) as (_, (port,)), Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
        unary = method(mesh.sync_channel("echo"), "unary_unary")
        with pytest.raises(grpc.RpcError) as caught:
            unary(b"x")
        error: Any = caught.value
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such item")
        assert error.trail.attempts[0].status == 404
        with pytest.raises(DeadlineExceeded) as late:
            unary(b"x", timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        assert unary.future(b"x").code() is UNAVAILABLE
        with mesh.policy(timeout=0.2), pytest.raises(DeadlineExceeded):
            next(method(mesh.sync_channel("echo"), "unary_stream")(b"x"))
        with pytest.raises(UnknownService):
            method(mesh.sync_channel("nobody"), "unary_unary")(b"x")


@pytest.mark.parametrize("kind", ["future", "unary_stream", "stream_stream"])
def test_cancelling(kind: str, tmp_path: Path) -> None:
    """It reaches the handler, and is grpc's error of it here."""
    echo = Echo()
    echo.script = [hangs(echo)]
    with serving(echo) as (_, (port,)), Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
        channel = mesh.sync_channel("echo")
        call: Any
        if kind == "future":
            call = method(channel, "unary_unary").future(b"x")
        else:
            call = method(channel, kind)(numbers() if kind.startswith("stream") else b"x")
        assert echo.began.wait(5)
        assert call.cancel()
        if kind == "future":
            with pytest.raises(grpc.FutureCancelledError):
                call.result(5)
            assert call.cancelled()
        else:
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() is grpc.StatusCode.CANCELLED
        assert echo.cancelled.wait(5)


def test_many_threads_share_a_channel(tmp_path: Path) -> None:
    """32 threads, each its own answers; nothing is in flight afterwards."""
    with serving(Echo()) as (_, (port,)), Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
        unary = method(mesh.sync_channel("echo"), "unary_unary")
        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(unary, [b"%d" % i for i in range(320)])) == [b"a:%d" % i for i in range(320)]
        assert [node.inflight for _, node in mesh._engine._learned.nodes()] == [0]


def test_a_stream_that_is_let_go_of_gives_its_place_back(tmp_path: Path) -> None:
    """Nothing stays in flight of a stream that nobody reads to its end."""
    with serving(Echo()) as (_, (port,)), Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
        asked: queue.Queue[bytes | None] = queue.Queue()
        stream = method(mesh.sync_channel("echo"), "stream_stream")(iter(asked.get, None))
        asked.put(b"1")
        assert next(stream) == b"<1>"
        ((_, node),) = mesh._engine._learned.nodes()
        assert node.inflight == 1
        ended = threading.Event()
        stream._real.add_callback(ended.set)
        del stream
        gc.collect()
        assert ended.wait(5)
        assert node.inflight == 0
        asked.put(None)


def test_a_closed_channel_takes_no_call(tmp_path: Path) -> None:
    """As grpc's own says it; the mesh and its other channels live on."""
    with serving(Echo()) as (_, (port,)), Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
        with mesh.sync_channel("echo") as channel:
            unary = method(channel, "unary_unary")
        with pytest.raises(ValueError, match="closed channel"):
            unary(b"x")
        assert method(mesh.sync_channel("echo"), "unary_unary")(b"x") == b"a:x"


def test_a_server_killed_in_the_middle_of_a_call(tmp_path: Path) -> None:
    """A stream that breaks is UNAVAILABLE, or what the stopping server said; nothing is sent twice."""
    echo = Echo()
    with serving(echo) as (server, (port,)), Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
        asked: queue.Queue[bytes | None] = queue.Queue()
        answers = method(mesh.sync_channel("echo"), "stream_stream")(iter(asked.get, None))
        asked.put(b"1")
        assert next(answers) == b"<1>"
        threading.Thread(target=server.kill).start()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() in (UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert isinstance(caught.value, (MeshError, grpc.RpcError))
        asked.put(None)
    assert len(echo.seen) == 1
