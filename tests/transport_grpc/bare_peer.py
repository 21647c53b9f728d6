"""Peers of bare HTTP/2: a server and a client that send what a test says instead of what gRPC would, and say what they
were sent. Frames: RFC 9113 §4. Imports nothing of the tests: the vectors' adapters load it by its place.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from hpack import Decoder

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Fields = list[tuple[str, str]]
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
    """A response of headers alone."""
    return lambda stream: frame(HEADERS, END_STREAM | END_HEADERS, stream, block(fields))


def block(fields: tuple[tuple[str, str], ...]) -> bytes:
    """Each field of less than 127 bytes, as a literal that nobody keeps (RFC 7541 §6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(text: str) -> bytes:
    value = text.encode("latin-1")
    assert len(value) < 127
    return bytes([len(value)]) + value


class BarePeer:
    """`answer` to every stream. `streams`: how many there were; `fields`: the headers of the newest one."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.streams = answer, 0
        self.fields: Fields = []
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
            stream.read(len(PREFACE))
            connection.sendall(frame(SETTINGS, 0, 0))
            decoder = Decoder()
            for kind, flags, number, payload in _frames(stream):
                if kind == SETTINGS and not flags & ACK:
                    connection.sendall(frame(SETTINGS, ACK, 0))
                elif kind == HEADERS:
                    self.fields = _fields(decoder, payload)
                    self.streams += 1
                    answer = self.answer(number)
                    if not answer:
                        return
                    connection.sendall(answer)


def _frames(stream: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of each frame until there is none."""
    while len(head := stream.read(9)) == 9:
        payload = stream.read(int.from_bytes(head[:3], "big"))
        yield head[3], head[4], int.from_bytes(head[5:], "big"), payload


def _fields(decoder: Decoder, payload: bytes) -> Fields:
    """Fields of a block that is neither padded nor continued: gRPC does neither at this size."""
    return [(_word(name), _word(value)) for name, value in decoder.decode(payload, raw=True)]


def _word(word: bytes | str) -> str:
    return word if isinstance(word, str) else word.decode("latin-1")


def bare_call(port: int, *fields: tuple[str, str], message: bytes = b"") -> tuple[Fields, int | None]:
    """Send one stream of one gRPC message with these headers: the fields of the answer, heads and trailers, and with
    which error code it was reset, if it was.
    """
    found: Fields = []
    with socket.create_connection(("127.0.0.1", port), 10) as connection, connection.makefile("rb") as stream:
        data = b"\0" + len(message).to_bytes(4, "big") + message
        connection.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0)
            + frame(HEADERS, END_HEADERS, 1, block(fields))
            + frame(DATA, END_STREAM, 1, data)
        )
        decoder = Decoder()
        for kind, flags, number, payload in _frames(stream):
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                connection.sendall(frame(PING, ACK, 0, payload))
            elif kind == HEADERS:
                found += _fields(decoder, payload)
            elif kind == RST_STREAM and number == 1:
                return found, int.from_bytes(payload, "big")
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                break
    return found, None


@contextmanager
def bare_peer(answer: Answer) -> Iterator[BarePeer]:
    """One that is closed in the end."""
    peer = BarePeer(answer)
    try:
        yield peer
    finally:
        peer.close()
