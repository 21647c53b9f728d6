"""`convert("gateway-api", …)`: precedence becomes order, mistakes are named, nothing is lost without a word."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import meshlib
from meshlib.config import parse_config

GATEWAY = """
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: any
  listeners:
    - {name: http, port: 80, protocol: HTTP, hostname: "*.shop.example"}
"""
ROUTE = """
kind: HTTPRoute
metadata: {name: ROUTE, namespace: shop}
spec:
  parentRefs: [{name: web}]
  hostnames: [www.shop.example]
  rules:
    - matches: [{path: {type: PathPrefix, value: /items}}]
      backendRefs: [{name: items, port: 80, weight: 3}, {name: items-v2, port: 80}]
      timeouts: {request: 45s, backendRequest: 2s}
      retry: {attempts: 5, codes: [503], backoff: 100ms}
"""


def route(*rules: dict[str, Any], name: str = "a", created: str = "", **spec: Any) -> dict[str, Any]:
    """An HTTPRoute."""
    metadata = {"name": name, "namespace": "shop", **({"creationTimestamp": created} if created else {})}
    return {
        "kind": "HTTPRoute",
        "metadata": metadata,
        "spec": {"parentRefs": [{"name": "web"}], "rules": list(rules), **spec},
    }


def rule(backend: str, *matches: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A rule to one backend."""
    return {"matches": list(matches), "backendRefs": [{"name": backend, "port": 80}], **fields}


def prefix(value: str, **more: Any) -> dict[str, Any]:
    """A match of a path's prefix."""
    return {"path": {"type": "PathPrefix", "value": value}, **more}


def taken(conversion: meshlib.Conversion, path: str, host: str = "www.shop.example", **asked: Any) -> list[str]:
    """The backends of a request."""
    found = meshlib.explain(conversion.config, None, path=path, host=host, **asked).to_dict()
    return [backend["service"] for backend in found["backends"]]


def test_a_route_becomes_a_route() -> None:
    """Backends with their consent, timeouts, retries; ceilings are raised to what is asked for."""
    made = meshlib.convert("gateway-api", [GATEWAY, ROUTE.replace("ROUTE", "items")])
    found = meshlib.explain(made.config, None, path="/items/7", host="www.shop.example").to_dict()
    assert [(each["service"], each["share"]) for each in found["backends"]] == [
        ("items.shop", 0.75),
        ("items-v2.shop", 0.25),
    ]
    assert found["timeout_s"] == 45.0
    assert found["retries"]["max_retries"] == 5
    assert found["retries"]["per_try_timeout_s"] == 2.0
    assert meshlib.explain(made.config, None, path="/items/7", host="other.example").to_dict()["status"] == 404


def test_the_text_loads_as_the_same_policy() -> None:
    """`to_yaml` is a mesh.yaml."""
    made = meshlib.convert("gateway-api", GATEWAY + "---" + ROUTE.replace("ROUTE", "yes"))
    assert parse_config(made.to_yaml()).version_number == made.config.version_number


def test_precedence_becomes_order() -> None:
    """Exact, then the longest prefix, then a method, headers, query parameters; written in any order."""
    rules = [
        rule("all", prefix("/")),
        rule("exact", {"path": {"type": "Exact", "value": "/a/b"}}),
        rule("long", prefix("/a/b")),
        rule("short", prefix("/a")),
        rule("method", prefix("/a/b", method="POST")),
        rule("two", prefix("/a/b", headers=[{"name": "x", "value": "1"}, {"name": "y", "value": "1"}])),
        rule("one", prefix("/a/b", headers=[{"name": "x", "value": "1"}])),
        rule("query", prefix("/a/b", queryParams=[{"name": "q", "value": "1"}])),
    ]
    for seed in range(10):
        random.Random(seed).shuffle(rules)
        made = meshlib.convert("gateway-api", [GATEWAY, route(*rules)])
        assert taken(made, "/a/b") == ["exact.shop"]
        assert taken(made, "/a/b/c") == ["long.shop"]
        assert taken(made, "/a/bc") == ["short.shop"]
        assert taken(made, "/a/b/c", method="POST") == ["method.shop"]
        assert taken(made, "/a/b/c", headers={"x": "1", "y": "1"}) == ["two.shop"]
        assert taken(made, "/a/b/c", headers={"x": "1"}) == ["one.shop"]
        assert taken(made, "/a/b/c?q=1") == ["query.shop"]
        assert taken(made, "/z") == ["all.shop"]


def test_ties_go_to_the_oldest_route_then_by_name() -> None:
    """And within a route to the first rule."""
    old = route(rule("old", prefix("/")), name="z", created="2020-01-01T00:00:00Z")
    new = route(rule("new", prefix("/")), name="a", created="2024-01-01T00:00:00Z")
    assert taken(meshlib.convert("gateway-api", [GATEWAY, new, old]), "/") == ["old.shop"]
    first, second = route(rule("b", prefix("/")), name="b"), route(rule("a", prefix("/")), name="a")
    assert taken(meshlib.convert("gateway-api", [GATEWAY, first, second]), "/") == ["a.shop"]
    both = route(rule("one", prefix("/")), rule("two", prefix("/")))
    assert taken(meshlib.convert("gateway-api", [GATEWAY, both]), "/") == ["one.shop"]


