"""httpx's own behaviour as a table: bare httpx against a mesh client, async and sync, over the real byte path.

The server is a raw socket script, so that both see the very same bytes. A row says how the mesh client must have taken
it (fast and generic calls) and how it must end, so that it cannot pass because both fail in the set-up. What differs on
purpose is in `DIFFERENCES`, each asserted to differ in exactly the declared way.
"""

from __future__ import annotations

import asyncio
import datetime
import gzip
import json
import logging
import pickle
import random
import re
import socketserver
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from http_backend import read_body

from meshlib.call import FOREVER, Call, Reply
from meshlib.endpoint import Endpoint
from meshlib.errors import MeshError, TransportError, UnknownService
from meshlib.runtime.blocking import drive
from meshlib.transport.asyncio_http import AsyncHttpTransport
from meshlib.transport.blocking_http import BlockingHttpTransport
from meshlib.transport.httpx_client import REFUSED, MeshAsyncClient, MeshClient
from meshlib.transport.limits import HttpLimits
from meshlib.transport.pool import PoolSettings

FAST, GENERIC = (1, 0), (0, 1)

# -- the server --------------------------------------------------------------------------------------------------------


class Script(socketserver.StreamRequestHandler):
    """Answers by path; every answer that has a body says what was received."""

    def handle(self) -> None:
        try:
            while self.exchange():
                pass
        except (ConnectionError, ValueError):
            pass

    def exchange(self) -> bool:
        line = self.rfile.readline()
        if not line:
            return False
        method, target, _ = line.decode("latin-1").split()
        fields = []
        while (read := self.rfile.readline()) not in (b"\r\n", b""):
            fields.append(read.decode("latin-1").rstrip("\r\n").split(": ", 1))
        by_name = {name.lower(): value for name, value in fields}
        body = read_body(self.rfile, by_name)
        seen = {"method": method, "target": target, "body": body.decode("latin-1"), "host": "host" in by_name}
        seen["headers"] = [field for field in fields if field[0].lower() != "host"]
        return self.answer(method, target.partition("?")[0], json.dumps(seen).encode())

    def answer(self, method: str, path: str, seen: bytes) -> bool:
        if path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort")
            return False
        if path == "/eof":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
            return False
        if path == "/rubbish":
            self.wfile.write(b"<html>not http\r\n\r\n")
            return False
        if path == "/slow":
            self.rfile.read(1)
            return False
        if path in WHOLE:
            self.wfile.write(WHOLE[path])
            return True
        if path == "/hints":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        status, fields, out = ANSWERS.get(path, ("200 OK", [], None))
        out = seen if out is None else out
        if path == "/elsewhere":
            fields = [f"location: http://localhost:{self.server.server_address[1]}/landed"]
        if path == "/absolute":
            fields = [f"location: http://{HOSTS[self.server.server_address[1]]}/landed"]
        head = [f"HTTP/1.1 {status}", *fields, f"content-length: {len(out)}", "", ""]
        self.wfile.write("\r\n".join(head).encode() + (b"" if method == "HEAD" else out))
        return True


