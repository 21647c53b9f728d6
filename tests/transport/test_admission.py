"""The three layers that decide whether a request is let in."""

from __future__ import annotations

import pytest

from meshlib.call import Call, Reply
from meshlib.errors import Rejected
from meshlib.runtime.blocking import drive
from meshlib.served import Served
from meshlib.stack import Stack
from meshlib.transport.admission import CONCURRENCY, DEADLINE, DRAIN, Concurrency, Deadline, Drain, InFlight


class Stream:
    """A reply's body that is still coming."""

    async def read(self) -> bytes:
        return b""

    async def aclose(self) -> None:
        return


class Context:
    def __init__(self, max_concurrency: int | None) -> None:
        self.now, self.in_flight, self.max_concurrency = (lambda: 0.0), InFlight(), max_concurrency


async def ok(call: Call) -> Reply:
    return Reply(200, [])


def call(deadline: float | None = None) -> Call:
    served = None if deadline is None else Served(lambda: 0.0, deadline=deadline)
    return Call("orders", "GET", b"/", served=served)


def test_in_flight_is_counted_to_the_end_of_the_body() -> None:
    """A reply whose body still comes is in flight until it ends, also when the service fails."""
    in_flight = InFlight()
    reply = Reply(200, [], stream=Stream())

    async def streaming(call: Call) -> Reply:
        assert in_flight.count == 1
        return reply

    async def failing(call: Call) -> Reply:
        raise KeyError

    drive(Drain(in_flight)(call(), streaming))
    assert in_flight.count == 1
    reply.end()
    assert in_flight.count == 0
    with pytest.raises(KeyError):
        drive(Drain(in_flight)(call(), failing))
    assert in_flight.count == 0


def test_nothing_begins_after_the_grace() -> None:
    """Past the grace of a shutdown a request is shed, with a hint when to ask again."""
    in_flight = InFlight()
    in_flight.closed = True
    with pytest.raises(Rejected, match="shutting down") as caught:
        drive(Drain(in_flight)(call(), ok))
    assert (caught.value.reason, caught.value.retry_after_s, in_flight.count) == ("shed", 1.0, 0)


def test_expired_work_is_not_begun() -> None:
    """At its deadline a request is refused; before it, the deadline becomes the call's."""
    now = 10.0
    layer = Deadline(lambda: now)
    with pytest.raises(Rejected) as caught:
        drive(layer(call(deadline=10.0), ok))
    assert caught.value.reason == "deadline"
    alive = call(deadline=10.001)
    drive(layer(alive, ok))
    assert alive.deadline == 10.001


def test_concurrency_sheds_one_too_many() -> None:
    """At the limit the next is shed at once; a place that is given back is free again."""
    limit = Concurrency(2)
    limit.enter("a")
    drive(limit(call(), ok))
    limit.enter("b")
    with pytest.raises(Rejected, match="2 requests") as caught:
        drive(limit(call(), ok))
    assert (caught.value.reason, limit.busy) == ("shed", 2)
    limit.leave()
    assert drive(limit(call(), ok)).status == 200
    with pytest.raises(ValueError, match="1 or more"):
        Concurrency(0)


def test_the_layers_say_why_and_vanish_where_there_is_no_limit() -> None:
    """Each has a reason; without a limit there is no concurrency layer at all."""
    stack = Stack("server", (DRAIN, DEADLINE, CONCURRENCY))
    assert stack.present(Context(None)) == ("drain", "deadline")
    assert stack.present(Context(1)) == ("drain", "deadline", "concurrency")
    assert all(layer.why for layer in stack)
