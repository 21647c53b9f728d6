"""The gateway: what comes in, where it goes, what comes back, against real backends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_backend import HttpBackend, body_of, respond

from meshlib import Mesh
from meshlib.gateway import Gateway, GatewayHost, Outside
from meshlib.transport.asgi import MeshAsgi


class Backend(HttpBackend):
    """Echoes; notes what it got. `script`: statuses to answer first."""

    def __init__(self, name: str) -> None:
        super().__init__(self._answer)
        self.name, self.asked, self.script = name, [], []  # type: str, list[Any], list[int]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = body_of(handler)
        fields = {key.lower(): value for key, value in handler.headers.items()}
        self.asked.append((handler.command, handler.path, fields, body))
        status = self.script.pop(0) if self.script else 200
        hops = {"x_own": "1", "connection": "keep-alive, x-hop", "x_hop": "1"}
        respond(handler, status, f"{self.name}:{body.decode()}".encode(), **hops)


LISTENERS = [{"name": "web", "port": 80, "hostname": "*.shop.example"}]


def edge(tmp_path: Path, routes: list[dict[str, Any]], ports: dict[str, int], listeners: Any = None) -> dict[str, Any]:
    services = {
        name: {"mtls": "disabled", "allow_routes_from": ["gateway/edge"], "endpoints": [{"static": [f"127.0.0.1:{port}"]}]}
        for name, port in ports.items()
    }  # fmt: skip
    gateways = {"edge": {"listeners": listeners or LISTENERS, "routes": routes}}
    return {"version": 1, "mesh": "shop", "state_dir": str(tmp_path), "services": services, "gateways": gateways}


def ask(
    tmp_path: Path,
    routes: list[dict[str, Any]],
    talk: Callable[[httpx.AsyncClient], Any],
    *names: str,
    listeners: Any = None,
    script: Any = (),
) -> Any:
    """What `talk` does with a client of the gateway, with the backends of these names: (its result, backends)."""
    backends = {name: Backend(name) for name in names or ("items",)}

    next(iter(backends.values())).script = list(script)

    async def main() -> Any:
        config = edge(tmp_path, routes, {name: backend.port for name, backend in backends.items()}, listeners)
        async with Mesh("edge", config) as mesh:
            host = GatewayHost(mesh._engine)
            app = Outside(MeshAsgi(Gateway(mesh._engine, "edge"), host))
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://www.shop.example") as client:
                for backend in backends.values():
                    client.backend = backend  # type: ignore[attr-defined]
                return await talk(client)

    try:
        return asyncio.run(main()), backends
    finally:
        for backend in backends.values():
            backend.close()


ITEMS = {"name": "items", "backends": [{"service": "items"}]}


def test_a_request_goes_through(tmp_path: Path) -> None:
    """Method, path, query, body and fields arrive; status, fields and body come back; hop-by-hop fields end here."""

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        hop = {"connection": "x-mine", "x-mine": "1", "te": "trailers", "x-a": "1"}
        return await client.post("/items/7?q=a%20b", content=b"hi", headers=hop)

    reply, backends = ask(tmp_path, [ITEMS], talk)
    assert (reply.status_code, reply.text, reply.headers["x-own"]) == (200, "items:hi", "1")
    assert "x-hop" not in reply.headers
    ((method, path, fields, _),) = backends["items"].asked
    assert (method, path, fields["x-a"], fields["host"]) == ("POST", "/items/7?q=a%20b", "1", "www.shop.example")
    assert not {"x-mine", "te"} & fields.keys()
    assert (fields["x-forwarded-proto"], fields["x-forwarded-host"]) == ("http", "www.shop.example")
    assert fields["x-forwarded-for"] == "127.0.0.1"


def test_nothing_from_outside_is_believed(tmp_path: Path) -> None:
    """Neither a deadline, nor an attempt, nor an identity."""

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        lies = {
            "x-meshlib-deadline-ms": "0",
            "x-meshlib-attempt": "9",
            "X_Meshlib_Source": "orders",
            "x-forwarded-client-cert": "URI=spiffe://a",
            "x-envoy-x": "1",
            "x-forwarded-for": "10.0.0.1",
        }
        return await client.get("/", headers=lies)

    reply, backends = ask(tmp_path, [ITEMS], talk)
    assert reply.status_code == 200
    fields = backends["items"].asked[0][2]
    assert fields["x-meshlib-attempt"] == "1"
    assert not {"x_meshlib_source", "x-forwarded-client-cert", "x-envoy-x"} & fields.keys()
    assert int(fields["x-meshlib-deadline-ms"]) > 1000
    assert fields["x-forwarded-for"] == "10.0.0.1, 127.0.0.1"


@pytest.mark.parametrize(
    "path", [b"/a/../b", b"/a//b", b"/a%2fb", b"/%2e%2e/b", b"/a%5cb", b"/a%00", b"/a/..", b"/./a", b"/a\\b"]
)
def test_a_path_that_can_be_read_in_two_ways_is_refused(path: bytes, tmp_path: Path) -> None:
    """With 400, before a route is looked for (F25)."""

    async def talk(_client: httpx.AsyncClient) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request"}

        app = _client._transport.app  # type: ignore[attr-defined]
        await app(
            {"type": "http", "method": "GET", "raw_path": path, "path": "/", "query_string": b"", "headers": [], "client": ("127.0.0.1", 1), "http_version": "1.1", "state": {}},
            receive,
            send,
        )  # fmt: skip
        return int(sent[0]["status"])

    status, backends = ask(tmp_path, [ITEMS], talk)
    assert status == 400
    assert not backends["items"].asked


def test_routes_hosts_and_answers(tmp_path: Path) -> None:
    """By host, path, method and header; redirects, answers, rewrites and header edits; what nothing takes is 404."""
    routes = [
        {"name": "old", "hostnames": ["old.shop.example"], "request_redirect": {"scheme": "https", "hostname": "www.shop.example", "status_code": 301}},
        {"name": "closed", "matches": [{"path": {"prefix": "/admin"}}], "direct_response": {"status": 403, "body": "no"}},
        {
            "name": "v2",
            "matches": [{"path": {"prefix": "/v2"}}],
            "backends": [{"service": "items"}],
            "url_rewrite": {"path": {"replace_prefix_match": "/"}, "hostname": "items.local"},
            "request_headers": {"set": {"x-a": "2"}},
            "response_headers": {"remove": ["x-own"], "add": {"x-new": "1"}},
        },
        {"name": "posts", "matches": [{"method": "POST"}], "backends": [{"service": "other"}]},
        {"name": "items", "matches": [{"path": {"prefix": "/items"}}], "backends": [{"service": "items"}]},
    ]  # fmt: skip

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.get("http://old.shop.example/x?y=1"),
            await client.get("/admin/x"),
            await client.get("/v2/items/7?q=1"),
            await client.post("/items"),
            await client.get("/items"),
            await client.get("/nothing"),
            await client.get("http://elsewhere.example/items"),
            await client.head("/items"),
        ]

    replies, backends = ask(tmp_path, routes, talk, "items", "other")
    assert [reply.status_code for reply in replies] == [301, 403, 200, 200, 200, 404, 404, 200]
    assert replies[0].headers["location"] == "https://www.shop.example/x?y=1"
    assert replies[1].text == "no"
    assert ("x-own" in replies[2].headers, replies[2].headers["x-new"]) == (False, "1")
    _, path, fields, _ = backends["items"].asked[0]
    assert (path, fields["host"], fields["x-a"]) == ("/items/7?q=1", "items.local", "2")
    assert replies[3].text == "other:"
    assert "no_listener" in replies[6].text
    assert replies[7].content == b""


def test_retries_and_failures(tmp_path: Path) -> None:
    """What is idempotent is tried again; a backend that is not there is 503."""
    dead = {"name": "dead", "matches": [{"path": {"prefix": "/dead"}}], "backends": [{"service": "dead"}]}
    routes = [dead, {**ITEMS, "retries": {"max_retries": 1}}]

    async def talk(client: Any) -> list[int]:
        client.backend.close()
        statuses = [(await client.get("/a")).status_code, (await client.post("/a", content=b"x")).status_code]
        statuses.append((await client.get("/dead")).status_code)
        return statuses

    statuses, backends = ask(tmp_path, routes, talk, "items", "dead", script=[503, 200, 503])
    assert statuses == [200, 503, 503]
    assert len(backends["items"].asked) == 3


def test_a_body_without_a_length_is_streamed(tmp_path: Path) -> None:
    """It arrives whole, in chunks, and is not tried again."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two", b"three"):
            yield piece

    async def talk(client: httpx.AsyncClient) -> httpx.Response:
        return await client.put("/items", content=pieces())

    reply, backends = ask(tmp_path, [ITEMS], talk)
    assert reply.text == "items:onetwothree"
    assert backends["items"].asked[0][3] == b"onetwothree"
    assert backends["items"].asked[0][2]["transfer-encoding"] == "chunked"