HOSTS: dict[int, str] = {}
WHOLE = {
    "/204": b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n",
    "/chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\nx-t: 1\r\n\r\n",
    "/no-reason": b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n",
}
ANSWERS: dict[str, tuple[str, list[str], bytes | None]] = {
    "/redirect": ("302 Found", ["location: /landed"], None),
    "/redirect-307": ("307 Temporary Redirect", ["location: /landed"], None),
    "/loop": ("302 Found", ["location: /loop"], None),
    "/elsewhere": ("302 Found", [], None),
    "/absolute": ("302 Found", [], None),
    "/bad-redirect": ("302 Found", [], None),
    "/404": ("404 Not Here", [], None),
    "/cookie": ("200 OK", ["set-cookie: a=1; Path=/"], None),
    "/gzip": ("200 OK", ["content-encoding: gzip"], gzip.compress(b"packed", mtime=0)),
    "/badgzip": ("200 OK", ["content-encoding: gzip"], b"nonsense"),
    "/unknown-coding": ("200 OK", ["content-encoding: compress"], b"as it is"),
    "/latin": ("200 OK", ["content-type: text/plain; charset=latin-1"], "é".encode("latin-1")),
    "/nochar": ("200 OK", ["content-type: text/plain"], "é".encode("latin-1")),
    "/dup": ("200 OK", ["x-a: 1", "X-A: 2", "Link: </n>; rel=next"], None),
}


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with Server(("127.0.0.1", 0), Script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


# -- the two clients ---------------------------------------------------------------------------------------------------


class OneEndpoint:
    """A Destination with nothing but a leaf and the call's deadline."""

    name = "inventory.default"
    max_decoded_bytes = 100 << 20

    def __init__(self, leaf: Any) -> None:
        self.leaf, self.calls = leaf, []  # type: Any, list[Call]

    async def service(self, call: Call) -> Reply:
        self.calls.append(call)
        call.deadline = FOREVER if call.timeout_s is None else time.monotonic() + call.timeout_s
        call.attempt_deadline = call.deadline
        reply: Reply = await self.leaf(call)
        return reply

    def asyncio(self) -> Any:
        return self.service

    blocking = asyncio


class Client:
    """One way to write a row for both kinds: an async client as it is, a sync one behind the same coroutines."""

    def __init__(self, httpx_client: Any, again: Callable[[], Any], destination: OneEndpoint | None = None) -> None:
        self.it, self.again, self.destination = httpx_client, again, destination
        self.asynchronous = isinstance(httpx_client, httpx.AsyncClient)

    async def wait(self, made: Any) -> Any:
        return await made if self.asynchronous else made

    async def request(self, *args: Any, **options: Any) -> httpx.Response:
        response: httpx.Response = await self.wait(self.it.request(*args, **options))
        return response

    async def get(self, *args: Any, **options: Any) -> httpx.Response:
        response: httpx.Response = await self.wait(self.it.get(*args, **options))
        return response

    async def send(self, *args: Any, **options: Any) -> httpx.Response:
        response: httpx.Response = await self.wait(self.it.send(*args, **options))
        return response

    @asynccontextmanager
    async def stream(self, *args: Any, **options: Any) -> AsyncIterator[httpx.Response]:
        if self.asynchronous:
            async with self.it.stream(*args, **options) as response:
                yield response
        else:
            with self.it.stream(*args, **options) as response:
                yield response

    async def read(self, response: httpx.Response) -> bytes:
        return await response.aread() if self.asynchronous else response.read()

    async def pieces(self, response: httpx.Response, kind: str = "bytes", *size: int) -> list[Any]:
        if self.asynchronous:
            return [piece async for piece in getattr(response, f"aiter_{kind}")(*size)]
        return list(getattr(response, f"iter_{kind}")(*size))

    async def close(self, it: Any) -> None:
        await it.aclose() if self.asynchronous else it.close()

    def hook(self, act: Callable[[Any], None]) -> Any:
        async def later(it: Any) -> None:
            act(it)

        return later if self.asynchronous else act

    def content(self, pieces: list[bytes]) -> Any:
        async def later() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return later() if self.asynchronous else iter(pieces)


@asynccontextmanager
async def both(port: int, asynchronous: bool, **options: Any) -> AsyncIterator[tuple[Client, Client]]:
    """A bare client and a mesh client of the same server."""
    where, limits, rng = Endpoint("127.0.0.1", port), HttpLimits(), random.Random(1)
    HOSTS[port] = f"127.0.0.1:{port}"
    transport: Any = (AsyncHttpTransport if asynchronous else BlockingHttpTransport)(
        limits=limits, rng=rng, now=time.monotonic
    )
    destination = OneEndpoint(transport.leaf(where, PoolSettings(), None, lambda call: b""))
    kind, mesh_kind = (httpx.AsyncClient, MeshAsyncClient) if asynchronous else (httpx.Client, MeshClient)

    def bare_client(**more: Any) -> Any:
        return kind(base_url=f"http://127.0.0.1:{port}/", trust_env=False, **{**options, **more})

    def mesh_client(**more: Any) -> Any:
        return mesh_kind(destination, **{**options, **more})

    bare, mesh = Client(bare_client(), bare_client), Client(mesh_client(), mesh_client, destination)
    try:
        yield bare, mesh
    finally:
        await bare.close(bare.it)
        await mesh.close(mesh.it)
        await transport.aclose() if asynchronous else transport.close()


# -- what is compared --------------------------------------------------------------------------------------------------


def shape(r: httpx.Response) -> dict[str, Any]:
    """Everything a user can see of a response, less the host and the values of timeouts."""
    copy = pickle.loads(pickle.dumps(r))  # first: reading .cookies makes httpx's own response unpicklable
    seen: dict[str, Any] = {
        "status": r.status_code, "reason": r.reason_phrase, "version": r.http_version, "text": r.text,
        "enc": r.encoding,
        "headers": [(name.lower(), value) for name, value in r.headers.multi_items()], "raw": r.headers.raw,
        "url": r.url.raw_path, "method": r.request.method, "body": body_of(r.request), "content": r.content,
        "request": [(name, value) for name, value in r.request.headers.raw if name.lower() != b"host"],
        "request repr": repr(r.request).replace(str(r.request.url.copy_with(raw_path=b"/")), "/"),
        "closed": r.is_closed, "consumed": r.is_stream_consumed, "elapsed": isinstance(r.elapsed, datetime.timedelta),
        "history": [(h.status_code, h.url.raw_path, h.next_request) for h in r.history],
        "next": r.next_request and (r.next_request.method, r.next_request.url.raw_path),
        "cookies": dict(r.cookies), "links": r.links, "repr": repr(r), "n": r.num_bytes_downloaded,
        "ours": isinstance(r, httpx.Response), "timeout": sorted(r.request.extensions["timeout"]),
        "pickle": (copy.status_code, copy.content, copy.request.method, copy.url.raw_path, copy.headers.raw,
                   copy.is_closed, copy.elapsed == r.elapsed, body_of(copy.request)),
    }  # fmt: skip
    try:
        r.raise_for_status()
    except httpx.HTTPStatusError as e:
        seen["raised"] = (str(e).replace(str(r.url), "U"), e.request is r.request, e.response is r)
    return seen


def body_of(request: httpx.Request) -> Any:
    """The body where httpx has it: not on a redirected request, not on a streamed one."""
    try:
        return request.content
    except httpx.RequestNotRead:
        return "not read"


async def outcome(client: Client, ask: Callable[[Client], Awaitable[Any]]) -> Any:
    """What a row gives, or the httpx exception it ends in, with the request that it names."""
    try:
        return await ask(client)
    except (httpx.RequestError, httpx.InvalidURL, httpx.StreamError, ValueError) as e:
        name = next(k.__name__ for k in type(e).__mro__ if k.__module__ in ("httpx", "builtins"))
        request = e.request if isinstance(e, httpx.RequestError) else None
        if client.destination is not None and isinstance(e, httpx.TransportError) and not isinstance(e, MeshError):
            raise AssertionError(f"{name} is httpx's, and not ours") from e
        return Raised(name, request and (request.method, request.url.raw_path, request.headers.get("accept")))


@dataclass(frozen=True)
class Raised:
    """How a row ended: the name of httpx's exception, and the request that it names."""

    name: str
    request: Any


# -- the rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """`path`: fast and generic calls of the mesh client. `raises`: httpx's exception, where that is the behaviour."""

    ask: Callable[[Client], Awaitable[Any]]
    path: tuple[int, int]
    raises: str = ""


def get(*args: Any, path: tuple[int, int] = FAST, raises: str = "", **options: Any) -> Row:
    return request("GET", *args, path=path, raises=raises, **options)


def request(*args: Any, path: tuple[int, int] = FAST, raises: str = "", **options: Any) -> Row:
    async def ask(c: Client) -> Any:
        return shape(await c.request(*args, **options))

    return Row(ask, path, raises)


async def by_get(c: Client) -> Any:
    return shape(await c.get("/a", headers={"x-a": "1"}))


async def mutate_headers(c: Client) -> Any:
    await c.get("/a")
    c.it.headers["x-late"] = "1"
    late = shape(await c.get("/a"))
    del c.it.headers["x-late"]
    assert "x-late" in late["text"]
    return late, shape(await c.get("/a"))


async def mutate_base(c: Client) -> Any:
    old, _ = c.it.base_url, await c.get("/a")
    c.it.base_url = old.copy_with(path="/v2/")
    changed = shape(await c.get("/a"))
    c.it.base_url = old
    assert changed["url"] == b"/v2/a"
    return changed


async def mutate_auth(c: Client) -> Any:
    await c.get("/a")
    c.it.auth = ("u", "p")
    changed = shape(await c.get("/a"))
    c.it.auth = None
    assert "Basic" in changed["text"]
    return changed, shape(await c.get("/a"))


async def mutate_params(c: Client) -> Any:
    await c.get("/a")
    c.it.params = {"k": "v"}
    changed = shape(await c.get("/a"))
    c.it.params = {}
    assert changed["url"] == b"/a?k=v"
    return changed, shape(await c.get("/a"))


async def request_is_a_snapshot(c: Client) -> Any:
    own = {"x-own": "1"}
    response = await c.get("/a", headers=own)
    own["x-own"] = "2"
    c.it.headers["x-late"] = "1"
    seen = shape(response)
    del c.it.headers["x-late"]
    return seen


async def own_cookies(c: Client) -> Any:
    c.it.cookies.set("mine", "1")
    sent = shape(await c.get("/a"))
    c.it.cookies.clear()
    assert "mine=1" in sent["text"]
    return sent, shape(await c.get("/a"))


async def cookies_of_the_call(c: Client) -> Any:
    with pytest.warns(DeprecationWarning, match="per-request cookies"):
        return shape(await c.get("/a", cookies={"mine": "1"}))


async def cookies_read(c: Client) -> Any:
    response = await c.get("/cookie")
    return dict(response.cookies)


async def hooks(c: Client) -> Any:
    seen: list[Any] = []

    def on_request(r: httpx.Request) -> None:
        seen.append(r.url.raw_path)
        r.headers["x-hook"] = "1"

    c.it.event_hooks["request"].append(c.hook(on_request))
    c.it.event_hooks["response"].append(c.hook(lambda r: seen.append(r.status_code)))
    hooked = shape(await c.get("/a"))
    c.it.event_hooks = {}
    assert "x-hook" in hooked["text"]
    return hooked, seen


async def stream(c: Client) -> Any:
    async with c.stream("GET", "/chunked") as r:
        with pytest.raises(httpx.ResponseNotRead):
            _ = r.content
        whole = b"".join(await c.pieces(r))
    return whole, r.is_closed, isinstance(r.elapsed, datetime.timedelta), r.num_bytes_downloaded


async def stream_left(c: Client) -> Any:
    async with c.stream("GET", "/a") as r:
        pass
    with pytest.raises(httpx.StreamClosed):
        await c.read(r)
    return r.is_closed, shape(await c.get("/a"))


async def stream_lines(c: Client) -> Any:
    async with c.stream("GET", "/gzip") as r:
        return await c.pieces(r, "lines"), r.num_bytes_downloaded


async def stream_raw(c: Client) -> Any:
    async with c.stream("GET", "/gzip") as r:
        return b"".join(await c.pieces(r, "raw")), r.headers["content-encoding"]


async def stream_cut(c: Client) -> Any:
    async with c.stream("GET", "/cut") as r:
        return await c.read(r)


async def send_streamed(c: Client) -> Any:
    r = await c.send(c.it.build_request("GET", "/a"), stream=True)
    before = r.is_closed
    await c.read(r)
    return before, shape(r)


async def upload(c: Client) -> Any:
    return shape_of_upload(await c.request("POST", "/a", content=c.content([b"ab", b"", b"cd"])))


async def upload_with_length(c: Client) -> Any:
    sent = c.content([b"ab", b"cd"])
    return shape_of_upload(await c.request("POST", "/a", content=sent, headers={"content-length": "4"}))


def shape_of_upload(r: httpx.Response) -> Any:
    with pytest.raises(httpx.RequestNotRead):
        _ = r.request.content
    return r.status_code, r.text, r.request.headers.raw[1:]


async def upload_fails(c: Client) -> Any:
    def broken() -> Iterator[bytes]:
        yield b"ab"
        raise LookupError("the user's own")

    async def broken_later() -> AsyncIterator[bytes]:
        yield b"ab"
        raise LookupError("the user's own")

    with pytest.raises(LookupError, match="own"):
        await c.request("POST", "/a", content=broken_later() if c.asynchronous else broken())
    return shape(await c.get("/a"))


async def files(c: Client) -> Any:
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    return (await c.request("POST", "/a", files={"f": b"1"}, headers=boundary)).text


async def closed(c: Client) -> Any:
    other = c.again()
    await c.close(other)
    with pytest.raises(RuntimeError) as caught:
        await c.wait(other.get("/a"))
    return other.is_closed, str(caught.value), c.it.is_closed


async def opened_twice(c: Client) -> Any:
    other = c.again()
    await c.wait(other.get("/a"))
    with pytest.raises(RuntimeError) as caught:
        await c.wait(other.__aenter__() if c.asynchronous else other.__enter__())
    await c.close(other)
    return str(caught.value)


async def rereads(c: Client) -> Any:
    r = await c.get("/a")
    seen = [await c.read(r) == r.content, b"".join(await c.pieces(r, "bytes", 3)) == r.content]
    seen.append("".join(await c.pieces(r, "text")) == r.text)
    await c.close(r)
    with pytest.raises(httpx.StreamConsumed):
        await c.pieces(r, "raw")
    return seen


async def logged(c: Client) -> Any:
    heard: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("httpx")
    handler.emit = lambda record: heard.append(record.getMessage().partition('"')[2])  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        await c.get("/a")
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
    assert len(heard) == 1
    return heard


async def prebuilt(c: Client) -> Any:
    return shape(await c.send(c.it.build_request("POST", "/a", json={"a": "é"}, headers={"x": "1"})))


async def made_by_hand(c: Client) -> Any:
    return shape(await c.send(httpx.Request("GET", c.it.base_url.join("/a"))))


async def default_encoding(c: Client) -> Any:
    other = c.again(default_encoding="latin-1")
    text = (await c.wait(other.get("/nochar"))).text
    guess = c.again(default_encoding=lambda content: "latin-1" if content else "utf-8")
    guessed = (await c.wait(guess.get("/nochar"))).text
    await c.close(other)
    await c.close(guess)
    assert text == guessed == "é"
    return text, guessed


async def client_params(c: Client) -> Any:
    other = c.again(params={"k": "v"})
    seen = shape(await c.wait(other.get("/a")))
    await c.close(other)
    return seen


async def client_headers(c: Client) -> Any:
    other = c.again(headers={"Accept": "text/plain", "X-Own": "1"})
    seen = shape(await c.wait(other.get("/a", headers={"x-more": "2"})))
    await c.close(other)
    return seen


async def client_hook_raises(c: Client) -> Any:
    def refuse(r: httpx.Response) -> None:
        raise LookupError(str(r.status_code))

    other = c.again(event_hooks={"response": [c.hook(refuse)]})
    with pytest.raises(LookupError, match="200"):
        await c.wait(other.get("/a"))
    await c.close(other)
    return "raised"


async def redirect_sent_on(c: Client) -> Any:
    first = await c.get("/redirect")
    assert first.next_request is not None
    return shape(await c.send(first.next_request))


async def absolute_url(c: Client) -> Any:
    return shape(await c.get(str(c.it.base_url.join("/a"))))


async def no_cookie_on_redirect(c: Client) -> Any:
    return shape(await c.get("/redirect", follow_redirects=True, headers={"x-a": "1"}))


async def set_encoding(c: Client) -> Any:
    r = await c.get("/nochar")
    r.encoding = "latin-1"
    return r.text


ROWS: dict[str, Row] = {
    "get": get("/a"),
    "get by its name": Row(by_get, FAST),
    "query": get("/a?x=1&y=2"),
    "nested path": get("/items/41-a_b~c.d/parts"),
    "trailing slash": get("/items/"),
    "root": get("/"),
    "no slash": get("a/b", path=GENERIC),
    "encoded": get("/a b/é?q=ü", path=GENERIC),
    "dots": get("/a/../b/./c", path=GENERIC),
    "double slash": get("/a//b", path=GENERIC),
    "empty": get("", path=GENERIC),
    "fragment": get("/a#f", path=GENERIC),
    "percent": get("/a%2fb%20c", path=GENERIC),
    "empty query": get("/a?", path=GENERIC),
    "colon": get("/a:b", path=GENERIC),
    "too long": get("/" + "a" * 70_000, path=(0, 0), raises="InvalidURL"),
    "params": get("/a?x=1", params={"y": "2"}, path=GENERIC),
    "params empty": get("/a?x=1", params={}, path=GENERIC),
    "URL object": get(httpx.URL("/a"), path=GENERIC),
    "header": get("/a", headers={"X-User": "7"}),
    "header twice by case": get("/a", headers={"X-User": "7", "x-user": "8"}),
    "header override": get("/a", headers={"Accept": "text/x", "user-agent": "me"}, path=GENERIC),
    "header list": get("/a", headers=[("x", "1"), ("x", "2")], path=GENERIC),
    "header bytes": get("/a", headers={b"x": b"1"}, path=GENERIC),
    "header latin": get("/a", headers={"x": "é"}, path=(0, 0), raises="UnicodeEncodeError"),
    "header empty": get("/a", headers={"x": ""}),
    "header CRLF": get("/a", headers={"x": "1\r\ny: 2"}, path=GENERIC, raises="LocalProtocolError"),
    "header NUL": get("/a", headers={"x": "1\0"}, path=GENERIC, raises="LocalProtocolError"),
    "header blank around": get("/a", headers={"x": " 1"}, path=GENERIC, raises="LocalProtocolError"),
    "header name": get("/a", headers={"x y": "1"}, path=GENERIC, raises="LocalProtocolError"),
    "header name empty": get("/a", headers={"": "1"}, path=GENERIC, raises="LocalProtocolError"),
    "header name CRLF": get("/a", headers={"x\r\ny": "1"}, path=GENERIC, raises="LocalProtocolError"),
    "host header": get("/a", headers={"Host": "other"}, path=GENERIC),
    "cookie header": get("/a", headers={"Cookie": "a=1"}, path=GENERIC),
    "lower method": request("get", "/a"),
    "custom method": request("PURGE", "/a", path=GENERIC),
    "method that is no token": request("GE T", "/a", path=GENERIC, raises="LocalProtocolError"),
    "post json": request("POST", "/a", json={"a": "é", "n": 1.5}),
    "json None": request("POST", "/a", json=None),
    "json falsy": request("POST", "/a", json=[]),
    "json nan": request("POST", "/a", json=float("nan"), path=(0, 0), raises="ValueError"),
    "json and content type": request("POST", "/a", json={}, headers={"Content-Type": "application/x"}, path=GENERIC),
    "json and content": request("POST", "/a", json={}, content=b"x", path=GENERIC),
    "post bytes": request("POST", "/a", content=b"xyz"),
    "post no bytes": request("POST", "/a", content=b""),
    "bytes and content type": request("POST", "/a", content=b"xyz", headers={"Content-Type": "image/x"}),
    "post empty": request("POST", "/a"),
    "put": request("PUT", "/a"),
    "patch": request("PATCH", "/a", json=1),
    "delete": request("DELETE", "/a"),
    "options": request("OPTIONS", "/a"),
    "head": request("HEAD", "/a"),
    "head gzip": request("HEAD", "/gzip"),
    "get with body": request("GET", "/a", content=b"q"),
    "post str": request("POST", "/a", content="é", path=GENERIC),
    "form": request("POST", "/a", data={"a": "1"}, path=GENERIC),
    "files": Row(files, GENERIC),
    "own length": request("POST", "/a", content=b"xy", headers={"content-length": "2"}, path=GENERIC),
    "upload": Row(upload, GENERIC),
    "upload with length": Row(upload_with_length, GENERIC),
    "upload fails": Row(upload_fails, (1, 1)),
    "redirect off": get("/redirect"),
    "redirect on": get("/redirect", follow_redirects=True),
    "redirect on, generic": get("/redirect", params={"a": "1"}, follow_redirects=True, path=GENERIC),
    "redirect with body": request("POST", "/redirect-307", json={"a": 1}, follow_redirects=True),
    "redirect to a GET": request("POST", "/redirect", content=b"abc", follow_redirects=True),
    "redirect with headers": Row(no_cookie_on_redirect, FAST),
    "redirect sent on by hand": Row(redirect_sent_on, (1, 1)),
    "redirect loop": get("/loop", follow_redirects=True, raises="TooManyRedirects"),
    "302 no location": get("/bad-redirect"),
    "404": get("/404"),
    "no reason": get("/no-reason"),
    "gzip": get("/gzip"),
    "gzip, generic": get("/gzip", params={"a": "1"}, path=GENERIC),
    "bad gzip": get("/badgzip", raises="DecodingError"),
    "bad gzip, generic": get("/badgzip", params={"a": "1"}, path=GENERIC, raises="DecodingError"),
    "unknown coding": get("/unknown-coding"),
    "latin": get("/latin"),
    "encoding set": Row(set_encoding, FAST),
    "dup headers": get("/dup"),
    "204": get("/204"),
    "eof": get("/eof"),
    "cut": get("/cut", raises="RemoteProtocolError"),
    "cut, generic": get("/cut", params={"a": "1"}, path=GENERIC, raises="RemoteProtocolError"),
    "rubbish": get("/rubbish", raises="RemoteProtocolError"),
    "chunked": get("/chunked"),
    "1xx": get("/hints"),
    "auth": get("/a", auth=("u", "p"), path=GENERIC),
    "auth None": get("/a", auth=None, path=GENERIC),
    "read timeout": get("/slow", timeout=httpx.Timeout(5, read=0.05), path=GENERIC, raises="ReadTimeout"),
    "timeout number": get("/slow", timeout=0.05, raises="ReadTimeout"),
    "ext timeout": get("/slow", extensions={"timeout": {"read": 0.05}}, path=GENERIC, raises="ReadTimeout"),
    "target": get("/a", extensions={"target": b"/t"}, path=GENERIC),
    "mutate headers": Row(mutate_headers, (3, 0)),
    "mutate base": Row(mutate_base, (2, 0)),
    "mutate auth": Row(mutate_auth, (2, 1)),
    "mutate params": Row(mutate_params, (2, 1)),
    "request is a snapshot": Row(request_is_a_snapshot, FAST),
    "own cookies": Row(own_cookies, (1, 1)),
    "cookies of the call": Row(cookies_of_the_call, GENERIC),
    "cookies read": Row(cookies_read, FAST),
    "hooks": Row(hooks, GENERIC),
    "hook raises": Row(client_hook_raises, (0, 0)),
    "stream": Row(stream, GENERIC),
    "stream left": Row(stream_left, (1, 1)),
    "stream lines": Row(stream_lines, GENERIC),
    "stream raw": Row(stream_raw, GENERIC),
    "stream cut": Row(stream_cut, GENERIC, "RemoteProtocolError"),
    "send streamed": Row(send_streamed, GENERIC),
    "closed": Row(closed, (0, 0)),
    "opened twice": Row(opened_twice, (0, 0)),
    "rereads": Row(rereads, FAST),
    "logged": Row(logged, FAST),
    "prebuilt": Row(prebuilt, GENERIC),
    "made by hand": Row(made_by_hand, GENERIC),
    "absolute URL": Row(absolute_url, GENERIC),
    "default encoding": Row(default_encoding, (0, 0)),
    "client params": Row(client_params, (0, 0)),
    "client headers": Row(client_headers, (0, 0)),
}

KINDS = pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])


