"""The scenarios of tests/process in full length, with times. A time is judged against a baseline of the same run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from process import test_cancellation, test_outages, test_reload, test_restarts, test_rotation
from process.load import Figures, load
from process.replicas import World

from meshlib import Mesh
from meshlib.identity.dev import rotate_leaves, rotate_root

RPS = 200.0
IN_FORCE_S = 1.0
"""An edit is in force everywhere within this."""


def restarting(folder: Path) -> World:
    return World(folder, {"backend": {}}, defaults=test_restarts.DEFAULTS)


async def calm(world: World, seconds: float, rps: float = RPS) -> Figures:
    """The baseline: the same load, nothing happens."""
    async with Mesh("caller", world.config) as mesh:
        client = mesh.client("backend")
        async with load(lambda _: client.get("/who"), rps) as running:
            await asyncio.sleep(seconds)
    return running.figures


def test_ten_rolling_restarts(tmp_path: Path) -> None:
    """F16: ten SIGTERMs at 200 calls a second: 0 failed, POSTs included, each executed once."""
    with restarting(tmp_path) as world:
        replicas = world.serve("backend", 5)
        figures = asyncio.run(test_restarts.rolling_restart(world, replicas * 2, RPS))
        print(f"F16, 10 restarts: {figures}")
        assert figures.failures == []
        posts = [f"r{number}" for number in range(1, len(figures.outcomes), 2)]
        executed = world.executed()
        assert {order: executed.count(order) for order in posts} == dict.fromkeys(posts, 1)


def test_kills_one_after_the_other(tmp_path: Path) -> None:
    """F17: five SIGKILLs at 200 calls a second: 0 failed; out of rotation within 1 s."""
    with restarting(tmp_path) as world:
        replicas = world.serve("backend", 5)
        baseline = asyncio.run(calm(world, 5.0))
        print(f"F17, baseline: {baseline}")
        for victim in replicas:
            figures, died = asyncio.run(test_restarts.killed(world, victim, RPS, 2.0, 5.0))
            print(f"F17, {victim.name} killed: {figures}; after: {figures.after(died)}")
            assert figures.failures == []
            assert victim.name not in figures.after(died + 1.0).answers
            assert figures.after(died + 1.0).retried <= 10
            victim.again()
            victim.wait_listening()


def test_the_storm_of_cancellations(tmp_path: Path) -> None:
    """F34: five seconds, five seeds: nothing is left of it, and every call after it succeeds."""
    with World(tmp_path, {"backend": test_cancellation.POLICY}) as world:
        world.serve("backend")
        for seed in range(5):
            ends, before, after = asyncio.run(test_cancellation.aftermath(world, 5.0, seed))
            test_cancellation.check(ends, before, after)


def test_edits_are_in_force_within_a_second(tmp_path: Path) -> None:
    """Twenty edits under 200 calls a second, in four processes: each within 1 s, 0 failed."""
    with World(tmp_path, {"backend": {"timeout": "5s"}}) as world:
        servers = world.serve("backend", 3)

        def edit() -> list[float]:
            took = []
            for number in range(20):
                world.document["services"]["backend"]["timeout"] = f"{2000 + number}ms"
                took.append(test_reload.edited(world, servers, world.write))
            return took

        took, failures, calls = asyncio.run(test_reload.under_load(world, edit, RPS))
        print(f"20 edits, {calls} calls: slowest in force after {max(took):.2f} s, median {sorted(took)[10]:.2f} s")
        assert failures == []
        assert max(took) <= IN_FORCE_S


def test_certificates_rotate_for_a_minute(tmp_path: Path) -> None:
    """F13: leaves and roots replaced over and over at 200 calls a second: 0 failed, shown within 2 s."""
    with World(tmp_path, {"backend": test_rotation.CHURN}) as world:
        servers = world.serve("backend", 3)
        state = tmp_path / ".meshlib"
        for name, rotate, rounds in (("leaves", rotate_leaves, 20), ("roots", rotate_root, 5)):
            figures, took = asyncio.run(
                test_rotation.rotated(world, servers, lambda rotate=rotate: rotate(state), rounds, RPS)
            )
            print(f"F13, {rounds} times {name}: {figures}; slowest shown after {max(took):.2f} s")
            assert figures.failures == []
            assert max(took) <= (2.0 if name == "leaves" else 8.0)


@pytest.mark.parametrize("balancer", ["least_request", "peak_ewma"])
def test_the_attractor(tmp_path: Path, balancer: str) -> None:
    """F10: 503 in no time, 20 s at 200 calls a second: at most 10 errors until ejected, at most 1 % afterwards."""
    with World(tmp_path, {"backend": {}}) as world:
        world.serve("backend", 4)
        world.serve("backend", MODE="broken")
        figures = asyncio.run(test_outages.attracted(world, balancer, 0, RPS, 20.0))
        print(f"F10, {balancer}: {figures}")
        assert len(figures.failures) <= 10


def test_everything_dies(tmp_path: Path) -> None:
    """F08: refused calls take less than 50 ms at the median; the first success within 2 s of one's return."""
    with World(tmp_path, {"backend": {}}) as world:
        replicas = world.serve("backend", 5)
        took, back_s = asyncio.run(test_outages.outage(world, replicas, 200))
        print(f"F08: a refused call took {sorted(took)[100] * 1e3:.1f} ms (median), {max(took) * 1e3:.0f} ms at most;"
              f" first success {back_s:.2f} s after the return")  # fmt: skip
        assert sorted(took)[100] < 0.05
        assert back_s <= 2.0


def test_five_hundred_dripping_connections(tmp_path: Path) -> None:
    """F20: 500 connections that send a byte of their head now and then: honest calls go on, p99 at most twice as long."""
    with World(tmp_path, {"backend": {}}, defaults={"mtls": "disabled"}) as world:
        (server,) = world.serve("backend")
        host, _, port = server.address.rpartition(":")
        baseline = asyncio.run(calm(world, 8.0, 100))

        async def drip(closed: list[float]) -> None:
            began = time.monotonic()
            reader, writer = await asyncio.open_connection(host, int(port))
            with contextlib.suppress(OSError):
                for byte in b"GET /who HTTP/1.1\r\nhost: " + b"a" * 1000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1), 1.0)
                        break
            closed.append(time.monotonic() - began)
            writer.close()

        async def attack() -> tuple[Figures, list[float]]:
            closed: list[float] = []
            attackers = [asyncio.create_task(drip(closed)) for _ in range(500)]
            figures = await calm(world, 12.0, 100)
            await asyncio.wait(attackers, timeout=15)
            return figures, closed

        figures, closed = asyncio.run(attack())
        print(f"F20: baseline {baseline}; under attack {figures}; {len(closed)} dripping ones closed after "
              f"{min(closed):.1f} to {max(closed):.1f} s")  # fmt: skip
        assert figures.failures == []
        assert len(closed) == 500
        assert max(closed) <= 13.0
        assert figures.quantile_s(0.99) <= max(2 * baseline.quantile_s(0.99), 0.05)
