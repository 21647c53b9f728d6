"""Processes that serve gRPC through `mesh.run`: registered, asked over mTLS, restarted under load, ended by a signal."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import grpc
import pytest

from meshlib import Mesh
from process.controlled import Controlled
from process.replicas import APPS

RPC = APPS / "rpc.py"


def test_a_rolling_restart_costs_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica on aio and one on threads, found in the registry; SIGTERM of each in turn under calls that are not
    idempotent: none fails, each process ends with 0, and both answer again.
    """
    with Controlled(tmp_path, {"rpc": {}}) as world:
        for kind in ("aio", "threads"):
            world.serve("rpc", script=RPC, KIND=kind)
        for name, value in world.environment_of("caller").items():
            monkeypatch.setenv(name, value)
        answers, failures = asyncio.run(restarts(world))
        print(f"rolling restart: {dict(answers)}, {len(failures)} failures")
        assert failures == []
        assert set(answers) == {"rpc-0", "rpc-1"}
        for process in world.processes:
            assert "Traceback" not in process.log(), process.log()


async def restarts(world: Controlled) -> tuple[Counter[str], list[grpc.RpcError]]:
    """What each call was answered with while the replicas were restarted."""
    answers, failures, going = Counter[str](), list[grpc.RpcError](), True
    async with Mesh("caller", world.config) as mesh:
        who = mesh.channel("rpc").unary_unary("/test.Names/Who")

        async def load() -> None:
            while going:
                try:
                    answers[(await who(b"")).decode()] += 1
                except grpc.RpcError as error:
                    failures.append(error)
                await asyncio.sleep(0.005)

        callers = [asyncio.create_task(load()) for _ in range(4)]
        for replica in [process for process in world.processes if process.name.startswith("rpc-")]:
            await asyncio.sleep(0.3)
            replica.signal(signal.SIGTERM)
            assert await asyncio.to_thread(replica.wait) == 0, replica.log()
            replica.again()
            await asyncio.to_thread(replica.wait_listening)
            before = answers[replica.name]
            async with asyncio.timeout(20):
                while answers[replica.name] == before:
                    await asyncio.sleep(0.05)
        going = False
        await asyncio.gather(*callers)
    return answers, failures
