"""Injected faults: their share, their effects, their end."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from meshlib.testing import FakeMesh, simulate

from .policies import one_service

ONCE = one_service(retries={"max_retries": 0})


def test_a_share_of_the_attempts_is_aborted_and_the_seed_says_which():
    """10 % of 2000 within 3 σ; the same seed strikes the same; what was aborted never arrived."""

    def struck(seed: int) -> list[int]:
        mesh = FakeMesh(ONCE, seed=seed)
        fault = mesh.fault("inventory", abort=500, percent=10)
        statuses = [mesh.sync_client("inventory").get("/").status_code for _ in range(2000)]
        assert fault.injected == statuses.count(500) == 2000 - mesh.service("inventory").count
        return statuses

    first = struck(3)
    assert abs(first.count(500) - 200) <= 3 * (2000 * 0.1 * 0.9) ** 0.5
    assert struck(3) == first
    assert struck(4) != first


def test_threads_are_counted_exactly():
    """Every attempt is struck or arrives, whichever thread made it."""
    mesh = FakeMesh(ONCE)
    fault = mesh.fault("inventory", abort=500, percent=50)
    client = mesh.sync_client("inventory")
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda n: client.get(f"/{n}").status_code, range(400)))
    assert fault.injected == statuses.count(500) == 400 - mesh.service("inventory").count


def test_a_refused_attempt_is_retried_like_a_real_one():
    """It is on the wire, below retries: the call that met it ends well."""
    mesh = FakeMesh(one_service(endpoints=[{"static": ["127.0.0.1:1", "127.0.0.1:2"]}]))
    with mesh.fault("inventory", refuse=True, percent=50) as fault:
        while not fault.injected:
            assert mesh.sync_client("inventory").get("/").status_code == 200


def test_a_fault_ends_with_its_block_and_removing_twice_is_fine():
    """And another fault stays."""
    mesh = FakeMesh(ONCE)
    client = mesh.sync_client("inventory")
    with mesh.fault("inventory", abort=500) as fault:
        assert client.get("/").status_code == 500
    assert client.get("/").status_code == 200
    fault.remove()
    assert client.get("/").status_code == 200


def test_a_delay_takes_its_time_and_no_longer_than_the_call():
    """In virtual time: 0.3 s, then the deadline of 1 s."""

    async def main(sim) -> tuple[float, float]:
        mesh = FakeMesh(one_service(timeout="1s", retries={"max_retries": 0}))
        with mesh.fault("inventory", delay=0.3):
            await mesh.client("inventory").get("/")
        first = sim.now()
        mesh.fault("inventory", delay=5)
        with pytest.raises(httpx.ReadTimeout):
            await mesh.client("inventory").get("/")
        return first, sim.now() - first

    assert simulate(main).result == pytest.approx((0.3, 1.0))


def test_a_cancelled_call_leaves_a_delay_at_once():
    """Cancellation goes through the fake as through the network."""
    mesh = FakeMesh(ONCE)
    mesh.fault("inventory", delay=8)

    async def main() -> None:
        call = asyncio.create_task(mesh.client("inventory").get("/"))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    assert 'class="cancelled"} 1' in mesh.metrics


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "a fault has an effect"),
        ({"abort": 503, "refuse": True}, "a fault has an effect"),
        ({"abort": 399}, "abort must be a status"),
        ({"abort": 600}, "abort must be a status"),
        ({"delay": -1}, "delay must be"),
        ({"abort": 503, "percent": 0}, "percent must be above 0"),
        ({"abort": 503, "percent": 101}, "percent must be above 0"),
    ],
)
def test_a_fault_that_means_nothing_is_refused(options, words: str):
    """ValueError says what a fault is."""
    with pytest.raises(ValueError, match=words):
        FakeMesh(ONCE).fault("inventory", **options)
