"""A mesh channel with client interceptors of grpc.aio, which has no `intercept_channel` as threads have.

grpc's own machinery runs them: a channel of grpc that never connects gets them all, and behind them one that answers
from the mesh. So what an interceptor sees of a call is what grpc shows it, whatever that is in its version.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from typing import Any

from grpc import aio
from grpc.aio import _channel as aio_channel

from .channel import AioChannel, AioMulticallable, Deserialize, Destination, Serialize

NOWHERE = "dns:///meshlib.invalid"
"""What grpc's own channel would connect to, if a call ever came to it (RFC 2606)."""


class _Intercepted(AioMulticallable):
    def __init__(self, channel: Any, method: str, serialize: Serialize | None, deserialize: Deserialize | None) -> None:
        super().__init__(channel, method, serialize, deserialize)
        self._method = method
        channel.methods[self.kind, method] = self

    def __call__(
        self,
        request: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        own = getattr(self._channel.of_this_loop(), self.kind)(self._method)
        return own(request, timeout=timeout, metadata=metadata, credentials=credentials)

    def answer(self, details: Any, request: Any) -> Any:
        """The mesh's call, once the interceptors have had theirs."""
        return super().__call__(request, details.timeout, details.metadata, details.credentials)


class _UnaryUnary(_Intercepted, aio.UnaryUnaryMultiCallable):  # type: ignore[misc, type-arg]
    kind = "unary_unary"


class _UnaryStream(_Intercepted, aio.UnaryStreamMultiCallable):  # type: ignore[misc, type-arg]
    kind = "unary_stream"


class _StreamUnary(_Intercepted, aio.StreamUnaryMultiCallable):  # type: ignore[misc]
    kind = "stream_unary"


class _StreamStream(_Intercepted, aio.StreamStreamMultiCallable):  # type: ignore[misc]
    kind = "stream_stream"


class InterceptedChannel(AioChannel):
    """`interceptors`: any of grpc.aio's four kinds, outermost first. A method that none of this channel's stubs has
    cannot be put in the place of another by one of them (UsageError). `compression` is the channel's, not a call's.
    """

    kinds = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)

    def __init__(self, destination: Destination, compression: Any, interceptors: Sequence[Any]) -> None:
        super().__init__(destination, compression)
        self.methods: dict[tuple[str, str], _Intercepted] = {}
        self._interceptors = [*interceptors, *(last(self.methods) for last in _LASTS)]
        self._of_loops: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def of_this_loop(self) -> Any:
        """The channel of grpc's own which runs the interceptors."""
        if self.closed:
            raise self.usage_error
        loop = asyncio.get_running_loop()
        own = self._of_loops.get(loop)
        if own is None:
            own = self._of_loops[loop] = aio_channel.insecure_channel(NOWHERE, interceptors=self._interceptors)
        return own


class _Last:
    def __init__(self, methods: dict[tuple[str, str], _Intercepted]) -> None:
        self._methods = methods

    def _answer(self, kind: str, details: Any, request: Any) -> Any:
        method = details.method.decode("ascii") if isinstance(details.method, bytes) else details.method
        known = self._methods.get((kind, method))
        if known is None:
            raise aio.UsageError(f"an interceptor asks for {method}, which no stub of this channel has as {kind}")
        return known.answer(details, request)


class _LastUnaryUnary(_Last, aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_unary(self, _continuation: Any, details: Any, request: Any) -> Any:
        return self._answer("unary_unary", details, request)


class _LastUnaryStream(_Last, aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_stream(self, _continuation: Any, details: Any, request: Any) -> Any:
        return self._answer("unary_stream", details, request)


class _LastStreamUnary(_Last, aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_unary(self, _continuation: Any, details: Any, request_iterator: Any) -> Any:
        return self._answer("stream_unary", details, request_iterator)


class _LastStreamStream(_Last, aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_stream(self, _continuation: Any, details: Any, request_iterator: Any) -> Any:
        return self._answer("stream_stream", details, request_iterator)


_LASTS = (_LastUnaryUnary, _LastUnaryStream, _LastStreamUnary, _LastStreamStream)
