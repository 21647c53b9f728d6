"""Interceptors for grpc servers: a served call goes through the server stack of HTTP, on grpc.aio and on threads.

One body for both: the stack's leaf runs the handler to its end, streams included: a filter spans the whole call.
On threads the coroutine is driven in the thread that grpc chose, and stops only to hand a message of a stream on.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import json
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from ...call import Call, Reply
from ...errors import MeshError
from ...grpc_code import HTTP_STATUS, GrpcCode, code_of_status
from ...identity.spiffe import SpiffeId
from ...runtime.blocking import drive
from ...served import SERVED
from ..asgi import remote_trace
from ..headers import NO_RETRY, read_served, sift
from ..refusal import Refusal, refusal_of, refuse
from .errors import CODES
from .metadata import PREVIOUS_ATTEMPTS

if TYPE_CHECKING:
    from ...served import Served
    from ...stack import Service
    from ..asgi import Host

METHODS_MAX = 4096
"""Methods whose wrapped handler is kept; that of one beyond is made for each call."""
HEALTH = "/grpc.health.v1.Health/"
"""Methods that are served without the stack: a probe is answered also under overload, and is no work to wait for."""
NO_DEADLINE_S = 1e9
"""grpc on threads says this much, or more, where the caller set no deadline."""


class _Running:
    """One served call: what its Call has for a body. `emit`: hands a message of a stream on."""

    framed = True

    def __init__(self, handler: Any, request: Any, context: Any, emit: Callable[[Any], Any]) -> None:
        self.handler, self.request, self.context, self.emit = handler, request, context, emit
        self.answer: Any = None
        self.aborted: BaseException | None = None

    def pieces(self) -> Any:
        """The messages belong to the handler; nothing in a server stack reads them."""
        raise RuntimeError("the messages of a served call are read by its handler")

    def code(self) -> int:
        """The code that the handler has set; OK where none."""
        found = self.context.code()
        number = getattr(found, "value", found)
        return int(number[0] if isinstance(number, tuple) else number or 0)


async def _run(call: Call) -> Reply:
    """The leaf: run the handler. An abort is its answer, not its failure."""
    running: Any = call.body
    try:
        answer = running.handler(running.request, running.context)
        if isinstance(answer, AsyncIterator):
            async for message in answer:
                await running.emit(message)
        elif isinstance(answer, Iterator):
            for message in answer:
                await running.emit(message)
        else:
            running.answer = await answer if inspect.isawaitable(answer) else answer
    except Exception as error:
        code = running.code()
        if not code or isinstance(error, MeshError):
            raise
        running.aborted = error
        return Reply(HTTP_STATUS[code], [], code=code)
    code = running.code()
    return Reply(HTTP_STATUS[code], [], code=code)


class _Interceptor:
    """What both kinds share: `host`, the server side of a mesh."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._service: Service | None = None
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    def _once(self, method: str, handler: Any, serve: Callable[..., Any]) -> Any:
        """The handler behind the stack; grpc asks for each call, so it is made once per handler of a method."""
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        wrapped = _wrapped(handler, functools.partial(serve, method, _behavior(handler)))
        if len(self._wrapped) < METHODS_MAX:
            self._wrapped[method] = handler, wrapped
        return wrapped

    def _begin(self, method: str, running: _Running) -> tuple[Call, Served]:
        """The call, and what its handler is told. MeshErrors do not come of this."""
        host, context = self.host, running.context
        fields = [
            (key.encode("ascii"), value.encode("latin-1", "replace"))
            for key, value in context.invocation_metadata() or ()
            if isinstance(value, str)
        ]
        sifted = sift(fields)
        served = read_served(sifted.mesh, _peer(context, host.trust_domain), host.now)
        left = context.time_remaining()
        if left is not None and left < NO_DEADLINE_S:
            served.deadline = min(served.deadline, host.now() + left)
        previous = next((value for key, value in fields if key == PREVIOUS_ATTEMPTS.encode()), b"")
        if previous.isdigit() and len(previous) < 5:
            served.attempt = max(served.attempt, int(previous) + 1)
        lines = b"".join([b"%b: %b\r\n" % field for field in sifted.fields])
        call = Call(host.name, "POST", method.encode("ascii"), lines, running, served=served)
        call.started = host.now()
        call.trace = remote_trace(call)
        return call, served

    async def _through(self, method: str, running: _Running) -> Refusal | None:
        """Serve a call through the server stack; what the mesh answers instead of its handler."""
        call, served = self._begin(method, running)
        if self.host.strict and served.peer is None:
            return refuse(401, "identity", "this service asks its callers for an identity of the mesh")
        token = SERVED.set(served)
        try:
            assert self._service is not None
            await self._service(call)
        except MeshError as error:
            refusal = refusal_of(error)
            if refusal.status >= 500 and served.spent:
                return replace(refusal, headers=(*refusal.headers, (NO_RETRY, b"1")))
            return refusal
        finally:
            SERVED.reset(token)
        return None


