"""The fast leaf and the public API of grpc: the same observations, and no fast leaf where the probe does not pass."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshlib import Mesh
from meshlib.transport.grpc import fast, fast_blocking
from meshlib.transport.grpc.fast import FAST, FastPath
from meshlib.transport.grpc.fast_blocking import FAST_BLOCKING, FastBlockingPath

from .echo import Echo, fails, hangs, mesh_of, serving
from .test_aio_channel import method

NOT_FOUND = grpc.StatusCode.NOT_FOUND
CODES = [grpc.StatusCode.OK, NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED]


@pytest.fixture(params=[True, False], ids=["fast", "public"])
def ready(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Each of the two, whatever the environment says."""
    for path in (FAST, FAST_BLOCKING):
        monkeypatch.setattr(path, "ready", request.param)
        monkeypatch.setattr(path, "_allowed", False)
    return request.param


def scripted() -> Echo:
    """Answers once, fails once with metadata, once with what the policy retries, and is silent."""
    echo = Echo()
    too_many = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "häufig", (("x-more", "no"), ("x-more", "2")))
    echo.script = [None, fails(NOT_FOUND, "not here", (("x-why", "gone"),)), too_many, hangs(echo)]
    return echo


def told(error: Any) -> tuple[Any, ...]:
    """What an error says."""
    return error.code(), error.details(), sorted(p for p in error.trailing_metadata() if p[0].startswith("x-"))


async def on_asyncio(mesh: Mesh) -> list[Any]:
    """What a stub sees."""
    unary = method(mesh.channel("echo"), "unary_unary")
    call = unary(b"x", metadata=(("x-bin", b"\x00\xff"),))
    seen: list[Any] = [await call, await call.code(), dict(await call.trailing_metadata())["x-served-by"]]
    seen.append(await call.initial_metadata() is not None)
    for timeout in (5, 5, 0.3):
        with pytest.raises(grpc.RpcError) as caught:
            await unary(b"x", timeout=timeout)
        seen.append(told(caught.value))
    return seen


def on_threads(mesh: Mesh) -> list[Any]:
    """The same on threads."""
    unary = method(mesh.sync_channel("echo"), "unary_unary")
    answer, call = unary.with_call(b"x", metadata=(("x-bin", b"\x00\xff"),))
    assert isinstance(call, (grpc.Call, grpc.Future))
    assert (call.done(), call.cancelled(), call.exception(), call.result()) == (True, False, None, answer)
    assert not call.add_callback(lambda: None)
    seen: list[Any] = [answer, call.code(), dict(call.trailing_metadata())["x-served-by"]]
    seen.append(call.initial_metadata() is not None)
    for timeout in (5, 5, 0.3):
        with pytest.raises(grpc.RpcError) as caught:
            unary(b"x", timeout=timeout)
        seen.append(told(caught.value))
    return seen


@pytest.mark.parametrize("world", ["asyncio", "threads"])
def test_both_leaves_show_the_same(tmp_path: Path, ready: bool, world: str) -> None:
    """Answer, metadata, codes, details, trailers and a deadline, and the server sees what was sent."""
    echo = scripted()
    with serving(echo) as (_, (port,)):
        mesh = Mesh("orders", mesh_of(tmp_path, [port]))
        if world == "asyncio":

            async def main() -> list[Any]:
                async with mesh:
                    return await on_asyncio(mesh)

            seen = asyncio.run(main())
        else:
            with mesh:
                seen = on_threads(mesh)
        assert echo.cancelled.wait(5)
    assert seen[:4] == [b"a:x", grpc.StatusCode.OK, "a", True]
    assert [shown[0] for shown in seen[4:]] == CODES[1:]
    assert seen[4] == (NOT_FOUND, "not here", [("x-why", "gone")])
    assert seen[5] == (CODES[2], "häufig", [("x-more", "2"), ("x-more", "no")])
    assert echo.seen[0]["x-bin"] == b"\x00\xff"
    assert echo.seen[0]["x-meshlib-attempt"] == "1"


@pytest.mark.parametrize("how", ["cancel", "task", "close"])
def test_a_call_that_is_given_up(tmp_path: Path, ready: bool, how: str) -> None:
    """By `cancel`, by its task, or with its channel: the server sees it, and nothing is left in flight."""
    echo = Echo()
    echo.script = [hangs(echo)]

    async def main() -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            call = method(mesh.channel("echo"), "unary_unary")(b"x")
            task = asyncio.ensure_future(call)
            await asyncio.to_thread(echo.began.wait, 5)
            (connection,) = mesh._engine.scope_of_loop().grpc.connections._open.values()
            assert len(connection.running) == ready
            if how == "close":
                await mesh._engine.scope_of_loop().grpc.aclose()
            else:
                (call if how == "cancel" else task).cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await call.code() is grpc.StatusCode.CANCELLED
            assert (connection.inflight, len(connection.running)) == (0, 0)

    with serving(echo) as (_, (port,)):
        asyncio.run(main())
        assert echo.cancelled.wait(5)


def test_the_probe_passes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the grpc of this environment, on both; it sends nothing."""
    asyncio_path, threads_path = FastPath(True), FastBlockingPath(True)
    monkeypatch.setattr("meshlib.transport.grpc.leaf.FAST", asyncio_path)
    monkeypatch.setattr("meshlib.transport.grpc.leaf.FAST_BLOCKING", threads_path)
    echo = Echo()

    async def main() -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            assert await method(mesh.channel("echo"), "unary_unary")(b"x") == b"a:x"

    with serving(echo) as (_, (port,)):
        asyncio.run(main())
        with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            assert method(mesh.sync_channel("echo"), "unary_unary")(b"x") == b"a:x"
    assert (asyncio_path.ready, threads_path.ready, len(echo.seen)) == (True, True, 2)


class Odd:
    """A connection to a grpc whose private layer has changed."""

    channel = threading.local()

    def multicallable(self, _kind: str, _method: bytes) -> Any:
        """Has none of what is looked for."""
        return object()


def test_a_probe_that_fails_leaves_the_public_api() -> None:
    """Whatever goes wrong, nothing is raised, and it is not asked again."""
    asyncio_path, threads_path = FastPath(True), FastBlockingPath(True)
    asyncio.run(asyncio_path.probe(Odd()))
    threads_path.probe(Odd())
    assert (asyncio_path.ready, threads_path.ready) == (False, False)
    assert (asyncio_path._allowed, threads_path._allowed) == (False, False)


def test_only_versions_that_were_tested() -> None:
    """And only where the environment does not say no."""
    low, high = (".".join(map(str, (*version, 0))) for version in fast.TESTED)
    assert fast._allowed("", low)
    assert not fast._allowed("", high)
    assert not fast._allowed("0", low)
    assert not fast._allowed("", "1.60.1")
    assert fast_blocking.FAST_BLOCKING is not fast.FAST


@pytest.mark.parametrize("turns", [0, 1, 20])
def test_an_answer_that_is_let_go_of_is_gone(turns: int, tmp_path: Path, ready: bool) -> None:
    """Without the garbage collector: nothing of a call that is over refers to itself, awaited at once or begun before."""

    async def main() -> None:
        async with Mesh("orders", mesh_of(tmp_path, [port])) as mesh:
            call = method(mesh.channel("echo"), "unary_unary")(b"x")
            gone = weakref.ref(call)
            for _ in range(turns):
                await asyncio.sleep(0)
            assert await call == b"a:x"
            del call
            await asyncio.sleep(0)
            assert gone() is None

    with serving(Echo()) as (_, (port,)):
        gc.disable()
        try:
            asyncio.run(main())
        finally:
            gc.enable()
