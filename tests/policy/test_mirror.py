"""Mirroring: what is copied, what becomes of it, its bounds, and that the call it is a copy of never notices."""

from __future__ import annotations

import asyncio
import gc

import pytest

from meshlib.call import FOREVER, Call, PhaseTimeouts, Reply
from meshlib.errors import TransportError
from meshlib.policy.budget import RetryBudget
from meshlib.policy.deadline import Deadline
from meshlib.policy.limit import Limit
from meshlib.policy.mirror import COPY_BODY_BYTES_MAX, COPY_S_MAX, MIRRORS_IN_FLIGHT_MAX, OUTCOMES, Mirror, Mirrors
from meshlib.policy.retry import Retry, RetryPolicy
from meshlib.runtime.event_loop import EventLoopRuntime
from meshlib.runtime.simulation import Cancelled, SimulationRuntime
from meshlib.served import Served

from .clusters import within_3_sigma
from .runtimes import on_every_runtime, on_simulation

PLACES = 4 * MIRRORS_IN_FLIGHT_MAX


class Stream:
    """A reply's body in pieces, which may end badly."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces, self.closed = list(pieces), False

    async def read(self) -> bytes:
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def aclose(self) -> None:
        self.closed = True


class Streamed:
    framed = True

    def pieces(self):
        return iter((b"x",))


class Place:
    """A destination of copies: what it was sent, what was recorded, how many are in flight."""

    def __init__(self, runtime, reply=None, *, percent=1.0, diff=False, places=PLACES, wait_s=0.0):
        self.calls, self.recorded = [], []
        self.limit = Limit("shadow", places, runtime.lock())
        self.runtime, self.reply, self.wait_s = runtime, reply, wait_s
        self.mirror = Mirror(self.send, percent, diff, self.limit, self.recorded.append)

    async def send(self, call):
        self.calls.append(call)
        await self.runtime.sleep(self.wait_s)
        if isinstance(self.reply, BaseException):
            raise self.reply
        return self.reply or Reply(200, [], b"shadow")

    def filter(self):
        return Mirrors([self.mirror], self.runtime)


async def primary(call: Call) -> Reply:
    """Answers, and changes the call as filters below do."""
    call.lines += b"changed: below\r\n"
    return Reply(200, [], b"ok")


@on_every_runtime
def test_a_copy_beside_the_call(run):
    """The same question as it went on, marked, a first attempt and the last, with a trail and a deadline of its own."""
    found = {}

    async def body(runtime):
        place = found["place"] = Place(runtime)
        call = found["call"] = Call("svc", "POST", b"/x", b"a: 1\r\n", b"body", max_retries=3, timeout_s=2.0)
        call.number, call.deadline, call.preferred, call.hash_key = 2, runtime.now() + 1.0, "k", "user"
        found["now"] = runtime.now()
        return await place.filter()(call, primary)

    reply = run(body)
    place, call = found["place"], found["call"]
    assert (reply.body, place.recorded, place.limit.copies) == (b"ok", ["sent"], 0)
    (copy,) = place.calls
    assert (copy.method, copy.target, copy.lines, copy.body) == ("POST", b"/x", b"a: 1\r\n", b"body")
    assert (copy.mirrored, call.mirrored, copy.number, copy.max_retries) == (True, False, 1, 0)
    assert (copy.hash_key, copy.timeout_s, copy.preferred, copy.schedule) == ("user", 2.0, "", None)
    assert copy.trail is not call.trail
    assert found["now"] + COPY_S_MAX <= copy.deadline == copy.attempt_deadline < FOREVER


@on_every_runtime
@pytest.mark.parametrize("error", [TransportError("x", phase="read", cause="reset"), ValueError("a bug")])
def test_a_failing_copy_is_counted_and_nothing_else(run, error):
    """Whatever the mirror's side raises, the caller has its reply."""
    found = {}

    async def body(runtime):
        place = found["place"] = Place(runtime, error)
        return await place.filter()(Call("svc", "GET", b"/"), primary)

    assert run(body).status == 200
    assert (found["place"].recorded, found["place"].limit.copies) == (["failed"], 0)


