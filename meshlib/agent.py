"""The one background thread of a mesh: it looks at files and certificates so that no call has to.

Lazy (it starts with the mesh), a daemon (a job that ends just exits), stopped within `STOP_WITHIN_S`. It is not
inherited by a fork: the child starts its own with its first call. A stalled event loop does not stall it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

TICK_S = 0.1
"""How often it looks. An edit is in force after two looks: one that sees it, one that sees it has settled."""
STOP_WITHIN_S = 1.0
PARTS_MAX = 1000
"""Files of a directory that are looked at: as many as a mesh may have (config.load.MAX_FILES)."""

logger = logging.getLogger("meshlib")


class Agent:
    """Runs `tick()` every `every_s` seconds until `stop()`. An error of `tick` is logged once per kind and survived."""

    def __init__(self, tick: Callable[[], None], every_s: float = TICK_S) -> None:
        self._tick, self._every_s, self._stopped = tick, every_s, threading.Event()
        self._logged: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="meshlib-agent", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for it to have stopped, at most `STOP_WITHIN_S` seconds."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_WITHIN_S)

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._tick()
            except Exception as error:  # whatever breaks one look must not end all later ones
                if repr(type(error)) not in self._logged:
                    self._logged.add(repr(type(error)))
                    logger.exception("the agent could not do its round; what is in force stays in force")


Status = tuple[str, int, int, int]
Signature = tuple[Status, ...]


class FileWatch:
    """Tells when any of some files has changed and has then stayed the same for one look. Polling: no dependency, and
    it sees renames, truncations and new files alike. Of a directory its `*.yaml` are watched, as they come and go.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._known = self._seen = self._signature()

    def follow(self, files: Iterable[Path]) -> None:
        """Watch these from now on. What changed since the last look at a file that was watched before is still told."""
        self.files = tuple(files)
        before = {entry[0]: entry for entry in self._known}
        self._seen = self._signature()
        self._known = tuple(before.get(entry[0], entry) for entry in self._seen)

    def changed(self) -> bool:
        """True once per settled change."""
        now = self._signature()
        settled = now == self._seen
        self._seen = now
        if not settled or now == self._known:
            return False
        self._known = now
        return True

    def _signature(self) -> Signature:
        found: dict[str, Status] = {}
        for file in self.files:
            path = str(file.absolute())
            found[path] = (path, *_looked_at(path))
            if os.path.isdir(path):
                found |= {part: (part, *_looked_at(part)) for part in _parts(path)}
        return tuple(found.values())


def _looked_at(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_mtime_ns, status.st_size, status.st_ino


def _parts(folder: str) -> list[str]:
    """The files of a mesh in a directory, as `config.load` takes them; whether they are valid or not."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".yaml") and not name.startswith("."))
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names[:PARTS_MAX]]
