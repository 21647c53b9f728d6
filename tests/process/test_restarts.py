"""F16, F17, F15: replicas that are restarted, killed and stopped while calls go on.

The scenarios are functions of their size; `tests/faults` runs the same ones in full length and looks at times.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from meshlib import Mesh
from process.load import Figures, load
from process.replicas import Process, World, until

REPLICAS = 5
DEFAULTS: dict[str, Any] = {"timeout": "5s", "retries": {"max_retries": 1}}


def orders(client: httpx.AsyncClient, run: str) -> Any:
    """Every second call a POST that is not idempotent, each with a number of its own."""

    async def send(number: int) -> httpx.Response:
        return await client.request("POST" if number % 2 else "GET", f"/orders/{run}{number}")

    return send


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Five replicas; a test leaves them all running."""
    with World(tmp_path_factory.mktemp("restarts"), {"backend": {}}, defaults=DEFAULTS) as world:
        world.serve("backend", REPLICAS)
        yield world


async def rolling_restart(world: World, replicas: list[Process], rps: float) -> Figures:
    """SIGTERM one after the other, and start it again on its port, under load."""
    async with Mesh("caller", world.config) as mesh, load(orders(mesh.client("backend"), "r"), rps) as running:
        await asyncio.sleep(0.5)
        for replica in replicas:
            replica.signal(signal.SIGTERM)
            code = await asyncio.to_thread(replica.wait)
            assert code == 0, replica.log()
            replica.again()
            await asyncio.to_thread(replica.wait_listening)
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.5)
    return running.figures


async def killed(world: World, victim: Process, rps: float, before_s: float, after_s: float) -> tuple[Figures, float]:
    """SIGKILL of one replica under load of idempotent calls; the figures, and when (monotonic seconds) it died."""
    async with Mesh("caller", world.config) as mesh:
        client = mesh.client("backend")
        async with load(lambda _: client.get("/who"), rps) as running:
            await asyncio.sleep(before_s)
            victim.popen.kill()
            died = time.monotonic()
            await asyncio.sleep(after_s)
    victim.wait()
    return running.figures, died


async def frozen(world: World, victim: Process, rps: float, before_s: float, frozen_s: float) -> tuple[Figures, float]:
    """SIGSTOP of one replica under load, then SIGCONT; the figures, and when it was stopped."""
    async with Mesh("caller", world.config, defaults={"retries": {"per_try_timeout": "300ms"}}) as mesh:
        client = mesh.client("backend")
        async with load(lambda _: client.get("/who"), rps) as running:
            await asyncio.sleep(before_s)
            victim.signal(signal.SIGSTOP)
            stopped = time.monotonic()
            await asyncio.sleep(frozen_s)
            victim.signal(signal.SIGCONT)
            await asyncio.sleep(0.5)
    return running.figures, stopped


def test_a_rolling_restart_costs_no_call(world: World) -> None:
    """Three of five are SIGTERMed in turn under load: 0 failed calls, POSTs included, and each executed exactly once."""
    figures = asyncio.run(rolling_restart(world, world.processes[:3], rps=100))
    print(f"rolling restart of 3: {figures}")
    assert figures.failures == []
    executed = world.executed()
    posts = [f"r{n}" for n in range(1, len(figures.outcomes), 2)]
    assert len(figures.outcomes) > 200
    assert {order: executed.count(order) for order in posts} == dict.fromkeys(posts, 1)


def test_a_killed_replica_costs_no_call(world: World) -> None:
    """SIGKILL of one of five at 200 calls a second with one retry: 0 failed, and nobody asks the dead one for long."""
    victim = world.processes[1]
    figures, died = asyncio.run(killed(world, victim, rps=200, before_s=1.0, after_s=2.0))
    print(f"SIGKILL of one of 5: {figures}; after it: {figures.after(died)}")
    victim.again()
    victim.wait_listening()
    assert figures.failures == []
    assert figures.answers[victim.name] > 0
    # A probe now and then is all that goes there: at most one per 0.2 s, then 0.4 s, … 1.5 s.
    assert figures.after(died).retried <= 20
    assert victim.name not in figures.after(died + 1.0).answers


def test_a_replica_that_returns_is_used_again(world: World) -> None:
    """A killed replica that is started again on its port gets calls again, without a word from anybody.

    By least_request: peak_ewma remembers a broken call as one of a second, and takes up to 25 s to forget it.
    """
    victim = world.processes[0]

    async def scenario() -> Figures:
        async with Mesh("caller", world.config, defaults={"load_balancer": {"policy": "least_request"}}) as mesh:
            client = mesh.client("backend")
            async with load(lambda _: client.get("/who"), 100) as running:
                await asyncio.sleep(0.3)
                await asyncio.to_thread(victim.kill)
                await asyncio.sleep(0.3)
                victim.again()
                await asyncio.to_thread(victim.wait_listening)
                back = time.monotonic()
                await asyncio.to_thread(
                    until, lambda: victim.name in running.figures.after(back).answers, "the returned replica is used"
                )
        return running.figures

    figures = asyncio.run(scenario())
    print(f"killed and returned: {figures}")
    assert figures.failures == []


def test_a_frozen_replica_costs_no_call(world: World) -> None:
    """SIGSTOP: connections stay open and nothing answers. With a per-try timeout and one retry: 0 failed."""
    figures, stopped = asyncio.run(frozen(world, world.processes[2], rps=100, before_s=0.7, frozen_s=2.0))
    print(f"SIGSTOP of one of 5: {figures}; while stopped: {figures.after(stopped)}")
    assert figures.failures == []
    # Slow calls are those that met it before it was known to be slow; then only its probes.
    assert figures.after(stopped).retried <= 25
