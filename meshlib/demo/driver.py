"""The demo from its first process to its last: sets the stage, plays the scenes, says what came out, cleans up.

Whatever ends it (the last scene, Ctrl-C, SIGTERM, an error), all processes and the folder are gone within three
seconds. A SIGKILL of the demo ends its processes too: see replica.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from meshlib.errors import MeshError

from .census import Census
from .config_service import ConfigService
from .fleet import Fleet
from .keeping import keep_going
from .process import DemoError
from .report import Progress, print_json, print_tables, results
from .scenes import SCENES
from .shop import Shop
from .shopper import Shopper
from .stage import Plan, Scene, Stage

HELD, BROKEN, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: every promise held; one did not; the demo could not be played; Ctrl-C before the end."""
REPLICAS = {"storefront": ("", ""), "orders": ("", ""), "inventory": ("v1", "v1", "v2"), "prices": ("", "")}
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
        except (DemoError, MeshError, OSError) as error:
            progress.tell(f"meshlib demo: {error}", "red")
            return REFUSED
        except KeyboardInterrupt:
            progress.tell("meshlib demo: interrupted", "red")
            return INTERRUPTED


def _play(stage: Stage, progress: Progress, *, keep: bool, as_json: bool) -> int:
    scenes: list[Scene] = []
    for play in SCENES:
        scenes.append(play(stage))
        progress.ended(scenes[-1])
    data, trails = results(stage.shopper, stage.census, scenes), list(stage.shopper.trails)
    if stage.shopper.failures:  # the shopper sees a 500; the replica that gave it knows why
        trails += [error for process in (stage.control, *stage.fleet.replicas) for error in process.errors()]
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
            keep_going(stage, progress)
        except KeyboardInterrupt:
            progress.tell(f"ended: {progress.counts}")
    return HELD if all(scene.held for scene in scenes) else BROKEN


@contextmanager
def _stage(plan: Plan, progress: Progress) -> Iterator[Stage]:
    """A config service that runs, and processes that do not as yet; gone when it is over, however that comes."""
    folder = Path(tempfile.mkdtemp(prefix="meshlib-demo-")).resolve()
    shop = Shop(folder)
    control, fleet, shopper = ConfigService(shop), Fleet(shop), Shopper(shop, plan.rate)
    try:
        progress.shopper = shopper
        for service, versions in REPLICAS.items():
            for version in versions:
                fleet.add(service, version)
        progress.say("starting the config service")
        control.start()
        yield Stage(plan, shop, control, fleet, shopper, Census(), progress.say)
    finally:
        for number in (signal.SIGINT, *SIGNALS):  # the end is bounded, and must not be cut short
            signal.signal(number, signal.SIG_IGN)
        shopper.stop()
        fleet.close()
        control.close()  # the last: the others take leave of it
        shutil.rmtree(folder, ignore_errors=True)


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