@KINDS
@pytest.mark.parametrize("name", ROWS)
def test_as_httpx(port: int, asynchronous: bool, name: str) -> None:
    """The mesh client does what bare httpx does, by the path it should take, to the end it should come to."""
    row = ROWS[name]

    async def compare() -> None:
        async with both(port, asynchronous) as (bare, mesh):
            expected, got = await outcome(bare, row.ask), await outcome(mesh, row.ask)
            assert got == expected
            assert (got.name if isinstance(got, Raised) else "") == row.raises
            assert (mesh.it._fast_calls, mesh.it._generic_calls) == row.path

    drive_or_run(asynchronous, compare)


async def timeout_is_total(bare: Client, mesh: Client) -> None:
    """A number limits each operation for httpx, and the whole call for the mesh; a Timeout is the same for both."""
    for ask in (mesh.get("/a", timeout=3), mesh.get("/a", params={"a": "1"}, timeout=3)):
        assert (await ask).status_code == 200
    assert (await mesh.get("/a", timeout=httpx.Timeout(4))).status_code == 200
    assert mesh.destination is not None
    assert [call.timeout_s for call in mesh.destination.calls] == [3, 3, None]
    assert [call.phases and call.phases.read for call in mesh.destination.calls] == [None, None, 4]
    assert (await bare.get("/a", timeout=3)).request.extensions["timeout"]["read"] == 3


