"""Call, Reply, Trail: forking, headers, and that the end of a body is heard exactly once."""

from __future__ import annotations

import asyncio

import pytest

from meshlib.call import FOREVER, Attempt, Call, Reply, TraceContext, Trail
from meshlib.endpoint import Endpoint
from meshlib.errors import TransportError
from meshlib.served import Served


class Stream:
    def __init__(self) -> None:
        self.closed = 0

    async def read(self) -> bytes:
        return b""

    async def aclose(self) -> None:
        self.closed += 1


def test_a_fork_is_the_same_question():
    """Every slot is carried over but the number and the attempt's own deadline; the trail is shared."""
    call = Call("svc", "POST", b"/x", b"a: 1\r\n", b"body", streaming=True, timeout_s=1.0, max_retries=2,
                idempotent=True, served=object(), trace=TraceContext(1, 2, True))  # fmt: skip
    call.deadline, call.attempt_deadline, call.started, call.route = 50.0, 10.0, 5.0, object()
    fork = call.fork()
    own = {"number": 2, "attempt_deadline": 50.0}
    assert {slot: getattr(fork, slot) for slot in Call.__slots__} == {
        slot: own.get(slot, getattr(call, slot)) for slot in Call.__slots__
    }
    assert fork.trail is call.trail


def test_a_mirror_is_the_same_question_and_nothing_else():
    """What was asked is carried over; trail, deadlines, attempts and what is reported to our caller are not."""
    served = Served(lambda: 0.0, deadline=5.0, attempt=2, criticality="high", trace=TraceContext(3, 4, True))
    call = Call("svc", "POST", b"/x", b"a: 1\r\n", b"body", timeout_s=1.0, max_retries=2, schedule=object(),
                idempotent=True, served=served, trace=TraceContext(1, 2, True), hash_key="k")  # fmt: skip
    call.deadline, call.attempt_deadline, call.number, call.preferred = 50.0, 10.0, 2, "k"
    copy = call.mirror()
    own = {"number": 1, "deadline": FOREVER, "attempt_deadline": FOREVER, "max_retries": 0, "schedule": None,
           "preferred": "", "mirrored": True, "streaming": True, "trail": copy.trail, "served": copy.served}  # fmt: skip
    assert {slot: getattr(copy, slot) for slot in Call.__slots__} == {
        slot: own.get(slot, getattr(call, slot)) for slot in Call.__slots__
    }
    assert (copy.trail.service, len(copy.trail), copy.trail is call.trail) == ("svc", 0, False)
    copy.served.spent = True
    assert (copy.served.deadline, copy.served.attempt, copy.served.criticality) == (FOREVER, 2, "high")
    assert (copy.served.trace, served.spent) == (served.trace, False)


def test_a_shadow_is_a_copy_or_made_for_one():
    """It goes on along the calls that a copy causes."""
    call = Call("svc", "GET", b"/")
    assert not call.shadow
    assert call.mirror().shadow
    assert not Call("svc", "GET", b"/", served=Served(lambda: 0.0)).shadow
    assert Call("svc", "GET", b"/", served=Served(lambda: 0.0, mirror=True)).shadow


def test_a_new_call_has_no_deadline_yet():
    """FOREVER until the deadline filter has set it."""
    call = Call("svc", "GET", b"/")
    assert (call.deadline, call.attempt_deadline, call.number) == (FOREVER, FOREVER, 1)


@pytest.mark.parametrize(("body", "replayable"), [(b"", True), (b"x", True), (Stream(), False)])
def test_what_can_be_sent_again(body, replayable):
    """Bytes can, a stream cannot."""
    assert Call("svc", "PUT", b"/", body=body).replayable is replayable


def test_request_headers_are_read_from_the_lines():
    """Every value in order, any case, white space around values cut, text by latin-1; a prefix of a name is another."""
    call = Call("svc", "GET", b"/", b"X-A: 1\r\nx-ab: 9\r\nx-a:\t caf\xe9 \r\nempty:\r\n")
    assert call.header("x-A") == ["1", "café"]
    assert call.header("empty") == [""]
    assert call.header("x") == []


def test_reply_headers_by_lower_case_name():
    """The first value, None where there is none."""
    reply = Reply(200, [(b"X-A", b"1"), (b"x-a", b"2")])
    assert reply.header(b"x-a") == b"1"
    assert reply.header(b"x-b") is None


def test_a_complete_reply_has_ended():
    """at_end runs at once."""
    heard = []
    Reply(200, [], b"x").at_end(heard.append)
    assert heard == [None]


def test_a_streamed_reply_ends_once_with_its_error():
    """All who asked hear it, in order, with the error; a second end is silent."""
    reply, heard = Reply(200, [], stream=Stream()), []
    reply.at_end(lambda error: heard.append(("a", error)))
    reply.at_end(lambda error: heard.append(("b", error)))
    assert heard == []
    error = TransportError("reset", phase="read", cause="reset")
    reply.end(error)
    reply.end()
    assert heard == [("a", error), ("b", error)]


def test_discard_closes_the_stream_and_ends_the_reply():
    """What was counted on it is freed; a complete reply has nothing to close."""
    stream, heard = Stream(), []
    reply = Reply(503, [], stream=stream)
    reply.at_end(heard.append)
    asyncio.run(reply.discard())
    assert (stream.closed, heard) == (1, [None])
    asyncio.run(Reply(503, [], b"x").discard())


def test_a_trail_reads_as_text():
    """One line per attempt with endpoint, reason, time and end; then the notes."""
    trail = Trail("svc")
    trail.route = "main"
    first = Attempt(1, Endpoint("10.0.0.1", 80), ("load {:.1f} of {}", 0.25, "x"), 1.0)
    assert "running" in repr(first)
    first.ended, first.error = 1.5, TransportError("reset by peer", phase="read", cause="reset")
    second = Attempt(2, Endpoint("::1", 80), ("the only one",), 2.0)
    second.ended, second.status = 2.001, 200
    trail.attempts += [first, second]
    trail.notes.append("a note")
    assert str(trail).splitlines() == [
        "call to svc, route main",
        "  attempt 1: 10.0.0.1:80 (load 0.2 of x) 500.0 ms → transport: reset by peer",
        "  attempt 2: [::1]:80 (the only one) 1.0 ms → 200",
        "  a note",
    ]
    assert (len(trail), list(trail)) == (2, [first, second])


def test_an_endpoint_selects_by_labels():
    """All of the selector; an empty one takes everything; the address brackets IPv6."""
    endpoint = Endpoint("fd00::1", 8080, labels={"version": "1", "zone": "a"})
    assert endpoint.address == "[fd00::1]:8080"
    assert endpoint.has({})
    assert endpoint.has({"version": "1"})
    assert not endpoint.has({"version": "2"})
    assert not endpoint.has({"version": "1", "other": ""})


def test_whoever_asks_after_the_end_is_told_at_once():
    """A stream that ended before a filter asked: the callback runs, or what it counts is never given back."""
    reply, heard = Reply(200, [], stream=Stream()), []
    reply.end()
    reply.at_end(heard.append)
    assert heard == [None]
