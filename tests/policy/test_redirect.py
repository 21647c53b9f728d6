"""Redirects: where the caller is sent, as the Gateway API says it, and where a caller cannot send others."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.call import Call
from meshlib.policy.redirect import PORT_MAX, Redirect
from meshlib.policy.url_rewrite import PathModifier

from .runtimes import on_asyncio, on_every_runtime

HTTP, HTTPS = SimpleNamespace(scheme="http", port=80), SimpleNamespace(scheme="https", port=443)
HIGH, HIGH_TLS = SimpleNamespace(scheme="http", port=8080), SimpleNamespace(scheme="https", port=8443)


def made(scheme=None, hostname=None, path=None, port=None, status=302) -> Redirect:
    return Redirect(scheme, hostname, path, port, status)


def location(redirect, listener=HTTP, host="a.example", target=b"/x", matched=""):
    found = redirect.location([] if host is None else [host], target, matched, listener)
    return None if found is None else found.decode("ascii")


@pytest.mark.parametrize(
    ("redirect", "listener", "expected"),
    [
        (made(), HTTP, "http://a.example/x"),
        (made(), HTTPS, "https://a.example/x"),
        (made(), HIGH, "http://a.example:8080/x"),
        (made(), HIGH_TLS, "https://a.example:8443/x"),
        (made("https"), HTTP, "https://a.example/x"),
        (made("https"), HIGH, "https://a.example/x"),
        (made("http"), HTTPS, "http://a.example/x"),
        (made("http"), HIGH_TLS, "http://a.example/x"),
        (made(port=80), HIGH, "http://a.example/x"),
        (made(port=443), HTTP, "http://a.example:443/x"),
        (made(port=443), HTTPS, "https://a.example/x"),
        (made(port=8083), HTTP, "http://a.example:8083/x"),
        (made("https", port=443), HTTP, "https://a.example/x"),
        (made("http", port=8080), HTTPS, "http://a.example:8080/x"),
        (made(hostname="example.org"), HTTP, "http://example.org/x"),
        (made(hostname="example.org"), HIGH, "http://example.org:8080/x"),
    ],
)
def test_scheme_host_and_port(redirect, listener, expected):
    """A written port; else the scheme's own where one is written; else the listener's; and none that goes without."""
    assert location(redirect, listener) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("a.example", "http://a.example/x"),
        ("a.example:80", "http://a.example/x"),
        ("a.example:8080", "http://a.example:8080/x"),
        ("a.example:", "http://a.example/x"),
        ("[::1]", "http://[::1]/x"),
        ("[2001:db8::1]:8080", "http://[2001:db8::1]:8080/x"),
        (f"a:{PORT_MAX}", f"http://a:{PORT_MAX}/x"),
        ("", "/x"),
        (None, "/x"),
    ],
)
def test_without_a_listener_the_host_has_the_port(host, expected):
    """A call inside the mesh: what the caller wrote is all there is. Without a host, a path is the whole answer."""
    assert location(made(), None, host) == expected


@pytest.mark.parametrize(
    ("modifier", "target", "expected"),
    [
        (None, b"/old/a?b=c&d", "/old/a?b=c&d"),
        (PathModifier(full="/new"), b"/old/a?b=c", "/new?b=c"),
        (PathModifier(prefix="/new"), b"/old/a?b=c?d", "/new/a?b=c?d"),
        (PathModifier(prefix="/"), b"/old", "/"),
    ],
)
def test_path_and_query(modifier, target, expected):
    """The path as it is, or as the modifier makes it; the query stays."""
    assert location(made(path=modifier), target=target, matched="/old") == "http://a.example" + expected


@pytest.mark.parametrize(
    "host",
    [
        "a b",
        "a/b",
        "a@evil.example",
        "a:80:80",
        "a\\b",
        "a:x",
        f"a:{PORT_MAX + 1}",
        "a:0",
        "::1",
        "[x]",
        'a"',
        "\u00e9",
    ],
)
def test_a_host_that_is_none(host):
    """It is not sent back, not even where it is not needed: 400 (RFC 9112 §3.2)."""
    assert location(made(), None, host) is None
    assert location(made("https", "example.org"), HTTP, host) is None


@on_every_runtime
def test_two_hosts(run):
    """Two Host fields: nobody knows which one the next hop believes."""

    async def body(_runtime):
        return await made()(Call("svc", "GET", b"/", b"Host: a\r\nhost: b\r\n"))

    reply = run(body)
    assert (reply.status, reply.header(b"x-meshlib-refused"), reply.header(b"location")) == (400, b"bad_host", None)
    assert "Host" in json.loads(reply.body)["message"]


@pytest.mark.parametrize("host", [None, "a.example"])
@pytest.mark.parametrize("target", [b"//evil.example/x", b"///evil.example", b"/\\evil.example", b"\\\\evil.example"])
def test_no_path_becomes_a_host(target, host):
    """Browsers read // and /\\ at the beginning as a host."""
    found = location(made(), None, host, target)
    assert "\\" not in found
    if host is None:
        assert found.startswith("/")
        assert not found.startswith("//")
    else:
        assert found.startswith("http://a.example/")


@given(st.binary(max_size=40), st.booleans())
def test_a_location_is_a_uri(rest, known):
    """Whatever bytes a target has, Location has only characters of a URI, and one line."""
    found = made().location(["a.example"] if known else [], b"/" + rest, "", None)
    assert all(0x21 <= byte <= 0x7E and byte not in b'"#<>\\^`{|}' for byte in found)


@on_every_runtime
@pytest.mark.parametrize(
    ("status", "reason"), [(301, b"Moved Permanently"), (303, b"See Other"), (308, b"Permanent Redirect")]
)
def test_the_reply(run, status, reason):
    """Status, Location, and no body; a redirect is no refusal."""

    async def body(_runtime):
        call = Call("svc", "POST", b"/see?a=b", b"Host: shop.example:8443\r\n", b"x")
        call.listener = HIGH_TLS
        return await made("https", status=status)(call)

    reply = run(body)
    assert (reply.status, reply.reason, reply.body, reply.stream) == (status, reason, b"", None)
    assert reply.headers == [(b"location", b"https://shop.example/see?a=b"), (b"content-length", b"0")]


def test_the_matched_prefix_of_the_call_counts():
    """What the router noted on the call is what the modifier takes away."""

    async def body(_runtime):
        call = Call("svc", "GET", b"/full/original", b"Host: a\r\n")
        call.matched_prefix = "/full"
        return await made(path=PathModifier(prefix="/path"))(call)

    assert on_asyncio(body).header(b"location") == b"http://a/path/original"
