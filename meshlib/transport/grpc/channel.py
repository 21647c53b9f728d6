"""`mesh.channel` and `mesh.sync_channel`: to whoever uses them ordinary grpc channels, whose every call goes through
the mesh. A stub, an interceptor, an instrumentation takes them as grpc's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from grpc import aio

from ...call_policy import POLICY
from ...errors import MeshError
from ...served import SERVED
from .call import GrpcCall, Kind
from .calls_aio import StreamResponse, UnaryResponse
from .calls_blocking import Future, Stream, settled
from .errors import lift
from .metadata import caller_metadata
from .park import Park, advance
from .replay import AioReplay, BlockingReplay, Written

if TYPE_CHECKING:
    from ...stack import Service

Serialize = Callable[[Any], bytes]
Deserialize = Callable[[bytes], Any]


class Destination(Protocol):
    """The service that is called, as the mesh has it."""

    name: str

    def grpc_asyncio(self) -> Service:
        """The client stack for the running event loop."""

    def grpc_blocking(self) -> Service:
        """The client stack for threads."""


def make_call(
    destination: Destination,
    kind: Kind,
    target: bytes,
    timeout: float | None,
    metadata: Any,
    credentials: Any,
    compression: Any,
) -> GrpcCall:
    """A call under what is in force here, without its request: its timeout is the call's own, else `mesh.policy`'s."""
    policy = POLICY.get()
    if policy is None:
        call = GrpcCall(destination.name, "POST", target, served=SERVED.get(), timeout_s=timeout)
        call.metadata = caller_metadata(metadata, b"") if metadata else ()
    else:
        call = GrpcCall(
            destination.name,
            "POST",
            target,
            served=SERVED.get(),
            timeout_s=policy.timeout_s if timeout is None else timeout,
            max_retries=policy.max_retries,
            idempotent=policy.idempotent,
            schedule=policy.schedule,
            hash_key=policy.hash_key,
        )
        call.metadata = caller_metadata(metadata, policy.header_lines)
    call.kind, call.parked, call.options = kind, False, {}
    if credentials is not None:
        call.options["credentials"] = credentials
    if compression is not None:
        call.options["compression"] = compression
    return call


def _same(message: Any) -> Any:
    return message


class _Multicallable:
    kind: Kind

    def __init__(self, channel: Any, method: str, serialize: Serialize | None, deserialize: Deserialize | None) -> None:
        self._channel, self._target, self._destination = channel, method.encode("ascii"), channel.destination
        self._serialize, self._deserialize = serialize or _same, deserialize
        self._one_message = self.kind in ("unary_unary", "unary_stream")

    def _call(self, timeout: float | None, metadata: Any, credentials: Any, compression: Any) -> GrpcCall:
        channel = self._channel
        if channel.closed:
            raise channel.usage_error
        if compression is None:
            compression = channel.compression
        return make_call(self._destination, self.kind, self._target, timeout, metadata, credentials, compression)


class AioMulticallable(_Multicallable):
    """What a stub calls. `wait_for_ready` changes nothing: a call waits for an endpoint as its policy says, within its
    deadline.
    """

    def __call__(
        self,
        request: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        call = self._call(timeout, metadata, credentials, compression)
        channel, written = self._channel, None
        if self._one_message:
            call.body = self._serialize(request)
        else:
            written = Written() if request is None else None
            call.body = AioReplay(written if request is None else request, self._serialize)
        answer = UnaryResponse if self.kind in ("unary_unary", "stream_unary") else StreamResponse
        return answer(call, self._destination.grpc_asyncio(), self._deserialize, written, channel.calls)


class _AioUnaryUnary(AioMulticallable, aio.UnaryUnaryMultiCallable):  # type: ignore[misc, type-arg]
    kind = "unary_unary"


class _AioUnaryStream(AioMulticallable, aio.UnaryStreamMultiCallable):  # type: ignore[misc, type-arg]
    kind = "unary_stream"


class _AioStreamUnary(AioMulticallable, aio.StreamUnaryMultiCallable):  # type: ignore[misc]
    kind = "stream_unary"


class _AioStreamStream(AioMulticallable, aio.StreamStreamMultiCallable):  # type: ignore[misc]
    kind = "stream_stream"


class _BlockingMulticallable(_Multicallable):
    def _prepared(
        self, request: Any, timeout: float | None, metadata: Any, credentials: Any, compression: Any
    ) -> GrpcCall:
        call = self._call(timeout, metadata, credentials, compression)
        call.body = self._serialize(request) if self._one_message else BlockingReplay(request, self._serialize)
        return call


class _BlockingUnary(_BlockingMulticallable):
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return self.with_call(request, timeout, metadata, credentials, wait_for_ready, compression)[0]

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> tuple[Any, Any]:
        """The answer, and grpc's call object."""
        call = self._prepared(request, timeout, metadata, credentials, compression)
        work: Any = self._destination.grpc_blocking()(call)
        try:
            found = advance(work)
        except MeshError as error:
            raise lift(error, call.trail) from error.__cause__
        assert not isinstance(found, Park)
        reply = settled(found, call)
        return (self._deserialize(reply.body) if self._deserialize else reply.body), getattr(reply, "native", None)

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Future:
        """The answer, later."""
        call = self._prepared(request, timeout, metadata, credentials, compression)
        call.parked = True
        work: Any = self._destination.grpc_blocking()(call)
        return Future(work, call, self._deserialize)


