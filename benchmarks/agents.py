"""A process with several agents, each of a mesh of its own: they tell when an edited policy is in force.

Each has its own follower, state_dir and instance, as in a process of its own; they share an interpreter because a
hundred of those are more than a small machine has memory and cores for.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from meshlib import Mesh

from .config_service import FOLLOWED

READY_WITHIN_S = 30.0
CALLED = ("inventory", "app-1", "app-2")
"""What each agent follows, besides its own service."""


class InForce(NamedTuple):
    """The policy of FOLLOWED in agent `agent`, by its timeout, since the monotonic time `at`."""

    agent: int
    timeout_s: float
    at: float


class AgentProcesses:
    """`count` agents of service `app-0` in `processes` processes; every change is told to `told`."""

    def __init__(self, count: int, processes: int, mesh_yaml: Path, token_file: Path, state: Path) -> None:
        self._agents = [range(count)[start::processes] for start in range(processes)]
        self._arguments = str(mesh_yaml), str(token_file), str(state)
        self._spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes: list[Any] = []

    def __enter__(self) -> AgentProcesses:
        for agents in self._agents:
            pipe, theirs = self._spawn.Pipe()
            process = self._spawn.Process(target=_run, args=(theirs, agents, *self._arguments), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(pipe)
            self._processes.append(process)
        return self

    def __exit__(self, *_exc: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def until(self, agents: Iterable[int], timeout_s: float, within_s: float) -> dict[int, float]:
        """When this timeout was in force in each of `agents`; those where it is not within `within_s` are missing."""
        missing, found, give_up = set(agents), {}, time.monotonic() + within_s
        while missing and (left_s := give_up - time.monotonic()) > 0:
            for pipe in wait(self._pipes, left_s):
                told = _received(pipe)
                if told.timeout_s == timeout_s and told.agent in missing:
                    missing.remove(told.agent)
                    found[told.agent] = told.at
        return found


def _received(pipe: Any) -> InForce:
    try:
        told = pipe.recv()
    except EOFError:
        raise RuntimeError("a process of agents has ended; see above") from None
    if isinstance(told, Exception):
        raise told
    assert isinstance(told, InForce)
    return told


def _run(pipe: Connection, agents: Iterable[int], mesh_yaml: str, token_file: str, state: str) -> None:
    os.environ["MESHLIB_TOKEN_FILE"] = token_file
    meshes = [_agent(pipe, agent, mesh_yaml, f"{state}/{agent}") for agent in agents]
    try:
        for mesh in meshes:
            mesh.start()
        for mesh in meshes:
            mesh.wait_ready(READY_WITHIN_S)
        pipe.recv()
    except EOFError:
        os._exit(0)  # who started us is gone, or wants us to be
    except Exception as error:
        pipe.send(RuntimeError(f"agents {agents}: {error}"))


def _agent(pipe: Connection, agent: int, mesh_yaml: str, state_dir: str) -> Mesh:
    mesh = Mesh("app-0", mesh_yaml, state_dir=state_dir)
    for service in CALLED:
        mesh.sync_client(service)
    engine = mesh._engine
    put_in_force = engine.put_in_force

    def observed(*args: Any, **options: Any) -> None:
        put_in_force(*args, **options)
        at, services = time.monotonic(), engine.policy.config.services
        if FOLLOWED in services:
            pipe.send(InForce(agent, float(services[FOLLOWED].timeout), at))

    engine.put_in_force = observed  # type: ignore[method-assign]
    return mesh