async def default_timeout_is_the_policys(bare: Client, mesh: Client) -> None:
    """httpx gives up after 5 s per operation; the mesh leaves it to the policy."""
    assert (await bare.get("/a")).request.extensions["timeout"]["read"] == 5
    for timeout in ({}, {"timeout": None}):
        response = await mesh.get("/a", **timeout)
        assert set(response.request.extensions["timeout"].values()) == {None}
    assert mesh.destination is not None
    assert {(call.timeout_s, call.phases) for call in mesh.destination.calls} == {(None, None)}


async def cookies_are_not_kept(bare: Client, mesh: Client) -> None:
    """What a service set for one user is not sent for the next."""
    for client in (bare, mesh):
        assert dict((await client.get("/cookie")).cookies) == {"a": "1"}
    assert "a=1" in (await bare.get("/a")).text
    for options in ({}, {"params": {"p": "1"}}):
        assert "a=1" not in (await mesh.get("/a", **options)).text
    await mesh.get("/cookie", params={"p": "1"})
    assert "a=1" not in (await mesh.get("/a")).text
    assert dict(mesh.it.cookies) == {}


async def cookies_given_are_sent_only(bare: Client, mesh: Client) -> None:
    """`cookies={…}` is sent by both; a Set-Cookie is stored by httpx alone, unless `cookies=True`."""
    for client, stored in ((bare, {"b": "2", "a": "1"}), (mesh, {"b": "2"})):
        other = client.again(cookies={"b": "2"})
        await client.wait(other.get("/cookie"))
        assert "b=2" in (await client.wait(other.get("/a"))).text
        assert dict(other.cookies) == stored
        await client.close(other)
    keeping = mesh.again(cookies=True)
    await mesh.wait(keeping.get("/cookie"))
    assert "a=1" in (await mesh.wait(keeping.get("/a"))).text
    assert (keeping._fast_calls, keeping._generic_calls) == (1, 1)
    await mesh.close(keeping)


