"""Tests with fake services: the pytest plugin of meshlib gives the fixtures. Run: pytest test_with_fakes.py"""

import pytest

import meshlib
from meshlib.testing import FakeMesh, assert_route


def price_of(mesh, item):
    """The code under test: the price, or None where the service does not say."""
    try:
        return mesh.sync_client("web").get(f"/prices/{item}").json()["price"]
    except meshlib.MeshError:
        return None


def test_a_price_comes_from_the_service(mesh_factory):
    mesh = mesh_factory("mesh.yaml")
    web = mesh.service("web").reply(json={"price": 5})
    assert price_of(mesh, "apple") == 5
    assert [request.path for request in web.requests] == ["/prices/apple"]


def test_a_short_outage_is_not_seen(mesh_factory):
    mesh = mesh_factory("mesh.yaml")
    web = mesh.service("web").fail("reset").then.reply(json={"price": 5})
    assert price_of(mesh, "apple") == 5
    assert [request.attempt for request in web.requests] == [1, 2]


def test_without_the_service_there_is_no_price(mesh_factory):
    mesh = mesh_factory("mesh.yaml")
    with mesh.fault("web", refuse=True):
        assert price_of(mesh, "apple") is None


@pytest.mark.parametrize("path", ["/items", "/items/7"])
def test_items_have_a_short_deadline(path):
    assert_route("mesh.yaml", "stock", path=path, route="items", timeout_s=0.5, retries=2, backends="stock")


def test_a_slow_service_costs_no_more_than_the_deadline(virtual_time):
    async def main(sim):
        mesh = FakeMesh("mesh.yaml")
        mesh.service("stock").delay(60)
        with pytest.raises(meshlib.DeadlineExceeded):
            await mesh.client("stock").get("/items/7")
        assert sim.now() == pytest.approx(0.5)

    virtual_time(main)
