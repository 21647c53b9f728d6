"""A server of bare HTTP/2, which sends what a test says instead of what a gRPC server would. Frames: RFC 9113 §4."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

HEADERS, RST_STREAM, SETTINGS, GOAWAY = 1, 3, 4, 7
ACK = END_STREAM = 1
END_HEADERS = 4
PREFACE_BYTES = 24

Answer = Callable[[int], bytes]
"""The frames that answer a stream, by its number; none at all closes the connection."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def rst_stream(code: int) -> Answer:
    """The stream is reset with this error code."""
    return lambda stream: frame(RST_STREAM, 0, stream, struct.pack("!I", code))


def goaway(*, seen: bool) -> Answer:
    """The connection goes; `seen`: the stream is among those that the server says it has seen."""
    return lambda stream: frame(GOAWAY, 0, 0, struct.pack("!II", stream if seen else 0, 0))


def headers(*fields: tuple[str, str]) -> Answer:
    """A response of headers alone, each of less than 127 bytes and a literal that nobody keeps (RFC 7541 §6.2.2)."""
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
    return lambda stream: frame(HEADERS, END_STREAM | END_HEADERS, stream, block)


def _text(text: str) -> bytes:
    value = text.encode("latin-1")
    assert len(value) < 127
    return bytes([len(value)]) + value


class BarePeer:
    """`answer` to every stream. `streams`: how many there were."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.streams = answer, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            stream.read(PREFACE_BYTES)
            connection.sendall(frame(SETTINGS, 0, 0))
            for kind, flags, number in _frames(stream):
                if kind == SETTINGS and not flags & ACK:
                    connection.sendall(frame(SETTINGS, ACK, 0))
                elif kind == HEADERS:
                    self.streams += 1
                    answer = self.answer(number)
                    if not answer:
                        return
                    connection.sendall(answer)


def _frames(stream: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """(kind, flags, stream) of each frame until there is none."""
    while len(head := stream.read(9)) == 9:
        stream.read(int.from_bytes(head[:3], "big"))
        yield head[3], head[4], int.from_bytes(head[5:], "big")


@contextmanager
def bare_peer(answer: Answer) -> Iterator[BarePeer]:
    """One that is closed in the end."""
    peer = BarePeer(answer)
    try:
        yield peer
    finally:
        peer.close()