class AioInterceptor(_Interceptor, aio.ServerInterceptor):
    """For grpc.aio.server(interceptors=[…]). Handlers are `async def`; TypeError for one that is not:
    grpc.aio would run it in a thread, where what the mesh refuses is lost.
    """

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The handler of a method, behind the server stack."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(HEALTH):
            return handler
        if self._service is None:
            await self.host.startup()
            self._service = self.host.server_service(_run)
        method = handler_call_details.method
        if not _is_async(_behavior(handler)):
            raise TypeError(f"the handler of {method} on a grpc.aio server must be `async def`")
        return self._once(method, handler, self._serve)

    async def _serve(self, method: str, behavior: Any, request: Any, context: Any) -> Any:
        running = _Running(behavior, request, context, context.write)
        refusal = await self._through(method, running)
        if refusal is not None:
            await context.abort(*_abortion(refusal))
        if running.aborted is not None:
            raise running.aborted
        return running.answer


class BlockingInterceptor(_Interceptor, grpc.ServerInterceptor):
    """For grpc.server(…, interceptors=[…])."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The handler of a method, behind the server stack."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(HEALTH):
            return handler
        if self._service is None:
            self.host.start()
            self._service = self.host.server_service(_run)
        serve = self._stream if handler.response_streaming else self._unary
        return self._once(handler_call_details.method, handler, serve)

    def _unary(self, method: str, behavior: Any, request: Any, context: Any) -> Any:
        running = _Running(behavior, request, context, _Emit)
        drive(self._serve(method, running))
        return running.answer

    def _stream(self, method: str, behavior: Any, request: Any, context: Any) -> Any:
        """Each step in the call's own context, in whichever thread asks for it."""
        work: Any = self._serve(method, _Running(behavior, request, context, _Emit))
        own = contextvars.copy_context()
        try:
            while True:
                try:
                    emitted = own.run(work.send, None)
                except StopIteration:
                    return
                yield emitted.message
        finally:
            own.run(work.close)

    async def _serve(self, method: str, running: _Running) -> None:
        refusal = await self._through(method, running)
        if refusal is not None:
            code, details, trailing = _abortion(refusal)
            running.context.set_trailing_metadata(trailing)
            running.context.abort(code, details)
        if running.aborted is not None:
            raise running.aborted


class _Emit:
    """Awaited by the leaf with a message of a stream: the generator that drives it hands the message on."""

    def __init__(self, message: Any) -> None:
        self.message = message

    def __await__(self) -> Generator[_Emit, None, None]:
        yield self


def _behavior(handler: Any) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def _wrapped(handler: Any, behavior: Any) -> Any:
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[handler.request_streaming, handler.response_streaming]
    return make(behavior, handler.request_deserializer, handler.response_serializer)


def _is_async(behavior: Any) -> bool:
    """Is it `async def`, also as a method, a partial, or an object that is called?"""
    while isinstance(behavior, functools.partial):
        behavior = behavior.func
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (behavior, getattr(behavior, "__call__", None))  # noqa: B004 - the method itself is looked at
    )


def _peer(context: Any, trust_domain: str) -> SpiffeId | None:
    """Who the caller has proved to be; nobody where it is of another mesh, whatever roots the server's credentials
    have.
    """
    for uri in context.auth_context().get("peer_spiffe_id", ()):
        try:
            peer = SpiffeId.parse(uri.decode("ascii"))
        except ValueError:
            return None
        return peer if peer.trust_domain == trust_domain else None
    return None


def _abortion(refusal: Refusal) -> tuple[Any, str, tuple[tuple[str, str], ...]]:
    """Code, details and trailing metadata of an answer of the mesh."""
    code = GrpcCode.UNAUTHENTICATED if refusal.status == 401 else code_of_status(refusal.status)
    marks = tuple(
        (name.decode("ascii"), value.decode("latin-1"))
        for name, value in refusal.headers
        if name.startswith(b"x-meshlib-") or name == b"retry-after"
    )
    return CODES[code], str(json.loads(refusal.body)["message"]), marks
