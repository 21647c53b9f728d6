"""The sans-I/O reader: every trap of an HTTP/1.1 client on llhttp, bytes split everywhere, hostile vectors, a fuzz."""

from __future__ import annotations

import base64
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from meshlib.call import Call
from meshlib.errors import TransportError
from meshlib.transport.http1 import ResponseReader, render_head
from meshlib.transport.limits import HttpLimits

LIMITS = HttpLimits()
OK = b"HTTP/1.1 200 OK\r\n"
VECTORS = Path(__file__).resolve().parents[2] / "../shared/conformance/http_malformed.json"


def read(*pieces: bytes, method: str = "GET", eof: bool = False, limits: HttpLimits = LIMITS, buffered: bool = True):
    """Feed the pieces, each from a buffer that is overwritten afterwards, as the shared receive buffer is."""
    reader = ResponseReader(method, limits, buffered)
    for piece in pieces:
        shared = bytearray(piece)
        reader.feed(memoryview(shared))
        shared[:] = b"!" * len(shared)
    if eof:
        reader.eof()
    return reader


def refused(*pieces: bytes, cause: str = "protocol", **options: object) -> TransportError:
    with pytest.raises(TransportError) as caught:
        read(*pieces, **options)  # type: ignore[arg-type]
    assert caught.value.cause == cause
    assert caught.value.phase == "read"
    return caught.value


