"""What a handler asks for itself, and the guard that keeps it: `mesh.handler(**policy)`, for any framework.

A guard may only narrow the central policy, and refuses to run where nothing would enforce it. Its timeout becomes the
deadline of the call being served, so that outgoing calls end in time too. Source: Envoy's per-route limits.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from ..errors import DeadlineExceeded, MeshError, PermissionDenied, Rejected
from ..served import SERVED, Served
from .admission import Concurrency
from .asgi import Host
from .refusal import EXCHANGE

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class HandlerPolicy:
    """What a handler asks for itself; None: nothing beyond the central policy.

    `timeout`: seconds, > 0; an async handler is cancelled (504), a sync one is only not begun too late, and its own
    calls end in time. `idempotent`: may a caller send it twice? `allow`: the only services that may call it.
    `max_concurrency`: requests at once, ≥ 1; one more is 503.
    """

    timeout: float | None = None
    idempotent: bool | None = None
    allow: tuple[str, ...] | None = None
    max_concurrency: int | None = None

    @classmethod
    def of(cls, **policy: Any) -> HandlerPolicy:
        """From the keywords of a decorator; TypeError or ValueError names the one that is wrong."""
        known = [field.name for field in fields(cls)]
        for name in policy:
            if name == "rate_limit":
                raise ValueError(
                    "rate_limit is not enforced by this release; use rate_limits of the service in mesh.yaml"
                )
            if name not in known:
                raise TypeError(f"{name!r} is not a handler policy; there are {', '.join(known)}")
        allow = policy.get("allow")
        if isinstance(allow, str):
            raise TypeError(f"allow must be a list of service names, got the text {allow!r}")
        return cls(**{**policy, "allow": None if allow is None else tuple(map(_full_name, allow))})

    def __post_init__(self) -> None:
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout!r}")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be 1 or more, got {self.max_concurrency!r}")


def handler_guard(host: Host, policy: HandlerPolicy) -> Callable[[F], F]:
    """The decorator that keeps `policy` for a sync or async function of any framework.

    Raises, before the function begins: RuntimeError outside a meshed call, PermissionDenied (403), Rejected: shed (503)
    or deadline (504); and DeadlineExceeded (504) when an async function takes longer than `timeout`. TypeError at once
    for a generator: it would run after the guard has gone.
    """
    concurrency = None if policy.max_concurrency is None else Concurrency(policy.max_concurrency)

    def guard(function: F) -> F:
        name = getattr(function, "__qualname__", repr(function))
        called = (function, getattr(function, "__call__", None))  # noqa: B004 - the method, not whether there is one
        if any(map(inspect.isgeneratorfunction, called)) or any(map(inspect.isasyncgenfunction, called)):
            raise TypeError(f"{name} is a generator, which would run outside its policy; return a streaming response")

        @functools.wraps(function)
        async def guarded_async(*args: Any, **kwargs: Any) -> Any:
            with _admitted(host, policy, concurrency, name):
                if policy.timeout is None:
                    return await function(*args, **kwargs)
                return await _in_time(function(*args, **kwargs), policy.timeout, name)

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with _admitted(host, policy, concurrency, name):
                return function(*args, **kwargs)

        return typing.cast("F", guarded_async if any(map(inspect.iscoroutinefunction, called)) else guarded)

    return guard


@contextmanager
def _admitted(host: Host, policy: HandlerPolicy, concurrency: Concurrency | None, name: str) -> Iterator[None]:
    served = SERVED.get()
    if served is None:
        raise RuntimeError(
            f"{name} has a mesh policy but was called outside a meshed call, where nothing enforces it: "
            "serve the application with mesh.run(app), mesh.asgi(app) or mesh.wsgi(app)"
        )
    try:
        if policy.allow is not None:
            _check_caller(served, policy.allow, name)
        if policy.timeout is not None:
            served.deadline = min(served.deadline, host.now() + policy.timeout)
        if served.remaining_s <= 0:
            raise Rejected("deadline", f"the caller's deadline had passed before {name} began")
        if concurrency is not None:
            concurrency.enter(name)
        try:
            yield
        finally:
            if concurrency is not None:
                concurrency.leave()
    except MeshError as error:
        # Frameworks answer 500 before we see the error; the adapter then puts our answer in its place.
        exchange = EXCHANGE.get()
        if exchange is not None:
            exchange.error = error
        raise


async def _in_time(work: Awaitable[Any], timeout_s: float, name: str) -> Any:
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        message = f"{name} took longer than its timeout of {timeout_s:g} s"
        raise DeadlineExceeded(message, phase="read", sent=True, total=True) from None


def _check_caller(served: Served, allow: tuple[str, ...], name: str) -> None:
    caller = None if served.peer is None else served.peer.service
    if caller not in allow:
        who = "a caller without a verified identity" if served.peer is None else str(served.peer)
        raise PermissionDenied(f"{who} may not call {name}", rule=f"handler {name}: allow")


def _full_name(service: str) -> str:
    return service if "." in service else f"{service}.default"