async def redirect_to_another_host(bare: Client, mesh: Client) -> None:
    """httpx goes there; a mesh client returns the redirect, with what would be sent next."""
    assert (await bare.get("/elsewhere", follow_redirects=True)).history
    for options in ({}, {"params": {"a": "1"}}):
        response = await mesh.get("/elsewhere", follow_redirects=True, **options)
        assert response.status_code == 302
        assert response.history == []
        assert response.next_request is not None
        assert response.next_request.url.host == "localhost"
    assert mesh.destination is not None
    assert len(mesh.destination.calls) == 2


async def framing_that_lies(bare: Client, mesh: Client) -> None:
    """httpx sends both lengths, or lets h11's own exception out; the mesh refuses before a byte is sent."""
    two = {"transfer-encoding": "chunked"}
    assert (await bare.request("POST", "/a", content=b"xy", headers=two)).status_code == 200
    short, long = {"content-length": "3"}, {"content-length": "1"}
    for headers in (short, long):
        with pytest.raises(Exception, match="declared Content-Length"):
            await bare.request("POST", "/a", content=b"xy", headers=headers)
    for headers in (two, short, long):
        with pytest.raises(httpx.LocalProtocolError) as caught:
            await mesh.request("POST", "/a", content=b"xy", headers=headers)
        assert isinstance(caught.value, TransportError)
        assert not caught.value.sent
    assert mesh.destination is not None
    assert mesh.destination.calls == []
    for headers in (short, long):
        with pytest.raises(httpx.LocalProtocolError, match="Content-Length is"):
            await mesh.request("POST", "/a", content=mesh.content([b"x", b"y"]), headers=headers)
    assert (await mesh.get("/a")).status_code == 200


