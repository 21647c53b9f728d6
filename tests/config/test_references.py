"""What one part of the file says about another: each mistake with its place, and what is no mistake."""

from __future__ import annotations

import pytest

from meshlib.config import parse_config
from meshlib.errors import ConfigError

HEAD = "version: 1\nmesh: m\n"
CONTROL = "control: {urls: ['https://c:7443']}\n"


def problems(text: str) -> list[str]:
    try:
        parse_config(HEAD + text, "mesh.yaml")
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("services: {a: {}, a.default: {}}", "3:19: services.a.default: is the same service as 'a' (mesh.yaml:3); keep one"),
        ("services: {a: {allow_routes_from: [orderz]}, orders: {}}", "3:36: services.a.allow_routes_from[0]: 'orderz' is not a service of this file (did you mean 'orders'?)"),
        ("services: {a: {routes: [{name: x, backends: [{subset: v1}]}]}}", "3:55: services.a.routes[0].backends[0].subset: service 'a' has no subset 'v1'; it has none"),
        ("services: {a: {routes: [{name: x, backends: [{service: b}]}]}}", "3:56: services.a.routes[0].backends[0].service: 'b' is not a service of this file"),
        ("services:\n  a: {routes: [{name: x, backends: [{service: b}]}]}\n  b: {}\n", "4:47: services.a.routes[0].backends[0].service: 'b' does not allow routes of 'a'; add 'a' to services.b.allow_routes_from (mesh.yaml:5)"),
        ("services:\n  a: {routes: [{name: x, backends: [{service: b}]}]}\n  b: {allow_routes_from: [b]}\n", "4:47: services.a.routes[0].backends[0].service: 'b' does not allow routes of 'a'; add 'a' to services.b.allow_routes_from (mesh.yaml:5)"),
        ("services: {a: {routes: [{name: x, backends: [{weight: 0}, {weight: 0}]}]}}", "3:35: services.a.routes[0].backends: every weight is 0, so no call has anywhere to go; give one backend a weight"),
        ("services:\n  a:\n    routes:\n    - {name: x}\n    - {name: x}\n", "7:14: services.a.routes[1].name: 'x' is already the name of a route (mesh.yaml:6)"),
        ("defaults: {timeout: 31s}", "3:21: defaults.timeout: 31s is above limits.max_timeout, which is 30s (built-in); lower the one or raise the other"),
        ("defaults:\n  limits: {max_timeout: 1s}\nservices: {a: {routes: [{name: x, timeout: 2s}]}}", "5:44: services.a.routes[0].timeout: 2s is above limits.max_timeout, which is 1s (mesh.yaml:4); lower the one or raise the other"),
        ("defaults: {retries: {max_retries: 4}}", "3:35: defaults.retries.max_retries: 4 is above limits.max_retries, which is 3 (built-in); lower the one or raise the other"),
        ("defaults: {timeout: 1s, retries: {per_try_timeout: 2s}}", "3:52: defaults.retries.per_try_timeout: 2s is above timeout, which is 1s (mesh.yaml:3); lower the one or raise the other"),
        ("defaults: {retries: {back_off: {base_interval: 1s}}}", "3:48: defaults.retries.back_off.base_interval: 1s is above retries.back_off.max_interval, which is 250ms (built-in); lower the one or raise the other"),
        ("services: {a: {endpoints: [{static: ['localhost:1', '127.0.0.1:2', 'localhost:1']}]}}", "3:68: services.a.endpoints[0].static[2]: 'localhost:1' is already an endpoint of 'a' (mesh.yaml:3)"),
        ("services: {a: {endpoints: [{static: [{address: '10.0.0.1:1'}]}]}}", "3:48: services.a.endpoints[0].static[0].address: '10.0.0.1:1' is not on this machine: identity.source dev is for 127.0.0.1 only; use such an address, or mtls: disabled"),
        ("services: {a: {endpoints: [{registry: {}}]}}", "3:29: services.a.endpoints[0].registry: needs the config service; add control: {urls: ['https://host:port']}, or use static"),
        (CONTROL + "services:\n  a:\n    endpoints:\n    - registry: {}\n    - static: []\n    - registry: {}\n", "9:7: services.a.endpoints[2].registry: is already a source of 'a' (mesh.yaml:7); keep one"),
        ("identity: {source: control}", "3:20: identity.source: is control, but the file has no `control`; add control: {urls: ['https://host:port']}, or write dev"),
        (CONTROL + "identity: {source: dev}", "4:20: identity.source: must be control, because the file has `control` (mesh.yaml:3); remove the one or the other"),
    ],
)  # fmt: skip
def test_each_mistake(text: str, problem: str) -> None:
    """One mistake is one problem, with its place and what to do."""
    assert problems(text) == [f"mesh.yaml:{problem}"]


