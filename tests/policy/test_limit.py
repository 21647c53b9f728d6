"""The concurrency limit: at its bound, and that every way out gives the place back."""

from __future__ import annotations

import pytest

from meshlib.call import Call, Reply
from meshlib.errors import Rejected, TransportError
from meshlib.policy.limit import Limit
from meshlib.runtime.simulation import Cancelled, SimulationRuntime


def make(max_requests: int) -> tuple[SimulationRuntime, Limit]:
    runtime = SimulationRuntime(1)
    return runtime, Limit("svc", max_requests, runtime.lock())


def test_exactly_so_many_and_no_more():
    """Ten at once of a limit of ten go through, the eleventh is refused at once, typed, naming the setting."""
    runtime, limit = make(10)

    async def slow(_call):
        await runtime.sleep(1.0)
        return Reply(200, [])

    async def scenario():
        inside = [runtime.spawn(limit(Call("svc", "GET", b"/"), slow)) for _ in range(10)]
        await runtime.sleep(0.5)
        with pytest.raises(Rejected, match=r"10 calls to 'svc' .*circuit_breaker\.max_requests") as caught:
            await limit(Call("svc", "GET", b"/"), slow)
        assert caught.value.reason == "limit"
        assert not caught.value.sent
        for task in inside:
            assert (await task).status == 200
        assert (await limit(Call("svc", "GET", b"/"), slow)).status == 200

    runtime.run(scenario())
    assert limit.inflight == 0


@pytest.mark.parametrize("error", [TransportError("reset", phase="read", cause="reset"), ValueError("bug")])
def test_a_failure_gives_the_place_back(error):
    """Whatever is raised."""
    runtime, limit = make(1)

    async def fails(_call):
        raise error

    with pytest.raises(type(error)):
        runtime.run(limit(Call("svc", "GET", b"/"), fails))
    assert limit.inflight == 0


def test_a_cancellation_gives_the_place_back():
    """A caller that goes away while it waits."""
    runtime, limit = make(1)

    async def slow(_call):
        await runtime.sleep(10.0)
        return Reply(200, [])

    async def scenario():
        task = runtime.spawn(limit(Call("svc", "GET", b"/"), slow))
        await runtime.sleep(1.0)
        assert limit.inflight == 1
        task.cancel()
        with pytest.raises(Cancelled):
            await task

    runtime.run(scenario())
    assert limit.inflight == 0


def test_a_streamed_body_holds_the_place_until_it_ends():
    """The end of the body ends a call, not its head."""
    runtime, limit = make(1)

    class Stream:
        async def read(self) -> bytes:
            return b""

        async def aclose(self) -> None:
            return None

    async def streams(_call):
        return Reply(200, [], stream=Stream())

    reply = runtime.run(limit(Call("svc", "GET", b"/"), streams))
    assert limit.inflight == 1
    reply.end(TransportError("reset", phase="read", cause="reset"))
    reply.end()
    assert limit.inflight == 0
