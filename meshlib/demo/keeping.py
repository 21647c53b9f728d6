"""`--keep`: the mesh and its traffic go on until Ctrl-C, and whatever is killed by hand is started again.

A replica is started again at once, the config service after some seconds, so that one can watch how little depends on
it. What the mesh makes of an edit is told as the config service tells it.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from meshlib.errors import MeshError

from .config_service import ConfigService
from .fleet import labelled
from .process import Process
from .report import Progress
from .shop import SERVICES
from .stage import Stage

LINE_EVERY_S = 10.0
"""How often the running count is printed where there is no terminal."""
SUPERVISE_S = 0.1
"""How often it is looked who has ended."""
ASK_EVERY_S = 0.5
"""How often the config service is asked for what is new."""
CONTROL_PAUSE_S = 5.0
"""How long the config service stays away once it was killed."""
RESTART_PAUSE_S = 2.0
"""When a process that did not come back is tried again."""
LINES_MAX = 100
"""Lines of the mesh that wait to be shown."""


def keep_going(stage: Stage, progress: Progress) -> None:
    """Until Ctrl-C."""
    progress.say("starting a second replica of inventory v2, so that any one may be killed")
    stage.fleet.start([stage.fleet.add("inventory", "v2")])
    progress.tell(_guide(stage))
    stage.shopper.resume()
    line_due, heard, edits, supervisor = 0.0, _Heard(), _Edits(stage.control), _Supervisor(stage)
    while True:
        progress.say("running; Ctrl-C ends it")
        if not progress.live and time.monotonic() >= line_due:
            progress.tell(progress.counts)
            line_due = time.monotonic() + LINE_EVERY_S
        supervisor.look(progress)
        edits.look(progress)
        heard.tell(progress)
        while stage.shopper.trails:
            progress.tell(f"FAILED {stage.shopper.trails.pop(0)}", "red")
        time.sleep(SUPERVISE_S)


class _Supervisor:
    """Starts again what has ended. Nothing is waited for: several may be killed at once."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._due: dict[Process, float] = {}
        self._starting: set[Process] = set()

    def look(self, progress: Progress) -> None:
        now = time.monotonic()
        for process in (self._stage.control, *self._stage.fleet.replicas):
            if process.alive:
                if process in self._starting and process.listens():
                    self._starting.remove(process)
                    progress.tell(f"back: {process.name} (pid {process.pid})")
            elif process not in self._due:
                self._ended(process, now, progress)
            elif now >= self._due[process]:
                del self._due[process]
                self._starting.add(process)
                process.launch()

    def _ended(self, process: Process, now: float, progress: Progress) -> None:
        pause_s = CONTROL_PAUSE_S if isinstance(process, ConfigService) else 0.0
        if process in self._starting:
            progress.tell(process.why_not_started(), "red")
            pause_s = RESTART_PAUSE_S
        when = f"in {pause_s:g} s" if pause_s else "now"
        progress.tell(f"ended: {process.name} (pid {process.pid}); started again {when}")
        self._due[process] = now + pause_s


class _Edits:
    """What becomes of an edit of mesh.yaml, as the config service says it."""

    def __init__(self, control: ConfigService) -> None:
        self._control, self._due = control, 0.0
        self._seen: dict[str, Any] = control.status()
        self._waiting = False

    def look(self, progress: Progress) -> None:
        """Ask it, when it is time."""
        if time.monotonic() < self._due or not self._control.address or not self._control.alive:
            return
        self._due = time.monotonic() + ASK_EVERY_S
        try:
            status = self._control.status()
        except (MeshError, OSError, ValueError):  # it is away: that is told by who starts it again
            return
        before, self._seen = self._seen, status
        if status["edits_kept_out"] > before["edits_kept_out"]:
            progress.tell("the edit is refused, nobody gets it:", "red")
            for problem in status["problems"]:
                progress.tell("  {file}:{line}:{column}: {path}: {message}".format(**problem), "red")
        if status["policy"]["n"] != before["policy"]["n"]:
            progress.tell(f"policy {status['policy']['n']} is published")
            self._waiting = True
        if self._waiting and not any(process["behind"] for process in status["processes"]):
            progress.tell(f"in force in all {len(status['processes'])} processes", "green")
            self._waiting = False


class _Heard(logging.Handler):
    """What the shopper, which is in this process, logs of its mesh: a config service that is away, or is back."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: deque[tuple[str, bool]] = deque(maxlen=LINES_MAX)
        logging.getLogger("meshlib").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called on the mesh's own thread."""
        self._lines.append((record.getMessage(), record.levelno >= logging.ERROR))

    def tell(self, progress: Progress) -> None:
        """Show what came since."""
        while self._lines:
            line, bad = self._lines.popleft()
            progress.tell(f"the shopper: {line}", "red" if bad else "yellow")


def _guide(stage: Stage) -> str:
    """Where everything is, and what to try; each command can be typed as it is."""
    shop, control = stage.shop, stage.control
    replicas = [replica for service in SERVICES for replica in stage.fleet.of(service)]
    rows = [(control.name, control.pid, shop.url)]
    rows += [(replica.name, replica.pid, f"http://{replica.admin}/metrics") for replica in replicas]
    rows += [("shopper", os.getpid(), f"http://{stage.shopper.admin}/metrics")]
    file, token = shlex.quote(str(shop.file)), shop.folder / "mine.token"
    mine = {
        "MESHLIB_CONFIG": shop.file, "MESHLIB_TOKEN_FILE": token, "MESHLIB_STATE_DIR": shop.folder / "mine",
        **labelled("v2"),
    }  # fmt: skip
    command = _command()
    lines = [
        "",
        f"The mesh goes on, with {stage.plan.rate:g} calls a second. The demo is pid {os.getpid()}.",
        "",
        *(f"  {name:14} pid {pid:<8} {url}" for name, pid, url in rows),
        "",
        f"  mesh.yaml      {shop.file}",
        f"  logs           {shop.folder / 'logs'}",
        "",
        "Try, in another terminal:",
        f"  kill -9 {replicas[0].pid}      a replica: it is started again, and no call fails",
        f"  kill -9 {control.pid}      the config service: calls go on; it is back after {CONTROL_PAUSE_S:g} s",
        f"  $EDITOR {file}      change the weights, or break it",
        f"  {command} status --config {file}",
        f"  {command} services --config {file}",
        f"  {command} ca rotate --config {file}",
        "and a process of your own, that joins as any other (Ctrl-C ends it):",
        f"  {command} token create inventory --config {file} --out {shlex.quote(str(token))}",
        f"  {' '.join(f'{name}={shlex.quote(str(value))}' for name, value in mine.items())} \\",
        f"    {shlex.quote(sys.executable)} -m meshlib.demo.inventory",
        "",
    ]
    return "\n".join(lines)


def _command() -> str:
    """How `meshlib` is called in another terminal."""
    script = Path(sys.executable).with_name("meshlib")
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m meshlib"
