"""What processes use, by /proc, how much of the machine goes to programs of others, and what this process may use."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = _proc(f"{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def rss_kb(pid: int) -> float:
    """Resident memory of a process, in KiB."""
    return float(_proc(f"{pid}/status").partition("VmRSS:")[2].split()[0])


class Usage:
    """Since it was made: CPU seconds of some processes of ours, and how many cores all others have had."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._began, self._busy_s, self._ours = time.monotonic(), _busy_s(), self._now()

    def spent(self) -> tuple[list[float], float]:
        """CPU seconds of each of ours until now, and the cores that were busy with anything else, on average."""
        ours = [now - before for now, before in zip(self._now(), self._ours, strict=True)]
        elsewhere_s = _busy_s() - self._busy_s - sum(ours)
        return ours, max(0.0, elsewhere_s) / (time.monotonic() - self._began)

    def _now(self) -> list[float]:
        return [cpu_s(pid) for pid in self._pids]


def first_core() -> None:
    """Keep this process off the core of who is measured, where there are two."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {0})


def open_files_max() -> None:
    """Let this process, and those that it starts, open as many files as they may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_tidily() -> None:
    """SIGTERM as Ctrl-C: what was started is ended, what was written is removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _busy_s() -> float:
    """CPU seconds that anybody has used."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, _proc("stat").split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) * _TICK_S


def _proc(name: str) -> str:
    return Path("/proc", name).read_text()
