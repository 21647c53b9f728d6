"""A mesh.yaml as resources."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from meshlib.config import load_config, parse_config
from meshlib.config.model import MeshConfig
from meshlib.control.publication import contents, endpoints_content, policy_contents

ENTRY = {"address": "10.0.0.1:80", "zone": "", "weight": 1, "labels": {}, "state": "ready"}


def config(text: str) -> MeshConfig:
    return parse_config(textwrap.dedent(text), "mesh.yaml")


SHOP = config(
    """
    version: 1
    mesh: shop
    trust_domain: shop.example
    control: {urls: ["https://127.0.0.1:7443"]}
    defaults: {timeout: 1500ms}
    services:
      orders:
        endpoints: [{registry: {}}]
        routes:
          - {name: new, matches: [{path: {prefix: /new}}], backends: [{service: orders-v2}, {weight: 0}]}
          - {name: main, backends: [{service: orders}]}
      orders-v2: {allow_routes_from: [orders]}
      inventory.stock: {timeout: 1s}
    """
)


def test_every_service_is_a_resource_as_it_is_written():
    """Names are canonical, durations are text, bootstrap fields are nobody else's business."""
    found = contents(SHOP)
    assert list(found) == [
        "defaults",
        "service/orders.default",
        "service/orders-v2.default",
        "service/inventory.stock",
    ]
    assert found["defaults"] == {"timeout": "1500ms"}
    assert found["service/inventory.stock"] == {"policy": {"timeout": "1s"}, "needs": []}


def test_a_service_says_whom_its_routes_need():
    """Without itself: it is there already."""
    assert contents(SHOP)["service/orders.default"]["needs"] == ["orders-v2.default"]


def test_where_nothing_is_written_the_resources_are_empty():
    """`defaults` is always there, so that a process knows that it has everything."""
    assert contents(config("version: 1\nmesh: shop")) == {"defaults": {}}


def test_endpoint_files_are_published_with_what_is_in_them(tmp_path: Path):
    """The process has no such file."""
    (tmp_path / "hosts.yaml").write_text('["127.0.0.9:80"]')
    (tmp_path / "mesh.yaml").write_text("version: 1\nmesh: shop\nservices: {a: {endpoints: [{file: hosts.yaml}]}}")
    policy = contents(load_config(tmp_path / "mesh.yaml"))["service/a.default"]["policy"]
    assert "hosts.yaml" not in str(policy)
    assert "127.0.0.9:80" in str(policy)


def test_a_new_policy_also_says_what_is_no_more():
    """Null for the service that left, and endpoints of all, by the registry."""
    registered: dict[str, list[dict[str, Any]]] = {"orders.default": [ENTRY], "left.default": []}
    found = policy_contents(SHOP, ["orders.default", "left.default"], lambda name: registered.get(name, []))
    assert found["service/left.default"] is None
    assert found["endpoints/left.default"] is None
    assert found["endpoints/orders.default"] == [ENTRY]
    assert found["endpoints/inventory.stock"] == []
    assert found.keys() == {
        "defaults",
        *(f"{kind}/{name}" for kind in ("service", "endpoints") for name in (*SHOP.services, "left.default")),
    }


def test_who_is_registered_is_there_also_without_a_policy():
    """Null means that there is no such service; a list, that there is."""
    assert endpoints_content([ENTRY], in_policy=False) == [ENTRY]
    assert endpoints_content([], in_policy=True) == []
    assert endpoints_content([], in_policy=False) is None
