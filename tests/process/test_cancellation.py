"""F34: callers that give up at random must not wear out the pool. httpx 0.28 fails this for good (httpcore#1093)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections import Counter
from pathlib import Path

import httpx

from meshlib import Mesh, MeshError
from process.replicas import World

CONNECTIONS, CALLERS = 5, 40
SEED = 20_260_101
POLICY = {"connection_pool": {"max_connections": CONNECTIONS}, "retries": {"max_retries": 1}, "timeout": "5s"}
TARGETS = ["/echo/x", "/echo/y", "/slow/5", "/slow/30", "/bytes/200000", "/pieces/3", "/missing"]


async def storm(mesh: Mesh, seconds: float, seed: int) -> Counter[str]:
    """`CALLERS` callers that call and give up after a random 0.5 to 150 ms; what became of the calls."""
    client, rng, ends, end = mesh.client("backend"), random.Random(seed), Counter[str](), time.monotonic() + seconds

    async def caller() -> None:
        while time.monotonic() < end:
            try:
                async with asyncio.timeout(rng.uniform(0.0005, 0.15)):
                    if rng.random() < 0.2:
                        async with client.stream("GET", rng.choice(TARGETS)) as response:
                            async for _ in response.aiter_raw():
                                break
                    else:
                        response = await client.get(rng.choice(TARGETS), timeout=rng.choice([None, 0.01, 1.0]))
                    ends[str(response.status_code)] += 1
            except TimeoutError:
                ends["cancelled"] += 1
            except httpx.HTTPError as error:
                ends[type(error).__name__] += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return ends


async def aftermath(world: World, seconds: float, seed: int) -> tuple[Counter[str], dict[str, int], dict[str, int]]:
    """A storm between two looks at what is open; every call after it is answered."""
    async with Mesh("caller", world.config) as mesh:
        client = mesh.client("backend")
        await asyncio.gather(*(client.get("/slow/50") for _ in range(CONNECTIONS)))
        before = _open()
        ends = await storm(mesh, seconds, seed)
        answers = [await client.get("/echo/after", timeout=5.0) for _ in range(10)]
        answers += await asyncio.gather(*(client.get("/slow/10", timeout=5.0) for _ in range(CALLERS)))
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        gc.collect()
        await asyncio.sleep(0.1)
        return ends, before, _open()


def _open() -> dict[str, int]:
    return {"fds": len(os.listdir("/proc/self/fd")), "tasks": len(asyncio.all_tasks())}


def check(ends: Counter[str], before: dict[str, int], after: dict[str, int]) -> None:
    """The counts that F34 promises: all kinds of endings happened, and nothing is left of them."""
    print(f"seed {SEED}: {dict(ends)}; open before {before}, after {after}")
    assert ends["cancelled"] > 100
    assert ends["200"] > 10
    assert after["fds"] <= before["fds"] + 2
    assert after["tasks"] == before["tasks"]


def test_a_cancellation_storm_leaves_nothing_behind(tmp_path: Path) -> None:
    """Afterwards 50 of 50 calls succeed on the 5 connections; descriptors and tasks are back where they were."""
    with World(tmp_path, {"backend": POLICY}) as world:
        world.serve("backend")
        check(*asyncio.run(aftermath(world, 2.0, SEED)))


def test_threads_that_give_up(tmp_path: Path) -> None:
    """The blocking client: 20 threads with short random timeouts over 5 connections; afterwards 50 of 50 succeed."""
    from concurrent.futures import ThreadPoolExecutor

    with World(tmp_path, {"backend": POLICY}) as world:
        world.serve("backend")
        with Mesh("caller", world.config) as mesh, ThreadPoolExecutor(20) as threads:
            client = mesh.sync_client("backend")

            def impatient(seed: int) -> Counter[str]:
                rng, ends = random.Random(seed), Counter[str]()
                for _ in range(40):
                    try:
                        response = client.get(rng.choice(TARGETS), timeout=rng.uniform(0.0005, 0.05))
                        ends[str(response.status_code)] += 1
                    except MeshError as error:
                        ends[type(error).__name__] += 1
                return ends

            ends = sum(threads.map(impatient, range(SEED, SEED + 20)), Counter[str]())
            print(f"seed {SEED}: {dict(ends)}")
            answers = list(threads.map(lambda _: client.get("/slow/10", timeout=5.0).status_code, range(50)))
            assert answers == [200] * 50
            assert sum(ends.values()) == 800
