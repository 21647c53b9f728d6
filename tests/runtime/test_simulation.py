"""The simulation runtime: virtual time, order, cancellation, determinism; what stands still is reported."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from contextvars import ContextVar

import pytest

from meshlib.call import FOREVER
from meshlib.runtime import simulation
from meshlib.runtime.simulation import Cancelled, SimulationRuntime


def test_time_jumps():
    """An hour of sleep costs no real time and ends exactly when it should."""
    runtime = SimulationRuntime()

    async def work():
        await runtime.sleep(3600.0)
        await runtime.sleep(0.0)
        await runtime.sleep(-1.0)
        return runtime.now()

    assert runtime.run(work()) == 3600.0


def test_the_earliest_runs_next_and_ties_run_in_the_order_they_were_made():
    """Nothing but wake-up time and order decides."""
    runtime = SimulationRuntime()
    seen = []

    async def note(name, delay):
        await runtime.sleep(delay)
        seen.append((runtime.now(), name))

    async def work():
        tasks = [runtime.spawn(note(name, delay)) for name, delay in (("c", 2.0), ("a", 1.0), ("b", 1.0))]
        for task in tasks:
            await task

    runtime.run(work())
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c")]


def test_a_task_gives_its_result_or_its_error_to_everyone_who_waits():
    """As often as it is awaited, before and after its end."""
    runtime = SimulationRuntime()

    async def result(value):
        await runtime.sleep(1.0)
        if isinstance(value, Exception):
            raise value
        return value

    async def work():
        good, bad = runtime.spawn(result(7)), runtime.spawn(result(KeyError("x")))
        waiting = runtime.spawn(result_of(good))
        assert (await good, await waiting, await good) == (7, 7, 7)
        for _ in range(2):
            with pytest.raises(KeyError):
                await bad

    async def result_of(task):
        return await task

    runtime.run(work())


@pytest.mark.parametrize(("takes", "outcome"), [(1.0, "done"), (2.0, "done"), (3.0, "late")])
def test_before(takes, outcome):
    """The result within the deadline, TimeoutError at the deadline; who ends exactly then was begun first and wins."""
    runtime = SimulationRuntime()

    async def work():
        await runtime.sleep(takes)
        return "done"

    async def scenario():
        try:
            return await runtime.before(2.0, work())
        except TimeoutError:
            assert runtime.now() == 2.0
            return "late"

    assert runtime.run(scenario()) == outcome


def test_before_cancels_the_work_and_waits_for_its_end():
    """The work's own clean-up has run when TimeoutError arrives."""
    runtime = SimulationRuntime()
    seen = []

    async def work():
        try:
            await runtime.sleep(10.0)
        except Cancelled:
            await runtime.sleep(0.5)
            seen.append("cleaned up")
            raise

    async def scenario():
        with pytest.raises(TimeoutError):
            await runtime.before(2.0, work())
        assert (seen, runtime.now()) == (["cleaned up"], 2.5)

    runtime.run(scenario())


def test_before_passes_errors_and_cancellation_on():
    """An error of the work is the work's; a cancellation from outside is not a timeout, also at the same instant."""
    runtime = SimulationRuntime()

    async def fails():
        raise KeyError("x")

    async def scenario():
        with pytest.raises(KeyError):
            await runtime.before(2.0, fails())
        for at in (0.5, 1.0):
            start = runtime.now()
            outer = runtime.spawn(runtime.before(start + 1.0, runtime.sleep(5.0)))
            await runtime.sleep(at)
            outer.cancel()
            with pytest.raises(Cancelled):
                await outer

    runtime.run(scenario())


def test_a_cancellation_during_the_clean_up_of_a_timeout_is_not_lost():
    """The deadline has passed, the work is still closing, and now the caller is cancelled: it hears Cancelled."""
    runtime = SimulationRuntime()

    async def work():
        try:
            await runtime.sleep(10.0)
        finally:
            await runtime.sleep(1.0)

    async def scenario():
        outer = runtime.spawn(runtime.before(2.0, work()))
        await runtime.sleep(2.5)
        outer.cancel()
        with pytest.raises(Cancelled):
            await outer

    runtime.run(scenario())


