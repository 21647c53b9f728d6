"""F20: connections that send a byte of their head now and then."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from process.load import Figures, load
from process.replicas import World

from meshlib import Mesh

ATTACKERS = 500


async def calm(world: World, seconds: float, rps: float) -> Figures:
    """Honest calls."""
    async with Mesh("caller", world.config) as mesh:
        client = mesh.client("backend")
        async with load(lambda _: client.get("/who"), rps) as running:
            await asyncio.sleep(seconds)
    return running.figures


async def drip(host: str, port: int, closed: list[float]) -> None:
    """A byte a second until the server has enough; how long that took is in `closed`."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(OSError):
        for byte in b"GET /who HTTP/1.1\r\nhost: " + b"a" * 1000:
            writer.write(bytes([byte]))
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 1.0)
                break
    closed.append(time.monotonic() - began)
    writer.close()


def test_five_hundred_dripping_connections(tmp_path: Path) -> None:
    """Honest calls go on with a p99 at most twice as long; every dripping one is cut off after its 10 s."""
    with World(tmp_path, {"backend": {}}, defaults={"mtls": "disabled"}) as world:
        (server,) = world.serve("backend")
        host, _, port = server.address.rpartition(":")
        baseline = asyncio.run(calm(world, 8.0, 100))

        async def attack() -> tuple[Figures, list[float]]:
            closed: list[float] = []
            attackers = [asyncio.create_task(drip(host, int(port), closed)) for _ in range(ATTACKERS)]
            figures = await calm(world, 12.0, 100)
            await asyncio.wait(attackers, timeout=15)
            return figures, closed

        figures, closed = asyncio.run(attack())
        cut = f"{len(closed)} cut off after {min(closed):.1f} to {max(closed):.1f} s"
        print(f"F20: baseline {baseline}; under attack {figures}; {cut}")
        assert figures.failures == []
        assert len(closed) == ATTACKERS
        assert max(closed) <= 13.0
        assert figures.quantile_s(0.99) <= max(2 * baseline.quantile_s(0.99), 0.1)  # both share a process
