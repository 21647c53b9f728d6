"""F32, F33 with a config service: forks and ends of programs whose mesh follows one, also while it does not answer."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from process.controlled import Controlled
from process.test_exits import _COMPLAINT, SERVER, ends
from process.test_fork import CALLS, FORKS

PROGRAMS = [
    "asyncio.run, closed",
    "asyncio.run, never closed",
    "sys.exit in a task",
    "sync, closed",
    "sync, never closed",
    "a thread that calls for ever",
    "multiprocessing",
]
FAREWELL_S = 4.5
"""A second of propagation, a second for a last word that is not heard, and what an interpreter takes on a busy machine."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """A config service and one backend."""
    with Controlled(tmp_path_factory.mktemp("control-exits"), {"backend": {}, "front": {}}) as world:
        world.serve("backend")
        yield world


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_follows_a_config_service_just_ends(world: Controlled, name: str) -> None:
    """Exit code kept, nothing on stderr."""
    ends(world, name, **world.environment_of("caller"))


@pytest.mark.parametrize("service", ["answers", "is frozen", "is gone"])
def test_a_server_says_farewell_in_bounded_time(world: Controlled, service: str) -> None:
    """SIGTERM: exit 0, a clean stderr; off the registry at once where there is somebody to tell, and no waiting else."""
    server = world.run(
        SERVER + "mesh.run()\n", f"front {service}", flags=("-X", "dev"), **world.environment_of("front")
    )
    server.wait_listening()
    while "registered as" not in server.log():
        assert server.alive, server.log()
        time.sleep(0.02)
    if service == "is frozen":
        world.control.signal(signal.SIGSTOP)
    if service == "is gone":
        world.control.kill()
    try:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.log()
        took = time.monotonic() - began
        print(f"the config service {service}: ended after {took:.2f} s")
        assert took <= FAREWELL_S
        assert _COMPLAINT.search(server.log()) is None, server.log()
        if service == "answers":
            shown = world.ask("GET", "/v1/services?service=front.default")["services"]
            assert [instance for one in shown for instance in one["shown"]] == []
    finally:
        if service == "is frozen":
            world.control.signal(signal.SIGCONT)
        if service == "is gone":
            world.control.again()
            world.control.wait_listening()


def test_children_of_a_process_that_follows_get_their_own_answers(world: Controlled) -> None:
    """F32: a warm process forks three times: 0 wrong answers, each child polls as an instance of its own."""
    variables = {**world.environment_of("caller"), "MESHLIB_LOG": "ERROR"}
    forking = world.run(FORKS, "forking", str(CALLS), **variables)
    assert forking.wait(60) == 0, forking.log()
    lines = [json.loads(line) for line in forking.log().splitlines() if line.startswith("{")]
    assert [line["wrong"] for line in lines if "child" in line] == [0, 0, 0]
    assert lines[-1] == {"parent": 0, "codes": [0, 0, 0]}
    assert "Traceback" not in forking.log()
    pids = {p["info"]["pid"] for p in world.ask("GET", "/v1/status?service=caller.default")["processes"]}
    assert len(pids) >= 4
