"""The leaf: one attempt of a gRPC call on one endpoint's real channel, on asyncio and on threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio import AioRpcError, Metadata

from ...call import FOREVER
from ...errors import DeadlineExceeded, MeshError
from .call import GrpcCall, GrpcReply, fields_of
from .errors import LOCALLY_CANCELLED
from .fast import FAST, FastCall
from .fast_blocking import FAST_BLOCKING, FastBlockingCall
from .metadata import mesh_metadata
from .outcome import Ending, outcome
from .park import Park

if TYPE_CHECKING:
    from ...call import Call, Reply
    from ...endpoint import Endpoint
    from .connections import Connection, Connections, PemTls

REFUSAL_S = 0.02
"""How long after empty headers a status may still come that belongs to them: grpc tells of the two one by one, and a
refusal has no others. Beyond, the call is committed (gRFC A6); a message commits it at once where one is waited for."""
LATE_S = 0.002
"""grpc's clock and ours agree within this."""


class Leaf:
    """What both kinds share. `source`: this caller's name, where no certificate says it."""

    def __init__(
        self,
        connections: Connections,
        endpoint: Endpoint,
        tls: PemTls | None,
        now: Callable[[], float],
        source: str,
        max_response_bytes: int,
    ) -> None:
        self._connections, self._address, self._tls = connections, endpoint.address, tls
        self._now, self._source, self._max_response_bytes = now, source, max_response_bytes
        self._expected = None if tls is None else tls.expected

    def _lease(self, call: Call) -> tuple[GrpcCall, Connection, float | None]:
        """The call as ours, a channel that is counted, and the seconds that the attempt has."""
        assert isinstance(call, GrpcCall)
        deadline = min(call.deadline, call.attempt_deadline)
        left = None
        if deadline < FOREVER:
            left = deadline - self._now()
            if left <= 0:
                raise DeadlineExceeded(
                    "there is no time left for an attempt", phase="pool", sent=False, total=deadline >= call.deadline
                )
        return call, self._connections.lease(self._address, self._tls, self._max_response_bytes), left

    def _outcome(self, call: GrpcCall, ending: Ending, messages: bool = False) -> GrpcReply:
        deadline = min(call.deadline, call.attempt_deadline)
        found = outcome(
            ending,
            total=deadline >= call.deadline,
            late=self._now() >= deadline - LATE_S,
            expected=self._expected,
            messages=messages,
        )
        if isinstance(found, MeshError):
            raise found
        return found


class AioLeaf(Leaf):
    """On an event loop."""

    async def __call__(self, call: Call) -> Reply:
        attempt, connection, left = self._lease(call)
        released = False
        try:
            if attempt.kind == "unary_unary" and not attempt.options:
                if FAST.ready:
                    return await self._fast(attempt, connection, left)
                await FAST.probe(connection)
            streams = type(attempt.body) is not bytes
            request: Any = attempt.body.pieces() if streams else attempt.body  # type: ignore[union-attr]
            real = connection.multicallable(attempt.kind, attempt.target)(
                request,
                timeout=left,
                metadata=(*attempt.metadata, *mesh_metadata(attempt, self._source)),
                **attempt.options,
            )
            first = FirstStatus(real) if streams else None
            try:
                if attempt.kind in ("unary_unary", "stream_unary"):
                    body = await real
                    return GrpcReply(0, body, native=real)
                initial = await real.initial_metadata()
                if attempt.idempotent and not initial and not real.done():  # else it would not be tried again anyway
                    await _refused(real)
                if real.done() and (await real.code()).value[0]:
                    return self._outcome(attempt, first.ending() if first else await _ending(real))
                if streams:
                    attempt.body.commit()  # type: ignore[union-attr]
                reply = GrpcReply(0, native=real)
                reply.code = None
                reply.headers = fields_of(initial)
                reply.stream, reply._ended = AioStream(self, attempt, real, first), False
                real.add_done_callback(lambda _real: connection.release())
                released = True
                return reply
            except AioRpcError as error:
                ending = _of_error(error)
                if first is not None:
                    ending = first.better(ending)
                return self._outcome(attempt, ending)
            except asyncio.CancelledError:  # always from here: a server's CANCELLED is an AioRpcError
                real.cancel()
                raise
        finally:
            if not released:
                connection.release()

    async def _fast(self, attempt: GrpcCall, connection: Connection, left: float | None) -> GrpcReply:
        real = FastCall(connection, attempt.target, left)
        raw, running = real.raw, connection.running
        running.add(raw)
        try:
            metadata = (*attempt.metadata, *mesh_metadata(attempt, self._source))
            body: bytes = await raw.unary_unary(attempt.body, metadata, None)
        except asyncio.CancelledError:
            raw.cancel(LOCALLY_CANCELLED)
            raise
        finally:
            running.discard(raw)
        if raw.is_ok():
            return GrpcReply(0, body, native=real)
        if raw.is_locally_cancelled():  # with its channel
            raise asyncio.CancelledError
        status, initial = await real.status(), await real.initial_metadata()
        trailing = Metadata.from_tuple(status.trailing_metadata() or ())
        said = status.details(), status.debug_error_string()
        return self._outcome(attempt, Ending(status.code(), *said, initial, trailing))