def test_cors(tmp_path: Path) -> None:
    """A preflight is answered here; an answer to an allowed origin says so."""
    routes = [{**ITEMS, "cors": {"allow_origins": ["https://*.shop.example"], "allow_methods": ["GET"]}}]

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        origin = {"origin": "https://www.shop.example"}
        return [
            await client.options("/items", headers={**origin, "access-control-request-method": "GET"}),
            await client.get("/items", headers=origin),
            await client.get("/items", headers={"origin": "https://evil.example"}),
        ]

    (preflight, allowed, other), backends = ask(tmp_path, routes, talk)
    assert preflight.headers["access-control-allow-origin"] == "https://www.shop.example"
    assert allowed.headers["access-control-allow-origin"] == "https://www.shop.example"
    assert "access-control-allow-origin" not in other.headers
    assert [asked[0] for asked in backends["items"].asked] == ["GET", "GET"]


def test_listeners_are_chosen_by_host(tmp_path: Path) -> None:
    """The most specific one, and only its routes."""
    listeners = [{"name": "any", "port": 80}, {"name": "admin", "port": 80, "hostname": "admin.shop.example"}]
    routes = [
        {"name": "admin", "listeners": ["admin"], "direct_response": {"status": 201}},
        {"name": "any", "listeners": ["any"], "direct_response": {"status": 202}},
    ]

    async def talk(client: httpx.AsyncClient) -> list[int]:
        urls = ("http://admin.shop.example/", "http://www.shop.example/", "http://x/")
        return [(await client.get(url)).status_code for url in urls]

    statuses, _ = ask(tmp_path, routes, talk, listeners=listeners)
    assert statuses == [201, 202, 202]


def test_sessions_and_mirrors(tmp_path: Path) -> None:
    """A session's cookie is set once; a copy goes elsewhere, marked, and is nobody's answer."""
    routes = [
        {
            "name": "items",
            "backends": [{"service": "items"}],
            "session_persistence": {"cookie": {"name": "sid"}},
            "mirror": {"service": "other"},
        }
    ]

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get("/a"), await client.get("/b")]

    replies, backends = ask(tmp_path, routes, talk, "items", "other")
    assert [("set-cookie" in reply.headers) for reply in replies] == [True, False]
    assert [reply.text for reply in replies] == ["items:", "items:"]
    assert all(fields["x-meshlib-mirror"] == "1" for _, _, fields, _ in backends["other"].asked)