@on_every_runtime
def test_a_failing_call_is_copied_too(run):
    """The shadow sees all of the traffic; the caller gets its own error."""
    found = {}

    async def broken(_call):
        raise TransportError("gone", phase="read", cause="reset")

    async def body(runtime):
        place = found["place"] = Place(runtime, diff=True)
        with pytest.raises(TransportError, match="gone"):
            await place.filter()(Call("svc", "GET", b"/"), broken)

    run(body)
    assert found["place"].recorded == ["sent"]


def test_a_slow_mirror_delays_nobody():
    """The call is over at once; the copy ends when it ends."""
    runtime = SimulationRuntime(1)
    place = Place(runtime, wait_s=20.0)

    async def scenario():
        await place.filter()(Call("svc", "GET", b"/"), primary)
        began = runtime.now()
        assert (place.limit.copies, place.recorded) == (1, [])
        await runtime.sleep(60.0)
        return began

    assert runtime.run(scenario()) == 0.0
    assert (place.limit.copies, place.recorded) == (0, ["sent"])


def test_the_share_is_drawn():
    """Of 4000 calls, a fifth, within Gateway API's band; and each mirror draws for itself."""

    async def body(runtime):
        first, second = Place(runtime, percent=0.2), Place(runtime, percent=0.0)
        mirrors = Mirrors([first.mirror, second.mirror], runtime)
        for _ in range(4000):
            await mirrors(Call("svc", "GET", b"/"), primary)
            await runtime.sleep(0.001)
        return len(first.calls), len(second.calls)

    count, none = on_simulation(body)
    assert within_3_sigma(count, 4000, 0.2)
    assert none == 0


@pytest.mark.parametrize(
    ("places", "in_flight", "possible"),
    [(PLACES, 0, MIRRORS_IN_FLIGHT_MAX), (10, 0, 5), (10, 3, 2), (10, 5, 0), (1, 0, 0), (3, 0, 1)],
)
def test_the_bounds(places, in_flight, possible):
    """At most so many copies in flight, and none where calls and copies have half the places: the rest are dropped."""
    runtime = SimulationRuntime(1)
    place = Place(runtime, wait_s=1.0, places=places)
    place.limit.inflight = in_flight

    async def scenario():
        for _ in range(possible + 2):
            await place.filter()(Call("svc", "GET", b"/"), primary)
        await runtime.sleep(0.5)
        assert (place.limit.copies, place.recorded) == (possible, ["dropped"] * 2)
        await runtime.sleep(60.0)
        place.limit.inflight = 0

    runtime.run(scenario())
    assert (place.limit.copies, place.recorded) == (0, ["dropped"] * 2 + ["sent"] * possible)


def test_what_cannot_be_sent_twice_is_skipped():
    """A streamed body is read once, by the call."""

    async def body(runtime):
        place = Place(runtime)
        await place.filter()(Call("svc", "POST", b"/", body=Streamed()), primary)
        return place.recorded, place.calls

    assert on_simulation(body) == (["skipped"], [])


@pytest.mark.parametrize("how", ["a copy", "for a copy"])
def test_a_shadow_has_no_shadow(how):
    """Neither a copy nor a call that is made to answer one is mirrored."""

    async def body(runtime):
        place = Place(runtime)
        call = Call("svc", "GET", b"/", served=Served(runtime.now, mirror=how == "for a copy"))
        await place.filter()(call.mirror() if how == "a copy" else call, primary)
        return place.calls, place.recorded

    assert on_simulation(body) == ([], [])