async def other_hosts_are_unknown(bare: Client, mesh: Client) -> None:
    """An absolute URL is a service of the mesh, or nothing."""
    assert (await bare.get(f"http://localhost:{bare.it.base_url.port}/a")).status_code == 200
    with pytest.raises(UnknownService) as caught:
        await mesh.get(f"http://localhost:{bare.it.base_url.port}/a")
    assert isinstance(caught.value, httpx.ConnectError)
    assert (await mesh.get("http://inventory/a")).status_code == 200


async def options_are_refused(bare: Client, mesh: Client) -> None:
    """What would lead around the mesh is refused by name, with the reason."""
    for name, reason in REFUSED.items():
        with pytest.raises(TypeError, match=f"^{name}= is not an option of a mesh client: {re.escape(reason)}"):
            mesh.again(**{name: None})
    with pytest.raises(TypeError, match="nonsense"):
        mesh.again(nonsense=1)


async def closing_closes_nothing_of_the_mesh(bare: Client, mesh: Client) -> None:
    """Another client of the same service goes on, over the same connections."""
    other = mesh.again()
    await mesh.close(mesh.it)
    assert (await mesh.wait(other.get("/a"))).status_code == 200
    await mesh.close(other)


async def decoded_bodies_have_a_limit(bare: Client, mesh: Client) -> None:
    """httpx decodes whatever comes; the mesh up to the policy's limit, on all three paths."""
    assert mesh.destination is not None
    mesh.destination.max_decoded_bytes = 5
    assert (await bare.get("/gzip")).text == "packed"
    for options in ({}, {"params": {"a": "1"}}):
        with pytest.raises(httpx.DecodingError, match="larger than 5 bytes"):
            await mesh.get("/gzip", **options)
    async with mesh.stream("GET", "/gzip") as response:
        with pytest.raises(httpx.DecodingError, match="larger than 5 bytes"):
            await mesh.pieces(response)


