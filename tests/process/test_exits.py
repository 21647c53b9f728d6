"""F33: however a program with a mesh ends, its exit code is its own, stderr is clean, and it does not take long.

Run with `-X dev`, and warnings of resources are errors of the test: whatever the interpreter has to say is on stderr.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

import pytest

from meshlib import Mesh
from process.replicas import World

ENDS_WITHIN_S = 10.0
"""Only so that a hang is an error; `tests/faults` looks at the promised two seconds."""
_COMPLAINT = re.compile(
    r"Traceback|was destroyed|never awaited|never retrieved|ResourceWarning|Exception ignored|unraisable"
)

ASYNC = """
import asyncio, sys
from meshlib import Mesh
mesh = Mesh("caller")
async def main():
    assert (await mesh.client("backend").get("/echo/x")).text == "x"
"""
SYNC = """
import sys
from meshlib import Mesh
mesh = Mesh("caller")
assert mesh.sync_client("backend").get("/echo/x").text == "x"
"""
SERVER = """
import os, sys, threading, time, asyncio
from meshlib import Mesh
mesh = Mesh("front")
@mesh.get("/ask")
async def ask():
    return (await mesh.client("backend").get("/echo/x")).text
"""

PROGRAMS = {
    "asyncio.run, closed": (ASYNC + "    await mesh.aclose()\nasyncio.run(main())\n", 0),
    "asyncio.run, with": (
        ASYNC + "async def all():\n    async with mesh:\n        await main()\nasyncio.run(all())",
        0,
    ),
    "asyncio.run, never closed": (ASYNC + "asyncio.run(main())\n", 0),
    "asyncio.run, closed after the loop": (ASYNC + "asyncio.run(main())\nmesh.close()\n", 0),
    "asyncio.run twice": (ASYNC + "asyncio.run(main())\nasyncio.run(main())\n", 0),
    "sys.exit in a task": (ASYNC + "    sys.exit(7)\nasyncio.run(main())\n", 7),
    "calls in flight at the end": (
        ASYNC + "    tasks = [asyncio.create_task(mesh.client('backend').get('/slow/5000')) for _ in range(5)]\n"
        "    await asyncio.sleep(0.1)\nasyncio.run(main())\n",
        0,
    ),
    "a stream left open": (
        ASYNC + "    stream = mesh.client('backend').stream('GET', '/pieces/100')\n"
        "    response = await stream.__aenter__()\n    await anext(response.aiter_raw())\nasyncio.run(main())\n",
        0,
    ),
    "sync, closed": (SYNC + "mesh.close()\n", 0),
    "sync, never closed": (SYNC, 0),
    "sync, sys.exit": (SYNC + "sys.exit(5)\n", 5),
    "a thread that calls for ever": (
        SYNC + "import threading\n"
        "def forever():\n    while True:\n        mesh.sync_client('backend').get('/echo/x')\n"
        "threading.Thread(target=forever, daemon=True).start()\nsys.exit(4)\n",
        4,
    ),
    "never started": ("from meshlib import Mesh\nmesh = Mesh('caller')\nmesh.client('backend')\n", 0),
    "multiprocessing": (
        SYNC + "import multiprocessing\n"
        "def work(n):\n    return mesh.sync_client('backend').get(f'/echo/{n}').text\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    assert pool.map(work, range(20)) == [str(n) for n in range(20)]\n    pool.close()\n    pool.join()\n",
        0,
    ),
}

RARE = [
    "asyncio.run, with",
    "asyncio.run, closed after the loop",
    "asyncio.run twice",
    "sync, closed",
    "sync, sys.exit",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("exits"), {"backend": {}, "front": {}}) as world:
        world.serve("backend")
        yield world


USUAL = [name for name in PROGRAMS if name not in RARE]


@pytest.mark.parametrize("name", USUAL)
def test_a_program_just_ends(world: World, name: str) -> None:
    """Exit code kept, nothing on stderr; the other programs are in `tests/faults`."""
    ends(world, name)


def ends(world: World, name: str, **variables: str) -> float:
    """Exit code kept, nothing on stderr but the loud line of the dev identity."""
    program, code = PROGRAMS[name]
    process = world.run(
        program, "program-" + re.sub(r"\W+", "-", name), flags=("-X", "dev", "-W", "error"), **variables
    )
    began = time.monotonic()
    assert process.wait(ENDS_WITHIN_S) == code, process.log()
    took_s = time.monotonic() - began
    # `Executing <…> took 0.1 seconds` is asyncio's debug mode on a busy machine.
    noise = ("DEVELOPMENT IDENTITY", "Executing <")
    lines = [line for line in process.log().splitlines() if not any(words in line for words in noise)]
    assert lines == []
    return took_s


ENDINGS = {
    "SIGINT": "",
    "sys.exit in a handler": "@mesh.get('/exit')\nasync def leave():\n    sys.exit(3)\n",
    "SIGTERM, a thread alive": "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_server_ends(world: World, ending: str) -> None:
    """SIGTERM, Ctrl-C, twice if it is in a hurry: exit 0 and a clean stderr. sys.exit in a handler is one failed call."""
    script = SERVER + ENDINGS[ending] + "mesh.run()\n"
    server = world.run(script, "server-" + re.sub(r"\W+", "-", ending), flags=("-X", "dev"), MESHLIB_SERVICE="front")
    server.wait_listening()
    world.endpoints("front", [server.address])
    with Mesh("caller", world.config) as mesh:
        client = mesh.sync_client("front")
        assert client.get("/ask").text == "x"
        if "handler" in ending:
            assert client.get("/exit").status_code == 500
            assert client.get("/ask").text == "x"
    began = time.monotonic()
    server.signal(signal.SIGINT if ending == "SIGINT" else signal.SIGTERM)
    if ending == "SIGINT":
        time.sleep(0.1)
        server.signal(signal.SIGINT)
    assert server.wait(ENDS_WITHIN_S) == 0, server.log()
    print(f"{ending}: {time.monotonic() - began:.2f} s")
    if "handler" not in ending:
        assert _COMPLAINT.search(server.log()) is None, server.log()
