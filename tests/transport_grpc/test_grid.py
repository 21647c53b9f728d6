"""Generated stubs over mTLS: four kinds of call, and what can happen in the middle of one, on asyncio and on threads.

The server is a process; a call waits in it until it is told to go on, so that what happens is in the middle.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshlib import Mesh

from .test_secure_channel import strict

pytestmark = pytest.mark.process

KINDS = ("Unary", "Serve", "Collect", "Talk")
EVENTS = ("deadline", "cancel", "killed", "rotated")
CODES = {
    "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
    "cancel": grpc.StatusCode.CANCELLED,
    "killed": grpc.StatusCode.UNAVAILABLE,
}
PATIENCE_S = 20.0
TESTS = Path(__file__).resolve().parents[1]

messages, services = grpc.protos_and_services("transport_grpc/grid.proto")  # type: ignore[attr-defined]
Note = messages.Note


class Server:
    """The process, at one port for good."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.config = strict(folder, self.port)
        file = folder / "grid.yaml"
        file.write_text(json.dumps(self.config))
        path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        self._environ = {**os.environ, "GRID_MESH": str(file), "GRID_PORT": str(self.port), "PYTHONPATH": path}
        self.start()

    def start(self) -> None:
        """Until it listens."""
        command = [sys.executable, "-m", "transport_grpc.grid_server"]
        self._process = subprocess.Popen(command, env=self._environ, cwd=TESTS, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            assert self._process.poll() is None
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server does not listen")

    def kill(self) -> None:
        """At once, by SIGKILL."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all cells; a cell that kills it starts it again."""
    made = Server(tmp_path_factory.mktemp("grid"))
    yield made
    made.kill()


def connections(mesh: Mesh, kind: str) -> list[Any]:
    """The real channels in use."""
    scope = mesh._engine.scope_of_loop() if kind == "aio" else mesh._engine.scope_of_threads()
    return list(scope.grpc.connections._open.values())


def rotate(mesh: Mesh) -> tuple[int, int]:
    """A new leaf of the mesh's authority, as when it is time to renew. The serials before and after."""
    credentials = mesh._engine.credentials
    assert credentials is not None
    before = credentials.svid.serial
    credentials._source._renew_at = 0.0  # type: ignore[attr-defined]
    credentials.refresh()
    assert credentials.svid.serial != before
    return before, credentials.svid.serial


def is_open(port: int, server: int) -> bool:
    """Is there a TCP connection from `port` to the server, as the kernel says? grpc's sockets may be of IPv6."""
    tables = [Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6")]
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    ends = [f"{port:04X}", f"{server:04X}", "01"]
    return any([row[1].rpartition(":")[2], row[2].rpartition(":")[2], row[3]] == ends for row in rows)


async def aio_closes(server: Server, caller: str) -> None:
    """The connection of `caller` is closed, soon and not by the garbage collector."""
    async with asyncio.timeout(PATIENCE_S):
        while is_open(int(caller.split()[1]), server.port):
            await asyncio.sleep(0.02)


def blocking_closes(server: Server, caller: str) -> None:
    """The same, on threads."""
    give_up = time.monotonic() + PATIENCE_S
    while is_open(int(caller.split()[1]), server.port):
        assert time.monotonic() < give_up
        time.sleep(0.02)


def check_rotated(serials: tuple[int, int], waiting: str, now: str, server: Server) -> None:
    """What the server saw: the old leaf by the call that waits, the new one by the next, on two connections."""
    assert (int(waiting.split()[0]), int(now.split()[0])) == serials
    assert waiting.split()[1] != now.split()[1]
    assert is_open(int(waiting.split()[1]), server.port) or not Path("/proc/self/net/tcp").exists()


async def aio_cell(server: Server, kind: str, event: str) -> None:
    """One cell, on asyncio."""
    async with Mesh("orders", server.config) as mesh:
        stub, name = services.GridStub(mesh.channel("echo")), f"aio-{kind}-{event}"

        async def until(state: str) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while (await stub.Unary(Note(text=f"tell {name}"))).text != state:
                    await asyncio.sleep(0.02)

        timeout = 1.0 if event == "deadline" else PATIENCE_S
        note = Note(text=f"wait {name}")
        if kind in ("Unary", "Serve"):
            call = getattr(stub, kind)(note, timeout=timeout)
        else:
            call = getattr(stub, kind)(timeout=timeout)
            await call.write(note)
        if kind in ("Serve", "Talk"):
            assert (await call.read()).text == "first"
        await until("began")
        (old,) = connections(mesh, "aio")
        last = call.read() if kind in ("Serve", "Talk") else call
        if event == "rotated":
            serials = rotate(mesh)
            now = (await stub.Unary(Note(text="who me"))).text
            before = (await stub.Unary(Note(text=f"who {name}"))).text
            check_rotated(serials, before, now, server)
            (new,) = connections(mesh, "aio")
            assert (new is not old, old.inflight) == (True, 1)
            await stub.Unary(Note(text=f"go {name}"))
            assert (await last).text == "done"
            assert await call.code() is grpc.StatusCode.OK
        else:
            if event == "cancel":
                call.cancel()
            if event == "killed":
                server.kill()
            with pytest.raises(asyncio.CancelledError if event == "cancel" else grpc.aio.AioRpcError):
                await last
            assert await call.code() is CODES[event]
            if event == "killed":
                server.start()
            await until("" if event == "killed" else "ended")
        assert old.inflight == 0
        if event == "rotated":
            del call, last, old
            await aio_closes(server, before)


class Asked:
    """The requests of a call: one, and then nothing more until `close`."""

    def __init__(self, note: Any) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        self._queue.put(note)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue.get, None)

    def close(self) -> None:
        """There are no more."""
        self._queue.put(None)


def blocking_cell(server: Server, kind: str, event: str) -> None:
    """One cell, on threads."""
    with Mesh("orders", server.config) as mesh:
        stub, name = services.GridStub(mesh.sync_channel("echo")), f"sync-{kind}-{event}"

        def until(state: str) -> None:
            give_up = time.monotonic() + PATIENCE_S
            while stub.Unary(Note(text=f"tell {name}")).text != state:
                assert time.monotonic() < give_up
                time.sleep(0.02)

        timeout = 1.0 if event == "deadline" else PATIENCE_S
        note = Note(text=f"wait {name}")
        asked = Asked(note)
        given = note if kind in ("Unary", "Serve") else iter(asked)
        streams = kind in ("Serve", "Talk")
        call = getattr(stub, kind)(given, timeout=timeout) if streams else getattr(stub, kind).future(given, timeout)
        if streams:
            assert next(call).text == "first"
        until("began")
        (old,) = connections(mesh, "sync")
        last = (lambda: next(call)) if streams else call.result
        if event == "rotated":
            serials = rotate(mesh)
            now = stub.Unary(Note(text="who me")).text
            before = stub.Unary(Note(text=f"who {name}")).text
            check_rotated(serials, before, now, server)
            (new,) = connections(mesh, "sync")
            assert (new is not old, old.inflight) == (True, 1)
            stub.Unary(Note(text=f"go {name}"))
            assert last().text == "done"
            assert call.code() is grpc.StatusCode.OK
        else:
            if event == "cancel":
                call.cancel()
            if event == "killed":
                server.kill()
            with pytest.raises(grpc.FutureCancelledError if event == "cancel" and not streams else grpc.RpcError):
                last()
            assert call.code() is CODES[event]
            if event == "killed":
                server.start()
            until("" if event == "killed" else "ended")
        asked.close()
        give_up = time.monotonic() + PATIENCE_S
        while old.inflight and time.monotonic() < give_up:  # a stream's end is told on grpc's thread
            time.sleep(0.02)
        assert old.inflight == 0
        if event == "rotated":
            del call, last, old
            blocking_closes(server, before)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", ["aio", "sync"])
def test_grid(server: Server, world: str, kind: str, event: str) -> None:
    """The status at the caller, the end at the server, and nothing left on the connection; nobody collects garbage."""
    gc.disable()
    try:
        if world == "aio":
            asyncio.run(aio_cell(server, kind, event))
        else:
            blocking_cell(server, kind, event)
    finally:
        gc.enable()
