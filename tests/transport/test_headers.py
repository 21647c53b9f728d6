"""The mesh's own header fields, from both ends."""

from __future__ import annotations

import pytest
from serving_host import ORDERS

from meshlib.call import FOREVER, Call, TraceContext
from meshlib.transport.headers import (
    ATTEMPT_MAX,
    CRITICALITY_CHARS_MAX,
    DEADLINE_MS_MAX,
    mesh_lines,
    read_served,
    sift,
    strip_environ,
    without_own,
)

SPELLINGS = (
    b"X_MESHLIB_ATTEMPT", b"x-meshlib_attempt", b"x-meshlib-attempt ", b" x-meshlib-attempt", b"\tx-meshlib-no-such",
    b"x-envoy-peer-metadata", b"X_Envoy_Internal",
    b"x-forwarded-client-cert", b"X-Forwarded_Client-Cert", b"X-FORWARDED-CLIENT-CERT\t",
)  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_other_spelling_is_removed(name: bytes) -> None:
    """No odd spelling of a mesh field, and no word of another mesh, passes; its neighbours stay, in order."""
    kept = [(b"accept", b"*/*"), (b"x-user", b"ada"), (b"", b"odd")]
    sifted = sift([kept[0], (name, b"1"), kept[1], (name, b"2"), kept[2]])
    assert (sifted.fields, sifted.mesh) == (kept, {})


def test_one_pass_notes_what_the_mesh_reads() -> None:
    """Our own fields by name, the trace, the first length that is one; all of it stays for the application."""
    fields = [(b"x-meshlib-attempt", b" 2"), (b"X-Meshlib-Criticality", b"a"), (b"traceparent", b" p "),
              (b"tracestate", b"a=b"), (b"tracestate", b"c=d"), (b"content-length", b"x"), (b"content-length", b"7")]  # fmt: skip
    sifted = sift(fields)
    assert sifted.fields == fields
    assert sifted.mesh == {b"x-meshlib-attempt": b"2", b"x-meshlib-criticality": b"a"}
    assert (sifted.parents, sifted.states, sifted.declared) == (["p"], ["a=b", "c=d"], 7)


def test_an_environ_is_stripped_in_place() -> None:
    """WSGI makes one name of both spellings; the same rules hold for it."""
    environ = {
        "HTTP_X_MESHLIB_ATTEMPT": "2",
        "HTTP_X_FORWARDED_CLIENT_CERT": "x",
        "HTTP_X_USER": "ada",
        "PATH_INFO": "/",
    }
    strip_environ(environ)
    assert set(environ) == {"HTTP_X_USER", "PATH_INFO", "HTTP_X_MESHLIB_ATTEMPT"}


def served(*headers: tuple[bytes, bytes]) -> tuple[float, int, str]:
    made = read_served(sift(headers).mesh, ORDERS, lambda: 100.0)
    assert made.peer is ORDERS
    return made.deadline, made.attempt, made.criticality


def test_what_a_trusted_peer_says_is_read() -> None:
    """Deadline in milliseconds from now, attempt, criticality."""
    fields = [(b"x-meshlib-deadline-ms", b"1500"), (b"x-meshlib-attempt", b" 2"), (b"x-meshlib-criticality", b"high")]
    assert served(*fields) == (101.5, 2, "high")
    assert served((b"x-meshlib-deadline-ms", b"0"))[0] == 100.0


@pytest.mark.parametrize(
    "text", [b"", b"-1", b"1.5", b"1e3", b"0x10", "１".encode(), b"1 2", b"9" * 11, b"1,1", b"NaN"]
)
def test_garbage_is_as_if_absent(text: bytes) -> None:
    """A value that is not plain bounded digits is ignored."""
    assert served((b"x-meshlib-deadline-ms", text), (b"x-meshlib-attempt", text)) == (FOREVER, 1, "")


def test_values_are_bounded_and_duplicates_ignored() -> None:
    """Bounds hold at the bound; two values of one field are no value."""
    assert served((b"x-meshlib-deadline-ms", b"9" * 10))[0] == 100.0 + DEADLINE_MS_MAX / 1000
    assert served((b"x-meshlib-attempt", b"9999"))[1] == ATTEMPT_MAX
    assert served((b"x-meshlib-attempt", b"0"))[1] == 1
    assert served((b"x-meshlib-attempt", b"2"), (b"X-Meshlib-Attempt", b"2"))[1] == 1
    level = b"a" * CRITICALITY_CHARS_MAX
    assert served((b"x-meshlib-criticality", level))[2] == level.decode()
    assert served((b"x-meshlib-criticality", level + b"a"))[2] == ""


def test_a_clients_lines_are_what_a_server_reads() -> None:
    """What `mesh_lines` writes for an attempt, `read_served` understands; the shorter deadline counts."""
    call = Call("orders", "GET", b"/", trace=TraceContext(1, 2, True, "a=b"))
    call.deadline, call.attempt_deadline, call.number = 50.0, 40.5, 3
    lines = mesh_lines(call, 40.0)
    assert lines == (
        b"x-meshlib-deadline-ms: 500\r\nx-meshlib-attempt: 3\r\n"
        b"traceparent: 00-00000000000000000000000000000001-0000000000000002-01\r\ntracestate: a=b\r\n"
    )
    fields = [tuple(line.split(b": ")) for line in lines.split(b"\r\n")[:-1]]
    assert served(*fields) == (100.5, 3, "")  # type: ignore[arg-type]


def test_a_mirrors_copy_says_what_it_is() -> None:
    """A copy, and a call made to answer one, bear the mark; a server reads "1" and nothing else."""
    call = Call("orders", "GET", b"/")
    assert b"mirror" not in mesh_lines(call, 5.0)
    assert mesh_lines(call.mirror(), 5.0) == b"x-meshlib-attempt: 1\r\nx-meshlib-mirror: 1\r\n"
    for value, mirror in ((b"1", True), (b"0", False), (b"true", False), (b"", False)):
        read = read_served(sift([(b"x-meshlib-mirror", value)]).mesh, None, lambda: 0.0)
        assert read.mirror is mirror
        made = Call("stock", "GET", b"/", served=read)
        assert (b"x-meshlib-mirror: 1\r\n" in mesh_lines(made, 5.0)) is mirror


def test_a_call_without_deadline_or_trace_says_only_its_number() -> None:
    """No deadline: no field. A source name is sent only when it is given; a passed deadline is 0, not negative."""
    call = Call("orders", "GET", b"/")
    assert mesh_lines(call, 5.0) == b"x-meshlib-attempt: 1\r\n"
    assert mesh_lines(call, 5.0, "cart") == b"x-meshlib-attempt: 1\r\nx-meshlib-source: cart\r\n"
    call.deadline = 4.0
    assert b"x-meshlib-deadline-ms: 0\r\n" in mesh_lines(call, 5.0)


def test_only_the_mesh_says_its_words_in_a_response() -> None:
    """An application's `x-meshlib-*` is removed in every spelling; the rest stays as it is, in order."""
    kept = [(b"x-meshlibrary", b"1"), (b"Content-Length", b"2"), (b"X-Other", b"3")]
    relayed = [
        (name, b"shed") for name in (b"x-meshlib-refused", b"X-Meshlib-No-Retry", b"X_MESHLIB_A", b" x-meshlib-b")
    ]
    assert without_own([kept[0], *relayed, *kept[1:]]) == kept
