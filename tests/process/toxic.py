"""A TCP proxy that breaks connections on purpose, in the test's own event loop.

It passes bytes through, TLS included, until a toxic is set; a toxic holds for whatever passes from then on.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Literal

Toxic = Literal["", "reset", "cut", "silence", "garbage"]
GARBAGE = b"\x00\xff\x15\x03SSH-2.0-garbage\r\n\r\n" * 8


class ToxicProxy:
    """`async with ToxicProxy(port) as proxy:` listens on `proxy.port`, forwards to 127.0.0.1:`port`.

    `toxic` acts on what the server sends, once `after` bytes of it have passed: reset (RST to both sides), cut (FIN to
    the client), silence (nothing passes any more, either way; nobody is told), garbage (other bytes instead).
    """

    def __init__(self, port: int) -> None:
        self.upstream, self.port = port, 0
        self.toxic: Toxic = ""
        self.after = 0
        self.accepted = 0
        self.bitten = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ToxicProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set(self, toxic: Toxic, after: int = 0) -> None:
        """From the next byte of the server on."""
        self.toxic, self.after = toxic, after
        self.bitten.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._pass(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            reset(writer)
            return
        except asyncio.CancelledError:
            writer.close()
            raise
        request = asyncio.create_task(self._requests(reader, up_writer))
        try:
            await self._replies(up_reader, writer, up_writer)
        except OSError:
            pass  # one side is gone; so is the other, then
        finally:
            request.cancel()
            writer.close()
            up_writer.close()
            await asyncio.gather(request, return_exceptions=True)

    async def _requests(self, reader: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            if self.toxic == "silence":
                self.bitten.set()
                await asyncio.Event().wait()
            up.write(piece)
            await up.drain()
        if up.can_write_eof():
            up.write_eof()

    async def _replies(self, up: asyncio.StreamReader, down: asyncio.StreamWriter, out: asyncio.StreamWriter) -> None:
        while piece := await up.read(65536):
            if self.toxic and len(piece) > self.after:
                down.write(piece[: self.after])
                await down.drain()
                self.bitten.set()
                if self.toxic == "silence":
                    await asyncio.Event().wait()
                if self.toxic == "garbage":
                    down.write(GARBAGE)
                    await down.drain()
                if self.toxic == "reset":
                    await asyncio.sleep(0.02)  # what was passed on is read before the reset overtakes it
                    reset(down)
                    reset(out)
                return
            self.after -= len(piece) if self.toxic else 0
            down.write(piece)
            await down.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
