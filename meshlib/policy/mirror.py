"""Mirroring: a copy of a share of the calls goes elsewhere, and nobody waits for its answer.

Sources: Envoy `request_mirror_policies`, Gateway API HTTPRequestMirrorFilter, Finagle DarkTrafficFilter.

A copy never delays or fails the call it is a copy of:
  * it is begun when the call has its reply, or has failed, and runs beside whoever asked;
  * it has its own trail, its own deadline and no retry, and what it notes is not told to our caller;
  * it takes no place of the destination's `circuit_breaker.max_requests`, for `send` has no limit filter: the calls can
    always have them all. A copy is begun only while the destination has fewer calls and copies in flight than half its
    places, so that connections and work of the copies are what the calls leave over; and only MIRRORS_IN_FLIGHT_MAX
    copies at a time. Beyond that a copy is dropped, and counted.

Only what can be sent twice is copied: a streamed body is gone. A copy is not copied again, nor is a call made to answer
one. On the wire it bears `x-meshlib-mirror: 1`, so that the other side can leave its writes undone (`Served.mirror`).
Of each drawn call `record` is told one of OUTCOMES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..call import PhaseTimeouts

if TYPE_CHECKING:
    from ..call import Call, Reply
    from ..runtime import Runtime
    from ..stack import Service
    from .limit import Limit

OUTCOMES = ("sent", "same", "different", "skipped", "dropped", "failed")
"""`same`, `different`: sent, and compared with the reply that the caller got; `skipped`: the call's body is streamed;
`dropped`: too much is in flight; `failed`: it had no reply, or did not come to its end."""
MIRRORS_IN_FLIGHT_MAX = 64
"""Copies in flight to one destination; the next one is dropped, and counted."""
COPY_S_MAX = 30.0
"""Seconds from when a copy is begun; a body of its reply that is still coming is then given up at its next piece, for
which it waits no longer than that either."""
COPY_BODY_BYTES_MAX = 1 << 20
"""Bytes of the body of a copy's reply; a longer one is given up, with its connection, and not compared."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """One place where copies go: `send` is its stack without a limit, `percent` the share of the calls, from 0 to 1.

    `limit`: the destination's, on which all copies to it are counted. `diff`: compare status, gRPC code and body with
    the reply that the caller got, where that is not streamed and the copy's body is within COPY_BODY_BYTES_MAX.
    """

    send: Service
    percent: float
    diff: bool
    limit: Limit
    record: Callable[[str], None]

    def begin(self) -> bool:
        """May one more copy be in flight? Then it is counted, until `end`."""
        limit = self.limit
        with limit.lock:
            free = limit.inflight + limit.copies < limit.max_requests // 2
            if free and limit.copies < MIRRORS_IN_FLIGHT_MAX:
                limit.copies += 1
                return True
        return False

    def end(self, outcome: str) -> None:
        """A copy is no longer in flight: what became of it."""
        with self.limit.lock:
            self.limit.copies -= 1
        self.record(outcome)


class Mirrors:
    """The filter: of each call, a copy to each of the mirrors that draw it. Above retry, and below what edits the call,
    so that the copies are edited as well.
    """

    __slots__ = ("mirrors", "runtime")

    def __init__(self, mirrors: Sequence[Mirror], runtime: Runtime) -> None:
        self.mirrors, self.runtime = tuple(mirrors), runtime

    async def __call__(self, call: Call, service: Service) -> Reply:
        copies = [] if call.shadow else self._drawn(call)
        if not copies:
            return await service(call)
        reply = None
        try:
            reply = await service(call)
            return reply
        finally:
            for mirror, copy in copies:
                self._start(mirror, copy, reply)

    def _drawn(self, call: Call) -> list[tuple[Mirror, Call]]:
        """The copies are made before the call goes on: what is below changes it."""
        copies = []
        for mirror in self.mirrors:
            if self.runtime.rng.random() < mirror.percent:
                if call.copyable:
                    copies.append((mirror, call.mirror()))
                else:
                    mirror.record("skipped")
        return copies

    def _start(self, mirror: Mirror, copy: Call, reply: Reply | None) -> None:
        if not mirror.begin():
            mirror.record("dropped")
            return
        copy.started = now = self.runtime.now()
        copy.deadline = copy.attempt_deadline = now + COPY_S_MAX
        copy.phases = _within(copy.phases)
        work = self._send(mirror, copy, _compared(reply) if mirror.diff else None, _Place(mirror))
        try:
            self.runtime.spawn(work)
        except Exception:  # no loop any more, or no thread left: its place says that it failed
            work.close()

    async def _send(
        self, mirror: Mirror, copy: Call, expected: tuple[int, int | None, bytes] | None, place: _Place
    ) -> None:
        outcome, ends = "failed", copy.deadline
        try:
            reply = await mirror.send(copy)
            body = await _body(reply, ends, self.runtime.now)
            outcome = "sent"
            if expected is not None and body is not None:
                outcome = "same" if (reply.status, reply.code, body) == expected else "different"
        except Exception:  # noqa: S110 - whatever it is, it is counted, and no business of the call
            pass
        finally:
            place.leave(outcome)


class _Place:
    """A copy in flight. Work that is dropped before it has begun never runs its `finally`: hence `__del__`."""

    __slots__ = ("_mirror", "_taken")

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._taken = mirror, True

    def leave(self, outcome: str) -> None:
        """Give it back, once."""
        if self._taken:
            self._taken = False
            self._mirror.end(outcome)

    def __del__(self) -> None:
        self.leave("failed")


def _compared(reply: Reply | None) -> tuple[int, int | None, bytes] | None:
    if reply is None or reply.stream is not None:
        return None
    return reply.status, reply.code, reply.body


def _within(phases: PhaseTimeouts | None) -> PhaseTimeouts:
    """No piece of a streamed reply is waited for longer than COPY_S_MAX: it is not under the call's deadline."""
    if phases is None:
        return PhaseTimeouts(None, COPY_S_MAX, None, None)
    read = COPY_S_MAX if phases.read is None else min(phases.read, COPY_S_MAX)
    return PhaseTimeouts(phases.connect, read, phases.write, phases.pool)


async def _body(reply: Reply, ends: float, now: Callable[[], float]) -> bytes | None:
    """Read a reply to its end; None where it is longer than COPY_BODY_BYTES_MAX, or still comes after `ends`."""
    if reply.stream is None:
        return reply.body if len(reply.body) <= COPY_BODY_BYTES_MAX else None
    pieces, size = [], 0
    try:
        while piece := await reply.stream.read():
            size += len(piece)
            if size > COPY_BODY_BYTES_MAX or now() >= ends:
                return None
            pieces.append(piece)
        reply.end()
        return b"".join(pieces)
    finally:
        await reply.discard()
