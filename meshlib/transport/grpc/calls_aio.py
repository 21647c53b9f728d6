"""The call objects of grpc.aio over the stacks: what a stub gets back, before an endpoint is known.

A unary answer costs no task: `await stub.Method(x)` drives the filters inside the caller's own task. Where nobody
awaits in this turn of the loop, `call_soon` starts one: fan-out and fire-and-forget are as eager as grpc's own.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from ...call import FOREVER
from ...errors import MeshError
from .errors import CODES, LOCALLY_CANCELLED, RpcFailed, StatusError, failed, lift
from .leaf import AioStream
from .replay import AioReplay, Written

if TYPE_CHECKING:
    from ...call import Reply
    from ...stack import Service
    from .call import GrpcCall


class _Base:
    """What all call objects share. `over` is made when somebody waits for it, done when the call is. The error of the
    call, if any, is kept here.
    """

    def __init__(
        self, call: GrpcCall, deserialize: Callable[[bytes], Any] | None, written: Written | None, calls: set[Any]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._call, self._deserialize, self._written, self._calls = call, deserialize, written, calls
        self._reply: Reply | None = None
        self._error: BaseException | None = None
        self._done, self._waited_for = False, None  # type: bool, asyncio.Future[None] | None
        self._callbacks: list[Callable[[Any], None]] = []
        calls.add(self)

    @property
    def over(self) -> asyncio.Future[None]:
        """Done when the call is."""
        if self._waited_for is None:
            self._waited_for = self._loop.create_future()
            if self._done:
                self._waited_for.set_result(None)
        return self._waited_for

    def _finish(self, error: BaseException | None = None) -> None:
        if self._done:
            return
        self._done = True
        self._error = lift(error, self._call.trail) if isinstance(error, MeshError) else error
        if self._waited_for is not None:
            self._waited_for.set_result(None)
        self._calls.discard(self)
        if isinstance(self._call.body, AioReplay):
            self._call.body.close()
        for callback in self._callbacks:
            callback(self)

    async def _end(self) -> None:
        if not self._done:
            await asyncio.shield(self.over)

    def cancelled(self) -> bool:
        """Was it cancelled here?"""
        return self._done and isinstance(self._error, asyncio.CancelledError)

    def done(self) -> bool:
        """Is it over?"""
        return self._done

    def time_remaining(self) -> float | None:
        """Seconds until its deadline."""
        left = self._call.deadline
        return None if left >= FOREVER else max(0.0, left - self._loop.time())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Run `callback(self)` when it is over; at once where it is."""
        if self._done:
            callback(self)
        else:
            self._callbacks.append(callback)

    async def code(self) -> grpc.StatusCode:
        """Its status code, once it is over. Never raises the call's error."""
        await self._end()
        if self._error is None:
            return grpc.StatusCode.OK
        return self._error.code() if isinstance(self._error, RpcFailed) else _code_of(self._error)

    async def details(self) -> str:
        """What is said of the code."""
        await self._end()
        if self._error is None:
            return ""
        return str(self._error.details() or "") if isinstance(self._error, RpcFailed) else _said(self._error)

    async def debug_error_string(self) -> str:
        """Grpc's own account of the failure."""
        await self._end()
        return str(self._error.debug_error_string() or "") if isinstance(self._error, RpcFailed) else ""

    async def initial_metadata(self) -> aio.Metadata:
        """The server's headers."""
        await self._end()
        return await self._metadata("initial_metadata")

    async def trailing_metadata(self) -> aio.Metadata:
        """The server's trailers, once it is over."""
        await self._end()
        return await self._metadata("trailing_metadata")

    async def _metadata(self, name: str) -> aio.Metadata:
        if isinstance(self._error, RpcFailed):
            found: aio.Metadata = getattr(self._error, name)()
            return found
        native = getattr(self._reply, "native", None)
        if native is None or self._error is not None:
            return aio.Metadata()
        metadata = await getattr(native, name)()
        return metadata if metadata is not None else aio.Metadata()

    async def wait_for_connection(self) -> None:
        """Until it is known that there is an answer; raises the call's error."""
        await self._end()
        if self._error is not None:
            raise self._error

    async def write(self, request: Any) -> None:
        """Send a message, of a call that was made without an iterator of them."""
        if self._done:
            raise self._error if self._error is not None else asyncio.InvalidStateError("the call is over")
        if self._written is None or self._written.done:
            raise aio.UsageError("write() is for a call without a request iterator, before done_writing()")
        if not await self._written.put(request, self.over) and self._error is not None:
            raise self._error

    async def done_writing(self) -> None:
        """There are no more messages."""
        if self._written is not None and not self._done:
            await self._written.end(self.over)


