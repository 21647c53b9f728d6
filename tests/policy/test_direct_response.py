"""Direct responses: what is sent, and when nothing is."""

from __future__ import annotations

import pytest

from meshlib.call import Call
from meshlib.policy.direct_response import DirectResponse

from .runtimes import on_asyncio, on_every_runtime

TEXT = (b"content-type", b"text/plain; charset=utf-8")


@on_every_runtime
def test_text(run):
    """UTF-8, its length in bytes."""

    async def body(_runtime):
        return await DirectResponse(503, "gar nüscht")(Call("svc", "GET", b"/"))

    reply = run(body)
    assert (reply.status, reply.reason, reply.body) == (503, b"Service Unavailable", "gar nüscht".encode())
    assert reply.headers == [TEXT, (b"content-length", b"11")]


@pytest.mark.parametrize(
    ("status", "text", "method", "headers"),
    [
        (200, "", "GET", [(b"content-length", b"0")]),
        (200, "abc", "HEAD", [TEXT, (b"content-length", b"3")]),
        (204, "abc", "GET", []),
        (205, "abc", "GET", [(b"content-length", b"0")]),
        (304, "abc", "GET", []),
    ],
)
def test_no_body(status, text, method, headers):
    """Where HTTP has none, none is sent; HEAD is told the length that GET would have had."""

    async def body(_runtime):
        return await DirectResponse(status, text)(Call("svc", method, b"/"))

    reply = on_asyncio(body)
    assert (reply.status, reply.body, reply.headers) == (status, b"", headers)
