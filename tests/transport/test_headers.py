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
    strip,
    strip_environ,
)

SPELLINGS = (
    b"x-meshlib-attempt", b"X-Meshlib-Attempt", b"X_MESHLIB_ATTEMPT", b"x-meshlib_attempt", b"x-meshlib-attempt ",
    b" x-meshlib-attempt", b"\tx-meshlib-no-such", b"x-envoy-peer-metadata", b"X_Envoy_Internal",
    b"x-forwarded-client-cert", b"X-Forwarded_Client-Cert", b"X-FORWARDED-CLIENT-CERT\t",
)  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_removed_from_a_stranger(name: bytes) -> None:
    """No spelling of a mesh field passes from outside, alone or twice; its neighbours stay, in order."""
    kept = [(b"accept", b"*/*"), (b"x-user", b"ada"), (b"", b"odd")]
    assert strip([kept[0], (name, b"1"), kept[1], (name, b"2"), kept[2]], trusted=False) == kept


def test_a_trusted_peer_keeps_only_the_canonical_spelling() -> None:
    """From a peer with an identity `x-meshlib-*` stays as we spell it; certificates in headers never do."""
    headers = [(b"x-meshlib-attempt", b"2"), (b"x_meshlib_attempt", b"9"), (b"x-forwarded-client-cert", b"By=x")]
    assert strip(headers, trusted=True) == [(b"x-meshlib-attempt", b"2")]


def test_an_environ_is_stripped_in_place() -> None:
    """WSGI makes one name of both spellings; the same rules hold for it."""
    environ = {
        "HTTP_X_MESHLIB_ATTEMPT": "2",
        "HTTP_X_FORWARDED_CLIENT_CERT": "x",
        "HTTP_X_USER": "ada",
        "PATH_INFO": "/",
    }
    trusted = dict(environ)
    strip_environ(environ, trusted=False)
    strip_environ(trusted, trusted=True)
    assert environ == {"HTTP_X_USER": "ada", "PATH_INFO": "/"}
    assert set(trusted) == {"HTTP_X_USER", "PATH_INFO", "HTTP_X_MESHLIB_ATTEMPT"}


def served(*headers: tuple[bytes, bytes], trusted: bool = True) -> tuple[float, int, str]:
    made = read_served(headers, ORDERS, lambda: 100.0, trusted=trusted)
    assert made.peer is ORDERS
    return made.deadline, made.attempt, made.criticality


def test_what_a_trusted_peer_says_is_read() -> None:
    """Deadline in milliseconds from now, attempt, criticality."""
    fields = [(b"x-meshlib-deadline-ms", b"1500"), (b"x-meshlib-attempt", b" 2"), (b"x-meshlib-criticality", b"high")]
    assert served(*fields) == (101.5, 2, "high")
    assert served(*fields, trusted=False) == (FOREVER, 1, "")
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


def test_a_call_without_deadline_or_trace_says_only_its_number() -> None:
    """No deadline: no field. A source name is sent only when it is given; a passed deadline is 0, not negative."""
    call = Call("orders", "GET", b"/")
    assert mesh_lines(call, 5.0) == b"x-meshlib-attempt: 1\r\n"
    assert mesh_lines(call, 5.0, "cart") == b"x-meshlib-attempt: 1\r\nx-meshlib-source: cart\r\n"
    call.deadline = 4.0
    assert b"x-meshlib-deadline-ms: 0\r\n" in mesh_lines(call, 5.0)
