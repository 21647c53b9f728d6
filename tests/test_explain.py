"""explain: the answer is the one that production would give."""

from __future__ import annotations

import pytest

import meshlib

CONFIG = """\
version: 1
mesh: shop
defaults: {timeout: 3s}
services:
  inventory:
    subsets: {v1: {version: "1"}, v2: {version: "2"}}
    endpoints: [{static: ["127.0.0.1:1"]}]
    routes:
      - name: beta
        matches: [{path: {prefix: /items}, method: GET, headers: {x-beta: "1"}}]
        backends: [{subset: v2}]
      - name: main
        matches: [{path: {prefix: /items}}]
        backends: [{subset: v1, weight: 90}, {subset: v2, weight: 10}]
        timeout: 500ms
        idempotent: true
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> meshlib.MeshConfig:
    path = tmp_path_factory.mktemp("explain") / "mesh.yaml"
    path.write_text(CONFIG)
    return meshlib.load_config(path)


def test_a_header_chooses_the_route(config: meshlib.MeshConfig) -> None:
    """The first match, with its place in the file and its one backend."""
    found = meshlib.explain(config, "inventory", path="/items/7?q=1", headers={"X-Beta": "1"}).to_dict()
    assert found["status"] is None
    assert found["matched"]["route"] == "beta"
    assert found["matched"]["where"].endswith("mesh.yaml:9")
    assert found["backends"] == [{"service": "inventory.default", "subset": "v2", "weight": 1, "share": 1.0}]
    assert found["timeout_s"] == 3.0
    assert found["request"] == {
        "method": "GET",
        "path": "/items/7?q=1",
        "host": "inventory",
        "headers": {"x-beta": "1"},
    }


def test_weights_timeouts_and_who_set_them(config: meshlib.MeshConfig) -> None:
    """A POST that the route declares idempotent; provenance names the levels."""
    found = meshlib.explain(config, "inventory", method="post", path="/items").to_dict()
    assert [(b["subset"], b["share"]) for b in found["backends"]] == [("v1", 0.9), ("v2", 0.1)]
    assert found["timeout_s"] == 0.5
    assert found["retries"]["idempotent"] is True
    assert found["provenance"]["timeout"].startswith("services.inventory.routes[1]")
    assert found["provenance"]["load_balancer.policy"] == "built-in"


def test_no_route_is_a_404(config: meshlib.MeshConfig) -> None:
    """As the running mesh answers."""
    found = meshlib.explain(config, "inventory", path="/itemsize")
    assert (found.status, found.route, found.backends) == (404, None, ())
    assert "404" in str(found)


def test_an_unknown_service_is_refused(config: meshlib.MeshConfig) -> None:
    """With the nearest name."""
    with pytest.raises(meshlib.UnknownService, match="did you mean 'inventory'"):
        meshlib.explain(config, "inventry")


def test_the_text_is_for_people(config: meshlib.MeshConfig) -> None:
    """Route, shares, timeout and retries are in it."""
    text = str(meshlib.explain(config, "inventory", path="/items"))
    for part in ("route      main", "90.00%", "timeout    0.5 s", "retries    1 on"):
        assert part in text
