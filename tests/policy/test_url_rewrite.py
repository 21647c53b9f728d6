"""Rewriting: the table of the Gateway API, the query, the Host in its place, and what must not come out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.call import Call, Reply
from meshlib.policy.url_rewrite import PathModifier, UrlRewrite

from .runtimes import on_asyncio, on_every_runtime


@pytest.mark.parametrize(
    ("path", "matched", "prefix", "expected"),
    [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
    ],
)
def test_the_table_of_the_specification(path, matched, prefix, expected):
    """HTTPPathModifier.replacePrefixMatch, row by row."""
    assert PathModifier(prefix=prefix).apply(path, matched) == expected


@pytest.mark.parametrize(
    ("path", "matched", "modifier", "expected"),
    [
        ("/a/b", "/", PathModifier(prefix="/xyz"), "/xyz/a/b"),
        ("/a/b", "", PathModifier(prefix="/xyz"), "/xyz/a/b"),
        ("/", "/", PathModifier(prefix="/xyz"), "/xyz/"),
        ("/prefix/one/two", "/prefix/one", PathModifier(prefix="/one"), "/one/two"),
        ("/strip-prefix", "/strip-prefix", PathModifier(prefix="/"), "/"),
        ("/a/b", "/a", PathModifier(full="/new"), "/new"),
        ("/a", "/a", PathModifier(full="/caf\u00e9%20x"), "/caf%C3%A9%20x"),
        ("/a/b", "/a", PathModifier(prefix="/\u20ac"), "/%E2%82%AC/b"),
    ],
)
def test_beyond_the_table(path, matched, modifier, expected):
    """The root as prefix, the conformance cases, full paths, and what is not ASCII."""
    assert modifier.apply(path, matched) == expected


@given(st.text("/ab", max_size=8), st.sampled_from(["", "/", "/x"]))
def test_never_two_slashes_at_the_beginning(rest, prefix):
    """A path such as /a//evil.example without its prefix would be read as a host."""
    path = PathModifier(prefix=prefix).apply("/a/" + rest, "/a")
    assert path.startswith("/")
    assert not path.startswith("//")


@on_every_runtime
@pytest.mark.parametrize(
    ("rewrite", "target", "lines"),
    [
        (
            UrlRewrite("b.example", PathModifier(prefix="/v2")),
            b"/v2/x?q=/a?b",
            b"host: b.example\r\nX-Host: host: a\r\n",
        ),
        (UrlRewrite(None, PathModifier(full="/all")), b"/all?q=/a?b", b"HOST: a.example:80\r\nX-Host: host: a\r\n"),
        (UrlRewrite("b.example", None), b"/a/x?q=/a?b", b"host: b.example\r\nX-Host: host: a\r\n"),
    ],
)
def test_what_the_backend_sees(run, rewrite, target, lines):
    """Path and Host are changed, each alone or both; the query stays, and so do the other fields and their order."""

    async def body(_runtime):
        call = Call("svc", "GET", b"/a/x?q=/a?b", b"HOST: a.example:80\r\nX-Host: host: a\r\n")
        call.matched_prefix = "/a"
        seen = []

        async def backend(call):
            seen.append((call.target, call.lines))
            return Reply(200, [])

        await rewrite(call, backend)
        return seen

    assert run(body) == [(target, lines)]


def test_a_call_without_a_host_line_gets_none():
    """A gRPC call has no lines: its authority is its channel's."""

    async def body(_runtime):
        call = Call("svc", "POST", b"/a.B/C")

        async def backend(call):
            return Reply(200, [], call.lines)

        return await UrlRewrite("b.example", None)(call, backend)

    assert on_asyncio(body).body == b""
