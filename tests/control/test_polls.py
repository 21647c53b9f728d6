"""Who waits for what, how they are woken and forgotten, and the bounds; in virtual time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from typing import Any

import pytest

from meshlib.control import polls as module
from meshlib.control.polls import JITTER, RECONNECT_S_MAX, SLICE, Ended, Polls, PollsFull, Process

from .virtual_time import passes, run, steps

SILENCE_S = 15.0


class World:
    """Polls of processes that have everything."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.polls = Polls(self.loop, random.Random(3), SILENCE_S)

    def process(self, instance: str, *want: str, service: str = "orders.default") -> Process:
        resources = ("trust", "defaults", *(f"service/{name}" for name in want))
        process = Process(instance, 7, self.polls.interest(service, want), resources)
        self.polls.begin(process)
        return process

    def waiting(self, instance: str, *want: str, seconds: float = 30.0) -> tuple[Process, asyncio.Future[Ended]]:
        process = self.process(instance, *want)
        return process, self.polls.wait(process, seconds)


def test_a_quiet_poll_ends_after_its_time_and_up_to_a_sixteenth():
    """Not before its time, and not all together: by chance within one sixteenth more."""

    async def scenario() -> list[float]:
        world = World()
        began = world.loop.time()

        async def waits(instance: str) -> float:
            _, future = world.waiting(instance, seconds=16.0)
            assert await future is Ended.QUIET
            return world.loop.time() - began

        return await asyncio.gather(*(waits(f"i{number}") for number in range(50)))

    took = run(scenario())
    assert min(took) >= 16.0
    assert max(took) <= 16.0 * (1 + JITTER)
    assert max(took) - min(took) > 0.5


def test_a_change_wakes_those_who_want_it_and_no_others():
    """A service's change ends the polls that follow it; a change of `trust` ends all."""

    async def scenario() -> None:
        world = World()
        _, first = world.waiting("i1", "inventory.default")
        _, second = world.waiting("i2", "payments.default")
        world.polls.wake({"service/inventory.default"})
        await steps()
        assert (first.done(), second.done()) == (True, False)
        assert first.result() is Ended.NEWS
        world.polls.wake({"trust"})
        await steps()
        assert second.result() is Ended.NEWS

    run(scenario())


def test_thousands_are_woken_in_slices():
    """Between two slices of a wake-up the loop does what else has come; all are woken in the end, in no time."""

    async def scenario() -> None:
        world = World()
        futures = [world.waiting(f"i{number}")[1] for number in range(10 * SLICE)]
        world.polls.wake({"trust"})
        seen = []
        for _ in range(30):
            seen.append(sum(future.done() for future in futures))
            await asyncio.sleep(0)
        grown = [after - before for before, after in itertools.pairwise(seen)]
        assert max(grown) <= SLICE
        assert seen[-1] == len(futures)

    run(scenario())


def test_one_who_has_left_meanwhile_is_not_woken():
    """A poll that was lost between two slices of a wake-up stays lost."""

    async def scenario() -> None:
        world = World()
        waiting = [world.waiting(f"i{number}") for number in range(2 * SLICE)]
        world.polls.wake({"trust"})
        left = [process for process, future in waiting if not future.done()]
        for process in left:
            process.lost()
        await steps(5)
        assert sum(future.result() is Ended.LOST for _, future in waiting) == len(left) > 0

    run(scenario())


def test_a_newer_poll_of_a_process_ends_the_one_before():
    """The first is answered at once, empty; of another service with the same id it is another process."""

    async def scenario() -> None:
        world = World()
        first, future = world.waiting("i1")
        world.process("i1", service="payments.default")
        assert not future.done()
        second = world.process("i1")
        assert future.result() is Ended.QUIET
        world.polls.finish(first)
        assert world.polls.find("orders.default", "i1") is second
        assert len(world.polls) == 2

    run(scenario())


def test_a_silent_process_is_forgotten_as_its_lease_would_be():
    """It is known for as long as it might be alive, counted from the end of its last poll; one that polls again stays."""

    async def scenario() -> None:
        world = World()
        gone, back = world.process("gone"), world.process("back")
        world.polls.finish(gone)
        world.polls.finish(back)
        await passes(SILENCE_S - 1)
        world.process("back")
        world.polls.sweep()
        assert len(world.polls) == 2
        await passes(2)
        world.polls.sweep()
        assert [process.instance for process in world.polls] == ["back"]

    run(scenario())


def test_there_is_room_for_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch):
    """At either bound one more process is refused, a known one is not; silence makes room."""
    monkeypatch.setattr(module, "PROCESSES_MAX", 3)
    monkeypatch.setattr(module, "SERVICE_PROCESSES_MAX", 2)

    async def scenario() -> None:
        world = World()
        world.process("i1")
        world.process("i2")
        with pytest.raises(PollsFull):
            world.process("i3")
        world.process("i3", service="payments.default")
        with pytest.raises(PollsFull):
            world.process("i4", service="inventory.default")
        last = world.process("i2")
        world.polls.finish(last)
        await passes(SILENCE_S + 1)
        world.polls.sweep()
        world.process("i3")

    run(scenario())