@pytest.mark.parametrize(
    "text",
    [
        "services: {a: {routes: [{name: all}, {name: never, timeout: 1s}]}}",
        "services: {a: {routes: [{name: x, backends: [{weight: 0}, {weight: 1}]}]}}",
        "services: {a: {routes: [{name: x}]}, b: {routes: [{name: x}]}}",
        "services: {a: {routes: [{name: x, backends: [{service: a}]}]}}",
        "services: {a: {routes: [{name: x, backends: [{service: b, subset: s}]}]},"
        " b: {allow_routes_from: [a], subsets: {s: {}}}}",
        "services: {a: {mtls: disabled, endpoints: [{static: ['10.0.0.1:1']}]}}",
        "defaults: {mtls: disabled}\nservices: {a: {endpoints: [{static: ['db.example:1']}]}}",
        "services: {a: {endpoints: [{static: ['127.9.9.9:1', '[::1]:1', 'LOCALHOST:1']}]}}",
        "defaults: {timeout: 60s, limits: {max_timeout: 60s}}",
        "defaults: {limits: {max_timeout: 1s, max_retries: 0}}",
        "defaults: {timeout: 20s}\nservices: {a: {limits: {max_timeout: 5s}}}",
        CONTROL + "trust_domain: shop.example\nservices: {a: {endpoints: [{static: ['10.0.0.1:1']}, {registry: {}}]}}",
        CONTROL
        + "identity: {source: control}\nservices: {a: {endpoints: [{registry: {}}]}, b: {endpoints: [{registry: {}}]}}",
        "defaults: {retries: {per_try_timeout: 1s}}\nservices: {a: {routes: [{name: x, timeout: 300ms}]}}",
    ],
)
def test_no_mistake(text: str) -> None:
    """What these checks must let pass: values inherited from above a ceiling are lowered, not refused."""
    assert problems(text) == []


def test_names_are_relative_to_their_namespace() -> None:
    """In orders.stock, `inventory` is inventory.stock where there is one, else inventory.default."""
    text = """\
services:
  orders.stock: {routes: [{name: x, backends: [{service: inventory, subset: here}]}]}
  inventory.stock: {allow_routes_from: [orders], subsets: {here: {}}}
  inventory: {allow_routes_from: [orders.stock]}
"""
    assert problems(text) == []
    assert problems(text.replace("  inventory.stock: {allow", "  other.stock: {allow")) == [
        "mesh.yaml:4:77: services.orders.stock.routes[0].backends[0].subset: service 'inventory' has no subset 'here'; it has none"
    ]


def test_found_beside_schema_errors() -> None:
    """A part that cannot be read hides no mistake elsewhere, and gives no false one."""
    text = """\
defaults: {timeout: soon, limits: {max_timeout: never}}
services:
  a:
    timeout: 40s
    subsets: [v1]
    routes: [{name: x, backends: [{subset: v1}, {service: c}, 7]}]
  b: nothing
"""
    found = [problem.partition(": ")[2].partition(": ")[0] for problem in problems(text)]
    assert found == [
        "defaults.timeout",
        "defaults.limits.max_timeout",
        "services.a.subsets",
        "services.a.routes[0].backends[1].service",
        "services.a.routes[0].backends[2]",
        "services.b",
    ]


def test_one_mistake_about_identity_is_one_problem() -> None:
    """Where `control` and dev contradict each other, the rules for dev say nothing on top."""
    text = (
        CONTROL + "identity: {source: dev}\ntrust_domain: shop.example\nservices: {a: {endpoints: [{static: ['a:1']}]}}"
    )
    assert len(problems(text)) == 1


