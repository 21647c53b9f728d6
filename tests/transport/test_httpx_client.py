"""The mesh clients: options, ways around the fast path, and what a call carries."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from http.cookiejar import CookieJar, LWPCookieJar
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from meshlib.call import Call, Reply
from meshlib.call_policy import call_policy
from meshlib.errors import Rejected, TransportError
from meshlib.served import SERVED, Served
from meshlib.transport import httpx_fast_path
from meshlib.transport.content_encoding import CODECS
from meshlib.transport.httpx_client import MeshAsyncClient, MeshClient
from meshlib.transport.httpx_fast_path import Plan, is_plain_path, missing_names


class Destination:
    """Answers 200 with the target; remembers the calls."""

    name, max_decoded_bytes = "inventory.default", 1 << 20

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def service(self, call: Call) -> Reply:
        self.calls.append(call)
        return Reply(200, [(b"content-type", b"text/plain")], call.target)

    def asyncio(self) -> Any:
        return self.service

    blocking = asyncio


def paths(client: Any) -> tuple[int, int]:
    return client._fast_calls, client._generic_calls


def test_base_url() -> None:
    """The service by its canonical name; a relative base is below it; the short name is the same service."""
    for base, url in (
        ({}, "http://inventory.default/"),
        ({"base_url": ""}, "http://inventory.default/"),
        ({"base_url": "/v2"}, "http://inventory.default/v2/"),
        ({"base_url": "http://inventory/v2/"}, "http://inventory/v2/"),
    ):
        with MeshClient(Destination(), **base) as client:
            assert str(client.base_url) == url
            assert client.get("/a").url == f"{url}a"
            assert paths(client) == (1, 0)


@pytest.mark.parametrize("base", ["http://u:p@inventory.default/", "http://inventory.default/?a=1", "http://other/"])
def test_a_base_that_is_more_takes_httpxs_path(base: str) -> None:
    """Userinfo means authentication, a query is merged, another host is another service."""
    with MeshClient(Destination(), base_url=base) as client:
        try:
            client.get("/a")
        except httpx.ConnectError:
            assert "other" in base
        assert paths(client) == (0, 1)


def test_what_a_fast_call_carries() -> None:
    """The same as a generic one: policy, served call, timeouts, and no streaming."""
    destination = Destination()
    served = Served(lambda: 0.0)
    token = SERVED.set(served)
    try:
        with (
            MeshClient(destination, timeout=9) as client,
            call_policy(timeout=4, idempotent=True, headers={"x-p": "1"}),
        ):
            client.get("/a")
            client.get("/a", timeout=2.5)
            client.get("/a", params={})
            assert paths(client) == (2, 1)
    finally:
        SERVED.reset(token)
    fast, timed, generic = destination.calls
    assert [call.timeout_s for call in destination.calls] == [4, 2.5, 4]
    assert fast.lines == generic.lines == timed.lines
    for call in destination.calls:
        assert (call.served, call.idempotent, call.streaming, call.phases) == (served, True, False, None)


def test_the_clients_own_timeout() -> None:
    """A number is a total, a Timeout is phases; both can be changed in place, and None is the policy's."""
    destination = Destination()
    with MeshClient(destination, timeout=9) as client:
        for options in ({}, {"params": {}}):
            client.timeout = 9  # type: ignore[assignment]
            client.get("/a", **options)
            client.timeout = httpx.Timeout(3, read=1)
            client.get("/a", **options)
            client.timeout = None  # type: ignore[assignment]
            client.get("/a", **options)
        assert paths(client) == (3, 3)
    seen = [(call.timeout_s, call.phases and (call.phases.read, call.phases.pool)) for call in destination.calls]
    assert seen == [(9, None), (None, (1, 3)), (None, None)] * 2


def test_none_asks_for_the_policys_timeout() -> None:
    """`timeout=None` on a call undoes the client's default."""
    destination = Destination()
    with MeshClient(destination, timeout=9) as client:
        client.get("/a", timeout=None)
    assert (destination.calls[0].timeout_s, destination.calls[0].phases) == (None, None)


def test_streaming_is_marked() -> None:
    """Only a streamed call leaves its body outside the deadline."""
    destination = Destination()
    with MeshClient(destination) as client:
        client.get("/a")
        client.get("/a", params={})
        client.send(client.build_request("GET", "/a"))
        client.send(client.build_request("GET", "/a"), stream=True).close()
        with client.stream("GET", "/a"):
            pass
    assert [call.streaming for call in destination.calls] == [False, False, False, True, True]


