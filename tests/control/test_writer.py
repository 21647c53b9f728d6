"""The thread that touches the disk: in order, off the loop, and bounded."""

from __future__ import annotations

import asyncio
import threading

import pytest

from meshlib.control import writer as module
from meshlib.control.writer import Busy, Writer


def test_work_is_done_in_order_on_one_thread():
    """One piece after the other, on a thread that is not the loop's; what it raises is raised."""

    async def scenario() -> None:
        writer, done = Writer(), []

        def work(number: int) -> int:
            done.append((number, threading.current_thread().name))
            return number

        assert await asyncio.gather(*(writer.run(work, number) for number in range(20))) == list(range(20))
        assert [number for number, _ in done] == list(range(20))
        assert len({name for _, name in done}) == 1
        assert threading.current_thread().name not in {name for _, name in done}
        with pytest.raises(ZeroDivisionError):
            await writer.ask(divmod, 1, 0)
        writer.close()

    asyncio.run(scenario())


def test_so_many_may_wait_and_no_more(monkeypatch: pytest.MonkeyPatch):
    """At the bound one more request is Busy at once; our own work is not; room is made by what is done."""
    monkeypatch.setattr(module, "WRITES_MAX", 2)

    async def scenario() -> None:
        writer, go = Writer(), threading.Event()
        waiting = [asyncio.create_task(writer.ask(go.wait, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await writer.ask(int)
        own = asyncio.create_task(writer.run(int))
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*waiting, own) == [True, True, 0]
        assert await writer.ask(int) == 0
        writer.close()

    asyncio.run(scenario())
