"""F15, F16, F17 in full length: ten restarts, kills and freezes at 200 calls a second, with times beside a baseline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from process.load import Figures, load
from process.replicas import World
from process.test_restarts import DEFAULTS, REPLICAS, frozen, killed, rolling_restart

from meshlib import Mesh

RPS = 200.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Five replicas; a test leaves them all running."""
    with World(tmp_path_factory.mktemp("restarts"), {"backend": {}}, defaults=DEFAULTS) as world:
        world.serve("backend", REPLICAS)
        yield world


@pytest.fixture(scope="module")
def baseline(world: World) -> Figures:
    """The same load with nothing happening."""

    async def scenario() -> Figures:
        async with Mesh("caller", world.config) as mesh:
            client = mesh.client("backend")
            async with load(lambda _: client.get("/who"), RPS) as running:
                await asyncio.sleep(10)
        return running.figures

    figures = asyncio.run(scenario())
    print(f"baseline: {figures}")
    assert figures.failures == []
    return figures


def test_ten_restarts(world: World, baseline: Figures) -> None:
    """F16: every replica SIGTERMed twice at 200 calls a second: 0 failed, each POST executed exactly once."""
    world.forget()
    figures = asyncio.run(rolling_restart(world, world.processes * 2, RPS))
    print(f"F16 ten restarts: {figures}; baseline p99 {baseline.quantile_s(0.99) * 1e3:.1f} ms")
    assert figures.failures == []
    executed = world.executed()
    posts = {f"r{n}" for n in range(1, len(figures.outcomes), 2)}
    assert sum(order in posts for order in executed) == len(posts)


def test_five_kills(world: World, baseline: Figures) -> None:
    """F17: SIGKILL, five times: 0 failed; from 1 s after it no call goes to the dead one first but probes."""
    for victim in world.processes:
        figures, died = asyncio.run(killed(world, victim, RPS, before_s=2.0, after_s=6.0))
        victim.again()
        victim.wait_listening()
        late = figures.after(died + 1.0)
        print(f"F17 SIGKILL: {figures}; from 1 s after it: {late}")
        assert figures.failures == []
        # Probes wait 0.2, 0.4, 0.8, then 1.5 s: after the first second there is room for five.
        assert late.retried <= 5
        assert late.quantile_s(0.95) <= 3 * baseline.quantile_s(0.95) + 0.005


def test_a_freeze_of_ten_seconds(world: World, baseline: Figures) -> None:
    """F15: SIGSTOP for 10 s: 0 failed; after two timeouts it is out of rotation, and p95 is as without."""
    figures, stopped = asyncio.run(frozen(world, world.processes[0], RPS, before_s=3.0, frozen_s=10.0))
    late = figures.after(stopped + 1.0)
    print(f"F15 SIGSTOP: {figures}; from 1 s after it: {late}")
    assert figures.failures == []
    assert late.quantile_s(0.95) <= 3 * baseline.quantile_s(0.95) + 0.005
