"""What thousands of processes that poll cost one config service: memory, an edit for all of them, a restart.

    python -m benchmarks.pollers [--count 10000] [--idle 32] [--changes 4] [--plain | --mtls]

The service has one core, the pollers and who else asks have the other. In plaintext first (the service's own cost; a
restart by SIGTERM at the end), then with mTLS (kill -9 at the end, and all come back). Bars: FAULTS F29. Exit code 1
when one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .asking import Asked, Asking, others
from .config_service import SERVICES, ConfigService, Kind
from .herd import Config, HerdProcess
from .report import Bars, most_in_a_second, quantile, spread, tell
from .usage import Usage, cpu_s, end_tidily, first_core, open_files_max, rss_kb

KB_EACH_MAX: dict[Kind, float] = {"plain": 25.0, "mtls": 64.0}
"""Resident memory of the service per poller, in KiB."""
DELIVERED_S_MAX = 5.0
"""p99 of the time from the rename of an edited mesh.yaml until a poller has it."""
CALL_S_MAX = 1.0
"""p99 of what others ask meanwhile."""
CONNECTS_PER_S_MAX = 2000
"""Connections that a restarted service sees in any second."""
COMPARED = 500
"""Pollers of the comparison with asyncio's own TLS."""
IDLE_S = 32.0
"""As long as the agent lets a poll be held, with its jitter: each ends once, and begins again."""
SETTLE_S = 2.0
AFTER_S = 3.0
"""How long after the last delivery what the service does still counts for it."""
TERMINATED_S = 10.0
"""How long the pollers are watched after a SIGTERM: what comes at once, comes then."""


class Options(NamedTuple):
    count: int
    idle_s: float
    changes: int


class Crowd(NamedTuple):
    """A service, its pollers, and who else asks."""

    service: ConfigService
    herd: HerdProcess
    asking: Asking
    options: Options
    bars: Bars

    @property
    def name(self) -> str:
        return {"plain": "plaintext", "mtls": "mTLS", "asyncio": "asyncio's own TLS"}[self.service.kind]

    def tell(self, line: str) -> None:
        tell(f"{self.name}: {line}")

    def show(self, line: str) -> None:
        print(f"  {line}", flush=True)


@asynccontextmanager
async def crowd(kind: Kind, options: Options, bars: Bars) -> AsyncIterator[Crowd]:
    """Everybody is started, and ended with the block."""
    with tempfile.TemporaryDirectory(prefix="meshlib-bench-") as name, ConfigService(Path(name), kind) as service:
        asking = Asking(service)
        try:
            certificates, svid = {}, None
            if not asking.plain:
                tell(f"{kind}: {SERVICES + 1} services enrol")
                svid, certificates = await _enrol(asking)
            await asking.close()
            asking = Asking(service, svid)
            with HerdProcess(Config(service.port, certificates, service.bundle())) as herd:
                yield Crowd(service, herd, asking, options, bars)
        except Exception:
            tell(service.log())
            raise
        finally:
            await asking.close()


async def _enrol(asking: Asking) -> tuple[Any, dict[str, tuple[bytes, bytes]]]:
    own, certificates = await asking.enrol("app-0", await asking.token("app-0", 1)), {}
    for number in range(1, SERVICES + 1):
        svid = await asking.enrol(f"app-{number}", await asking.token(f"app-{number}", 1))
        certificates[f"app-{number}"] = svid.certificate_pem, svid.private_key_pem
    return own, certificates


async def gather(crowd: Crowd, count: int) -> float:
    """All wait: what each costs, in KiB."""
    service, herd = crowd.service, crowd.herd
    await herd.ask("gather", 1)
    await asyncio.sleep(SETTLE_S)
    before_kb, usage = rss_kb(service.pid), Usage(service.pid, herd.pid)
    crowd.tell(f"{count} connect")
    took_s = await herd.ask("gather", count - 1, within_s=180.0)
    (used_s, _), _ = usage.spent()
    await asyncio.sleep(SETTLE_S)
    after_kb = rss_kb(service.pid)
    each_kb = (after_kb - before_kb) / (count - 1)
    crowd.show(
        f"{count:,} pollers wait after {took_s:.1f} s ({count / took_s:.0f}/s, {used_s:.1f} CPU s of the service)"
    )
    crowd.show(f"memory of the service: {before_kb / 1024:.0f} → {after_kb / 1024:.0f} MiB, {each_kb:.1f} KiB each")
    return each_kb


