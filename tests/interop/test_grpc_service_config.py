"""A gRPC service config as the fields of a service: what is kept, what is not, what is refused."""

from __future__ import annotations

import json

import pytest

import meshlib
from meshlib.config import config_of
from meshlib.interop.grpc_service_config import duration_nanos, parse_service_config

TEXT = """{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [
    {"name": [{}], "timeout": "5s"},
    {"name": [{"service": "shop.v1.Items"}], "timeout": "1.5s", "waitForReady": true,
     "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
                     "retryableStatusCodes": ["UNAVAILABLE", 8]}},
    {"name": [{"service": "shop.v1.Items", "method": "Get"}], "timeout": "0.25s"}
  ],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}
}"""


def test_methods_become_routes_the_most_specific_first() -> None:
    """As gRPC chooses: service and method, service, all."""
    config = parse_service_config(TEXT)
    mesh = config_of({"version": 1, "mesh": "shop", "services": {"items": config.service()}})

    def asked(path: str) -> dict:
        return meshlib.explain(mesh, "items", method="POST", path=path).to_dict()

    assert asked("/shop.v1.Items/Get")["timeout_s"] == 0.25
    other = asked("/shop.v1.Items/List")
    assert other["timeout_s"] == 1.5
    assert other["retries"]["max_retries"] == 3
    assert other["retries"]["retry_on"] == ["resource_exhausted", "unavailable"]
    assert asked("/shop.v1.Other/Get")["timeout_s"] == 5.0
    assert other["load_balancer"] == "round_robin"
    assert {path for path, _ in config.left_out} == {"methodConfig[1].waitForReady", "retryThrottling"}
    retries = config.service()["routes"][1]["retries"]
    assert retries["back_off"] == {"base_interval": "100ms", "max_interval": "1s", "multiplier": 2.0}


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ("[]", ""),
        ({"methodConfig": 1}, "methodConfig"),
        ({"methodConfig": [1]}, "methodConfig[0]"),
        ({"methodConfig": [{"name": [{"method": "m"}]}]}, "methodConfig[0].name[0]"),
        ({"methodConfig": [{"timeout": "-1s"}]}, "methodConfig[0].timeout"),
        ({"retryThrottling": 1}, "retryThrottling.maxTokens"),
        ({"methodConfig": [{"retryPolicy": {}}]}, "methodConfig[0].retryPolicy.maxAttempts"),
    ],
)
def test_each_mistake_has_its_path(data: object, path: str) -> None:
    """Whatever the JSON is: a ConfigError, never another."""
    with pytest.raises(meshlib.ConfigError) as caught:
        parse_service_config(data if isinstance(data, str) else json.dumps(data))
    assert path in {problem.path for problem in caught.value.problems}


def test_durations_saturate() -> None:
    """At 64 bits of nanoseconds; beyond what proto3 has they are refused."""
    assert duration_nanos("315576000000s") == 2**63 - 1
    with pytest.raises(ValueError, match="at most"):
        duration_nanos("315576000001s")
