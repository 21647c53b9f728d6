"""A mesh in memory: the engine of production, without anything outside."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from meshlib import ConfigError, Mesh, NoHealthyEndpoint
from meshlib.testing import FakeMesh, on_fakes

from .policies import SHOP, one_service, two_endpoints


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is connected or bound fails the test; an event loop's own pair is neither."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"the network was touched: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "bind", refuse)
    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", refuse)


@pytest.mark.usefixtures("no_network")
def test_nothing_outside_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No socket, no identity file although mTLS is strict, no thread, no exporter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    before = threading.active_count()
    mesh = FakeMesh(one_service(mtls="strict"))
    assert mesh.sync_client("inventory").get("/").status_code == 200
    asyncio.run(_get(mesh))
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before


async def _get(mesh: Mesh) -> httpx.Response:
    return await mesh.client("inventory").get("/items/7")


def test_every_way_of_calling_ends_at_the_fake():
    """client, sync_client, transport, sync_transport, streams and streamed bodies."""
    mesh = FakeMesh(one_service())
    inventory = mesh.service("inventory").reply(json={"stock": 7})

    async def body() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"cd"

    async def main() -> None:
        async with mesh, httpx.AsyncClient(transport=mesh.transport()) as own:
            assert (await own.get("http://inventory/a")).json() == {"stock": 7}
            await mesh.client("inventory").put("/b", content=body())
            async with mesh.client("inventory").stream("GET", "/c") as reply:
                assert await reply.aread() == b'{"stock": 7}'
            assert mesh.sync_client("inventory").get("/d").status_code == 200
            with httpx.Client(transport=mesh.sync_transport()) as blocking:
                assert blocking.get("http://inventory.default/e").status_code == 200

    asyncio.run(main())
    assert [request.path for request in inventory.requests] == ["/a", "/b", "/c", "/d", "/e"]
    assert inventory.requests[1].body == b"abcd"


@pytest.mark.parametrize("kind", ["path", "text", "dict"])
def test_a_policy_is_a_path_or_text_or_a_dict(kind: str, tmp_path: Path):
    """Whatever a test has at hand; overrides are laid over it as for Mesh."""
    file = tmp_path / "mesh.yaml"
    file.write_text("version: 1\nmesh: shop\nservices: {inventory: {}}\n")
    config = {"path": file, "text": file.read_text(), "dict": one_service()}[kind]
    mesh = FakeMesh(config, defaults={"timeout": "3s"})
    mesh.sync_client("inventory").get("/")
    assert 2000 < int(mesh.service("inventory").requests[0].headers["x-meshlib-deadline-ms"]) <= 3000


def test_a_bad_policy_is_told_in_full():
    """ConfigError as in production."""
    with pytest.raises(ConfigError, match=r"services\.inventory\.tiemout"):
        FakeMesh("version: 1\nmesh: shop\nservices: {inventory: {tiemout: 1s}}\n").start()


def test_retries_breakers_and_trail_are_productions():
    """A refused connection shuts its endpoint: the retry goes to the other one, and so does every later call."""
    mesh = FakeMesh(two_endpoints())
    inventory = mesh.service("inventory").reply(text="ok")
    inventory.endpoint("127.0.0.1:1").fail("refused")
    replies = [mesh.sync_client("inventory").get("/") for _ in range(20)]
    assert {reply.text for reply in replies} == {"ok"}
    trails = [[attempt.endpoint.port for attempt in reply.extensions["meshlib.trail"]] for reply in replies]
    assert trails.count([1, 2]) == 1
    assert trails.count([2]) == 19


def test_no_endpoint_left_says_why():
    """The error of production, with every endpoint's reason."""
    mesh = FakeMesh(two_endpoints())
    mesh.service("inventory").fail("refused")
    client = mesh.sync_client("inventory")
    with pytest.raises(httpx.ConnectError):
        client.get("/")
    with pytest.raises(NoHealthyEndpoint, match=r"127\.0\.0\.1:1: cannot be connected to"):
        client.get("/")


def test_metrics_are_counted():
    """The text of /metrics has the call, under its route and class."""
    mesh = FakeMesh(SHOP, "orders")
    mesh.sync_client("inventory").get("/items/7")
    wanted = 'meshlib_calls_total{source="orders.default",destination="inventory.default",route="main",class="2xx"} 1'
    assert wanted in mesh.metrics


def test_the_split_is_the_policys_and_the_seed_repeats_it():
    """90 % to v1 within 3 σ; the same seed draws the same, another one does not."""

    def drawn(seed: int) -> list[str]:
        mesh = FakeMesh(SHOP, seed=seed)
        client = mesh.sync_client("inventory")
        return [client.get("/items/7").json()["endpoint"] for _ in range(1000)]

    first = drawn(1)
    assert abs(Counter(first)["127.0.0.1:1"] - 900) <= 3 * (1000 * 0.9 * 0.1) ** 0.5
    assert drawn(1) == first
    assert drawn(2) != first


def test_a_new_policy_is_put_in_force():
    """As an edit of mesh.yaml: the same client then goes elsewhere."""
    mesh = FakeMesh(SHOP)
    client = mesh.sync_client("inventory")
    assert client.get("/nothing").status_code == 404
    mesh.put_in_force(one_service())
    assert client.get("/nothing").status_code == 200


def test_an_applications_own_mesh_is_put_on_fakes_and_given_back(tmp_path: Path):
    """Also the clients that it gave out before; afterwards it is as if it had never started."""
    mesh = Mesh("orders", one_service(mtls="strict"), state_dir=str(tmp_path))
    client = mesh.sync_client("inventory")
    for stock in (7, 8):
        with on_fakes(mesh) as fakes:
            fakes.service("inventory").reply(json=stock)
            assert client.get("/").json() == stock
            mesh.close()  # as the end of an application's lifespan does
    assert list(tmp_path.iterdir()) == []
    with mesh, pytest.raises(RuntimeError, match="has started"), on_fakes(mesh):
        pass


def test_handlers_of_an_application_are_called_without_a_certificate():
    """The server side in memory: httpx's ASGI transport, although the policy is strict."""
    mesh = Mesh("orders", {"version": 1, "mesh": "shop", "services": {"orders": {}, "inventory": {}}})

    @mesh.get("/orders/{order}")
    async def order(order: str) -> dict[str, object]:
        return {"order": order, "stock": (await mesh.client("inventory").get("/")).json()}

    async def main() -> None:
        with on_fakes(mesh) as fakes:
            fakes.service("inventory").reply(json=7)
            transport = httpx.ASGITransport(app=mesh.asgi(mesh._handlers))
            async with httpx.AsyncClient(transport=transport, base_url="http://orders") as client:
                assert (await client.get("/orders/9")).json() == {"order": "9", "stock": 7}

    asyncio.run(main())


def test_it_does_not_serve():
    """Without certificates it would do so in plain text."""
    with pytest.raises(RuntimeError, match="does not serve"):
        FakeMesh(one_service(), "inventory").run(lambda *_: None)


def test_pytest_does_not_collect_the_names():
    """None of them looks like a test."""
    import meshlib.testing

    assert not [name for name in meshlib.testing.__all__ if name.startswith(("Test", "test"))]
    with pytest.raises(AttributeError, match="no attribute 'TestMesh'"):
        meshlib.testing.TestMesh  # noqa: B018
