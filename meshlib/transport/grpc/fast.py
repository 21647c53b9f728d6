"""A unary attempt on asyncio without grpc.aio's own Call object, task and Metadata: the call of grpc's Cython layer is
awaited in the task of whoever called. It does the same, for less.

That layer is not public. So it is used only with the versions of grpc that the tests have run with (TESTED), after a
probe at the first attempt of the process, which sends nothing, and never where MESHLIB_GRPC_FAST_LEAF is 0. In every
other case the attempt goes by the public API (ADR 0025).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio import Metadata

if TYPE_CHECKING:
    from .connections import Connection

log = logging.getLogger("meshlib")

TESTED = ((1, 85), (1, 86))
"""From which version of grpc, and below which one: a change of that layer has never been announced."""
PROBE_S = 1.0
"""How long the probe may take: it is over at once, or not what is expected."""
_DEADLINE_EXCEEDED = 4


class FastPath:
    """`ready`: has the probe passed? One for the process, because it is about the grpc that is installed."""

    def __init__(self, allowed: bool) -> None:
        self.ready, self._allowed = False, allowed

    async def probe(self, connection: Connection) -> None:
        """At the first attempt: a call whose deadline has passed must end as such a call does. Never raises."""
        if not self._allowed:
            return
        self._allowed = False
        try:
            raw = connection.channel._channel.call(b"/meshlib.Probe/Probe", time.time() - 1, None, None, 0)
            await asyncio.wait_for(raw.unary_unary(b"", (), None), PROBE_S)
            status = await raw.status()
            said = (status.code(), raw.is_ok(), raw.is_locally_cancelled(), await raw.initial_metadata() or ())
            texts = (status.details(), status.debug_error_string())
            self.ready = said == (_DEADLINE_EXCEEDED, False, False, ()) and all(isinstance(t, str) for t in texts)
        except Exception as error:  # whatever it is, the public API is there
            log.debug("gRPC: %r: attempts go by the public API of grpc", error)


def _allowed(environ: str, version: str) -> bool:
    """`environ`: of MESHLIB_GRPC_FAST_LEAF."""
    major, minor, *_ = version.split(".")
    return environ != "0" and TESTED[0] <= (int(major), int(minor)) < TESTED[1]


ALLOWED = _allowed(os.environ.get("MESHLIB_GRPC_FAST_LEAF", ""), grpc.__version__)
FAST = FastPath(ALLOWED)


class FastCall:
    """One attempt, by `await raw.unary_unary(request, metadata, None)`; afterwards, what a stub may ask of a call that
    went well.
    """

    __slots__ = ("raw",)

    def __init__(self, connection: Connection, method: bytes, left: float | None) -> None:
        made = connection.multicallable("unary_unary", method)
        deadline = None if left is None else time.time() + left
        self.raw = made._channel.call(made._method, deadline, None, None, made._registered_call_handle)

    async def status(self) -> Any:
        """How it ended: `code()`, `details()`, `debug_error_string()`, `trailing_metadata()`."""
        return await self.raw.status()

    async def initial_metadata(self) -> Metadata:
        """The server's headers."""
        return Metadata.from_tuple(await self.raw.initial_metadata() or ())

    async def trailing_metadata(self) -> Metadata:
        """The server's trailers."""
        return Metadata.from_tuple((await self.raw.status()).trailing_metadata() or ())
