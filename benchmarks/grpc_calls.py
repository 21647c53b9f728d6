"""What a unary gRPC call costs through the mesh: CPU of this process, over bare grpc's in the same rounds.

Targets (issue 4), with 1 and with 32 at a time, medians: on asyncio at most 1.15 times with the fast leaf, 1.25 times
by grpc's public API (ADR 0025); on threads 1.2 times with the leaf that is used, and the public API is shown beside
it. The server is another process; the rounds of all alternate, because the machine is noisy.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import grpc
from grpc import aio

from meshlib import Mesh
from meshlib.transport.grpc.fast import FAST
from meshlib.transport.grpc.fast_blocking import FAST_BLOCKING

METHOD = "/shop.v1.Echo/UnaryUnary"
ROUNDS, CALLS = 12, 1600
TARGETS = {("asyncio", "fast"): 1.15, ("asyncio", "public"): 1.25, ("threads", "fast"): 1.2}
LEAVES = ("fast", "public")
BODY = b"x" * 100

Rounds = dict[tuple[int, str], list[tuple[float, float]]]
"""(bare, mesh) of each round, by how many at a time and by the leaf."""


def serve(ready: Connection) -> None:
    """A bare server that echoes; its port goes to `ready`."""

    async def main() -> None:
        async def echo(request: bytes, _context: Any) -> bytes:
            return request

        server = aio.server()
        handler = grpc.unary_unary_rpc_method_handler(echo)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("shop.v1.Echo", {"UnaryUnary": handler}),)
        )
        ready.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())


def mesh_of(port: int, state_dir: str) -> Mesh:
    """A mesh in plain text, as bare grpc is."""
    echo = {"mtls": "disabled", "endpoints": [{"static": [f"127.0.0.1:{port}"]}]}
    document = {"version": 1, "mesh": "bench", "state_dir": state_dir, "services": {"echo": echo}}
    return Mesh("caller", {**document, "telemetry": {"tracing": {"sample": "0%"}}})


async def aio_round(call: Callable[[bytes], Awaitable[bytes]], concurrent: int) -> float:
    """Microseconds of CPU per call."""

    async def worker(count: int) -> None:
        for _ in range(count):
            await call(BODY)

    began = time.process_time()
    await asyncio.gather(*(worker(CALLS // concurrent) for _ in range(concurrent)))
    return (time.process_time() - began) / (CALLS // concurrent * concurrent) * 1e6


def thread_round(call: Callable[[bytes], bytes], concurrent: int, pool: ThreadPoolExecutor) -> float:
    """Microseconds of CPU per call."""

    def worker(count: int) -> None:
        for _ in range(count):
            call(BODY)

    began = time.process_time()
    list(pool.map(worker, [CALLS // concurrent] * concurrent))
    return (time.process_time() - began) / (CALLS // concurrent * concurrent) * 1e6


async def on_asyncio(port: int, state_dir: str) -> Rounds:
    """The rounds on an event loop."""
    async with mesh_of(port, state_dir) as mesh, aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        bare = channel.unary_unary(METHOD, _registered_method=True)
        ours = mesh.channel("echo").unary_unary(METHOD, None, None, _registered_method=True)
        await ours(BODY)
        found: Rounds = {}
        for concurrent in (1, 32):
            for number in range(ROUNDS + 1):
                for leaf in LEAVES:
                    FAST.ready = leaf == "fast"
                    both = await aio_round(bare, concurrent), await aio_round(ours, concurrent)
                    if number:  # the first one warms up
                        found.setdefault((concurrent, leaf), []).append(both)
        return found


def on_threads(port: int, state_dir: str) -> Rounds:
    """The same on threads."""
    with mesh_of(port, state_dir) as mesh, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        bare = channel.unary_unary(METHOD, _registered_method=True)
        ours = mesh.sync_channel("echo").unary_unary(METHOD, None, None, _registered_method=True)
        ours(BODY)
        found: Rounds = {}
        for concurrent in (1, 32):
            with ThreadPoolExecutor(concurrent) as pool:
                for number in range(ROUNDS + 1):
                    for leaf in LEAVES:
                        FAST_BLOCKING.ready = leaf == "fast"
                        both = thread_round(bare, concurrent, pool), thread_round(ours, concurrent, pool)
                        if number:
                            found.setdefault((concurrent, leaf), []).append(both)
        return found


def main() -> int:
    """Print the medians; 1 where a target is missed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    missed = 0
    gc.collect()
    gc.freeze()
    try:
        with tempfile.TemporaryDirectory() as state_dir:
            for where, found in (
                ("asyncio", asyncio.run(on_asyncio(port, state_dir))),
                ("threads", on_threads(port, state_dir)),
            ):
                for (concurrent, leaf), rounds in found.items():
                    ratio = statistics.median(mesh / bare for bare, mesh in rounds)
                    bare, mesh = (statistics.median(side) for side in zip(*rounds, strict=True))
                    target = TARGETS.get((where, leaf))
                    print(
                        f"{where}, {concurrent} at a time, {leaf} leaf: bare grpc {bare:.0f} µs, mesh {mesh:.0f} µs of "
                        f"CPU a call: {ratio:.2f} × ({'no target' if target is None else f'at most {target:g}'}), "
                        f"medians of {ROUNDS} rounds"
                    )
                    missed |= target is not None and ratio > target
    finally:
        server.terminate()
        server.join()
    return missed


if __name__ == "__main__":
    sys.exit(main())
