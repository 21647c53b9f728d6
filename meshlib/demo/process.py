"""One process of the demo: started, waited for, signalled; never left behind.

Each listens on a port that it keeps when it is started again, and says in its log when it does, as any meshed program
does. It is in a session of its own, so that a Ctrl-C reaches the demo alone, and holds a pipe of the demo as standard
input: see replica.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import meshlib

START_WITHIN_S = 45.0
"""For a start on a machine that is busy with eight others; one alone takes about a second."""
ERRORS_SHOWN = 3
"""Different errors of one log that are shown."""
LOOK_S = 0.02
"""How often a wait looks, in seconds."""
_LISTENING = re.compile(r"meshlib\.transport: listening on (\S+)")
_ADMIN = re.compile(r"meshlib: admin on http://(\S+)")
_LAST_LINES = 8
_CHAINED = ("During handling of the above exception", "The above exception was the direct cause")


class DemoError(Exception):
    """The demo itself cannot go on; the text says why."""


class Process:
    """`run` counts its starts; `address` is where the latest listens, '' until it does."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self.run, self.address = 0, ""
        self._log_begins = 0
        self._process: subprocess.Popen[bytes] | None = None

    def arguments(self) -> list[str]:
        """What it is started with: see replica.py."""
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        """Its part of the environment."""
        return {}

    @property
    def pid(self) -> int:
        """Process id, 0 before the first start."""
        return 0 if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Has it been started and not ended?"""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the latest start, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def launch(self) -> None:
        """Start it; `listens` and `wait_listening` tell when it serves."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MESHLIB_")}
        self._log_begins = self.log.stat().st_size if self.log.exists() else 0
        self.forget()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "meshlib.demo.replica", *self.arguments()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**environment, "PYTHONUNBUFFERED": "1", "MESHLIB_LOG": "INFO", **self.variables()},
                cwd=Path(meshlib.__file__).parents[1],
                start_new_session=True,
            )
        self.run += 1
        self.address = ""

    def listens(self) -> bool:
        """Does its log say where it listens?"""
        self.address = listening_in(self.said())
        return bool(self.address)

    def wait_listening(self) -> None:
        """Until it listens. DemoError, with the end of its log, when it ends before, or takes too long."""
        give_up = time.monotonic() + START_WITHIN_S
        while not self.listens():
            if not self.alive or time.monotonic() > give_up:
                raise DemoError(self.why_not_started())
            time.sleep(LOOK_S)

    def why_not_started(self) -> str:
        """A sentence, and the end of its log."""
        return "\n".join([f"{self.name} did not start; its log {self.log} ends with", *self.last_lines()])

    def last_lines(self) -> list[str]:
        """The end of what it has logged since its latest start."""
        return self.said().splitlines()[-_LAST_LINES:]

    def said(self) -> str:
        """Its log since its latest start."""
        return _read_from(self.log, self._log_begins)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    def end(self, number: signal.Signals, within_s: float) -> int | None:
        """Send it a signal and wait. The exit code, negative for a signal; None where it had to be killed after all."""
        assert self._process is not None
        self.send(number)
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End it at once, if it runs, and let go of it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Let go of one that has ended; one that still runs ends by this."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

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


def listening_in(log: str) -> str:
    """The address that a log says is listened on, '' where it does not."""
    found = _LISTENING.search(log)
    return found[1] if found else ""


def admin_in(log: str) -> str:
    """The address of the admin pages in a log, '' where it has none."""
    found = _ADMIN.search(log)
    return found[1] if found else ""


def _read_from(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")
