"""The demo from its first process to its last: sets the stage, plays the scenes, says what came out, cleans up.

Whatever ends it (the last scene, Ctrl-C, SIGTERM, an error), all processes and the folder are gone within three
seconds. A SIGKILL of the demo ends its processes too: see replica.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .census import Census
from .fleet import DemoError, Fleet, Replica
from .report import Progress, print_json, print_tables, results
from .scenes import SCENES
from .shop import Shop
from .shopper import Shopper
from .stage import Plan, Scene, Stage

HELD, BROKEN, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: every promise held; one did not; the demo could not be played; Ctrl-C before the end."""
LINE_EVERY_S = 10.0
"""How often the running count is printed where there is no terminal."""
SUPERVISE_S = 0.1
LINES_MAX = 100
"""Lines of the mesh that wait to be shown."""
RESTART_PAUSE_S = 2.0
REPLICAS = {"storefront": ("", ""), "orders": ("", ""), "inventory": ("v1", "v1", "v2")}
"""Service → a version for each replica, '' where there is only one version."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def run(*, keep: bool = False, as_json: bool = False, plan: Plan | None = None) -> int:
    """Play the demo and return its exit code. `keep`: afterwards, go on until Ctrl-C. Call it in the main thread."""
    for name in [name for name in os.environ if name.startswith("MESHLIB_")]:
        del os.environ[name]  # the mesh of the demo is nobody else's
    progress = Progress()
    with _ended_by_signals(), progress.shown():
        try:
            with _stage(plan or Plan(), progress) as stage:
                return _play(stage, progress, keep=keep, as_json=as_json)
        except (DemoError, OSError) as error:
            progress.tell(f"meshlib demo: {error}", "red")
            return REFUSED
        except KeyboardInterrupt:
            progress.tell("meshlib demo: interrupted", "red")
            return INTERRUPTED


def _play(stage: Stage, progress: Progress, *, keep: bool, as_json: bool) -> int:
    scenes: list[Scene] = []
    stage.shopper.resume()
    for play in SCENES:
        scenes.append(play(stage))
        progress.ended(scenes[-1])
    data, trails = results(stage.shopper, stage.census, scenes), list(stage.shopper.trails)
    if stage.shopper.failures:  # the shopper sees a 500; the replica that gave it knows why
        trails += [error for replica in stage.fleet.replicas for error in replica.errors()]
    stage.shopper.trails.clear()
    if as_json:
        print_json(data)
        for trail in trails:
            progress.tell(f"FAILED {trail}", "red")
    else:
        with progress.hidden():
            print_tables(data, scenes, trails)
    if keep:
        try:
            _go_on(stage, progress)
        except KeyboardInterrupt:
            progress.tell(f"ended: {progress.counts}")
    return HELD if all(scene.held for scene in scenes) else BROKEN


@contextmanager
def _stage(plan: Plan, progress: Progress) -> Iterator[Stage]:
    """Every process, started and working by the same policy; gone when it is over, however that comes."""
    folder = Path(tempfile.mkdtemp(prefix="meshlib-demo-")).resolve()
    shop = Shop(folder)
    fleet, shopper = Fleet(shop), Shopper(shop, plan.rate)
    try:
        progress.shopper = shopper
        for service, versions in REPLICAS.items():
            for version in versions:
                fleet.add(service, version)
        progress.say(f"starting {len(fleet.replicas)} processes in {folder}")
        fleet.start(fleet.replicas)
        shopper.start()
        stage = Stage(plan, shop, fleet, shopper, Census(), progress.say)
        if stage.until_in_force(time.monotonic()) == float("inf"):
            raise DemoError(f"the processes do not work by {shop.file}; their logs are in {shop.folder / 'logs'}")
        yield stage
    finally:
        for number in (signal.SIGINT, *SIGNALS):  # the end is bounded, and must not be cut short
            signal.signal(number, signal.SIG_IGN)
        shopper.stop()
        fleet.close()
        shutil.rmtree(folder, ignore_errors=True)


def _go_on(stage: Stage, progress: Progress) -> None:
    """Until Ctrl-C: calls go on, and a replica that ends is started again."""
    progress.say("starting a second replica of inventory v2, so that any one may be killed")
    stage.fleet.start([stage.fleet.add("inventory", "v2")])
    progress.tell(_guide(stage))
    stage.shopper.resume()
    line_due, heard = 0.0, _Heard()
    while True:
        progress.say("running; Ctrl-C ends it")
        if not progress.live and time.monotonic() >= line_due:
            progress.tell(progress.counts)
            line_due = time.monotonic() + LINE_EVERY_S
        ended = [replica for replica in stage.fleet.replicas if not replica.alive]
        if ended:
            _start_again(stage, progress, ended)
        _show_new_failures(stage, progress)
        heard.tell(progress)
        time.sleep(SUPERVISE_S)


class _Heard(logging.Handler):
    """What the shopper, which is in this process, logs of its mesh: a policy that is in force, or is not."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[tuple[str, bool]] = deque(maxlen=LINES_MAX)
        logger = logging.getLogger("meshlib")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called on the mesh's own thread."""
        self._lines.append((record.getMessage(), record.levelno >= logging.ERROR))

    def tell(self, progress: Progress) -> None:
        """Show what came since."""
        while self._lines:
            line, bad = self._lines.popleft()
            progress.tell(line, "red" if bad else "green")


def _start_again(stage: Stage, progress: Progress, ended: list[Replica]) -> None:
    names = ", ".join(f"{replica.name} (pid {replica.pid})" for replica in ended)
    progress.tell(f"ended: {names}; starting again")
    progress.say(f"starting {names} again")
    try:
        stage.fleet.start(ended)
        progress.tell(f"back: {', '.join(f'{replica.name} (pid {replica.pid})' for replica in ended)}")
    except DemoError as error:  # mesh.yaml is broken just now, most likely: it may be mended
        progress.tell(str(error), "red")
        time.sleep(RESTART_PAUSE_S)


def _show_new_failures(stage: Stage, progress: Progress) -> None:
    while stage.shopper.trails:
        progress.tell(f"FAILED {stage.shopper.trails.pop(0)}", "red")


def _guide(stage: Stage) -> str:
    """Where everything is, and what to try."""
    replicas = stage.fleet.replicas
    lines = ["", f"The mesh goes on, with {stage.plan.rate:g} calls a second. The demo is pid {os.getpid()}.", ""]
    lines += [f"  {m.name:14} pid {m.pid:<8} http://{m.admin}/metrics" for m in replicas]
    lines += [
        f"  {'shopper':14} pid {os.getpid():<8} http://{stage.shopper.admin}/metrics",
        "",
        f"  mesh.yaml      {stage.shop.file}",
        f"  logs           {stage.shop.folder / 'logs'}",
        "",
        "Try:",
        f"  kill -9 {replicas[0].pid}      and see it start again, with no call failed",
        f"  $EDITOR {stage.shop.file}      and change the weights, or break it",
        f"  {sys.executable} -m meshlib ca rotate --config {stage.shop.file}",
        "",
    ]
    return "\n".join(lines)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