class UnaryResponse(_Base, aio.UnaryUnaryCall, aio.StreamUnaryCall):  # type: ignore[misc, type-arg]
    """A call with one answer: await it."""

    def __init__(
        self,
        call: GrpcCall,
        service: Service,
        deserialize: Callable[[bytes], Any] | None,
        written: Written | None,
        calls: set[Any],
    ) -> None:
        super().__init__(call, deserialize, written, calls)
        self._work: Any = service(call)
        self._started, self._blocked, self._stopped = False, None, False  # type: bool, Any, bool
        self._soon = self._loop.call_soon(self._start)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            del self._soon  # it holds this call: without it, an answer that is let go of is gone at once
            self._task = self._loop.create_task(self._alone())

    async def _alone(self) -> None:
        try:
            await self._drive()
        except BaseException:  # noqa: S110 - it is kept, and raised to whoever awaits
            pass

    @types.coroutine
    def _drive(self) -> Generator[Any, None, None]:
        """Run the filters, here: what they wait for is what the awaiting task waits for."""
        work, error = self._work, None  # type: Any, BaseException | None
        thrown: BaseException | None = asyncio.CancelledError() if self._stopped else None
        try:
            while True:
                self._blocked = waited = work.send(None) if thrown is None else work.throw(thrown)
                thrown = None
                try:
                    yield waited
                except BaseException as caught:
                    thrown = caught
        except StopIteration as stop:
            reply: Reply = stop.value
            self._reply = reply
            if reply.code != 0:
                error = failed(reply, self._call.trail)
        except BaseException as caught:
            error = caught
        finally:
            self._blocked = None
            self._finish(error)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._started:
            self._started = True
            self._soon.cancel()
            del self._soon
            yield from self._drive()
        elif not self._done:
            try:
                yield from self._end().__await__()
            except asyncio.CancelledError:  # who awaits a call gives it up, as with grpc's own
                self.cancel()
                raise
        if self._error is not None:
            raise self._error
        assert self._reply is not None
        body = self._reply.body
        return self._deserialize(body) if self._deserialize else body

    def cancel(self) -> bool:
        """Give it up: the filters see an ordinary CancelledError."""
        if self._done:
            return False
        self._stopped = True
        if self._blocked is not None:
            self._blocked.cancel()
        elif not self._started:
            self._started = True
            self._soon.cancel()
            self._work.close()
            self._finish(asyncio.CancelledError())
        return True


class StreamResponse(_Base, aio.UnaryStreamCall, aio.StreamStreamCall):  # type: ignore[misc, type-arg]
    """A call with a stream of answers: iterate, or read. One task, begun at once."""

    def __init__(
        self,
        call: GrpcCall,
        service: Service,
        deserialize: Callable[[bytes], Any] | None,
        written: Written | None,
        calls: set[Any],
    ) -> None:
        super().__init__(call, deserialize, written, calls)
        self._stream: AioStream | None = None
        self._opening = self._loop.create_task(self._open(service))

    async def _open(self, service: Service) -> None:
        try:
            reply = await service(self._call)
        except BaseException as error:
            self._finish(error)
            return
        self._reply = reply
        if not isinstance(reply.stream, AioStream):
            self._finish(failed(reply, self._call.trail))
            return
        self._stream = reply.stream
        reply.stream.real.add_done_callback(self._streamed)

    def _streamed(self, _real: Any) -> None:
        if not self._loop.is_closed():
            self._settling = self._loop.create_task(self._settle())

    async def _settle(self) -> None:
        """The end of the stream is the end of the call."""
        assert self._stream is not None
        assert self._reply is not None
        error: BaseException | None = None
        if self._stream.real.cancelled():
            error = asyncio.CancelledError()
        else:
            try:
                ended = await self._stream.outcome()
                if ended.code:
                    error = failed(ended, self._call.trail)
            except MeshError as broken:
                error = broken
        self._finish(error)
        told = (
            StatusError(_code_of(error).value[0], "")
            if error is not None and not isinstance(error, MeshError)
            else None
        )
        self._reply.end(error if isinstance(error, MeshError) else told)

    async def _opened(self) -> AioStream:
        if not self._opening.done():
            await asyncio.shield(self._opening)
        if self._stream is None:
            assert self._error is not None
            raise self._error
        return self._stream

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        stream = await self._opened()
        try:
            data = await stream.real.read()
        except aio.AioRpcError:
            await self._end()
            raise (self._error or asyncio.CancelledError()) from None
        except asyncio.CancelledError:
            stream.real.cancel()
            raise
        if data is aio.EOF:
            await self._end()
            if self._error is not None:
                raise self._error
            return aio.EOF
        return self._deserialize(data) if self._deserialize else data

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not aio.EOF:
            yield message

    async def initial_metadata(self) -> aio.Metadata:
        """The server's headers, as soon as they are there."""
        if not self._opening.done():
            await asyncio.shield(self._opening)
        return await self._metadata("initial_metadata")

    async def wait_for_connection(self) -> None:
        """Until the server has answered with headers; raises the call's error."""
        await self._opened()

    def cancel(self) -> bool:
        """Give it up."""
        if self._done:
            return False
        if self._stream is None:
            self._opening.cancel()
            self._finish(asyncio.CancelledError())
        else:
            self._stream.real.cancel()
        return True


def _code_of(error: BaseException) -> grpc.StatusCode:
    if isinstance(error, RpcFailed):
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.CANCELLED if isinstance(error, asyncio.CancelledError) else CODES[2]


def _said(error: BaseException) -> str:
    return LOCALLY_CANCELLED if isinstance(error, asyncio.CancelledError) else str(error)
