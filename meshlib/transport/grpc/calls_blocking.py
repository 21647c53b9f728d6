"""The call objects of grpc's threads over the stacks: `future()`, and streams of answers.

The first attempt is on the wire before the object is handed out; its coroutine is parked there (park.py), and goes on
when the answer has come, or is wanted: no thread waits in between. Only a future that has to be tried again takes one.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from ...errors import MeshError
from ...grpc_code import GrpcCode
from .errors import LOCALLY_CANCELLED, RpcFailed, StatusError, failed, lift
from .leaf import BlockingStream
from .park import Park, advance

if TYPE_CHECKING:
    from ...call import Reply
    from .call import GrpcCall


def settled(reply: Reply, call: GrpcCall) -> Reply:
    """The reply of a call that was answered; raises what is no message."""
    if reply.code != 0 and reply.stream is None:
        raise failed(reply, call.trail)
    return reply


class Future(grpc.Call, grpc.Future):  # type: ignore[misc]
    """What `future()` gives."""

    def __init__(
        self, work: Coroutine[Any, Any, Reply], call: GrpcCall, deserialize: Callable[[bytes], Any] | None
    ) -> None:
        self._work, self._call, self._deserialize = work, call, deserialize
        self._over, self._lock = threading.Event(), threading.Lock()
        self._callbacks: list[Callable[[Any], None]] = []
        self._reply: Reply | None = None
        self._error: BaseException | None = None
        self._real: Any = None
        self._cancelled = False
        self._go_on()

    def _go_on(self) -> None:
        try:
            found = advance(self._work)
            if isinstance(found, Park):
                self._real = found.real
                if self._cancelled:
                    self._real.cancel()
                self._real.add_done_callback(self._answered)
                return
            self._reply = settled(found, self._call)
        except MeshError as error:
            self._error = lift(error, self._call.trail)
        except BaseException as error:
            self._error = error
        with self._lock:
            self._over.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def _answered(self, real: Any) -> None:
        """In grpc's own thread, which may not wait: a failure may be tried again after a while, elsewhere."""
        if real.cancelled() or real.exception() is None:
            self._go_on()
        else:
            threading.Thread(target=self._go_on, name="meshlib-grpc-retry", daemon=True).start()

    def cancel(self) -> bool:
        """Give it up."""
        if self._over.is_set():
            return False
        self._cancelled, self._call.max_retries = True, 0
        return bool(self._real.cancel()) if self._real is not None else False

    def cancelled(self) -> bool:
        """Was it given up?"""
        return self._cancelled and self._over.is_set()

    def running(self) -> bool:
        """Is it not over?"""
        return not self._over.is_set()

    def is_active(self) -> bool:
        """Is it not over?"""
        return not self._over.is_set()

    def done(self) -> bool:
        """Is it over?"""
        return self._over.is_set()

    def time_remaining(self) -> float | None:
        """Seconds until the attempt's deadline."""
        return None if self._real is None else self._real.time_remaining()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Run it when the call is over; False where it is."""
        with self._lock:
            if self._over.is_set():
                return False
            self._callbacks.append(lambda _future: callback())
        return True

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Run `fn(self)` when it is over; at once where it is."""
        with self._lock:
            if not self._over.is_set():
                self._callbacks.append(fn)
                return
        fn(self)

    def _wait(self, timeout: float | None) -> None:
        if not self._over.wait(timeout):
            raise grpc.FutureTimeoutError()

    def result(self, timeout: float | None = None) -> Any:
        """The answer. Raises its error, FutureCancelledError, or FutureTimeoutError after `timeout` seconds."""
        self._wait(timeout)
        if self._error is not None:
            raise grpc.FutureCancelledError() if self._cancelled else self._error
        assert self._reply is not None
        return self._deserialize(self._reply.body) if self._deserialize else self._reply.body

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Its error, or None."""
        self._wait(timeout)
        if self._cancelled:
            raise grpc.FutureCancelledError()
        return self._error

    def traceback(self, timeout: float | None = None) -> Any:
        """That of its error."""
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def _ended(self) -> Any:
        self._wait(None)
        return self._error if isinstance(self._error, RpcFailed) else self._real

    def code(self) -> grpc.StatusCode:
        """Its status code, once it is over."""
        return self._ended().code()

    def details(self) -> str:
        """What is said of the code."""
        return self._ended().details() or ""

    def initial_metadata(self) -> Any:
        """The server's headers."""
        return self._ended().initial_metadata()

    def trailing_metadata(self) -> Any:
        """The server's trailers."""
        return self._ended().trailing_metadata()