async def _refused(real: Any) -> None:
    """Wait until the call is over, for REFUSAL_S at most."""
    over = asyncio.Event()
    real.add_done_callback(lambda _real: over.set())
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), REFUSAL_S)


class AioStream:
    """The messages of a reply as they come. `outcome` says how it ended: a code, or why there is none."""

    __slots__ = ("_attempt", "_first", "_leaf", "real")

    def __init__(self, leaf: AioLeaf, attempt: GrpcCall, real: Any, first: FirstStatus | None) -> None:
        self._leaf, self._attempt, self.real, self._first = leaf, attempt, real, first

    async def read(self) -> bytes:
        """The next message; b"" at the end (a mirror's way to read)."""
        data = await self.real.read()
        return b"" if data is grpc.aio.EOF else data

    async def aclose(self) -> None:
        """Give it up."""
        self.real.cancel()

    async def outcome(self) -> GrpcReply:
        """How it ended, once it has. Raises MeshError."""
        ending = await _ending(self.real)
        if self._first is not None:
            ending = self._first.better(ending)
        return self._leaf._outcome(self._attempt, ending, messages=True)


class FirstStatus:
    """The status that grpc.aio had first: a write that fails as the call ends overwrites it (grpc/grpc#36066)."""

    __slots__ = ("_ending",)

    def __init__(self, real: Any) -> None:
        self._ending: Ending | None = None
        real.add_done_callback(self._ended)

    def _ended(self, real: Any) -> None:
        if self._ending is None:
            code = _at_once(real.code())
            if code is not None:
                self._ending = Ending(
                    code.value[0],
                    _at_once(real.details()),
                    _at_once(real.debug_error_string()),
                    _at_once(real.initial_metadata()),
                    _at_once(real.trailing_metadata()),
                )

    def ending(self) -> Ending:
        """The first one."""
        assert self._ending is not None
        return self._ending

    def better(self, ending: Ending) -> Ending:
        """`ending`, or the first one where that is INTERNAL because of a failed write."""
        first = self._ending
        return first if first is not None and ending.code == 13 and first.code not in (0, 13) else ending