async def idle(crowd: Crowd) -> None:
    """All wait, each poll as long as the agent asks for."""
    crowd.tell(f"idle for {crowd.options.idle_s:g} s")
    await crowd.herd.ask("forget")
    usage, took_s = Usage(crowd.service.pid), crowd.options.idle_s
    await asyncio.sleep(took_s)
    (used_s,), _ = usage.spent()
    polls = (await crowd.herd.ask("seen"))["quiet"]
    each_ms = f", {used_s / polls * 1e3:.2f} ms each" if polls else ""
    crowd.show(
        f"idle: {used_s / took_s:.1%} of a core, for {polls / took_s:.0f} polls/s that end and begin again{each_ms}"
    )


class Change(NamedTuple):
    """An edit. `times`: after how many seconds each poller had it. `cpu_s`: of the service and of the pollers, until a
    while after the last; `elsewhere`: cores that were busy with something else meanwhile.
    """

    renamed: float
    times: list[float]
    cpu_s: tuple[float, float]
    elsewhere: float

    def meets(self, one: Asked) -> bool:
        """Was this call under way while the edit went out?"""
        return one.began <= self.renamed + max(self.times) and one.began + one.took_s >= self.renamed


async def changes(crowd: Crowd) -> None:
    """Edits for all: the first with nobody else, the others while others ask, too."""
    alone = await _change(crowd, 0)
    _show(crowd, "an edit reaches all", [alone])
    async with others(crowd.asking) as asked:
        await asyncio.sleep(1.0)
        made = [await _change(crowd, number) for number in range(1, crowd.options.changes)]
    _show(crowd, "while others ask", made)
    what = f"{crowd.name}: an edit reaches {crowd.options.count:,}, p99 of the slowest"
    slowest = max(quantile(change.times, 0.99) for change in (alone, *made))
    crowd.bars.check(what, slowest, DELIVERED_S_MAX, "s")
    _others(crowd, asked, made)


def _show(crowd: Crowd, what: str, made: Sequence[Change]) -> None:
    service_s, herd_s = (statistics.mean(change.cpu_s[i] for change in made) for i in (0, 1))
    elsewhere = statistics.mean(change.elsewhere for change in made)
    crowd.show(
        f"{what}: {spread([time for change in made for time in change.times])}; CPU s: service {service_s:.1f}, "
        f"pollers {herd_s:.1f}; {elsewhere:.1f} cores busy elsewhere"
    )


async def _change(crowd: Crowd, number: int) -> Change:
    crowd.tell(f"edit {number + 1} of {crowd.options.changes}")
    await crowd.herd.ask("forget")
    usage = Usage(crowd.service.pid, crowd.herd.pid, os.getpid())
    renamed = crowd.service.change(11.0 + number % 10)
    arrived = await crowd.herd.ask("delivered", within_s=60.0)
    await crowd.herd.ask("all_wait")
    await asyncio.sleep(AFTER_S)
    (service_s, herd_s, _), elsewhere = usage.spent()
    return Change(renamed, [at - renamed for at in arrived], (service_s, herd_s), elsewhere)


def _others(crowd: Crowd, asked: Sequence[Asked], made: Sequence[Change]) -> None:
    """What was under way while an edit went out."""
    for what in sorted({one.what for one in asked}):
        every = [one for one in asked if one.what == what]
        during = [one.took_s for one in every if any(change.meets(one) for change in made)]
        failed = sum(one.status != 200 for one in every)
        crowd.show(
            f"{what} meanwhile: {spread(during, 1e3, 'ms', 0)} of {len(during)}, {failed} of {len(every)} failed"
        )
        crowd.bars.check(f"{crowd.name}: {what} meanwhile, p99", quantile(during, 0.99), CALL_S_MAX, "s")
        crowd.bars.check(f"{crowd.name}: {what}, failed", failed, 0, digits=0)