def test_a_patched_client_takes_httpxs_path() -> None:
    """Whoever stands between `request` and the transport (a test, an instrumentation, a subclass) sees every call."""

    class Sub(MeshClient):
        def send(self, request: httpx.Request, **how: Any) -> httpx.Response:
            request.headers["x-sub"] = "1"
            return super().send(request, **how)

    destination = Destination()
    with Sub(destination) as sub:
        sub.get("/a")
        assert b"x-sub" in destination.calls[-1].lines
    with MeshClient(destination) as client:
        with mock.patch.object(client, "send") as sent:
            client.get("/a")
            assert sent.called
        with mock.patch.object(httpx.Client, "send") as sent:
            client.get("/a")
            assert sent.called
        with mock.patch.object(client._transport, "handle_request") as sent:
            sent.return_value = httpx.Response(200)
            client.get("/a")
            assert sent.called
        assert paths(client) == (0, 2)
        client.get("/a")
        assert paths(client) == (1, 2)
        with mock.patch.object(type(client._transport), "handle_request") as sent:
            sent.return_value = httpx.Response(200)
            client.headers["x-makes"] = "a new plan"
            client.get("/a")
            assert sent.called
        client._transport = httpx.MockTransport(lambda request: httpx.Response(418))
        assert client.get("/a").status_code == 418


def test_another_cookie_jar_takes_httpxs_path() -> None:
    """Only a plain jar is known to be empty."""
    for jar, path in ((CookieJar(), (1, 0)), (LWPCookieJar(), (0, 1))):
        with MeshClient(Destination(), cookies=jar) as client:
            client.get("/a")
            assert paths(client) == path


def test_names_that_users_make_up_are_bounded() -> None:
    """Header names are remembered per client, up to a limit; beyond it calls still work."""
    with MeshClient(Destination()) as client:
        for n in range(httpx_fast_path._EXTRA_MAX + 5):
            client.get("/a", headers={f"x-{n}": "1"})
        assert isinstance(client._plan, Plan)
        assert len(client._plan.extra) == httpx_fast_path._EXTRA_MAX
        assert paths(client) == (httpx_fast_path._EXTRA_MAX + 5, 0)


def test_bad_default_headers_are_refused_too() -> None:
    """The client's own headers are checked as those of a call are."""
    destination = Destination()
    with MeshClient(destination, headers={"x": "1\r\ny: 2"}) as client, pytest.raises(httpx.LocalProtocolError):
        client.get("/a")
    assert destination.calls == []


@pytest.mark.parametrize("name", ["x-meshlib-source", "X-Meshlib-Deadline-Ms", "X-MESHLIB-ANY"])
def test_headers_of_the_mesh_are_not_the_users(name: str) -> None:
    """On no path do a user's own x-meshlib-* headers go out: not a call's, not the client's."""
    destination = Destination()
    with MeshClient(destination) as client:
        client.get("/a")
        client.get("/a", headers={name: "admin"})
        client.headers[name] = "admin"
        client.get("/a")
        client.get("/a", params={})
        assert client._generic_calls == 2
    assert len({call.lines for call in destination.calls}) == 1
    assert not any(b"meshlib-" in call.lines.lower() for call in destination.calls)


def test_trace_headers_of_the_client_take_httpxs_path() -> None:
    """They become the call's trace and do not go out twice."""
    destination = Destination()
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with MeshClient(destination, headers={"traceparent": parent}) as client:
        client.get("/a")
    with MeshClient(destination) as client:
        client.get("/a", headers={"TraceParent": parent})
    for call in destination.calls:
        assert call.trace is not None
        assert b"traceparent" not in call.lines.lower()


def test_errors_of_the_fast_path() -> None:
    """Both ours and httpx's, with the request and the trail, from the very call."""

    class Full(Destination):
        async def service(self, call: Call) -> Reply:
            self.calls.append(call)
            raise Rejected("limit", "full")

    destination = Full()
    with MeshClient(destination) as client:
        with pytest.raises(httpx.PoolTimeout) as caught:
            client.post("/a", json={"a": 1}, headers={"x": "1"})
        assert paths(client) == (1, 0)
    assert isinstance(caught.value, Rejected)
    assert caught.value.trail is destination.calls[0].trail
    request = caught.value.request
    assert (request.method, request.url, request.content) == ("POST", "http://inventory.default/a", b'{"a":1}')
    assert request.headers["x"] == "1"


