"""explain: the answer is the one that production would give."""

from __future__ import annotations

import pytest

import meshlib
from meshlib.errors import UnknownService

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


EDGE = {
    "version": 1,
    "mesh": "shop",
    "services": {
        "items": {"allow_routes_from": ["gateway/edge"]},
        "shadow": {"allow_routes_from": ["gateway/edge"]},
    },
    "gateways": {
        "edge": {
            "listeners": [
                {"name": "web", "port": 80, "hostname": "*.shop.example"},
                {"name": "tls", "port": 443, "protocol": "https", "hostname": "*.shop.example"},
            ],
            "routes": [
                {"name": "old", "listeners": ["tls"], "hostnames": ["old.shop.example"], "request_redirect": {"hostname": "www.shop.example"}},
                {"name": "closed", "matches": [{"path": {"prefix": "/admin"}}], "direct_response": {"status": 403}},
                {
                    "name": "v2",
                    "matches": [{"path": {"prefix": "/v2"}}],
                    "backends": [{"service": "items", "request_headers": {"add": {"x-b": "2"}}}],
                    "url_rewrite": {"hostname": "items.local", "path": {"replace_prefix_match": "/items"}},
                    "request_headers": {"set": {"x-a": "1"}, "remove": ["x-c"]},
                    "response_headers": {"set": {"x-d": "1"}},
                    "mirror": {"service": "shadow", "percent": "10%"},
                },
                {"name": "split", "backends": [{"service": "items", "weight": 3}, {"direct_response": {"status": 500}, "weight": 1}]},
            ],
        }
    },
}  # fmt: skip


def test_a_request_at_a_gateway() -> None:
    """What the backend would get: path, host and headers as changed; who gets copies; what is done to the answer."""
    found = meshlib.explain(EDGE, path="/v2/7?q=1", headers={"x-c": "1"}, host="www.shop.example").to_dict()
    assert (found["service"], found["status"], found["matched"]["route"]) == ("gateway/edge", None, "v2")
    assert found["request"] == {
        "method": "GET",
        "path": "/items/7?q=1",
        "host": "items.local",
        "headers": {"x-a": "1", "x-b": "2"},
    }
    assert found["mirrors"] == [{"service": "shadow", "subset": None, "percent": 0.1, "diff": False}]
    assert found["response_headers"] == {"set": {"x-d": "1"}, "add": {}, "remove": []}


def test_answers_of_a_gateway_itself() -> None:
    """A redirect with where to, an answer's status, a share that is one, and hosts and ports that nothing listens for."""
    moved = meshlib.explain(EDGE, path="/x?y=1", host="old.shop.example", port=443).to_dict()
    assert (moved["status"], moved["redirect"]["location"]) == (302, "https://www.shop.example/x?y=1")
    assert (moved["redirect"]["scheme"], moved["redirect"]["port"], moved["redirect"]["path"]) == ("https", None, "/x")
    assert "redirect   302 to https://www.shop.example/x?y=1" in str(
        meshlib.explain(EDGE, path="/x?y=1", host="old.shop.example", port=443)
    )
    assert meshlib.explain(EDGE, path="/admin/x", host="a.shop.example").status == 403
    split = meshlib.explain(EDGE, path="/x", host="a.shop.example", port=80).to_dict()
    assert [(backend["service"], backend.get("answer"), backend["share"]) for backend in split["backends"]] == [
        ("items.default", None, 0.75),
        (None, "direct_response", 0.25),
    ]
    assert meshlib.explain(EDGE, path="/x", host="elsewhere.example").status == 404
    assert meshlib.explain(EDGE, path="/x", host="a.shop.example", port=81).status == 404


def test_which_gateway() -> None:
    """The first that takes the request, or by its name; an unknown one is an error that names those there are."""
    routes = {name: [{"name": name, "matches": [{"path": {"prefix": f"/{name}"}}]}] for name in ("a", "b")}
    direct = {"direct_response": {"status": 200}}
    gateways = {
        name: {"listeners": [{"name": "http", "port": 80}], "routes": [{**each, **direct} for each in of]}
        for name, of in routes.items()
    }
    two = {"version": 1, "mesh": "m", "gateways": gateways}
    assert meshlib.explain(two, path="/b").route == "b"
    assert meshlib.explain(two, path="/b", gateway="a").status == 404
    assert meshlib.explain(two, path="/c").status == 404
    with pytest.raises(UnknownService, match="it has edge"):
        meshlib.explain(EDGE, gateway="other")
    with pytest.raises(UnknownService, match="it has no gateways"):
        meshlib.explain({"version": 1, "mesh": "m"})


def test_a_bare_name_of_one_namespace() -> None:
    """Where nobody is said to call, it means the only one; a caller's namespace is never guessed."""
    mesh = {"version": 1, "mesh": "m", "services": {"items.shop": {}, "a.x": {}, "a.y": {}}}
    assert meshlib.explain(mesh, "items").service == "items.shop"
    for service, source in (("items", "orders.other"), ("a", None)):
        with pytest.raises(UnknownService):
            meshlib.explain(mesh, service, source=source)


def test_who_calls_decides_with_from() -> None:
    """`source` is who the route is about; a bare name is of the namespace default."""
    routes = [{"name": "ours", "matches": [{"from": ["orders"]}]}, {"name": "rest"}]
    mesh = {"version": 1, "mesh": "m", "services": {"items": {"routes": routes}, "orders": {}}}
    assert meshlib.explain(mesh, "items", source="orders").route == "ours"
    assert meshlib.explain(mesh, "items", source="orders.default").route == "ours"
    assert meshlib.explain(mesh, "items", source="web").route == "rest"
    assert meshlib.explain(mesh, "items").route == "rest"