def test_before_with_a_deadline_that_has_passed():
    """It times out at once; work that needs no time is still done, as on asyncio."""
    runtime = SimulationRuntime()

    async def scenario():
        await runtime.sleep(5.0)
        assert await runtime.before(1.0, runtime.sleep(0.0)) is None
        with pytest.raises(TimeoutError):
            await runtime.before(1.0, runtime.sleep(1.0))
        assert runtime.now() == 5.0

    runtime.run(scenario())


def test_nested_deadlines_end_with_the_earlier():
    """The inner one times out inside, the outer one through it."""
    runtime = SimulationRuntime()

    async def inner(seconds):
        try:
            await runtime.before(runtime.now() + seconds, runtime.sleep(10.0))
        except TimeoutError:
            return "inner"

    async def scenario():
        assert await runtime.before(2.0, inner(1.0)) == "inner"
        with pytest.raises(TimeoutError):
            await runtime.before(3.0, inner(5.0))
        assert runtime.now() == 3.0

    runtime.run(scenario())


def test_cancel():
    """It is thrown in where the task waits; a finished one is left alone; twice is once."""
    runtime = SimulationRuntime()
    seen = []

    async def sleeper():
        try:
            await runtime.sleep(10.0)
        finally:
            seen.append(runtime.now())

    async def scenario():
        task = runtime.spawn(sleeper())
        await runtime.sleep(1.0)
        task.cancel()
        task.cancel()
        with pytest.raises(Cancelled):
            await task
        task.cancel()
        assert seen == [1.0]

    runtime.run(scenario())


def test_a_task_that_cancels_itself_hears_of_it_when_it_waits():
    """Not never, and not in the middle of a step."""
    runtime = SimulationRuntime()
    handles = []

    async def suicidal():
        await runtime.sleep(0.0)
        handles[0].cancel()
        await runtime.sleep(100.0)

    async def scenario():
        handles.append(runtime.spawn(suicidal()))
        with pytest.raises(Cancelled):
            await handles[0]
        assert runtime.now() == 0.0

    runtime.run(scenario())


def test_a_sleep_is_not_cut_short_by_what_was_waited_for_before():
    """A cancelled wait is over: the end of that task must not wake the next sleep."""
    runtime = SimulationRuntime()

    async def waiter(other):
        try:
            await other
        except Cancelled:
            await runtime.sleep(10.0)
        return runtime.now()

    async def scenario():
        other = runtime.spawn(runtime.sleep(5.0))
        task = runtime.spawn(waiter(other))
        await runtime.sleep(1.0)
        task.cancel()
        return await task

    assert runtime.run(scenario()) == 11.0


def test_a_spawned_task_has_its_makers_context():
    """Contextvars are inherited at the spawn and never leak back."""
    runtime, place = SimulationRuntime(), ContextVar("place", default="none")

    async def child():
        inherited = place.get()
        place.set("child")
        return inherited

    async def scenario():
        place.set("parent")
        task = runtime.spawn(child())
        place.set("later")
        assert await task == "parent"
        return place.get()

    assert runtime.run(scenario()) == "later"
    assert place.get() == "none"


def test_an_error_that_nobody_awaited_is_not_lost():
    """`run` raises it at its end; one that was awaited is the awaiter's."""
    runtime = SimulationRuntime()

    async def fails():
        raise KeyError("lost")

    async def careless():
        runtime.spawn(fails())
        await runtime.sleep(1.0)
        return "fine"

    with pytest.raises(KeyError, match="lost"):
        runtime.run(careless())

    async def late():
        task = runtime.spawn(fails())
        await runtime.sleep(1.0)
        with pytest.raises(KeyError):
            await task
        return "fine"

    assert runtime.run(late()) == "fine"


def test_what_is_left_goes_on_in_the_next_run():
    """A mesh that was started in one run works in the next."""
    runtime = SimulationRuntime()
    beats = []

    async def heart():
        while True:
            await runtime.sleep(1.0)
            beats.append(runtime.now())

    async def start():
        return runtime.spawn(heart())

    task = runtime.run(start())
    runtime.run(runtime.sleep(3.5))
    assert beats == [1.0, 2.0, 3.0]
    task.cancel()
    runtime.run(runtime.sleep(3.5))
    assert beats == [1.0, 2.0, 3.0]


