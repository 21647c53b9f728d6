"""One body of code on three runtimes: the same scenario gives the same transcript, decision by decision.

The real deadline, limit, retry and balance filters over scripted leaves; the leaf waits through the runtime. The
blocking runtime sleeps for real, so the script's times are milliseconds and the transcript has none.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from meshlib.call import Call, Reply
from meshlib.endpoint import Endpoint
from meshlib.errors import DeadlineExceeded, MeshError, TransportError
from meshlib.policy.balance import Balance, Cluster
from meshlib.policy.budget import RetryBudget
from meshlib.policy.deadline import AttemptTimeout, Deadline
from meshlib.policy.limit import Limit
from meshlib.policy.node import Node
from meshlib.policy.outlier import OutlierPolicy
from meshlib.policy.retry import Retry, RetryPolicy
from meshlib.runtime.blocking import BlockingRuntime, drive
from meshlib.runtime.event_loop import EventLoopRuntime
from meshlib.runtime.simulation import SimulationRuntime
from meshlib.stack import Layer, Stack

SEED = 31337
SLOW_S, ATTEMPT_S = 60.0, 0.02

SCENES = {
    "ok": ["200"],
    "503 then ok": ["503", "200"],
    "refused then ok": ["refused", "200"],
    "always 503": ["503"] * 3,
    "slow, then ok": ["slow", "200"],
    "always slow": ["slow"] * 3,
    "reset of a post": ["reset"],
}


def leaf(runtime, script):
    """Plays `script`, outcome by outcome; waits, as a real one does, no longer than its attempt may."""

    async def play(call):
        outcome = script.pop(0)
        wait_s = SLOW_S if outcome == "slow" else 0.0005
        left = call.attempt_deadline - runtime.now()
        await runtime.sleep(min(wait_s, left))
        if left < wait_s:
            total = call.attempt_deadline == call.deadline
            raise DeadlineExceeded("no answer", phase="read", sent=True, total=total)
        if outcome == "refused":
            raise TransportError("refused", phase="connect", cause="refused", sent=False)
        if outcome == "reset":
            raise TransportError("reset", phase="read", cause="reset")
        return Reply(int(outcome), [])

    return play


def client(runtime, script):
    """deadline · limit · retry · balance · (node) attempt timeout · leaf."""
    lock, outlier, rng = runtime.lock(), OutlierPolicy(), random.Random(SEED)
    runtime.rng = rng
    nodes = [Node(Endpoint(f"n{index}", 80), outlier) for index in range(4)]
    inner = Stack("endpoint", (Layer("timeout", lambda _: AttemptTimeout(ATTEMPT_S, runtime.now), ""),))
    services = {node: inner.bind(None, leaf(runtime, script)) for node in nodes}
    policy = RetryPolicy(max_retries=2, base_interval_s=0.0005, max_interval_s=0.001)
    limit = Limit("svc", 8, lock)
    outer = Stack(
        "destination",
        (
            Layer("deadline", lambda _: Deadline(5.0, 30.0, runtime.now), ""),
            Layer("limit", lambda _: limit, ""),
            Layer("retry", lambda _: Retry(policy, RetryBudget(), lock, runtime, lambda: 0.0), ""),
        ),
    )
    cluster = Cluster("svc", nodes, "random", outlier, lock)
    return outer.bind(None, Balance(cluster, services, ATTEMPT_S, runtime.now, rng)), limit, nodes


async def transcript(runtime) -> list[str]:
    """What happened in every scene, one line per attempt and outcome."""
    lines = []
    for scene, script in SCENES.items():
        service, limit, nodes = client(runtime, list(script))
        call = Call("svc", "POST" if "post" in scene else "GET", b"/", idempotent="post" not in scene)
        try:
            end = str((await service(call)).status)
        except MeshError as error:
            end = f"{error.kind} sent={error.sent}"
        for attempt in call.trail:
            error = attempt.error
            lines.append(f"{scene}: {attempt.number} {attempt.endpoint.address} {attempt.why_picked} "
                         f"{attempt.status} {error.kind if error else '-'}")  # fmt: skip
        lines.append(f"{scene}: {end} {call.trail.notes} in flight {limit.inflight} {[n.inflight for n in nodes]}")
    return lines


def on_simulation() -> list[str]:
    runtime = SimulationRuntime(SEED)
    return runtime.run(transcript(runtime))


def on_asyncio() -> list[str]:
    return asyncio.run(transcript(EventLoopRuntime()))


def on_blocking() -> list[str]:
    return drive(transcript(BlockingRuntime()))


@pytest.mark.parametrize("run", [on_asyncio, on_blocking])
def test_one_body_one_transcript(run):
    """Attempt numbers, endpoints, reasons, outcomes and notes are those of the simulation, line by line."""
    print(f"seed {SEED}")
    assert run() == on_simulation()


def test_the_transcript_says_what_it_should():
    """The reference itself: every scene ends as its script demands, retries go elsewhere, nothing is left in flight."""
    lines = on_simulation()
    ends = [line for line in lines if "in flight" in line]
    assert [line.partition(" in flight ")[0] for line in ends] == [
        "ok: 200 []",
        "503 then ok: 200 []",
        "refused then ok: 200 []",
        "always 503: 503 ['not retried: 2 of 2 retries used']",
        "slow, then ok: 200 []",
        "always slow: deadline sent=True ['not retried: 2 of 2 retries used']",
        "reset of a post: transport sent=True ['not retried: POST is not declared idempotent']",
    ]
    assert all(line.endswith("in flight 0 [0, 0, 0, 0]") for line in ends)
    attempts = [line.split() for line in lines if "in flight" not in line]
    assert len(attempts) == sum(map(len, SCENES.values()))
    tried = [line.partition(": ")[2].split()[1] for line in lines if line.startswith("always 503: ") and ":80" in line]
    assert len(set(tried)) == 3, "a retry went where the call had been"
