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


def answer(made: meshlib.Conversion, path: str = "/", host: str = "www.shop.example") -> dict[str, Any]:
    """What would happen to a request."""
    return meshlib.explain(made.config, None, path=path, host=host).to_dict()


def grant(namespace: str = "shop", kind: str = "HTTPRoute", to: str = "Service", **name: str) -> dict[str, Any]:
    """A ReferenceGrant of the namespace `other`."""
    source = {"group": "gateway.networking.k8s.io", "kind": kind, "namespace": namespace}
    target = {"group": "", "kind": to, **name}
    return {
        "kind": "ReferenceGrant",
        "metadata": {"name": "g", "namespace": "other"},
        "spec": {"from": [source], "to": [target]},
    }


def test_a_reference_abroad_needs_a_grant() -> None:
    """Of the route's kind and namespace, to services, of every name or of this one; without it the answer is 500."""
    abroad = route({"backendRefs": [{"name": "items", "namespace": "other", "port": 80}]})
    for enough in (grant(), grant(name="items")):
        assert taken(meshlib.convert("gateway-api", [GATEWAY, abroad, enough]), "/") == ["items.other"]
    refused = [grant("elsewhere"), grant(kind="GRPCRoute"), grant(to="Secret"), grant(name="stock")]
    for documents in ([], *([each] for each in refused)):
        assert answer(meshlib.convert("gateway-api", [GATEWAY, abroad, *documents]))["status"] == 500


def test_a_service_needs_no_grant_to_go_to_itself() -> None:
    """A route of another namespace for a service, whose backend is that service."""
    parent = {"kind": "Service", "group": "", "name": "items", "namespace": "other"}
    to_itself = {"backendRefs": [{"name": "items", "namespace": "other", "port": 80}]}
    made = meshlib.convert("gateway-api", [route(to_itself, parentRefs=[parent]), grant("elsewhere")])
    found = meshlib.explain(made.config, "items.other").to_dict()
    assert [backend["service"] for backend in found["backends"]] == ["items.other"]


def gateway(**allowed: Any) -> dict[str, Any]:
    """A gateway of the namespace `shop` with this allowedRoutes."""
    listener = {"name": "http", "port": 80, "protocol": "HTTP", **({"allowedRoutes": allowed} if allowed else {})}
    return {"kind": "Gateway", "metadata": {"name": "web", "namespace": "shop"}, "spec": {"listeners": [listener]}}


@pytest.mark.parametrize(
    ("allowed", "attached"),
    [
        ({}, False),
        ({"namespaces": {"from": "Same"}}, False),
        ({"namespaces": {"from": "None"}}, False),
        ({"namespaces": {"from": "All"}}, True),
        ({"namespaces": {"from": "All"}, "kinds": [{"kind": "GRPCRoute"}]}, False),
        ({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"edge": "yes"}}}}, True),
        ({"namespaces": {"from": "Selector", "selector": {"matchLabels": {"edge": "no"}}}}, False),
        ({"namespaces": {"from": "Selector"}}, False),
        (
            {
                "namespaces": {
                    "from": "Selector",
                    "selector": {"matchExpressions": [{"key": "edge", "operator": "In", "values": ["yes"]}]},
                }
            },
            True,
        ),
        (
            {
                "namespaces": {
                    "from": "Selector",
                    "selector": {"matchExpressions": [{"key": "edge", "operator": "DoesNotExist"}]},
                }
            },
            False,
        ),
    ],
)
def test_a_listener_takes_only_what_it_allows(allowed: dict[str, Any], attached: bool) -> None:
    """A route of another namespace is attached where the listener says so, and nowhere else."""
    stranger = route(rule("items", prefix("/")))
    stranger["metadata"]["namespace"] = "other"
    stranger["spec"]["parentRefs"] = [{"name": "web", "namespace": "shop"}]
    space = {"kind": "Namespace", "metadata": {"name": "other", "labels": {"edge": "yes"}}}
    made = meshlib.convert("gateway-api", [gateway(**allowed), stranger, space])
    assert answer(made)["status"] == (None if attached else 404)
    if not attached:
        assert any("takes it" in line.why for line in made.report if line.outcome == "dropped")


def test_a_route_without_a_parent_is_attached_to_nothing() -> None:
    """As in the standard."""
    made = meshlib.convert("gateway-api", [GATEWAY, route(rule("items", prefix("/")), parentRefs=[])])
    assert answer(made)["status"] == 404


