"""F01, F02, F04: the config service is killed, frozen, and loses its disk, while calls go on."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshlib import Mesh, UnknownService
from process.controlled import Controlled
from process.load import Figures, load
from process.replicas import until

RPS = 100.0
CONVERGED_S = 5.0
"""F01, F04: a restarted service is followed again, and policy changes arrive, within this."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """A config service and three replicas; each test leaves them running."""
    with Controlled(tmp_path_factory.mktemp("control"), {"backend": {}, "other": {}}) as world:
        world.serve("backend", 3)
        yield world


def caller(world: Controlled, **overrides: Any) -> Mesh:
    """A process that calls, in this one."""
    import os

    os.environ["MESHLIB_TOKEN_FILE"] = str(world.folder / "caller.token")
    return Mesh("caller", world.config, **overrides)


async def under_load(
    world: Controlled, fault: Callable[[Mesh], Awaitable[None]], rps: float = RPS, before_s: float = 1.0
) -> Figures:
    """Calls go on while `fault` happens."""
    async with caller(world) as mesh:
        client = mesh.client("backend")
        assert (await client.get("/who")).status_code == 200
        async with load(lambda _: client.get("/who"), rps) as running:
            await asyncio.sleep(before_s)
            await fault(mesh)
            await asyncio.sleep(0.5)
    return running.figures


async def changed(world: Controlled, mesh: Mesh, timeout: str) -> float:
    """Edit mesh.yaml; seconds until the process works by it."""
    began = time.monotonic()
    world.edit("backend", timeout=timeout)
    while str(mesh.config.services["backend.default"].timeout) != f"{float(timeout.removesuffix('s'))}":
        assert time.monotonic() < began + 15, world.control.log()
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def test_a_change_is_in_force_and_the_mesh_is_what_has_registered(world: Controlled) -> None:
    """Three replicas are called; an edit of the watched file is in force in this process within a second."""

    async def scenario() -> float:
        async with caller(world) as mesh:
            client = mesh.client("backend")
            answers = {(await client.get("/who")).text for _ in range(60)}
            assert answers == {"backend-0", "backend-1", "backend-2"}
            return await changed(world, mesh, "7s")

    took = asyncio.run(scenario())
    print(f"an edit is in force after {took * 1e3:.0f} ms")
    assert took <= 1.5


def test_the_service_is_killed_and_comes_back(world: Controlled) -> None:
    """F01: kill -9: 0 failed calls, one line in the log; started again it is followed within 5 s."""
    took = 0.0

    async def killed(mesh: Mesh) -> None:
        nonlocal took
        world.control.kill()
        await asyncio.sleep(3.0)
        began = time.monotonic()
        await asyncio.to_thread(world.control.again)
        await asyncio.to_thread(world.control.wait_listening)
        listening = time.monotonic()
        await changed(world, mesh, "6s")
        took = time.monotonic() - listening
        print(f"it listens after {listening - began:.2f} s, is followed again after {took:.2f} s")

    figures = asyncio.run(under_load(world, killed))
    print(f"F01: {figures}")
    assert figures.failures == []
    assert took <= CONVERGED_S
    for process in world.processes[1:4]:
        assert process.log().count("what is in force stays") == 1, process.log()


def test_a_process_that_starts_during_the_outage_serves_from_its_snapshot(world: Controlled) -> None:
    """F01: with the files of its state_dir it calls and is called within 2 s; without, its call fails typed within 5 s."""
    until(lambda: (world.state / "caller.default" / "snapshot.json").exists(), "the snapshot of the caller")
    world.control.kill()
    try:
        began = time.monotonic()
        with caller(world) as mesh:
            assert mesh.sync_client("backend").get("/who").status_code == 200
        took = time.monotonic() - began
        began = time.monotonic()
        with caller(world, state_dir=str(world.folder / "empty")) as mesh, pytest.raises(UnknownService) as failure:
            mesh.sync_client("backend").get("/who")
        typed = time.monotonic() - began
        print(f"F01: from the snapshot after {took:.2f} s; without one {typed:.2f} s: {failure.value}")
        assert took <= 2.0
        assert typed <= 5.0
        assert world.url in str(failure.value)
    finally:
        world.control.again()
        world.control.wait_listening()


def test_a_server_that_finds_no_config_service_gives_up(world: Controlled) -> None:
    """`mesh.run` keeps trying for `control.start_timeout`, then exits 2 and names the URL."""
    world.control.kill()
    try:
        lost = world.folder / "lost.yaml"
        lost.write_text(
            f"version: 1\nmesh: test\ncontrol: {{urls: ['{world.url}'], start_timeout: 1s}}\nstate_dir: none\n"
        )
        variables = {**world.environment_of("backend"), "MESHLIB_CONFIG": str(lost)}
        process = world.run(Path(__file__).parent / "apps" / "backend.py", "lost", **variables)
        assert process.wait() == 2
        assert world.url in process.log()
        assert "Traceback" not in process.log()
    finally:
        world.control.again()
        world.control.wait_listening()


def test_the_service_is_frozen(world: Controlled) -> None:
    """F02: SIGSTOP: 0 failed calls; a service never called before fails typed, within its wait."""
    waited = 0.0

    async def frozen(mesh: Mesh) -> None:
        nonlocal waited
        world.control.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(1.0)
            began = time.monotonic()
            with pytest.raises(UnknownService):
                await mesh.client("never-called").get("/")
            waited = time.monotonic() - began
            await asyncio.sleep(2.0)
        finally:
            world.control.signal(signal.SIGCONT)

    figures = asyncio.run(under_load(world, frozen))
    print(f"F02: {figures}; an unknown service after {waited:.2f} s")
    assert figures.failures == []
    assert waited <= 2.5


@pytest.mark.parametrize("loss", ["deleted", "restored"])
def test_the_service_loses_its_disk(world: Controlled, loss: str) -> None:
    """F04: the store is deleted, or an old backup restored: 0 failed calls, every instance back within 5 s."""
    store = world.state / "control" / "store.sqlite"
    backup = {path.name: path.read_bytes() for path in store.parent.glob("store.sqlite*")}
    took = 0.0

    async def lost(mesh: Mesh) -> None:
        nonlocal took
        await changed(world, mesh, "5s")
        world.control.kill()
        for path in store.parent.glob("store.sqlite*"):
            path.unlink()
        if loss == "restored":
            for name, content in backup.items():
                (store.parent / name).write_bytes(content)
        await asyncio.to_thread(world.control.again)
        await asyncio.to_thread(world.control.wait_listening)
        began = time.monotonic()
        await asyncio.to_thread(until, lambda: ready(world) == 3, "all are registered again")
        took = time.monotonic() - began
        await changed(world, mesh, "4s")

    figures = asyncio.run(under_load(world, lost))
    print(f"F04 {loss}: {figures}; registered again after {took:.2f} s")
    assert figures.failures == []
    assert took <= CONVERGED_S


def ready(world: Controlled) -> int:
    """Instances of backend that the registry calls ready."""
    services = {service["name"]: service for service in world.ask("GET", "/v1/services")["services"]}
    return sum(i["state"] == "ready" for i in services.get("backend.default", {}).get("shown", ()))