class _BlockingStreaming(_BlockingMulticallable):
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Stream:
        call = self._prepared(request, timeout, metadata, credentials, compression)
        call.parked = True
        work: Any = self._destination.grpc_blocking()(call)
        return Stream(work, call, self._deserialize)


class _UnaryUnary(_BlockingUnary, grpc.UnaryUnaryMultiCallable):  # type: ignore[misc, type-arg]
    kind = "unary_unary"


class _StreamUnary(_BlockingUnary, grpc.StreamUnaryMultiCallable):  # type: ignore[misc, type-arg]
    kind = "stream_unary"


class _UnaryStream(_BlockingStreaming, grpc.UnaryStreamMultiCallable):  # type: ignore[misc, type-arg]
    kind = "unary_stream"


class _StreamStream(_BlockingStreaming, grpc.StreamStreamMultiCallable):  # type: ignore[misc, type-arg]
    kind = "stream_stream"


class _Factory:
    """The four ways to make a multicallable. `compression`: of every call that does not say it itself."""

    kinds: tuple[type[Any], type[Any], type[Any], type[Any]]
    usage_error: Exception

    def __init__(self, destination: Destination, compression: Any = None) -> None:
        self.destination, self.compression, self.closed = destination, compression, False

    def unary_unary(
        self,
        method: str,
        request_serializer: Serialize | None = None,
        response_deserializer: Deserialize | None = None,
        _registered_method: bool = False,
    ) -> Any:
        """One message, one answer."""
        return self.kinds[0](self, method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Serialize | None = None,
        response_deserializer: Deserialize | None = None,
        _registered_method: bool = False,
    ) -> Any:
        """One message, a stream of answers."""
        return self.kinds[1](self, method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Serialize | None = None,
        response_deserializer: Deserialize | None = None,
        _registered_method: bool = False,
    ) -> Any:
        """A stream of messages, one answer."""
        return self.kinds[2](self, method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Serialize | None = None,
        response_deserializer: Deserialize | None = None,
        _registered_method: bool = False,
    ) -> Any:
        """Streams both ways."""
        return self.kinds[3](self, method, request_serializer, response_deserializer)


class AioChannel(_Factory, aio.Channel):  # type: ignore[misc]
    """A grpc.aio.Channel to a service of the mesh; it may be used on any event loop. `calls`: those that run."""

    kinds: tuple[type[Any], type[Any], type[Any], type[Any]] = (
        _AioUnaryUnary,
        _AioUnaryStream,
        _AioStreamUnary,
        _AioStreamStream,
    )
    usage_error = aio.UsageError("Channel is closed.")

    def __init__(self, destination: Destination, compression: Any = None) -> None:
        super().__init__(destination, compression)
        self.calls: set[Any] = set()

    async def __aenter__(self) -> AioChannel:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Refuse new calls, and cancel those that still run after `grace` seconds. Connections are the mesh's."""
        self.closed = True
        running = list(self.calls)
        if grace and running:
            await asyncio.wait([call.over for call in running], timeout=grace)
        for call in running:
            call.cancel()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY until it is closed: whether an endpoint can be reached is asked per call."""
        return grpc.ChannelConnectivity.SHUTDOWN if self.closed else grpc.ChannelConnectivity.READY

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when the state is another than `last_observed_state`."""
        while self.get_state() is last_observed_state:  # noqa: ASYNC110 - closed from any loop
            await asyncio.sleep(STATE_LOOK_S)

    async def channel_ready(self) -> None:
        """It is."""


STATE_LOOK_S = 0.05
"""How often `wait_for_state_change` looks."""


class BlockingChannel(_Factory, grpc.Channel):  # type: ignore[misc]
    """A grpc.Channel to a service of the mesh; many threads may use it."""

    kinds = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
    usage_error = ValueError("Cannot invoke RPC on closed channel!")

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """Told once that it is READY: whether an endpoint can be reached is asked per call."""
        callback(grpc.ChannelConnectivity.SHUTDOWN if self.closed else grpc.ChannelConnectivity.READY)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Nothing more is told anyway."""

    def close(self) -> None:
        """Refuse new calls. Connections are the mesh's."""
        self.closed = True

    def __enter__(self) -> BlockingChannel:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
