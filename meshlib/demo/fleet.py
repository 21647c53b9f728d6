"""The processes of the demo: started, killed, drained, started again; never left behind.

Each takes a free port itself and says which in its log, as any meshed program does; its address then goes into the
endpoint file of its service, which the others watch. A process is in a session of its own, so that a Ctrl-C reaches
the demo alone, and holds a pipe of the demo as standard input: see replica.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import meshlib

from .shop import Shop

START_WITHIN_S = 45.0
"""For a start on a machine that is busy with six others; one alone takes about a second."""
CLOSE_WITHIN_S = 1.8
"""For all processes to end by themselves; after that they are killed. A drain without calls takes one second."""
_LISTENING = re.compile(r"meshlib\.transport: listening on (\S+)")
_ADMIN = re.compile(r"meshlib: admin on http://(\S+)")
_LOOK_S = 0.02
_LAST_LINES = 8
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
ERRORS_SHOWN = 3


class DemoError(Exception):
    """The demo itself cannot go on; the text says why."""


class Replica:
    """One process of a service. `run` counts its starts; `address` and `admin` are those of the latest."""

    def __init__(self, service: str, number: int, version: str, log: Path) -> None:
        self.service, self.name, self.version, self.log = service, f"{service}-{number}", version, log
        self.run, self.address, self.admin = 0, "", ""
        self.process: subprocess.Popen[bytes] | None = None
        self._log_begins = 0

    @property
    def pid(self) -> int:
        """Process id, 0 before the first start."""
        return 0 if self.process is None else self.process.pid

    @property
    def alive(self) -> bool:
        """Has it been started and not ended?"""
        return self.process is not None and self.process.poll() is None

    def launch(self, mesh_file: Path) -> None:
        """Start it; `wait_listening` tells when it serves."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        environment |= {
            "MESHLIB_CONFIG": str(mesh_file),
            "MESHLIB_LOG": "INFO",
            "INVENTORY_VERSION": self.version,
            "PYTHONUNBUFFERED": "1",
        }
        self._log_begins = self.log.stat().st_size if self.log.exists() else 0
        self._close_pipe()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "meshlib.demo.replica", self.service],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=Path(meshlib.__file__).parents[1],
                start_new_session=True,
            )
        self.run += 1
        self.address = self.admin = ""

    def wait_listening(self) -> None:
        """Until its log says where it listens. DemoError, with the end of its log, when it ends or takes too long."""
        give_up = time.monotonic() + START_WITHIN_S
        while not (addresses := addresses_in(self.log, self._log_begins)):
            if not self.alive or time.monotonic() > give_up:
                lines = _read_from(self.log, self._log_begins).splitlines()[-_LAST_LINES:]
                raise DemoError("\n".join([f"{self.name} did not start; its log {self.log} ends with", *lines]))
            time.sleep(_LOOK_S)
        self.address, self.admin = addresses

    def end(self, number: signal.Signals, within_s: float) -> int:
        """Send a signal and wait. The exit code, negative for a signal. subprocess.TimeoutExpired."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def errors(self) -> list[str]:
        """What its tracebacks ended with, each once, the first `ERRORS_SHOWN`: why its replies were a 500."""
        ended: dict[str, None] = {}
        inside = False
        for line in _read_from(self.log, 0).splitlines():
            if line.startswith("Traceback "):
                inside = True
            elif line.startswith(_CHAINED) and ended:
                ended.popitem()  # not the end of it
            elif inside and line and not line[0].isspace():
                inside, ended[f"{self.name}: {line}"] = False, None
        return list(ended)[:ERRORS_SHOWN]

    def forget(self) -> None:
        """Let go of a process that has ended."""
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()


class Fleet:
    """All replicas of all services."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.replicas: list[Replica] = []

    def add(self, service: str, version: str = "") -> Replica:
        """One more replica of a service, not yet started."""
        number = 1 + len(self.of(service))
        replica = Replica(service, number, version, self.shop.log(f"{service}-{number}"))
        self.replicas.append(replica)
        return replica

    def of(self, service: str) -> list[Replica]:
        """The replicas of a service."""
        return [replica for replica in self.replicas if replica.service == service]

    def named(self, name: str) -> Replica:
        """The replica of this name."""
        return next(replica for replica in self.replicas if replica.name == name)

    def start(self, replicas: Iterable[Replica]) -> None:
        """Start these, wait until all listen, and write where they are. DemoError."""
        started = list(replicas)
        for replica in started:
            replica.launch(self.shop.file)
        for replica in started:
            replica.wait_listening()
        for service in {replica.service for replica in started}:
            self.shop.write_endpoints(service, [(r.address, r.version) for r in self.of(service) if r.address])

    def close(self) -> None:
        """End every process: asked first, killed after `CLOSE_WITHIN_S`."""
        running = [replica for replica in self.replicas if replica.alive]
        for replica in running:
            replica.process.terminate()  # type: ignore[union-attr]  # alive
        give_up = time.monotonic() + CLOSE_WITHIN_S
        while any(replica.alive for replica in running) and time.monotonic() < give_up:
            time.sleep(_LOOK_S)
        for replica in self.replicas:
            if replica.process is not None:
                if replica.alive:
                    replica.process.kill()
                replica.process.wait()
            replica.forget()


def addresses_in(log: Path, begin: int = 0) -> tuple[str, str] | None:
    """(address, admin address) that a meshed program has written to its log from byte `begin` on, or None."""
    text = _read_from(log, begin)
    listening, admin = _LISTENING.search(text), _ADMIN.search(text)
    return (listening[1], admin[1]) if listening and admin else None


def _read_from(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")