class BlockingLeaf(Leaf):
    """On a thread: for a plain call it waits; where the call is `parked` it awaits Park(real), the one place where a
    coroutine of the blocking runtime stops, until who made the call wants to know.
    """

    async def __call__(self, call: Call) -> Reply:
        attempt, connection, left = self._lease(call)
        released = False
        try:
            if attempt.kind == "unary_unary" and not attempt.parked and not attempt.options:
                if FAST_BLOCKING.ready:
                    return self._fast(attempt, connection, left)
                FAST_BLOCKING.probe(connection)
            streams = type(attempt.body) is not bytes
            request: Any = attempt.body.pieces() if streams else attempt.body  # type: ignore[union-attr]
            multicallable = connection.multicallable(attempt.kind, attempt.target)
            metadata = (*attempt.metadata, *mesh_metadata(attempt, self._source))
            try:
                if attempt.kind in ("unary_unary", "stream_unary"):
                    if not attempt.parked:
                        body, real = multicallable.with_call(request, left, metadata, **attempt.options)
                        return GrpcReply(0, body, native=real)
                    real = multicallable.future(request, left, metadata, **attempt.options)
                    await Park(real)
                    return GrpcReply(0, real.result(), native=real)
                real = multicallable(request, left, metadata, **attempt.options)
                if attempt.parked:
                    await Park(real)
                first = next(real, None)  # the message, not the headers: grpc tells a refusal from them only then
            except grpc.RpcError as error:
                if _cancelled_here(error):
                    raise asyncio.CancelledError from None
                return self._outcome(attempt, _of_error(error))
            except grpc.FutureCancelledError:
                raise asyncio.CancelledError from None
            if streams:
                attempt.body.commit()  # type: ignore[union-attr]
            reply = GrpcReply(0, native=real)
            reply.code = None
            reply.headers = fields_of(real.initial_metadata())
            reply.stream, reply._ended = BlockingStream(self, attempt, real, first), False
            released = real.add_callback(connection.release)
            return reply
        finally:
            if not released:
                connection.release()

    def _fast(self, attempt: GrpcCall, connection: Connection, left: float | None) -> GrpcReply:
        metadata = (*attempt.metadata, *mesh_metadata(attempt, self._source))
        request: bytes = attempt.body  # type: ignore[assignment]
        real = FastBlockingCall(connection, attempt.target, request, left, metadata)
        if real.body is not None:
            return GrpcReply(0, real.body, native=real)
        said = real.details(), real.debug_error_string(), real.initial_metadata(), real.trailing_metadata()
        return self._outcome(attempt, Ending(real.status(), *said))


class BlockingStream:
    """The messages of a reply as they come, of which the first is there: None where there is none."""

    __slots__ = ("_attempt", "_first", "_leaf", "real")

    def __init__(self, leaf: BlockingLeaf, attempt: GrpcCall, real: Any, first: bytes | None) -> None:
        self._leaf, self._attempt, self.real = leaf, attempt, real
        self._first = [] if first is None else [first]

    def next_message(self) -> bytes | None:
        """The next one; None at the end. Raises MeshError, and RpcFailed for a code that is not OK."""
        if self._first:
            return self._first.pop()
        try:
            data: bytes | None = next(self.real, None)
            return data
        except grpc.RpcError as error:
            if _cancelled_here(error):
                raise asyncio.CancelledError from None
            reply = self._leaf._outcome(self._attempt, _of_error(error), messages=True)
            raise reply.native from None

    async def read(self) -> bytes:
        """The next message; b"" at the end (a mirror's way to read)."""
        return self.next_message() or b""

    async def aclose(self) -> None:
        """Give it up."""
        self.real.cancel()


def _cancelled_here(error: Any) -> bool:
    """Of a stream on a thread: was it given up here? Then grpc waits for ever for its own account of that."""
    return callable(getattr(error, "cancelled", None)) and bool(error.cancelled())


def _of_error(error: Any) -> Ending:
    """An error of a real channel, aio or not: its methods are plain."""
    return Ending(
        error.code().value[0],
        error.details(),
        error.debug_error_string(),
        error.initial_metadata(),
        error.trailing_metadata(),
    )


async def _ending(real: Any) -> Ending:
    return Ending(
        (await real.code()).value[0],
        await real.details(),
        await real.debug_error_string(),
        await real.initial_metadata(),
        await real.trailing_metadata(),
    )


def _at_once(coroutine: Any) -> Any:
    """The result of a coroutine that does not wait, or None."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    return None