@on_every_runtime
@pytest.mark.parametrize(
    ("got", "copied", "outcome"),
    [
        (Reply(200, [(b"x", b"1")], b"a"), Reply(200, [], b"a"), "same"),
        (Reply(200, [], b"a"), Reply(200, [], b"b"), "different"),
        (Reply(200, [], b"a"), Reply(500, [], b"a"), "different"),
        (Reply(503, [], b"", code=14), Reply(503, [], b"", code=4), "different"),
        (Reply(200, [], b"a" * COPY_BODY_BYTES_MAX), Reply(200, [], b"a" * COPY_BODY_BYTES_MAX), "same"),
        (Reply(200, [], b"a"), Reply(200, [], b"a" * (COPY_BODY_BYTES_MAX + 1)), "sent"),
    ],
)
def test_replies_are_compared(run, got, copied, outcome):
    """Status, gRPC code and body; not the headers; and not what is longer than the bound."""
    found = {}

    async def answer(_call):
        return got

    async def body(runtime):
        place = found["place"] = Place(runtime, copied, diff=True)
        return await place.filter()(Call("svc", "GET", b"/"), answer)

    assert run(body) is got
    assert found["place"].recorded == [outcome]


@on_every_runtime
def test_a_streamed_reply_of_the_call_is_not_compared_and_not_touched(run):
    """It belongs to whoever asked."""
    stream, found = Stream(b"a", b"b"), {}

    async def answer(_call):
        return Reply(200, [], stream=stream)

    async def body(runtime):
        place = found["place"] = Place(runtime, diff=True)
        await place.filter()(Call("svc", "GET", b"/"), answer)

    run(body)
    assert (found["place"].recorded, stream.pieces, stream.closed) == (["sent"], [b"a", b"b"], False)


@on_every_runtime
@pytest.mark.parametrize(
    ("pieces", "outcome"),
    [
        ((b"a", b"b"), "same"),
        ((b"ab", TransportError("cut", phase="read", cause="reset")), "failed"),
        ((b"a" * COPY_BODY_BYTES_MAX, b"b", b"never read"), "sent"),
    ],
)
def test_the_copys_reply_is_read_to_its_end_or_given_up(run, pieces, outcome):
    """So its connection is used again; a longer one than the bound costs its connection. What is counted on it ends."""
    stream, ended, found = Stream(*pieces), [], {}
    copied = Reply(200, [], stream=stream)
    copied.at_end(ended.append)

    async def answer(_call):
        return Reply(200, [], b"ab")

    async def body(runtime):
        place = found["place"] = Place(runtime, copied, diff=True)
        await place.filter()(Call("svc", "GET", b"/"), answer)

    run(body)
    assert (found["place"].recorded, stream.closed, len(ended)) == ([outcome], True, 1)
    assert stream.pieces == ([b"never read"] if outcome == "sent" else [])


@pytest.mark.parametrize(
    ("asked", "given"),
    [(None, COPY_S_MAX), (PhaseTimeouts(1.0, 2.0, 3.0, 4.0), 2.0), (PhaseTimeouts(1.0, 300.0, 3.0, 4.0), COPY_S_MAX)],
)
def test_an_endless_reply_is_given_up_in_time(asked, given):
    """A stream is under no deadline of the transport: here it is, and so is the wait for each of its pieces."""
    runtime = SimulationRuntime(1)

    class Endless(Stream):
        async def read(self) -> bytes:
            await runtime.sleep(1.0)
            return b"."

    stream = Endless()
    place = Place(runtime, Reply(200, [], stream=stream), diff=True)

    async def scenario():
        await place.filter()(Call("svc", "GET", b"/", phases=asked), primary)
        await runtime.sleep(COPY_S_MAX - 0.5)
        assert (place.limit.copies, stream.closed) == (1, False)
        await runtime.sleep(1.0)
        assert (place.limit.copies, stream.closed, place.recorded) == (0, True, ["sent"])

    runtime.run(scenario())
    phases = place.calls[0].phases
    assert phases.read == given
    assert asked is None or (phases.connect, phases.write, phases.pool) == (1.0, 3.0, 4.0)