class Stream(grpc.Call):  # type: ignore[misc]
    """A stream of answers: an iterator that is a grpc.Call."""

    def __init__(
        self, work: Coroutine[Any, Any, Reply], call: GrpcCall, deserialize: Callable[[bytes], Any] | None
    ) -> None:
        self._work, self._call, self._deserialize = work, call, deserialize
        self._lock = threading.RLock()
        self._reply: Reply | None = None
        self._stream: BlockingStream | None = None
        self._error: BaseException | None = None
        self._real: Any = None
        try:
            found = advance(work)
        except BaseException as error:
            self._fail(error)
            return
        if isinstance(found, Park):
            self._real = found.real
        else:
            self._opened(found)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            error = RpcFailed(grpc.StatusCode.CANCELLED, aio.Metadata(), aio.Metadata(), LOCALLY_CANCELLED, "")
        self._error = lift(error, self._call.trail) if isinstance(error, MeshError) else error

    def _opened(self, reply: Reply) -> None:
        if isinstance(reply.stream, BlockingStream):
            self._reply, self._stream, self._real = reply, reply.stream, reply.stream.real
            # Also of a stream that nobody reads to its end: grpc cancels what is let go of.
            over = functools.partial(_over, reply.detach_end(), weakref.ref(self._real))
            if not self._real.add_callback(over):
                over()
        else:
            self._fail(failed(reply, self._call.trail))

    def _open(self) -> BlockingStream | None:
        """Go on to where messages come, or to what there is instead: then None."""
        with self._lock:
            while self._stream is None and self._error is None:
                try:
                    found = advance(self._work)
                except BaseException as error:
                    self._fail(error)
                    break
                if isinstance(found, Park):
                    self._real = found.real
                else:
                    self._opened(found)
        return self._stream

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        stream = self._open()
        data = None
        if self._error is None and stream is not None:
            try:
                data = stream.next_message()
            except (MeshError, RpcFailed, asyncio.CancelledError) as error:
                self._fail(error)
        if self._error is not None:
            raise self._error
        if data is None:
            raise StopIteration
        return self._deserialize(data) if self._deserialize else data

    def cancel(self) -> bool:
        """Give it up."""
        self._call.max_retries = 0
        return bool(self._real.cancel()) if self._real is not None else False

    def is_active(self) -> bool:
        """Is it not over?"""
        return self._error is None and self._real is not None and bool(self._real.is_active())

    def time_remaining(self) -> float | None:
        """Seconds until the attempt's deadline."""
        return None if self._real is None else self._real.time_remaining()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Run it when the call is over; False where it is."""
        return self._error is None and self._real is not None and bool(self._real.add_callback(callback))

    def _known(self) -> Any:
        self._open()
        return self._error if isinstance(self._error, RpcFailed) else self._real

    def code(self) -> grpc.StatusCode:
        """Its status code, once it is over."""
        return self._known().code()

    def details(self) -> str:
        """What is said of the code."""
        return self._known().details() or ""

    def initial_metadata(self) -> Any:
        """The server's headers."""
        return self._known().initial_metadata()

    def trailing_metadata(self) -> Any:
        """The server's trailers, once it is over."""
        return self._known().trailing_metadata()


def _over(end: Callable[[MeshError | None], None], known: Callable[[], Any]) -> None:
    """A stream has ended, in grpc's own thread; `known()`: its call, None where it was let go of."""
    real = known()
    code = int(GrpcCode.CANCELLED) if real is None else real.code().value[0]
    end(StatusError(code, "") if code else None)