# name → (method, bytes, ends by EOF, status, body, trailers, keep)
GOOD = {
    "declared length": ("GET", OK + b"Content-Length: 5\r\n\r\nhello", False, 200, b"hello", [], True),
    "no body": ("GET", OK + b"content-length: 0\r\n\r\n", False, 200, b"", [], True),
    "chunked": (
        "GET", OK + b"transfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", False,
        200, b"abcde", [], True,
    ),
    "trailers": (
        "GET", OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-t: 1\r\nx-u: 2\r\n\r\n", False,
        200, b"x", [(b"x-t", b"1"), (b"x-u", b"2")], True,
    ),
    "until the end": ("GET", OK + b"\r\nabcdef", True, 200, b"abcdef", [], False),
    "connection: close": ("GET", OK + b"connection: close\r\ncontent-length: 1\r\n\r\nx", False, 200, b"x", [], False),
    "HTTP/1.0": ("GET", b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", False, 200, b"x", [], False),
    "HTTP/1.0 keep-alive": (
        "GET", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx", False, 200, b"x", [], True,
    ),
    "HEAD": ("HEAD", OK + b"content-length: 5\r\n\r\n", False, 200, b"", [], True),
    "204 with a length": ("GET", b"HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\n", False, 204, b"", [], True),
    "304 with a length": ("GET", b"HTTP/1.1 304 No\r\ncontent-length: 5\r\n\r\n", False, 304, b"", [], True),
    "100 and 103": (
        "GET",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: a\r\n\r\n" + OK + b"content-length: 1\r\n\r\nx",
        False, 200, b"x", [], True,
    ),
    "no reason": ("GET", b"HTTP/1.1 299\r\ncontent-length: 0\r\n\r\n", False, 299, b"", [], True),
    "upgrade offered on 200": (
        "GET", OK + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 1\r\n\r\nx", False, 200, b"x", [], True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_response_is_the_same_however_its_bytes_are_split(name: str) -> None:
    """Whole, split in two at every position, and byte by byte: same status, body, trailers and reuse."""
    method, data, ends, status, body, trailers, keep = GOOD[name]
    splits = [[data], [data[i : i + 1] for i in range(len(data))]]
    splits += [[data[:i], data[i:]] for i in range(1, len(data))]
    for pieces in splits:
        reader = read(*pieces, method=method, eof=ends)
        got = reader.done, reader.status, reader.take(), reader.trailers, reader.keep
        assert got == (True, status, body, trailers, keep), pieces


@pytest.mark.parametrize("name", [name for name in GOOD if not GOOD[name][2]])
def test_every_cut_is_an_error(name: str) -> None:
    """An end of stream anywhere before the end of the message is `closed`, never a short response."""
    method, data, *_ = GOOD[name]
    for i in range(len(data)):
        reader = read(data[:i] if i else b"", method=method) if i else ResponseReader(method, LIMITS)
        if not reader.done:
            with pytest.raises(TransportError) as caught:
                reader.eof()
            assert caught.value.cause == "closed"


def test_reason_and_version_are_the_servers_own() -> None:
    """Reason phrase, version and field order and case are kept as received."""
    reader = read(b"HTTP/1.0 404 Not Here\r\nX-B: 1\r\nx-a: 2\r\nContent-Length: 0\r\n\r\n")
    assert (reader.reason, reader.http_version) == (b"Not Here", b"HTTP/1.0")
    assert reader.headers == [(b"X-B", b"1"), (b"x-a", b"2"), (b"Content-Length", b"0")]


# -- trap 1: limits of the head


def test_a_head_at_the_limit_is_read_and_one_byte_more_is_refused() -> None:
    """The head is counted in bytes: exactly `head_bytes` passes, whole or split; one more does not."""
    limits = replace(LIMITS, head_bytes=200)
    filler = 200 - len(OK + b"content-length: 1\r\na: \r\n\r\n")
    head = OK + b"content-length: 1\r\na: " + b"x" * filler + b"\r\n\r\n"
    assert len(head) == 200
    assert read(head + b"x", limits=limits).done
    assert read(head[:150], head[150:] + b"x", limits=limits).done
    over = head.replace(b"a: ", b"a: y")
    refused(over + b"x", cause="too_large", limits=limits)
    refused(over[:150], over[150:] + b"x", cause="too_large", limits=limits)


def test_an_endless_head_is_never_given_to_the_parser() -> None:
    """llhttp would join it quadratically: after `head_bytes` the reader refuses, having parsed no more than that."""
    reader = ResponseReader("GET", LIMITS)
    reader.feed(OK + b"a: ")
    for _ in range(65):
        reader.feed(b"x" * 1000)
    with pytest.raises(TransportError, match="65536 bytes"):
        reader.feed(b"x" * 1000)


def test_the_number_of_fields_is_limited_in_head_and_trailers() -> None:
    """`fields` pass, `fields` + 1 do not."""
    limits = replace(LIMITS, fields=3)
    lines = [b"h%d: 1\r\n" % i for i in range(4)]
    assert read(OK + b"content-length: 0\r\n" + b"".join(lines[:2]) + b"\r\n", limits=limits).done
    refused(OK + b"content-length: 0\r\n" + b"".join(lines[:3]) + b"\r\n", cause="too_large", limits=limits)
    chunked = OK + b"transfer-encoding: chunked\r\n\r\n0\r\n"
    assert read(chunked + b"".join(lines[:3]) + b"\r\n", limits=limits).done
    refused(chunked + b"".join(lines) + b"\r\n", cause="too_large", limits=limits)


def test_endless_trailers_and_chunk_extensions_are_refused() -> None:
    """What comes between two pieces of a body has the limit of a head, and real pieces start it anew."""
    limits = replace(LIMITS, head_bytes=1000)
    start = OK + b"transfer-encoding: chunked\r\n\r\n"
    refused(start, b"0\r\nx: ", *[b"y" * 100] * 11, cause="too_large", limits=limits)
    refused(start, b"1;", *[b"y" * 100] * 11, cause="too_large", limits=limits)
    reader = read(start, *[b"1;" + b"y" * 400 + b"\r\nz\r\n"] * 20, b"0\r\n\r\n", limits=limits)
    assert reader.done
    assert reader.take() == b"z" * 20


# -- traps 2, 3, 4


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/2.0 200",
        b"HTTP/1.2 200",
        b"HTTP/0.9 200",
        b"HTTP/1.1 099",
        b"HTTP/1.1 600",
        b"HTTP/1.1 1000",
        b"ICE/1.1 200",
        b"RTSP/1.0 200",
        b"<html>",
    ],
)
def test_not_an_http1_response(line: bytes) -> None:
    """Versions and statuses that llhttp takes are refused, and so is what is not HTTP at all."""
    refused(line + b" OK\r\ncontent-length: 0\r\n\r\n")


@pytest.mark.parametrize("field", [b"transfer-encoding: chunked", b"content-length: 2"])
def test_an_interim_response_with_a_body_is_refused(field: bytes) -> None:
    """RFC 9112 §6.1 and RFC 9110 §8.6: it has none, and readers would disagree about where the next one begins."""
    refused(b"HTTP/1.1 103 Early\r\n" + field + b"\r\n\r\n", OK + b"content-length: 0\r\n\r\n")
    reader = read(b"HTTP/1.1 100 Go\r\ncontent-length: 0\r\n\r\n", OK + b"content-length: 0\r\n\r\n")
    assert (reader.done, reader.keep, reader.interim) == (True, True, 1)


def test_interim_responses_are_counted() -> None:
    """Eight are dropped, the ninth is an error, and none of them counts into the head of the next."""
    one = b"HTTP/1.1 103 Early\r\nlink: " + b"x" * 30_000 + b"\r\n\r\n"
    final = OK + b"content-length: 2\r\n\r\nok"
    reader = read(*[one] * 8, final)
    assert (reader.take(), reader.headers, reader.interim) == (b"ok", [(b"content-length", b"2")], 8)
    refused(*[one] * 9, final)


def test_a_switch_of_protocols_nobody_asked_for() -> None:
    """101 is an error, with and without an Upgrade field."""
    refused(b"HTTP/1.1 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nabc")
    refused(b"HTTP/1.1 101 Switching\r\n\r\nabc")


# -- traps 5 to 9


def test_head_does_not_eat_the_next_response() -> None:
    """After HEAD the declared body never comes: bytes that do are not a body, and the connection is not reused."""
    reader = read(OK + b"content-length: 5\r\n\r\nhello", method="HEAD")
    assert (reader.done, reader.keep, reader.take()) == (True, False, b"")
    reader = read(OK + b"content-length: 5\r\n\r\n", OK, method="HEAD")
    assert (reader.done, reader.keep) == (True, False)


@pytest.mark.parametrize(
    "fields",
    [
        b"transfer-encoding: gzip, chunked", b"transfer-encoding: chunked, gzip", b"transfer-encoding: identity",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked", b"transfer-encoding: chunkedchunked",
        b"transfer-encoding: chunked\r\ncontent-length: 1", b"content-length: 1\r\ntransfer-encoding: chunked",
        b"content-length: 1\r\ncontent-length: 1", b"content-length: 1\r\ncontent-length: 2", b"content-length: +1",
        b"content-length: 1, 1", b"content-length: 99999999999999999999999", b"content-length: -1", b"content-length:",
        b"a: 1\r\n  2", b"a: 1\r2", b"a: 1\x002", b"a : 1", b"x\n: 1", b": 1",
    ],
)  # fmt: skip
def test_framing_that_may_not_be_trusted(fields: bytes) -> None:
    """Every ambiguous framing and every malformed field is refused; leniency is off."""
    refused(OK + fields + b"\r\n\r\n1\r\nx\r\n0\r\n\r\n")


def test_bare_line_feeds_and_codings_in_http10_are_refused() -> None:
    """Bare LF anywhere, and a transfer coding in a version that has none."""
    refused(b"HTTP/1.1 200 OK\ncontent-length: 0\n\n")
    refused(OK + b"content-length: 0\nx: y\r\n\r\n")
    refused(b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "chunk", [b"1 \r\nx\r\n", b"fffffffffffffffff\r\nx", b"-1\r\nx\r\n", b"0x1\r\nx\r\n", b"1\r\nxx\r\n", b"1\nx\n"]
)
def test_malformed_chunks(chunk: bytes) -> None:
    """A chunk that is not exactly hex size, CRLF, bytes, CRLF."""
    refused(OK + b"transfer-encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n")


def test_an_end_without_close_notify_does_not_end_a_body() -> None:
    """Under TLS an EOF body that was cut cannot be told from a whole one, except by close_notify."""
    reader = read(OK + b"\r\nabc")
    with pytest.raises(TransportError) as caught:
        reader.eof(clean=False)
    assert caught.value.cause == "closed"


# -- trap 10: after the response


@pytest.mark.parametrize("rubbish", [b"GARBAGE", OK, OK + b"content-length: 1\r\n\r\nx", b"H", b"\x00"])
@pytest.mark.parametrize("together", [True, False])
def test_what_follows_a_response_spoils_the_connection_not_the_response(rubbish: bytes, together: bool) -> None:
    """The response is delivered unchanged; the connection is never used again."""
    good = OK + b"x-a: 1\r\ncontent-length: 2\r\n\r\nok"
    reader = read(good + rubbish) if together else read(good, rubbish)
    assert (reader.done, reader.keep, reader.take()) == (True, False, b"ok")
    assert reader.headers == [(b"x-a", b"1"), (b"content-length", b"2")]
    assert reader.trailers == []


def test_rubbish_behind_a_body_that_went_around_the_parser() -> None:
    """The known-length path counts bytes: one too many and the connection is spoilt."""
    reader = read(OK + b"content-length: 4\r\n\r\nab", b"cdE")
    assert (reader.done, reader.keep, reader.take()) == (True, False, b"abcd")


# -- trap 15: bodies


def test_body_limits_for_declared_chunked_and_endless_bodies() -> None:
    """At the limit all pass, above it none; only a declared one can be refused before it comes."""
    limits = replace(LIMITS, body_bytes=10)
    for size, fine in ((10, True), (11, False)):
        body = b"x" * size
        messages = {
            "declared": [OK + b"content-length: %d\r\n\r\n" % size, body],
            "chunked": [OK + b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n" % (size, body), b"0\r\n\r\n"],
            "endless": [OK + b"\r\n" + body[:1], body[1:]],
        }
        for name, pieces in messages.items():
            if fine:
                assert read(*pieces, limits=limits, eof=name == "endless").take() == body
            else:
                refused(*pieces, cause="too_large", limits=limits)
            assert read(*pieces, limits=limits, eof=name == "endless", buffered=False).take() == body
    refused(OK + b"content-length: 11\r\n\r\n", cause="too_large", limits=limits)


def test_many_tiny_chunks_do_not_cost_more_than_their_bytes() -> None:
    """A body of one-byte chunks is kept as one piece per read, not as one object per byte."""
    reader = read(OK + b"transfer-encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n" * 1000] * 5)
    assert len(reader._parts) == 5
    assert reader.waiting == 5000


def test_take_gives_each_byte_once() -> None:
    """Taking while the body comes, for every framing."""
    for message, ends in (
        (OK + b"content-length: 6\r\n\r\nabcdef", False),
        (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n", False),
        (OK + b"\r\nabcdef", True),
    ):
        reader, got = ResponseReader("GET", LIMITS, False), b""
        for i in range(len(message)):
            reader.feed(message[i : i + 1])
            got += reader.take()
        if ends:
            reader.eof()
        assert got == b"abcdef"
        assert reader.done


# -- vectors and fuzz


def _vectors() -> list[dict[str, object]]:
    if not VECTORS.exists():
        return []
    return [entry for entry in json.loads(VECTORS.read_text())["http1"] if entry["kind"] == "response"]


@pytest.mark.skipif(not VECTORS.exists(), reason="the conformance vectors are not here")
def test_malformed_vectors_end_in_an_error_or_a_response() -> None:
    """As the answer to GET, whole and byte by byte: our error or a complete response."""
    vectors = _vectors()
    assert vectors
    for entry in vectors:
        data = base64.b64decode(str(entry["bytes_b64"]))
        outcomes = set()
        for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
            reader = ResponseReader("GET", LIMITS)
            try:
                for piece in pieces:
                    reader.feed(piece)
                reader.eof()
                outcomes.add("complete" if reader.done else "open")
            except TransportError:
                outcomes.add("error" if not reader.done else "after")
            assert not reader.keep, entry["id"]  # after EOF nothing is kept
        assert len(outcomes) == 1, (entry["id"], outcomes)
        assert outcomes <= {"complete", "error"}, entry["id"]
        if not entry["accept"] and not entry["messages_complete"]:
            assert outcomes == {"error"}, entry["id"]


@pytest.mark.fuzz
def test_fuzz() -> None:
    """Mutated responses in random pieces: only our errors, no response that is not complete, no keep after an error."""
    seed = int(os.environ.get("MESHLIB_SEED", "20240817"))
    rounds = int(os.environ.get("MESHLIB_FUZZ", "2000"))
    print(f"seed {seed}, {rounds} rounds")
    rng, corpus, done = random.Random(seed), [case[1] for case in GOOD.values()], 0
    limits = HttpLimits(head_bytes=512, fields=8, body_bytes=64)
    for _ in range(rounds):
        data = bytearray(rng.choice(corpus))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(4)] = rng.choice(
                [b"", b"\r\n", b"\n", b"\x00", b": ", b"0\r\n\r\n", b"chunked", rng.randbytes(3), bytes(data[:at])]
            )
        reader = ResponseReader(rng.choice(["GET", "HEAD"]), limits, rng.random() < 0.5)
        try:
            while data:
                size = rng.randrange(1, len(data) + 1)
                reader.feed(bytes(data[:size]))
                del data[:size]
            reader.eof()
        except TransportError:
            assert not reader.done
            assert not reader.keep
        else:
            assert reader.done
            assert not reader.keep
            done += 1
    assert 0 < done < rounds


# -- the request side


def test_render_head() -> None:
    """Request line, the call's lines, ours, an empty line."""
    call = Call("s", "PATCH", b"/a?b", b"host: s\r\n")
    assert render_head(call, b"x: 1\r\n") == b"PATCH /a?b HTTP/1.1\r\nhost: s\r\nx: 1\r\n\r\n"
    assert render_head(Call("s", "PURGE", b"*"), b"") == b"PURGE * HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET x", b"/"),
        ("", b"/"),
        ("G\r\n", b"/"),
        ("GET", b"/a b"),
        ("GET", b"/\r\nx: 1"),
        ("GET", b""),
        ("GÉT", b"/"),
        ("G€T", b"/"),
    ],
)
def test_a_request_line_cannot_be_broken(method: str, target: bytes) -> None:
    """A method that is no token or a target with a space or control character never leaves."""
    with pytest.raises(TransportError) as caught:
        render_head(Call("s", method, target), b"")
    assert (caught.value.cause, caught.value.phase, caught.value.sent) == ("local", "write", False)
    assert not caught.value.retryable
