"""CPU per call and latency of a call with the whole client stack, beside bare httpx and bare aiohttp.

One run, interleaved rounds, on one core; the servers have the other. "Bare httpx" is a client of its own for each
concurrency with default limits: a pool that has been at 50 pays for its idle connections at 1. Compare ratios, not
microseconds. Exit code 1 when a bar is missed.

    python -m benchmarks.calls [--rounds 5] [--uvloop]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from meshlib import Mesh
from meshlib.identity.spiffe import SpiffeId

from .report import Bars
from .servers import BODY, running

CONCURRENCIES = (1, 50)
BARS = {("httpx", 1): 0.25, ("aiohttp", 1): 1.1, ("httpx", 50): 0.10, ("aiohttp", 50): 1.0}
"""Highest allowed ratio of `mesh` to a peer, CPU per call."""
CALLS = {"httpx": (80, 200), "aiohttp": (400, 800)}
CALLS_MESH = (600, 1200)


class Dropped(SpanExporter):
    """An exporter that costs nothing: what is measured is the making of spans."""

    def export(self, spans) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Board:
    """CPU µs per call and latencies by (name, concurrency), over all rounds."""

    def __init__(self) -> None:
        self.cpu: dict[tuple[str, int], list[float]] = {}
        self.latency: dict[tuple[str, int], list[float]] = {}

    def add(self, name: str, concurrency: int, cpu: float, latencies: list[float]) -> None:
        self.cpu.setdefault((name, concurrency), []).append(cpu)
        self.latency.setdefault((name, concurrency), []).extend(latencies)

    def ratio(self, name: str, peer: str, concurrency: int) -> float:
        """Median over the rounds of the ratio within a round."""
        pairs = zip(self.cpu[name, concurrency], self.cpu[peer, concurrency], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def show(self, concurrencies: tuple[int, ...], peers: tuple[str, ...]) -> None:
        head = f"{'':24}" + "".join(
            f" | {c:>3} at once: CPU µs (min) " + "".join(f"÷{p:8}" for p in peers) + "  p50 ms   p99 ms"
            for c in concurrencies
        )
        print(head)
        for name in dict.fromkeys(name for name, _ in self.cpu):
            row = f"{name:24}"
            for c in concurrencies:
                cpu, latencies = self.cpu[name, c], sorted(self.latency[name, c])
                ratios = "".join(f"{self.ratio(name, peer, c):9.3f}" for peer in peers)
                p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
                row += f" | {statistics.median(cpu):16.0f} {min(cpu):7.0f} {ratios} {p50 * 1e3:8.2f} {p99 * 1e3:8.2f}"
            print(row)


async def load(call: Callable[[], Awaitable[None]], calls: int, concurrency: int) -> tuple[float, list[float]]:
    latencies: list[float] = []
    numbers = iter(range(calls))

    async def worker() -> None:
        for _ in numbers:
            started = time.perf_counter()
            await call()
            latencies.append(time.perf_counter() - started)

    gc.collect()
    cpu = time.process_time()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return (time.process_time() - cpu) / calls * 1e6, latencies


def mesh_config(folder: Path, ports: list[int], mtls: str) -> dict:
    return {
        "version": 1,
        "mesh": "bench",
        "state_dir": str(folder / ".meshlib"),
        "telemetry": {"tracing": {"sample": "1%"}},
        "services": {
            "inventory": {"mtls": mtls, "endpoints": [{"static": [f"127.0.0.1:{port}" for port in ports]}]},
            "orders": {"mtls": mtls},
        },
    }


async def run_async(folder: Path, plain: list[int], tls: list[int], rounds: int) -> Board:
    board = Board()
    meshes = {
        "mesh": Mesh("orders", mesh_config(folder, plain, "disabled")),
        "mesh mTLS": Mesh("orders", mesh_config(folder, tls, "strict")),
    }
    context = None
    for mesh in meshes.values():
        mesh.start()
        if mesh._engine.credentials is not None:
            context = mesh._engine.credentials.client(SpiffeId.for_service("bench.dev", "inventory.default")).context()
    assert context is not None
    contenders: dict[tuple[str, int], tuple[Callable[[], Awaitable[None]], int]] = {}
    closers: list[Callable[[], Awaitable[None]]] = []
    for at, concurrency in enumerate(CONCURRENCIES):
        for suffix, ports, scheme in (("", plain, "http"), (" mTLS", tls, "https")):
            urls = [f"{scheme}://127.0.0.1:{port}/items/42" for port in ports]
            bare = httpx.AsyncClient(verify=context if suffix else False, timeout=60)
            session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context if suffix else False))
            closers += [bare.aclose, session.close]
            contenders["httpx" + suffix, concurrency] = (_httpx(bare, itertools.cycle(urls)), CALLS["httpx"][at])
            contenders["aiohttp" + suffix, concurrency] = (
                _aiohttp(session, itertools.cycle(urls)),
                CALLS["aiohttp"][at],
            )
        for name, mesh in meshes.items():
            contenders[name, concurrency] = (_mesh(mesh.client("inventory")), CALLS_MESH[at])
    for (_, concurrency), (call, _) in contenders.items():
        await load(call, 3 * concurrency + 30, concurrency)
    for number in range(rounds):
        for (name, concurrency), (call, calls) in contenders.items():
            board.add(name, concurrency, *await load(call, calls, concurrency))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for close in closers:
        await close()
    for mesh in meshes.values():
        await mesh.aclose()
    return board


def _httpx(client: httpx.AsyncClient, urls) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        reply = await client.get(next(urls))
        assert reply.status_code == 200
        assert reply.json()["id"] == 42

    return call


def _aiohttp(session: aiohttp.ClientSession, urls) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        async with session.get(next(urls)) as reply:
            assert reply.status == 200
            assert (await reply.json())["id"] == 42

    return call


def _mesh(client: httpx.AsyncClient) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        reply = await client.get("/items/42")
        assert reply.status_code == 200
        assert reply.json()["id"] == 42

    return call


def run_sync(folder: Path, plain: list[int], tls: list[int], rounds: int) -> Board:
    board = Board()
    urls = itertools.cycle([f"http://127.0.0.1:{port}/items/42" for port in plain])
    bare = httpx.Client(timeout=60)
    meshes = [
        Mesh("orders", mesh_config(folder, plain, "disabled")),
        Mesh("orders", mesh_config(folder, tls, "strict")),
    ]
    clients = [mesh.sync_client("inventory") for mesh in meshes]
    contenders: dict[str, tuple[Callable[[], httpx.Response], int]] = {
        "httpx": (lambda: bare.get(next(urls)), 300),
        "mesh": (lambda: clients[0].get("/items/42"), 900),
        "mesh mTLS": (lambda: clients[1].get("/items/42"), 900),
    }
    for _ in range(rounds + 1):
        for name, (call, calls) in contenders.items():
            for concurrency in (1, 8):
                board.add(name, concurrency, *_threads(call, calls, concurrency))
    for key in board.cpu:  # the first round warmed up
        board.cpu[key] = board.cpu[key][1:]
    bare.close()
    for mesh in meshes:
        mesh.close()
    return board


def _threads(call: Callable[[], httpx.Response], calls: int, concurrency: int) -> tuple[float, list[float]]:
    latencies: list[float] = []

    def worker() -> None:
        for _ in range(calls // concurrency):
            started = time.perf_counter()
            assert call().json()["id"] == 42
            latencies.append(time.perf_counter() - started)

    gc.collect()
    cpu = time.process_time()
    threads = [threading.Thread(target=worker) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.process_time() - cpu) / len(latencies) * 1e6, latencies


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Dropped()))
    trace.set_tracer_provider(provider)
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as (plain, tls):
        assert len(BODY) == 100
        work = run_async(Path(name), plain, tls, options.rounds)
        if options.uvloop:
            import uvloop

            board = uvloop.run(work)
        else:
            board = asyncio.run(work)
        print(f"\nasync, {options.rounds} interleaved rounds, 3 endpoints, 100 bytes of JSON read")
        board.show(CONCURRENCIES, ("httpx", "aiohttp"))
        blocking = run_sync(Path(name), plain, tls, options.rounds)
        print("\nthreads")
        blocking.show((1, 8), ("httpx",))
    provider.shutdown()
    bars = Bars()
    for (peer, concurrency), bar in BARS.items():
        bars.check(f"mesh ÷ {peer:8} at {concurrency:2}", board.ratio("mesh", peer, concurrency), bar)
    return bars.show()


if __name__ == "__main__":
    sys.exit(main())