def test_a_call_that_is_given_up_is_copied_and_the_copy_is_not_given_up():
    """The caller is cancelled while it waits: the cancellation is its own."""
    runtime = SimulationRuntime(1)
    place = Place(runtime, wait_s=5.0)

    async def slow(_call):
        await runtime.sleep(100.0)
        raise AssertionError("cancelled before")

    async def scenario():
        task = runtime.spawn(place.filter()(Call("svc", "GET", b"/"), slow))
        await runtime.sleep(1.0)
        task.cancel()
        with pytest.raises(Cancelled):
            await task
        await runtime.sleep(60.0)

    runtime.run(scenario())
    assert (place.recorded, place.limit.copies) == (["sent"], 0)


def test_a_loop_that_ends_gives_the_place_back():
    """The loop is over before the copy is: it is counted as failed, and takes no place in the next loop."""
    place = Place(EventLoopRuntime(), wait_s=60.0)
    for _ in range(3):
        asyncio.run(place.filter()(Call("svc", "GET", b"/"), primary))
    assert (place.recorded, place.limit.copies, len(place.calls)) == (["failed"] * 3, 0, 3)


def test_a_copy_that_never_begins_gives_the_place_back():
    """Cancelled before its first step, a coroutine runs nothing, not even its `finally`."""

    class Closing(SimulationRuntime):
        def spawn(self, work):
            if work.__name__ != "_send":
                return super().spawn(work)
            with pytest.raises(Cancelled):
                work.throw(Cancelled())
            return None

    runtime = Closing(1)
    place = Place(runtime)
    assert runtime.run(place.filter()(Call("svc", "GET", b"/"), primary)).status == 200
    gc.collect()
    assert (place.recorded, place.limit.copies, place.calls) == (["failed"], 0, [])


def test_where_nothing_can_be_spawned():
    """No thread left, or no loop: failed, and the call has its reply."""

    class Full(SimulationRuntime):
        def spawn(self, work):
            if work.__name__ == "_send":
                raise RuntimeError("can't start new thread")
            return super().spawn(work)

    runtime = Full(1)
    place = Place(runtime)
    assert runtime.run(place.filter()(Call("svc", "GET", b"/"), primary)).status == 200
    assert (place.recorded, place.limit.copies) == (["failed"], 0)


def test_what_a_copy_does_is_not_told_to_our_caller():
    """Below the real deadline and retry filters: its deadline is its own, it is tried once, and pays for no retry."""
    runtime = SimulationRuntime(1)
    served = Served(runtime.now, deadline=1.0, attempt=2, criticality="high")
    budget = RetryBudget(1.0, 0.0)  # a call pays for a retry
    retry = Retry(RetryPolicy(max_retries=3), budget, runtime.lock(), runtime, lambda: 0.0)
    place = Place(runtime, Reply(503, [(b"x-meshlib-no-retry", b"1")]))
    deadline = Deadline(20.0, 30.0, runtime.now)
    calls = []

    async def retried(call):
        return await retry(call, place.send)

    async def send(call):
        calls.append(call)
        return await deadline(call, retried)

    async def scenario():
        mirrors = Mirrors([Mirror(send, 1.0, True, place.limit, place.recorded.append)], runtime)
        call = Call("svc", "GET", b"/", idempotent=True, served=served)
        await mirrors(call, primary)
        await runtime.sleep(60.0)

    runtime.run(scenario())
    (copy,) = calls
    assert (len(place.calls), place.recorded, served.spent) == (1, ["different"], False)
    assert copy.deadline == 20.0
    assert (copy.served.criticality, copy.served.attempt) == ("high", 2)
    assert not budget.withdraw(runtime.now())


def test_every_outcome_has_a_name():
    """What the metric says is what is written here."""
    assert OUTCOMES == ("sent", "same", "different", "skipped", "dropped", "failed")
