"""One HTTP/1.1 connection on an event loop: one exchange at a time, then back to its pool, or closed.

Rules of this file:

1.  No task and no `wait_for` per exchange: one future, and one timer per connection that is re-armed lazily (an armed
    earlier timer is left; when it fires it looks at the current deadline).
2.  Only a complete, clean exchange on a connection that persists gives it back. Every other exit aborts it,
    cancellation included: nothing of this exchange may be seen by the next one.
3.  `connection_lost` is the one place that gives the slot back.
4.  Reads land in one buffer per event loop; it is used up before `buffer_updated` returns.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..call import FOREVER, Call, Reply, RequestBody
from ..errors import MeshError, Phase, TransportError
from . import phases, tcp
from .http1 import ResponseReader, expects_continue
from .limits import HttpLimits
from .pool import Pool
from .reply_stream import HttpReplyStream
from .tls_stream import ClientTls, TlsStream, closed_in_handshake, handshake_error, read_error, suspect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HIGH_WATER = 256 * 1024
"""Bytes of a streamed body that may wait for their reader before the socket is no longer read."""

_JOIN = 65536  # a body up to this is copied behind its head: one write is cheaper than two


class AsyncConnection(asyncio.BufferedProtocol):
    """A connection of `pool`. `expires`, `usable_until`, `pooled`: see pool.py."""

    __slots__ = (
        "_buffer", "_call", "_deadline", "_draining", "_failure", "_gap", "_go", "_interrupt", "_loop",
        "_now", "_paused", "_phase", "_pool", "_ready", "_release", "_streaming", "_timer", "_timer_at", "_tls",
        "_tls_identity", "_waiter", "expires", "pooled", "reader", "reused", "transport", "usable_until",
    )  # fmt: skip

    def __init__(
        self,
        pool: Pool[AsyncConnection],
        loop: asyncio.AbstractEventLoop,
        buffer: memoryview,
        now: Callable[[], float],
        release: Callable[[AsyncConnection], None],
    ) -> None:
        self._pool, self._loop, self._buffer, self._now, self._release = pool, loop, buffer, now, release
        self.transport: asyncio.Transport | None = None
        self.reader: ResponseReader | None = None
        self.reused = self.pooled = self._streaming = self._paused = False
        self.expires = self.usable_until = 0.0
        self._tls: TlsStream | None = None
        self._tls_identity: ClientTls | None = None
        self._ready: asyncio.Future[None] | None = None  # the handshake is over
        self._waiter: asyncio.Future[None] | None = None  # what the exchange waits for now
        self._draining: asyncio.Future[None] | None = None  # set while the socket takes no more
        self._go: asyncio.Future[None] | None = None  # an interim reply, for Expect: 100-continue
        self._interrupt: asyncio.Timeout | None = None  # ends an upload that nobody wants any more
        self._failure: MeshError | None = None
        self._call: Call | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._deadline = FOREVER
        self._phase: Phase = "read"
        self._gap: float | None = None

    # -- one exchange ------------------------------------------------------------------------------------------------

    async def exchange(self, call: Call, head: bytes, limits: HttpLimits) -> Reply:
        """Send the request and read its reply, to its end or, when streaming, to the end of the head."""
        body = call.body
        self.reader = reader = ResponseReader(call.method, limits, not call.streaming)
        self._call, self._streaming, self._failure = call, call.streaming, None
        self._waiter = waiter = self._loop.create_future()
        self._gap = None if call.phases is None else call.phases.read
        reusable = True
        try:
            if isinstance(body, bytes):
                await self._send(call, head, body)
            else:
                reusable = await self._upload(call, reader, head, body)
            await waiter
        except BaseException:
            self.abort()
            reader.forget()
            raise
        if not reusable:
            self.usable_until = 0.0
        return self._reply(call, reader)

    async def _send(self, call: Call, head: bytes, body: bytes) -> None:
        gap = self._gap
        self._until(call.attempt_deadline if gap is None else phases.limit(call, gap, self._now()), "read")
        if len(body) <= _JOIN:
            self._write(head + body)
        else:
            self._write(head)
            self._write(body)
        if self._draining is not None:
            await self._drained(call)
            self._until(phases.limit(call, gap, self._now()), "read")

    async def _upload(self, call: Call, reader: ResponseReader, head: bytes, body: RequestBody) -> bool:
        """A body in pieces. False: the reply came, or failed, before it was all sent; then never reuse."""
        self._until(call.attempt_deadline, "write")
        self._write(head)
        complete = False
        try:
            async with asyncio.timeout(None) as self._interrupt:
                if not expects_continue(call) or await self._may_continue(reader):
                    await self._send_pieces(call, body)
                    complete = True
        except TimeoutError:
            if self._interrupt is None or not self._interrupt.expired():
                raise  # the user's own
        finally:
            self._interrupt = None
        self._until(phases.limit(call, self._gap, self._now()), "read")
        return complete

    async def _may_continue(self, reader: ResponseReader) -> bool:
        self._go = self._loop.create_future()
        try:
            await asyncio.wait((self._go,), timeout=phases.CONTINUE_S)
        finally:
            self._go = None
        return not reader.head_done

    async def _send_pieces(self, call: Call, body: RequestBody) -> None:
        pieces: AsyncIterator[bytes] = body.pieces()
        try:
            async for piece in pieces:
                if piece:
                    self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if body.framed else piece)
                    if self._draining is not None:
                        await self._drained(call)
                        self._until(call.attempt_deadline, "write")
        finally:
            close = getattr(pieces, "aclose", None)
            if close is not None:
                await close()
        if body.framed:
            self._write(b"0\r\n\r\n")

    async def _drained(self, call: Call) -> None:
        """Wait until the socket takes more, within the write limit; a reply or a failure ends the wait too."""
        draining, waiter = self._draining, self._waiter
        cap = None if call.phases is None else call.phases.write
        self._until(phases.limit(call, cap, self._now()), "write")
        while draining is not None and not draining.done() and waiter is not None and not waiter.done():
            await asyncio.wait((draining, waiter), return_when=asyncio.FIRST_COMPLETED)

    def _reply(self, call: Call, reader: ResponseReader) -> Reply:
        stream = None
        if reader.done:
            body = reader.take()
            self.finish(reader)
        else:
            body, stream = b"", HttpReplyStream(self, reader, call)
            self._until(FOREVER, "read")
        return Reply(
            reader.status, reader.headers, body, reason=reader.reason, stream=stream,
            http_version=reader.http_version, trailers=reader.trailers,
        )  # fmt: skip

    def finish(self, reader: ResponseReader) -> None:
        """The reply is complete: back to the pool, or closed."""
        self.reader = self._call = None
        transport = self.transport
        if not reader.keep or not self.usable_until or transport is None or transport.get_write_buffer_size():
            self.abort()
        else:
            self.reused = True
            self._release(self)

    async def more(self, reader: ResponseReader, call: Call) -> None:
        """Wait for more of a streamed body: a piece, its end, or what ended it, which is raised."""
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        deadline = self._now() + phases.stream_gap(call)
        while not reader.waiting and not reader.done:
            if self._failure is not None:
                raise self._failure
            self._waiter = waiter = self._loop.create_future()
            self._until(deadline, "read")
            await waiter
        self._until(FOREVER, "read")

    # -- time --------------------------------------------------------------------------------------------------------

    def _until(self, deadline: float, phase: Phase) -> None:
        self._deadline, self._phase = deadline, phase
        if deadline < self._timer_at:
            self._arm(deadline)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - self._now()), self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, FOREVER
        call, deadline = self._call, self._deadline
        if call is None or deadline >= FOREVER:
            return  # idle, or its user is busy: whoever waits next arms it
        if self._now() < deadline:
            self._arm(deadline)
            return
        unsent = self.transport is not None and self.transport.get_write_buffer_size() > 0
        streamed = self._streaming and self.reader is not None and self.reader.head_done
        phase: Phase = "write" if unsent and not streamed else self._phase
        self.fail(phases.expired(call, deadline, phase, self._pool.address, sent=True, streamed=streamed))

    # -- bytes -------------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        assert self.transport is not None
        try:
            self.transport.write(data if self._tls is None else self._tls.encrypt(data))
        except ssl.SSLError as error:
            raise tcp.broken(self._pool.address, error, reused=self.reused, phase="write") from error

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._tls is None:
            self._received(self._buffer[:nbytes])
        elif self._tls.up:
            self._decrypt(self._tls, self._buffer[:nbytes])
        else:
            self._shake(self._buffer[:nbytes])

    def _received(self, data: bytes | memoryview) -> None:
        reader = self.reader
        if reader is None:
            self.abort()  # nobody asked for these bytes
            return
        try:
            reader.feed(data)
        except TransportError as error:
            error.reused = self.reused
            self.fail(error)
            return
        if reader.done or (self._streaming and reader.head_done):
            self._wake()
            if self._streaming and not reader.done and not self._paused and reader.waiting > HIGH_WATER:
                self._paused = True
                if self.transport is not None:
                    self.transport.pause_reading()
        elif self._gap is not None and self._call is not None and self._phase == "read":
            self._deadline = phases.limit(self._call, self._gap, self._now())
        if self._interrupt is not None:
            self._answered(reader)

    def _answered(self, reader: ResponseReader) -> None:
        """A reply while the request is still being sent."""
        if self._go is not None and not self._go.done() and (reader.interim or reader.head_done):
            self._go.set_result(None)
        if reader.head_done and self._interrupt is not None and not self._interrupt.when():
            self._interrupt.reschedule(self._loop.time())

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause_writing(self) -> None:
        self._draining = self._loop.create_future()

    def resume_writing(self) -> None:
        draining, self._draining = self._draining, None
        if draining is not None and not draining.done():
            draining.set_result(None)

    # -- begin and end -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        tcp.tune(transport.get_extra_info("socket").fileno())

    async def secure(self, tls: ClientTls) -> None:
        """Do the handshake, and in it the verification of the peer."""
        self._tls_identity, self._tls = tls, TlsStream(tls)
        self._ready = self._loop.create_future()
        self._shake(b"")
        if self.closing and not self._ready.done():
            raise closed_in_handshake(self._pool.address)  # lost before anyone could be told
        await self._ready

    def _shake(self, data: bytes | memoryview) -> None:
        tls, ready, transport = self._tls, self._ready, self.transport
        if tls is None or self._tls_identity is None or ready is None or transport is None or ready.done():
            return
        try:
            out = tls.handshake(data)
        except ssl.SSLError as error:
            ready.set_exception(handshake_error(error, self._tls_identity, self._pool.address))
            self.abort()
            return
        if out:
            transport.write(out)
        if tls.up:
            ready.set_result(None)
            self._decrypt(tls, b"")

    def _decrypt(self, tls: TlsStream, data: bytes | memoryview) -> None:
        for piece in tls.decrypt(data):
            self._received(piece)
        answer = tls.answer()
        if answer and self.transport is not None and not self.transport.is_closing():
            self.transport.write(answer)
        if tls.broken is not None or tls.closed:
            self._ended(None)
            self.abort()

    def eof_received(self) -> None:
        self.usable_until = 0.0  # the transport closes itself now; `connection_lost` comes a step later and decides

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)
        self._cancel_timer()
        self._pool.lost(self)
        self.resume_writing()

    def _ended(self, exc: Exception | None) -> None:
        """No more bytes will come: complete what may end like this, fail what may not."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(closed_in_handshake(self._pool.address))
        reader = self.reader
        if reader is None or self._failure is not None:
            return
        tls = self._tls
        try:
            if tls is not None and tls.broken is not None and self._tls_identity is not None:
                fresh = not self.reused and not reader.started
                raise read_error(tls.broken, self._tls_identity, self._pool.address, fresh=fresh, reused=self.reused)
            if exc is not None:
                raise tcp.broken(self._pool.address, exc, reused=self.reused)
            reader.eof(clean=tls is None or tls.closed)
        except MeshError as error:
            if isinstance(error, TransportError):
                error.reused = self.reused
                if tls is not None and not self.reused and not reader.started:
                    error = suspect(error)
            self._fail(error)
        else:
            self._wake()
            if self._interrupt is not None:
                self._answered(reader)

    def fail(self, error: MeshError) -> None:
        """End the exchange with `error` and the connection with it."""
        self._fail(error)
        self.abort()

    def _fail(self, error: MeshError) -> None:
        self._failure = error
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
            waiter.exception()  # an upload may end by its own error and never look
        if self._interrupt is not None and not self._interrupt.when():
            self._interrupt.reschedule(self._loop.time())

    @property
    def closing(self) -> bool:
        """Has either side begun to close it?"""
        return self.transport is None or self.transport.is_closing()

    def abandon(self) -> None:
        """In a forked child: let go of the socket without a word, and of the loop without touching its selector.

        The descriptor is replaced, not only closed: the parent's transport object will close that number once more.
        """
        self.usable_until, self.pooled = 0.0, False
        fd = -1 if self.transport is None else self.transport.get_extra_info("socket").fileno()
        if fd >= 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, fd)
            os.close(null)

    def discard(self) -> None:
        """The loop is closed, so that asyncio's transport cannot close itself. uvloop's was closed with its loop."""
        self.usable_until, self.pooled = 0.0, False
        transport: Any = self.transport
        self.transport = None
        sock = getattr(transport, "_sock", None)
        if sock is not None:
            sock.close()
            transport._sock = None  # or its finaliser warns of a socket that nobody closed

    def abort(self) -> None:
        """Close now, whatever is under way. Idempotent."""
        self.usable_until = 0.0
        self.reader = self._call = None
        self._cancel_timer()
        if self.transport is not None:
            self.transport.abort()

    def drop(self) -> None:
        """Abort from wherever the garbage collector runs: on the loop, or in another thread."""
        if self.pooled and not self._loop.is_closed():  # not pooled: lost already, or the parent's
            self._loop.call_soon_threadsafe(self.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, FOREVER