async def timeouts_are_positive(bare: Client, mesh: Client) -> None:
    """A deadline of zero or less, or none at all, is a mistake and not a limit."""
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="positive number of seconds"):
            await mesh.get("/a", timeout=wrong)
        with pytest.raises(ValueError, match="positive number of seconds"):
            mesh.it.timeout = wrong


DIFFERENCES = [
    timeout_is_total,
    default_timeout_is_the_policys,
    cookies_are_not_kept,
    cookies_given_are_sent_only,
    redirect_to_another_host,
    framing_that_lies,
    other_hosts_are_unknown,
    options_are_refused,
    closing_closes_nothing_of_the_mesh,
    decoded_bodies_have_a_limit,
    timeouts_are_positive,
]


@KINDS
@pytest.mark.parametrize("differs", DIFFERENCES, ids=lambda f: f.__name__)
def test_differs_as_declared(
    port: int, asynchronous: bool, differs: Callable[[Client, Client], Awaitable[None]]
) -> None:
    """Each declared difference, in exactly the declared way."""

    async def compare() -> None:
        async with both(port, asynchronous) as (bare, mesh):
            await differs(bare, mesh)

    drive_or_run(asynchronous, compare)


def drive_or_run(asynchronous: bool, work: Callable[[], Any]) -> None:
    """Sync rows run without an event loop: a suspension would be a RuntimeError."""
    if asynchronous:
        asyncio.run(work())
    else:
        drive(work())
