"""Call and Reply: what goes down a stack and what comes back; neutral to protocol and runtime.

A *call* is what the user asked. A retry forks it into *attempts*: own number, own deadline, the same trail.
A Call is mutable and cheap on purpose (slots, no defaults dict): filters write what they decided on it, and nobody
else has to look it up again. The end of the *body*, not of the head, ends a call: `Reply.at_end`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .errors import MeshError

FOREVER = 1e18
"""A deadline that never comes, in monotonic seconds."""

Fields = list[tuple[bytes, bytes]]
"""Header fields in wire order, names as they were sent."""


class HeaderEdit(NamedTuple):
    """What is done to header fields, in this order: `remove`, `set` (in the place of every field of that name), `add`.

    Names are in lower case.
    """

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: frozenset[str] = frozenset()

    @property
    def gone(self) -> frozenset[str]:
        """The names of which no earlier field stays."""
        return self.remove | {name for name, _ in self.set}


class RequestBody(Protocol):
    """A request body that is sent piece by piece, once. `framed`: wrap each piece in chunked encoding."""

    framed: bool

    def pieces(self) -> Any:
        """An async iterator of bytes on asyncio; a plain iterator on the blocking runtime."""


class ReplyStream(Protocol):
    """A reply's body as it comes off the wire, undecoded."""

    async def read(self) -> bytes:
        """The next piece, never empty; b"" at the end. Raises TransportError or DeadlineExceeded."""

    async def aclose(self) -> None:
        """Give it up: a body not read to its end closes its connection. Idempotent."""


class Schedule(Protocol):
    """When to try again, as one call asks it: in the place of the policy's back-off, within all of the policy's limits.

    It is asked only about a failure that the policy lets be tried again, so it can only narrow.
    """

    def delay_s(
        self,
        number: int,
        elapsed_s: float,
        outcome: Reply | MeshError,
        rng: Any,
        *,
        idle_s: float,
        backoff_s: float,
        asked_s: float,
    ) -> float | None:
        """Seconds until the next attempt, ≥ 0 and a number; None: there is none. Never raises.

        `number` of the attempt that failed, from 1. `elapsed_s` since the call began, of which `idle_s` were spent
        between attempts. `backoff_s`: what the policy would wait. `asked_s`: what the reply asked for; it is kept to.
        """


class PhaseTimeouts:
    """Seconds per operation, as httpx has them; None: no limit of its own. All stay below the call's deadline."""

    __slots__ = ("connect", "pool", "read", "write")

    def __init__(self, connect: float | None, read: float | None, write: float | None, pool: float | None) -> None:
        self.connect, self.read, self.write, self.pool = connect, read, write, pool


class TraceContext:
    """Where in a W3C trace this is: 128-bit `trace_id`, 64-bit `span_id`, `sampled`, and `tracestate` as received."""

    __slots__ = ("sampled", "span_id", "state", "trace_id")

    def __init__(self, trace_id: int, span_id: int, sampled: bool, state: str = "") -> None:
        self.trace_id, self.span_id, self.sampled, self.state = trace_id, span_id, sampled, state


class Attempt:
    """One try of a call, for the trail. Times are monotonic seconds; `ended` is 0.0 while it runs.

    `key`: names the endpoint to a session (policy/session_persistence.py).
    """

    __slots__ = ("ended", "endpoint", "error", "key", "number", "picked", "started", "status")

    def __init__(self, number: int, endpoint: Endpoint, picked: tuple[Any, ...], started: float, key: str = "") -> None:
        self.number, self.endpoint, self.picked, self.started, self.key = number, endpoint, picked, started, key
        self.ended, self.status, self.error = 0.0, 0, None  # type: float, int, MeshError | None

    @property
    def why_picked(self) -> str:
        """The balancer's reason, as a sentence: `picked` is its format and what goes into it."""
        form, *parts = self.picked
        return str(form).format(*parts)

    def __repr__(self) -> str:
        took = f"{(self.ended - self.started) * 1e3:.1f} ms" if self.ended else "running"
        end = f"{self.error.kind}: {self.error}" if self.error is not None else str(self.status or "-")
        return f"attempt {self.number}: {self.endpoint.address} ({self.why_picked}) {took} → {end}"


