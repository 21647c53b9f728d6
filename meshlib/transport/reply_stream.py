"""The body of a streamed reply, on either runtime: who reads it, who gives it up, and what becomes of its connection.

Rules of this file: a body read to its end frees its connection for the next call; every other way out closes it, and
garbage collection is one. A stream that has failed fails again: never an end that looks like a complete body.
"""

from __future__ import annotations

from typing import Protocol

from ..call import Call
from ..errors import MeshError, TransportError
from .http1 import ResponseReader


class StreamedConnection(Protocol):
    """The connection that a streamed reply comes from."""

    async def more(self, reader: ResponseReader, call: Call) -> None:
        """Return when `reader` has a piece, or is done; raise what ended it. Never suspends on the blocking runtime."""

    def finish(self, reader: ResponseReader) -> None:
        """The reply is complete: back to the pool, or closed."""

    def abort(self) -> None:
        """Close now."""

    def drop(self) -> None:
        """Close, from any thread and in the middle of anything: the garbage collector calls it. Takes no lock."""


class HttpReplyStream:
    """A `ReplyStream`: undecoded pieces as they come, with back-pressure."""

    __slots__ = ("_call", "_connection", "_error", "_reader")

    def __init__(self, connection: StreamedConnection, reader: ResponseReader, call: Call) -> None:
        self._reader, self._call = reader, call
        self._connection: StreamedConnection | None = connection
        self._error: MeshError | None = None

    async def read(self) -> bytes:
        """The next piece, b"" at the end. Once it has raised, or was closed early, it raises again."""
        connection, reader = self._connection, self._reader
        if connection is None:
            if self._error is not None:
                raise self._error
            return b""
        try:
            await connection.more(reader, self._call)
        except BaseException as error:
            self._give_up(connection, error if isinstance(error, MeshError) else _given_up())
            raise
        piece = reader.take()
        if reader.done:
            self._connection = None
            connection.finish(reader)
        return piece

    async def aclose(self) -> None:
        """Give it up. What had arrived completely does not cost the connection."""
        connection = self._connection
        if connection is None:
            return
        if self._reader.done:
            self._connection, self._error = None, _given_up()
            connection.finish(self._reader)
        else:
            self._give_up(connection, _given_up())

    def drop(self) -> None:
        """Give it up from where the garbage collector runs: any thread, and perhaps inside the pool's lock."""
        connection = self._connection
        if connection is not None:
            self._connection, self._error = None, _given_up()
            connection.drop()

    def _give_up(self, connection: StreamedConnection, error: MeshError) -> None:
        self._connection, self._error = None, error
        connection.abort()

    def __del__(self) -> None:
        self.drop()


def _given_up() -> TransportError:
    return TransportError("the reply's stream was closed before its end", phase="read", cause="local")