def test_what_is_wanted_in_all_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """Names in different lists count until nobody wants them; a list that is there costs nothing more."""
    monkeypatch.setattr(module, "WANTED_MAX", 5)

    async def scenario() -> None:
        polls = World().polls
        kept = polls.interest("a.default", ["b.default", "c.default", "d.default"])
        with pytest.raises(PollsFull):
            polls.interest("a.default", ["e.default", "f.default", "g.default"])
        assert polls.interest("a.default", kept.want) is kept
        del kept
        gc.collect()
        polls.interest("a.default", ["e.default", "f.default", "g.default"])

    run(scenario())


def test_what_one_service_wants_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """One service's different lists do not take the place of another's."""
    monkeypatch.setattr(module, "SERVICE_WANTED_MAX", 3)

    async def scenario() -> None:
        polls = World().polls
        kept = [polls.interest("a.default", [f"{number}.default" for number in range(3)])]
        with pytest.raises(PollsFull):
            polls.interest("a.default", ["e.default"])
        kept.append(polls.interest("b.default", ["e.default"]))
        kept.clear()
        gc.collect()
        polls.interest("a.default", ["e.default"])

    run(scenario())


def test_a_change_looks_at_those_alone_who_wait_for_it():
    """Found by resource: who waits for something else, or no longer, is not among those looked at; a closure that is
    too large to be found so, and one that became another meanwhile, are woken all the same.
    """

    async def scenario() -> None:
        world = World()
        _, many = world.waiting("i1", *(f"s{number}.default" for number in range(module.INDEXED_MAX)))
        waiting = [world.waiting(f"j{number}", f"t{number}.default") for number in range(50)]
        for process, _ in waiting[:10]:
            process.lost()
        assert world.polls._waiting.of({"service/t3.default"}) == set()
        assert world.polls._waiting.of({"service/t13.default"}) == {waiting[13][0].interest}
        again = Process(
            "k", 7, world.polls.interest("orders.default", ["t13.default"]), ("trust", "service/new.default")
        )
        world.polls.begin(again)
        renewed = world.polls.wait(again, 30.0)
        world.polls.wake({"service/new.default", "service/s7.default"})
        await steps()
        assert (renewed.result(), waiting[13][1].result(), many.result()) == (Ended.NEWS,) * 3
        world.polls.close()
        assert not world.polls._waiting._by_resource
        assert not world.polls._waiting._large
        assert not world.polls._waiting._every

    run(scenario())


def test_closed_polls_hold_nobody():
    """At the end every poll is answered at once, and none is held any more."""

    async def scenario() -> None:
        world = World()
        futures = [world.waiting(f"i{number}")[1] for number in range(100)]
        world.polls.close()
        assert {future.result() for future in futures} == {Ended.QUIET}
        assert world.waiting("late")[1].result() is Ended.QUIET

    run(scenario())


def test_a_lost_poll_leaves_nothing_that_waits():
    """Its timer is cancelled, and what it was interested in is forgotten with the last who was."""

    async def scenario() -> None:
        world = World()
        process, future = world.waiting("i1", "inventory.default")
        timer = process.timer
        process.lost()
        assert future.result() is Ended.LOST
        assert timer is not None
        assert timer.cancelled()
        world.polls.finish(process)
        await passes(SILENCE_S + 1)
        world.polls.sweep()
        del process
        gc.collect()
        assert len(world.polls._interests) == 0

    run(scenario())


def test_who_wants_the_same_waits_for_one_object():
    """Ten thousand processes of a service cost one list of what they want, in whatever order they say it."""

    async def scenario() -> None:
        polls = World().polls
        assert polls.interest("a.default", ["c.default", "b.default"]) is polls.interest(
            "a.default", ["b.default", "c.default", "b.default"]
        )

    run(scenario())


@pytest.mark.parametrize(("processes", "seconds"), [(0, 1.0), (150, 1.0), (600, 4.0), (20_000, RECONNECT_S_MAX)])
def test_a_herd_is_asked_to_come_back_slowly(processes: int, seconds: float):
    """150 a second, within a minute at the latest, and a few within a second."""

    async def scenario() -> float:
        polls = World().polls
        polls._processes = dict.fromkeys(range(processes))  # type: ignore[assignment]
        return polls.reconnect_s

    assert run(scenario()) == seconds


def test_the_polls_of_a_certificate_can_be_ended():
    """Those of a revoked certificate are answered at once; others go on."""

    async def scenario() -> None:
        world = World()
        waiting: list[Any] = [world.waiting(f"i{number}") for number in range(3)]
        waiting[1][0].serial = 8
        world.polls.end_all({8})
        assert [future.done() for _, future in waiting] == [False, True, False]

    run(scenario())
