"""Bounded content decoding: right where httpx is right, and never more in memory than allowed."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from meshlib.errors import TransportError
from meshlib.transport.content_encoding import MAX_LAYERS, MAX_RATIO, RATIO_FROM, ContentDecoder, codings

brotli = pytest.importorskip("brotli")
zstandard = pytest.importorskip("zstandard")

MIB = 1 << 20
ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda data: bytes(brotli.compress(data, quality=5)),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def decode(applied: list[str], body: bytes, limit: int = 64 * MIB, step: int | None = None) -> bytes:
    decoder, step = ContentDecoder(applied, limit), step or max(1, len(body))
    out = b"".join(decoder.decode(body[at : at + step]) for at in range(0, len(body), step))
    return out + decoder.flush()


def text(size: int, seed: int = 7) -> bytes:
    rng = random.Random(seed)
    return b" ".join(b"%d" % rng.randrange(10_000) for _ in range(size // 5))[:size]


@pytest.mark.parametrize("coding", ENCODE)
@pytest.mark.parametrize("step", [1, 2, 3, 1000, None])
def test_round_trip(coding: str, step: int | None) -> None:
    """A body decodes the same however it is cut."""
    body = text(5_000)
    assert decode([coding], ENCODE[coding](body), step=step) == body


@pytest.mark.parametrize("coding", ENCODE)
def test_large_bodies_round_trip(coding: str) -> None:
    """More than one decoding step, in pieces and at once."""
    body = text(900_000)
    assert decode([coding], ENCODE[coding](body)) == body
    assert decode([coding], ENCODE[coding](body), step=65_536) == body


def test_layers_are_undone_in_reverse() -> None:
    """`content-encoding: gzip, br` was gzipped first."""
    body = text(20_000)
    packed = ENCODE["br"](ENCODE["gzip"](body))
    assert decode(codings([b"gzip", b" BR"]), packed, step=100) == body


def test_bare_deflate() -> None:
    """deflate without the zlib wrapper, as some servers send it, from the first byte on."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = compressor.compress(b"packed" * 100) + compressor.flush()
    assert decode(["deflate"], packed, step=1) == b"packed" * 100


def test_two_zstd_frames() -> None:
    """Frames follow each other in one body (RFC 8878 §3.1)."""
    assert decode(["zstd"], ENCODE["zstd"](b"a" * 500) + ENCODE["zstd"](b"b" * 500), step=7) == b"a" * 500 + b"b" * 500


@pytest.mark.parametrize("coding", ENCODE)
def test_no_body_is_no_error(coding: str) -> None:
    """HEAD, 204 and 304 carry the field without a body."""
    assert decode([coding], b"") == b""


def test_unknown_codings_are_left_alone() -> None:
    """As httpx: the body stays as it is."""
    assert decode(codings([b"identity, compress"]), b"raw") == b"raw"


@pytest.mark.parametrize("coding", ENCODE)
def test_nonsense_is_a_decode_error(coding: str) -> None:
    """A body that is not what it says."""
    with pytest.raises(TransportError) as caught:
        decode([coding], b"\xffthis is nonsense, whatever it claims to be")
    assert caught.value.cause == "decode"
    assert not caught.value.retryable


def test_a_cut_zstd_frame_is_an_error() -> None:
    """zstd knows its end, and httpx asks."""
    with pytest.raises(TransportError, match="middle of a frame"):
        decode(["zstd"], ENCODE["zstd"](text(1000))[:-4])


@pytest.mark.parametrize("coding", ENCODE)
def test_the_size_limit_is_exact(coding: str) -> None:
    """`max_bytes` decoded bytes pass, one more does not."""
    body = text(300_000)
    assert decode([coding], ENCODE[coding](body), limit=len(body)) == body
    with pytest.raises(TransportError, match=f"larger than {len(body) - 1} bytes"):
        decode([coding], ENCODE[coding](body), limit=len(body) - 1)


@pytest.mark.parametrize("coding", ENCODE)
def test_the_ratio_counts_from_one_mebibyte(coding: str) -> None:
    """Up to RATIO_FROM anything may grow; beyond, at most MAX_RATIO times."""
    assert len(decode([coding], ENCODE[coding](bytes(RATIO_FROM)))) == RATIO_FROM
    with pytest.raises(TransportError, match=f"grows more than {MAX_RATIO} times"):
        decode([coding], ENCODE[coding](bytes(RATIO_FROM + 1)))


@pytest.mark.parametrize("coding", ENCODE)
def test_a_bomb_stays_small(coding: str) -> None:
    """300 MB of zeros under a limit of 8 MiB: an error, and at most twice the limit was ever allocated."""
    compress = zlib.compressobj() if coding == "deflate" else None
    zeros = bytes(10 * MIB)
    if compress is not None:
        bomb = b"".join(compress.compress(zeros) for _ in range(30)) + compress.flush()
    else:
        bomb = ENCODE[coding](zeros * 30)
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(TransportError):
            decode([coding], bomb, limit=8 * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


def test_a_layered_bomb_is_found_at_the_inner_layer() -> None:
    """gzip over gzip: 1000 times 1000; the layers between are counted too."""
    inner = gzip.compress(bytes(50 * MIB))
    with pytest.raises(TransportError):
        decode(["gzip", "gzip"], gzip.compress(inner), limit=4 * MIB)


def test_layers_are_bounded() -> None:
    """MAX_LAYERS codings pass, one more is refused unread."""
    body = b"x"
    for _ in range(MAX_LAYERS):
        body = gzip.compress(body)
    assert decode(["gzip"] * MAX_LAYERS, body) == b"x"
    with pytest.raises(TransportError, match="one over the other"):
        ContentDecoder(["gzip"] * (MAX_LAYERS + 1), MIB)


def test_a_zstd_window_above_rfc_9659_is_refused() -> None:
    """The window is allocated before a byte is decoded."""
    params = zstandard.ZstdCompressionParameters.from_level(1, window_log=26)
    compressor = zstandard.ZstdCompressor(compression_params=params).compressobj()
    packed = compressor.compress(text(100_000)) + compressor.flush()
    with pytest.raises(TransportError, match="not zstd"):
        decode(["zstd"], packed)
