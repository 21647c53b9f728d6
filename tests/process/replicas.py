"""Real processes in a mesh on disk: started from small scripts, signalled by pid, never left behind.

A `World` is a folder with mesh.yaml, one endpoint file per service, and a log per process. Every service lists its
endpoints by `file:`, so that processes start with none and learn of each other by hot reload, as in production.
Every wait ends after `PATIENCE_S`, with the log of the process in the message.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

PATIENCE_S = 20.0
"""How long anything may take before the test fails: far above what it takes, on a machine that is busy."""
LOOK_S = 0.02

APPS = Path(__file__).parent / "apps"
_LAUNCH = Path(__file__).parent / "launch.py"
_LISTENING = re.compile(r"meshlib\.transport: listening on (\S+):(\d+)")
_ADMIN = re.compile(r"meshlib: admin on http://(\S+) ")


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition()`; AssertionError names `what` did not happen."""
    give_up = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() >= give_up:
            raise AssertionError(f"{what}: not within {patience_s:g} s")
        time.sleep(LOOK_S)
    return value


class Process:
    """One child. `port` is 0 until it listens; a process started `again` listens on the same one."""

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path, name: str) -> None:
        self.command, self.environment, self.folder, self.name = command, dict(environment), folder, name
        self.log_path = folder / f"{name}.log"
        self.port, self.admin = 0, ""
        self._start()

    def _start(self) -> None:
        self._log_from = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command, env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        """What it wrote since it was last started."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_from)
            return log.read().decode("utf-8", "replace")

    def wait_listening(self) -> None:
        def listens() -> Any:
            assert self.alive, f"{self.name} ended with {self.popen.returncode}:\n{self.log()}"
            return _LISTENING.search(self.log())

        found = until(listens, f"{self.name} listens")
        self.port = int(found[2])
        admin = _ADMIN.search(self.log())
        self.admin = admin[1] if admin else ""

    def again(self) -> None:
        """Start it once more, on its port."""
        assert not self.alive
        self.popen.wait()
        self.environment["PORT"] = str(self.port)
        self._start()

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        self.popen.kill()
        self.popen.wait(PATIENCE_S)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code; a process that does not end is a failure."""
        try:
            return self.popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end within {patience_s:g} s:\n{self.log()}") from None

    def page(self, path: str) -> str:
        """A page of its admin listener."""
        with urlopen(f"http://{self.admin}{path}", timeout=5) as reply:
            return reply.read().decode()

    def metric(self, sample: str) -> float:
        """The value of one sample, such as `meshlib_policy_version{resource="mesh.yaml"}`; nan where there is none."""
        for line in self.page("/metrics").splitlines():
            if line.startswith(sample + " "):
                return float(line.rpartition(" ")[2])
        return float("nan")


class World:
    """`with World(folder, services={"backend": {…}}) as world:` the policy of each service, without its endpoints."""

    def __init__(self, folder: Path, services: Mapping[str, Mapping[str, Any]], **fields: Any) -> None:
        self.folder, self.config = folder, folder / "mesh.yaml"
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.processes: list[Process] = []
        self.document: dict[str, Any] = {"version": 1, "mesh": "test", **fields}
        self.document["services"] = {
            name: {**policy, "endpoints": [{"file": f"{name}.endpoints"}]} for name, policy in services.items()
        }
        for name in services:
            self.endpoints(name, [])
        self.write()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self.processes:
            if process.alive:
                process.kill()

    def write(self) -> None:
        """Put `document` in mesh.yaml, in one step."""
        replace(self.config, json.dumps(self.document, indent=1))

    def endpoints(self, service: str, addresses: Iterable[str | Mapping[str, Any]]) -> None:
        """Write a service's endpoint file, in one step."""
        replace(self.folder / f"{service}.endpoints", json.dumps(list(addresses)))

    def run(
        self, script: str | Path, name: str, *arguments: str, flags: Iterable[str] = (), **variables: str
    ) -> Process:
        """A process that runs `script`: a file, or the text of one. `variables` go into its environment."""
        path = script if isinstance(script, Path) else self.folder / f"{name}.py"
        if not isinstance(script, Path):
            path.write_text(script)
        command = [sys.executable, *flags, str(_LAUNCH), str(os.getpid()), str(path), *arguments]
        return self.execute(command, name, **variables)

    def execute(self, command: list[str], name: str, **variables: str) -> Process:
        """A process of any command, in the environment of this mesh."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MESHLIB_", "OTEL_"))}
        environment = {
            **inherited, "MESHLIB_CONFIG": str(self.config), "LEDGER": str(self.ledger), "REPLICA": name, "PORT": "0",
            "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables,
        }  # fmt: skip
        process = Process(command, environment, self.folder, name)
        self.processes.append(process)
        return process

    def serve(
        self, service: str, count: int = 1, script: str | Path = APPS / "backend.py", **variables: str
    ) -> list[Process]:
        """`count` replicas of a service, listening and in its endpoint file, beside those it already has."""
        before = [p for p in self.processes if p.environment.get("MESHLIB_SERVICE") == service]
        made = [
            self.run(script, f"{service}-{len(before) + i}", **{"MESHLIB_SERVICE": service, **variables})
            for i in range(count)
        ]
        for process in made:
            process.wait_listening()
        self.endpoints(service, [process.address for process in [*before, *made]])
        return made

    def forget(self) -> None:
        """Begin a new ledger: what was executed before is no longer looked at."""
        os.truncate(self.ledger, 0)

    def executed(self) -> list[str]:
        """What the handlers of `POST /orders/…` did, in all replicas: one entry per execution."""
        return self.ledger.read_text().split()


def replace(path: Path, text: str) -> None:
    """Write a file as an editor should: beside it, then rename."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.rename(path)
