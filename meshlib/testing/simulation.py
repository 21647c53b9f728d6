"""Virtual time: the production engine on the simulation runtime. An hour takes milliseconds, and always ends the same.

What runs in a simulation awaits calls of a mesh in memory, `sim.sleep` and what `sim.spawn` gave; nothing of asyncio,
whose waits need a real clock and a real loop: that is refused with a sentence. When everybody sleeps, time jumps
(trio's `autojump_clock`). Chance has one seed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from ..runtime.simulation import SimulationRuntime, Task

if TYPE_CHECKING:
    from ..call import Call
    from ..runtime import Rng

T = TypeVar("T")

TRANSCRIPT_MAX = 100_000
"""Lines of a transcript that are kept, the last ones; `digest` is of all."""


@dataclass(frozen=True, slots=True)
class Simulated(Generic[T]):
    """How a simulation ended. `duration_s`: virtual seconds. `transcript`: a line per attempt, as it ended.

    `digest`: of the whole transcript; two runs with one digest were the same.
    """

    result: T
    seed: int
    duration_s: float
    transcript: tuple[str, ...]
    digest: str


class Simulation:
    """What code in a simulation has instead of a clock and a loop. Made by `simulate`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.runtime = SimulationRuntime(seed)
        self._transcript: deque[str] = deque(maxlen=TRANSCRIPT_MAX)
        self._digest = hashlib.sha256()

    @property
    def rng(self) -> Rng:
        """Chance, from the seed."""
        return self.runtime.rng

    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.runtime.now()

    async def sleep(self, seconds: float) -> None:
        """Wait, in virtual time."""
        await self.runtime.sleep(seconds)

    def spawn(self, work: Coroutine[Any, Any, T]) -> Task:
        """Run `work` beside the caller. `await` the task for its result or error; it has `cancel()`."""
        return self.runtime.spawn(work)

    def note(self, line: str) -> None:
        """Add a line of your own to the transcript, with its time."""
        stamped = f"{self.now():.6f} {line}"
        self._transcript.append(stamped)
        self._digest.update(stamped.encode() + b"\n")

    def attempted(self, call: Call, service: str, address: str, began: float, outcome: str) -> None:
        """An attempt has ended."""
        target = call.target.decode("latin-1")
        took_ms = (self.now() - began) * 1e3
        self.note(f"{service} {address} {call.method} {target} attempt {call.number} → {outcome} in {took_ms:.3f} ms")

    def ended(self, result: T) -> Simulated[T]:
        """What `simulate` returns."""
        return Simulated(result, self.seed, self.now(), tuple(self._transcript), self._digest.hexdigest())


def simulate(main: Callable[[Simulation], Coroutine[Any, Any, T]], *, seed: int = 0) -> Simulated[T]:
    """Run `main(sim)` in virtual time. The same `main` and `seed` give the same transcript.

    An error of `main`, or of a task that nobody awaited, is raised with a note that names the seed and the time.

    >>> from meshlib.testing import FakeMesh
    >>> async def main(sim):
    ...     mesh = FakeMesh({"version": 1, "mesh": "shop", "services": {"inventory": {}}})
    ...     mesh.service("inventory").delay(0.5)
    ...     for _ in range(3600):
    ...         await mesh.client("inventory").get("/items/7")
    ...         await sim.sleep(0.5)
    ...     return sim.now()
    >>> simulate(main).result
    3600.0
    """
    simulation = Simulation(seed)
    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(cast("Any", SimulatedLoop(simulation)))
    try:
        return simulation.ended(simulation.runtime.run(main(simulation)))
    except BaseException as error:
        error.add_note(f"in a simulation at t={simulation.now():.6f} s; seed={seed} repeats it")
        raise
    finally:
        asyncio._set_running_loop(outer)


def current_simulation() -> Simulation | None:
    """The simulation that runs here, or None in real time."""
    loop: Any = asyncio._get_running_loop()
    return loop.simulation if isinstance(loop, SimulatedLoop) else None


class SimulatedLoop:
    """What asyncio finds as the running loop of a simulation: it tells which one that is, and refuses everything."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation

    def is_closed(self) -> bool:
        """It is there as long as it is asked."""
        return False

    def create_task(self, coro: Any, **_options: Any) -> NoReturn:
        """RuntimeError, as for everything else."""
        coro.close()
        raise _no_asyncio()

    def __getattr__(self, name: str) -> NoReturn:
        raise _no_asyncio()


def _no_asyncio() -> RuntimeError:
    return RuntimeError("a simulation has no asyncio: await sim.sleep(…), sim.spawn(…), and calls of a FakeMesh")