def test_a_deadlock_is_reported():
    """Everybody waits for somebody: no jump to the end of time, also where a deadline of FOREVER is armed."""
    runtime = SimulationRuntime()

    async def scenario():
        me = runtime.spawn(runtime.sleep(FOREVER))
        await runtime.before(FOREVER, wait_for(me))

    async def wait_for(task):
        await task

    with pytest.raises(RuntimeError, match="no one is left to wake it"):
        runtime.run(scenario())
    assert runtime.now() == 0.0


def test_a_livelock_is_reported(monkeypatch):
    """More steps than STEPS_MAX at one instant."""
    monkeypatch.setattr(simulation, "STEPS_MAX", 1000)
    runtime = SimulationRuntime()
    handles = []

    async def restless():
        await runtime.sleep(1.0)
        while True:
            handles[0].cancel()
            try:
                await runtime.sleep(1.0)
            except Cancelled:
                continue

    async def scenario():
        handles.append(runtime.spawn(restless()))
        await handles[0]

    with pytest.raises(RuntimeError, match=r"1000 steps at t=1\.0 without progress"):
        runtime.run(scenario())


def test_a_livelock_of_tiny_sleeps_is_reported(monkeypatch):
    """Sleeps too short to move the clock are steps at one instant too."""
    monkeypatch.setattr(simulation, "STEPS_MAX", 1000)
    runtime = SimulationRuntime()

    async def scenario():
        await runtime.sleep(1.0)
        for _ in range(5000):
            await runtime.sleep(1e-300)

    with pytest.raises(RuntimeError, match=r"1000 steps at t=1\.0 without progress"):
        runtime.run(scenario())


def test_many_steps_are_no_livelock_while_time_moves(monkeypatch):
    """The count begins anew at every instant."""
    monkeypatch.setattr(simulation, "STEPS_MAX", 10)
    runtime = SimulationRuntime()

    async def scenario():
        for _ in range(100):
            await runtime.sleep(0.001)

    runtime.run(scenario())
    assert runtime.now() == pytest.approx(0.1)


def test_only_this_runtimes_waits_are_allowed():
    """Waiting for an event loop inside the simulation is caught on the spot."""
    runtime = SimulationRuntime()

    class Foreign:
        def __await__(self):
            yield "future"

    async def scenario():
        await Foreign()

    with pytest.raises(RuntimeError, match="'future' is not something this runtime can wait for"):
        runtime.run(scenario())


def test_all_of_it_in_one_lock():
    """A lock may be taken again by whoever holds it, and is free afterwards."""
    lock = SimulationRuntime().lock()
    with lock, lock:
        pass
    with lock:
        pass


SCRIPT = """
import hashlib
from meshlib.runtime.simulation import SimulationRuntime
runtime = SimulationRuntime({seed})
lines = []
async def one(name):
    for _ in range(20):
        await runtime.sleep(runtime.rng.random())
        lines.append(f"{{runtime.now()!r}} {{name}}")
        try:
            await runtime.before(runtime.now() + 0.3, runtime.sleep(runtime.rng.random()))
        except TimeoutError:
            lines.append(f"{{runtime.now()!r}} {{name}} late")
async def all_of_them():
    for task in [runtime.spawn(one(name)) for name in {{"a", "b", "c"}} and ("a", "b", "c")]:
        await task
runtime.run(all_of_them())
digest = hashlib.sha256("\\n".join(lines).encode()).hexdigest()
"""


def digest(seed: int) -> str:
    scope: dict[str, str] = {"hashlib": hashlib}
    exec(SCRIPT.format(seed=seed), scope)
    return scope["digest"]


def test_the_same_seed_gives_the_same_transcript():
    """Twice in this process, and in another with another hash seed; another seed gives another one."""
    assert digest(5) == digest(5) != digest(6)
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(seed=5) + "print(digest)"],
        env=environment, check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert other.stdout.strip() == digest(5)