class Trail:
    """What happened to a call, attempt by attempt, and why there was no other. `str(trail)` is one line each."""

    __slots__ = ("attempts", "notes", "route", "service")

    def __init__(self, service: str) -> None:
        self.service, self.route = service, ""
        self.attempts: list[Attempt] = []
        self.notes: list[str] = []

    def __str__(self) -> str:
        head = f"call to {self.service}" + (f", route {self.route}" if self.route else "")
        return "\n".join([head, *(f"  {a!r}" for a in self.attempts), *(f"  {n}" for n in self.notes)])

    def __len__(self) -> int:
        return len(self.attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self.attempts)


class Call:
    """A call, or one attempt of it. Times are monotonic seconds of the runtime.

    `target` is the request target as it goes on the wire; `lines` are the rendered header lines (each ended by CRLF)
    without those the mesh adds; `body` is bytes or a RequestBody. `streaming`: the reply's body is handed on as it
    comes. `timeout_s`, `max_retries`, `idempotent`, `schedule`: what the caller asked, None where not.
    `served`: the call being served when this one was made. `trace`: this call's (on an attempt: the attempt's) place
    in the trace. `route` is set by the router, `deadline` by the deadline filter, `attempt_deadline` per attempt.
    `hash_key`: what decides where the call goes where its route or balancer hashes; None: what they say themselves.
    `listener`: of the gateway that took it. `matched_prefix`: the path prefix by which its route took it, or "".
    `preferred`: of the endpoint that its session belongs to, or "" (policy/session_persistence.py). `mirrored`: it is
    a copy, whose reply nobody waits for.
    """

    __slots__ = (
        "attempt_deadline", "body", "deadline", "hash_key", "idempotent", "lines", "listener", "matched_prefix",
        "max_retries", "method", "mirrored", "number", "phases", "preferred", "route", "schedule", "served", "service",
        "started", "streaming", "target", "timeout_s", "trace", "trail",
    )  # fmt: skip

    def __init__(
        self,
        service: str,
        method: str,
        target: bytes,
        lines: bytes = b"",
        body: bytes | RequestBody = b"",
        *,
        streaming: bool = False,
        timeout_s: float | None = None,
        max_retries: int | None = None,
        idempotent: bool | None = None,
        phases: PhaseTimeouts | None = None,
        schedule: Schedule | None = None,
        served: Any = None,
        trace: TraceContext | None = None,
        hash_key: str | None = None,
    ) -> None:
        self.service, self.method, self.target, self.lines, self.body = service, method, target, lines, body
        self.streaming, self.timeout_s, self.max_retries, self.idempotent = (
            streaming,
            timeout_s,
            max_retries,
            idempotent,
        )
        self.phases, self.schedule, self.served, self.trace = phases, schedule, served, trace
        self.hash_key, self.listener, self.matched_prefix = hash_key, None, ""  # type: str | None, Any, str
        self.preferred, self.mirrored = "", False
        self.number, self.route, self.started = 1, None, 0.0  # type: int, Any, float
        self.deadline = self.attempt_deadline = FOREVER
        self.trail = Trail(service)

    def fork(self) -> Call:
        """The next attempt: same question, same trail, same deadline."""
        new = Call.__new__(type(self))
        new.service = self.service
        new.method = self.method
        new.target = self.target
        new.lines = self.lines
        new.body = self.body
        new.streaming = self.streaming
        new.timeout_s = self.timeout_s
        new.max_retries = self.max_retries
        new.idempotent = self.idempotent
        new.phases = self.phases
        new.schedule = self.schedule
        new.hash_key = self.hash_key
        new.listener = self.listener
        new.matched_prefix = self.matched_prefix
        new.preferred = self.preferred
        new.mirrored = self.mirrored
        new.served = self.served
        new.trace = self.trace
        new.route = self.route
        new.started = self.started
        new.deadline = self.deadline
        new.trail = self.trail
        new.number, new.attempt_deadline = self.number + 1, self.deadline
        return new

    def mirror(self) -> Call:
        """A copy for a mirror: a first attempt and the last, with a trail of its own and no deadline yet.

        Its reply is streamed, so that whoever discards it reads no more of it than it wants to.
        """
        new = self.fork()
        new.number, new.trail, new.streaming, new.mirrored = 1, Trail(self.service), True, True
        new.deadline = new.attempt_deadline = FOREVER
        new.max_retries, new.schedule, new.preferred = 0, None, ""
        new.served = None if self.served is None else self.served.detached()
        return new

    @property
    def shadow(self) -> bool:
        """Is it done for a mirror's sake alone: a copy, or a call that was made to answer one?"""
        return self.mirrored or (self.served is not None and self.served.mirror)

    @property
    def replayable(self) -> bool:
        """Can the body be sent again? Bytes can; a stream is sent once."""
        return type(self.body) is bytes

    @property
    def copyable(self) -> bool:
        """Can a mirror have a copy?"""
        return self.replayable

    def header(self, name: str) -> list[str]:
        """Every value of a header field, in order, by case-insensitive name; read from the rendered lines."""
        wanted = name.lower().encode("latin-1")
        found = []
        for line in self.lines.split(b"\r\n"):
            key, colon, value = line.partition(b":")
            if colon and key.lower() == wanted:
                found.append(value.strip(b" \t").decode("latin-1"))
        return found

    def edit_headers(self, edit: HeaderEdit) -> None:
        """Change the header fields. Values are those of a checked policy: nothing is escaped here."""
        gone = {name.encode("latin-1") for name in edit.gone}
        kept = [
            line
            for line in self.lines.splitlines(keepends=True)
            if not gone or line.partition(b":")[0].strip().lower() not in gone
        ]
        kept += [f"{name}: {value}\r\n".encode("latin-1") for name, value in (*edit.set, *edit.add)]
        self.lines = b"".join(kept)


