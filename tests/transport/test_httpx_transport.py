"""The mesh as a transport of the user's own httpx client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from meshlib.call import Call, Reply
from meshlib.errors import ConfigError, NoHealthyEndpoint, TransportError, UnknownService
from meshlib.transport.httpx_transport import MeshAsyncTransport, MeshTransport, OneService


class Destination:
    """Answers with `answer(call)`, remembering the calls."""

    max_decoded_bytes = 1 << 20

    def __init__(self, name: str, answer: Callable[[Call], Reply]) -> None:
        self.name, self.answer, self.calls = name, answer, []  # type: str, Any, list[Call]

    async def service(self, call: Call) -> Reply:
        self.calls.append(call)
        reply: Reply = self.answer(call)
        return reply

    def asyncio(self) -> Any:
        return self.service

    blocking = asyncio


class Services:
    """A Resolver over a dictionary."""

    def __init__(self, *destinations: Destination) -> None:
        self.known = {d.name.partition(".")[0]: d for d in destinations}

    def destination(self, host: str) -> Destination:
        if host not in self.known:
            raise UnknownService(host)
        return self.known[host]


def fine(call: Call) -> Reply:
    return Reply(200, [], call.service.encode())


def to(location: bytes) -> Callable[[Call], Reply]:
    return lambda call: Reply(302, [(b"location", location)]) if call.target == b"/a" else Reply(200, [], b"landed")


def test_the_host_is_the_service() -> None:
    """In both clients; the port is not looked at, the scheme is either."""
    services = Services(Destination("inventory.default", fine), Destination("orders.shop", fine))
    with httpx.Client(transport=MeshTransport(services)) as client:
        assert client.get("http://inventory/a").text == "inventory.default"
        assert client.get("https://orders:8443/a").text == "orders.shop"

    async def ask() -> str:
        async with httpx.AsyncClient(transport=MeshAsyncTransport(services)) as later:
            return (await later.get("http://orders/a")).text

    assert asyncio.run(ask()) == "orders.shop"


def test_one_destination_is_enough() -> None:
    """Without a resolver, the service answers to its own two names."""
    with httpx.Client(transport=MeshTransport(Destination("inventory.default", fine))) as client:
        assert client.get("http://inventory/a").text == client.get("http://inventory.default/a").text
        with pytest.raises(UnknownService, match=r"client of 'inventory\.default'"):
            client.get("http://orders/a")


def test_one_service_asks_the_others() -> None:
    """The short name is then the resolver's to decide: it depends on the caller's namespace."""
    mine, other = Destination("inventory.shop", fine), Destination("inventory.default", fine)
    one = OneService(mine, Services(other))
    assert one.destination("inventory.shop") is mine
    assert one.destination("inventory") is other


@pytest.mark.parametrize("url", ["ftp://inventory/a", "/a"])
def test_only_http(url: str) -> None:
    """As bare httpx."""
    with httpx.Client(transport=MeshTransport(Destination("inventory", fine))) as client:
        with pytest.raises(httpx.UnsupportedProtocol) as caught:
            client.get(url)
        assert caught.value.request.url == url


def test_errors_are_both() -> None:
    """Ours with attributes and trail, httpx's with the request."""

    def none(call: Call) -> Reply:
        raise NoHealthyEndpoint(call.service, {"10.0.0.1:80": "circuit open"})

    destination = Destination("inventory", none)
    client = httpx.Client(transport=MeshTransport(destination))
    with client, pytest.raises(httpx.ConnectError, match="circuit open") as caught:
        client.get("http://inventory/a")
    assert isinstance(caught.value, NoHealthyEndpoint)
    assert caught.value.why == {"10.0.0.1:80": "circuit open"}
    assert caught.value.trail is destination.calls[0].trail
    assert caught.value.request.url == "http://inventory/a"


def test_a_mistake_in_the_configuration_is_no_failed_request() -> None:
    """The first call starts the mesh: ConfigError comes as it is."""

    def wrong(call: Call) -> Reply:
        raise ConfigError("mesh.yaml:1:1: no")

    client = httpx.Client(transport=MeshTransport(Destination("inventory", wrong)))
    with client, pytest.raises(ConfigError) as caught:
        client.get("http://inventory/a")
    assert not isinstance(caught.value, httpx.HTTPError)


def test_redirects_of_a_users_client_stay_with_the_service() -> None:
    """httpx follows; the transport does not let it out of the service."""
    orders = Destination("orders", fine)
    for location, host in ((b"/b", "inventory"), (b"http://inventory/b", "inventory"), (b"http://orders/b", "orders")):
        services = Services(Destination("inventory", to(location)), orders)
        with httpx.Client(transport=MeshTransport(services), follow_redirects=True) as client:
            if host == "inventory":
                assert client.get("http://inventory/a").text == "landed"
            else:
                with pytest.raises(httpx.LocalProtocolError, match="does not follow a redirect") as caught:
                    client.get("http://inventory/a")
                assert isinstance(caught.value, TransportError)
                assert not caught.value.sent
    assert orders.calls == []


def test_a_streamed_body_read_whole_is_limited() -> None:
    """A client of the user's own reads every body whole: a plain one too stops at the limit. A streamed call does not."""

    class Endless:
        left = 40

        async def read(self) -> bytes:
            self.left -= 1
            return bytes(1 << 16) if self.left > 0 else b""

        async def aclose(self) -> None:
            self.left = 0

    service = Destination("inventory.default", lambda _: Reply(200, [], stream=Endless()))

    async def ask() -> None:
        async with httpx.AsyncClient(transport=MeshAsyncTransport(service)) as client:
            with pytest.raises(httpx.RemoteProtocolError, match="larger than 1048576 bytes"):
                await client.get("http://inventory/a")

    asyncio.run(ask())
    with httpx.Client(transport=MeshTransport(service)) as client:
        with pytest.raises(httpx.RemoteProtocolError, match="larger than 1048576 bytes"):
            client.get("http://inventory/a")
        with client.stream("GET", "http://inventory/a") as response:
            assert sum(map(len, response.iter_bytes())) == 39 << 16


def test_a_transport_closes_nothing() -> None:
    """The mesh owns its connections: the transport works on."""
    transport = MeshTransport(Destination("inventory", fine))
    for _ in range(2):
        with httpx.Client(transport=transport) as client:
            assert client.get("http://inventory/a").status_code == 200
