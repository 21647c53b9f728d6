"""Hot reload: an edit is in force in every process, a bad one in none, and no call notices either."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshlib import Mesh, load_config
from process.load import load
from process.replicas import Process, World, until

VERSION = 'meshlib_policy_version{resource="mesh.yaml"}'
REJECTED = 'meshlib_policy_rejected_total{resource="mesh.yaml"}'
SERVERS = 3


def versions(processes: list[Process]) -> set[float]:
    """What each process says that it has in force."""
    return {process.metric(VERSION) for process in processes}


def rejections(processes: list[Process]) -> set[float]:
    """How many policies each process has refused."""
    return {process.metric(REJECTED) for process in processes}


async def under_load(world: World, edit: Callable[[], Any], rps: float = 100.0) -> tuple[Any, list[str], int]:
    """What `edit` (on a thread) returns, made in the midst of calls; the failures, and how many calls there were.

    The caller is the fourth process: it must have the policy of the file in force at the end, too.
    """
    async with Mesh("caller", world.config) as mesh:
        client = mesh.client("backend")
        async with load(lambda _: client.get("/who"), rps) as running:
            await asyncio.sleep(0.3)
            made = await asyncio.to_thread(edit)
            await asyncio.sleep(0.3)
        in_force = mesh.config.version_number
    print(running.figures)
    if made is not None:
        assert in_force == load_config(world.config).version_number
    return made, running.figures.failures, len(running.figures.outcomes)


def edited(world: World, servers: list[Process], edit: Callable[[], None]) -> float:
    """Seconds from an edit to its being in force in all `servers`."""
    before = versions(servers)
    began = time.monotonic()
    edit()
    wanted = float(load_config(world.config).version_number)
    assert before != {wanted}
    until(lambda: versions(servers) == {wanted}, "the edit is in force everywhere")
    return time.monotonic() - began


def test_an_edit_is_in_force_in_every_process(tmp_path: Path) -> None:
    """mesh.yaml, then an endpoint file, edited under load: 4 processes have the new version, 0 calls fail."""
    with World(tmp_path, {"backend": {"timeout": "5s"}}) as world:
        servers = world.serve("backend", SERVERS)

        def edit() -> list[float]:
            world.document["services"]["backend"]["timeout"] = "4s"
            took = [edited(world, servers, world.write)]
            took += [
                edited(world, servers, lambda some=some: world.endpoints("backend", [s.address for s in some]))
                for some in (servers[:1], servers[1:], servers)
            ]
            return took

        took, failures, calls = asyncio.run(under_load(world, edit))
        print(f"4 edits under load, {calls} calls: in force everywhere after {', '.join(f'{s:.2f} s' for s in took)}")
        assert failures == []
        assert calls > 50


BROKEN = {
    "unknown field": ('{\n "version": 1,\n "mesh": "test",\n "service": {}\n}\n', "mesh.yaml:4:"),
    "no YAML": ("version: 1\nmesh: test\nservices: {backend: [\n", "mesh.yaml:"),
    "bad duration": ("version: 1\nmesh: test\ndefaults:\n  timeout: soon\n", "mesh.yaml:4:"),
    "empty": ("", "mesh.yaml:"),
}


def test_a_broken_edit_changes_nothing(tmp_path: Path) -> None:
    """Each process counts it once, logs where the mistake is, and goes on with the last good policy; a good edit then works."""
    with World(tmp_path, {"backend": {}}) as world:
        servers = world.serve("backend", 2)
        good = _version(world)
        until(lambda: versions(servers) == {good}, "the endpoints are known everywhere")

        def edit() -> None:
            for count, (text, _) in enumerate(BROKEN.values(), 1):
                world.config.write_text(text)
                until(lambda count=count: rejections(servers) == {count}, "every process has refused it")
                assert versions(servers) == {good}

        _, failures, _ = asyncio.run(under_load(world, edit))
        assert failures == []
        for server in servers:
            assert server.log().count("stays in force") == len(BROKEN)
            for how, (_, place) in BROKEN.items():
                assert place in server.log(), how
        world.document["defaults"] = {"timeout": "3s"}
        edited(world, servers, world.write)
        assert rejections(servers) == {len(BROKEN)}


def test_a_file_caught_half_written_does_no_harm(tmp_path: Path) -> None:
    """Truncated, left so for a while, then written in two goes: no call fails, and the whole file is in force at the end.

    Truncating the endpoint file in the same way must not take the endpoints away.
    """
    with World(tmp_path, {"backend": {}}) as world:
        servers = world.serve("backend", 2)

        def slowly(path: Path, text: str) -> None:
            with path.open("w") as file:
                time.sleep(0.5)
                file.write(text[: len(text) // 2])
                file.flush()
                time.sleep(0.5)
                file.write(text[len(text) // 2 :])

        def edit() -> None:
            world.document["defaults"] = {"timeout": "7s"}
            slowly(world.config, json.dumps(world.document))
            slowly(tmp_path / "backend.endpoints", json.dumps([f"{server.address}" for server in reversed(servers)]))
            wanted = _version(world)
            until(lambda: versions(servers) == {wanted}, "the whole file is in force")

        _, failures, calls = asyncio.run(under_load(world, edit))
        assert failures == []
        assert calls > 150


def test_processes_that_read_the_same_say_the_same(tmp_path: Path) -> None:
    """The version is made from the content: equal everywhere, also in a process that starts later."""
    with World(tmp_path, {"backend": {}}) as world:
        servers = world.serve("backend", 2)
        until(lambda: versions(servers) == {_version(world)}, "both have the policy of the file")
        assert not math.isnan(servers[0].metric(REJECTED))
        with Mesh("caller", world.config) as mesh:
            assert float(mesh.config.version_number) == _version(world)


def _version(world: World) -> float:
    return float(load_config(world.config).version_number)
