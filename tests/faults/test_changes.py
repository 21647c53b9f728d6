"""F13, hot reload, F33, F34 in full length: what the promises say about times."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from process.replicas import World
from process.test_cancellation import POLICY, SEED, aftermath, check
from process.test_exits import PROGRAMS, RARE, ends
from process.test_reload import SERVERS, edited, under_load
from process.test_rotation import CHURN, rotated

from meshlib.identity.dev import rotate_leaves, rotate_root

IN_FORCE_S = 1.0
EXITS_S = 2.0


def test_twenty_edits_are_in_force_within_a_second(tmp_path: Path) -> None:
    """Each of twenty edits, of mesh.yaml and of an endpoint file by turns: in force in 4 processes in 1 s, 0 failed."""
    with World(tmp_path, {"backend": {"timeout": "5s"}}) as world:
        servers = world.serve("backend", SERVERS)

        def edit() -> list[float]:
            took = []
            for number in range(10):
                world.document["services"]["backend"]["timeout"] = f"{6 + number}s"
                took.append(edited(world, servers, world.write))
                some = random.Random(number).sample(servers, 1 + number % 2)
                took.append(
                    edited(world, servers, lambda some=some: world.endpoints("backend", [s.address for s in some]))
                )
                edited(world, servers, lambda: world.endpoints("backend", [s.address for s in servers]))
            return took

        took, failures, calls = asyncio.run(under_load(world, edit, rps=200))
        print(f"hot reload: {calls} calls, 30 edits, longest {max(took):.2f} s")
        assert failures == []
        assert max(took) <= IN_FORCE_S


def test_ten_rotations_of_leaves_and_five_of_the_root(tmp_path: Path) -> None:
    """F13: connections that live 300 ms, 200 calls a second: 0 failed; new leaves are shown at most 1 s after the order."""
    with World(tmp_path, {"backend": CHURN}) as world:
        servers = world.serve("backend", 3)
        state = tmp_path / ".meshlib"
        figures, took = asyncio.run(rotated(world, servers, lambda: rotate_leaves(state), 10, rps=200))
        print(f"F13 leaves: {figures}; shown after at most {max(took):.2f} s")
        assert figures.failures == []
        assert max(took) <= 1.0
        world.forget()
        figures, took = asyncio.run(rotated(world, servers, lambda: rotate_root(state), 5, rps=200))
        print(f"F13 root: {figures}; shown after at most {max(took):.2f} s")
        assert figures.failures == []


def test_ten_seconds_of_cancellations(tmp_path: Path) -> None:
    """F34: 40 callers over 5 connections, three seeds: every later call succeeds, nothing is left open."""
    for seed in (SEED, SEED + 1, SEED + 2):
        with World(tmp_path, {"backend": POLICY}) as world:
            world.serve("backend")
            print(f"F34 seed {seed}")
            check(*asyncio.run(aftermath(world, 10.0, seed)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_soon(tmp_path: Path, name: str) -> None:
    """F33: from its start to its end, imports included, in no more than two seconds over one that does nothing."""
    assert set(RARE) < set(PROGRAMS)
    with World(tmp_path, {"backend": {}, "front": {}}) as world:
        world.serve("backend")
        nothing_s = ends(world, "never started")
        took_s = ends(world, name)
        print(f"F33 {name}: {took_s:.2f} s, {nothing_s:.2f} s without a call")
        assert took_s <= nothing_s + EXITS_S