async def restart(crowd: Crowd) -> None:
    """kill -9, started again at once: all come back, as PollSchedule says."""
    crowd.tell("killed and started again; all come back within about a minute")
    await crowd.herd.ask("forget")
    began = time.monotonic()
    await asyncio.to_thread(crowd.service.kill)
    await asyncio.to_thread(crowd.service.start)
    listens = time.monotonic()
    back = await crowd.herd.ask("all_wait", within_s=180.0)
    used_s = cpu_s(crowd.service.pid)
    await asyncio.sleep(SETTLE_S)
    seen = await crowd.herd.ask("seen")
    most = most_in_a_second(seen["attempts"])
    crowd.show(
        f"killed: it listens after {listens - began:.1f} s, all are back {back - listens:.1f} s later "
        f"({used_s:.1f} CPU s); at most {most} connects/s, {len(seen['attempts'])} in all"
    )
    crowd.show(f"memory of the service after it: {rss_kb(crowd.service.pid) / 1024:.0f} MiB; {_failures(seen)}")
    crowd.bars.check(f"{crowd.name}: connects in a second, killed", most, CONNECTS_PER_S_MAX, digits=0)


async def terminate(crowd: Crowd) -> None:
    """SIGTERM, started again at once: what comes in the first seconds."""
    crowd.tell("ended by SIGTERM and started again")
    await crowd.herd.ask("forget")
    began = time.monotonic()
    await asyncio.to_thread(crowd.service.terminate)
    ended = time.monotonic()
    await asyncio.to_thread(crowd.service.start)
    await asyncio.sleep(TERMINATED_S)
    seen = await crowd.herd.ask("seen")
    most, made = most_in_a_second(seen["attempts"]), most_in_a_second(seen["connected"])
    crowd.show(
        f"SIGTERM: gone after {ended - began:.1f} s; at most {most} connects/s, of which {made} were made; "
        f"{_failures(seen)}"
    )
    crowd.bars.check(f"{crowd.name}: connects in a second, SIGTERM", most, CONNECTS_PER_S_MAX, digits=0)


def _failures(seen: dict[str, Any]) -> str:
    failures = ", ".join(f"{name} {count}" for name, count in sorted(seen["failures"].items()))
    return f"pollers saw: {failures or 'no failure'}"


async def measure(kind: Kind, options: Options, bars: Bars) -> None:
    """Everything, in plaintext or with mTLS."""
    async with crowd(kind, options, bars) as everybody:
        print(f"\n{everybody.name}", flush=True)
        each_kb = await gather(everybody, options.count)
        bars.check(f"{everybody.name}: memory per poller", each_kb, KB_EACH_MAX[kind], "KiB", 1)
        await idle(everybody)
        await changes(everybody)
        await (terminate if kind == "plain" else restart)(everybody)


async def compare(options: Options, bars: Bars) -> None:
    """What a poller costs where there is no uvloop."""
    count = min(COMPARED, options.count)
    async with crowd("asyncio", options, bars) as everybody:
        print(f"\n{everybody.name}", flush=True)
        await gather(everybody, count)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pollers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--count", type=int, default=10_000, help="pollers")
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds of idleness that are measured")
    parser.add_argument("--changes", type=int, default=4, help="edits, at least 2")
    parser.add_argument("--plain", action="store_true", help="in plaintext only")
    parser.add_argument("--mtls", action="store_true", help="with mTLS only")
    given = parser.parse_args()
    if given.count < 2 or given.changes < 2:
        parser.error("there are at least two pollers and two edits")
    options, bars = Options(given.count, given.idle, given.changes), Bars()
    end_tidily()
    open_files_max()
    first_core()
    if not given.mtls:
        asyncio.run(measure("plain", options, bars))
    if not given.plain:
        asyncio.run(measure("mtls", options, bars))
        asyncio.run(compare(options, bars))
    return bars.show()


if __name__ == "__main__":
    sys.exit(main())