def test_a_hostname_comes_before_a_path() -> None:
    """An exact host before a pattern of hosts, whatever the paths say."""
    exact = route(rule("exact", prefix("/")), name="z", hostnames=["www.shop.example"])
    pattern = route(rule("pattern", {"path": {"type": "Exact", "value": "/x"}}), hostnames=["*.shop.example"])
    made = meshlib.convert("gateway-api", [GATEWAY, pattern, exact])
    assert taken(made, "/x") == ["exact.shop"]
    assert taken(made, "/x", host="a.shop.example") == ["pattern.shop"]


def test_grpc_routes() -> None:
    """By service and method, the most specific first."""
    document = {
        "kind": "GRPCRoute",
        "metadata": {"name": "g", "namespace": "shop"},
        "spec": {
            "parentRefs": [{"name": "web"}],
            "rules": [
                rule("any"),
                rule("service", {"method": {"service": "shop.v1.Items"}}),
                rule("method", {"method": {"service": "shop.v1.Items", "method": "Get"}}),
            ],
        },
    }
    made = meshlib.convert("gateway-api", [GATEWAY, document])
    assert taken(made, "/shop.v1.Items/Get", method="POST") == ["method.shop"]
    assert taken(made, "/shop.v1.Items/List", method="POST") == ["service.shop"]
    assert taken(made, "/shop.v1.Other/Get", method="POST") == ["any.shop"]


def test_a_rule_without_a_backend_that_can_be_used_answers_500() -> None:
    """Never another rule's backend."""
    made = meshlib.convert("gateway-api", [GATEWAY, route({"matches": [prefix("/x")]}, rule("all", prefix("/")))])
    assert meshlib.explain(made.config, None, path="/x", host="www.shop.example").to_dict()["status"] == 500


def test_a_reference_abroad_needs_a_grant_where_there_are_grants() -> None:
    """As the standard has it; the share of one that has none is answered with 500."""
    abroad = {"backendRefs": [{"name": "items", "namespace": "other", "port": 80}]}
    grant = {
        "kind": "ReferenceGrant",
        "metadata": {"name": "g", "namespace": "other"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}]},
    }
    assert taken(meshlib.convert("gateway-api", [GATEWAY, route(abroad), grant]), "/") == ["items.other"]
    grant["spec"]["from"][0]["namespace"] = "elsewhere"
    made = meshlib.convert("gateway-api", [GATEWAY, route(abroad), grant])
    assert meshlib.explain(made.config, None, path="/", host="www.shop.example").to_dict()["status"] == 500


def test_every_field_is_in_the_report() -> None:
    """Kept, approximated or dropped, and why."""
    odd = route({**rule("items", prefix("/")), "novelty": {"deep": [1]}})
    report = {line.field: line for line in meshlib.convert("gateway-api", [GATEWAY, odd]).report}
    assert report["spec.rules[0].matches[0].path.value"].outcome == "kept"
    assert report["spec.rules[0].backendRefs[0].port"].outcome == "approximated"
    assert report["spec.rules[0].novelty.deep[0]"].outcome == "dropped"
    assert report["spec.gatewayClassName"].outcome == "dropped"
    assert all(line.why for line in report.values() if line.outcome != "kept")


def test_mistakes_are_named_by_document_and_field(tmp_path: Path) -> None:
    """All of them at once."""
    path = tmp_path / "routes.yaml"
    path.write_text(ROUTE.replace("ROUTE", "bad").replace("/items", "items").replace("45s", "45d"))
    with pytest.raises(meshlib.ConfigError) as caught:
        meshlib.convert("gateway-api", [GATEWAY, path])
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {"spec.rules[0].matches[0].path.value", "spec.rules[0].timeouts.request"}
    assert all(f"HTTPRoute shop/bad ({path})" in str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x 1\nb: *x", "alias"),
        ("[1, 2]\n", "no mapping"),
        ("a: [\n", "text:"),
    ],
)
def test_what_is_no_document(text: str, said: str) -> None:
    """Broken YAML, aliases, and what is no mapping."""
    with pytest.raises(meshlib.ConfigError, match=said):
        meshlib.convert("gateway-api", text)


def test_another_system_is_refused() -> None:
    """With the names of those that are known."""
    with pytest.raises(meshlib.ConfigError, match="gateway-api"):
        meshlib.convert("istio", [])


def test_what_must_not_be_left_out_is_an_error() -> None:
    """An authorization that would not be enforced."""
    guarded = {"type": "ExternalAuth", "externalAuth": {"protocol": "HTTP"}}
    with pytest.raises(meshlib.ConfigError, match="must not be left out"):
        meshlib.convert("gateway-api", [GATEWAY, route({**rule("items", prefix("/")), "filters": [guarded]})])