def test_a_closed_mesh_is_a_runtime_error() -> None:
    """As a closed httpx client."""

    class Closed(Destination):
        def asyncio(self) -> Any:
            raise RuntimeError("the mesh is closed")

        blocking = asyncio

    async def ask() -> None:
        async with MeshAsyncClient(Closed()) as client:
            with pytest.raises(RuntimeError, match="closed"):
                await client.get("/a")

    asyncio.run(ask())
    with MeshClient(Closed()) as client, pytest.raises(RuntimeError, match="closed"):
        client.get("/a")


def test_cancellation_passes_through() -> None:
    """A cancelled call is cancelled, and nothing else."""

    class Endless(Destination):
        async def service(self, call: Call) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError("never")

    async def ask() -> None:
        async with MeshAsyncClient(Endless()) as client:
            call = asyncio.create_task(client.get("/a"))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("/", True), ("/a", True), ("/a/", True), ("/a/b-c_d~e.f/g", True), ("/a?x=1&y=2", True), ("/?x", True),
        ("", False), ("a", False), ("//a", False), ("/a//b", False), ("/.", False), ("/a/../b", False), ("/..", False),
        ("/a?", False), ("/a#f", False), ("/a%20b", False), ("/a b", False), ("/é", False), ("/a:b", False),
        ("/a\r\nx", False),
        ("/a?x=1\n", False), ("/a\n", False), ("http://a/", False), ("/a?x=é", False), ("/a\\b", False),
    ],
)  # fmt: skip
def test_plain_paths(url: str, plain: bool) -> None:
    """Plain means: httpx sends exactly this."""
    assert bool(is_plain_path(url)) is plain
    if plain:
        base = httpx.Client(base_url="http://a/", transport=httpx.BaseTransport())
        assert base.build_request("GET", url).url.raw_path == url.encode()


def test_long_paths_are_judged_in_linear_time() -> None:
    """A path that fails at its end was once exponential; this would not return."""
    assert not is_plain_path("/" + "a" * 4000 + "!")
    assert not is_plain_path("/" + "a-/" * 1300 + "%")


def test_httpx_has_the_private_names() -> None:
    """With the httpx that is pinned there is a fast path."""
    assert missing_names() == []
    assert httpx_fast_path.AVAILABLE


WITHOUT = """
import httpx
{delete}
from meshlib.call import Reply
from meshlib.transport import httpx_fast_path
from meshlib.transport.content_encoding import CODECS
from meshlib.transport.httpx_client import MeshClient
class Destination:
    name, max_decoded_bytes = "inventory.default", 1
    async def service(self, call): return Reply(200, [], call.target)
    def blocking(self): return self.service
client = MeshClient(Destination())
print(client.get("/a").text, client._fast_calls, client._generic_calls, httpx_fast_path.missing_names())
"""


@pytest.mark.parametrize(
    ("delete", "missing"),
    [("", []), ("del httpx._client.BaseClient._build_redirect_request", ["_build_redirect_request"])],
)
def test_without_a_private_name_there_is_no_fast_path(delete: str, missing: list[str]) -> None:
    """A new process, because it is decided at import; the call itself works all the same."""
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(delete=delete)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout.strip() == f"/a {int(not missing)} {int(bool(missing))} {missing}"


def test_a_coding_that_cannot_be_bounded_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A brotli library without an output limit: `br` is not offered, and refused when it comes all the same."""
    monkeypatch.setitem(CODECS, "br", None)

    class Brotli(Destination):
        async def service(self, call: Call) -> Reply:
            self.calls.append(call)
            return Reply(200, [(b"content-encoding", b"br")], b"whatever")

    destination = Brotli()
    with MeshClient(destination, headers={"x-a": "1"}) as client:
        assert "br" not in client.headers["accept-encoding"].split(", ")
        with pytest.raises(httpx.DecodingError, match="no output limit"):
            client.get("/a")
    assert destination.calls[0].header("x-a") == ["1"]
    with MeshClient(destination, headers={"accept-encoding": "gzip"}) as client:
        assert client.headers["accept-encoding"] == "gzip"


def test_a_broken_reply_is_ours_and_httpxs() -> None:
    """A bomb on the fast path."""

    class Bomb(Destination):
        async def service(self, call: Call) -> Reply:
            return Reply(200, [(b"content-encoding", b"gzip")], b"nonsense")

    with MeshClient(Bomb()) as client, pytest.raises(httpx.DecodingError) as caught:
        client.get("/a")
    assert isinstance(caught.value, TransportError)
    assert caught.value.trail is not None
    assert caught.value.request.url == "http://inventory.default/a"