def test_a_gateway_without_a_listener_that_is_served_is_not_made() -> None:
    """Its routes do not come to be served on another port, in plain text."""
    tls = gateway()
    tls["spec"]["listeners"][0]["protocol"] = "TLS"
    made = meshlib.convert("gateway-api", [tls, route(rule("items", prefix("/")))])
    assert "gateways" not in made.mesh


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"kind": "AuthorizationPolicy", "metadata": {"name": "p"}, "spec": {}}, "kind"),
        ({"kind": "RequestAuthentication", "metadata": {"name": "p"}, "spec": {}}, "kind"),
        (
            {"kind": "Gateway", "metadata": {"name": "g"}, "spec": {"tls": {"frontend": {"default": {}}}}},
            "spec.tls.frontend",
        ),
        (
            {
                "kind": "Gateway",
                "metadata": {"name": "g"},
                "spec": {
                    "listeners": [{"name": "a", "port": 1, "protocol": "HTTPS", "tls": {"frontendValidation": {}}}]
                },
            },
            "spec.listeners[0].tls.frontendValidation",
        ),
    ],
)
def test_a_protection_is_never_left_out(document: dict[str, Any], path: str) -> None:
    """What would be served without it is not converted."""
    with pytest.raises(meshlib.ConfigError) as caught:
        meshlib.convert("gateway-api", document)
    assert [problem.path for problem in caught.value.problems] == [path]


@pytest.mark.parametrize(
    ("rules", "spec", "path"),
    [
        ([rule("a", prefix("/"))] * 17, {}, "spec.rules"),
        ([rule("a", *[prefix(f"/{n}") for n in range(65)])] * 2, {}, "spec.rules"),
        ([rule("a", prefix("/"), name="x"), rule("b", prefix("/b"), name="x")], {}, "spec.rules"),
        ([rule("a", prefix("/"))], {"parentRefs": [{"name": "web"}, {"name": "web"}]}, "spec.parentRefs[1]"),
        ([rule("a", prefix("/"))], {"hostnames": ["127.0.0.1"]}, "spec.hostnames[0]"),
    ],
)
def test_the_bounds_of_the_standard(rules: list[Any], spec: dict[str, Any], path: str) -> None:
    """More than it allows is refused, once, by its field."""
    with pytest.raises(meshlib.ConfigError) as caught:
        meshlib.convert("gateway-api", [GATEWAY, route(*rules, **spec)])
    assert [problem.path for problem in caught.value.problems] == [path]


def test_at_the_bounds_of_the_standard() -> None:
    """16 rules and 128 matches are possible."""
    rules = [rule("a", *[prefix(f"/{n}/{m}") for m in range(8)]) for n in range(16)]
    assert taken(meshlib.convert("gateway-api", [GATEWAY, route(*rules)]), "/15/7") == ["a.shop"]


def test_what_is_more_than_is_possible_here_is_cut_and_told() -> None:
    """Retries; and a long wait has its ceiling raised."""
    made = meshlib.convert(
        "gateway-api", [GATEWAY, route(rule("a", prefix("/"), retry={"attempts": 50, "backoff": "2s"}))]
    )
    assert answer(made)["retries"]["max_retries"] == 10
    told = {line.field: line.outcome for line in made.report}
    assert told["spec.rules[0].retry.attempts"] == "approximated"


def test_the_first_of_two_headers_counts() -> None:
    """Where they differ in the case of letters alone; the same name twice is refused."""
    headers = [{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}]
    made = meshlib.convert("gateway-api", [GATEWAY, route(rule("a", prefix("/", headers=headers)))])
    assert taken(made, "/", headers={"x-a": "1"}) == ["a.shop"]
    assert taken(made, "/", headers={"x-a": "2"}) == []
    with pytest.raises(meshlib.ConfigError, match="twice"):
        meshlib.convert("gateway-api", [GATEWAY, route(rule("a", prefix("/", headers=[headers[0]] * 2)))])


def test_a_rewrite_of_a_backend() -> None:
    """Of the only one it is the route's; of one of several it is refused, since it would get another request."""
    rewrite = {"type": "URLRewrite", "urlRewrite": {"hostname": "a.internal"}}
    one, other = {"name": "a", "port": 80, "filters": [rewrite]}, {"name": "b", "port": 80}
    made = meshlib.convert("gateway-api", [GATEWAY, route({"backendRefs": [one]})])
    assert answer(made)["request"]["host"] == "a.internal"
    with pytest.raises(meshlib.ConfigError, match="several backends"):
        meshlib.convert("gateway-api", [GATEWAY, route({"backendRefs": [one, other]})])


def test_routes_of_one_name_in_two_namespaces() -> None:
    """Both are there, under names of their own."""
    first, second = route(rule("a", prefix("/a"))), route(rule("b", prefix("/b")))
    second["metadata"]["namespace"] = "other"
    second["spec"]["parentRefs"] = [{"name": "web", "namespace": "shop"}]
    made = meshlib.convert("gateway-api", [gateway(namespaces={"from": "All"}), first, second])
    assert taken(made, "/a") == ["a.shop"]
    assert taken(made, "/b") == ["b.other"]


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
