"""Faults: the draw, the delay within the deadlines, the answer, and that retry sees both while no endpoint is blamed."""

from __future__ import annotations

import json
import random

import pytest

from meshlib.call import Call, Reply
from meshlib.errors import DeadlineExceeded
from meshlib.policy.budget import RetryBudget
from meshlib.policy.fault import Fault, FaultPolicy
from meshlib.policy.retry import Retry, RetryPolicy
from meshlib.runtime.simulation import SimulationRuntime

from .clusters import sample_size, within_3_sigma
from .runtimes import on_every_runtime, on_simulation

DELAY_S = 0.002


async def backend(_call: Call) -> Reply:
    return Reply(200, [])


@pytest.mark.parametrize("share", [0.001, 0.2, 0.9])
def test_shares_are_drawn(share):
    """Delay and abort are independent, each with its share."""
    print("seed 11")
    rng, policy = random.Random(11), FaultPolicy(delay_s=1.0, delay_share=share, abort_share=share)
    n = sample_size(share, 0.02)
    drawn = [policy.draw(rng) for _ in range(n)]
    assert within_3_sigma(sum(delay_s > 0 for delay_s, _ in drawn), n, share)
    assert within_3_sigma(sum(abort for _, abort in drawn), n, share)
    assert within_3_sigma(sum(delay_s > 0 and abort for delay_s, abort in drawn), n, share * share)


def test_the_ends_of_a_share():
    """0 is never, 1 is always."""
    rng = random.Random(1)
    always = FaultPolicy(delay_s=1.0, delay_share=1.0, abort_share=1.0)
    assert {always.draw(rng) for _ in range(100)} == {(1.0, True)}
    assert {FaultPolicy(delay_s=1.0).draw(rng) for _ in range(100)} == {(0.0, False)}


@on_every_runtime
def test_a_delay_then_the_backend(run):
    """It waits, says so in the trail, is counted, and the call goes on."""
    recorded = []

    async def body(runtime):
        call, began = Call("svc", "GET", b"/"), runtime.now()
        reply = await Fault(FaultPolicy(delay_s=DELAY_S, delay_share=1.0), runtime, recorded.append)(call, backend)
        return reply.status, call.trail.notes, runtime.now() - began >= DELAY_S * 0.99

    assert run(body) == (200, ["attempt 1: fault injected: delay 2 ms"], True)
    assert recorded == ["delay"]


@on_every_runtime
def test_an_abort_in_the_place_of_the_endpoint(run):
    """The status, the gRPC code, the mark of what no application saw; nothing is called."""
    recorded = []

    async def never(_call):
        raise AssertionError("sent")

    async def body(runtime):
        call = Call("svc", "GET", b"/").fork()
        policy = FaultPolicy(status=429, code=8, abort_share=1.0)
        return await Fault(policy, runtime, recorded.append)(call, never), call.trail.notes

    reply, notes = run(body)
    assert (reply.status, reply.code, reply.header(b"x-meshlib-refused")) == (429, 8, b"fault")
    assert json.loads(reply.body)["error"] == "fault"
    assert notes == ["attempt 2: fault injected: abort 429"]
    assert recorded == ["abort"]


@on_every_runtime
@pytest.mark.parametrize(
    ("deadline_s", "per_try_s", "total"), [(0.002, None, True), (60.0, 0.002, False), (0.002, 30.0, True)]
)
def test_a_delay_ends_with_the_attempt_or_the_call(run, deadline_s, per_try_s, total):
    """A minute of delay takes no longer than the deadline that comes first; nothing was sent."""

    async def body(runtime):
        call, began = Call("svc", "POST", b"/"), runtime.now()
        call.deadline = call.attempt_deadline = began + deadline_s
        fault = Fault(FaultPolicy(delay_s=60.0, delay_share=1.0), runtime, lambda _: None, per_try_s)
        with pytest.raises(DeadlineExceeded, match="60000 ms") as caught:
            await fault(call, backend)
        error = caught.value
        return error.phase, error.sent, error.total, runtime.now() - began < 30.0

    assert run(body) == ("pool", False, total, True)


def test_delay_and_abort_together():
    """First the delay, then the answer; both are counted."""
    recorded = []

    async def body(runtime):
        policy = FaultPolicy(delay_s=3.0, delay_share=1.0, status=503, abort_share=1.0)
        reply = await Fault(policy, runtime, recorded.append)(Call("svc", "GET", b"/"), backend)
        return reply.status, runtime.now()

    assert on_simulation(body) == (503, 3.0)
    assert recorded == ["delay", "abort"]


def test_retry_sees_it_and_each_attempt_draws_anew():
    """POST, half of the attempts aborted: all are tried again, because none was sent; some need three attempts."""
    print("seed 3")
    runtime = SimulationRuntime(3)
    fault = Fault(FaultPolicy(status=503, abort_share=0.5), runtime, lambda _: None)
    retry = Retry(RetryPolicy(max_retries=3), RetryBudget(1.0, 1000.0), runtime.lock(), runtime, lambda: 0.0)

    async def attempt(call: Call) -> Reply:
        return await fault(call, backend)

    async def scenario():
        outcomes = []
        for _ in range(200):
            call = Call("svc", "POST", b"/", idempotent=False)
            call.deadline = call.attempt_deadline = runtime.now() + 30.0
            outcomes.append(((await retry(call, attempt)).status, sum("abort" in note for note in call.trail.notes)))
        return outcomes

    outcomes = runtime.run(scenario())
    failed = sum(status == 503 for status, _ in outcomes)
    assert within_3_sigma(failed, 200, 0.5**4)
    assert {aborts for status, aborts in outcomes if status == 200} == {0, 1, 2, 3}