EDGE = "gateways:\n  edge:\n    listeners: [{name: web, port: 80}]\n    routes:\n      - "


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (EDGE + "{name: r, backends: [{service: b}]}\nservices: {a: {}}\n", "gateways.edge.routes[0].backends[0].service: 'b' is not a service of this file"),
        (EDGE + "{name: r, backends: [{service: a}]}\nservices: {a: {}}\n", "gateways.edge.routes[0].backends[0].service: 'a' does not allow routes of 'gateway/edge'"),
        (EDGE + "{name: r}\n", "gateways.edge.routes[0]: has no backends; a gateway has no endpoints of its own"),
        (EDGE + "{name: r, backends: [{weight: 1}]}\n", "gateways.edge.routes[0].backends[0]: has no service; a gateway has no endpoints of its own"),
        (EDGE + "{name: r, listeners: [wb], direct_response: {status: 200}}\n", "gateways.edge.routes[0].listeners[0]: 'wb' is not a listener of this gateway"),
        ("gateways: {edge: {listeners: [{name: a, port: 80}, {name: a, port: 81}]}}\n", "gateways.edge.listeners[1].name: 'a' is already the name of a listener"),
        ("gateways: {edge: {listeners: [{name: a, port: 80}, {name: b, port: 80}]}}\n", "gateways.edge.listeners[1]: has the port and the hostname of another listener"),
        ("services: {a: {allow_routes_from: [gateway/edg]}}\ngateways: {edge: {listeners: [{name: a, port: 80}]}}\n", "services.a.allow_routes_from[0]: 'gateway/edg' is not a gateway of this file"),
        ("services: {a: {routes: [{name: r, mirror: {service: b}}]}}\n", "services.a.routes[0].mirror.service: 'b' is not a service of this file"),
        ("services: {a: {routes: [{name: r, mirror: [{subset: v1}]}]}}\n", "services.a.routes[0].mirror[0].subset: service 'a' has no subset 'v1'"),
        ("services: {a: {routes: [{name: r, backends: [{weight: 1}], direct_response: {status: 200}}]}}\n", "services.a.routes[0]: has backends, direct_response; a route either sends calls on or has one answer"),
        ("services: {a: {routes: [{name: r, url_rewrite: {path: {replace_prefix_match: /b}}}]}}\n", "services.a.routes[0]: has replace_prefix_match, so each of its matches needs a path with a prefix"),
        ("services: {a: {routes: [{name: r, backends: [{subset: v1, direct_response: {status: 200}}]}]}}\n", "services.a.routes[0].backends[0]: has subset, direct_response; a backend is either a service or one answer"),
        ("services: {a: {routes: [{name: r, request_headers: {set: {Host: b}}}]}}\n", "services.a.routes[0].request_headers.set.Host: host is not changed here"),
        ("services: {a: {routes: [{name: r, request_headers: {add: {x-meshlib-attempt: '1'}}}]}}\n", "is the transport's own; a route may not change it"),
        ("services: {a: {routes: [{name: r, matches: [{path: {regular_expression: '('}}]}]}}\n", "is not a regular expression of RE2"),
        ("services: {a: {routes: [{name: r, matches: [{grpc: {service: a}, method: POST}]}]}}\n", "has grpc, which says the path and the method; remove path and method"),
        ("services: {a: {routes: [{name: r, fault: {abort: {percent: 1%}}}]}}\n", "must have exactly one of http_status, grpc_status"),
    ],
)  # fmt: skip
def test_each_mistake_about_routes_and_gateways(text: str, problem: str) -> None:
    """Each is one problem, at its place."""
    (found,) = problems(text)
    assert problem in found


def test_a_gateway_that_is_right() -> None:
    """Consent by name, listeners, answers in the place of backends."""
    text = EDGE + "{name: r, listeners: [web], backends: [{service: a}, {direct_response: {status: 503}, weight: 0}]}\n"
    text += "      - {name: s, request_redirect: {scheme: https}}\nservices: {a: {allow_routes_from: [gateway/edge]}}\n"
    config = parse_config(HEAD + text, "mesh.yaml")
    assert config.owner("gateway/edge") is config.gateways["edge"]
    assert config.owner("gateway/other") is None
    assert config.place((*config.path_of("gateway/edge"), "routes", 1)).endswith(":8")
