"""A stream of request messages that can be sent again until the call is committed (gRFC A6).

One pull of the caller's iterator at a time, shared by the attempts, which a dying attempt cannot cancel. What was
pulled is kept until the call is committed: by headers of the server, or by having become more than REPLAY_BYTES_MAX.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

REPLAY_BYTES_MAX = 64 * 1024
"""Serialised bytes of one call's messages that are kept for another attempt; beyond, there is none (grpc: 256 KiB)."""


class _Kept:
    """The messages from number `start` on."""

    def __init__(self, serialize: Callable[[Any], bytes]) -> None:
        self._serialize = serialize
        self._messages: list[bytes] = []
        self._bytes = self._start = self._attempt = 0
        self.committed = self.ended = False

    def commit(self) -> None:
        """There is no other attempt: nothing need be kept."""
        self.committed = True

    def _keep(self, message: Any) -> None:
        data = self._serialize(message)
        self._messages.append(data)
        self._bytes += len(data)
        if self._bytes > REPLAY_BYTES_MAX:
            self.committed = True

    def _at(self, number: int) -> bytes | None:
        """The message of a number, or None: it has not been pulled yet."""
        if number >= self._start + len(self._messages):
            return None
        data = self._messages[number - self._start]
        if self.committed:
            del self._messages[: number + 1 - self._start]
            self._start = number + 1
        return data


class AioReplay(_Kept):
    """Of an iterator or an async iterator, on one event loop."""

    framed = False

    def __init__(self, source: Any, serialize: Callable[[Any], bytes]) -> None:
        super().__init__(serialize)
        self._source = source.__aiter__() if hasattr(source, "__aiter__") else None
        self._iterator = None if self._source is not None else iter(source)
        self._pulling: asyncio.Future[None] | None = None

    def pieces(self) -> AsyncIterator[bytes]:
        """The messages from the first, for the next attempt; the view of the attempt before ends."""
        self._attempt += 1
        return _View(self, self._attempt)

    def close(self) -> None:
        """The call is over."""
        if self._pulling is not None and not self._pulling.done():
            self._pulling.cancel()

    async def next_message(self, attempt: int, number: int) -> bytes | None:
        """The message of a number; None at the end, and for an attempt that is no longer the newest."""
        while attempt == self._attempt:
            data = self._at(number)
            if data is not None or self.ended:
                return data
            if self._pulling is None or self._pulling.done():
                self._pulling = asyncio.ensure_future(self._pull())
            await asyncio.shield(self._pulling)
        return None

    async def _pull(self) -> None:
        try:
            message = await self._source.__anext__() if self._source is not None else next(self._iterator)  # type: ignore[arg-type]
        except (StopAsyncIteration, StopIteration):
            self.ended = True
            return
        self._keep(message)


class _View:
    """One attempt's messages. No async generator: a dying call would leave one half run."""

    def __init__(self, replay: AioReplay, attempt: int) -> None:
        self._replay, self._attempt, self._number = replay, attempt, 0

    def __aiter__(self) -> _View:
        return self

    async def __anext__(self) -> bytes:
        data = await self._replay.next_message(self._attempt, self._number)
        if data is None:
            raise StopAsyncIteration
        self._number += 1
        return data


class BlockingReplay(_Kept):
    """Of an iterator; read in the thread that grpc has for it. An attempt that waits for the caller's next message does
    not keep another one from those that are there.
    """

    framed = False

    def __init__(self, source: Any, serialize: Callable[[Any], bytes]) -> None:
        super().__init__(serialize)
        self._iterator, self._changed, self._pulling = iter(source), threading.Condition(), False

    def pieces(self) -> Iterator[bytes]:
        """The messages from the first, for the next attempt; those of the attempt before end."""
        with self._changed:
            self._attempt += 1
            self._changed.notify_all()
        return self._from_first(self._attempt)

    def _from_first(self, attempt: int) -> Iterator[bytes]:
        number = 0
        while True:
            with self._changed:
                if attempt != self._attempt:
                    return
                data = self._at(number)
                if data is None:
                    if self.ended:
                        return
                    if self._pulling:
                        self._changed.wait()
                        continue
                    self._pulling = True
            if data is None:
                self._pull()
                continue
            number += 1
            yield data

    def _pull(self) -> None:
        found: list[Any] = []
        try:
            found.append(next(self._iterator))
        except StopIteration:
            self.ended = True
        finally:
            with self._changed:
                self._pulling = False
                self._changed.notify_all()
                for message in found:
                    self._keep(message)


class Written:
    """The messages of `write()` and `done_writing()`, as an async iterator; one waits at most."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(1)
        self.done = False

    def __aiter__(self) -> Written:
        return self

    async def __anext__(self) -> Any:
        item = await self._queue.get()
        if item is _END:
            raise StopAsyncIteration
        return item[0]

    async def put(self, message: Any, over: asyncio.Future[None]) -> bool:
        """Hand a message on; False where the call is over first, which then takes nothing any more."""
        return await self._put((message,), over)

    async def end(self, over: asyncio.Future[None]) -> None:
        """There are no more messages."""
        if not self.done:
            self.done = True
            await self._put(_END, over)

    async def _put(self, item: Any, over: asyncio.Future[None]) -> bool:
        if not self._queue.full():
            self._queue.put_nowait(item)
            return True
        putting = asyncio.ensure_future(self._queue.put(item))
        await asyncio.wait((putting, over), return_when=asyncio.FIRST_COMPLETED)
        if putting.done():
            return True
        putting.cancel()
        return False


_END = object()
