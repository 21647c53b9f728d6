"""Content decoding with a limit: gzip, deflate, br, zstd, and several of them one over the other.

Rules. Decoding is incremental, in steps of 64 KiB, so that a bomb is found before it is in memory. Two limits: the
decoded size (`max_bytes`, of each layer), and beyond the first MiB a ratio of 100 decoded bytes to one encoded; either
broken is a TransportError with cause `decode`. Codings that are not known are left alone, as httpx does. A cut gzip,
deflate or br stream is not an error, as in httpx; a cut zstd frame is.
Sources: RFC 9110 §8.4, RFC 1950 to 1952, RFC 7932, RFC 8878; RFC 9659 (zstd windows of at most 8 MiB on HTTP).
The ratio is that of Envoy's decompressor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol

from ..errors import TransportError

STEP = 1 << 16
"""Bytes decoded at a time."""
MAX_RATIO, RATIO_FROM = 100, 1 << 20
"""Decoded bytes for one encoded byte, looked at once this many are decoded."""
MAX_LAYERS = 5
"""Codings applied to one body (curl has the same limit)."""
ZSTD_WINDOW = 8 << 20
"""RFC 9659: a zstd frame on HTTP must not need a larger window."""


def codings(values: Iterable[bytes]) -> list[str]:
    """The codings named by the content-encoding fields `values`, in the order in which they were applied."""
    named = [name.strip().lower() for value in values for name in value.decode("latin-1").split(",")]
    return [name for name in named if name and name != "identity"]


class ContentDecoder:
    """Decodes one body. `max_bytes`: limit of what it may become. Every error is a TransportError, cause `decode`."""

    def __init__(self, applied: Sequence[str], max_bytes: int) -> None:
        known = [name for name in applied if name in CODECS]
        if len(known) > MAX_LAYERS:
            raise _broken(f"{len(known)} content encodings one over the other, at most {MAX_LAYERS} are decoded")
        if missing := next((name for name in known if CODECS[name] is None), ""):
            raise _broken(f"content encoding {missing!r} needs a newer library: the installed one has no output limit")
        self._layers = [_Layer(name, max_bytes) for name in reversed(known)]
        self._received = 0

    def decode(self, data: bytes) -> bytes:
        """What `data` adds to the decoded body."""
        self._received += len(data)
        pieces: Iterable[bytes] = (data,)
        for layer in self._layers:
            pieces = layer.decoded(pieces, self._received)
        return b"".join(pieces)

    def flush(self) -> bytes:
        """The encoded body is over. Nothing is held back, so the result is empty."""
        for layer in self._layers:
            layer.finish()
        return b""


class _Layer:
    """One coding, and how much came out of it."""

    def __init__(self, name: str, max_bytes: int) -> None:
        make = CODECS[name]
        assert make is not None
        self._name, self._codec, self._max, self._made = name, make(), max_bytes, 0

    def decoded(self, pieces: Iterable[bytes], received: int) -> Iterator[bytes]:
        allowed = min(self._max, max(RATIO_FROM, MAX_RATIO * received))
        for piece in pieces:
            try:
                for out in self._codec.steps(piece, lambda: allowed - self._made):
                    self._made += len(out)
                    if self._made > allowed:
                        raise _broken(self._too_much(received))
                    yield out
            except self._codec.error as e:
                raise _broken(f"the body is not {self._name}: {e}") from e

    def finish(self) -> None:
        if not self._codec.complete():
            raise _broken(f"the {self._name} body ends in the middle of a frame")

    def _too_much(self, received: int) -> str:
        if self._made > self._max:
            return f"the {self._name} body is larger than {self._max} bytes when decoded"
        return f"the {self._name} body grows more than {MAX_RATIO} times: {received} bytes to over {self._made}"


class _Codec(Protocol):
    error: type[Exception]

    def steps(self, data: bytes, room: Callable[[], int]) -> Iterator[bytes]:
        """What `data` decodes to, in pieces of about STEP; none is much larger than `room()`."""

    def complete(self) -> bool:
        """May the encoded body end here?"""


class _Gzip:
    """gzip (RFC 1952). What follows the first member is ignored, as httpx does."""

    error: type[Exception] = zlib.error

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def steps(self, data: bytes, room: Callable[[], int]) -> Iterator[bytes]:
        while not self._inflate.eof:
            out = self._inflate.decompress(data, STEP)
            data = self._inflate.unconsumed_tail
            if out:
                yield out
            if not data and len(out) < STEP:
                return

    def complete(self) -> bool:
        return True


class _Deflate(_Gzip):
    """deflate: RFC 9110 means zlib (RFC 1950), some servers send it bare (RFC 1951); the first two bytes tell."""

    def __init__(self) -> None:
        self._head: bytes | None = b""

    def steps(self, data: bytes, room: Callable[[], int]) -> Iterator[bytes]:
        if self._head is not None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return
            zlib_header = data[0] & 15 == 8 and int.from_bytes(data[:2], "big") % 31 == 0
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
            self._head = None
        yield from super().steps(data, room)


class _Brotli:
    """br (RFC 7932)."""

    def __init__(self) -> None:
        self.error: type[Exception] = _brotli.error
        self._decompressor = _brotli.Decompressor()

    def steps(self, data: bytes, room: Callable[[], int]) -> Iterator[bytes]:
        more = bool(data)
        while more:
            out = self._decompressor.process(data, output_buffer_limit=STEP)
            more, data = len(out) >= STEP or not self._decompressor.can_accept_more_data(), b""
            yield out

    def complete(self) -> bool:
        return True


class _Zstd:
    """zstd (RFC 8878), one frame after the other.

    The library has no output limit, but four bytes make at most one block of 128 KiB: the input is cut by `room`.
    """

    def __init__(self) -> None:
        self.error: type[Exception] = _zstandard.ZstdError
        self._frame: Any = None

    def steps(self, data: bytes, room: Callable[[], int]) -> Iterator[bytes]:
        while data:
            if self._frame is None or self._frame.eof:
                self._frame = _zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            cut = min(STEP, max(16, room() >> 15))
            out = self._frame.decompress(data[:cut])
            data = self._frame.unused_data + data[cut:] if self._frame.eof else data[cut:]
            if out:
                yield out

    def complete(self) -> bool:
        return self._frame is None or bool(self._frame.eof)


def _broken(message: str) -> TransportError:
    return TransportError(message, phase="read", cause="decode")


def _optional(*names: str) -> Any:
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


_brotli, _zstandard = _optional("brotli", "brotlicffi"), _optional("zstandard")

CODECS: dict[str, Callable[[], _Codec] | None] = {"gzip": _Gzip, "deflate": _Deflate}
"""The codings that are decoded; None: the installed library cannot be given a limit, so the coding is refused."""
if _brotli is not None:
    CODECS["br"] = _Brotli if hasattr(_brotli.Decompressor, "can_accept_more_data") else None
if _zstandard is not None:
    CODECS["zstd"] = _Zstd
