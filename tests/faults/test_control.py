"""F01, F02, F04, F07, F13, F31 in full length at 200 calls a second, with times beside a baseline of the same run."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from process.controlled import Controlled
from process.load import Figures, load
from process.replicas import until
from process.test_control import CONVERGED_S, caller, changed, ready
from process.test_control_joins import STALLS

from meshlib import Mesh

RPS = 200.0
REPLICAS = 5
OUTAGE_S = 60.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """A config service and five replicas; each test leaves them running."""
    with Controlled(tmp_path_factory.mktemp("control"), {"backend": {}, "stalls": {}}) as world:
        world.serve("backend", REPLICAS)
        yield world


async def under_load(world: Controlled, happens: Callable[[Mesh], Awaitable[None]]) -> Figures:
    """The calls from when `happens` begins until it is over, and a second more."""
    async with caller(world) as mesh:
        client = mesh.client("backend")
        await client.get("/who")
        async with load(lambda _: client.get("/who"), RPS) as running:
            await asyncio.sleep(2.0)
            began = time.monotonic()
            await happens(mesh)
            await asyncio.sleep(1.0)
    return running.figures.after(began)


@pytest.fixture(scope="module")
def baseline(world: Controlled) -> Figures:
    """The same load with nothing happening."""

    async def nothing(_mesh: Mesh) -> None:
        await asyncio.sleep(15.0)

    figures = asyncio.run(under_load(world, nothing))
    print(f"baseline: {figures}")
    assert figures.failures == []
    return figures


def compared(name: str, figures: Figures, baseline: Figures) -> None:
    p99, before = figures.quantile_s(0.99) * 1e3, baseline.quantile_s(0.99) * 1e3
    p50, half = figures.quantile_s(0.5) * 1e3, baseline.quantile_s(0.5) * 1e3
    print(f"{name}: {figures}; baseline p50 {half:.2f} ms, p99 {before:.2f} ms")
    assert figures.failures == []
    assert p50 <= 1.1 * half + 0.2
    assert p99 <= 1.5 * before + 2.0, "the p99 of a busy machine is no better known"


def test_a_minute_without_the_config_service(world: Controlled, baseline: Figures) -> None:
    """F01: kill -9, 60 s, started again: 0 failed, latency as before; followed again within 5 s."""

    async def killed(_mesh: Mesh) -> None:
        world.control.kill()
        await asyncio.sleep(OUTAGE_S)

    async def back(mesh: Mesh) -> None:
        await asyncio.to_thread(world.control.again)
        await asyncio.to_thread(world.control.wait_listening)
        began = time.monotonic()
        await changed(world, mesh, "9s")
        took = time.monotonic() - began
        print(f"F01: followed again after {took:.2f} s")
        assert took <= CONVERGED_S

    async def both(mesh: Mesh) -> None:
        await killed(mesh)
        await back(mesh)

    compared("F01", asyncio.run(under_load(world, both)), baseline)


def test_a_minute_with_a_frozen_config_service(world: Controlled, baseline: Figures) -> None:
    """F02: SIGSTOP for 60 s: 0 failed, latency as before."""

    async def frozen(_mesh: Mesh) -> None:
        world.control.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(OUTAGE_S)
        finally:
            world.control.signal(signal.SIGCONT)

    compared("F02", asyncio.run(under_load(world, frozen)), baseline)


def test_a_lost_disk(world: Controlled, baseline: Figures) -> None:
    """F04: the store is deleted three times in a row: 0 failed; every instance is back within 5 s."""
    store = world.state / "control" / "store.sqlite"

    async def lost(_mesh: Mesh) -> None:
        for _ in range(3):
            world.control.kill()
            for path in store.parent.glob("store.sqlite*"):
                path.unlink()
            await asyncio.to_thread(world.control.again)
            await asyncio.to_thread(world.control.wait_listening)
            began = time.monotonic()
            await asyncio.to_thread(until, lambda: ready(world) == REPLICAS, "all are registered again")
            took = time.monotonic() - began
            print(f"F04: registered again after {took:.2f} s")
            assert took <= CONVERGED_S
            await asyncio.sleep(5.0)

    figures = asyncio.run(under_load(world, lost))
    print(f"F04: {figures}")
    assert figures.failures == []


def test_a_loop_that_is_blocked_for_a_minute(world: Controlled) -> None:
    """F31: time.sleep(2) every 5 s for 60 s: never off the list, never ejected; the callers of others notice nothing."""
    (world.folder / "stalls.token").write_text(world.token("stalls"))  # tokens are lost with a store
    world.serve("stalls", script=STALLS)
    states: Counter[str] = Counter()

    async def stalled(mesh: Mesh) -> None:
        stalls = mesh.client("stalls")
        for _ in range(12):
            with mesh.policy(timeout=20.0):
                call = asyncio.create_task(stalls.get("/stall/2"))
            for _ in range(5):
                shown = await asyncio.to_thread(world.ask, "GET", "/v1/services?service=stalls.default")
                states.update(i["state"] for s in shown["services"] for i in s["shown"])
                await asyncio.sleep(1.0)
            assert (await call).text == "stalled"

    figures = asyncio.run(under_load(world, stalled))
    print(f"F31: {figures}; {dict(states)}")
    assert figures.failures == []
    assert states.keys() == {"ready"}


def test_ten_second_certificates_for_a_minute(tmp_path: Path) -> None:
    """F13: leaf_ttl 10 s, 60 s at 200 calls a second, POSTs among them, over old connections and new: 0 failed."""
    with Controlled(tmp_path, {"backend": {}}, ca={"leaf_ttl": "10s"}) as world:
        world.serve("backend", REPLICAS)

        async def scenario() -> tuple[Figures, int]:
            async with caller(world) as mesh:
                client = mesh.client("backend")
                await client.get("/who")
                credentials = mesh._engine.credentials
                assert credentials is not None
                before = credentials.generation
                async with load(lambda n: client.request("POST" if n % 2 else "GET", f"/orders/{n}"), RPS) as running:
                    await asyncio.sleep(60.0)
                return running.figures, credentials.generation - before

        figures, generations = asyncio.run(scenario())
        print(f"F13: {figures}; {generations} generations of the caller")
        assert figures.failures == []
        assert generations >= 10