class Reply:
    """The answer to a call. `body` is complete unless `stream` is set; then the stream has it.

    `headers` and `trailers` are as received. `http_version` is b"HTTP/1.1" or b"HTTP/1.0". `code`: the gRPC status that
    ended a gRPC call, whose `status` is then the HTTP status that means the same; None on HTTP, and while it streams.
    """

    __slots__ = ("_ended", "_ends", "body", "code", "headers", "http_version", "reason", "status", "stream", "trailers")

    def __init__(
        self,
        status: int,
        headers: Fields,
        body: bytes = b"",
        *,
        reason: bytes = b"",
        stream: ReplyStream | None = None,
        http_version: bytes = b"HTTP/1.1",
        trailers: Fields | None = None,
        code: int | None = None,
    ) -> None:
        self.code = code
        self.status, self.headers, self.body, self.reason = status, headers, body, reason
        self.stream, self.http_version, self.trailers = stream, http_version, trailers
        self._ends: list[Callable[[MeshError | None], None]] | None = None
        self._ended = stream is None

    def at_end(self, callback: Callable[[MeshError | None], None]) -> None:
        """Run `callback` once when the body has ended, with the error that ended it or None; at once where it has."""
        if self._ended:
            callback(None)
        elif self._ends is None:
            self._ends = [callback]
        else:
            self._ends.append(callback)

    def end(self, error: MeshError | None = None) -> None:
        """The body is over. Called by whoever owns the stream, on every exit; later calls do nothing."""
        self._ended = True
        ends, self._ends = self._ends, None
        for callback in ends or ():
            callback(error)

    def detach_end(self) -> Callable[[MeshError | None], None]:
        """What `end` would do, for whoever must not keep the reply alive; from now on the reply's own does nothing."""
        ends, self._ends = self._ends or [], None

        def end(error: MeshError | None) -> None:
            for callback in ends:
                callback(error)

        return end

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by lower-case name."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return None

    def edit_headers(self, edit: HeaderEdit) -> None:
        """Change the header fields."""
        gone = {name.encode("latin-1") for name in edit.gone}
        fields = [(name, value) for name, value in self.headers if not gone or name.lower() not in gone]
        fields += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (*edit.set, *edit.add)]
        self.headers = fields

    async def discard(self) -> None:
        """Refuse this reply: close its stream, so that its connection and everything counted on it is freed."""
        if self.stream is not None:
            await self.stream.aclose()
            self.end()
